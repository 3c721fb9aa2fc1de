"""lme4's answers on textbook data sets, singular fits included: components held at or above zero."""

import re

import numpy as np
import pandas as pd
import pytest
from paths import ROOT

import lmm_gpu

CLASSICS = ROOT.parent / "shared" / "data" / "classics"
pytestmark = pytest.mark.skipif(
    not CLASSICS.exists(),
    reason=f"no {CLASSICS}: put the CSV files of lme4's data sets and models.csv (lme4's fits of them) there",
)


def models():
    if not CLASSICS.exists():
        return []
    table = pd.read_csv(CLASSICS / "models.csv")
    correlated = table["random"].str.contains(r"\((?:Days|Machine)\|")  # correlated slopes are not available
    return [
        pytest.param(row, id=f"{row.dataset}-{row.response}-{row.random}") for row in table[~correlated].itertuples()
    ]


def lme4_variances(text):
    """{grouping factors and effect: variance} of lme4's printout, the order of factors ignored."""
    found = {}
    for name, value in re.findall(r"([^;=]+)=([^;]+)", text):
        group, _, effect = name.strip().rpartition(":")
        group, effect = (group, effect) if group else (name.strip(), "")
        found[frozenset(re.sub(r"\.\d+$", "", group).split(":")), effect.strip("()")] = float(value)
    return found


def our_variances(fit):
    found = {}
    for name, value in zip([*fit.summary.component_names, "Residual"], fit.estimates.theta[:, 0], strict=True):
        effect, _, group = name.rpartition("|")
        found[frozenset(group.split(":")), effect or ("" if group == "Residual" else "Intercept")] = value
    return found


@pytest.mark.parametrize("row", models())
def test_variances_and_criterion(row):
    data = pd.read_csv(CLASSICS / f"{row.dataset}.csv")
    for factor in row.factor_columns.split():
        data[factor] = data[factor].astype(str)
    fixed, random = str(row.fixed), str(row.random).replace("|", " | ")
    Y = data[[row.response]].to_numpy(dtype=float)
    fit = lmm_gpu.fit((Y, data), f"~ {fixed} + {random.replace(')+(', ') + (')}", bounds="nonnegative", is_counts=False)
    assert fit.converged.all()
    assert (fit.status.iloc[0] == "boundary") == bool(row.singular)
    ours, theirs = our_variances(fit), lme4_variances(row.vcov)
    assert ours.keys() == theirs.keys()
    total = sum(theirs.values())
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=3e-5, abs=2e-7 * total), name  # lme4's optimiser
    X_part = np.linalg.slogdet(np.asarray(fit.summary.XX))[1]
    assert -2 * fit.logLik.iloc[0] + X_part == pytest.approx(float(row.reml_criterion), abs=2e-6)
