"""Fit one linear mixed model per gene from summary statistics: the algorithm, start to end.

project X out; decompose the random effects                        (once)
per block of genes: Fisher scoring for theta; without an interior
optimum again with components held at or above zero;
s_0 profiled at the last ratios; fixed effects and standard errors
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend.arrays import Array, flag_indices, indices, like, namespace, on_host, to_numpy
from ..backend.blocks import blocks, even_blocks
from ..backend.devices import Device, resolve
from ..backend.linalg import inverse_small
from ..backend.scheduler import run
from ..backend.threads import one_blas_thread
from ..sumstats.summary_stats import SummaryStats
from . import fisher_scoring
from .block_size import MOST_GENES_ON_DEVICE, Shape, genes_per_block, threads_within
from .estimates import Estimates
from .fisher_scoring import MOST_REFUSED, Outcome, Rules
from .fit_options import FitOptions
from .likelihood import Likelihood, eliminates_levels
from .mixed_model import Contrasts, MixedModel
from .status import Status

#: Rounding error of the residual variance, relative to its size, beyond which a gene is ill-conditioned.
LOST_DIGITS = 1e-3
#: Share of the residual variance that each component has in the average observation at a start inside of the bounds.
INSIDE = 0.3
#: Change of the log-likelihood, to first order, if a negative component were zero: below it the gene has converged.
FLAT = 1e-2
#: FLASHMM's default for max_iter.
FLASHMM_ITERATIONS = 50
#: Iterations with relaxed steps of a gene that needs more, as a multiple of max_iter.
CONTINUED = 4
#: Products of fewer numbers (q (q + m)) the linear algebra library computes on one thread anyway; to find it in the
#: process takes longer than a fit of one gene.
_SMALL = 10_000


def fit_genes(
    summary: SummaryStats, options: FitOptions, progress: Callable[[int], object] | None = None
) -> tuple[Estimates, MixedModel]:
    """Estimate every gene of `summary`, block by block, on the devices of `options`.

    Returns
    -------
    estimates : Estimates
        On the host.
    model : MixedModel
        The decomposed design, on the first device.

    Raises
    ------
    ValueError
        For a rank-deficient X, or options that do not fit the model.
    MemoryError
        If one gene does not fit the memory of a device, with the numbers.
    """
    memory = options.memory_for(len(summary.d))
    devices = resolve(options.device, summary.ZX, summary.ZY)
    small = summary.ZZ.shape[0] * (summary.ZZ.shape[0] + summary.m) < _SMALL
    with nullcontext() if small else one_blas_thread():
        fitter = BlockFitter.build(summary, options, devices, memory)
        estimates = Estimates.empty(summary.m, fitter.model.XXinv.shape[0], summary.n_variances + 1)
        shape = fitter.model.shape(summary.d)
        workers = threads_within(shape, memory)
        ranges = _ranges(summary.m, shape, options, devices, workers, memory)
        for (lo, hi), part in run(devices, workers, ranges, fitter.load, fitter.fit):
            estimates.put(np.arange(lo, hi), part)
            if progress is not None:
                progress(hi - lo)
    return estimates, fitter.model


@dataclass(frozen=True)
class BlockFitter:
    """Statistics and decomposed designs, one per device, that the blocks of a fit share."""

    summary: SummaryStats
    options: FitOptions
    theta0: np.ndarray | None  #: (k+1, m)
    model: MixedModel  #: of the first device
    shared: Mapping[str, tuple[MixedModel, Contrasts]]  #: by the name of the device

    @classmethod
    def build(
        cls, summary: SummaryStats, options: FitOptions, devices: Sequence[Device], memory: int | None
    ) -> BlockFitter:
        """Decompose the design on every device."""
        shared = {device.name: _share(summary, options, device, memory) for device in devices}
        model, _ = shared[devices[0].name]
        return cls(summary, options, start_values(options.theta0, model, summary.m), model, shared)

    def load(self, device: Device, bounds: tuple[int, int]) -> SummaryStats:
        """Copy the statistics of a range of genes to a device."""
        return self.summary.select(slice(*bounds)).on(device.put)

    def fit(self, device: Device, bounds: tuple[int, int], part: SummaryStats) -> Estimates:
        """Estimate a range of genes; those without residual variance keep NaN."""
        design, coefficients = self.shared[device.name]
        block = design.with_genes(part)
        estimates = Estimates.empty(part.m, design.XXinv.shape[0], part.n_variances + 1)
        varying = flag_indices(block.has_residual_variance)
        if varying.size == 0:
            return estimates
        if varying.size < part.m:
            block = block.select(indices(varying, block.beta_ols))
        start = None if self.theta0 is None else like(self.theta0[:, bounds[0] + varying], block.beta_ols)
        estimates.put(varying, estimate_block(block, start, coefficients, self.options))
        return estimates


def _share(
    summary: SummaryStats, options: FitOptions, device: Device, memory: int | None
) -> tuple[MixedModel, Contrasts]:
    """The decomposed design on a device, and its coefficients as contrasts."""
    if memory is None and not device.threaded:
        memory = device.free_bytes()
    with device.entered():
        design = summary.select(slice(0)).on(device.put)
        model = MixedModel.decompose(design, options.method, memory, summary.m)
        return model, model.prepare(like(np.eye(model.XXinv.shape[0]), model.XXinv), gradient=False)


def _ranges(
    m: int, shape: Shape, options: FitOptions, devices: list[Device], workers: int, memory: int | None
) -> Iterator[tuple[int, int]]:
    """Blocks of genes of the requested size, else as large as memory allows, the same number for every worker."""
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
    elif options.bounds == "none":
        outcome = _failed_without_optimum(model, outcome)
    theta = _profiled(model, outcome)
    at_theta = model.likelihood.evaluate(theta)
    covariance, _ = inverse_small(at_theta.information)  # (k+1, k+1, b)
    ill_conditioned = model.likelihood.rss_error > LOST_DIGITS * outcome.yPy
    return Estimates(
        theta=to_numpy(theta),
        se_theta=_root(to_numpy(xp.stack([covariance[i, i, :] for i in range(theta.shape[0])], axis=0))),
        dlogL=to_numpy(at_theta.score),
        logLik=to_numpy(at_theta.value + 0.5 * (at_theta.yPy / theta[-1, :] - model.likelihood.n_effective)),
        niter=to_numpy(outcome.niter).astype(float),
        status=_final_status(
            to_numpy(outcome.status), to_numpy(model.likelihood.at_boundary(theta)), to_numpy(ill_conditioned), options
        ),
        coef=to_numpy(model.coefficients(theta, at_theta.v)),
        se=_root(to_numpy(model.contrast_variance(theta, coefficients))),
    ).without_invalid()


def _root(variance: np.ndarray) -> np.ndarray:
    # standard errors; NaN where there is no positive variance, as for a component that is not identifiable
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def _climb(model: MixedModel, start: Array | None, options: FitOptions, *, nonnegative: bool) -> Outcome:
    """Maximise by plain Fisher scoring, then with relaxed steps for genes that it leaves short of their optimum.

    Fewer iterations than FLASHMM's default ask for an early stop: then there are no relaxed steps.
    """
    with_fallback = options.bounds == "auto" and not nonnegative
    rules = Rules(options.epsilon, options.max_iter, nonnegative, most_refused=MOST_REFUSED if with_fallback else None)
    outcome = _maximised(model, start, rules)
    if nonnegative and start is None:
        outcome = _better_from_inside(model, outcome, rules)
    unfinished = to_numpy(outcome.status) == Status.MAX_ITER
    if with_fallback:  # where steps had to be halved there is likely no optimum
        unfinished = unfinished & ~to_numpy(outcome.step_halved)
    slow = np.flatnonzero(unfinished)
    if slow.size == 0 or options.max_iter < FLASHMM_ITERATIONS:
        return outcome
    index = indices(slow, outcome.theta)
    more = replace(rules, max_iter=CONTINUED * options.max_iter, relaxed=True)
    again = _maximised(model.select(index), namespace(index).take(outcome.theta, index, axis=1), more)
    return outcome.replaced(slow, replace(again, niter=again.niter + options.max_iter))


def _better_from_inside(model: MixedModel, outcome: Outcome, rules: Rules) -> Outcome:
    """Maximise from moderate components, too, where all ended at zero, and keep the higher of the two optima.

    Scoring starts without random effects, and stays there if that is a local maximum.
    """
    xp = namespace(outcome.theta)
    stayed = flag_indices(xp.all(outcome.theta[:-1, :] == 0, axis=0))
    if stayed.size == 0:
        return outcome
    index = indices(stayed, outcome.theta)
    part, before = model.select(index), outcome.select(index)
    theta = part.likelihood.start()
    trace, _ = part.likelihood.design_traces(theta[:-1, :])  # (k, b)
    moderate = INSIDE * theta[-1:, :] * part.likelihood.residual_df / xp.where(trace > 0, trace, 1.0)
    after = _maximised(part, xp.concat([moderate, theta[-1:, :]], axis=0), rules)
    old, new = (part.likelihood.evaluate(_profiled(part, found)) for found in (before, after))
    better = flag_indices(new.ok & (new.value > old.value + old.rounding + new.rounding))
    return outcome.replaced(stayed[better], after.select(indices(better, outcome.theta)))


def _maximised(model: MixedModel, start: Array | None, rules: Rules) -> Outcome:
    """Maximise where the likelihood is tabulated, and continue without tables for genes that leave there."""
    if rules.nonnegative and eliminates_levels(model.likelihood) and model.likelihood.correlated:
        return model.likelihood.maximise_nonnegative(start, rules)
    outcome = _maximise(model.likelihood, start, rules)
    left = np.flatnonzero(to_numpy(outcome.status) == Status.OUTSIDE_TABLE)
    if left.size == 0:
        return outcome
    index = indices(left, outcome.theta)
    untabulated = model.likelihood.untabulated().select(index)
    return outcome.replaced(left, _maximise(untabulated, None, rules, interrupted=outcome.select(index)))


def _maximise(likelihood: Likelihood, start: Array | None, rules: Rules, interrupted: Outcome | None = None) -> Outcome:
    if on_host(likelihood.yry):
        return fisher_scoring.maximise(likelihood, start, rules, interrupted)
    from . import cuda_scoring

    return cuda_scoring.maximise(likelihood, start, rules, interrupted)


def _refit_without_optimum(model: MixedModel, outcome: Outcome, options: FitOptions) -> Outcome:
    """Fit again, with components held at or above zero, the genes that have no valid interior optimum.

    Those are the genes whose step control had to work and that still did not converge, and those at which V
    itself is not positive definite. A gene that took full steps throughout and ran out of iterations keeps
    FLASHMM's last iterate.
    """
    status, halved = to_numpy(outcome.status), to_numpy(outcome.step_halved)
    unfinished = (status == Status.FAILED) | ((status == Status.MAX_ITER) & halved)
    redo = np.flatnonzero(unfinished | ~_valid(model, outcome))
    if redo.size == 0:
        return outcome
    part = model.select(indices(redo, outcome.theta))
    return outcome.replaced(redo, _climb(part, None, options, nonnegative=True))


def _profiled(model: MixedModel, outcome: Outcome) -> Array:
    """Theta (k+1, b) after FLASHMM's last update: s_0 = yPy / N at the last ratios, the others unchanged."""
    s_0 = outcome.yPy / model.likelihood.n_effective
    return namespace(s_0).concat([outcome.theta[:-1, :], s_0[None, :]], axis=0)


