"""Degrees of freedom of contrasts: Satterthwaite's and Kenward-Roger's, lmerTest's, between-within, residual.

For a contrast c with variance v(theta) = c' cov(beta) c, Satterthwaite's degrees of freedom are
2 v^2 / (grad' W grad), with grad the gradient of v and W the inverse information of theta. With the expected
information this is Kenward and Roger's df for one contrast, with the observed information lmerTest's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .arrays import Array, namespace, to_numpy
from .linalg import inverse_small
from .model import Contrasts, MixedModel
from .summary import SummaryStats

DF_METHODS = ("satterthwaite", "kenward-roger", "lmertest", "between-within", "residual")

#: A contrast this close (relative, squared) to the span of a random effect lies in it. Sums over 10^6 cells are good
#: to 1e-13; a covariate that varies within groups by 1e-5 of its mean is still told from one that does not.
IN_SPAN = 1e-10
#: Rows whose gram matrix in units of their own lengths has smaller eigenvalues repeat others.
_DEPENDENT = 1e-10


def check_df_method(method: str, estimation: str = "REML") -> None:
    """Refuse an unknown method of degrees of freedom, and one that the `estimation` ("REML" or "ML") has not.

    Kenward and Roger's adjustment is derived for REML; every other method takes either.
    """
    if method not in DF_METHODS:
        raise ValueError(f"df={method!r} is not known; use one of {', '.join(DF_METHODS)}")
    if method == "kenward-roger" and estimation != "REML":
        raise ValueError(
            f"df='kenward-roger' is derived for REML and this fit is by {estimation}: fit with method='REML', or use "
            "df='satterthwaite'"
        )


def is_satterthwaite(method: str) -> bool:
    """Whether a method of degrees of freedom needs the gradient of the contrasts' variances."""
    return method in ("satterthwaite", "kenward-roger", "lmertest")


def theta_covariance(model: MixedModel, theta: Array, method: str) -> tuple[Array, Array]:
    """Inverse information (k+1, k+1, b) of theta, observed for "lmertest" and else expected; and where there is one."""
    if method == "lmertest":
        return inverse_small(model.likelihood.observed_information(theta))
    return inverse_small(model.likelihood.information(theta))


def satterthwaite_df(model: MixedModel, theta: Array, contrasts: Contrasts, variance: Array, W: Array) -> Array:
    """2 v^2 / (grad' W grad) (c, b) of contrasts with `variance` (c, b), for `W` (k+1, k+1, b) = cov(theta)."""
    gradient = model.contrast_gradient(theta, contrasts, variance)  # (k+1, c, b)
    return 2.0 / quadratic_form(W, gradient / variance[None, :, :])  # of log v: keeps to the scale of theta


def quadratic_form(W: Array, gradient: Array) -> Array:
    """g' W g (c, b) for every column g of `gradient` (k+1, c, b)."""
    xp = namespace(gradient)
    moved = xp.sum(W[:, :, None, :] * gradient[None, :, :, :], axis=1)  # (k+1, c, b)
    return xp.sum(gradient * moved, axis=0)


