"""The fixed part of a formula as columns of X: a small table for factors, one value per cell for covariates."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import formulaic
import numpy as np
import pandas as pd
from formulaic import SimpleFormula
from formulaic.errors import DataMismatchWarning
from formulaic.parser.types import Term as ParsedTerm
from formulaic.transforms import C as formulaic_C
from scipy import sparse

from .coding import Centres, terms_of
from .covariates import far_origins
from .formula import parse_fixed
from .obs_columns import ObsColumns
from .safe_code import OF_ALL_ROWS, UFUNCS, first_line, functions_in_code
from .terms import Terms, advice_for_levels

#: Columns of X that a formula may make.
MOST_COLUMNS = 5_000
#: A variable with more distinct values is not tabulated.
_MOST_VALUES = 256
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
    tabled, codes, first = _tabulated(parsed, used, variables, len(columns))
    small = pd.DataFrame({name: _take(series, first) for name, series in variables.items()}, index=range(len(first)))
    full = pd.DataFrame(variables, index=range(len(columns)))
    evaluated = [
        (_evaluate([term for term in parsed if term in tabled], small, columns, text), codes),
        (_evaluate([term for term in parsed if term not in tabled], full, columns, text), None),
    ]
    places, names = _places(parsed, [model for model, _ in evaluated])
    if not names:
        raise ValueError(f"the fixed part {text.strip()!r} has no columns: keep the intercept by writing '~ 1'")
    for (model, rows), at in zip(evaluated, places, strict=True):
        _check_finite(model, [names[i] for i in at], rows, columns)
    means = {name: _mean(series) for name, series in variables.items()}
    specs = [(model.model_spec, at) for (model, _), at in zip(evaluated, places, strict=True)]
    terms = terms_of(parsed, specs, used, Centres(means, moved), _context(columns))
    _refuse_empty_terms(terms)
    table, values = (np.asarray(model, dtype=np.float64) for model, _ in evaluated)
    return FixedColumns(names, terms, codes, table, tuple(places[0]), values, tuple(places[1]))


def sparse_columns(text: str, columns: ObsColumns) -> tuple[sparse.csr_array, tuple[str, ...]]:
    """Columns of a formula without random terms in CSR format (n, q), and their names; never dense."""
    parsed, used = parse_fixed(text, columns.names)
    variables = {name: columns.variable(name) for names in used.values() for name in names}
    model = _evaluate(list(parsed), pd.DataFrame(variables, index=range(len(columns))), columns, text, "sparse")
    names = tuple(model.model_spec.column_names)
    _check_finite(model, names, None, columns)
    return sparse.csr_array(model, dtype=np.float64), names


def _check_width(
    parsed: SimpleFormula, used: Mapping[str, Sequence[str]], variables: Mapping[str, pd.Series], text: str
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
    parsed: SimpleFormula, used: Mapping[str, Sequence[str]], variables: Mapping[str, pd.Series], n: int
) -> tuple[set[ParsedTerm], np.ndarray, np.ndarray]:
    """Terms whose columns have few distinct rows, the distinct row of each cell (n,), and the first cell of each row.

    formulaic drops a level of a factor if other terms with the same covariates span it, so terms with the same
    covariates stay together.
    """
    coded = {name: _codes(series) for name, series in variables.items()}
    groups: dict[frozenset[str], list[ParsedTerm]] = {}
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
    names = dict.fromkeys(name for term in terms for f in term.factors for name in used[f.expr])
    codes, first = combined_codes([coded[name] for name in names if coded[name] is not None], n)
    if len(first) > max(_SMALL_TABLE * n, 1):
        return set(), np.zeros(n, dtype=np.intp), np.zeros(1, dtype=np.intp)
    return terms, codes, first


def combined_codes(parts: Sequence[tuple[np.ndarray, int] | None], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the combinations of several codes (n,) that occur, in lexicographic order; and the first cell of each.

    Codes are compressed after every step, so that the product of the numbers of levels may be of any size.

    Examples
    --------
    >>> codes, first = combined_codes([(np.array([1, 0, 1]), 2), (np.array([0, 5, 0]), 10**12)], 3)
    >>> codes.tolist(), first.tolist()
    ([1, 0, 1], [1, 0])
    """
    codes, first = np.zeros(n, dtype=np.intp), np.zeros(min(n, 1), dtype=np.intp)
    for part in parts:
        if part is not None:
            first, codes = _distinct(codes.astype(np.int64) * part[1] + part[0], len(first) * part[1])
    return codes, first


