"""Accumulate dense genes that are nearly constant within groups about a cell of each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend.blocks import blocks
from .group_tables import GroupTables
from .grouped_design import GroupedDesign, Grouping
from .products import GeneProducts, gene_products
from .within import Within, within_of

#: A gene is accumulated about its groups where its standard deviation within them is below this share of that between.
_SMALL = 1e-3
#: Number of cells, about, from which that is estimated.
_SAMPLED = 256
#: A gene is not nearly constant if two cells of a group differ by more than this share of the range of a few cells.
_CLEAR = 0.1


class WithinSums:
    """Sums of some genes less the value of the first cell of each group.

    Parameters
    ----------
    design : GroupedDesign
    grouping : Grouping
        One of the random effects of the design.
    genes : array of int (f,)
        Positions of the genes.
    weights : array (n,), optional
        One weight per cell.
    """

    def __init__(self, design: GroupedDesign, grouping: Grouping, genes: np.ndarray, weights: np.ndarray | None = None):
        self.grouping, self.genes = grouping, genes
        self.tables = GroupTables(design, len(genes), weights)
        width = grouping.rows.stop - grouping.rows.start
        self.centre, self.seen = np.zeros((width, len(genes))), np.zeros(width, dtype=bool)

    def add(self, rows: slice, values: np.ndarray) -> None:
        """Add dense values (cells, f) of these genes in some cells."""
        codes, values = self.grouping.codes[rows], values.astype(np.float64)
        groups, first = np.unique(codes, return_index=True)
        new = ~self.seen[groups]
        self.centre[groups[new]], self.seen[groups] = values[first[new]], True
        values -= self.centre[codes]
        self.tables.add_dense(rows, slice(0, len(self.genes)), values, np.zeros(len(self.genes)))

    def joined(self, other: WithinSums) -> WithinSums:
        """Sums of these genes and of others in the same cells."""
        design, weights = self.tables.design, self.tables.weights
        found = WithinSums(design, self.grouping, np.concatenate([self.genes, other.genes]), weights)
        found.tables.sums = np.hstack([self.tables.sums, other.tables.sums])
        found.tables.moments = np.vstack([self.tables.moments, other.tables.moments])
        found.centre, found.seen = np.hstack([self.centre, other.centre]), self.seen | other.seen
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `restore` continues."""
        tables = {"within/sums": self.tables.sums, "within/moments": self.tables.moments}
        return tables | {
            "within/genes": self.genes,
            "within/centre": self.centre,
            "within/seen": self.seen.astype("u1"),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        self.tables.sums, self.tables.moments = arrays["within/sums"], arrays["within/moments"]
        self.centre, self.seen = arrays["within/centre"], arrays["within/seen"].astype(bool)

    def products(self, others: GeneProducts) -> Within:
        """Products of all genes: of these about their groups, of the others as they are given."""
        return merged_products(others, self.tables.products(), self.genes, self.centre, self.grouping.rows)


def merged_products(
    others: GeneProducts, found: GeneProducts, genes: np.ndarray, centre: np.ndarray, rows: slice
) -> Within:
    """Products of m genes: `found` for `genes` (f,) about `centre` (groups, f), `others` for the rest.

    `rows` are the columns of Z of the grouping; the products of `others` are about zero or the centre of the gene.
    """
    XY, ZY, Ynorm = others.XY.copy(), others.ZY.copy(), others.Ynorm.copy()
    centres = np.zeros(ZY.shape)  # (q, m)
    if others.centre is not None:
        centres[rows] = others.centre
    centres[rows, genes] = centre
    XY[:, genes], ZY[:, genes], Ynorm[genes] = found.XY, found.ZY, found.Ynorm
    return within_of(GeneProducts(XY, ZY, Ynorm, None), centres)


def within_matrices(
    design: tuple[np.ndarray, Any, np.ndarray | None],
    grouping: Grouping,
    values: Callable[[np.ndarray], np.ndarray],
    genes: np.ndarray,
    others: GeneProducts,
    size: int,
) -> Within | None:
    """Products of matrices of cells, of which `genes` are multiplied about a cell of each group.

    Parameters
    ----------
    design : X (n, p), Z (n, q), weights (n,) or None
        Z may be sparse.
    grouping : Grouping
        One of the random effects.
    values : callable
        Returns the dense values (n, b) of genes, given by position.
    genes : array of int (f,)
        Genes that are nearly constant within the groups.
    others : GeneProducts
        Of all m genes, from which those of the other genes are taken.
    size : int
        Number of genes to multiply at a time.
    """
    if not genes.size:
        return None
    X, Z, weights = design
    found, first = np.unique(grouping.codes, return_index=True)
    centre = np.zeros((grouping.rows.stop - grouping.rows.start, len(genes)))
    parts = []
    for lo, hi in blocks(len(genes), size):
        Y = values(genes[lo:hi]).astype(np.float64)  # a copy
        centre[found, lo:hi] = Y[first]
        Y -= centre[grouping.codes, lo:hi]
        parts.append(gene_products(X, Z, Y, None, weights))
    return merged_products(others, GeneProducts.join(parts), genes, centre, grouping.rows)


def widest_grouping(design: GroupedDesign) -> Grouping | None:
    """The random intercept with the most levels; None if there is none."""
    return widest([one for one in design.groupings if one.rows.stop <= design.q])


def widest(groupings: Sequence[Grouping]) -> Grouping | None:
    """The grouping without weights that has the most groups; None if there is none."""
    found = [one for one in groupings if one.weights is None]
    return max(found, key=lambda one: one.rows.stop - one.rows.start, default=None)


def sampled_cells(codes: np.ndarray, count: int = _SAMPLED) -> np.ndarray:
    """Positions of some cells (c,), sorted: pairs of neighbours once cells are ordered by group, given their `codes`.

    >>> sampled_cells(np.array([0, 1, 0, 1])).tolist()
    [0, 1, 2, 3]
    """
    order = np.argsort(codes, kind="stable")
    places = np.linspace(0, max(len(order) - 2, 0), min(len(order), count // 2)).astype(int)
    return np.unique(order[np.concatenate([places, np.minimum(places + 1, len(order) - 1)])])


def clearly_varying(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which genes (f,) are not nearly constant within groups, as a few of their cells show.

    Parameters
    ----------
    codes : array of int (c,) or (c, f)
        Groups of these cells, sorted along the first axis.
    values : array (c, f)

    Examples
    --------
    >>> clearly_varying(np.array([0, 0, 1]), np.array([[1.0, 1.0], [5.0, 1.0], [3.0, 9.0]])).tolist()
    [True, False]
    """
    if len(values) < 2:
        return np.zeros(values.shape[1], dtype=bool)
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.abs(np.diff(values.astype(np.float64), axis=0))
        same = np.diff(codes, axis=0) == 0
        largest = np.max(steps * (same if same.ndim == 2 else same[:, None]), axis=0)
        return np.asarray(largest > _CLEAR * np.ptp(values.astype(np.float64), axis=0))


def nearly_constant(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Positions of the genes (f,) that are nearly constant within groups, but not between them.

    Parameters
    ----------
    codes : array of int (c,)
        Group of each sampled cell.
    values : array (c, m)
        Dense values of these cells.
    """
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    values = values.astype(np.float64, copy=False)
    freedom = len(values) - len(first)
    if freedom == 0 or len(first) < 2:
        return np.zeros(0, dtype=int)
    firsts = values[first]
    deviations = values - firsts[codes]
    within = np.einsum("ij,ij->j", deviations, deviations) / freedom  # exactly zero where values are constant
    between = firsts.var(axis=0)
    # constant genes have no residual variance, which the other sums show too
    return np.flatnonzero((within > 0) & (within < _SMALL**2 * between))
