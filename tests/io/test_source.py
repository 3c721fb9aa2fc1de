"""Every way in gives the same cells, every way to be wrong gives a sentence, and no write leaves a broken file."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from scipy import sparse

from lmm_gpu.io.files import write_json, write_table
from lmm_gpu.io.source import Source, open_source

N, M = 23, 7
COUNTS = np.random.default_rng(1).poisson(0.7, (N, M))
GENES = [f"G{gene}" for gene in range(M)]
CELLS = [f"c{cell}" for cell in range(N)]
OBS = pd.DataFrame({"cell": CELLS, "donor": [f"D{cell % 3}" for cell in range(N)]}, index=CELLS)


def values(source: Source, cells: int = 5) -> np.ndarray:
    """All rows, put together from chunks whose slices must follow each other."""
    chunks, at = [], 0
    if source.by_genes:
        parts = [(place, chunk.toarray()) for place, chunk in source.chunks(cells)]
        assert [place.start for place, _ in parts] == list(range(0, source.m, cells))
        return np.hstack([chunk for _, chunk in parts])
    for rows, chunk in source.chunks(cells):
        assert rows.start == at and rows.stop == at + chunk.shape[0] and chunk.shape[1] == source.m
        assert isinstance(chunk, (np.ndarray, sparse.csr_array))
        at = rows.stop
        chunks.append(chunk.toarray() if sparse.issparse(chunk) else chunk)
    assert at == source.n
    return np.concatenate(chunks)


def opened(*args, **options) -> np.ndarray:
    with open_source(*args, **options) as source:
        return values(source)


def refused(*args, texts: tuple[str, ...], **options) -> None:
    with pytest.raises(ValueError) as caught, open_source(*args, **options) as source:
        values(source)
    for text in texts:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def import_without(package: str):
    """importlib.import_module on a machine where a package is not installed."""
    real = importlib.import_module

    def import_module(name, *args):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args)

    return import_module


@pytest.fixture
def adata():
    anndata = pytest.importorskip("anndata")
    data = anndata.AnnData(sparse.csr_array(COUNTS), obs=OBS, var=pd.DataFrame(index=GENES))
    data.layers["dense"] = COUNTS * 2
    data.layers["csc"] = sparse.csc_array(COUNTS * 3)
    return data


@pytest.fixture(params=["h5ad", "zarr"])
def store(request, adata, tmp_path) -> Path:
    pytest.importorskip("h5py" if request.param == "h5ad" else "zarr")
    path = tmp_path / f"data.{request.param}"
    getattr(adata, f"write_{request.param}")(path)
    return path


# ---- ways in


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "bsr", "dok"])
@pytest.mark.parametrize("of", [sparse.csr_array, sparse.csr_matrix])
def test_sparse_formats(kind, of):
    np.testing.assert_array_equal(opened((of(COUNTS).asformat(kind), OBS)), COUNTS)


def test_csc_in_memory_is_read_by_genes_and_not_copied():
    matrix = sparse.csc_matrix(COUNTS)
    with open_source((matrix, OBS)) as source:
        assert source.by_genes and np.shares_memory(source.matrix.data, matrix.data)
        for as_canonical, kind in ((True, "csr"), (False, "csc")):
            chunks = [chunk for _, chunk in source.chunks(2, canonical=as_canonical)]
            assert {chunk.format for chunk in chunks} == {kind}
            np.testing.assert_array_equal(np.hstack([chunk.toarray() for chunk in chunks]), COUNTS)
    matrix.indices[3] = N
    refused((matrix, OBS), texts=(f"a sparse index is {N}, but must lie in 0 ... {N - 1}",))


@pytest.mark.parametrize("matrix", [COUNTS, COUNTS.astype(np.float32), np.asfortranarray(COUNTS), COUNTS > 0])
def test_arrays_keep_their_type(matrix):
    with open_source((matrix, OBS)) as source:
        assert all(chunk.dtype == matrix.dtype for _, chunk in source.chunks(4))
        np.testing.assert_array_equal(values(source), matrix)


def test_names_of_frames_are_used():
    with open_source((pd.DataFrame(COUNTS, index=CELLS, columns=GENES), OBS)) as source:
        assert source.features == tuple(GENES)
        np.testing.assert_array_equal(values(source), COUNTS)
    with open_source((pd.DataFrame(COUNTS), OBS)) as source:
        assert source.features[:2] == ("Gene1", "Gene2")


def test_nullable_frames_give_nan():
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [0.5, 2.0]})
    np.testing.assert_array_equal(opened((frame, pd.DataFrame({"donor": [1, 2]}))), [[1, 0.5], [np.nan, 2]])


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix_and_obs_as_two_arguments():
    np.testing.assert_array_equal(opened(COUNTS, OBS), COUNTS)
    np.testing.assert_array_equal(opened(np.matrix(COUNTS), OBS), COUNTS)


class Lazy:
    """A matrix whose rows must be computed, as dask's."""

    shape = COUNTS.shape

    def __init__(self, rows=slice(None)):
        self.rows = rows

    def __getitem__(self, rows):
        return Lazy(rows)

    def compute(self):
        return COUNTS[self.rows]