def _distinct(codes: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """First place of each distinct code, in ascending order of the codes, and the rank of each code (n,)."""
    if limit > max(4 * len(codes), 1_000):
        _, first, ranks = np.unique(codes, return_index=True, return_inverse=True)
        return first, ranks
    first = np.full(limit, -1)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal places the last assignment, the first cell, stays
    present = np.flatnonzero(first >= 0)
    ranks = np.zeros(limit, dtype=np.intp)
    ranks[present] = np.arange(len(present))
    return first[present], ranks[codes]


def _codes(series: pd.Series) -> tuple[np.ndarray, int] | None:
    """Codes (n,) and their number for a variable with few distinct values."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return series.cat.codes.to_numpy(np.int64), max(len(series.cat.categories), 1)
    if series.iloc[:4096].nunique() > _MOST_VALUES:
        return None
    codes, values = pd.factorize(series)
    return (codes.astype(np.int64), max(len(values), 1)) if len(values) <= _MOST_VALUES else None


def _take(series: pd.Series, rows: np.ndarray) -> pd.Series:
    return series.iloc[rows].reset_index(drop=True)


def _evaluate(
    terms: Sequence[ParsedTerm], table: pd.DataFrame, columns: ObsColumns, text: str, output: str = "numpy"
) -> formulaic.ModelMatrix:
    """Evaluate checked terms on checked columns; `output` is formulaic's, "numpy" or "sparse"."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", DataMismatchWarning)  # levels= that leave cells out
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            formula = SimpleFormula(list(terms), _ordering="none")
            return formula.get_model_matrix(table, context=_context(columns), output=output, na_action="ignore")
    except Exception as error:  # the code was checked, so it is the values that it cannot work with
        raise ValueError(f"cannot evaluate the formula {text.strip()!r} on obs: {first_line(error)}") from error


def _context(columns: ObsColumns) -> dict[str, Any]:
    """Functions that formulaic lacks, or has in another form."""

    def C(data: Any, contrasts: Any = None, *, levels: Any = None, spans_intercept: bool = True) -> Any:
        return formulaic_C(_as_levels(data, columns), contrasts, levels=levels, spans_intercept=spans_intercept)

    return {"C": C} | {name: getattr(np, name) for name in UFUNCS}


def _as_levels(data: Any, columns: ObsColumns) -> Any:
    """Numbers as levels are named: whole numbers without ".0", truth values as such."""
    if not isinstance(data, pd.Series) or data.dtype.kind != "f":
        return data
    values = data.to_numpy()
    if data.name in columns.truths and np.isin(values, (0.0, 1.0)).all():
        return data.astype(bool)
    whole = np.isfinite(values).all() and (values == np.rint(values)).all() and (np.abs(values) < 2**53).all()
    return data.astype(np.int64) if whole else data


def _places(parsed: SimpleFormula, models: Sequence[formulaic.ModelMatrix]) -> tuple[list[list[int]], tuple[str, ...]]:
    """Positions in X of the columns of each model, in the order of the terms; and the names of all columns."""
    places: list[list[int]] = [[0] * len(model.model_spec.column_names) for model in models]
    names: list[str] = []
    for term in parsed:
        for at, model in zip(places, models, strict=True):
            for column in model.model_spec.term_indices.get(term, ()):
                at[column] = len(names)
                names.append(str(model.model_spec.column_names[column]))
    return places, tuple(names)


def _check_finite(
    model: formulaic.ModelMatrix, names: Sequence[str], rows: np.ndarray | None, columns: ObsColumns
) -> None:
    with np.errstate(all="ignore"):
        totals = np.ravel(model.sum(axis=0))  # (p,)
    for position in np.flatnonzero(~np.isfinite(totals)).tolist():
        column = model[:, [position]]
        bad = ~np.isfinite(np.ravel(sparse.csc_array(column).toarray()))
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


def factor_names(terms: Terms) -> Iterator[str]:
    """Names of the factors of some terms, each once."""
    return iter(dict.fromkeys(name for term in terms for name in term.factors))
