"""Products of dense genes on the host, block by block of cells: each block is converted and multiplied in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse

#: A sparse design is multiplied as dense up to this many columns per non-zero of a row: a dense product takes this much
#: less time per number than a sparse one, which also copies a block of genes that is not stored by cells.
_DENSE_COLUMNS = 64
#: Number of values and of genes of a block: it fits the processor's cache, and so do the sums that it is added to.
_BLOCK_VALUES, _BLOCK_GENES = 2**18, 512


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


def _dense_if_cheaper(A: Any) -> Any:
    """Convert a sparse design to dense where the dense product takes less time."""
    if not is_scipy_sparse(A):
        return A
    per_row = max(A.nnz / max(A.shape[0], 1), 1.0)
    return A.toarray() if A.shape[1] <= _DENSE_COLUMNS * per_row else A


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
