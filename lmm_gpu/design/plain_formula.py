"""Formulas that are sums of columns, such as ``~ arm + age + (1 | donor)``, without formulaic.

They have no operator but ``+``, so that there is nothing to expand, and always an intercept, so that every factor
leaves out its first level. formulaic gives the same columns and takes several times as long to import as a gene to fit.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .evaluation import Centres, Evaluated
from .formula_limits import MOST_TERMS
from .terms import INTERCEPT, Part, Product, Term, Terms

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_EFFECT = rf"\s*(?:{INTERCEPT}|{_NAME})\s*"
_RANDOM = rf"\(({_EFFECT}(?:\+{_EFFECT})*)(\|\|?)(\s*{_NAME}(?:\s*:\s*{_NAME})*\s*)\)"
_SUMMAND = re.compile(rf"\s*(?:({INTERCEPT}|{_NAME})|{_RANDOM})\s*(?:\+(?=.)|\Z)", re.DOTALL | re.ASCII)


@dataclass(frozen=True)
class PlainFactor:
    """A column of obs, or the intercept."""

    expr: str


@dataclass(frozen=True)
class PlainTerm:
    """A term of one factor."""

    factors: tuple[PlainFactor]

    def __str__(self) -> str:
        return self.factors[0].expr


class PlainFormula(tuple[PlainTerm, ...]):
    """Terms of a plain formula, the intercept first."""

    __slots__ = ()


def plain_summands(text: str) -> tuple[list[str], list[tuple[str, tuple[str, ...], bool]]] | None:
    """Columns, perhaps with the intercept, and random terms that a plain formula adds; or None.

    Random terms are the text of their effects, the columns of their groups, and True for a double bar.

    Examples
    --------
    >>> plain_summands("arm + (1 | donor:day) + age")
    (['arm', 'age'], [('1', ('donor', 'day'), False)])
    >>> plain_summands("arm * age") is plain_summands("0 + arm") is plain_summands("log(age)") is None
    True
    """
    place, fixed, random = 0, list[str](), list[tuple[str, tuple[str, ...], bool]]()
    while place < len(text):
        found = _SUMMAND.match(text, place)
        if found is None or any(map(keyword.iskeyword, re.findall(_NAME, found[0]))):
            return None
        place, (column, effects, bars, groups) = found.end(), found.groups()
        if column is not None:
            fixed.append(column)
        else:
            random.append((effects.strip(), tuple(re.findall(_NAME, groups)), bars == "||"))
    return (fixed, random) if fixed or random else None


def plain_formula(text: str) -> PlainFormula | None:
    """Terms of a sum of columns without random terms; None for any other text, and for a column that comes twice."""
    found = plain_summands(text)
    if found is None or found[1] or len(set(found[0])) < len(found[0]) or len(found[0]) >= MOST_TERMS:
        return None
    names = [INTERCEPT, *(name for name in found[0] if name != INTERCEPT)]
    return PlainFormula(PlainTerm((PlainFactor(name),)) for name in names)


def evaluate(terms: Sequence[PlainTerm], table: pd.DataFrame) -> Evaluated:
    """Evaluate terms on a table of float64 and categorical columns."""
    columns, names = [np.zeros((len(table), 0))], list[str]()
    places, levels = dict[PlainTerm, Sequence[int]](), dict[PlainTerm, tuple[str, ...]]()
    for term in terms:
        values, labels = _columns_of(str(term), table)
        places[term] = range(len(names), len(names) + len(labels))
        names += labels
        columns.append(values)
        factor = str(term) != INTERCEPT and isinstance(table[str(term)].dtype, pd.CategoricalDtype)
        levels[term] = tuple(map(str, table[str(term)].cat.categories)) if factor else ()
    return Evaluated(np.hstack(columns), tuple(names), places, levels)


def _columns_of(name: str, table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    # columns (n, c) of a term, and their names
    if name == INTERCEPT:
        return np.ones((len(table), 1)), ["Intercept"]
    series = table[name]
    if not isinstance(series.dtype, pd.CategoricalDtype):
        return series.to_numpy(np.float64)[:, None], [name]
    others = np.arange(1, len(series.cat.categories))
    indicators = (series.cat.codes.to_numpy()[:, None] == others).astype(np.float64)
    return indicators, [f"{name}[T.{level}]" for level in series.cat.categories[1:]]


def describe(
    formula: PlainFormula, specs: Sequence[tuple[Mapping[PlainTerm, tuple[str, ...]], Sequence[int]]], centres: Centres
) -> Terms:
    """Describe the terms of a formula that was evaluated in one piece or more, as `coding.terms_of` does."""
    found = {term: described for spec, places in specs for term, described in _described(spec, places, centres)}
    return tuple(found[term] for term in formula)


def _described(
    spec: Mapping[PlainTerm, tuple[str, ...]], places: Sequence[int], centres: Centres
) -> Iterator[tuple[PlainTerm, Term]]:
    start = 0
    for term, levels in spec.items():
        name, width = str(term), max(len(levels) - 1, 0) if levels else 1
        columns = tuple(places[start : start + width])
        start += width
        if name == INTERCEPT:
            parts: tuple[Part, ...] = ()
        elif levels:
            parts = (Part(name, (name,), levels, levels[0]),)
        else:
            parts = (Part(name, (name,), means=(centres.means[name],), origin=centres.origins.get(name, 0.0)),)
        yield term, Term(name, columns, (Product(columns, parts),))
