"""Sparse and dense matrices of cells, on the host or on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from .arrays import Array, indices, is_array, is_sparse_on_device, namespace, on_host


def is_sparse(Y: Any) -> bool:
    """Return whether `Y` is a sparse matrix, of SciPy or on a device."""
    return scipy.sparse.issparse(Y) or is_sparse_on_device(Y)


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
    if scipy.sparse.issparse(Y):
        return scipy.sparse.csr_array((values, Y.indices, Y.indptr), shape=Y.shape)
    return type(Y)((values, Y.indices, Y.indptr), shape=Y.shape) if is_sparse_on_device(Y) else values


def some_rows(Y: Any, kept: np.ndarray) -> Any:
    """Rows of `Y` where `kept` is True."""
    if not on_device(Y):
        return Y[kept]
    rows = indices(np.flatnonzero(kept), stored_values(Y))
    return Y[rows] if is_sparse_on_device(Y) else namespace(Y).take(Y, rows, axis=0)
