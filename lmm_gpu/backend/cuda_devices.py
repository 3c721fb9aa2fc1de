"""CUDA devices through CuPy: the only place that knows its streams, events and memory pools.

Copies of the next block run on a stream of their own (`copying`) and are waited for, on the device, before they are
used (`wait`). There is one copy stream and one copying thread per device and process, however many fits are made:
CuPy's pool keeps memory for every stream, and its libraries keep handles for every thread.
"""

from __future__ import annotations

import functools
import gc
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .arrays import Array
from .host_device import Device

#: The oldest CuPy whose batched solvers and reductions the engine relies on.
OLDEST_CUPY = (14, 2)
#: Share of the free memory of a CUDA device that blocks may take: two of them are there at a time.
DEVICE_SHARE = 0.4
#: Rows of the largest matrices that are solved as a batch; CuPy's own limit of 256 would loop over the genes.
LARGEST_BATCHED_SOLVE = 4096
#: Distributions that provide the package `cupy`, and what to install of each.
_WHEELS = {
    "cupy-cuda12x": "pip install 'cupy-cuda12x[ctk]'",
    "cupy-cuda13x": "pip install 'cupy-cuda13x[ctk]' 'cuda-toolkit<13.3'",
    "cupy-cuda11x": "pip uninstall cupy-cuda11x && pip install 'cupy-cuda12x[ctk]'",
    "cupy": "install a CUDA toolkit that CuPy finds (CUDA_PATH)",
}
_INSTALL = f"{_WHEELS['cupy-cuda12x']}, or {_WHEELS['cupy-cuda13x']} for drivers of CUDA 13"


@dataclass(frozen=True)
class _Copier:
    """Stream and thread that copy blocks to a device beside computations."""

    stream: Any
    thread: ThreadPoolExecutor


#: By the module of CuPy and the number of the device.
_COPIERS: dict[tuple[int, int], _Copier] = {}
#: By the module of CuPy: the reason why it cannot compute.
_PROBES: dict[int, str] = {}


class Cuda(Device):
    """A CUDA device through CuPy."""

    reads_ahead = True
    threaded = False

    def __init__(self, number: int):
        self.number, self.name = number, f"cuda:{number}"
        self.cupy = _cupy()
        self.copier = _copier(self.cupy, number)

    def put(self, x: Any) -> Array:
        """`x` on this device; from the host through CuPy's pinned buffers, on the current stream."""
        with self.entered():
            return self.cupy.asarray(x)

    def entered(self) -> AbstractContextManager[Any]:
        """Context in which this device is the current one of the thread."""
        device: AbstractContextManager[Any] = self.cupy.cuda.Device(self.number)
        return device

    def begin(self) -> Any:
        """Event after the work on the thread's current stream so far."""
        with self.entered():
            return self.cupy.cuda.get_current_stream().record()

    @contextmanager
    def copying(self, after: Any = None) -> Iterator[None]:
        """Context of the stream for copies, which begin after an event."""
        with self.copier.stream:
            if after is not None:
                self.copier.stream.wait_event(after)
            yield

    def mark(self) -> Any:
        """Event after the copies so far."""
        return self.copier.stream.record()

    def wait(self, mark: Any) -> None:
        """Let the thread's stream wait for an event."""
        if mark is not None:
            self.cupy.cuda.get_current_stream().wait_event(mark)

    def reader(self) -> ThreadPoolExecutor:
        """Thread that copies blocks to this device, the same for all fits of the process."""
        return self.copier.thread

    def free_bytes(self) -> int:
        """Share of what is free on the device and in CuPy's pool."""
        with self.entered():
            pool = self.cupy.get_default_memory_pool()
            free = self.cupy.cuda.Device(self.number).mem_info[0] + pool.free_bytes()
            if pool.get_limit():
                free = min(free, pool.get_limit() - pool.used_bytes())
            return int(DEVICE_SHARE * max(free, 0))

    def release(self) -> None:
        """Give cached blocks back to the driver."""
        gc.collect()
        with self.entered():
            self.cupy.get_default_memory_pool().free_all_blocks()
            self.cupy.get_default_pinned_memory_pool().free_all_blocks()

    def out_of_memory(self, error: BaseException) -> bool:
        """Return whether CuPy, or a CUDA library under it, ran out of memory."""
        words = f"{type(error).__name__} {error}".upper()
        return isinstance(error, MemoryError) or "ALLOC_FAILED" in words or "MEMORYALLOCATION" in words

    def synchronise(self) -> None:
        """Wait until all work on this device is done."""
        with self.entered():
            self.cupy.cuda.runtime.deviceSynchronize()

    def own_stream(self) -> AbstractContextManager[Any]:
        """Context of a new stream, which waits for no other."""
        with self.entered():
            stream: AbstractContextManager[Any] = self.cupy.cuda.Stream(non_blocking=True)
            return stream

    def no_waiting(self) -> AbstractContextManager[Any]:
        """Context in which waiting for a device is an error of the host: `cupyx.DeviceSynchronized`."""
        context: AbstractContextManager[Any] = _cupyx().allow_synchronize(False)
        return context

    def pool_bytes(self) -> tuple[int, int]:
        """Bytes of CuPy's memory pool on this device: in use, and taken from the driver."""
        pool = self.cupy.get_default_memory_pool()
        with self.entered():
            return int(pool.used_bytes()), int(pool.total_bytes())

    @contextmanager
    def limited(self, size: int) -> Iterator[None]:
        """Context in which CuPy's memory pool takes at most `size` bytes of this device."""
        pool = self.cupy.get_default_memory_pool()
        with self.entered():
            before = pool.get_limit()
            pool.set_limit(size=size)
        try:
            yield
        finally:
            with self.entered():
                pool.set_limit(size=before)


