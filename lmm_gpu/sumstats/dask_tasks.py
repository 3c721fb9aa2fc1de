"""Tasks of dask workers: a chunk of cells is multiplied with its rows of the design.

No task changes its inputs, so that any task can run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from ..backend.arrays import Array, entered, flag_indices, to_numpy
from ..backend.optional import require
from ..backend.sparse import on_device, some_rows, stored_values
from ..io.broken_files import reading
from ..io.hdf5_sparse import read_part
from ..io.sparse_checks import canonical
from .accumulator import gene_counts
from .centring import centre_of
from .group_tables import GroupTables
from .grouped_design import GroupedDesign
from .products import GeneProducts, products_of_chunk, row_totals
from .transform import Transform, check_still_counts, check_values, has_fractions, not_counts

#: Bytes at the start of a file that identify it, with its size and last change.
_HEADER = 2**16


@dataclass(frozen=True)
class Rows:
    """Rows of the design for a chunk of cells, and the treatment of its values."""

    name: str
    start: int  # the first cell, of those that are selected
    kept: np.ndarray | None = None  # (stored cells,), the selected cells; None for all
    design: GroupedDesign | None = None  # of these cells
    weights: np.ndarray | None = None  # (cells,)
    transform: Transform = field(default_factory=Transform)
    detected: bool = False  # the transform was chosen from other cells
    sure: bool = False  # is_counts=True
    counting: bool = False  # for a filter of genes

    def checked(self, Y: Any) -> Any:
        """Stored values of the selected cells."""
        Y = canonical(Y)
        Y = Y if self.kept is None else some_rows(Y, self.kept)
        check_values(Y, self.name, self.start)
        return Y

    def values(self, Y: Any) -> Any:
        """Transformed values (cells, genes) of those that were `checked`."""
        place = f"cells {self.start} to {self.start + Y.shape[0] - 1}"
        if self.detected and self.transform.name:
            check_still_counts(Y, self.name, place)
        if self.sure and has_fractions(Y):
            raise ValueError(not_counts(self.name, place))
        return self.transform.apply(Y)


@dataclass(frozen=True)
class ChunkSums:
    """Sums of a chunk, which add."""

    sums: np.ndarray  # (groups, m)
    moments: np.ndarray  # (m, c + 1), products with the covariates and squares
    cells: np.ndarray | None = None  # (m,), cells in which a gene is not zero
    total: np.ndarray | None = None  # (m,), before the transform
    fractions: int = 0  # chunks with values that are not whole numbers

    def __add__(self, other: ChunkSums) -> ChunkSums:
        return ChunkSums(
            self.sums + other.sums,
            self.moments + other.moments,
            None if self.cells is None or other.cells is None else self.cells + other.cells,
            None if self.total is None or other.total is None else self.total + other.total,
            self.fractions + other.fractions,
        )

    def products(self, design: GroupedDesign, centre: Array) -> GeneProducts:
        """Products of the genes with a design, about a centre (m,)."""
        XY, Ysum = design.products(self.sums, self.moments[:, :-1].T)
        return GeneProducts(XY, self.sums[: design.q], self.moments[:, -1], Ysum, centre)


@dataclass(frozen=True)
class FileMark:
    """Size, last change and a digest of the header of a file: workers must see the same file as the caller."""

    size: int
    changed: int
    header: str

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """Read the mark of a file; of a .zarr folder, that of the metadata files at its top."""
        names = ("zarr.json", ".zgroup", ".zmetadata", ".zattrs")
        files = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
        header, found = hashlib.sha256(), [file.stat() for file in files]
        for file in files:
            with file.open("rb") as opened_file:
                header.update(opened_file.read(_HEADER))
        times = [one.st_mtime_ns for one in found]
        return cls(sum(one.st_size for one in found), max(times, default=0), header.hexdigest()[:16])

    def check(self, path: Path) -> None:
        """Refuse another file under the same path."""
        there = FileMark.of(path)
        if there != self:
            what = [name for name in ("size", "changed", "header") if getattr(there, name) != getattr(self, name)]
            raise ValueError(
                f"a worker sees another file as {path} than this process does (other {', '.join(what)}): put the same "
                "file, with its time of change, at this path on every machine"
            )


def read(name: Path, key: str, sparse: tuple[int, bool] | None, mark: FileMark, place: np.ndarray) -> Any:
    """Read rows, or columns of a `sparse` matrix that is stored by columns; its index is read for these only."""
    piece = opened(place)
    with reading(name), ExitStack() as files:
        mark.check(name)
        if name.is_dir():
            stored = require("zarr", "reading .zarr").open_group(name, mode="r")[key]
        else:
            stored = files.enter_context(require("h5py", "reading .h5ad").File(name, "r"))[key]
        if sparse is None:
            return stored[piece]
        begins = stored["indptr"][piece.start : piece.stop + 1]
        return read_part(stored["data"], stored["indices"], *sparse, begins)


def products(rows: Rows, centre: np.ndarray, Y: Any) -> ChunkSums:
    """Products of a chunk, and the counts of its genes for a filter."""
    stored = rows.checked(Y)
    Y = rows.values(stored)
    if scipy.sparse.issparse(Y) and flag_indices(centre).size:  # among chunks that are dense
        Y = Y.toarray()
    counts = gene_counts(stored) if rows.counting else {}
    fractions = int(rows.transform.name is not None and has_fractions(stored))
    return ChunkSums(*_group_sums(rows, centre, Y), **counts, fractions=fractions)


def _group_sums(rows: Rows, centre: np.ndarray, Y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sums over groups and moments of a chunk of transformed values, less the centre."""
    assert rows.design is not None
    design = rows.design
    if on_device(Y):
        found = products_of_chunk(design.covariates, design.indicators(), Y, centre, rows.weights)
        return found.ZY, np.vstack([found.XY, found.Ynorm]).T
    tables = GroupTables(design, Y.shape[1], rows.weights)
    everyone, genes = slice(0, Y.shape[0]), slice(0, Y.shape[1])
    if 0 in Y.shape:
        return tables.sums, tables.moments
    if scipy.sparse.issparse(Y):
        tables.add(everyone, genes, Y)
    else:
        tables.add_dense(everyone, genes, np.asarray(Y), centre)
    return tables.sums, tables.moments


