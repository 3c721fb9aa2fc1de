"""Fisher scoring over a batch of genes: start, step, safeguard, terminate.

It knows no statistics: a likelihood evaluates a value, a gradient and an information matrix per gene. Every gene
moves at its own pace inside the batch. A trial point that is not valid, or has a lower value than the accepted one,
halves the step of that gene alone; where full steps are valid and rising the iterates are those of plain Fisher
scoring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..backend.arrays import Array, indices, namespace, on_host, to_numpy, zeros
from ..backend.fusion import flatten, fused, rebuild
from ..backend.linalg import Vectors
from .scoring_steps import longest_valid, relaxed_length, scoring_step
from .status import Status

#: A gene whose step has been halved this often is stuck.
SHORTEST_STEP = 2.0**-24
#: Refused steps after which a free gene is taken to have no interior optimum: genes that have one hardly ever need
#: more, while the others approach the edge of positive definite V by ever shorter steps.
MOST_REFUSED = 40
#: A component that a shortened step leaves at less than this share of its value is zero: rounding of the length.
AT_ZERO = 1e-12
#: Share of a batch that has to be done before these genes are taken out of it.
WORTH_LEAVING = 0.25
#: Off the host, whether genes are done is read after so many steps.
READ_EVERY = 4
#: Newton decrement (squared length of the step in standard errors of theta) up to which a gene may have converged.
SMALL_DECREMENT = 1e-10
#: Newton decrement at which a gene has converged whatever the scale of y, and with it of the score, may be.
TINY_DECREMENT = 1e-20


@dataclass(frozen=True)
class Evaluation:
    """Log-likelihood and its derivatives at one theta per gene."""

    value: Array  #: (b,), log-likelihood
    score_rows: Vectors  #: k+1 vectors (b,), its gradient
    information_rows: tuple[Vectors, ...]  #: k+1 rows of k+1 vectors (b,), expected (Fisher) information
    yPy: Array  #: (b,), y' P0 y
    rounding: Array  #: (b,), rounding error of `value`: smaller differences carry no information
    ok: Array  #: (b,), bool: the numbers are valid
    outside_table: Array | None = None  #: (b,), bool: not evaluated, as the ratios lie outside of the tables
    v: Array | None = None  #: (r, b), intermediate result that the random effects follow from, where it took a solve

    @property
    def score(self) -> Array:
        """Gradient (k+1, b)."""
        return namespace(self.value).stack(list(self.score_rows), axis=0)

    @property
    def information(self) -> Array:
        """Expected information (k+1, k+1, b)."""
        rows = len(self.information_rows)
        stacked = namespace(self.value).stack([entry for row in self.information_rows for entry in row], axis=0)
        return namespace(self.value).reshape(stacked, (rows, rows, self.value.shape[0]))

    def with_derivatives(self, score: Array, information: Array) -> Evaluation:
        """Return the same with another gradient (k+1, b) and information (k+1, k+1, b)."""
        rows = range(score.shape[0])
        return replace(
            self,
            score_rows=tuple(score[i, :] for i in rows),
            information_rows=tuple(tuple(information[i, j, :] for j in rows) for i in rows),
        )


class Objective(Protocol):
    """Interface of a likelihood for the loop."""

    def begin(self) -> tuple[Array, Evaluation]:
        """Start theta (k+1, b), and the evaluation there."""

    def attempt(self, theta: Array) -> Evaluation:
        """Value, score and information at theta (k+1, b), without waiting for the device."""

    def select(self, index: Array) -> Objective:
        """Return the same for some of the genes."""


@dataclass(frozen=True)
class Rules:
    """Stopping rules, and constraints of the components."""

    epsilon: float = 1e-5
    max_iter: int = 50
    nonnegative: bool = False
    relaxed: bool = False  #: lengthen or shorten steps by the observed rate of convergence
    most_refused: int | None = None  #: refused steps, in all, after which a gene is taken to have no optimum


@dataclass(frozen=True)
class State:
    """Progress of each gene of the batch; b genes. Vectors only, so that one kernel makes a step."""

    theta: Vectors  #: k+1 vectors (b,), last accepted point
    step: Vectors  #: k+1 vectors (b,), full step from there
    length: Array  #: (b,), share of the step to try next
    value: Array  #: (b,), log-likelihood at theta
    slack: Array  #: (b,), its rounding error
    yPy: Array  #: (b,), y' P0 y at theta
    decrement: Array  #: (b,), score' information^-1 score at theta
    niter: Array  #: (b,), accepted evaluations
    refused: Array  #: (b,), steps refused so far
    status: Array  #: (b,), Status; anything but RUNNING allows one last step
    done: Array  #: (b,), bool: the last step has been made

    def select(self, index: Array) -> State:
        """Return the state of the genes at `index`."""
        xp = namespace(index)
        vectors, structure = flatten(self)
        selected: State = rebuild(structure, (xp.take(vector, index) for vector in vectors))
        return selected


@dataclass(frozen=True)
class Outcome:
    """Result of the loop for each gene."""

    theta: Array  #: (k+1, b)
    yPy: Array  #: (b,), y' P0 y there
    niter: Array  #: (b,)
    status: Array  #: (b,)
    refused: Array  #: (b,), steps refused on the way

    @property
    def step_halved(self) -> Array:
        """Genes (b,) of which a step was refused and halved."""
        return self.refused > 0

    def select(self, index: Array) -> Outcome:
        """Return the outcome of the genes at `index`."""
        xp = namespace(index)
        return Outcome(
            theta=xp.take(self.theta, index, axis=1),
            yPy=xp.take(self.yPy, index),
            niter=xp.take(self.niter, index),
            status=xp.take(self.status, index),
            refused=xp.take(self.refused, index),
        )

    def replaced(self, positions: Any, part: Outcome) -> Outcome:
        """Return the same with the genes at `positions` (host integers) taken from `part`."""
        xp, b = namespace(self.theta), self.status.shape[0]
        source = list(range(b))
        for i, position in enumerate(positions):
            source[position] = b + i
        order = indices(source, self.theta)

        def merged(old: Array, new: Array) -> Array:
            return xp.take(xp.concat([old, new], axis=-1), order, axis=old.ndim - 1)

        return Outcome(
            theta=merged(self.theta, part.theta),
            yPy=merged(self.yPy, part.yPy),
            niter=merged(self.niter, part.niter),
            status=merged(self.status, part.status),
            refused=merged(self.refused, part.refused),
        )


def maximise(objective: Objective, start: Array | None, rules: Rules, interrupted: Outcome | None = None) -> Outcome:
    """Maximise the likelihood of every gene from `start` (k+1, b), by default from the objective's own.

    An `interrupted` maximisation continues at its last accepted point, with its counts of iterations and refusals.

    As in FLASHMM, `niter` counts evaluations and a last step follows the one that met the stopping rule.
    Genes that are done keep their theta, and are removed from the batch together once they are many.
    """
    found = None
    if interrupted is not None:
        start = interrupted.theta
    elif start is None:
        start, found = objective.begin()
    state = _begin(start) if interrupted is None else _resumed(interrupted)
    every = 1 if on_host(start) else READ_EVERY
    active = list(range(start.shape[1]))  # positions of the batch's genes in `start`
    finished: list[tuple[list[int], State]] = []
    steps = 0
    while active:
        state, found, steps = advance(state, objective, rules, found), None, steps + 1
        if steps % every:
            continue
        done = to_numpy(state.done)
        if done.sum() < WORTH_LEAVING * done.size:
            continue
        leaving, staying = done.nonzero()[0], (~done).nonzero()[0]
        finished.append(([active[i] for i in leaving], state.select(indices(leaving, start))))
        if staying.size:
            index = indices(staying, start)
            state, objective = state.select(index), objective.select(index)
        active = [active[i] for i in staying]
    return _collect(finished, start)


def advance(state: State, objective: Objective, rules: Rules, found: Evaluation | None = None) -> State:
    """Try one step for every gene: accept it and plan the next one, or halve it.

    `found` is the evaluation at the state's start, if it is known.
    """
    xp = namespace(state.length)
    trial = state.theta if found else _trial(rules.nonnegative, state)
    found = found or objective.attempt(xp.stack(list(trial), axis=0))
    return _step(rules, tuple(trial), replace(found, v=None), state)


@fused
def _trial(xp: Any, nonnegative: bool, state: State) -> Vectors:
    # theta + length step; a component that a step was shortened for lands at exactly zero
    trial = [a + state.length * b for a, b in zip(state.theta, state.step, strict=True)]
    for i in range(len(trial) - 1 if nonnegative else 0):
        to_zero = (state.step[i] < 0) & (trial[i] <= AT_ZERO * xp.abs(state.theta[i]))
        trial[i] = xp.where(to_zero, 0.0, trial[i])
    return tuple(trial)


@fused
def _step(xp: Any, rules: Rules, trial: Vectors, found: Evaluation, state: State) -> State:
    """Accept or halve, plan the next step, and judge: the next state."""
    last = state.status != int(Status.RUNNING)
    accept = found.ok & (found.value >= state.value - state.slack) & ~state.done
    plan = accept & ~last
    step, score = scoring_step(xp, trial, found.score_rows, found.information_rows, nonnegative=rules.nonnegative)
    length = _full_length(xp, rules, state, trial, step, found)
    after = State(
        theta=tuple(xp.where(accept, new, old) for new, old in zip(trial, state.theta, strict=True)),
        step=tuple(xp.where(plan, new, old) for new, old in zip(step, state.step, strict=True)),
        length=xp.where(plan, length, 0.5 * state.length),
        value=xp.where(accept, found.value, state.value),
        slack=xp.where(accept, found.rounding, state.slack),
        yPy=xp.where(accept, found.yPy, state.yPy),
        decrement=xp.where(plan, sum(a * b for a, b in zip(step, score, strict=True)), state.decrement),
        niter=xp.where(plan, state.niter + 1, state.niter),
        refused=xp.where(accept | last, state.refused, state.refused + 1),
        status=state.status,
        done=last,
    )
    status, done = _judge(xp, state, after, plan, _largest(xp, score), rules), last
    if found.outside_table is not None:  # a last step out of the tables has to be made without them, too
        left = found.outside_table & ~state.done
        status, done = xp.where(left, int(Status.OUTSIDE_TABLE), status), done | left
    return replace(after, status=status, done=done)


def _full_length(xp: Any, rules: Rules, state: State, trial: Vectors, step: Vectors, found: Evaluation) -> Array:
    # length of the next step (b,) before any halving: 1, unless it is relaxed or makes a component negative
    length = 0.0 * state.length + 1.0
    if rules.relaxed:
        length = relaxed_length(xp, state.length, state.step, step, found.information_rows)
    return xp.minimum(length, longest_valid(xp, trial, step)) if rules.nonnegative else length


def _largest(xp: Any, vectors: Vectors) -> Array:
    # largest absolute value (b,)
    largest = xp.abs(vectors[0])
    for vector in vectors[1:]:
        largest = xp.maximum(largest, xp.abs(vector))
    return largest


def _judge(xp: Any, before: State, after: State, plan: Array, score_size: Array, rules: Rules) -> Array:
    # the first rule that applies to a running gene
    at_rounding = 0.5 * after.decrement <= after.slack
    out_of_steps = plan & (after.niter >= rules.max_iter)
    small = (score_size <= rules.epsilon) & (after.decrement <= SMALL_DECREMENT)
    converged = plan & (small | (after.decrement <= TINY_DECREMENT))
    rounding = plan & at_rounding & (after.decrement >= before.decrement)
    stuck = ~plan & ~(after.length >= SHORTEST_STEP)  # a length that overflowed is no number, and stuck too
    if rules.most_refused is not None:
        stuck = stuck | (after.refused >= rules.most_refused)
    nothing_to_gain = at_rounding & (~plan | out_of_steps)  # a step that is refused, or the last one
    verdict = xp.where(stuck, int(Status.FAILED), before.status)
    verdict = xp.where(out_of_steps, int(Status.MAX_ITER), verdict)
    verdict = xp.where(rounding | nothing_to_gain, int(Status.CONVERGED_AT_ROUNDING), verdict)
    verdict = xp.where(converged, int(Status.CONVERGED), verdict)
    return xp.where(before.status == int(Status.RUNNING), verdict, before.status)


def _begin(start: Array) -> State:
    # no step yet: the first trial is the start itself
    xp = namespace(start)
    b = start.shape[1]
    nothing, no = zeros((b,), start), zeros((b,), start, dtype=xp.bool)
    count, infinite = zeros((b,), start, dtype=xp.int64), nothing + float("inf")
    rows = range(start.shape[0])
    return State(
        theta=tuple(start[i, :] for i in rows),
        step=tuple(nothing for _ in rows),
        length=nothing + 1.0,
        value=-infinite,
        slack=nothing,
        yPy=infinite,
        decrement=infinite,
        niter=count,
        refused=count,
        status=count,
        done=no,
    )


def _resumed(interrupted: Outcome) -> State:
    # the last accepted point is evaluated again, which counts as the evaluation that it was
    xp, niter = namespace(interrupted.niter), interrupted.niter
    return replace(_begin(interrupted.theta), niter=xp.where(niter > 0, niter - 1, niter), refused=interrupted.refused)


def _collect(finished: list[tuple[list[int], State]], start: Array) -> Outcome:
    # genes back in their first order
    xp = namespace(start)
    finished = finished or [([], _begin(start))]
    positions = [position for some, _ in finished for position in some]
    order = indices(sorted(range(len(positions)), key=positions.__getitem__), start)
    states = [state for _, state in finished]

    def joined(vectors: list[Array]) -> Array:
        return xp.take(xp.concat(vectors, axis=0), order)

    return Outcome(
        theta=xp.stack([joined([state.theta[i] for state in states]) for i in range(start.shape[0])], axis=0),
        yPy=joined([state.yPy for state in states]),
        niter=joined([state.niter for state in states]),
        status=joined([state.status for state in states]),
        refused=joined([state.refused for state in states]),
    )
