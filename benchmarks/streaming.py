"""Time to accumulate a file of cells relative to only reading it, peak memory, and growth with the number of cells."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import machine
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

import lmm_gpu
from lmm_gpu.backend.memory import parse_memory
from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.streaming import accumulate, plan_pieces
from lmm_gpu.sumstats.transform import Transform

CELLS, GENES, SHARE, DONORS, CELL_TYPES = 50_000, 11_596, 0.08, 259, 29
FORMULA = "~ log_depth + age + sex + season + cell_type * status + (1 | donor)"
BATCH = 1_000


def make(path: Path, cells: int, compression: str | None = "gzip", seed: int = 0, genes: int = GENES) -> None:
    """Write counts as anndata does, batch by batch: CSR of float32 with int32 indices, default HDF5 chunks."""
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
        options = {"maxshape": (None,), "chunks": (22_649,), "compression": compression}
        data = group.create_dataset("data", (0,), "f4", **options)
        indices = group.create_dataset("indices", (0,), "i4", **options)
        for start in range(0, cells, BATCH):
            row, gene = np.nonzero(rng.random((min(BATCH, cells - start), genes), dtype="f4") < share)
            end = data.shape[0] + len(gene)
            for dataset, values in ((data, 1 + rng.poisson(3 * share[gene])), (indices, gene)):
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


def read_only(path: Path, memory: str | None) -> float:
    """Seconds to read and decompress the chunks of `summarize` with h5py."""
    with open_source(path) as source:
        pieces, begins = plan_pieces(source, parse_memory(memory)), source.matrix.indptr
    start = time.perf_counter()
    with h5py.File(path) as file:
        for piece in pieces:
            lo, hi = begins[piece.start], begins[piece.stop]
            file["X/data"][lo:hi], file["X/indices"][lo:hi]
    return time.perf_counter() - start


def sum_up(path: Path, memory: str | None, checkpoint: Path | None = None) -> float:
    """Seconds of `summarize`, from the path to the statistics."""
    start = time.perf_counter()
    lmm_gpu.summarize(path, FORMULA, transform="log2p1", memory=memory, progress=False, checkpoint=checkpoint)
    return time.perf_counter() - start


def whole(path: Path) -> dict:
    """Seconds to load, transform and multiply the whole matrix, each step timed separately."""
    say(f"loading {path.name} whole")
    times = {}
    start = time.perf_counter()
    with h5py.File(path) as file:
        X = file["X"]
        parts = (X["data"][:], X["indices"][:], X["indptr"][:])
        Y = sparse.csr_array(parts, shape=tuple(X.attrs["shape"])).astype(float)
    times["load"], start = time.perf_counter() - start, time.perf_counter()
    np.log1p(Y.data, out=Y.data)
    times["transform"] = time.perf_counter() - start
    with open_source(path) as source:
        design = build_design(FORMULA, source.obs)
    for name, A in (("Y.T @ X", design.X), ("Y.T @ Z", design.Z)):
        start = time.perf_counter()
        Y.T @ A
        times[name] = time.perf_counter() - start
    return times


def peak(path: Path, memory: str) -> dict:
    """Peak bytes of a fresh process beyond its state before the cells were read, and bytes of the statistics."""
    say(f"peak memory of {path.name}, memory={memory}")
    out = subprocess.run([sys.executable, __file__, "--peak", path, memory], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def measured_peak(path: Path, memory: str) -> dict:
    """Measure in this process, after the table, the design and lazily loaded libraries are in memory."""
    small = path.with_name("warm.h5ad")
    make(small, 500)
    sum_up(small, memory)
    with open_source(path) as source:
        design = build_design(FORMULA, source.obs)
        n, p, q = design.n, design.p, design.q
        start = resident()[1]
        Path("/proc/self/clear_refs").write_text("5")
        summary = accumulate(source, design, Transform("log2p1"), memory=parse_memory(memory))
    statistics = 8 * (p + q + 2) * summary.m
    return {
        "cells": n,
        "memory": parse_memory(memory),
        "peak_beyond_statistics": resident()[0] - start - statistics,
        "statistics": statistics,
        "design": 8 * n * p,
    }


def resident() -> tuple[int, int]:
    """Bytes of this process: peak since the last reset, and current."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(1024 * int(lines[name].split()[0]) for name in ("VmHWM", "VmRSS"))


def say(text: str) -> None:
    """One line of progress, on standard error: standard output is JSON."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def compare(path: Path, cells: int, memory: str | None, repeats: int) -> dict:
    """Shortest times of alternating runs."""
    say(f"reading and summing up {path.name}, memory={memory}, {repeats} times")
    sums = path.with_suffix(".checkpoint")
    times = [(read_only(path, memory), sum_up(path, memory), sum_up(path, memory, sums)) for _ in range(repeats)]
    with h5py.File(path) as file:
        stored = int(file["X/data"].shape[0])
    read, ours, written = (min(column) for column in zip(*times, strict=True))
    say(f"  read {read:.2f} s, accumulated {ours:.2f} s: {ours / read:.2f} times")
    return {
        "cells": cells,
        "compression": path.stem.partition("_")[2],
        "megabytes": round(path.stat().st_size / 1e6),
        "non_zeros": stored,
        "memory": memory,
        "read_only_seconds": read,
        "summarize_seconds": ours,
        "ratio": ours / read,
        "ratios": sorted(b / a for a, b, _ in times),
        "seconds_with_checkpoint": written,
        "non_zeros_per_second": stored / ours,
    }


def made(folder: Path, cells: int, compression: str) -> Path:
    """Path of the file with this number of cells, created if it is missing."""
    path = folder / f"{cells}_{compression}.h5ad"
    make(path, cells, None if compression == "none" else compression)
    return path


def main() -> None:
    parser = machine.parser("streaming", __doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lmm_gpu_streaming")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compression", nargs="+", default=["gzip", "lzf", "none"], help="the first also for growth")
    parser.add_argument("--times", type=int, default=10, help="how many times the cells, for growth")
    parser.add_argument("--no-growth", action="store_true", help="leave out ten times the cells")
    parser.add_argument("--peak", nargs=2, help="for this script itself")
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(measured_peak(Path(options.peak[0]), options.peak[1])))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    cells = CELLS // 10 if options.quick else CELLS
    first, *others = options.compression
    path, result = made(options.folder, cells, first), {"genes": GENES, "formula": FORMULA}
    result["speed"] = [compare(path, cells, memory, options.repeats) for memory in (None, "256MB")]
    result["speed"] += [compare(made(options.folder, cells, one), cells, "256MB", options.repeats) for one in others]
    result["whole"] = whole(path)
    result["peak"] = [peak(path, memory) for memory in ("256MB", "512MB")]
    if not options.no_growth:
        more = made(options.folder, options.times * cells, first)
        result["speed"].append(compare(more, options.times * cells, "256MB", max(2, options.repeats // 2)))
        result["peak"].append(peak(more, "256MB"))
    result["load_average"] = os.getloadavg()  # load of the machine, to judge the figures
    result["peak_of_this_process"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(result, indent=2))
    machine.write(result, options)


if __name__ == "__main__":
    main()