def test_lazy_matrices_are_computed_by_chunk():
    np.testing.assert_array_equal(opened((Lazy(), OBS)), COUNTS)


def test_anndata_in_memory(adata):
    with open_source(adata) as source:
        assert (source.n, source.m, source.features) == (N, M, tuple(GENES))
        pd.testing.assert_frame_equal(source.obs, OBS)
        np.testing.assert_array_equal(values(source), COUNTS)
    np.testing.assert_array_equal(opened(adata, layer="dense"), COUNTS * 2)
    np.testing.assert_array_equal(opened(adata, layer="csc"), COUNTS * 3)
    np.testing.assert_array_equal(opened(adata[3:11, 2:5]), COUNTS[3:11, 2:5])


def test_stores_are_streamed(store, adata, caplog):
    with caplog.at_level(logging.INFO, "lmm_gpu"), open_source(store) as source:
        assert source.features == tuple(GENES)
        assert not isinstance(source.matrix, np.ndarray) and not sparse.issparse(source.matrix)
        assert source.obs["donor"].astype(str).tolist() == OBS["donor"].tolist()
        np.testing.assert_array_equal(values(source), COUNTS)
    np.testing.assert_array_equal(opened(str(store), layer="dense"), COUNTS * 2)
    assert not caplog.records


@pytest.mark.parametrize("genes", [1, 3, M, 100])
def test_csc_on_disk_is_streamed_by_genes(store, genes):
    with open_source(store, layer="csc") as source:
        assert source.by_genes and not sparse.issparse(source.matrix)
        chunks = list(source.chunks(genes))
    assert [place for place, _ in chunks] == [slice(lo, min(lo + genes, M)) for lo in range(0, M, genes)]
    np.testing.assert_array_equal(np.hstack([chunk.toarray() for _, chunk in chunks]), COUNTS * 3)


def test_backed_anndata(adata, tmp_path):
    adata.write_h5ad(tmp_path / "data.h5ad")
    backed = pytest.importorskip("anndata").read_h5ad(tmp_path / "data.h5ad", backed="r")
    np.testing.assert_array_equal(opened(backed), COUNTS)
    backed.file.close()


def test_leaving_closes_the_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "data.h5ad")
    with open_source(tmp_path / "data.h5ad", layer="dense") as source:
        assert source.matrix.id.valid
    assert not source.matrix.id.valid


