"""Pseudobulk, TMM, voom and dream against edgeR, limma and variancePartition (see make_dream_reference.R)."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from paths import REFERENCE
from scipy import stats

import lmm_gpu
from lmm_gpu.bulk import dream, pseudobulk, tmm_factors, voom
from lmm_gpu.inference.empirical_bayes import fit_prior


@pytest.fixture(scope="module", name="r")
def _r():
    with np.load(REFERENCE / "dream_shock.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module", name="pb")
def _pb(r):
    obs = pd.read_csv(REFERENCE / "dream_shock.metadata.csv", index_col=0)
    return anndata.AnnData(r["counts"].T.astype(float), obs=obs)


# --- TMM ---


def test_tmm_is_edgers(r):
    np.testing.assert_allclose(tmm_factors(r["counts"].T), r["norm_factors"], rtol=1e-12)


def test_tmm_does_not_depend_on_the_depth_of_a_sample():
    counts = np.random.default_rng(1).poisson(50.0, size=(4, 200)) * np.array([[1], [1], [1], [1]])
    deeper = counts * np.array([[1], [10], [1], [3]])
    np.testing.assert_allclose(tmm_factors(counts[[0, 0, 0]]), 1.0)
    assert np.abs(np.log(tmm_factors(deeper))).max() < 0.1


@pytest.mark.parametrize("bad, message", [(-1.0, "1 of 6 counts are negative"), (np.nan, "1 of 6 counts")])
def test_counts_that_are_none_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        tmm_factors(np.array([[bad, 1, 2], [3, 4, 5.0]]))


def test_a_sample_without_counts_is_refused():
    with pytest.raises(ValueError, match="1 of 2 samples have no counts"):
        tmm_factors(np.array([[0, 0], [3, 4.0]]))


# --- voom ---


def test_voom_with_random_effects_is_dreams(pb, r):
    v = voom(pb, "~ time + (1 | donor)")
    np.testing.assert_allclose(v.X, r["voom_E"].T, rtol=1e-10)
    np.testing.assert_allclose(v.obs["effective_library_size"], r["lib_size"], rtol=1e-12)
    np.testing.assert_allclose(v.layers["weights"], r["voom_weights"].T, rtol=1e-6)
    for name in ("x", "y", "line_x", "line_y"):
        np.testing.assert_allclose(v.uns["voom"][name], r[f"voom_{name}"], rtol=1e-6)


def test_voom_without_random_effects_is_limmas_definition(pb):
    v = voom(pb, "~ time")
    counts, E = pb.X, v.X
    X = np.column_stack([np.ones(33), pb.obs["time"] == "T2", pb.obs["time"] == "T3"]).astype(float)
    fitted = X @ np.linalg.lstsq(X, E, rcond=None)[0]
    sigma = np.sqrt(((E - fitted) ** 2).sum(axis=0) / 30)
    size = v.obs["effective_library_size"].to_numpy()
    shift = np.log2(size + 1) - np.log2(1e6)
    np.testing.assert_allclose(v.uns["voom"]["x"], E.mean(axis=0) + shift.mean(), rtol=1e-12)
    np.testing.assert_allclose(v.uns["voom"]["y"], np.sqrt(sigma), rtol=1e-10)
    line = v.uns["voom"]["line_x"], v.uns["voom"]["line_y"]
    np.testing.assert_allclose(v.layers["weights"], np.interp(fitted + shift[:, None], *line) ** -4, rtol=1e-9)
    np.testing.assert_allclose(2**E, (counts + 0.5) / (size[:, None] + 1) * 1e6, rtol=1e-12)


@pytest.mark.parametrize("options, message", [({"normalize": "RLE"}, "TMM, none"), ({"span": 0.0}, "between 0 and 1")])
def test_options_that_are_unknown_are_refused(pb, options, message):
    with pytest.raises(ValueError, match=message):
        voom(pb, "~ time", **options)


# --- dream ---


def test_dream_is_variancepartitions(pb, r):
    table = dream(pb, "~ time + (1 | donor)", min_count=0)
    for i, (_, found) in enumerate(table.groupby("contrast", sort=False)):
        some = (found["status"] != "boundary").to_numpy()
        np.testing.assert_allclose(found["log_fc"], r["coef"][:, i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["statistic"][some], r["eb_t"][some, i], rtol=1e-4)
        np.testing.assert_allclose(found["df"][some], r["eb_df_total"][some, i], rtol=1e-4)


def test_dream_without_random_effects_is_limma(pb):
    """LmFit with weights gene by gene, and Smyth's (2004) formulas."""
    v = voom(pb, "~ time")
    X = np.column_stack([np.ones(33), pb.obs["time"] == "T2", pb.obs["time"] == "T3"]).astype(float)
    table = dream(pb, "~ time", min_count=0, contrast="time[T.T3]")
    coef, spread, s2 = [], [], []
    for gene in range(v.n_vars):
        root = np.sqrt(v.layers["weights"][:, gene])
        A, y = X * root[:, None], v.X[:, gene] * root
        beta, rss, *_ = np.linalg.lstsq(A, y, rcond=None)
        coef.append(beta[2])
        spread.append(np.linalg.inv(A.T @ A)[2, 2])
        s2.append(rss[0] / 30)
    prior = fit_prior(np.array(s2), 30.0)
    post = (prior.df * prior.variance + 30 * np.array(s2)) / (prior.df + 30)
    t = np.array(coef) / np.sqrt(np.array(spread) * post)
    np.testing.assert_allclose(table["log_fc"], coef, rtol=1e-9)
    np.testing.assert_allclose(table["statistic"], t, rtol=1e-9)
    np.testing.assert_allclose(table["df"], 30 + prior.df, rtol=1e-12)
    np.testing.assert_allclose(table["p_value"], 2 * stats.t.sf(np.abs(t), 30 + prior.df), rtol=1e-8)


