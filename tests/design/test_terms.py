"""Terms in files, of an older version too, and of the cells of several sites."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import lmm_gpu
from lmm_gpu.design.fixed_effects import fixed_columns
from lmm_gpu.design.obs_columns import ObsColumns
from lmm_gpu.design.terms import merged_terms, product_of, terms_from_json, terms_to_json, treatment_factor
from lmm_gpu.sumstats.summary_stats import SummaryStats

N = 90
RNG = np.random.default_rng(9)
OBS = pd.DataFrame(
    {
        "arm": RNG.choice(list("abc"), N),
        "kind": RNG.choice(["x", "größe: 1"], N),
        "age": RNG.normal(40, 9, N),
        "donor": np.resize(list("pqrstu"), N),
    }
)
FORMULAS = [
    "arm*kind + age",
    "0 + arm:kind",
    "C(arm, contr.sum)*age",
    "poly(age, 2):arm",
    "C(arm, contr.treatment('b'))",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_there_and_back(text):
    terms = fixed_columns(text, ObsColumns(OBS)).terms
    assert terms_from_json(terms_to_json(terms)) == terms


def test_treatment_factors():
    fixed = fixed_columns("arm*kind + age", ObsColumns(OBS))
    found = {name: treatment_factor(fixed.terms, i) for i, name in enumerate(fixed.names)}
    assert {name: part[0].reference for name, part in found.items() if part} == {
        "arm[T.b]": "a",
        "arm[T.c]": "a",
        "kind[T.x]": "größe: 1",
    }
    assert [part.name for part in product_of(fixed.terms, 5).parts] == ["arm", "kind"]


def test_means_of_several_sites_are_those_of_all_cells():
    sites = [OBS.iloc[:30], OBS.iloc[30:]]
    a, b = (fixed_columns("arm + age", ObsColumns(site)).terms for site in sites)
    merged = {part.name: part.means for term in merged_terms(a, 30, b, 60) for part in term.parts.values()}
    assert merged["age"] == pytest.approx((OBS["age"].mean(),), rel=1e-12)


def test_statistics_of_an_older_version(tmp_path):
    """Older files have the names of the terms and their columns alone."""
    Y = RNG.normal(size=(N, 3))
    summary = lmm_gpu.summarize((Y, OBS), "~ arm*kind + (1 | donor)", progress=False)
    arrays, labels, attributes = summary.content()
    old = json.dumps([[term.name, list(term.columns)] for term in summary.terms])
    older = SummaryStats.from_content((arrays, labels, attributes | {"terms": old}))
    one, other = (lmm_gpu.fit(part, progress=False) for part in (summary, older))
    pd.testing.assert_frame_equal(one.test("arm[T.b]"), other.test("arm[T.b]"))
    with pytest.raises(ValueError, match="of an older version"):
        other.anova()
    with pytest.raises(ValueError, match="saved by an older version"):
        other.contrast(arm=("b", "a"))
    assert lmm_gpu.fit(
        older + lmm_gpu.summarize((Y[::2], OBS[::2]), "~ arm*kind + (1 | donor)", progress=False)
    ).summary.n
