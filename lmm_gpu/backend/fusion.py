"""Elementwise functions that run as one kernel on libraries that can fuse them (CuPy)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any, ParamSpec, TypeVar, cast

import array_api_compat

from .arrays import Array, namespace

P = ParamSpec("P")
R = TypeVar("R")
_LEAF = "array"
_fusing: ContextVar[bool] = ContextVar("fusing", default=True)


def fused(body: Callable[..., R]) -> Callable[..., R]:
    """Compile an elementwise function to one kernel where the library can (CuPy); elsewhere call it as written.

    Parameters
    ----------
    body : callable
        ``body(xp, options, *arguments)``. Arguments and result are arrays, tuples of them, or dataclasses whose fields
        are such; numbers may stand among the arrays, and None means absent. Every array of the result has the shape
        to which all arrays of the arguments broadcast. The body may use operators, comparisons, `where` and
        elementwise functions of `xp`; what it does may depend on `options`, which are hashable, and on what is absent,
        but not on values.

    Returns
    -------
    callable
        To be called as ``function(options, *arguments)``. A kernel is compiled for every new `options`, not for new
        numbers. Where no kernel can be made, the body is computed as written, with one warning.

    Notes
    -----
    A number may only be combined with an array of numbers: of two numbers, or a number and a boolean, CuPy's fusion
    makes a float16.
    """
    not_fusible: set[tuple[Any, Hashable]] = set()

    @functools.cache
    def kernel(xp: Any, options: Hashable, structure: Hashable) -> _Kernel:
        return _Kernel(body, xp, options, structure)

    @functools.wraps(body)
    def call(options: Hashable, *arguments: Any) -> R:
        xp = namespace(_first_array(arguments))  # to flatten takes as long as a few small operations
        if not (hasattr(xp, "fuse") and _fusing.get()) or (xp, options) in not_fusible:
            return body(xp, options, *arguments)
        arrays, structure = flatten(arguments)
        try:
            return cast(R, kernel(xp, options, structure)(*arrays))
        except MemoryError:  # says nothing about the kernel
            raise
        except Exception as error:  # the tracer's, the compiler's or the driver's
            result = body(xp, options, *arguments)  # what is wrong with the arrays or the device raises here again
            not_fusible.add((xp, options))
            _warn_of_no_kernel(body, error)
            return result

    return call


class _Kernel:
    """One compiled kernel, and how its arrays form the arguments and the result of a function."""

    def __init__(self, body: Callable[..., Any], xp: Any, options: Hashable, structure: Hashable):
        self._result: Hashable = None

        def traced(*arrays: Array) -> tuple[Array, ...]:
            outputs, self._result = flatten(body(_plain(xp), options, *rebuild(structure, iter(arrays))))
            return tuple(outputs)

        traced.__name__ = body.__name__.strip("_")
        self._compiled = xp.fuse(traced)

    def __call__(self, *arrays: Array) -> Any:
        outputs = self._compiled(*arrays)  # traces the function when it is first called with these types
        return rebuild(self._result, iter(outputs))


def flatten(tree: Any) -> tuple[list[Array], Hashable]:
    """Arrays of nested tuples and dataclasses in order, and the structure that `rebuild` needs.

    Examples
    --------
    >>> arrays, structure = flatten((1.0, (2.0, None)))
    >>> arrays, rebuild(structure, iter([3.0, 4.0]))
    ([1.0, 2.0], (3.0, (4.0, None)))
    """
    if tree is None:
        return [], None
    kind: Any = type(tree)
    if isinstance(tree, (tuple, list)):
        kind, parts = tuple, list(tree)
    elif names := _field_names(kind):
        parts = [getattr(tree, name) for name in names]
    else:
        return [tree], _LEAF
    flat = [flatten(part) for part in parts]
    return [array for arrays, _ in flat for array in arrays], (kind, tuple(structure for _, structure in flat))


def _first_array(tree: Any) -> Array | None:
    # the first array of nested tuples and dataclasses, whose arrays are all of one library; None is absent
    if tree is None or isinstance(tree, (float, int)):
        return None
    if isinstance(tree, (tuple, list)):
        return next((found for part in tree if (found := _first_array(part)) is not None), None)
    kind: Any = type(tree)
    if names := _field_names(kind):
        return next((found for name in names if (found := _first_array(getattr(tree, name))) is not None), None)
    return tree


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    # names of the fields of a dataclass, none of another type: to ask takes as long as a small operation
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def rebuild(structure: Any, arrays: Iterator[Array]) -> Any:
    """Tuples and dataclasses of a structure of `flatten`, with the next of `arrays` in every place."""
    if structure is None:
        return None
    if structure == _LEAF:
        return next(arrays)
    kind, parts = structure
    values = tuple(rebuild(part, arrays) for part in parts)
    return values if kind is tuple else kind(*values)


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
    """Return whether the library of `x` compiles `fused` functions."""
    return hasattr(namespace(x), "fuse")


def _plain(xp: Any) -> Any:
    # fusion traces CuPy's own functions, not the wrappers around some of them
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        return cupy
    return xp
