"""The fixed part of a formula as columns of X: a small table for factors, one value per cell for covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import pandas as pd

from ..backend.late_imports import scipy
from . import plain_formula
from .covariates import far_origins
from .distinct_rows import combined_codes, variable_codes
from .evaluation import Centres, Evaluated
from .formula import parse_fixed
from .obs_columns import ObsColumns
from .plain_formula import PlainFormula
from .safe_code import OF_ALL_ROWS, functions_in_code
from .terms import Terms, advice_for_levels

if TYPE_CHECKING:
    from formulaic import SimpleFormula

Parsed: TypeAlias = Union["SimpleFormula", PlainFormula]
#: Columns of X that a formula may make.
MOST_COLUMNS = 5_000
#: Terms of covariates that are evaluated together.
_TERMS_AT_ONCE = 16
#: Distinct rows are tabulated if they are at most this share of the cells.
_SMALL_TABLE = 0.5


@dataclass(frozen=True, eq=False)
class FixedColumns:
    """Columns of X (n, p): those made of factors as a table of distinct rows, the others with one value per cell."""

    names: tuple[str, ...]
    terms: Terms
    codes: np.ndarray = field(repr=False)  #: (n,), the row of `table` of each cell
    table: np.ndarray = field(repr=False)  #: (r, t), distinct rows
    tabled: tuple[int, ...]  #: positions in X of the columns of `table`
    values: np.ndarray = field(repr=False)  #: (n, v)
    valued: tuple[int, ...]  #: positions in X of the columns of `values`

    @cached_property
    def X(self) -> np.ndarray:
        """All columns (n, p) float64."""
        X = np.empty((len(self.codes), len(self.names)))
        X[:, self.tabled] = self.table[self.codes]
        X[:, self.valued] = self.values
        return X

    @cached_property
    def XX(self) -> np.ndarray:
        """X'X (p, p), from the counts of the distinct rows; X itself is not made."""
        rows, tabled, valued = len(self.table), list(self.tabled), list(self.valued)
        sums = np.array([np.bincount(self.codes, x, rows) for x in self.values.T]).reshape(-1, rows)  # (v, r)
        XX = np.empty((len(self.names), len(self.names)))
        XX[np.ix_(tabled, tabled)] = (self.table * self.counts[:, None]).T @ self.table
        XX[np.ix_(valued, tabled)] = sums @ self.table
        XX[np.ix_(tabled, valued)] = XX[np.ix_(valued, tabled)].T
        XX[np.ix_(valued, valued)] = self.values.T @ self.values
        return XX

    @cached_property
    def counts(self) -> np.ndarray:
        """Cells of each row of the table (r,)."""
        return np.bincount(self.codes, minlength=len(self.table))


def fixed_columns(text: str, columns: ObsColumns, *, origins: bool = True) -> FixedColumns:
    """Evaluate the fixed part of a formula.

    Parameters
    ----------
    text
        Right-hand side without random terms.
    columns
        Columns of obs.
    origins
        Record covariates far from zero for their spread from an origin (`covariates.far_origins`).

    Returns
    -------
    FixedColumns

    Raises
    ------
    ValueError
        As `lmm_gpu.design.build_design` for the fixed part.
    """
    parsed, used = parse_fixed(text, columns.names)
    variables = {name: columns.variable(name) for names in used.values() for name in names}
    _check_width(parsed, used, variables, text)
    moved = far_origins(parsed, used, variables) if origins else {}
    variables |= {name: variables[name] - origin for name, origin in moved.items()}
    tabled, others, codes, first = _tabulated(parsed, used, variables, len(columns))
    small = pd.DataFrame({name: _take(series, first) for name, series in variables.items()}, index=range(len(first)))
    full = pd.DataFrame(variables, index=range(len(columns)), copy=False)

    def evaluated(some: Sequence[Any], rows: pd.DataFrame) -> Evaluated:
        if isinstance(parsed, PlainFormula):
            return plain_formula.evaluate(some, rows)
        from .formulaic_columns import evaluate  # formulaic takes a while to import

        return evaluate(some, rows, columns, text)

    pieces = [evaluated(tabled, small), *(evaluated(batch, full) for batch in others)]
    places, names = _places(parsed, pieces)
    if not names:
        raise ValueError(f"the fixed part {text.strip()!r} has no columns: keep the intercept by writing '~ 1'")
    for i, (piece, at) in enumerate(zip(pieces, places, strict=True)):
        _check_finite(piece.values, [names[column] for column in at], None if i else codes, columns)
    centres = Centres({name: _mean(series) for name, series in variables.items()}, moved)
    specs = [(piece.spec, at) for piece, at in zip(pieces, places, strict=True)]
    terms = _described(parsed, specs, used, centres, columns)
    _refuse_empty_terms(terms)
    valued = tuple(column for at in places[1:] for column in at)
    models = [piece.values for piece in pieces]
    del piece, pieces
    table = np.asarray(models.pop(0), dtype=np.float64)
    return FixedColumns(names, terms, codes, table, tuple(places[0]), _joined(models, len(columns)), valued)


