"""Pass over cells in memory: values per CPU second of every format, threads, SciPy's path; lmmfit; first gene.

All figures are process CPU seconds, shortest of alternating runs; ratios are within one run. The serial share is what
the pass spends outside of the loops that run on threads; the speed on many cores follows from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
from scipy import sparse
from streaming_files import FORMULA, GENES, SHARE, table

import lmm_gpu
from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.gene_queues import GeneQueues
from lmm_gpu.sumstats.group_tables import GroupTables, can_fuse
from lmm_gpu.sumstats.streaming import accumulate
from lmm_gpu.sumstats.transform import Transform

CELLS, DENSE_CELLS, DENSE_GENES = 50_000, 24_000, 4_000
#: Cells, genes, levels, type and order of Y (genes x cells) for `lmmfit`.
PRODUCTS = [
    (20_000, 1_000, 25, "f8", "C"),
    (20_000, 1_000, 25, "f8", "F"),
    (20_000, 1_000, 25, "f4", "C"),
    (20_000, 1_000, 25, "f4", "F"),
    (20_000, 1_000, 5, "f8", "C"),
    (20_000, 1_000, 5, "f4", "F"),
    (5_000, 2_000, 100, "f8", "C"),
    (5_000, 1_000, 500, "f8", "C"),
    (5_000, 1_000, 500, "f4", "F"),
    (1_000, 1_000, 25, "f8", "C"),
    (20_000, 100, 25, "f8", "C"),
    (500_000, 8, 63, "f8", "C"),
    (500_000, 20, 25, "f4", "F"),
]
FIRST_GENE = """
import time, numpy as np, pandas as pd, lmm_gpu
obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 300), "donor": np.repeat(list("uvwxyz"), 100)})
Y = np.random.default_rng(0).normal(size=(600, 1))
if WAY == "fit":
    lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)", progress=False)
else:
    lmm_gpu.lmmfit(Y.T, np.ones((600, 1)), np.repeat(np.eye(6), 100, axis=0), 6)
