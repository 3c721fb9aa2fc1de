"""Standard errors and degrees of freedom of contrasts, from theta and the design: never from cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, indices, namespace, to_numpy
from ..estimation.mixed_model import Contrasts, MixedModel
from .empirical_bayes import Prior, moderate
from .generalized_pvalues import generalized_t, part_inside
from .satterthwaite import check_df_method, is_satterthwaite, limit_df, satterthwaite_df, theta_covariance
from .strata import Stratum


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


def needs_genes(method: str, bound: Sequence[Stratum | None] = ()) -> bool:
    """Whether `spread` needs a model of the genes: for the observed information, and sums of squares between groups."""
    return method == "lmertest" or (method == "generalized" and any(one and one.few for one in bound))


def contrast_se_and_df(
    model: MixedModel,
    theta: Array,
    contrasts: Contrasts,
    method: str,
    between_within: np.ndarray,
    prior: Prior | None = None,
    bound: Sequence[Stratum | None] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors (c, b) and df (c, b) or (c, 1) of contrasts of the fixed effects, for genes with `theta`.

    Parameters
    ----------
    model : MixedModel
        Of these b genes; of none, unless the method `needs_genes`.
    theta : array (k+1, b)
    contrasts : Contrasts
        c contrasts, prepared by the model.
    method : {"generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
        "generalized" adjusts the standard errors of contrasts with a stratum, and is "satterthwaite" for the others,
        and with a prior. "kenward-roger" needs a REML model, and adjusts standard errors too.
    between_within : array (c,)
        Result of `df_of_strata` for them.
    prior : Prior, optional
        Of the residual variances: moderates standard errors and df.
    bound : sequence of Stratum or None
        Result of `weighed_strata` for them; matters to "generalized".

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
    needed = is_satterthwaite(method) or prior is not None
    gradient = model.contrast_gradient(theta, contrasts, variance) if needed else None  # (k+1, c, b)
    if method == "residual":
        df = np.full((variance.shape[0], 1), float(model.likelihood.residual_df))
    elif method == "between-within":
        df = between_within[:, None]
    else:
        W, known = theta_covariance(model, theta, method)  # (k+1, k+1, b), (b,)
        raw = to_numpy(satterthwaite_df(gradient, variance, W))  # (c, b)
        df = limit_df(raw, method, to_numpy(theta), to_numpy(known), between_within[:, None])
    total = variance  # (c, b)
    if method == "kenward-roger":
        total = total + 2.0 * model.contrast_adjustment(theta, contrasts, W)
    if prior is not None:
        moved, growth = moderate(model, theta, gradient, variance, prior)
        total, df = total + (moved - variance), df * to_numpy(growth)
    with np.errstate(invalid="ignore"):  # a covariance that is not positive definite has no standard errors
        se = np.sqrt(to_numpy(total))
    if method == "generalized" and prior is None:
        _generalize(se, df, model, theta, contrasts, gradient, bound)
    return se, df


def _generalize(
    se: np.ndarray,
    df: np.ndarray,
    model: MixedModel,
    theta: Array,
    contrasts: Contrasts,
    gradient: Array,
    bound: Sequence[Stratum | None],
) -> None:
    """Put in the standard errors of all contrasts, and the df of those with a stratum, where the data tell.

    A component that was estimated below zero has given its groups more weight than they can have: the variance of an
    estimate with these weights is found with zero in its place.
    """
    xp = namespace(theta)
    at = xp.where(theta > 0, theta, 0.0)  # (k+1, b)
    variance = to_numpy(xp.sum(gradient * at[:, None, :], axis=0))  # (c, b)
    se[:] = np.where((to_numpy(theta) < 0).any(axis=0), np.sqrt(variance), se)
    strata = {(one.component, one.whole): one for one in bound if one is not None and one.few}
    for key, stratum in strata.items():
        rows = [i for i, one in enumerate(bound) if one is not None and (one.component, one.whole) == key]
        inside = None if stratum.whole else _inside(model, theta, contrasts, rows, stratum)
        found = generalized_t(model, theta, xp.take(gradient, indices(rows, gradient), axis=1), stratum, inside)
        told = np.isfinite(found[0]) & np.isfinite(found[1]) & (found[0] > 0)  # (rows, b)
        for values, new in zip((se, df), found, strict=True):
            values[rows] = np.where(told, new, values[rows])


def _inside(model: MixedModel, theta: Array, contrasts: Contrasts, rows: Sequence[int], stratum: Stratum) -> np.ndarray:
    # `part_inside` of some contrasts (rows, b), one after the other: their loads are large
    return np.stack([part_inside(model, theta, contrasts.a[:, i : i + 1], stratum)[0, 0] for i in rows])
