"""Genes whose counts are too rare for a comparison of few cells with many, from the sums alone.

The mean of few cells of a rare gene is skewed, and the difference from the mean of many cells keeps that skewness. With
n1 and n2 cells in the compared groups and a share f of cells that express the gene, it is about that of shares of ones:
(n1^-2 - n2^-2) (n1^-1 + n2^-1)^(-3/2) (1 - 2f) (f (1 - f))^(-1/2).
"""

from __future__ import annotations

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.late_imports import scipy
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats

#: The level whose false positives are predicted, and the factor from which a gene counts as too rare.
LEVEL, _FACTOR = 0.001, 2.0
#: Genes below which signs of their sums do not tell whether values are at zero or above.
_FEWEST_GENES = 20
#: Skewness below which a gamma distribution is taken as normal, its shape being finite.
_NORMAL = 1e-3


def too_rare(summary: SummaryStats, c: np.ndarray, indicators: np.ndarray) -> np.ndarray | None:
    """Genes (m,) with more than `_FACTOR` times too many false positives at `LEVEL`, by the skewness of a contrast.

    Parameters
    ----------
    summary : SummaryStats
    c : array (p,)
        A contrast of groups of cells.
    indicators : array (p,)
        Columns of X that are 0 or 1 in every cell and not 1 in all.

    Returns
    -------
    array (m,) of bool, or None
        None if the contrast names no group, with weights, or if values may be below zero.
    """
    columns = np.flatnonzero((c != 0) & indicators)
    weighted = isinstance(summary, WeightedStats) or summary.total_weight is not None
    if summary.Ysum is None or weighted or not columns.size or summary.m < _FEWEST_GENES:
        return None
    total, squares = to_numpy(summary.Ysum), to_numpy(summary.Ynorm)
    if (total < 0).any():
        return None
    XX = to_numpy(summary.XX)
    column = columns[np.argmin(np.diagonal(XX)[columns])]
    first = 1.0 / XX[column, column]  # 1 / n1
    second = max(float(c @ np.linalg.solve(XX, c)) / c[column] ** 2 - first, 0.0)
    skewness = abs(first**2 - second**2) / (first + second) ** 1.5
    with np.errstate(divide="ignore", invalid="ignore"):
        share = total**2 / (summary.n * squares)  # at most that of the cells that express the gene
        of_values = np.maximum(1.0 - 2.0 * share, 0.0) / np.sqrt(share * (1.0 - share))
        return np.asarray(_factor(skewness * of_values) > _FACTOR)


def _factor(skewness: np.ndarray) -> np.ndarray:
    # false positives of a normal test at LEVEL over LEVEL, for statistics of a gamma distribution with this skewness
    z = -float(scipy.special.ndtri(LEVEL / 2))
    shape = 4.0 / np.maximum(skewness, _NORMAL) ** 2
    upper = scipy.special.gammaincc(shape, shape + z * np.sqrt(shape))
    lower = scipy.special.gammainc(shape, np.maximum(shape - z * np.sqrt(shape), 0.0))
    return np.asarray((upper + lower) / LEVEL)