def centre(rows: Rows, constant: Array | None, Y: Any) -> np.ndarray:
    """Centres of the genes of a first chunk (m,)."""
    found = centre_of(rows.values(rows.checked(Y)), constant)
    return np.zeros(Y.shape[1]) if found is None else to_numpy(found)


def totals(rows: Rows, Y: Any) -> np.ndarray:
    """Total counts of the cells of a chunk (cells,)."""
    return np.asarray(row_totals(rows.checked(Y)))


def telling(rows: Rows, Y: Any) -> np.ndarray:
    """One value by which counts are detected: one that no count can be, if there is any, else the largest."""
    values = to_numpy(stored_values(rows.checked(Y))).reshape(-1)
    if values.dtype.kind == "f" and (wrong := (values < 0) | (values != np.floor(values))).any():
        return np.asarray(values[wrong][:1])
    if values.size == 0:
        return values
    return values[[values.argmin() if values.min() < 0 else values.argmax()]]


def boxed(function: Callable[..., Any], Y: Any, *given: np.ndarray) -> np.ndarray:
    """Result of `function` for a chunk and other inputs, as a chunk of an array of objects."""
    with entered(Y):
        return column([function(*map(opened, given), Y)])  # (1, 1)


def opened(box: Any) -> Any:
    """Content of the box of `boxed`; anything else as it is."""
    return box[0, 0] if isinstance(box, np.ndarray) and box.dtype == object else box


def add(parts: Sequence[Any]) -> Any:
    """Sum of the results of chunks; none of them is changed."""
    first, *others = map(opened, parts)
    total = first
    for part in others:
        total = total + part
    return total


def column(items: Sequence[Any]) -> np.ndarray:
    """Objects as a table (items, 1), which dask cuts and distributes as it does chunks."""
    table = np.empty((len(items), 1), dtype=object)  # (items, 1)
    for i, item in enumerate(items):
        table[i, 0] = item
    return table
