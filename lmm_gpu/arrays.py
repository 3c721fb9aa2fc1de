"""The only place that picks an array library and moves data between host and device.

The engine is written against the Python array API standard: a numeric function takes its namespace from
the arrays it is given (`namespace(x)`), so that the same lines run on NumPy today and on CUDA libraries.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any  # an array of any array API library: the standard has no common base class


def namespace(*arrays: Array) -> Any:
    """Array API namespace shared by `arrays` (None and Python scalars are ignored)."""
    if all(type(x) is np.ndarray for x in arrays):  # the general way takes longer than a small operation
        return array_api_compat.numpy
    return array_api_compat.array_namespace(*arrays)


def to_numpy(x: Array) -> np.ndarray:
    """Host copy (or view) of `x` as a NumPy array, whatever its library and device."""
    if isinstance(x, np.ndarray):
        return np.asarray(x)  # np.matrix, which SciPy's older sparse matrices return, keeps two axes otherwise
    if hasattr(x, "get"):  # CuPy
        return x.get()
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
    return xp.zeros(shape, dtype=dtype, device=array_api_compat.device(reference))


def indices(values: Any, reference: Array) -> Array:
    """Host integers as an index array for `xp.take` on the device of `reference`."""
    return like(values, reference, dtype=namespace(reference).int64)


def flag_indices(flags: Array) -> np.ndarray:
    """Positions of the true entries of a boolean vector, on the host: one synchronisation."""
    return np.flatnonzero(to_numpy(flags))


def resolve_device(device: str) -> str:
    """Check the `device` option; the host is the only device of this version.

    Raises
    ------
    ValueError
        For a device that cannot be used, with what can be.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    raise ValueError(f"device={device!r} cannot be used: this version computes on the host; use 'auto' or 'cpu'")


def _host_device(x: Array) -> Any:
    if array_api_compat.is_array_api_strict_namespace(namespace(x)):
        return namespace(x).Device("CPU_DEVICE")
    return "cpu"
