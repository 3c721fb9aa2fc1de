"""Fits with a weight per gene and observation: lme4's with weights, and the fit of scaled rows."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from paths import REFERENCE

import lmm_gpu
from lmm_gpu.design import build_design
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.gene_weights import weighted_statistics

LME4 = 2e-6


def load(name):
    with np.load(REFERENCE / f"{name}.npz") as stored:
        return dict(stored)


def fitted(Y, W, obs, formula, **options):
    names = tuple(f"g{i}" for i in range(Y.shape[1]))
    summary = weighted_statistics(build_design(formula, obs), Y, W, names)
    return fit_summary(summary, FitOptions(**options))


def logLik(fit):
    """Lme4's REML value."""
    return fit.logLik.to_numpy() - 0.5 * np.linalg.slogdet(fit.summary.XX)[1]


@pytest.mark.parametrize("name", ["weighted_cells", "weighted_correlated"])
@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_equal_weights_of_all_genes_are_lme4s(name, bounds):
    r = load(name)
    obs = pd.read_csv(REFERENCE / f"{name}.metadata.csv", index_col=0)
    W = np.repeat(r["weights"][:, None], len(r["Y"]), axis=1)
    fit = fitted(r["Y"].T, W, obs, json.loads(str(r["case"]))["formula"], bounds=bounds)
    np.testing.assert_allclose(fit.theta, r["lmer_theta"], rtol=LME4, atol=LME4)
    np.testing.assert_allclose(fit.coef, r["lmer_coef"], rtol=LME4, atol=LME4)
    np.testing.assert_allclose(fit.se, r["lmer_se"], rtol=LME4)
    np.testing.assert_allclose(logLik(fit), r["lmer_logLik"][0], atol=1e-7)
    found = fit.contrast_test(np.eye(3), "lmertest")
    np.testing.assert_allclose(found.df, r["lmer_df"], rtol=1e-5)


@pytest.fixture(scope="module", name="shock")
def _shock():
    r, w = load("dream_shock"), load("dream_shock_weighted")
    obs = pd.read_csv(REFERENCE / "dream_shock.metadata.csv", index_col=0)
    fit = fitted(r["voom_E"].T, r["voom_weights"].T, obs, "~ time + (1 | donor)", bounds="nonnegative")
    return fit, r, w, obs


def test_weights_of_each_gene_are_lme4s(shock):
    fit, _, w, _ = shock
    some = fit.status.to_numpy()[:24] != "boundary"
    assert some.sum() > 20
    np.testing.assert_allclose(fit.theta.to_numpy()[:, :24][:, some], w["lmer_theta"][:, some], rtol=1e-5, atol=LME4)
    np.testing.assert_allclose(fit.coef.to_numpy()[:, :24][:, some], w["lmer_coef"][:, some], rtol=1e-7)
    np.testing.assert_allclose(fit.se.to_numpy()[:, :24][:, some], w["lmer_se"][:, some], rtol=1e-6)
    np.testing.assert_allclose(logLik(fit)[:24], w["lmer_logLik"][0], atol=1e-7)
    for df, se, wanted in (("lmertest", "lmer_se", "lmer_df"), ("kenward-roger", "lmer_kr_se", "lmer_kr_df")):
        found = fit.contrast_test(np.eye(3), df)
        np.testing.assert_allclose(found.se[:, :24][:, some], w[se][:, some], rtol=1e-6)
        np.testing.assert_allclose(found.df[:, :24][:, some], w[wanted][:, some], rtol=1e-5)


def test_residual_df_are_dreams(shock):
    fit, r, _, _ = shock
    model, theta = fit.model.with_genes(fit.summary), fit.theta.to_numpy()
    found = model.likelihood.residual_traces(theta)
    np.testing.assert_allclose(found, r["rdf"], rtol=1e-5)


