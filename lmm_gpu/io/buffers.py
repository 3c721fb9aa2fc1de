"""Memory for what is read from files, used again: new memory takes as long to get as the bytes to copy."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np

#: Buffers that are kept: one that is filled, one that waits, one in use. Larger ones are not.
_KEPT, _LARGEST = 3, 2**24


class Buffers:
    """Arrays whose memory is used again once nothing refers to it: no view of the array, and no view of a view.

    Examples
    --------
    >>> buffers = Buffers()
    >>> first, second = buffers.empty((4, 2), np.float64), buffers.empty((4, 2), np.float64)
    >>> np.shares_memory(first, second)
    False
    >>> place = first.ctypes.data
    >>> part = first[1:]
    >>> del first
    >>> buffers.empty((8,), np.float64).ctypes.data == place  # part is still there
    False
    >>> del part
    >>> buffers.empty((2, 4), np.float64).ctypes.data == place
    True
    """

    def __init__(self) -> None:
        self._kept: list[bytearray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array with any values."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if not 0 < size <= _LARGEST:
            return np.empty(shape, dtype)
        with self._lock:
            content = self._free(size)
            return (
                np.empty(shape, dtype) if content is None else np.frombuffer(content, dtype, prod(shape)).reshape(shape)
            )

    def _free(self, size: int) -> bytearray | None:
        # a buffer that is not in use, one that was too small made anew; None if all are
        free = [content for content in self._kept if _is_free(content)]
        if fitting := [content for content in free if len(content) >= size]:
            return fitting[0]
        if free:
            self._kept = [content for content in self._kept if content is not free[0]]
        elif len(self._kept) == _KEPT:
            return None
        self._kept.append(bytearray(size))
        return self._kept[-1]


def _is_free(content: bytearray) -> bool:
    try:
        content.append(content.pop())  # a bytearray refuses to change its length while an array uses it
    except BufferError:
        return False
    return True
