"""Model of the time and cost of summarize + fit + test, up to 10^8 cells and 8 GPUs.

Rates are measured on this machine (`machine_rates.py`), the work of a fit is counted (`work_model.py`); GPUs, disks and
larger machines are assumptions. Sizes that this machine can handle are run, and the error of the model is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from machine_rates import FORMULAS, Machine, best, measure
from streaming_files import make, table
from tb_statistics import draw
from work_model import ASSUMPTIONS, COUNTED, GPUS, Rates, Work, on_the_host, scaled, seconds, work_of_fit

import lmm_gpu
from lmm_gpu.backend.blocks import even_blocks
from lmm_gpu.design.design import build_design
from lmm_gpu.estimation.block_size import Shape, genes_per_block
from lmm_gpu.sumstats.chunk_plan import _MOST_VALUES as CHUNK_VALUES

CELLS = tuple(10**power for power in range(4, 9))
GENES, SHARE, DONORS, EFFECTS = 20_000, 0.08, (40, 259, 1_000), (1, 2)
CORES = (1, 2, 4, 8, 16, 32, 64)
STAGES = ("design", "reading", "adding", "fit", "test")
CONTRAST = "status[T.control]"
CHECKED = ((10_000, 1_000), (10_000, 20_000), (50_000, 11_596), (100_000, 1_000))

ASSUMED = [
    "a model, not measured, but for the rows of `checks`",
    "files lie in the cache, or on a disk that reads `disk_gb_per_s`; non-zeros are small counts of float32 with int32 "
    "places, cells lie in random order",
    "a process reads and decompresses on one thread while another thread adds up; several are `lmm-gpu summarize` "
    "of as many files, each with its share of the cells, which are merged; merging takes no time",
    "sparse cells are accumulated on the host, with any device",
    "cores are as fast as one here while all are busy; calls hold Python's lock and gain nothing from cores",
    "genes are divided evenly between GPUs; what they share is computed on each",
    *ASSUMPTIONS,
]


# --- workload and machine --------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Size of an analysis."""

    cells: int
    genes: int = GENES
    donors: int = 259
    effects: int = 1
    share: float = SHARE  #: share of nonzeros

    @property
    def non_zeros(self) -> float:
        """Of the matrix."""
        return self.cells * self.genes * self.share


@dataclass(frozen=True)
class Place:
    """Machine of a prediction."""

    name: str
    cores: int
    readers: int = 1  #: processes, each of which reads, decompresses and accumulates its share of the cells
    gpu: str | None = None
    gpus: int = 0
    compression: str = "gzip"
    disk_gb_per_s: float = 7.0  #: an NVMe disk


@dataclass(frozen=True)
class Counted:
    """Counted work of a fit and a test of all genes, on the host and on CUDA."""

    p: int
    d: tuple[int, ...]
    host: dict[str, Work]
    cuda: dict[str, Work]

    @classmethod
    def of(cls, summary: lmm_gpu.SummaryStats, genes: int) -> Counted:
        """Count with a few genes of `summary`."""
        step = summary.m // max(COUNTED)
        few = summary.select(slice(0, step * max(COUNTED), step))
        with on_the_host():
            host = work_of_fit(few, genes)
        return cls(summary.XX.shape[0], tuple(summary.d), host, work_of_fit(few, genes))


# --- the model: pure functions ----------------------------------------------------------------------


def summing_up(machine: Machine, size: Size, place: Place, q: int) -> dict[str, float]:
    """Seconds for the design, for reading, and for the accumulation that is not hidden behind reading."""
    stored = machine.stored_bytes[place.compression]
    decompressing = size.non_zeros / machine.read_per_s[place.compression] / place.readers
    reading = max(decompressing, 1e-9 * size.non_zeros * stored / place.disk_gb_per_s)
    chunks = math.ceil(size.non_zeros / CHUNK_VALUES)
    numbers = chunks * q * size.genes
    adding = size.non_zeros * machine.add_seconds[size.effects] + numbers * machine.number_seconds
    adding /= place.readers
    return {
        "design": machine.fixed_seconds["design"] + size.cells * machine.cell_seconds[size.effects] / place.readers,
        "reading": reading,
        "adding": max(adding - reading, 0.0) if _beside(place) else adding,
    }


def on_cores(rates: Rates, cores: int) -> Rates:
    """Rates of several cores; calls and eigenvectors use one core."""
    grow = ("memory_tb_per_s", "product_tflop_per_s", "solve_tflop_per_s")
    return replace(rates, **{name: cores * getattr(rates, name) for name in grow})


