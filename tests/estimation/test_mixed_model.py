"""Fixed effects, their variances and BLUPs against dense n x n algebra.

Scales: coefficients relative to their standard errors, covariances to sqrt(diag_i diag_j), BLUPs to the
residual standard deviation, gradients to the variance over the residual variance.
"""

from __future__ import annotations

import dense
import numpy as np
import pytest

from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.sumstats.assembly import cross_products

GENES = 3
KINDS = ["positive", "negative", "mixed"]


def model_of(design, Y, method="REML"):
    return MixedModel.build(cross_products(design.X, design.Z, Y, d=design.d), method)


@pytest.fixture(params=KINDS)
def case(request, design):
    """Design, genes, one theta per gene, the library's model and the dense covariances of beta (m, p, p)."""
    Y, theta = dense.draw_genes(design, GENES), dense.draw_theta(design, GENES, request.param, seed=2)
    cov = np.stack([dense.beta_covariance(design, t) for t in theta.T])
    return design, Y, theta, model_of(design, Y), cov


def contrasts(p):
    """Every coefficient and two combinations of them, in rows."""
    return np.vstack([np.eye(p), np.random.default_rng(4).normal(size=(2, p))])


def test_coefficients_are_generalised_least_squares(case):
    design, Y, theta, model, cov = case
    expected = np.stack([dense.beta(design, y, t) for y, t in zip(Y.T, theta.T, strict=True)], axis=1)
    se = np.sqrt(np.einsum("mii->im", cov))
    np.testing.assert_array_less(np.abs(model.coefficients(theta) - expected) / se, 1e-9)


def test_the_criterion_does_not_change_the_fixed_effects(case):
    design, Y, theta, model, cov = case
    se = np.sqrt(np.einsum("mii->im", cov))
    ml = model_of(design, Y, "ML")
    np.testing.assert_array_less(np.abs(model.coefficients(theta) - ml.coefficients(theta)) / se, 1e-12)
    np.testing.assert_allclose(model.contrast_variance(theta, np.eye(len(se))), se**2, rtol=1e-9)
    np.testing.assert_allclose(ml.contrast_variance(theta, np.eye(len(se))), se**2, rtol=1e-9)


def test_covariance(case):
    _, _, theta, model, cov = case
    sd = np.sqrt(np.einsum("mii->mi", cov))
    error = np.abs(np.moveaxis(model.covariance(theta), -1, 0) - cov) / (sd[:, :, None] * sd[:, None, :])
    assert error.max() < 1e-9


def test_information_of_beta_is_its_inverse(case):
    _, _, theta, model, cov = case
    product = np.moveaxis(model.information_beta(theta), -1, 0) @ cov
    sd = np.sqrt(np.einsum("mii->mi", cov))
    error = (product - np.eye(cov.shape[1])) * sd[:, :, None] / sd[:, None, :]
    assert np.abs(error).max() < 1e-8


def test_random_effects_are_blups(case):
    design, Y, theta, model, _ = case
    expected = np.stack([dense.blups(design, y, t) for y, t in zip(Y.T, theta.T, strict=True)], axis=1)
    np.testing.assert_array_less(np.abs(model.random_effects(theta) - expected) / np.sqrt(theta[-1]), 1e-9)


def test_contrast_variance_is_the_quadratic_form(case):
    design, _, theta, model, cov = case
    C = contrasts(design.X.shape[1])
    expected = np.einsum("cp,mpr,cr->cm", C, cov, C)
    np.testing.assert_allclose(model.contrast_variance(theta, C), expected, rtol=1e-9)


def test_contrast_gradient_is_the_slope_of_the_dense_variance(case):
    design, _, theta, model, _ = case
    C = contrasts(design.X.shape[1])
    variances = lambda t: np.einsum("cp,pr,cr->c", C, dense.beta_covariance(design, t), C)  # noqa: E731
    found = np.moveaxis(model.contrast_gradient(theta, C), -1, 0)  # (m, k+1, c)
    for t, gradient in zip(theta.T, found, strict=True):
        F = dense.information(design, t, "REML")
        slope = dense.gradient(variances, t, 1e-4 / np.sqrt(np.diag(F)))
        np.testing.assert_array_less(np.abs(gradient - slope) * t[-1] / variances(t), 1e-6)


