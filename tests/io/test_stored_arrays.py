"""Chunks that are decoded on threads are what h5py and zarr read; what cannot be decoded here is left to them."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest

from lmm_gpu.io import chunk_codecs, chunk_extents, stored_arrays
from lmm_gpu.io.chunk_extents import Extent, InflatedExtent
from lmm_gpu.io.stored_arrays import StoredArray, read_rows, stored_array, why_not

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

RNG = np.random.default_rng(11)
VALUES = RNG.poisson(3.0, 1003)
TABLE = RNG.poisson(2.0, (53, 37)).astype("float32")
PIECES = [slice(0, 7), slice(7, 300), slice(300, 301), slice(301, 1003), slice(5, 5), slice(0, 2000)]


def assert_read_alike(found, values):
    assert isinstance(found, StoredArray)
    for piece in PIECES:
        for part in (found[piece], read_rows([found, found], piece)[1]):
            np.testing.assert_array_equal(part, values[piece])
            assert part.dtype == values.dtype


def hdf5_options():
    plain = [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}, {"shuffle": True}]
    plugin = pytest.importorskip("hdf5plugin")
    lzf = [{"compression": "lzf"}, {"compression": "lzf", "shuffle": True}]
    blosc = [dict(plugin.Blosc(cname="lz4", shuffle=1)), dict(plugin.Blosc(cname="zstd"))]
    return [*plain, dict(plugin.Zstd()), *blosc, *lzf]


@pytest.fixture
def any_size(monkeypatch):
    """Small datasets are decoded here too."""
    pytest.importorskip("numba")
    monkeypatch.setattr(chunk_codecs, "_WORTH_COMPILING", 0)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("options", range(9))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("deflate", [True, False])
def test_hdf5(tmp_path, monkeypatch, any_size, dtype, options, threads, deflate):
    monkeypatch.setattr(stored_arrays, "workers", lambda: threads)
    if not deflate:
        monkeypatch.setattr(chunk_codecs, "_deflate", lambda: None)
        monkeypatch.setattr(chunk_codecs, "streaming_zlib", lambda: (zlib, False))
    values = VALUES.astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(64,), **hdf5_options()[options])
    with h5py.File(tmp_path / "a.h5") as file:
        assert_read_alike(stored_array(file["x"]), values)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd", "blosc"])
def test_zarr(tmp_path, version, codec):
    v2 = {
        "none": None,
        "gzip": {"id": "gzip", "level": 1},
        "zstd": {"id": "zstd", "level": 1},
        "blosc": {"id": "blosc"},
    }
    v3 = {
        "none": None,
        "gzip": zarr.codecs.GzipCodec(),
        "zstd": zarr.codecs.ZstdCodec(),
        "blosc": zarr.codecs.BloscCodec(),
    }
    import numcodecs

    compressor = v3[codec] if version == 3 else v2[codec] and numcodecs.get_codec(v2[codec])
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    for name, values, chunks in (("x", VALUES, (100,)), ("table", TABLE, (10, 8))):
        array = group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=compressor)
        array[:] = values
        assert_read_alike(stored_array(zarr.open_group(tmp_path / "a.zarr", mode="r")[name]), values)


@pytest.mark.parametrize("chunks", [(1, 1), (53, 37), (7, 5), (60, 3), (10, 37)])
def test_tables(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=TABLE, chunks=chunks, compression="gzip", maxshape=(None, None))
    with h5py.File(tmp_path / "a.h5") as file:
        assert_read_alike(stored_array(file["x"]), TABLE)


@pytest.mark.parametrize("part", [2**21, 1000, 1])
@pytest.mark.parametrize("values", [VALUES, TABLE])
def test_without_chunks(tmp_path, monkeypatch, values, part):
    monkeypatch.setattr(stored_arrays, "_PART", part)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("before", data=np.ones(3))
        file.create_dataset("x", data=values)
    with h5py.File(tmp_path / "a.h5") as file:
        assert_read_alike(stored_array(file["x"]), values)


def test_small_values_in_the_header_of_a_dataset_are_left_to_h5py(tmp_path):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((1003,))
        h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT64, space, plist))[:] = VALUES
    with h5py.File(tmp_path / "a.h5") as file:
        assert why_not(file["x"]) == "no chunks"
        np.testing.assert_array_equal(read_rows([stored_array(file["x"])], slice(1, 40))[0], VALUES[1:40])


# --- what is left to h5py and zarr ----------------------------------------------------------------


def made(tmp_path, **options):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", **{"data": VALUES, "chunks": (64,)} | options)
    return h5py.File(path)["x"]


REASONS = {
    "few values": ({"compression": "lzf"}, "filter 32000"),
    "a checksum": ({"fletcher32": True}, "filter 3"),
    "scale and offset": ({"scaleoffset": 0}, "filter 6"),
    "big-endian": ({"dtype": ">f8"}, "byte order"),
    "texts": ({"data": ["a", "b"], "chunks": (1,)}, "type object"),
    "truth values": ({"data": VALUES > 2}, "type bool"),
    "never written": ({"data": None, "shape": (1003,), "dtype": "i8", "chunks": None, "fillvalue": 7}, "no chunks"),
    "no values": ({"data": np.zeros(0), "chunks": (1,), "maxshape": (None,)}, "no values"),
}


@pytest.mark.parametrize("name", REASONS)
def test_left_to_h5py(tmp_path, name):
    options, reason = REASONS[name]
    dataset = made(tmp_path, **options)
    assert why_not(dataset) == reason
    assert stored_array(dataset) is dataset
    np.testing.assert_array_equal(read_rows([dataset], slice(1, 40))[0], np.asarray(dataset[1:40]))


def test_lzf_without_numba_is_left_to_h5py(tmp_path, monkeypatch, any_size):
    dataset = made(tmp_path, compression="lzf")
    assert why_not(dataset) is None
    monkeypatch.setattr(chunk_codecs, "find_spec", lambda name: None)
    assert why_not(dataset) == "filter 32000"


def test_values_in_other_files_are_left_to_h5py(tmp_path):
    made(tmp_path)
    layout = h5py.VirtualLayout((1003,), VALUES.dtype)
    layout[:] = h5py.VirtualSource(str(tmp_path / "a.h5"), "x", (1003,))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (8,), "i8", external=[(str(tmp_path / "c"), 0, 64)])
        assert {why_not(file[name]) for name in file} == {"values in other files"}
    assert why_not(_Virtual(made(tmp_path))) == "values in other files"


class _Virtual:
    """A dataset with chunks that says that it is virtual."""

    is_virtual = True

    def __init__(self, dataset):
        self._dataset = dataset

    def __getattr__(self, name):
        return getattr(self._dataset, name)


def test_files_in_memory_and_with_a_user_block_are_left_to_h5py(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w", driver="core", backing_store=False) as file:
        file.create_dataset("x", data=VALUES, chunks=(64,))
        assert why_not(file["x"]) == "driver core"
    with h5py.File(tmp_path / "u.h5", "w", userblock_size=512) as file:
        file.create_dataset("x", data=VALUES, chunks=(64,))
        assert why_not(file["x"]) == "driver sec2"


def test_a_chunk_that_lacks_a_filter_is_read_by_h5py(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", shape=(1003,), dtype="i8", chunks=(64,), compression="gzip", fillvalue=7)
        dataset[:128] = VALUES[:128]
        dataset.id.write_direct_chunk((128,), VALUES[128:192].tobytes(), filter_mask=1)  # stored as it is
    with h5py.File(path) as file:
        found = stored_array(file["x"])
        expected = np.concatenate([VALUES[:192], np.full(1003 - 192, 7)])  # and chunks that are not there
        assert_read_alike(found, expected)


@pytest.mark.parametrize("options", [{"shards": (200,), "chunks": (100,)}, {"chunks": (100,), "dtype": ">i8"}])
def test_left_to_zarr(tmp_path, options):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    array = group.create_array("x", shape=(1003,), **{"dtype": "int64"} | options)
    array[:] = VALUES
    assert why_not(array) is not None
    np.testing.assert_array_equal(read_rows([stored_array(array)], slice(3, 900))[0], VALUES[3:900])
    in_memory = zarr.create_array(zarr.storage.MemoryStore(), shape=(10,), dtype="int64")
    assert why_not(in_memory) == "store or shards"


def test_filters_of_zarr_2_are_left_to_zarr(tmp_path):
    import numcodecs

    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    array = group.create_array("x", shape=(1003,), dtype="int64", chunks=(100,), filters=[numcodecs.Delta("int64")])
    array[:] = VALUES
    assert why_not(array) == "filters or order"
    np.testing.assert_array_equal(read_rows([stored_array(array)], slice(3, 900))[0], VALUES[3:900])


# --- memory and damage ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1003, 400, 64])
def test_each_chunk_is_decoded_once(tmp_path, monkeypatch, chunk):
    counted = []
    real = chunk_codecs.inflate_zlib
    monkeypatch.setattr(chunk_codecs, "inflate_zlib", lambda *given: counted.append(1) or real(*given))
    made(tmp_path, compression="gzip", chunks=(chunk,))
    with h5py.File(tmp_path / "a.h5") as file:
        found = stored_array(file["x"])
        parts = [found[lo : lo + 50] for lo in range(0, 1003, 50)]
    np.testing.assert_array_equal(np.concatenate(parts), VALUES)
    assert len(counted) == -(-1003 // chunk)


def test_memory_is_used_again_once_nothing_refers_to_it(tmp_path):
    made(tmp_path, chunks=(100,), compression="gzip")
    with h5py.File(tmp_path / "a.h5") as file:
        found = stored_array(file["x"])
        parts = [found[lo : lo + 50][1:] for lo in range(0, 1000, 50)]  # views of what was read
        matrices = [part.reshape(7, 7) for part in parts]
        del parts
        np.testing.assert_array_equal(np.stack(matrices).reshape(20, 49), VALUES[:1000].reshape(20, 50)[:, 1:])
        del matrices
        places = {found[lo : lo + 50].ctypes.data for lo in range(0, 1000, 50)}
    assert len(places) == 1


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}])
@pytest.mark.parametrize("chunk", [1003, 400, 170])
@pytest.mark.parametrize("isal", [True, False])
def test_very_large_chunks_are_read_in_parts(tmp_path, monkeypatch, options, chunk, isal):
    monkeypatch.setattr(stored_arrays, "_LARGE", 0)
    monkeypatch.setattr(stored_arrays, "_VERY_LARGE", 0)
    monkeypatch.setattr(chunk_extents, "_STEP", 40)
    if not isal:
        monkeypatch.setattr(chunk_extents, "streaming_zlib", lambda: (zlib, False))
    made(tmp_path, chunks=(chunk,), **options)
    with h5py.File(tmp_path / "a.h5") as file:
        found = stored_array(file["x"])
        monkeypatch.setattr(Extent, "content", lambda extent: pytest.fail("read as a whole"))
        assert_read_alike(found, VALUES)
        starts = []
        real = InflatedExtent._restart
        monkeypatch.setattr(InflatedExtent, "_restart", lambda extent: starts.append(1) or real(extent))
        found = stored_array(file["x"])
        parts = [found[lo : lo + 50] for lo in range(0, 1003, 50)]
    np.testing.assert_array_equal(np.concatenate(parts), VALUES)
    streams = VALUES.itemsize if options.get("shuffle") else 1
    assert len(starts) == (streams * -(-1003 // chunk) if options else 0)  # none is decompressed twice


@pytest.mark.parametrize("isal", [True, False])
def test_damage_of_a_chunk_that_is_read_in_parts(tmp_path, monkeypatch, isal):
    monkeypatch.setattr(stored_arrays, "_LARGE", 0)
    monkeypatch.setattr(stored_arrays, "_VERY_LARGE", 0)
    if not isal:
        monkeypatch.setattr(chunk_extents, "streaming_zlib", lambda: (zlib, False))
    made(tmp_path, chunks=(1003,), compression="gzip").file.close()
    content = (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        found = stored_array(file["x"])
        extent = found.extent((0,))
        for damage in (bytes(20), b"\xff" * 20, zlib.compress(b"short")):
            at = extent.start + (0 if len(damage) < 20 else extent.size // 2)
            (tmp_path / "a.h5").write_bytes(content[:at] + damage + content[at + len(damage) :])
            try:
                assert found[0:1003].shape == (1003,)
            except ValueError as error:
                assert "a compressed chunk is damaged" in str(error)
            else:
                assert len(damage) == 20


@pytest.mark.parametrize("options", range(9))
def test_damaged_chunks_are_refused_or_read_as_h5py_does(tmp_path, any_size, options):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=VALUES, chunks=(500,), **hdf5_options()[options])
    with h5py.File(path) as file:
        places = []
        file["x"].id.chunk_iter(places.append)
    content = path.read_bytes()
    is_plain = not hdf5_options()[options].get("compression")
    for place, share in itertools.product(places, (0, 0.3, 0.99)):
        damaged = bytearray(content)
        at = place.byte_offset + int(share * place.size)
        damaged[at : at + 4] = bytes(255 - byte for byte in damaged[at : at + 4])
        path.write_bytes(damaged)
        with h5py.File(path) as file:
            try:
                found = stored_array(file["x"])[0:1003]
            except ValueError as error:
                assert not is_plain and "chunk" in str(error)
            else:  # h5py reads it too, and the same
                np.testing.assert_array_equal(found, file["x"][:])


def test_chunks_outside_the_file_are_refused(tmp_path):
    made(tmp_path).file.close()
    with h5py.File(tmp_path / "a.h5") as file:
        found = stored_array(file["x"])
        (tmp_path / "a.h5").write_bytes(b"")
        with pytest.raises(ValueError, match="the file ends before a chunk does"):
            found[0:1003]


def test_lzf_that_is_none_stays_within_its_output():
    lzf = pytest.importorskip("lmm_gpu.io.lzf")
    content = b"\x03abcd" + b"\x20\x03" + b"\xe0\x04\x00"  # four letters, three of them again, the last one 13 times
    assert lzf.decompress_lzf(content, 20).tobytes() == b"abcd" + b"abc" + 13 * b"c"
    for damaged in (content[:-1], content[:3], b"\x20\x00" + content, content + b"\x00a", b""):
        with pytest.raises(ValueError, match="compressed chunk is damaged"):
            lzf.decompress_lzf(damaged, 20)
    random = np.random.default_rng(3)
    for size in (0, 1, 50, 3000):
        with pytest.raises(ValueError, match="compressed chunk is damaged"):
            lzf.decompress_lzf(random.integers(32, 256, 200, np.uint8).tobytes(), size)


def test_bombs_are_refused():
    bomb = zlib.compress(bytes(10**7))
    for deflate in (chunk_codecs._deflate, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunk_codecs, "_deflate", deflate)
            for size in (10**6, 10**8):
                with pytest.raises(ValueError, match="compressed chunk"):
                    chunk_codecs.inflate_zlib(bomb, size)
    zstd = pytest.importorskip("numcodecs.zstd").compress(bytes(10**7))
    with pytest.raises(ValueError, match="compressed chunk is damaged"):
        chunk_codecs.numcodecs_decoder("zstd")(zstd, 10**6)
    assert chunk_codecs.numcodecs_decoder("zstd")(zstd, 10**7) == bytes(10**7)
