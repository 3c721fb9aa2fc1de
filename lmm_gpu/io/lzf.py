"""Decompression of LZF, a filter of h5py, compiled by numba: no package does it without the interpreter's lock.

The format is that of LibLZF: a byte below 32 begins that many literal bytes and one more; any other byte begins a copy
of earlier output, its length in the upper three bits (7: and the next byte), its distance in the lower five and the
next byte.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_U = np.uint64  # numba would check signed indices for negative values
_compiled: Any = numba.njit(nogil=True, cache=True, boundscheck=False)


@_compiled
def _decompress(content, out):  # type: ignore[no-untyped-def]
    # the number of bytes written, -1 for content that is no LZF or longer than `out`
    i, o, end, size = _U(0), _U(0), _U(content.shape[0]), _U(out.shape[0])
    while i < end:
        control = _U(content[i])
        i += _U(1)
        if control < _U(32):
            length = control + _U(1)
            if i + length > end or o + length > size:
                return -1
            for k in range(length):
                out[o + _U(k)] = content[i + _U(k)]
            i += length
        else:
            length = control >> _U(5)
            if length == _U(7) and i < end:
                length += _U(content[i])
                i += _U(1)
            if i >= end:
                return -1
            length += _U(2)
            distance = ((control & _U(31)) << _U(8)) + _U(content[i]) + _U(1)
            i += _U(1)
            if distance > o or o + length > size:
                return -1
            start = o - distance
            for k in range(length):
                out[o + _U(k)] = out[start + _U(k)]
        o += length
    return np.int64(o)


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
