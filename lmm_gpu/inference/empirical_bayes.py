"""Residual variances squeezed towards a common value by limma's empirical Bayes, for few samples.

The residual variances of genes are drawn together as limma has it: s2 ~ s2_0 F(d, d_0), fitted by moments of log s2,
squeezed to (d s2 + d_0 s2_0) / (d + d_0). In a mixed model the residual is only a part of what a contrast is uncertain
by, so the prior enters as d_0 / (2 s_0^2) more information on s_0, and the contrast's variance and df follow. A
contrast within donors gets just limma's t on d + d_0 df; one between donors stays as uncertain as its donors are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, like, namespace
from ..backend.late_imports import scipy
from ..backend.linalg import inverse_small
from ..estimation.mixed_model import MixedModel
from .satterthwaite import quadratic_form

#: Variances below this share of the median are taken as that.
_SMALLEST = 1e-5
#: limma's limits of a variance of logarithms, beyond which an expansion of trigamma is exact to rounding.
_EXPANDED = (1e-6, 1e7)
#: Relative accuracy of Newton's method.
_CLOSE = 1e-12


@dataclass(frozen=True)
class Prior:
    """Scaled inverse chi-squared distribution of residual variances."""

    df: float  #: d_0, may be infinite
    variance: float  #: s2_0

    def posterior(self, variance: np.ndarray, df: float | np.ndarray) -> np.ndarray:
        """Squeezed variances of `variance` (m,) on `df` degrees of freedom, one for all or (m,).

        Examples
        --------
        >>> Prior(df=4.0, variance=1.0).posterior(np.array([1.0, 4.0]), df=8.0).tolist()
        [1.0, 3.0]
        """
        if math.isinf(self.df):
            return np.where(np.isnan(variance), np.nan, self.variance)
        return (df * variance + self.df * self.variance) / (df + self.df)


def fit_prior(variance: np.ndarray, df: float | np.ndarray) -> Prior:
    """Prior of the variances (m,) on `df` degrees of freedom, one for all or (m,), by the moments of their logarithms.

    NaN are left out.

    References
    ----------
    Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression in microarray
    experiments, Stat. Appl. Genet. Mol. Biol. 3, article 3, section 6.2.
    """
    known = np.isfinite(variance) & (variance >= 0) & np.isfinite(df)
    found, df = variance[known], np.broadcast_to(df, variance.shape)[known]
    if found.size < 2:
        return Prior(0.0, 1.0)  # nothing to learn from
    median = float(np.median(found))
    found = np.maximum(found, _SMALLEST * (median if median > 0 else 1.0))
    e = np.log(found) - scipy.special.digamma(df / 2) + np.log(df / 2)
    spread = float(np.var(e, ddof=1)) - float(np.mean(scipy.special.polygamma(1, df / 2)))
    if spread <= 0:
        return Prior(math.inf, float(np.mean(found)))
    half = trigamma_inverse(spread)
    return Prior(2 * half, math.exp(float(np.mean(e)) + float(scipy.special.digamma(half)) - math.log(half)))


def trigamma_inverse(x: float) -> float:
    """The y with trigamma(y) = x > 0, by Newton's method on 1 / trigamma, which is nearly linear.

    Examples
    --------
    >>> round(trigamma_inverse(math.pi**2 / 6), 12)
    1.0
    """
    if x > _EXPANDED[1]:
        return 1 / math.sqrt(x)
    if x < _EXPANDED[0]:
        return 1 / x
    y = 0.5 + 1 / x
    for _ in range(50):
        value = float(scipy.special.polygamma(1, y))
        step = value * (1 - value / x) / float(scipy.special.polygamma(2, y))
        y += step
        if -step / y < _CLOSE:
            break
    return y


def moderate(model: MixedModel, theta: Array, gradient: Array, variance: Array, prior: Prior) -> tuple[Array, Array]:
    """Variances (c, b) of contrasts with the prior, and the factor (c, b) by which their df grow.

    `gradient` (k+1, c, b) and `variance` (c, b) are those at `theta` (k+1, b). One step of scoring with the prior's
    score and information: for a residual variance alone it leads to `Prior.posterior`.
    """
    xp = namespace(theta)
    k, s_0 = theta.shape[0] - 1, theta[-1, :]
    weight = prior.df / (2.0 * s_0 * s_0)  # (b,)
    corner = like([[float(i == j == k) for j in range(k + 1)] for i in range(k + 1)], theta)[:, :, None]
    information = model.likelihood.information(theta)  # (k+1, k+1, b)
    without, _ = inverse_small(information)
    within, _ = inverse_small(information + corner * weight[None, None, :])
    step = within[:, k, :] * (weight * (prior.variance - s_0))[None, :]  # (k+1, b)
    moved = variance + xp.sum(gradient * step[:, None, :], axis=0)  # (c, b)
    return moved, quadratic_form(without, gradient) / quadratic_form(within, gradient)
