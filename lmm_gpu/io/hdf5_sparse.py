"""Sparse matrices in a file of HDF5 or zarr: rows of CSR, or columns of CSC, are read on request."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.late_imports import scipy
from .sparse_checks import check_indptr, unchecked
from .stored_arrays import read_rows, stored_array


class StoredSparse:
    """A sparse matrix of n cells x m genes in three one-dimensional datasets of HDF5 or zarr.

    ``matrix[lo:hi]`` reads cells, or genes where the matrix is stored by columns (`by_genes`); only `indptr` stays in
    memory. anndata's `sparse_dataset` does the same, but neither checks the indices nor decompresses on threads.

    Parameters
    ----------
    group
        Has "data", "indices" and "indptr".
    shape
        (n, m).
    by_genes
        False: CSR, rows are cells. True: CSC, columns are genes.

    Raises
    ------
    ValueError
        If the three are not those of a sparse matrix, here or when values are read.
    """

    def __init__(self, group: Any, shape: tuple[int, int], by_genes: bool = False):
        self.shape = (int(shape[0]), int(shape[1]))
        self.by_genes, self.group = by_genes, group
        self.data, self.indices = stored_array(group["data"]), stored_array(group["indices"])
        self.dtype = self.data.dtype
        long, self._short = self.shape[::-1] if by_genes else self.shape
        starts, stored = group["indptr"], self.data.shape
        if starts.shape != (long + 1,) or stored != self.indices.shape or len(stored) != 1:
            raise ValueError(
                f"a sparse matrix of shape {self.shape} cannot have indptr, indices and data of shapes {starts.shape}, "
                f"{self.indices.shape} and {stored}"
            )
        if any(values.dtype.kind not in "iu" for values in (starts, self.indices)) or self.dtype.kind not in "biuf":
            raise ValueError("the indptr and indices of a sparse matrix must be integers, its data numbers")
        self.indptr = np.asarray(starts[:]).astype(np.int64)  # (n + 1,) or (m + 1,)
        check_indptr(self.indptr, stored[0], long)

    def __getitem__(self, some: slice) -> Any:
        """Cells ``some`` as csr_array, or genes as csc_array."""
        lo, hi, _ = some.indices(len(self.indptr) - 1)
        return read_part(self.data, self.indices, self._short, self.by_genes, self.indptr[lo : max(lo, hi) + 1])


def read_part(data: Any, indices: Any, short: int, by_genes: bool, begins: np.ndarray) -> Any:
    """Read rows (columns if `by_genes`) of a stored sparse matrix.

    Parameters
    ----------
    data, indices
        Stored arrays.
    short
        Number of columns (rows if `by_genes`).
    by_genes
        False: CSR. True: CSC.
    begins
        (rows + 1,) part of indptr.

    Returns
    -------
    csr_array or csc_array, with unchecked indices
    """
    begin, end = int(begins[0]), int(begins[-1])
    values, places = read_rows([data, indices], slice(begin, end))
    kind = np.int32 if max(end - begin, short) < 2**31 else np.int64
    parts = values, places.astype(kind, copy=False), (begins.astype(np.int64) - begin).astype(kind)
    count = len(begins) - 1
    if by_genes:
        return unchecked(scipy.sparse.csc_array, (short, count), *parts)
    return unchecked(scipy.sparse.csr_array, (count, short), *parts)
