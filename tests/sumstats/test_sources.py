"""Whatever holds the cells, the statistics are those of the same numbers in a dense array."""

from __future__ import annotations

import gzip
import logging
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

import lmm_gpu
from lmm_gpu.io.source import open_source

anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

N, M = 83, 11
RNG = np.random.default_rng(7)
COUNTS = RNG.poisson(0.7, (N, M))
COUNTS[40:43] = 0
COUNTS[:, 4] = 0
GENES = [f"G{gene}" for gene in range(M)]
CELLS = [f"c{cell}" for cell in range(N)]
OBS = pd.DataFrame({"donor": [f"D{cell % 5}" for cell in range(N)], "x": RNG.normal(size=N)}, index=CELLS)
FORMULA = "~ x + (1 | donor)"
ARRAYS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")
CLASSES = {"csr": sparse.csr_array, "csc": sparse.csc_array, "dense": np.asarray}
WANTED = np.log1p(COUNTS)


def summed(data, **options):
    return lmm_gpu.summarize(data, FORMULA, progress=False, **{"transform": "log1p"} | options)


def assert_sums(found, values=WANTED):
    """The same as by hand, cell by cell."""
    Z = pd.get_dummies(OBS["donor"]).to_numpy(float)
    X = np.column_stack([np.ones(N), OBS["x"]])
    hand = {"XX": X.T @ X, "XY": X.T @ values, "ZX": Z.T @ X, "ZY": Z.T @ values, "ZZ": Z.T @ Z}
    hand |= {"Ynorm": (values**2).sum(axis=0), "Ysum": values.sum(axis=0)}
    assert found.n == N
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(found, name), hand[name], rtol=1e-12, atol=1e-12, err_msg=name)


def write_h5ad(path, kind, compression=None, dtype="float32", index="int32"):
    with h5py.File(path, "w") as file:
        write_store(file, kind, dtype, index, compression=compression)


def write_store(root, kind, dtype="float32", index="int32", **options):
    """An AnnData whose types are chosen: anndata itself writes 32-bit indices where they do."""
    matrix = CLASSES[kind](COUNTS.astype(dtype))
    if kind != "dense":
        matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    keywords = {name: value for name, value in options.items() if value is not None}
    anndata.io.write_elem(root, "X", matrix, dataset_kwargs=keywords)
    anndata.io.write_elem(root, "obs", OBS)
    anndata.io.write_elem(root, "var", pd.DataFrame(index=GENES))


def small_chunks(monkeypatch, values=50):
    monkeypatch.setattr("lmm_gpu.sumstats.chunk_plan._MOST_VALUES", values)


@pytest.mark.parametrize(("kind", "compression"), list(product(CLASSES, [None, "gzip", "lzf"])))
def test_h5ad(tmp_path, monkeypatch, kind, compression):
    small_chunks(monkeypatch)
    write_h5ad(tmp_path / "a.h5ad", kind, compression)
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert (file["X"] if kind == "dense" else file["X/data"]).compression == compression
    assert_sums(summed(tmp_path / "a.h5ad"))


@pytest.mark.parametrize(
    "dtype", ["float64", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)), "bool"]
)
@pytest.mark.parametrize(("kind", "index"), [("csr", "int32"), ("csr", "int64"), ("csc", "int64"), ("dense", "")])
def test_types(tmp_path, monkeypatch, dtype, kind, index):
    small_chunks(monkeypatch)
    write_h5ad(tmp_path / "a.h5ad", kind, dtype=dtype, index=index)
    if index:
        with h5py.File(tmp_path / "a.h5ad") as file:
            assert file["X/indices"].dtype == index and file["X/data"].dtype == dtype
    assert_sums(summed(tmp_path / "a.h5ad"), np.log1p(COUNTS.astype(dtype).astype(float)))


@pytest.mark.parametrize(("kind", "version"), list(product(CLASSES, [2, 3])))
def test_zarr(tmp_path, monkeypatch, kind, version):
    small_chunks(monkeypatch)
    if int(zarr.__version__.partition(".")[0]) < 3:
        pytest.skip("zarr 3 writes both versions")
    write_store(zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version), kind)
    assert (tmp_path / "a.zarr" / ("zarr.json" if version == 3 else ".zgroup")).exists()
    assert_sums(summed(tmp_path / "a.zarr"))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("backed", [False, True])
def test_anndata(tmp_path, kind, backed):
    data = anndata.AnnData(CLASSES[kind](COUNTS.astype("float32")), obs=OBS, var=pd.DataFrame(index=GENES))
    data.layers["twice"] = CLASSES[kind](COUNTS * 2)
    assert_sums(summed(data, layer="twice", transform=None, is_counts=False), COUNTS * 2.0)
    data.write_h5ad(tmp_path / "a.h5ad")
    assert_sums(summed(tmp_path / "a.h5ad", layer="twice", transform=None, is_counts=False), COUNTS * 2.0)
    data = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r") if backed else data
    found = summed(data)
    assert_sums(found)
    assert found.features == tuple(GENES)
    if backed:
        data.file.close()


