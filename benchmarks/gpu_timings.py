"""Stages of `gpu.py` that time a device: fits, sums over cells, single operations, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

import lmm_gpu
from lmm_gpu.backend.cuda_kernels import without_kernels
from lmm_gpu.backend.devices import Cuda
from lmm_gpu.cli.selftest.cases import statistics
from lmm_gpu.estimation.block_size import Shape
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.alignment import default_names
from lmm_gpu.sumstats.cuda_sums import DeviceTables
from lmm_gpu.sumstats.device_chunks import copied
from lmm_gpu.sumstats.grouped_design import GroupedDesign
from lmm_gpu.sumstats.summary_stats import SummaryStats
from lmm_gpu.sumstats.transform import Transform

from .gpu_rows import Rows, largest, seconds, synchronise
from .tb_statistics import simulate

#: Largest deviation of a fit's estimates from the host's, in units of the residual variance.
FIT_LIMIT = 1e-6
#: Genes and random effects of the fits that are timed.
FITS = ((11_596, 1), (11_596, 2), (100_000, 1), (500, "slope"))


def study(genes: int, effects: int | str, quick: bool) -> SummaryStats:
    """Statistics in the shape of benchmarks/README, small ones for a rehearsal; 2,899 genes are drawn and repeated."""
    drawn = min(genes, 24 if quick else 2_899)
    few = statistics(int(effects), drawn) if quick else simulate(drawn, effects, cells=100_000)
    times = -(-genes // drawn)
    tiled: dict[str, Any] = {name: np.tile(getattr(few, name), times) for name in ("XY", "ZY", "Ynorm")}
    names = default_names("Gene", drawn * times)
    return replace(few, **tiled, Ysum=None, features=names, centred=None).select(slice(genes))


# --- fits -----------------------------------------------------------------------------------------


def fits(rows: Rows, quick: bool) -> None:
    """Time fits on the device, with and without kernels, against the host."""
    for genes, effects in ((48, 1), (24, 2)) if quick else FITS:
        summary = study(genes, effects, quick)
        rows.add(f"{genes:,} genes, random effects: {effects}", lambda s=summary, q=quick: _fit(s, q))


def _fit(summary: SummaryStats, quick: bool) -> dict[str, Any]:
    import cupy

    device, repeats = FitOptions(device="cuda"), 1 if quick else 3
    start = time.perf_counter()
    found = fit_summary(summary, device).estimates
    row: dict[str, Any] = {"first, with compilation": time.perf_counter() - start}
    row["device"] = seconds(lambda: fit_summary(summary, device), repeats)
    moved = summary.on(cupy.asarray)
    row["device, statistics there"] = seconds(lambda: fit_summary(moved, FitOptions()), repeats)
    with without_kernels():
        row["device, without kernels"] = seconds(lambda: fit_summary(summary, device), 1)
    start = time.perf_counter()
    wanted = fit_summary(summary, FitOptions(device="cpu")).estimates
    row["host"] = time.perf_counter() - start
    row["one contrast"] = seconds(lambda: fit_summary(moved, FitOptions()).test("X2", df="satterthwaite"), 1)
    at = np.isfinite(wanted.theta).all(axis=0)
    row["deviation"] = largest(found.theta[:, at], wanted.theta[:, at], wanted.theta[-1, at])
    row["other status"] = int((found.status != wanted.status).sum())
    row["iterations"] = float(np.nanmean(wanted.niter))
    return row | {"ok": row["deviation"] < FIT_LIMIT and not row["other status"]}


# --- sums over cells --------------------------------------------------------------------------------


def sums(rows: Rows, quick: bool) -> None:
    """Time sums over cells: of the host, of chunks that are copied, and of chunks that are there."""
    Y, obs = _cells(quick)
    formula, wanted = "~ kind + depth + (1 | donor)", {}

    def public(device: str, values: Any) -> dict[str, Any]:
        start = time.perf_counter()
        found = lmm_gpu.summarize((values, obs), formula, transform="log1p", device=device)
        took = time.perf_counter() - start
        wanted.setdefault("host", found)
        names = ("XY", "ZY", "Ynorm")
        a, b = ([getattr(one, name) for name in names] for one in (found, wanted["host"]))
        deviation = max(largest(x, y, np.abs(y).max()) for x, y in zip(a, b, strict=True))
        return {"seconds": took, "million values per s": 1e-6 * Y.nnz / took, "deviation": deviation} | {
            "ok": deviation < 1e-12
        }

    rows.add("host, CSR", lambda: public("cpu", Y))
    for layout, values in {"CSR": Y, "dense": Y[: 200 if quick else 20_000].toarray()}.items():
        if layout == "CSR":
            rows.add("CSR copied from the host", lambda: public("cuda", Y))
        rows.add(f"kernels alone, {layout}", lambda v=values: _kernels(v, obs, formula))


def _cells(quick: bool) -> tuple[Any, pd.DataFrame]:
    n, m, stored, donors = (400, 60, 10, 8) if quick else (50_000, 8_000, 700, 259)
    rng = np.random.default_rng(0)
    indices = np.sort(rng.integers(0, m, (n, stored), dtype=np.int32), axis=1)
    kept = np.ones((n, stored), bool)
    kept[:, 1:] = np.diff(indices, axis=1) > 0
    begins = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    values = rng.integers(1, 5, int(begins[-1])).astype(np.float32)
    obs = pd.DataFrame({"donor": rng.integers(0, donors, n).astype(str), "kind": rng.integers(0, 3, n).astype(str)})
    obs["depth"] = rng.normal(size=n)
    return scipy.sparse.csr_array((values, indices[kept], begins), shape=(n, m)), obs


def _kernels(values: Any, obs: pd.DataFrame, formula: str) -> dict[str, Any]:
    import cupy

    design = GroupedDesign.of(lmm_gpu.design.design.build_design(formula, obs.iloc[: values.shape[0]]))
    tables, device = DeviceTables(design, values.shape[1], None, cupy.zeros(1)), Cuda(0)
    there = copied(values, device).arrived()
    whole = (slice(0, values.shape[0]), slice(0, values.shape[1]))

    def add() -> np.ndarray:
        tables.sums.fill(0)
        tables.add(*whole, there, Transform("log1p"))
        found: np.ndarray = tables.sums.get()
        return found

    first = add()
    again = all(np.array_equal(first, add()) for _ in range(3))
    count = values.nnz if scipy.sparse.issparse(values) else values.size
    took = seconds(lambda: tables.add(*whole, there, Transform("log1p")))
    copying = seconds(lambda: copied(values, device).arrived())
    rates = {"million values per s": 1e-6 * count / took, "copying": copying}
    return {"ok": again, "the same bit by bit": again, "seconds": took} | rates


# --- single operations ------------------------------------------------------------------------------


def rates(rows: Rows, quick: bool) -> None:
    """Time calls from Python, copies, and factorisations: what the model of the guide assumes."""
    import cupy

    x, count = cupy.ones(8), 2**16 if quick else 2**26
    host, d = np.ones(count), cupy.ones(count)
    calls: dict[str, Callable[[], Any]] = {
        "x + 1": lambda: x + 1.0,
        "sum": lambda: cupy.sum(x),
        "slice": lambda: x[0:5],
        "take": lambda: cupy.take(x, d[:2].astype(int)),
        "product": lambda: x @ x,
        "cholesky of a stack": lambda: cupy.linalg.cholesky(cupy.ones((1, 1, 1))),
    }
    rows.add("microseconds of the host per call", lambda: {name: _per_call(call) for name, call in calls.items()})
    byte = 8e-9 * count
    rows.add("GB/s to the device", lambda: {"rate": byte / seconds(lambda: cupy.asarray(host))})
    rows.add("GB/s from the device", lambda: {"rate": byte / seconds(d.get)})
    rows.add("GB/s within the device", lambda: {"rate": 2 * byte / seconds(lambda: d + 1.0)})
    for size, batch in ((10, 64),) if quick else ((10, 11_596), (46, 11_596), (259, 500)):
        rows.add(f"ms of {batch:,} systems of {size} rows", lambda s=size, b=batch: _systems(s, b))
    for size in (20,) if quick else (63, 259, 518):
        rows.add(f"ms of eigenvectors of {size} rows", lambda size=size: _eigen(size))


def _per_call(function: Callable[[], Any], repeats: int = 200) -> float:
    function()
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    took = time.perf_counter() - start
    synchronise()
    return 1e6 * took / repeats


def _systems(size: int, batch: int) -> dict[str, Any]:
    import cupy

    A = cupy.asarray(np.eye(size) + 0.1 / size)
    stack = cupy.ascontiguousarray(cupy.broadcast_to(A, (batch, size, size)))
    right = cupy.ones((batch, size, 1))
    work = {"cholesky": lambda: cupy.linalg.cholesky(stack), "solve": lambda: cupy.linalg.solve(stack, right)}
    return {name: 1e3 * seconds(function) for name, function in work.items()}


def _eigen(size: int) -> dict[str, Any]:
    import cupy

    A = np.random.default_rng(0).normal(size=(size, size))
    A = A @ A.T
    there = cupy.asarray(A)
    start = time.perf_counter()
    np.linalg.eigh(A)
    return {"device": 1e3 * seconds(lambda: cupy.linalg.eigh(there)), "host": 1e3 * (time.perf_counter() - start)}


# --- memory -----------------------------------------------------------------------------------------


def memory(rows: Rows, quick: bool) -> None:
    """Bytes of a gene against their prediction, memory over many fits, and a pool that is too small."""
    device = Cuda(0)
    for effects, genes in ((1, 128), (2, 24)) if quick else ((1, 65_535), (2, 11_596)):
        summary = study(genes, effects, quick)
        rows.add(f"bytes of a gene, random effects: {effects}", lambda s=summary: _bytes(s, device))
    summary = study(200 if quick else 4_000, 1, quick)
    rows.add("memory does not grow with fits", lambda: _growth(summary, device))
    rows.add("a pool that is too small", lambda: _small_pool(summary, device))


def _bytes(summary: SummaryStats, device: Cuda) -> dict[str, Any]:
    device.release()
    before = device.pool_bytes()[1]
    fit_summary(summary, FitOptions(device=device, block=summary.m))
    taken = (device.pool_bytes()[1] - before) / summary.m
    predicted = Shape(summary.XX.shape[0], summary.d).bytes_per_gene()
    return {"taken": taken, "predicted": predicted, "ratio": taken / predicted}


def _growth(summary: SummaryStats, device: Cuda) -> dict[str, Any]:
    seen = []
    for _ in range(12):
        fit_summary(summary, FitOptions(device=device))
        seen.append(device.pool_bytes())
    return {"ok": seen[-1] == seen[3], "used and held after each fit": seen}


def _small_pool(summary: SummaryStats, device: Cuda) -> dict[str, Any]:
    options = FitOptions(device=device, block=summary.m)
    wanted = fit_summary(summary, options).estimates
    device.release()
    before = device.pool_bytes()
    fit_summary(summary, options)
    room = (device.pool_bytes()[1] - before[1]) // 3
    device.release()
    with device.limited(device.pool_bytes()[0] + room):
        found = fit_summary(summary, options).estimates
    deviation = largest(found.theta, wanted.theta, wanted.theta[-1])
    return {"ok": deviation < FIT_LIMIT, "bytes": room, "deviation": deviation}
