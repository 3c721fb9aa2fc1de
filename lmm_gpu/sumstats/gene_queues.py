"""Work on threads, with a queue of its own for each range of genes: a range adds chunks in order, and none waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import reduce
from operator import or_

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Added:
    """A chunk that is being added."""

    parts: Sequence[Future[int] | int]

    def flags(self) -> int:
        """Wait for it, and return the bits that its parts returned."""
        return reduce(or_, (part.result() if isinstance(part, Future) else int(part) for part in self.parts), 0)


class GeneQueues:
    """Functions of ranges of genes, called on threads in the order in which they were given.

    Parameters
    ----------
    threads : int
        With one, functions are called at once, on the calling thread.

    Examples
    --------
    >>> GeneQueues(2).add(lambda lo, hi: hi, [(0, 1), (1, 2)]).flags()
    3
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._queues: list[ThreadPoolExecutor] = []
        self._ranges: Ranges = ()
        self._running: list[Future[int]] = []

    def add(self, function: Callable[[int, int], int], ranges: Ranges, *, apart: bool = False) -> Added:
        """Call a function for each range: after all chunks in other ranges, unless its genes are `apart` from theirs.

        With the same ranges as before, each thread takes the chunk when it is done with the one before.
        """
        if not apart and list(ranges) != list(self._ranges):
            self.wait()
        if self.threads < 2 or len(ranges) < 2:
            return Added([function(*bounds) for bounds in ranges])
        if not self._queues:  # new ones for every chunk would take as long as a small chunk
            self._queues = [ThreadPoolExecutor(1) for _ in range(self.threads)]
        queues = self._queues
        parts = [queues[i % len(queues)].submit(function, *bounds) for i, bounds in enumerate(ranges)]
        self._running = [part for part in self._running if not part.done()] + parts
        self._ranges = ranges
        return Added(parts)

    def wait(self) -> None:
        """Wait for all that was given."""
        wait(self._running)
        self._running, self._ranges = [], ()
