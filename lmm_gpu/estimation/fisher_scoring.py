"""Fisher scoring over a batch of genes: start, step, safeguard, terminate. The loop exists once, here.

It knows no statistics: a likelihood is something that evaluates a value, a gradient and an information
matrix per gene. Every gene moves at its own pace inside the batch. A trial point that is not valid, or lies
below the accepted one, halves that gene's step and nobody else's; where full steps are valid and rising the
iterates are those of plain Fisher scoring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from ..backend.arrays import Array, indices, namespace, on_host, to_numpy, zeros
from ..backend.fusion import fused
from ..backend.linalg import Vectors, cholesky_rows, rows_of, solve_rows
from .status import Status

#: Relaxed steps are at most this many times Fisher's.
LONGEST_STEP = 16.0
#: A gene whose step has been halved this often is stuck.
SHORTEST_STEP = 2.0**-24
#: Share of a batch that has to be done before these genes are taken out of it.
WORTH_LEAVING = 0.25
#: Off the host, whether genes are done is read after so many steps.
READ_EVERY = 4
#: A step shorter than the square root of this, in standard errors of theta, is small on every scale of y.
SMALL_DECREMENT = 1e-10


@dataclass(frozen=True)
class Evaluation:
    """Log-likelihood and its derivatives at one theta per gene."""

    value: Array  #: (b,), log-likelihood
    score: Array  #: (k+1, b), its gradient
    information: Array  #: (k+1, k+1, b), expected (Fisher) information
    yPy: Array  #: (b,), y' P0 y
    rounding: Array  #: (b,), rounding error of `value`: differences below it mean nothing
    ok: Array  #: (b,), bool: the numbers are valid
    outside_table: Array | None = None  #: (b,), bool: not valid because the objective is tabulated elsewhere
    v: Array | None = None  #: (r, b), what the random effects follow from, where it takes work


class Objective(Protocol):
    """What the loop needs of a likelihood."""

    def begin(self) -> tuple[Array, Evaluation]:
        """Where to start, theta (k+1, b), and the evaluation there."""

    def attempt(self, theta: Array) -> Evaluation:
        """Value, score and information at theta (k+1, b), without waiting for the device."""

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
    """Where each gene of the batch stands; b genes. Vectors only, so that one kernel makes a step."""

    theta: Vectors  #: k+1 vectors (b,), last accepted point
    step: Vectors  #: k+1 vectors (b,), full step from there
    length: Array  #: (b,), share of the step to try next
    value: Array  #: (b,), log-likelihood at theta
    slack: Array  #: (b,), its rounding error
    yPy: Array  #: (b,), y' P0 y at theta
    decrement: Array  #: (b,), score' information^-1 score at theta
    niter: Array  #: (b,), accepted evaluations
    step_halved: Array  #: (b,), bool: a step was ever refused
    status: Array  #: (b,), Status; anything but RUNNING allows one last step
    done: Array  #: (b,), bool: the last step is behind it

    def vectors(self) -> Iterator[Array]:
        """All of it, one vector after the other."""
        yield from self.theta
        yield from self.step
        yield from (getattr(self, name) for name in _SCALARS)

    @classmethod
    def of(cls, vectors: Iterable[Array]) -> State:
        """Return the state of these vectors, in the order of `vectors`."""
        vectors = list(vectors)
        rows = (len(vectors) - len(_SCALARS)) // 2
        scalars = dict(zip(_SCALARS, vectors[2 * rows :], strict=True))
        return cls(tuple(vectors[:rows]), tuple(vectors[rows : 2 * rows]), **scalars)


_SCALARS = tuple(field.name for field in fields(State))[2:]


@dataclass(frozen=True)
class Outcome:
    """Where each gene ended."""

    theta: Array  #: (k+1, b)
    yPy: Array  #: (b,), y' P0 y there
    niter: Array  #: (b,)
    status: Array  #: (b,)
    step_halved: Array  #: (b,), bool


def maximise(objective: Objective, start: Array | None, rules: Rules) -> Outcome:
    """Maximise the likelihood of every gene from `start` (k+1, b), or from where the objective begins.

    As in FLASHMM, `niter` counts evaluations and a last step follows the one that met the stopping rule.
    Genes that are done stand still, and leave the batch together once they are many.
    """
    found = None
    if start is None:
        start, found = objective.begin()
    state = _begin(start)
    every = 1 if on_host(start) else READ_EVERY
    alive = list(range(start.shape[1]))  # positions of the batch's genes in `start`
    left: list[tuple[list[int], State]] = []
    steps = 0
    while alive:
        state, found, steps = advance(state, objective, rules, found), None, steps + 1
        if steps % every:
            continue
        done = to_numpy(state.done)
        if done.sum() < WORTH_LEAVING * done.size:
            continue
        gone, stay = done.nonzero()[0], (~done).nonzero()[0]
        left.append(([alive[i] for i in gone], _take(state, indices(gone, start))))
        if stay.size:
            index = indices(stay, start)
            state, objective = _take(state, index), objective.select(index)
        alive = [alive[i] for i in stay]
    return _collect(left, start)


def advance(state: State, objective: Objective, rules: Rules, found: Evaluation | None = None) -> State:
    """Try one step for every gene: accept it and plan the next one, or halve it.

    `found` is the evaluation where the state begins, if it is known.
    """
    xp = namespace(state.length)
    trial = state.theta if found else _trial(rules.nonnegative, *state.theta, *state.step, state.length)
    found = found or objective.attempt(xp.stack(trial, axis=0))
    left = () if found.outside_table is None else (found.outside_table,)
    information = [entry for row in rows_of(found.information) for entry in row]
    score = [found.score[i, :] for i in range(len(trial))]
    scalars = (found.value, found.yPy, found.rounding, found.ok)
    return State.of(_step((rules, len(trial)), *trial, *score, *information, *scalars, *state.vectors(), *left))


@fused
def _trial(xp: Any, nonnegative: bool, *vectors: Array) -> tuple[Array, ...]:
    # theta + length step; a component that was sent to zero lands there exactly
    rows = len(vectors) // 2
    theta, step, length = vectors[:rows], vectors[rows : 2 * rows], vectors[-1]
    trial = [a + length * b for a, b in zip(theta, step, strict=True)]
    for i in range(rows - 1 if nonnegative else 0):
        sent = (step[i] < 0) & (trial[i] <= 1e-12 * xp.abs(theta[i]))
        trial[i] = xp.where(sent, 0.0, trial[i])
    return tuple(trial)


@fused
def _step(xp: Any, options: tuple[Rules, int], *vectors: Array) -> tuple[Array, ...]:
    """Accept or halve, plan the next step, and judge: the vectors of the next state.

    `vectors` are the trial point (k+1), score (k+1) and information ((k+1)^2) there, the value, yPy, rounding and
    validity, the state before, and whether the tables were left.
    """
    rules, rows = options
    after_entries = rows * (rows + 2)
    trial, score = vectors[:rows], list(vectors[rows : 2 * rows])
    information = [vectors[(i + 2) * rows : (i + 3) * rows] for i in range(rows)]
    value, yPy, rounding, ok = vectors[after_entries : after_entries + 4]
    state_size = 2 * rows + len(_SCALARS)
    state = State.of(vectors[after_entries + 4 : after_entries + 4 + state_size])
    left = vectors[after_entries + 4 + state_size :]  # one vector, or none

    last = state.status != int(Status.RUNNING)
    accept = ok & (value >= state.value - state.slack) & ~state.done
    plan = accept & ~last
    step, score = _planned(xp, trial, score, information, rules)
    decrement = sum(a * b for a, b in zip(step, score, strict=True))
    score_size = xp.abs(score[0])
    for entry in score[1:]:
        score_size = xp.maximum(score_size, xp.abs(entry))
    length = _full_length(xp, state, step, information, rules)
    if rules.nonnegative:
        length = xp.minimum(length, _longest(xp, trial, step))
    after = State(
        theta=tuple(xp.where(accept, new, old) for new, old in zip(trial, state.theta, strict=True)),
        step=tuple(xp.where(plan, new, old) for new, old in zip(step, state.step, strict=True)),
        length=xp.where(plan, length, 0.5 * state.length),
        value=xp.where(accept, value, state.value),
        slack=xp.where(accept, rounding, state.slack),
        yPy=xp.where(accept, yPy, state.yPy),
        decrement=xp.where(plan, decrement, state.decrement),
        niter=xp.where(plan, state.niter + 1, state.niter),
        step_halved=state.step_halved | ~(accept | last),
        status=state.status,
        done=last,
    )
    status, done = _judge(xp, state, after, plan, score_size, rules), last
    for gone in left:  # a last step out of the tables too is one that has to be made without them
        gone = gone & ~state.done
        status, done = xp.where(gone, int(Status.OUTSIDE_TABLE), status), done | gone
    return tuple(replace(after, status=status, done=done).vectors())


def _judge(xp: Any, before: State, after: State, plan: Array, score_size: Array, rules: Rules) -> Array:
    # the first rule that applies to a running gene
    at_rounding = 0.5 * after.decrement <= after.slack
    converged = plan & (score_size <= rules.epsilon) & (after.decrement <= SMALL_DECREMENT)
    rounding = plan & at_rounding & (after.decrement >= before.decrement)
    stuck = ~plan & (after.length < SHORTEST_STEP)
    out_of_steps = plan & (after.niter >= rules.max_iter)
    nothing_to_gain = at_rounding & (~plan | out_of_steps)  # a step that is refused, or the last one
    running = before.status  # 0 where it runs
    verdict = xp.where(stuck, int(Status.FAILED), running)
    verdict = xp.where(out_of_steps, int(Status.MAX_ITER), verdict)
    verdict = xp.where(rounding | nothing_to_gain, int(Status.CONVERGED_AT_ROUNDING), verdict)
    verdict = xp.where(converged, int(Status.CONVERGED), verdict)
    return xp.where(before.status == int(Status.RUNNING), verdict, before.status)


def _planned(
    xp: Any, theta: Vectors, score: list[Array], information: Sequence[Vectors], rules: Rules
) -> tuple[list[Array], list[Array]]:
    # Fisher step, and the score of the components that may move: k+1 vectors each
    if not rules.nonnegative:
        return _fisher_step(xp, information, score), score
    held = _held(xp, theta, score, information)
    return _fisher_step(xp, _without(xp, information, held), _freed(xp, score, held)), _freed(xp, score, held)


def _fisher_step(xp: Any, information: Sequence[Vectors], score: list[Array]) -> list[Array]:
    factor, _ = cholesky_rows(xp, information)
    return solve_rows(factor, score)


def _without(xp: Any, information: Sequence[Vectors], held: list[Array]) -> list[list[Array]]:
    # rows and columns of components that are held become the identity
    held = [*held, None]  # the residual variance never is
    result = [list(row) for row in information]
    for i, row in enumerate(information):
        for j, entry in enumerate(row):
            for one in (held[i], held[j]):
                if one is not None:
                    result[i][j] = entry = xp.where(one, 1.0 if i == j else 0.0, entry)
    return result


def _freed(xp: Any, score: list[Array], held: list[Array]) -> list[Array]:
    return [xp.where(one, 0.0, entry) for one, entry in zip(held, score, strict=False)] + score[-1:]


def _held(xp: Any, theta: Vectors, score: list[Array], information: Sequence[Vectors]) -> list[Array]:
    """Components that stay at zero (k vectors): those at zero that the score, or the joint step, would push below.

    Holding one changes the step of the others, so this is repeated once per component. Projecting the
    joint step instead would leave the residual variance off its optimum.
    """
    at_zero = [component <= 0 for component in theta[:-1]]
    held = [zero & (pull <= 0) for zero, pull in zip(at_zero, score, strict=False)]
    for _ in at_zero:
        step = _fisher_step(xp, _without(xp, information, held), _freed(xp, score, held))
        held = [one | (zero & (move < 0)) for one, zero, move in zip(held, at_zero, step, strict=False)]
    return held


def _longest(xp: Any, theta: Vectors, step: list[Array]) -> Array:
    # longest share of the step (b,) that keeps components from becoming negative: up to the first at zero
    longest = None
    for component, move in zip(theta[:-1], step, strict=False):
        falling = move < 0
        reach = xp.where(falling, -component / xp.where(falling, move, -1.0), LONGEST_STEP)
        longest = reach if longest is None else xp.minimum(longest, reach)
    return longest


def _full_length(xp: Any, state: State, step: list[Array], information: Sequence[Vectors], rules: Rules) -> Array:
    """Length of the next step (b,): 1, or where that is asked for from how the last one changed it.

    Scoring converges linearly, step' = rho step, with rho close to 1 or -1 where the expected information is far
    from the observed one. A step of length a leaves the share 1 - a (1 - rho) of the error; the length 1 / (1 - rho)
    would leave none, and a / (1 - rho') estimates it from the rho' seen at length a (Aitken's extrapolation).
    """
    if not rules.relaxed:
        return 0.0 * state.length + 1.0
    metric = [sum(F * move for F, move in zip(row, state.step, strict=True)) for row in information]
    before = sum(a * b for a, b in zip(state.step, metric, strict=True))
    rho = sum(a * b for a, b in zip(step, metric, strict=True)) / xp.where(before > 0, before, 1.0)  # (b,)
    share = 1.0 - rho
    length = state.length / xp.where(share < 1.0 / LONGEST_STEP, 1.0 / LONGEST_STEP, share)
    length = xp.where(length < 0.5, 0.5, length)
    return xp.where(length > LONGEST_STEP, LONGEST_STEP, length)


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
        step_halved=no,
        status=count,
        done=no,
    )


def _take(state: State, index: Array) -> State:
    xp = namespace(index)
    return State.of(xp.take(vector, index) for vector in state.vectors())


def _collect(left: list[tuple[list[int], State]], start: Array) -> Outcome:
    # genes back in their first order
    xp = namespace(start)
    left = left or [([], _begin(start))]
    positions = [position for some, _ in left for position in some]
    order = indices(sorted(range(len(positions)), key=positions.__getitem__), start)

    def joined(vectors: list[Array]) -> Array:
        return xp.take(xp.concat(vectors, axis=0), order)

    states = [state for _, state in left]
    theta = [joined([state.theta[i] for state in states]) for i in range(start.shape[0])]
    rest = {
        name: joined([getattr(state, name) for state in states]) for name in ("yPy", "niter", "status", "step_halved")
    }
    return Outcome(theta=xp.stack(theta, axis=0), **rest)
