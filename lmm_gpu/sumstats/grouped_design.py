"""Columns of a design as groups of cells: most are constant within few groups, whose sums give their products.

A row of Z has one value per random effect, and most columns of X distinguish donors or cell types. Where a column x is
constant within groups, x'Y is a weighted sum of the groups' sums of Y: all of these columns cost one addition per value
of Y, however many they are. Columns that differ from cell to cell remain as covariates, which are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse, scipy
from ..io.sparse_checks import unchecked

if TYPE_CHECKING:
    from ..design.design import Design
    from ..design.fixed_effects import FixedColumns


#: Columns of X with more distinct values than this are covariates; also the largest number of groups of joined columns.
_MOST_GROUPS = 256
#: A pass over the cells costs about as much as multiplying this many covariates.
_FEW_COLUMNS = 4
#: Number of cells that are examined first: most columns that are not constant within groups show it there.
_EXAMINED = 4096


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups of cells, perhaps with a weight per cell, and the columns of X that are constant within them."""

    rows: slice  #: of the table of group sums
    codes: np.ndarray  #: (n,), the group of each cell, of the smallest type: few bytes, and sorted by their digits
    weights: np.ndarray | None = None  #: (n,), None for ones
    columns: Sequence[int] = ()  #: c columns of X
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  #: (groups, c), their values in each group

    def sums(self, rows: slice, values: np.ndarray) -> np.ndarray:
        """Sums (groups, b) of dense values (cells, b) of a few genes in some cells, times the weights."""
        codes, width = self.codes[rows], self.rows.stop - self.rows.start
        weighted = values if self.weights is None else values * self.weights[rows, None]
        return np.stack([np.bincount(codes, column, width) for column in weighted.T], axis=1)

    def indicators(self, rows: slice) -> Any:
        """Indicator columns of the groups for some cells, csr_array (cells, groups), times the weights."""
        return indicator_matrix([replace(self, rows=slice(0, self.rows.stop - self.rows.start))], rows)


@dataclass(frozen=True, eq=False)
class RandomColumns:
    """Columns of Z of which a cell has several: they are multiplied."""

    rows: slice  #: of the table of group sums
    Z: Any = field(repr=False)  #: csr_array (n, columns)


