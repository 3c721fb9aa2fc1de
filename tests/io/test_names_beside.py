"""Names that lie beside a matrix, or in it, are read: cells are aligned by them, features chosen by their types."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

from lmm_gpu.io.source import open_source

N, M = 12, 5
COUNTS = np.random.default_rng(3).poisson(1.5, (N, M))
CELLS = [f"AAC{cell}-1" for cell in range(N)]
OBS = pd.DataFrame({"donor": [f"D{cell % 3}" for cell in range(N)], "place": np.arange(N)}, index=CELLS)
TYPES = ["Gene Expression"] * 3 + ["Antibody Capture", "Gene Expression"]
GENES = [f"G{gene}" for gene in range(M)]
EXPRESSED = [0, 1, 2, 4]


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_market(folder, prefix="", end=".gz", cells=CELLS, transposed=True, matrix="matrix", types=None):
    folder.mkdir(exist_ok=True)
    path = folder / f"{prefix}{matrix}.mtx"
    scipy.io.mmwrite(path, sparse.csc_array(COUNTS.T if transposed else COUNTS))
    if end:
        write(path.with_name(path.name + end), path.read_text())
        path.unlink()
        path = path.with_name(path.name + end)
    write(folder / f"{prefix}barcodes.tsv{end}", "".join(f"{cell}\n" for cell in cells))
    rows = [f"ENSG{i}\t{gene}" + (f"\t{types[i]}" if types else "") for i, gene in enumerate(GENES)]
    name = "features" if types else "genes"
    write(folder / f"{prefix}{name}.tsv{end}", "\n".join(rows) + "\n")
    return path


def read(data, obs=OBS, pieces=4, **options):
    with open_source(data, obs, **options) as source:
        parts = [part for _, part in source.chunks(pieces)]
        parts = [part.toarray() if sparse.issparse(part) else part for part in parts]
        return source, np.concatenate(parts, axis=1 if source.by_genes else 0)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("prefix", ["", "GSM123_", "GSM123."])
@pytest.mark.parametrize("transposed", [True, False])
def test_market_files_with_names_beside(tmp_path, end, prefix, transposed, caplog):
    path = write_market(tmp_path, prefix, end, transposed=transposed)
    source, found = read(path, OBS.sample(frac=1, random_state=1))
    np.testing.assert_array_equal(found, COUNTS)
    assert source.features == tuple(GENES)
    pd.testing.assert_frame_equal(source.obs, OBS)
    assert "in another order: its rows are sorted by their names" in caplog.text


def test_a_folder_of_cellranger(tmp_path):
    write_market(tmp_path / "filtered_feature_bc_matrix", types=["Gene Expression"] * M)
    source, found = read(tmp_path / "filtered_feature_bc_matrix")
    np.testing.assert_array_equal(found, COUNTS)
    assert source.features == tuple(GENES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is a folder without matrix\.mtx"):
        open_source(tmp_path / "empty", OBS)


def test_names_of_another_run_are_refused(tmp_path):
    path = write_market(tmp_path, cells=CELLS[:-1])
    with pytest.raises(ValueError, match=r"5 rows and 12 columns, but barcodes.tsv.gz, genes.tsv.gz .* 11 barcodes"):
        open_source(path, OBS)
    path = write_market(tmp_path, cells=[*CELLS[:-1], "other"])
    with pytest.raises(ValueError, match=r"1 of 12 cells have other names .*\(other / AAC11-1\)|\(AAC11-1"):
        open_source(path, OBS)


def test_a_table_without_names_is_aligned_by_the_column_that_has_them(tmp_path, caplog):
    path = write_market(tmp_path)
    table = OBS.rename_axis("barcode").reset_index()
    source, _ = read(path, table.sample(frac=1, random_state=2).reset_index(drop=True))
    assert source.obs["place"].tolist() == list(range(N)) and "sorted by 'barcode'" in caplog.text
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        open_source(path, OBS.reset_index(drop=True))
    assert "obs has no names of the cells" in caplog.text


@pytest.mark.parametrize("by", ["columns", "rows"])
def test_features_of_market_files_by_type(tmp_path, by, caplog):
    path = write_market(tmp_path, types=TYPES, end="")
    if by == "rows":  # sorted by genes
        lines = path.read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if not line.startswith("%")) + 1
        path.write_text("\n".join([*lines[:start], *sorted(lines[start:], key=lambda x: int(x.split()[0]))]) + "\n")
    source, found = read(path, pieces=2)
    assert source.by_genes == (by == "rows")
    np.testing.assert_array_equal(found, COUNTS[:, EXPRESSED])
    assert source.features == ("G0", "G1", "G2", "G4")
    assert "only the 4 features of type Gene Expression enter, left out are Antibody Capture (1)" in caplog.text
    source, found = read(path, feature_types="Antibody Capture")
    np.testing.assert_array_equal(found, COUNTS[:, [3]])
    source, found = read(path, feature_types=["Gene Expression", "Antibody Capture"])
    np.testing.assert_array_equal(found, COUNTS)
    with pytest.raises(ValueError, match=r"no features of type CRISPR: it has Gene Expression \(4\), Antibody"):
        open_source(path, OBS, feature_types="CRISPR")


def test_features_and_cells_chosen_together(tmp_path):
    path = write_market(tmp_path, types=TYPES)
    with open_source(path, OBS) as source:
        kept = np.arange(N) % 2 == 0
        some = source.where(kept)
        found = np.concatenate([part.toarray() for _, part in some.chunks(3)])
    np.testing.assert_array_equal(found, COUNTS[kept][:, EXPRESSED])


def write_10x(path, types, names=GENES):
    h5py = pytest.importorskip("h5py")
    columns = sparse.csc_array(COUNTS.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(columns, name)
        group["shape"], group["barcodes"] = columns.shape, np.array(CELLS, dtype="S")
        group["features/name"], group["features/id"] = np.array(names, dtype="S"), np.array(GENES, dtype="S")
        group["features/feature_type"] = np.array(types, dtype="S")


def test_features_of_10x_by_type(tmp_path, caplog):
    write_10x(tmp_path / "m.h5", TYPES)
    source, found = read(tmp_path / "m.h5")
    np.testing.assert_array_equal(found, COUNTS[:, EXPRESSED])
    assert source.features == ("G0", "G1", "G2", "G4") and "left out are Antibody Capture (1)" in caplog.text
    _, found = read(tmp_path / "m.h5", feature_types=["Antibody Capture"])
    np.testing.assert_array_equal(found, COUNTS[:, [3]])
    write_10x(tmp_path / "m.h5", ["A", "B", "A", "B", "A"])
    with pytest.raises(ValueError, match=r"features of the types A \(3\), B \(2\): choose with feature_types="):
        open_source(tmp_path / "m.h5", OBS)
    write_10x(tmp_path / "m.h5", TYPES, ["same", "b", "c", "same", "d"])  # unique among the genes that enter
    assert read(tmp_path / "m.h5")[0].features == ("same", "b", "c", "d")


def test_feature_types_of_anndata(caplog):
    anndata = pytest.importorskip("anndata")
    data = anndata.AnnData(COUNTS, OBS, pd.DataFrame({"feature_types": TYPES}, index=GENES))
    np.testing.assert_array_equal(read(data, None)[1], COUNTS)
    assert "features of several types, and all enter: Gene Expression (4), Antibody Capture (1)" in caplog.text
    np.testing.assert_array_equal(read(data, None, feature_types="Gene Expression")[1], COUNTS[:, EXPRESSED])
    with pytest.raises(ValueError, match="has no feature types: leave it out"):
        open_source(COUNTS, OBS, feature_types="Gene Expression")
