"""Mixtures of normal distributions and the t or F distribution that is reported for them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..backend.late_imports import scipy

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

#: Two-sided tail areas at which the reported distribution has the points of the mixture.
LEVELS = (0.05, 0.001)
#: The df that a reported distribution may have.
LEAST_DF, MOST_DF = 0.1, 1e5
#: Steps to a tail area at the most, and relative accuracy.
_STEPS, _CLOSE = 20, 1e-9
#: Logarithms are taken of at least this, near the smallest number: it keeps infinities out and decides nothing.
TINY = 1e-300
#: Share of the mean diagonal that keeps a solver from raising for a singular matrix.
_RIDGE = 1e-13


def chi2_points(r: float, points: int, lower: float, upper: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (K,) of chi2_r and weights that make means over it: the trapezoidal rule in the logarithm.

    `lower` and `upper` are the tail areas that are left out.

    Examples
    --------
    >>> q, weight = chi2_points(4.0, 48, 1e-10, 1e-6)
    >>> round(float(weight @ q), 4), round(float(weight @ q**2), 3)  # r and r (r + 2)
    (4.0, 24.0)
    """
    lo, hi = np.log(scipy.special.chdtri(r, [1.0 - lower, upper]))
    t = np.linspace(lo, hi, points)
    log_density = 0.5 * (r * t - np.exp(t))
    weight = np.exp(log_density - log_density.max())
    return np.exp(t), weight / weight.sum()


def chi2_gauss(r: float) -> tuple[np.ndarray, np.ndarray]:
    """Three points of chi2_r and weights that make means over it, for many df.

    Gauss and Hermite's points of the normal distribution that the cube root follows (Wilson and Hilferty 1931).

    Examples
    --------
    >>> q, weight = chi2_gauss(300.0)
    >>> round(float(weight @ q), 2), round(float(weight @ (q - 300.0) ** 2), 1)  # r and 2 r
    (300.0, 600.0)
    """
    spread = 2.0 / (9.0 * r)
    z = math.sqrt(3.0) * np.array([-1.0, 0.0, 1.0])
    q: np.ndarray = r * (1.0 - spread + math.sqrt(spread) * z) ** 3
    return q, np.array([1.0, 4.0, 1.0]) / 6.0


