"""Cells to summary statistics, chunk by chunk: a matrix larger than memory is read once and never held whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend.arrays import entered, to_numpy
from ..backend.memory import default_memory
from ..backend.sparse import on_device
from ..backend.threads import ahead, quiet_blas
from ..design.design import Design
from ..io.source import Source
from .accumulator import Accumulator
from .assembly import assemble
from .checkpoint import Checkpoint, as_array, as_slices
from .gene_filter import NO_FILTER, GeneFilter
from .products import row_totals
from .summary_stats import SummaryStats
from .transform import Transform, check_values

logger = logging.getLogger("lmm_gpu")
#: Larger dense chunks are not faster, and larger sparse ones hardly.
_CHUNK_BYTES, _SPARSE_BYTES = 2**28, 2**29
#: Values of a chunk: of fewer, the sums of groups begin to show; larger arrays are not reused by the C library, which
#: keeps more of them the larger they are.
_MOST_VALUES = 2_000_000
#: A chunk, its transform and its float64 copy live at the same time.
_COPIES = 4
#: Bytes per non-zero: times that it is held as it is stored (two chunks, and one by rows or of some cells); and its
#: value, weighted, and by group with its place. Bytes per cell: where its values begin and its group, in some orders.
_STORED, _COMPUTED, _PER_ROW = 3, 3 * 8 + 8, 64
#: The shares of a budget that are left for the groups' sums of a sparse chunk, and for what the C library does not give
#: back of memory that was freed: it grows with the number of chunks for a while (measured: 30 to 80 MB of 256).
_SUMS, _UNRETURNED = 0.25, 0.2


def accumulate(
    source: Source,
    design: Design,
    transform: Transform | None,
    *,
    is_counts: bool | None = None,
    genes: GeneFilter = NO_FILTER,
    memory: int | None = None,
    pieces: Sequence[slice] | None = None,
    progress: Callable[[int], object] | None = None,
    checkpoint: Checkpoint | None = None,
) -> SummaryStats:
    """Sum the statistics of all cells of `source`.

    Parameters
    ----------
    source : Source
        n cells x m genes.
    design : Design
        Of the same n cells.
    transform : Transform or None
        None: values as they are, unless they are raw counts by `is_counts` or by their looks.
    is_counts : bool, optional
        Overrules the looks; ignored if a transform is given.
    genes : GeneFilter
        Which genes to keep.
    memory : int, optional
        Bytes that the chunks and their temporaries may take.
    pieces : sequence of slice, optional
        Where to cut the matrix; by default by `memory`.
    progress : callable, optional
        Called after each chunk with how many cells (genes, for a source that is read by genes) it had.
    checkpoint : Checkpoint, optional
        Where to go on from, and to write to.

    Raises
    ------
    ValueError
        If there are no genes or the filter keeps none, values are NaN or infinite, a later chunk shows that they were
        not counts after all, or the checkpoint is of something else.
    """
    if source.m == 0:
        raise ValueError(f"{source.name} has no genes: wanted at least one column")
    sums = Accumulator(design, source.m, transform, is_counts, counting=genes != NO_FILTER, most=_most_sums(memory))
    pieces = plan_pieces(source, memory) if pieces is None else pieces
    if hasattr(source.matrix, "indptr") and not on_device(source.matrix):
        sums.expect_sparse()
    cells, features = slice(0, source.n), slice(0, source.m)
    with quiet_blas(0):  # its threads would take the processor that reads ahead
        for done, place, Y in _chunks(source, pieces, "sums", checkpoint, sums.restore):
            rows, some = (cells, place) if source.by_genes else (place, features)
            sums.add(rows, some, Y, source.name)
            if checkpoint is not None:
                checkpoint.write("sums", done, *sums.state())
            if progress is not None:
                progress(place.stop - place.start)
    of_design, of_genes = sums.finished()
    summary = assemble(
        of_design,
        of_genes,
        sums.constant,
        d=design.d,
        features=source.features,
        fixed_names=tuple(design.fixed_names),
        random_names=tuple(design.random_names),
        component_names=tuple(design.component_names),
        formula=design.formula,
        transform=sums.values.transform.label,
        terms=design.terms,
        random_terms=design.random_terms,
    )
    return summary if genes == NO_FILTER else genes.apply(summary, sums.sums["cells"], sums.sums["total"])


def _chunks(
    source: Source,
    pieces: Sequence[slice],
    stage: str,
    checkpoint: Checkpoint | None,
    restore: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], object],
) -> Iterator[tuple[int, slice, Any]]:
    """Yield how many chunks are done with this one, its place and its values, from where a checkpoint was."""
    done = 0
    if checkpoint is not None:
        found = checkpoint.read(stage)
        if found is not None:
            restore(*found)
            pieces, done = as_slices(found[0]["pieces"]), int(found[1]["done"])
            logger.info("going on from %s: %d of %d chunks are done", checkpoint.path, done, len(pieces))
        checkpoint.keep(pieces=as_array(pieces))
    for count, (place, Y) in enumerate(ahead(source.chunks(pieces[done:])), start=done + 1):
        yield count, place, Y


def plan_pieces(source: Source, memory: int | None = None) -> list[slice]:
    """Cut the matrix of `source` into chunks of rows, or columns, that a memory budget holds with their temporaries.

    Raises
    ------
    MemoryError
        If the budget does not hold a single one of them, with the numbers.
    """
    matrix = source.matrix
    if not hasattr(matrix, "indptr"):
        return _with_cells(source, list(source.slices(cells_per_chunk(source.m, memory))))
    begins = to_numpy(matrix.indptr).astype(np.int64)  # (rows + 1,)
    stored = matrix.data.dtype.itemsize + matrix.indices.dtype.itemsize
    need = begins * (_STORED * stored + _COMPUTED) + np.arange(len(begins)) * _PER_ROW  # bytes of all before
    budget = min(default_memory(), _SPARSE_BYTES) if memory is None else memory
    largest = int(max(np.diff(need).max(initial=0) / (1 - _SUMS), 8 * _COPIES * source.m / _SUMS)) + 1
    if largest > budget and memory is not None:
        raise MemoryError(
            f"a chunk needs {largest:,} bytes, memory allows {memory:,}; raise memory to {largest:,} or more"
        )
    return _with_cells(source, _cut(need, int(budget * (1 - _SUMS - _UNRETURNED)), begins))


def _with_cells(source: Source, pieces: list[slice]) -> list[slice]:
    # what holds no cell that is wanted is not read
    if source.kept is None or source.by_genes:
        return pieces
    return [piece for piece in pieces if source.kept[piece].any()]


def _cut(need: np.ndarray, room: int, begins: np.ndarray) -> list[slice]:
    """As many rows at a time as there is room for, at least one; `need` (rows + 1,) are the bytes of all before."""
    pieces, start = [], 0
    while start < len(need) - 1:
        stop = int(np.searchsorted(need, need[start] + room, side="right")) - 1
        stop = min(stop, int(np.searchsorted(begins, begins[start] + _MOST_VALUES, side="right")) - 1)
        stop = max(stop, start + 1)
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def _most_sums(memory: int | None) -> int:
    """How many sums of groups fit their share of a budget, temporaries counted."""
    return int((_SPARSE_BYTES if memory is None else memory) * _SUMS) // (8 * _COPIES)


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
        If a cell has no counts, or the values are negative.
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
            total[rows] += row_totals(Y)
        if checkpoint is not None:
            checkpoint.write("total counts", done, {"total_counts": total})
        if progress is not None:
            progress(place.stop - place.start)
    check_size_factors(total, "the total counts")
    if checkpoint is not None:
        checkpoint.keep(total_counts=total)
    return total


def check_size_factors(factors: Any, what: str) -> np.ndarray:
    """Refuse size factors that are not positive numbers, with how many."""
    try:
        factors = np.asarray(factors, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: wanted numbers, one positive size factor per cell ({error})") from error
    bad = int(np.count_nonzero(~(np.isfinite(factors) & (factors > 0))))
    if bad:
        raise ValueError(f"{what} of {bad} cell(s) are not positive numbers; remove these cells before normalizing")
    return factors


def cells_per_chunk(m: int, memory: int | None) -> int:
    """Cells of m genes that a memory budget holds as dense float64, temporaries counted.

    Raises
    ------
    MemoryError
        If the budget does not hold a single cell, with the numbers.
    """
    need = 8 * _COPIES * max(m, 1)
    if memory is None:
        return max(1, min(default_memory(), _CHUNK_BYTES) // need)
    if need > memory:
        raise MemoryError(f"one cell needs {need:,} bytes, memory allows {memory:,}; raise memory to {need:,} or more")
    return memory // need