def computing(machine: Machine, size: Size, place: Place, counted: Counted) -> dict[str, float]:
    """Seconds for the fit, and for a test of one contrast."""
    if place.gpu is None:
        work, once, all_ = counted.host, machine.host, on_cores(machine.host, place.cores)
        most = genes_per_block(Shape(counted.p, counted.d), None)
        blocks = len(list(even_blocks(size.genes, most, place.cores)))
        parts = {name: _in_blocks(work[name], blocks) for name in ("all genes", "test of all genes")}
    else:
        work, once = counted.cuda, GPUS[place.gpu]
        all_ = once
        parts = {name: scaled(work[name], 1 / place.gpus) for name in ("all genes", "test of all genes")}
    found = {
        "fit": seconds(work["shared by all genes"], once)["most"] + seconds(parts["all genes"], all_)["most"],
        "test": seconds(work["contrast"], once)["most"] + seconds(parts["test of all genes"], all_)["most"],
    }
    found["test"] += size.genes * machine.row_seconds  # the table, on the host
    return {name: value + machine.fixed_seconds[name] for name, value in found.items()}


def _in_blocks(work: Work, blocks: int) -> Work:
    return replace(work, launches=work.launches * blocks)


def predict(machine: Machine, size: Size, place: Place, counted: Counted) -> dict[str, float]:
    """Seconds of every stage."""
    return summing_up(machine, size, place, sum(counted.d)) | computing(machine, size, place, counted)


def bottleneck(stages: dict[str, float], place: Place) -> str:
    """The stage that takes the longest."""
    beside = stages["adding"] > 0 and _beside(place)
    return max(stages, key=lambda name: stages[name] + (stages["reading"] if beside and name == "adding" else 0.0))


def _beside(place: Place) -> bool:
    # True if every process has two cores
    return place.cores >= 2 * place.readers


@dataclass(frozen=True)
class Prices:
    """Price per hour, in any currency."""

    node: float
    gpu: float = 0.0  #: extra price of each


def row(machine: Machine, size: Size, place: Place, counted: Counted, prices: Prices | None = None) -> dict[str, Any]:
    """One prediction: seconds of each stage, bottleneck, bytes held, and cost."""
    stages = predict(machine, size, place, counted)
    total = sum(stages.values())
    q = sum(counted.d)
    held = size.cells * machine.cell_bytes[size.effects] + place.readers * 8 * size.genes * (counted.p + q)
    return {
        "what": "model",
        **asdict(size),
        "place": place.name,
        "compression": place.compression,
        "readers": place.readers,
        "cores": place.cores,
        "seconds": stages,
        "total_seconds": total,
        "bottleneck": bottleneck(stages, place),
        "memory_gb": 1e-9 * held,
        "node_hours": total / 3600,
        "cost": None if prices is None else (prices.node + place.gpus * prices.gpu) * total / 3600,
    }


# --- check on this machine ---------------------------------------------------------------


def check(machine: Machine, folder: Path, cells: int, genes: int, effects: int) -> dict[str, Any]:
    """Run summarize, fit and test, and predict their times; the file is created only if it is missing."""
    path = folder / (f"{cells}_gzip.h5ad" if genes == 11_596 else f"{cells}_{genes}_gzip.h5ad")
    make(path, cells, "gzip", genes=genes)
    options: dict[str, Any] = {"transform": "log2p1", "progress": False, "device": "cpu"}
    measured, made = {}, {}
    runs = {
        "summing up": lambda: lmm_gpu.summarize(path, FORMULAS[effects], **options),
        "fit": lambda: lmm_gpu.fit(made["summing up"], device="cpu", progress=False),
        "test": lambda: made["fit"].test(CONTRAST),
    }
    for name, run in runs.items():
        start = time.perf_counter()
        made[name] = run()
        measured[name] = time.perf_counter() - start
        if cells * genes < 10**9:
            measured[name] = min(measured[name], best(run, 2))
    summary = made["summing up"]
    place = Place("here", machine.cores)
    size = Size(cells, genes, summary.d[0], effects, _share(path))
    stages = predict(machine, size, place, Counted.of(summary, genes))
    predicted = {"summing up": sum(stages[name] for name in ("design", "reading", "adding"))}
    predicted |= {name: stages[name] for name in ("fit", "test")}
    return {
        "what": "measured, and the model beside it",
        **asdict(size),
        "measured": measured,
        "predicted": predicted,
        "ratio": {name: predicted[name] / measured[name] for name in measured},
        "total_ratio": sum(predicted.values()) / sum(measured.values()),
        "stages": stages,
    }


def _share(path: Path) -> float:
    with lmm_gpu.io.open_source(path) as source:
        return float(source.matrix.indptr[-1]) / (source.n * source.m)


# --- predictions ----------------------------------------------------------------------------------------


