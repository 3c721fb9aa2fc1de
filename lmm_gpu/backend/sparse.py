"""Sparse and dense matrices of cells, on the host or on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, indices, is_array, is_sparse_on_device, like, namespace, on_host
from .late_imports import is_scipy_sparse, scipy


def is_sparse(Y: Any) -> bool:
    """Return whether `Y` is a sparse matrix, of SciPy or on a device."""
    return is_scipy_sparse(Y) or is_sparse_on_device(Y)


def on_device(Y: Any) -> bool:
    """Return whether `Y` is an array or a sparse matrix of another library than NumPy and SciPy."""
    return is_sparse_on_device(Y) or (is_array(Y) and not on_host(Y))


def stored_values(Y: Any) -> Array:
    """All values of an array, those of the entries of a sparse matrix."""
    if is_sparse(Y):
        return Y.data
    return Y if is_array(Y) else np.asarray(Y)


def with_values(Y: Any, values: Array) -> Any:
    """Return `Y` with other stored `values`; a sparse result shares the positions of `Y`."""
    if is_scipy_sparse(Y):
        return scipy.sparse.csr_array((values, Y.indices, Y.indptr), shape=Y.shape)
    return type(Y)((values, Y.indices, Y.indptr), shape=Y.shape) if is_sparse_on_device(Y) else values


def some_rows(Y: Any, kept: np.ndarray) -> Any:
    """Rows of `Y` where `kept` is True."""
    if not on_device(Y):
        return Y[kept]
    rows = indices(np.flatnonzero(kept), stored_values(Y))
    return Y[rows] if is_sparse_on_device(Y) else namespace(Y).take(Y, rows, axis=0)


def submatrix(A: Any, rows: list[int], columns: list[int], reference: Array) -> Array:
    """Chosen rows and columns of a matrix as an array like `reference`; the matrix may be sparse."""
    if is_scipy_sparse(A):
        return like(A[rows][:, columns].toarray(), reference)
    xp = namespace(A)
    return xp.take(xp.take(A, indices(rows, A), axis=0), indices(columns, A), axis=1)


def diagonal_of(A: Any, rows: tuple[int, int], columns: tuple[int, int], reference: Array) -> Array:
    """Diagonal of such a range."""
    part = A[rows[0] : rows[1], columns[0] : columns[1]]
    return like(part.diagonal(), reference) if is_scipy_sparse(A) else namespace(A).linalg.diagonal(part)


def is_diagonal(A: Any, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
    """Return whether such a range has no entries outside of its diagonal."""
    part = A[rows[0] : rows[1], columns[0] : columns[1]]
    if is_scipy_sparse(A):
        return bool(part.count_nonzero() == np.count_nonzero(part.diagonal()))
    xp = namespace(part)
    return int(xp.count_nonzero(part)) == int(xp.count_nonzero(xp.linalg.diagonal(part)))


def spread_square(A: Any, rows: list[int]) -> Any:
    """A sparse square matrix with row and column `rows[i]` at place i; zeros where it is -1."""
    place = np.array([i for i, row in enumerate(rows) if row >= 0])
    old = np.array([row for row in rows if row >= 0])
    move = scipy.sparse.csr_array((np.ones(len(old)), (place, old)), shape=(len(rows), A.shape[0]))
    return (move @ A @ move.T).tocsr()
