"""Where computations run: the host, CUDA devices through CuPy, or wherever the arrays are that the caller brought.

The only place that knows CuPy's devices, streams, events and memory pools. A device takes arrays (`put`), is entered by
the thread that computes on it (`entered`), and may read ahead: copies of the next block run on a stream of their own
(`copying`) and are waited for, on the device, before they are used (`wait`).
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import array_api_compat

from .arrays import Array, entered, like, namespace, on_host, to_numpy
from .memory import default_memory

#: The oldest CuPy whose batched solvers and reductions the engine relies on.
OLDEST_CUPY = (14, 2)
#: Share of the free memory of a CUDA device that blocks may take: two of them are there at a time.
DEVICE_SHARE = 0.4


class Device:
    """The host; other devices differ in what they override."""

    name = "cpu"
    reads_ahead = False  #: whether copies run beside computations
    threaded = True  #: whether several blocks are worked on at once, on threads

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    def put(self, x: Any) -> Array:
        """`x` as an array on this device, in its own dtype."""
        return to_numpy(x)

    def entered(self) -> AbstractContextManager:
        """Context in which this device is the current one of the thread."""
        return nullcontext()

    def copying(self) -> AbstractContextManager:
        """Context in which `put` copies beside computations."""
        return nullcontext()

    def mark(self) -> Any:
        """Return what `wait` waits for: the copies so far."""
        return None

    def wait(self, mark: Any) -> None:
        """Let computations on this device begin once these copies are there; the host goes on."""

    def free_bytes(self) -> int:
        """Bytes that blocks may take."""
        return default_memory()

    def release(self) -> None:
        """Give unused memory back, after it ran out."""
        gc.collect()

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        return isinstance(error, MemoryError)

    def synchronise(self) -> None:
        """Wait until all that was asked of this device is done."""

    def own_stream(self) -> AbstractContextManager:
        """Context in which the thread's work runs beside that of other threads."""
        return nullcontext()


class Given(Device):
    """The device of an array of another library: PyTorch, JAX, array-api-strict, CuPy."""

    threaded = False  # threads of many small operations wait for each other

    def __init__(self, reference: Array):
        self.reference = namespace(reference).reshape(reference, (-1,))[:0]
        library = namespace(reference).__name__.rsplit(".", 1)[-1]
        self.name = f"{library}:{array_api_compat.device(reference)}"

    def put(self, x: Any) -> Array:
        """`x` on the device of the arrays that the caller brought."""
        xp = namespace(self.reference)
        return like(x, self.reference, dtype=xp.float64 if on_host(x) else x.dtype)

    def entered(self) -> AbstractContextManager:
        """Context in which this device is the current one of the thread."""
        return entered(self.reference)

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        return isinstance(error, MemoryError) or "out of memory" in str(error)


class Cuda(Device):
    """A CUDA device through CuPy."""

    reads_ahead = True
    threaded = False

    def __init__(self, number: int):
        self.number, self.name = number, f"cuda:{number}"
        self.cupy = _cupy()
        with self.entered():
            self.stream = self.cupy.cuda.Stream(non_blocking=True)

    def put(self, x: Any) -> Array:
        """`x` on this device; from the host through CuPy's pinned buffers, on the current stream."""
        with self.entered():
            return self.cupy.asarray(x)

    def entered(self) -> AbstractContextManager:
        """Context in which this device is the current one of the thread."""
        return self.cupy.cuda.Device(self.number)

    def copying(self) -> AbstractContextManager:
        """Context of the stream for copies."""
        return self.stream

    def mark(self) -> Any:
        """Event after the copies so far."""
        return self.stream.record()

    def wait(self, mark: Any) -> None:
        """Let the thread's stream wait for an event."""
        if mark is not None:
            self.cupy.cuda.get_current_stream().wait_event(mark)

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
        """Whether CuPy, or a CUDA library under it, ran out of memory."""
        words = f"{type(error).__name__} {error}".upper()
        return isinstance(error, MemoryError) or "ALLOC_FAILED" in words or "MEMORYALLOCATION" in words

    def synchronise(self) -> None:
        """Wait until all that was asked of this device is done."""
        with self.entered():
            self.cupy.cuda.runtime.deviceSynchronize()

    def own_stream(self) -> AbstractContextManager:
        """Context of a new stream, which waits for no other."""
        with self.entered():
            return self.cupy.cuda.Stream(non_blocking=True)

    def no_waiting(self) -> AbstractContextManager:
        """Context in which the host is refused to wait for a device: `cupyx.DeviceSynchronized` is raised."""
        return _cupyx().allow_synchronize(False)

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