@pytest.mark.parametrize("name", ["two", "two_within", "slope"])
@pytest.mark.parametrize("kind", KINDS)
def test_prepared_contrasts_of_many_genes(name, kind):
    """What all genes share may be tabulated: the same variances and gradients as those of a few genes."""
    design, m, few = dense.DESIGNS[name], 8000, slice(0, 300)
    Y, theta = np.tile(dense.draw_genes(design, 8), (1, m // 8)), dense.draw_theta(design, m, kind, seed=9)
    C = contrasts(design.X.shape[1])
    many, some = model_of(design, Y), model_of(design, Y[:, few])
    ready = many.prepare(C)
    variance, wanted = many.contrast_variance(theta, ready)[:, few], some.contrast_variance(theta[:, few], C)
    np.testing.assert_allclose(variance, wanted, rtol=1e-8)
    gradient = many.contrast_gradient(theta, ready)[..., few]
    error = np.abs(gradient - some.contrast_gradient(theta[:, few], C)) * theta[-1, few] / wanted
    assert error.max() < 1e-7


def test_variance_is_homogeneous_in_theta(case):
    """v(c theta) = c v(theta), so that theta' grad v = v (Euler)."""
    design, _, theta, model, _ = case
    C = contrasts(design.X.shape[1])
    along = np.einsum("im,icm->cm", theta, model.contrast_gradient(theta, C))
    np.testing.assert_allclose(along, model.contrast_variance(theta, C), rtol=1e-9)


def test_positive_definite_is_a_statement_about_V(design, method):
    """Where the restricted likelihood exists, V itself may still be indefinite in the span of X."""
    m = 150
    rng = np.random.default_rng(6)
    largest = np.array([np.linalg.eigvalsh(part.T @ part)[-1] for part in design.parts])[:, None]
    sign = np.where(rng.uniform(size=(len(design.d), m)) < 0.7, -1, 0.3)
    theta = np.vstack([sign * rng.uniform(0, 2, size=(len(design.d), m)) / largest, np.ones(m)])
    model = model_of(design, dense.draw_genes(design, m), method)
    defined = np.asarray(model.likelihood.evaluate(theta).ok)
    smallest = np.array([design.smallest_eigenvalue(t, "ML") for t in theta.T])
    assert np.abs(smallest).min() > 1e-9, "too close to call"
    assert np.count_nonzero(smallest[defined] > 0) > 10
    found = np.asarray(model.positive_definite(theta))[defined]
    np.testing.assert_array_equal(found, smallest[defined] > 0)


def test_some_thetas_are_defined_but_not_positive_definite():
    """The case the check exists for: an effect that X nearly spans can go far below zero."""
    design = dense.DESIGNS["one_nested"]
    largest = np.linalg.eigvalsh(design.Z.T @ design.Z)[-1]
    theta = np.array([[-1.05 / largest, -0.95 / largest], [1.0, 1.0]])
    model = model_of(design, dense.draw_genes(design, 2))
    assert model.likelihood.evaluate(theta).ok.all()
    np.testing.assert_array_equal([design.smallest_eigenvalue(t, "REML") > 0 for t in theta.T], [True, True])
    np.testing.assert_array_equal([design.smallest_eigenvalue(t, "ML") > 0 for t in theta.T], [False, True])
    np.testing.assert_array_equal(model.positive_definite(theta), [False, True])


def test_may_be_indefinite_misses_nothing(design):
    m = 200
    rng = np.random.default_rng(7)
    largest = np.array([np.linalg.eigvalsh(part.T @ part)[-1] for part in design.parts])[:, None]
    theta = np.vstack([rng.uniform(-1.5, 1, size=(len(design.d), m)) / largest, np.ones(m)])
    model = model_of(design, dense.draw_genes(design, m))
    indefinite = np.array([design.smallest_eigenvalue(t, "ML") <= 0 for t in theta.T])
    doubtful = np.asarray(model.may_be_indefinite(theta))
    assert 0 < np.count_nonzero(indefinite) < m
    assert not np.any(indefinite & ~doubtful)
    if len(design.d) == 1:
        np.testing.assert_array_equal(doubtful, indefinite)


def test_select(design, method):
    Y, theta = dense.draw_genes(design, 5), dense.draw_theta(design, 5, "mixed")
    model, chosen = model_of(design, Y, method), np.array([3, 0])
    some, C = model.select(chosen), contrasts(design.X.shape[1])
    se = np.sqrt(model.contrast_variance(theta, np.eye(design.X.shape[1])))[:, chosen]
    t = theta[:, chosen]
    assert np.abs((some.coefficients(t) - model.coefficients(theta)[:, chosen]) / se).max() < 1e-12
    np.testing.assert_allclose(some.contrast_variance(t, C), model.contrast_variance(theta, C)[:, chosen], rtol=1e-12)


def test_varies(design):
    """A gene that X explains has no variance; the rest do, however small or large their values."""
    Y = dense.draw_genes(design, 5)
    Y[:, 0], Y[:, 1] = 0.0, design.X @ np.arange(1.0, design.X.shape[1] + 1)
    Y[:, 2:4] *= [1e-9, 1e9]
    np.testing.assert_array_equal(model_of(design, Y).has_residual_variance, [False, False, True, True, True])