def cuda_count() -> tuple[int, str]:
    """Return the number of usable CUDA devices, and the reason if there are none."""
    wheels = _wheels()
    if len(wheels) > 1:
        names = " ".join(wheels)
        return 0, (
            f"several packages provide CuPy ({', '.join(wheels)}) and overwrite each other's files: pip uninstall "
            f"{names}, then {_INSTALL}"
        )
    try:
        cupy = _cupy()
    except Exception as error:  # a wheel for another CUDA, a broken driver, a missing part
        if isinstance(error, ModuleNotFoundError) and error.name in ("cupy", None):
            return 0, f"CuPy is not installed: {_INSTALL}"
        return 0, f"CuPy cannot be imported: {error}"
    version = tuple(int(part) for part in cupy.__version__.split(".")[:2])
    if version < OLDEST_CUPY:
        return 0, f"CuPy {cupy.__version__} is too old: {'.'.join(map(str, OLDEST_CUPY))} or newer is needed"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        return 0, f"no CUDA device: {_without_driver(cupy, error)}"
    reason = _unusable(cupy) if count else "no CUDA device"
    return (0 if reason else count), reason


def describe_cuda() -> dict[str, Any]:
    """Versions and devices of CUDA, and the reason if it cannot be used; never fails.

    Returns
    -------
    dict
        cupy, driver and runtime: versions or None; devices: a list of number, name, compute_capability, free_bytes and
        total_bytes; reason: why there are none, else "".
    """
    count, reason = cuda_count()
    found: dict[str, Any] = {"cupy": None, "driver": None, "runtime": None, "devices": [], "reason": reason}
    try:
        cupy = _cupy()
        found["cupy"] = str(cupy.__version__)
        found["driver"] = _cuda_version(cupy.cuda.runtime.driverGetVersion())
        found["runtime"] = _cuda_version(cupy.cuda.runtime.runtimeGetVersion())
        found["devices"] = [_describe(cupy, number) for number in range(count)]
    except Exception as error:  # what is known so far is returned
        found["reason"] = reason or f"{type(error).__name__}: {error}"
    return found


def _without_driver(cupy: Any, error: Exception) -> str:
    # CUDA's runtime says "insufficient driver" where there is no driver at all
    try:
        driver = _cuda_version(cupy.cuda.runtime.driverGetVersion())
    except Exception:
        return str(error)
    if driver is None:
        return "no NVIDIA driver is installed"
    if "INSUFFICIENTDRIVER" not in str(error).upper():
        return str(error)
    runtime = _cuda_version(cupy.cuda.runtime.runtimeGetVersion())
    older = f"; or pip uninstall cupy-cuda13x && {_WHEELS['cupy-cuda12x']}" if driver.startswith("12.") else ""
    return f"the NVIDIA driver is for CUDA {driver}, and CuPy needs CUDA {runtime}: update the driver{older}"


def _unusable(cupy: Any) -> str:
    # reason why a product or a factorisation fails on the first device, "" if neither does; tried once per process
    if id(cupy) not in _PROBES:
        _PROBES[id(cupy)] = _probe(cupy)
    return _PROBES[id(cupy)]


def _probe(cupy: Any) -> str:
    try:
        with cupy.cuda.Device(0):
            unit = cupy.asarray([[2.0, 0.0], [0.0, 2.0]])
            cupy.linalg.cholesky(unit @ unit)
            _raise_solve_limit(cupy)
    except Exception as error:
        first = str(error).partition("\n")[0]
        return f"CuPy finds a device but cannot compute on it ({type(error).__name__}: {first}): {_missing()}"
    return ""


def _missing() -> str:
    # how to install what the installed wheel lacks
    return _WHEELS[_wheels()[0]] if _wheels() else _INSTALL


@functools.cache
def _wheels() -> tuple[str, ...]:
    # installed distributions that provide CuPy
    return tuple(name for name in _WHEELS if _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _raise_solve_limit(cupy: Any) -> None:
    limit = getattr(getattr(cupy, "cublas", None), "set_batched_gesv_limit", None)
    if limit is not None:
        limit(LARGEST_BATCHED_SOLVE)


def _copier(cupy: Any, number: int) -> _Copier:
    # the stream and the thread for copies to a device, made once per process
    if (id(cupy), number) not in _COPIERS:
        with cupy.cuda.Device(number):
            stream = cupy.cuda.Stream(non_blocking=True)
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"lmm_gpu-copies-{number}")
        _COPIERS[id(cupy), number] = _Copier(stream, thread)
    return _COPIERS[id(cupy), number]


def _describe(cupy: Any, number: int) -> dict[str, Any]:
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    with cupy.cuda.Device(number):
        free, total = cupy.cuda.Device(number).mem_info
    return {
        "number": number,
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "free_bytes": int(free),
        "total_bytes": int(total),
    }


def _cuda_version(number: int) -> str | None:
    # 12040 is CUDA 12.4; 0 is no driver
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _cupy() -> Any:
    return importlib.import_module("cupy")


def _cupyx() -> Any:
    return importlib.import_module("cupyx")
