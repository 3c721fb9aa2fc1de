"""Covariates far from zero for their spread, such as dates: they are recorded from an origin near their mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from .plain_formula import PlainFormula

if TYPE_CHECKING:
    from formulaic import SimpleFormula

logger = logging.getLogger("lmm_gpu")
#: A covariate is recorded from an origin where abs(mean) exceeds this many standard deviations: sums of squares of its
#: values keep 16 digits less twice the digits of this ratio.
FAR = 300.0


def far_origins(
    parsed: SimpleFormula | PlainFormula, used: Mapping[str, Sequence[str]], variables: Mapping[str, pd.Series]
) -> dict[str, float]:
    """Origins of the covariates that lie far from zero for their spread; one log line for each.

    Only where nothing else changes: where the model also has every term without the covariate, so that the fitted
    values, and the coefficient of the covariate, are the same from any origin; the coefficients of the terms without
    it, such as the intercept, then are those at the origin.
    """
    found = {}
    terms = {frozenset(factor.expr for factor in term.factors if factor.expr != "1") for term in parsed}
    for name, values in variables.items():
        plain = all(name not in names or code == name for code, names in used.items())
        if not plain or isinstance(values.dtype, pd.CategoricalDtype):
            continue
        mean, spread = float(values.mean()), float(values.std(ddof=0))
        having = [term for term in terms if name in term]
        if spread > 0 and abs(mean) > FAR * spread and all(term - {name} in terms for term in having):
            unit = 10.0 ** math.floor(math.log10(spread))
            found[name] = round(mean / unit) * unit
            logger.warning(
                "covariate %s lies far from zero for its spread (mean %.6g, SD %.3g) and is recorded from %.15g on: "
                "the intercept and effects at %s = 0 are those at this value",
                *(name, mean, spread, found[name], name),
            )
    return found
