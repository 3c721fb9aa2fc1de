"""Timings of copies, products and fits on a device, relative to its own rates of copies and matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...backend.devices import Device
from ...estimation.fit_options import FitOptions
from ...results.fitting import fit_summary
from ...sumstats.products import gene_products
from .cases import LEVELS, repeated, statistics

#: Number of runs; the fastest counts.
REPEATS = 3
#: Number of simulated genes; the others repeat them.
DRAWN = 500
#: A device's own rates, to which others are compared.
WITHIN, FROM_HOST, MATMUL = "copy within the device", "copy from the host", "matrix product"


def rates(device: Device, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Time the parts of a fit.

    Parameters
    ----------
    device : Device
    quick : bool
        Small sizes, which only show that everything runs.

    Yields
    ------
    dict
        what, size, seconds; gb_per_s and gflop_per_s where they apply, else None; share, the fraction of the rate
        that `compared_with` names: copies within the memory of this device, copies from the host, or matrix products.
        The bytes of a fit are a lower bound: its statistics, read once per iteration.
    """
    own: dict[str, float] = {}
    for row in _own(device, quick):
        own[row["what"]] = row["gb_per_s"] or row["gflop_per_s"]
        yield row | {"compared_with": None, "share": None}
    for compared_with, row in _work(device, quick):
        rate = row["gflop_per_s"] if compared_with == MATMUL else row["gb_per_s"]
        yield row | {"compared_with": compared_with, "share": rate / own[compared_with]}


def _own(device: Device, quick: bool) -> Iterator[dict[str, Any]]:
    # peak rates: 64-bit numbers, large arrays
    count, rows = (2**20, 512) if quick else (2**26, 4096)
    host = np.ones(count)
    x, A = device.put(host), device.put(np.ones((rows, rows)))  # (count,), (rows, rows)
    yield _row(WITHIN, f"{count:,} numbers", _seconds(device, lambda: x + 1.0), nbytes=16 * count)
    yield _row(FROM_HOST, f"{count:,} numbers", _seconds(device, lambda: _copied(device, host)), nbytes=8 * count)
    yield _row(MATMUL, f"{rows:,} x {rows:,}", _seconds(device, lambda: A @ A), flop=2 * rows**3)


def _work(device: Device, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    n, m, p, q = (2_000, 200, 20, 100) if quick else (50_000, 2_000, 20, 100)
    rng = np.random.default_rng(0)
    host = [rng.normal(size=(n, width)) for width in (p, q, m)]
    shape = f"{n:,} cells x {m:,} genes"
    seconds = _seconds(device, lambda: _copied(device, host[2]))
    yield FROM_HOST, _row("cells from the host", shape, seconds, nbytes=8 * n * m)
    put = [device.put(values) for values in host]
    seconds = _seconds(device, lambda: gene_products(*put))
    put.clear()
    yield MATMUL, _row("products of cells", shape, seconds, nbytes=8 * n * m, flop=2 * n * m * (p + q))
    for effects, genes in ((1, 2_000), (2, 1_000)) if quick else ((1, 100_000), (2, 20_000)):
        yield WITHIN, _fit(device, effects, genes)


def _fit(device: Device, effects: int, genes: int) -> dict[str, Any]:
    summary = repeated(statistics(effects, DRAWN), genes // DRAWN)
    options = FitOptions(device=device)
    iterations = float(np.nansum(fit_summary(summary, options).niter))
    seconds = _seconds(device, lambda: fit_summary(summary, options))
    what = "fit, one effect" if effects == 1 else "fit, two effects"
    return _row(what, f"{genes:,} genes", seconds, nbytes=int(8 * (sum(LEVELS[:effects]) + 1) * iterations))


def _seconds(device: Device, function: Callable[[], Any]) -> float:
    """Return the shortest time of several runs after a first one, until the device has finished."""
    times = []
    with device.entered():
        function()
        for _ in range(REPEATS):
            device.synchronise()
            start = time.perf_counter()
            function()
            device.synchronise()
            times.append(time.perf_counter() - start)
    return min(times)


def _copied(device: Device, x: np.ndarray) -> Any:
    # the host uses an array without a copy
    return x.copy() if device.threaded else device.put(x)


def _row(what: str, size: str, seconds: float, *, nbytes: int = 0, flop: int = 0) -> dict[str, Any]:
    rate = {"gb_per_s": nbytes, "gflop_per_s": flop}
    return {"what": what, "size": size, "seconds": seconds} | {
        name: 1e-9 * count / seconds if count else None for name, count in rate.items()
    }
