"""Model of the time of counted work, from operations, bytes and rates.

The work of a fit is counted on `tests/support/cupy_like.py`, an imitation of CuPy 14 that computes with NumPy, for a
few tens of genes; bytes and floating point operations are scaled to all genes, calls do not depend on genes. With
`on_the_host` the engine is counted as it runs on NumPy: no fused kernels, convergence read in every iteration.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import cupy_like
from operation_counts import Work, counted

from lmm_gpu import SummaryStats
from lmm_gpu.backend import linalg
from lmm_gpu.backend.fusion import without_fusion
from lmm_gpu.estimation import fisher_scoring
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.fitting import estimate_block
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.inference.t_tests import contrast_se_and_df

#: Numbers of genes that are counted, for predictions of thousands.
COUNTED = (32, 64)


@dataclass(frozen=True)
class Rates:
    """Rates of a device or of the host."""

    us_per_launch: float  #: host time to launch one kernel, library call or copy
    memory_tb_per_s: float
    product_tflop_per_s: float  #: float64 matrix products
    solve_tflop_per_s: float  #: Cholesky factors and solutions of many small systems
    eigen_tflop_per_s: float  #: eigenvectors of one matrix of some hundred rows
    host_gb_per_s: float = float("inf")  #: copies from the host


#: From data sheets: memory, float64 products (tensor cores) and PCIe. Calls, small systems and eigenvectors are guesses
#: based on published rates of cuBLAS and cuSOLVER.
GPUS = {
    "A100": Rates(6.0, 2.0, 19.5, 0.5, 0.05, 25.0),
    "H100": Rates(6.0, 3.35, 60.0, 1.0, 0.1, 50.0),
    "H200": Rates(6.0, 4.8, 60.0, 1.0, 0.1, 50.0),
}

ASSUMPTIONS = [
    "nothing of this was run on a GPU: calls, bytes and products are counted on an imitation of CuPy 14.2",
    "every operation reads its operands from memory and writes its result there: no cache, no overlap of kernels",
    f"bytes and products grow linearly in genes, from counts of {COUNTED[0]} and {COUNTED[1]} genes",
    "launches and waits do not grow with genes: as many iterations as the slowest of the counted genes; one block",
    "kernels reach the bandwidth and the rate of products that are given: small ones do not",
    "rates of small systems and of eigenvectors on a GPU are guesses",
    "kernels are compiled already",
]


def seconds(work: Work, rates: Rates) -> dict[str, float]:
    """Time of each kind of work; launches overlap with work, so the total is between `least` and `most`."""
    parts = {
        "launching": 1e-6 * rates.us_per_launch * work.launches,
        "copying": 1e-9 * work.host_bytes / rates.host_gb_per_s,
        "memory": 1e-12 * work.bytes / rates.memory_tb_per_s,
        "products": 1e-12 * work.product_flop / rates.product_tflop_per_s,
        "solving": 1e-12 * work.solve_flop / rates.solve_tflop_per_s,
        "eigenvectors": 1e-12 * work.eigen_flop / rates.eigen_tflop_per_s,
    }
    total = sum(parts.values())
    return parts | {"least": max(parts["launching"], total - parts["launching"]), "most": total}


def scaled(work: Work, times: float) -> Work:
    """Scale the work that grows with genes, with the same number of calls."""
    grow = ("bytes", "host_bytes", "product_flop", "solve_flop", "eigen_flop")
    return replace(work, **{name: times * getattr(work, name) for name in grow})


def added(*works: Work) -> Work:
    """Add up pieces of work."""
    names = [name for name in asdict(works[0]) if name != "peak_bytes"]
    total = {name: sum(getattr(work, name) for work in works) for name in names}
    return Work(**total, peak_bytes=max(work.peak_bytes for work in works))


def extrapolated(few: Work, more: Work, genes: int) -> Work:
    """Extrapolate from the numbers `COUNTED` to `genes` genes: linear, except for calls and waits."""
    a, b = COUNTED
    slope = {name: (value - getattr(few, name)) / (b - a) for name, value in asdict(more).items()}
    amounts = {name: getattr(more, name) + slope[name] * (genes - b) for name in slope}
    calls = {name: max(getattr(few, name), getattr(more, name)) for name in ("launches", "waits")}
    return Work(**amounts | calls)


@contextmanager
def on_the_host() -> Iterator[None]:
    """Run the engine on `cupy_like` as it runs on NumPy."""
    with ExitStack() as patches:
        patches.enter_context(without_fusion())
        patches.enter_context(mock.patch.object(fisher_scoring, "READ_EVERY", 1))
        patches.enter_context(mock.patch.object(linalg, "raises_for_bad_matrices", lambda x: True))
        yield


def work_of_fit(summary: SummaryStats, genes: int) -> dict[str, Work]:
    """Count the work of the design, of a fit of `genes` genes in one block, and of a test of one contrast.

    `summary` has at least `max(COUNTED)` genes.
    """
    options, put = FitOptions(), cupy_like.asarray
    unit = put(np.eye(summary.XX.shape[0]))
    shape = summary.select(slice(0)).on(put)
    model, decomposed = counted(lambda: MixedModel.decompose(shape, "REML", None, genes))
    coefficients, prepared = counted(lambda: model.prepare(unit, gradient=False))
    one, ready = counted(lambda: model.prepare(unit[-1:, :]))

    def fit(count: int) -> tuple[Work, Work]:
        part = summary.select(slice(count))
        found, work = counted(lambda: estimate_block(model.with_genes(part.on(put)), None, coefficients, options))
        theta = np.where(np.isfinite(found.theta), found.theta, 0.1)
        cap = np.array([100.0])
        return work, counted(lambda: contrast_se_and_df(model, put(theta), one, "satterthwaite", cap))[1]

    fits, tests = zip(*map(fit, COUNTED), strict=True)
    return {
        "shared by all genes": added(decomposed, prepared),
        "all genes": extrapolated(*fits, genes),
        "contrast": ready,
        "test of all genes": extrapolated(*tests, genes),
    }
