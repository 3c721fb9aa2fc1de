"""Degrees of freedom of contrasts: Satterthwaite's and Kenward-Roger's, lmerTest's, between-within, residual.

For a contrast c with variance v(theta) = c' cov(beta) c, Satterthwaite's degrees of freedom are
2 v^2 / (grad' W grad), with grad the gradient of v and W the inverse information of theta. With the expected
information this is Kenward and Roger's df for one contrast, with the observed information lmerTest's.
"""

from __future__ import annotations

import numpy as np

from ..backend.arrays import Array, namespace, to_numpy
from ..backend.linalg import inverse_small
from ..estimation.mixed_model import MixedModel

DF_METHODS = ("generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual")
#: Methods that need the gradient of the contrasts' variances.
GRADIENT_METHODS = ("satterthwaite", "kenward-roger", "lmertest")


def check_df_method(method: str, estimation: str = "REML") -> None:
    """Raise ValueError for an unknown method of degrees of freedom, and for one that `estimation` does not allow.

    Kenward and Roger's adjustment is derived for REML; every other method applies to "REML" and "ML".
    """
    if method not in DF_METHODS:
        raise ValueError(f"df={method!r} is not known; use one of {', '.join(DF_METHODS)}")
    if method == "kenward-roger" and estimation != "REML":
        raise ValueError(
            f"df='kenward-roger' is derived for REML and this fit is by {estimation}: fit with method='REML', or use "
            "df='satterthwaite'"
        )


def theta_covariance(model: MixedModel, theta: Array, method: str) -> tuple[Array, Array]:
    """Inverse information (k+1, k+1, b) of theta and whether it exists (b,): observed for "lmertest", expected else."""
    if method == "lmertest":
        return inverse_small(model.likelihood.observed_information(theta))
    return inverse_small(model.likelihood.information(theta))


def residual_df(model: MixedModel) -> np.ndarray:
    """Residual degrees of freedom n - p (1,), or (b,) where genes lack observations."""
    df = model.likelihood.residual_df
    return np.atleast_1d(df if isinstance(df, int) else to_numpy(df)).astype(float)


def satterthwaite_df(gradient: Array, variance: Array, W: Array) -> Array:
    """2 v^2 / (grad' W grad) (c, b) of contrasts with `variance` (c, b) and its `gradient` (k+1, c, b).

    `W` (k+1, k+1, b) is cov(theta).
    """
    return 2.0 / quadratic_form(W, gradient / variance[None, :, :])  # of log v: independent of the scale of theta


def quadratic_form(W: Array, gradient: Array) -> Array:
    """g' W g (c, b) for every column g of `gradient` (k+1, c, b)."""
    xp = namespace(gradient)
    moved = xp.sum(W[:, :, None, :] * gradient[None, :, :, :], axis=1)  # (k+1, c, b)
    return xp.sum(gradient * moved, axis=0)


def limit_df(df: np.ndarray, method: str, at_boundary: np.ndarray, known: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Degrees of freedom (c, b) after the rules of `method`; `cap` (c, 1) are the between-within df.

    "satterthwaite" is at most between-within, and between-within at the boundary (`at_boundary` (b,): a component is
    zero or a covariance matrix is singular) or where theta has no information (NaN). "lmertest" is lmerTest's own
    number, but between-within at the boundary or where the observed information is not positive definite (not `known`
    (b,)): there lmerTest drops the component and jumps to about n - p, which is not safe. Both are NaN where nothing
    is left to test against between the groups (NaN in `cap`). "kenward-roger" is pbkrtest's everywhere.
    """
    if method == "kenward-roger":
        return df
    if method == "lmertest":
        return np.where(at_boundary | ~known | np.isnan(cap), cap, df)
    return np.where(at_boundary | np.isnan(cap), cap, np.fmin(df, cap))
