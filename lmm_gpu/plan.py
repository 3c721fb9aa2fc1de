"""How many genes fit a block: bytes are predicted from shapes before anything runs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .threads import workers

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
#: Share of the free memory that a computation may take when nothing is said.
DEFAULT_SHARE = 0.25
#: Bytes of a block when no budget is given: more genes at once would not be faster.
BLOCK_BYTES = 256 * 2**20
#: Genes of a block: fewer, and the overhead of every call shows; more, and their numbers leave the caches.
MOST_GENES = 2048
#: Genes of a block on a device, where few genes leave it waiting for launches: batched solvers take no more.
MOST_GENES_ON_DEVICE = 65_535


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: p fixed columns, and the widths d of the random effects."""

    p: int
    d: tuple[int, ...]

    def bytes_per_gene(self) -> int:
        """Bytes that one gene of a block needs while it is fitted, all temporaries counted."""
        q, k, p = sum(self.d), len(self.d), self.p
        rest = q - max(self.d) if k > 1 else 0
        vectors = 8 * q + 6 * p + 12 * (k + 1) ** 2
        return 8 * (vectors + rest * (q + 4 * p + 12 * rest))


def table_bytes(sizes: tuple[int, ...], q_R: int, functions: int) -> int:
    """Bytes that the tables of a design take while they are built.

    Of `functions` numbers at every node of the grid of `sizes`, four copies; and a few matrices (q_R, q_R) at every
    node of one effect.
    """
    return 8 * (4 * math.prod(sizes) * functions + 5 * max(sizes) * q_R * q_R)


def genes_per_block(shape: Shape, memory: int | None, most: int = MOST_GENES) -> int:
    """Largest block of genes that the memory budget (bytes) allows, at most `most`; None is a moderate budget.

    Raises
    ------
    MemoryError
        If the budget does not hold a single gene, with the numbers.
    """
    need = shape.bytes_per_gene()
    if memory is None:
        return max(1, min(most, BLOCK_BYTES // need))
    if need > memory:
        raise MemoryError(f"one gene needs {need:,} bytes, memory allows {memory:,}; raise memory to {need:,} or more")
    return min(most, memory // need)


def threads_within(shape: Shape, memory: int | None) -> int:
    """Threads that a budget has room for, each with a block of at least one gene; at most one per processor."""
    return workers() if memory is None else max(1, min(workers(), memory // shape.bytes_per_gene()))


def blocks(m: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (lo, hi) ranges of at most `size` out of `m`.

    >>> list(blocks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    return ((lo, min(lo + size, m)) for lo in range(0, m, size))


def even_blocks(m: int, size: int, threads: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` out of `m`, nearly equal, and as many for every one of the threads.

    >>> list(even_blocks(10, 4, 2))
    [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    count = -(-m // size)
    if count > 1:
        count = -(-count // threads) * threads
    return blocks(m, -(-m // max(count, 1)) or 1)


def parse_memory(memory: int | float | str | None) -> int | None:
    """Bytes from a number or a string such as "2GB" or "512 MiB"; None stays None.

    >>> parse_memory("2GB"), parse_memory("1.5 GiB"), parse_memory(1000)
    (2000000000, 1610612736, 1000)

    Raises
    ------
    ValueError
        For anything else, and for amounts that are not positive.
    """
    if memory is None:
        return None
    match = re.fullmatch(
        r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(memory).upper().replace("E+", "E"), re.IGNORECASE
    )
    try:
        size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"memory={memory!r} is not an amount of memory; give bytes or a string such as '2GB'")
    return size


def free_memory() -> int | None:
    """Bytes of the host's memory that are free now; None where the platform does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def default_memory() -> int:
    """A share of the memory that is free now, in bytes."""
    return int(DEFAULT_SHARE * (free_memory() or 4 * 2**30))
