"""Sparse matrices in memory that are read by columns: CSC is not converted to CSR as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse, scipy
from .sparse_checks import as_csr, check_compressed, check_indices, unchecked


class MemoryCSC:
    """A CSC matrix of n cells x m genes in memory; ``matrix[lo:hi]`` gives genes.

    Parameters
    ----------
    matrix
        A SciPy matrix or array in CSC format, which is not changed.

    Raises
    ------
    ValueError
        If its indptr does not describe its values; the indices are checked when genes are read.
    """

    by_genes = True

    def __init__(self, matrix: Any):
        check_compressed(matrix, check_all=False)
        self._matrix = scipy.sparse.csc_array(matrix)
        self.data, self.indices, self.indptr = self._matrix.data, self._matrix.indices, self._matrix.indptr
        self.shape: tuple[int, int] = self._matrix.shape
        self.dtype = self._matrix.dtype

    def __getitem__(self, genes: slice) -> Any:
        return part_of(self._matrix, genes)


def part_of(matrix: Any, some: slice) -> Any:
    """Rows of a csr_array, or columns of a csc_array, which share its values: SciPy would copy them.

    >>> import numpy as np
    >>> part_of(scipy.sparse.csr_array(np.eye(3)), slice(1, 3)).toarray().tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    long, short = matrix.shape[:: -1 if matrix.format == "csc" else 1]
    lo, hi, _ = some.indices(long)
    hi = max(lo, hi)
    begin, end = int(matrix.indptr[lo]), int(matrix.indptr[hi])
    shape = (short, hi - lo) if matrix.format == "csc" else (hi - lo, short)
    indptr = matrix.indptr[lo : hi + 1] - matrix.indptr[lo]
    return unchecked(type(matrix), shape, matrix.data[begin:end], matrix.indices[begin:end], indptr)


def cells_of_genes(matrix: Any, kept: np.ndarray) -> Any:
    """Rows of a csc_array where `kept` (n,) is True, in one pass: SciPy would convert it to CSR.

    Raises
    ------
    ValueError
        If an index lies outside the matrix.

    Examples
    --------
    >>> cells_of_genes(scipy.sparse.csc_array(np.eye(3)), np.array([True, False, True])).toarray().tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    check_indices(matrix.indices, matrix.shape[0])
    place = np.cumsum(kept, dtype=matrix.indices.dtype) - 1
    at = np.flatnonzero(kept.take(matrix.indices))  # take is several times faster than a selection by flags
    indptr = np.searchsorted(at, matrix.indptr).astype(matrix.indptr.dtype)
    shape = (int(np.count_nonzero(kept)), matrix.shape[1])
    return unchecked(type(matrix), shape, matrix.data.take(at), place.take(matrix.indices.take(at)), indptr)


def in_memory(matrix: Any) -> Any:
    """Return a matrix in memory in a form of which rows, or columns, are cheap to take.

    Raises
    ------
    ValueError
        If it is a sparse matrix and not valid.
    """
    if is_scipy_sparse(matrix) and matrix.format == "csc":
        return MemoryCSC(matrix)
    return as_csr(matrix)
