"""Labels of two sets of statistics brought together: genes in one order, and random levels that only one side knows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..backend.arrays import Array, indices, namespace, zeros

#: What has genes, on its last axis, and what has random levels, on which axes.
_GENES = ("XY", "ZY", "Ynorm", "Ysum", "centre")
_LEVELS = {"ZX": (0,), "ZY": (0,), "ZZ": (0, 1)}
#: Functions of a formula whose columns depend on all the cells that they see.
_OF_ALL_CELLS = re.compile(r"\b(bs|cc|center|cr|cs|poly|scale|standardize)\s*\(")
#: Labels named in a message.
_SHOWN = 3
#: Designs are of the same cells if their products agree to this: they may have been added up in another order.
_SAME = 1e-12
Stats = TypeVar("Stats", bound=Any)


@dataclass(frozen=True)
class Levels:
    """Random levels of both sides, component by component: the left's, then those that only the right has."""

    names: tuple[str, ...]
    d: tuple[int, ...]
    left: list[int]  #: where each stands on the left, -1 where it does not
    right: list[int]


def default_names(prefix: str, count: int) -> tuple[str, ...]:
    """`prefix`1 .. `prefix`count."""
    return tuple(f"{prefix}{i + 1}" for i in range(count))


def aligned(a: Stats, b: Stats) -> tuple[Stats, Stats]:
    """Both with the genes of `a` and the random levels of either, refused if they are of different models.

    `a` and `b` are `SummaryStats`.
    """
    try:
        for name in ("component_names", "random_terms", "fixed_names", "formula", "transform"):
            check_same(name, getattr(a, name), getattr(b, name))
        check_same_columns(a.formula)
        order = gene_order(a.features, b.features)
        if order is not None:
            b = _placed(b, {"features": a.features}, lambda arrays: at_genes(arrays, order))
        if (a.random_names, a.d) == (b.random_names, b.d):
            return a, b
        if any(ss.random_names == default_names("Z", sum(ss.d)) for ss in (a, b)):
            raise ValueError(
                f"random_names differ (d = {a.d} and {b.d}), but some are mere numbers; name the columns of Z, so that "
                "a level has the same name on both sides"
            )
        levels = join_levels(a.random_names, a.d, b.random_names, b.d)
    except ValueError as error:
        raise ValueError(f"cannot add summary statistics: {error}") from None
    labels = {"random_names": levels.names, "d": levels.d}
    return (
        _placed(a, labels, lambda arrays: at_levels(arrays, levels.left)),
        _placed(b, labels, lambda arrays: at_levels(arrays, levels.right)),
    )


def check_same_cells(a: Any, b: Any) -> None:
    """Refuse statistics that are not of the same cells and model; XX, ZX and ZZ may differ by rounding."""
    for name in ("component_names", "random_terms", "d", "fixed_names", "random_names", "formula", "transform", "n"):
        check_same(name, getattr(a, name), getattr(b, name))
    for name in ("XX", "ZX", "ZZ"):
        ours, theirs = getattr(a, name), getattr(b, name)
        xp = namespace(ours)
        if float(xp.max(xp.abs(ours - theirs))) > _SAME * float(xp.max(xp.abs(ours))):
            raise ValueError(
                f"{name} differ: wanted other genes of the same cells; other cells of the same genes add, a + b"
            )


def check_same(what: str, left: Any, right: Any) -> None:
    """Refuse labels that differ, and name them."""
    if left == right:
        return
    if what.endswith("names"):
        raise ValueError(f"{what} differ: {difference(left, right)}")
    raise ValueError(f"{what} differ: {left!r} on the left, {right!r} on the right")


def check_unique(what: str, names: Sequence[str]) -> None:
    """Refuse names that appear more than once."""
    if len(set(names)) < len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        raise ValueError(f"{what} appear more than once: {_some(twice)}; rename them, or keep one of each")


def check_same_columns(formula: str | None) -> None:
    """Refuse a formula whose columns mean something else in other cells, though they have the same name.

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
    """Say in what two lists of labels differ.

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
    """Where the genes of the left stand on the right; None if that is where they stand on the left.

    Raises
    ------
    ValueError
        For genes that only one side has, and for names that do not tell which gene is meant.
    """
    if left == right:
        return None
    place = {name: i for i, name in enumerate(right)}
    if len(place) < len(right) or len(set(left)) < len(left) or place.keys() != set(left):
        raise ValueError(f"features differ: {difference(left, right)}; keep the genes that both sides have, once each")
    return [place[name] for name in left]


def join_levels(left: Sequence[str], left_d: Sequence[int], right: Sequence[str], right_d: Sequence[int]) -> Levels:
    """Join the random levels of two sides with the same components; a name means a level within its component.

    Raises
    ------
    ValueError
        For a name that a component has twice.

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


def sliced(arrays: Mapping[str, Any], genes: slice) -> dict[str, Any]:
    """Those of `arrays` that have genes, with some of them: no copies."""
    return {name: arrays[name][..., genes] for name in _GENES if arrays.get(name) is not None}


def at_genes(arrays: Mapping[str, Any], order: list[int]) -> dict[str, Any]:
    """Those of `arrays` that have genes, with the genes at the positions `order`."""
    found = {name: arrays[name] for name in _GENES if arrays.get(name) is not None}
    return {name: namespace(A).take(A, indices(order, A), axis=A.ndim - 1) for name, A in found.items()}


def at_levels(arrays: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """Those of `arrays` that have random levels, with the levels at the positions `rows`: zeros at -1."""
    found = {name: arrays[name] for name in _LEVELS if name in arrays}
    for name, A in found.items():
        for axis in _LEVELS[name]:
            A = _take_or_zero(A, rows, axis)
        found[name] = A
    return found


def _placed(ss: Stats, labels: Mapping[str, Any], place: Callable[[Mapping], dict[str, Any]]) -> Stats:
    # other labels, and the statistics and those about a centre at other places
    centred = ss.centred and replace(ss.centred, **place(vars(ss.centred)))
    return replace(ss, **labels, **place(vars(ss)), centred=centred)


def _take_or_zero(A: Array, rows: list[int], axis: int) -> Array:
    xp, size = namespace(A), A.shape[axis]
    shape = tuple(1 if i == axis else width for i, width in enumerate(A.shape))
    index = indices([size if row < 0 else row for row in rows], A)
    return xp.take(xp.concat([A, zeros(shape, A)], axis=axis), index, axis=axis)


def _places(names: Sequence[str], d: Sequence[int]) -> list[dict[str, int]]:
    # for each component, where each of its levels stands among all
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
