"""X'Y and Z'Y of sparse cells, by adding up cells: most columns of a design are constant within few groups of cells.

A row of Z has one value per random effect, and the columns of X mostly tell donors or cell types apart. Where a column
x is constant within groups, x'Y is a sum of the groups' sums of Y: all of these columns cost one addition per non-zero
of Y, however many they are. Columns that differ from cell to cell are multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

#: Columns of X with more values than this are multiplied, and so many groups share a pass.
_MOST_GROUPS = 256
#: A pass over the cells costs about as much as so many columns that are multiplied.
_FEW_COLUMNS = 4
#: Sums of groups that are held at a time, where nothing is gained by more: they stay in the processor's cache, and
#: arrays of this size are used again by the C library, where larger ones are made of new pages.
_SUMS_AT_A_TIME = 2**18
#: Whether a column has few values, or one in each group, mostly shows in so many cells.
_LOOKED_AT = 4096


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups of cells, perhaps with a weight per cell, and the columns of X that are constant within them."""

    codes: np.ndarray  #: (n,), the group of each cell, of the smallest type: few bytes, and sorted by their digits
    weights: np.ndarray | None = None  #: (n,), None for ones
    columns: Sequence[int] = ()  #: c columns of X
    values: np.ndarray | None = None  #: (groups, c), their values in each group


