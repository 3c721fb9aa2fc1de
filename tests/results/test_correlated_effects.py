"""Correlated random effects from a formula to tables: lme4, lmerTest and pbkrtest (see make_correlated_reference.R)."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from paths import REFERENCE, ROOT
from scipy.stats import chi2

import lmm_gpu
from lmm_gpu.design import build_design
from lmm_gpu.estimation.covariance_terms import terms_of

CASES = ["reml", "ml", "three", "crossed", "factor", "cellmeans", "singular", "nested"]
#: lme4's optimiser stops this short of the optimum, relative.
LME4 = 2e-6
SLEEPSTUDY = ROOT.parent / "shared" / "data" / "classics" / "sleepstudy.csv"


class Case:
    """One reference case: lme4's answers, and the fit of its formula."""

    def __init__(self, name, bounds="nonnegative"):
        with np.load(REFERENCE / f"correlated_{name}.npz") as stored:
            self.r = dict(stored)
        obs = self.obs = pd.read_csv(REFERENCE / f"correlated_{name}.metadata.csv", index_col=0)
        self.method = "ML" if name == "ml" else "REML"
        formula = json.loads(str(self.r["case"]))["formula"]
        data = self.r["Y"].T, obs
        self.fit = lmm_gpu.fit(data, formula, method=self.method, bounds=bounds, progress=False)
        self.interior = self.r["lmer_singular"][0] == 0
        half = 0.5 * np.linalg.slogdet(self.fit.summary.XX)[1] if self.method == "REML" else 0.0
        self.logLik = self.fit.logLik.to_numpy() - half

    def theta(self):
        """Theta in lme4's order: its nested terms come the finer one first."""
        theta = self.fit.theta.to_numpy()
        return (
            theta
            if len(theta) != 7 or "part:donor" not in str(self.r["lmer_theta.names0"])
            else theta[[3, 4, 5, 0, 1, 2, 6]]
        )


@pytest.fixture(params=CASES, scope="module", name="case")
def _case(request):
    return Case(request.param)


def test_criterion_is_never_above_lme4s(case):
    assert (case.logLik >= case.r["lmer_logLik"][0] - 5e-7).all()


def test_interior_fits_are_lme4s(case):
    some = case.interior
    assert set(case.fit.status[some]) <= {"converged", "converged_at_rounding"}
    np.testing.assert_allclose(case.theta()[:, some], case.r["lmer_theta"][:, some], rtol=LME4, atol=LME4)
    np.testing.assert_allclose(case.fit.coef.to_numpy()[:, some], case.r["lmer_coef"][:, some], rtol=LME4, atol=LME4)
    np.testing.assert_allclose(case.fit.se.to_numpy()[:, some], case.r["lmer_se"][:, some], rtol=LME4)
    np.testing.assert_allclose(case.logLik[some], case.r["lmer_logLik"][0, some], atol=1e-7)


def test_singular_fits_are_on_the_boundary_with_positive_semidefinite_matrices(case):
    """Where lme4 finds no better optimum, its estimates; all its singular genes are singular here."""
    status = case.fit.status.to_numpy()
    assert (status[~case.interior] == "boundary").all()
    same = np.abs(case.logLik - case.r["lmer_logLik"][0]) < 1e-8
    np.testing.assert_allclose(case.theta()[:, same], case.r["lmer_theta"][:, same], rtol=1e-4, atol=1e-5)
    summary, theta, row = case.fit.summary, case.fit.theta.to_numpy(), 0
    for size in summary.term_sizes:
        sigma = np.zeros((summary.m, size, size))
        for a, b in [(a, a) for a in range(size)] + [(i, j) for j in range(size) for i in range(j)]:
            sigma[:, a, b] = sigma[:, b, a] = theta[row]
            row += 1
        assert (np.linalg.eigvalsh(sigma)[:, 0] > -1e-12 * theta[-1]).all()


