"""Selection of genes: by name, by the number of cells in which they are detected, and by their mean."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .summary_stats import SummaryStats

logger = logging.getLogger("lmm_gpu")


@dataclass(frozen=True)
class GeneFilter:
    """Conditions for the genes that are kept.

    Parameters
    ----------
    min_cells : int
        Smallest number of cells in which a gene is not zero.
    min_mean : float
        Smallest mean over the cells of the stored values, before the transform.
    names : tuple of str, optional
        Names of the genes, in the order of the result.
    """

    min_cells: int = 0
    min_mean: float | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("min_cells", self.min_cells), ("min_mean", self.min_mean)):
            if value is not None and not is_number(value, 0):
                raise ValueError(f"{name}={value!r}: wanted a number, 0 or more")
        if self.names is not None:
            object.__setattr__(self, "names", _checked_names(self.names))

    @property
    def counts(self) -> bool:
        """True if cells and totals have to be counted."""
        return self.min_cells != 0 or self.min_mean is not None

    def check(self, features: Sequence[str]) -> None:
        """Refuse names that the data do not have, before cells are read."""
        unknown = [name for name in self.names or () if name not in set(features)]
        if unknown:
            raise ValueError(
                f"genes= names {len(unknown)} gene(s) that the data do not have ({', '.join(unknown[:5])}); the data "
                f"have {len(features)} genes, such as {', '.join(features[:3])}"
            )

    def apply(self, summary: SummaryStats, cells: np.ndarray | None, total: np.ndarray | None) -> SummaryStats:
        """Select the genes to keep, from the number of cells (m,) with each gene and its total (m,).

        Raises
        ------
        ValueError
            If no gene is kept, with the largest values found.
        """
        kept = np.ones(summary.m, dtype=bool)
        if self.counts:
            assert cells is not None and total is not None
            kept = self._detected(cells, total / max(summary.n, 1))
            logger.info("%d of %d genes are kept", np.count_nonzero(kept), len(kept))
        if self.names is None:
            return summary.with_genes(np.flatnonzero(kept).tolist()) if self.counts else summary
        place = {name: i for i, name in enumerate(summary.features)}
        wanted = [place[name] for name in self.names if kept[place[name]]]
        if not wanted:
            raise ValueError(f"none of the {len(self.names)} genes of genes= meets min_cells and min_mean")
        return summary.with_genes(wanted)

    def _detected(self, cells: np.ndarray, mean: np.ndarray) -> np.ndarray:
        kept: np.ndarray = cells >= self.min_cells
        if self.min_mean is not None:
            kept &= mean >= self.min_mean
        if not kept.any():
            raise ValueError(
                f"no gene has min_cells={self.min_cells} and min_mean={self.min_mean}: the largest number of cells "
                f"with a gene is {int(cells.max())}, the largest mean is {mean.max():g}"
            )
        return kept


def _checked_names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names) or len(names) == 0:
        raise ValueError(f"genes={names!r}: wanted a list of gene names, such as ['CD3D', 'MS4A1']")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"genes= names {', '.join(twice[:5])} more than once: name each gene once")
    return tuple(names)


def is_number(value: Any, least: float) -> bool:
    """Return whether something is a finite number of at least `least`; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) < math.inf


#: Keeps all genes.
NO_FILTER = GeneFilter()
