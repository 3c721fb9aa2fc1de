"""Maximise a likelihood over covariance matrices that are positive semi-definite, singular ones included.

Each covariance matrix is Sigma = B Lambda Lambda' B' with a lower triangular Lambda, and the maximisation is over the
entries of Lambda and the residual variance. Score and expected information follow by the chain rule; to the
information is added the curvature of Sigma in Lambda where the score pushes Sigma out of the cone, so that steps
towards a singular matrix converge as Newton's do. After some steps B becomes the basis of the eigenvectors of Sigma,
largest first: null directions then lie along the last columns of Lambda, where they are reached without turning the
others. At the optimum the score matrix S of each term meets S Sigma = 0 and S <= 0 on the null space of Sigma: lme4's
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backend.arrays import Array, flag_indices, indices, namespace, zeros
from ..backend.linalg import eigh_stack, identity
from .covariance_terms import Entries, Term, product, stacked, transposed
from .fisher_scoring import Evaluation, Outcome, Rules, maximise
from .status import Status

#: Share of the residual variance that each effect has in the average row where scoring starts.
_START = 0.1
#: Share of the information that is added to it: directions that turn Lambda and leave Sigma as it is have none.
_RIDGE = 1e-9
#: Eigenvalues of Sigma, as shares of the residual variance, that become exactly zero at the end, and those that
#: Lambda starts from.
_SNAP, _FLOOR = 1e-7, 1e-6
#: Steps before the basis is chosen anew.
_ROUND = 8


@dataclass(frozen=True)
class FactorObjective:
    """The likelihood as a function of the entries of Lambda and of s_0, (L+1, b)."""

    likelihood: Any
    bases: tuple[Array, ...]  #: B of each term (b, k, k)
    start: Array  #: (L+1, b)

    @classmethod
    def begun(cls, likelihood: Any) -> FactorObjective:
        """Start from uncorrelated effects of equal, moderate size."""
        xp = namespace(likelihood.yry)
        s_0 = likelihood.yry / likelihood.residual_df
        rows, bases = [], []
        for term in likelihood.terms:
            unit = identity(term.effects, likelihood.yry)[None, :, :] + zeros((s_0.shape[0], 1, 1), s_0)
            bases.append(unit / _sizes(likelihood, term)[None, :, None])
            rows += [xp.sqrt(_START * s_0) if a == b else xp.zeros_like(s_0) for a, b in term.pairs]
        return cls(likelihood, tuple(bases), xp.stack([*rows, s_0], axis=0))

    @classmethod
    def at(cls, likelihood: Any, theta: Array) -> FactorObjective:
        """Start from covariance matrices (L+1, b), in the basis of their eigenvectors; none is quite singular."""
        xp = namespace(theta)
        rows, bases = [], []
        for term in likelihood.terms:
            values, vectors = eigh_stack(stacked(_scaled(likelihood, term, theta)))
            values, vectors = xp.flip(values, axis=1), xp.flip(vectors, axis=2)
            bases.append(vectors / _sizes(likelihood, term)[None, :, None])
            root = xp.sqrt(xp.where(values > _FLOOR, values, _FLOOR) * theta[-1, :][:, None])
            rows += [root[:, a] if a == b else xp.zeros_like(root[:, 0]) for a, b in term.pairs]
        return cls(likelihood, tuple(bases), xp.stack([*rows, theta[-1, :]], axis=0))

    def begin(self) -> tuple[Array, Evaluation]:
        """Start, and the evaluation there."""
        return self.start, self.attempt(self.start)

    def attempt(self, theta: Array) -> Evaluation:
        """Value, score and information at (Lambda, s_0)."""
        return self._moved(theta, self.likelihood.attempt(self.covariances(theta)))

    def select(self, index: Array) -> FactorObjective:
        """Return the same for some of the genes."""
        xp = namespace(index)
        bases = tuple(xp.take(B, index, axis=0) for B in self.bases)
        return FactorObjective(self.likelihood.select(index), bases, xp.take(self.start, index, axis=1))

    def covariances(self, theta: Array) -> Array:
        """Variances and covariances (L+1, b) at (Lambda, s_0)."""
        xp = namespace(theta)
        rows: list[Array] = []
        for term, B in zip(self.likelihood.terms, self.bases, strict=True):
            root = product(_entries(B), _factor(term, theta))
            sigma = product(root, transposed(root))
            rows += [sigma[a][b] for a, b in term.pairs]
        return xp.stack([*rows, theta[-1, :]], axis=0)

    def _moved(self, theta: Array, found: Evaluation) -> Evaluation:
        # score and information in Lambda, from those in Sigma, by way of B^-1 Sigma B'^-1
        xp, terms = namespace(theta), self.likelihood.terms
        R = xp.permute_dims(_congruence(terms, self.bases, theta), (2, 0, 1))  # (b, L+1, L+1)
        turned = xp.matmul(xp.matrix_transpose(R), xp.permute_dims(found.score, (1, 0))[:, :, None])  # (b, L+1, 1)
        J = xp.permute_dims(_jacobian(terms, theta), (2, 0, 1))  # (b, L+1, L+1)
        score = xp.matmul(xp.matrix_transpose(J), turned)[:, :, 0]
        RJ = xp.matmul(R, J)
        information = xp.matmul(xp.matrix_transpose(RJ), xp.matmul(xp.permute_dims(found.information, (2, 0, 1)), RJ))
        outward = _outward(terms, xp.permute_dims(turned[:, :, 0], (1, 0)))
        information = xp.permute_dims(information, (1, 2, 0)) + outward
        ridge = xp.stack([information[i, i, :] for i in range(theta.shape[0])], axis=0)  # (L+1, b)
        information = information + _RIDGE * identity(theta.shape[0], theta)[:, :, None] * ridge[None, :, :]
        return replace(found.with_derivatives(xp.permute_dims(score, (1, 0)), information), v=None)


def maximise_semidefinite(likelihood: Any, start: Array | None, rules: Rules) -> Outcome:
    """Maximise over positive semi-definite covariance matrices, from `start` (L+1, b) if it is given."""
    xp = namespace(likelihood.yry)
    objective = FactorObjective.begun(likelihood) if start is None else FactorObjective.at(likelihood, start)
    used = min(_ROUND, rules.max_iter)
    rounds = replace(rules, nonnegative=False, max_iter=used)
    outcome = _round(objective, rounds)
    while used < rules.max_iter:
        left = flag_indices((outcome.status == int(Status.MAX_ITER)) | (outcome.status == int(Status.FAILED)))
        if not left.size:
            break
        index = indices(left, outcome.theta)
        objective = FactorObjective.at(likelihood.select(index), xp.take(outcome.theta, index, axis=1))
        steps = min(_ROUND, rules.max_iter - used)
        part = _round(objective, replace(rounds, max_iter=steps, relaxed=True))
        outcome = outcome.replaced(left, replace(part, niter=part.niter + used))
        used += steps
    theta = _snapped(likelihood, outcome.theta)
    return replace(outcome, theta=theta, yPy=likelihood.evaluate(theta).yPy)


def _round(objective: FactorObjective, rules: Rules) -> Outcome:
    # some steps in one basis; theta as covariance matrices
    outcome = maximise(objective, None, rules)
    return replace(outcome, theta=objective.covariances(outcome.theta))


def _entries(B: Array) -> Entries:
    # of a stack (b, k, k): rows of vectors (b,)
    return [[B[:, i, j] for j in range(B.shape[2])] for i in range(B.shape[1])]


def _congruence(terms: Sequence[Term], bases: Sequence[Array], theta: Array) -> Array:
    # d (Sigma, s_0) / d (M, s_0) for Sigma = B M B' (L+1, L+1, b)
    xp, size = namespace(theta), theta.shape[0]
    zero = xp.zeros_like(theta[0, :])
    R = [[zero] * size for _ in range(size)]
    R[-1][-1] = zero + 1.0
    for term, B in zip(terms, bases, strict=True):
        for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
            for column, (c, e) in zip(term.parameters, term.pairs, strict=True):
                entry = B[:, a, c] * B[:, b, e]
                R[row][column] = entry if c == e else entry + B[:, a, e] * B[:, b, c]
    return xp.stack([xp.stack(line, axis=0) for line in R], axis=0)


def _sizes(likelihood: Any, term: Term) -> Array:
    # root mean squares of the effects of a term in the average row (k,)
    xp = namespace(likelihood.scale)
    return xp.stack([xp.sqrt(likelihood.scale[row, 0]) for row in term.parameters[: term.effects]], axis=0)


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
