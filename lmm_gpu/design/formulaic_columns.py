"""Columns of checked terms as formulaic evaluates them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from formulaic import SimpleFormula
from formulaic.errors import DataMismatchWarning
from formulaic.parser.types import Term as ParsedTerm
from formulaic.transforms import C as formulaic_C

from .coding import Spec, terms_of
from .evaluation import Centres, Evaluated
from .obs_columns import ObsColumns
from .safe_code import UFUNCS, first_line
from .terms import Terms


def evaluate(
    terms: Sequence[ParsedTerm], table: pd.DataFrame, columns: ObsColumns, text: str, output: str = "numpy"
) -> Evaluated:
    """Evaluate checked terms on checked columns; `output` is formulaic's, "numpy" or "sparse"."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", DataMismatchWarning)  # levels= that leave cells out
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            formula = SimpleFormula(list(terms), _ordering="none")
            model = formula.get_model_matrix(table, context=_context(columns), output=output, na_action="ignore")
    except Exception as error:  # the code was checked, so it is the values that it cannot work with
        raise ValueError(f"cannot evaluate the formula {text.strip()!r} on obs: {first_line(error)}") from error
    spec = model.model_spec
    return Evaluated(model, tuple(map(str, spec.column_names)), spec.term_indices, spec)


def describe(
    parsed: SimpleFormula,
    specs: Sequence[Spec],
    used: Mapping[str, Sequence[str]],
    centres: Centres,
    columns: ObsColumns,
) -> Terms:
    """Describe the terms of a formula that was evaluated in one piece or more."""
    return terms_of(parsed, specs, used, centres, _context(columns))


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