@pytest.mark.parametrize("df, se, wanted", [("lmertest", "se", "df"), ("kenward-roger", "kr_se", "kr_df")])
def test_df_are_lmertests_and_pbkrtests(case, df, se, wanted):
    if np.isnan(case.r[f"lmer_{wanted}"]).any() or not case.interior.any():
        pytest.skip("no reference")
    found, some = case.fit.contrast_test(np.eye(len(case.fit.coef)), df), case.interior
    np.testing.assert_allclose(found.se[:, some], case.r[f"lmer_{se}"][:, some], rtol=LME4)
    np.testing.assert_allclose(found.df[:, some], case.r[f"lmer_{wanted}"][:, some], rtol=1e-5)


@pytest.mark.parametrize("df", ["satterthwaite", "lmertest"])
def test_singular_covariance_matrices_have_between_within_df(case, df):
    """A singular matrix may have positive variances; its information is not that of an interior optimum."""
    singular = ~case.interior
    if not singular.any():
        pytest.skip("all covariance matrices are regular")
    C = np.eye(len(case.fit.coef))
    within = case.fit.contrast_test(C, "between-within").df
    found = case.fit.contrast_test(C, df).df
    np.testing.assert_array_equal(found[:, singular], np.broadcast_to(within, found.shape)[:, singular])
    joint, wanted = (case.fit.f_test(C, method).df for method in (df, "between-within"))
    np.testing.assert_array_equal(joint[singular], wanted[singular])


