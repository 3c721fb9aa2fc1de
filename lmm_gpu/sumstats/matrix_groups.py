"""Groups of cells from matrices: the columns of Z that each cell has a value in, read in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse
from .grouped_design import GroupedDesign, Grouping, code_type

#: Bytes of Z that are read at a time: they stay in the cache.
_BLOCK_BYTES = 2**21
#: Values per cell are added to sums of groups up to one for so many columns of Z: of more, a dense product is faster.
_COLUMNS_PER_VALUE = 2
#: With fewer genes, columns of X are multiplied as they are: to find groups of cells for them takes as long.
_MANY_GENES = 128


def read_groupings(Z: Any) -> list[Grouping] | None:
    """Return groupings whose indicator columns are Z; None if the cells differ in their number of values.

    They do not depend on which columns belong to one random effect: the first values of all cells are in columns before
    those of the second values, and so on.

    Parameters
    ----------
    Z : array or csr_array (n, q)
        A sparse one has sorted rows without duplicates. It is read once, some rows at a time.

    Examples
    --------
    >>> groupings = read_groupings(np.array([[1, 0, 0, 0.5], [0, 1, 0, 2.0], [1, 0, 0, 3.0]]))
    >>> [(one.rows, one.codes.tolist()) for one in groupings]
    [(slice(0, 2, None), [0, 1, 0]), (slice(2, 4, None), [1, 1, 1])]
    >>> groupings[0].weights, groupings[1].weights.tolist()
    (None, [0.5, 2.0, 3.0])
    >>> read_groupings(np.array([[1, 0], [1, 1]])) is None
    True
    """
    if 0 in Z.shape:
        return None
    parts = []
    for columns, values in _stored(Z):
        if columns is None or _COLUMNS_PER_VALUE * (columns.shape[1] - 1) >= Z.shape[1]:
            return None
        parts.append((columns.astype(np.int32), None if (values == 1).all() else values))
    columns = np.concatenate([columns for columns, _ in parts])  # (n, k)
    least, largest = columns.min(axis=0), columns.max(axis=0)
    if (least[1:] <= largest[:-1]).any():
        return None
    values = None
    if any(values is not None for _, values in parts):
        values = np.concatenate([np.ones(c.shape) if v is None else v.astype(np.float64) for c, v in parts])
    bounds = [0, *(largest[:-1] + 1).tolist(), Z.shape[1]]
    return [
        Grouping(
            slice(lo, hi),
            (columns[:, i] - lo).astype(code_type(hi - lo)),
            None if values is None or (values[:, i] == 1).all() else values[:, i].copy(),
        )
        for i, (lo, hi) in enumerate(pairwise(bounds))
    ]


def _stored(Z: Any) -> Iterator[tuple[np.ndarray | None, Any]]:
    """Yield columns and values (cells, k) of the entries of Z that are not zero; None where cells have other numbers.

    The number k is that of the first cell.
    """
    n, q = Z.shape
    if is_scipy_sparse(Z):
        k = int(Z.indptr[1])
        regular = k > 0 and bool((np.diff(Z.indptr) == k).all())
        yield (Z.indices.reshape(n, k), Z.data.reshape(n, k)) if regular else (None, None)
        return
    size, k = max(1, _BLOCK_BYTES // (Z.itemsize * q)), int(np.count_nonzero(Z[0]))
    for lo in range(0, n, size):
        block = np.ascontiguousarray(Z[lo : lo + size])
        starts = np.arange(0, block.size, q)  # (cells,)
        at = np.flatnonzero(block.reshape(-1) != 0)
        if k == 0 or at.size != k * starts.size:
            yield None, None
            return
        columns = at.reshape(-1, k) - starts[:, None]
        if columns[:, 0].min() < 0 or columns[:, -1].max() >= q:
            yield None, None
            return
        yield columns, block.reshape(-1)[at].reshape(-1, k)


def grouped_design(X: np.ndarray, groupings: list[Grouping], genes: int) -> GroupedDesign:
    """Return the design of X (n, p) and the groupings of Z, for products with so many genes."""
    if genes >= _MANY_GENES:
        return GroupedDesign.from_blocks(X, groupings)
    return GroupedDesign.without_groups_of_x(X, groupings)
