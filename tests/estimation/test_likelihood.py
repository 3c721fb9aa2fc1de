"""Both likelihoods against dense n x n algebra, finite differences and the identities of likelihood theory.

Scales: a log-likelihood is compared relative to 1 + |value|; entry i of a score to sqrt(F_ii), its standard
deviation; entry ij of an information matrix to sqrt(F_ii F_jj).
"""

from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest

from lmm_gpu.estimation.many_components import MultiComponent
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.one_component import SingleComponent
from lmm_gpu.estimation.projection import Projection
from lmm_gpu.sumstats.assembly import cross_products

KINDS = ["positive", "negative", "mixed"]
GENES = 3


def likelihood_of(design, Y, method):
    summary = cross_products(design.X, design.Z, Y, d=design.d)
    return MixedModel.spectral(summary, method).with_genes(summary).likelihood


def by_gene(values):
    """Genes, last in the library, first."""
    return np.moveaxis(np.asarray(values), -1, 0)


def deviations(F):
    return np.sqrt(np.einsum("ii...->i...", F))


def assert_information(found, expected, tolerance):
    sd = deviations(expected)
    np.testing.assert_array_less(np.abs(found - expected) / (sd[:, None] * sd), tolerance)


@pytest.fixture(params=KINDS)
def case(request, design, method):
    """Design, genes (n, m), one theta per gene (k+1, m), method, and what the library says."""
    Y, theta = dense.draw_genes(design, GENES), dense.draw_theta(design, GENES, request.param)
    return design, Y, theta, method, likelihood_of(design, Y, method).evaluate(theta)


def test_value_is_the_dense_likelihood(case):
    design, Y, theta, method, found = case
    expected = [dense.loglik(design, y, t, method) for y, t in zip(Y.T, theta.T, strict=True)]
    assert found.ok.all()
    np.testing.assert_allclose(found.value, expected, rtol=1e-11, atol=1e-11)


def test_score_is_the_slope_of_the_dense_likelihood(case):
    design, Y, theta, method, found = case
    for y, t, score, F in zip(Y.T, theta.T, found.score.T, by_gene(found.information), strict=True):
        sd = deviations(F)
        slope = dense.gradient(lambda at, y=y: dense.loglik(design, y, at, method), t, 3e-5 / sd)
        np.testing.assert_array_less(np.abs(score - slope) / sd, 1e-6)


def test_score_is_the_dense_score(case):
    design, Y, theta, method, found = case
    for y, t, score, F in zip(Y.T, theta.T, found.score.T, by_gene(found.information), strict=True):
        np.testing.assert_array_less(np.abs(score - dense.score(design, y, t, method)) / deviations(F), 1e-9)


def test_information_is_the_dense_expectation(case):
    design, _, theta, method, found = case
    for t, F in zip(theta.T, by_gene(found.information), strict=True):
        assert_information(F, dense.information(design, t, method), 1e-9)


def test_information_needs_no_genes(case):
    """Only their theta: a model of the design alone has it."""
    design, Y, theta, method, _ = case
    alone = likelihood_of(design, Y, method).select(np.arange(0)).information(theta)
    for t, F in zip(theta.T, by_gene(alone), strict=True):
        assert_information(F, dense.information(design, t, method), 1e-9)


def test_quad_is_the_generalised_residual_sum_of_squares(case):
    design, Y, theta, _, found = case
    expected = [t[-1] * y @ design.P(t) @ y for y, t in zip(Y.T, theta.T, strict=True)]
    np.testing.assert_allclose(found.yPy, expected, rtol=1e-10)


def test_observed_information_is_minus_the_curvature(case):
    design, Y, theta, method, _ = case
    found = likelihood_of(design, Y, method).observed_information(theta)
    for y, t, observed in zip(Y.T, theta.T, by_gene(found), strict=True):
        sd = deviations(dense.information(design, t, method))
        error = np.abs(observed - dense.observed_information(design, y, t, method)) / (sd[:, None] * sd)
        np.testing.assert_array_less(error, 1e-6 * (1 + np.abs(observed / (sd[:, None] * sd)).max()))


