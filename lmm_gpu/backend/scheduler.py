"""Distribute blocks of genes over devices: read and copied ahead, computed, made smaller where memory runs out.

Every device has a worker (the host one per processor) that takes the next range, so that several devices share the
work without communication. Where a device reads ahead, the next block is copied while one is computed. A single
worker computes on the caller's thread, and with it on the caller's CUDA stream.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .devices import Device
from .threads import one_blas_thread

T = TypeVar("T")
Range = tuple[int, int]
#: Puts the genes of a range on a device.
Load = Callable[[Device, Range], Any]
#: Computes with what was loaded, and returns results on the host.
Work = Callable[[Device, Range, Any], T]
Fetch = Callable[[], "_Block | None"]


class Ranges:
    """Queue of ranges of genes, which are cut smaller once memory has run out."""

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
        """Return a range to the queue."""
        with self._lock:
            self._todo.appendleft(bounds)

    def halve(self, bounds: Range) -> None:
        """Return a range to the queue, to be taken in halves as all later ones of its length."""
        with self._lock:
            half = (bounds[1] - bounds[0] + 1) // 2
            self._largest = half if self._largest is None else min(self._largest, half)
            self._todo.appendleft(bounds)

    def clear(self) -> None:
        """Drop all ranges."""
        with self._lock:
            self._todo.clear()


@dataclass(frozen=True)
class _Block:
    bounds: Range
    loaded: Any  #: arrays on the device; None if its memory ran out
    mark: Any  #: mark of the copies to wait for


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
    todo = Ranges(ranges)
    staff = [device for device in devices for _ in range(workers if device.threaded else 1)][: max(1, len(ranges))]
    entry = {device.name: device.begin() for device in staff}
    lines = [_Worker(device, entry[device.name], todo, load, work) for device in staff]
    if len(lines) == 1:
        yield from lines[0].results()
        return
    yield from _in_parallel(lines, todo)


def _in_parallel(workers: Sequence[_Worker[T]], todo: Ranges) -> Iterator[tuple[Range, T]]:
    """Results of all workers as they come, each worker on a thread; the first error once all have stopped."""
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def report_all(worker: _Worker[T]) -> None:
        try:
            for done in worker.results():
                reports.put(done)
        except BaseException as error:
            todo.clear()
            reports.put(error)
        reports.put(None)  # this worker has finished

    with one_blas_thread(), ThreadPoolExecutor(len(workers)) as pool:
        for worker in workers:
            pool.submit(report_all, worker)
        working, failure = len(workers), None
        try:
            while working:
                report = reports.get()
                if report is None:
                    working -= 1
                elif isinstance(report, BaseException):
                    failure = failure or report
                else:
                    yield report
        finally:  # an interrupt waits for the blocks being computed, not for all that are left
            todo.clear()
    if failure is not None:
        raise failure


@dataclass(frozen=True)
class _Worker(Generic[T]):
    """Takes ranges for one device until none is left."""

    device: Device
    entry: Any  #: mark of the work that the caller had asked for
    todo: Ranges
    load: Load
    work: Work[T]

    def results(self) -> Iterator[tuple[Range, T]]:
        """Yield ranges and results, the next block being loaded meanwhile where the device reads ahead."""
        if not self.device.reads_ahead:
            yield from self._drain(lambda fetch: fetch)
            return
        reader = self.device.reader()
        try:
            yield from self._drain(lambda fetch: reader.submit(fetch).result)
        finally:
            reader.submit(lambda: None).result()  # a block that is still being read would keep its memory

    def _drain(self, start: Callable[[Fetch], Fetch]) -> Iterator[tuple[Range, T]]:
        with self.device.entered():
            self.device.wait(self.entry)
            pending = start(self._fetch)
            while (block := pending()) is not None:
                bounds, pending = block.bounds, start(self._fetch)
                done = None if block.loaded is None else self._attempt(block)
                del block  # its arrays, which copies must not overwrite before the results are on the host
                if done is not None:
                    yield bounds, done.value
                    continue
                self._make_smaller(bounds, pending())
                pending = start(self._fetch)

    def _make_smaller(self, bounds: Range, waiting: _Block | None) -> None:
        # after memory ran out: the block that waits is loaded again later, in parts
        if waiting is not None:
            self.todo.put_back(waiting.bounds)
        del waiting
        self.device.release()
        if bounds[1] - bounds[0] == 1:
            raise MemoryError(
                f"a single feature does not fit the memory of {self.device.name}: {self.device.free_bytes():,} bytes "
                "are free for blocks; free some, use fewer random effects, or another device"
            )
        self.todo.halve(bounds)

    def _fetch(self) -> _Block | None:
        bounds = self.todo.take()
        if bounds is None:
            return None
        try:
            with self.device.entered(), self.device.copying(after=self.entry):
                return _Block(bounds, self.load(self.device, bounds), self.device.mark())
        except Exception as error:  # libraries have errors of their own for it
            if not self.device.out_of_memory(error):
                raise
        return _Block(bounds, None, None)

    def _attempt(self, block: _Block) -> _Done[T] | None:
        # None if memory ran out: it is handled outside of the except clause, whose traceback refers to arrays
        try:
            self.device.wait(block.mark)
            return _Done(self.work(self.device, block.bounds, block.loaded))
        except Exception as error:
            if not self.device.out_of_memory(error):
                raise
        return None
