"""The only place that picks an array library and moves data between host and device.

The engine is written against the Python array API standard: a numeric function takes its namespace from
the arrays it is given (`namespace(x)`), so that the same lines run on NumPy today and on CUDA libraries.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np
import scipy.sparse

Array = Any  # an array of any array API library: the standard has no common base class

_ON_HOST = (np.ndarray, float, int)  # what NumPy computes with: arrays, and scalars beside them
_fusing: ContextVar[bool] = ContextVar("fusing", default=True)


def namespace(*arrays: Array) -> Any:
    """Array API namespace shared by `arrays` (None and Python scalars are ignored)."""
    if all(type(x) in _ON_HOST for x in arrays):  # the general way takes longer than a small operation
        return array_api_compat.numpy
    return array_api_compat.array_namespace(*arrays)


def to_numpy(x: Array) -> np.ndarray:
    """Host copy (or view) of `x` as a NumPy array, whatever its library and device."""
    if isinstance(x, np.ndarray) or array_api_compat.is_jax_array(x):
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
    with entered(reference):  # CuPy allocates on the current device
        return xp.zeros(shape, dtype=dtype, device=array_api_compat.device(reference))


def indices(values: Any, reference: Array) -> Array:
    """Host integers as an index array for `xp.take` on the device of `reference`."""
    return like(values, reference, dtype=namespace(reference).int64)


def flag_indices(flags: Array) -> np.ndarray:
    """Positions of the true entries of a boolean vector, on the host: one synchronisation."""
    return np.flatnonzero(to_numpy(flags))


def is_array(x: Any) -> bool:
    """Whether `x` is an array of a library of the standard, NumPy's included."""
    return array_api_compat.is_array_api_obj(x)


def on_host(x: Array) -> bool:
    """Whether `x` is a NumPy array: reading one of its values costs nothing."""
    return isinstance(x, np.ndarray)


def is_sparse_on_device(Y: Any) -> bool:
    """Whether `Y` is a compressed sparse matrix whose values are not NumPy's: one of cupyx.scipy.sparse."""
    return hasattr(Y, "indptr") and is_array(Y.data) and not on_host(Y.data)


def is_sparse(Y: Any) -> bool:
    """Whether `Y` is a sparse matrix, of SciPy or on a device."""
    return scipy.sparse.issparse(Y) or is_sparse_on_device(Y)


def on_device(Y: Any) -> bool:
    """Whether `Y` is an array or a sparse matrix of another library than NumPy and SciPy."""
    return is_sparse_on_device(Y) or (is_array(Y) and not on_host(Y))


def stored_values(Y: Any) -> Array:
    """All values of an array, those of the entries of a sparse matrix."""
    if is_sparse(Y):
        return Y.data
    return Y if is_array(Y) else np.asarray(Y)


def with_values(Y: Any, values: Array) -> Any:
    """Give `Y` other `values` in place of those that are stored; where they are in a sparse matrix is shared."""
    if scipy.sparse.issparse(Y):
        return scipy.sparse.csr_array((values, Y.indices, Y.indptr), shape=Y.shape)
    return type(Y)((values, Y.indices, Y.indptr), shape=Y.shape) if is_sparse_on_device(Y) else values


def some_rows(Y: Any, kept: np.ndarray) -> Any:
    """Rows of `Y` where `kept` is True."""
    if not on_device(Y):
        return Y[kept]
    rows = indices(np.flatnonzero(kept), stored_values(Y))
    return Y[rows] if is_sparse_on_device(Y) else namespace(Y).take(Y, rows, axis=0)


def threads_for(x: Array) -> int | None:
    """Threads that work on `x` gains from: one per processor (None) on the host, else 1.

    A thread begins on CUDA's device 0 wherever its arrays are, with library handles of its own, and waits for the
    others to launch anything.
    """
    return None if on_host(x) else 1


def raises_for_bad_matrices(x: Array) -> bool:
    """Whether the library of `x` refuses to factorise a stack with one bad matrix, where others leave garbage."""
    return on_host(x) or array_api_compat.is_torch_array(x) or _is_strict(x)


def fused(body: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """Make one kernel of an elementwise function on libraries that can (CuPy); elsewhere it is computed as written.

    ``body(xp, options, *arrays)`` returns a tuple of arrays, each of the shape to which all its arguments broadcast. It
    may use operators, comparisons, `where` and elementwise functions of `xp`; what it does may depend on `options`,
    which are hashable, but not on values. Called as ``fused(body)(options, *arrays)``, where Python numbers may stand
    among the arrays: a kernel is compiled for every new `options`, not for new numbers. A number may only meet an array
    of numbers: of two numbers, or of a number and a boolean, CuPy's fusion makes a float16. Where no kernel can be
    made, the body is computed as written, with one warning.
    """
    plainly: set[tuple[Any, Hashable]] = set()  # what no kernel could be made of

    @functools.cache
    def kernel(xp: Any, options: Hashable) -> Callable[..., tuple[Array, ...]]:
        def traced(*arrays: Array) -> tuple[Array, ...]:
            return body(_plain(xp), options, *arrays)

        traced.__name__ = body.__name__.strip("_")
        return xp.fuse(traced)

    @functools.wraps(body)
    def call(options: Hashable, *arrays: Array) -> tuple[Array, ...]:
        xp = namespace(*arrays)
        if not (hasattr(xp, "fuse") and _fusing.get()) or (xp, options) in plainly:
            return body(xp, options, *arrays)
        try:
            return kernel(xp, options)(*arrays)
        except MemoryError:  # says nothing about the kernel
            raise
        except Exception as error:  # the tracer's, the compiler's or the driver's
            result = body(xp, options, *arrays)  # what is wrong with the arrays or the device raises here again
            plainly.add((xp, options))
            _warn_of_no_kernel(body, error)
            return result

    return call


def _warn_of_no_kernel(body: Callable[..., Any], error: Exception) -> None:
    name, reason = f"{body.__module__}.{body.__name__}", str(error).split("\n", 1)[0]
    warnings.warn(
        f"{name} could not be fused into one kernel and is computed operation by operation, which is right but slower: "
        f"{type(error).__name__}: {reason}",
        RuntimeWarning,
        stacklevel=3,
    )


@contextmanager
def without_fusion() -> Iterator[None]:
    """Context in which `fused` functions are computed as written, which their kernels have to agree with."""
    token = _fusing.set(False)
    try:
        yield
    finally:
        _fusing.reset(token)


def fuses(x: Array) -> bool:
    """Whether the library of `x` makes one kernel of a `fused` function."""
    return hasattr(namespace(x), "fuse")


def entered(x: Array) -> AbstractContextManager:
    """Context in which the device of `x` is the current one: CuPy computes and allocates there, whatever is asked."""
    x = x.data if is_sparse_on_device(x) else x
    device: Any = array_api_compat.device(x) if is_array(x) and not on_host(x) else None
    return device if hasattr(device, "__enter__") and hasattr(device, "id") else nullcontext()


def _host_device(x: Array) -> Any:
    return namespace(x).Device("CPU_DEVICE") if _is_strict(x) else "cpu"


def _is_strict(x: Array) -> bool:
    return array_api_compat.is_array_api_strict_namespace(namespace(x))


def _plain(xp: Any) -> Any:
    # fusion traces CuPy's own functions, not the wrappers around some of them
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        return cupy
    return xp
