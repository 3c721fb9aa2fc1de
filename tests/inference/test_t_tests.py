"""Degrees of freedom against dense n x n numerics, pbkrtest, an exact t-test, and counting by hand."""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from paths import REFERENCE

from lmm_gpu import fit, lmm, sslmm
from lmm_gpu.inference.strata import between_within_df, explained
from lmm_gpu.inference.t_tests import ContrastTest, contrast_se_and_df


def fitted(design, Y, **options):
    """Fit of Y (n, m)."""
    return lmm(sslmm(design.X, Y.T, design.Z, d=design.d), **options)


def uncapped(result, C):
    """Satterthwaite's test where the between-within df are no limit."""
    model = result.model.with_genes(result.summary)
    contrasts = model.prepare(C)
    found = contrast_se_and_df(model, result.estimates.theta, contrasts, "satterthwaite", np.full(len(C), np.inf))
    return ContrastTest(C @ result.estimates.coef, *found)


# --- Satterthwaite --------------------------------------------------------------------------------


def satterthwaite(design, theta, c, method):
    """2 v^2 / (g' W g) from n x n matrices: g by central differences of v, W the inverse expected information."""
    variance = lambda at: c @ dense.beta_covariance(design, at) @ c  # noqa: E731
    gradient = dense.gradient(variance, theta, 1e-4 * np.abs(theta).max() * np.ones_like(theta))
    spread = np.linalg.inv(dense.information(design, theta, method))
    return 2 * variance(theta) ** 2 / (gradient @ spread @ gradient)


@pytest.mark.parametrize("name", ["one_nested", "one_crossed", "two", "two_widest_last", "slope"])
def test_satterthwaite_is_the_dense_computation(name, method):
    design = dense.DESIGNS[name]
    m = 5
    result = fitted(design, dense.draw_genes(design, m, seed=4), method=method)
    assert result.converged.all()
    C = np.random.default_rng(1).normal(size=(4, design.X.shape[1]))
    tested = uncapped(result, C)
    theta = result.theta.to_numpy()
    wanted = [[satterthwaite(design, theta[:, gene], c, method) for gene in range(m)] for c in C]
    np.testing.assert_allclose(tested.df, wanted, rtol=2e-6)
    np.testing.assert_allclose(tested.estimate, C @ result.coef.to_numpy(), rtol=1e-12)
    for gene in range(m):
        covariance = dense.beta_covariance(design, theta[:, gene])
        np.testing.assert_allclose(tested.se[:, gene] ** 2, np.einsum("cp,pr,cr->c", C, covariance, C), rtol=1e-9)


