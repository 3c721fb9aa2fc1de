"""Standard errors and df of contrasts between groups, by how uncertain the variance between the groups is.

Satterthwaite's df follow from the slope of a contrast's variance at the estimate. With few or uneven donors that says
little: the estimate may lie at zero or below, where one large donor gets nearly all the weight. Of the ratio g of one
random effect more is known. Its sum of squares between groups, once all else is taken out,

    Q(g) = y' P0(g) y - y' P0(infinity) y,    P0 = s_0 P,

is s_0 chi2_r at the true ratio, on r between-within df, and falls as g grows: each quantile q of chi2_r answers to one
ratio, Q(g) = s_0 q, and chi2_r becomes a distribution of what g may be (a confidence distribution; the Q-profile of
meta-analysis). Where even g = 0 leaves less than q, the variance between groups is that share of it.

The estimate c'beta has weights that do not change with this. Its variance is then s_0 d_0 + sum_i s_i d_i with the
gradient d of `MixedModel.contrast_gradient`, and its error is a mixture of normals over that distribution: the
tail areas are generalized p-values (Weerahandi 1995). What is reported is the t distribution with the mixture's 5 % and
0.1 % points, on at most r df. In balanced designs that is the exact t test between group means, on r df. Sources that
are nested in the groups share their fate below g = 0; all other variances are taken as they were estimated.

A contrast may lie between the groups in part only: the effect, in one type of cells, of a treatment of donors; or of
one that a single donor had both with and without. Of the variance d_0 of its weights l, the part l'P_j l lies in the
span of Z_j, and only that shares what is below g = 0; the df are at most those within groups.

References
----------
Weerahandi (1995), Exact Statistical Methods for Data Analysis, chapter 6. Viechtbauer (2007), Confidence intervals for
the amount of heterogeneity in meta-analysis, Statistics in Medicine 26, 37-52.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special
from scipy.interpolate import CubicSpline

from ..backend.arrays import Array, like, to_numpy
from ..estimation.likelihood import Likelihood
from ..estimation.mixed_model import MixedModel
from .strata import Stratum

#: Two-sided tail areas at which the t distribution is that of the mixture.
LEVELS = (0.05, 0.001)
#: Points of chi2_r that the mixture is over, evenly spaced in log q, and the tail areas that they leave out.
_POINTS, _LOWER, _UPPER = 48, 1e-10, 1e-6
#: Ratios at which Q is found: so far apart in log(1 + g n) for n cells per level, up to g n of this.
_SPACING, _TOP = 0.5, 1e4
#: The df that a matched t distribution may have.
_LEAST_DF, _MOST_DF = 0.1, 1e5
#: Steps to a tail area at the most, and relative accuracy.
_STEPS, _CLOSE = 20, 1e-9


def generalized_t(
    model: MixedModel, theta: Array, gradient: Array, stratum: Stratum, inside: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors and df (c, b) of contrasts that lie in a stratum.

    Parameters
    ----------
    model : MixedModel
        b genes.
    theta : array (k+1, b)
    gradient : array (k+1, c, b)
        Of the contrasts' variances at theta.
    stratum : Stratum
        With at least one df.
    inside : array (c, b), optional
        For contrasts that lie in the stratum in part: `part_inside` of them.

    Returns
    -------
    se, df : array (c, b)
        On the host; NaN where the data do not tell, as for a gene without variance between groups.

    Examples
    --------
    Of 3 donors with treatment and 3 without, of 10 cells each, donors are compared on 4 df.

    >>> from lmm_gpu.inference.strata import binding_strata
    >>> from lmm_gpu.sumstats.assembly import cross_products
    >>> X = np.repeat([[1.0, 0], [1, 0], [1, 0], [1, 1], [1, 1], [1, 1]], 10, axis=0)  # (60, 2)
    >>> Z, Y = np.repeat(np.eye(6), 10, axis=0), np.random.default_rng(1).normal(size=(60, 2))
    >>> summary, C = cross_products(X, Z, Y), np.array([[0.0, 1.0]])
    >>> model, theta = MixedModel.build(summary), np.array([[0.1, 0.0], [1.0, 1.0]])
    >>> gradient = model.contrast_gradient(theta, C)
    >>> se, df = generalized_t(model, theta, gradient, binding_strata(summary, C)[0])
    >>> df.round(4).tolist()
    [[4.0, 4.0]]
    """
    j, s_0, d = stratum.component, to_numpy(theta[-1, :]), to_numpy(gradient)
    ratios = np.maximum(to_numpy(model.likelihood.ratios(theta)), 0.0)  # (k, b), of the other random effects
    ratios[j] = 0.0
    parts = s_0 * ratios[:, None, :] * d[:-1]  # (k, c, b), what each of the others adds
    finer = parts[list(stratum.finer)].sum(axis=0)  # (c, b)
    inner = s_0 * d[-1] + finer if inside is None else s_0 * inside  # (c, b), in the stratum at a ratio of zero
    most = stratum.df if inside is None else float(model.likelihood.residual_df - model.likelihood.rank)
    outer = s_0 * d[-1] + parts.sum(axis=0) - inner  # (c, b)
    rise = s_0 * d[j]  # (c, b)
    q, weight = chi2_points(stratum.df)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        g, share = ratios_at(q, *_profile(model.likelihood, ratios, s_0, stratum))  # (K, b)
        variances = (share * a + g * b + c for a, b, c in zip(inner, rise, outer, strict=True))  # (K, b)
        matched = [matched_t(variance, weight, most) for variance in variances]
    se, df = (np.stack(part) for part in zip(*matched, strict=True))
    return se, df