def test_forms_of_contrasts_are_the_dense_products(case):
    """w = Z'V^-1 X C c and ZVZ = s_0 Z'PZ, with S in place of Z'Z whatever the method."""
    design, Y, theta, method, _ = case
    likelihood = likelihood_of(design, Y, method)
    rows = np.random.default_rng(2).normal(size=(4, design.X.shape[1]))
    g, a = likelihood.ratios(theta), (rows @ np.linalg.solve(design.X.T @ design.X, design.X.T @ design.Z)).T
    squares, moved = likelihood.gradient_form(g, a), likelihood.adjustment_form(g, a)
    pairs, moved_pairs = likelihood.gradient_pairs(g, a), likelihood.adjustment_pairs(g, a)
    parts, k = np.split(np.arange(sum(design.d)), np.cumsum(design.d)[:-1]), len(design.d)
    for gene, t in enumerate(theta.T):
        w = design.Z.T @ np.linalg.solve(design.V(t), design.X @ dense.beta_covariance(design, t) @ rows.T)  # (q, c)
        ZVZ = t[-1] * design.Z.T @ design.P(t) @ design.Z
        for i in range(k):
            wanted = w[parts[i]].T @ w[parts[i]]
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(pairs[i, :, :, gene], wanted, atol=1e-9 * scale)
            np.testing.assert_allclose(squares[i, :, gene], np.diag(wanted), atol=1e-9 * scale)
            for j in range(k):
                wanted = w[parts[i]].T @ ZVZ[np.ix_(parts[i], parts[j])] @ w[parts[j]]
                scale = np.abs(wanted).max()
                np.testing.assert_allclose(moved_pairs[i, j, :, :, gene], wanted, atol=1e-8 * scale)
                np.testing.assert_allclose(moved[i, j, :, gene], np.diag(wanted), atol=1e-8 * scale)


# --- many genes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two", "two_widest_last", "two_within", "slope"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_genes_evaluate_as_few_do(name, kind, method):
    """What genes share may be tabulated once there are many: the same numbers, up to the edge of validity."""
    design, m = dense.DESIGNS[name], 8000
    few = slice(0, 300)
    theta = dense.draw_theta(design, m, kind, seed=6)
    Y = np.resize(dense.draw_genes(design, 10), (design.n, m))
    found = likelihood_of(design, Y, method).evaluate(theta)
    wanted = likelihood_of(design, Y[:, few], method).evaluate(theta[:, few])
    assert np.asarray(found.ok).all()
    np.testing.assert_allclose(found.value[few], wanted.value, rtol=1e-10)
    np.testing.assert_allclose(found.yPy[few], wanted.yPy, rtol=1e-10)
    sd = deviations(wanted.information)
    size = sd + np.abs(wanted.score)  # these thetas are far from the optimum
    np.testing.assert_array_less(np.abs(found.score[:, few] - wanted.score) / size, 1e-8)
    np.testing.assert_array_less(np.abs(found.information[..., few] - wanted.information) / (sd[:, None] * sd), 1e-8)


@pytest.mark.parametrize("name", ["two", "slope"])
def test_many_genes_are_ok_where_few_are(name, method):
    design, m = dense.DESIGNS[name], 8000
    theta, Y = wild_theta(design, m), np.resize(dense.draw_genes(design, 10), (design.n, m))
    found = likelihood_of(design, Y, method).evaluate(theta).ok
    wanted = likelihood_of(design, Y[:, :500], method).evaluate(theta[:, :500]).ok
    np.testing.assert_array_equal(found[:500], wanted)


# --- many cells -----------------------------------------------------------------------------------


def repeated(summary, doublings):
    """Statistics of every cell 2^doublings times."""
    for _ in range(doublings):
        summary = replace(summary, parts=("first",)) + replace(summary, parts=("second",))
    return summary


@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside", "slope"])
@pytest.mark.parametrize("kind", [*KINDS, "large"])
@pytest.mark.parametrize("doublings", [6, 12])
def test_a_quarter_million_cells(name, kind, method, doublings):
    """Every cell r times: r^1/2 of its mean has covariance s_0 I + sum r s_i Z_i Z_i', and nothing varies within.

    So the n r cells have the dense likelihood of n, and n (r - 1) zeros of variance s_0. "large" keeps the ratios as
    they are while r grows, up to eigenvalues of some 10^5 in V / s_0; elsewhere they shrink with it.
    """
    design, r = dense.DESIGNS[name], 2**doublings
    Y, within = dense.draw_genes(design, GENES), design.n * (r - 1)
    units = np.append(np.full(len(design.d), float(r)), 1.0)  # from theta of the cells to theta of their means
    of_means = dense.draw_theta(design, GENES, "positive" if kind == "large" else kind)
    of_means *= units[:, None] if kind == "large" else 1.0
    summary = repeated(cross_products(design.X, design.Z, Y, d=design.d), doublings)
    found = MixedModel.spectral(summary, method).with_genes(summary).likelihood.evaluate(of_means / units[:, None])
    assert found.ok.all()
    for i, (y, t) in enumerate(zip(np.sqrt(r) * Y.T, of_means.T, strict=True)):
        value = dense.loglik(design, y, t, method) - 0.5 * within * np.log(2 * np.pi * t[-1])
        np.testing.assert_allclose(found.value[i], value, rtol=1e-11)
        score = dense.score(design, y, t, method) * units
        score[-1] -= 0.5 * within / t[-1]
        F = dense.information(design, t, method) * units[:, None] * units
        F[-1, -1] += 0.5 * within / t[-1] ** 2
        np.testing.assert_array_less(np.abs(found.score[:, i] - score) / (deviations(F) + np.abs(score)), 1e-8)
        assert_information(found.information[..., i], F, 1e-8)