print(time.process_time())
"""


def counts(cells: int) -> sparse.csr_array:
    """Counts of the shape of benchmarks/streaming_files.py."""
    rng = np.random.default_rng(0)
    share = rng.gamma(0.4, SHARE / 0.4, GENES)
    for _ in range(20):
        share = np.clip(share * SHARE / share.mean(), 5e-4, 0.97)
    blocks = [
        sparse.csr_array((rng.random((min(1000, cells - at), GENES), "f4") < share).astype("f4"))
        for at in range(0, cells, 1000)
    ]
    Y = sparse.csr_array(sparse.vstack(blocks, format="csr"))
    Y.data += rng.poisson(3 * share[Y.indices]).astype("f4")
    return Y


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


class InLoops:
    """CPU seconds in the loops that run on threads, of which there is one here."""

    def __init__(self) -> None:
        self.seconds, self._calls = 0.0, (GroupTables._on_threads, GeneQueues.add)

    def _timed(self, call: Callable[..., object]) -> Callable[..., object]:
        def timed(*given: object, **options: object) -> object:
            start = time.process_time()
            found = call(*given, **options)
            self.seconds += time.process_time() - start
            return found

        return timed

    def __enter__(self) -> InLoops:
        GroupTables._on_threads, GeneQueues.add = map(self._timed, self._calls)
        return self

    def __exit__(self, *_: object) -> None:
        GroupTables._on_threads, GeneQueues.add = self._calls


def measure(name: str, Y: object, transform: str | None, repeats: int) -> dict:
    """Million values per CPU second of a matrix by the compiled pass and by SciPy's, and what threads bring."""
    size = Y.nnz if sparse.issparse(Y) else Y.size
    obs = table(Y.shape[0], np.random.default_rng(1))
    design = build_design(FORMULA, obs)

    def summed(**given: object) -> float:
        with open_source((Y, obs)) as source, InLoops() as loops:
            accumulate(source, design, transform and Transform(transform), **given)
        return loops.seconds

    inside: list[float] = []

    def on_one_thread() -> None:
        inside.append(summed(fused=True, threads=1))

    summed(fused=True, threads=2)  # loads numba and compiles, or reads what it compiled
    runs = []
    for _ in range(repeats):
        one, two = seconds(on_one_thread), seconds(lambda: summed(fused=True, threads=2))
        runs.append((*one, two[1], inside[-1], seconds(lambda: summed(fused=False))[0]))
    cpu, wall, wall_two, loops, scipys = (min(column) for column in zip(*runs, strict=True))
    serial = max(cpu - loops, 0.0) / cpu
    found = {
        "values": size,
        "loops_million_per_second": size / loops / 1e6,
        "pass_million_per_second": size / cpu / 1e6,
        "times_scipy": scipys / cpu,
        "two_threads": wall / wall_two,
        "serial_share": serial,
        "projected_on_16_cores": 1 / (serial + (1 - serial) / 16),
    }
    print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def products(n: int, m: int, q: int, dtype: str, order: str, repeats: int) -> dict:
    """`lmmfit`, and `sslmm` alone, relative to Y [X Z] and the squares of the rows of Y; F order is that of Y.T."""
    rng = np.random.default_rng(0)
    g = rng.integers(0, q, n)
    X = np.column_stack([np.ones(n), g % 2, rng.normal(size=n), rng.integers(0, 2, (n, 5))]).astype(float)
    Z = np.eye(q)[g]
    Y, XZ = np.asarray(rng.standard_normal((m, n), dtype), order=order), np.hstack([X, Z]).astype(dtype)
    works = {
        "lmmfit": lambda: lmm_gpu.lmmfit(Y, X, Z, q, is_counts=False),
        "sslmm": lambda: lmm_gpu.sslmm(X, Y, Z, d=q, is_counts=False),
        "plain": lambda: (Y @ XZ, np.einsum("ij,ij->i", Y, Y)),
    }
    runs = [[seconds(work)[0] for work in works.values()] for _ in range(repeats + 1)][1:]
    ours, sums, plain = (min(column) for column in zip(*runs, strict=True))
    found = {"lmmfit_over_products": ours / plain, "sslmm_over_products": sums / plain}
    print(f"{m} genes x {n} cells, q={q}, {dtype} {order}: lmmfit {ours / plain:.2f} x, sslmm {sums / plain:.2f} x")
    return {"cells": n, "genes": m, "q": q, "type": dtype, "order": order, **found}


def first_gene(way: str, repeats: int) -> float:
    """CPU seconds of a new process up to the estimates of one gene."""
    command = [sys.executable, "-c", f"WAY = {way!r}\n{FIRST_GENE}"]
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [
        subprocess.run(command, env=compiled, capture_output=True, text=True, check=True) for _ in range(repeats + 1)
    ]
    times = [float(run.stdout) for run in runs[1:]]
    print(f"first gene, {way}: {min(times):.2f} s", flush=True)
    return min(times)


def main() -> None:
    parser = machine.parser("cell_pass", __doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    share, repeats = (20 if options.quick else 1), 1 if options.quick else options.repeats
    result: dict = {"formula": FORMULA, "formats": {}}
    if can_fuse():
        csr = counts(CELLS // share)
        dense = csr[: DENSE_CELLS // share, :DENSE_GENES].toarray()
        values = np.random.default_rng(2).normal(size=dense.shape).astype("f4")
        inputs = {"csr": csr, "csc": csr.tocsc(), "dense_counts": dense, "dense_values": values}
        for name, Y in inputs.items():
            transform = None if name == "dense_values" else "log2p1"
            result["formats"][name] = measure(name, Y, transform, repeats)
    result["products"] = [products(n // share, *rest, repeats) for n, *rest in PRODUCTS]
    result["first_gene_seconds"] = {way: first_gene(way, repeats) for way in ("fit", "lmmfit")}
    print(json.dumps(result, indent=2))
    machine.write(result, options)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
