"""Kernels written in CUDA: compiled by NVRTC through CuPy when they are first used.

They accelerate what array operations define. Where they cannot be used the array operations compute: on other
libraries and devices, without a compiler, and if `LMM_GPU_KERNELS=0` is in the environment.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import resources
from typing import Any

from .arrays import Array, namespace

#: Environment variable that turns the kernels off if it is "0".
VARIABLE = "LMM_GPU_KERNELS"
#: Sums are rounded as the array operations round them: no contraction to fused multiply-adds.
_OPTIONS = ("--std=c++17", "--fmad=false")
#: Bytes of shared memory that a block of threads has on every device.
_SHARED = 48 * 1024
_enabled: ContextVar[bool] = ContextVar("kernels", default=True)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Context in which array operations compute what kernels would."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def turned_on() -> bool:
    """Return whether kernels are used where they can be: not if the environment turns them off."""
    return _enabled.get() and os.environ.get(VARIABLE) != "0"


def compiles_kernels(x: Array) -> bool:
    """Return whether the library of `x` compiles CUDA, and kernels are not turned off."""
    return turned_on() and hasattr(namespace(x), "RawKernel")


def cuda_source(package: str, *names: str) -> str:
    """Text of files of CUDA source in a package, one after the other."""
    return "\n".join(resources.files(package).joinpath(name).read_text(encoding="utf-8") for name in names)


def definitions(constants: Mapping[str, float | int]) -> tuple[str, ...]:
    """Compiler options that define the constants.

    Examples
    --------
    >>> definitions({"K": 2, "SHORTEST_STEP": 2.0**-24})
    ('-DK=2', '-DSHORTEST_STEP=5.960464477539063e-08')
    """
    return tuple(f"-D{name}={value!r}" for name, value in constants.items())


def kernel(x: Array, source: str, name: str, options: tuple[str, ...], shared_bytes: int = 0) -> Any | None:
    """Compiled kernel for the device of `x`; None if there is none, with one warning if it could not be compiled.

    Parameters
    ----------
    x : array
        On the current device.
    source : str
        CUDA source, with the kernel as ``extern "C"``.
    name : str
    options : tuple of str
        Of the compiler, beside those that all kernels have.
    shared_bytes : int
        Dynamic shared memory of a block of threads; None is returned if the device has less.
    """
    if not compiles_kernels(x):
        return None
    xp = namespace(x)
    if shared_bytes > _SHARED and shared_bytes > _most_shared(xp):
        return None
    found = _compiled(xp, source, name, options, _device_number(xp))
    if found is not None and shared_bytes > _SHARED:
        found.max_dynamic_shared_size_bytes = shared_bytes
    return found


@functools.cache
def _compiled(xp: Any, source: str, name: str, options: tuple[str, ...], device: int) -> Any | None:
    try:
        found = xp.RawKernel(source, name, options=(*_OPTIONS, *options))
        found.compile()
    except MemoryError:  # says nothing about the kernel
        raise
    except Exception as error:  # the compiler's or the driver's
        reason = str(error).split("\n", 1)[0]
        warnings.warn(
            f"the CUDA kernel {name} could not be compiled and its work is done by array operations, which is right "
            f"but slower: {type(error).__name__}: {reason}; {VARIABLE}=0 turns the kernels off",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return found


def _device_number(xp: Any) -> int:
    return int(xp.cuda.Device().id)


def _most_shared(xp: Any) -> int:
    # shared memory that a block of threads may ask for, in bytes
    attributes = xp.cuda.Device().attributes
    return int(attributes.get("MaxSharedMemoryPerBlockOptin", _SHARED))