def test_moderated_tests_are_dreams(shock):
    """Where lme4's fit is interior; its default optimiser stops at about 1e-5 of the standard errors."""
    fit, r, _, _ = shock
    some = fit.status.to_numpy() != "boundary"
    for i, contrast in enumerate(fit.summary.fixed_names):
        table = fit.test(contrast, df="lmertest", moderate=True)
        np.testing.assert_allclose(table["statistic"][some], r["eb_t"][some, i], rtol=1e-4)
        np.testing.assert_allclose(table["df"][some], r["eb_df_total"][some, i], rtol=1e-4)
        shown = some & (r["eb_p"][:, i] > 1e-8)
        np.testing.assert_allclose(table["p_value"][shown], r["eb_p"][shown, i], rtol=2e-3)


@pytest.mark.parametrize("random", ["(1 | donor)", "(dose | donor)", "(dose | donor) + (1 | batch)"])
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_each_gene_is_the_fit_of_its_scaled_rows(random, method):
    rng, n, m = np.random.default_rng(4), 60, 4
    obs = pd.DataFrame({"donor": rng.integers(0, 10, n).astype(str), "batch": rng.integers(0, 4, n).astype(str)})
    obs = obs.assign(time=rng.choice(["a", "b"], n), dose=rng.normal(size=n))
    W = rng.uniform(0.3, 3.0, size=(n, m))
    formula = f"~ time + {random}"
    design = build_design(formula, obs)
    Y = design.Z @ rng.normal(size=(design.q, m)) + rng.normal(size=(n, m)) / np.sqrt(W)
    options = {"method": method, "bounds": "nonnegative"}
    fit = fitted(Y, W, obs, formula, **options)
    C = np.eye(2)
    for gene in range(m):
        root = np.sqrt(W[:, [gene]])
        labels = {"d": design.d, "random_terms": design.random_terms}
        scaled = cross_products(root * design.X, root * design.Z.toarray(), root * Y[:, [gene]], **labels)
        one = fit_summary(scaled, FitOptions(**options))
        for name in ("theta", "coef", "se", "RE"):
            found, wanted = getattr(fit, name).iloc[:, gene], getattr(one, name).iloc[:, 0]
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        for df in ("satterthwaite", "lmertest", *(["kenward-roger"] if method == "REML" else [])):
            found, wanted = fit.contrast_test(C, df), one.contrast_test(C, df)
            np.testing.assert_allclose(found.se[:, gene], wanted.se[:, 0], rtol=1e-6)
        sd = fit.ranef().query("variable == @fit.summary.features[@gene]")["sd"]
        np.testing.assert_allclose(sd, one.ranef()["sd"], rtol=1e-4, atol=1e-6)
        joint, wanted = fit.f_test(C, "satterthwaite"), one.f_test(C, "satterthwaite")
        np.testing.assert_allclose(joint.statistic[gene], wanted.statistic[0], rtol=1e-5)


# --- from the Python API ---


def test_weights_of_a_layer_and_of_a_matrix_are_the_same(shock):
    fit, r, _, obs = shock
    v = anndata.AnnData(r["voom_E"].T, obs=obs, layers={"weights": r["voom_weights"].T})
    options = {"bounds": "nonnegative", "progress": False}
    layer = lmm_gpu.fit(v, "~ time + (1 | donor)", weights="weights", **options)
    matrix = lmm_gpu.fit((r["voom_E"].T, obs), "~ time + (1 | donor)", weights=r["voom_weights"].T, **options)
    np.testing.assert_allclose(layer.theta, fit.theta, rtol=1e-12)
    np.testing.assert_allclose(matrix.theta, fit.theta, rtol=1e-12)
    some = lmm_gpu.fit(v, "~ time + (1 | donor)", weights="weights", cells="donor != 'E25'", **options)
    rest = (obs["donor"] != "E25").to_numpy()
    alone = lmm_gpu.fit(v[rest].copy(), "~ time + (1 | donor)", weights="weights", **options)
    np.testing.assert_allclose(some.theta, alone.theta, rtol=1e-12)


