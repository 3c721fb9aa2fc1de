"""Fit one linear mixed model per gene from summary statistics: the algorithm, start to end.

project X out; decompose the random effects                        (once)
per block of genes: Fisher scoring for theta; without an interior
optimum again with components held at or above zero;
s_0 profiled at the last ratios; fixed effects and standard errors
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .arrays import Array, flag_indices, indices, like, namespace, to_numpy
from .devices import Device, resolve
from .linalg import inverse_small
from .model import Contrasts, MixedModel
from .plan import (
    MOST_GENES_ON_DEVICE,
    Shape,
    blocks,
    even_blocks,
    genes_per_block,
    parse_memory,
    threads_within,
)
from .results import Estimates, LMMFit
from .scheduler import run
from .scoring import Outcome, Rules, Status, maximise
from .summary import SummaryStats
from .threads import quiet_blas

METHODS = ("REML", "ML")
BOUNDS = ("auto", "nonnegative", "none")
#: FLASHMM's default for max_iter.
FLASHMM_ITERATIONS = 50
#: A gene that needs more goes on for so many times max_iter.
CONTINUED = 4


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the same names as in `lmm` and `fit`."""

    method: str = "REML"
    bounds: str = "auto"
    max_iter: int = 50
    epsilon: float = 1e-5
    theta0: Any = None
    memory: int | str | None = None
    block: int | None = None
    device: Any = "auto"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not known; use 'REML' or 'ML'")
        if self.bounds not in BOUNDS:
            raise ValueError(f"bounds={self.bounds!r} is not known; use one of {', '.join(BOUNDS)}")
        if not isinstance(self.max_iter, (int, np.integer)) or self.max_iter < 1:
            raise ValueError(f"max_iter={self.max_iter!r}: at least one iteration is needed, and a whole number")
        if not isinstance(self.epsilon, (int, float)) or not self.epsilon > 0:
            raise ValueError(f"epsilon={self.epsilon!r}: the tolerance must be positive")
        for name, number in (("max_iter", int), ("epsilon", float)):  # NumPy's scalars promote, or are refused
            object.__setattr__(self, name, number(getattr(self, name)))


def fit_summary(
    summary: SummaryStats, options: FitOptions = FitOptions(), progress: Callable[[int], object] | None = None
) -> LMMFit:
    """Fit every gene of `summary`.

    Parameters
    ----------
    summary : SummaryStats
    options : FitOptions
    progress : callable, optional
        Called with the number of genes done after each block.

    Returns
    -------
    LMMFit

    Raises
    ------
    ValueError
        For a rank-deficient X, or options that do not fit the model. A gene's own trouble is a status.
    """
    with quiet_blas(summary.ZZ.shape[0]):
        return _fit(summary, options, progress)


def _fit(summary: SummaryStats, options: FitOptions, progress: Callable[[int], object] | None) -> LMMFit:
    memory = parse_memory(options.memory)
    if memory is not None and len(summary.d) > 1:
        memory = memory // 2  # half for what all genes share, half for their blocks
    devices = resolve(options.device, summary.ZZ, summary.ZY)
    shared = {device.name: _share(summary, options, device, memory) for device in devices}
    first, _ = shared[devices[0].name]
    theta0 = _start_values(options.theta0, first, summary.m)
    estimates = Estimates.empty(summary.m, first.XXinv.shape[0], len(summary.d) + 1)
    few_digits = np.zeros(summary.m, dtype=bool)

    def load(device: Device, bounds: tuple[int, int]) -> SummaryStats:
        return summary.select(slice(*bounds)).on(device.put)

    def fit_genes(device: Device, bounds: tuple[int, int], part: SummaryStats) -> None:
        model, coefficients = shared[device.name]
        block = model.with_genes(part)
        few_digits[slice(*bounds)] = to_numpy(block.few_digits)
        varying = flag_indices(block.varies)
        if varying.size < bounds[1] - bounds[0]:
            block = block.select(indices(varying, block.beta_ols))
        genes = bounds[0] + varying
        if genes.size:
            start = None if theta0 is None else like(theta0[:, genes], block.beta_ols)
            estimates.put(genes, estimate_block(block, start, coefficients, options))

    shape = Shape(first.XXinv.shape[0], summary.d)
    workers = threads_within(shape, memory)
    for done in run(devices, workers, _ranges(summary.m, shape, options, devices, workers, memory), load, fit_genes):
        if progress is not None:
            progress(done)
    warn_of_status(estimates.status)
    warn_of_lost_digits([summary.features[gene] for gene in np.flatnonzero(few_digits)], summary.m)
    refit = partial(fit_summary, options=replace(options, theta0=None))
    return LMMFit(
        estimates,
        summary,
        first,
        options.method,
        options.epsilon,
        bounds=options.bounds,
        max_iter=options.max_iter,
        refit=refit,
        memory=memory,
    )


