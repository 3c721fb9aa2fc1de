"""Accumulate the genes of cells in tables: sums by group, products with covariates, and squares.

Two implementations fill the same tables: one compiled pass over the values (`fused_kernels`, needs numba), and products
of SciPy, which is the fallback and the reference of its tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from operator import matmul
from typing import Any

import numpy as np

from ..backend.blocks import blocks
from ..backend.late_imports import is_scipy_sparse, scipy
from .fused_inputs import FusedInputs, readable
from .gene_queues import Added, GeneQueues
from .grouped_design import GroupedDesign, Grouping
from .host_products import tiles
from .products import GeneProducts
from .transform import UNUSABLE, Transform

#: Group sums that SciPy's path computes at a time: they stay in the processor's cache, and the C library reuses arrays
#: of this size, where larger ones take new pages.
_SUMS_AT_A_TIME = 2**18
#: Cells of a dense block per group and grouping: less time goes into adding up the sums of blocks than into the sums.
_CELLS_PER_GROUP = 8
#: So few genes are added up one by one: a product with a sparse matrix has to import SciPy's first.
_FEW_GENES = 4
#: Up to so many covariates, a product of a matrix with each of them takes less time than one with all.
_FEW_COLUMNS = 4
#: Fewer values than this are accumulated before the compiled pass is loaded.
FUSED_VALUES = 20_000_000
#: So many times more, if they are dense: SciPy's path adds these in twice the time, and loads no 100 MB of numba.
FUSED_DENSE = 10
#: So many dense values are worth loading the compiled pass for: SciPy's adds them in twice its time.
_WORTH_LOADING = 1_000_000_000
#: With fewer genes, SciPy's sums of dense values take less time than the compiled pass.
_WIDE = 64
#: Bytes of the tables of a range of genes that stay in the processor's last cache, and the number of values of a chunk
#: from which it is worth another range.
_TABLE_BYTES, _TILE_VALUES = 2**24, 2**21
#: Values whose order is checked in less time than other threads take to start.
_CHECKED_ALONE = 2**22


def can_fuse() -> bool:
    """Return whether numba is installed."""
    return find_spec("numba") is not None


def is_worth_fusing(cells: int, genes: int) -> bool:
    """Return whether the compiled pass over dense values is worth it: it is loaded, or they are many.

    >>> is_worth_fusing(2_000_000, 1000) == can_fuse(), is_worth_fusing(1_000_000_000, 8)
    (True, False)
    """
    if genes < _WIDE:
        return False
    values = cells * genes
    return f"{__package__}.fused_kernels" in sys.modules or (values >= _WORTH_LOADING and can_fuse())


#: No transform.
AS_THEY_ARE = Transform()


class GroupTables:
    """Tables of m genes over the cells of a design that were added.

    Parameters
    ----------
    design : GroupedDesign
    m : int
        Number of genes.
    weights : array (n,), optional
        One weight per cell.
    fused : bool
        Use the compiled pass where it can read the values.
    threads : int
        Threads of the compiled pass; each works on a range of genes. The sums do not depend on it.
    most : int, optional
        Numbers to hold beyond the tables and the chunk in SciPy's path.

    Examples
    --------
    >>> X, Z = np.ones((4, 1)), scipy.sparse.csr_array(np.repeat(np.eye(2), 2, axis=0))
    >>> tables = GroupTables(GroupedDesign.from_matrices(X, Z, (2,)), 2)
    >>> tables.add(slice(0, 4), slice(0, 2), scipy.sparse.csr_array(np.arange(8.0).reshape(4, 2)))
    >>> products = tables.products()
    >>> products.XY.tolist(), products.ZY.tolist(), products.Ynorm.tolist()
    ([[12.0, 16.0]], [[2.0, 4.0], [10.0, 12.0]], [56.0, 84.0])
    """

    def __init__(
        self,
        design: GroupedDesign,
        m: int,
        weights: np.ndarray | None = None,
        *,
        fused: bool = False,
        threads: int = 1,
        most: int | None = None,
    ):
        self.design, self.m, self.weights, self.threads, self.most = design, m, weights, threads, most
        self.fused = fused and not design.random_columns and bool(design.groupings)
        self.sums = np.zeros((design.groups, m))
        self.moments = np.zeros((m, design.covariates.shape[1] + 1))  #: covariates' products, and squares
        self._inputs = FusedInputs(design, weights) if self.fused else None
        self._pool: ThreadPoolExecutor | None = None
        self._parts: tuple[Any, np.ndarray] | None = None
        self._queues = GeneQueues(threads)

    def add(self, rows: slice, genes: slice, Y: Any) -> None:
        """Add a sparse chunk (cells, genes) of transformed values by products of SciPy."""
        Y = scipy.sparse.csr_array(Y)
        Y = scipy.sparse.csr_array((Y.data.astype(np.float64, copy=False), Y.indices, Y.indptr), shape=Y.shape)
        squares, ones = np.square(Y.data), np.ones(Y.shape[0])
        if self.weights is not None:
            weights = np.repeat(self.weights[rows], np.diff(Y.indptr))
            squares *= weights
            Y = scipy.sparse.csr_array((Y.data * weights, Y.indices, Y.indptr), shape=Y.shape)
        sums, moments = self.sums[:, genes], self.moments[genes]
        width = Y.shape[0] + Y.shape[1] if self.most is None else max(1, self.most // max(Y.shape[1], 1))
        narrow = max(1, min(width, _SUMS_AT_A_TIME // max(Y.shape[1], 1)))
        for block in self.design.random_columns:
            sums[block.rows] += (block.Z[rows].T @ Y).toarray()
        for grouping in self.design.groupings:
            table = sums[grouping.rows]
            for groups, added in _group_sums(grouping, rows, Y, narrow):
                table[_as_slice(groups)] += added
        covariates = self.design.covariates[rows]
        for lo in range(0, covariates.shape[1], width):
            moments[:, lo : min(lo + width, covariates.shape[1])] += Y.T @ covariates[:, lo : lo + width]
        moments[:, -1] += scipy.sparse.csr_array((squares, Y.indices, Y.indptr), shape=Y.shape).T @ ones

    def add_dense(
        self,
        rows: slice,
        genes: slice | np.ndarray,
        Y: np.ndarray,
        centre: np.ndarray | None = None,
        transform: Transform = AS_THEY_ARE,
    ) -> None:
        """Add dense values (cells, genes), transformed and less the centre (genes,): some at a time, in the cache."""
        places = np.arange(self.m)[genes]
        several = len(self.design.groupings) + len(self.design.random_columns)
        cells_at_least = _CELLS_PER_GROUP * self.design.groups / several
        fused = self.fused and isinstance(genes, slice) and (Y.flags.writeable or Y.dtype != np.float64)
        for at, tiles_of_genes in tiles(Y, transform, centre, cells_at_least):
            cells = slice(rows.start + at.start, rows.start + at.stop)
            if fused:  # numba would compile a second kernel for read-only values
                for part, values, _ in tiles_of_genes:
                    self._add_fused_tile(cells.start, int(places[part.start]), values)
                continue
            covariates, sums_of = self.design.covariates[cells], self._group_sums(cells, len(places))
            if self.weights is not None:
                covariates = covariates * self.weights[cells, None]
            for part, values, copied in tiles_of_genes:
                self._add_tile(cells, _as_slice(places[part]), sums_of, covariates, values, copied)

    def _add_fused_tile(self, cell: int, gene: int, values: np.ndarray) -> None:
        # from a cell and a gene on, in views of the tables that begin there
        assert self._inputs is not None
        sums, moments = _flat(self.sums, self.moments)
        tables = self.m, self._inputs.design, sums[gene:], moments[gene * self.moments.shape[1] :]
        width = values.shape[1]
        self._inputs.kernels.add_values(values, np.zeros(width), cell, 0, width, *tables)

    def _group_sums(self, cells: slice, genes: int) -> Callable[[np.ndarray], Any]:
        """Return the function from dense values (cells, b) to their sums (groups, b)."""
        weights = None if self.weights is None else self.weights[cells]
        if genes <= _FEW_GENES:
            return lambda values: self.design.sums(cells, values if weights is None else values * weights[:, None])
        columns = self.design.indicators(cells)
        if weights is not None:
            columns.data = columns.data * np.repeat(weights, np.diff(columns.indptr))
        return partial(matmul, columns.T)

    def _add_tile(
        self,
        cells: slice,
        genes: slice | np.ndarray,
        sums_of: Callable[[np.ndarray], Any],
        covariates: np.ndarray,
        values: np.ndarray,
        overwrite: bool,
    ) -> None:
        self.sums[:, genes] += sums_of(values)
        if covariates.shape[1] <= _FEW_COLUMNS:
            for h, x in enumerate(covariates.T):
                self.moments[genes, h] += x @ values
        else:
            self.moments[genes, :-1] += (covariates.T @ values).T
        if self.weights is None and not overwrite:
            self.moments[genes, -1] += np.einsum("ij,ij->j", values, values)
        else:
            weights = np.ones(len(values)) if self.weights is None else self.weights[cells]
            self.moments[genes, -1] += weights @ np.square(values, out=values if overwrite else None)

    def in_order(self, Y: Any) -> bool:
        """Return whether the compiled pass can read a sparse chunk: its indices ascend and lie in the matrix."""
        self._parts = self._parts_of(Y)
        return self._parts is not None

    def _parts_of(self, Y: Any) -> tuple[Any, np.ndarray] | None:
        """Ends of the values of each thread in the rows of a CSR chunk (threads, rows); None if not `in_order`."""
        assert self._inputs is not None
        kernel, along = self._inputs.kernels.in_order, 1 if Y.format == "csc" else 0
        across, rows = Y.shape[1 - along], Y.shape[along]
        genes = [] if along else self._ranges(across, Y.nnz)
        bounds = np.array([lo for lo, _ in genes[1:]], dtype=np.int64)
        ends = np.empty((len(bounds) + 1, rows), Y.indptr.dtype)

        def check(lo: int, hi: int) -> bool:
            return bool(kernel(Y.indices, Y.indptr[lo : hi + 1], across, bounds, ends[:, lo:hi]))

        threads = self.threads if Y.nnz > _CHECKED_ALONE else 1
        return (Y, ends) if all(self._on_threads(check, _even(Y.indptr, threads))) else None

    def add_fused(
        self, rows: slice, genes: slice, Y: Any, transform: Transform, counted: np.ndarray | None = None
    ) -> Added:
        """Begin to add a chunk (cells, genes) of stored values by the compiled pass.

        Parameters
        ----------
        rows, genes : slice
            Position of the chunk.
        Y : array or SciPy sparse matrix
            A sparse one has to be `in_order`, best asked before; CSC of some of the cells is converted to CSR.
        transform : Transform
        counted : array (m, 2), optional
            The number of cells in which a gene is not zero, and its total before the transform, are added to it.

        Returns
        -------
        Added
            Its flags are 0, or bits of `transform`: `UNUSABLE`, `FRACTION`, `NEGATIVE`. The tables are complete, and
            `Y` may be overwritten, once they are asked for.
        """
        assert self._inputs is not None
        kernels, values = self._inputs.kernels, self._inputs.values(transform)
        counts = np.zeros((self.m, 0)) if counted is None else counted
        if is_scipy_sparse(Y) and Y.format == "csc" and rows == slice(0, self.design.n):
            matrix: tuple[Any, ...] = (readable(Y.data), Y.indices, Y.indptr)
            flat = (genes.start, self.m, values, *self._inputs.by_genes, *_flat(self.sums, self.moments, counts))
            parts = _even(Y.indptr, self.threads)
            return self._queues.add(lambda lo, hi: kernels.add_csc(*matrix, lo, hi, *flat), parts, apart=True)
        sums, moments = self.sums, self.moments
        m = genes.stop - genes.start
        if m < self.m:  # tables of a range of genes, contiguous
            sums, moments, counts = np.ascontiguousarray(sums[:, genes]), moments[genes], counts[genes]
        flat = (m, values, self._inputs.design, *_flat(sums, moments, counts))
        if is_scipy_sparse(Y):
            added = self._add_rows(rows, Y, flat)
        else:
            stored, ranges = readable(np.ascontiguousarray(Y)), self._ranges(m, Y.size)
            added = self._queues.add(lambda lo, hi: kernels.add_dense(stored, rows.start, lo, hi, *flat), ranges)
        if m < self.m:
            added.flags()
            self.sums[:, genes] = sums
        return added

    def _add_rows(self, rows: slice, Y: Any, flat: tuple[Any, ...]) -> Added:
        assert self._inputs is not None
        kernel, known, self._parts = self._inputs.kernels.add_csr, self._parts, None
        Y = Y.tocsr()
        parts = known if known is not None and known[0] is Y else self._parts_of(Y)
        if parts is None:
            return Added([UNUSABLE])
        data, ends = readable(Y.data), [Y.indptr[:-1], *parts[1]]
        ranges = self._ranges(Y.shape[1], Y.nnz)  # as in parts
        place = {lo: part for part, (lo, _) in enumerate(ranges)}

        def add(lo: int, _: int) -> int:
            part = place[lo]
            return int(kernel(data, Y.indices, ends[part], ends[part + 1], rows.start, *flat))

        return self._queues.add(add, ranges)

    def add_values(self, rows: slice, Y: np.ndarray, centre: np.ndarray) -> Added:
        """Begin to add a dense chunk (cells, m) of all genes as it is, less the centre (m,), by the compiled pass.

        Returns
        -------
        Added
            Its flags are 0 or `transform.NEGATIVE`; as of `add_fused`.
        """
        assert self._inputs is not None
        flat = (self.m, self._inputs.unrolled, *_flat(self.sums, self.moments))
        values, kernel = readable(np.ascontiguousarray(Y)), self._inputs.kernels.add_values
        ranges = self._ranges(self.m)
        return self._queues.add(lambda lo, hi: kernel(values, centre, rows.start, lo, hi, *flat), ranges)

    def _on_threads(self, function: Callable[[int, int], Any], ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """Call a function for ranges of rows or genes, on threads."""
        if len(ranges) < 2 or self.threads < 2:
            return [function(*bounds) for bounds in ranges]
        if self._pool is None:  # a new one for every chunk would take as long as a small chunk
            self._pool = ThreadPoolExecutor(self.threads)
        return list(self._pool.map(function, *zip(*ranges, strict=True)))

    def _ranges(self, size: int, values: int = 0) -> list[tuple[int, int]]:
        """Ranges of rows or genes: one per thread, or more where their tables stay in the cache for many values."""
        tiles = min(self.sums[:, :size].nbytes // _TABLE_BYTES + 1, values // _TILE_VALUES) if values else 1
        count = -(-max(1, tiles) // self.threads) * self.threads
        return list(blocks(size, -(-size // max(1, min(count, size))) or 1))

    def products(self) -> GeneProducts:
        """Products of the cells that were added with the design."""
        self._queues.wait()
        XY, Ysum = self.design.products(self.sums, self.moments[:, :-1].T)
        return GeneProducts(XY, self.sums[: self.design.q], self.moments[:, -1].copy(), Ysum)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays to continue from."""
        return {"tables/sums": self.sums, "tables/moments": self.moments}


