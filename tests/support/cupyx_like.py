"""cupyx.scipy.sparse without a GPU: the part of CSR and CSC that the accumulation uses, on arrays of `cupy_like`.

As in CuPy 14.2 (read in its source, never compared with a GPU): values are boolean or floating, never integer; no
`astype(copy=)`, no sums, nothing dense from the left; slices of rows share memory with the whole; the transpose is a
view of the other kind; a product with a dense matrix first sorts and adds up what is stored twice *in place*, and comes
in Fortran order. Code under test may not use anything else.
"""

from __future__ import annotations

import cupy_like
import numpy as np
import scipy.sparse
from cupy_like_array import Array, new
from cupy_like_device import synchronise


class _Compressed:
    """CSR, or CSC by `format`: three arrays on a device."""

    __array_ufunc__ = None
    __hash__ = None
    format: str

    def __init__(self, arrays, shape):
        if not all(isinstance(part, Array) and part.ndim == 1 for part in arrays):
            raise ValueError("data, indices, and indptr should be 1-D")
        self.data, self.indices, self.indptr = arrays
        if self.data.dtype.char not in "?fdFD":
            raise ValueError("Only bool, float32, float64, complex64 and complex128 are supported")
        synchronise("check_contents")
        self.shape, self.dtype, self._canonical = tuple(shape), self.data.dtype, None

    nnz = property(lambda self: self.data.size)
    T = property(lambda self: self._view(_OTHER[self.format], self.shape[::-1]))

    def _view(self, kind, shape):
        found = kind((self.data, self.indices, self.indptr), shape)
        found._canonical = self.has_canonical_format
        return found

    @property
    def has_canonical_format(self) -> bool:
        if self._canonical is None:
            synchronise("has_canonical_format")
            self._canonical = bool(self._on_host().has_canonical_format)
        return self._canonical

    def _on_host(self):
        kind = scipy.sparse.csr_matrix if self.format == "csr" else scipy.sparse.csc_matrix
        parts = [part.values.copy() for part in (self.data, self.indices, self.indptr)]
        return kind(tuple(parts), shape=self.shape)

    def get(self):
        synchronise("get")
        return self._on_host()

    def copy(self):
        found = type(self)(tuple(cupy_like.asarray(part.values.copy()) for part in self._arrays()), self.shape)
        found._canonical = self._canonical
        return found

    def _arrays(self):
        return self.data, self.indices, self.indptr

    def sum_duplicates(self) -> None:
        if not self.has_canonical_format:
            host = self._on_host()
            host.sum_duplicates()
            # no copy if possible
            if len(host.data) == self.data.size:
                self.data.values[:], self.indices.values[:] = host.data, host.indices
            else:
                self.data, self.indices, self.indptr = map(cupy_like.asarray, (host.data, host.indices, host.indptr))
            self._canonical = True

    def tocsr(self):
        return self if self.format == "csr" else of(self._on_host().tocsr())

    def __getitem__(self, key):
        key, *rest = key if isinstance(key, tuple) else (key,)
        if rest not in ([], [slice(None)]):
            raise NotImplementedError("columns of cupyx's matrices are slow to take")
        if isinstance(key, Array):
            return of(self._on_host()[key.values % self.shape[0]].asformat(self.format))
        if isinstance(key, slice) and self.format == "csr":
            lo, hi, step = key.indices(self.shape[0])
            assert step == 1
            begin, end = self.indptr.values[[lo, hi]]
            parts = self.data[begin:end], self.indices[begin:end], self.indptr[lo : hi + 1] - int(begin)
            found = csr_matrix(parts, (hi - lo, self.shape[1]))
            found._canonical = self._canonical
            return found
        raise NotImplementedError(f"{self.format}[{key!r}]")

    def __matmul__(self, other):
        if not isinstance(other, Array):
            raise TypeError(f"unsupported operand {type(other)}")
        if other.ndim != 2 or other.shape[0] != self.shape[1]:
            raise ValueError("dimension mismatch")
        self.sum_duplicates()
        return new("spmm", lambda: np.asfortranarray(self._on_host() @ other.values), *self._arrays(), other)


class csr_matrix(_Compressed):
    format = "csr"


class csc_matrix(_Compressed):
    format = "csc"


_OTHER = {"csr": csc_matrix, "csc": csr_matrix}


def of(matrix):
    """SciPy's CSR or CSC on the current device, in the types that cupyx has."""
    data = matrix.data if matrix.data.dtype.kind == "f" or matrix.data.dtype == bool else matrix.data.astype(float)
    kind = csr_matrix if matrix.format == "csr" else csc_matrix
    return kind(tuple(map(cupy_like.asarray, (data, matrix.indices, matrix.indptr))), matrix.shape)
