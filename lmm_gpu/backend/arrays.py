"""Choose the array library, and move data between host and device.

The engine is written against the Python array API standard: a numeric function takes its namespace from its arrays
(`namespace(x)`), so that the same code runs on NumPy and on CUDA libraries.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat
import numpy as np

Array = Any  # an array of any array API library: the standard has no common base class
#: Operands of NumPy: arrays, and scalars beside them.
_ON_HOST = frozenset((np.ndarray, np.float64, np.float32, np.int64, np.bool, float, int, bool, type(None)))


def namespace(*arrays: Array) -> Any:
    """Array API namespace shared by `arrays` (None and Python scalars are ignored)."""
    if all(type(x) in _ON_HOST for x in arrays):  # the general way takes longer than a small operation
        return np  # has the functions of the standard itself: to import a wrapper takes longer than to fit a gene
    return array_api_compat.array_namespace(*arrays)


def to_numpy(x: Array) -> np.ndarray:
    """Host copy (or view) of `x` as a NumPy array, whatever its library and device."""
    if isinstance(x, np.ndarray) or array_api_compat.is_jax_array(x):
        return np.asarray(x)  # np.matrix, which SciPy's older sparse matrices return, keeps two axes otherwise
    if hasattr(x, "get"):  # CuPy
        array: np.ndarray = x.get()
        return array
    return np.asarray(array_api_compat.to_device(x, _host_device(x)))


def like(values: Any, reference: Array, *, dtype: Any = None) -> Array:
    """`values` as an array of the same library, device and (by default) dtype as `reference`."""
    xp = namespace(reference)
    dtype = reference.dtype if dtype is None else dtype
    return xp.asarray(values, dtype=dtype, device=array_api_compat.device(reference))


def zeros(shape: tuple[int, ...], reference: Array, *, dtype: Any = None) -> Array:
    """Zeros of the same library, device and (by default) dtype as `reference`."""
    xp = namespace(reference)
    dtype = reference.dtype if dtype is None else dtype
    with entered(reference):  # CuPy allocates on the current device
        return xp.zeros(shape, dtype=dtype, device=array_api_compat.device(reference))


def indices(values: Any, reference: Array) -> Array:
    """Host integers as an index array for `xp.take` on the device of `reference`."""
    return like(values, reference, dtype=namespace(reference).int64)


def flag_indices(flags: Array) -> np.ndarray:
    """Positions of the true entries of a boolean vector, on the host: one synchronisation."""
    return np.flatnonzero(to_numpy(flags))


def is_array(x: Any) -> bool:
    """Return whether `x` is an array of a library of the standard, NumPy's included."""
    return array_api_compat.is_array_api_obj(x)


def on_host(x: Array) -> bool:
    """Return whether `x` is a NumPy array, whose values are read without waiting."""
    return isinstance(x, np.ndarray)


def is_sparse_on_device(Y: Any) -> bool:
    """Return whether `Y` is a compressed sparse matrix whose values are not NumPy's: one of cupyx.scipy.sparse."""
    return hasattr(Y, "indptr") and is_array(Y.data) and not on_host(Y.data)


def threads_for(x: Array) -> int | None:
    """Number of threads to compute on `x` with: one per processor (None) on the host, else 1.

    A thread starts on CUDA's device 0 wherever its arrays are, with its own library handles, and waits for the
    others before each launch.
    """
    return None if on_host(x) else 1


def raises_for_bad_matrices(x: Array) -> bool:
    """Return whether factorising a stack with one bad matrix raises; other libraries leave garbage."""
    return on_host(x) or array_api_compat.is_torch_array(x) or _is_strict(x)


def entered(x: Array) -> AbstractContextManager[Any]:
    """Context in which the device of `x` is the current one, on which CuPy computes and allocates."""
    x = x.data if is_sparse_on_device(x) else x
    device: Any = array_api_compat.device(x) if is_array(x) and not on_host(x) else None
    return device if hasattr(device, "__enter__") and hasattr(device, "id") else nullcontext()


def _host_device(x: Array) -> Any:
    return namespace(x).Device("CPU_DEVICE") if _is_strict(x) else "cpu"


def _is_strict(x: Array) -> bool:
    return array_api_compat.is_array_api_strict_namespace(namespace(x))
