"""Operation counts for fixed shapes: launches, synchronisations, bytes, floating point operations, memory.

Nothing is timed. Dense work is counted on `cupy_like`, which counts as CuPy 14 launches; sparse cells, which are summed
up by SciPy on the host, by the methods of sparse matrices and the functions of NumPy that are called for them. The
numbers in `operation_counts.json` are the accepted ones; `test_operation_counts.py` compares.

    python tests/support/operation_counts.py              # show the changes
    python tests/support/operation_counts.py --write      # accept them: the diff of the file is part of the review
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cupy_like
import cupy_like_device as cuda
import numpy as np
from scipy import sparse

from lmm_gpu.design.design import Design
from lmm_gpu.design.fixed_effects import FixedColumns
from lmm_gpu.design.random_effects import RandomTerm
from lmm_gpu.estimation import fisher_scoring
from lmm_gpu.estimation.fisher_scoring import Rules
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.fitting import estimate_block
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.inference.f_tests import f_test
from lmm_gpu.inference.t_tests import contrast_se_and_df
from lmm_gpu.sumstats import accumulator, group_tables
from lmm_gpu.sumstats.accumulator import Accumulator
from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.products import gene_products
from lmm_gpu.sumstats.summary_stats import SummaryStats
from lmm_gpu.sumstats.transform import Transform

FILE = Path(__file__).with_name("operation_counts.json")
#: Genes of a block (whole units of the memory pool), and cells.
GENES, CELLS = 64, 240
#: Genes for which tables pay, where two effects are to be tabulated.
TABULATED = 4000
#: Share by which a number may move: counts of calls are exact, sizes differ a little between versions of libraries.
TOLERANCE = {"launches": 0.0, "waits": 0.0, "peak_bytes": 0.05, "peak_bytes_per_non_zero": 0.1}
REST = 0.02

Counts = dict[str, float]


@dataclass(frozen=True)
class Work:
    """Counted work."""

    launches: int = 0
    waits: int = 0  #: synchronisations of the host
    bytes: float = 0.0  #: read and written on the device
    host_bytes: float = 0.0  #: copied from the host
    product_flop: float = 0.0  #: of matrix products
    solve_flop: float = 0.0  #: of what is factorised and solved
    eigen_flop: float = 0.0  #: of eigenvectors
    peak_bytes: int = 0  #: of the device's memory, beyond what was taken before


def counted(function: Callable[[], Any]) -> tuple[Any, Work]:
    """Return the result of `function` and its work on `cupy_like`."""
    before = cuda.MEMORIES[0].live
    with cuda.byte_limit() as memory, cuda.counting() as count:
        result = function()
    copied = sum(one.bytes for one in count.operations if one.name == "host to device")
    return result, Work(
        count.launches,
        len(count.synchronisations),
        count.bytes - copied,
        copied,
        *(count.flop(kind) for kind in ("product", "solve", "eigen")),
        memory.peak - before,
    )


# --- a fit and its tests --------------------------------------------------------------------------

#: Levels of the random effects.
MODELS = {"one effect": (24,), "two effects": (24, 8), "two effects, tabulated": (24, 8), "three effects": (24, 8, 5)}
SLOPES = "intercepts and slopes"
NAMES = (*MODELS, SLOPES)


def cells(name: str, genes: int, times: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """X (n, 4), Z (n, q), Y (n, genes) and d: the same cells repeated `times` times, and 32 genes repeated.

    Every variance component is well above zero, so that no gene needs more work than another.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CELLS, 2))
    widths = MODELS.get(name, (24,))
    codes = [rng.permutation(np.arange(CELLS) % width) for width in widths]
    Z = [np.eye(width)[code] for width, code in zip(widths, codes, strict=True)]
    if name == SLOPES:
        Z.append(Z[0] * x[:, :1])
    X = np.column_stack([np.ones(CELLS), codes[0] % 2, x])  # (n, 4)
    Y = rng.normal(size=(CELLS, 32)) + sum(part @ rng.normal(size=(part.shape[1], 32)) for part in Z)
    d = tuple(part.shape[1] for part in Z)
    return np.tile(X, (times, 1)), np.tile(np.hstack(Z), (times, 1)), np.tile(Y, (times, genes // 32)), d


def statistics(name: str, genes: int, times: int = 1) -> SummaryStats:
    """Summary statistics of `cells` on the device."""
    X, Z, Y, d = cells(name, genes, times)
    return cross_products(X, Z, Y, d=d).on(cupy_like.asarray)


@functools.cache
def stages(name: str, genes: int, times: int = 1) -> Mapping[str, Work]:
    """Count the parts of a fit of `genes` genes, and tests of it."""
    summary = statistics(name, genes, times)
    work: dict[str, Work] = {}
    design = summary.select(slice(0))
    many = TABULATED if name.endswith("tabulated") else 0

    def shared() -> tuple[MixedModel, Any]:
        model = MixedModel.decompose(design, "REML", None, many)
        return model, model.prepare(unit, gradient=False)

    unit = cupy_like.asarray(np.eye(4))
    (model, coefficients), work["design"] = counted(shared)
    block, work["genes projected"] = counted(lambda: model.with_genes(summary))
    theta = cupy_like.asarray(np.full((len(summary.d) + 1, genes), 0.5))
    state = fisher_scoring._begin(theta)
    _, work["iteration"] = counted(lambda: fisher_scoring.advance(state, block.likelihood, Rules()))
    options = FitOptions(max_iter=3, bounds="none")  # no refits
    _, work["fit of 4 iterations"] = counted(lambda: estimate_block(block, None, coefficients, options))
    one = block.prepare(cupy_like.asarray(np.eye(4)[1:2]))
    between = np.array([20.0])
    for method in ("satterthwaite", "kenward-roger", "lmertest"):
        of = block if method == "lmertest" else model
        _, work[f"t test, {method}"] = counted(lambda m=method, of=of: contrast_se_and_df(of, theta, one, m, between))
    _, work["F test of 3 rows"] = counted(lambda: f_test(block, theta, np.eye(4)[1:], "satterthwaite", 20.0))
    return work


def of_model(name: str) -> dict[str, Counts]:
    """Counts of every stage: what does not depend on genes, and what each gene adds."""
    few, many = stages(name, GENES), stages(name, 2 * GENES)
    return {stage: split(few[stage], many[stage], GENES, "per_gene") for stage in few}


def split(few: Work, many: Work, more: int, each: str) -> Counts:
    """Counts of `few`, its amounts split into a shared part and one for `each` of the `more` that are in `many`."""
    found: Counts = {"launches": few.launches, "waits": few.waits, "peak_bytes": few.peak_bytes}
    for name in ("bytes", "product_flop", "solve_flop", "eigen_flop"):
        a, b = getattr(few, name), getattr(many, name)
        found |= {name: round(2 * a - b, 1), f"{name}_{each}": round((b - a) / more, 1)}
    return found


# --- accumulation ------------------------------------------------------------------------------


def dense_sums(times: int, genes: int = GENES) -> Work:
    """Count the products of dense cells on the device."""
    X, Z, Y, _ = cells("two effects", genes, times)
    X, Z, Y = (cupy_like.asarray(values) for values in (X, Z, Y))
    return counted(lambda: gene_products(X, Z, Y))[1]


def sparse_sums(times: int, genes: int = GENES) -> Counts:
    """Count the calls of SciPy and NumPy for a sparse chunk; numbers are per nonzero."""
    X, Z, Y, d = cells("two effects", genes, times)
    Y = sparse.csr_array(np.round(np.where(Y > 0.5, Y, 0.0)).astype(np.float32))
    sums = Accumulator(_design(X, Z, d), genes, Transform("log1p"))
    with counting_sparse() as found:
        sums.add(slice(0, len(X)), slice(0, genes), Y.copy(), "cells")
    found["non_zeros"] = Y.nnz
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sums.add(slice(0, len(X)), slice(0, genes), Y, "cells")
        found["peak_bytes"] = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return found


def _design(X: np.ndarray, Z: np.ndarray, d: tuple[int, ...]) -> Design:
    """Design with the numeric columns X and one random intercept per block of Z."""
    columns = tuple(range(X.shape[1]))
    names = tuple(f"x{i}" for i in columns)
    row = np.zeros(len(X), dtype=int)
    fixed = FixedColumns(names, (), row, np.zeros((1, 0)), (), X, columns)
    blocks = np.split(Z, np.cumsum(d)[:-1], axis=1)
    levels = [tuple(map(str, range(width))) for width in d]
    random = [RandomTerm(f"d{i}", ("Intercept",), b.argmax(1), levels[i]) for i, b in enumerate(blocks)]
    return Design("", fixed, tuple(random))


@contextmanager
def counting_sparse() -> Iterator[Counts]:
    """Count calls of methods of sparse matrices, non-zeros that they pass over, products, and bytes through NumPy."""
    found: Counts = dict.fromkeys(("launches", "passed_over", "product_flop", "dense_bytes", "numpy_bytes"), 0)
    inside: list[bool] = []

    def counting(method: Callable) -> Callable:
        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            inside.append(True)
            try:
                result = method(self, *args, **options)
            finally:
                inside.pop()
            if not inside:
                columns = result.shape[1] if isinstance(result, np.ndarray) and result.ndim > 1 else 1
                is_product = method.__name__ == "__matmul__"
                found["launches"] += 1
                found["passed_over"] += self.nnz * (columns if is_product else 1)
                found["product_flop"] += 2 * self.nnz * columns if is_product else 0
                found["dense_bytes"] += result.nbytes if isinstance(result, np.ndarray) else 0
            return result

        return wrapped

    with ExitStack() as patches:
        for kind in (sparse.csr_array, sparse.csc_array):
            for name in ("__matmul__", "__getitem__", "toarray", "multiply", "sum", "astype", "copy", "tocsr", "tocsc"):
                patches.enter_context(mock.patch.object(kind, name, counting(getattr(kind, name))))
        for module in (accumulator, group_tables):
            patches.enter_context(mock.patch.object(module, "np", _CountingNumpy(found)))
        yield found


class _CountingNumpy:
    """NumPy, whose functions report the bytes of the arrays they take and return; operators are not seen."""

    def __init__(self, found: Counts):
        self.found = found

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type):
            return function

        def wrapped(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            self.found["numpy_bytes"] += sum(x.nbytes for x in (*args, result) if isinstance(x, np.ndarray))
            return result

        return wrapped


def of_sums() -> dict[str, dict[str, Counts]]:
    """Counts of the accumulation: a constant part, and the part that each cell, or non-zero, adds."""
    dense = split(dense_sums(1), dense_sums(2), CELLS, "per_cell")
    few, many = sparse_sums(20), sparse_sums(40)
    more = many["non_zeros"] - few["non_zeros"]
    of_sparse: Counts = {"launches": few["launches"]}
    for name in ("passed_over", "product_flop", "dense_bytes", "numpy_bytes", "peak_bytes"):
        of_sparse |= {f"{name}_per_non_zero": round((many[name] - few[name]) / more, 2)}
    of_sparse["dense_bytes"] = few["dense_bytes"]
    return {"summing up": {"dense cells": dense, "sparse cells": of_sparse}}


# --- comparison with the accepted counts ---------------------------------------------------------------


def count_all() -> dict[str, dict[str, Counts]]:
    """All counts, by model and stage."""
    return {name: of_model(name) for name in NAMES} | of_sums()


def moved(found: Mapping[str, Counts], committed: Mapping[str, Counts]) -> list[str]:
    """One line per number that moved by more than its tolerance: name, old and new value, change."""
    lines = [f"{stage}: counted, but not in {FILE.name}" for stage in found if stage not in committed]
    lines += [f"{stage}: in {FILE.name}, but not counted" for stage in committed if stage not in found]
    for stage, counts in found.items():
        for name, now in counts.items():
            was = committed.get(stage, {}).get(name)
            if was is not None and abs(now - was) > TOLERANCE.get(name, REST) * abs(was):
                share = f", {100 * (now - was) / was:+.1f} %" if was else ""
                lines.append(f"{stage}: {name} is {now:,.10g}, was {was:,.10g} ({now - was:+,.10g}{share})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the counts to {FILE.name}")
    write = parser.parse_args().write
    found, committed = count_all(), json.loads(FILE.read_text()) if FILE.exists() else {}
    lines = [f"{name}, {line}" for name in found for line in moved(found[name], committed.get(name, {}))]
    print("\n".join(lines) or f"nothing moved: {FILE}")
    if write:
        FILE.write_text(json.dumps(found, indent=2) + "\n")
        print(f"wrote {FILE}")
    elif lines:
        sys.exit(f"if that is meant: python tests/{Path(__file__).name} --write")


if __name__ == "__main__":
    main()
