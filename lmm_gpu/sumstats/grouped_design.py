"""Columns of a design as groups of cells: most are constant within few groups, whose sums give their products.

A row of Z has one value per random effect, and most columns of X distinguish donors or cell types. Where a column x is
constant within groups, x'Y is a weighted sum of the groups' sums of Y: all of these columns cost one addition per value
of Y, however many they are. Columns that differ from cell to cell remain as covariates, which are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

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


@dataclass(frozen=True, eq=False)
class RandomColumns:
    """Columns of Z of which a cell has several: they are multiplied."""

    rows: slice  #: of the table of group sums
    Z: Any = field(repr=False)  #: csr_array (n, columns)


class GroupedDesign:
    """X (n, p) and Z (n, q) as groupings and covariates.

    Parameters
    ----------
    X : array (n, p)
    Z : scipy.sparse.csr_array (n, q)
    d : sequence of int
        Columns of Z per random effect.

    Attributes
    ----------
    groupings
        Of the random effects that have one value per cell, and of columns of X.
    random_columns
        Of the other random effects.
    rest
        Columns of X that are covariates.
    covariates
        (n, c): X[:, rest], and a column of ones unless a grouping gives the sums of the genes.
    groups
        Rows of the table of group sums: q for Z, then those of the groupings of X.

    Examples
    --------
    >>> X, Z = np.ones((4, 1)), scipy.sparse.csr_array(np.repeat(np.eye(2), 2, axis=0))
    >>> design = GroupedDesign(X, Z, (2,))
    >>> design.groups, design.groupings[0].codes.tolist(), list(design.groupings[0].columns), design.rest
    (2, [0, 0, 1, 1], [0], [])
    """

    def __init__(self, X: np.ndarray, Z: Any, d: Sequence[int]):
        self.n, self.p, self.q = len(X), X.shape[1], sum(d)
        self.groupings: list[Grouping] = []
        self.random_columns: list[RandomColumns] = []
        left = list(range(self.p))
        ends = np.cumsum(d).tolist()
        for rows in (slice(end - width, end) for end, width in zip(ends, d, strict=True)):
            block = _one_hot(Z[:, rows], rows)
            if isinstance(block, RandomColumns):
                self.random_columns.append(block)
                continue
            if block.weights is None:
                block = _with_constant_columns(block, X, left)
                left = [column for column in left if column not in block.columns]
            self.groupings.append(block)
        self.has_sums = any(grouping.weights is None for grouping in self.groupings)
        fixed, self.rest = _packed(X, left, self.q)
        self.groupings += fixed
        self.groups = max([self.q, *(grouping.rows.stop for grouping in fixed)])
        ones = () if self.has_sums else (np.ones((self.n, 1)),)
        self.covariates = np.hstack([X[:, self.rest], *ones])

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


def _one_hot(block: Any, rows: slice) -> Grouping | RandomColumns:
    """The columns of Z of one random effect as a grouping, if each cell has at most one value."""
    block = scipy.sparse.csr_array(block)
    stored = np.diff(block.indptr)
    if stored.size and stored.max() > 1:
        return RandomColumns(rows, block)
    codes, weights = np.zeros(len(stored), dtype=_code_type(block.shape[1])), np.zeros(len(stored))  # (n,)
    codes[stored == 1], weights[stored == 1] = block.indices, block.data
    return Grouping(rows, codes, None if (weights == 1).all() else weights)


def _with_constant_columns(grouping: Grouping, X: np.ndarray, columns: Sequence[int]) -> Grouping:
    """Add to a grouping the columns of X that are constant within its groups."""
    found, first = np.unique(grouping.codes, return_index=True)
    cell = np.zeros(grouping.rows.stop - grouping.rows.start, dtype=np.intp)  # (groups,), any cell for an empty group
    cell[found] = first
    same = list(columns)
    for codes, x in ((grouping.codes[:_EXAMINED], X[:_EXAMINED]), (grouping.codes, X)):
        same = [j for j in same if (X[cell, j][codes] == x[:, j]).all()]
    return Grouping(grouping.rows, grouping.codes, None, same, X[cell][:, same])


def _packed(X: np.ndarray, columns: Sequence[int], start: int) -> tuple[list[Grouping], list[int]]:
    """Join columns with few values into groupings, first fit; return these and the columns left over."""
    most = min(_MOST_GROUPS, len(X) // 4)  # groups of fewer cells are not worth it
    few = [j for j in columns if _has_few_values(X[:, j], most)]
    rest = [j for j in columns if j not in few]
    if len(few) < _FEW_COLUMNS:
        return [], sorted(rest + few)
    first, codes = _distinct_rows(X, few)
    groupings = []
    for members, groups in _bins(X[first], few, most):
        if len(members) < _FEW_COLUMNS:
            rest += members
            continue
        row = first[np.unique(groups, return_index=True)[1]]  # (groups,)
        narrow = groups.astype(_code_type(len(row)))
        rows = slice(start, start + len(row))
        groupings.append(Grouping(rows, narrow[codes], None, members, X[row][:, members]))
        start = rows.stop
    return groupings, sorted(rest)


def _bins(X: np.ndarray, columns: Sequence[int], most: int) -> list[tuple[list[int], np.ndarray]]:
    """Sets of columns of X that have at most so many distinct rows together, and the group of each row."""
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


def _code_type(count: int) -> np.dtype[Any]:
    return np.min_scalar_type(max(count - 1, 0))


def _has_few_values(x: np.ndarray, most: int) -> bool:
    return len(np.unique(x[:_EXAMINED])) <= most and len(np.unique(x)) <= most


def _distinct_rows(X: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """First cell of each distinct row of some columns, and the distinct row of each cell (n,).

    Sorting one number per row is many times faster than sorting rows; unequal rows with equal numbers are detected.
    """
    mark = np.zeros(len(X))
    for j, factor in zip(columns, np.random.default_rng(0).normal(size=len(columns)), strict=True):
        mark += factor * X[:, j]  # (n,), and no copy of X
    _, first, codes = np.unique(mark, return_index=True, return_inverse=True)
    if all((X[first, j][codes] == X[:, j]).all() for j in columns):
        return first, codes
    _, first, codes = np.unique(X[:, columns], axis=0, return_index=True, return_inverse=True)
    return first, codes.reshape(-1)