def test_blups_are_lme4s(case):
    found, some = case.fit.RE.to_numpy(), case.interior
    wanted = case.r["lmer_ranef"]
    np.testing.assert_allclose(np.sort(found[:, some], axis=0), np.sort(wanted[:, some], axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["reml", "ml", "crossed"])
def test_interior_optima_do_not_depend_on_bounds(name):
    free, held = Case(name, "auto"), Case(name)
    np.testing.assert_allclose(free.theta(), held.theta(), rtol=1e-6, atol=1e-7)


def test_unbounded_fits_reach_at_least_as_high(case):
    free = Case("factor", "auto"), Case("factor")
    assert (free[0].logLik >= free[1].logLik - 1e-8).all()


def test_default_test_is_kenward_rogers_and_says_so(case, caplog):
    """After ML Satterthwaite's; a log line says it."""
    method = "kenward-roger" if case.method == "REML" else "satterthwaite"
    contrast = case.fit.summary.fixed_names[1]
    pd.testing.assert_frame_equal(case.fit.test(contrast), case.fit.test(contrast, df=method))
    assert f"(df='{method}') for this model" in caplog.text


@pytest.mark.skipif(not SLEEPSTUDY.exists(), reason=f"{SLEEPSTUDY} is not here")
def test_sleepstudy():
    with np.load(REFERENCE / "sleepstudy_correlated.npz") as stored:
        r = dict(stored)
    data = pd.read_csv(SLEEPSTUDY)
    obs = data[["Days", "Subject"]].assign(Subject=data.Subject.astype(str))
    Y = data[["Reaction"]].to_numpy(float)
    for method, theta, logLik in (("REML", "theta", "logLik"), ("ML", "ml_theta", "ml_logLik")):
        fit = lmm_gpu.fit((Y, obs), "~ Days + (Days | Subject)", method=method, progress=False)
        half = 0.5 * np.linalg.slogdet(fit.summary.XX)[1] if method == "REML" else 0.0
        np.testing.assert_allclose(fit.theta.iloc[:, 0], r[theta], rtol=1e-5)
        np.testing.assert_allclose(fit.logLik.iloc[0] - half, r[logLik][0], atol=1e-7)
        if method == "REML":
            np.testing.assert_allclose(fit.coef.iloc[:, 0], r["coef"], rtol=1e-8)
            np.testing.assert_allclose(fit.RE.to_numpy()[:, 0], r["ranef"].T.ravel(), rtol=1e-4, atol=1e-5)
            tested = fit.contrast_test(np.eye(2), "kenward-roger")
            np.testing.assert_allclose(tested.se[:, 0], r["kr_se"], rtol=1e-6)
            np.testing.assert_allclose(tested.df[:, 0], r["kr_df"], rtol=1e-5)
            assert fit.summary.variance_names == ("Subject", "Subject.Days", "Subject.cov(Intercept,Days)", "residual")


def test_fits_and_statistics_with_correlated_terms_survive_their_files(case, tmp_path):
    case.fit.save(tmp_path / "fit.h5")
    again = lmm_gpu.LMMFit.load(tmp_path / "fit.h5")
    pd.testing.assert_frame_equal(again.theta, case.fit.theta)
    pd.testing.assert_frame_equal(again.RE, case.fit.RE)
    assert again.summary.random_terms == case.fit.summary.random_terms


def test_statistics_of_two_sites_add_up_to_those_of_all_cells():
    with np.load(REFERENCE / "correlated_reml.npz") as stored:
        Y = stored["Y"].T
    obs = pd.read_csv(REFERENCE / "correlated_reml.metadata.csv", index_col=0)
    here = np.isin(obs["donor"], [f"D{i}" for i in range(1, 9)])
    formula = "~ trt + x + (x | donor)"
    sites = [lmm_gpu.summarize((Y[some], obs[some]), formula, progress=False) for some in (here, ~here)]
    both = lmm_gpu.fit(sites[0] + sites[1], progress=False)
    whole = lmm_gpu.fit((Y, obs), formula, progress=False)
    np.testing.assert_allclose(both.theta, whole.theta, rtol=1e-8)


def test_conditional_sd_of_blups_are_dense(case):
    """The covariance of u given y, theta and beta, with n x n matrices."""
    fit = case.fit
    X, Z = fit_design(case)
    gene = int(np.flatnonzero(case.interior)[0]) if case.interior.any() else 0
    theta, D, at = fit.theta.to_numpy()[:, gene], np.zeros((Z.shape[1],) * 2), 0
    for term in terms_of(fit.summary.d, fit.summary.term_sizes):
        for a, b in term.pairs:
            for i, j in {(a, b), (b, a)}:
                D[np.arange(*term.rows(i)), np.arange(*term.rows(j))] = theta[at]
            at += 1
    V = theta[-1] * np.eye(len(X)) + Z @ D @ Z.T
    wanted = np.sqrt(np.maximum(np.diag(D - D @ Z.T @ np.linalg.solve(V, Z @ D)), 0.0))
    found = fit.ranef().query("variable == @fit.summary.features[@gene]")["sd"].fillna(0.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def fit_design(case):
    design = build_design(case.fit.summary.formula, case.obs)
    return design.X, design.Z.toarray()


def test_fractions_add_up_to_one_and_count_covariances(case):
    shares = case.fit.variance_fractions()
    np.testing.assert_allclose(shares.sum(), 1.0, rtol=1e-10)
    assert tuple(shares.index) == case.fit.summary.variance_names


def test_variances_of_a_gene_have_correlations(case):
    table = case.fit.variances("Gene1").set_index("component")
    covariances = [name for name in table.index if ".cov(" in name]
    assert table.loc[covariances, "sd"].isna().all()
    correlation = table.loc[covariances, "correlation"]
    assert (correlation.isna() | (correlation.abs() <= 1 + 1e-6)).all()


def test_a_slope_is_tested_with_its_covariance():
    """ranova: the likelihood ratio of (x | donor) against (1 | donor), on a mixture of one and two df."""
    case = Case("reml")
    without = lmm_gpu.fit((case.r["Y"].T, case.obs), "~ trt + x + (1 | donor)", bounds="nonnegative", progress=False)
    ratio = 2 * (case.fit.logLik - without.logLik).to_numpy()
    table = case.fit.variance_test("donor.x")
    np.testing.assert_allclose(table["statistic"], ratio, rtol=1e-6)
    np.testing.assert_allclose(table["p_value"], 0.5 * (chi2.sf(ratio, 1) + chi2.sf(ratio, 2)), rtol=1e-6)
    intervals = case.fit.variance_intervals()
    assert (intervals["ci_low"] < intervals["ci_high"]).all()