def _failed_without_optimum(model: MixedModel, outcome: Outcome) -> Outcome:
    """Return the same with the status FAILED for genes that stopped where there is no valid interior optimum."""
    status = to_numpy(outcome.status)
    failed = _is_good(status) & ~_valid(model, outcome)
    return replace(outcome, status=indices(np.where(failed, int(Status.FAILED), status), outcome.status))


def _valid(model: MixedModel, outcome: Outcome) -> np.ndarray:
    """Flags (b,) of genes whose V is positive definite, and whose log-likelihood is flat there if they converged.

    At the edge of positive definite V the digits of the score are lost: scoring may stop there by chance. Only genes
    with large negative components need the exact check.
    """
    theta, valid = _profiled(model, outcome), np.ones(outcome.theta.shape[1], dtype=bool)
    doubtful = flag_indices(model.may_be_indefinite(theta))
    if doubtful.size:
        index = indices(doubtful, theta)
        xp, part = namespace(theta), model.select(index)
        there, status = xp.take(theta, index, axis=1), to_numpy(outcome.status)[doubtful]
        at = part.likelihood.evaluate(there)
        slope = xp.where(there < 0, xp.abs(at.score * there), 0.0)  # free of the scale of y
        flat = to_numpy(xp.max(slope, axis=0)) <= FLAT
        valid[doubtful] = to_numpy(at.ok & part.positive_definite(there)) & (flat | ~_is_good(status))
    return valid


def _is_good(status: np.ndarray) -> np.ndarray:
    return np.isin(status, (Status.CONVERGED, Status.CONVERGED_AT_ROUNDING))


def _final_status(
    status: np.ndarray, at_boundary: np.ndarray, ill_conditioned: np.ndarray, options: FitOptions
) -> np.ndarray:
    # of a converged gene at the boundary, and of one whose residual variance is lost
    status = np.where(_is_good(status) & at_boundary & (options.bounds != "none"), int(Status.BOUNDARY), status)
    return np.where(ill_conditioned, int(Status.ILL_CONDITIONED), status)


def start_values(theta0: Any, model: MixedModel, m: int) -> np.ndarray | None:
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