def sparse_columns(text: str, columns: ObsColumns) -> tuple[scipy.sparse.csr_array, tuple[str, ...]]:
    """Columns of a formula without random terms in CSR format (n, q), and their names; never dense."""
    from .formula_parser import parse
    from .formulaic_columns import evaluate

    parsed, used = parse(text, columns.names)
    variables = {name: columns.variable(name) for names in used.values() for name in names}
    table = pd.DataFrame(variables, index=range(len(columns)))
    found = evaluate(list(parsed), table, columns, text, "sparse")
    _check_finite(found.values, found.names, None, columns)
    return scipy.sparse.csr_array(found.values, dtype=np.float64), found.names


def _check_width(
    parsed: Parsed, used: Mapping[str, Sequence[str]], variables: Mapping[str, pd.Series], text: str
) -> None:
    """Refuse a formula with too many columns, before they are made."""
    total = 0
    for term in parsed:
        width = 1
        for factor in term.factors:
            if _is_factor(factor.expr, used[factor.expr], variables):
                width *= max((variables[name].nunique() for name in used[factor.expr]), default=1)
        total += width
    if total > MOST_COLUMNS:
        raise ValueError(
            f"the fixed part {text.strip()!r} makes about {total:,} columns, and at most {MOST_COLUMNS:,} are fitted: "
            "move factors with many levels to random terms, such as (1 | donor)"
        )


def _is_factor(code: str, names: Sequence[str], variables: Mapping[str, pd.Series]) -> bool:
    if code in variables:
        return isinstance(variables[code].dtype, pd.CategoricalDtype)
    return code.startswith("C(") or (len(names) == 1 and names[0] == code.strip("`"))


def _tabulated(
    parsed: Parsed, used: Mapping[str, Sequence[str]], variables: Mapping[str, pd.Series], n: int
) -> tuple[list[Any], list[list[Any]], np.ndarray, np.ndarray]:
    """Find the terms whose columns have few distinct rows.

    formulaic drops a level of a factor if other terms with the same covariates span it, so terms with the same
    covariates stay together.

    Returns
    -------
    tabled
        Terms with few distinct rows.
    others
        The other terms, in batches that are evaluated one after the other to bound the memory that they take.
    codes : array (n,)
        The distinct row of each cell.
    first : array (r,)
        The first cell of each distinct row.
    """
    coded = {name: variable_codes(series) for name, series in variables.items()}
    groups: dict[frozenset[str], list[Any]] = {}
    for term in parsed:
        covariates = frozenset(
            f.expr for f in term.factors if used[f.expr] and not _is_factor(f.expr, used[f.expr], variables)
        )
        groups.setdefault(covariates, []).append(term)

    def simple(code: str) -> bool:
        known = all(coded[name] is not None for name in used[code])
        return known and (code in variables or not used[code] or functions_in_code(code).isdisjoint(OF_ALL_ROWS))

    chosen = [group for group in groups.values() if all(simple(f.expr) for term in group for f in term.factors)]
    terms = {term for group in chosen for term in group}
    tabled = [term for term in parsed if term in terms]
    names = dict.fromkeys(name for term in tabled for f in term.factors for name in used[f.expr])
    codes, first = combined_codes([coded[name] for name in names if coded[name] is not None], n)
    if len(first) > max(_SMALL_TABLE * n, 1):
        return [], _batches(list(groups.values())), np.zeros(n, dtype=np.intp), np.zeros(1, dtype=np.intp)
    others = [group for group in groups.values() if not terms.issuperset(group)]
    return tabled, _batches(others), codes, first


