"""Tables of analysis of variance, information criteria and marginal means against lmerTest, lme4 and emmeans.

`tests/reference/lmertest` holds the data, the tables of R and the script that made them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from paths import ROOT

import lmm_gpu

FOLDER = ROOT / "tests" / "reference" / "lmertest"
DATA = pd.read_csv(FOLDER / "unbalanced.csv").astype({"donor": str})
Y = np.column_stack([DATA["y"], 3 * DATA["y"] + 1])
ANOVA = pd.read_csv(FOLDER / "anova.csv")
MODELS = list(dict.fromkeys(ANOVA["model"]))


def fitted(model, **options):
    return lmm_gpu.fit((Y, DATA), f"~ {model} + (1 | donor)", progress=False, bounds="nonnegative", **options)


#: Models without a main effect of a factor or covariate that is in an interaction: lmerTest's type II and III rows are
#: then those of the coding; ours are not.
CODED = {("kind:age + arm", 2, "kind:age"), ("age + kind:dose + arm", 2, "kind:dose")}
CODED |= {("0 + kind + kind:arm", kind, "kind") for kind in (2, 3)}


def ordered(term):
    return ":".join(sorted(term.split(":")))


@pytest.mark.parametrize("model", MODELS)
def test_anova_is_that_of_lmertest(model):
    fit = fitted(model)
    for kind, name in ((1, "I"), (2, "II"), (3, "III")):
        wanted = ANOVA[(ANOVA["model"] == model) & (ANOVA["type"] == kind)]
        found = fit.anova("lmertest", type=kind)
        pd.testing.assert_frame_equal(found, fit.anova("lmertest", type=name))
        table = found[found["variable"] == "Gene1"].set_index(
            found["contrast"][found["variable"] == "Gene1"].map(ordered)
        )
        assert sorted(table.index) == sorted(map(ordered, wanted["term"]))
        for row in wanted.itertuples():
            if (model, kind, row.term) in CODED:
                continue
            mine = table.loc[ordered(row.term)]
            assert mine["df1"] == row.df1
            np.testing.assert_allclose(mine["statistic"], row.F, rtol=2e-6)
            # df of several rows depend on how lmerTest scales the rows
            np.testing.assert_allclose(mine["df"], row.df, rtol=1e-4 if row.df1 == 1 else 0.12)


@pytest.mark.parametrize("contrasts", ["contr.treatment", "contr.sum", "contr.helmert", "contr.treatment(base='T')"])
def test_types_do_not_depend_on_the_coding(contrasts):
    coded = fitted(f"dose + arm * C(kind, {contrasts}) * age")
    plain = fitted("dose + arm * kind * age")
    for kind in (1, 2, 3):
        tables = [one.anova("lmertest", type=kind) for one in (coded, plain)]
        np.testing.assert_allclose(tables[0]["statistic"], tables[1]["statistic"], rtol=1e-5)
    cells = fitted("0 + kind:arm").anova("residual", type=3)
    pd.testing.assert_frame_equal(cells, fitted("0 + kind:arm").anova("residual", type=1))


def test_a_covariate_far_from_zero_is_at_zero_as_in_r():
    shifted = DATA.assign(age=DATA["age"] + 1e5)
    near, far = (
        fitted("kind * age + arm"),
        lmm_gpu.fit((Y, shifted), "~ kind * age + arm + (1 | donor)", progress=False),
    )
    theta = near.theta.loc["var1"].iloc[0]
    assert theta > 0
    rows = np.zeros((2, 7))
    rows[[0, 1], [near.summary.fixed_names.index(f"kind[T.{level}]") for level in ("NK", "T")]] = 1
    rows[[0, 1], [near.summary.fixed_names.index(f"kind[T.{level}]:age") for level in ("NK", "T")]] = -1e5
    wanted = near.f_test(rows, "residual").statistic
    found = far.anova("residual").query("contrast == 'kind'")["statistic"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="type=4 is not known; use 1, 2 or 3"):
        fitted("arm + kind").anova(type=4)


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_information_criteria_are_those_of_lme4(method):
    criteria = pd.read_csv(FOLDER / "criteria.csv").query("reml == @reml", local_dict={"reml": method == "REML"})
    for row in criteria.iloc[::3].itertuples():
        fit = fitted(row.model, method=method)
        np.testing.assert_allclose([fit.AIC["Gene1"], fit.BIC["Gene1"]], [row.AIC, row.BIC], rtol=1e-8)


def test_criteria_of_weighted_fits_are_those_of_the_likelihood():
    """Weights that are equal for all genes, given per gene and per cell."""
    rng = np.random.default_rng(2)
    w = rng.uniform(0.5, 2, len(DATA))
    one = fitted("arm + kind", weights=w)
    own = fitted("arm + kind", weights=np.column_stack([w, w]))
    for method in ("AIC", "BIC"):
        np.testing.assert_allclose(getattr(own, method), getattr(one, method), rtol=1e-7)


# --- marginal means of emmeans --------------------------------------------------------------------

MEANS = pd.read_csv(FOLDER / "emmeans.csv", keep_default_na=False)
NAMED = {
    "arm by kind": lambda fit: fit.marginal_means(["kind", "arm"]),
    "arm": lambda fit: fit.marginal_means("arm"),
    "kind proportional": lambda fit: fit.marginal_means("kind", weights="proportional"),
    "kind at age 7": lambda fit: fit.marginal_means("kind", at={"age": 7, "arm": "b"}),
    "pairs of kind": lambda fit: fit.contrast(kind="pairwise"),
    "pairs of arm by kind": lambda fit: fit.contrast(arm=("b", "a"), by="kind"),
    "interaction": lambda fit: fit.contrast(arm=("a", "b"), kind="pairwise"),
    "slope of age by kind": lambda fit: fit.contrast(age=(6, 5), by="kind"),
}


@pytest.fixture(scope="module")
def crossed():
    return fitted("dose + arm * kind * age")


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_marginal_means_are_those_of_emmeans(crossed, case):
    wanted = MEANS[MEANS["case"] == case]
    table = crossed.test(NAMED[case](crossed), df="lmertest").query("variable == 'Gene1'")
    assert len(table) == len(wanted)
    np.testing.assert_allclose(table["log_fc"], wanted["value"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(table["se"], wanted["se"], rtol=1e-5)
    np.testing.assert_allclose(table["df"], wanted["df"], rtol=2e-3)
