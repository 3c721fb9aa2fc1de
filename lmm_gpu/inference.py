"""Standard errors and degrees of freedom of contrasts, from theta and the design: never from cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Array, to_numpy
from .degrees_of_freedom import check_df_method, limit_df, satterthwaite_df, theta_covariance
from .model import Contrasts, MixedModel
from .moderation import Prior, moderate


@dataclass(frozen=True)
class ContrastTest:
    """One t statistic per contrast and gene, on the host."""

    estimate: np.ndarray  #: (c, m)
    se: np.ndarray  #: (c, m)
    df: np.ndarray  #: (c, m), or (c, 1) if it is the same for all genes

    @property
    def t(self) -> np.ndarray:
        """The t statistics (c, m)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.estimate / self.se


def needs_genes(method: str) -> bool:
    """Whether `spread` needs a model of the genes: only where the observed information enters."""
    return method == "lmertest"


def spread(
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
        Of these b genes; of none, unless the method `needs_genes`.
    theta : array (k+1, b)
    contrasts : Contrasts
        c contrasts, prepared by the model.
    method : {"satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
        "kenward-roger" needs a REML model, and adjusts the standard errors too.
    between_within : array (c,)
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
    variance = model.contrast_variance(theta, contrasts)  # (c, b)
    if method == "residual":
        df = np.full((variance.shape[0], 1), float(model.likelihood.default_df))
    elif method == "between-within":
        df = between_within[:, None]
    else:
        W, known = theta_covariance(model, theta, method)  # (k+1, k+1, b), (b,)
        raw = to_numpy(satterthwaite_df(model, theta, contrasts, variance, W))  # (c, b)
        df = limit_df(raw, method, to_numpy(theta), to_numpy(known), between_within[:, None])
    total = variance  # (c, b)
    if method == "kenward-roger":
        total = total + 2.0 * model.contrast_adjustment(theta, contrasts, W)
    if prior is not None:
        moved, growth = moderate(model, theta, model.contrast_gradient(theta, contrasts, variance), variance, prior)
        total, df = total + (moved - variance), df * to_numpy(growth)
    with np.errstate(invalid="ignore"):  # a covariance that is not positive definite has no standard errors
        return np.sqrt(to_numpy(total)), df
