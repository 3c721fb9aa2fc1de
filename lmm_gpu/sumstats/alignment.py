"""Alignment of two sets of statistics: genes in one order, and random levels that only one side has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..backend.arrays import Array, indices, namespace, to_numpy, zeros
from ..backend.late_imports import scipy
from ..backend.sparse import is_sparse, spread_square
from ..design.safe_code import OF_ALL_ROWS
from ..design.terms import check_same_terms
from .products import LARGEST_DENSE

if TYPE_CHECKING:
    from .summary_stats import SummaryStats

#: Functions of a formula whose columns depend on all the cells that they are evaluated on.
_OF_ALL_CELLS = re.compile(rf"\b({'|'.join(OF_ALL_ROWS)})\s*\(")
#: Number of labels listed in a message.
_SHOWN = 3
#: Designs are of the same cells if their products agree to this: they may have been accumulated in another order.
_SAME = 1e-12


@dataclass(frozen=True)
class Levels:
    """Random levels of both sides, by component: the left's, then those that only the right has."""

    names: tuple[str, ...]
    d: tuple[int, ...]
    left: list[int]  #: position of each level on the left, -1 if it is not there
    right: list[int]  #: position of each level on the right, -1 if it is not there


def default_names(prefix: str, count: int) -> tuple[str, ...]:
    """`prefix`1 .. `prefix`count."""
    return tuple(f"{prefix}{i + 1}" for i in range(count))


def aligned(a: SummaryStats, b: SummaryStats) -> tuple[SummaryStats, SummaryStats]:
    """Give both sides the genes of `a` and the random levels of either; refuse different models."""
    try:
        check_same_terms(a.terms or (), b.terms or ())
        for name in ("component_names", "random_terms", "fixed_names", "formula", "transform"):
            check_same(name, getattr(a, name), getattr(b, name))
        check_same_columns(a.formula)
        if (a.total_weight is None) != (b.total_weight is None):
            raise ValueError(
                "one side has weights of its cells, the other has none: give weights to both, or to neither"
            )
        order = gene_order(a.features, b.features)
        if order is not None:
            b = b.with_genes(order)
        if (a.random_names, a.d) == (b.random_names, b.d):
            return _with_sparse_products(a, len(a.random_names)), _with_sparse_products(b, len(a.random_names))
        if any(ss.random_names == default_names("Z", sum(ss.d)) for ss in (a, b)):
            raise ValueError(
                f"random_names differ (d = {a.d} and {b.d}), but some are auto-generated; name the columns of Z, so "
                "that a level has the same name on both sides"
            )
        levels = join_levels(a.random_names, a.d, b.random_names, b.d)
    except ValueError as error:
        raise ValueError(f"cannot add summary statistics: {error}") from None
    return _with_levels(a, levels, levels.left), _with_levels(b, levels, levels.right)


def check_same_cells(a: SummaryStats, b: SummaryStats) -> None:
    """Refuse statistics of other cells or another model; XX, ZX and ZZ may differ by rounding."""
    for name in ("component_names", "random_terms", "d", "fixed_names", "random_names", "formula", "transform", "n"):
        check_same(name, getattr(a, name), getattr(b, name))
    for name in ("XX", "ZX", "ZZ"):
        ours, theirs = getattr(a, name), getattr(b, name)
        xp = namespace(a.XX)
        different, largest = (abs(A).max() if is_sparse(A) else float(xp.max(xp.abs(A))) for A in (ours - theirs, ours))
        if different > _SAME * largest:
            raise ValueError(
                f"{name} differ: wanted other genes of the same cells; other cells of the same genes add, a + b"
            )


def check_same(what: str, left: object, right: object) -> None:
    """Refuse labels that differ, and name them."""
    if left == right:
        return
    if isinstance(left, tuple) and isinstance(right, tuple) and what.endswith("names"):
        raise ValueError(f"{what} differ: {difference(left, right)}")
    raise ValueError(f"{what} differ: {left!r} on the left, {right!r} on the right")


def check_unique(what: str, names: Sequence[str]) -> None:
    """Refuse names that appear more than once."""
    if len(set(names)) < len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        raise ValueError(f"{what} appear more than once: {_some(twice)}; rename them, or keep one of each")


def check_same_columns(formula: str | None) -> None:
    """Refuse a formula whose columns depend on the cells, so that they differ between sites under one name.

    >>> check_same_columns("~ scale(age) + (1 | donor)")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: scale() in formula '~ scale(age) + (1 | donor)' depends on the cells it sees, so that ...
    """
    found = _OF_ALL_CELLS.search(formula or "")
    if found:
        raise ValueError(
            f"{found[1]}() in formula {formula!r} depends on the cells it sees, so that its columns are not the same "
            "on both sides; add that column to obs in one way for all cells, and name it in the formula"
        )