class GroupedDesign:
    """X (n, p) and Z (n, q), made ready for their products with sparse chunks of cells.

    Parameters
    ----------
    X : array (n, p)
    Z : scipy.sparse.csr_array (n, q)
    d : sequence of int
        Columns of Z per random effect.

    Examples
    --------
    >>> X, Z = np.ones((4, 1)), scipy.sparse.csr_array(np.repeat(np.eye(2), 2, axis=0))
    >>> Y = scipy.sparse.csr_array(np.arange(8.0).reshape(4, 2))
    >>> XY, ZY, Ysum = np.zeros((1, 2)), np.zeros((2, 2)), np.zeros(2)
    >>> design = GroupedDesign(X, Z, (2,))
    >>> design.add_products(slice(0, 4), Y, XY, ZY)
    >>> design.derive(XY, ZY, Ysum)
    >>> XY.tolist(), ZY.tolist()
    ([[12.0, 16.0]], [[2.0, 4.0], [10.0, 12.0]])
    """

    def __init__(self, X: np.ndarray, Z: Any, d: Sequence[int]):
        ends = np.cumsum(d).tolist()
        blocks = [slice(end - width, end) for end, width in zip(ends, d, strict=True)]
        left = list(range(X.shape[1]))
        self.random: list[tuple[slice, Grouping | Any]] = []
        for block in blocks:
            effect = _one_hot(Z[:, block])
            if isinstance(effect, Grouping) and effect.weights is None:
                effect = _with_constant_columns(effect, X, left, block.stop - block.start)
                left = [column for column in left if column not in effect.columns]
            self.random.append((block, effect))
        self.X = X
        self.fixed, self.rest = _packed(X, left)

    @property
    def has_sums(self) -> bool:
        """Whether `derive` gives the sums of the genes: each cell is in one group of a random effect, with weight 1."""
        return any(isinstance(effect, Grouping) and effect.weights is None for _, effect in self.random)

    def add_products(self, rows: slice, Y: Any, XY: np.ndarray, ZY: np.ndarray, most: int | None = None) -> None:
        """Add Z'Y (q, m) of the cells `rows`, and of X'Y (p, m) what `derive` does not fill in.

        Y is a csr_array (cells, m) of float64. Beyond `XY` and `ZY`, some times `most` numbers are held.
        """
        width = Y.shape[0] + Y.shape[1] if most is None else max(1, most // max(Y.shape[1], 1))
        narrow = max(1, min(width, _SUMS_AT_A_TIME // max(Y.shape[1], 1)))
        for block, effect in self.random:
            if not isinstance(effect, Grouping):
                ZY[block] += (effect[rows].T @ Y).toarray()
                continue
            for groups, sums in _group_sums(effect, rows, Y, narrow):
                ZY[block][_as_slice(groups)] += sums
        for grouping in self.fixed:
            for groups, sums in _group_sums(grouping, rows, Y, width):
                _add_columns(grouping, groups, sums, XY, width)
        for lo in range(0, len(self.rest), width):
            some = self.rest[lo : lo + width]
            XY[some] += (Y.T @ self.X[rows][:, some]).T

    def derive(self, XY: np.ndarray, ZY: np.ndarray, Ysum: np.ndarray) -> None:
        """Fill in from Z'Y, once it is complete, the columns of X that are constant in its groups, and 1'Y (m,)."""
        for block, effect in self.random:
            if isinstance(effect, Grouping) and effect.values is not None:
                XY[effect.columns] = effect.values.T @ ZY[block]
                Ysum[:] = ZY[block].sum(axis=0)


def _add_columns(grouping: Grouping, groups: np.ndarray, sums: np.ndarray, XY: np.ndarray, width: int) -> None:
    assert grouping.values is not None
    values = grouping.values[groups]  # (g, c)
    for lo in range(0, len(grouping.columns), width):
        some = slice(lo, lo + width)
        XY[grouping.columns[some]] += values[:, some].T @ sums


def _as_slice(groups: np.ndarray) -> np.ndarray | slice:
    # of groups that follow each other no copies are made
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
    ends = Y.indptr[np.append(starts, len(codes))]  # rows of one group follow each other: together they are one row
    for lo in range(0, len(starts), width):
        some = starts[lo : lo + width]
        yield codes[some], _added_up(Y.data, Y.indices, ends[lo : lo + width + 1], (len(some), Y.shape[1]))


def _added_up(data: np.ndarray, indices: np.ndarray, ends: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # what a row holds twice is added: that is what toarray does
    part = slice(ends[0], ends[-1])
    return scipy.sparse.csr_array((data[part], indices[part], ends - ends[0]), shape=shape).toarray()


def _one_hot(block: Any) -> Any:
    """The columns of Z of one random effect as a grouping; as they are if a cell has several values."""
    block = scipy.sparse.csr_array(block)
    held = np.diff(block.indptr)
    if held.size and held.max() > 1:
        return block
    codes, weights = np.zeros(len(held), dtype=_code_type(block.shape[1])), np.zeros(len(held))  # (n,)
    codes[held == 1], weights[held == 1] = block.indices, block.data
    return Grouping(codes, None if (weights == 1).all() else weights)


def _with_constant_columns(grouping: Grouping, X: np.ndarray, columns: Sequence[int], width: int) -> Grouping:
    """The same groups, and those of the columns of X that are constant within them."""
    found, first = np.unique(grouping.codes, return_index=True)
    cell = np.zeros(width, dtype=np.intp)  # (groups,), any cell for a group without
    cell[found] = first
    same = list(columns)
    for codes, x in ((grouping.codes[:_LOOKED_AT], X[:_LOOKED_AT]), (grouping.codes, X)):  # most show early
        same = [j for j in same if (X[cell, j][codes] == x[:, j]).all()]
    return Grouping(grouping.codes, grouping.weights, same, X[cell][:, same])


def _packed(X: np.ndarray, columns: Sequence[int]) -> tuple[list[Grouping], list[int]]:
    """As few groupings as are easily found, and the columns that are left over: those with many values."""
    most = min(_MOST_GROUPS, len(X) // 4)  # groups of fewer cells are not worth it
    few = [j for j in columns if _has_few_values(X[:, j], most)]
    rest = [j for j in columns if j not in few]
    if len(few) < _FEW_COLUMNS:
        return [], sorted(rest + few)
    first, codes = _distinct_rows(X, few)
    bins: list[tuple[list[int], np.ndarray]] = []  # columns, and the group of each distinct row
    for j in few:
        values = np.unique(X[first, j], return_inverse=True)[1]
        for place, (members, groups) in enumerate(bins):
            joined = np.unique(groups * most + values, return_inverse=True)[1]
            if joined.max() < most:
                bins[place] = ([*members, j], joined)
                break
        else:
            bins.append(([j], values))
    groupings = []
    for members, groups in bins:
        if len(members) < _FEW_COLUMNS:
            rest += members
            continue
        row = first[np.unique(groups, return_index=True)[1]]  # (groups,)
        narrow = groups.astype(_code_type(len(row)))
        groupings.append(Grouping(narrow[codes], None, members, X[row][:, members]))
    return groupings, sorted(rest)


def _code_type(count: int) -> np.dtype:
    return np.min_scalar_type(max(count - 1, 0))


def _has_few_values(x: np.ndarray, most: int) -> bool:
    return len(np.unique(x[:_LOOKED_AT])) <= most and len(np.unique(x)) <= most


def _distinct_rows(X: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """First cell of each distinct row of some columns, and the distinct row of each cell (n,).

    Sorting one number per row is many times faster than sorting rows; equal numbers of unequal rows would show.
    """
    mark = np.zeros(len(X))
    for j, factor in zip(columns, np.random.default_rng(0).normal(size=len(columns)), strict=True):
        mark += factor * X[:, j]  # (n,), and no copy of X
    _, first, codes = np.unique(mark, return_index=True, return_inverse=True)
    if all((X[first, j][codes] == X[:, j]).all() for j in columns):
        return first, codes
    _, first, codes = np.unique(X[:, columns], axis=0, return_index=True, return_inverse=True)
    return first, codes.reshape(-1)
