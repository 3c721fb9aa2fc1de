"""Samples of a chunk beside its sums: centres of its genes, and their numbers of cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.arrays import is_sparse_on_device, namespace, on_host, to_numpy
from ..backend.late_imports import is_scipy_sparse
from ..backend.sparse import is_sparse, on_device, stored_values, with_values
from .centring import FAR, SAMPLED_CELLS, centre_of
from .products import column_sums
from .transform import Transform


def sampled_centre(Y: Any, transform: Transform, rows: slice, constant: np.ndarray | None) -> np.ndarray | None:
    """Centres (genes,) of a first chunk of stored values, dense or sparse, from some of its cells; on the host."""
    if constant is None or is_sparse_on_device(Y) or Y.shape[0] == 0:
        return None
    counts = is_scipy_sparse(Y) or transform.name is not None
    if not is_scipy_sparse(Y):
        step = max(1, Y.shape[0] // SAMPLED_CELLS) if counts else 1  # values as they are need no copy
        Y, rows = Y[::step, :], slice(rows.start, rows.stop, step)
    if not counts or not on_host(stored_values(Y)):
        found = centre_of(transform.apply(Y, rows), constant)
        return None if found is None else to_numpy(found)
    centre = np.zeros(Y.shape[1])
    stored = stored_cells(Y) if is_scipy_sparse(Y) else np.count_nonzero(Y, axis=0)
    full = np.flatnonzero(stored * FAR**2 > (FAR**2 - 1) * Y.shape[0])  # others have too many zeros to be far
    if full.size:
        Y = Y[:, full]
        centre[full] = centre_of(transform.apply(Y.toarray() if is_scipy_sparse(Y) else Y, rows), constant)
    return centre


def stored_cells(Y: Any) -> np.ndarray:
    """Number of stored values of each gene (m,) of a sparse chunk on the host."""
    return np.diff(Y.indptr) if Y.format == "csc" else np.bincount(Y.indices, minlength=Y.shape[1])


def gene_counts(Y: Any) -> dict[str, np.ndarray]:
    """Number of "cells" in which each gene is not zero (m,), and its "total" (m,)."""
    if on_device(Y):
        values = stored_values(Y)
        xp = namespace(values)
        parts = {"cells": xp.astype(values != 0, xp.float64), "total": xp.astype(values, xp.float64)}
        return {name: to_numpy(column_sums(with_values(Y, part))) for name, part in parts.items()}
    return {"cells": _non_zeros(Y), "total": np.asarray(Y.sum(axis=0, dtype=float)).reshape(-1)}


def _non_zeros(Y: Any) -> np.ndarray:
    if not is_sparse(Y):
        return np.asarray(np.count_nonzero(Y, axis=0))  # (m,)
    if Y.format == "csc":
        Y = Y.tocsr()
    stored = Y.indices if Y.data.all() else Y.indices[Y.data != 0]
    return np.bincount(stored, minlength=Y.shape[1])
