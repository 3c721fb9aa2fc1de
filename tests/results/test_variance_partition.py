"""Variance partition against dense computations with the definition of variancePartition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lmm_gpu

N, M = 240, 5
RNG = np.random.default_rng(11)
DONOR, BATCH = RNG.integers(0, 12, N), RNG.integers(0, 4, N)
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "batch": [f"b{b}" for b in BATCH],
        "arm": np.where(DONOR < 5, "ctrl", "stim"),
        "state": RNG.choice(list("xyz"), N),
        "age": 1000 + RNG.normal(size=N),
    }
)
Y = RNG.normal(size=(N, M)) + RNG.normal(size=(12, M))[DONOR] + RNG.normal(size=(4, M))[BATCH] * np.linspace(0, 1, M)
Y = Y + np.outer(OBS["state"] == "y", np.linspace(0, 2, M)) + 0.3 * (OBS["age"].to_numpy() - 1000)[:, None] + 5
Y[:, 0] = RNG.normal(size=N)
Y[:, 0] -= (np.bincount(BATCH, Y[:, 0]) / np.bincount(BATCH))[BATCH]  # batches differ less than by chance


def dense(fit):
    """Fractions from the columns of X and the n fitted values of each term."""
    columns = {
        "arm": [OBS["arm"] == "stim"],
        "state": [OBS["state"] == "y", OBS["state"] == "z"],
        "age": [OBS["age"]],
    }
    names = {"arm": ["arm[T.stim]"], "state": ["state[T.y]", "state[T.z]"], "age": ["age"]}
    fitted = {
        term: np.column_stack(columns[term]).astype(float) @ fit.coef.loc[names[term]].to_numpy() for term in columns
    }
    variances = pd.DataFrame({term: values.var(axis=0) for term, values in fitted.items()})
    total = sum(fitted.values()).var(axis=0)
    parts = variances.mul(total / variances.sum(axis=1).to_numpy(), axis=0)
    for name, row in zip(fit.summary.variance_names, fit.theta.to_numpy(), strict=True):
        parts[name] = row
    return parts.div(parts.sum(axis=1), axis=0).set_axis(list(fit.summary.features))


@pytest.mark.parametrize("fixed", ["arm + state + age", "state + arm + age"])
def test_fractions_equal_dense_computation(fixed):
    fit = lmm_gpu.fit((Y, OBS), f"~ {fixed} + (1 | donor) + (1 | batch)", bounds="nonnegative", progress=False)
    found = fit.variance_partition()
    wanted = dense(fit)
    pd.testing.assert_frame_equal(found[wanted.columns], wanted, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_genes_with_negative_variances_are_refitted():
    alike = Y - 0.9 * (np.vstack([np.bincount(DONOR, y) for y in Y.T]) / np.bincount(DONOR)).T[DONOR]
    auto = lmm_gpu.fit((alike, OBS), "~ state + (1 | donor)", progress=False)
    assert (auto.theta < 0).any(axis=None)
    bounded = lmm_gpu.fit((alike, OBS), "~ state + (1 | donor)", bounds="nonnegative", progress=False)
    pd.testing.assert_frame_equal(auto.variance_partition(), bounded.variance_partition(), rtol=1e-6, atol=1e-9)
    assert (auto.variance_partition() >= 0).all(axis=None)


def test_coding_of_a_factor_does_not_matter():
    one = lmm_gpu.fit((Y, OBS), "~ state + (1 | donor)", bounds="nonnegative", progress=False)
    other = lmm_gpu.fit((Y, OBS), "~ C(state, contr.sum) + (1 | donor)", bounds="nonnegative", progress=False)
    np.testing.assert_allclose(one.variance_partition(), other.variance_partition(), rtol=1e-6, atol=1e-9)


def test_random_intercepts_alone_give_the_fractions_of_the_components():
    fit = lmm_gpu.fit((Y, OBS), "~ 1 + (1 | donor) + (1 | batch)", bounds="nonnegative", progress=False)
    pd.testing.assert_frame_equal(fit.variance_partition(), fit.variance_fractions().T, check_names=False)


def test_gene_without_estimate_is_nan():
    constant = Y.copy()
    constant[:, 2] = 0
    with pytest.warns(UserWarning):
        fit = lmm_gpu.fit((constant, OBS), "~ arm + (1 | donor)", progress=False)
    assert fit.variance_partition().isna().any(axis=1).tolist() == [False, False, True, False, False]


def test_missing_column_means_are_refused():
    x = RNG.normal(size=(N, 1))
    fit = lmm_gpu.lmm(lmm_gpu.sslmm(x, Y.T, RNG.normal(size=(N, 3))), d=3)
    with pytest.raises(ValueError, match="needs the column means of X"):
        fit.variance_partition()


def test_fractions_equal_those_of_variance_partition_in_r():
    """fitExtractVarPartModel(~ (1 | time) + (1 | donor)) on voom weights: by ML, of 25 genes of a shock study."""
    with np.load(Path(__file__).with_name("variance_partition.npz")) as file:
        obs = pd.DataFrame({"donor": file["donor"], "time": file["time"]})
        values, weights, wanted = file["voom_E"].T, file["voom_weights"].T, file["varpart"]
    options = {"bounds": "nonnegative", "method": "ML", "is_counts": False, "progress": False}
    fit = lmm_gpu.fit((values, obs), "~ 1 + (1 | time) + (1 | donor)", weights=weights, **options)
    found = fit.variance_partition()[["donor", "time", "residual"]].to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # lme4's tolerance
    assert np.median(np.abs(found - wanted)) < 1e-6


def test_scale_of_the_weights_does_not_matter():
    weights = RNG.uniform(0.5, 2.0, N)
    one, ten = (
        lmm_gpu.fit((Y, OBS), "~ state + (1 | donor)", weights=c * weights, bounds="nonnegative", progress=False)
        for c in (1.0, 10.0)
    )
    pd.testing.assert_frame_equal(one.variance_partition(), ten.variance_partition(), rtol=1e-5, atol=1e-8)
