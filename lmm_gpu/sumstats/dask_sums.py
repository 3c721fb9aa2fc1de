"""Cells on dask workers: chunks are accumulated where they are.

A chunk of a dask array is added to the groups of its cells, in the task that makes or reads it (`dask_tasks`), and
these sums (a row for each group) are added in a tree: no cells travel. The placement of tasks, and recovery from the
death of a worker, is left to dask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import Array
from ..backend.dask_client import ADVICE, explained_failures, without_graph_warning
from ..backend.late_imports import scipy
from ..backend.optional import require
from ..io.source import Source
from . import dask_tasks
from .chunk_plan import cells_per_chunk
from .design_sums import constant_of_design, products_of_design
from .gene_filter import NO_FILTER, GeneFilter
from .grouped_design import GroupedDesign
from .products import GeneProducts
from .streaming import check_size_factors, summary_of
from .summary_stats import SummaryStats
from .transform import Transform, recognise, warn_not_counts
from .within import Within
from .within_sums import merged_products, widest_grouping

if TYPE_CHECKING:
    from ..design.design import Design

#: Number of results that one task adds.
_FAN_IN = 4
#: Stored values of a chunk of a sparse file: many times more than the numbers of its sums, which are dense.
_VALUES = 2**23
#: Share of that in the first chunk, from which counts are recognised.
_FIRST = 16


def read_on_workers(source: Source, memory: int | None = None) -> Source:
    """Replace the matrix of a .h5ad or .zarr source by chunks that workers read themselves; others are unchanged."""
    stored: Any = getattr(source.matrix, "group", source.matrix)
    if not hasattr(stored, "attrs") or "encoding-type" not in stored.attrs:
        return source
    require("dask.array", "reading on workers", ADVICE)
    n, m = source.matrix.shape  # of all stored cells
    if stored is not source.matrix and memory is None and not source.by_genes:
        pieces = _pieces(source.matrix.indptr)
    else:
        pieces = list(source.slices(cells_per_chunk(n if source.by_genes else m, memory)))
    return replace(source, matrix=_lazily(source, stored, pieces))


def _pieces(begins: np.ndarray) -> list[slice]:
    """Rows of a sparse matrix in pieces of about `_VALUES`, from the position at which each row begins (rows + 1,).

    The first piece is smaller: it is read several times, while the other workers wait.
    """
    wanted = [0, *range(_VALUES // _FIRST, max(int(begins[-1]), 1), _VALUES)]
    edges = np.unique([*np.searchsorted(begins, wanted).tolist(), len(begins) - 1])
    return [slice(lo, hi) for lo, hi in pairwise(edges.tolist())]


def _lazily(source: Source, stored: Any, pieces: Sequence[slice]) -> Any:
    # by an absolute path: workers may have another working directory
    array, matrix = require("dask.array", "reading on workers", ADVICE), source.matrix
    is_file = hasattr(stored, "file")
    name = Path(stored.file.filename if is_file else source.name).resolve()
    sparse = None if stored is matrix else (matrix.shape[0 if source.by_genes else 1], source.by_genes)
    mark = dask_tasks.FileMark.of(name)
    read = partial(dask_tasks.read, name, stored.name if is_file else stored.path, sparse, mark)
    places, sizes = dask_tasks.column(pieces), tuple(piece.stop - piece.start for piece in pieces)
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
    weights: np.ndarray | None = None,
    client: Any = None,
) -> SummaryStats:
    """Accumulate the statistics of all cells of a dask array on the workers that have its chunks.

    Parameters
    ----------
    source : Source
        n cells x m genes; a dask array in any chunks of rows and columns, sparse or dense.
    design, transform, is_counts, genes, weights
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
    genes.check(source.features)
    grid, given = _Grid(source, client), transform
    if transform is None:
        transform = grid.recognised() if is_counts is None else recognise(None, is_counts)
    grouped, constant = GroupedDesign.of(design), constant_of_design(design)
    flags: dict[str, Any] = {
        "detected": given is None and is_counts is None,
        "sure": given is None and is_counts is True,
        "counting": genes.counts,
    }
    n, columns = sum(cells.stop - cells.start for cells in grid.cells), grid.matrix.numblocks[1]
    rows = [
        replace(
            chunk,
            design=grouped.of_cells(cells),
            weights=None if weights is None else weights[cells],
            transform=_of_cells(transform, cells),
            chunks=columns * round(n / max(cells.stop - cells.start, 1)),
            **flags,
        )
        for chunk, cells in zip(grid.rows, grid.cells, strict=True)
    ]
    products, counts, within = grid.sums(rows, grouped, constant)
    if given is not None and given.name is not None and any(part.fractions for part in counts):
        warn_not_counts(given.name, source.name, "the matrix")
    of_design = products_of_design(design, grouped, weights)
    summary = summary_of(design, of_design, products, constant, source.features, transform.label, weights)
    summary = replace(summary, within=within)
    if not genes.counts:
        return genes.apply(summary, None, None)
    cells, total = (np.concatenate([getattr(part, name) for part in counts]) for name in ("cells", "total"))
    return genes.apply(summary, cells, total)


def totals_of_chunks(source: Source, client: Any = None) -> np.ndarray:
    """Total counts (n,) of a dask array, on the workers that have its chunks."""
    return check_size_factors(_Grid(source, client).totals(), "the total counts")


