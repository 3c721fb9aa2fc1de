"""Tests that a variance component is zero (Wald, likelihood ratio, exact restricted likelihood ratio), and intervals.

At zero a component lies on the boundary of its parameter space, and half of its estimates are not above zero: the null
distribution of a likelihood ratio is half a point mass at zero and half chi-squared with one degree of freedom. With
few groups this is only approximate. For one component the exact null distribution is found by a simulation that needs
only the eigenvalues of the design, once for all genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, like, namespace, to_numpy
from ..backend.blocks import blocks
from ..backend.late_imports import scipy
from ..estimation.cuda_scoring import maximise
from ..estimation.fisher_scoring import Rules
from ..estimation.likelihood import Likelihood
from ..estimation.one_component import SingleComponent

METHODS = ("rlrt", "lrt", "wald")
ALTERNATIVES = ("greater", "two-sided")
#: Simulated genes that are maximised together.
_BLOCK = 2048


@dataclass(frozen=True)
class VarianceTest:
    """One test per gene, on the host."""

    statistic: np.ndarray  #: (m,), z (Wald) or likelihood ratio
    log10_p: np.ndarray  #: (m,)


def wald_test(variance: np.ndarray, se: np.ndarray, alternative: str) -> VarianceTest:
    """z = variance / se (m,) on the normal distribution; an estimate that is not above zero has p = 1 if "greater".

    Examples
    --------
    >>> tested = wald_test(np.array([1.96, -1.0]), np.ones(2), "greater")
    >>> (10**tested.log10_p).round(3).tolist()
    [0.025, 1.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        z = variance / se
    return VarianceTest(z, _halved_tail(np.abs(z), variance, alternative))


def likelihood_ratio_test(ratio: np.ndarray, variance: np.ndarray, alternative: str, effects: int = 1) -> VarianceTest:
    """Likelihood ratio (m,), twice the gain in log-likelihood by a component estimated as `variance`.

    "greater": half a point at zero, half chi-squared on one df, and an estimate that is not above zero gains nothing.
    "two-sided", where components may be negative: chi-squared on one df.

    One of k correlated `effects` goes with its k - 1 covariances: the mixture in equal parts of chi-squared on k - 1
    and on k df, and on k df if two-sided.

    References
    ----------
    Self and Liang (1987), J. Am. Stat. Assoc. 82, 605-610; Stram and Lee (1994), Biometrics 50, 1171-1177.
    """
    ratio = np.maximum(ratio, 0.0)
    if alternative == "greater":
        ratio = np.where(variance <= 0, 0.0, ratio)
    if effects > 1:
        tails = [scipy.special.chdtrc(df, ratio) for df in (effects - 1, effects)]
        with np.errstate(divide="ignore"):
            return VarianceTest(ratio, np.log10(tails[1] if alternative == "two-sided" else np.mean(tails, axis=0)))
    return VarianceTest(ratio, _halved_tail(np.sqrt(ratio), variance, alternative))


def _halved_tail(z: np.ndarray, variance: np.ndarray, alternative: str) -> np.ndarray:
    # log10 of P(|Z| > z), halved and 1 for what is not above zero if the alternative is one-sided
    log_p = scipy.special.log_ndtr(-z)  # (m,)
    if alternative == "greater":
        return np.where(variance <= 0, 0.0, log_p / np.log(10.0))
    result: np.ndarray = (log_p + np.log(2.0)) / np.log(10.0)
    return result


def likelihood_ratio(likelihood: SingleComponent, theta: Array) -> Array:
    """Twice the log of the (restricted) likelihood ratio (b,) between one component, at its ratio, and none.

    With s_0 at its best for the ratio: -N log(y'P0 y / y'Ry) - log det A.
    """
    xp = namespace(theta)
    g = likelihood.ratios(theta)  # (1, b)
    t = likelihood.traces(g)
    with np.errstate(divide="ignore", invalid="ignore"):  # a gene without a valid estimate
        return -likelihood.n_effective * xp.log((likelihood.rss + t.between_ss) / likelihood.yry) - t.logdet


def exact_null(likelihood: SingleComponent, draws: int, seed: int) -> np.ndarray:
    """Draws (draws,) of the restricted likelihood ratio of one component that is zero, sorted.

    For such a gene with s_0 = 1, U'Z'Ry is independent normal with variances lam, and the rest of y'Ry chi-squared
    on N less the rank: these genes are maximised like any other.

    References
    ----------
    Crainiceanu and Ruppert (2004), Likelihood ratio tests in linear mixed models with one variance component,
    J. R. Stat. Soc. B 66, 165-185.
    """
    parts = [_maximised_ratio(genes) for genes in _null_genes(likelihood, draws, seed)]
    return np.sort(np.concatenate(parts))


def _null_genes(likelihood: SingleComponent, draws: int, seed: int) -> Iterator[SingleComponent]:
    rng = np.random.default_rng(seed)
    lam = to_numpy(likelihood.lam)  # (q,)
    outside = likelihood.n_effective - likelihood.rank
    for lo, hi in blocks(draws, _BLOCK):
        w = np.where(lam[:, None] > 0, rng.normal(size=(lam.size, hi - lo)), 0.0)  # (q, b)
        rest = rng.chisquare(outside, size=hi - lo) if outside else np.zeros(hi - lo)  # (b,)
        yield likelihood.with_rotated(like(np.sqrt(lam)[:, None] * w, likelihood.lam), like(rest, likelihood.lam))


def _maximised_ratio(genes: SingleComponent) -> np.ndarray:
    outcome = maximise(genes, None, Rules(max_iter=200, nonnegative=True))
    ratio = to_numpy(likelihood_ratio(genes, outcome.theta))
    return np.where(ratio > 0, ratio, 0.0)  # rounding, or held at zero


def exact_test(ratio: np.ndarray, variance: np.ndarray, null: np.ndarray) -> VarianceTest:
    """Restricted likelihood ratios (m,) against the sorted draws of `exact_null`; p is at least 1 / (draws + 1)."""
    ratio = np.where(variance <= 0, 0.0, np.maximum(ratio, 0.0))
    above = null.size - np.searchsorted(null, ratio, side="left")  # (m,), draws at least as large
    log10_p = np.log10((above + 1.0) / (null.size + 1.0))
    return VarianceTest(ratio, np.where(np.isnan(ratio), np.nan, log10_p))


def variance_limits(likelihood: Likelihood, theta: Array, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence limits (k+1, b), (k+1, b) of the variance components at `theta` (k+1, b), residual last.

    A component is estimated from a mean square with expectation s_i + e_i, where e_i is what the residual and the
    other components put into it, on r_i degrees of freedom: with T = tr(ZVZ_ii) and B the sum of its squares,
    s_i + e_i = s_0 T / B and r = T^2 / B (Satterthwaite's effective df). Its chi-squared limits less e_i are those of
    s_i, as Tukey and Williams have them for balanced groups; the lower one is below zero where zero is not excluded.

    References
    ----------
    Satterthwaite (1946), Biometrics Bulletin 2, 110-114. Williams (1962), Biometrika 49, 278-281.
    """
    xp = namespace(theta)
    g, s_0 = likelihood.ratios(theta), theta[-1, :]  # (k, b), (b,)
    t = likelihood.traces(g)
    B = xp.stack([t.B[i, i, :] for i in range(g.shape[0])], axis=0)  # (k, b)
    gT, F_00 = xp.sum(g * t.T, axis=0), xp.sum(g[:, None, :] * g[None, :, :] * t.B, axis=(0, 1))  # (b,), (b,)
    N = likelihood.n_effective - gT  # (b,), tr(P0), and below the sum of squares of P0
    T, B = xp.concat([t.T, N[None, :]], axis=0), xp.concat([B, (N - gT + F_00)[None, :]], axis=0)  # (k+1, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        square, df = to_numpy(s_0[None, :] * T / B), to_numpy(T * T / B)  # (k+1, b)
        other = square - to_numpy(theta)  # (k+1, b)
        low, high = (df * square / scipy.special.chdtri(df, tail) for tail in (0.5 * (1 - level), 0.5 * (1 + level)))
    return low - other, high - other
