"""Stored chunks as extents of files: read as a whole, or in order and in parts where a chunk is very large."""

from __future__ import annotations

import os
import threading
import zlib
from dataclasses import dataclass

import numpy as np

from .chunk_codecs import streaming_zlib

#: Bytes of a compressed chunk that are read, and of the result that are skipped, at a time.
_STEP = 2**18


class OpenFile:
    """A file that threads read at any position; closed with its last user."""

    def __init__(self, name: str | os.PathLike[str]):
        self._descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, size: int) -> bytearray:
        """Read `size` bytes from `start`.

        Raises
        ------
        ValueError
            If the file does not have them.
        """
        if size > self.size:
            raise ValueError("a chunk lies outside the file")
        content = bytearray(size)
        self.read_into(start, memoryview(content))
        return content

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start`; errors as `read`."""
        if not 0 <= start <= start + len(out) <= self.size:
            raise ValueError("a chunk lies outside the file")
        done = 0
        while done < len(out):  # no call reads more than 2 GB
            count = os.preadv(self._descriptor, [out[done:]], start + done)
            if not count:
                raise ValueError("the file ends before a chunk does")
            done += count

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


@dataclass(frozen=True)
class Extent:
    """A part of a file."""

    file: OpenFile
    start: int
    size: int

    def content(self) -> bytearray:
        """Read all of it."""
        return self.file.read(self.start, self.size)

    def part(self, start: int, stop: int) -> bytearray:
        """Read the bytes from `start` to `stop` of it."""
        return self.file.read(self.start + start, stop - start)

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with its bytes from `start`."""
        self.file.read_into(self.start + start, out)


class InflatedExtent:
    """A zlib or gzip stream in a file, decompressed in order: only what is asked for is in memory.

    Parameters
    ----------
    extent
        Of the compressed bytes.
    """

    def __init__(self, extent: Extent):
        self._extent, self._lock = extent, threading.Lock()
        self._restart()

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the decompressed bytes from `start`; going back starts again.

        Raises
        ------
        ValueError
            If the stream is damaged or ends before.
        """
        stop = start + len(out)
        with self._lock:
            if start < self._at:
                self._restart()
            while self._at < stop:
                part = self._next(min((start if self._at < start else stop) - self._at, _STEP))
                if self._at >= start:
                    out[self._at - start : self._at - start + len(part)] = part
                self._at += len(part)

    def _restart(self) -> None:
        self._at, self._read = 0, 0
        self._rest: bytes | bytearray = b""
        self._library, _ = streaming_zlib()
        self._stream = self._library.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip

    def _next(self, most: int) -> bytes:
        while True:
            if not self._rest and self._read < self._extent.size:
                end = min(self._read + _STEP, self._extent.size)
                self._rest, self._read = self._extent.part(self._read, end), end
            is_last = self._read == self._extent.size
            try:
                part: bytes = self._stream.decompress(self._rest, most)
            except self._library.error as error:
                raise ValueError(f"a compressed chunk is damaged ({error})") from error
            self._rest = self._stream.unconsumed_tail
            if part:
                return part
            if self._stream.eof or (is_last and not self._rest):
                raise ValueError("a compressed chunk is damaged: it ends too early")


class ShuffledExtent:
    """A zlib stream in a file of shuffled values, all first bytes before all second ones, decompressed in order.

    There is one stream for each byte of a value: the chunk is decompressed several times, but never whole in memory.

    Parameters
    ----------
    extent
        Of the compressed bytes.
    size, itemsize
        Bytes of all values, and of one.
    """

    def __init__(self, extent: Extent, size: int, itemsize: int):
        self._bytes = [InflatedExtent(extent) for _ in range(itemsize)]
        self._count = size // itemsize

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with whole values from the byte `start` on; errors as those of `InflatedExtent`."""
        values = np.frombuffer(out, np.uint8).reshape(-1, len(self._bytes))
        for lo in range(0, len(values), _STEP):
            part = np.empty(min(_STEP, len(values) - lo), np.uint8)
            first = start // len(self._bytes) + lo
            for place, stream in enumerate(self._bytes):
                stream.read_into(place * self._count + first, part.data)
                values[lo : lo + len(part), place] = part
