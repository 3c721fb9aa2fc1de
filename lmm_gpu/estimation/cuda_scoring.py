"""Maximise likelihoods by one CUDA kernel, in which every gene takes all its scoring steps.

`fisher_scoring.maximise` defines the result and computes it where there is no kernel for a likelihood: the kernels in
`kernels/` repeat its loop and the evaluation of one likelihood, gene by gene. Sums are added up in another order, so
that results agree to rounding, not bit by bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from ..backend.arrays import Array, entered, like, namespace, zeros
from ..backend.cuda_kernels import compiles_kernels, cuda_source, definitions, kernel
from ..backend.linalg import FACTORS, LOST_PIVOT
from . import fisher_scoring
from .fisher_scoring import AT_ZERO, SHORTEST_STEP, SMALL_DECREMENT, TINY_DECREMENT, Objective, Outcome, Rules
from .grouped_effects import GroupedEffects
from .level_loads import SharedLoads, StackedLoads
from .likelihood import ROUNDING, ROUNDING_BETWEEN
from .many_components import MultiComponent
from .one_component import SingleComponent
from .scoring_steps import LONGEST_STEP
from .status import Status

#: Genes of a block of threads of `one_component.cu`, and the most threads that share the sums of a gene.
GENES, LANES = 32, 8
#: Eigenvalues that one of these threads should have at least.
EIGENVALUES_PER_LANE = 8
#: Threads of a gene of `two_components.cu`: half as many up to so many rows of the effect that is not eliminated. Parts
#: of its sums over r.
THREADS, FEW_ROWS, PARTS = 128, 16, 4
#: Most columns of X, and random effects per level, that `grouped_effects.cu` keeps in registers.
MOST_FIXED, MOST_EFFECTS = 12, 3
_CONSTANTS = {
    **{status.name: int(status) for status in Status},
    "AT_ZERO": AT_ZERO,
    "FACTORS": FACTORS,
    "GENES": GENES,
    "LANES": LANES,
    "LONGEST_STEP": LONGEST_STEP,
    "LOST_PIVOT": LOST_PIVOT,
    "PARTS": PARTS,
    "ROUNDING": ROUNDING,
    "ROUNDING_BETWEEN": ROUNDING_BETWEEN,
    "SHORTEST_STEP": SHORTEST_STEP,
    "SMALL_DECREMENT": SMALL_DECREMENT,
    "TINY_DECREMENT": TINY_DECREMENT,
    "TWO_PI": 2 * math.pi,
}


def maximise(objective: Objective, start: Array | None, rules: Rules, interrupted: Outcome | None = None) -> Outcome:
    """`fisher_scoring.maximise`, by one kernel where there is one for the likelihood."""
    found = by_kernel(objective, start, rules, interrupted)
    return fisher_scoring.maximise(objective, start, rules, interrupted) if found is None else found


def by_kernel(
    objective: Objective, start: Array | None, rules: Rules, interrupted: Outcome | None = None
) -> Outcome | None:
    """Return the outcome of the kernel for this likelihood on its device, None if there is none."""
    if isinstance(objective, SingleComponent):
        return _one_component(objective, start, rules, interrupted)
    if isinstance(objective, MultiComponent):
        return _two_components(objective, start, rules, interrupted)
    if isinstance(objective, GroupedEffects):
        return _grouped_effects(objective, start, rules, interrupted)
    return None


def _one_component(
    at: SingleComponent, start: Array | None, rules: Rules, interrupted: Outcome | None
) -> Outcome | None:
    q, b = at.c.shape
    if b == 0 or not compiles_kernels(at.c):
        return None
    with entered(at.c):
        score = kernel(at.c, _source("one_component.cu"), "one_component", _options(1))
        if score is None:
            return None
        xp = namespace(at.c)
        design = [xp.ascontiguousarray(x) for x in (at.lam, at.lam_trace, at.inverse_lam)]
        if at.lam_trace is at.lam:
            design[1] = design[0]  # its sums are those of the other
        genes = [xp.ascontiguousarray(x) for x in (at.c, at.yry, at.rss)]
        outcome = _empty(xp, 2, b)
        score(
            (-(-b // GENES),),
            (GENES, min(LANES, max(1, q // EIGENVALUES_PER_LANE))),
            (
                *design,
                *genes,
                *_begun(xp, at.start() if start is None else start, interrupted),
                q,
                b,
                float(at.n_effective),
                float(at.residual_df),
                *_arguments(rules),
                *_stored(outcome),
            ),
        )
        return outcome


def _two_components(
    at: MultiComponent, start: Array | None, rules: Rules, interrupted: Outcome | None
) -> Outcome | None:
    b, k, root = at.yry.shape[0], at.n_components, at.root
    if k != 2 or at.trace_table is None or at.F_table is None or b == 0 or not compiles_kernels(at.h):
        return None
    sizes = [axis.size for axis in at.trace_table.axes]
    q_R, r = root.K_R.shape
    threads = THREADS if q_R > FEW_ROWS else THREADS // 2
    shared = 8 * (q_R * (q_R + 1) // 2 + (2 + PARTS) * q_R + 3 * r + sum(sizes) + (k * (k + 1) + 6) * (threads + 1))
    with entered(at.h):
        score = kernel(at.h, _source("two_components.cu"), "two_components", _options(k), shared)
        if score is None:
            return None
        xp = namespace(at.h)
        tables = [at.trace_table.coefficients, at.F_table.coefficients, at.F_rest, root.unit]
        outcome = _empty(xp, k + 1, b)
        score(
            (b,),
            (threads,),
            (
                like([number for axis in at.trace_table.axes for number in axis.numbers()], at.h),
                *[xp.ascontiguousarray(x) for x in (*tables, root.mu, root.K_R, root.K_R.T, at.h, at.yry, at.rss)],
                *_begun(xp, at.start() if start is None else start, interrupted),
                *(*sizes, root.eliminated, r, q_R, b),
                float(at.n_effective),
                float(at.residual_df),
                *_arguments(rules),
                *_stored(outcome),
            ),
            shared_mem=shared,
        )
        return outcome


def _grouped_effects(
    at: GroupedEffects, start: Array | None, rules: Rules, interrupted: Outcome | None
) -> Outcome | None:
    (b, rows), p, k, L = at.y.shape, at.design.n_fixed, at.eliminated.effects, at.n_components
    loads = at.design.loads
    suits = not at.rest and 0 < p <= MOST_FIXED and k <= MOST_EFFECTS
    if b == 0 or not suits or not isinstance(loads, SharedLoads | StackedLoads) or not compiles_kernels(at.y):
        return None
    G = rows // k
    threads = next(threads for threads in (32, 64, THREADS) if threads >= G or threads == THREADS)
    sums = 2 * L + L * L + 1 + p
    shared = 8 * (rows * (k + p) + 2 * p * (p + 1) + 2 * L * p * p + 2 * threads + sums * (threads + 1))
    pairs = [at.eliminated.parameters[row] for row in range(L)]
    options = (*_options(L), *definitions({"EFFECTS": k, "FIXED": p}), *_pair_options(pairs))
    with entered(at.y):
        score = kernel(at.y, _source("grouped_effects.cu"), "grouped_effects", options, shared)
        if score is None:
            return None
        xp, design, none = namespace(at.y), at.design, zeros((b,), at.y)
        numbers = [design.root, loads.matrix, design.within, design.border, at.y, at.fixed_outside()]
        outcome = _empty(xp, L + 1, b)
        score(
            (b,),
            (threads,),
            (
                *[xp.ascontiguousarray(x) for x in (*numbers, at.yry, at.rss)],
                none + at.n_effective,
                none + at.residual_df,
                *_begun(xp, at.start() if start is None else start, interrupted),
                *(b if design.per_gene else 1, G, b, at.reml),
                *_arguments(rules),
                *_stored(outcome),
            ),
            shared_mem=shared,
        )
        return outcome


def _pair_options(pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    # the effects of every parameter as initialisers of arrays
    lists = [",".join(str(pair[i]) for pair in pairs) for i in (0, 1)]
    return f"-DPAIR_A={{{lists[0]}}}", f"-DPAIR_B={{{lists[1]}}}"


def _begun(xp: Any, start: Array, interrupted: Outcome | None) -> tuple[Any, ...]:
    # start (k+1, b), and the counts of iterations and refusals there, null pointers for none
    if interrupted is None:
        return xp.ascontiguousarray(start), 0, 0
    return tuple(xp.ascontiguousarray(x) for x in (interrupted.theta, interrupted.niter, interrupted.refused))


def _arguments(rules: Rules) -> tuple[Any, ...]:
    most_refused = -1 if rules.most_refused is None else rules.most_refused
    return rules.epsilon, rules.max_iter, most_refused, rules.nonnegative, rules.relaxed


def _empty(xp: Any, rows: int, b: int) -> Outcome:
    counts = [xp.empty((b,), dtype=xp.int64) for _ in range(3)]
    return Outcome(xp.empty((rows, b), dtype=xp.float64), xp.empty((b,), dtype=xp.float64), *counts)


def _stored(outcome: Outcome) -> tuple[Array, ...]:
    return outcome.theta, outcome.yPy, outcome.niter, outcome.refused, outcome.status


@functools.cache
def _source(*names: str) -> str:
    return cuda_source("lmm_gpu.estimation", *(f"kernels/{name}" for name in ("fisher_scoring.cuh", *names)))


@functools.cache
def _options(components: int) -> tuple[str, ...]:
    return definitions({"K": components, **_CONSTANTS})
