"""Fit summary statistics, and label the estimates: the only place that makes an `LMMFit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..estimation.fit_options import FitOptions
from ..estimation.fitting import fit_genes
from ..estimation.status import Status
from ..sumstats.estimable import without_empty_cells
from ..sumstats.summary_stats import SummaryStats
from .lmm_fit import LMMFit


def fit_summary(
    summary: SummaryStats,
    options: FitOptions | None = None,
    progress: Callable[[int], object] | None = None,
    client: Any = None,
) -> LMMFit:
    """Fit every gene of `summary`.

    Parameters
    ----------
    summary : SummaryStats
    options : FitOptions, optional
    progress : callable, optional
        Called with the number of genes done after each block.
    client : distributed.Client, optional
        Workers that fit the blocks; by default the devices of `options` do.

    Returns
    -------
    LMMFit

    Raises
    ------
    ValueError
        For a rank-deficient X, or options that do not fit the model. Per-gene failures are reported in `status`.

    Warns
    -----
    UserWarning
        For genes without an estimate, without an optimum, or with few significant digits; one line for each kind.
    """
    options = options or FitOptions()
    summary = without_empty_cells(summary)
    if client is None:
        estimates, model = fit_genes(summary, options, progress)
    else:
        from ..estimation.dask_fits import fit_genes_on_workers

        estimates, model = fit_genes_on_workers(summary, options, client, progress)
    warn_of_status(estimates.status)
    _warn_of_fixed_and_random(summary)
    lost = [summary.features[gene] for gene in np.flatnonzero(estimates.status == Status.ILL_CONDITIONED)]
    warn_of_lost_digits(lost, summary.m)
    return LMMFit(estimates, summary, model, replace(options, theta0=None))


def _warn_of_fixed_and_random(summary: SummaryStats) -> None:
    both = [term.name for term in summary.terms or () if term.name in summary.component_names]
    if both:
        warnings.warn(
            f"{', '.join(both)} is both a fixed effect and a random intercept: the fixed effects take all differences "
            "between its levels, and its variance is not estimable; leave out one of the two",
            stacklevel=4,
        )


def warn_of_status(status: np.ndarray) -> None:
    """One warning for all features without an estimate, and one for those without an optimum."""
    m, count = status.size, {word: int(np.count_nonzero(status == word)) for word in Status}
    if count[Status.NO_VARIANCE]:
        what = "do not vary once X is taken out: NaN everywhere, status no_variance"
        warnings.warn(f"{count[Status.NO_VARIANCE]} of {m} features {what}", stacklevel=3)
    short = {word.word: count[word] for word in (Status.MAX_ITER, Status.FAILED) if count[word]}
    if short:
        what = ", ".join(f"{number} {word}" for word, number in short.items())
        warnings.warn(f"{sum(short.values())} of {m} features did not converge ({what}): see fit.status", stacklevel=3)


def warn_of_lost_digits(lost: list[str], m: int) -> None:
    """Warn of genes whose residual variance is lost in the rounding error of their sums over cells."""
    if lost:
        named = ", ".join(lost[:3])
        warnings.warn(
            f"{len(lost)} of {m} features ({named}{', ...' if len(lost) > 3 else ''}) are ill-conditioned: values that "
            "are (nearly) constant within the levels of a random effect, or lie far from zero or along a fixed effect "
            "for their standard deviation, have a residual variance below the rounding error of the sums. They get "
            "coefficients but no p-values (status ill_conditioned): analyse one value per level, or subtract a "
            "constant or that effect first",
            stacklevel=3,
        )
