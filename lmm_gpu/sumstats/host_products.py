"""Products of dense genes on the host, block by block of cells: each block is converted and multiplied in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse
from .transform import Transform

#: A sparse design is multiplied as dense up to this many columns per non-zero of a row: a dense product takes this much
#: less time per number than a sparse one, which also copies a block of genes that is not stored by cells.
_DENSE_COLUMNS = 64
#: Number of values and of genes of a block: it fits the processor's cache, and so do the sums that it is added to.
_BLOCK_VALUES, _BLOCK_GENES = 2**18, 256
#: Number of values of a tile; its genes, at most and at least; their bytes in a cell where values are stored by genes.
_TILE_VALUES, _WIDEST, _NARROWEST, _BYTES_BY_GENES = 2**19, 1024, 16, 1024


def dense_products(
    X: Any, Z: Any, Y: np.ndarray, centre: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X'Y (p, m), Z'Y (q, m), y'y (m,) and the sum of y (m,) of y - centre; X and Z are dense or sparse.

    Examples
    --------
    >>> XY, ZY, Ynorm, Ysum = dense_products(np.ones((2, 1)), np.eye(2), np.array([[1, 2], [3, 4]]), None)
    >>> XY.tolist(), ZY.tolist(), Ynorm.tolist(), Ysum.tolist()
    ([[4.0, 6.0]], [[1.0, 2.0], [3.0, 4.0]], [10.0, 20.0], [4.0, 6.0])
    """
    matrices = [_dense_if_cheaper(A) for A in (X, Z)]
    dense = [A for A in matrices if not is_scipy_sparse(A)]
    design = np.hstack([*dense, np.ones((len(Y), 1))])  # (n, c + 1)
    sums, norms = np.zeros((design.shape[1], Y.shape[1])), np.zeros(Y.shape[1])
    found = [np.zeros((A.shape[1], Y.shape[1])) if is_scipy_sparse(A) else None for A in matrices]
    for rows, genes, values in _blocks(Y, centre):
        sums[:, genes] += design[rows].T @ values
        norms[genes] += np.einsum("ij,ij->j", values, values)
        for A, total in zip(matrices, found, strict=True):
            if total is not None:
                total[:, genes] += A[rows].T.tocsr() @ values
    XY, ZY = found
    if XY is None:
        XY = sums[: X.shape[1]]
    if ZY is None:
        ZY = sums[len(sums) - 1 - Z.shape[1] : -1]
    return XY, ZY, norms, sums[-1]


def sums_and_squares(blocks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of their squares over the rows of all blocks (rows, m), both (m,).

    >>> [found.tolist() for found in sums_and_squares([np.array([[1, 2]]), np.array([[3, 4]])])]
    [[4.0, 6.0], [10.0, 20.0]]
    """
    total = squares = np.zeros(blocks[0].shape[1])
    for block in blocks:
        values = block if block.dtype == np.float64 else np.array(block, np.float64, order="C")
        total, squares = total + np.ones(len(values)) @ values, squares + np.einsum("ij,ij->j", values, values)
    return total, squares


def _dense_if_cheaper(A: Any) -> Any:
    """Convert a sparse design to dense where the dense product takes less time."""
    if not is_scipy_sparse(A):
        return A
    per_row = max(A.nnz / max(A.shape[0], 1), 1.0)
    return A.toarray() if A.shape[1] <= _DENSE_COLUMNS * per_row else A


def tiles(
    Y: np.ndarray, transform: Transform, centre: np.ndarray | None, rows_at_least: float
) -> Iterator[tuple[slice, Iterator[tuple[slice, np.ndarray, bool]]]]:
    """Yield cells and, for each, genes and their values in float64, stored by cells, transformed and less the centre.

    A tile is in the cache, and is overwritten by the next one; where the flag beside it is true, it is a copy, which
    may be overwritten before. It has `rows_at_least` cells, where these are few.
    """
    n, m = Y.shape
    if not Y.size:
        return
    widest = _BYTES_BY_GENES // Y.itemsize if Y.strides[0] < Y.strides[1] else _WIDEST
    width = min(m, widest, max(_NARROWEST, int(_TILE_VALUES / max(rows_at_least, 1))))
    width = -(-m // -(-m // width))  # the last tile is about as wide as the others
    size = max(1, _TILE_VALUES // width)
    centre = centre if centre is not None and centre.any() else None
    buffer, changed = np.empty(min(size, n) * width), centre is not None or transform.name is not None

    def genes_of(block: np.ndarray) -> Iterator[tuple[slice, np.ndarray, bool]]:
        for genes in (slice(lo, min(lo + width, m)) for lo in range(0, m, width)):
            values = block[:, genes]
            copied = changed or values.dtype != np.float64 or not values.flags.c_contiguous
            if copied:
                tile = buffer[: values.size].reshape(values.shape)
                tile[...] = values
                transform.apply_to_counts(tile)
                if centre is not None:
                    tile -= centre[genes]
                values = tile
            yield genes, values, copied

    for rows in (slice(lo, min(lo + size, n)) for lo in range(0, n, size)):
        yield rows, genes_of(Y[rows])


def _blocks(Y: np.ndarray, centre: np.ndarray | None) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield cells, genes and their values in float64, less the centre."""
    n, m = Y.shape
    for genes in (slice(lo, min(lo + _BLOCK_GENES, m)) for lo in range(0, m, _BLOCK_GENES)):
        size = max(1, _BLOCK_VALUES // (genes.stop - genes.start))
        for rows in (slice(lo, lo + size) for lo in range(0, n, size)):
            values = Y[rows, genes].astype(np.float64, copy=centre is not None)
            if centre is not None:
                values -= centre[genes]
            yield rows, genes, values