def wald(estimate: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Estimate' covariance^-1 estimate (K, b) for `estimate` (K, c, b) and `covariance` (K, c, c, b)."""
    stack = np.moveaxis(covariance, -1, 1)  # (K, b, c, c)
    c = stack.shape[-1]
    size = np.einsum("...ii->...", stack)[..., None, None] / c
    columns = np.moveaxis(estimate, -1, 1)[..., None]  # (K, b, c, 1)
    ridged = stack + (_RIDGE * np.maximum(size, TINY)) * np.eye(c)
    squares: np.ndarray = np.sum(columns * np.linalg.solve(ridged, columns), axis=(-1, -2))
    result: np.ndarray = np.maximum(squares, 0.0)
    return result


def matched(precision: np.ndarray, weight: np.ndarray, rank: int, most: float) -> tuple[np.ndarray, np.ndarray]:
    """F statistic and denominator df (b,) that stand for Wald statistics with weights.

    At variances with `weight` (K, b) a hypothesis of `rank` rows has the Wald statistics `precision` (K, b). They are
    chi-squared if it is true, and their tail areas are averaged. The F distribution on `rank` and the df has the same
    areas where all estimates are larger by the factors that give 5 % and 0.1 %. For one contrast `precision` may be
    1 / variance; the statistic is then 1 / se^2. The df are at most `most` and 10^5; then one of the two areas is
    exact, and the other one is conservative.

    Examples
    --------
    Variances that are 4 over chi2 on 4 df make a t distribution, with a standard error of 1.

    >>> q, weight = chi2_points(4.0, 48, 1e-10, 1e-6)
    >>> statistic, df = matched(q[:, None] / 4.0, weight[:, None], 1, 4.0)
    >>> float(statistic[0].round(5)), float(df[0].round(4))
    (1.0, 4.0)
    """
    log_points, log_df = _f_points(rank)
    most = math.log(min(max(most, LEAST_DF), MOST_DF))
    start = np.exp(log_points(most)[0]) * rank / np.sum(weight * precision, axis=0)  # (b,)
    first = _tail_point(start, precision, weight, rank, LEVELS[0])
    points = np.log(np.stack([first, _tail_point(first, precision, weight, rank, LEVELS[1])], axis=1))  # (b, 2)
    fitted = np.minimum(log_df(points[:, 1] - points[:, 0]), most)  # (b,)
    return np.exp(np.min(log_points(fitted) - points, axis=1)), np.exp(fitted)


def matched_t(
    centre: np.ndarray, sd: np.ndarray, weight: np.ndarray, most: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Location, scale and df (b,) of the t distribution that stands for a mixture of normals (K, b).

    The location is the mean; the 2.5 % and 0.05 % points on the side of zero are those of the mixture.
    """
    location = np.sum(weight * centre, axis=0)  # (b,)
    centre = np.where(location < 0, -centre, centre)
    mean = np.abs(location)
    width = np.sqrt(np.sum(weight * (sd**2 + (centre - mean) ** 2), axis=0))
    near = _lower_point(mean - 2.0 * width, centre, sd, weight, 0.5 * LEVELS[0])
    far = _lower_point(mean - 3.3 * width, centre, sd, weight, 0.5 * LEVELS[1])
    log_points, log_df = _f_points(1)
    points = 2.0 * np.log(np.maximum(mean[:, None] - np.stack([near, far], axis=1), TINY))  # (b, 2), as of squares
    fitted = np.minimum(log_df(points[:, 1] - points[:, 0]), math.log(min(max(most, LEAST_DF), MOST_DF)))
    return location, np.exp(0.5 * np.max(points - log_points(fitted), axis=1)), np.exp(fitted)


def _tail_point(x: np.ndarray, precision: np.ndarray, weight: np.ndarray, rank: int, level: float) -> np.ndarray:
    """Points (b,) with the tail area `level` of a mixture of chi-squared over `precision`, by Newton in logarithms."""
    log_constant = 0.5 * rank * math.log(2.0) + math.lgamma(0.5 * rank)
    for _ in range(_STEPS):
        q = x * precision  # (K, b)
        tail = np.sum(weight * _chi2_tail(q, rank), axis=0)  # (b,)
        log_q = np.log(np.maximum(q, TINY))
        density = np.sum(weight * np.exp(0.5 * (rank * log_q - q) - log_constant), axis=0)
        step = np.clip(np.log(tail / level) * tail / density, -2.0, 2.0)
        x = x * np.exp(step)
        if not np.nanmax(np.abs(step), initial=0.0) > _CLOSE:
            break
    return x


def _chi2_tail(q: np.ndarray, rank: int) -> np.ndarray:
    tail: np.ndarray = 2.0 * scipy.special.ndtr(-np.sqrt(q)) if rank == 1 else scipy.special.chdtrc(rank, q)
    return tail


def _lower_point(x: np.ndarray, centre: np.ndarray, sd: np.ndarray, weight: np.ndarray, level: float) -> np.ndarray:
    """Quantiles (b,) at `level` of a mixture of normals (K, b), by Newton on the log of its distribution function."""
    for _ in range(_STEPS):
        z = (x - centre) / sd  # (K, b)
        tail = np.sum(weight * scipy.special.ndtr(z), axis=0)  # (b,)
        density = np.sum(weight * np.exp(-0.5 * z * z) / sd, axis=0) / math.sqrt(2.0 * math.pi)
        widest = np.max(sd, axis=0)
        step = np.clip(np.log(level / np.maximum(tail, TINY)) * tail / np.maximum(density, TINY), -widest, widest)
        x = x + step
        if not np.nanmax(np.abs(step) / widest, initial=0.0) > _CLOSE:
            break
    return x


@lru_cache(maxsize=32)
def _f_points(rank: int) -> tuple[CubicSpline, CubicSpline]:
    # logs of F's 5 % and 0.1 % points by log df, and log df by the log of their ratio, which falls with df
    from scipy.interpolate import CubicSpline

    log_df = np.linspace(math.log(LEAST_DF), math.log(MOST_DF), 1000)
    if rank == 1:
        points = 2.0 * np.log([-scipy.special.stdtrit(np.exp(log_df), level / 2) for level in LEVELS])  # (2, N)
    else:
        points = np.log([scipy.special.fdtri(rank, np.exp(log_df), 1.0 - level) for level in LEVELS])
    return CubicSpline(log_df, points.T), CubicSpline((points[1] - points[0])[::-1], log_df[::-1])
