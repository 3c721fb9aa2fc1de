"""Tasks of dask workers: a chunk of cells is added to the groups of its rows of the design.

No task changes its inputs, so that any task can run again. Each runs on one thread: dask runs several at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.arrays import Array, entered, flag_indices, to_numpy
from ..backend.late_imports import is_scipy_sparse
from ..backend.optional import require
from ..backend.sparse import is_sparse, on_device, some_rows, stored_values
from ..backend.threads import limited
from ..io.broken_files import reading
from ..io.chunk_extents import Extent
from ..io.hdf5_sparse import read_part
from ..io.sparse_checks import canonical
from ..io.stored_arrays import StoredArray, read_rows, stored_array
from .centring import centre_of
from .chunk_samples import gene_counts
from .group_tables import FUSED_VALUES, GroupTables, can_fuse
from .grouped_design import GroupedDesign, Grouping
from .products import GeneProducts, products_of_chunk, row_totals
from .transform import (
    FRACTION,
    UNUSABLE,
    Transform,
    check_still_counts,
    check_values,
    has_fractions,
    not_counts,
    squares_fit,
)
from .within_sums import nearly_constant, sampled_cells, widest_grouping

#: Bytes at the start of a file that identify it, with its size and last change.
_HEADER = 2**16
#: Where the chunks of arrays are in their files, of the last few: to look them up takes as long as to read many.
_PLACES: dict[tuple[Path, str, FileMark], Callable[[tuple[int, ...]], Extent | None]] = {}
_MOST_PLACES = 8


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
    chunks: int = 1  # of all cells and genes, about as large as this one

    def selected(self, Y: Any) -> Any:
        """Stored values of the selected cells, unchecked."""
        Y = canonical(Y)
        return Y if self.kept is None else some_rows(Y, self.kept)

    def checked(self, Y: Any) -> Any:
        """Stored values of the selected cells."""
        Y = self.selected(Y)
        check_values(Y, self.name, self.start)
        return Y

    @property
    def grouping(self) -> Grouping:
        """The random intercept with the most levels."""
        found = None if self.design is None else widest_grouping(self.design)
        assert found is not None
        return found

    def fuses(self, Y: Any, centre: Centre) -> bool:
        """Return whether the compiled pass is used for stored values: it can read them, and there are enough."""
        assert self.design is not None
        if on_device(Y) or self.design.random_columns or centre.genes.size or 0 in Y.shape:
            return False
        if (is_scipy_sparse(Y) or self.transform.name is not None) and centre.about.any():
            return False
        return stored_values(Y).size * self.chunks >= FUSED_VALUES and can_fuse()

    def values(self, Y: Any) -> Any:
        """Transformed values (cells, genes) of those that were `checked`."""
        place = f"cells {self.start} to {self.start + Y.shape[0] - 1}"
        if self.detected and self.transform.name:
            check_still_counts(Y, self.name, place)
        if self.sure and has_fractions(Y):
            raise ValueError(not_counts(self.name, place))
        return self.transform.apply(Y)


@dataclass(frozen=True)
class Centre:
    """Values that are subtracted from the genes of a column of chunks."""

    about: np.ndarray  # (m,), one for each gene
    genes: np.ndarray  # (f,), positions of genes that are nearly constant within groups
    groups: np.ndarray  # (groups, f), their first value in each group of the widest random effect


@dataclass(frozen=True)
class FirstCells:
    """First value of some genes in each group, which add: those of the left first."""

    values: np.ndarray  # (groups, f)
    seen: np.ndarray  # (groups,) bool

    def __add__(self, other: FirstCells) -> FirstCells:
        return FirstCells(np.where(self.seen[:, None], self.values, other.values), self.seen | other.seen)


@dataclass(frozen=True)
class ChunkSums:
    """Sums of a chunk, which add."""

    sums: np.ndarray  # (groups, m)
    moments: np.ndarray  # (m, c + 1), products with the covariates and squares
    within: ChunkSums | None = None  # those of genes less the first value of their group
    cells: np.ndarray | None = None  # (m,), cells in which a gene is not zero
    total: np.ndarray | None = None  # (m,), before the transform
    fractions: int = 0  # chunks with values that are not whole numbers

    def __add__(self, other: ChunkSums) -> ChunkSums:
        return ChunkSums(
            self.sums + other.sums,
            self.moments + other.moments,
            None if self.within is None or other.within is None else self.within + other.within,
            None if self.cells is None or other.cells is None else self.cells + other.cells,
            None if self.total is None or other.total is None else self.total + other.total,
            self.fractions + other.fractions,
        )

    def products(self, design: GroupedDesign, centre: Array | None) -> GeneProducts:
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
    with reading(name), limited(1), ExitStack() as files:
        mark.check(name)
        if name.is_dir():
            stored = require("zarr", "reading .zarr").open_group(name, mode="r")[key]
        else:
            stored = files.enter_context(require("h5py", "reading .h5ad").File(name, "r"))[key]
        if sparse is None:
            return read_rows([_found_once(stored, name, mark)], piece)[0]
        begins = stored["indptr"][piece.start : piece.stop + 1]
        values, indices = (_found_once(stored[part], name, mark) for part in ("data", "indices"))
        return read_part(values, indices, *sparse, begins)


def _found_once(array: Any, name: Path, mark: FileMark) -> Any:
    """Return an array whose chunks were looked up in the first task of this process that read it."""
    key = name, array.name, mark
    found = stored_array(array, _PLACES.get(key))
    if isinstance(found, StoredArray) and key not in _PLACES:
        while len(_PLACES) >= _MOST_PLACES:
            _PLACES.pop(next(iter(_PLACES)), None)
        _PLACES[key] = found.extent
    return found


def products(rows: Rows, centre: Centre, Y: Any) -> ChunkSums:
    """Products of a chunk, and the counts of its genes for a filter."""
    tables = _compiled_tables(rows, centre, Y)
    stored = Y if tables is not None else rows.selected(Y)
    if tables is not None or rows.fuses(stored, centre):
        sums, moments, flags = _compiled_sums(rows, centre.about, stored, tables)
        within, fractions = None, bool(flags & FRACTION)
    else:
        check_values(stored, rows.name, rows.start)
        Y = rows.values(stored)
        if is_scipy_sparse(Y) and (flag_indices(centre.about).size or centre.genes.size):
            Y = Y.toarray()  # among chunks that are dense
        sums, moments = _group_sums(rows, centre.about, Y)
        within, fractions = _within_sums(rows, centre, Y), has_fractions(stored)
    counts = gene_counts(stored) if rows.counting else {}
    return ChunkSums(sums, moments, within, **counts, fractions=int(rows.transform.name is not None and fractions))


def _compiled_tables(rows: Rows, centre: Centre, Y: Any) -> GroupTables | None:
    """Tables for a sparse chunk that the compiled pass can read as it is; None for any other."""
    if rows.kept is not None or not is_scipy_sparse(Y) or Y.format not in ("csr", "csc") or not rows.fuses(Y, centre):
        return None
    assert rows.design is not None
    tables = GroupTables(rows.design, Y.shape[1], rows.weights, fused=True)
    return tables if tables.in_order(Y) else None


def _compiled_sums(
    rows: Rows, centre: np.ndarray, Y: Any, tables: GroupTables | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Sums over groups, moments and flags of a chunk of stored values by the compiled pass, which checks them."""
    assert rows.design is not None
    tables = tables or GroupTables(rows.design, Y.shape[1], rows.weights, fused=True)
    everyone, genes, flags = slice(0, Y.shape[0]), slice(0, Y.shape[1]), 0
    if is_scipy_sparse(Y) or rows.transform.name is not None:
        flags = tables.add_fused(everyone, genes, Y, rows.transform).flags()
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            tables.add_values(everyone, Y, centre).flags()
        flags = 0 if squares_fit(tables.moments[:, -1]) else UNUSABLE
    if flags & UNUSABLE:
        check_values(Y, rows.name, rows.start)
        rows.transform.apply(Y)
        raise ValueError(f"{rows.name} has sparse indices that are out of range or not sorted")
    if flags & FRACTION:
        rows.values(Y)  # refuses them if they had to be counts
    return tables.sums, tables.moments, flags


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
    if is_scipy_sparse(Y):
        tables.add(everyone, genes, Y)
    else:
        tables.add_dense(everyone, genes, np.asarray(Y), centre)
    return tables.sums, tables.moments


