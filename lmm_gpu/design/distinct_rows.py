"""Distinct rows of a few variables: the combination of levels of each cell as one integer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: A variable with more distinct values is not coded.
_MOST_VALUES = 256


def combined_codes(parts: Sequence[tuple[np.ndarray, int] | None], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the combinations of several codes (n,) that occur, in lexicographic order; and the first cell of each.

    Codes are compressed after every step, so that the product of the numbers of levels may be of any size.

    Examples
    --------
    >>> codes, first = combined_codes([(np.array([1, 0, 1]), 2), (np.array([0, 5, 0]), 10**12)], 3)
    >>> codes.tolist(), first.tolist()
    ([1, 0, 1], [1, 0])
    """
    codes, first = np.zeros(n, dtype=np.intp), np.zeros(min(n, 1), dtype=np.intp)
    for part in parts:
        if part is not None:
            first, codes = _distinct(codes.astype(np.int64) * part[1] + part[0], len(first) * part[1])
    return codes, first


def _distinct(codes: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """First place of each distinct code, in ascending order of the codes, and the rank of each code (n,)."""
    if limit > max(4 * len(codes), 1_000):
        _, first, ranks = np.unique(codes, return_index=True, return_inverse=True)
        return first, ranks
    first = np.full(limit, -1)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal places the last assignment, the first cell, stays
    present = np.flatnonzero(first >= 0)
    ranks = np.zeros(limit, dtype=np.intp)
    ranks[present] = np.arange(len(present))
    return first[present], ranks[codes]


def variable_codes(series: pd.Series) -> tuple[np.ndarray, int] | None:
    """Codes (n,) and their number for a variable with few distinct values."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return series.cat.codes.to_numpy(np.int64), max(len(series.cat.categories), 1)
    if series.iloc[:4096].nunique() > _MOST_VALUES:
        return None
    codes, values = pd.factorize(series)
    return (codes.astype(np.int64), max(len(values), 1)) if len(values) <= _MOST_VALUES else None
