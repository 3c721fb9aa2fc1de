"""Checks of compressed sparse matrices, from memory or from a file, before anything follows their indices.

SciPy trusts the arrays of a sparse matrix: an index outside the matrix is written to memory that belongs to something
else, and places that are stored twice are counted twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.arrays import entered, is_sparse_on_device
from ..backend.late_imports import is_scipy_sparse, scipy
from .broken_files import check_size


def check_indptr(indptr: np.ndarray, stored: int, rows: int) -> None:
    """Check the positions at which the rows (columns of CSC) of a compressed matrix start.

    Parameters
    ----------
    indptr
        (rows + 1,) integers.
    stored
        Number of stored values.
    rows
        Number of rows (columns of CSC).

    Raises
    ------
    ValueError
        If `indptr` has another length, does not start at 0, decreases, or does not end at `stored`.
    """
    if indptr.shape != (rows + 1,):
        raise ValueError(f"indptr has shape {indptr.shape}, but {rows} rows or columns need {rows + 1} entries")
    if int(indptr[0]) != 0 or int(indptr[-1]) != stored:
        raise ValueError(f"indptr runs from {indptr[0]} to {indptr[-1]}, but must run from 0 to {stored} stored values")
    if (indptr[1:] < indptr[:-1]).any():
        raise ValueError("indptr decreases, so the rows of the sparse matrix overlap")


def check_indices(indices: np.ndarray, columns: int) -> None:
    """Check that all `indices` lie in 0 ... `columns` - 1.

    Raises
    ------
    ValueError
        If one of them does not.
    """
    if not indices.size:
        return
    least, largest = int(indices.min()), int(indices.max())
    if least < 0 or largest >= columns:
        wrong = least if least < 0 else largest
        raise ValueError(f"a sparse index is {wrong}, but must lie in 0 ... {columns - 1}")


def check_structure(matrix: Any) -> None:
    """Check a SciPy sparse matrix in memory, of any format, before it is sliced or converted.

    For CSR only its `indptr` is checked here: `Source.chunks` checks the indices in the pass that reads them.

    Raises
    ------
    ValueError
        If an index lies outside the matrix or `indptr` does not describe the stored values.
    """
    kind = matrix.format
    check_size(8 * (matrix.shape[0] + 1), f"a sparse matrix of shape {matrix.shape}")  # of its indptr as CSR
    if kind in ("csr", "csc", "bsr"):
        check_compressed(matrix, check_all=kind != "csr")
    elif kind == "coo":
        for indices, size in zip(matrix.coords, matrix.shape, strict=True):
            check_indices(indices, size)
            if len(indices) != len(matrix.data):
                raise ValueError(f"a sparse matrix has {len(indices)} coordinates for {len(matrix.data)} values")


def check_compressed(matrix: Any, *, check_all: bool = True) -> None:
    """Check a CSR, CSC or BSR matrix of SciPy; only its `indptr` unless `check_all`."""
    blocks = matrix.blocksize if matrix.format == "bsr" else (1, 1)
    rows, columns = matrix.shape[0] // blocks[0], matrix.shape[1] // blocks[1]
    if matrix.format == "csc":
        rows, columns = columns, rows
    stored = int(matrix.indptr[-1]) if len(matrix.indptr) else -1
    if not 0 <= stored <= min(len(matrix.indices), len(matrix.data)):
        raise ValueError(
            f"indptr ends at {stored}, but {len(matrix.indices)} indices and {len(matrix.data)} values are stored"
        )
    check_indptr(matrix.indptr, stored, rows)
    if check_all:
        check_indices(matrix.indices[:stored], columns)


def unchecked(kind: Any, shape: tuple[int, int], data: np.ndarray, indices: np.ndarray, indptr: np.ndarray) -> Any:
    """A csr_array or csc_array (`kind`) of these arrays, whose indices are not read: SciPy's constructor would.

    >>> unchecked(scipy.sparse.csr_array, (1, 3), np.ones(1), np.array([2]), np.array([0, 1])).toarray().tolist()
    [[0.0, 0.0, 1.0]]
    """
    matrix = kind(shape, dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def as_csr(values: Any) -> Any:
    """Convert a sparse matrix of SciPy, in any format, to csr_array and one of CuPy to its CSR; keep anything else.

    Raises
    ------
    ValueError
        If the sparse matrix is not valid; the indices of CSR are left to `canonical`.
    """
    if is_sparse_on_device(values):
        with entered(values):
            return values.tocsr()
    if not is_scipy_sparse(values):
        return values
    check_structure(values)
    return scipy.sparse.csr_array(values)


def canonical(values: Any) -> Any:
    """Return valid sparse values as csr_array, sorted within rows and with duplicates added up; keep dense values.

    Raises
    ------
    ValueError
        If an index lies outside the matrix.

    Examples
    --------
    >>> twice = scipy.sparse.csr_array(([1.0, 2.0], [0, 0], [0, 2]), shape=(1, 3))
    >>> canonical(twice).toarray().tolist()
    [[3.0, 0.0, 0.0]]
    """
    if is_scipy_sparse(values) and values.format in ("csr", "csc"):
        check_indices(values.indices, values.shape[values.format == "csr"])
    values = as_csr(values)
    if not (is_scipy_sparse(values) or is_sparse_on_device(values)):
        return values
    with entered(values):
        if not values.has_canonical_format:
            values = values.copy()  # rows of a matrix in memory are views
            values.sum_duplicates()
    return values
