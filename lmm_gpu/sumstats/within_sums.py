"""Accumulate dense genes that are nearly constant within groups about a cell of each group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .group_tables import GroupTables
from .grouped_design import GroupedDesign, Grouping
from .products import GeneProducts
from .within import Within, within_of

#: A gene is accumulated about its groups where its standard deviation within them is below this share of that between.
_SMALL = 1e-3
#: Number of cells, about, from which that is estimated.
_SAMPLED = 256


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

    def add(self, rows: slice, Y: np.ndarray) -> None:
        """Add dense values (cells, m) of some cells."""
        codes, values = self.grouping.codes[rows], Y[:, self.genes].astype(np.float64)
        groups, first = np.unique(codes, return_index=True)
        new = ~self.seen[groups]
        self.centre[groups[new]], self.seen[groups] = values[first[new]], True
        values -= self.centre[codes]
        self.tables.add_dense(rows, slice(0, len(self.genes)), values, np.zeros(len(self.genes)))

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
        q = self.tables.design.q
        centre = np.zeros((q, others.ZY.shape[1]))
        if others.centre is not None:
            centre[self.grouping.rows] = others.centre
        centre[self.grouping.rows, self.genes] = self.centre
        found = self.tables.products()
        XY, ZY, Ynorm = others.XY.copy(), others.ZY.copy(), others.Ynorm.copy()
        XY[:, self.genes], ZY[:, self.genes], Ynorm[self.genes] = found.XY, found.ZY, found.Ynorm
        return within_of(GeneProducts(XY, ZY, Ynorm, None), centre)


def widest_grouping(design: GroupedDesign) -> Grouping | None:
    """The random intercept with the most levels; None if there is none."""
    found = [one for one in design.groupings if one.rows.stop <= design.q and one.weights is None]
    return max(found, key=lambda one: one.rows.stop - one.rows.start, default=None)


def nearly_constant(grouping: Grouping, rows: slice, Y: np.ndarray) -> np.ndarray:
    """Positions of the genes (f,) of a first chunk that are nearly constant within the groups, but not between them."""
    cells = np.unique(np.linspace(0, len(Y) - 1, min(len(Y), _SAMPLED)).astype(int))
    _, first, codes = np.unique(grouping.codes[rows][cells], return_index=True, return_inverse=True)
    values = Y[cells].astype(np.float64)
    freedom = len(cells) - len(first)
    if freedom == 0 or len(first) < 2:
        return np.zeros(0, dtype=int)
    within = np.square(values - values[first][codes]).sum(axis=0) / freedom  # exactly zero where values are constant
    between = values[first].var(axis=0)
    # constant genes have no residual variance, which the other sums show too
    return np.flatnonzero((within > 0) & (within < _SMALL**2 * between))
