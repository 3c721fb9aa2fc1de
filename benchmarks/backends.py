"""Fit on every installed array library, and model the time on CUDA from counted launches and bytes.

Measured: seconds on this machine. Modelled, and labelled as such: the time that the launches, bytes and matrix products
of the engine would take on a GPU (`work_model.py`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import machine
import numpy as np
from tb_statistics import simulate
from work_model import ASSUMPTIONS, COUNTED, GPUS, Rates, seconds, work_of_fit

import lmm_gpu
from lmm_gpu.backend.devices import cuda_count, describe_cuda
from lmm_gpu.estimation import fisher_scoring
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.results.lmm_fit import LMMFit

GENES, QUICK_GENES, REPEATS = 2_000, 200, 2
#: Number of genes of the model.
MODELLED = 11_596
MODELS = {1: "donor", 2: "donor + batch"}


# --- measured -------------------------------------------------------------------------------------


def libraries() -> Iterator[tuple[str, str, Callable | None, str]]:
    """Installed libraries: name, version, array constructor (None: made by the device), and device."""
    yield "numpy", np.__version__, None, "cpu"
    for name in ("array_api_strict", "torch", "jax"):
        try:
            library = __import__(name)
        except ImportError:
            continue
        if name == "jax":
            library.config.update("jax_enable_x64", True)
        yield name, library.__version__, library.numpy.asarray if name == "jax" else library.asarray, "auto"
    count, reason = cuda_count()
    if count:
        yield "cupy", describe_cuda()["cupy"], None, "cuda"
    else:
        print(f"cupy: left out, {reason}")


def measure(summary: lmm_gpu.SummaryStats, wanted: LMMFit, asarray: Callable | None, device: str) -> dict[str, Any]:
    """Seconds of the first fit and of the best later one, and the largest deviation from NumPy's theta."""
    summary = summary if asarray is None else summary.on(asarray)
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        fit = fit_summary(summary, FitOptions(device=device))
        times.append(time.perf_counter() - start)
    deviation = np.abs(fit.estimates.theta - wanted.estimates.theta) / wanted.estimates.theta[-1]
    return {"first_seconds": times[0], "seconds": min(times[1:]), "deviation": float(deviation.max())}


def compare(genes: int) -> list[dict[str, Any]]:
    """Time every library on every model."""
    rows = []
    for effects, model in MODELS.items():
        summary = simulate(genes, effects)
        wanted = fit_summary(summary, FitOptions(device="cpu"))
        baseline = None
        for name, version, asarray, device in libraries():
            with one_shape(name == "jax"):
                row = {"library": name, "version": version, "model": model, "genes": genes}
                row |= measure(summary, wanted, asarray, device)
            baseline = baseline or row["seconds"]
            rows.append(row | {"times_numpy": row["seconds"] / baseline})
            show(rows[-1])
    return rows


@contextmanager
def one_shape(wanted: bool) -> Iterator[None]:
    """Keep the number of genes of a batch constant: JAX recompiles every operation for every number of genes."""
    before = fisher_scoring.WORTH_LEAVING
    fisher_scoring.WORTH_LEAVING = 1.0 if wanted else before
    try:
        yield
    finally:
        fisher_scoring.WORTH_LEAVING = before


def show(row: dict[str, Any]) -> None:
    times = f"{row['seconds']:8.3f} s (first {row['first_seconds']:.2f} s) {row['times_numpy']:6.1f} x NumPy's"
    print(f"{row['library']:18s} {row['model']:15s} {times}  deviates by {row['deviation']:.0e}", flush=True)


# --- modelled -------------------------------------------------------------------------------------


def model_cuda(genes: int, gpu: Rates) -> dict[str, Any]:
    """Model the time of a fit on CUDA."""
    rows = []
    for effects, name in MODELS.items():
        for part, work in work_of_fit(simulate(max(COUNTED), effects), genes).items():
            rows.append(
                {"model": name, "genes": genes, "part": part, "work": asdict(work), "seconds": seconds(work, gpu)}
            )
            time_, counts = rows[-1]["seconds"], f"{work.launches:6,} launches {1e-9 * work.bytes:8.2f} GB"
            flop = work.product_flop + work.solve_flop + work.eigen_flop
            rates = f"{1e-9 * flop:8.1f} GFLOP: {1e3 * time_['least']:.1f} to {1e3 * time_['most']:.1f} ms"
            print(f"{name:15s} {part:20s} {counts} {rates}", flush=True)
    return {"what": "a model, not measured", "assumptions": ASSUMPTIONS, "gpu": asdict(gpu), "rows": rows}


def main() -> None:
    parser = machine.parser("backends", __doc__)
    parser.add_argument("--genes", type=int, help=f"that are fitted on every library: {GENES}, or {QUICK_GENES}")
    parser.add_argument("--modelled", type=int, default=MODELLED, help="genes for which CUDA is modelled")
    for name, value in asdict(GPUS["H200"]).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=f"of the model ({value})")
    options = parser.parse_args()
    gpu = Rates(**{name: getattr(options, name) for name in asdict(GPUS["H200"])})
    warnings.simplefilter("ignore")
    measured = compare(options.genes or (QUICK_GENES if options.quick else GENES))
    print(f"CUDA, a model and not measured ({gpu}):")
    machine.write({"measured": measured, "cuda": model_cuda(options.modelled, gpu)}, options)


if __name__ == "__main__":
    main()