def test_weights_that_all_genes_share_are_lme4s():
    """One weight per cell, through the sums of the streaming path."""
    for name in ("weighted_cells", "weighted_correlated"):
        r = load(name)
        obs = pd.read_csv(REFERENCE / f"{name}.metadata.csv", index_col=0).assign(w=r["weights"])
        formula = json.loads(str(r["case"]))["formula"]
        for weights in ("w", r["weights"]):
            fit = lmm_gpu.fit((r["Y"].T, obs), formula, weights=weights, progress=False)
            np.testing.assert_allclose(fit.theta, r["lmer_theta"], rtol=LME4, atol=LME4)
            np.testing.assert_allclose(fit.se, r["lmer_se"], rtol=LME4)
            np.testing.assert_allclose(logLik(fit), r["lmer_logLik"][0], atol=1e-7)


def test_equal_weights_of_each_gene_are_tested_as_shared_ones():
    """Also where the weights of genes differ by factors.

    Not lmerTest's F test: its directions are principal in the metric of X'X, here without weights.
    """
    rng, n, m = np.random.default_rng(2), 36, 6
    obs = pd.DataFrame({"donor": rng.permutation(np.repeat(list("abcdefghi"), 4)), "w": rng.uniform(0.3, 3.0, n)})
    obs = obs.assign(arm=np.where(obs["donor"] < "e", "u", "v"), dose=rng.choice(list("xyz"), n))
    Y = rng.normal(size=(9, m))[obs["donor"].map("abcdefghi".index)] + rng.normal(size=(n, m))
    formula, W = "~ arm + dose + (1 | donor)", np.repeat(obs[["w"]].to_numpy() / obs["w"].mean(), m, axis=1)
    shared = lmm_gpu.fit((Y, obs), formula, weights=W[:, 0], progress=False)
    for factor in (1.0, np.arange(1.0, m + 1)):
        own = lmm_gpu.fit((Y, obs), formula, weights=W * factor, progress=False)
        for df in ("generalized", "satterthwaite", "kenward-roger"):
            for options in ({}, {"joint": True}, {"moderate": True}):
                if options.get("moderate") and df != "generalized":
                    continue
                found, wanted = (fit.test(["arm[T.v]", "dose[T.y]"], df=df, **options) for fit in (own, shared))
                np.testing.assert_allclose(found["p_value"], wanted["p_value"], rtol=1e-5)


def test_a_filter_with_weights_per_gene_is_refused(shock):
    _, r, _, obs = shock
    with pytest.raises(ValueError, match="not available with a weight per gene"):
        lmm_gpu.fit((r["voom_E"].T, obs), "~ time + (1 | donor)", weights=r["voom_weights"].T, min_cells=3)


def test_weights_are_kept_in_files(shock, tmp_path):
    fit = shock[0]
    fit.save(tmp_path / "fit.h5")
    again = lmm_gpu.LMMFit.load(tmp_path / "fit.h5")
    pd.testing.assert_series_equal(again.logLik, fit.logLik)
    some = {"df": "lmertest", "moderate": True}
    pd.testing.assert_frame_equal(again.test("Intercept", **some), fit.test("Intercept", **some))
    fit.summary.save(tmp_path / "sums.h5")
    refitted = lmm_gpu.fit(tmp_path / "sums.h5", bounds="nonnegative", progress=False)
    pd.testing.assert_frame_equal(refitted.theta, fit.theta)
    with pytest.raises(ValueError, match="weights per gene"):
        lmm_gpu.SummaryStats.load(tmp_path / "sums.h5")


@pytest.fixture(scope="module", name="lacking")
def _lacking():
    """Four genes: all observations, some dropped, a donor dropped, and a level of the treatment dropped."""
    rng = np.random.default_rng(8)
    obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(8)], 6), "arm": np.tile(["a", "b", "c"], 16)})
    donor, arm = (pd.factorize(obs[name])[0] for name in obs)
    Y = rng.normal(size=(48, 4)) + rng.normal(size=(8, 4))[donor] + 0.3 * arm[:, None]
    W = rng.uniform(0.5, 2.0, size=(48, 4))
    W[[3, 17, 40], 1] = 0.0
    W[donor == 2, 2] = 0.0
    W[arm == 1, 3] = 0.0
    return Y, W, obs


