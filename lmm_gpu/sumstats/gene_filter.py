"""Which genes are worth a model: those seen in enough cells, and often enough."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .summary_stats import SummaryStats

logger = logging.getLogger("lmm_gpu")


@dataclass(frozen=True)
class GeneFilter:
    """Which genes to keep.

    Parameters
    ----------
    min_cells : int
        Cells in which a gene is not zero, at least.
    min_mean : float
        Mean over the cells of the values as they are stored, before the transform, at least.
    """

    min_cells: int = 0
    min_mean: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("min_cells", self.min_cells), ("min_mean", self.min_mean)):
            if value is not None and not is_number(value, 0):
                raise ValueError(f"{name}={value!r}: wanted a number, 0 or more")

    def apply(self, summary: SummaryStats, cells: np.ndarray, total: np.ndarray) -> SummaryStats:
        """Statistics of the genes that are kept, from the cells (m,) with each and its total (m,).

        Raises
        ------
        ValueError
            If no gene is kept, with how far from it they are.
        """
        mean = total / max(summary.n, 1)  # (m,)
        kept = cells >= self.min_cells
        if self.min_mean is not None:
            kept &= mean >= self.min_mean
        if not kept.any():
            raise ValueError(
                f"no gene has min_cells={self.min_cells} and min_mean={self.min_mean}: the most cells that a gene is "
                f"in are {int(cells.max())}, the largest mean is {mean.max():g}"
            )
        logger.info("%d of %d genes are kept", np.count_nonzero(kept), len(kept))
        return summary.with_genes(np.flatnonzero(kept).tolist())


def is_number(value: Any, least: float) -> bool:
    """Whether something is a finite number of at least `least`; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) < math.inf


#: Keeps all genes.
NO_FILTER = GeneFilter()
