"""The engine on array-api-strict: nothing but the Python array API standard, on a device that is not the host.

The strict library refuses everything that the standard leaves out, moves nothing between devices by itself, and
here has no operations whose result has a shape that depends on values. The numbers are those of NumPy to 1e-10 on
each quantity's scale.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import array_api_strict
import dense
import numpy as np
import pandas as pd
import pytest

import lmm_gpu
from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.estimation.fisher_scoring import Rules, maximise
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.status import Status
from lmm_gpu.inference.empirical_bayes import Prior
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.gene_weights import weighted_products
from lmm_gpu.sumstats.summary_stats import SummaryStats

ENGINE = [
    "backend/linalg",
    "sumstats/alignment",
    "sumstats/assembly",
    "sumstats/centring",
    "sumstats/products",
    "sumstats/summary_stats",
    "estimation/fisher_scoring",
    "estimation/likelihood",
    "estimation/block_elimination",
    "estimation/chebyshev",
    "estimation/two_components",
    "estimation/one_component",
    "estimation/many_components",
    "estimation/component_forms",
    "estimation/mixed_model",
    "estimation/covariance_terms",
    "estimation/group_elimination",
    "estimation/grouped_effects",
    "estimation/grouped_forms",
    "estimation/grouped_traces",
    "estimation/level_loads",
    "estimation/semidefinite",
    "estimation/weighted_genes",
]
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")
NAMES = ["one_nested", "two", "three_widest_inside"]
DEVICE = array_api_strict.Device("device1")


@pytest.fixture(autouse=True)
def strict():
    """Neither boolean indexing nor shapes that depend on data."""
    with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
        yield


def on_device(values):
    return array_api_strict.asarray(np.asarray(values), device=DEVICE)


def is_on_device(x):
    return isinstance(x, type(on_device(0.0))) and x.device == DEVICE


def both(name, m=4, *, spoil=None):
    """Summary statistics in NumPy and on the strict device, and the design; gene `spoil` is constant."""
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, m)
    if spoil is not None:
        Y[:, spoil] = 0.0
    ss = cross_products(design.X, design.Z, Y, d=design.d)
    strict = SummaryStats(**vars(ss) | {key: on_device(getattr(ss, key)) for key in STATISTICS})
    return ss, strict, design


def assert_close(found, wanted, scale=1.0):
    assert is_on_device(found)
    assert np.max(np.abs(to_numpy(found) - wanted) / scale) < 1e-10


def test_the_strict_library_is_strict():
    """Or this file tests nothing."""
    x = on_device([1.0, 2.0])
    with pytest.raises(RuntimeError):
        x[x > 1]
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        np.asarray(x)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        x + array_api_strict.asarray([1.0, 2.0])
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        array_api_strict.unique_values(x)


@pytest.mark.parametrize("name", NAMES)
def test_cross_products(name):
    ss, _, design = both(name)
    Y = dense.draw_genes(design, 4)
    found = cross_products(on_device(design.X), on_device(design.Z), on_device(Y), d=design.d)
    for key in STATISTICS:
        wanted = getattr(ss, key)
        assert_close(getattr(found, key), wanted, np.abs(wanted).max())
    assert_close((found + replace(found, parts=("other cells",))).XX, 2 * ss.XX, np.abs(ss.XX).max())


def test_aligned_sums():
    """Genes and random levels in other orders, and levels of one side only."""
    ss, strict, design = both("two")
    turned = [*range(8, -1, -1), *range(9, 15)]
    labels = {"random_names": [f"u{j}" for j in turned], "features": ("g2", "g1", "g4", "g3"), "d": design.d}
    ours = {"random_names": [f"u{j}" for j in range(15)], "features": ("g1", "g2", "g3", "g4")}
    Z, Y = on_device(design.Z[:, turned]), on_device(dense.draw_genes(design, 4)[:, [1, 0, 3, 2]])
    left = SummaryStats(**vars(strict) | {name: tuple(values) for name, values in ours.items()})
    total = left + cross_products(on_device(design.X), Z, Y, **{name: tuple(v) for name, v in labels.items()})
    assert (total.features, total.random_names) == (left.features, left.random_names)
    for key in STATISTICS:
        assert_close(getattr(total, key), 2 * getattr(ss, key), np.abs(getattr(ss, key)).max())
    new = SummaryStats(**vars(left) | {"random_names": tuple(f"v{j}" for j in range(15))})
    total = left + new
    assert total.d == (18, 12)
    assert_close(total.ZZ[:9, :9], ss.ZZ[:9, :9])
    assert_close(total.ZZ[:9, 9:18], 0 * ss.ZZ[:9, :9])


def test_concat():
    design = dense.DESIGNS["two"]
    X, Z, Y = (on_device(A) for A in (design.X, design.Z, dense.draw_genes(design, 4) + np.array([0, 0, 1e6, 0])))
    parts = [cross_products(X, Z, Y[:, c], features=names) for c, names in ((slice(0, 2), "ab"), (slice(2, 4), "cd"))]
    joined, whole = SummaryStats.concat(parts), cross_products(X, Z, Y)
    for key in STATISTICS:
        wanted = to_numpy(getattr(whole, key))
        assert_close(getattr(joined, key), wanted, np.abs(wanted).max())
    assert_close(joined.centred.centre, to_numpy(whole.centred.centre))


@pytest.mark.parametrize("name", NAMES)
def test_values_far_from_zero(name):
    """Accumulate about a centre, add sums about different centres, and fit."""
    design, halves = dense.DESIGNS[name], (slice(0, 25), slice(25, None))
    Y = dense.draw_genes(design, 4)
    X, Z, far = on_device(design.X), on_device(design.Z), on_device(Y + np.array([1e6, 1e3, -1e5, 0.0]))
    a, b = (cross_products(X[half, :], Z[half, :], far[half, :], d=design.d) for half in halves)
    assert is_on_device(a.centred.centre) and is_on_device(a.centred.constant)
    wanted, found = fit_summary(cross_products(design.X, design.Z, Y, d=design.d)), fit_summary(a + b)
    np.testing.assert_array_equal(found.status, wanted.status)
    np.testing.assert_allclose((found.theta / wanted.theta.iloc[-1]), wanted.theta / wanted.theta.iloc[-1], atol=1e-6)
    np.testing.assert_allclose(found.se, wanted.se, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["positive", "negative", "mixed"])
def test_evaluate(name, kind, method):
    ss, strict, design = both(name)
    theta = dense.draw_theta(design, ss.m, kind)
    wanted = MixedModel.build(ss, method).likelihood.evaluate(theta)
    found = MixedModel.build(strict, method).likelihood.evaluate(on_device(theta))
    sd = np.sqrt(np.einsum("iim->im", wanted.information))
    assert_close(found.value, wanted.value, np.abs(wanted.value))
    assert_close(found.score, wanted.score, sd)
    assert_close(found.information, wanted.information, sd[:, None] * sd)
    assert is_on_device(found.ok)
    np.testing.assert_array_equal(to_numpy(found.ok), wanted.ok)


def test_evaluate_where_some_are_indefinite(method):
    ss, strict, design = both("three_widest_inside", m=8)
    theta = dense.draw_theta(design, ss.m, "positive")
    theta[0, 1::3] *= -50
    found = MixedModel.build(strict, method).likelihood.evaluate(on_device(theta))
    np.testing.assert_array_equal(to_numpy(found.ok), np.arange(8) % 3 != 1)


@pytest.mark.parametrize("name", NAMES)
def test_model(name, method):
    ss, strict, design = both(name)
    theta = dense.draw_theta(design, ss.m, "mixed")
    C = np.vstack([np.eye(design.X.shape[1]), np.ones(design.X.shape[1])])
    ours, model = MixedModel.build(ss, method), MixedModel.build(strict, method)
    variance = ours.contrast_variance(theta, C)
    assert_close(model.coefficients(on_device(theta)), ours.coefficients(theta), np.sqrt(variance[:-1]))
    assert_close(model.contrast_variance(on_device(theta), on_device(C)), variance, variance)
    gradient = ours.contrast_gradient(theta, C)
    assert_close(model.contrast_gradient(on_device(theta), on_device(C)), gradient, np.abs(gradient).max())
    W = np.linalg.inv(np.moveaxis(ours.likelihood.evaluate(theta).information, -1, 0)).transpose(1, 2, 0)
    adjustment = ours.contrast_adjustment(theta, ours.prepare(C), W)
    found = model.contrast_adjustment(on_device(theta), model.prepare(on_device(C)), on_device(W))
    assert_close(found, adjustment, np.abs(adjustment).max())
    observed = ours.likelihood.observed_information(theta)
    assert_close(model.likelihood.observed_information(on_device(theta)), observed, np.abs(observed).max())
    g, a = ours.likelihood.ratios(theta), (C @ ours.xxz).T
    for form in ("gradient_pairs", "adjustment_pairs"):
        wanted = getattr(ours.likelihood, form)(g, a)
        assert_close(getattr(model.likelihood, form)(on_device(g), on_device(a)), wanted, np.abs(wanted).max())
    cov = ours.covariance(theta)
    assert_close(model.covariance(on_device(theta)), cov, np.abs(cov).max())
    u = ours.random_effects(theta)
    assert_close(model.random_effects(on_device(theta)), u, np.sqrt(theta[-1]))
    assert is_on_device(model.positive_definite(on_device(theta)))
    assert to_numpy(model.positive_definite(on_device(theta))).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_maximise(name, nonnegative, method):
    ss, strict, _ = both(name)
    ours, model = MixedModel.build(ss, method).likelihood, MixedModel.build(strict, method).likelihood
    rules = Rules(nonnegative=nonnegative)
    wanted, found = maximise(ours, ours.start(), rules), maximise(model, model.start(), rules)
    assert_close(found.theta, wanted.theta, wanted.theta[-1])
    np.testing.assert_array_equal(to_numpy(found.niter), wanted.niter)
    np.testing.assert_array_equal(to_numpy(found.status), wanted.status)


@pytest.mark.filterwarnings("ignore:.*do not vary:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_whole_fit(name, method):
    """Blocks of genes, one of them constant, to estimates and tests of contrasts, which come to the host."""
    ss, strict, design = both(name, m=4, spoil=1)
    options = FitOptions(method=method, block=2)
    wanted, found = fit_summary(ss, options), fit_summary(strict, options)
    assert all(type(values) is np.ndarray for values in vars(found.estimates).values())
    np.testing.assert_array_equal(found.status, wanted.status)
    fitted, a, b = np.arange(4) != 1, found.estimates, wanted.estimates
    for key, scale in {"theta": b.theta[-1], "se_theta": b.theta[-1], "coef": b.se, "se": b.se}.items():
        error = np.abs(getattr(a, key) - getattr(b, key)) / scale
        assert error[:, fitted].max() < 1e-10, key
    C = np.eye(design.X.shape[1])
    for ddf in ("satterthwaite", "lmertest", *(["kenward-roger"] if method == "REML" else []), "residual"):
        ours, theirs = wanted.contrast_test(C, ddf), found.contrast_test(C, ddf)
        np.testing.assert_allclose(theirs.t, ours.t, rtol=1e-8)
        np.testing.assert_allclose(theirs.df, ours.df, rtol=1e-8)
        prior = Prior(4.0, 1.0)
        ours, theirs = wanted.contrast_test(C, ddf, prior), found.contrast_test(C, ddf, prior)
        np.testing.assert_allclose(theirs.t, ours.t, rtol=1e-8)
        np.testing.assert_allclose(theirs.df, ours.df, rtol=1e-8)
        ours, theirs = wanted.f_test(C[:2], ddf), found.f_test(C[:2], ddf)
        np.testing.assert_allclose(theirs.statistic, ours.statistic, rtol=1e-8)
        np.testing.assert_allclose(theirs.df, ours.df, rtol=1e-8)


@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_whole_fit_of_correlated_effects(bounds, method):
    rng, design = np.random.default_rng(3), dense.DESIGNS["slope"]
    Z, d = np.hstack([design.Z, dense.one_hot(rng.integers(0, 4, design.n), 4)]), (9, 9, 4)
    terms = (("donor", ("Intercept", "x")), ("batch", ("Intercept",)))
    Y = design.X @ rng.normal(size=(3, 4)) + Z @ rng.normal(size=(22, 4)) + rng.normal(size=(design.n, 4))
    ss = cross_products(design.X, Z, Y, d=d, random_terms=terms)
    strict = SummaryStats(**vars(ss) | {key: on_device(getattr(ss, key)) for key in STATISTICS})
    options = FitOptions(method=method, bounds=bounds)
    wanted, found = fit_summary(ss, options), fit_summary(strict, options)
    a, b = found.estimates, wanted.estimates
    np.testing.assert_array_equal(a.status, b.status)
    for key, scale in {"theta": b.theta[-1], "coef": b.se, "se": b.se}.items():
        assert (np.abs(getattr(a, key) - getattr(b, key)) / scale).max() < 1e-8, key
    C = np.eye(3)
    for ddf in ("satterthwaite", "lmertest", *(["kenward-roger"] if method == "REML" else [])):
        ours, theirs = wanted.contrast_test(C, ddf), found.contrast_test(C, ddf)
        np.testing.assert_allclose(theirs.t, ours.t, rtol=1e-7)
        np.testing.assert_allclose(theirs.df, ours.df, rtol=1e-6)
    np.testing.assert_allclose(found.RE, wanted.RE, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_whole_fit_of_genes_with_weights(bounds, method):
    rng, design = np.random.default_rng(4), dense.DESIGNS["two"]
    Y, W = dense.draw_genes(design, 4), rng.uniform(0.3, 3.0, size=(design.n, 4))
    ss = weighted_products(design.X, design.Z, Y, W, d=design.d)
    own = {key: on_device(getattr(ss.own, key)) for key in ("XX", "ZX", "ZZ", "mean", "log_weights")}
    arrays = {key: on_device(getattr(ss, key)) for key in STATISTICS}
    strict = replace(ss, **arrays, weights=replace(ss.own, **own))
    options = FitOptions(method=method, bounds=bounds)
    wanted, found = fit_summary(ss, options), fit_summary(strict, options)
    a, b = found.estimates, wanted.estimates
    np.testing.assert_array_equal(a.status, b.status)
    for key, scale in {"theta": b.theta[-1], "coef": b.se, "se": b.se}.items():
        assert (np.abs(getattr(a, key) - getattr(b, key)) / scale).max() < 1e-7, key
    np.testing.assert_allclose(*(fit.test("X1", moderate=True)["df"] for fit in (found, wanted)), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_variances_and_random_effects(name, method):
    ss, strict, _ = both(name)
    wanted, found = fit_summary(ss, FitOptions(method=method)), fit_summary(strict, FitOptions(method=method))
    methods = ["lrt", "wald", *(["rlrt"] if name == "one_nested" and method == "REML" else [])]
    for test in methods:
        ours, theirs = (fit.variance_test(0, method=test, draws=500) for fit in (wanted, found))
        np.testing.assert_allclose(theirs["statistic"], ours["statistic"], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(theirs["p_value"], ours["p_value"], rtol=1e-6)
    pd.testing.assert_frame_equal(found.variance_intervals(), wanted.variance_intervals(), rtol=1e-8)
    pd.testing.assert_frame_equal(found.ranef(), wanted.ranef(), rtol=1e-7, atol=1e-9)
    pd.testing.assert_frame_equal(found.variance_fractions(), wanted.variance_fractions(), rtol=1e-8)


def test_the_fallback_to_nonnegative():
    """A gene without an interior optimum, and an ordinary one."""
    design = dense.Design(np.ones((60, 1)), np.kron(np.eye(3), np.ones((20, 1))), (3,))
    Y = np.column_stack([np.arange(60) % 21 == 0, dense.draw_genes(design, 1)[:, 0]]).astype(float)
    found = fit_summary(cross_products(on_device(design.X), on_device(design.Z), on_device(Y), d=design.d))
    assert found.estimates.status.tolist() == [Status.BOUNDARY, Status.CONVERGED]
    assert found.estimates.theta[0, 0] == 0


@pytest.mark.parametrize("module", ENGINE)
def test_the_engine_imports_no_numpy(module):
    """Neither NumPy nor any library of arrays: their namespace comes with the arrays."""
    tree = ast.parse((Path(lmm_gpu.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    libraries = {name.split(".")[0] for name in imported}
    assert not libraries & {"numpy", "cupy", "torch", "jax", "array_api_compat", "pandas"}
