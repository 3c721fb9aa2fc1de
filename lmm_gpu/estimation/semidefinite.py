"""Maximise a likelihood over covariance matrices that are positive semi-definite, singular ones included.

Each covariance matrix is Sigma = Lambda Lambda' with a lower triangular Lambda, and the maximisation is over the
entries of Lambda and the residual variance. Score and expected information follow by the chain rule; to the
information is added the curvature of Sigma in Lambda where the score pushes Sigma out of the cone, so that steps
towards a singular matrix converge as Newton's do. At the optimum the score matrix S of each term meets S Lambda = 0 and
S <= 0 on the null space of Sigma: lme4's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backend.arrays import Array, namespace
from ..backend.linalg import cholesky, eigh_stack, identity
from .covariance_terms import Entries, Term, product, stacked, transposed
from .fisher_scoring import Evaluation, Outcome, Rules, maximise

#: Share of the residual variance that each effect has in the average row where scoring starts.
_START = 0.1
#: Share of the information that is added to it: directions that rotate Lambda and leave Sigma as it is have none.
_RIDGE = 1e-9
#: Eigenvalues of Sigma, as shares of the residual variance, that become exactly zero at the end.
_SNAP = 1e-7


@dataclass(frozen=True)
class FactorObjective:
    """The likelihood as a function of the entries of Lambda and of s_0, (L+1, b)."""

    likelihood: Any

    def begin(self) -> tuple[Array, Evaluation]:
        """Where to start: uncorrelated effects of equal, moderate size."""
        xp, like = namespace(self.likelihood.yry), self.likelihood
        s_0 = like.yry / like.residual_df
        rows = []
        for term in like.terms:
            for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
                rows.append(xp.sqrt(_START * s_0 / like.scale[row, 0]) if a == b else xp.zeros_like(s_0))
        start = xp.stack([*rows, s_0], axis=0)
        return start, self.attempt(start)

    def attempt(self, theta: Array) -> Evaluation:
        """Value, score and information at (Lambda, s_0)."""
        return self._moved(theta, self.likelihood.attempt(covariances(self.likelihood.terms, theta)))

    def select(self, index: Array) -> FactorObjective:
        """Return the same for some of the genes."""
        return replace(self, likelihood=self.likelihood.select(index))

    def _moved(self, theta: Array, found: Evaluation) -> Evaluation:
        # score and information in Lambda, from those in Sigma
        xp, terms = namespace(theta), self.likelihood.terms
        J = xp.permute_dims(_jacobian(terms, theta), (2, 0, 1))  # (b, L+1 of theta, L+1 of Lambda)
        score = xp.matmul(xp.matrix_transpose(J), xp.permute_dims(found.score, (1, 0))[:, :, None])[:, :, 0]
        information = xp.matmul(xp.matrix_transpose(J), xp.matmul(xp.permute_dims(found.information, (2, 0, 1)), J))
        information = xp.permute_dims(information, (1, 2, 0)) + _outward(terms, found.score)
        ridge = xp.stack([information[i, i, :] for i in range(theta.shape[0])], axis=0)  # (L+1, b)
        unit = identity(theta.shape[0], theta)
        information = information + _RIDGE * unit[:, :, None] * ridge[None, :, :]
        return replace(found.with_derivatives(xp.permute_dims(score, (1, 0)), information), v=None)


def maximise_semidefinite(likelihood: Any, start: Array | None, rules: Rules) -> Outcome:
    """Maximise over positive semi-definite covariance matrices, from `start` (L+1, b) if it is given."""
    objective = FactorObjective(likelihood)
    begin = None if start is None else factors(likelihood, start)
    outcome = maximise(objective, begin, replace(rules, nonnegative=False))
    theta = _snapped(likelihood, covariances(likelihood.terms, outcome.theta))
    return replace(outcome, theta=theta, yPy=likelihood.evaluate(theta).yPy)


def covariances(terms: Sequence[Term], theta: Array) -> Array:
    """Variances and covariances (L+1, b) of the factors in `theta`; the residual variance stays."""
    xp = namespace(theta)
    rows: list[Array] = []
    for term in terms:
        factor = _factor(term, theta)
        sigma = product(factor, transposed(factor))
        rows += [sigma[a][b] for a, b in term.pairs]
    return xp.stack([*rows, theta[-1, :]], axis=0)


def factors(likelihood: Any, theta: Array) -> Array:
    """Entries of Lambda (L+1, b) for covariance matrices, of which negative eigenvalues are taken as zero."""
    xp = namespace(theta)
    rows: list[Array] = []
    for term in likelihood.terms:
        values, vectors = eigh_stack(stacked(term.matrix(theta)))
        floor = _SNAP * theta[-1, :][:, None] / likelihood.scale[term.parameters[0], 0]
        root = vectors * xp.sqrt(xp.where(values > floor, values, floor))[:, None, :]  # (b, k, k), Sigma = root root'
        lower, _ = cholesky(xp.matmul(root, xp.matrix_transpose(root)))
        rows += [lower[:, b, a] for a, b in term.pairs]
    return xp.stack([*rows, theta[-1, :]], axis=0)


def smallest_eigenvalues(likelihood: Any, theta: Array) -> Array:
    """Smallest eigenvalue (b,) of all covariance matrices, of effects in units of the residual standard deviation."""
    xp = namespace(theta)
    found = None
    for term in likelihood.terms:
        values, _ = eigh_stack(stacked(_scaled(likelihood, term, theta)))
        found = values[:, 0] if found is None else xp.minimum(found, values[:, 0])
    return found


def _scaled(likelihood: Any, term: Term, theta: Array) -> Entries:
    # Sigma with effects in units in which their mean square in the average row is the residual variance
    xp = namespace(theta)
    size = [xp.sqrt(likelihood.scale[row, 0]) for row in term.parameters[: term.effects]]
    sigma = term.matrix(theta / xp.where(theta[-1:, :] > 0, theta[-1:, :], 1.0))
    return [[entry * size[a] * size[b] for b, entry in enumerate(row)] for a, row in enumerate(sigma)]


def _snapped(likelihood: Any, theta: Array) -> Array:
    # eigenvalues that are next to zero become zero
    xp = namespace(theta)
    rows: list[Array] = []
    for term in likelihood.terms:
        values, vectors = eigh_stack(stacked(_scaled(likelihood, term, theta)))
        small = values <= _SNAP  # (b, k)
        kept = xp.where(small, 0.0, values)
        matrix = xp.matmul(vectors * kept[:, None, :], xp.matrix_transpose(vectors))  # (b, k, k)
        size = [xp.sqrt(likelihood.scale[row, 0]) for row in term.parameters[: term.effects]]
        touched = xp.any(small, axis=1)
        for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
            moved = theta[-1, :] * matrix[:, a, b] / (size[a] * size[b])
            rows.append(xp.where(touched, moved, theta[row, :]))
    return xp.stack([*rows, theta[-1, :]], axis=0)


def _factor(term: Term, theta: Array) -> Entries:
    # Lambda: entry (b, a) has the row of theta of the parameter (a, b)
    zero = namespace(theta).zeros_like(theta[0, :])
    result: Entries = [[zero] * term.effects for _ in range(term.effects)]
    for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
        result[b][a] = theta[row, :]
    return result


def _jacobian(terms: Sequence[Term], theta: Array) -> Array:
    # d theta / d (Lambda, s_0) (L+1, L+1, b)
    xp, rows = namespace(theta), theta.shape[0]
    zero = xp.zeros_like(theta[0, :])
    J = [[zero] * rows for _ in range(rows)]
    J[-1][-1] = zero + 1.0
    for term in terms:
        factor = _factor(term, theta)
        for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
            for column, (c, e) in zip(term.parameters, term.pairs, strict=True):
                # sigma_ab = sum_c Lambda_ac Lambda_bc, by the entry Lambda_ec
                slope = zero
                if e == a:
                    slope = slope + factor[b][c]
                if e == b:
                    slope = slope + factor[a][c]
                J[row][column] = slope
    return xp.stack([xp.stack(line, axis=0) for line in J], axis=0)


def _outward(terms: Sequence[Term], score: Array) -> Array:
    # twice the part of -S that is positive semi-definite, for each column of Lambda (L+1, L+1, b)
    xp, rows = namespace(score), score.shape[0]
    zero = xp.zeros_like(score[0, :])
    added = [[zero] * rows for _ in range(rows)]
    for term in terms:
        S = term.matrix(score)
        S = [[entry if a == b else 0.5 * entry for b, entry in enumerate(row)] for a, row in enumerate(S)]
        values, vectors = eigh_stack(xp.where(xp.isfinite(stacked(S)), stacked(S), 0.0))
        outward = xp.where(values < 0, -2.0 * values, 0.0)
        matrix = xp.matmul(vectors * outward[:, None, :], xp.matrix_transpose(vectors))  # (b, k, k)
        for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
            for column, (c, e) in zip(term.parameters, term.pairs, strict=True):
                if a == c:
                    added[row][column] = matrix[:, b, e]
    return xp.stack([xp.stack(line, axis=0) for line in added], axis=0)
