"""Describe evaluated terms: which factors and covariates their columns are made of, and how these are coded."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import formulaic
import numpy as np
import pandas as pd
from formulaic import ModelSpec, SimpleFormula
from formulaic.parser.types import Factor
from formulaic.parser.types import Term as ParsedTerm

from .evaluation import Centres
from .safe_code import OF_ALL_ROWS, UFUNCS, columns_in_code, first_line, functions_in_code
from .terms import Part, Product, Term, Terms

Spec = tuple[formulaic.ModelSpec, Sequence[int]]


def terms_of(
    parsed: SimpleFormula,
    specs: Sequence[Spec],
    used: Mapping[str, Sequence[str]],
    centres: Centres,
    context: Mapping[str, Any],
) -> Terms:
    """Describe the terms of a formula that formulaic evaluated in one piece or more.

    Parameters
    ----------
    parsed
        The formula.
    specs
        formulaic's specification of each piece, and the position in X of each of its columns.
    used
        Columns of obs that each factor of the formula uses.
    centres
        Means and origins of these columns.
    context
        Functions for formulaic.
    """
    by_term: dict[ParsedTerm, Term] = {}
    for spec, places in specs:
        reader = _SpecReader(spec, used, centres, context)
        start = 0
        for structure in spec.structure or ():
            columns = tuple(places[start : start + len(structure.columns)])
            start += len(structure.columns)
            products = tuple(reader.products(structure.scoped_terms, columns))
            by_term[structure.term] = Term(str(structure.term), columns, products)
    return tuple(by_term[term] for term in parsed)


class _SpecReader:
    """Parts of the terms of one formulaic specification."""

    def __init__(
        self,
        spec: formulaic.ModelSpec,
        used: Mapping[str, Sequence[str]],
        centres: Centres,
        context: Mapping[str, Any],
    ):
        self.spec, self.used, self.centres, self.context = spec, used, centres, context

    def products(self, scoped_terms: Sequence[Any], columns: tuple[int, ...]) -> Iterator[Product]:
        if any(scoped.scale != 1 for scoped in scoped_terms):
            raise ValueError("a formula may not scale a term by a number: drop the number")
        parts = [tuple(self.part(item.factor.factor, item.reduced) for item in one.factors) for one in scoped_terms]
        widths = [math.prod(part.coding.shape[1] for part in one if part.is_factor) for one in parts]
        covariates = len(columns) // max(sum(widths), 1)  # all pieces of a term have the same covariates
        start = 0
        for one, width in zip(parts, widths, strict=True):
            yield Product(columns[start : start + width * covariates], one)
            start += width * covariates

    def part(self, factor: Factor, reduced: bool) -> Part:
        variables = tuple(self.used[factor.expr])
        kind, state = self.spec.encoder_state[factor.expr]
        if kind.value == "categorical":
            coded = state["contrasts"]
            try:
                matrix = np.asarray(coded.contrasts.get_coding_matrix(coded.levels, reduced_rank=reduced), dtype=float)
            except Exception as error:
                raise ValueError(f"cannot use the contrasts of {factor.expr}: {first_line(error)}") from error
            return _factor_part(factor.expr, variables, [str(level) for level in coded.levels], matrix)
        means = tuple(self.centres.means[name] for name in variables)
        stateful = factor.expr not in variables and not functions_in_code(factor.expr).isdisjoint(OF_ALL_ROWS)
        values = (tuple(self.covariate(factor.expr)),) if stateful else ()
        return Part(
            factor.expr, variables, values=values, means=means, origin=self.centres.origins.get(factor.expr, 0.0)
        )

    def covariate(self, code: str) -> list[float]:
        """Columns of a covariate at the means of its variables; NaN if it cannot be evaluated there."""
        row = {name: [self.centres.means[name]] for name in self.used[code]}
        if any(mean is None for (mean,) in row.values()):
            return [math.nan]
        try:
            return evaluate_covariate(code, row, self.context, self.spec.transform_state)
        except Exception:  # functions of one row that need several, such as knots of a spline within a spline
            return [math.nan]


def checked_covariate(code: str, row: Mapping[str, Sequence[float | None]]) -> np.ndarray:
    """Columns of a covariate that sees one row at a time, at one row of values; its code is checked first."""
    columns_in_code(code, list(row))
    return np.array(evaluate_covariate(code, row, {name: getattr(np, name) for name in UFUNCS}, {}))


def evaluate_covariate(
    code: str, row: Mapping[str, Sequence[float | None]], context: Mapping[str, Any], state: Mapping[str, Any]
) -> list[float]:
    """Columns of a covariate, whose code was checked, at one row of values of its variables."""
    method = Factor.EvalMethod.LOOKUP if code in row else Factor.EvalMethod.PYTHON
    formula = SimpleFormula([ParsedTerm([Factor(code, eval_method=method)])])
    spec = ModelSpec(formula, transform_state=copy.deepcopy(dict(state)), output="numpy", na_action="ignore")
    with np.errstate(all="ignore"):
        model = spec.get_model_matrix(pd.DataFrame(dict(row), dtype=float), context=dict(context))
    return [float(value) for value in np.ravel(np.asarray(model, dtype=float))]


def _factor_part(name: str, variables: tuple[str, ...], levels: Sequence[str], matrix: np.ndarray) -> Part:
    """Part of a factor, with its coding matrix (levels, columns) in the shortest form."""
    identity = np.eye(len(levels))
    if matrix.shape == identity.shape and (matrix == identity).all():
        return Part(name, variables, tuple(levels))
    for place in range(len(levels) if matrix.shape[1] == len(levels) - 1 else 0):
        if (matrix == np.delete(identity, place, axis=1)).all():
            return Part(name, variables, tuple(levels), levels[place])
    return Part(name, variables, tuple(levels), values=tuple(map(tuple, matrix.tolist())))