def test_failing_closes_the_file(adata, tmp_path):
    h5py = pytest.importorskip("h5py")
    adata.write_h5ad(tmp_path / "data.h5ad")
    refused(tmp_path / "data.h5ad", layer="counts", texts=("no layer",))
    with h5py.File(tmp_path / "data.h5ad", "r+") as file:  # impossible while it is open for reading
        assert "X" in file


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("sparse.npz", lambda path: sparse.save_npz(path, sparse.csr_matrix(COUNTS))),
        ("columns.npz", lambda path: sparse.save_npz(path, sparse.csc_array(COUNTS))),
        ("dense.npz", lambda path: np.savez(path, COUNTS)),
        ("named.npz", lambda path: np.savez_compressed(path, counts=COUNTS)),
        ("sparse.mtx", lambda path: scipy.io.mmwrite(path, sparse.coo_array(COUNTS))),
        ("dense.mtx", lambda path: scipy.io.mmwrite(path, COUNTS)),
        ("labelled.csv", lambda path: pd.DataFrame(COUNTS, CELLS, GENES).to_csv(path)),
        ("named.tsv", lambda path: pd.DataFrame(COUNTS, CELLS, GENES).to_csv(path, sep="\t", index_label="cell")),
        ("bare.csv.gz", lambda path: pd.DataFrame(COUNTS, columns=GENES).to_csv(path, index=False)),
        ("CAPITALS.CSV", lambda path: pd.DataFrame(COUNTS, columns=GENES).to_csv(path, index=False)),
        ("numbered.csv", lambda path: pd.DataFrame(COUNTS, columns=GENES).to_csv(path)),
        ("a.tsv.csv", lambda path: pd.DataFrame(COUNTS, CELLS, GENES).to_csv(path)),
    ],
)
def test_files(tmp_path, name, save):
    path = tmp_path / name
    save(path)
    obs = OBS.reset_index(drop=True) if name == "numbered.csv" else OBS
    with open_source(path, obs) as source:
        np.testing.assert_array_equal(values(source), COUNTS)
        named = name.lower().endswith(("csv", "csv.gz", "tsv"))
        assert source.features == (tuple(GENES) if named else tuple(f"Gene{gene}" for gene in range(1, M + 1)))


def test_compressed_mtx(tmp_path):
    scipy.io.mmwrite(tmp_path / "m.mtx", sparse.coo_array(COUNTS))
    (tmp_path / "m.mtx.gz").write_bytes(gzip.compress((tmp_path / "m.mtx").read_bytes()))
    np.testing.assert_array_equal(opened(tmp_path / "m.mtx.gz", OBS), COUNTS)


def test_r_tables_without_a_name_for_the_row_names(tmp_path):
    lines = ["G1,G2", "c1,1,2", "c2,3,4"]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    with open_source(tmp_path / "r.csv", pd.DataFrame({"donor": [1, 2]}, index=["c1", "c2"])) as source:
        assert source.features == ("G1", "G2")
        np.testing.assert_array_equal(values(source), [[1, 2], [3, 4]])


def test_a_gene_may_be_called_na(tmp_path):
    (tmp_path / "m.csv").write_text("cell,NA,nan,1\nc1,1,2,5\nc2,3,4,6\n")
    with open_source(tmp_path / "m.csv", pd.DataFrame({"donor": [1, 2]})) as source:
        assert source.features == ("NA", "nan", "1")


@pytest.mark.parametrize("name", ["obs.csv", "obs.tsv", "obs.csv.gz"])
def test_obs_files(tmp_path, name):
    write_table(OBS.reset_index(drop=True), tmp_path / name)
    with open_source(COUNTS, tmp_path / name) as source:
        assert source.obs.index.tolist() == CELLS and source.obs.columns.tolist() == ["cell", "donor"]
    write_table(OBS[["donor"]], tmp_path / name)
    with open_source(COUNTS, str(tmp_path / name)) as source:
        assert source.obs.index.tolist() == CELLS and source.obs.columns.tolist() == ["donor"]
    write_table(OBS[["donor"]].reset_index(drop=True), tmp_path / name)
    with open_source(COUNTS, tmp_path / name) as source:
        assert source.obs.index.tolist() == list(range(N)) and source.obs["donor"].tolist() == OBS["donor"].tolist()


