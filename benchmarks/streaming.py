"""Time to accumulate a file of cells relative to loading it, and relative to other tools; memory; growth with cells.

Everything that is compared is run in turn in this process, and the shortest times count. Other tools get the cells in
memory, already transformed: scanpy and decoupler add up groups of cells, the plain products are those of SciPy with the
design. `--part` runs some of the parts and keeps the others of the results file.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import machine
import numpy as np
from streaming_files import CELLS, FORMULA, GENES, KINDS, made, make, real, say

import lmm_gpu
from lmm_gpu.backend.memory import parse_memory
from lmm_gpu.backend.threads import workers
from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.chunk_plan import stored_values_of
from lmm_gpu.sumstats.streaming import accumulate
from lmm_gpu.sumstats.transform import Transform

#: Processors for which times are projected.
PROJECTED = 16


def sum_up(data: object, formula: str = FORMULA, transform: str | None = "log2p1", **options: object) -> None:
    """Summarize as a user does, from the path or the AnnData to the statistics."""
    lmm_gpu.summarize(data, formula, transform=transform, progress=False, **options)


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Shortest wall time, and process CPU time, of runs that take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            start, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {
        name: {"seconds": min(wall for wall, _ in found), "cpu_seconds": min(cpu for _, cpu in found)}
        for name, found in times.items()
    }


def speed(path: Path, formula: str = FORMULA, *, kind: str, repeats: int) -> dict:
    """Compare with anndata, which only loads the same file."""
    say(f"{path.name}: loading and accumulating, {repeats} times")
    read, size = anndata.read_h5ad, path.stat().st_size
    if path.is_dir():
        read, size = anndata.read_zarr, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    with open_source(path) as source:
        cells, stored = source.n, stored_values_of(source)
    sums = path.with_suffix(".checkpoint")
    runs = {
        "summarize": lambda: sum_up(path, formula),
        "anndata": lambda: read(path),
        "with_checkpoint": lambda: sum_up(path, formula, checkpoint=sums),
    }
    sum_up(path, formula)
    found = in_turn(runs, repeats)
    ours, theirs = found["summarize"]["seconds"], found["anndata"]["seconds"]
    say(f"  {read.__name__} {theirs:.2f} s, accumulated {ours:.2f} s: {ours / theirs:.2f} times")
    about = {"kind": kind, "cells": cells, "non_zeros": stored, "megabytes": round(size / 1e6)}
    return {**about, **found, "ratio": ours / theirs, "million_non_zeros_per_second": stored / ours / 1e6}


def tools(path: Path, repeats: int) -> dict:
    """Compare with other tools, all of cells in memory."""
    say(f"{path.name}: other tools in memory")
    data = anndata.read_h5ad(path)
    logs = data.copy()
    logs.X.data = np.log2(1 + logs.X.data)
    runs: dict[str, Callable[[], object]] = {"summarize": lambda: sum_up(data)}
    runs["plain products"] = _plain_products(logs)
    skipped = {}
    for name, run in (
        ("scanpy.get.aggregate", lambda one: one.get.aggregate(logs, by="donor", func="sum")),
        (
            "decoupler.pp.pseudobulk",
            lambda one: one.pp.pseudobulk(logs, "donor", None, mode="sum", skip_checks=True),
        ),
    ):
        try:
            module = importlib.import_module(name.partition(".")[0])
            runs[name] = lambda run=run, module=module: run(module)
        except ImportError as error:
            skipped[name] = str(error)
    found = in_turn(runs, repeats)
    ours = found["summarize"]["cpu_seconds"]
    for name, times in found.items():
        times["times_our_cpu"] = times["cpu_seconds"] / ours
        say(f"  {name}: {times['seconds']:.2f} s, CPU {times['cpu_seconds']:.2f} s")
    return {"non_zeros": int(logs.X.nnz), "tools": found, "skipped": skipped}


def _plain_products(data: anndata.AnnData) -> Callable[[], object]:
    design = build_design(FORMULA, data.obs)
    X, Z = design.X, design.Z
    return lambda: (data.X.T @ X, data.X.T @ Z, data.X.multiply(data.X).sum(axis=0))


def serial(path: Path) -> dict:
    """Time that does not shrink with processors: that of the main thread, while the passes run on other threads."""
    sum_up(path, threads=8)
    start, alone, cpu = time.perf_counter(), time.thread_time(), time.process_time()
    sum_up(path, threads=8)
    wall, alone, cpu = time.perf_counter() - start, time.thread_time() - alone, time.process_time() - cpu
    say(f"{path.name}: {alone:.2f} s of {cpu:.2f} s are serial")
    return {
        "cpu_seconds": cpu,
        "serial_seconds": alone,
        "serial_share": alone / cpu,
        "processors": workers(),
        "seconds": wall,
        "projected_processors": PROJECTED,
        "projected_seconds": alone + (cpu - alone) / PROJECTED,
    }


def peak(path: Path, memory: str) -> dict:
    """Peak bytes of a fresh process beyond its state before the cells were read, and bytes of the statistics."""
    say(f"peak memory of {path.name}, memory={memory}")
    command = [sys.executable, __file__, "--peak", str(path), memory]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def measured_peak(path: Path, memory: str) -> dict:
    """Measure in this process, after the table, the design and lazily loaded libraries are in memory."""
    small = path.with_name("warm.h5ad")
    make(small, 500)
    with open_source(small) as source:  # loads the compiled pass
        accumulate(source, build_design(FORMULA, source.obs), Transform("log2p1"), fused=True)
    budget = None if memory == "default" else parse_memory(memory)
    with open_source(path) as source:
        design = build_design(FORMULA, source.obs)
        n, p, q = design.n, design.p, design.q
        start = resident()[1]
        Path("/proc/self/clear_refs").write_text("5")
        summary = accumulate(source, design, Transform("log2p1"), memory=budget)
    statistics = 8 * (p + q + 2) * summary.m
    beyond = resident()[0] - start - statistics
    return {"cells": n, "memory": memory, "peak_beyond_statistics": beyond, "statistics": statistics}


def resident() -> tuple[int, int]:
    """Bytes of this process: peak since the last reset, and current."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(1024 * int(lines[name].split()[0]) for name in ("VmHWM", "VmRSS"))


