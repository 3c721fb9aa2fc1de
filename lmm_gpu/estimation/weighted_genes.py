"""Genes whose observations have weights of their own: the block engine with a design per gene.

Everything stays in the coordinates of X in which the unweighted X'X is the identity, so that contrasts are prepared
once for all genes; each gene has its own X'WX, Z'WX and Z'WZ, and y enters as the residual of weighted least squares.
"""

from __future__ import annotations

from dataclasses import replace

from ..backend.arrays import Array, indices, namespace, zeros
from ..backend.linalg import independent_columns, inverse_and_logdet
from ..sumstats.gene_weights import GeneProductsOfDesign, WeightedStats
from .group_elimination import GroupedDesign, level_roots, rotated
from .grouped_effects import GroupedEffects
from .level_loads import StackedLoads
from .projection import NO_VARIANCE, ProjectedGenes, Remainder, rounding_unit


def weighted_genes(T: Array, like: GroupedEffects, summary: WeightedStats) -> tuple[ProjectedGenes, GroupedEffects]:
    """Project X out of genes with weights, and return the likelihood of their designs; X T is orthonormal, T (p, p)."""
    xp, own = namespace(summary.XY), summary.own
    first = xp.permute_dims  # genes to the front
    XX = xp.matmul(T.T[None, :, :], xp.matmul(first(own.XX, (2, 0, 1)), T[None, :, :]))  # (b, p, p)
    ZX = xp.matmul(first(own.ZX, (2, 0, 1)), T[None, :, :])  # (b, q, p)
    XY = T.T @ summary.XY  # (p, b)
    inverse, _, ok = inverse_and_logdet(XX)
    p = T.shape[0]
    ok = ok & independent_columns(XX) & (own.n > p)
    beta = xp.matmul(inverse, first(XY, (1, 0))[:, :, None])[:, :, 0]  # (b, p)
    lengths = xp.sqrt(xp.linalg.diagonal(XX))  # (b, p)
    zry = summary.ZY - first(xp.matmul(ZX, beta[:, :, None])[:, :, 0], (1, 0))  # (q, b)
    yry = summary.Ynorm - xp.sum(XY * first(beta, (1, 0)), axis=0)  # (b,)
    varies = ok & (yry > NO_VARIANCE * summary.Ynorm)
    fitted = xp.square(xp.matmul(lengths[:, None, :], xp.abs(beta)[:, :, None])[:, 0, 0])  # (b,), bounds |X beta|^2
    sums = Remainder(zry, yry, size=summary.Ynorm + fitted, unit=rounding_unit(summary.n, yry))
    genes = ProjectedGenes(T @ first(beta, (1, 0)), sums, sums, varies)
    design, squares = gene_designs(like, XX, ZX, own)
    df = xp.where(own.n > p, own.n - p, 1.0)  # (b,)
    likelihood = replace(
        like,
        design=design,
        amplification=design.amplification(squares),
        n_effective=df if like.reml else df + p,
        residual_df=df,
        rank=design.ranks - p,
    )
    return genes, likelihood.with_genes(genes)


def gene_designs(like: GroupedEffects, XX: Array, ZX: Array, own: GeneProductsOfDesign) -> tuple[GroupedDesign, Array]:
    """Designs of b genes from X'WX (b, p, p) and Z'WX (b, q, p) in orthonormal coordinates, and Z'WZ.

    With squared lengths (k, b, G) of the eliminated columns.
    """
    xp, block = namespace(XX), like.eliminated
    effects = [range(*rows) for rows in block.rows]
    eliminated = [row for rows in effects for row in rows]
    rest = [row for term in like.rest for row in range(term.first, term.first + term.size)]
    pairs = _Pairs(own)
    root = level_roots([[xp.permute_dims(pairs.diagonal(a, b), (1, 0)) for b in effects] for a in effects])
    root = xp.stack([xp.stack(row, axis=0) for row in root], axis=0)  # (k, k, b, G)
    ZX_R = xp.take(ZX, indices(rest, ZX), axis=1)  # (b, q_R, p)
    loads = xp.concat([xp.take(ZX, indices(eliminated, ZX), axis=1), pairs.block(eliminated, rest)], axis=2)
    top = xp.concat([XX, xp.matrix_transpose(ZX_R)], axis=2)
    bottom = xp.concat([ZX_R, pairs.block(rest, rest)], axis=2)
    squares = xp.stack([xp.permute_dims(pairs.diagonal(a, a), (1, 0)) for a in effects], axis=0)
    own_loads = StackedLoads(block.effects, rotated(root, loads))
    return GroupedDesign.build(root, own_loads, xp.concat([top, bottom], axis=1), XX.shape[1]), squares


class _Pairs:
    """Entries of Z'WZ by their columns of Z."""

    def __init__(self, own: GeneProductsOfDesign):
        xp = namespace(own.ZZ)
        self.values = xp.concat([own.ZZ, zeros((1, own.ZZ.shape[1]), own.ZZ)], axis=0)  # a last row for what is zero
        self.place = {pair: i for i, pair in enumerate(zip(own.rows, own.columns, strict=True))}

    def diagonal(self, rows: range, columns: range) -> Array:
        """Entries (levels, b) of the same level of two effects."""
        return self._taken([self._place(i, j) for i, j in zip(rows, columns, strict=True)])

    def block(self, rows: list[int], columns: list[int]) -> Array:
        """Entries (b, rows, columns)."""
        xp = namespace(self.values)
        found = self._taken([self._place(i, j) for i in rows for j in columns])
        return xp.permute_dims(xp.reshape(found, (len(rows), len(columns), found.shape[1])), (2, 0, 1))

    def _place(self, i: int, j: int) -> int:
        return self.place.get((min(i, j), max(i, j)), len(self.place))

    def _taken(self, places: list[int]) -> Array:
        return namespace(self.values).take(self.values, indices(places, self.values), axis=0)
