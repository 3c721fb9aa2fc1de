"""The same fit on every array library that is present, and a model of its time on CUDA from counted launches and bytes.

Measured: seconds on this machine. Modelled, and said to be: what the launches, bytes and products that the engine asks
of CuPy would take on a GPU. They are counted on tests/cupy_like.py, which computes with NumPy and counts as CuPy 14.2
launches, with few genes; bytes and products are scaled to all genes, launches are not: they do not depend on genes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tb_statistics import simulate

import lmm_gpu
from lmm_gpu import scoring
from lmm_gpu.devices import cuda_count, describe_cuda
from lmm_gpu.fitting import FitOptions, estimate_block, fit_summary
from lmm_gpu.model import MixedModel
from lmm_gpu.results import LMMFit

GENES, REPEATS = 2_000, 2
#: Genes for which the model speaks: a few tens of them are counted.
MODELLED, COUNTED = 11_596, (32, 64)
MODELS = {1: "donor", 2: "donor + batch"}


# --- measured -------------------------------------------------------------------------------------


def libraries() -> Iterator[tuple[str, str, Callable | None, str]]:
    """Name, version, what makes arrays (None: the device does), and device, of what is installed."""
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
    """Genes leave the batch together: JAX compiles every operation anew for every number of genes."""
    before = scoring.WORTH_LEAVING
    scoring.WORTH_LEAVING = 1.0 if wanted else before
    try:
        yield
    finally:
        scoring.WORTH_LEAVING = before


def show(row: dict[str, Any]) -> None:
    times = f"{row['seconds']:8.3f} s (first {row['first_seconds']:.2f} s) {row['times_numpy']:6.1f} x NumPy's"
    print(f"{row['library']:18s} {row['model']:15s} {times}  deviates by {row['deviation']:.0e}", flush=True)


# --- modelled -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """What is assumed of a GPU; the defaults are those of data sheets, H200-class."""

    us_per_launch: float = 6.0  #: the host's time to ask for one kernel, library call or copy
    memory_tb_per_s: float = 4.8
    fp64_tflop_per_s: float = 60.0
    host_gb_per_s: float = 25.0  #: copies from the host


def work_of_fit(effects: int, genes: int) -> tuple[Work, Work]:
    """Count what the genes share, and a block of all `genes`."""
    import cupy_like

    summary = simulate(max(COUNTED), effects)
    options, put = FitOptions(), cupy_like.asarray
    shape = summary.select(slice(0))
    model, shared = counted(lambda: MixedModel.decompose(shape.on(put), "REML", None, genes))
    identity = put(np.eye(summary.XX.shape[0]))
    coefficients, prepared = counted(lambda: model.prepare(identity, gradient=False))
    shared = Work(**{name: value + getattr(prepared, name) for name, value in asdict(shared).items()})

    def block(count: int) -> Work:
        part = summary.select(slice(count))
        return counted(lambda: estimate_block(model.with_genes(part.on(put)), None, coefficients, options))[1]

    few, more = map(block, COUNTED)
    slope = {name: (getattr(more, name) - getattr(few, name)) / (COUNTED[1] - COUNTED[0]) for name in asdict(few)}
    scaled = {
        name: getattr(more, name) + slope[name] * (genes - COUNTED[1]) for name in ("bytes", "host_bytes", "flop")
    }
    return shared, Work(max(few.launches, more.launches), max(few.waits, more.waits), **scaled)


def seconds(work: Work, gpu: Gpu) -> dict[str, float]:
    """Time of each kind of work; asking overlaps with working, so the truth is between `least` and `most`."""
    asking = 1e-6 * gpu.us_per_launch * work.launches
    copying = 1e-9 * work.host_bytes / gpu.host_gb_per_s
    working = 1e-12 * (work.bytes / gpu.memory_tb_per_s + work.flop / gpu.fp64_tflop_per_s)
    return {
        "launching": asking,
        "copying": copying,
        "memory": 1e-12 * work.bytes / gpu.memory_tb_per_s,
        "products": 1e-12 * work.flop / gpu.fp64_tflop_per_s,
        "least": max(asking, copying + working),
        "most": asking + copying + working,
    }


ASSUMPTIONS = [
    "nothing of this was run on a GPU: launches, bytes and products are counted on an imitation of CuPy 14.2",
    "every operation reads its operands from memory and writes its result there: no cache, no overlap of kernels",
    f"bytes and products grow linearly in genes, from counts of {COUNTED[0]} and {COUNTED[1]} genes",
    "launches and waits do not grow with genes: as many iterations as the slowest of the counted genes; one block",
    "kernels reach the bandwidth and the rate of products that are given: small ones do not",
    "factorisations of the design, once for all genes, are counted as launches and bytes only",
    "kernels are compiled already",
]


def model_cuda(genes: int, gpu: Gpu) -> dict[str, Any]:
    """Model the time of a fit on CUDA."""
    rows = []
    for effects, name in MODELS.items():
        for part, work in zip(("shared by all genes", "all genes"), work_of_fit(effects, genes), strict=True):
            rows.append(
                {"model": name, "genes": genes, "part": part, "work": asdict(work), "seconds": seconds(work, gpu)}
            )
            time_, counts = rows[-1]["seconds"], f"{work.launches:6,} launches {1e-9 * work.bytes:8.2f} GB"
            rates = f"{1e-9 * work.flop:8.1f} GFLOP: {1e3 * time_['least']:.1f} to {1e3 * time_['most']:.1f} ms"
            print(f"{name:15s} {part:20s} {counts} {rates}", flush=True)
    return {"what": "a model, not measured", "assumptions": ASSUMPTIONS, "gpu": asdict(gpu), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=GENES, help="that are fitted on every library")
    parser.add_argument("--modelled", type=int, default=MODELLED, help="genes for which CUDA is modelled")
    for name, value in asdict(Gpu()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=f"of the model ({value})")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "backends.json")
    options = parser.parse_args()
    gpu = Gpu(**{name: getattr(options, name) for name in asdict(Gpu())})
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    warnings.simplefilter("ignore")
    measured = compare(options.genes)
    print(f"CUDA, a model and not measured ({gpu}):")
    record = {
        "versions": {"lmm_gpu": lmm_gpu.__version__, "python": platform.python_version()},
        "processors": os.cpu_count(),
        "measured": measured,
        "cuda": model_cuda(options.modelled, gpu),
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
