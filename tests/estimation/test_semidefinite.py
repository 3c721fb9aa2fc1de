"""Fits of positive semi-definite covariance matrices meet the optimality conditions of the cone, singular ones too."""

from __future__ import annotations

import dense
import numpy as np
import pytest

from lmm_gpu.estimation.fisher_scoring import Rules
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.semidefinite import FactorObjective, smallest_eigenvalues
from lmm_gpu.estimation.status import OPTIMUM
from lmm_gpu.sumstats.assembly import cross_products

GENES = 40


def draw(effects, rank, crossed, seed):
    """Genes whose true covariance matrix has this rank: most estimates are singular."""
    rng = np.random.default_rng(seed)
    n, G = 240, 12
    group, batch = rng.integers(0, G, n), rng.integers(0, 4, n)
    U = np.column_stack([np.ones(n), rng.normal(size=(n, effects - 1))])
    blocks = [dense.one_hot(group, G) * U[:, [j]] for j in range(effects)]
    terms = [("g", tuple(f"e{j}" for j in range(effects)))]
    d = [G] * effects
    if crossed:
        blocks, terms, d = [*blocks, dense.one_hot(batch, 4)], [*terms, ("b", ("Intercept",))], [*d, 4]
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    Y = np.empty((n, GENES))
    for gene in range(GENES):
        root = rng.normal(size=(effects, rank)) * 0.4
        Y[:, gene] = np.sum(U * (rng.normal(size=(G, rank)) @ root.T)[group], axis=1) + rng.normal(size=n)
    return cross_products(X, np.hstack(blocks), Y, d=tuple(d), random_terms=tuple(terms))


@pytest.fixture(params=[(2, 1, False), (3, 1, True), (4, 2, False), (4, 0, True)], name="case")
def _case(request, method):
    effects, rank, crossed = request.param
    likelihood = MixedModel.build(draw(effects, rank, crossed, seed=effects), method).likelihood
    return likelihood, likelihood.maximise_nonnegative(None, Rules())


def matrices(likelihood, rows, halved):
    """Symmetric matrices (genes, k, k) of each term; the score's entries off the diagonal count twice."""
    for term in likelihood.terms:
        A = np.zeros((rows.shape[1], term.effects, term.effects))
        for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
            A[:, a, b] = A[:, b, a] = rows[row] * (0.5 if halved and a != b else 1.0)
        yield A


def test_every_gene_reaches_an_optimum(case):
    _, outcome = case
    assert np.isin(outcome.status, [int(status) for status in OPTIMUM]).all()


def test_optimality_conditions_of_the_cone(case):
    """Sigma >= 0, S <= 0 where Sigma may grow, and S Sigma = 0, in units of the standard errors."""
    likelihood, outcome = case
    found = likelihood.evaluate(outcome.theta)
    sd = np.sqrt(np.einsum("iig->ig", found.information)).max(axis=0)
    both = zip(matrices(likelihood, outcome.theta, False), matrices(likelihood, found.score, True), strict=True)
    for sigma, score in both:
        assert (np.linalg.eigvalsh(sigma)[:, 0] > -1e-12 * outcome.theta[-1]).all()
        assert (np.linalg.eigvalsh(score)[:, -1] < 1e-3 * sd).all()
        product = np.abs(np.einsum("gij,gjk->gik", score, sigma)).max(axis=(1, 2))
        np.testing.assert_array_less(product, 1e-3)
    assert (smallest_eigenvalues(likelihood, outcome.theta) <= 1e-10).mean() > 0.3


def test_derivatives_in_the_factor_are_those_of_the_value(case):
    likelihood, outcome = case
    few = likelihood.select(np.arange(3))
    rng = np.random.default_rng(0)
    objective = FactorObjective.at(few, outcome.theta[:, :3] * np.array([1.0, 1.1, 0.9]))
    theta = objective.start * (1 + 0.2 * rng.normal(size=objective.start.shape)) + 0.01
    score = objective.attempt(theta).score
    for i in range(len(theta)):
        h = np.zeros_like(theta)
        h[i] = 1e-5
        slope = (objective.attempt(theta + h).value - objective.attempt(theta - h).value) / 2e-5
        np.testing.assert_allclose(score[i], slope, rtol=1e-4, atol=1e-3 * np.abs(score).max())