@dataclass(frozen=True, eq=False)
class GroupedDesign:
    """X (n, p) and Z (n, q) as groupings and covariates.

    Attributes
    ----------
    p, q
        Columns of X and Z.
    groupings
        Of the random effects that have one value per cell, and of columns of X.
    random_columns
        Of the other random effects.
    rest
        Columns of X that are covariates.
    covariates
        (n, c): X[:, rest], and a column of ones unless a grouping gives the sums of the genes.

    Examples
    --------
    >>> X, Z = np.ones((4, 1)), scipy.sparse.csr_array(np.repeat(np.eye(2), 2, axis=0))
    >>> design = GroupedDesign.from_matrices(X, Z, (2,))
    >>> design.groups, design.groupings[0].codes.tolist(), list(design.groupings[0].columns), design.rest
    (2, [0, 0, 1, 1], [0], [])
    """

    p: int
    q: int
    groupings: list[Grouping]
    random_columns: list[RandomColumns]
    rest: list[int]
    covariates: np.ndarray

    @classmethod
    def from_matrices(cls, X: np.ndarray, Z: Any, d: Sequence[int]) -> GroupedDesign:
        """Find the groupings of X (n, p) and of Z (n, q), a csr_array with `d` columns per random effect."""
        ends = np.cumsum(d).tolist()
        effects = [slice(end - width, end) for end, width in zip(ends, d, strict=True)]
        return cls.from_blocks(X, [one_hot(Z[:, rows], rows) for rows in effects])

    @classmethod
    def from_blocks(cls, X: np.ndarray, blocks: Sequence[Grouping | RandomColumns]) -> GroupedDesign:
        """Find the groupings of X (n, p), given the blocks of Z in the order of their columns."""
        groupings, several = [], []
        left, q = list(range(X.shape[1])), blocks[-1].rows.stop if blocks else 0
        for block in blocks:
            if isinstance(block, RandomColumns):
                several.append(block)
                continue
            if block.weights is None:
                block = _with_constant_columns(block, X, left)
                left = [column for column in left if column not in block.columns]
            groupings.append(block)
        few, rest = _with_few_values(X, left)
        fixed: list[Grouping] = []
        if few:
            first, codes = _distinct_rows(X, few)
            fixed, more = _packed(X[first], codes, few, q)
            rest = sorted(rest + more)
        return cls(X.shape[1], q, groupings + fixed, several, rest, _covariates(X[:, rest], groupings + fixed))

    @classmethod
    def without_groups_of_x(cls, X: np.ndarray, groupings: list[Grouping]) -> GroupedDesign:
        """Return the design whose columns of X (n, p) are all covariates."""
        return cls(
            X.shape[1], groupings[-1].rows.stop, groupings, [], list(range(X.shape[1])), _covariates(X, groupings)
        )

    @classmethod
    def of(cls, design: Design) -> GroupedDesign:
        """Groupings of a design whose columns of factors are a table of distinct rows: no X (n, p) is made."""
        columns = _Columns(design.fixed)
        if len(columns.fixed.valued) > _FEW_COLUMNS:
            return cls.from_matrices(design.X, design.Z, design.d)
        groupings: list[Grouping] = []
        left, start = list(range(columns.p)), 0
        for term in design.random:
            codes = term.codes.astype(code_type(len(term.levels)))
            for values in [None] if term.values is None else term.values.T:
                rows = slice(start, start + len(term.levels))
                block = Grouping(rows, codes, None if values is None or (values == 1).all() else values.copy())
                if block.weights is None:
                    block = columns.constant_within(block, left)
                    left = [column for column in left if column not in block.columns]
                groupings.append(block)
                start = rows.stop
        tabled = [column for column in left if column in columns.tabled]
        few, rest = _with_few_values(columns.table, tabled, len(term.codes))
        fixed, more = _packed(columns.table, columns.fixed.codes, few, start)
        rest = sorted([*rest, *more, *(column for column in left if column not in columns.tabled)])
        return cls(columns.p, start, groupings + fixed, [], rest, _covariates(columns.dense(rest), groupings + fixed))

    def of_cells(self, cells: slice) -> GroupedDesign:
        """Design of some of the cells: views, no copies."""
        groupings = [
            replace(one, codes=one.codes[cells], weights=None if one.weights is None else one.weights[cells])
            for one in self.groupings
        ]
        several = [replace(block, Z=block.Z[cells]) for block in self.random_columns]
        return replace(self, groupings=groupings, random_columns=several, covariates=self.covariates[cells])

    def indicators(self, cells: slice | None = None) -> Any:
        """All columns whose products with the genes are the group sums, csr_array (n, groups); or those of `cells`."""
        cells = slice(0, self.n) if cells is None else cells
        if not self.random_columns:
            return indicator_matrix(self.groupings, cells)
        blocks = {block.rows.start: block.Z[cells] for block in self.random_columns}
        blocks |= {one.rows.start: one.indicators(cells) for one in self.groupings}
        return scipy.sparse.csr_array(scipy.sparse.hstack([blocks[start] for start in sorted(blocks)], format="csr"))

    def sums(self, cells: slice, values: np.ndarray) -> np.ndarray:
        """`indicators` of `cells`, transposed, times dense values (cells, b) of a few genes, without SciPy."""
        if self.random_columns:
            return np.asarray(self.indicators(cells).T @ values)
        found = np.zeros((self.groups, values.shape[1]))
        for grouping in self.groupings:
            found[grouping.rows] = grouping.sums(cells, values)
        return found

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.covariates)

    @property
    def groups(self) -> int:
        """Rows of the table of group sums: q for Z, then those of the groupings of X."""
        return max(int(stop) for stop in (self.q, *(grouping.rows.stop for grouping in self.groupings)))

    @property
    def has_sums(self) -> bool:
        """True if a grouping without weights gives the sums of the genes."""
        return _has_sums(self.groupings)

    def products(self, sums: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """X'Y (p, m) and the sums of the genes (m,) from group sums (groups, m) and covariate products (c, m)."""
        XY = np.zeros((self.p, sums.shape[1]))
        XY[self.rest] = moments[: len(self.rest)]
        for grouping in self.groupings:
            if len(grouping.columns):
                XY[grouping.columns] = grouping.values.T @ sums[grouping.rows]
        if not self.has_sums:
            return XY, moments[len(self.rest)].copy()
        first = next(grouping for grouping in self.groupings if grouping.weights is None)
        return XY, sums[first.rows].sum(axis=0)


def indicator_matrix(groupings: Sequence[Grouping], cells: slice) -> Any:
    """Indicator columns of groupings, in order, for some cells, times their weights: csr_array (cells, groups)."""
    n, k = len(groupings[0].codes[cells]), len(groupings)
    columns, values = np.empty((n, k), np.int32), np.ones((n, k))
    for i, one in enumerate(groupings):
        columns[:, i] = one.codes[cells]
        columns[:, i] += one.rows.start
        if one.weights is not None:
            values[:, i] = one.weights[cells]
    kind = np.int32 if n * k <= np.iinfo(np.int32).max else np.int64
    indptr, indices = np.arange(0, n * k + 1, k, dtype=kind), columns.reshape(-1).astype(kind, copy=False)
    return unchecked(scipy.sparse.csr_array, (n, groupings[-1].rows.stop), values.reshape(-1), indices, indptr)


def one_hot(block: Any, rows: slice) -> Grouping | RandomColumns:
    """The columns of Z of one random effect as a grouping, if each cell has at most one value."""
    if not is_scipy_sparse(block):
        cells, columns = np.nonzero(block)
        stored = np.bincount(cells, minlength=len(block))
        found = columns, block[cells, columns]
    else:
        block = scipy.sparse.csr_array(block)
        stored, found = np.diff(block.indptr), (block.indices, block.data)
    if stored.size and stored.max() > 1:
        return RandomColumns(rows, scipy.sparse.csr_array(block))
    codes, weights = np.zeros(len(stored), dtype=code_type(block.shape[1])), np.zeros(len(stored))  # (n,)
    codes[stored == 1], weights[stored == 1] = found
    return Grouping(rows, codes, None if (weights == 1).all() else weights)


def _with_constant_columns(grouping: Grouping, X: np.ndarray, columns: Sequence[int]) -> Grouping:
    """Add to a grouping the columns of X that are constant within its groups."""
    cell = _first_cells(grouping.codes, grouping.rows.stop - grouping.rows.start)
    same = list(columns)
    for codes, x in ((grouping.codes[:_EXAMINED], X[:_EXAMINED]), (grouping.codes, X)):
        same = [j for j in same if (X[cell, j][codes] == x[:, j]).all()]
    return Grouping(grouping.rows, grouping.codes, None, same, X[cell][:, same])


def _first_cells(codes: np.ndarray, groups: int) -> np.ndarray:
    """Position of the first cell of each group, 0 for an empty one."""
    first = np.zeros(groups, dtype=np.intp)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def _has_sums(groupings: Sequence[Grouping]) -> bool:
    return any(grouping.weights is None for grouping in groupings)


def _covariates(columns: np.ndarray, groupings: Sequence[Grouping]) -> np.ndarray:
    # with a column of ones, unless a grouping gives the sums
    return columns if _has_sums(groupings) else np.hstack([columns, np.ones((len(columns), 1))])


class _Columns:
    """Columns of X, of factors from a table of distinct rows, of numbers with one value per cell."""

    def __init__(self, fixed: FixedColumns):
        self.fixed, self.p = fixed, len(fixed.names)
        self.tabled = {column: place for place, column in enumerate(fixed.tabled)}
        self.valued = {column: place for place, column in enumerate(fixed.valued)}
        self.table = np.zeros((len(fixed.table), self.p))  # (r, p), distinct rows; zeros for columns of numbers
        self.table[:, list(fixed.tabled)] = fixed.table

    def dense(self, columns: Sequence[int]) -> np.ndarray:
        """Some columns of X (n, c)."""
        X = np.empty((len(self.fixed.codes), len(columns)))
        for place, column in enumerate(columns):
            valued = self.valued.get(column)
            X[:, place] = self.table[self.fixed.codes, column] if valued is None else self.fixed.values[:, valued]
        return X

    def constant_within(self, grouping: Grouping, columns: Sequence[int]) -> Grouping:
        """Add to a grouping those of the columns that are constant within its groups."""
        codes, rows, width = grouping.codes, len(self.table), grouping.rows.stop - grouping.rows.start
        pairs = _distinct(codes.astype(np.int64) * rows + self.fixed.codes, width * rows)  # group and row of the table
        group, row = pairs // rows, pairs % rows
        first, cell = np.zeros(width, np.intp), _first_cells(codes, width)  # of each group, any for an empty one
        first[group[::-1]] = row[::-1]
        tabled = [column for column in columns if column in self.tabled]
        found, same = tabled, first[group]
        for some in (slice(_EXAMINED // 4), slice(None)):  # by column: all at once would take more memory than a chunk
            found = [one for one in found if (self.table[row[some], one] == self.table[same[some], one]).all()]
        numbers = {column: self.fixed.values[:, self.valued[column]] for column in columns if column in self.valued}
        constant = [column for column, x in numbers.items() if (x[cell][codes] == x).all()]
        values = np.column_stack([self.table[first][:, found], *(numbers[column][cell] for column in constant)])
        return Grouping(grouping.rows, codes, None, found + constant, values)


def _distinct(numbers: np.ndarray, size: int) -> np.ndarray:
    """Distinct numbers below `size`, sorted."""
    if size <= 4 * len(numbers):
        return np.flatnonzero(np.bincount(numbers, minlength=1))
    return np.unique(numbers)


def _with_few_values(X: np.ndarray, columns: Sequence[int], cells: int | None = None) -> tuple[list[int], list[int]]:
    """Columns with so few values that groups of them are worth a pass, and the others."""
    most = _most_groups(len(X) if cells is None else cells)
    few = [j for j in columns if _has_few_values(X[:, j], most)]
    if len(few) < _FEW_COLUMNS:
        return [], list(columns)
    return few, [j for j in columns if j not in few]


def _most_groups(cells: int) -> int:
    return min(_MOST_GROUPS, cells // 4)  # groups of fewer cells are not worth it


def _packed(X: np.ndarray, codes: np.ndarray, columns: Sequence[int], start: int) -> tuple[list[Grouping], list[int]]:
    """Join columns into groupings, first fit, from distinct rows of X and the row of each cell; return the rest too."""
    groupings, rest = [], []
    for members, groups in _bins(X, columns, _most_groups(len(codes))):
        if len(members) < _FEW_COLUMNS:
            rest += members
            continue
        row = np.unique(groups, return_index=True)[1]  # (groups,)
        narrow = groups.astype(code_type(len(row)))
        rows = slice(start, start + len(row))
        groupings.append(Grouping(rows, narrow[codes], None, members, X[row][:, members]))
        start = rows.stop
    return groupings, rest


def _bins(X: np.ndarray, columns: Sequence[int], most: int) -> list[tuple[list[int], np.ndarray]]:
    """Sets of columns of X that have at most so many distinct rows together, and the group of each row."""
    first, groups = _distinct_rows(X, columns)
    if len(first) <= most:
        return [(list(columns), groups)]
    bins: list[tuple[list[int], np.ndarray]] = []
    for j in columns:
        values = np.unique(X[:, j], return_inverse=True)[1]
        for place, (members, groups) in enumerate(bins):
            joined = np.unique(groups * most + values, return_inverse=True)[1]
            if joined.max() < most:
                bins[place] = ([*members, j], joined)
                break
        else:
            bins.append(([j], values))
    return bins


def code_type(count: int) -> np.dtype[Any]:
    """Return the smallest type of unsigned integers below `count`."""
    return np.min_scalar_type(max(count - 1, 0))


def _has_few_values(x: np.ndarray, most: int) -> bool:
    return len(np.unique(x[:_EXAMINED])) <= most and (len(x) <= _EXAMINED or len(np.unique(x)) <= most)


def _distinct_rows(X: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """First cell of each distinct row of some columns, and the distinct row of each cell (n,).

    Sorting one number per row is many times faster than sorting rows; unequal rows with equal numbers are detected.
    """
    mark = np.zeros(len(X))
    for j, factor in zip(columns, np.random.default_rng(0).normal(size=len(columns)), strict=True):
        mark += factor * X[:, j]  # (n,), and no copy of X
    distinct, codes = np.unique(mark, return_inverse=True)  # for the first places NumPy would need a slower sort
    first = _first_cells(codes, len(distinct))
    if all((X[first, j][codes] == X[:, j]).all() for j in columns):
        return first, codes
    _, first, codes = np.unique(X[:, columns], axis=0, return_index=True, return_inverse=True)
    return first, codes.reshape(-1)