@pytest.mark.parametrize(
    ("case", "caps"),
    [
        # between-within df of (Intercept), trtB, x: 25 samples; 12 locations; n = 400
        ("between_k1_reml", (25 - 2, 25 - 2, 400 - 3 - 23)),
        ("between_k2_reml", (12 - 1, 25 - 2, 400 - 3 - 34)),
        ("between_slope_reml", (25 - 2, 25 - 2, 25 - 1)),
    ],
)
def test_expected_information_gives_kenward_rogers_df(case, caps):
    stored = np.load(REFERENCE / f"{case}.npz")
    widths = [25] if case == "between_k1_reml" else [25, stored["Z"].shape[1] - 25]
    names = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "n")
    result = lmm(**{name: stored[f"ss_{name}"] for name in names}, d=widths, epsilon=1e-9)
    inside = (stored["lmer_theta"][:-1] > 1e-3 * stored["lmer_theta"][-1]).all(axis=0)  # lme4 is not at a boundary
    assert inside.sum() >= 10
    wanted = stored["lmer_kr_df"][:, inside]
    np.testing.assert_allclose(uncapped(result, np.eye(3)).df[:, inside], wanted, rtol=1e-5)
    capped = result.contrast_test(np.eye(3), "satterthwaite").df[:, inside]
    np.testing.assert_allclose(capped, np.minimum(wanted, np.array(caps)[:, None]), rtol=1e-5)


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [0.0, 0.02, 1.0])
def test_a_balanced_design_between_donors_gives_the_t_test_on_donor_means(between):
    donors, cells, m = 8, 5, 40
    rng = np.random.default_rng(7)
    effects = np.sqrt(between) * rng.normal(size=(donors, m))
    Y = np.repeat(effects, cells, axis=0) + rng.normal(size=(donors * cells, m))
    obs = pd.DataFrame({"donor": np.repeat(list("abcdefgh"), cells), "arm": np.repeat(["u", "v"], donors // 2 * cells)})
    table = fit((Y, obs), "~ arm + (1 | donor)", progress=False).test("arm[T.v]")
    means = Y.reshape(donors, cells, m).mean(axis=1)
    exact = scipy.stats.ttest_ind(means[donors // 2 :], means[: donors // 2])
    inside = (table["status"] == "converged").to_numpy()
    assert inside.sum() >= (20 if between < 1 else m)
    if between == 0:
        assert (table["donor_variance"] < 0).any()  # negative components are what makes it exact
    np.testing.assert_allclose(table["df"][inside], donors - 2, rtol=1e-5)
    np.testing.assert_allclose(table["statistic"][inside], exact.statistic[inside], rtol=1e-5)
    np.testing.assert_allclose(table["p_value"][inside], exact.pvalue[inside], rtol=1e-4)


@pytest.mark.parametrize("df", ["satterthwaite", "between-within", "lmertest", "kenward-roger"])
def test_a_balanced_treatment_within_donors_with_its_own_variance_is_the_paired_t_test(df):
    donors, cells, m = 7, 4, 20
    rng = np.random.default_rng(3)
    obs = pd.DataFrame({"donor": np.repeat(list("abcdefg"), 2 * cells), "arm": np.tile(list("uuuuvvvv"), donors)})
    means = rng.normal(size=(donors, 2, m)) + 2 * rng.normal(size=(donors, 1, m))
    Y = np.repeat(means.reshape(-1, m), cells, axis=0) + rng.normal(size=(len(obs), m))
    table = fit((Y, obs), "~ arm + (1 | donor/arm)", progress=False).test("arm[T.v]", df=df)
    seen = Y.reshape(donors, 2, cells, m).mean(axis=2)
    exact = scipy.stats.ttest_rel(seen[:, 1], seen[:, 0])
    inside = (table["status"] == "converged").to_numpy()
    assert inside.sum() > 15
    np.testing.assert_allclose(table["statistic"][inside], exact.statistic[inside], rtol=1e-5)
    np.testing.assert_allclose(table["df"][inside], donors - 1, rtol=1e-5)


# --- between and within, by hand ------------------------------------------------------------------

DONORS = [f"D{i}" for i in np.repeat(np.arange(6), 10)]
CELLS = pd.DataFrame(
    {
        "donor": DONORS,
        "arm": np.repeat(["u", "v"], 30),
        "age": np.repeat([31.0, 47, 52, 60, 38, 71], 10),
        "half": np.tile(["s", "t"], 30),
        "cls": np.tile(list("pqpqq"), 12),
        "rep": np.tile(np.repeat(["1", "2"], 5), 6),
        "x": np.random.default_rng(5).normal(size=60),
    }
)
CELLS["batch"] = CELLS["rep"].where(CELLS["donor"] != "D3", "1")  # differs between replicates of five donors
AVERAGE = "(cls[p]:arm[T.v] + cls[q]:arm[T.v])/2"

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no random effect lets|too few to estimate|no degrees of freedom):UserWarning"
)

BY_HAND = [
    # formula, contrast, df, why
    ("~ arm + (1 | donor)", "arm[T.v]", 6 - 2, "donors less intercept and arm"),
    ("~ arm + (1 | donor)", "Intercept", 6 - 2, "the intercept is constant within donors too"),
    ("~ half + (1 | donor)", "half[T.t]", 60 - 2 - 5, "cells less columns, less what donors add to the intercept"),
    ("~ half + (1 | donor)", "Intercept", 6 - 1, "only the intercept is between donors"),
    ("~ arm + age + (1 | donor)", "age", 6 - 3, "a number that belongs to the donor"),
    ("~ arm + age + (1 | donor)", "arm[T.v] + age", 6 - 3, "a sum of two columns between donors"),
    ("~ arm * half + (1 | donor)", "arm[T.v]:half[T.t]", 60 - 4 - 4, "an interaction within donors"),
    ("~ 0 + cls + cls:arm + (1 | donor)", AVERAGE, 6 - 2, "an average over types that is an effect between donors"),
    (
        "~ 0 + cls + cls:arm + (1 | donor)",
        "cls[p]:arm[T.v]",
        6 - 2,
        "an effect in one type",
    ),
    ("~ cls * arm + (1 | donor)", "arm[T.v]", 6 - 2, "the same hypothesis in treatment coding"),
    ("~ 0 + cls + cls:arm + (1 | donor)", "cls[p] + cls[q]", 6 - 2, "one for every cell"),
    ("~ arm + batch + (1 | donor/rep)", "arm[T.v]", 6 - 2, "donors are fewer than replicates"),
    ("~ arm + batch + (1 | donor/rep)", "batch[T.2]", 12 - 6 - 1, "between replicates, within donors: less the donors"),
    (
        "~ arm + half + (1 | donor/half)",
        "half[T.t]",
        (6 - 1) * (2 - 1),
        "a treatment in blocks: against the interaction",
    ),
    ("~ arm + half + (1 | donor/half)", "arm[T.v]", 6 - 2, "the donors are not less for what is nested in them"),
    ("~ arm + half + (1 | donor/rep)", "half[T.t]", 60 - 3 - 10, "within replicates: 12 less 2 span Z after X"),
    ("~ x + (x || donor)", "x", 6 - 1, "the slope is a sum of the donors' slopes"),
    ("~ x + (x || donor)", "Intercept", 6 - 1, "against the donors' intercepts"),
    ("~ x + (1 | donor)", "x", 60 - 2 - 5, "the same number without random slopes"),
    ("~ 0 + donor + half + (1 | donor)", "donor[D1] - donor[D0]", np.nan, "every donor has its own mean: nothing left"),
    ("~ 0 + donor + half + (1 | donor)", "half[T.t]", 60 - 7, "that does not concern what is within"),
]


def between_within(obs, formula, contrast):
    Y = np.random.default_rng(2).normal(size=(len(obs), 1))
    return fit((Y, obs), formula, progress=False).test(contrast, df="between-within")["df"].item()


@pytest.mark.parametrize(("formula", "contrast", "df", "why"), BY_HAND)
def test_between_within_by_hand(formula, contrast, df, why):
    np.testing.assert_equal(between_within(CELLS, formula, contrast), df)


def test_between_within_of_unequal_donors():
    unequal = CELLS.iloc[np.r_[0:3, 10:20, 20:21, 30:60]]
    assert between_within(unequal, "~ arm + (1 | donor)", "arm[T.v]") == 6 - 2
    assert between_within(unequal, "~ half + (1 | donor)", "half[T.t]") == len(unequal) - 2 - 5


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 2e3])
def test_units_do_not_matter(scale, shift):
    moved = CELLS.assign(age=scale * (CELLS["age"] + shift), x=scale * (CELLS["x"] + shift))
    assert between_within(moved, "~ age + x + (1 | donor)", "age") == 6 - 2
    assert between_within(moved, "~ age + x + (1 | donor)", "x") > 40


def test_crossed_effects_take_the_smallest():
    # 6 donors crossed with 4 plates; the arm is between donors, the lane between plates, the intercept in both
    obs = pd.DataFrame({"donor": np.repeat(np.arange(6), 12), "plate": np.tile(np.arange(4), 18)}).astype(str)
    obs = obs.assign(arm=np.repeat(["u", "v"], 36), lane=np.tile(["g", "h"], 36))
    formula = "~ arm + lane + (1 | donor) + (1 | plate)"
    found = {name: between_within(obs, formula, name) for name in ("arm[T.v]", "lane[T.h]", "Intercept")}
    assert found == {"arm[T.v]": 6 - 2, "lane[T.h]": 4 - 2, "Intercept": 4 - 2}


def test_the_same_from_the_matrices():
    design = dense.DESIGNS["one_nested"]  # 60 cells, 9 donors; intercept and treatment between them, x within
    summary = sslmm(design.X, dense.draw_genes(design, 1).T, design.Z)
    C = np.array([[1.0, 0, 0], [0, 1, 0], [1, -2, 0], [0, 0, 1], [0, 1, 1]])
    # the last one is not estimable within donors, as the treatment is not
    np.testing.assert_array_equal(between_within_df(summary, C, rank=7), [7, 7, 7, 60 - 3 - 7, 7])


# --- how they are put together --------------------------------------------------------------------


@pytest.mark.parametrize(("arms", "bites"), [([0.0, 1, 0, 1, 0, 1], True), ([0.0, 0, 0, 1, 1, 1], False)])
def test_between_within_is_a_cap(arms, bites):
    donors = dense.one_hot(np.repeat(np.arange(6), [2, 30, 8, 20, 4, 26]), 6)
    design = dense.Design(np.column_stack([np.ones(90), donors @ arms]), donors, (6,))
    rng = np.random.default_rng(1)
    result = fitted(design, 0.3 * donors @ rng.normal(size=(6, 30)) + rng.normal(size=(90, 30)))
    inside = (result.status == "converged").to_numpy()
    free = [satterthwaite(design, theta, np.array([0.0, 1]), "REML") for theta in result.theta.to_numpy().T[inside]]
    assert np.mean(np.array(free) > 4.1 if bites else np.array(free) < 3.9) > 0.5
    capped = result.contrast_test(np.array([[0.0, 1.0]]), "satterthwaite").df[0, inside]
    np.testing.assert_allclose(capped, np.minimum(free, 4), rtol=1e-4)


def test_between_within_where_a_component_is_held_at_zero():
    design = dense.DESIGNS["one_nested"]
    Y = np.random.default_rng(8).normal(size=(design.n, 30))
    result = fitted(design, Y, bounds="nonnegative")
    held = (result.theta.iloc[0] == 0).to_numpy()
    assert 5 < held.sum() < 30 and (result.status[held] == "boundary").all()
    df = result.contrast_test(np.array([[0.0, 1, 0], [0, 0, 1]]), "satterthwaite").df
    np.testing.assert_array_equal(df[0, held], 7.0)
    np.testing.assert_array_equal(df[1, held], 60.0 - 3 - 7)
    assert (df[1, ~held] <= 50).all()


def test_nothing_to_test_against_is_nan_with_every_method_but_the_residual():
    obs = CELLS.assign(site=np.arange(60) % 5)
    Y = np.random.default_rng(3).normal(size=(60, 6))
    result = fit((Y, obs), "~ 0 + donor + half + (1 | donor)", progress=False)
    between, within = "donor[D1] - donor[D0]", "half[T.t]"
    for method in ("satterthwaite", "between-within"):
        table = result.test([between, within], df=method).set_index("contrast")
        assert table.loc[between, ["df", "p_value", "adj_p_value", "ci_low", "ci_high"]].isna().all(axis=None)
        assert table.loc[within, "p_value"].notna().all()
    assert (result.test(between, df="residual")["df"] == 60 - 7).all()


def test_no_between_within_df_is_no_satterthwaite_df():
    design = dense.DESIGNS["one_crossed"]
    result = fitted(design, dense.draw_genes(design, 3))
    assert (result.status == "converged").all()
    model, theta = result.model.with_genes(result.summary), result.estimates.theta
    contrasts = model.prepare(np.eye(2))
    _, df = contrast_se_and_df(model, theta, contrasts, "satterthwaite", np.array([np.nan, 1.0]))
    np.testing.assert_array_equal(df, [[np.nan] * 3, [1.0] * 3])


def test_residual_df_are_those_of_the_method():
    design = dense.DESIGNS["one_crossed"]
    result = fitted(design, dense.draw_genes(design, 2))
    np.testing.assert_array_equal(result.contrast_test(np.eye(2), "residual").df, np.full((2, 2), 58.0))


def test_unknown_methods_are_refused():
    design = dense.DESIGNS["one_crossed"]
    result = fitted(design, dense.draw_genes(design, 2))
    refused = pytest.raises(ValueError, match=r"df='kr' is not known.*satterthwaite, kenward-roger, lmertest")
    with refused:
        result.contrast_test(np.eye(2), "kr")
    with refused:
        contrast_se_and_df(result.model.with_genes(result.summary), result.estimates.theta, np.eye(2), "kr", np.ones(2))


def test_projection_on_an_effect_that_is_no_grouping():
    """Weighted, dependent columns: least squares of X on Z, and the rank of Z."""
    rng = np.random.default_rng(4)
    X, Z = rng.normal(size=(30, 2)), rng.normal(size=(30, 3)) @ rng.normal(size=(3, 5))
    gram, rank = explained(Z.T @ X, Z.T @ Z)
    fitted_X = Z @ np.linalg.lstsq(Z, X, rcond=None)[0]
    np.testing.assert_allclose(gram, X.T @ fitted_X, rtol=1e-8)
    assert rank == 3
