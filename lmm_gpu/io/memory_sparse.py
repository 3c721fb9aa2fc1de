"""Sparse matrices in memory that are read by columns: CSC is not converted to CSR as a whole."""

from __future__ import annotations

from typing import Any

import scipy.sparse

from .sparse_checks import as_csr, check_compressed


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
        lo, hi, _ = genes.indices(self.shape[1])
        begin, end = int(self.indptr[lo]), int(self.indptr[max(lo, hi)])
        parts = self.data[begin:end], self.indices[begin:end], self.indptr[lo : max(lo, hi) + 1] - self.indptr[lo]
        return scipy.sparse.csc_array(parts, shape=(self.shape[0], max(hi - lo, 0)))


def in_memory(matrix: Any) -> Any:
    """Return a matrix in memory in a form of which rows, or columns, are cheap to take.

    Raises
    ------
    ValueError
        If it is a sparse matrix and not valid.
    """
    if scipy.sparse.issparse(matrix) and matrix.format == "csc":
        return MemoryCSC(matrix)
    return as_csr(matrix)
