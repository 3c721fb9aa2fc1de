"""TODO docstring."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import array_api_compat
import array_api_compat.numpy

from .arrays import Array, namespace

_fusing: ContextVar[bool] = ContextVar("fusing", default=True)


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


def _plain(xp: Any) -> Any:
    # fusion traces CuPy's own functions, not the wrappers around some of them
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        return cupy
    return xp