def resolve(device: Any = "auto", *arrays: Array) -> list[Device]:
    """Devices to compute on: what is asked for, else where the arrays are, else a usable CUDA device, else the host.

    Parameters
    ----------
    device : str, Device, or sequence of these
        "auto", "cpu", "cuda", "cuda:1", or several such as ["cuda:0", "cuda:1"] or "cuda:0,cuda:1".
    arrays : array
        What will be computed with: arrays of another library than NumPy stay where they are, unless a device is named.

    Raises
    ------
    ValueError
        For a device that cannot be used, with the reason and with what can be.

    Examples
    --------
    >>> resolve("cpu")
    [Device('cpu')]
    """
    if isinstance(device, str) and "," in device:
        device = [one.strip() for one in device.split(",")]
    if isinstance(device, Sequence) and not isinstance(device, str):
        chosen = [one for some in device for one in resolve(some, *arrays)]
        if not chosen or len({one.name for one in chosen}) < len(chosen):
            raise ValueError(f"device={list(device)!r}: name at least one device, and each of them once")
        return chosen
    if isinstance(device, Device):
        return [device]
    if device == "cpu":
        return [Device()]
    if device == "auto":
        return [_automatic(arrays)]
    if isinstance(device, str) and device.split(":")[0] == "cuda":
        return [_cuda(device)]
    raise ValueError(f"device={device!r} cannot be used: use 'auto' or 'cpu', 'cuda', 'cuda:1' or a list of these")


def cuda_count() -> tuple[int, str]:
    """Number of CUDA devices that can be used, and why there are none."""
    try:
        cupy = _cupy()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("cupy", None):
            return 0, "CuPy is not installed: pip install 'lmm-gpu[cuda12]' or 'lmm-gpu[cuda13]'"
        return (
            0,
            f"CuPy cannot be imported: {error}",
        )  # a wheel for another CUDA, a broken driver, a part that is missing
    version = tuple(int(part) for part in cupy.__version__.split(".")[:2])
    if version < OLDEST_CUPY:
        return 0, f"CuPy {cupy.__version__} is too old: {'.'.join(map(str, OLDEST_CUPY))} or newer is needed"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        return 0, f"no CUDA device: {error}"
    return count, "" if count else "no CUDA device"


def describe_cuda() -> dict[str, Any]:
    """What there is of CUDA, and why it cannot be used if it cannot: never fails.

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
    except Exception as error:  # what is known so far is told
        found["reason"] = reason or f"{type(error).__name__}: {error}"
    return found


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


def _automatic(arrays: Sequence[Array]) -> Device:
    elsewhere = [x for x in arrays if not on_host(x)]
    if elsewhere:
        where = array_api_compat.device(elsewhere[0])
        if array_api_compat.is_cupy_array(elsewhere[0]):
            return Cuda(where.id)
        return Given(elsewhere[0])
    return Cuda(0) if cuda_count()[0] else Device()


def _cuda(device: str) -> Device:
    number = device.partition(":")[2] or "0"
    count, reason = cuda_count()
    if not number.isdigit() or int(number) >= count:
        there = f"there are {count}: cuda:0 to cuda:{count - 1}" if count else reason
        raise ValueError(f"device={device!r} cannot be used ({there}); use 'auto' or 'cpu'")
    return Cuda(int(number))


def _cupy() -> Any:
    return importlib.import_module("cupy")


def _cupyx() -> Any:
    return importlib.import_module("cupyx")
