"""limma's squeeze by its published equations, solved here by root finding, and what it does to contrasts.

Independent of R's limma; the equations are those of Smyth (2004), section 6.2, and of its `fitFDist`.
"""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
from scipy.special import polygamma, psi

from lmm_gpu import fit, lmm, sslmm
from lmm_gpu.inference.empirical_bayes import Prior, fit_prior, trigamma_inverse
from lmm_gpu.inference.t_tests import contrast_se_and_df

VARIANCES = np.array([0.11, 0.52, 0.35, 2.4, 0.08, 0.94, 1.3, 0.27])


def smyth(variance, d):
    """d_0 and s2_0 from mean and variance of z = log s2: E z = log s2_0 + psi(d/2) - psi(d_0/2) + log(d_0/d),
    var z = trigamma(d/2) + trigamma(d_0/2)."""
    z = np.log(variance)
    wanted = z.var(ddof=1) - polygamma(1, d / 2)
    d_0 = scipy.optimize.brentq(lambda x: polygamma(1, x / 2) - wanted, 1e-3, 1e6, xtol=1e-12, rtol=1e-14)
    return d_0, np.exp(z.mean() - psi(d / 2) + psi(d_0 / 2) - np.log(d_0 / d))


@pytest.mark.parametrize("d", [4.0, 7.0, 30.0])
def test_the_prior_solves_smyths_equations(d):
    prior = fit_prior(VARIANCES, d)
    np.testing.assert_allclose((prior.df, prior.variance), smyth(VARIANCES, d), rtol=1e-8)
    wanted = (d * VARIANCES + prior.df * prior.variance) / (d + prior.df)
    np.testing.assert_allclose(prior.posterior(VARIANCES, d), wanted, rtol=1e-12)


@pytest.mark.parametrize("x", [1e-9, 1e-5, 0.01, 0.7, 3.0, 500.0, 1e6, 1e9])
def test_trigamma_inverse(x):
    y = scipy.optimize.brentq(lambda log_y: np.log(polygamma(1, np.exp(log_y)) / x), -30, 30, xtol=1e-14)
    assert trigamma_inverse(x) == pytest.approx(np.exp(y), rel=1e-3 if x in (1e-9, 1e9) else 1e-7)


def test_the_prior_that_variances_were_drawn_from():
    rng = np.random.default_rng(1)
    variance = 2.5 * scipy.stats.f.rvs(12, 6, size=50_000, random_state=rng)
    prior = fit_prior(variance, 12)
    assert prior.df == pytest.approx(6, rel=0.05) and prior.variance == pytest.approx(2.5, rel=0.03)


def test_variances_that_do_not_differ_have_an_infinite_prior():
    """They vary less than chi-squared would: one variance for all, their mean."""
    variance = np.array([1.0, 1.1, 0.9, 1.05, np.nan])
    prior = fit_prior(variance, 5)
    assert prior.df == np.inf and prior.variance == pytest.approx(np.nanmean(variance))
    np.testing.assert_allclose(prior.posterior(variance, 5), [*[prior.variance] * 4, np.nan])


def test_zero_variances_are_moved_off_zero():
    moved = np.append(VARIANCES, 1e-5 * np.median([*VARIANCES, 0.0]))
    assert fit_prior(np.append(VARIANCES, 0.0), 7) == fit_prior(moved, 7)


def test_one_gene_cannot_be_moderated():
    assert fit_prior(np.array([2.0, np.nan]), 7).df == 0


# --- contrasts ------------------------------------------------------------------------------------