def test_features_from_a_list_or_a_file(tmp_path, adata):
    (tmp_path / "features.txt").write_text("\n".join(GENES) + "\n\n")
    for features in (GENES, tuple(GENES), np.array(GENES), tmp_path / "features.txt", str(tmp_path / "features.txt")):
        assert open_source(COUNTS, OBS, features=features).features == tuple(GENES)
    others = [gene.lower() for gene in GENES]
    assert open_source(adata, features=others).features == tuple(others)


def test_obs_given_beats_obs_inside(adata):
    table = OBS.assign(condition="ctrl")
    assert open_source(adata, table).obs is table


@given(st.integers(1, 40))
def test_any_chunk_size_gives_the_same_rows(cells):
    for matrix in (COUNTS, sparse.csr_array(COUNTS)):
        with open_source((matrix, OBS)) as source:
            np.testing.assert_array_equal(values(source, cells), COUNTS)
            assert len(list(source.chunks(cells))) == -(-N // cells)


@pytest.mark.parametrize("cells", [1, 4, N, 1000])
def test_any_chunk_size_of_a_store(store, cells):
    with open_source(store) as source:
        np.testing.assert_array_equal(values(source, cells), COUNTS)


# ---- ways to be wrong


@pytest.mark.parametrize("cells", [0, -3])
def test_chunks_hold_cells(cells):
    with pytest.raises(ValueError, match=f"got chunks of {cells} cells, expected 1 or more"):
        next(open_source(COUNTS, OBS).chunks(cells))


def test_invalid_arguments():
    refused([1, 2], OBS, texts=("got list", "a pair (matrix, obs)"))
    refused(np.zeros(3), OBS, texts=("shape (3,)", "two axes"))
    refused(np.zeros((2, 2, 2)), OBS, texts=("shape (2, 2, 2)", "two axes"))
    refused(COUNTS, texts=("needs a table", "obs="))
    refused(COUNTS, {"donor": 1}, texts=("needs a table", "a DataFrame"))
    refused(COUNTS, OBS, layer="counts", texts=("layer='counts'", "only AnnData, .h5ad and .zarr", "leave it out"))
    refused(COUNTS[:20], OBS, texts=("obs has 23 rows", "the matrix has 20 rows and 7 columns", "one row per cell"))
    refused(COUNTS.T, OBS, texts=("obs has 23 rows", "7 rows and 23 columns", "transpose"))
    refused(COUNTS, OBS, features=GENES[:-1], texts=("got 6 gene names", "7 columns"))
    refused(
        COUNTS, OBS, features=["A", "A", "B", "B", "C", "D", "E"], texts=("2 gene names", "(A, B)", "make them unique")
    )
    frame = pd.DataFrame(COUNTS, CELLS, GENES)
    refused(frame.assign(G3="x"), OBS, texts=("not numbers (G3)", "as obs"))


def test_labels_that_do_not_match():
    frame = pd.DataFrame(COUNTS, CELLS, GENES)
    with open_source(frame, OBS[::-1]) as source:
        pd.testing.assert_frame_equal(source.obs, OBS)
    twice = OBS.set_axis([*CELLS[:-1], CELLS[0]])
    refused(frame, twice, texts=("23 cells have other names in the matrix / in obs", "pass the obs"))
    refused(frame.set_axis(twice.index), twice[::-1], texts=("has the cell c0 more than once",))
    other = OBS.set_axis([*CELLS[:-1], "X"])
    refused(frame, other, texts=("1 of 23 cells", "(c22 / X)", "pass the obs of these cells"))
    assert open_source(frame, OBS.reset_index(drop=True)).n == N  # no labels, nothing to compare


def test_labels_of_a_table_that_do_not_match(tmp_path):
    pd.DataFrame(COUNTS, CELLS, GENES).to_csv(tmp_path / "m.csv")
    refused(tmp_path / "m.csv", OBS.rename(index={"c3": "x"}), texts=(f"{tmp_path / 'm.csv'} / in obs (c3 / x)",))
    refused(tmp_path / "m.csv", texts=("needs a table",))


def test_genes_that_appear_twice(tmp_path, adata):
    (tmp_path / "m.csv").write_text("cell,A,B,A\nc1,1,2,5\nc2,3,4,6\n")
    refused(tmp_path / "m.csv", pd.DataFrame({"donor": [1, 2]}), texts=("1 gene names", "(A)", "make them unique"))
    adata.var_names = ["A"] * M
    with pytest.raises(ValueError, match=r"var_names_make_unique\(\)"):
        open_source(adata)


def test_layers_that_do_not_exist(adata, store):
    refused(adata, layer="counts", texts=("the AnnData has no layer 'counts'", "dense, csc"))
    refused(store, layer="counts", texts=(f"{store} has no layer 'counts'", "dense", "csc"))


def test_no_x(tmp_path):
    anndata = pytest.importorskip("anndata")
    data = anndata.AnnData(obs=OBS, var=pd.DataFrame(index=GENES))
    data.layers["counts"] = COUNTS
    refused(data, texts=("the AnnData has no X", "counts"))
    data.write_h5ad(tmp_path / "data.h5ad")
    refused(tmp_path / "data.h5ad", texts=("data.h5ad has no X", "counts"))
    np.testing.assert_array_equal(opened(tmp_path / "data.h5ad", layer="counts"), COUNTS)


@pytest.mark.parametrize("name", ["data.h5ad", "data.zarr", "m.npz", "m.mtx", "m.csv"])
def test_missing_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"there is no .*{name}: check the spelling"):
        open_source(tmp_path / name, OBS)
    with pytest.raises(FileNotFoundError, match=r"there is no .*obs\.csv"):
        open_source(COUNTS, tmp_path / "obs.csv")


