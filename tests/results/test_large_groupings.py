"""Groupings whose Z'Z stays sparse: the same fits, tests and files as with the dense matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import lmm_gpu
from lmm_gpu.estimation.covariance_terms import terms_of, widest_block
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.sumstats.assembly import cross_products

FORMULAS = ["~ x + (1 | clone)", "~ x + arm + (1 | clone) + (1 | batch)", "~ x + (x | clone)"]
FIT = {"progress": False, "bounds": "nonnegative"}


@pytest.fixture(scope="module", name="data")
def _data():
    rng, n = np.random.default_rng(3), 600
    clone, batch = np.r_[np.arange(80), rng.integers(0, 80, n - 80)], rng.integers(0, 4, n)
    obs = pd.DataFrame({"clone": [f"c{i:02}" for i in clone], "batch": batch.astype(str), "x": rng.normal(size=n)})
    obs = obs.assign(arm=np.where(clone % 2, "a", "b"))
    Y = rng.normal(size=(n, 5)) + rng.normal(size=(80, 5))[clone] + 0.5 * rng.normal(size=(4, 5))[batch]
    return Y + obs[["x"]].to_numpy() * 0.4 * rng.normal(size=(80, 5))[clone], obs


@pytest.fixture(params=FORMULAS, name="pair")
def _pair(request, data, monkeypatch):
    dense = lmm_gpu.summarize(data, request.param, progress=False)
    monkeypatch.setattr("lmm_gpu.sumstats.products.LARGEST_DENSE", 10)
    monkeypatch.setattr("lmm_gpu.sumstats.design_sums._MOST_GROUPS", 10)
    sparse = lmm_gpu.summarize(data, request.param, progress=False)
    assert scipy.sparse.issparse(sparse.ZZ) and not scipy.sparse.issparse(dense.ZZ)
    return dense, sparse


def test_fits_and_tests_are_the_same(pair):
    dense, sparse = (lmm_gpu.fit(ss, **FIT) for ss in pair)
    np.testing.assert_allclose(sparse.theta, dense.theta, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(sparse.coef, dense.coef, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(sparse.logLik, dense.logLik, rtol=1e-10)
    for df in ("satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"):
        for name in ("statistic", "df"):
            found, wanted = (fit.test("x", df=df)[name] for fit in (sparse, dense))
            np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(sparse.variance_fractions(), dense.variance_fractions(), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(sparse.RE, dense.RE, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sparse.ranef()["sd"], dense.ranef()["sd"], rtol=1e-4)
    sparse.test("x")


def test_statistics_are_added_kept_and_reduced(pair, data, tmp_path):
    _, sparse = pair
    Y, obs = data
    here = obs["clone"].to_numpy() < "c40"
    parts = [lmm_gpu.summarize((Y[some], obs[some]), sparse.formula, progress=False) for some in (here, ~here)]
    total = parts[0] + parts[1]
    order = [total.random_names.index(name) for name in sparse.random_names]
    np.testing.assert_allclose(total.ZZ.toarray()[np.ix_(order, order)], sparse.ZZ.toarray(), rtol=1e-10, atol=1e-10)
    sparse.save(tmp_path / "sums.h5")
    again = lmm_gpu.SummaryStats.load(tmp_path / "sums.h5")
    np.testing.assert_array_equal(again.ZZ.toarray(), sparse.ZZ.toarray())
    halves = [sparse.select(slice(0, 2)), sparse.select(slice(2, 5))]
    assert lmm_gpu.SummaryStats.concat(halves).m == 5
    if len(sparse.d) > 1:
        left = sparse.without(1)
        np.testing.assert_array_equal(left.ZZ.toarray(), sparse.ZZ.toarray()[: sparse.d[0], : sparse.d[0]])


def test_partition_of_variance_with_covariances(pair):
    for ss in pair:
        shares = lmm_gpu.fit(ss, **FIT).variance_partition()
        np.testing.assert_allclose(shares.sum(axis=1), 1.0)


def test_engine_follows_from_the_model_and_its_cost(data, monkeypatch):
    names = {formula: lmm_gpu.fit(data, formula, **FIT) for formula in FORMULAS}
    assert [fit.engine for fit in names.values()] == [
        "spectral",
        "spectral, widest effect eliminated",
        "elimination by levels",
    ]
    monkeypatch.setattr("lmm_gpu.estimation.block_size.FEW_EFFECTS", 10)
    monkeypatch.setattr("lmm_gpu.estimation.block_size.EVALUATIONS", 0.1)
    for formula, wanted in names.items():
        found = lmm_gpu.fit(data, formula, **FIT)
        assert found.engine == "elimination by levels"
        np.testing.assert_allclose(found.theta, wanted.theta, rtol=1e-5, atol=1e-7)


def test_columns_that_are_not_levels_of_a_grouping_are_refused_where_they_cannot_be_eliminated():
    rng = np.random.default_rng(1)
    Z = scipy.sparse.random_array((300, 40), density=0.2, rng=rng).tocsr()
    summary = cross_products(np.ones((300, 1)), Z, rng.normal(size=(300, 2)))
    assert widest_block(summary.ZZ, terms_of(summary.d, summary.term_sizes)) is None
    with pytest.raises(ValueError, match="share cells"):
        MixedModel.by_blocks(summary)
