"""Estimated marginal means of a model and contrasts between them, by the names of factors and levels.

A marginal mean is the mean of the fitted values over a reference grid: all combinations of the levels of the factors,
with covariates at their means over the cells.

References
----------
Searle SR, Speed FM, Milliken GA (1980). Population marginal means in the linear model. The American Statistician
34(4), 216-221; and the R package emmeans, https://cran.r-project.org/package=emmeans
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from .reference_grid import ReferenceGrid
from .terms import Terms

if TYPE_CHECKING:
    import pandas as pd

#: In place of a pair: all pairs of levels.
PAIRWISE = "pairwise"


def contrasts_by_name(
    terms: Terms | None,
    names: Sequence[str],
    contrasts: Mapping[str, Any],
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    weights: str = "equal",
    XX: np.ndarray | None = None,
) -> pd.DataFrame:
    """Contrasts between marginal means.

    Parameters
    ----------
    terms
        Terms of the fixed part.
    names : sequence of str, length p
        Names of the columns of X.
    contrasts
        For each variable a pair: ``{"condition": ("stim", "ctrl")}`` is stim - ctrl. A list of such tuples is several
        pairs, each with a contrast of its own; "pairwise" is every pair of levels. A side of a tuple may be a list of
        levels, which are averaged. Two variables give contrasts of contrasts. For a covariate the pair is two of its
        values.
    by
        Variables whose levels each have contrasts of their own.
    at
        Level, list of levels or value at which other variables are held.
    weights : {"equal", "proportional"}
        Weights of the levels of other factors: the same for all, or in proportion to their cells.
    XX : array (p, p), optional
        X'X, for weights="proportional".

    Returns
    -------
    DataFrame (p, L)
        One contrast per column, as `contrast_matrix` makes them.

    Raises
    ------
    ValueError
        For unknown variables or levels, and for means that are not estimable because combinations of levels have no
        cells.

    Examples
    --------
    >>> from lmm_gpu.design.design import build_design
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"arm": list("abab") * 3, "kind": list("xxyy") * 3, "donor": list("pppqqqrrrsss")})
    >>> design = build_design("~ arm * kind + (1 | donor)", obs)
    >>> contrasts_by_name(design.terms, design.fixed_names, {"arm": ("b", "a")}, by="kind")
                        b - a | kind=x  b - a | kind=y
    Intercept                      0.0             0.0
    arm[T.b]                       1.0             1.0
    kind[T.y]                      0.0             0.0
    arm[T.b]:kind[T.y]             0.0             1.0
    """
    import pandas as pd

    grid = ReferenceGrid.of(terms, len(names), weights, XX)
    if not contrasts:
        raise ValueError("expected at least one variable to compare, as in condition=('stim', 'ctrl')")
    fixed = {grid.known(name): value for name, value in (at or {}).items()}
    by_names = [grid.known(name) for name in ([by] if isinstance(by, str) else by or ())]
    twice = [name for name in contrasts if name in by_names or name in fixed] + [
        name for name in by_names if name in fixed
    ]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: compare it, use it in by=, or hold it at= a level")
    sides = [list(_pairs(grid, grid.known(name), pair)) for name, pair in contrasts.items()]
    columns: dict[str, np.ndarray] = {}
    for group in product(*(grid.levels(name) for name in by_names)):
        where = dict(zip(by_names, group, strict=True))
        for chosen in product(*sides):
            label = " : ".join(text for text, _ in chosen)
            suffix = ", ".join(f"{name}={level}" for name, level in where.items())
            row = sum(
                sign * grid.row(fixed | where | dict(zip(contrasts, values, strict=True)))
                for sign, values in _signed(chosen)
            )
            columns[f"{label} | {suffix}" if suffix else label] = np.asarray(row)
    return pd.DataFrame(columns, index=list(names))


def marginal_means(
    terms: Terms | None,
    names: Sequence[str],
    by: str | Sequence[str],
    *,
    at: Mapping[str, Any] | None = None,
    weights: str = "equal",
    XX: np.ndarray | None = None,
) -> pd.DataFrame:
    """Weights (p, L) of the marginal mean of each combination of levels of `by`; parameters as `contrasts_by_name`."""
    import pandas as pd

    grid = ReferenceGrid.of(terms, len(names), weights, XX)
    by_names = [grid.known(name) for name in ([by] if isinstance(by, str) else by)]
    fixed = {grid.known(name): value for name, value in (at or {}).items()}
    columns = {
        ", ".join(f"{name}={level}" for name, level in zip(by_names, group, strict=True)): grid.row(
            fixed | dict(zip(by_names, group, strict=True))
        )
        for group in product(*(grid.levels(name) for name in by_names))
    }
    return pd.DataFrame(columns, index=list(names))


def _pairs(grid: ReferenceGrid, name: str, pair: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(pair, str) and pair == PAIRWISE:
        for first, second in combinations(grid.levels(name), 2):
            yield f"{first} - {second}", (first, second)
        return
    for left, right in _several(name, pair):
        prefix = "" if name in grid.factors else f"{name} "
        yield f"{prefix}{_shown(left)} - {_shown(right)}", (left, right)


def _several(name: str, given: Any) -> list[Sequence[Any]]:
    # one pair, or a list of pairs as tuples
    nested = isinstance(given, list) and [item for item in given if isinstance(item, (list, tuple))]
    if nested and len(nested) == len(given):
        if not all(isinstance(item, tuple) for item in nested):
            raise ValueError(
                f"{name}={given!r} could be two pairs or two sets of levels that are averaged: write pairs as tuples, "
                f"{name}=[('a', 'b'), ('c', 'd')], and sets as lists in one tuple, {name}=(['a', 'b'], ['c', 'd'])"
            )
        pairs: list[Any] = nested
    else:
        pairs = [given]
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(
                f"{name}={pair!r}: expected a pair such as {name}=('stim', 'ctrl'), a list of pairs, or 'pairwise'; "
                f"to compare other levels at one value of {name}, pass at={{{name!r}: {pair!r}}}"
            )
    return pairs


def _signed(chosen: Sequence[tuple[str, tuple[Any, Any]]]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Signs and sides of a contrast of contrasts."""
    for picks in product((0, 1), repeat=len(chosen)):
        yield (-1) ** sum(picks), tuple(pair[pick] for (_, pair), pick in zip(chosen, picks, strict=True))


def _shown(side: Any) -> str:
    return f"({', '.join(map(str, side))})" if isinstance(side, (list, tuple, set)) else str(side)
