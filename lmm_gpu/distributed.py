"""Cells that lie elsewhere: chunks are summed up where they are, genes are fitted in blocks, on the workers of dask.

A chunk of a dask array meets the rows of the design that are its own, in the task that makes or reads it (`worker`),
and what it adds to the sums (p + q + 2 numbers per gene) goes up a tree of additions: no cells travel. Where tasks run,
and what happens when a worker dies, is dask's: everything here is `dask.array` and `dask.delayed`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from . import worker
from .arrays import Array, to_numpy
from .design import Design
from .fitting import FitOptions, warn_of_lost_digits, warn_of_status
from .gene_filter import NO_FILTER, GeneFilter
from .io import Source
from .model import MixedModel
from .plan import Shape, even_blocks, genes_per_block, parse_memory
from .products import (
    constant_of,
    design_products,
    join_genes,
    sparse_if_worth_it,
)
from .readers import require
from .results import Estimates, LMMFit
from .stream import cells_per_chunk, check_size_factors
from .summary import SummaryStats, assemble
from .threads import quiet_blas
from .transform import Transform, recognise

logger = logging.getLogger("lmm_gpu")

#: Additions are done so many at a time.
_FAN_IN = 4
#: Cells of a chunk of a sparse file: many more than the rows of the sums, which are dense.
_CELLS = 8192
_ADVICE = 'pip install "lmm-gpu[dask]"'


def is_dask(matrix: Any) -> bool:
    """Whether `matrix` is a dask array, without importing dask."""
    return hasattr(matrix, "__dask_graph__") and hasattr(matrix, "to_delayed")


@contextmanager
def connected(scheduler: Any) -> Iterator[Any]:
    """Give the client of a dask scheduler: of an address or a cluster one that is closed at the end, None of None.

    Raises
    ------
    ValueError
        If distributed is not installed, or nothing answers at the address.
    """
    if scheduler is None:
        yield None
        return
    distributed = require("distributed", "scheduler=", _ADVICE)
    if isinstance(scheduler, distributed.Client):
        yield scheduler
        return
    try:
        # looked at first: a client without an address to go to keeps the process from ending
        distributed.comm.resolve_address(getattr(scheduler, "scheduler_address", scheduler))
        client = distributed.Client(scheduler, set_as_default=False)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"cannot use scheduler={scheduler!r}: {reason}; wanted a dask Client or the address that `dask scheduler` "
            "prints, such as tcp://10.0.0.1:8786"
        ) from error
    with client:
        if not client.nthreads():
            logger.warning("%s has no workers yet: waiting for the first", client.scheduler.address)
        yield client


def read_on_workers(source: Source, memory: int | None = None) -> Source:
    """Return `source`, opened from .h5ad or .zarr, with chunks that workers read themselves; others as they are."""
    stored = getattr(source.matrix, "group", source.matrix)
    if not hasattr(stored, "attrs") or "encoding-type" not in stored.attrs:
        return source
    require("dask.array", "reading on workers", _ADVICE)
    n, m = source.matrix.shape  # of all cells that are stored
    if source.by_genes:
        size = cells_per_chunk(n, memory)
    elif stored is not source.matrix and memory is None:
        size = _CELLS
    else:
        size = cells_per_chunk(m, memory)
    return replace(source, matrix=_lazily(source, stored, list(source.slices(size))))


def _lazily(source: Source, stored: Any, pieces: Sequence[slice]) -> Any:
    # by an absolute path: workers may be elsewhere in the file system
    array, matrix = require("dask.array", "reading on workers", _ADVICE), source.matrix
    is_file = hasattr(stored, "file")
    name = Path(stored.file.filename if is_file else source.name).resolve()
    sparse = None if stored is matrix else (matrix.shape[0 if source.by_genes else 1], source.by_genes)
    read = partial(worker.read, name, stored.name if is_file else stored.path, sparse)
    places, sizes = worker.column(pieces), tuple(piece.stop - piece.start for piece in pieces)
    return array.map_blocks(
        read,
        array.from_array(places.T if source.by_genes else places, chunks=1, name=False),
        chunks=((matrix.shape[0],), sizes) if source.by_genes else (sizes, (matrix.shape[1],)),
        dtype=matrix.dtype,
        meta=(np.empty if sparse is None else scipy.sparse.csr_array)((0, 0), dtype=matrix.dtype),
    )


def reduce_chunks(
    source: Source,
    design: Design,
    transform: Transform | None,
    *,
    is_counts: bool | None = None,
    genes: GeneFilter = NO_FILTER,
    client: Any = None,
) -> SummaryStats:
    """Sum the statistics of all cells of a dask array where its chunks lie: `lmm_gpu.stream.accumulate` elsewhere.

    Parameters
    ----------
    source : Source
        n cells x m genes; a dask array in any chunks of rows and columns, sparse or dense.
    design, transform, is_counts, genes
        As `accumulate`.
    client : distributed.Client, optional
        By default wherever dask computes: an active client, else threads of this process.

    Raises
    ------
    ValueError
        As `accumulate`.
    MemoryError
        If workers kept dying.
    ConnectionError
        If the scheduler went away.
    """
    if source.m == 0:
        raise ValueError(f"{source.name} has no genes: wanted at least one column")
    grid = _Grid(source, client)
    looked_at = transform is None and is_counts is None
    if transform is None:
        transform = grid.recognised() if looked_at else recognise(None, is_counts)
    X = sparse_if_worth_it(design.X)
    constant = constant_of(X)
    flags: dict[str, Any] = {"looked_at": looked_at, "counting": genes != NO_FILTER}
    rows = [
        replace(chunk, X=X[cells], Z=design.Z[cells], transform=_of_cells(transform, cells), **flags)
        for chunk, cells in zip(grid.rows, grid.cells, strict=True)
    ]
    sums = grid.sums(rows, constant)
    seen = {name: sums.pop(name) for name in ("cells", "total") if name in sums}
    summary = assemble(
        design_products(X, design.Z),
        sums,
        constant,
        d=design.d,
        features=source.features,
        fixed_names=tuple(design.fixed_names),
        random_names=tuple(design.random_names),
        component_names=tuple(design.component_names),
        formula=design.formula,
        transform=transform.label,
        terms=design.terms,
    )
    return genes.apply(summary, **seen) if seen else summary


def totals_of_chunks(source: Source, client: Any = None) -> np.ndarray:
    """Total counts (n,) of a dask array, counted where its chunks lie: `lmm_gpu.stream.count_totals` elsewhere."""
    return check_size_factors(_Grid(source, client).totals(), "the total counts")


class _Grid:
    """Chunks of a dask array, and what is computed of them."""

    def __init__(self, source: Source, client: Any):
        self.dask, self.client, self.matrix = require("dask", "a dask array", _ADVICE), client, source.matrix
        edges = np.cumsum([0, *self.matrix.chunks[0]])  # (chunks + 1,)
        kept = [None if source.kept is None else source.kept[lo:hi] for lo, hi in pairwise(edges)]
        if source.kept is not None:
            edges = np.concatenate([[0], np.cumsum(source.kept)])[edges]  # among the cells that are taken
        self.cells = [slice(lo, hi) for lo, hi in pairwise(edges.tolist())]
        self.rows = [worker.Rows(source.name, cells.start, some) for cells, some in zip(self.cells, kept, strict=True)]

    def totals(self) -> np.ndarray:
        """Total counts (n,)."""
        parts = self.compute([self.tree(list(row)) for row in self.each(worker.totals, worker.column(self.rows))])
        return np.concatenate([part["total"] for part in parts])

    def recognised(self) -> Transform:
        """The transform by the looks of the first chunk of cells that is not all zero."""
        for i, rows in enumerate(self.rows):
            telling = np.concatenate(self.compute(self.each(worker.telling, worker.column([rows]), of=i)[0]))
            if telling.any():
                return recognise(telling, None)
        return Transform()

    def sums(self, rows: Sequence[worker.Rows], constant: Array | None) -> dict[str, Array]:
        """Products of all cells and genes, about the centre that the first chunk of cells has."""
        first = next(i for i, cells in enumerate(self.cells) if cells.start < cells.stop)
        centres = self.compute(
            self.each(worker.centre, worker.column([rows[first]]), worker.column([constant]), of=first)[0]
        )
        parts = self.each(worker.products, worker.column(rows), worker.column(centres).T)  # (row chunks, column chunks)
        columns = self.compute([self.tree(list(column)) for column in parts.T])
        return join_genes(columns) | {"centre": np.concatenate(centres)}

    def each(self, function: Callable[..., Any], *given: np.ndarray, of: int | None = None) -> np.ndarray:
        """Delayed results for each chunk, or for those of one row, in the task that makes the chunk.

        `given` are tables of what `function` is to have besides: one for each chunk, row or column of chunks.
        """
        array = require("dask.array", "a dask array", _ADVICE)
        matrix = self.matrix if of is None else self.matrix.blocks[of]
        boxes = array.map_blocks(
            partial(worker.boxed, function),
            matrix,
            *(array.from_array(table, chunks=1, name=False) for table in given),
            chunks=tuple((1,) * count for count in matrix.numblocks),
            dtype=object,
            meta=np.empty((0, 0), dtype=object),
        )
        return boxes.to_delayed()

    def tree(self, parts: list[Any]) -> Any:
        """Add up `parts`, some at a time."""
        while len(parts) > 1:
            parts = [self.dask.delayed(worker.add)(parts[i : i + _FAN_IN]) for i in range(0, len(parts), _FAN_IN)]
        return parts[0]

    def compute(self, tasks: Iterable[Any]) -> list[Any]:
        """Results, on this side."""
        with _told(), _quietly():
            return [worker.opened(result) for result in self.dask.compute(*tasks, scheduler=self.client)]


def fit_on_workers(
    summary: SummaryStats, options: FitOptions, client: Any, progress: Callable[[int], object] | None = None
) -> LMMFit:
    """Fit every gene of `summary`, in blocks on the workers: `lmm_gpu.fitting.fit_summary` elsewhere.

    `options.memory` is that of one thread of a worker.

    Raises
    ------
    ValueError
        As `fit_summary`.
    MemoryError
        If workers kept dying.
    ConnectionError
        If the scheduler went away.
    """
    memory = parse_memory(options.memory)
    with quiet_blas(len(summary.random_names)):
        shared = MixedModel.decompose(summary, options.method, memory)  # refuses what cannot be fitted
    ranges = _ranges(summary, memory, sum(client.nthreads().values()))
    work = replace(options, block=summary.m)
    estimates = Estimates.empty(summary.m, len(summary.fixed_names), len(summary.d) + 1)
    few_digits = np.zeros(summary.m, dtype=bool)
    delayed = require("dask", "scheduler=", _ADVICE).delayed
    design = delayed(summary.select(slice(0)), traverse=False)  # once for all blocks
    tasks = [delayed(worker.fit)(design, _genes(summary.select(slice(*genes))), work) for genes in ranges]
    with _told(), _quietly():
        for (lo, hi), part in zip(ranges, client.compute(tasks), strict=True):
            estimates.put(np.arange(lo, hi), part.result())
            few_digits[lo:hi] = to_numpy(shared.with_genes(summary.select(slice(lo, hi))).few_digits)
            if progress is not None:
                progress(hi - lo)
    warn_of_status(estimates.status)
    warn_of_lost_digits([summary.features[gene] for gene in np.flatnonzero(few_digits)], summary.m)
    return LMMFit(estimates, summary, shared, options.method, options.epsilon, memory=memory)


def _genes(summary: SummaryStats) -> dict[str, Any]:
    # what is not of the design
    return {name: getattr(summary, name) for name in ("XY", "ZY", "Ynorm", "Ysum", "features", "centred")}


def _ranges(summary: SummaryStats, memory: int | None, threads: int) -> list[tuple[int, int]]:
    # nearly equal, at least one for each thread; there may be no workers yet
    threads = max(threads, 1)
    size = genes_per_block(Shape(len(summary.fixed_names), summary.d), memory)
    return list(even_blocks(summary.m, max(1, min(size, -(-summary.m // threads))), threads))


# --- plumbing ---


def _of_cells(transform: Transform, cells: slice) -> Transform:
    factors = transform.size_factors
    return transform if factors is None else replace(transform, size_factors=factors[cells])


@contextmanager
def _told() -> Iterator[None]:
    """Say in one sentence what ends a computation besides the caller's mistakes, which come as they are."""
    try:
        yield
    except CancelledError as error:
        raise ConnectionError(
            "the dask scheduler went away before all was computed: start it and its workers again, and then this"
        ) from error
    except Exception as error:
        if type(error).__name__ != "KilledWorker":  # of distributed, which may not be installed
            raise
        raise MemoryError(
            "workers died of the same task again and again, most likely of too little memory; give them more, or "
            f"rechunk to fewer cells ({str(error).partition(chr(10))[0]})"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without dask's advice to scatter what is in the graph: what is scattered is lost with its worker."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        yield