def test_cell_types_are_fitted_one_by_one(pb, caplog):
    both = anndata.concat({"A": pb, "B": pb[:, :].copy(), "few": pb[:2]}, label="type", index_unique="-")
    table = dream(both, "~ time + (1 | donor)", by="type", contrast="time[T.T2]")
    assert list(table["type"].unique()) == ["A", "B"]
    assert "type = few is left out" in caplog.text
    alone = dream(pb, "~ time + (1 | donor)", contrast="time[T.T2]")
    np.testing.assert_allclose(table.query("type == 'B'")["p_value"], alone["p_value"], rtol=1e-8)
    with pytest.raises(ValueError, match="by='cluster' is not a column of obs"):
        dream(both, "~ time", by="cluster")


# --- pseudobulk ---


@pytest.fixture(name="cells")
def _cells():
    rng, n = np.random.default_rng(2), 300
    donor = rng.integers(0, 6, n)
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"D{i}" for i in donor], categories=[f"D{i}" for i in range(9)]),
            "age": donor * 10.0,
            "type": rng.choice(["B", "T"], n),
            "depth": rng.normal(size=n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    return anndata.AnnData(scipy.sparse.csr_array(rng.poisson(0.5, size=(n, 12)).astype(np.float32)), obs=obs)


def test_sums_are_those_of_the_groups(cells, tmp_path):
    found = pseudobulk(cells, ("donor", "type"), min_cells=1)
    X = cells.X.toarray()
    for row, (donor, kind) in enumerate(zip(found.obs["donor"], found.obs["type"], strict=True)):
        some = ((cells.obs["donor"] == donor) & (cells.obs["type"] == kind)).to_numpy()
        np.testing.assert_array_equal(found.X[row], X[some].sum(axis=0))
        assert found.obs["n_cells"].iloc[row] == some.sum()
        assert found.obs_names[row] == f"{donor}_{kind}"
    assert found.X.sum() == X.sum()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    streamed = pseudobulk(tmp_path / "cells.h5ad", ("donor", "type"), min_cells=1, memory="1MB")
    np.testing.assert_array_equal(streamed.X, found.X)
    pd.testing.assert_frame_equal(streamed.obs, found.obs, check_dtype=False, check_categorical=False)


def test_columns_that_are_constant_within_groups_stay(cells):
    found = pseudobulk(cells, "donor", min_cells=1)
    assert list(found.obs.columns) == ["donor", "n_cells", "age"]
    assert list(found.obs["donor"].cat.categories) == [f"D{i}" for i in range(6)]


def test_small_groups_and_missing_keys_are_left_out(cells, caplog):
    cells.obs.loc["c0", "type"] = np.nan
    counts = cells.obs.groupby(["donor", "type"], observed=True).size()
    least = int(counts.sort_values().iloc[2])
    found = pseudobulk(cells, ("donor", "type"), min_cells=least)
    assert found.n_obs == (counts >= least).sum()
    assert "1 of 300 cells have no value of donor, type" in caplog.text
    assert f"fewer than {least} cells" in caplog.text


def test_values_that_are_not_counts_are_refused(cells):
    cells.X = cells.X * np.float32(0.5)
    with pytest.raises(ValueError, match="not counts; layer= names the raw counts"):
        pseudobulk(cells, "donor")
    with pytest.raises(ValueError, match="by names 'sample'"):
        pseudobulk(cells, "sample")


def test_no_group_is_large_enough(cells):
    with pytest.raises(ValueError, match="min_cells=1000 cells; the largest has"):
        pseudobulk(cells, "donor", min_cells=1000)


def test_a_pair_of_counts_and_samples_is_the_same_as_an_anndata(pb, tmp_path):
    counts = pd.DataFrame(np.asarray(pb.X), index=pb.obs_names, columns=pb.var_names)
    expected = voom(pb, "~ 1").layers["weights"]
    pb.write_h5ad(tmp_path / "samples.h5ad")
    for same in ((counts, pb.obs), (counts.to_numpy(), pb.obs), tmp_path / "samples.h5ad"):
        np.testing.assert_allclose(voom(same, "~ 1").layers["weights"], expected, rtol=1e-11)


def test_counts_that_do_not_fit_their_samples_are_refused(pb):
    counts = pd.DataFrame(np.asarray(pb.X), index=pb.obs_names, columns=pb.var_names)
    with pytest.raises(ValueError, match="transpose them"):
        dream((counts.T, pb.obs), "~ 1")
    with pytest.raises(ValueError, match="in the same order"):
        dream((counts[::-1], pb.obs), "~ 1")
    with pytest.raises(ValueError, match="got DataFrame, expected counts of samples x genes"):
        voom(counts, "~ 1")
    with pytest.raises(ValueError, match=r"no such layer \(layers: "):
        dream(pb, "~ 1", layer="counts")


def test_logarithms_in_place_of_counts_are_noted(pb, caplog):
    voom(pb, "~ 1")
    assert "look like logarithms" not in caplog.text
    logs = anndata.AnnData(np.log2(1.0 + np.asarray(pb.X)), pb.obs)
    voom(logs, "~ 1")
    assert "voom expects counts, but the values look like logarithms" in caplog.text


# --- an unbalanced experiment with two random effects: see make_dream_batches_reference.R ---

BATCHES = "~ arm + age + (1 | donor) + (1 | batch)"


@pytest.fixture(scope="module", name="batches")
def _batches():
    with np.load(REFERENCE / "dream_batches.npz") as stored:
        r = dict(stored)
    obs = pd.read_csv(REFERENCE / "dream_batches.metadata.csv", index_col=0)
    return r, anndata.AnnData(r["counts"].T.astype(float), obs=obs)


def test_crossed_random_effects_are_dreams(batches):
    r, samples = batches
    np.testing.assert_allclose(tmm_factors(samples.X), r["norm_factors"], rtol=1e-10)
    v = voom(samples, BATCHES)
    np.testing.assert_allclose(v.X, r["E"].T, rtol=1e-10)
    np.testing.assert_allclose(v.layers["weights"], r["weights"].T, rtol=1e-4)
    v.layers["weights"] = r["weights"].T
    fit = lmm_gpu.fit(v, BATCHES, weights="weights", bounds="nonnegative", progress=False)
    interior = (fit.status != "boundary").to_numpy()
    assert interior.sum() > 90
    for i, (_, table) in enumerate(fit.test(df="lmertest").groupby("contrast", sort=False)):
        np.testing.assert_allclose(table["log_fc"], r["coef"][:, i], rtol=1e-4, atol=1e-4)  # of lme4's optimizer
        np.testing.assert_allclose(table["se"], r["se"][:, i], rtol=1e-4)
        np.testing.assert_allclose(table["df"][interior], r["df"][interior, i], rtol=1e-3)


def test_the_same_samples_without_random_effects_are_limmas(batches):
    r, samples = batches
    np.testing.assert_allclose(voom(samples, "~ arm + age").layers["weights"], r["limma_weights"].T, rtol=1e-8)
    for i, (_, table) in enumerate(dream(samples, "~ arm + age", min_count=0).groupby("contrast", sort=False)):
        np.testing.assert_allclose(table["statistic"], r["limma_t"][:, i], rtol=1e-6)
        np.testing.assert_allclose(table["p_value"], r["limma_p"][:, i], rtol=1e-6)


def test_fractions_of_crossed_effects_are_variancepartitions(batches):
    r, samples = batches
    v = voom(samples, BATCHES)
    formula = "~ age + (1 | arm) + (1 | donor) + (1 | batch)"
    fit = lmm_gpu.fit(v, formula, weights="weights", method="ML", bounds="nonnegative", progress=False)
    found = fit.variance_partition()[["arm", "batch", "donor", "age", "residual"]]
    off = np.abs(found.to_numpy() - r["varpart"]).max(axis=1)
    assert np.sort(off)[-2] < 2e-4  # lme4 ends at 2e-3 above zero in one gene


# --- samples and genes that say little ---


@pytest.mark.parametrize("formula", [BATCHES, "~ arm + age"])
def test_genes_without_counts_and_types_with_few_samples_are_said(batches, formula, caplog):
    _, samples = batches
    odd = samples.copy()
    odd.X[:, :3] = 0
    odd.X[:, 3] = 0
    odd.X[0, 3] = 9  # in one sample only
    odd.X[:, 4] = 50.0
    parts = {"many": odd, "two": odd[:2], "one donor": odd[:4], "ctrl": odd[odd.obs["arm"] == "ctrl"]}
    both = {name: part.copy() for name, part in parts.items()}
    types = anndata.concat(both, label="type", index_unique="-")
    table = dream(types, formula, by="type", contrast="arm[T.drug]", min_count=0)
    alone = [] if "donor" in formula else ["one donor"]  # four samples are enough for three coefficients
    assert list(table["type"].unique()) == ["many", *alone]
    assert all(f"type = {name} is left out" in caplog.text for name in parts if name not in ("many", *alone))
    table = table[table["type"] == "many"]
    bare = table.set_index("variable").iloc[:3]
    assert (bare["p_value"].isna() | (bare["status"] != "failed")).all() and table["status"].notna().all()
    assert table["p_value"].iloc[5:].notna().all()


def test_weights_below_zero_are_refused_with_a_remedy(batches):
    _, samples = batches
    v = voom(samples, BATCHES)
    v.layers["weights"][0, 0] = -1.0
    with pytest.raises(ValueError, match="or zero to leave an observation out"):
        lmm_gpu.fit(v, BATCHES, weights="weights", progress=False)
