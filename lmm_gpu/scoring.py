"""Fisher scoring over a batch of genes: start, step, safeguard, terminate. The loop exists once, here.

It knows no statistics: a likelihood is something that evaluates a value, a gradient and an information
matrix per gene. Every gene moves at its own pace inside the batch. A trial point that is not valid, or lies
below the accepted one, halves that gene's step and nobody else's; where full steps are valid and rising the
iterates are those of plain Fisher scoring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

from .arrays import Array, flag_indices, indices, like, namespace, to_numpy, zeros
from .linalg import cholesky_small, solve_small

#: Relaxed steps are at most this many times Fisher's.
LONGEST_STEP = 16.0
#: A gene whose step has been halved this often is stuck.
SHORTEST_STEP = 2.0**-24
#: Share of a batch that has to be done before these genes are taken out of it.
WORTH_LEAVING = 0.25
#: A step shorter than the square root of this, in standard errors of theta, is small on every scale of y.
SMALL_DECREMENT = 1e-10


class Status(IntEnum):
    """How the estimation of one gene ended."""

    RUNNING = 0
    CONVERGED = 1  #: max |score| <= epsilon
    CONVERGED_AT_ROUNDING = 2  #: no step changes the log-likelihood beyond rounding
    BOUNDARY = 3  #: converged with a variance component held at zero
    MAX_ITER = 4  #: stopped by max_iter
    NO_VARIANCE = 5  #: the gene does not vary once X is taken out
    FAILED = 6  #: no valid estimate

    @property
    def word(self) -> str:
        """Lower-case name, as results show it."""
        return self.name.lower()


@dataclass(frozen=True)
class Evaluation:
    """Log-likelihood and its derivatives at one theta per gene."""

    value: Array  #: (b,), log-likelihood
    score: Array  #: (k+1, b), its gradient
    information: Array  #: (k+1, k+1, b), expected (Fisher) information
    quad: Array  #: (b,), y' P0 y
    rounding: Array  #: (b,), rounding error of `value`: differences below it mean nothing
    ok: Array  #: (b,), bool: the numbers are valid


class Objective(Protocol):
    """What the loop needs of a likelihood."""

    def begin(self) -> tuple[Array, Evaluation]:
        """Where to start, theta (k+1, b), and the evaluation there."""

    def evaluate(self, theta: Array) -> Evaluation:
        """Value, score and information at theta (k+1, b)."""

    def select(self, index: Array) -> Objective:
        """Return the same for some of the genes."""


@dataclass(frozen=True)
class Rules:
    """When to stop, and whether components may be negative."""

    epsilon: float = 1e-5
    max_iter: int = 50
    nonnegative: bool = False
    relaxed: bool = False  #: lengthen or shorten steps by the rate of convergence that is seen


@dataclass(frozen=True)
class State:
    """Where each gene of the batch stands; b genes."""

    theta: Array  #: (k+1, b), last accepted point
    step: Array  #: (k+1, b), full step from there
    length: Array  #: (b,), share of the step to try next
    value: Array  #: (b,), log-likelihood at theta
    slack: Array  #: (b,), its rounding error
    quad: Array  #: (b,), y' P0 y at theta
    decrement: Array  #: (b,), score' information^-1 score at theta
    niter: Array  #: (b,), accepted evaluations
    halved: Array  #: (b,), bool: a step was ever refused
    status: Array  #: (b,), Status; anything but RUNNING allows one last step
    done: Array  #: (b,), bool: the last step is behind it


@dataclass(frozen=True)
class Outcome:
    """Where each gene ended."""

    theta: Array  #: (k+1, b)
    quad: Array  #: (b,), y' P0 y there
    niter: Array  #: (b,)
    status: Array  #: (b,)
    halved: Array  #: (b,), bool


def maximise(objective: Objective, start: Array | None, rules: Rules) -> Outcome:
    """Maximise the likelihood of every gene from `start` (k+1, b), or from where the objective begins.

    As in FLASHMM, `niter` counts evaluations and a last step follows the one that met the stopping rule.
    Genes that are done stand still, and leave the batch together once they are many.
    """
    found = None
    if start is None:
        start, found = objective.begin()
    state = _begin(start)
    alive = to_numpy(namespace(start).arange(start.shape[1]))  # positions of the batch's genes in `start`
    left: list[tuple[Array, State]] = []
    while alive.shape[0] > 0:
        state, found = advance(state, objective, rules, found), None
        done = to_numpy(state.done)
        if done.sum() < WORTH_LEAVING * done.shape[0]:
            continue
        left.append((alive[done], _take(state, indices(flag_indices(done), start))))
        stay = indices(flag_indices(~done), start)
        alive, state, objective = alive[~done], _take(state, stay), objective.select(stay)
    return _collect(left, start)


def advance(state: State, objective: Objective, rules: Rules, found: Evaluation | None = None) -> State:
    """Try one step for every gene: accept it and plan the next one, or halve it.

    `found` is the evaluation at the trial point, if it is known.
    """
    xp = namespace(state.theta)
    trial = state.theta + state.length[None, :] * state.step  # (k+1, b)
    if rules.nonnegative:
        trial = _clear_rounding(state, trial)
    found = objective.evaluate(trial) if found is None else found
    last = state.status != int(Status.RUNNING)
    accept = found.ok & (found.value >= state.value - state.slack) & ~state.done
    plan = accept & ~last

    step, decrement, score_size = _plan_step(trial, found, rules)
    niter = state.niter + xp.astype(plan, state.niter.dtype)
    full = _relaxation(state, step, found, rules) if rules.relaxed else xp.ones_like(state.length)
    length = xp.where(plan, xp.minimum(full, _longest(trial, step, rules)), 0.5 * state.length)
    after = State(
        theta=xp.where(accept[None, :], trial, state.theta),
        step=xp.where(plan[None, :], step, state.step),
        length=length,
        value=xp.where(accept, found.value, state.value),
        slack=xp.where(accept, found.rounding, state.slack),
        quad=xp.where(accept, found.quad, state.quad),
        decrement=xp.where(plan, decrement, state.decrement),
        niter=niter,
        halved=state.halved | ~(accept | last),
        status=state.status,
        done=last,
    )
    return replace(after, status=_judge(state, after, plan, score_size, rules))


def _judge(before: State, after: State, plan: Array, score_size: Array, rules: Rules) -> Array:
    # the first rule that applies to a running gene
    xp = namespace(plan)
    at_rounding = 0.5 * after.decrement <= after.slack
    converged = plan & (score_size <= rules.epsilon) & (after.decrement <= SMALL_DECREMENT)
    rounding = plan & at_rounding & (after.decrement >= before.decrement)
    stuck = ~plan & (after.length < SHORTEST_STEP)
    out_of_steps = plan & (after.niter >= rules.max_iter)
    verdict = xp.where(stuck, int(Status.FAILED), xp.zeros_like(after.niter))
    verdict = xp.where(out_of_steps, int(Status.MAX_ITER), verdict)
    nothing_to_gain = at_rounding & (~plan | out_of_steps)  # a step that is refused, or the last one
    verdict = xp.where(rounding | nothing_to_gain, int(Status.CONVERGED_AT_ROUNDING), verdict)
    verdict = xp.where(converged, int(Status.CONVERGED), verdict)
    return xp.where(before.status == int(Status.RUNNING), verdict, before.status)


def _plan_step(theta: Array, found: Evaluation, rules: Rules) -> tuple[Array, Array, Array]:
    # Fisher step (k+1, b), its decrement (b,) and the largest score among the components that may move (b,)
    xp = namespace(theta)
    score, held = found.score, None
    if rules.nonnegative:
        held = _held(theta, found)
        score = xp.where(held, 0.0, score)
    step = _fisher_step(found.information, score, held)
    return step, xp.sum(step * score, axis=0), xp.max(xp.abs(score), axis=0)


def _fisher_step(information: Array, score: Array, held: Array | None) -> Array:
    # information^-1 score, on the components that are not held: their rows and columns become the identity
    xp = namespace(score)
    if held is not None:
        either = held[:, None, :] | held[None, :, :]  # (k+1, k+1, b)
        unit = like(xp.eye(score.shape[0]), score)[:, :, None]
        information = xp.where(either, unit, information)
    factor, _ = cholesky_small(information)
    return solve_small(factor, score)


def _held(theta: Array, found: Evaluation) -> Array:
    """Components that stay at zero (k+1, b): those at zero that the score, or the joint step, would push below.

    Holding one changes the step of the others, so this is repeated once per component. Projecting the
    joint step instead would leave the residual variance off its optimum.
    """
    xp = namespace(theta)
    k = theta.shape[0] - 1
    at_zero = theta <= 0
    held = at_zero & (found.score <= 0)
    for _ in range(k):
        step = _fisher_step(found.information, xp.where(held, 0.0, found.score), held)
        held = held | (at_zero & (step < 0))
    return held


def _longest(theta: Array, step: Array, rules: Rules) -> Array:
    # longest share of the step (b,) that is allowed: where components must not be negative, up to the first at zero
    xp = namespace(theta)
    limit = xp.ones_like(theta[0, :]) * LONGEST_STEP
    if not rules.nonnegative:
        return limit
    k = theta.shape[0] - 1
    falling = step[:k, :] < 0
    reach = xp.where(falling, -theta[:k, :] / xp.where(falling, step[:k, :], -1.0), LONGEST_STEP)  # (k, b)
    return xp.minimum(limit, xp.min(reach, axis=0))


def _relaxation(state: State, step: Array, found: Evaluation, rules: Rules) -> Array:
    """Length of the next step (b,) from how the last one changed it.

    Scoring converges linearly, step' = rho step, with rho close to 1 or -1 where the expected information is far
    from the observed one. A step of length a leaves the share 1 - a (1 - rho) of the error; the length 1 / (1 - rho)
    would leave none, and a / (1 - rho') estimates it from the rho' seen at length a (Aitken's extrapolation).
    """
    xp = namespace(step)
    metric = xp.sum(found.information * state.step[None, :, :], axis=1)  # (k+1, b)
    before = xp.sum(state.step * metric, axis=0)
    rho = xp.sum(step * metric, axis=0) / xp.where(before > 0, before, 1.0)  # (b,)
    length = state.length / xp.maximum(1.0 - rho, like(1.0 / LONGEST_STEP, rho))
    return xp.minimum(xp.maximum(length, like(0.5, rho)), like(LONGEST_STEP, rho))


def _clear_rounding(state: State, trial: Array) -> Array:
    # a component that was sent to zero lands there exactly
    xp = namespace(trial)
    k = trial.shape[0] - 1
    tiny = 1e-12 * xp.abs(state.theta[:k, :])
    sent = (state.step[:k, :] < 0) & (trial[:k, :] <= tiny)
    return xp.concat([xp.where(sent, 0.0, trial[:k, :]), trial[k:, :]], axis=0)


def _begin(start: Array) -> State:
    # no step yet: the first trial is the start itself
    xp = namespace(start)
    b = start.shape[1]
    nothing, no = zeros((b,), start), zeros((b,), start, dtype=xp.bool)
    count = zeros((b,), start, dtype=xp.int64)
    infinite = nothing + float("inf")
    return State(
        theta=start,
        step=xp.zeros_like(start),
        length=nothing + 1.0,
        value=-infinite,
        slack=nothing,
        quad=infinite,
        decrement=infinite,
        niter=count,
        halved=no,
        status=count,
        done=no,
    )


def _take(state: State, index: Array) -> State:
    xp = namespace(state.theta)
    return State(**{name: xp.take(x, index, axis=x.ndim - 1) for name, x in vars(state).items()})


def _collect(left: list[tuple[Array, State]], start: Array) -> Outcome:
    # genes back in their first order
    xp = namespace(start)
    positions = xp.concat([indices(position, start) for position, _ in left], axis=0)
    order = xp.argsort(positions)
    parts = [state for _, state in left]
    joined = {
        name: xp.take(
            xp.concat([getattr(s, name) for s in parts], axis=-1), order, axis=getattr(parts[0], name).ndim - 1
        )
        for name in ("theta", "quad", "niter", "status", "halved")
    }
    return Outcome(**joined)
