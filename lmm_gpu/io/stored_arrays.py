"""Arrays in files whose chunks are read and decompressed on threads.

h5py decompresses under one lock, on one thread. Here the places of all chunks are looked up once; then threads read
them from the file and decode them, without HDF5. What this cannot read (`why_not`) is left to h5py and zarr.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.threads import workers
from .broken_files import check_size
from .buffers import Buffers
from .chunk_codecs import Decoder, hdf5_decoders, inflate_gzip, inflate_zlib, streaming_zlib, unshuffler, zarr_decoders
from .chunk_extents import Extent, InflatedExtent, OpenFile, ShuffledExtent

#: Bytes from which on a chunk is read in parts if that is possible: where it takes no longer, and where it does.
_LARGE, _VERY_LARGE = 2**21, 2**25
#: Bytes that a thread reads at a time of a chunk that is not compressed.
_PART = 2**21
#: Position of a chunk in the grid of chunks.
Place = tuple[int, ...]


@dataclass(eq=False)
class StoredArray:
    """An array in a file; ``array[lo:hi]`` reads rows.

    Chunks that only a part of the rows is taken of are kept until the next read, so that reading all rows in order
    decodes each chunk once, whatever its size. Chunks of whole rows are read in parts if they are not compressed, and
    decompressed in parts if they are very large and compressed with gzip. An array without chunks is one chunk.

    Attributes
    ----------
    shape, dtype, chunks
        Of the array.
    extent
        Returns the place of a chunk in a file; None for one that is not there.
    decoders
        Applied to the bytes one after the other.
    fallback
        The array of h5py or zarr, for chunks that are not there.
    buffers
        Memory of the rows that are read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    extent: Callable[[Place], Extent | None]
    decoders: Sequence[Decoder]
    fallback: Any = field(repr=False)
    buffers: Buffers = field(default_factory=Buffers, repr=False)
    _kept: dict[Place, np.ndarray] = field(default_factory=dict, repr=False)
    _open: dict[Place, InflatedExtent | ShuffledExtent] = field(default_factory=dict, repr=False)

    def __getattr__(self, name: str) -> Any:
        """Return what h5py or zarr know of the array, such as its attributes and its file."""
        if name == "fallback" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.fallback, name)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return read_rows([self], rows)[0]

    def tasks(self, lo: int, hi: int, out: np.ndarray) -> list[Callable[[], None]]:
        """Return what has to be done to fill `out` with the rows from `lo` to `hi`."""
        step = self.chunks[0]
        first, last = lo // step, -(-hi // step)
        across = [range(-(-size // chunk)) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        kept, self._kept = self._kept, {}
        self._open = {place: stream for place, stream in self._open.items() if first <= place[0] < last}
        tasks: list[Callable[[], None]] = []
        at_once = self._rows_at_once
        for place in itertools.product(range(first, last), *across):
            begin, end = max(lo, place[0] * step), min(hi, place[0] * step + step)
            for start in range(begin, end, at_once):
                rows = slice(start, min(start + at_once, end))
                tasks.append(partial(self._fill, place, rows, out[rows.start - lo : rows.stop - lo], kept.get(place)))
        return tasks

    @cached_property
    def _rows_at_once(self) -> int:
        """Rows of a chunk that one thread reads: threads share the large ones that are not compressed."""
        if self.decoders or self.chunks[1:] != self.shape[1:]:
            return self.chunks[0]
        return max(1, _PART // (prod(self.chunks[1:]) * self.dtype.itemsize))

    def _fill(self, place: Place, rows: slice, out: np.ndarray, chunk: np.ndarray | None) -> None:
        """Fill `out` with `rows` of the array, of the columns that are in the chunk at `place`, kept or not."""
        starts = [at * size for at, size in zip(place, self.chunks, strict=True)]
        ends = [min(start + size, full) for start, size, full in zip(starts, self.chunks, self.shape, strict=True)]
        begin, end = rows.start - starts[0], rows.stop - starts[0]
        if chunk is None and self._partial and (extent := self._in_parts(place)) is not None:
            extent.read_into(begin * out[:1].nbytes, out.data.cast("B"))
            return
        chunk = self._decoded(place, starts, ends) if chunk is None else chunk
        inner = [slice(0, end - start) for start, end in zip(starts[1:], ends[1:], strict=True)]
        outer = [slice(start, end) for start, end in zip(starts[1:], ends[1:], strict=True)]
        out[(slice(None), *outer)] = chunk[(slice(begin, end), *inner)]
        if rows.stop < ends[0]:
            self._kept[place] = chunk

    @cached_property
    def _partial(self) -> bool:
        """True if chunks are read in parts: those that are not compressed, or too large to be decoded as a whole."""
        if self.chunks[1:] != self.shape[1:]:
            return False
        plain = list(self.decoders) in ([inflate_zlib], [inflate_gzip])
        least = _LARGE if plain and streaming_zlib()[1] else _VERY_LARGE
        return not self.decoders or ((plain or self._shuffled) and self._chunk_bytes >= least)

    @property
    def _shuffled(self) -> bool:
        return list(self.decoders) == [inflate_zlib, unshuffler(self.dtype.itemsize)]

    @property
    def _chunk_bytes(self) -> int:
        return prod(self.chunks) * self.dtype.itemsize

    def _in_parts(self, place: Place) -> Extent | InflatedExtent | ShuffledExtent | None:
        """Return a chunk that is read in parts; None if it is not there."""
        if not self.decoders:
            extent = self.extent(place)
            if extent is not None and extent.size != self._chunk_bytes:
                raise ValueError(f"a chunk has {extent.size} bytes, expected {self._chunk_bytes}")
            return extent
        if place not in self._open and (extent := self.extent(place)) is not None:
            whole, itemsize = self._chunk_bytes, self.dtype.itemsize
            self._open[place] = ShuffledExtent(extent, whole, itemsize) if self._shuffled else InflatedExtent(extent)
        return self._open.get(place)

    def _decoded(self, place: Place, starts: Sequence[int], ends: Sequence[int]) -> np.ndarray:
        extent = self.extent(place)
        if extent is None:  # the values of chunks that are not there, and of those that lack a filter
            part = self.fallback[tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))]
            return np.asarray(part)
        size, content = self._chunk_bytes, extent.content()
        for decode in self.decoders:
            content = decode(content, size)
        values = np.frombuffer(content, self.dtype)
        if values.nbytes != size:
            raise ValueError(f"a chunk has {values.nbytes} bytes, expected {size}")
        return values.reshape(self.chunks)


def read_rows(arrays: Sequence[Any], rows: slice) -> list[np.ndarray]:
    """Read the same rows of several arrays, the chunks of all of them at once.

    Parameters
    ----------
    arrays
        `StoredArray`, or arrays of h5py or zarr.
    rows
        Without a step.
    """
    found, tasks = [], []
    for array in arrays:
        lo, hi, _ = rows.indices(array.shape[0])
        if not isinstance(array, StoredArray):
            found.append(np.asarray(array[lo:hi]))
            continue
        out = array.buffers.empty((max(hi - lo, 0), *array.shape[1:]), array.dtype)
        tasks += array.tasks(lo, hi, out) if hi > lo else []
        found.append(out)
    _run(tasks)
    return found


def stored_array(array: Any, extent: Callable[[Place], Extent | None] | None = None) -> Any:
    """Return an array of h5py or zarr as a `StoredArray` if its chunks can be decoded here, else as it is.

    `extent` of a `StoredArray` of the same array of the same file saves to look up all chunks.
    """
    reason = why_not(array)
    if reason is not None:
        return array
    places = extent or (_hdf5_extents(array) if hasattr(array, "id") else _zarr_extents(array))
    decoders = _decoders(array)
    assert not isinstance(decoders, str)
    chunks = tuple(array.chunks or array.shape)
    return StoredArray(tuple(array.shape), np.dtype(array.dtype), chunks, places, decoders, array)


def why_not(array: Any) -> str | None:
    """Return the reason why the chunks of an array cannot be decoded here; None if they can."""
    dtype = array.dtype
    if not hasattr(os, "pread"):
        return "platform"
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iuf":
        return f"type {dtype}"
    if not dtype.isnative:
        return "byte order"
    if not array.shape or 0 in array.shape:
        return "no values"
    if array.chunks:
        check_size(prod(array.chunks) * dtype.itemsize, "a chunk of its values")
    if hasattr(array, "id"):
        if array.is_virtual or array.external:
            return "values in other files"
        if not array.chunks and array.id.get_offset() is None:
            return "no chunks"  # in the header of the dataset, or never written
        file = array.file
        if file.driver != "sec2" or file.userblock_size or not Path(file.filename).is_file():
            return f"driver {file.driver}"
    elif not _has_chunk_files(array):
        return "store or shards"
    decoders = _decoders(array)
    return decoders if isinstance(decoders, str) else None


def _has_chunk_files(array: Any) -> bool:
    from .zarr_files import chunk_files

    return chunk_files(array) is not None and not getattr(array, "shards", None)


def _decoders(array: Any) -> list[Decoder] | str:
    if not hasattr(array, "id"):
        return zarr_decoders(array)
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    return hdf5_decoders(filters, array.dtype.itemsize, array.size * array.dtype.itemsize)


def _hdf5_extents(dataset: Any) -> Callable[[Place], Extent | None]:
    file, chunks = OpenFile(dataset.file.filename), dataset.chunks
    if not chunks:
        whole = Extent(file, dataset.id.get_offset(), dataset.id.get_storage_size())
        return lambda place: whole
    found: dict[Place, tuple[int, int]] = {}  # by the first position of each chunk

    def note(info: Any) -> None:
        if not info.filter_mask:
            found[info.chunk_offset] = info.byte_offset, info.size

    def extent(place: Place) -> Extent | None:
        stored = found.get(tuple(at * size for at, size in zip(place, chunks, strict=True)))
        return None if stored is None else Extent(file, *stored)

    dataset.id.chunk_iter(note)
    return extent


def _zarr_extents(array: Any) -> Callable[[Place], Extent | None]:
    from .zarr_files import chunk_files

    path = chunk_files(array)

    def extent(place: Place) -> Extent | None:
        try:
            file = OpenFile(path(place))
        except FileNotFoundError:
            return None
        return Extent(file, 0, file.size)

    return extent


def _run(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks, on this thread and on others: each takes the next one when it is done, as they differ in size."""
    left = deque(tasks)
    others = min(workers(), len(tasks)) - 1
    futures = [_pool(os.getpid(), workers()).submit(_do_some, left) for _ in range(others)]
    try:
        _do_some(left)
    finally:
        left.clear()
        wait(futures)
    for future in futures:
        future.result()


def _do_some(tasks: deque[Callable[[], None]]) -> None:
    while True:
        try:
            task = tasks.popleft()
        except IndexError:  # none is left
            return
        try:
            task()
        except BaseException:
            tasks.clear()
            raise


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"lmm_gpu-chunks-{process}")