def _within_sums(rows: Rows, centre: Centre, Y: Any) -> ChunkSums | None:
    """Sums of the genes that are nearly constant within groups, less the first value of the group."""
    if not centre.genes.size:
        return None
    values = to_numpy(Y[:, centre.genes]).astype(np.float64) - centre.groups[rows.grouping.codes]
    return ChunkSums(*_group_sums(rows, np.zeros(values.shape[1]), values))


def centre(rows: Rows, constant: Array | None, Y: Any) -> Centre:
    """Centre of the genes of a first chunk; the genes that are nearly constant within groups, if it is dense."""
    Y = rows.values(rows.checked(Y))
    found, genes = centre_of(Y, constant), np.zeros(0, dtype=int)
    assert rows.design is not None
    grouping = None if is_sparse(Y) or on_device(Y) else widest_grouping(rows.design)
    if grouping is not None:
        cells = sampled_cells(grouping.codes)
        genes = nearly_constant(grouping.codes[cells], Y[cells])
    return Centre(np.zeros(Y.shape[1]) if found is None else to_numpy(found), genes, np.zeros((0, genes.size)))


def first_cells(rows: Rows, centre: Centre, Y: Any) -> FirstCells:
    """Values of the genes of a centre in the first cell of each group that a chunk has."""
    grouping = rows.grouping
    width = grouping.rows.stop - grouping.rows.start
    values, seen = np.zeros((width, centre.genes.size)), np.zeros(width, dtype=bool)
    groups, first = np.unique(grouping.codes, return_index=True)
    Y = rows.values(rows.selected(Y))[:, centre.genes][first]
    values[groups], seen[groups] = Y.toarray() if is_scipy_sparse(Y) else to_numpy(Y), True
    return FirstCells(values, seen)


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