def write_10x(path, names):
    columns = sparse.csc_array(COUNTS.T.astype("int32"))  # genes x cells, as CellRanger writes
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in (("data", columns.data), ("indices", columns.indices.astype("int64"))):
            group.create_dataset(name, data=values, chunks=(32,), compression="gzip")
        group["indptr"], group["shape"] = columns.indptr.astype("int64"), np.array(columns.shape)
        group["barcodes"] = np.array(CELLS, dtype="S")
        group["features/name"], group["features/id"] = np.array(names, dtype="S"), np.array(GENES, dtype="S")


def test_10x(tmp_path, monkeypatch, caplog):
    small_chunks(monkeypatch)
    write_10x(tmp_path / "m.h5", [f"name{gene}" for gene in range(M)])
    found = summed(tmp_path / "m.h5", obs=OBS)
    assert_sums(found)
    assert found.features[:2] == ("name0", "name1") and not caplog.records
    assert_sums(summed(tmp_path / "m.h5", obs=OBS[::-1]))
    assert "sorted by their names" in caplog.text


def test_10x_names_that_appear_twice(tmp_path, caplog):
    write_10x(tmp_path / "m.h5", ["same"] * M)
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        assert summed(tmp_path / "m.h5", obs=OBS).features == tuple(GENES)
    assert "are not unique: its identifiers are used instead" in caplog.text


def test_other_h5(tmp_path):
    write_h5ad(tmp_path / "m.h5", "csr")
    with pytest.raises(ValueError, match="not what CellRanger writes"):
        summed(tmp_path / "m.h5", obs=OBS)


def test_10x_of_cellranger_2(tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    columns = sparse.csc_array(COUNTS.T.astype("int32"))
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        for name in ("data", "indices"):
            group.create_dataset(name, data=getattr(columns, name), chunks=(32,), compression="gzip")
        group["indptr"], group["shape"] = columns.indptr.astype("int64"), np.array(columns.shape)
        group["barcodes"], group["genes"] = np.array(CELLS, dtype="S"), np.array(GENES, dtype="S")
        group["gene_names"] = np.array([f"name{gene}" for gene in range(M)], dtype="S")
    found = summed(path, obs=OBS)
    assert_sums(found)
    assert found.features[:2] == ("name0", "name1")
    with pytest.raises(ValueError, match="no feature types"):
        summed(path, obs=OBS, feature_types="Gene Expression")
    with h5py.File(path, "a") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(ValueError, match=r"several genomes \(GRCh38, mm10\)"):
        summed(path, obs=OBS)


# --- Matrix Market --------------------------------------------------------------------------------


def write_mtx(path, matrix, order="rows", field="integer"):
    """A text with its entries in a given order, after comments, as other programs write them."""
    entries = sparse.coo_array(matrix)
    keys = {"rows": (entries.col, entries.row), "columns": (entries.row, entries.col), "neither": (entries.data,)}
    lines = []
    for k in np.lexsort(keys[order]):
        value = "" if field == "pattern" else f" {entries.data[k]}"
        lines.append(f"{entries.row[k] + 1} {entries.col[k] + 1}{value}\n")
    text = f"%%MatrixMarket matrix coordinate {field} general\n%a comment\n\n{matrix.shape[0]} {matrix.shape[1]} "
    text += f"{len(lines)}\n{''.join(lines)}"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("order", ["rows", "columns", "neither"])
@pytest.mark.parametrize("name", ["m.mtx", "m.mtx.gz"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("part", [7, 10**6])
def test_mtx(tmp_path, monkeypatch, caplog, order, name, transposed, part):
    small_chunks(monkeypatch)
    monkeypatch.setattr("lmm_gpu.io.matrix_market._ENTRIES", part)
    write_mtx(tmp_path / name, COUNTS.T if transposed else COUNTS, order)
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        with open_source(tmp_path / name, OBS) as source:
            assert source.by_genes == (order == ("rows" if transposed else "columns"))
        caplog.clear()
        assert_sums(summed(tmp_path / name, obs=OBS))
    assert ("loaded into memory as a whole" in caplog.text) == (order == "neither")
    assert ("its columns are taken as cells" in caplog.text) == transposed


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_mtx_twice(tmp_path, monkeypatch, order):
    """Size factors take a pass of their own, and slices may be read in any order."""
    small_chunks(monkeypatch)
    counts = COUNTS + (COUNTS.sum(axis=1) == 0)[:, None]
    write_mtx(tmp_path / "m.mtx", counts, order)
    factors = counts.sum(axis=1) / counts.sum(axis=1).mean()
    found = summed(tmp_path / "m.mtx", obs=OBS, transform="normalize")
    assert_sums(found, np.log1p(counts / factors[:, None]))
    with open_source(tmp_path / "m.mtx", OBS) as source:
        for some in (slice(5, 9), slice(0, 3), slice(9, 11), slice(4, 4)):
            wanted = counts[:, some] if source.by_genes else counts[some]
            np.testing.assert_array_equal(source.matrix[some].toarray(), wanted)


@pytest.mark.parametrize(("field", "values"), [("real", COUNTS * 0.25), ("pattern", (COUNTS > 0) * 1.0)])
def test_mtx_fields(tmp_path, field, values):
    write_mtx(tmp_path / "m.mtx", values, field=field)
    assert_sums(summed(tmp_path / "m.mtx", obs=OBS, transform=None, is_counts=False), values)


def test_mtx_by_scipy(tmp_path):
    for matrix in (COUNTS, sparse.csr_array(COUNTS), sparse.csc_array(COUNTS.astype(float))):
        scipy.io.mmwrite(tmp_path / "m.mtx", matrix)
        assert_sums(summed(tmp_path / "m.mtx", obs=OBS))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:-2], "it says that it has .* entries, but has"),
        (lambda lines: [*lines, "1 1 5"], "it says that it has .* entries, but has"),
        (lambda lines: [*lines[:-1], f"{N + 1} 1 5"], f"it has an entry at {N + 1}, 1 of {N} x {M}"),
        (lambda lines: [*lines[:-1], "0 1 5"], "it has an entry at 0, 1"),
        (lambda lines: [*lines[:-1], "1 a 5"], "cannot read"),
        (lambda lines: lines[:1], "it ends before it says how large"),
        (lambda lines: lines[1:], "it does not begin with %%MatrixMarket matrix"),
    ],
)
def test_broken_mtx(tmp_path, change, says):
    write_mtx(tmp_path / "m.mtx", COUNTS)
    lines = (tmp_path / "m.mtx").read_text().splitlines()
    (tmp_path / "m.mtx").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(ValueError, match=says):
        summed(tmp_path / "m.mtx", obs=OBS)


