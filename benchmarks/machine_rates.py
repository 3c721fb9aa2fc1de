"""Rates of this machine for the parts of a fit: the input of the predictions of `scaling.py`.

from machine_rates import measure
machine = measure()
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from machine import best
from scipy import sparse
from streaming_files import make, table
from work_model import Rates, counted, on_the_host

import lmm_gpu
from lmm_gpu.backend.arrays import like
from lmm_gpu.backend.linalg import inverse_and_logdet
from lmm_gpu.backend.threads import in_threads, workers
from lmm_gpu.cli.selftest.cases import statistics
from lmm_gpu.design.design import build_design
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.fitting import estimate_block
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.inference.t_tests import ContrastTest
from lmm_gpu.inference.tables import tidy
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.accumulator import Accumulator
from lmm_gpu.sumstats.streaming import plan_pieces
from lmm_gpu.sumstats.transform import Transform

#: Models of one and two random effects, of 61 and 5 fixed effects.
FORMULAS = {
    1: "~ log_depth + age + sex + cell_type * status + (1 | donor)",
    2: "~ log_depth + age + sex + status + (1 | donor) + (1 | cell_type)",
}
#: Few effects, for timings with hardly any cells.
FIXED = "~ status + (1 | sex)"
COMPRESSIONS = ("gzip", "lzf", "none")


@dataclass(frozen=True)
class Machine:
    """Measured rates."""

    cores: int
    host: Rates  #: per core while all cores are busy
    read_per_s: dict[str, float]  #: nonzeros read and decompressed by one thread, by compression, from the page cache
    stored_bytes: dict[str, float]  #: bytes per nonzero in the file
    add_seconds: dict[int, float]  #: one thread, per nonzero, by the number of random effects
    number_seconds: float  #: one thread, per number of the sums, once per chunk
    cell_seconds: dict[int, float]  #: for the design, by the number of random effects
    cell_bytes: dict[int, float]  #: bytes of the design in memory
    row_seconds: float  #: per row of a table of tests
    fixed_seconds: dict[str, float]  #: overhead with hardly any cells and genes


def measure(quick: bool = False, folder: Path | None = None) -> Machine:
    """Measure all rates in about ten seconds (a few if `quick`); files are kept in `folder` if it is given."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        cells = 2_000 if quick else 10_000
        paths = {kind: place / f"rates_{cells}_{kind}.h5ad" for kind in COMPRESSIONS}
        for kind, path in paths.items():
            make(path, cells, None if kind == "none" else kind)
        read = {kind: _read(path) for kind, path in paths.items()}
        number = _number_seconds()
        designs = {effects: _design(formula, quick) for effects, formula in FORMULAS.items()}
        return Machine(
            cores=workers(),
            host=host_rates(quick),
            read_per_s={kind: rate for kind, (rate, _) in read.items()},
            stored_bytes={kind: size for kind, (_, size) in read.items()},
            add_seconds={
                effects: _add_seconds(paths["none"], formula, number) for effects, formula in FORMULAS.items()
            },
            number_seconds=number,
            cell_seconds={effects: seconds for effects, (seconds, _) in designs.items()},
            cell_bytes={effects: size for effects, (_, size) in designs.items()},
            row_seconds=_row_seconds(),
            fixed_seconds=_fixed_seconds(place / "rates_fixed.h5ad"),
        )


def host_rates(quick: bool = False) -> Rates:
    """Rates per core while all cores do the same; eigenvectors and calls: one core alone."""
    q, b, rows, small = 259, 1024, 400 if quick else 1000, 46
    rng = np.random.default_rng(0)
    lam, g, c = rng.random((q, 1)), rng.random((1, b)), rng.random((q, b))

    def elementwise() -> None:  # operands and results of 10 operations: 18 times q * b numbers
        w = 1.0 / (1.0 + lam * g)
        w2, zs = w * w, c * c * w
        (zs * w).sum(axis=0), w2

    A, S = rng.random((rows, rows)), rng.normal(size=(200, small, small))
    S = S @ np.swapaxes(S, 1, 2) + np.eye(small)
    E = A[:322, :322] + A[:322, :322].T
    return Rates(
        us_per_launch=_us_per_call(),
        memory_tb_per_s=1e-12 * 18 * 8 * q * b / _together(elementwise, 20),
        product_tflop_per_s=1e-12 * 2 * rows**3 / _together(lambda: A @ A, 2),
        solve_tflop_per_s=1e-12 * 3 * len(S) * small**3 / _together(lambda: inverse_and_logdet(S), 2),
        eigen_tflop_per_s=1e-12 * 9 * len(E) ** 3 / best(lambda: list(in_threads(np.linalg.eigh, [E, E], 2))) * 2,
    )


