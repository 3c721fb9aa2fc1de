"""Simulated CUDA device: memory, launches, and synchronisations of the host with the device.

Nothing here knows arrays. `cupy_like` reports every allocation, operation and synchronisation to this module;
tests read them, limit them or forbid them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field

#: The memory pool rounds every allocation up to this many bytes.
ROUND = 512
#: Frames that are not the caller of an operation.
_BEHIND = ("/cupy_like", "/cupyx_like", "/array_api_compat", "/backend/arrays.py")


class OutOfMemoryError(MemoryError):
    """Out of memory, a MemoryError as in CuPy."""


class SynchronisationError(RuntimeError):
    """Raised where the host would synchronise although a test forbids it (cupyx.DeviceSynchronized)."""


class Device:
    """A CUDA device: equal by number and not hashable, as in CuPy."""

    __hash__ = None

    def __init__(self, id: int):
        self.id = id

    def __eq__(self, other) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        _stack().append(self)
        return self

    def __exit__(self, *_) -> None:
        _stack().pop()


DEVICES = [Device(0), Device(1)]
_thread = threading.local()


def _stack() -> list[Device]:
    if not hasattr(_thread, "devices"):
        _thread.devices = [DEVICES[0]]
    return _thread.devices


def current_device() -> Device:
    """Device on which this thread allocates; every thread begins on device 0."""
    return _stack()[-1]


def using_device(device: Device) -> Device:
    """Context in which `device` is the current one of this thread."""
    return device


# --- memory ---------------------------------------------------------------------------------------


@dataclass
class Memory:
    """Bytes of one device that are taken."""

    live: int = 0
    peak: int = 0
    pooled: int = 0  #: the peak since the pool was last freed: what it holds of the driver's
    limit: float = float("inf")
    allocations: int = 0
    fail_at: int | None = None  #: this allocation, counted from the last reset, fails
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        with self.lock:
            self.allocations += 1
            if self.live + size > self.limit or self.allocations == self.fail_at:
                raise OutOfMemoryError(
                    f"Out of memory allocating {size:,} bytes (allocated so far: {self.live:,} bytes, "
                    f"limit set to: {self.limit:,} bytes)."
                )
            self.live += size
            self.peak, self.pooled = max(self.peak, self.live), max(self.pooled, self.live)

    def give(self, size: int) -> None:
        with self.lock:
            self.live -= size


MEMORIES = [Memory() for _ in DEVICES]


class Buffer:
    """Device memory, taken while this object lives; views share it."""

    def __init__(self, nbytes: int, device: Device | None = None):
        self.size = 0  # returned by __del__ if the allocation fails
        self.device = current_device() if device is None else device
        size = 0 if fusing() else -(-nbytes // ROUND) * ROUND
        if size:
            MEMORIES[self.device.id].take(size)
        self.size = size

    def __del__(self) -> None:
        MEMORIES[self.device.id].give(self.size)


@contextlib.contextmanager
def byte_limit(limit: float = float("inf"), device: Device = DEVICES[0], *, fail_at: int | None = None):
    """Memory of `device` with a hard limit, or whose `fail_at`-th allocation fails: its peak is counted from here."""
    memory = MEMORIES[device.id]
    memory.limit, memory.fail_at, memory.allocations, memory.peak = limit, fail_at, 0, memory.live
    try:
        yield memory
    finally:
        memory.limit, memory.fail_at = float("inf"), None


# --- launches and synchronisations ----------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One call of the library."""

    name: str
    launches: int  #: kernels, library calls and copies that the host queues
    bytes: int  #: read and written
    site: str  #: caller, as module.function:line
    flop: float = 0.0  #: of a matrix product or a factorisation


@dataclass
class Count:
    """Operations and synchronisations that were counted."""

    operations: list[Operation] = field(default_factory=list)
    synchronisations: list[Operation] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return sum(one.launches for one in self.operations)

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.operations)

    def flop(self, kind: str) -> float:
        """Of "product" (matrix products), "eigen" (eigenvectors) or "solve" (all that is factorised and solved)."""
        kinds = {"matmul": "product", "eigh": "eigen"}
        return sum(one.flop for one in self.operations if kinds.get(one.name, "solve") == kind)

    def launches_by(self, key) -> Counter:
        """Launches summed over `key(operation)`, for example ``lambda one: one.site``."""
        total: Counter = Counter()
        for one in self.operations:
            total[key(one)] += one.launches
        return total

    def sites_of_synchronisations(self) -> Counter:
        return Counter(f"{one.site} {one.name}" for one in self.synchronisations)


_counts: list[Count] = []
_forbidden: list[bool] = []


@contextlib.contextmanager
def counting():
    """Count operations and synchronisations, of all threads."""
    count = Count()
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)


@contextlib.contextmanager
def no_synchronisation():
    """Forbid synchronisations of the host with the device, in all threads."""
    _forbidden.append(True)
    try:
        yield
    finally:
        _forbidden.pop()


def record(name: str, launches: int, nbytes: int, flop: float = 0.0) -> None:
    """Report an operation."""
    if fusing():
        if name not in _thread.fusing:
            raise TypeError(f"cupy.fuse cannot take in {name}")
        return
    if _counts and launches:
        operation = Operation(name, launches, nbytes, _site(), flop)
        for count in list(_counts):
            count.operations.append(operation)


@contextlib.contextmanager
def one_kernel(allowed):
    """Trace a function into one kernel: only `allowed` operations, which use no memory."""
    _thread.fusing = allowed
    try:
        yield
    finally:
        _thread.fusing = None


def fusing() -> bool:
    """True while a function is traced into one kernel."""
    return getattr(_thread, "fusing", None) is not None


def synchronise(name: str) -> None:
    """Report a synchronisation of the host with the device."""
    if _forbidden:
        raise SynchronisationError(f"{name} makes the host wait for the device, at {_site()}")
    if _counts:
        operation = Operation(name, 0, 0, _site())
        for count in list(_counts):
            count.synchronisations.append(operation)


def _site() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in _BEHIND):
        frame = frame.f_back
    module = frame.f_code.co_filename.rsplit("/", 1)[-1].removesuffix(".py")
    return f"{module}.{frame.f_code.co_name}:{frame.f_lineno}"
