"""Kenward-Roger's and lmerTest's numbers: R's own, dense n x n algebra, finite differences, and the boundary."""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
from paths import REFERENCE

from lmm_gpu import fit, lmm, lmmtest, sslmm
from lmm_gpu.estimation.mixed_model import in_pieces, ratio_weights
from lmm_gpu.inference.pvalues import t_pvalue

R_CASES = {"between_k1_reml": [25], "between_k2_reml": [25, 12], "between_slope_reml": [25, 25]}
DESIGNS = ["one_nested", "one_crossed", "two", "two_widest_last", "three_widest_inside", "slope"]


def fitted(design, Y, **options):
    """Fit of Y (n, m)."""
    return lmm(sslmm(design.X, Y.T, design.Z, d=design.d), epsilon=1e-8, **options)


@pytest.fixture(params=DESIGNS)
def some(request):
    """Design, contrasts (c, p), and a REML fit."""
    design = dense.DESIGNS[request.param]
    C = np.random.default_rng(1).normal(size=(3, design.X.shape[1]))
    result = fitted(design, dense.draw_genes(design, 4, seed=4))
    assert result.converged.all()
    return design, C, result


# --- R --------------------------------------------------------------------------------------------


@pytest.fixture(params=R_CASES)
def of_r(request):
    """What lme4, lmerTest and pbkrtest say, and our fit of the same summary statistics."""
    stored = np.load(REFERENCE / f"{request.param}.npz")
    names = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "n")
    result = lmm(**{name: stored[f"ss_{name}"] for name in names}, d=R_CASES[request.param], epsilon=1e-9)
    assert (stored["lmer_theta"] > 1e-3 * stored["lmer_theta"][-1]).all()  # nowhere at a boundary
    return stored, result


def test_lmertest_is_that_of_r(of_r):
    stored, result = of_r
    tested = result.contrast_test(np.eye(3), "lmertest")
    np.testing.assert_allclose(tested.df, stored["lmer_df"], rtol=1e-6)
    np.testing.assert_allclose(tested.se, stored["lmer_se"], rtol=1e-6)
    np.testing.assert_allclose(t_pvalue(tested.t, tested.df), stored["lmer_p"], rtol=1e-5)


def test_kenward_roger_is_that_of_r(of_r):
    stored, result = of_r
    tested = result.contrast_test(np.eye(3), "kenward-roger")
    np.testing.assert_allclose(tested.se, stored["lmer_kr_se"], rtol=1e-6)
    np.testing.assert_allclose(tested.df, stored["lmer_kr_df"], rtol=1e-6)
    np.testing.assert_allclose(t_pvalue(tested.t, tested.df), stored["lmer_kr_p"], rtol=1e-5)
    assert (stored["lmer_kr_se"] > 1.0005 * stored["lmer_se"]).any()  # there is something to adjust


@pytest.mark.parametrize(
    ("ddf", "se", "p"), [("lmertest", "lmer_se", "lmer_p"), ("kenward-roger", "lmer_kr_se", "lmer_kr_p")]
)
def test_lmmtest_takes_the_same_methods(of_r, ddf, se, p):
    stored, result = of_r
    values = lmmtest(result, ddf=ddf).to_numpy().T.reshape(3, 3, -1)  # coef, t, p
    np.testing.assert_allclose(values[0], result.coef, rtol=1e-12)
    np.testing.assert_allclose(values[1], result.coef / stored[se], rtol=1e-6)
    np.testing.assert_allclose(values[2], stored[p], rtol=1e-5)


@pytest.mark.parametrize("ddf", ["satterthwaite", "between-within", "residual"])
def test_lmmtest_is_test(of_r, ddf):
    _, result = of_r
    names = list(result.summary.fixed_names)
    table, found = result.test(names[1], df=ddf), lmmtest(result, names[1], ddf=ddf)
    np.testing.assert_allclose(found.to_numpy().T, table[["log_fc", "statistic", "p_value"]].to_numpy().T, rtol=1e-12)


# --- dense ----------------------------------------------------------------------------------------


def satterthwaite(design, theta, c, information):
    """2 v^2 / (g' W g) with g by central differences of v, and W the inverse information."""
    variance = lambda at: c @ dense.beta_covariance(design, at) @ c  # noqa: E731
    gradient = dense.gradient(variance, theta, 1e-4 * np.abs(theta).max() * np.ones_like(theta))
    return 2 * variance(theta) ** 2 / (gradient @ np.linalg.solve(information, gradient))


def test_kenward_roger_is_the_dense_computation(some):
    design, C, result = some
    tested = result.contrast_test(C, "kenward-roger")
    for gene, theta in enumerate(result.theta.to_numpy().T):
        wanted = dense.kenward_roger_covariance(design, theta)
        np.testing.assert_allclose(tested.se[:, gene] ** 2, np.einsum("cp,pr,cr->c", C, wanted, C), rtol=1e-7)
        information = dense.information(design, theta, "REML")
        df = [satterthwaite(design, theta, c, information) for c in C]
        np.testing.assert_allclose(tested.df[:, gene], df, rtol=1e-5)


