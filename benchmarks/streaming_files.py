"""Files of cells for the benchmarks: synthetic counts in the shape of OneK1K, and real data as .h5ad."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

CELLS, GENES, SHARE, DONORS, CELL_TYPES = 50_000, 11_596, 0.08, 259, 29
FORMULA = "~ log_depth + age + sex + season + cell_type * status + (1 | donor)"
BATCH = 1_000
#: Options of `make` by the name of a kind of file.
KINDS: dict[str, dict] = {
    "gzip": {"compression": "gzip"},
    "gzip, shuffle": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "none": {"compression": None},
    "gzip, large counts": {"compression": "gzip", "scale": 100},
    "zarr": {},
}
#: Folders of real data, and the models that their descriptions state.
REAL = {
    "kang18_pbmc": "~ condition * cell_type + (1 | sample_id)",
    "onek1k_pbmc40": "~ cell_type + sex + age + (1 | donor)",
}


def make(
    path: Path,
    cells: int,
    compression: str | None = "gzip",
    seed: int = 0,
    genes: int = GENES,
    *,
    shuffle: bool = False,
    scale: int = 1,
) -> None:
    """Write counts as anndata does, batch by batch: CSR of float32 with int32 indices, default HDF5 chunks.

    `scale` multiplies the counts: above 68 they are larger than the table of logarithms.
    """
    if path.exists():
        return
    say(f"making {path}")
    rng = np.random.default_rng(seed)
    share = rng.gamma(0.4, SHARE / 0.4, genes)  # share of cells in which a gene is detected
    for _ in range(20):
        share = np.clip(share * SHARE / share.mean(), 5e-4, 0.97)
    part = path.with_suffix(".part")
    with h5py.File(part, "w") as file:
        write_elem(file, "obs", table(cells, rng))
        write_elem(file, "var", pd.DataFrame(index=[f"G{gene}" for gene in range(genes)]))
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [cells, genes]})
        lengths = []
        options = {"maxshape": (None,), "chunks": (22_649,), "compression": compression, "shuffle": shuffle}
        data = group.create_dataset("data", (0,), "f4", **options)
        indices = group.create_dataset("indices", (0,), "i4", **options)
        for start in range(0, cells, BATCH):
            row, gene = np.nonzero(rng.random((min(BATCH, cells - start), genes), dtype="f4") < share)
            end = data.shape[0] + len(gene)
            for dataset, values in ((data, scale * (1 + rng.poisson(3 * share[gene]))), (indices, gene)):
                dataset.resize(end, 0)
                dataset[end - len(gene) :] = values
            lengths.append(np.bincount(row, minlength=min(BATCH, cells - start)))
        group["indptr"] = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    os.replace(part, path)


def table(cells: int, rng: np.random.Generator, donors: int = DONORS) -> pd.DataFrame:
    """Table of cells: all donors and types in random order, about 7 nonzeros of 322 in a row of [X Z]."""
    donor = rng.integers(0, donors, cells)
    frame = {
        "donor": donor.astype(str),
        "cell_type": rng.integers(0, CELL_TYPES, cells).astype(str),
        "status": np.where(donor % 2, "case", "control"),
        "sex": np.where(donor % 3, "f", "m"),
        "season": (donor % 4).astype(str),
        "age": 20.0 + donor % 40,
        "log_depth": rng.normal(size=cells),
    }
    categorical = {name: pd.Categorical(frame[name]) for name in ("donor", "cell_type", "status", "sex", "season")}
    return pd.DataFrame(frame | categorical, index=[f"c{cell}" for cell in range(cells)])


def made(folder: Path, cells: int, kind: str) -> Path:
    """Path of the file with this number of cells, created if it is missing."""
    if kind == "zarr":
        return _as_zarr(made(folder, cells, "gzip"))
    path = folder / f"{cells}_{kind.replace(', ', '_').replace(' ', '_')}.h5ad"
    make(path, cells, **KINDS[kind])
    return path


def _as_zarr(path: Path) -> Path:
    """Write the same cells as anndata writes them to .zarr, in format 3."""
    store = path.with_suffix(".zarr")
    if not store.exists():
        say(f"making {store}")
        part = path.with_suffix(".part.zarr")
        with anndata.settings.override(zarr_write_format=3):
            anndata.read_h5ad(path).write_zarr(part)
        os.replace(part, store)
    return store


def real(data: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Write the real data in `data` (folders with counts.npz, obs.csv, features.txt) as gzip .h5ad: path, formula."""
    found = {}
    for name, formula in REAL.items():
        if not (data / name / "counts.npz").exists():
            continue
        path = folder / f"{name}.h5ad"
        if not path.exists():
            counts = sparse.csr_matrix(sparse.load_npz(data / name / "counts.npz")).astype("f4")
            obs = pd.read_csv(data / name / "obs.csv", index_col=0, dtype={"donor": str, "sample_id": str})
            var = pd.DataFrame(index=(data / name / "features.txt").read_text().split())
            anndata.AnnData(counts, obs, var).write_h5ad(path, compression="gzip")
        found[name] = (path, formula)
    return found


def say(text: str) -> None:
    """One line of progress, on standard error: standard output is JSON."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
