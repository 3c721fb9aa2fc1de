"""Loads of levels that meet few of the other columns, as students meet few lecturers: sparse matrices, on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse, scipy
from .covariance_terms import pairs

#: Bytes that sparse products of pairs of columns may take where dense loads would take less.
LARGEST_SPARSE = 2**27
#: Time that a sparse product takes relative to a dense one.
FACTOR = 32


def products_of_pairs(A: Any, parts: int) -> Any:
    """Products of all pairs of columns in each row of a sparse matrix (k G, s) of `parts` k: (L G, s (s + 1) / 2).

    Pairs of columns i <= j stand row by row of the upper triangle. There are G rows for each part with itself, then for
    the parts (1, 2), (1, 3), (2, 3), ...: the products of column i of one and column j of the other, and the reverse.

    >>> products_of_pairs(scipy.sparse.csr_array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), 1).toarray()
    array([[1., 0., 2., 0., 0., 4.],
           [0., 0., 0., 9., 0., 0.]])
    """
    G, s = A.shape[0] // parts, A.shape[1]
    entries = A.tocoo()
    keys, place = np.unique((entries.row % G).astype(np.int64) * s + entries.col, return_inverse=True)
    values = np.zeros((parts, keys.size))
    values[entries.row // G, place] = entries.data
    row, column = keys // s, keys % s
    follow = np.searchsorted(row, row, side="right") - np.arange(keys.size)  # entries of the row from here on
    first = np.repeat(np.arange(keys.size), follow)
    second = first + np.arange(first.size) - np.repeat(np.cumsum(follow) - follow, follow)
    i, j = column[first], column[second]
    pair = i * s - i * (i - 1) // 2 + j - i
    crossed = [(a, b) for b in range(parts) for a in range(b)]
    data = [values[a, first] * values[a, second] for a in range(parts)]
    data += [values[a, first] * values[b, second] + values[b, first] * values[a, second] for a, b in crossed]
    starts = np.concatenate([[0], np.cumsum(np.bincount(row[first], minlength=G))])
    shape = (G, s * (s + 1) // 2)
    return scipy.sparse.vstack([scipy.sparse.csr_array((x, pair, starts), shape=shape) for x in data], format="csr")


def sparse_loads(root: np.ndarray, ZX: np.ndarray, ZZ: Any, rows: list[int], rest: list[int]) -> Any:
    """L_g^+ Z_g'[X, Z_R] (k G, p+q_R) as a sparse matrix; None if its products would take more time or memory.

    `root` (k, k, 1, G) are the L_g, `ZX` (k G, p) the products with X, and Z_R has the columns `rest` of Z'Z.
    """
    if not rest:
        return None
    k, G = root.shape[0], root.shape[3]
    crossed = scipy.sparse.csr_array(ZZ[rows][:, rest] if is_scipy_sparse(ZZ) else ZZ[np.ix_(rows, rest)])
    met = np.diff(crossed.indptr).reshape(k, G).sum(axis=0) + ZX.shape[1]  # columns that a level meets, at most
    products, s = len(pairs(k)) * int((met * (met + 1) // 2).sum()), ZX.shape[1] + len(rest)
    slow = FACTOR * products > len(pairs(k)) * G * s * (s + 1) // 2
    if slow or 12 * products > max(LARGEST_SPARSE, 8 * k * G * s):
        return None
    loads = scipy.sparse.hstack([scipy.sparse.csr_array(ZX), crossed], format="csr")
    solved: list[Any] = []
    for a in range(k):
        value = loads[a * G : (a + 1) * G]
        for c in range(a):
            value = value - _scaled(solved[c], root[a, c, 0])
        pivot = root[a, a, 0]
        solved.append(_scaled(value, np.where(pivot > 0, 1.0 / np.where(pivot > 0, pivot, 1.0), 0.0)))
    return scipy.sparse.vstack(solved, format="csr")


def _scaled(A: Any, factors: np.ndarray) -> Any:
    return scipy.sparse.csr_array(scipy.sparse.diags_array(factors) @ A)