# --- identities -----------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def replicated(request, design):
    """Genes whose y y' average to V(theta) exactly: means over them are expectations."""
    theta = dense.draw_theta(design, 1, request.param, seed=1)[:, 0]
    Y = np.sqrt(design.n) * np.linalg.cholesky(design.V(theta))
    return likelihood_of(design, Y, "REML"), theta


def evaluate_everywhere(likelihood, theta):
    return likelihood.evaluate(np.repeat(theta[:, None], likelihood.yry.shape[0], axis=1))


def test_expected_score_is_zero(replicated):
    found = evaluate_everywhere(*replicated)
    mean = found.score.mean(axis=1)
    np.testing.assert_array_less(np.abs(mean) / deviations(found.information[..., 0]), 1e-10)


def test_expected_curvature_is_minus_the_information(replicated):
    likelihood, theta = replicated
    F = evaluate_everywhere(likelihood, theta).information[..., 0]
    mean_score = lambda at: evaluate_everywhere(likelihood, at).score.mean(axis=1)  # noqa: E731
    assert_information(-dense.gradient(mean_score, theta, 3e-5 / deviations(F)), F, 1e-6)


# --- the two likelihoods, one component -----------------------------------------------------------

ONE = ["one_nested", "one_crossed"]


@pytest.fixture(params=ONE)
def one(request, method):
    """Projected summary of a design of one component, and thetas of both signs."""
    design = dense.DESIGNS[request.param]
    theta = np.hstack([dense.draw_theta(design, GENES, kind) for kind in ("positive", "negative")])
    Y = dense.draw_genes(design, theta.shape[1])
    summary = cross_products(design.X, design.Z, Y)
    return Projection.build(summary), summary, theta, method


def assert_same_evaluation(a, b):
    np.testing.assert_array_equal(a.ok, b.ok)
    np.testing.assert_allclose(a.value, b.value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.yPy, b.yPy, rtol=1e-11)
    sd = deviations(a.information)
    np.testing.assert_array_less(np.abs(a.score - b.score) / sd, 1e-10)
    np.testing.assert_array_less(np.abs(a.information - b.information) / (sd[:, None] * sd), 1e-10)


def test_multi_component_with_one_component_is_single_component(one):
    projection, summary, theta, method = one
    q = projection.S.shape[0]
    genes = projection.genes(summary)
    single = SingleComponent.decompose(projection, method).with_genes(genes)
    multi = MultiComponent.decompose(projection, (q,), method).with_genes(genes)
    assert single.rank == multi.rank
    assert_same_evaluation(multi.evaluate(theta), single.evaluate(theta))
    g = single.ratios(theta)
    np.testing.assert_allclose(multi.random_effects(g), single.random_effects(g), rtol=1e-9, atol=1e-10)
    a = np.random.default_rng(3).normal(size=(q, 4))
    for form in ("variance_form", "covariance_form", "gradient_form", "adjustment_form", "adjustment_pairs"):
        found, expected = getattr(multi, form)(g, a), getattr(single, form)(g, a)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_one_component_split_in_two_with_equal_ratios(one):
    projection, summary, theta, method = one
    q = projection.S.shape[0]
    genes = projection.genes(summary)
    single = SingleComponent.decompose(projection, method).with_genes(genes)
    pair = MultiComponent.decompose(projection, (q - 3, 3), method).with_genes(genes)
    whole, split = single.evaluate(theta), pair.evaluate(theta[[0, 0, 1]])
    join = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # d(s, s, s_0) / d(s, s_0)
    information = np.einsum("ai,ijm,bj->abm", join, split.information, join)
    assert_same_evaluation(split.with_derivatives(join @ split.score, information), whole)


# --- where there is no likelihood -----------------------------------------------------------------


def wild_theta(design, m, seed=5):
    """Thetas of both signs in all components; many of them, but not all, without a positive definite V."""
    rng = np.random.default_rng(seed)
    k = len(design.d)
    largest = np.array([np.linalg.eigvalsh(part.T @ part)[-1] for part in design.parts])
    sign = np.where(rng.uniform(size=(k, m)) < 0.6, -1, 3)
    return np.vstack([sign * rng.uniform(0, 2.5, size=(k, m)) / largest[:, None], np.ones(m)])