def places(machine: Machine) -> list[Place]:
    """This machine, a larger one with one and with many reading processes, and machines with GPUs."""
    return [
        Place(f"{machine.cores} cores, as here", machine.cores),
        Place("64 cores, one process", 64),
        Place("64 cores, 32 processes", 64, readers=32),
        *(Place(f"64 cores, 32 processes, {n} {gpu}", 64, 32, gpu, n) for gpu, n in (("H100", 1), ("H100", 8))),
        *(Place(f"64 cores, 32 processes, 8 {gpu}", 64, 32, gpu, 8) for gpu in ("H200", "A100")),
    ]


def drawn_places(machine: Machine) -> list[str]:
    """The machines of the plot."""
    names = [place.name for place in places(machine)]
    return [names[0], names[2], names[4]]


def designs(donors: tuple[int, ...], genes: int) -> Iterator[tuple[int, int, Counted]]:
    """Count the work of every design on simulated statistics."""
    for count in donors:
        obs = table(20_000, np.random.default_rng(0), count)
        for effects in EFFECTS:
            design = build_design(FORMULAS[effects], obs)
            summary = draw(sp.csr_array(design.X), sp.csr_array(design.Z), list(design.d), max(COUNTED))
            yield count, effects, Counted.of(summary, genes)


def changes(machine: Machine, size: Size, counted: Counted) -> list[dict[str, Any]]:
    """Predictions for other compressions, more readers and more cores."""
    some = [("gzip", 1), ("lzf", 1), ("none", 1), ("gzip", 8), ("gzip", 32), ("lzf", 32), ("none", 32)]
    by_file = [Place(f"64 cores, {kind}, {n} readers", 64, n, compression=kind) for kind, n in some]
    by_cores = [Place(f"{cores} cores", cores, max(1, cores // 2)) for cores in CORES]
    return [row(machine, size, place, counted) for place in (*by_file, *by_cores)]


def model(machine: Machine, donors: tuple[int, ...], prices: Prices | None) -> dict[str, Any]:
    """Predict for all sizes, designs and places."""
    rows, changed = [], []
    for count, effects, counted in designs(donors, GENES):
        for cells in CELLS:
            size = Size(cells, GENES, count, effects)
            rows += [row(machine, size, place, counted, prices) for place in places(machine)]
            if (cells, count, effects) == (10**7, 259, 1):
                changed = changes(machine, size, counted)
    return {"what": "a model, not measured", "rows": rows, "changes": changed}


def show(rows: list[dict[str, Any]]) -> None:
    """Print some predictions."""
    for one in rows:
        stages = " ".join(f"{name} {_time(one['seconds'][name]):>7s}" for name in STAGES)
        cost = f", {one['cost']:.2g}" if one["cost"] is not None else ""
        print(
            f"{one['cells']:11,} cells {one['donors']:5,} donors k={one['effects']} {one['place']:32s} {stages} "
            f"total {_time(one['total_seconds']):>7s} {one['bottleneck']:8s} {one['memory_gb']:6.1f} GB "
            f"{one['node_hours']:.2g} node-hours{cost}"
        )


def show_check(one: dict[str, Any]) -> None:
    """Print one check."""
    parts = " ".join(
        f"{name} {one['predicted'][name]:.2f}/{one['measured'][name]:.2f} s ({one['ratio'][name]:.2f})"
        for name in one["measured"]
    )
    print(f"{one['cells']:9,} cells {one['genes']:6,} genes k={one['effects']}: predicted/measured {parts}", flush=True)


def _time(seconds_: float) -> str:
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds_ < limit:
            return f"{seconds_ / unit:.2g} {name}" if seconds_ < 10 * unit else f"{seconds_ / unit:.0f} {name}"
    return f"{seconds_ / 86_400:.1f} d"


def draw_plot(record: dict[str, Any], path: Path) -> None:
    """Plot stacked stage times against cells with the measured totals, and the error of the model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(STAGES, ("#bbbbbb", "#0072b2", "#56b4e9", "#d55e00", "#e69f00"), strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    drawn = [one for one in record["model"]["rows"] if (one["donors"], one["effects"]) == (259, 1)]
    names = record["drawn"]
    for axis, name in zip(axes.flat, names, strict=False):
        rows = [one for one in drawn if one["place"] == name]
        cells, bottom = [one["cells"] for one in rows], np.full(len(rows), 1e-3)
        for stage in ("reading", "adding", "design", "fit", "test"):
            top = bottom + [one["seconds"][stage] for one in rows]
            label = {"reading": "reading, decompressing", "adding": "adding up beyond reading"}.get(stage, stage)
            axis.fill_between(cells, bottom, top, color=colours[stage], label=label, linewidth=0)
            bottom = top
        axis.set(xscale="log", yscale="log", ylim=(1e-2, 3e5), xlim=(0.7 * cells[0], cells[-1]), xlabel="cells")
        axis.set(ylabel="seconds, stages on top of each other", title=f"Model: {name}")
        for at, text in ((60, "1 min"), (3600, "1 h"), (86_400, "1 day")):
            axis.axhline(at, color="black", linewidth=0.5, linestyle=":")
            axis.text(cells[0] * 1.1, at * 1.1, text, fontsize=8)
    checks = record["checks"]
    for genes, mark in ((GENES, {"color": "black"}), (11_596, {"markerfacecolor": "white", "color": "black"})):
        same = [one for one in checks if (one["genes"], one["effects"]) == (genes, 1)]
        total = [sum(one["measured"].values()) for one in same]
        axes[0, 0].plot([one["cells"] for one in same], total, "o", **mark, label=f"measured, {genes:,} genes")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    _draw_checks(axes[1, 1], checks)
    figure.suptitle(
        f"summarize + fit + test of {GENES:,} genes, 8 % non-zeros, 259 donors, gzip: a model, not measured"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_checks(axis: Any, checks: list[dict[str, Any]]) -> None:
    marks = {"summing up": ("o", "#0072b2"), "fit": ("s", "#d55e00"), "test": ("^", "#e69f00")}
    for stage, (marker, colour) in marks.items():
        measured = [one["measured"][stage] for one in checks]
        predicted = [one["predicted"][stage] for one in checks]
        axis.plot(measured, predicted, marker, color=colour, label=stage)
    values = [value for one in checks for kind in ("measured", "predicted") for value in one[kind].values()] or [1.0]
    ends = np.array([min(values) / 2, max(values) * 2])
    axis.plot(ends, ends, "k-", linewidth=1, label="equal")
    axis.fill_between(ends, ends / 2, ends * 2, color="0.9", zorder=0, label="within a factor of 2")
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured seconds", ylabel="predicted seconds")
    axis.set_title(f"Checked on this machine: {len(checks)} runs")
    axis.legend(fontsize=8)


def errors(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Error of the model: smallest, median and largest predicted / measured time, by stage and in total."""
    ratios = {stage: [one["ratio"][stage] for one in checks] for stage in checks[0]["ratio"]} if checks else {}
    ratios |= {"total": [one["total_ratio"] for one in checks]} if checks else {}
    return {stage: [min(some), float(np.median(some)), max(some)] for stage, some in ratios.items()}


def commit() -> str | None:
    """Commit of the checkout, None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller measurements and checks: less than 20 s")
    parser.add_argument("--large", action="store_true", help="also check 500,000 cells x 11,596 genes")
    parser.add_argument("--price", type=float, help="of a node-hour, in any currency: adds a cost to every prediction")
    parser.add_argument("--gpu-price", type=float, default=0.0, help="of an hour of one GPU, on top of --price (0)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lmm_gpu_streaming")
    parser.add_argument("--output", type=Path, help="by default results/scaling.json, or scaling_quick.json")
    options = parser.parse_args()
    name = "scaling_quick.json" if options.quick else "scaling.json"
    options.output = options.output or Path(__file__).parent / "results" / name
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    prices = None if options.price is None else Prices(options.price, options.gpu_price)
    machine = measure(options.quick, options.folder)
    checked = [(5_000, 1_000)] if options.quick else [*CHECKED]
    checked += [(500_000, 11_596)] if options.large else []
    check(machine, options.folder, 500, 200, 1)  # imports on first use
    checks = []
    for cells, genes in checked:
        for effects in EFFECTS[:1] if options.quick else EFFECTS:
            checks.append(check(machine, options.folder, cells, genes, effects))
            show_check(checks[-1])
    predicted = model(machine, (259,) if options.quick else DONORS, prices)
    shown = [one for one in predicted["rows"] if one["donors"] == 259 and one["place"] in drawn_places(machine)]
    show(shown + predicted["changes"])
    record = {
        "assumptions": ASSUMED,
        "machine": asdict(machine),
        "gpus": {name: asdict(rates) for name, rates in GPUS.items()},
        "prices": None if prices is None else asdict(prices),
        "model_error": errors(checks),
        "checks": checks,
        "model": predicted,
        "drawn": drawn_places(machine),
        "versions": {"lmm_gpu": lmm_gpu.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "commit": commit(),
        "processors": os.cpu_count(),
        "quick": options.quick,
    }
    record["machine"]["host"]["host_gb_per_s"] = None  # no copy
    print("predicted/measured, smallest, median, largest:", json.dumps(record["model_error"]))
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_plot(record, options.output.with_suffix(".png"))
    print(f"wrote {options.output} and {options.output.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
