"""Decompression of the chunks of HDF5 and zarr, outside of their locks: each function here may run on any thread.

The decoders release the interpreter's lock while they work: libdeflate (package `deflate`), isal or zlib for gzip,
numcodecs for zstd and blosc, numba for lzf; the shuffle filter is undone with NumPy.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

#: Takes the bytes of a chunk and the size of the result in bytes.
Decoder = Callable[[Any, int], Any]
#: Codes of HDF5 filters.
DEFLATE, SHUFFLE, LZF, ZSTD, BLOSC = 1, 2, 32000, 32015, 32001
#: Bytes from which on numba is loaded to decompress lzf; h5py reads smaller datasets.
_WORTH_COMPILING = 2**26


def hdf5_decoders(filters: Sequence[int], itemsize: int, size: int) -> list[Decoder] | str:
    """Return the decoders of a dataset, in the order of decoding, or the reason why there are none.

    Parameters
    ----------
    filters
        Code of each filter, in the order of writing.
    itemsize
        Bytes of a value.
    size
        Bytes of all values.
    """
    decoders: list[Decoder] = []
    for code in reversed(filters):
        if code == DEFLATE:
            decoders.append(inflate_zlib)
        elif code == SHUFFLE:
            decoders.append(unshuffler(itemsize))
        elif code == LZF and size >= _WORTH_COMPILING and find_spec("numba") is not None:
            decoders.append(importlib.import_module(".lzf", __package__).decompress_lzf)
        elif code in (ZSTD, BLOSC) and (found := numcodecs_decoder({ZSTD: "zstd", BLOSC: "blosc"}[code])):
            decoders.append(found)
        else:
            return f"filter {code}"
    return decoders


def zarr_decoders(array: Any) -> list[Decoder] | str:
    """Return the decoders of a zarr array of version 2 or 3, or the reason why there are none."""
    metadata = array.metadata.to_dict()
    if metadata["zarr_format"] == 2:
        if metadata.get("filters") or metadata.get("order", "C") != "C":
            return "filters or order"
        codecs = [metadata["compressor"]] if metadata.get("compressor") else []
        names = [str(codec.get("id")) if isinstance(codec, dict) else str(codec.codec_id) for codec in codecs]
    else:
        first, *codecs = metadata["codecs"]
        if first["name"] != "bytes" or first.get("configuration", {}).get("endian", "little") != "little":
            return f"codec {first['name']}"
        names = [str(codec["name"]) for codec in codecs]
        if any(codec.get("configuration", {}).get("checksum") for codec in codecs):
            return "checksums"
    decoders = [_BY_NAME.get(name) or numcodecs_decoder(name) for name in names]
    known = [decoder for decoder in decoders if decoder is not None]
    return known if len(known) == len(names) <= 1 else f"codec {', '.join(names)}"


def inflate_zlib(content: Any, size: int) -> Any:
    """Decompress a zlib stream of `size` bytes.

    Raises
    ------
    ValueError
        If it is damaged or has another size.
    """
    deflate = _deflate()
    if deflate is None:
        return _inflate(content, size, zlib.MAX_WBITS)
    try:
        found = deflate.zlib_decompress(content, size)
    except deflate.DeflateError as error:
        raise ValueError("a compressed chunk is damaged") from error
    if len(found) != size:
        raise ValueError(f"a compressed chunk has {len(found)} bytes, expected {size}")
    return found


@cache
def streaming_zlib() -> tuple[Any, bool]:
    """Return the module that decompresses streams in parts, and True if it is as fast as `inflate_zlib`: isal is."""
    try:
        return importlib.import_module("isal.isal_zlib"), True
    except ImportError:
        return zlib, False


def inflate_gzip(content: Any, size: int) -> Any:
    """Decompress a gzip file of `size` bytes; errors as `inflate_zlib`."""
    return _inflate(content, size, zlib.MAX_WBITS | 16)


@cache
def unshuffler(itemsize: int) -> Decoder:
    """Return a function that puts the bytes of each value together again: the filter stores all first bytes first."""

    def unshuffle(content: Any, size: int) -> Any:
        if len(content) != size:
            raise ValueError(f"a chunk has {len(content)} bytes, expected {size}")
        stored = np.frombuffer(content, np.uint8).reshape(itemsize, -1)
        values = np.empty((stored.shape[1], itemsize), np.uint8)
        for place in range(itemsize):  # three times as fast as a copy of the transpose
            values[:, place] = stored[place]
        return values

    return unshuffle


def numcodecs_decoder(name: str) -> Decoder | None:
    """Return the decoder of zstd or blosc, None if numcodecs is not installed."""
    if name not in ("zstd", "blosc"):
        return None
    try:
        codec = importlib.import_module(f"numcodecs.{name}")
    except ImportError:
        return None

    def decode(content: Any, size: int) -> Any:
        if _claimed_size(name, content) != size:  # the codec would allocate what the content claims
            raise ValueError("a compressed chunk is damaged")
        try:
            return codec.decompress(content)
        except Exception as error:
            raise ValueError("a compressed chunk is damaged") from error

    return decode


def _claimed_size(name: str, content: Any) -> int:
    """Return the decompressed size that the header of a blosc or zstd buffer states, -1 if there is none."""
    if name == "blosc":
        return int.from_bytes(content[4:8], "little") if len(content) >= 16 else -1
    if len(content) < 9 or bytes(content[:4]) != b"\x28\xb5\x2f\xfd":
        return -1
    single, wide, extra = content[4] >> 5 & 1, content[4] >> 6, (0, 1, 2, 4)[content[4] & 3]
    length = (single, 2, 4, 8)[wide]
    start = 5 + (0 if single else 1) + extra
    return int.from_bytes(content[start : start + length], "little") + (256 if length == 2 else 0) if length else -1


def _inflate(content: Any, size: int, window: int) -> Any:
    library, _ = streaming_zlib()
    stream = library.decompressobj(window)
    try:
        found = stream.decompress(content, size + 1)
    except library.error as error:
        raise ValueError(f"a compressed chunk is damaged ({error})") from error
    if len(found) != size or not stream.eof:
        raise ValueError(f"a compressed chunk is damaged: it has not the {size} bytes that were stored")
    return found


@cache
def _deflate() -> Any:
    # the package, None if it is not installed
    try:
        return importlib.import_module("deflate")
    except ImportError:
        return None


_BY_NAME: dict[str, Decoder] = {"gzip": inflate_gzip, "zlib": inflate_zlib}