def test_unknown_endings(tmp_path):
    for name in ("data.rds", "data", "matrix.npy"):
        refused(
            tmp_path / name, OBS, texts=(name, ".h5ad, .zarr, .h5, .npz, .mtx, .mtx.gz, .csv, .csv.gz, .tsv, .tsv.gz")
        )
    refused(COUNTS, tmp_path / "obs.xlsx", texts=("obs.xlsx", ".csv, .csv.gz, .tsv, .tsv.gz"))


@pytest.mark.parametrize("name", ["d.h5ad", "d.zarr", "m.npz", "m.mtx", "m.mtx.gz", "m.csv", "m.csv.gz", "m.tsv"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe not this", b"PK\x03\x04 nor this", b"\x1f\x8b\x08\x00 broken"])
def test_files_that_are_something_else(tmp_path, name, content):
    if name.startswith("d."):
        pytest.importorskip("anndata")
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, OBS, texts=(str(tmp_path / name),))
    refused(COUNTS, OBS, features=tmp_path, texts=(f"cannot read {tmp_path}",))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["data.h5ad", "m.npz", "m.mtx", "m.csv.gz"])
def test_truncated_files(tmp_path, adata, name, part):
    path = tmp_path / name
    writers = {
        "data.h5ad": adata.write_h5ad,
        "m.npz": lambda path: sparse.save_npz(path, sparse.csr_array(COUNTS)),
        "m.mtx": lambda path: scipy.io.mmwrite(path, sparse.coo_array(COUNTS)),
        "m.csv.gz": lambda path: pd.DataFrame(COUNTS, CELLS, GENES).to_csv(path),
    }
    writers[name](path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refused(path, OBS, texts=(f"cannot read {path}", "is the file complete"))


def test_damage_found_while_streaming(tmp_path):
    h5py, anndata = pytest.importorskip("h5py"), pytest.importorskip("anndata")
    path = tmp_path / "data.h5ad"
    noise = np.random.default_rng(2).normal(size=(N, 500))
    anndata.AnnData(noise, obs=OBS).write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        place = file["X"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(ValueError, match=f"cannot read {path}: .*is the file complete"):
        values(source)


def test_archives_with_more_than_one_array(tmp_path):
    np.savez(tmp_path / "m.npz", a=COUNTS, b=COUNTS)
    refused(tmp_path / "m.npz", OBS, texts=("holds 2 arrays (a, b), expected one", "save_npz"))


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "m.npz", np.array([[Bomb()]], dtype=object))
    refused(tmp_path / "m.npz", OBS, texts=("cannot read", "allow_pickle=False"))
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "p.npz", OBS, texts=("cannot read",))
    assert not Path("ran").exists()