def test_features_of_cellranger(tmp_path):
    write_mtx(tmp_path / "m.mtx", COUNTS.T)
    lines = [f"{gene}\tname{gene}\tGene Expression" for gene in GENES]
    (tmp_path / "features.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    found = summed(tmp_path / "m.mtx", obs=OBS, features=tmp_path / "features.tsv.gz")
    assert found.features == tuple(f"name{gene}" for gene in GENES)


# --- log lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (("indices", 3, 10**6), "a sparse index is"),
        (("indices", 0, -1), "a sparse index is"),
        (("indptr", 2, 10**6), "indptr decreases"),
        (("indptr", 0, 1), "indptr runs from 1"),
    ],
)
def test_places_outside_the_matrix(tmp_path, kind, damage, says):
    """A wrong place would be written to, wherever that is."""
    write_h5ad(tmp_path / "a.h5ad", kind)
    dataset, position, value = damage
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file[f"X/{dataset}"][position] = value
    with pytest.raises(ValueError, match=f"cannot read .*a.h5ad: .*{says}"):
        summed(tmp_path / "a.h5ad")


def test_values_stored_in_two_parts(tmp_path):
    """One place, two entries: log1p is of their sum."""
    write_h5ad(tmp_path / "a.h5ad", "csr")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        csr = sparse.csr_array(COUNTS.astype("float32"))
        halves = sparse.csr_array(
            (np.repeat(csr.data / 2, 2), np.repeat(csr.indices, 2), csr.indptr * 2), shape=csr.shape
        )
        del file["X"]
        anndata.io.write_elem(file, "X", halves)
    assert_sums(summed(tmp_path / "a.h5ad"))


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_the_place_of_a_bad_value(tmp_path, monkeypatch, kind):
    small_chunks(monkeypatch, 20)
    values = COUNTS.astype("float32")
    values[61, 8] = np.nan
    monkeypatch.setattr(f"{__name__}.COUNTS", values)
    write_h5ad(tmp_path / "a.h5ad", kind, dtype="float32")
    with pytest.raises(ValueError, match=r"a\.h5ad holds 1 value.*position \(61, 8\)"):
        summed(tmp_path / "a.h5ad")


def test_cells_with_missing_values_and_unused_categories_are_left_out_with_a_line(tmp_path, caplog):
    caplog.set_level("INFO", "lmm_gpu")
    write_h5ad(tmp_path / "a.h5ad", "csr")
    known = (OBS["donor"] != "D3").to_numpy()
    unused = pd.Categorical(OBS["donor"].where(known), categories=[*sorted(OBS["donor"].unique()), "D9"])
    found = summed(tmp_path / "a.h5ad", obs=OBS.assign(donor=unused))
    assert f"{(~known).sum()} of {len(OBS)} cells are left out: obs column 'donor' is missing" in caplog.text
    assert found.n == known.sum() and not any("D3" in name or "D9" in name for name in found.random_names)
    only = summed(tmp_path / "a.h5ad", obs=OBS, cells="donor != 'D3'")
    np.testing.assert_array_equal(found.XY, only.XY)
    np.testing.assert_array_equal(found.ZY, only.ZY)
