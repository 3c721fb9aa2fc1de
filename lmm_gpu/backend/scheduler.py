"""Blocks of genes on their way to the devices: read and copied ahead, computed, made smaller where memory runs out.

Every device has a worker (the host one per processor) that takes the next range, so that several devices share the
work without talking to each other. Where a device reads ahead, the next block is copied while one is computed.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from threadpoolctl import threadpool_limits

from .devices import Device

T = TypeVar("T")
Range = tuple[int, int]
#: Puts the genes of a range on a device.
Load = Callable[[Device, Range], Any]
#: Computes with what was loaded, and returns results on the host.
Work = Callable[[Device, Range, Any], T]


class Ranges:
    """Ranges of genes that are still to be done; smaller ones once memory has run out."""

    def __init__(self, ranges: Iterable[Range]):
        self._todo = deque(ranges)
        self._largest: int | None = None
        self._lock = threading.Lock()

    def take(self) -> Range | None:
        """Return the next range, None if there is none."""
        with self._lock:
            if not self._todo:
                return None
            lo, hi = self._todo.popleft()
            if self._largest is not None and hi - lo > self._largest:
                self._todo.appendleft((lo + self._largest, hi))
                hi = lo + self._largest
            return lo, hi

    def put_back(self, bounds: Range) -> None:
        """Have a range done later, by anybody."""
        with self._lock:
            self._todo.appendleft(bounds)

    def halve(self, bounds: Range) -> None:
        """Have a range done in halves, and no range as long as it from now on."""
        with self._lock:
            half = (bounds[1] - bounds[0] + 1) // 2
            self._largest = half if self._largest is None else min(self._largest, half)
            self._todo.appendleft(bounds)

    def clear(self) -> None:
        """Leave the rest."""
        with self._lock:
            self._todo.clear()


@dataclass(frozen=True)
class _Block:
    bounds: Range
    loaded: Any  #: on the device; None if its memory ran out
    mark: Any  #: the copies to wait for


@dataclass(frozen=True)
class _Done(Generic[T]):
    value: T


def run(
    devices: Sequence[Device], workers: int, ranges: Iterable[Range], load: Load, work: Work[T]
) -> Iterator[tuple[Range, T]]:
    """Do all ranges on all devices; yield every range with its result, in no particular order.

    Parameters
    ----------
    devices : sequence of Device
    workers : int
        Threads of the host, if it is the device.
    ranges, load, work
        What to do.

    Raises
    ------
    MemoryError
        If not even one gene fits the memory of a device, with the numbers. What was done before is done.
    """
    ranges = list(ranges)
    todo, reports = Ranges(ranges), queue.SimpleQueue()  # type: ignore[var-annotated]
    staff = [device for device in devices for _ in range(workers if device.threaded else 1)][: max(1, len(ranges))]
    if len(staff) == 1 and not staff[0].reads_ahead:
        yield from _drain(staff[0], todo, load, work, _now)
        return

    def work_off(device: Device) -> None:
        try:
            if device.reads_ahead:
                with ThreadPoolExecutor(1) as reader:
                    for done in _drain(device, todo, load, work, partial(_ahead, reader)):
                        reports.put(done)
            else:
                for done in _drain(device, todo, load, work, _now):
                    reports.put(done)
        except BaseException as error:
            todo.clear()
            reports.put(error)
        reports.put(None)  # this worker is finished

    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(len(staff)) as pool:
        for device in staff:
            pool.submit(work_off, device)
        working, failure = len(staff), None
        try:
            while working:
                report = reports.get()
                if report is None:
                    working -= 1
                elif isinstance(report, BaseException):
                    failure = failure or report
                else:
                    yield report
        finally:  # whoever interrupts waits for the blocks under way, not for all that are left
            todo.clear()
    if failure is not None:
        raise failure


def _drain(device: Device, todo: Ranges, load: Load, work: Work[T], start: Callable) -> Iterator[tuple[Range, T]]:
    # blocks of one worker, the next one loading while one is worked on
    fetch = partial(_fetch, device, todo, load)
    with device.entered():
        pending = start(fetch)
        while (block := pending()) is not None:
            bounds, pending = block.bounds, start(fetch)
            done = None if block.loaded is None else _attempt(device, block, work)
            del block  # its arrays, which copies must not overwrite before the results are on the host
            if done is not None:
                yield bounds, done.value
                continue
            waiting = pending()
            if waiting is not None:
                todo.put_back(waiting.bounds)
            del waiting
            device.release()
            if bounds[1] - bounds[0] == 1:
                raise MemoryError(
                    f"a single feature does not fit the memory of {device.name}: {device.free_bytes():,} bytes are "
                    "free for blocks; free some, use fewer random effects, or another device"
                )
            todo.halve(bounds)
            pending = start(fetch)


def _fetch(device: Device, todo: Ranges, load: Load) -> _Block | None:
    bounds = todo.take()
    if bounds is None:
        return None
    try:
        with device.entered(), device.copying():
            return _Block(bounds, load(device, bounds), device.mark())
    except Exception as error:  # libraries have errors of their own for it
        if not device.out_of_memory(error):
            raise
    return _Block(bounds, None, None)


def _attempt(device: Device, block: _Block, work: Work[T]) -> _Done[T] | None:
    # None if memory ran out: what to do then happens outside of the except clause, whose traceback holds arrays
    try:
        device.wait(block.mark)
        return _Done(work(device, block.bounds, block.loaded))
    except Exception as error:
        if not device.out_of_memory(error):
            raise
    return None


def _now(fetch: Callable[[], _Block | None]) -> Callable[[], _Block | None]:
    return fetch


def _ahead(reader: ThreadPoolExecutor, fetch: Callable[[], _Block | None]) -> Callable[[], _Block | None]:
    return reader.submit(fetch).result