def limit_df(df: np.ndarray, method: str, theta: np.ndarray, known: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Degrees of freedom (c, b) after the rules of `method`; `cap` (c, 1) are the between-within df.

    "satterthwaite" is at most between-within, and between-within where a component is held at zero or theta has no
    information (NaN). "lmertest" is lmerTest's own number, but between-within where a component is held at zero or
    the observed information is not positive definite (not `known` (b,)): there lmerTest drops the component and
    jumps to about n - p, which is not safe. "kenward-roger" is pbkrtest's everywhere. Nothing to test against
    between the groups (`cap` NaN) is NaN.
    """
    if method == "kenward-roger":
        return np.where(np.isnan(cap), cap, df)
    held = (theta[:-1] == 0).any(axis=0)  # (b,)
    if method == "lmertest":
        return np.where(held | ~known | np.isnan(cap), cap, df)
    return np.where(held | np.isnan(cap), cap, np.fmin(df, cap))


def between_within_df(summary: SummaryStats, C: np.ndarray, rank: int) -> np.ndarray:
    """Between-within degrees of freedom (c,) of the contrasts in the rows of `C` (c, p).

    A contrast whose column X c' is constant within the levels of a random effect (lies in the span of its
    Z_j) is tested between them: the rank of Z_j less the directions in that span of X and of random effects of
    lower rank, in which it may be nested. Any other contrast is tested within: n - p - rank, with `rank` that of
    Z after X. The smallest applies. 0 says that nothing is left to test against, and becomes NaN.

    References
    ----------
    Pinheiro and Bates (2000), Mixed-Effects Models in S and S-PLUS, section 2.4.2.
    """
    XX = to_numpy(summary.XX)
    df = np.full(C.shape[0], float(summary.n - XX.shape[0] - rank))
    size = np.einsum("cp,pr,cr->c", C, XX, C)
    for left, between_df in strata(summary):
        between = np.einsum("cp,pr,cr->c", C, left, C) < IN_SPAN * size
        df = np.where(between, np.minimum(df, between_df), df)
    return np.where(df > 0, df, np.nan)


def between_within_directions(summary: SummaryStats, C: np.ndarray, rank: int) -> np.ndarray:
    """Between-within df (r,) of directions that span the rows of `C` (c, p), ascending.

    Of the combinations of contrasts, as many as lie in the span of a random effect are tested between its levels,
    those in the span of several against the fewest df, and the rest within.
    """
    XX = to_numpy(summary.XX)
    Q = orthonormal_rows(C, XX)  # (r, p)
    found = np.zeros((Q.shape[0], 0))
    df: list[float] = []
    for left, between_df in sorted(strata(summary), key=lambda stratum: stratum[1]):
        values, vectors = np.linalg.eigh(Q @ left @ Q.T)
        both = np.hstack([found, vectors[:, values < IN_SPAN]])
        basis, size, _ = np.linalg.svd(both, full_matrices=False)
        found = basis[:, size > 1e-6]
        df += [between_df] * (found.shape[1] - len(df))
    df += [float(summary.n - XX.shape[0] - rank)] * (Q.shape[0] - len(df))
    return np.where(np.asarray(df) > 0, df, np.nan)


def strata(summary: SummaryStats) -> Iterator[tuple[np.ndarray, float]]:
    """X'(I - P_j)X (p, p) for the projection P_j on each random effect, and the df between its levels.

    From the rank of Z_j are taken the directions of its span that belong to X or to random effects of lower rank, in
    which it may be nested: what these explain is no evidence of how much levels of Z_j differ.
    """
    XX, ZX, ZZ = to_numpy(summary.XX), to_numpy(summary.ZX), to_numpy(summary.ZZ)
    rows = [slice(hi - width, hi) for width, hi in zip(summary.d, np.cumsum(summary.d), strict=True)]
    ranks = [_explained(ZX[at], ZZ[at, at])[1] for at in rows]
    for at, rank in zip(rows, ranks, strict=True):
        coarser = [other for other, less in zip(rows, ranks, strict=True) if less < rank]
        A = np.r_[(*coarser, slice(0, 0))]  # columns of Z of the random effects of lower rank
        whole = np.block([[XX, ZX[A].T], [ZX[A], ZZ[np.ix_(A, A)]]])
        explained, _ = _explained(np.hstack([ZX[at], ZZ[at][:, A]]), ZZ[at, at])
        left = whole - explained
        p = XX.shape[0]
        yield left[:p, :p], float(rank - _null_directions(left, whole) + _null_directions(whole, whole))


def _null_directions(A: np.ndarray, size: np.ndarray) -> int:
    """Number of eigenvalues of A that are zero, in units of the diagonal of `size`."""
    diagonal = np.diagonal(size)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return int(np.count_nonzero(np.linalg.eigvalsh(A * scale[:, None] * scale[None, :]) < IN_SPAN))


def orthonormal_rows(C: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """Rows Q (r, p) that span those of `C` (c, p), with Q metric Q' = I."""
    gram = C @ metric @ C.T  # (c, c)
    scale = 1.0 / np.sqrt(np.diagonal(gram))  # (c,)
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale[None, :])
    kept = values > _DEPENDENT
    return (vectors[:, kept] / np.sqrt(values[kept])).T @ (scale[:, None] * C)


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