DONORS, CELLS, GENES = 6, 4, 60
OBS = pd.DataFrame(
    {
        "donor": np.repeat(list("abcdef"), CELLS),
        "arm": np.repeat(["u", "v"], DONORS // 2 * CELLS),
        "half": np.tile(list("st"), DONORS * CELLS // 2),
    }
)


pytestmark = pytest.mark.filterwarnings("ignore:.*no random effect lets:UserWarning")


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(6)
    sd = np.sqrt(5 / rng.chisquare(5, size=GENES))
    Y = sd * (rng.normal(size=(DONORS * CELLS, GENES)) + rng.normal(size=(DONORS, GENES)).repeat(CELLS, axis=0))
    return fit((Y, OBS), "~ arm + half + (1 | donor)", epsilon=1e-9, progress=False)


def test_a_contrast_within_donors_has_limmas_t(result):
    """In a balanced design: s2 the residual mean square on n - donors - 1 df."""
    d, variance = DONORS * CELLS - DONORS - 1, result.theta.loc["var0"].to_numpy()
    d_0, s2_0 = smyth(variance, d)
    squeezed = (d * variance + d_0 * s2_0) / (d + d_0)
    plain, found = (result.test("half[T.t]", moderate=moderate) for moderate in (False, True))
    assert 1 < d_0 < 30 and np.ptp(squeezed / variance) > 0.3
    np.testing.assert_allclose(found["statistic"], plain["statistic"] * np.sqrt(variance / squeezed), rtol=1e-4)
    np.testing.assert_allclose(found["df"], d + d_0, rtol=1e-3)
    np.testing.assert_array_equal(found["log_fc"], plain["log_fc"])


@pytest.mark.parametrize("df", ["satterthwaite", "kenward-roger", "between-within"])
def test_a_contrast_between_donors_keeps_its_uncertainty(result, df):
    """Residual variances of other genes say nothing of how much the donors of this one differ."""
    plain, found = (result.test("arm[T.v]", df=df, moderate=moderate) for moderate in (False, True))
    np.testing.assert_allclose(found["se"], plain["se"], rtol=1e-6)
    np.testing.assert_allclose(found["df"], plain["df"], rtol=1e-6)


def test_the_default_test_keeps_its_level_with_few_cells():
    """Moderation once replaced the default test by Satterthwaite's: 6.8 times too many at 0.1 %."""
    cells = [2, 3, 2, 3, 3, 2]
    donors = dense.one_hot(np.repeat(np.arange(6), cells), 6)
    X = np.column_stack([np.ones(len(donors)), donors @ np.tile([0.0, 1], 3)])
    rng = np.random.default_rng(1)
    Y = np.sqrt(0.3) * donors @ rng.normal(size=(6, 8000)) + rng.normal(size=(len(X), 8000))
    p = lmm(sslmm(X, Y.T, donors)).test("X2", moderate=True)["p_value"]
    assert 0.7 < np.mean(p < 0.05) / 0.05 < 1.2 and np.mean(p < 0.001) / 0.001 < 2.6


def test_a_moderated_joint_test_of_one_row_is_the_t_test(result):
    C, prior = np.eye(3)[2:], result.residual_prior()
    t, F = result.contrast_test(C, "generalized", prior), result.f_test(C, "generalized", prior)
    np.testing.assert_allclose(F.statistic, t.t[0] ** 2, rtol=1e-8)
    table = result.test(["arm[T.v]", "half[T.t]"], joint=True, moderate=True)
    assert np.isfinite(table["p_value"]).all()


def test_the_smallest_variances_do_not_make_the_prior():
    """limma's floor, 1e-5 of the median: a variance far below it is taken as that."""
    variance = scipy.stats.chi2(6).rvs(200, random_state=1) / 6
    tiny, floor, more = (np.append(variance, value * np.median(variance)) for value in (1e-9, 1e-5, 1e-4))
    one, other, third = (fit_prior(values, 6.0) for values in (tiny, floor, more))
    np.testing.assert_allclose([one.df, one.variance], [other.df, other.variance], rtol=5e-3)
    assert third.df > 1.02 * other.df


def test_the_prior_has_no_more_df_than_all_genes_together():
    rng = np.random.default_rng(1)
    obs = pd.DataFrame({"donor": np.repeat(list("uvwx"), 5)})
    result = fit((rng.normal(size=(20, 3)), obs), "~ 1 + (1 | donor)", progress=False)
    assert result.residual_prior().df <= 16 * (3 - 1)


def test_no_prior_is_no_change():
    design = dense.DESIGNS["two"]
    result = lmm(sslmm(design.X, dense.draw_genes(design, 4).T, design.Z, d=design.d))
    C = np.eye(3)
    model, theta = result.model.with_genes(result.summary), result.estimates.theta
    contrasts = model.prepare(C)
    (se, df), (none_se, none_df), (_, strong_df) = (
        contrast_se_and_df(model, theta, contrasts, "satterthwaite", np.full(3, np.inf), prior)
        for prior in (None, Prior(0.0, 7.0), Prior(1e9, theta[-1].mean()))
    )
    np.testing.assert_allclose(none_se, se, rtol=1e-12)
    np.testing.assert_allclose(none_df, df, rtol=1e-10)
    assert (strong_df >= df * (1 - 1e-9)).all() and (strong_df > 1.5 * df).any()


def test_the_step_is_the_posterior_mode_to_first_order():
    """Of the log-likelihood and the prior's -d_0/2 (log s_0 + s2_0 / s_0), in theta by a simplex on dense numbers."""
    design = dense.DESIGNS["one_nested"]
    y = dense.draw_genes(design, 1)[:, 0]
    result = lmm(sslmm(design.X, y[None, :], design.Z), epsilon=1e-9)
    theta = result.estimates.theta
    prior = Prior(0.5, 1.05 * theta[-1, 0])  # gentle: the first order is all there is

    def loss(at):
        valid = at[-1] > 0 and design.smallest_eigenvalue(at, "ML") > 0
        penalty = 0.5 * prior.df * (np.log(at[-1]) + prior.variance / at[-1])
        return penalty - dense.loglik(design, y, at, "REML") if valid else np.inf

    options = {"xatol": 1e-10, "fatol": 1e-13, "maxiter": 2000}
    mode = scipy.optimize.minimize(loss, theta[:, 0], method="Nelder-Mead", options=options).x
    model = result.model.with_genes(result.summary)
    se, _ = contrast_se_and_df(model, theta, model.prepare(np.eye(3)), "satterthwaite", np.full(3, np.inf), prior)
    moved = se[:, 0] ** 2
    before, after = (np.diag(dense.beta_covariance(design, at)) for at in (theta[:, 0], mode))
    np.testing.assert_array_less(np.abs(moved - after) / before, 3e-5)  # expected in place of observed information
    assert np.abs(after - before)[2] / before[2] > 10 * 3e-5  # that within donors


def test_many_cells_make_it_idle():
    rng = np.random.default_rng(2)
    donor = np.repeat(np.arange(6), 2000)
    obs = pd.DataFrame({"donor": donor.astype(str), "x": rng.normal(size=donor.size)})
    sd = np.sqrt(5 / rng.chisquare(5, size=10))
    result = fit((sd * rng.normal(size=(donor.size, 10)), obs), "~ x + (1 | donor)", progress=False)
    plain, found = (result.test("x", moderate=moderate) for moderate in (False, True))
    np.testing.assert_allclose(found["p_value"], plain["p_value"], rtol=0.01)


@pytest.mark.filterwarnings("ignore:.* did not converge:UserWarning")
def test_unavailable_moderated_tests(result):
    with pytest.raises(ValueError, match="moderate=True: a joint F test with df='satterthwaite' has no moderated form"):
        result.test(["arm[T.v]", "half[T.t]"], df="satterthwaite", joint=True, moderate=True)
    rows, columns = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([0, 1, 1, 2, 2, 3, 3, 0])
    Z = np.hstack([dense.one_hot(rows, 4), dense.one_hot(columns, 4), dense.one_hot(np.arange(8) % 3 % 2, 2)])
    Y = np.random.default_rng(0).normal(size=(3, 8))
    full = lmm(sslmm(np.ones((8, 1)), Y, Z, d=[4, 4, 2]), bounds="nonnegative")
    assert full.model.likelihood.rank == 7
    with pytest.raises(ValueError, match="needs residual degrees of freedom"):
        full.test(moderate=True)