@pytest.mark.parametrize("formula", ["~ arm + (1 | donor)", "~ arm + (arm | donor)"])
@pytest.mark.parametrize("reml", ["REML", "ML"])
def test_weights_of_zero_leave_observations_out(lacking, formula, reml):
    Y, W, obs = lacking
    fit = fitted(Y, W, obs, formula, method=reml)
    C = np.array([[0.0, 1.0, 0.0]])
    for gene in range(3):
        used = W[:, gene] > 0
        alone = fitted(Y[used][:, [gene]], W[used][:, [gene]], obs[used].reset_index(drop=True), formula, method=reml)
        shift = 0.5 * np.linalg.slogdet(fit.summary.XX)[1] - 0.5 * np.linalg.slogdet(alone.summary.XX)[1]
        wanted = alone.logLik.iloc[0] + shift * (reml == "REML")
        np.testing.assert_allclose(fit.logLik.iloc[gene], wanted, rtol=1e-9)
        for name in ("theta", "coef", "se", "se_theta", "niter"):
            found = np.asarray(getattr(fit, name))[..., gene]
            np.testing.assert_allclose(found, np.asarray(getattr(alone, name))[..., 0], rtol=1e-7, err_msg=name)
        for df in ("residual", "kenward-roger")[: 2 if reml == "REML" else 1]:
            found, wanted = fit.contrast_test(C, df), alone.contrast_test(C, df)
            shape = found.se.shape
            np.testing.assert_allclose(np.broadcast_to(found.df, shape)[:, gene], wanted.df[:, 0], rtol=1e-6)
            np.testing.assert_allclose(found.se[:, gene], wanted.se[:, 0], rtol=1e-7)
        capped = fit.contrast_test(C, "between-within").df[0, gene]
        assert 1 <= capped <= alone.contrast_test(C, "between-within").df[0, 0]
        np.testing.assert_allclose(fit.test("arm[T.b]")["mean_expr"][gene], Y[used, gene].mean(), rtol=1e-12)


def test_a_gene_that_lacks_a_level_of_the_treatment_has_no_estimate(lacking):
    Y, W, obs = lacking
    fit = fitted(Y, W, obs, "~ arm + (1 | donor)")
    assert fit.status.tolist()[3] == "no_variance"
    assert np.isnan(fit.coef.to_numpy()[:, 3]).all()


def test_a_gene_without_observations_has_no_estimate(lacking):
    Y, W, obs = lacking
    W = W * (np.arange(4) != 1)
    fit = fitted(Y, W, obs, "~ arm + (1 | donor)")
    assert fit.status.tolist()[:2] == ["converged", "no_variance"]


def test_a_start_without_random_effects_does_not_stay_at_a_local_maximum():
    """Without random effects the score is negative for all three variances of gene 18, and lme4's optimum is better."""
    r, obs = load("dream_batches"), pd.read_csv(REFERENCE / "dream_batches.metadata.csv", index_col=0)
    formula, options = "~ age + (1 | arm) + (1 | donor) + (1 | batch)", {"method": "ML", "bounds": "nonnegative"}
    fit = fitted(r["E"].T, r["weights"].T, obs, formula, **options)
    inside = fitted(r["E"].T, r["weights"].T, obs, formula, **options, theta0=[0.1, 0.1, 0.1, 0.5])
    assert (fit.logLik > inside.logLik - 1e-6).all()
    np.testing.assert_allclose(fit.logLik.iloc[18], -23.54753630, atol=1e-6)  # lme4's
    np.testing.assert_allclose(fit.theta.iloc[:, 18], [0, 0.18431, 0.03955, 0.68775], atol=1e-5)