def _even(indptr: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Ranges of rows (of genes, for CSC) with about as many stored values each."""
    values = np.linspace(int(indptr[0]), int(indptr[-1]), count + 1)[1:-1]
    ends = [0, *np.searchsorted(indptr, values).tolist(), len(indptr) - 1]
    return [(lo, hi) for lo, hi in pairwise(ends) if hi > lo]


def _flat(*tables: np.ndarray) -> list[np.ndarray]:
    return [table.reshape(-1) for table in tables]  # views, as they are contiguous


def _as_slice(groups: np.ndarray) -> np.ndarray | slice:
    # consecutive groups are not copied
    first, last = int(groups[0]), int(groups[-1])
    return slice(first, last + 1) if last - first + 1 == len(groups) else groups


def _group_sums(grouping: Grouping, rows: slice, Y: Any, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield up to `width` groups (g,), each once, and the sums of their cells (g, m)."""
    codes = grouping.codes[rows]
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    starts = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)[: len(codes)]  # (groups,)
    if grouping.weights is not None:
        data = Y.data * np.repeat(grouping.weights[rows], np.diff(Y.indptr))
        Y = scipy.sparse.csr_array((data, Y.indices, Y.indptr), shape=Y.shape)
    if not (order[1:] > order[:-1]).all():
        Y = Y[order]
    ends = Y.indptr[np.append(starts, len(codes))]  # rows of one group are consecutive: together they are one row
    for lo in range(0, len(starts), width):
        some = starts[lo : lo + width]
        yield codes[some], _added_up(Y.data, Y.indices, ends[lo : lo + width + 1], (len(some), Y.shape[1]))


def _added_up(data: np.ndarray, indices: np.ndarray, ends: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # toarray adds values of the same place
    part = slice(ends[0], ends[-1])
    summed = scipy.sparse.csr_array((data[part], indices[part], ends - ends[0]), shape=shape)
    dense: np.ndarray = summed.toarray()
    return dense