def _batches(groups: Sequence[list[Any]]) -> list[list[Any]]:
    batches: list[list[Any]] = []
    for group in groups:
        if batches and len(batches[-1]) + len(group) <= _TERMS_AT_ONCE:
            batches[-1].extend(group)
        else:
            batches.append(list(group))
    return batches


def _joined(models: list[Any], n: int) -> np.ndarray:
    """Columns of several model matrices (n, v), each of which is released once it is copied."""
    if len(models) == 1:
        return np.asarray(models.pop(), dtype=np.float64)
    values = np.empty((n, sum(model.shape[1] for model in models)))
    start = 0
    while models:
        model = models.pop(0)
        values[:, start : start + model.shape[1]] = model
        start += model.shape[1]
    return values


def _take(series: pd.Series, rows: np.ndarray) -> pd.Series:
    return series.iloc[rows].reset_index(drop=True)


def _described(
    parsed: Parsed,
    specs: Sequence[tuple[Any, Sequence[int]]],
    used: Mapping[str, Sequence[str]],
    centres: Centres,
    columns: ObsColumns,
) -> Terms:
    if isinstance(parsed, PlainFormula):
        return plain_formula.describe(parsed, specs, centres)
    from .formulaic_columns import describe

    return describe(parsed, specs, used, centres, columns)


def _places(parsed: Parsed, pieces: Sequence[Evaluated]) -> tuple[list[list[int]], tuple[str, ...]]:
    """Positions in X of the columns of each piece, in the order of the terms; and the names of all columns."""
    places: list[list[int]] = [[0] * len(piece.names) for piece in pieces]
    names: list[str] = []
    for term in parsed:
        for at, piece in zip(places, pieces, strict=True):
            for column in piece.places.get(term, ()):
                at[column] = len(names)
                names.append(piece.names[column])
    return places, tuple(names)


def _check_finite(model: Any, names: Sequence[str], rows: np.ndarray | None, columns: ObsColumns) -> None:
    with np.errstate(all="ignore"):
        totals = np.ravel(model.sum(axis=0))  # (p,)
    for position in np.flatnonzero(~np.isfinite(totals)).tolist():
        column = model[:, [position]]
        bad = ~np.isfinite(np.ravel(scipy.sparse.csc_array(column).toarray()))
        advice = "look for zeros and negative numbers in logarithms and roots, and for constants that are scaled"
        name = f"design column {names[position]!r}"
        columns.refuse_rows(name, bad if rows is None else bad[rows], "NaN or infinite", advice)


def _refuse_empty_terms(terms: Terms) -> None:
    for term in terms:
        for part in term.factors.values():
            if len(part.levels) == 1:
                raise ValueError(
                    f"the factor {part.name} has one level, {part.levels[0]!r}, in these cells: drop it from the "
                    f"formula; or, if other sites have its other levels, {advice_for_levels(part)}"
                )
        if not term.columns:
            raise ValueError(
                f"the term {term.name} makes no column of X: other terms span it already; drop it, or drop the terms "
                "that repeat it"
            )


def _mean(series: pd.Series) -> float | None:
    return None if isinstance(series.dtype, pd.CategoricalDtype) else float(series.mean())
