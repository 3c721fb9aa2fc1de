"""Fitted values and information criteria: functions of a fit. `LMMFit` has them as methods and properties."""

from __future__ import annotations

import difflib

import numpy as np

from ..backend.arrays import like, to_numpy
from ..backend.late_imports import pd
from ..inference.group_levels import groupings, level_name
from ..sumstats.gene_weights import WeightedStats
from .blockwise import Fitted
from .nonnegative import nonnegative_estimates


def gene_position(fit: Fitted, gene: str | int) -> int:
    """Position of a gene given by name or position.

    Raises
    ------
    ValueError
        If the fit has no such gene, with the closest names.
    """
    names = fit.summary.features
    if isinstance(gene, str):
        if gene in names:
            return names.index(gene)
        same = [name for name in names if name.lower() == gene.lower()]
        near = same or difflib.get_close_matches(gene, names, n=3, cutoff=0.85)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names[:5])}, ..."
        raise ValueError(f"{gene!r} is not a gene of the fit; {hint}")
    if isinstance(gene, bool) or not isinstance(gene, (int, np.integer)) or not 0 <= gene < len(names):
        raise ValueError(f"gene={gene!r} is not part of the fit; give one of its {len(names)} names or positions")
    return int(gene)


def predictions(fit: Fitted, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixed effects (p, g) and BLUPs (q, g) of `genes` (positions), with variances at zero or above."""
    theta, _ = nonnegative_estimates(fit, genes)
    model = fit.model.with_genes(fit.summary.with_genes(genes.tolist()).on(lambda x: like(x, fit.model.XXinv)))
    at = like(theta, model.beta_ols)
    return to_numpy(model.coefficients(at)), to_numpy(model.random_effects(at))


def fitted(fit: Fitted, gene: str | int, component: str | None = None) -> pd.DataFrame:
    """Fitted values of one gene, averaged over the cells of each level of a random effect.

    `lmm_gpu.residuals` has those of single cells, which it reads for that.

    Parameters
    ----------
    gene : str or int
        Name or position.
    component : str, optional
        A random effect that is a grouping; by default the one with the most levels.

    Returns
    -------
    DataFrame
        One row per level with cells: level, cells, mean (of the values), fixed (X beta), fitted (X beta + Z u, all
        random effects), in the unit of the values that were fitted. Of a gene with a variance below zero they are those
        of a fit with ``bounds="nonnegative"``.

    Raises
    ------
    ValueError
        For an unknown gene, or a random effect that is no grouping of the cells.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
    >>> lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)").fitted("Gene1").columns.tolist()
    ['level', 'cells', 'mean', 'fixed', 'fitted']
    """
    position, ss = gene_position(fit, gene), fit.summary
    known = {} if isinstance(ss, WeightedStats) else {one.name: one for one in groupings(ss)}
    chosen = max(known, key=lambda name: len(known[name].counts)) if component is None and known else component
    if chosen not in known:
        raise ValueError(
            f"component={component!r} is not a random effect with one level per cell; the fit has "
            f"{', '.join(known) or 'none (weights per gene)'}"
        )
    group, start = known[chosen], int(sum(ss.d[: ss.component_names.index(chosen)]))
    filled = np.flatnonzero(group.counts > 0)
    rows, cells = start + filled, group.counts[filled]
    beta, u = predictions(fit, np.array([position]))
    fixed = to_numpy(ss.ZX)[rows] @ beta[:, 0] / cells
    random = to_numpy(ss.ZZ[rows] @ like(u, ss.ZX))[:, 0] / cells
    return pd.DataFrame(
        {
            "level": [level_name(ss.random_names[row], group.name) for row in rows],
            "cells": cells.astype(int),
            "mean": to_numpy(ss.ZY)[rows, position] / cells,
            "fixed": fixed,
            "fitted": fixed + random,
        }
    )


def information_criterion(fit: Fitted, penalty: float) -> pd.Series:
    """-2 log L + `penalty` for each parameter, of each gene, as lme4's.

    Parameters are the coefficients and the variance components. After REML, log L is lme4's criterion, which includes
    -1/2 log det X'X: compare models with the same fixed effects only.
    """
    ss, estimates = fit.summary, fit.estimates
    log_weights = to_numpy(ss.own.log_weights) if isinstance(ss, WeightedStats) else ss.log_weights
    log_l = estimates.logLik + 0.5 * log_weights
    if fit.method == "REML":
        log_l = log_l - 0.5 * np.linalg.slogdet(to_numpy(ss.XX))[1]
    parameters = len(ss.fixed_names) + len(estimates.theta)
    return pd.Series(-2.0 * log_l + penalty * parameters, list(ss.features))
