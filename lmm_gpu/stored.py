"""Sparse matrices as they lie in a file: rows of CSR or columns of CSC are read when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse


class StoredSparse:
    """A sparse matrix of n cells x m genes in three one-dimensional datasets of HDF5 or zarr.

    ``matrix[lo:hi]`` reads cells, or genes where the matrix is stored by columns (`by_genes`); only the places where
    rows (columns) begin are held in memory.

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
        If the three do not fit together, here or when values are read.
    """

    def __init__(self, group: Any, shape: tuple[int, int], by_genes: bool = False):
        self.shape = (int(shape[0]), int(shape[1]))
        self.by_genes, self.group = by_genes, group
        self.data, self.indices = group["data"], group["indices"]
        self.indptr = np.asarray(group["indptr"][:]).astype(np.int64)  # (n + 1,) or (m + 1,)
        self.dtype = self.data.dtype
        stored = {self.data.shape[0], self.indices.shape[0], int(self.indptr[-1]) if self.indptr.size else -1}
        long, self._short = self.shape[::-1] if by_genes else self.shape
        if len(self.indptr) != long + 1 or self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any() or len(stored) > 1:
            raise ValueError(f"its indptr, indices and data are not those of a sparse matrix of shape {self.shape}")

    def __getitem__(self, some: slice) -> Any:
        """Cells ``some`` as csr_array, or genes as csc_array."""
        lo, hi, _ = some.indices(len(self.indptr) - 1)
        begin, end = int(self.indptr[lo]), int(self.indptr[max(lo, hi)])
        data, indices = np.asarray(self.data[begin:end]), np.asarray(self.indices[begin:end])
        # a wrong index would be written to, wherever that is
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= self._short):
            raise ValueError(f"an index lies outside 0 .. {self._short - 1}")
        kind = np.int32 if max(end - begin, self._short) < 2**31 else np.int64
        indptr = (self.indptr[lo : max(lo, hi) + 1] - begin).astype(kind)
        of, count = (scipy.sparse.csc_array, max(hi - lo, 0)) if self.by_genes else (scipy.sparse.csr_array, hi - lo)
        shape = (self._short, count) if self.by_genes else (max(count, 0), self._short)
        return of((data, indices.astype(kind, copy=False), indptr), shape=shape)
