"""Blocks of genes fitted on the workers of dask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend.blocks import even_blocks
from ..backend.dask_client import ADVICE, explained_failures, without_graph_warning
from ..backend.memory import parse_memory
from ..backend.optional import require
from ..backend.threads import one_blas_thread
from ..sumstats.summary_stats import SummaryStats
from .block_size import Shape, genes_per_block
from .estimates import Estimates
from .fit_options import FitOptions
from .fitting import fit_genes, start_values
from .mixed_model import MixedModel


def fit_genes_on_workers(
    summary: SummaryStats, options: FitOptions, client: Any, progress: Callable[[int], object] | None = None
) -> tuple[Estimates, MixedModel]:
    """Estimate every gene of `summary` on the workers of `client`, as `fit_genes`.

    `options.memory` is the budget of one thread of a worker.

    Raises
    ------
    ValueError
        As `fit_genes`.
    MemoryError
        If workers were killed repeatedly.
    ConnectionError
        If the scheduler stopped.
    """
    memory = parse_memory(options.memory)
    with one_blas_thread():
        model = MixedModel.decompose(summary, options.method, memory)  # refuses what cannot be fitted
    ranges = _ranges(summary, memory, sum(client.nthreads().values()))
    theta0 = start_values(options.theta0, model, summary.m)
    estimates = Estimates.empty(summary.m, len(summary.fixed_names), summary.n_variances + 1)
    delayed = require("dask", "scheduler=", ADVICE).delayed
    design = delayed(summary.select(slice(0)), traverse=False)  # once for all blocks
    tasks = []
    for lo, hi in ranges:
        start = None if theta0 is None else theta0[:, lo:hi]
        task = replace(options, block=summary.m, theta0=start)
        tasks.append(delayed(fit_block)(design, _genes(summary.select(slice(lo, hi))), task))
    with explained_failures(), without_graph_warning():
        for (lo, hi), part in zip(ranges, client.compute(tasks), strict=True):
            estimates.put(np.arange(lo, hi), part.result())
            if progress is not None:
                progress(hi - lo)
    return estimates, model


def fit_block(design: SummaryStats, genes: Mapping[str, Any], options: FitOptions) -> Estimates:
    """Estimate some genes of a design that is sent once for all blocks; the task of a worker."""
    return fit_genes(replace(design, **genes), options)[0]


def _genes(summary: SummaryStats) -> dict[str, Any]:
    # what does not belong to the design
    return {name: getattr(summary, name) for name in ("XY", "ZY", "Ynorm", "Ysum", "features", "centred", "within")}


def _ranges(summary: SummaryStats, memory: int | None, threads: int) -> list[tuple[int, int]]:
    # nearly equal, at least one for each thread; there may be no workers yet
    threads = max(threads, 1)
    size = genes_per_block(Shape(len(summary.fixed_names), summary.d), memory)
    return list(even_blocks(summary.m, max(1, min(size, -(-summary.m // threads))), threads))
