"""Normalisation factors of libraries by the trimmed mean of M values (TMM), as edgeR computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from scipy.stats import rankdata

#: Shares of genes that are trimmed at each end, by log ratio and by average log abundance.
_RATIO_TRIM, _SUM_TRIM = 0.3, 0.05
#: edgeR's limits, of shares and log ratios, which have no unit: an upper quartile that is zero, samples that are equal.
_NO_COUNTS, _EQUAL = 1e-20, 1e-6


def tmm_factors(counts: Any) -> np.ndarray:
    """Normalisation factors of samples by TMM; their geometric mean is one.

    Parameters
    ----------
    counts : array or SciPy sparse matrix (n, m)
        Counts of n samples and m genes.

    Returns
    -------
    array (n,)
        Library sizes times these are the effective library sizes.

    Raises
    ------
    ValueError
        If counts are negative or not finite, or a sample has none.

    References
    ----------
    Robinson and Oshlack (2010), A scaling normalization method for differential expression analysis of RNA-seq data,
    Genome Biology 11, R25; edgeR's calcNormFactors with its default settings.

    Examples
    --------
    >>> counts = np.array([[10, 20, 30, 40.0], [20, 40, 60, 80.0]])
    >>> tmm_factors(counts).tolist()
    [1.0, 1.0]
    """
    counts = check_counts(counts)
    sizes = counts.sum(axis=1)  # (n,)
    counts = counts[:, (counts > 0).any(axis=0)]
    reference = _reference_sample(counts, sizes)
    factors = [_factor(row, counts[reference], size, sizes[reference]) for row, size in zip(counts, sizes, strict=True)]
    return np.asarray(np.asarray(factors) / np.exp(np.mean(np.log(factors))))


def check_counts(counts: Any) -> np.ndarray:
    """Counts (n, m) as float64, refused if they are negative or not finite, or a sample has none."""
    counts = counts.toarray() if scipy.sparse.issparse(counts) else np.asarray(counts)
    counts = counts.astype(np.float64)
    bad = int(np.count_nonzero(~(np.isfinite(counts) & (counts >= 0))))
    if bad:
        raise ValueError(f"{bad} of {counts.size} counts are negative or not finite; expected raw counts of samples")
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    if empty.size:
        raise ValueError(f"{empty.size} of {len(counts)} samples have no counts (first: row {empty[0]}): drop them")
    return np.asarray(counts)


def _reference_sample(counts: np.ndarray, sizes: np.ndarray) -> int:
    # the sample whose upper quartile is closest to the mean of all
    upper = np.quantile(counts, 0.75, axis=1) / sizes  # (n,)
    if np.median(upper) < _NO_COUNTS:
        return int(np.argmax(np.sqrt(counts).sum(axis=1)))
    return int(np.argmin(np.abs(upper - upper.mean())))


def _factor(sample: np.ndarray, reference: np.ndarray, size: float, reference_size: float) -> float:
    # weighted mean of the log ratios that are left after trimming
    both = (sample > 0) & (reference > 0)
    a, b = sample[both], reference[both]
    ratio = np.log2((a / size) / (b / reference_size))
    if not ratio.size or np.max(np.abs(ratio)) < _EQUAL:
        return 1.0
    abundance = 0.5 * (np.log2(a / size) + np.log2(b / reference_size))
    variance = (size - a) / size / a + (reference_size - b) / reference_size / b
    kept = _within(ratio, _RATIO_TRIM) & _within(abundance, _SUM_TRIM)
    total = np.sum(1.0 / variance[kept])
    return float(2.0 ** (np.sum(ratio[kept] / variance[kept]) / total)) if total > 0 else 1.0


def _within(values: np.ndarray, trim: float) -> np.ndarray:
    # values whose rank is not among the trimmed ones at either end
    lowest = np.floor(values.size * trim) + 1
    ranks = rankdata(values)
    return np.asarray((ranks >= lowest) & (ranks <= values.size + 1 - lowest))
