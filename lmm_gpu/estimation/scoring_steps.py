"""Steps of Fisher scoring: free, or with variance components held at zero (an active set), and their lengths.

Every argument is a sequence of vectors (b,), one per variance component, so that one kernel makes a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend.arrays import Array
from ..backend.linalg import Vectors, cholesky_rows, solve_rows

#: Relaxed steps are at most this many times Fisher's.
LONGEST_STEP = 16.0


def scoring_step(
    xp: Any, theta: Vectors, score: Vectors, information: Sequence[Vectors], *, nonnegative: bool
) -> tuple[list[Array], list[Array]]:
    """Fisher step (k+1), and the score of the components that may move (k+1), zero for the others.

    With `nonnegative`, components at zero that the step would make negative stay there.
    """
    if not nonnegative:
        return _solve(xp, information, score), list(score)
    active_set = _active_set(xp, theta, score, information)
    free_score = _without_held_score(xp, score, active_set)
    return _solve(xp, _without_held(xp, information, active_set), free_score), free_score


def longest_valid(xp: Any, theta: Vectors, step: Vectors) -> Array:
    """Largest share of the step (b,) that keeps every component from becoming negative."""
    longest = None
    for component, move in zip(theta[:-1], step, strict=False):
        falling = move < 0
        reach = xp.where(falling, -component / xp.where(falling, move, -1.0), LONGEST_STEP)
        longest = reach if longest is None else xp.minimum(longest, reach)
    return longest


def relaxed_length(xp: Any, length: Array, last: Vectors, step: Vectors, information: Sequence[Vectors]) -> Array:
    """Length of the next step (b,) from the rate of convergence between the `last` one, of that `length`, and this.

    Scoring converges linearly, step' = rho step, with rho close to 1 or -1 where the expected information is far
    from the observed one. A step of length a leaves the share 1 - a (1 - rho) of the error; the length 1 / (1 - rho)
    would leave none, and a / (1 - rho') estimates it from the rho' seen at length a (Aitken's extrapolation).
    """
    metric = [sum(F * move for F, move in zip(row, last, strict=True)) for row in information]
    before = sum(a * b for a, b in zip(last, metric, strict=True))
    rho = sum(a * b for a, b in zip(step, metric, strict=True)) / xp.where(before > 0, before, 1.0)  # (b,)
    share = 1.0 - rho
    relaxed = length / xp.where(share < 1.0 / LONGEST_STEP, 1.0 / LONGEST_STEP, share)
    relaxed = xp.where(relaxed < 0.5, 0.5, relaxed)
    return xp.where(relaxed > LONGEST_STEP, LONGEST_STEP, relaxed)


def _solve(xp: Any, information: Sequence[Vectors], score: Vectors) -> list[Array]:
    factor, _ = cholesky_rows(xp, information)
    return solve_rows(factor, score)


def _active_set(xp: Any, theta: Vectors, score: Vectors, information: Sequence[Vectors]) -> list[Array]:
    """Components held at zero (k vectors): those at zero that the score, or the joint step, would make negative.

    Holding one changes the step of the others, so this is repeated once per component. Projecting the joint step
    instead would leave the residual variance off its optimum.
    """
    at_zero = [component <= 0 for component in theta[:-1]]
    active = [zero & (pull <= 0) for zero, pull in zip(at_zero, score, strict=False)]
    for _ in at_zero:
        step = _solve(xp, _without_held(xp, information, active), _without_held_score(xp, score, active))
        active = [one | (zero & (move < 0)) for one, zero, move in zip(active, at_zero, step, strict=False)]
    return active


def _without_held(xp: Any, information: Sequence[Vectors], active_set: Sequence[Array]) -> list[list[Array]]:
    # rows and columns of the components that are held become those of the identity
    held = [*active_set, None]  # the residual variance never is
    result = [list(row) for row in information]
    for i, row in enumerate(information):
        for j, entry in enumerate(row):
            for one in (held[i], held[j]):
                if one is not None:
                    result[i][j] = entry = xp.where(one, 1.0 if i == j else 0.0, entry)
    return result


def _without_held_score(xp: Any, score: Vectors, active_set: Sequence[Array]) -> list[Array]:
    return [*(xp.where(one, 0.0, entry) for one, entry in zip(active_set, score, strict=False)), score[-1]]
