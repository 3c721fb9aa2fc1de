"""Decompression of LZF, a filter of h5py, compiled by numba: no package does it without the interpreter's lock.

The format is that of LibLZF: a byte below 32 begins that many literal bytes and one more; any other byte begins a copy
of earlier output, its length in the upper three bits (7: and the next byte), its distance in the lower five and the
next byte.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_compiled: Any = numba.njit(nogil=True, cache=True, boundscheck=False)


@_compiled
def _decompress(content, out):  # type: ignore[no-untyped-def]
    # the number of bytes written, -1 for content that is no LZF or longer than `out`
    i, o, end, size = np.int64(0), np.int64(0), content.shape[0], out.shape[0]
    while i < end:
        control = np.int64(content[i])
        i += 1
        if control < 32:
            length = control + 1
            if i + length > end or o + length > size:
                return -1
            for k in range(length):
                out[o + k] = content[i + k]
            i += length
        else:
            length = control >> 5
            if length == 7 and i < end:
                length += np.int64(content[i])
                i += 1
            if i >= end:
                return -1
            start = o - ((control & 31) << 8) - np.int64(content[i]) - 1
            i += 1
            length += 2
            if start < 0 or o + length > size:
                return -1
            for k in range(length):
                out[o + k] = out[start + k]
        o += length
    return o


def decompress_lzf(content: Any, size: int) -> Any:
    """Decompress a chunk of `size` bytes.

    Raises
    ------
    ValueError
        If it is damaged or has another size.
    """
    out = np.empty(size, np.uint8)
    if _decompress(np.frombuffer(content, np.uint8), out) != size:
        raise ValueError("a compressed chunk is damaged")
    return out