@pytest.mark.parametrize("name", DESIGNS)
def test_lmertest_is_the_dense_computation(name, method):
    design = dense.DESIGNS[name]
    C = np.random.default_rng(1).normal(size=(3, design.X.shape[1]))
    Y = dense.draw_genes(design, 4, seed=4)
    result = fitted(design, Y, method=method)
    tested = result.contrast_test(C, "lmertest")
    for gene, theta in enumerate(result.theta.to_numpy().T):
        observed = dense.observed_information(design, Y[:, gene], theta, method)
        df = [satterthwaite(design, theta, c, observed) for c in C]
        np.testing.assert_allclose(tested.df[:, gene], df, rtol=1e-4)


def test_the_weights_of_ratios():
    rng = np.random.default_rng(3)
    A, g = rng.normal(size=(3, 3)), rng.normal(size=2)
    W, J = A @ A.T, np.vstack([np.eye(2), -g])
    np.testing.assert_allclose(ratio_weights(W[:, :, None], g[:, None])[:, :, 0], J.T @ W @ J, rtol=1e-12)


def test_pieces_are_the_whole():
    g = np.arange(20.0).reshape(2, 10)
    sizes = []

    def form(part):
        sizes.append(part.shape[1])
        return np.stack([part, 2 * part])

    np.testing.assert_array_equal(in_pieces(form, g, width=2**20), np.stack([g, 2 * g]))
    assert len(sizes) > 2 and sum(sizes) == 10


# --- at the boundary, and beside it ---------------------------------------------------------------


def test_lmertest_is_between_within_where_a_component_is_held_at_zero():
    """lmerTest drops the component there and takes about n - p, which rejects too often."""
    design = dense.DESIGNS["one_nested"]
    result = fitted(design, np.random.default_rng(8).normal(size=(design.n, 30)), bounds="nonnegative")
    held = (result.theta.iloc[0] == 0).to_numpy()
    assert 5 < held.sum() < 30
    df = result.contrast_test(np.array([[0.0, 1, 0], [0, 0, 1]]), "lmertest").df
    np.testing.assert_array_equal(df[:, held], np.array([[7.0], [60 - 3 - 7]]) * np.ones(held.sum()))
    assert (df[0, ~held] != 7).all()


def test_kenward_roger_is_its_own_formula_where_a_component_is_held_at_zero():
    design = dense.DESIGNS["one_nested"]
    result = fitted(design, np.random.default_rng(8).normal(size=(design.n, 30)), bounds="nonnegative")
    held = np.flatnonzero(result.theta.iloc[0] == 0)
    tested = result.contrast_test(np.array([[0.0, 1, 0]]), "kenward-roger")
    for gene in held[:4]:
        theta = result.theta.to_numpy()[:, gene]
        assert np.isclose(tested.se[0, gene] ** 2, dense.kenward_roger_covariance(design, theta)[1, 1], rtol=1e-8)
        information = dense.information(design, theta, "REML")
        df = satterthwaite(design, theta, np.array([0.0, 1, 0]), information)
        assert np.isclose(tested.df[0, gene], df, rtol=1e-5) and df > 0


def test_negative_components_have_all_methods():
    design = dense.DESIGNS["one_nested"]
    result = fitted(design, np.random.default_rng(8).normal(size=(design.n, 30)))
    negative = (result.theta.iloc[0] < 0).to_numpy()
    assert negative.sum() > 5
    for method in ("kenward-roger", "lmertest"):
        tested = result.contrast_test(np.eye(3), method)
        assert (tested.df > 0).all() and (tested.se >= result.se.to_numpy()).all()


def test_a_saddle_has_between_within_df():
    """Stopped far from the optimum the observed information need not be positive definite."""
    design = dense.DESIGNS["one_nested"]
    Y = dense.draw_genes(design, 20)
    result = fitted(design, Y)
    theta = result.estimates.theta.copy()
    theta[0] = 300 * np.abs(theta[0])
    observed = [dense.observed_information(design, y, t, "REML") for y, t in zip(Y.T, theta.T, strict=True)]
    assert (np.linalg.det(observed) < 0).all()
    result.estimates.theta[:] = theta
    np.testing.assert_array_equal(result.contrast_test(np.eye(3), "lmertest").df[1], np.full(20, 7.0))


@pytest.mark.filterwarnings("ignore:.*(no random effect lets|too few to estimate|no degrees of freedom):UserWarning")
def test_nothing_to_test_against_is_nan_with_every_method_but_the_residual():
    obs = pd.DataFrame({"donor": np.repeat(list("abcdef"), 10), "half": np.tile(["s", "t"], 30)})
    Y = np.random.default_rng(3).normal(size=(60, 5))
    result = fit((Y, obs), "~ 0 + donor + half + (1 | donor)", progress=False)
    table = result.test(["donor[b] - donor[a]", "half[T.t]"], df="lmertest").set_index("contrast")
    assert table.loc["donor[b] - donor[a]", "p_value"].isna().all()
    assert table.loc["half[T.t]", "p_value"].notna().all()


def test_kenward_roger_is_for_reml():
    design = dense.DESIGNS["one_crossed"]
    result = fitted(design, dense.draw_genes(design, 2), method="ML")
    refused = pytest.raises(ValueError, match="derived for REML and this fit is by ML: fit with method='REML'")
    with refused:
        result.test(df="kenward-roger")
    with refused:
        result.contrast_test(np.eye(2), "kenward-roger")
