"""AnnData files of other versions and programs, raw, filters, and files that lead elsewhere or are incomplete."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lmm_gpu
from lmm_gpu.io.source import open_source

anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

N, M = 30, 6
COUNTS = np.random.default_rng(5).poisson(1.2, (N, M)).astype("float32")
CELLS = [f"c{cell}" for cell in range(N)]
OBS = pd.DataFrame(
    {"donor": pd.Categorical([f"D{cell % 4}" for cell in range(N)]), "x": np.linspace(0, 1, N)}, index=CELLS
)
GENES = [f"g{gene}" for gene in range(M)]


def make(kind=sparse.csr_array):
    data = anndata.AnnData(kind(COUNTS), OBS, pd.DataFrame(index=GENES))
    data.raw = anndata.AnnData(kind(np.hstack([COUNTS, COUNTS]) * 2), OBS, pd.DataFrame(index=[*GENES, *"abcdef"]))
    return data


def read(*args, **options):
    with open_source(*args, **options) as source:
        parts = [part.toarray() if sparse.issparse(part) else np.asarray(part) for _, part in source.chunks(7)]
        return source, np.concatenate(parts, axis=1 if source.by_genes else 0)


def assert_whole(path, **options):
    source, found = read(path, **options)
    np.testing.assert_array_equal(found, COUNTS)
    assert source.features == tuple(GENES) and source.obs.index.tolist() == CELLS
    assert source.obs["donor"].astype(str).tolist() == OBS["donor"].astype(str).tolist()
    np.testing.assert_array_equal(source.obs["x"], OBS["x"])


# --- other versions and programs


@pytest.mark.parametrize("bare", [["var"], ["obs", "var"], ["obs", "var", "X"], ["obs", "obs/donor", "obs/x"]])
def test_no_encoding_type(tmp_path, bare):
    make().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        for place in bare:
            for name in ("encoding-type", "encoding-version", "shape"):
                file[place].attrs.pop(name, None)
    assert_whole(tmp_path / "a.h5ad")


def test_categories_of_the_first_group_format(tmp_path):
    make().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        codes, levels = file["obs/donor/codes"][()], file["obs/donor/categories"].asstr()[()]
        del file["obs/donor"]
        file["obs/donor"], file["obs/__categories/donor"] = codes, levels.tolist()
        file["obs"].attrs.pop("encoding-type")
    assert_whole(tmp_path / "a.h5ad")


def test_compound_tables_of_old_anndata(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["X"] = COUNTS
        obs = np.zeros(N, dtype=[("index", "S8"), ("donor", "i1"), ("x", "f8")])
        obs["index"], obs["donor"], obs["x"] = CELLS, OBS["donor"].cat.codes, OBS["x"]
        var = np.zeros(M, dtype=[("index", "S8")])
        var["index"] = GENES
        file["obs"], file["var"] = obs, var
        file["uns/donor_categories"] = np.array(OBS["donor"].cat.categories.tolist(), dtype="S")
    assert_whole(tmp_path / "a.h5ad")


def test_old_compound_sparse(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        matrix = sparse.csc_array(COUNTS)
        for name in ("data", "indices", "indptr"):
            file[f"X/{name}"] = getattr(matrix, name)
        file["X"].attrs["h5sparse_format"], file["X"].attrs["h5sparse_shape"] = "csc", COUNTS.shape
        anndata.io.write_elem(file, "obs", OBS)
        anndata.io.write_elem(file, "var", pd.DataFrame(index=GENES))
    assert_whole(tmp_path / "a.h5ad")


# --- raw


@pytest.mark.parametrize("how", [{"use_raw": True}, {"layer": "raw"}, {"layer": "raw", "use_raw": True}])
@pytest.mark.parametrize("place", ["memory", "h5ad", "zarr"])
def test_raw(tmp_path, how, place):
    data = make()
    if place != "memory":
        getattr(data, f"write_{place}")(tmp_path / f"a.{place}")
        data = tmp_path / f"a.{place}"
    source, found = read(data, **how)
    np.testing.assert_array_equal(found, np.hstack([COUNTS, COUNTS]) * 2)
    assert source.features == (*GENES, *"abcdef")
    fit = lmm_gpu.summarize(data, "~ x + (1 | donor)", progress=False, is_counts=False, **how)
    np.testing.assert_allclose(fit.Ysum, np.hstack([COUNTS, COUNTS]).sum(axis=0) * 2)


def test_raw_that_is_not_there(tmp_path):
    data = make()
    data.layers["raw"] = COUNTS * 3
    np.testing.assert_array_equal(read(data, layer="raw")[1], COUNTS * 3)
    with pytest.raises(ValueError, match="use_raw=True and layer='x'"):
        open_source(data, use_raw=True, layer="x")
    data.raw = None
    data.write_h5ad(tmp_path / "a.h5ad")
    for given in (data, tmp_path / "a.h5ad"):
        with pytest.raises(ValueError, match=r"use_raw=True, but .* has no raw: leave it out, or name a layer"):
            open_source(given, use_raw=True)
    with pytest.raises(ValueError, match="got use_raw=True, but only AnnData"):
        open_source(COUNTS, OBS, use_raw=True)


# --- filters


def test_filters_of_hdf5plugin(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    for options in (hdf5plugin.Zstd(), hdf5plugin.Blosc(), hdf5plugin.LZ4()):
        make().write_h5ad(tmp_path / "a.h5ad")
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            del file["X"]
            anndata.io.write_elem(file, "X", sparse.csr_array(COUNTS), dataset_kwargs=dict(options))
        assert_whole(tmp_path / "a.h5ad")


def test_a_filter_that_nothing_has(tmp_path, monkeypatch):
    make().write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    monkeypatch.setattr("h5py.h5z.filter_avail", lambda code: False)
    with pytest.raises(ValueError, match=r"compressed with the filter 1 \(deflate\), .* pip install hdf5plugin"):
        open_source(tmp_path / "a.h5ad")


# --- files that lead elsewhere


def test_links_and_values_in_other_files_are_refused(tmp_path):
    make().write_h5ad(tmp_path / "a.h5ad")
    shutil.copy(tmp_path / "a.h5ad", tmp_path / "other.h5ad")

    def refused(change, says):
        shutil.copy(tmp_path / "other.h5ad", tmp_path / "a.h5ad")
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            change(file)
        with pytest.raises(ValueError, match=f"cannot read .*a.h5ad: {says}"):
            read(tmp_path / "a.h5ad")

    def replace(place, link):
        def change(file):
            del file[place]
            file[place] = link

        return change

    def through(file):
        del file["X"]
        file["elsewhere"], file["X"] = h5py.ExternalLink("other.h5ad", "/X"), h5py.SoftLink("/elsewhere")

    for place in ("X", "obs", "X/data", "obs/x", "obs/donor/codes"):
        refused(replace(place, h5py.ExternalLink("other.h5ad", f"/{place}")), f"/{place} is a link to another file")
    refused(through, "/X leads to another file")

    def virtual(file):
        layout = h5py.VirtualLayout(file["X/data"].shape, file["X/data"].dtype)
        layout[:] = h5py.VirtualSource("nowhere.h5ad", "X/data", file["X/data"].shape)
        del file["X/data"]
        file.create_virtual_dataset("X/data", layout)

    def external(file):
        shape, dtype = file["X/data"].shape, file["X/data"].dtype
        del file["X/data"]
        file.create_dataset("X/data", shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])

    def never_written(file):
        shape, dtype = file["X/data"].shape, file["X/data"].dtype
        del file["X/data"]
        file.create_dataset("X/data", shape, dtype, chunks=(16,))

    def half_written(file):
        never_written(file)
        file["X/data"][:16] = 1

    refused(virtual, "/X/data keeps its values in other files")
    refused(external, "/X/data keeps its values in other files")
    refused(never_written, "/X/data has no stored values")
    refused(half_written, "/X/data lacks some of its values")


@pytest.fixture(params=[2, 3])
def folder(request, tmp_path):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=request.param)
    anndata.io.write_elem(root, "X", sparse.csr_array(COUNTS), dataset_kwargs={"chunks": (16,)})
    anndata.io.write_elem(root, "obs", OBS.assign(zero=0.0, never=False, name=CELLS))
    anndata.io.write_elem(root, "var", pd.DataFrame(index=GENES))
    assert_whole(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def chunks_of(folder, place):
    return sorted(
        path for path in (folder / place).rglob("*") if path.is_file() and not path.name.startswith((".z", "zarr"))
    )


@pytest.mark.parametrize("place", ["X/data", "X/indices", "X/indptr", "obs/donor/codes", "obs/_index", "var/_index"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_missing_chunk_is_refused(folder, place, which):
    chunks_of(folder, place)[which].unlink()
    with pytest.raises(
        ValueError, match=f"cannot read .*a.zarr: ({place} has no chunk .*: the copy is incomplete|indptr runs)"
    ):
        read(folder)


def test_columns_of_zeros_have_no_chunks(folder, caplog):
    assert not chunks_of(folder, "obs/never")  # as zarr writes them
    source, _ = read(folder)
    assert (source.obs["zero"] == 0).all() and not source.obs["never"].any()
    line = next(record.getMessage() for record in caplog.records if "leaves out" in record.getMessage())
    assert "obs/zero (1 of 1 chunks, read as 0.0)" in line and "obs/never" in line and "donor" not in line


def test_a_missing_chunk_of_a_column_is_read_as_its_fill_value_with_a_line(folder, caplog):
    array = zarr.open_group(folder, mode="r+")["obs"].create_array("age", shape=(N,), dtype="f8", fill_value=7.0)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    frame = zarr.open_group(folder, mode="r+")["obs"]
    frame.attrs["column-order"] = [*frame.attrs["column-order"], "age"]
    zarr.consolidate_metadata(folder)
    source, _ = read(folder)
    assert (source.obs["age"] == 7).all() and "obs/age (1 of 1 chunks, read as 7.0)" in caplog.text


def test_links_out_of_a_folder_are_refused(folder, tmp_path):
    chunk = chunks_of(folder, "X/data")[0]
    (tmp_path / "secret").write_bytes(chunk.read_bytes())
    chunk.unlink()
    os.symlink(tmp_path / "secret", chunk)
    with pytest.raises(ValueError, match="is a link out of the folder"):
        open_source(folder)
    chunk.unlink()
    shutil.copy(tmp_path / "secret", chunk)
    os.symlink(folder, tmp_path / "link.zarr")  # the folder itself may be one
    assert_whole(tmp_path / "link.zarr")


# --- metadata that stop the HDF5 library ----------------------------------------------------------

LOOP = "import sys\nfor line in sys.stdin:\n    while True: pass"
CRASH = "import os, signal, sys\nfor line in sys.stdin: os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(("walk", "says"), [(LOOP, "did not read them in"), (CRASH, "crashes on them")])
def test_metadata_that_stop_the_library(tmp_path, monkeypatch, walk, says):
    from lmm_gpu.io import hdf5_files

    make().write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr(hdf5_files, "_LIMIT", 0.5)
    monkeypatch.setattr(hdf5_files, "_walker", hdf5_files._Walker())
    monkeypatch.setattr(hdf5_files, "_WALK", walk)
    with pytest.raises(ValueError, match=f"cannot read .*a.h5ad: its metadata are damaged: the HDF5 library {says}"):
        open_source(tmp_path / "a.h5ad")
    monkeypatch.undo()
    assert_whole(tmp_path / "a.h5ad")  # the next file gets a new process


def test_no_process_can_be_started(tmp_path, monkeypatch):
    from lmm_gpu.io import hdf5_files

    make().write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr(hdf5_files, "_walker", hdf5_files._Walker())
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    assert_whole(tmp_path / "a.h5ad")


def test_the_other_process_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    from lmm_gpu.io import hdf5_files

    make().write_h5ad(tmp_path / "a.h5ad")
    for name in ("h5py", "numpy", "os"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hdf5_files, "_walker", hdf5_files._Walker())
    assert_whole(tmp_path / "a.h5ad")
    assert not (tmp_path / "ran").exists()


def test_a_layer_named_raw_beside_raw_is_reported(caplog):
    data = make()
    data.layers["raw"] = data.X * 3
    with caplog.at_level("INFO"):
        _, found = read(data, layer="raw")
    np.testing.assert_array_equal(found, COUNTS * 3)
    assert "use_raw=True reads raw" in caplog.text


def test_missing_chunks_of_a_dense_zarr_are_reported(tmp_path, caplog):
    make(np.asarray).write_zarr(tmp_path / "c.zarr")
    read(tmp_path / "c.zarr")
    assert "read as zeros" not in caplog.text
    chunk = next(path for path in (tmp_path / "c.zarr" / "X").rglob("*0") if path.is_file())
    chunk.unlink()
    read(tmp_path / "c.zarr")
    assert "X has no file for 1 of its chunks" in caplog.text and "read as 0" in caplog.text
