"""Fitted values, residuals of cells and standardized random effects against dense algebra."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import lmm_gpu

G, N, M = 10, 200, 4
RNG = np.random.default_rng(8)
DONOR, BATCH = RNG.integers(0, G, N), RNG.integers(0, 3, N)
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "batch": [f"b{b}" for b in BATCH],
        "arm": np.where(DONOR < 5, "a", "b"),
        "x": RNG.normal(size=N),
        "w": RNG.uniform(0.5, 2, N),
    },
    index=[f"cell{i}" for i in range(N)],
)
COUNTS = RNG.poisson(np.exp(RNG.normal(1, 0.5, (G, M)))[DONOR]).astype(float)
NAMES = ["A", "B", "ISG15", "NA"]
FORMULA = "~ arm + x + (1 | donor) + (x || batch)"


def dense(formula=FORMULA, weights=None):
    """The model of log2(1 + y) with explicit X, Z and V: X beta, Z u and the variances of u (N or q, M)."""
    fit = lmm_gpu.fit((COUNTS, OBS), formula, features=NAMES, bounds="nonnegative", progress=False, weights=weights)
    X = np.column_stack([np.ones(N), OBS["arm"] == "b", OBS["x"]]).astype(float)
    Z = [np.eye(G)[DONOR], np.eye(3)[BATCH], np.eye(3)[BATCH] * OBS["x"].to_numpy()[:, None]]
    theta, y = fit.theta.to_numpy(), np.log2(1 + COUNTS)
    fixed, random, standardized = [], [], []
    for gene in range(M):
        w = np.ones(N) if weights is None else OBS["w"].to_numpy()
        V = sum(s * z @ z.T for s, z in zip(theta[:-1, gene], Z, strict=True)) + theta[-1, gene] * np.diag(1 / w)
        inverse = np.linalg.inv(V)
        beta = np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ y[:, gene])
        rest = inverse @ (y[:, gene] - X @ beta)
        u = [s * z.T @ rest for s, z in zip(theta[:-1, gene], Z, strict=True)]
        spread = [s**2 * np.einsum("ij,ik,kj->j", z, inverse, z) for s, z in zip(theta[:-1, gene], Z, strict=True)]
        fixed.append(X @ beta)
        random.append(sum(z @ one for z, one in zip(Z, u, strict=True)))
        with np.errstate(invalid="ignore"):
            standardized.append(np.concatenate(u) / np.sqrt(np.concatenate(spread)))
    return fit, y, np.array(fixed).T, np.array(random).T, np.array(standardized).T


@pytest.fixture(scope="module")
def found():
    return dense()


def test_fitted_values_are_means_of_dense_ones(found):
    fit, y, fixed, random, _ = found
    table = fit.fitted("ISG15").set_index("level")
    assert table.index.tolist() == sorted(f"D{d}" for d in range(G))
    by = lambda values: pd.Series(values[:, 2]).groupby(OBS["donor"].to_numpy()).mean()  # noqa: E731
    np.testing.assert_allclose(table["mean"], by(y), rtol=1e-10)
    np.testing.assert_allclose(table["fixed"], by(fixed), rtol=1e-6)
    np.testing.assert_allclose(table["fitted"], by(fixed + random), rtol=1e-6)
    assert table["cells"].to_dict() == OBS["donor"].value_counts().to_dict()
    assert fit.fitted(2, "batch")["level"].tolist() == ["b0", "b1", "b2"]


@pytest.mark.parametrize("kind", ["array", "csr", "csc", "h5ad"])
def test_residuals_are_those_of_dense_algebra(found, kind, tmp_path):
    fit, y, fixed, random, _ = found
    matrix = {"csr": scipy.sparse.csr_array, "csc": scipy.sparse.csc_array}.get(kind, np.array)(COUNTS)
    data, options = (matrix, OBS), {"features": NAMES}
    if kind == "h5ad":
        anndata = pytest.importorskip("anndata", reason='.h5ad needs: pip install ".[io]"')
        anndata.AnnData(matrix, OBS, pd.DataFrame(index=NAMES)).write_h5ad(tmp_path / "cells.h5ad")
        data, options = tmp_path / "cells.h5ad", {}
    everything = lmm_gpu.residuals(fit, data, progress=False, memory="10kB" if kind == "h5ad" else None, **options)
    assert everything.index.tolist() == OBS.index.tolist() and everything.columns.tolist() == NAMES
    np.testing.assert_allclose(everything, y - fixed - random, rtol=1e-5, atol=1e-6)
    marginal = lmm_gpu.residuals(fit, data, ["NA", "B"], kind="marginal", progress=False, **options)
    np.testing.assert_allclose(marginal, (y - fixed)[:, [3, 1]], rtol=1e-5, atol=1e-6)
    scaled = lmm_gpu.residuals(fit, data, "B", standardized=True, progress=False, **options)
    np.testing.assert_allclose(scaled["B"], everything["B"] / np.sqrt(fit.theta.loc["var0", "B"]), rtol=1e-10)


def test_residuals_of_weighted_and_selected_cells():
    fit, y, fixed, random, _ = dense(weights="w")
    mine = lmm_gpu.residuals(fit, (COUNTS, OBS), features=NAMES, weights="w", standardized=True, progress=False)
    wanted = (y - fixed - random) * np.sqrt(OBS["w"].to_numpy())[:, None] / np.sqrt(fit.theta.to_numpy()[-1])
    np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6)
    some = lmm_gpu.fit((COUNTS, OBS), "~ x + (1 | donor)", cells="x > 0", transform="normalize", progress=False)
    assert len(lmm_gpu.residuals(some, (COUNTS, OBS), "Gene1", cells="x > 0", progress=False)) == (OBS["x"] > 0).sum()


def test_standardized_random_effects_have_unit_variance_under_the_model(found):
    fit, *_, standardized = found
    table = fit.ranef()
    for gene, name in enumerate(NAMES):
        mine = table.loc[table["variable"] == name, "standardized"]
        np.testing.assert_allclose(mine, standardized[:, gene], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit: fit.fitted("isg15"), "did you mean ISG15"),
        (lambda fit: fit.fitted(True), "gene=True"),
        (lambda fit: fit.fitted("A", "age"), "component='age'"),
        (lambda fit: lmm_gpu.residuals(fit, (COUNTS[:9], OBS[:9]), progress=False), "other cells|one level|column"),
        (lambda fit: lmm_gpu.residuals(fit, (COUNTS, OBS), "b", features=NAMES), "did you mean B"),
        (lambda fit: lmm_gpu.residuals(fit, (COUNTS, OBS), "A", progress=False), "the data have no gene A"),
        (lambda fit: lmm_gpu.residuals(fit, (COUNTS, OBS), kind="raw"), "kind='raw'"),
    ],
)
def test_what_cannot_be_predicted_is_refused(found, call, message):
    with pytest.raises(ValueError, match=message):
        call(found[0])
