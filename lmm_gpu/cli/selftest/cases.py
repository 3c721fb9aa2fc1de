"""Simulated cells for the checks of devices, and deviations between the numbers of two devices."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from ...backend.arrays import to_numpy
from ...estimation.estimates import Estimates
from ...estimation.fit_options import FitOptions
from ...estimation.status import Status
from ...inference.satterthwaite import DF_METHODS
from ...results.fitting import fit_summary
from ...results.lmm_fit import LMMFit
from ...sumstats.alignment import default_names
from ...sumstats.assembly import cross_products
from ...sumstats.summary_stats import SummaryStats

#: Levels of up to three random effects.
LEVELS = (12, 7, 4)
#: Units of rounding by which another order of operations may move a statistic; times that they are drawn; and how much
#: more than what they move is allowed.
_ROUNDINGS, _DRAWS, _SAFETY = 16, 3, 10
#: Scores at which genes stop: so small that one iteration more, which rounding may decide, hardly moves the estimates.
_EPSILON = 1e-8


# --- simulated cells ------------------------------------------------------------------------------


def cells(effects: int, genes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (n, 3), Z (n, q) and Y (n, m) of 300 cells; every third gene has no variance of the first effect."""
    rng, n = np.random.default_rng(seed), 300
    groups = [rng.permutation(np.arange(n) % levels) for levels in LEVELS[:effects]]
    X = np.column_stack([np.ones(n), groups[0] % 2, rng.normal(size=n)])  # (n, 3)
    blocks = [np.eye(levels)[codes] for levels, codes in zip(LEVELS, groups, strict=False)]
    Y = X @ rng.normal(size=(3, genes)) + rng.normal(size=(n, genes))  # (n, m)
    for i, block in enumerate(blocks):
        spread = rng.uniform(0.3, 1.0, genes) * ((np.arange(genes) + i) % 3 > 0)  # (m,)
        Y = Y + block @ (spread * rng.normal(size=(block.shape[1], genes)))
    return X, np.hstack(blocks), Y


def statistics(effects: int, genes: int, seed: int = 0) -> SummaryStats:
    """Summary statistics of simulated cells, on the host."""
    return cross_products(*cells(effects, genes, seed), d=LEVELS[:effects])


def converged(**options: Any) -> FitOptions:
    """Options of fits that are compared: genes stop later than by default."""
    return FitOptions(epsilon=_EPSILON, **options)


def repeated(summary: SummaryStats, times: int) -> SummaryStats:
    """Return the statistics with all genes repeated."""
    many: dict[str, Any] = {name: np.tile(getattr(summary, name), times) for name in ("XY", "ZY", "Ynorm", "Ysum")}
    return replace(summary, **many, features=default_names("Gene", summary.m * times), centred=None)


# --- deviations -----------------------------------------------------------------------------------


def largest(found: Any, wanted: Any, scale: Any = 1.0) -> float:
    """Largest deviation in units of `scale`; both must have NaN in the same places."""
    found, wanted = to_numpy(found), to_numpy(wanted)
    missing = np.isnan(wanted)
    assert np.array_equal(np.isnan(found), missing), "numbers are NaN on one device only"
    known = (np.abs(found - wanted) / scale)[~missing]
    return float(known.max()) if known.size else 0.0


def fit_deviation(found: Estimates, wanted: Estimates) -> float:
    """Largest deviation of the estimates of genes that have an optimum; all must have the same status."""
    ended = [np.where(one.status == Status.CONVERGED_AT_ROUNDING, 1, one.status) for one in (found, wanted)]
    differ = np.flatnonzero(ended[0] != ended[1])
    assert not differ.size, f"{differ.size} of {ended[0].size} genes have another status, such as gene {differ[:1]}"
    at = np.isin(wanted.status, (Status.CONVERGED, Status.CONVERGED_AT_ROUNDING, Status.BOUNDARY))
    s_0, se = wanted.theta[-1:, at], wanted.se[:, at]
    scales = {"theta": s_0, "se_theta": s_0, "coef": se, "se": se, "logLik": 1.0 + np.abs(wanted.logLik[at])}
    return max(largest(getattr(found, key)[..., at], getattr(wanted, key)[..., at], by) for key, by in scales.items())


@functools.cache
def allowed(effects: int, genes: int, seed: int = 0) -> tuple[float, float]:
    """Largest deviations that rounding explains in fits of `statistics(effects, genes, seed)`: estimates, and tests.

    What moves on the host when every statistic is changed by some units of rounding. Estimates may also take one
    iteration more, as those at the edge of the stopping rule do on another device.
    """
    summary, of_estimates, of_tests = statistics(effects, genes, seed), 0.0, 0.0
    for options in (converged(device="cpu"), converged(method="ML", bounds="nonnegative", device="cpu")):
        wanted = fit_summary(summary, options)
        further = fit_summary(summary, replace(options, epsilon=options.epsilon / 10))
        of_estimates = max(of_estimates, fit_deviation(further.estimates, wanted.estimates))
        for draw in range(_DRAWS):
            moved = fit_summary(_perturbed(summary, draw), options)
            of_estimates = max(of_estimates, fit_deviation(moved.estimates, wanted.estimates))
            of_tests = max(of_tests, inference_deviation(moved, wanted))
    return _SAFETY * of_estimates, _SAFETY * of_tests


def _perturbed(summary: SummaryStats, seed: int) -> SummaryStats:
    # every number times 1 + some units of rounding; matrices stay symmetric
    rng, size = np.random.default_rng(seed), _ROUNDINGS * float(np.finfo(float).eps)

    def moved(A: np.ndarray, *, symmetric: bool = False) -> np.ndarray:
        E = rng.uniform(-size, size, A.shape)
        return A * (1 + ((E + E.T) / 2 if symmetric else E))

    square: dict[str, Any] = {name: moved(getattr(summary, name), symmetric=True) for name in ("XX", "ZZ")}
    others: dict[str, Any] = {name: moved(getattr(summary, name)) for name in ("ZX", "XY", "ZY", "Ynorm", "Ysum")}
    return replace(summary, **square, **others, centred=None)


def inference_deviation(found: LMMFit, wanted: LMMFit) -> float:
    """Largest deviation of t and F tests, by every method of degrees of freedom."""
    C, worst = np.eye(3), 0.0
    methods = [one for one in DF_METHODS if found.method == "REML" or one != "kenward-roger"]
    for method in methods:
        ours, theirs = (fit.contrast_test(C, method) for fit in (found, wanted))
        worst = max(worst, largest(ours.estimate, theirs.estimate, theirs.se), largest(ours.se, theirs.se, theirs.se))
        worst = max(worst, largest(ours.df, theirs.df, theirs.df))
        joint, wanted_joint = (fit.f_test(C[1:], method) for fit in (found, wanted))
        worst = max(worst, largest(joint.statistic, wanted_joint.statistic, 1.0 + wanted_joint.statistic))
        worst = max(worst, largest(joint.df, wanted_joint.df, wanted_joint.df))
    return worst
