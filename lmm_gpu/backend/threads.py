"""Compute on threads: NumPy and SciPy release the interpreter's lock, so one thread per processor is enough."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


_limit: ContextVar[int | None] = ContextVar("limit", default=None)


def workers() -> int:
    """Processors that this process may use: by its affinity, the quota of its container, and `limited`."""
    limit = _limit.get()
    if limit is not None:
        return limit
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        processors = os.cpu_count() or 1
    return min(processors, _quota() or processors)


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Context in which `workers` is `threads`, also for items that are made `ahead`; None changes nothing.

    >>> with limited(3):
    ...     workers()
    3
    """
    if threads is None:
        yield
        return
    token = _limit.set(threads)
    try:
        yield
    finally:
        _limit.reset(token)


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Processors that the container's quota of time amounts to, rounded up; None without a quota."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return -(-int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such files, or "max"
        return None


@lru_cache(maxsize=1)
def _libraries(_: int) -> ThreadpoolController:
    """Libraries with threads that the process has loaded; looked for again only after modules were imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Limit:
    """Limit of the linear algebra library to one thread, a setting of the whole process.

    Fits on several threads overlap. The number of threads before the first of them is what the last one restores; so
    does the first one, as threadpoolctl lets only one thread at a time change the setting.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._limits: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            first = self._users == 0
            if first:
                self._limits = _libraries(len(sys.modules)).limit(limits=1, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._limits is not None and (first or self._users == 0):
                    self._limits.restore_original_limits()


#: Context in which the linear algebra library uses one thread. Its threads wait for each other by spinning: beside
#: programs that use the same processors, a fit of 4,000 crossed effects took over ten times as long on two threads,
#: while on idle processors they gain a tenth, as its matrices are small. Blocks of genes and chunks of cells have
#: threads.
one_blas_thread = _Limit()


def in_threads(function: Callable[[T], R], tasks: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield ``function(task)`` for every task, in order, computed on `threads`; by default one per processor.

    Meanwhile the linear algebra library uses one thread: its threads and these would compete for processors.

    >>> list(in_threads(abs, [-1, 2]))
    [1, 2]
    """
    tasks, threads = list(tasks), threads or workers()
    if len(tasks) < 2 or threads < 2:
        yield from map(function, tasks)
        return
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, tasks)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items while the next one is made on another thread; at most two exist at a time.

    >>> list(ahead(iter("ab")))
    ['a', 'b']
    """
    iterator, end, context = iter(items), object(), copy_context()

    def following() -> T | object:
        return context.run(next, iterator, end)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(following)
        while (item := future.result()) is not end:
            future = pool.submit(following)
            yield item  # type: ignore[misc]
            del item
