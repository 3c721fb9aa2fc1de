"""Genes whose observations have weights of their own: the block engine with a design per gene.

Everything stays in the coordinates of X in which the unweighted X'X is the identity, so that contrasts are prepared
once for all genes; each gene has its own X'WX, Z'WX and Z'WZ, and y enters as the residual of weighted least squares.
"""

from __future__ import annotations

from dataclasses import replace

from ..backend.arrays import Array, indices, namespace, zeros
from ..backend.linalg import eps, inverse_and_logdet
from ..sumstats.gene_weights import GeneProductsOfDesign, WeightedStats
from .covariance_terms import Term
from .group_elimination import GroupedDesign
from .grouped_effects import GroupedEffects
from .projection import NO_VARIANCE, ProjectedGenes, Remainder


def weighted_genes(T: Array, like: GroupedEffects, summary: WeightedStats) -> tuple[ProjectedGenes, GroupedEffects]:
    """Project X out of genes with weights, and return the likelihood of their designs; X T is orthonormal, T (p, p)."""
    xp, own = namespace(summary.XY), summary.own
    first = xp.permute_dims  # genes to the front
    XX = xp.matmul(T.T[None, :, :], xp.matmul(first(own.XX, (2, 0, 1)), T[None, :, :]))  # (b, p, p)
    ZX = xp.matmul(first(own.ZX, (2, 0, 1)), T[None, :, :])  # (b, q, p)
    XY = T.T @ summary.XY  # (p, b)
    inverse, _, ok = inverse_and_logdet(XX)
    beta = xp.matmul(inverse, first(XY, (1, 0))[:, :, None])[:, :, 0]  # (b, p)
    zry = summary.ZY - first(xp.matmul(ZX, beta[:, :, None])[:, :, 0], (1, 0))  # (q, b)
    yry = summary.Ynorm - xp.sum(XY * first(beta, (1, 0)), axis=0)  # (b,)
    varies = ok & (yry > NO_VARIANCE * summary.Ynorm)
    sums = Remainder(zry, yry, size=2.0 * summary.Ynorm, unit=eps(yry) * summary.n)
    genes = ProjectedGenes(T @ first(beta, (1, 0)), sums, sums, varies)
    design, squares = gene_designs(like.terms, like.widest, XX, ZX, own)
    return genes, replace(like, design=design, amplification=design.amplification(squares)).with_genes(genes)


def gene_designs(
    terms: tuple[Term, ...], widest: int, XX: Array, ZX: Array, own: GeneProductsOfDesign
) -> tuple[GroupedDesign, Array]:
    """Designs of b genes from X'WX (b, p, p) and Z'WX (b, q, p) in orthonormal coordinates, and Z'WZ.

    With squared lengths (k, b, G) of the eliminated columns.
    """
    xp, term = namespace(XX), terms[widest]
    q, lo, hi = ZX.shape[1], term.first, term.first + term.size
    eliminated, rest = list(range(lo, hi)), [*range(lo), *range(hi, q)]
    effects = [range(*term.rows(a)) for a in range(term.effects)]
    pairs = _Pairs(own)
    ZZ = xp.stack([xp.stack([pairs.diagonal(a, b) for b in effects], axis=0) for a in effects], axis=0)
    ZZ = xp.permute_dims(ZZ, (0, 1, 3, 2))  # (k, k, b, G)
    ZX_R = xp.take(ZX, indices(rest, ZX), axis=1)  # (b, q_R, p)
    loads = xp.concat([ZX[:, lo:hi, :], pairs.block(eliminated, rest)], axis=2)
    top = xp.concat([XX, xp.matrix_transpose(ZX_R)], axis=2)
    bottom = xp.concat([ZX_R, pairs.block(rest, rest)], axis=2)
    squares = xp.stack([ZZ[a, a, ...] for a in range(term.effects)], axis=0)
    return GroupedDesign.build(ZZ, loads, xp.concat([top, bottom], axis=1), XX.shape[1]), squares


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
