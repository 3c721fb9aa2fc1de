"""Consecutive ranges of columns and blocks of genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def ranges(widths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Consecutive (lo, hi) of the given widths.

    >>> ranges([2, 3])
    ((0, 2), (2, 5))
    """
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return tuple((hi - width, hi) for width, hi in zip(widths, ends, strict=True))


def blocks(m: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (lo, hi) ranges of at most `size` out of `m`.

    >>> list(blocks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    return ((lo, min(lo + size, m)) for lo in range(0, m, size))


def even_blocks(m: int, size: int, threads: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` out of `m`, nearly equal, the same number for every thread.

    >>> list(even_blocks(10, 4, 2))
    [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    count = -(-m // size)
    if count > 1:
        count = -(-count // threads) * threads
    return blocks(m, -(-m // max(count, 1)) or 1)
