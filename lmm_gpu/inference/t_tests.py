"""Standard errors and degrees of freedom of contrasts, from theta and the design: never from cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, to_numpy
from ..estimation.mixed_model import Contrasts, MixedModel
from .empirical_bayes import Prior, moderate
from .satterthwaite import GRADIENT_METHODS, check_df_method, limit_df, residual_df, satterthwaite_df, theta_covariance


@dataclass(frozen=True)
class ContrastTest:
    """One t statistic per contrast and gene, on the host."""

    estimate: np.ndarray  #: (c, m), of the fit
    se: np.ndarray  #: (c, m)
    df: np.ndarray  #: (c, m), or (c, 1) if it is the same for all genes
    location: np.ndarray | None = None  #: (c, m), estimates that are tested, where these are not those of the fit

    @property
    def tested(self) -> np.ndarray:
        """Estimates (c, m) that are tested: averages over what the variances may be, by the default test."""
        return self.estimate if self.location is None else self.location

    @property
    def t(self) -> np.ndarray:
        """The t statistics (c, m)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t: np.ndarray = self.tested / self.se
        return t


def contrast_se_and_df(
    model: MixedModel,
    theta: Array,
    contrasts: Contrasts,
    method: str,
    between_within: np.ndarray,
    prior: Prior | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors (c, b) and df (c, b) or (c, 1) of contrasts of the fixed effects, for genes with `theta`.

    Parameters
    ----------
    model : MixedModel
        Of these b genes; of none, unless the method is "lmertest".
    theta : array (k+1, b)
    contrasts : Contrasts
        c contrasts, prepared by the model.
    method : {"satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
        "kenward-roger" needs a REML model, and adjusts standard errors too.
    between_within : array (c,) or (c, b)
        Result of `between_within_df` for them.
    prior : Prior, optional
        Of the residual variances: moderates standard errors and df.

    Raises
    ------
    ValueError
        For another method.

    References
    ----------
    Kenward and Roger (1997), Small sample inference for fixed effects from restricted maximum likelihood,
    Biometrics 53, 983-997. Kuznetsova, Brockhoff and Christensen (2017), lmerTest, J. Stat. Softw. 82(13).
    """
    check_df_method(method)
    between_within = between_within[:, None] if between_within.ndim == 1 else between_within
    variance = model.contrast_variance(theta, contrasts)  # (c, b)
    total = variance
    if method in GRADIENT_METHODS or prior is not None:
        gradient = model.contrast_gradient(theta, contrasts, variance)  # (k+1, c, b)
    if method in GRADIENT_METHODS:
        W, known = theta_covariance(model, theta, method)  # (k+1, k+1, b), (b,)
        raw = to_numpy(satterthwaite_df(gradient, variance, W))  # (c, b)
        at_boundary = to_numpy(model.likelihood.at_boundary(theta))  # (b,)
        df = limit_df(raw, method, at_boundary, to_numpy(known), between_within)
        if method == "kenward-roger":
            total = total + 2.0 * model.contrast_adjustment(theta, contrasts, W)
    else:
        df = _fixed_df(model, method, between_within)
    if prior is not None:
        moved, growth = moderate(model, theta, gradient, variance, prior)
        total, df = total + (moved - variance), df * to_numpy(growth)
    with np.errstate(invalid="ignore"):  # a covariance that is not positive definite has no standard errors
        return np.sqrt(to_numpy(total)), df


def _fixed_df(model: MixedModel, method: str, between_within: np.ndarray) -> np.ndarray:
    # (c, 1), the same for all genes, or (c, b)
    if method == "residual":
        df = residual_df(model)
        return np.broadcast_to(df, (len(between_within), df.size))
    return between_within
