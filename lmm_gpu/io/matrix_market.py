"""Matrix Market files in parts: a text of `row column value`, sorted by rows or columns, is never held as a whole."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend.late_imports import scipy
from .broken_files import check_size

#: Entries that are parsed at a time.
_ENTRIES = 2**17


class Header(NamedTuple):
    """Content of the first lines of a file, and their number."""

    layout: str  #: "coordinate" or "array"
    field: str  #: "real", "integer", "pattern" or "complex"
    symmetry: str  #: "general", ...
    sizes: tuple[int, ...]  #: rows, columns, and entries
    lines: int


def read_header(path: Path) -> Header:
    """Read the header of a .mtx or .mtx.gz file.

    Raises
    ------
    ValueError
        If it is not one.
    """
    with gzip.open(path, "rt") if path.suffix.lower() == ".gz" else open(path, encoding="utf-8") as file:
        words = file.readline(1000).lower().split()
        if len(words) != 5 or words[:2] != ["%%matrixmarket", "matrix"]:
            raise ValueError("it does not begin with %%MatrixMarket matrix")
        for lines, line in enumerate(file, start=2):
            if line.strip() and not line.startswith("%"):
                return Header(words[2], words[3], words[4], tuple(int(word) for word in line.split()), lines)
    raise ValueError("it ends before it says how large the matrix is")


class MarketMatrix:
    """A sparse matrix in a text, sorted by rows or by columns, which is read from the beginning.

    ``matrix[lo:hi]`` gives cells, or genes if `by_genes`; reading all of them in order takes one pass.

    Parameters
    ----------
    path : Path
    header : Header
        Of a "coordinate" matrix that is "general".

    Raises
    ------
    ValueError
        If entries are missing, in surplus or outside the matrix.
    """

    def __init__(self, path: Path, header: Header):
        self._path, self._header = path, header
        self._order = 0  # the axis that entries are sorted by: 0 rows, 1 columns
        self._cells = 0  # the axis of the cells
        check_size(8 * sum(header.sizes[:2]), "it")
        counts = [np.zeros(size, dtype=np.int64) for size in header.sizes[:2]]
        is_sorted, last = [True, True], np.full((1, 2), -1)
        for places, _ in self._parts():
            self._check(places)
            for axis in (0, 1):
                _count(places[:, axis], counts[axis])
                is_sorted[axis] &= bool((np.diff(np.append(last[:, axis], places[:, axis])) >= 0).all())
            last = places[-1:]
        if counts[0].sum() != header.sizes[2]:
            raise ValueError(f"it says that it has {header.sizes[2]} entries, but has {counts[0].sum()}")
        self.is_sorted = any(is_sorted)
        self._order = 0 if is_sorted[0] else 1
        self.indptr = np.concatenate([[0], np.cumsum(counts[self._order])])  # (rows or columns + 1,)
        self.data = np.empty(
            0, dtype=np.int64 if header.field == "integer" else np.float64
        )  # the types, not the values
        self.indices = np.empty(0, dtype=np.int64)
        self._at, self._left = 0, self._parts()
        self._buffer: tuple[np.ndarray, np.ndarray] = (np.empty((0, 2), dtype=np.int64), self.data)

    @property
    def T(self) -> MarketMatrix:
        """The same file, read with cells in its columns."""
        other = copy.copy(self)
        other._cells = 1 - self._cells
        return other

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.data.dtype

    @property
    def by_genes(self) -> bool:
        """True if entries are sorted by genes."""
        return self._order != self._cells

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return self._header.sizes[self._cells], self._header.sizes[1 - self._cells]

    def __getitem__(self, some: slice) -> Any:
        lo, hi, _ = some.indices(len(self.indptr) - 1)
        begin, end = int(self.indptr[lo]), int(self.indptr[hi])
        places, values = self._entries(begin, end)
        shape = list(self._header.sizes[:2])
        shape[self._order] = hi - lo
        places[:, self._order] -= lo
        found = scipy.sparse.coo_array((values, (places[:, 0], places[:, 1])), shape=tuple(shape))
        return (found.T if self._cells else found).asformat("csc" if self.by_genes else "csr")

    def _entries(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        if begin < self._at:
            self._at, self._left = 0, self._parts()
            self._buffer = (self._buffer[0][:0], self._buffer[1][:0])
        taken = [self._buffer]
        while self._at + sum(len(values) for _, values in taken) < end:
            taken.append(next(self._left))
            if self._at + len(taken[0][1]) <= begin:  # before the first entry that is asked for
                self._at += len(taken.pop(0)[1])
        places, values = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        lo, hi = begin - self._at, end - self._at
        self._at, self._buffer = end, (places[hi:].copy(), values[hi:].copy())
        return places[lo:hi].copy(), values[lo:hi]

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        import pandas as pd

        pattern = self._header.field == "pattern"
        table = pd.read_csv(
            self._path,
            sep=r"\s+",
            header=None,
            skiprows=self._header.lines,
            names=["row", "column", "value"][: 2 if pattern else 3],
            dtype=None if pattern else {"value": np.int64 if self._header.field == "integer" else np.float64},
            comment="%",
            chunksize=_ENTRIES,
            compression="infer",
        )
        if not self._header.sizes[2]:
            return
        with table as parts:
            for part in parts:
                values = np.ones(len(part)) if pattern else part["value"].to_numpy()
                yield part[["row", "column"]].to_numpy(np.int64) - 1, values

    def _check(self, places: np.ndarray) -> None:
        outside = ((places < 0) | (places >= np.array(self._header.sizes[:2]))).any(axis=1)
        if outside.any():
            place, sizes = (places[outside][0] + 1).tolist(), self._header.sizes[:2]
            raise ValueError(f"it has an entry at {place[0]}, {place[1]} of {sizes[0]} x {sizes[1]}")


def _count(places: np.ndarray, counts: np.ndarray) -> None:
    """Add the number of entries at each place to `counts`; `places` are mostly close together."""
    if len(places):
        first = int(places.min())
        found = np.bincount(places - first)
        counts[first : first + len(found)] += found
