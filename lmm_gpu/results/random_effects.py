"""Random effects: best linear unbiased predictions of a fit. `LMMFit` has `ranef` as a method."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from ..backend.arrays import Array, entered, like, to_numpy
from ..backend.late_imports import pd
from ..backend.linalg import identity
from ..estimation.grouped_effects import GroupedEffects
from ..estimation.likelihood import Likelihood
from ..estimation.many_components import MultiComponent
from ..estimation.mixed_model import MixedModel, in_pieces
from ..estimation.one_component import SingleComponent
from ..estimation.projection import Projection
from ..sumstats.summary_stats import SummaryStats
from .blockwise import Fitted, GeneBlock, by_block
from .nonnegative import negative_variances, nonnegative_estimates
from .variance_components import component_position


def ranef(fit: Fitted, component: str | int | None = None) -> pd.DataFrame:
    """Best linear unbiased predictions with conditional standard deviations: one row per feature and effect.

    Parameters
    ----------
    component : str or int, optional
        Name or position of one random effect; by default all of them.

    Returns
    -------
    DataFrame
        variable, component, effect, blup, sd, standardized. The sd are lme4's condVar: given theta and the fixed
        effects, so without the uncertainty of these. standardized is blup over its own standard deviation,
        sqrt(variance - sd^2): standard normal if the model holds, for a QQ plot. Of genes with a component below zero,
        all are those of a fit with ``bounds="nonnegative"``: no variable with a negative variance can be predicted.

    Raises
    ------
    ValueError
        For an unknown component.

    Warns
    -----
    UserWarning
        If there are genes with a component below zero.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str)})
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
    >>> fit = lmm_gpu.fit((Y, obs), "~ 1 + (1 | donor)")
    >>> table = fit.ranef("donor")
    >>> table["effect"].tolist()[:2], len(table), bool((table["sd"] > 0).all())
    (['donor[0]', 'donor[1]'], 16, True)
    """
    chosen = range(len(fit.summary.d)) if component is None else [component_position(fit, component)]
    ends = np.cumsum([0, *fit.summary.d])
    rows = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in chosen])
    m, grouped = fit.summary.m, isinstance(fit.model.likelihood, GroupedEffects)
    with entered(fit.model.XXinv):  # the statistics may be on the host while the model is on a device
        design = fit.summary.select(slice(0)).on(lambda x: like(x, fit.model.XXinv))
        bare = None if grouped else unprojected(design)
    blup, sd = (np.full((rows.size, m), np.nan) for _ in range(2))
    theta = _nonnegative_theta(fit)

    def form(block: GeneBlock) -> tuple[np.ndarray, np.ndarray]:
        sd = conditional_sd(bare or _without_fixed(block.model), block.theta)
        return to_numpy(block.model.random_effects(block.theta)), sd

    for genes, (u, spread) in by_block(fit, form, theta):
        blup[:, genes], sd[:, genes] = u[rows], spread[rows]
    variance = np.repeat(_variances(fit, theta), fit.summary.d, axis=0)[rows]  # (rows, m)
    with np.errstate(divide="ignore", invalid="ignore"):
        standardized = blup / np.sqrt(np.maximum(variance - sd**2, 0.0))
    standardized[~np.isfinite(standardized)] = np.nan
    owner = np.repeat(list(fit.summary.component_names), fit.summary.d)[rows]
    return pd.DataFrame(
        {
            "variable": np.repeat(np.asarray(fit.summary.features, dtype=object), rows.size),
            "component": np.tile(owner, m),
            "effect": np.tile(np.asarray(fit.summary.random_names, dtype=object)[rows], m),
            "blup": blup.T.ravel(),
            "sd": sd.T.ravel(),
            "standardized": standardized.T.ravel(),
        }
    )


def _variances(fit: Fitted, theta: np.ndarray) -> np.ndarray:
    # of the components (k, m), without their covariances
    names = list(fit.summary.variance_names)
    return theta[[names.index(name) for name in fit.summary.component_names]]


def _nonnegative_theta(fit: Fitted) -> np.ndarray:
    # theta (k+1, m), of a fit with bounds="nonnegative" for genes with a variance below zero
    genes = np.arange(fit.summary.m)
    negative = np.count_nonzero(negative_variances(fit, genes))
    if negative == 0:
        return fit.estimates.theta
    warnings.warn(
        f"{negative} of {fit.summary.m} features have a variance component below zero: their random effects are "
        "predicted by a fit with bounds='nonnegative'",
        stacklevel=3,
    )
    return nonnegative_estimates(fit, genes)[0]


def unprojected(summary: SummaryStats) -> Likelihood:
    """Likelihood of no genes with Z'Z in place of S: its N = D (I + Z'Z D)^-1 is the conditional covariance / s_0."""
    projection = Projection.build(summary)
    bare = replace(projection, S=projection.ZZ)
    if len(summary.d) == 1:
        return SingleComponent.decompose(bare, "REML")
    return MultiComponent.decompose(bare, summary.d, "REML")


def _without_fixed(model: MixedModel) -> Likelihood:
    assert isinstance(model.likelihood, GroupedEffects)
    return model.likelihood.without_fixed()


def conditional_sd(bare: Likelihood, theta: Array) -> np.ndarray:
    """Standard deviations (q, b) of u given y, theta and beta, as lme4's condVar; NaN for a negative component.

    `bare` is `unprojected` of the design.
    """
    g = bare.ratios(theta)
    if isinstance(bare, GroupedEffects):
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(to_numpy(theta[-1, :][None, :] * bare.conditional_variances(g))))
    unit = identity(bare.random_effects(g[:, :0]).shape[0], theta)
    form = in_pieces(lambda g: bare.variance_form(g, unit), g, unit.shape[0] ** 2)  # (q, b)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(to_numpy(theta[-1, :][None, :] * form)))
