"""Summary statistics of cells, chunk by chunk: a matrix larger than memory is read once and never loaded whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import entered
from ..backend.devices import Device
from ..backend.sparse import on_device
from ..backend.threads import ahead, limited, one_blas_thread, workers
from ..io.source import Source
from .accumulator import Accumulator, Passes
from .assembly import assemble
from .checkpoint import Checkpoint, as_array, as_slices
from .chunk_plan import cells_per_chunk, most_sums, plan_pieces, stored_values_of
from .cuda_sums import cell_totals
from .device_chunks import Copied, accumulates, copied_ahead
from .gene_filter import NO_FILTER, GeneFilter
from .group_tables import FUSED_DENSE, FUSED_VALUES, can_fuse
from .products import DesignProducts, GeneProducts
from .summary_stats import SummaryStats
from .transform import Transform, check_values

if TYPE_CHECKING:
    from ..design.design import Design

__all__ = ["accumulate", "cells_per_chunk", "check_size_factors", "count_totals", "plan_pieces"]
logger = logging.getLogger("lmm_gpu")


def accumulate(
    source: Source,
    design: Design,
    transform: Transform | None,
    *,
    is_counts: bool | None = None,
    genes: GeneFilter = NO_FILTER,
    weights: np.ndarray | None = None,
    memory: int | None = None,
    threads: int | None = None,
    fused: bool | None = None,
    pieces: Sequence[slice] | None = None,
    progress: Callable[[int], object] | None = None,
    checkpoint: Checkpoint | None = None,
    device: Device | None = None,
) -> SummaryStats:
    """Accumulate the summary statistics of all cells of `source`.

    Parameters
    ----------
    source : Source
        n cells x m genes.
    design : Design
        Of the same n cells.
    transform : Transform or None
        None: values as they are, unless they are raw counts according to `is_counts` or auto-detection.
    is_counts : bool, optional
        Overrides auto-detection; ignored if a transform is given.
    genes : GeneFilter
        Conditions for the genes to keep.
    weights : array (n,), optional
        One positive weight per cell.
    memory : int, optional
        Bytes that the chunks and their temporaries may take.
    threads : int, optional
        Threads that read and accumulate; by default one per processor. The sums do not depend on it.
    fused : bool, optional
        Use the compiled pass (needs numba); by default if it is installed and there are enough values.
    pieces : sequence of slice, optional
        Chunks of the matrix; by default they follow from `memory`.
    progress : callable, optional
        Called after each chunk with its number of cells (genes, for a source that is read by genes).
    checkpoint : Checkpoint, optional
        File to resume from and to write to.
    device : Device, optional
        CUDA device to which chunks from the host are copied, to be added up there. Not with a checkpoint, which holds
        the sums of the host.

    Raises
    ------
    ValueError
        If there are no genes or the filter keeps none, values are NaN or infinite, a later chunk is not counts although
        the first was, or the checkpoint belongs to another run.
    """
    if source.m == 0:
        raise ValueError(f"{source.name} has no genes: wanted at least one column")
    genes.check(source.features)
    copied_to = device if checkpoint is None and not on_device(source.matrix) and accumulates(device) else None
    if fused is None:
        # not by what is loaded: a resumed run has to choose the same
        enough = FUSED_VALUES * (1 if hasattr(source.matrix, "indptr") else FUSED_DENSE)
        fused = copied_to is None and stored_values_of(source) >= enough and can_fuse()
    threads = workers() if threads is None else threads
    passes = Passes(fused, threads, most_sums(memory))
    counting = genes.counts
    sums = Accumulator(design, source.m, transform, is_counts, weights=weights, counting=counting, passes=passes)
    pieces = plan_pieces(source, memory, copied=not fused) if pieces is None else pieces
    if hasattr(source.matrix, "indptr") and not on_device(source.matrix):
        sums.expect_sparse()
    cells, features = slice(0, source.n), slice(0, source.m)
    # BLAS threads would compete with those that read ahead
    with one_blas_thread() if len(pieces) > 1 else nullcontext(), limited(threads):
        canonical = not fused or copied_to is not None
        for done, place, Y in _chunks(source, pieces, "sums", checkpoint, sums.restore, canonical, copied_to):
            Y = Y.arrived() if isinstance(Y, Copied) else Y
            rows, some = (cells, place) if source.by_genes else (place, features)
            sums.add(rows, some, Y, source.name)
            if checkpoint is not None:
                checkpoint.write("sums", done, *sums.state())
            if progress is not None:
                progress(place.stop - place.start)
    of_design, of_genes = sums.finished()
    summary = summary_of(
        design, of_design, of_genes, sums.constant, source.features, sums.values.transform.label, weights
    )
    summary = replace(summary, within=sums.within_groups())
    cells_with, total = (None, None) if sums.counted is None else sums.counted.T
    return genes.apply(summary, cells_with, total)


def summary_of(
    design: Design,
    of_design: DesignProducts,
    of_genes: GeneProducts,
    constant: np.ndarray | None,
    features: tuple[str, ...],
    transform: str | None,
    weights: np.ndarray | None = None,
) -> SummaryStats:
    """Summary statistics of all cells of a design."""
    return assemble(
        of_design,
        of_genes,
        constant,
        d=design.d,
        features=features,
        fixed_names=tuple(design.fixed_names),
        random_names=tuple(design.random_names),
        component_names=tuple(design.component_names),
        formula=design.formula,
        transform=transform,
        terms=design.terms,
        random_terms=design.random_terms,
        log_weights=None if weights is None else float(np.log(weights).sum()),
    )


def _chunks(
    source: Source,
    pieces: Sequence[slice],
    stage: str,
    checkpoint: Checkpoint | None,
    restore: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], object],
    canonical: bool = True,
    copied_to: Device | None = None,
) -> Iterator[tuple[int, slice, Any]]:
    """Yield the number of chunks done with this one, its place and its values, continuing from a checkpoint."""
    done = 0
    if checkpoint is not None:
        found = checkpoint.read(stage)
        if found is not None:
            restore(*found)
            pieces, done = as_slices(found[0]["pieces"]), int(found[1]["done"])
            logger.info("resuming from %s: %d of %d chunks are done", checkpoint.path, done, len(pieces))
        checkpoint.keep(pieces=as_array(pieces))
    chunks = source.chunks(pieces[done:], canonical=canonical)
    if copied_to is not None:
        chunks = copied_ahead(chunks, copied_to)
    if canonical or not source.in_memory:  # chunks that take time
        chunks = ahead(chunks)
    for count, (place, Y) in enumerate(chunks, start=done + 1):
        yield count, place, Y


def count_totals(
    source: Source,
    memory: int | None = None,
    progress: Callable[[int], object] | None = None,
    pieces: Sequence[slice] | None = None,
    checkpoint: Checkpoint | None = None,
) -> np.ndarray:
    """Total counts (n,) of the cells, in a first pass over them.

    Raises
    ------
    ValueError
        If a cell has no counts, or values are negative.
    """
    total = np.zeros(source.n)
    if checkpoint is not None and (found := checkpoint.read("sums")) is not None:
        checkpoint.keep(total_counts=found[0]["total_counts"])
        return found[0]["total_counts"]

    def restore(arrays: Mapping[str, np.ndarray], _: object) -> None:
        total[:] = arrays["total_counts"]

    for done, place, Y in _chunks(source, pieces or plan_pieces(source, memory), "total counts", checkpoint, restore):
        rows, row, column = (slice(None), 0, place.start) if source.by_genes else (place, place.start, 0)
        with entered(Y):
            check_values(Y, source.name, row, column)
            total[rows] += cell_totals(Y)
        if checkpoint is not None:
            checkpoint.write("total counts", done, {"total_counts": total})
        if progress is not None:
            progress(place.stop - place.start)
    check_size_factors(total, "the total counts")
    if checkpoint is not None:
        checkpoint.keep(total_counts=total)
    return total


def check_size_factors(factors: Any, what: str) -> np.ndarray:
    """Refuse size factors that are not positive numbers, with their number."""
    try:
        factors = np.asarray(factors, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: wanted numbers, one positive size factor per cell ({error})") from error
    bad = int(np.count_nonzero(~(np.isfinite(factors) & (factors > 0))))
    if bad:
        remedy = "remove these cells before normalizing"
        if what == "the total counts" and (factors < 0).any():
            remedy = (
                "some are negative: scaled or corrected values cannot be normalised; use the layer of the raw counts"
            )
        raise ValueError(f"{what} of {bad} cell(s) are not positive numbers; {remedy}")
    return np.asarray(factors)
