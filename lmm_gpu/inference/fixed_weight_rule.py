"""Tests that average over what the variances may be, with the weights of the estimate as they are.

Read backwards, the sums of squares of `pivots` say how credible each pair of ratios is: for quantiles W0, W2, W1 of
chi-squared, s_0 = R0 / W0, then g2 from R2(g2) = s_0 W2, then g1 from R1(g1, g2) = s_0 W1. Where even g = 0 leaves less
than that, the variance of the stratum is the share k = R(0) / (s_0 W) of what independent cells would give. At each
point the estimate l'y has the variance

    v = s_0 [l'l - (1 - k2) q2 + g2 b2 - (1 - k1)(q1 + g2 z21) + g1 b1]

with the forms of `estimate_weights`, and tail areas are averaged over the points: generalized p-values (Weerahandi
1995). Weights (v / prod lambda_k)^tau with the variances lambda_k of single observations in the strata that the
estimate lies in and tau = 1 - 1 / min r_k match the level to first order where there are several; with one, they are
constant. In balanced designs with one stratum this is the exact t test.

References
----------
Weerahandi (1995), Exact Statistical Methods for Data Analysis, chapter 6. Viechtbauer (2007), Confidence intervals for
the amount of heterogeneity in meta-analysis, Statistics in Medicine 26, 37-52.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .empirical_bayes import Prior
from .mixtures import TINY, chi2_points, falling_slope, inverted
from .pivots import GenePivots, Pivots

#: Quantiles of chi-squared for each random effect, with one and with two effects, and tail areas that they leave out.
POINTS, _LOWER, _UPPER = (48, 20), 1e-9, 1e-6
#: With more residual df than this s_0 is taken as known; else it is averaged over so many quantiles.
_KNOWN, _RESIDUAL_POINTS, _RESIDUAL_TAIL = 150, 12, 1e-5
#: A stratum counts for the weights if it has more than this share of l'l.
_SHARE = 1e-3
#: A variance is at least this share of its residual part, and the share of a stratum in a trace.
_LEAST = 1e-12
#: Share of the mean diagonal that keeps a solver from raising for a singular matrix.
_RIDGE = 1e-13


@dataclass(frozen=True)
class VariancePoints:
    """Points of the variances of b genes, for one quantile of the residual variance."""

    s_0: np.ndarray  #: (b,)
    g1: np.ndarray  #: (K1, K2, b)
    g2: np.ndarray  #: (K2, b)
    k1: np.ndarray  #: (K1, K2, b), shares
    k2: np.ndarray  #: (K2, b)
    W1: np.ndarray  #: (K1, 1, 1)
    W2: np.ndarray  #: (K2, 1)
    weight: np.ndarray  #: (K1, K2, 1)

    def variance(self, forms: Mapping[str, np.ndarray]) -> np.ndarray:
        """Variance (K1, K2, ..., b) of estimates with the `forms` (..., b) of their weights."""
        spread = (slice(None),) * 2 + (None,) * (forms["ll"].ndim - 1)
        g1, k1 = self.g1[spread], self.k1[spread]
        g2, k2 = self.g2[None][spread], self.k2[None][spread]
        inner = forms["ll"] - (1.0 - k2) * forms["q2"] + g2 * forms["b2"]
        total: np.ndarray = inner - (1.0 - k1) * (forms["q1"] + g2 * forms["z21"]) + g1 * forms["b1"]
        result: np.ndarray = total * self.s_0
        return result


def variance_points(pivots: Pivots, genes: GenePivots, prior: Prior | None = None) -> Iterator[VariancePoints]:
    """Yield the points of the ratios for each quantile of the residual variance."""
    two = len(pivots.order) == 2
    count = POINTS[1] if two else POINTS[0]
    W1, w1 = chi2_points(pivots.r[0], count, _LOWER, _UPPER)
    W2, w2 = chi2_points(pivots.r[1], count, _LOWER, _UPPER) if two else (np.ones(1), np.ones(1))
    log_R1 = np.log(np.maximum(genes.R1, TINY))  # (T2, T1, b)
    for s_0, w0 in residual_variances(pivots, genes, prior):
        x2, log_k2 = _finer_ratios(pivots, genes, s_0, W2)  # (K2, b)
        rows = np.moveaxis(_between_nodes(log_R1, x2 / pivots.axes[1].spacing), 2, 0)  # (T1, K2, b)
        slope = falling_slope(rows, pivots.axes[0].spacing)
        wanted = np.log(np.maximum(s_0, TINY)) + np.zeros_like(x2)
        found = [inverted(wanted + np.log(W), rows, slope, pivots.axes[0].x) for W in W1]
        x1, log_k1 = (np.stack(part) for part in zip(*found, strict=True))  # (K1, K2, b)
        yield VariancePoints(
            s_0=s_0,
            g1=np.expm1(x1) / pivots.axes[0].n,
            g2=np.expm1(x2) / pivots.axes[1].n,
            k1=np.exp(log_k1),
            k2=np.exp(log_k2),
            W1=W1[:, None, None],
            W2=W2[:, None],
            weight=w0 * w1[:, None, None] * w2[:, None],
        )


def residual_variances(pivots: Pivots, genes: GenePivots, prior: Prior | None) -> Iterator[tuple[np.ndarray, float]]:
    """Yield residual variances s_0 (b,) and their weights; with a `prior` those of the squeezed ones."""
    df, squares = float(pivots.r[2]), genes.R0
    if prior is not None and prior.df > 0:
        strength = min(prior.df, 1e8)
        df, squares = df + strength, squares + strength * prior.variance
    if df > _KNOWN:
        yield squares / df, 1.0
        return
    for W, weight in zip(*chi2_points(df, _RESIDUAL_POINTS, _RESIDUAL_TAIL, _RESIDUAL_TAIL), strict=True):
        yield squares / W, float(weight)


def _finer_ratios(pivots: Pivots, genes: GenePivots, s_0: np.ndarray, W2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # x = log(1 + g2 n) and the log of the share, (K2, b) each; zero without a second effect
    if len(pivots.order) == 1:
        return np.zeros((1, len(s_0))), np.zeros((1, len(s_0)))
    log_R2 = np.log(np.maximum(genes.R2, TINY))  # (T2, b)
    slope, base = falling_slope(log_R2, pivots.axes[1].spacing), np.log(np.maximum(s_0, TINY))
    found = [inverted(base + np.log(W), log_R2, slope, pivots.axes[1].x) for W in W2]
    x2, log_k2 = (np.stack(part) for part in zip(*found, strict=True))
    return x2, log_k2


def _between_nodes(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """`values` (T, T1, b) at the places (K, b) between the first axis' nodes, by Catmull-Rom cubics: (K, b, T1)."""
    T, genes = len(values), np.arange(values.shape[2])
    if T == 1:
        return np.moveaxis(np.broadcast_to(values, (len(place), *values.shape[1:])), 1, 2)
    at = np.clip(place.astype(int), 0, T - 2)  # (K, b)
    u = np.clip(place - at, 0.0, 1.0)[..., None]  # (K, b, 1)
    low, high = np.maximum(at - 1, 0), np.minimum(at + 2, T - 1)
    a, b, c, d = (values[i, :, genes] for i in (low, at, at + 1, high))  # (K, b, T1)
    a, d = np.where((at == 0)[..., None], 2.0 * b - c, a), np.where((at == T - 2)[..., None], 2.0 * c - b, d)
    result: np.ndarray = b + 0.5 * u * (c - a + u * (2.0 * a - 5.0 * b + 4.0 * c - d + u * (3.0 * (b - c) + d - a)))
    return result


