"""Damaged files of every kind end in one sentence: no other exception, no signal, no endless loop."""

from __future__ import annotations

import gzip
import json
import os
import select
import shutil
import subprocess
import sys

import damage
import numpy as np
import pandas as pd
import pytest
import read_files
import scipy.io
from scipy import sparse

import lmm_gpu

pytestmark = pytest.mark.slow
anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")
pytest.importorskip("resource")

TRIES = 120
#: Seconds that one file may take; the process that reads HDF5 metadata gives up before.
LIMIT = 30
N, M = 40, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    random = np.random.default_rng(1)
    counts = random.poisson(1.5, (N, M)).astype("float32")
    cells, genes = [f"c{i}" for i in range(N)], [f"g{i}" for i in range(M)]
    obs = pd.DataFrame({"donor": [f"D{i % 5}" for i in range(N)], "cond": np.where(np.arange(N) % 2, "a", "b")}, cells)
    obs["x"] = random.normal(size=N).round(3)
    obs.to_csv(folder / "obs.csv")
    obs.to_csv(folder / "obs.tsv.gz", sep="\t")
    data = anndata.AnnData(sparse.csr_array(counts), obs, pd.DataFrame(index=genes))
    data.write_h5ad(folder / "gzip.h5ad", compression="gzip")
    data.write_zarr(folder / "cells.zarr")
    data.X = counts
    data.write_h5ad(folder / "dense.h5ad")
    sparse.save_npz(folder / "sparse.npz", sparse.csr_array(counts))
    np.savez(folder / "dense.npz", counts)
    scipy.io.mmwrite(folder / "m.mtx", sparse.coo_array(counts.T.astype(int)))
    (folder / "m.mtx.gz").write_bytes(gzip.compress((folder / "m.mtx").read_bytes()))
    pd.DataFrame(counts, cells, genes).to_csv(folder / "m.csv")
    pd.DataFrame(counts, cells, genes).to_csv(folder / "m.tsv.gz", sep="\t")
    (folder / "features.tsv").write_text("".join(f"E{gene}\t{gene}\tGene Expression\n" for gene in genes))
    write_10x(folder / "tenx.h5", counts, cells, genes)
    sums = lmm_gpu.summarize(folder / "gzip.h5ad", "~ cond + (1 | donor)", progress=False, is_counts=True)
    sums.save(folder / "sums.h5")
    lmm_gpu.fit(sums, progress=False).save(folder / "fit.h5")
    command = [sys.executable, "-m", "lmm_gpu", "fit", "gzip.h5ad", "-f", "~ cond + (1 | donor)", "-o", "run"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment())
    shutil.copy(folder / "run" / "run.json", folder / "run.json")
    return folder


def write_10x(path, counts, cells, genes):
    columns = sparse.csc_array(counts.T.astype("int32"))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(columns, name), chunks=(16,), compression="gzip")
        group["shape"], group["barcodes"] = columns.shape, np.array(cells, dtype="S")
        for name in ("name", "id"):
            group[f"features/{name}"] = np.array(genes, dtype="S")
        group["features/feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}


class Reader:
    """A process that reads files one after the other; started again where it was killed or ended."""

    def __init__(self, folder):
        self.folder, self.process = folder, None

    def __call__(self, reader, path):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, read_files.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=None if os.environ.get("FUZZ_TRACEBACK") else subprocess.DEVNULL, text=True, env=environment(),
            )  # fmt: skip
        self.process.stdin.write(json.dumps([reader, str(path), str(self.folder)]) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            self.close()
            return f"more than {LIMIT} s"
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            self.close()
            return f"exit code {code}"
        return json.loads(answer)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def reader(folder):
    reader = Reader(folder)
    yield reader
    reader.close()


KINDS = {
    "gzip.h5ad": "cells", "dense.h5ad": "cells", "cells.zarr": "cells", "tenx.h5": "cells", "sparse.npz": "cells",
    "dense.npz": "cells", "m.mtx": "cells", "m.mtx.gz": "cells", "m.csv": "cells", "m.tsv.gz": "cells",
    "obs.csv": "obs", "obs.tsv.gz": "obs", "features.tsv": "features", "sums.h5": "sums", "fit.h5": "fit",
    "run.json": "record",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(folder, reader, tmp_path, name):
    assert reader(KINDS[name], folder / name) == "read"
    answers = {}
    for seed in range(int(os.environ.get("FUZZ_START", "0")), int(os.environ.get("FUZZ_STOP", TRIES))):
        target = tmp_path / str(seed) / name
        target.parent.mkdir()
        damage.damaged(folder / name, target, seed)
        answers[seed] = reader(KINDS[name], target)
        shutil.rmtree(target.parent)
    wrong = {seed: answer for seed, answer in answers.items() if answer not in ("read", "refused")}
    assert not wrong
    assert list(answers.values()).count("refused") > len(answers) / 4  # the damage is seen


MARKET = "%%MatrixMarket matrix"
BOMBS = {
    "zeros.csv.gz": lambda path: path.write_bytes(gzip.compress(b"a,b\n" + b"0" * 10**8)),
    "rows.csv.gz": lambda path: path.write_bytes(gzip.compress(b"a,b\n" + b"0,0\n" * 10**7)),
    "size.mtx": lambda path: path.write_text(
        "%%MatrixMarket matrix coordinate real general\n9999999999 9999999999 1\n1 1 1\n"
    ),
    "array.mtx": lambda path: path.write_text(f"{MARKET} array real general\n999999 999999\n1\n"),
    "entries.mtx": lambda path: path.write_text(
        "%%MatrixMarket matrix coordinate real general\n3 3 99999999999\n1 1 1\n"
    ),
    "columns.npz": lambda path: sparse.save_npz(path, sparse.csr_array((N, 10**12))),
    "shape.npz": lambda path: sparse.save_npz(path, sparse.coo_array(([1], ([0], [0])), shape=(10**12, 10**6))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(reader, tmp_path, name):
    BOMBS[name](tmp_path / name)
    assert reader("cells", tmp_path / name) == "refused"


def test_texts_that_are_all_the_same_long_one(reader, tmp_path):
    """A heap of HDF5 holds it once, and 200,000 references to it are 200 GB."""
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        for name in ("obs", "var"):
            anndata.io.write_elem(file, name, pd.DataFrame(index=[f"c{i}" for i in range(3)]))
        file["X"] = np.zeros((3, 3))
        kind = h5py.string_dtype()
        dataset = file.create_dataset("obs/long", (200_000,), dtype=kind)
        dataset[0] = "x" * 10**6
        place = dataset.id.get_offset()
        del file["obs"].attrs["column-order"]
    content = bytearray((tmp_path / "a.h5ad").read_bytes())
    content[place : place + 16 * 200_000] = bytes(content[place : place + 16]) * 200_000
    (tmp_path / "a.h5ad").write_bytes(content)
    assert reader("cells", tmp_path / "a.h5ad") == "refused"
