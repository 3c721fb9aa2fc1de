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
        return read_part(self.group, self._short, self.by_genes, self.indptr[lo : max(lo, hi) + 1])


def read_part(group: Any, short: int, by_genes: bool, begins: np.ndarray) -> Any:
    """Rows (columns if `by_genes`) of a stored matrix with `short` columns (rows).

    They begin at `begins`, which has one more for the end of the last: all that is read of "indptr" and held.
    """
    begin, end = int(begins[0]), int(begins[-1])
    data, indices = np.asarray(group["data"][begin:end]), np.asarray(group["indices"][begin:end])
    # a wrong index would be written to, wherever that is
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= short):
        raise ValueError(f"an index lies outside 0 .. {short - 1}")
    kind = np.int32 if max(end - begin, short) < 2**31 else np.int64
    parts = data, indices.astype(kind, copy=False), (begins.astype(np.int64) - begin).astype(kind)
    count = len(begins) - 1
    if by_genes:
        return scipy.sparse.csc_array(parts, shape=(short, count))
    return scipy.sparse.csr_array(parts, shape=(count, short))
