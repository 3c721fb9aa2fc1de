"""Amounts of memory: parse budgets, and ask for what is free."""

from __future__ import annotations

import os
import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
#: Share of the available memory that a computation may take by default.
DEFAULT_SHARE = 0.25


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
    match = re.fullmatch(r"\s*([0-9.]+(?:E\+?[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(memory).upper())
    try:
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"memory={memory!r} is not an amount of memory; give bytes or a string such as '2GB'")
    return size


def free_memory() -> int:
    """Bytes of the host's memory that are available without swapping."""
    import psutil  # takes as long as reading the amount a thousand times

    return int(psutil.virtual_memory().available)


def default_memory(at_most: int | None = None) -> int:
    """Bytes that a computation may take by default: a share of the available memory, and `at_most` so many."""
    if at_most is not None and DEFAULT_SHARE * _unused_memory() >= at_most:
        return at_most
    share = int(DEFAULT_SHARE * free_memory())
    return share if at_most is None else min(share, at_most)


def _unused_memory() -> int:
    # bytes that nothing uses, not even the cache of files; 0 where the system does not say. It imports nothing.
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
