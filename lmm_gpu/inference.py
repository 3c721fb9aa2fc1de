"""Estimates, standard errors and degrees of freedom of contrasts, from theta and a model: never from cells.

For a contrast c with variance v(theta) = c' cov(beta) c, Satterthwaite's degrees of freedom are
2 v^2 / (grad' W grad), with grad the gradient of v and W the inverse information of theta. With the expected
information this is Kenward and Roger's df for one contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Array, namespace, to_numpy
from .linalg import inverse_small
from .model import Contrasts, MixedModel
from .summary import SummaryStats

DF_METHODS = ("satterthwaite", "between-within", "residual")

#: A contrast this close (relative, squared) to the span of a random effect lies in it. Sums over 10^6 cells are good
#: to 1e-13; a covariate that varies within groups by 1e-5 of its mean is still told from one that does not.
_IN_SPAN = 1e-10


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


def contrast_test(
    model: MixedModel, theta: Array, contrasts: Contrasts, method: str, between_within: np.ndarray
) -> ContrastTest:
    """Estimate and test contrasts of the fixed effects for the genes of `model`.

    Parameters
    ----------
    model : MixedModel
        b genes.
    theta : array (k+1, b)
    contrasts : Contrasts
        c contrasts, prepared by the model.
    method : {"satterthwaite", "between-within", "residual"}
    between_within : array (c,)
        Result of `between_within_df` for them.

    Raises
    ------
    ValueError
        For another method.
    """
    check_df_method(method)
    variance = model.contrast_variance(theta, contrasts)  # (c, b)
    estimate = to_numpy(contrasts.C @ model.coefficients(theta))
    if method == "residual":
        df = np.full((estimate.shape[0], 1), float(model.likelihood.default_df))
    elif method == "between-within":
        df = between_within[:, None]
    else:
        df = _capped(to_numpy(_satterthwaite(model, theta, contrasts, variance)), to_numpy(theta), between_within)
    with np.errstate(invalid="ignore"):  # a covariance that is not positive definite has no standard errors
        return ContrastTest(estimate, np.sqrt(to_numpy(variance)), df)


def check_df_method(method: str) -> None:
    """Refuse an unknown method of degrees of freedom."""
    if method not in DF_METHODS:
        raise ValueError(f"df={method!r} is not known; use one of {', '.join(DF_METHODS)}")


def _satterthwaite(model: MixedModel, theta: Array, contrasts: Contrasts, variance: Array) -> Array:
    # 2 / (grad' W grad) (c, b) with the gradient of log v, which keeps to the scale of theta alone
    xp = namespace(theta)
    gradient = model.contrast_gradient(theta, contrasts) / variance[None, :, :]  # (k+1, c, b)
    W, _ = inverse_small(model.likelihood.evaluate(theta).information)  # (k+1, k+1, b)
    along = xp.sum(W[:, :, None, :] * gradient[None, :, :, :], axis=1)  # (k+1, c, b)
    return 2.0 / xp.sum(gradient * along, axis=0)


def _capped(df: np.ndarray, theta: np.ndarray, between_within: np.ndarray) -> np.ndarray:
    # at most between-within. Satterthwaite says nothing where a component is held at zero, or theta has no
    # information (NaN): between-within. Nothing to test against between the groups (NaN): NaN.
    cap = between_within[:, None]  # (c, 1)
    held = (theta[:-1] == 0).any(axis=0)  # (b,)
    return np.where(held | np.isnan(cap), cap, np.fmin(df, cap))


def between_within_df(summary: SummaryStats, C: np.ndarray, rank: int) -> np.ndarray:
    """Between-within degrees of freedom (c,) of the contrasts in the rows of `C` (c, p).

    A contrast whose column X c' is constant within the levels of a random effect (lies in the span of its
    Z_j) is tested between them: the rank of Z_j less the directions of X in that span. Any other contrast is
    tested within: n - p - rank, with `rank` that of Z after X. The smallest applies. 0 says that nothing is
    left to test against, and becomes NaN.

    References
    ----------
    Pinheiro and Bates (2000), Mixed-Effects Models in S and S-PLUS, section 2.4.2.
    """
    XX = to_numpy(summary.XX)
    df = np.full(C.shape[0], float(summary.n - XX.shape[0] - rank))
    scale = 1.0 / np.sqrt(np.diagonal(XX))
    size = np.einsum("cp,pr,cr->c", C, XX, C)
    lo = 0
    for width in summary.d:
        hi = lo + width
        explained, levels = _explained(to_numpy(summary.ZX)[lo:hi], to_numpy(summary.ZZ)[lo:hi, lo:hi])
        left = XX - explained  # X'(I - P_j)X
        inside = np.linalg.eigvalsh(left * scale[:, None] * scale[None, :]) < _IN_SPAN
        between = np.einsum("cp,pr,cr->c", C, left, C) < _IN_SPAN * size
        df = np.where(between, np.minimum(df, levels - np.count_nonzero(inside)), df)
        lo = hi
    return np.where(df > 0, df, np.nan)


def _explained(ZX: np.ndarray, ZZ: np.ndarray) -> tuple[np.ndarray, int]:
    """X'P X (p, p) for the projection P on one random effect, and its rank."""
    diagonal = np.diagonal(ZZ)
    if np.count_nonzero(ZZ) == np.count_nonzero(diagonal):  # one-hot columns
        weights = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
        return (ZX * weights[:, None]).T @ ZX, int(np.count_nonzero(diagonal))
    values, vectors = np.linalg.eigh(ZZ)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    loads = vectors[:, kept].T @ ZX / np.sqrt(values[kept])[:, None]
    return loads.T @ loads, int(np.count_nonzero(kept))