def _share(
    summary: SummaryStats, options: FitOptions, device: Device, memory: int | None
) -> tuple[MixedModel, Contrasts]:
    """What all genes share, on a device: the decomposed design, and the coefficients as contrasts."""
    if memory is None and not device.threaded:
        memory = device.free_bytes()
    with device.entered():
        design = summary.select(slice(0)).on(device.put)
        model = MixedModel.decompose(design, options.method, memory, summary.m)
        return model, model.prepare(like(np.eye(model.XXinv.shape[0]), model.XXinv), gradient=False)


def _ranges(
    m: int, shape: Shape, options: FitOptions, devices: list[Device], workers: int, memory: int | None
) -> Iterator[tuple[int, int]]:
    """Blocks of genes: as many as are asked for, or as fit the memory, and the same for every worker."""
    if options.block is not None:
        return blocks(m, min(options.block, MOST_GENES_ON_DEVICE))
    if all(device.threaded for device in devices):
        size = genes_per_block(shape, None if memory is None else memory // workers)
        return even_blocks(m, size, workers)
    budget = min(device.free_bytes() for device in devices) if memory is None else memory
    return even_blocks(m, genes_per_block(shape, budget, MOST_GENES_ON_DEVICE), len(devices))


def estimate_block(model: MixedModel, start: Array | None, coefficients: Contrasts, options: FitOptions) -> Estimates:
    """Estimate all genes of `model` from `start` (k+1, b), or FLASHMM's; `coefficients` are those of the identity."""
    xp = namespace(model.beta_ols)
    outcome = _climb(model, start, options, nonnegative=options.bounds == "nonnegative")
    if options.bounds == "auto":
        outcome = _refit_without_optimum(model, outcome, options)
    theta = _profiled(model, outcome)
    at_theta = model.likelihood.evaluate(theta)
    spread, _ = inverse_small(at_theta.information)  # (k+1, k+1, b)
    return Estimates(
        theta=to_numpy(theta),
        se_theta=_root(to_numpy(xp.stack([spread[i, i, :] for i in range(theta.shape[0])], axis=0))),
        dlogL=to_numpy(at_theta.score),
        logLik=to_numpy(at_theta.value + 0.5 * (at_theta.quad / theta[-1, :] - model.likelihood.residual_df)),
        niter=to_numpy(outcome.niter).astype(float),
        status=_named(to_numpy(outcome.status), to_numpy(theta), options),
        coef=to_numpy(model.coefficients(theta, at_theta.v)),
        se=_root(to_numpy(model.contrast_variance(theta, coefficients))),
    )


def _root(variance: np.ndarray) -> np.ndarray:
    # standard errors; NaN where there is no positive variance, as for a component that the data do not tell
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def _climb(model: MixedModel, start: Array | None, options: FitOptions, *, nonnegative: bool) -> Outcome:
    """Maximise by plain Fisher scoring; genes that it leaves short of their optimum go on with relaxed steps.

    Fewer iterations than FLASHMM's default ask for an early stop: then nothing goes on.
    """
    rules = Rules(options.epsilon, options.max_iter, nonnegative)
    outcome = _maximised(model, start, rules)
    slow = to_numpy(outcome.status) == Status.MAX_ITER
    if options.bounds == "auto" and not nonnegative:  # where steps had to be halved there is likely no optimum
        slow = slow & ~to_numpy(outcome.halved)
    slow = np.flatnonzero(slow)
    if slow.size == 0 or options.max_iter < FLASHMM_ITERATIONS:
        return outcome
    index = indices(slow, outcome.theta)
    more = replace(rules, max_iter=CONTINUED * options.max_iter, relaxed=True)
    again = _maximised(model.select(index), namespace(index).take(outcome.theta, index, axis=1), more)
    return _replaced(outcome, slow, replace(again, niter=again.niter + options.max_iter))


def _maximised(model: MixedModel, start: Array | None, rules: Rules) -> Outcome:
    """Maximise where the likelihood is tabulated; genes that leave there, again without tables."""
    outcome = maximise(model.likelihood, start, rules)
    left = np.flatnonzero(to_numpy(outcome.status) == Status.LEFT)
    if left.size == 0:
        return outcome
    index = indices(left, outcome.theta)
    start = None if start is None else namespace(start).take(start, index, axis=1)
    return _replaced(outcome, left, maximise(model.likelihood.untabulated().select(index), start, rules))


def _refit_without_optimum(model: MixedModel, outcome: Outcome, options: FitOptions) -> Outcome:
    """Fit again, with components held at or above zero, the genes that have no valid interior optimum.

    Those are the genes whose step control had to work and that still did not converge, and those at which V
    itself is not positive definite. A gene that took full steps throughout and ran out of iterations keeps
    FLASHMM's last iterate.
    """
    status, halved = to_numpy(outcome.status), to_numpy(outcome.halved)
    unfinished = (status == Status.FAILED) | ((status == Status.MAX_ITER) & halved)
    redo = np.flatnonzero(unfinished | ~_valid(model, _profiled(model, outcome)))
    if redo.size == 0:
        return outcome
    part = model.select(indices(redo, outcome.theta))
    return _replaced(outcome, redo, _climb(part, None, options, nonnegative=True))


def _profiled(model: MixedModel, outcome: Outcome) -> Array:
    """Theta (k+1, b) after FLASHMM's last update: s_0 = quad / N at the last ratios, the others unchanged."""
    s_0 = outcome.quad / model.likelihood.residual_df
    return namespace(s_0).concat([outcome.theta[:-1, :], s_0[None, :]], axis=0)


def _replaced(outcome: Outcome, genes: np.ndarray, part: Outcome) -> Outcome:
    # `outcome` with some genes (positions) taken from another one
    source = np.arange(outcome.status.shape[0])
    source[genes] = source.size + np.arange(genes.size)
    xp, order = namespace(outcome.theta), indices(source, outcome.theta)
    joined = {
        name: xp.take(xp.concat([value, getattr(part, name)], axis=-1), order, axis=value.ndim - 1)
        for name, value in vars(outcome).items()
    }
    return Outcome(**joined)


def _valid(model: MixedModel, theta: Array) -> np.ndarray:
    # V positive definite (b,): only genes with large negative components need the exact check
    valid = np.ones(theta.shape[1], dtype=bool)
    doubtful = flag_indices(model.may_be_indefinite(theta))
    if doubtful.size:
        index = indices(doubtful, theta)
        part = namespace(theta).take(theta, index, axis=1)
        valid[doubtful] = to_numpy(model.select(index).positive_definite(part))
    return valid


def _named(status: np.ndarray, theta: np.ndarray, options: FitOptions) -> np.ndarray:
    # a converged gene with a component at exactly zero is on the boundary; a start at zero moves at once
    good = (status == Status.CONVERGED) | (status == Status.CONVERGED_AT_ROUNDING)
    held = (theta[:-1] == 0).any(axis=0)
    return np.where(good & held & (options.bounds != "none"), int(Status.BOUNDARY), status)


def warn_of_status(status: np.ndarray) -> None:
    """One warning for all features without an estimate, and one for those without an optimum."""
    m, count = status.size, {word: int(np.count_nonzero(status == word)) for word in Status}
    if count[Status.NO_VARIANCE]:
        what = "do not vary once X is taken out: NaN everywhere, status no_variance"
        warnings.warn(f"{count[Status.NO_VARIANCE]} of {m} features {what}", stacklevel=4)
    short = {word.word: count[word] for word in (Status.MAX_ITER, Status.FAILED) if count[word]}
    if short:
        what = ", ".join(f"{number} {word}" for word, number in short.items())
        warnings.warn(f"{sum(short.values())} of {m} features did not converge ({what}): see fit.status", stacklevel=4)


def warn_of_lost_digits(lost: list[str], m: int) -> None:
    """Warn of features whose residual sum of squares y'Ry is a small difference of large numbers."""
    if lost:
        named = ", ".join(lost[:3])
        warnings.warn(
            f"{len(lost)} of {m} features ({named}{', ...' if len(lost) > 3 else ''}) lie so far from zero, or along "
            "a fixed effect, for their spread that fewer than six digits are left of it: subtract a constant, or that "
            "effect, from their values first",
            stacklevel=4,
        )


def _start_values(theta0: Any, model: MixedModel, m: int) -> np.ndarray | None:
    """`theta0` as (k+1, m), from k+1 values or a table of that shape."""
    if theta0 is None:
        return None
    rows = model.likelihood.n_components + 1
    values = np.asarray(theta0, dtype=float)
    if values.shape == (rows,):
        values = np.repeat(values[:, None], m, axis=1)
    if values.shape != (rows, m):
        raise ValueError(
            f"theta0 has shape {values.shape}, wanted ({rows},) or ({rows}, {m}): variance components, residual last"
        )
    if not (np.isfinite(values).all() and (values[-1] > 0).all()):
        raise ValueError("theta0 must be finite, with a positive residual variance in its last place")
    return values