@pytest.fixture(params=["any", "widest_positive"])
def wild(request, design, method):
    """`ok` of the library for wild thetas, and whether dense eigenvalues say positive definite."""
    m = 120
    theta, Y = wild_theta(design, m), dense.draw_genes(design, m)
    if request.param == "widest_positive":  # where it is rarely decisive: the signs of all others matter
        widest = np.argmax(design.d)
        theta[widest] = np.abs(theta[widest])
        theta[:-1, : m // 2] *= np.where(np.arange(len(design.d)) == widest, 1, 3)[:, None]
    smallest = np.array([design.smallest_eigenvalue(t, method) for t in theta.T])
    if len(design.d) > 1 or request.param == "any":
        assert 0.15 * m < np.count_nonzero(smallest > 0) < 0.85 * m, "the thetas do not test both answers"
    assert np.abs(smallest).min() > 1e-9, "too close to call"
    alone = theta.copy()  # the widest effect, which is eliminated first, without the others
    alone[[i for i in range(len(design.d)) if i != np.argmax(design.d)]] = 0.0
    reachable = np.array([design.smallest_eigenvalue(t, method) for t in alone.T]) > 0
    return np.asarray(likelihood_of(design, Y, method).evaluate(theta).ok), smallest > 0, reachable


def test_ok_nowhere_but_where_the_matrix_is_positive_definite(wild):
    ok, positive_definite, _ = wild
    assert np.flatnonzero(ok & ~positive_definite).tolist() == []


def test_ok_wherever_the_matrix_is_positive_definite(wild):
    """The step control stays where the widest effect alone is valid too: others cannot make up for it."""
    ok, positive_definite, reachable = wild
    assert np.flatnonzero(~ok & positive_definite & reachable).tolist() == []
    assert np.flatnonzero(ok & ~reachable).tolist() == []


@pytest.mark.parametrize("residual", [0.0, -1.0, np.nan])
def test_no_likelihood_without_a_positive_residual_variance(design, method, residual):
    Y, theta = dense.draw_genes(design, 2), dense.draw_theta(design, 2, "positive")
    theta[-1, 0] = residual
    np.testing.assert_array_equal(likelihood_of(design, Y, method).evaluate(theta).ok, [False, True])


def test_neighbours_of_an_indefinite_gene_are_untouched(design, method):
    m = 12
    Y, good = dense.draw_genes(design, m), dense.draw_theta(design, m, "mixed")
    bad = good.copy()
    bad[:-1, 1::3] = -10.0 * bad[-1, 1::3]
    likelihood = likelihood_of(design, Y, method)
    alone, mixed = likelihood.evaluate(good), likelihood.evaluate(bad)
    others = np.arange(m) % 3 != 1
    np.testing.assert_array_equal(mixed.ok, others)
    for name in ("value", "score", "information", "yPy"):
        np.testing.assert_array_equal(getattr(mixed, name)[..., others], getattr(alone, name)[..., others])


def test_select_is_the_likelihood_of_those_genes(design, method):
    Y, theta = dense.draw_genes(design, 6), dense.draw_theta(design, 6, "mixed")
    likelihood, chosen = likelihood_of(design, Y, method), np.array([4, 0, 3])
    some, all_ = likelihood.select(chosen).evaluate(theta[:, chosen]), likelihood.evaluate(theta)
    for name in ("value", "yPy"):
        np.testing.assert_allclose(getattr(some, name), getattr(all_, name)[chosen], rtol=1e-12)
    sd = deviations(all_.information[..., chosen])
    np.testing.assert_array_less(np.abs(some.score - all_.score[:, chosen]) / sd, 1e-11)


def test_start_is_ordinary_least_squares(design, method):
    Y = dense.draw_genes(design, GENES)
    residual = Y - design.X @ np.linalg.lstsq(design.X, Y, rcond=None)[0]
    start = likelihood_of(design, Y, method).start()
    assert start.shape == (len(design.d) + 1, GENES)
    assert not start[:-1].any()
    np.testing.assert_allclose(start[-1], (residual**2).sum(axis=0) / (design.n - design.X.shape[1]), rtol=1e-11)


def test_starting_values(design, method):
    """No random effects: the evaluation there takes no factorisation, and is the one that does."""
    likelihood = likelihood_of(design, dense.draw_genes(design, 5), method)
    theta, found = likelihood.begin()
    np.testing.assert_array_equal(theta, likelihood.start())
    assert_same_evaluation(found, likelihood.evaluate(theta))
    np.testing.assert_array_equal(found.ok, [True] * 5)
