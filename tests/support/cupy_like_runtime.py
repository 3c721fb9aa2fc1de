"""The module `cupy` as used by `backend.devices`, on top of `cupy_like`: devices, streams, events and pools.

A copy on a separate stream may not be used before its event has been waited for: arrays are created immediately, but
`unwaited` contains those that no computation may use yet.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import cupy_like
import cupy_like_device as cuda
import cupy_like_linalg

__version__ = "14.2.0"
_thread = threading.local()
log: list[str] = []


class Event:
    def __init__(self, count: int):
        self.count = count  # copies that it stands for


class Stream:
    """Counts its copies; waiting for an event makes the copies before it usable."""

    def __init__(self, non_blocking: bool = False):
        assert non_blocking, "a stream that waits for the others copies nothing ahead"
        self.device, self.copies = cuda.current_device(), 0

    def __enter__(self) -> Stream:
        _thread.stream = self
        return self

    def __exit__(self, *_) -> None:
        _thread.stream = None

    def record(self) -> Event:
        return Event(self.copies)

    def wait_event(self, event: Event) -> None:
        log.append(f"copies wait for {event.count}")


class CurrentStream:
    def record(self) -> Event:
        return Event(0)

    def wait_event(self, event: Event) -> None:
        _thread.waited = event.count
        log.append(f"wait {event.count}")


def asarray(x, dtype=None):
    """On the current device, and on the current stream if there is one."""
    stream = getattr(_thread, "stream", None)
    if stream is not None:
        assert stream.device == cuda.current_device(), "a stream belongs to its device"
        stream.copies += 1
    return cupy_like.asarray(x, dtype=dtype)


class Pool:
    """Memory pool of the current device, as in CuPy: every device has its own limit and usage."""

    def __init__(self, name: str):
        self.name = name

    memory = property(lambda self: cuda.MEMORIES[cuda.current_device().id])

    def used_bytes(self) -> int:
        return self.memory.live

    def total_bytes(self) -> int:
        return self.memory.pooled

    def get_limit(self) -> int:
        return 0 if self.memory.limit == float("inf") else self.memory.limit

    def set_limit(self, size: int) -> None:
        self.memory.limit = size or float("inf")

    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        self.memory.pooled = self.memory.live
        log.append(f"{self.name} freed on {cuda.current_device().id}")


class Device:
    """`cupy.cuda.Device`: entered, and asked for its free memory."""

    def __init__(self, id: int):
        self.id, self._device = id, cuda.DEVICES[id]

    def __enter__(self) -> Device:
        self._device.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._device.__exit__()

    @property
    def mem_info(self) -> tuple[int, int]:
        memory = cuda.MEMORIES[self.id]
        total = min(memory.limit, 10**9)
        return int(total - memory.live), int(total)


pool, pinned = Pool("pool"), Pool("pinned pool")


def get_default_memory_pool() -> Pool:
    return pool


def get_default_pinned_memory_pool() -> Pool:
    return pinned


module = SimpleNamespace(
    __version__=__version__,
    asarray=asarray,
    linalg=cupy_like.xp.linalg,
    cublas=SimpleNamespace(set_batched_gesv_limit=cupy_like_linalg.set_batched_gesv_limit),
    get_default_memory_pool=get_default_memory_pool,
    get_default_pinned_memory_pool=get_default_pinned_memory_pool,
    cuda=SimpleNamespace(
        Device=Device,
        Stream=Stream,
        get_current_stream=CurrentStream,
        runtime=SimpleNamespace(
            getDeviceCount=lambda: 2,
            getDeviceProperties=lambda number: {"name": f"imitation {number}".encode(), "major": 9, "minor": 0},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 12090,
            deviceSynchronize=lambda: log.append(f"synchronised {cuda.current_device().id}"),
        ),
    ),
)


def allow_synchronize(allow: bool):
    assert not allow
    return cuda.no_synchronisation()


cupyx = SimpleNamespace(allow_synchronize=allow_synchronize)