def part_inside(model: MixedModel, theta: Array, a: Array, stratum: Stratum) -> np.ndarray:
    """Part l'P_j l of l'l for the weights l that contrasts give to the cells, all pairs of them (c, c, b).

    `a` (q, c) are the contrasts' loadings, P_j projects on the random effect of the stratum: with w_j = Z_j'l that is
    w_j'(Z_j'Z_j)^-1 w_j.
    """
    w = to_numpy(model.likelihood.effect_weights(model.likelihood.ratios(theta), a, stratum.component))  # (d_j, c, b)
    values, vectors = np.linalg.eigh(stratum.ZZ)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    scaled = np.tensordot((vectors[:, kept] / np.sqrt(values[kept])).T, w, axes=1)  # (rank, c, b)
    return np.einsum("qcb,qeb->ceb", scaled, scaled)


def _profile(
    likelihood: Likelihood, ratios: np.ndarray, s_0: np.ndarray, stratum: Stratum
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Nodes x = log(1 + g n) (T,), log(Q / s_0) there (T, b), its slope in x (T, b), and n, the cells per level.

    Effects in which the levels may be nested are taken out as fixed effects are, by a large ratio.
    """
    cells = stratum.cells[stratum.cells > 0]
    n = float(cells.mean())
    top = math.log1p(_TOP * n / float(cells.min()))
    x = np.linspace(0.0, top, math.ceil(top / _SPACING) + 1)  # (T,)
    g = np.expm1(x) / n
    at = ratios.copy()
    at[list(stratum.coarser)] = g[-1]
    sums = likelihood.between_group_ss(like(at, likelihood.yry), stratum.component, g.tolist())
    Q, slope = (to_numpy(part) for part in sums)
    return x, np.log(Q / s_0), slope / Q * (np.exp(x) / n)[:, None], n


def chi2_points(r: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (K,) of chi2_r and their weights, which make means over it: the trapezoidal rule in log q.

    Examples
    --------
    >>> q, weight = chi2_points(4.0)
    >>> round(float(weight @ q), 4), round(float(weight @ q**2), 3)  # r and r (r + 2)
    (4.0, 24.0)
    """
    lo, hi = np.log(special.chdtri(r, [1.0 - _LOWER, _UPPER]))
    t = np.linspace(lo, hi, _POINTS)
    log_density = 0.5 * (r * t - np.exp(t))
    weight = np.exp(log_density - log_density.max())
    return np.exp(t), weight / weight.sum()


def ratios_at(
    q: np.ndarray, x: np.ndarray, log_Q: np.ndarray, slope: np.ndarray, n: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios g (K, b) with Q(g) = s_0 q; and where Q(0) is less than that, zero and the share Q(0) / (s_0 q) (K, b).

    Log Q (T, b) at the nodes `x` (T,) is inverted by Hermite's cubic; beyond them Q falls as 1 / g.
    """
    wanted = np.log(q)[:, None]  # (K, 1)
    share = np.exp(np.minimum(log_Q[0] - wanted, 0.0))  # (K, b)
    at = np.clip(sum((row > wanted).astype(int) for row in log_Q) - 1, 0, len(x) - 2)  # (K, b), the interval
    (L0, L1), (s0, s1) = ([np.take_along_axis(A, at + i, axis=0) for i in (0, 1)] for A in (log_Q, slope))
    u = np.clip((wanted - L0) / (L1 - L0), 0.0, 1.0)  # (K, b)
    cubic = (x[1] - x[0]) * u * u * (3.0 - 2.0 * u) + (L1 - L0) * u * (1.0 - u) * ((1.0 - u) / s0 - u / s1)
    beyond = np.exp(np.maximum(log_Q[-1] - wanted, 0.0))  # (K, b)
    return np.expm1(x[at] + cubic) / n * beyond, share


def matched_t(variance: np.ndarray, weight: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and df (b,) of the t distribution with the 5 % and 0.1 % points of a mixture of normals.

    `variance` (K, b) has `weight` (K,). The df are at most `most` and 10^5; then one of the points is
    met, the other one within.

    Examples
    --------
    Variances that are 4 over chi2 on 4 df make a t distribution.

    >>> q, weight = chi2_points(4.0)
    >>> [float(part.round(5)[0]) for part in matched_t(4.0 / q[:, None], weight, 4.0)]
    [1.0, 4.0]
    """
    sd = np.sqrt(variance)
    log_points, log_df = _t_points()
    most = math.log(min(max(most, _LEAST_DF), _MOST_DF))
    x = np.exp(log_points(most)[0]) / np.sqrt(weight @ (1.0 / variance))  # (b,), a start
    wide = _tail_point(x, sd, weight, LEVELS[0])
    points = np.log(np.stack([wide, _tail_point(wide, sd, weight, LEVELS[1])], axis=1))  # (b, 2)
    fitted = np.minimum(log_df(points[:, 1] - points[:, 0]), most)  # (b,)
    return np.exp(np.max(points - log_points(fitted), axis=1)), np.exp(fitted)


def _tail_point(x: np.ndarray, sd: np.ndarray, weight: np.ndarray, level: float) -> np.ndarray:
    """Where the mixture of N(0, sd^2) (K, b) has the two-sided tail area `level` (b,): Newton in logarithms."""
    for _ in range(_STEPS):
        z = x / sd  # (K, b)
        tail = weight @ (2.0 * special.ndtr(-z))  # (b,)
        density = weight @ (z * np.exp(-0.5 * z * z)) * math.sqrt(2.0 / math.pi)
        step = np.clip(np.log(tail / level) * tail / density, -1.0, 1.0)
        x = x * np.exp(step)
        if not np.nanmax(np.abs(step), initial=0.0) > _CLOSE:
            break
    return x


@lru_cache(maxsize=1)
def _t_points() -> tuple[CubicSpline, CubicSpline]:
    # logs of t's 5 % and 0.1 % points by log df, and log df by the log of their ratio, which falls with df
    log_df = np.linspace(math.log(_LEAST_DF), math.log(_MOST_DF), 1000)
    points = np.log([-special.stdtrit(np.exp(log_df), level / 2) for level in LEVELS])  # (2, N)
    return CubicSpline(log_df, points.T), CubicSpline((points[1] - points[0])[::-1], log_df[::-1])