def measure(options: argparse.Namespace) -> dict:
    """Run the parts that were asked for."""
    cells, folder, repeats = CELLS // 10 if options.quick else CELLS, options.folder, options.repeats
    first = made(folder, cells, "gzip")
    more = options.times * cells
    parts: dict[str, Callable[[], object]] = {
        "speed": lambda: [speed(made(folder, cells, kind), kind=kind, repeats=repeats) for kind in options.kinds],
        "tools": lambda: tools(first, repeats),
        "serial": lambda: serial(first),
        "peak": lambda: [peak(first, memory) for memory in ("default", "256MB")],
        "real": lambda: [
            speed(path, formula, kind=name, repeats=repeats)
            for name, (path, formula) in (real(options.data, folder) if options.data else {}).items()
        ],
        "growth": lambda: {
            **speed(made(folder, more, "gzip"), kind="gzip", repeats=max(1, repeats // 3)),
            "peak": peak(made(folder, more, "gzip"), "default"),
        },
    }
    return {name: run() for name, run in parts.items() if name in options.part}


def main() -> None:
    parser = machine.parser("streaming", __doc__)
    parts = ["speed", "tools", "serial", "peak", "real", "growth"]
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lmm_gpu_streaming")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="kinds of files")
    parser.add_argument("--times", type=int, default=10, help="how many times the cells, for growth")
    parser.add_argument("--data", type=Path, help="folder of real data: NAME/counts.npz, obs.csv and features.txt")
    parser.add_argument("--part", nargs="+", default=parts, choices=parts, help="only these parts")
    parser.add_argument("--peak", nargs=2, help="for this script itself")
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(measured_peak(Path(options.peak[0]), options.peak[1])))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    name = "streaming_quick.json" if options.quick else "streaming.json"
    options.output = options.output or machine.RESULTS / name
    keep = options.output.exists() and len(options.part) < len(parts)
    before = json.loads(options.output.read_text()) if keep else {}
    result = {"genes": GENES, "formula": FORMULA, **before, **measure(options)}
    result["load_average"] = os.getloadavg()  # load of the machine, to judge the figures
    result.pop("machine", None)
    print(json.dumps(result, indent=2))
    machine.write(result, options)


if __name__ == "__main__":
    main()