def _together(function: Callable[[], object], times: int) -> float:
    """Seconds of one call while all cores do the same."""
    cores = workers()
    return best(lambda: list(in_threads(lambda _: [function() for _ in range(times)], range(cores), cores))) / times


def _us_per_call() -> float:
    """Microseconds per operation on tiny arrays: the engine with two genes, per counted operation."""
    import cupy_like

    summary = statistics(1, 2)
    with on_the_host():
        _, work = counted(lambda: _tiny_fit(summary.on(cupy_like.asarray)))
    return 1e6 * best(lambda: _tiny_fit(summary), 20) / work.launches


def _tiny_fit(summary) -> None:
    model = MixedModel.build(summary)
    unit = like(np.eye(len(model.XXinv)), model.XXinv)
    estimate_block(model, None, model.prepare(unit, gradient=False), FitOptions(max_iter=5, bounds="none"))


def _read(path: Path) -> tuple[float, float]:
    # non-zeros per second of one thread, and bytes of each in the file
    with h5py.File(path) as file:
        stored = file["X/data"].shape[0]
        size = file["X/data"].id.get_storage_size() + file["X/indices"].id.get_storage_size()
    return stored / best(lambda: _read_only(path)), size / stored


def _read_only(path: Path) -> float:
    """Seconds to read and decompress the chunks of `summarize` with h5py."""
    with open_source(path) as source:
        pieces, begins = plan_pieces(source), source.matrix.indptr
    start = time.perf_counter()
    with h5py.File(path) as file:
        for piece in pieces:
            lo, hi = begins[piece.start], begins[piece.stop]
            file["X/data"][lo:hi], file["X/indices"][lo:hi]
    return time.perf_counter() - start


def _number_seconds() -> float:
    # cost of adding to the sums, with many groups and hardly any cells
    sums, few = np.zeros((200, 10_000)), sparse.random_array((200, 10_000), density=0.01, format="csr")

    def add() -> None:
        nonlocal sums
        sums += few.toarray()

    return best(add, 5) / sums.size


def _add_seconds(path: Path, formula: str, number_seconds: float) -> float:
    # per nonzero, without the cost of the sums of its chunk
    with open_source(path) as source:
        design = build_design(formula, source.obs)
        piece = plan_pieces(source, None)[0]
        chunk = source.matrix[piece]
        sums = Accumulator(design, source.m, Transform("log2p1"))
        add = lambda: sums.add(piece, slice(0, source.m), chunk.copy(), "")  # noqa: E731
        add()  # first-use initialisation
        return max(best(add) - number_seconds * design.q * source.m, 0.0) / chunk.nnz


def _design(formula: str, quick: bool) -> tuple[float, float]:
    # seconds per cell of the formula and its groups, and bytes
    cells = 20_000 if quick else 100_000
    obs = table(cells, np.random.default_rng(0))

    def build() -> None:
        nonlocal design
        design = build_design(formula, obs)
        Accumulator(design, 1).expect_sparse()

    design = None
    seconds = best(build, 2)
    Z = design.Z
    held = design.X.nbytes + Z.data.nbytes + Z.indices.nbytes + Z.indptr.nbytes
    return seconds / cells, held / cells


def _row_seconds() -> float:
    # p-values, their adjustment, intervals and labels
    m = 20_000
    rng = np.random.default_rng(0)
    tested = ContrastTest(rng.normal(size=(1, m)), rng.random((1, m)) + 0.5, 50 * rng.random((1, m)) + 2)
    columns = {"status": np.full(m, "converged", dtype=object)}
    return best(lambda: tidy(tested, [f"G{gene}" for gene in range(m)], ["a"], columns)) / m


def _fixed_seconds(path: Path) -> dict[str, float]:
    # imports on first use are not counted
    make(path, 400, genes=100)
    summarize = lambda: lmm_gpu.summarize(path, FIXED, transform="log2p1", progress=False, device="cpu")  # noqa: E731
    summary = summarize()
    fit = lmm_gpu.fit(summary, progress=False, device="cpu")
    runs = {
        "design": summarize,
        "fit": lambda: lmm_gpu.fit(summary, progress=False, device="cpu"),
        "test": lambda: fit.test("status[T.control]"),
    }
    return {name: best(run) for name, run in runs.items()}