def difference(left: Sequence[str], right: Sequence[str]) -> str:
    """Describe the difference between two lists of labels.

    >>> difference(("a", "b", "c"), ("c", "d", "a"))
    'only on the left: b; only on the right: d'
    """
    only = {"left": _without(left, right), "right": _without(right, left)}
    parts = [f"only on the {side}: {_some(names)}" for side, names in only.items() if names]
    if parts:
        return "; ".join(parts)
    if len(left) != len(right):
        return f"{len(left)} on the left, {len(right)} on the right"
    first = next(i for i, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1])
    return f"in another order, from {left[first]} / {right[first]} on"


def gene_order(left: Sequence[str], right: Sequence[str]) -> list[int] | None:
    """Positions on the right of the genes of the left; None if both have the same order.

    Raises
    ------
    ValueError
        For genes that only one side has, and for names that are not unique.
    """
    if left == right:
        return None
    place = {name: i for i, name in enumerate(right)}
    if len(place) < len(right) or len(set(left)) < len(left) or place.keys() != set(left):
        raise ValueError(f"features differ: {difference(left, right)}; keep the genes that both sides have, once each")
    return [place[name] for name in left]


def join_levels(left: Sequence[str], left_d: Sequence[int], right: Sequence[str], right_d: Sequence[int]) -> Levels:
    """Join the random levels of two sides with the same components; names are unique within a component.

    Raises
    ------
    ValueError
        For a name that appears twice in a component.

    Examples
    --------
    >>> join_levels(("A", "B", "1"), (2, 1), ("C", "B", "2", "1"), (2, 2))
    Levels(names=('A', 'B', 'C', '1', '2'), d=(3, 2), left=[0, 1, -1, 2, -1], right=[-1, 1, 0, 3, 2])
    """
    pairs = list(zip(_places(left, left_d), _places(right, right_d), strict=True))
    joined = [list(ours | theirs) for ours, theirs in pairs]
    ours, theirs = (
        [pair[side].get(name, -1) for pair, names in zip(pairs, joined, strict=True) for name in names]
        for side in (0, 1)
    )
    return Levels(tuple(name for names in joined for name in names), tuple(map(len, joined)), ours, theirs)


def _with_levels(ss: SummaryStats, levels: Levels, rows: list[int]) -> SummaryStats:
    """Give statistics the levels of both sides, those at the positions `rows`: zeros where they are -1."""
    ss = _with_sparse_products(ss, len(rows))
    centred = ss.centred and replace(ss.centred, ZY=_take_or_zero(ss.centred.ZY, rows, 0))
    within = ss.within and replace(
        ss.within, ZY=_take_or_zero(ss.within.ZY, rows, 0), centre=_take_or_zero(ss.within.centre, rows, 0)
    )
    return replace(
        ss,
        random_names=levels.names,
        d=levels.d,
        ZX=_take_or_zero(ss.ZX, rows, 0),
        ZY=_take_or_zero(ss.ZY, rows, 0),
        ZZ=spread_square(ss.ZZ, rows) if is_sparse(ss.ZZ) else _take_or_zero(_take_or_zero(ss.ZZ, rows, 0), rows, 1),
        centred=centred,
        within=within,
    )


def _with_sparse_products(ss: SummaryStats, levels: int) -> SummaryStats:
    # Z'Z as a sparse matrix where it will have so many levels that it is not stored as dense
    if levels <= LARGEST_DENSE or is_sparse(ss.ZZ):
        return ss
    return replace(ss, ZZ=scipy.sparse.csr_array(to_numpy(ss.ZZ)))


def _take_or_zero(A: Array, rows: list[int], axis: int) -> Array:
    xp, size = namespace(A), A.shape[axis]
    shape = tuple(1 if i == axis else width for i, width in enumerate(A.shape))
    index = indices([size if row < 0 else row for row in rows], A)
    return xp.take(xp.concat([A, zeros(shape, A)], axis=axis), index, axis=axis)


def _places(names: Sequence[str], d: Sequence[int]) -> list[dict[str, int]]:
    # for each component, the position of each of its levels among all
    found, start = [], 0
    for width in d:
        place = {names[i]: i for i in range(start, start + width)}
        if len(place) < width:
            twice = [names[i] for i in range(start, start + width) if place[names[i]] != i]
            raise ValueError(f"random_names differ, and some appear more than once ({_some(twice)}): make them unique")
        found.append(place)
        start += width
    return found


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
