"""Sizes of chunks from a memory budget, predicted before anything is read."""

from __future__ import annotations

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.memory import default_memory
from ..io.source import Source

#: Default budgets of dense and sparse chunks: larger dense chunks are slower, larger sparse ones hardly faster.
_CHUNK_BYTES, _SPARSE_BYTES = 3 * 2**25, 2**29
#: Largest number of stored values of a chunk: larger chunks are not faster, and their arrays take new pages each time.
_MOST_VALUES = 1_000_000
#: The same where chunks are parts of arrays in memory and the compiled pass adds them up, which makes no copies. The
#: first chunk, from which transform and centres are chosen, stays small.
_MOST_IN_MEMORY = 8_000_000
#: A chunk, its transform and its float64 copy are in memory at the same time.
_COPIES = 4
#: Bytes per non-zero: copies as it is stored (two chunks, and one by rows or of some cells); and its value, weighted,
#: and by group with its place. Bytes per cell: where its values begin and its group, in some orders.
_STORED, _COMPUTED, _PER_ROW = 3, 3 * 8 + 8, 64
#: Shares of a budget for the group sums of a sparse chunk, and for freed memory that the C library keeps: it grows with
#: the number of chunks for a while (measured: 30 to 80 MB of 256).
_SUMS, _UNRETURNED = 0.25, 0.2


def plan_pieces(source: Source, memory: int | None = None, *, copied: bool = True) -> list[slice]:
    """Cut the matrix of `source` into chunks of rows, or columns, that fit a memory budget with their temporaries.

    Chunks are larger where values that are in memory are not `copied`.

    Raises
    ------
    MemoryError
        If the budget is too small for a single row, with the numbers.
    """
    matrix = source.matrix
    if not hasattr(matrix, "indptr"):
        return _with_cells(source, list(source.slices(cells_per_chunk(source.m, memory))))
    begins = to_numpy(matrix.indptr).astype(np.int64)  # (rows + 1,)
    stored = matrix.data.dtype.itemsize + matrix.indices.dtype.itemsize
    need = begins * (_STORED * stored + _COMPUTED) + np.arange(len(begins)) * _PER_ROW  # bytes of all rows before
    budget = default_memory(_SPARSE_BYTES) if memory is None else memory
    largest = int(max(np.diff(need).max(initial=0) / (1 - _SUMS), 8 * _COPIES * source.m / _SUMS)) + 1
    if largest > budget and memory is not None:
        raise MemoryError(
            f"a chunk needs {largest:,} bytes, memory allows {memory:,}; raise memory to {largest:,} or more"
        )
    most = _MOST_VALUES if copied or not source.in_memory else _MOST_IN_MEMORY
    return _with_cells(source, _cut(need, int(budget * (1 - _SUMS - _UNRETURNED)), begins, most))


def _with_cells(source: Source, pieces: list[slice]) -> list[slice]:
    # chunks without a selected cell are not read
    if source.kept is None or source.by_genes:
        return pieces
    return [piece for piece in pieces if source.kept[piece].any()]


def _cut(need: np.ndarray, room: int, begins: np.ndarray, most: int) -> list[slice]:
    """Take as many rows at a time as fit the room, at least one; `need` (rows + 1,): bytes of all rows before."""
    pieces, start = [], 0
    while start < len(need) - 1:
        stop = int(np.searchsorted(need, need[start] + room, side="right")) - 1
        values = most if start else _MOST_VALUES
        stop = min(stop, int(np.searchsorted(begins, begins[start] + values, side="right")) - 1)
        stop = max(stop, start + 1)
        pieces.append(slice(start, stop))
        start = stop
    return pieces


def most_sums(memory: int | None) -> int:
    """Number of group sums that fit their share of a budget, temporaries counted."""
    return int((_SPARSE_BYTES if memory is None else memory) * _SUMS) // (8 * _COPIES)


def cells_per_chunk(m: int, memory: int | None) -> int:
    """Number of cells of m genes that fit a memory budget as dense float64, temporaries counted.

    Raises
    ------
    MemoryError
        If the budget is too small for a single cell, with the numbers.
    """
    need = 8 * _COPIES * max(m, 1)
    if memory is None:
        return max(1, default_memory(_CHUNK_BYTES) // need)
    if need > memory:
        raise MemoryError(f"one cell needs {need:,} bytes, memory allows {memory:,}; raise memory to {need:,} or more")
    return memory // need


def stored_values_of(source: Source) -> int:
    """Number of values that are stored: non-zeros of a sparse matrix, all of a dense one."""
    matrix = source.matrix
    if hasattr(matrix, "indptr"):
        return int(matrix.indptr[-1]) if len(matrix.indptr) else 0
    return int(matrix.shape[0]) * int(matrix.shape[1])