@pytest.mark.parametrize("package", ["anndata", "h5py"])
def test_missing_packages(tmp_path, monkeypatch, package):
    if package == "h5py":
        pytest.importorskip("anndata")
    (tmp_path / "data.h5ad").write_bytes(b"")
    monkeypatch.setattr("importlib.import_module", import_without(package))
    refused(tmp_path / "data.h5ad", texts=(f"reading .h5ad needs the package {package}", 'pip install "lmm-gpu[io]"'))


def test_optional_packages_are_imported_late():
    code = "import sys, lmm_gpu.io; print(sorted({'anndata', 'h5py', 'zarr'} & set(sys.modules)))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- ways out


TABLE = pd.DataFrame({"variable": ["ISG15", "IFI6"], "p_value": [1e-300, np.nan], "n": [1, 2]})


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz", "T.CSV", "new/folder/t.csv"])
def test_tables_come_back(tmp_path, name):
    path = tmp_path / name
    write_table(TABLE, path)
    separator = "\t" if ".tsv" in name else ","
    pd.testing.assert_frame_equal(pd.read_csv(path, sep=separator), TABLE)
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    labelled = TABLE.set_index("variable")
    write_table(labelled, str(path))
    pd.testing.assert_frame_equal(pd.read_csv(path, sep=separator, index_col=0), labelled)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    write_table(TABLE, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), TABLE)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", import_without("pyarrow"))
    with pytest.raises(ValueError, match=r"writing .parquet needs the package pyarrow: pip install pyarrow, or .*csv"):
        write_table(TABLE, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_unknown_ending_of_a_table(tmp_path):
    with pytest.raises(ValueError, match=r"t\.xlsx.*\.csv, \.csv\.gz, \.tsv, \.tsv\.gz, \.parquet"):
        write_table(TABLE, tmp_path / "t.xlsx")


def test_json_comes_back(tmp_path):
    write_json({"cells": 3, "names": ["é"]}, tmp_path / "deep" / "run.json")
    assert json.loads((tmp_path / "deep" / "run.json").read_text(encoding="utf-8")) == {
        "cells": 3,
        "names": ["é"],
    }


class Unwritable:
    """A cell of a table whose text cannot be made."""

    def __str__(self):
        raise RuntimeError("disk full")

    __repr__ = __str__


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv"])
def test_a_failed_write_leaves_the_old_table(tmp_path, name):
    write_table(TABLE, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    bad = pd.DataFrame({"a": [*range(100_000), Unwritable()]}, dtype=object)
    with pytest.raises(RuntimeError, match="disk full"):
        write_table(bad, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_the_old_json(tmp_path):
    write_json([1], tmp_path / "run.json")
    with pytest.raises(TypeError):
        write_json([1, object()], tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_an_interrupted_replacement_leaves_the_old_table(tmp_path, monkeypatch):
    write_table(TABLE, tmp_path / "t.csv")
    before = (tmp_path / "t.csv").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_table(TABLE[:1], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_the_table_is_whole_before_it_takes_its_place(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("os.replace", lambda part, target: seen.append((Path(part).read_text(), Path(target).exists())))
    write_table(TABLE, tmp_path / "t.csv")
    assert seen == [(TABLE.to_csv(index=False), False)]
