"""The block engine against dense n x n algebra, finite differences and the two other engines."""

from __future__ import annotations

from dataclasses import dataclass

import dense
import numpy as np
import pytest

from lmm_gpu.estimation.covariance_terms import terms_of
from lmm_gpu.estimation.grouped_effects import GroupedEffects
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.projection import Projection
from lmm_gpu.sumstats.assembly import cross_products

GENES = 3


@dataclass(frozen=True, repr=False)
class Correlated(dense.Design):
    """A design whose next `effects` blocks of Z share a covariance matrix."""

    effects: tuple[int, ...] = ()

    @property
    def terms(self):
        return terms_of(self.d, self.effects)

    def selectors(self) -> np.ndarray:
        """E_l (L, q, q)."""
        found = []
        for term in self.terms:
            for a, b in term.pairs:
                E = np.zeros((sum(self.d),) * 2)
                for i, j in {(a, b), (b, a)}:
                    rows, columns = (np.arange(*term.rows(effect)) for effect in (i, j))
                    E[rows, columns] = 1
                found.append(E)
        return np.stack(found)

    def kernels(self) -> np.ndarray:
        return np.stack([*(self.Z @ E @ self.Z.T for E in self.selectors()), np.eye(self.n)])


def make_designs():
    rng = np.random.default_rng(5)
    n = 70
    donor, batch = rng.permutation(np.arange(n) % 9), rng.permutation(np.arange(n) % 5)
    donor[:8] = 0
    x, ones = rng.normal(size=n), np.ones(n)
    X = np.column_stack([ones, donor % 2, x])
    D, B, C = dense.one_hot(donor, 9), dense.one_hot(batch, 5), dense.one_hot(2 * donor + batch % 2, 18)
    Dx, Bx, Cx = D * x[:, None], B * x[:, None], C * x[:, None]
    part = (batch % 2)[:, None]
    few = np.where(donor == 3, 1.0, x)[:, None]  # one group in which the slope is confounded with the intercept
    return {
        "slope": Correlated(X, np.hstack([D, Dx]), (9, 9), (2,)),
        "factor": Correlated(X, np.hstack([D * (1 - part), D * part]), (9, 9), (2,)),
        "three": Correlated(X, np.hstack([D, Dx, D * x[:, None] ** 2]), (9, 9, 9), (3,)),
        "crossed": Correlated(X, np.hstack([D, Dx, B]), (9, 9, 5), (2, 1)),
        "crossed_first": Correlated(X, np.hstack([B, D, Dx]), (5, 9, 9), (1, 2)),
        "both_correlated": Correlated(X, np.hstack([D, Dx, B, Bx]), (9, 9, 5, 5), (2, 2)),
        "nested": Correlated(X, np.hstack([D, Dx, C, Cx]), (9, 9, 18, 18), (2, 2)),
        "confounded_group": Correlated(X, np.hstack([D, D * few]), (9, 9), (2,)),
    }


DESIGNS = make_designs()


def draw_theta(design, kind, seed=1):
    """Parameters (L+1, GENES): covariance matrices that are positive definite, singular or slightly indefinite."""
    rng = np.random.default_rng(seed)
    columns = []
    for _ in range(GENES):
        theta = []
        for term in design.terms:
            root = rng.normal(size=(term.effects,) * 2) * 0.5
            if kind != "positive":
                root[:, -1] = 0.0
            sigma = root @ root.T - (0.01 * np.eye(term.effects) if kind == "indefinite" else 0.0)
            theta += [sigma[pair] for pair in term.pairs]
        columns.append([*theta, rng.uniform(0.7, 1.5)])
    return np.array(columns).T


def model_of(design, Y, method):
    """The model by blocks, whatever the design."""
    names = tuple((f"t{i}", tuple(f"e{j}" for j in range(k))) for i, k in enumerate(design.effects))
    summary = cross_products(design.X, design.Z, Y, d=design.d, random_terms=names)
    model = MixedModel.build(summary, method)
    if isinstance(model.likelihood, GroupedEffects):
        return model
    return MixedModel.by_blocks(summary, method).with_genes(summary)


