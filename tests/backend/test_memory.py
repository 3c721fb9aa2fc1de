"""A memory budget holds, and the results do not depend on it."""

import tracemalloc
from dataclasses import replace

import dense
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lmm_gpu.backend.memory import parse_memory
from lmm_gpu.design.design import build_design
from lmm_gpu.estimation import mixed_model
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.io.source import open_source
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.streaming import accumulate, plan_pieces
from lmm_gpu.sumstats.transform import Transform


@pytest.fixture(scope="module", params=[(60,), (60, 25), (60, 60)], ids=["one", "two", "as wide"])
def summary(request):
    rng, n, m = np.random.default_rng(8), 1500, 300 if request.param == (60, 60) else 3000
    Z = np.hstack([dense.one_hot(rng.integers(0, width, n), width) for width in request.param])
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 9))])
    Y = Z @ rng.normal(scale=0.4, size=(Z.shape[1], m)) + rng.normal(size=(n, m))
    return cross_products(X, Z, Y, d=request.param)


def fitted_with_peak(summary, memory):
    """The fit, and the bytes it held at most beyond what it keeps: its results, and the rotated genes in them."""
    tracemalloc.start()
    try:
        fit = fit_summary(summary, FitOptions(memory=memory))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return fit, peak - kept


@pytest.mark.parametrize("memory", ["8MB", "30MB"])
def test_the_budget_holds(summary, memory):
    fit_summary(summary, FitOptions(memory=memory))  # imports and caches of the libraries
    _, peak = fitted_with_peak(summary, memory)
    assert peak <= 1.25 * parse_memory(memory)


def test_the_results_do_not_depend_on_it(summary):
    plain = fit_summary(summary, FitOptions()).estimates
    tight = fit_summary(summary, FitOptions(memory="2MB")).estimates
    np.testing.assert_array_equal(tight.status, plain.status)
    np.testing.assert_array_equal(tight.niter, plain.niter)
    np.testing.assert_allclose(tight.theta / plain.theta[-1], plain.theta / plain.theta[-1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(tight.coef, plain.coef, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(tight.se, plain.se, rtol=1e-9)


@pytest.mark.parametrize("df", ["satterthwaite", "lmertest"])
def test_tests_of_a_fit_keep_to_its_budget(summary, df):
    """Of one contrast, beyond the table of all genes."""
    fit = fit_summary(summary, FitOptions(memory="8MB"))
    C = np.eye(10)[1:2]
    fit.contrast_test(C, df)  # imports and caches of the libraries
    tracemalloc.start()
    try:
        fit.contrast_test(C, df)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - kept <= 1.25 * parse_memory("8MB")


def test_many_contrasts_are_formed_in_pieces(summary, monkeypatch):
    """Their vectors take many times the memory of a gene: a few genes at a time, with the same numbers."""
    fit = fit_summary(summary, FitOptions())
    bare = fit.model.likelihood.untabulated()
    plain, theta, C = replace(fit.model, likelihood=bare), fit.estimates.theta[:, :200], np.eye(10)
    whole = plain.contrast_gradient(theta, C), plain.covariance(theta)
    genes = {"gradient_form": [], "covariance_form": []}
    for name, seen in genes.items():
        form = getattr(type(bare), name)
        monkeypatch.setattr(type(bare), name, lambda self, g, a, f=form, n=seen: n.append(g.shape[1]) or f(self, g, a))
    monkeypatch.setattr(mixed_model, "LARGEST_PIECE", 2**20)
    parts = plain.contrast_gradient(theta, C), plain.covariance(theta)
    for seen, rows in zip(genes.values(), (bare.form_rows, summary.ZZ.shape[0]), strict=True):
        assert sum(seen) == 200 and max(seen) * 8 * rows * 10 * (len(summary.d) + 1) <= 2**20
    for found, wanted in zip(parts, whole, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("memory", ["3MB", "12MB"])
def test_the_budget_holds_while_cells_are_streamed(tmp_path, kind, memory):
    """Beyond the statistics, and beyond the table of the cells with its design."""
    anndata = pytest.importorskip("anndata")
    pytest.importorskip("h5py")
    rng, n, m = np.random.default_rng(2), 4000, 1500
    donor = pd.Categorical(rng.integers(0, 40, n).astype(str))
    obs = pd.DataFrame({"donor": donor, "x": rng.normal(size=n)}, index=np.arange(n).astype(str))
    counts = sparse.random_array((n, m), density=0.1, format=kind, rng=rng, dtype=np.float32)
    anndata.AnnData(counts, obs).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with open_source(tmp_path / "a.h5ad") as source:
        design, budget = build_design("~ x + (1 | donor)", source.obs), parse_memory(memory)
        accumulate(source, design, Transform("log1p"), memory=budget)  # imports and caches of the libraries
        tracemalloc.start()
        try:
            summary = accumulate(source, design, Transform("log1p"), memory=budget)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert summary.n == n and len(plan_pieces(source, budget)) > 1
    assert peak - kept <= budget


def test_many_cells_take_no_more_than_the_budget():
    """Whatever is held of every cell, for a moment or to the end, has its place in it: only the design has not."""
    rng, n, m, budget = np.random.default_rng(4), 200_000, 40, parse_memory("16MB")
    donor, kind = rng.integers(0, 40, n), rng.integers(0, 30, n)
    obs = pd.DataFrame({"donor": donor.astype(str), "kind": kind.astype(str), "depth": rng.normal(size=n)})
    obs["sex"] = np.where(donor % 2, "f", "m")
    counts = sparse.random_array((n, m), density=0.1, format="csr", rng=rng, dtype=np.float32)
    with open_source((counts, obs)) as source:
        design = build_design("~ depth + kind * sex + (1 | donor)", source.obs)
        accumulate(source, design, Transform("log1p"), memory=budget, pieces=[slice(0, 9)])  # imports, caches
        tracemalloc.start()
        try:
            summary = accumulate(source, design, Transform("log1p"), memory=budget)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert summary.n == n
    assert design.X.nbytes > 4 * budget
    assert peak - kept <= budget


@pytest.mark.parametrize("df", ["satterthwaite", "kenward-roger"])
def test_tests_of_many_contrasts_keep_to_the_budget(summary, df):
    """Beyond the table of all genes: vectors of one gene and all contrasts together would take 60 MB."""
    C = np.random.default_rng(1).normal(size=(2000, 10))
    few = summary.select(slice(0, 6))
    fit, plain = (fit_summary(few, FitOptions(memory=memory)) for memory in ("8MB", None))
    fit.contrast_test(C, df)  # imports and caches of the libraries
    tracemalloc.start()
    try:
        found = fit.contrast_test(C, df)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    table = (len(few.d) + 1) ** 2 * found.se.nbytes  # (k, k, c, b)
    assert peak - kept <= 1.25 * parse_memory("8MB") + 3 * table
    wanted = plain.contrast_test(C, df)
    np.testing.assert_allclose(found.se, wanted.se, rtol=1e-9)
    np.testing.assert_allclose(found.df, wanted.df, rtol=1e-7)