def t_mixture(
    pivots: Pivots, genes: GenePivots, forms: Mapping[str, np.ndarray], prior: Prior | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Variances (K, b) of one estimate with `forms` (b,), and their weights (K, b), which sum to 1."""
    b = genes.h.shape[1]
    q = [(forms["q1"], pivots.r[0]), (forms["q2"], pivots.r[1])]
    involved = [(size > _SHARE * forms["ll"]) & (r > 0) for size, r in q]  # (b,) each
    least = np.min([np.where(on, r, np.inf) for on, (_, r) in zip(involved, q, strict=True)], axis=0)  # (b,)
    tau = np.where(np.isfinite(least), 1.0 - 1.0 / least, 0.0)
    variances, log_weights = [], []
    for at in variance_points(pivots, genes, prior):
        v = np.maximum(at.variance(forms), _LEAST * forms["ll"] * at.s_0)  # (K1, K2, b)
        one = at.k1 * (forms["q1"] + at.g2 * forms["z21"]) + at.g1 * forms["b1"]
        two = (at.k2 * forms["q2"] + at.g2 * forms["z22"])[None]
        h = np.log(np.maximum(v, TINY))
        for on, (size, _), part in zip(involved, q, (one, two), strict=True):
            h = h - np.where(on, np.log(np.maximum(part * at.s_0, TINY) / np.maximum(size, TINY)), 0.0)
        variances.append(v.reshape(-1, b))
        log_weights.append((tau * h + np.log(at.weight)).reshape(-1, b))
    return np.concatenate(variances), normalised(np.concatenate(log_weights))


def f_mixture(
    pivots: Pivots,
    genes: GenePivots,
    forms: Mapping[str, np.ndarray],
    estimate: np.ndarray,
    theta: np.ndarray,
    prior: Prior | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Wald statistics (K, b) of `estimate` (c, b) at the points, and their weights (K, b), which sum to 1.

    `forms` (c, c, b) belong to the variances `theta` (3, b) >= 0 of the coarser effect, the finer one and the residual.
    """
    eta1, eta2 = _tilts(forms, theta)  # (b,)
    statistics, log_weights = [], []
    for at in variance_points(pivots, genes, prior):
        statistics.append(wald(estimate, at.variance(forms).reshape(-1, *forms["ll"].shape)))
        tilt = np.log(at.W1) * eta1 + np.log(at.W2) * eta2 + np.log(at.weight)  # (K1, K2, b)
        log_weights.append(tilt.reshape(-1, tilt.shape[-1]))
    return np.concatenate(statistics), normalised(np.concatenate(log_weights))


def _tilts(forms: Mapping[str, np.ndarray], theta: np.ndarray) -> list[np.ndarray]:
    # eta_k = 1 + tr C_k / (q + 2) - 2 (tr C_k^2 / tr C_k)(q + 1) / (q + 2), C_k = Sigma^-1 Sigma_k
    s_1, s_2, s_0 = theta
    total = s_0 * forms["ll"] + s_1 * forms["b1"] + s_2 * forms["b2"]  # (c, c, b)
    one = s_0 * forms["q1"] + s_1 * forms["b1"] + s_2 * forms["z21"]
    two = s_0 * forms["q2"] + s_2 * forms["z22"]
    q = len(total)
    found = []
    for part in (one, two):
        C = np.linalg.solve(_ridged(np.moveaxis(total, -1, 0)), np.moveaxis(part, -1, 0))  # (b, c, c)
        trace, square = np.einsum("bii->b", C), np.einsum("bij,bji->b", C, C)
        ratio = square / np.maximum(trace, _LEAST)
        found.append(1.0 + trace / (q + 2) - 2.0 * ratio * (q + 1) / (q + 2))
    return found


def wald(estimate: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Estimate' covariance^-1 estimate (K, b) for `estimate` (c, b) or (K, c, b), and `covariance` (K, c, c, b)."""
    stack = _ridged(np.moveaxis(covariance, -1, 1))  # (K, b, c, c)
    columns = np.moveaxis(np.broadcast_to(estimate, (len(covariance), *estimate.shape[-2:])), -1, 1)[..., None]
    squares: np.ndarray = np.sum(columns * np.linalg.solve(stack, columns), axis=(-1, -2))
    result: np.ndarray = np.maximum(squares, 0.0)
    return result


def _ridged(A: np.ndarray) -> np.ndarray:
    c = A.shape[-1]
    size = np.einsum("...ii->...", A)[..., None, None] / c
    result: np.ndarray = A + (_RIDGE * np.maximum(size, TINY)) * np.eye(c)
    return result


def normalised(log_weight: np.ndarray) -> np.ndarray:
    """Weights (K, b) that sum to 1 over the points."""
    weight = np.exp(log_weight - np.max(log_weight, axis=0))
    total: np.ndarray = weight / np.sum(weight, axis=0)
    return total