@pytest.fixture(params=DESIGNS, name="correlated")
def _correlated(request):
    return DESIGNS[request.param]


@pytest.fixture(params=["positive", "singular", "indefinite"])
def case(request, correlated, method):
    Y, theta = dense.draw_genes(correlated, GENES), draw_theta(correlated, request.param)
    return correlated, Y, theta, method, model_of(correlated, Y, method)


def deviations(F):
    return np.sqrt(np.diagonal(F))


def test_value_score_and_information_are_dense(case):
    design, Y, theta, method, model = case
    found = model.likelihood.evaluate(theta)
    assert found.ok.all()
    for gene, (y, t) in enumerate(zip(Y.T, theta.T, strict=True)):
        F = dense.information(design, t, method)
        sd = deviations(F)
        np.testing.assert_allclose(found.value[gene], dense.loglik(design, y, t, method), rtol=1e-10)
        np.testing.assert_allclose(found.score[:, gene] / sd, dense.score(design, y, t, method) / sd, atol=1e-8)
        np.testing.assert_allclose(found.information[:, :, gene] / np.outer(sd, sd), F / np.outer(sd, sd), atol=1e-9)
        np.testing.assert_allclose(found.yPy[gene], t[-1] * y @ design.P(t) @ y, rtol=1e-9)


def test_information_needs_no_genes(case):
    design, _, theta, method, model = case
    alone = model.likelihood.select(np.arange(0)).information(theta)
    for gene, t in enumerate(theta.T):
        F = dense.information(design, t, method)
        np.testing.assert_allclose(alone[:, :, gene], F, atol=1e-9 * np.abs(F).max())


def test_observed_information_is_minus_the_curvature(case):
    design, Y, theta, method, model = case
    found = model.likelihood.observed_information(theta)
    for gene, (y, t) in enumerate(zip(Y.T, theta.T, strict=True)):
        wanted = dense.observed_information(design, y, t, method)
        np.testing.assert_allclose(found[:, :, gene], wanted, atol=1e-6 * np.abs(wanted).max())