class _Grid:
    """Chunks of a dask array, and computations on them."""

    def __init__(self, source: Source, client: Any):
        self.dask, self.client, self.matrix = require("dask", "a dask array", ADVICE), client, source.matrix
        if source.features_kept is not None:
            self.matrix = self.matrix[:, np.flatnonzero(source.features_kept)]
        edges = np.cumsum([0, *self.matrix.chunks[0]])  # (chunks + 1,)
        kept = [None if source.kept is None else source.kept[lo:hi] for lo, hi in pairwise(edges)]
        if source.kept is not None:
            edges = np.concatenate([[0], np.cumsum(source.kept)])[edges]  # among the selected cells
        self.cells = [slice(lo, hi) for lo, hi in pairwise(edges.tolist())]
        self.rows = [
            dask_tasks.Rows(source.name, cells.start, some) for cells, some in zip(self.cells, kept, strict=True)
        ]

    def totals(self) -> np.ndarray:
        """Total counts (n,)."""
        parts = self.compute(
            [self.tree(list(row)) for row in self.each(dask_tasks.totals, dask_tasks.column(self.rows))]
        )
        return np.concatenate(parts)

    def recognised(self) -> Transform:
        """The transform auto-detected from the first chunk of cells that is not all zero."""
        for i, rows in enumerate(self.rows):
            telling = np.concatenate(self.compute(self.each(dask_tasks.telling, dask_tasks.column([rows]), of=i)[0]))
            if telling.any():
                return recognise(telling, None)
        return Transform()

    def sums(
        self, rows: Sequence[dask_tasks.Rows], design: GroupedDesign, constant: Array | None
    ) -> tuple[GeneProducts, list[dask_tasks.ChunkSums], Within | None]:
        """Products of all cells and genes, about the centre of the first chunk of cells; and all sums, by genes."""
        first = next(i for i, cells in enumerate(self.cells) if cells.start < cells.stop)
        centres = self.compute(
            self.each(dask_tasks.centre, dask_tasks.column([rows[first]]), dask_tasks.column([constant]), of=first)[0]
        )
        if any(centre.genes.size for centre in centres):
            found = self.added(dask_tasks.first_cells, rows, centres)
            centres = [replace(centre, groups=cells.values) for centre, cells in zip(centres, found, strict=True)]
        columns = self.added(dask_tasks.products, rows, centres)
        pairs = list(zip(columns, centres, strict=True))
        products = GeneProducts.join([column.products(design, centre.about) for column, centre in pairs])
        return products, columns, _within(pairs, products, design)

    def added(
        self, function: Callable[..., Any], rows: Sequence[dask_tasks.Rows], centres: Sequence[dask_tasks.Centre]
    ) -> list[Any]:
        """Results of `function` for all chunks, added over the cells, for each column of chunks."""
        parts = self.each(function, dask_tasks.column(rows), dask_tasks.column(centres).T)  # (row chunks, columns)
        return self.compute([self.tree(list(column)) for column in parts.T])

    def each(self, function: Callable[..., Any], *given: np.ndarray, of: int | None = None) -> np.ndarray:
        """Delayed results for each chunk, or for those of one row, in the task that makes the chunk.

        `given` are tables of further inputs of `function`: one for each chunk, row or column of chunks.
        """
        array = require("dask.array", "a dask array", ADVICE)
        matrix = self.matrix if of is None else self.matrix.blocks[of]
        boxes = array.map_blocks(
            partial(dask_tasks.boxed, function),
            matrix,
            *(array.from_array(table, chunks=1, name=False) for table in given),
            chunks=tuple((1,) * count for count in matrix.numblocks),
            dtype=object,
            meta=np.empty((0, 0), dtype=object),
        )
        delayed: np.ndarray = boxes.to_delayed()
        return delayed

    def tree(self, parts: list[Any]) -> Any:
        """Add `parts`, some at a time."""
        while len(parts) > 1:
            parts = [self.dask.delayed(dask_tasks.add)(parts[i : i + _FAN_IN]) for i in range(0, len(parts), _FAN_IN)]
        return parts[0]

    def compute(self, tasks: Iterable[Any]) -> list[Any]:
        """Results, in this process."""
        with explained_failures(), without_graph_warning():
            return [dask_tasks.opened(result) for result in self.dask.compute(*tasks, scheduler=self.client)]


def _within(
    pairs: Sequence[tuple[dask_tasks.ChunkSums, dask_tasks.Centre]], others: GeneProducts, design: GroupedDesign
) -> Within | None:
    """Products of all genes: about their groups where they are nearly constant within these."""
    starts = np.cumsum([0, *(centre.about.size for _, centre in pairs)])
    some = [(sums.within, centre, start) for (sums, centre), start in zip(pairs, starts[:-1], strict=True)]
    parts = [(sums.products(design, None), centre, start) for sums, centre, start in some if sums is not None]
    if not parts or (grouping := widest_grouping(design)) is None:
        return None
    found = GeneProducts.join([products for products, _, _ in parts])
    genes = np.concatenate([centre.genes + start for _, centre, start in parts])
    groups = np.hstack([centre.groups for _, centre, _ in parts])
    return merged_products(others, found, genes, groups, grouping.rows)


def _of_cells(transform: Transform, cells: slice) -> Transform:
    factors = transform.size_factors
    return transform if factors is None else replace(transform, size_factors=factors[cells])
