"""Chunks of cells on a device: copied there from the host while others are added up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from ..backend.arrays import Array, entered, is_sparse_on_device, to_numpy
from ..backend.cuda_kernels import compiles_kernels
from ..backend.devices import Cuda, Device
from ..backend.late_imports import is_scipy_sparse, scipy

#: Types of values that are copied as they are; others are converted to float64.
_COPIED = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A compressed sparse matrix on a device, of any type of values, as it was on the host."""

    data: Array
    indices: Array
    indptr: Array
    shape: tuple[int, int]
    format: str = "csr"

    def get(self) -> Any:
        """Copy to the host, as an array of SciPy."""
        kind = scipy.sparse.csr_array if self.format == "csr" else scipy.sparse.csc_array
        return kind((to_numpy(self.data), to_numpy(self.indices), to_numpy(self.indptr)), shape=self.shape)


@dataclass(frozen=True, eq=False)
class Copied:
    """Values that are on their way to a device."""

    values: Any  #: array or `DeviceMatrix`
    device: Device
    mark: Any  #: of the copies

    def arrived(self) -> Any:
        """Return the values; the thread's stream waits for the copies."""
        with self.device.entered():
            self.device.wait(self.mark)
        return self.values


def accumulates(device: Device | None) -> bool:
    """Return whether sums of cells on the host are accumulated on a device: one that compiles the kernels for it."""
    if not isinstance(device, Cuda):
        return False
    return compiles_kernels(device.put(np.zeros(1)))


def copied_ahead(chunks: Iterator[tuple[slice, Any]], device: Device) -> Iterator[tuple[slice, Any]]:
    """Yield chunks (place, values) as `Copied`, but the first, from which the host chooses transform and centres.

    The thread that reads the chunks starts the copies, through CuPy's pinned buffers and on the stream for copies: they
    run beside the sums of the chunk before.
    """
    for count, (place, Y) in enumerate(chunks):
        yield place, Y if count == 0 else copied(Y, device)


def copied(Y: Any, device: Device) -> Copied:
    """Start copying a chunk to a device."""
    with device.entered(), device.copying():
        if is_scipy_sparse(Y):
            data, indices, indptr = map(device.put, (_copied_type(Y.data), Y.indices, Y.indptr.astype(np.int64)))
            return Copied(DeviceMatrix(data, indices, indptr, Y.shape, Y.format), device, device.mark())
        return Copied(device.put(_copied_type(np.ascontiguousarray(Y))), device, device.mark())


def _copied_type(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.isnative and values.dtype.name in _COPIED else values.astype(np.float64)


def from_device(Y: Any) -> Any:
    """Values of a chunk on the host, dense or sparse."""
    if not is_sparse_on_device(Y):
        return to_numpy(Y)
    with entered(Y):
        return Y.get()


def by_cupy(Y: Any) -> Any:
    """Return a dense array of PyTorch on a CUDA device as one of CuPy, without a copy; keep anything else."""
    if not array_api_compat.is_torch_array(Y) or Y.device.type != "cuda":
        return Y
    from ..backend.devices import cuda_count

    if not cuda_count()[0]:
        return Y
    device = Cuda(Y.device.index or 0)
    with device.entered():
        return device.cupy.from_dlpack(Y)


def typed(values: Array) -> str:
    """Name of the type of `values` in CUDA.

    >>> typed(np.zeros(1, dtype="uint16")), typed(np.zeros(1))
    ('unsigned short', 'double')
    """
    names = {"bool": "bool", "float32": "float", "float64": "double"}
    if values.dtype.name in names:
        return names[values.dtype.name]
    size = {1: "char", 2: "short", 4: "int", 8: "long long"}[values.dtype.itemsize]
    return ("unsigned " if values.dtype.kind == "u" else "signed " if size == "char" else "") + size