def test_fixed_effects_and_blups_are_dense(case):
    design, Y, theta, _, model = case
    coef, u, cov = model.coefficients(theta), model.random_effects(theta), model.covariance(theta)
    for gene, (y, t) in enumerate(zip(Y.T, theta.T, strict=True)):
        beta, D = dense.beta(design, y, t), np.tensordot(t[:-1], design.selectors(), axes=1)
        np.testing.assert_allclose(coef[:, gene], beta, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(cov[:, :, gene], dense.beta_covariance(design, t), rtol=1e-8, atol=1e-10)
        residual = np.linalg.solve(design.V(t), y - design.X @ beta)
        np.testing.assert_allclose(u[:, gene], D @ design.Z.T @ residual, rtol=1e-7, atol=1e-8)


def test_forms_of_contrasts_are_the_dense_products(case):
    design, _, theta, _, model = case
    like, rows = model.likelihood, np.random.default_rng(2).normal(size=(4, 3))
    g, a, E = like.ratios(theta), (rows @ model.xxz).T, design.selectors()
    pairs, squares = like.gradient_pairs(g, a), like.gradient_form(g, a)
    moved_pairs, moved = like.adjustment_pairs(g, a), like.adjustment_form(g, a)
    for gene, t in enumerate(theta.T):
        w = design.Z.T @ np.linalg.solve(design.V(t), design.X @ dense.beta_covariance(design, t) @ rows.T)
        ZVZ = t[-1] * design.Z.T @ design.P(t) @ design.Z
        size, moved_size = np.abs(w.T @ w).max(), np.abs(w.T @ ZVZ @ w).max()
        for i, E_i in enumerate(E):
            np.testing.assert_allclose(pairs[i, :, :, gene], w.T @ E_i @ w, atol=1e-9 * size)
            np.testing.assert_allclose(squares[i, :, gene], np.diag(w.T @ E_i @ w), atol=1e-9 * size)
            for j, E_j in enumerate(E):
                wanted = w.T @ E_i @ ZVZ @ E_j @ w
                np.testing.assert_allclose(moved_pairs[i, j, :, :, gene], wanted, atol=1e-8 * moved_size)
                np.testing.assert_allclose(moved[i, j, :, gene], np.diag(wanted), atol=1e-8 * moved_size)


def test_pieces_of_genes_give_what_all_at_once_give(correlated, monkeypatch):
    Y, theta = dense.draw_genes(correlated, GENES), draw_theta(correlated, "positive")
    whole = model_of(correlated, Y, "REML").likelihood.evaluate(theta)
    monkeypatch.setattr("lmm_gpu.estimation.grouped_forms.PIECE_BYTES", 1)
    parts = model_of(correlated, Y, "REML").likelihood.evaluate(theta)
    for name in ("value", "score", "information", "yPy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_invalid_where_V_is_not_positive_definite(correlated, method):
    Y, theta = dense.draw_genes(correlated, GENES), draw_theta(correlated, "positive")
    theta[0] = -5.0
    found = model_of(correlated, Y, method).likelihood.evaluate(theta)
    wanted = [correlated.smallest_eigenvalue(t, method) > 0 for t in theta.T]
    assert not any(wanted)
    assert found.ok.tolist() == wanted


def test_rank_is_that_of_Z_once_X_is_taken_out(correlated):
    model = model_of(correlated, dense.draw_genes(correlated, 1), "REML")
    wanted = np.linalg.matrix_rank(np.hstack([correlated.X, correlated.Z])) - correlated.X.shape[1]
    assert model.likelihood.rank == wanted


@pytest.mark.parametrize("name", ["one_nested", "one_crossed", "two", "two_within", "three_widest_inside", "slope"])
@pytest.mark.parametrize("kind", ["positive", "mixed"])
def test_three_engines_agree_where_they_overlap(name, kind, method):
    """Uncorrelated effects: the spectral engines and the block engine are the same function of theta."""
    design = dense.DESIGNS[name]
    Y, theta = dense.draw_genes(design, GENES), dense.draw_theta(design, GENES, kind)
    summary = cross_products(design.X, design.Z, Y, d=design.d)
    spectral = MixedModel.spectral(summary, method).with_genes(summary)
    blocks = MixedModel.by_blocks(summary, method).with_genes(summary)
    assert len(blocks.likelihood.eliminated.terms) == (2 if name == "slope" else 1)
    a, b = spectral.likelihood.evaluate(theta), blocks.likelihood.evaluate(theta)
    np.testing.assert_array_equal(a.ok, b.ok)
    sd = np.sqrt(np.einsum("iig->ig", a.information))
    np.testing.assert_allclose(b.value, a.value, rtol=1e-10)
    np.testing.assert_allclose(b.score / sd, a.score / sd, atol=1e-8 * (1 + np.abs(a.score / sd).max()))
    np.testing.assert_allclose(b.information, a.information, rtol=1e-7, atol=1e-8 * np.abs(a.information).max())
    np.testing.assert_allclose(blocks.coefficients(theta), spectral.coefficients(theta), rtol=1e-7, atol=1e-8)
    C = np.eye(design.X.shape[1])
    for form in ("contrast_variance", "contrast_gradient"):
        wanted = getattr(spectral, form)(theta, spectral.prepare(C))
        np.testing.assert_allclose(getattr(blocks, form)(theta, blocks.prepare(C)), wanted, rtol=1e-7, atol=1e-9)


def test_projection_by_blocks_forms_nothing_of_the_size_of_the_effects_squared():
    design = DESIGNS["slope"]
    summary = cross_products(design.X, design.Z, dense.draw_genes(design, 1), d=design.d)
    assert Projection.build(summary, by_blocks=True).S is None
