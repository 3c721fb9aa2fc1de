"""Tests that average over what the variances may be, with the estimate re-weighted for each of them.

For contrasts that can be estimated within the levels of the coarser random effect and between them too: how much each
source counts depends on the variances, so that the estimate itself is a mixture. The ratios g >= 0 have the posterior
distribution of a Jeffreys prior, tilted by (v_0 J)^tau, tau = -1/2, for the variance v_0 s_0 of the estimate. At a node
the estimate is a t distribution on N - p df about its generalized least squares value.
"""

from __future__ import annotations

import numpy as np

from .empirical_bayes import Prior
from .estimate_weights import EstimateWeights
from .fixed_weight_rule import normalised
from .mixtures import chi2_points
from .pivots import GenePivots, Pivots

#: Tilt of the prior.
_TAU = -0.5
#: Nodes of each gene that are kept: those of the largest weights.
_KEPT = 320
#: With more df than this a t distribution is a normal one; else it is a mixture of so many of these.
_KNOWN, _POINTS, _TAIL = 150, 8, 1e-5


def _log_posterior(
    pivots: Pivots, genes: GenePivots, variance: np.ndarray, prior: Prior | None
) -> tuple[np.ndarray, np.ndarray, float]:
    # log weights (T2, T1, b), y'P0 y there (T2, T1, b), and its df
    squares, df = genes.R0 + genes.R2[:, None] + genes.R1, float(pivots.residual_df)
    if prior is not None and prior.df > 0:
        strength = min(prior.df, 1e8)
        squares, df = squares + strength * prior.variance, df + strength
    one, other = pivots.axes
    J = pivots.log_jeffreys  # (T2, T1)
    c = variance.shape[-1]
    size = np.linalg.slogdet(variance)[1] / c  # (T2, T1)
    measure = one.log_measure + other.log_measure[:, None]  # (T2, T1)
    base = measure + J + _TAU * (size + J) - 0.5 * pivots.log_determinant
    return base[..., None] - 0.5 * df * np.log(squares), squares, df


def reweighted(
    pivots: Pivots,
    genes: GenePivots,
    weights: EstimateWeights,
    ols: np.ndarray,
    prior: Prior | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates (K, c, b), their covariances (K, c, c, b) and the weights (K, b) of the nodes, which sum to 1.

    `ols` (c, b) are the ordinary least squares estimates.
    """
    variance = weights.variance(pivots)  # (T2, T1, c, c)
    log_weight, squares, df = _log_posterior(pivots, genes, variance, prior)
    b, c = ols.shape[1], ols.shape[0]
    log_weight, scale = log_weight.reshape(-1, b), squares.reshape(-1, b) / df
    nodes = len(log_weight)
    estimate = ols - weights.t.reshape(nodes, c, -1) @ genes.h  # (nodes, c, b)
    kept = min(_KEPT, nodes)
    at = np.argpartition(-log_weight, kept - 1, axis=0)[:kept] if kept < nodes else np.arange(nodes)[:, None]
    weight = normalised(np.take_along_axis(log_weight, at, axis=0) if kept < nodes else log_weight)
    if kept < nodes:
        estimate = np.take_along_axis(estimate, at[:, None, :], axis=0)
        scale = np.take_along_axis(scale, at, axis=0)
    covariance = np.moveaxis(variance.reshape(nodes, c, c)[at], 1, -1) * scale[:, None, None, :]  # (K, c, c, b)
    return _with_residual(estimate, covariance, weight, df)


def _with_residual(
    estimate: np.ndarray, covariance: np.ndarray, weight: np.ndarray, df: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # t distributions on few df as mixtures of normal ones
    if df > _KNOWN:
        return estimate, covariance, weight
    points = list(zip(*chi2_points(df, _POINTS, _TAIL, _TAIL), strict=True))
    return (
        np.concatenate([estimate] * len(points)),
        np.concatenate([covariance * (df / W) for W, _ in points]),
        np.concatenate([weight * w for _, w in points]),
    )
