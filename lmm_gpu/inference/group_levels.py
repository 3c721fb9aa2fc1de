"""Random effects that are groups of cells, and what of X varies within their levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, to_numpy
from ..backend.sparse import is_sparse
from ..sumstats.summary_stats import SummaryStats
from .strata import strata

#: Relative rounding error of sums of squares that are formed from products about the means of groups.
_ROUNDED = 1e-9


@dataclass(frozen=True)
class Grouping:
    """A random effect that is one indicator per level."""

    name: str
    counts: np.ndarray  #: (d,), cells of each level
    sums: np.ndarray  #: (d, p), sums of the columns of X in each level
    within: np.ndarray  #: (p, p), X'(I - P)X: what of X varies within levels

    @property
    def indicators(self) -> np.ndarray:
        """Columns (p,) of X that are 0 or 1 in every cell (bool), as far as their sums show."""
        counts = self.counts[:, None]
        means = np.divide(self.sums, counts, out=np.zeros_like(self.sums), where=counts > 0)
        squares = np.diagonal(self.within) + (self.sums * means).sum(axis=0)  # (p,), of the columns
        # sums of 0 and 1 are exact
        whole = (self.sums == np.rint(self.sums)) & (self.sums >= 0) & (self.sums <= counts)
        found: np.ndarray = whole.all(axis=0) & np.isclose(squares, self.sums.sum(axis=0), rtol=_ROUNDED, atol=0.0)
        return found


def groupings(summary: SummaryStats) -> list[Grouping]:
    """Return the random effects of `summary` that are indicators: whole counts on a diagonal that add up to n."""
    found, lo = [], 0
    for name, width, stratum in zip(summary.component_names, summary.d, strata(summary), strict=True):
        rows = slice(lo, lo + width)
        ZZ: Array = summary.ZZ if is_sparse(summary.ZZ) else to_numpy(summary.ZZ)
        block = ZZ[rows, rows]
        counts = block.diagonal()
        entries = block.count_nonzero() if is_sparse(block) else np.count_nonzero(block)
        diagonal = entries == np.count_nonzero(counts)
        if diagonal and counts.sum() == summary.n and (counts == np.rint(counts)).all():  # sums of ones are exact
            found.append(Grouping(name, counts, to_numpy(summary.ZX)[rows], stratum.within_gram))
        lo += width
    return found


def level_name(name: str, component: str) -> str:
    """Name of a level without that of its random effect.

    >>> level_name("donor[D1]", "donor")
    'D1'
    """
    return name.removeprefix(f"{component}[").removesuffix("]") if name.startswith(f"{component}[") else name
