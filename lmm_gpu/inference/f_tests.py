"""Several contrasts at once: F tests, with Satterthwaite's or Kenward and Roger's denominator degrees of freedom.

The rows of the contrasts are written C = T Q with rows Q that are orthonormal in (X'X)^-1: what depends on a gene are
r x r matrices of all pairs of these, formed by the engine and decomposed on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, like, to_numpy
from ..estimation.mixed_model import MixedModel, in_pieces, ratio_weights
from .generalized_pvalues import generalized_t, part_inside
from .satterthwaite import check_df_method, is_satterthwaite, limit_df, theta_covariance
from .strata import Stratum, orthonormal_rows


@dataclass(frozen=True)
class FTest:
    """One F statistic per gene, on the host."""

    statistic: np.ndarray  #: (m,)
    df1: int
    df: np.ndarray  #: (m,), denominator degrees of freedom


@dataclass(frozen=True)
class RowSpace:
    """Contrasts C = T Q, of rank r."""

    Q: np.ndarray  #: (r, p), Q (X'X)^-1 Q' = I
    T: np.ndarray  #: (c, r)

    @classmethod
    def of(cls, C: np.ndarray, XXinv: np.ndarray) -> RowSpace:
        """Orthonormal rows for `C` (c, p); rows of C may repeat each other."""
        Q = orthonormal_rows(C, XXinv)  # (r, p)
        return cls(Q, C @ XXinv @ Q.T)

    @property
    def rank(self) -> int:
        """Number of independent rows."""
        return self.Q.shape[0]


def f_test(
    model: MixedModel,
    theta: Array,
    rows: RowSpace,
    method: str,
    between_within: float,
    stratum: Stratum | None = None,
) -> FTest:
    """Test that all contrasts are zero, for the genes of `model`.

    Parameters
    ----------
    model : MixedModel
        b genes.
    theta : array (k+1, b)
    rows : RowSpace
    method : {"generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
        "satterthwaite" and "lmertest" combine the df of the principal directions of the estimates as lmerTest's
        contestMD does, and "generalized" those of its t tests of these; "kenward-roger" is the scaled F of Kenward and
        Roger.
    between_within : float
        Between-within df of the rows, from `combine_df(between_within_directions(...))`.
    stratum : Stratum, optional
        That all rows lie in: matters to "generalized".

    Raises
    ------
    ValueError
        For another method.

    References
    ----------
    Kenward and Roger (1997), Biometrics 53, 983-997. Kuznetsova, Brockhoff and Christensen (2017), lmerTest,
    J. Stat. Softw. 82(13). Halekoh and Hojsgaard (2014), pbkrtest, J. Stat. Softw. 59(9).
    """
    check_df_method(method)
    Q = like(rows.Q, theta)
    a = (Q @ model.xxz).T  # (q, r)
    estimate = _genes_first(Q @ model.coefficients(theta))  # (b, r)
    g, s_0 = model.likelihood.ratios(theta), theta[-1, :]
    form = in_pieces(lambda g: model.likelihood.covariance_form(g, a), g, a.shape[0] * rows.rank)
    covariance = _genes_first(s_0[None, None, :] * ((Q @ model.XXinv @ Q.T)[:, :, None] + form))  # (b, r, r)
    if not is_satterthwaite(method):
        fixed = model.likelihood.residual_df if method == "residual" else between_within
        return FTest(_wald(estimate, covariance), rows.rank, np.full(len(estimate), float(fixed)))
    W, known = theta_covariance(model, theta, method)  # (k+1, k+1, b), (b,)
    gradient = _gradient(model, theta, a, covariance)  # (b, k+1, r, r)
    if method == "kenward-roger":
        adjusted = covariance + 2.0 * _adjustment(model, theta, a, W)
        scale, df = kenward_roger_scale(covariance, gradient, _genes_first(W))
        df = np.where(np.isnan(between_within), np.nan, df)
        return FTest(scale * _wald(estimate, adjusted), rows.rank, df)
    if method == "generalized":
        at = np.maximum(to_numpy(theta).T, 0.0)  # (b, k+1): as for one contrast
        covariance = np.einsum("bk,bkrs->brs", at, gradient)
    directions, values, slope = _principal(covariance, gradient, rows.T)
    nu = _direction_df(values, slope, _genes_first(W))  # (b, r)
    df = limit_df(combine_df(nu), method, to_numpy(theta), to_numpy(known), np.asarray(between_within))
    statistic = _wald(estimate, covariance)
    if method == "generalized" and stratum is not None and stratum.few:
        along = np.einsum("bdr,br->bd", directions, estimate)  # (b, r)
        inside = None
        if not stratum.whole:
            pairs = np.moveaxis(part_inside(model, theta, a, stratum), -1, 0)  # (b, r, r)
            inside = np.einsum("bdr,brs,bds->db", directions, pairs, directions)  # (r, b)
        se, of_t = generalized_t(model, theta, like(np.moveaxis(slope, 0, -1), theta), stratum, inside)  # (r, b)
        told = (np.isfinite(of_t) & (se > 0)).all(axis=0)  # (b,); otherwise as without a stratum, as t tests are
        statistic = np.where(told, np.mean((along / np.where(told, se, 1.0).T) ** 2, axis=1), statistic)
        df = np.where(told, combine_df(of_t.T), df)
    return FTest(statistic, rows.rank, df)


def _principal(covariance: np.ndarray, gradient: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, ...]:
    """Principal directions (b, r, r) of the estimates of T Q, in the basis Q, their variances (b, r) and slopes.

    `covariance` (b, r, r), its `gradient` (b, k+1, r, r) and `T` (c, r); the slopes are the gradient of the variances
    (b, k+1, r).
    """
    spread = T @ _finite(covariance) @ T.T  # (b, c, c)
    values, vectors = np.linalg.eigh(spread)
    r = T.shape[1]
    directions = np.swapaxes(vectors[:, :, -r:], 1, 2) @ T  # (b, r, r)
    values = np.where(np.isnan(covariance[:, :1, 0]), np.nan, values[:, -r:])
    return directions, values, np.einsum("bdr,bkrs,bds->bkd", directions, gradient, directions)


def _direction_df(values: np.ndarray, slope: np.ndarray, W: np.ndarray) -> np.ndarray:
    # Satterthwaite's df (b, r) of directions with variances `values` (b, r) and `slope`, for `W` (b, k+1, k+1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2.0 * values**2 / np.einsum("bid,bij,bjd->bd", slope, W, slope)


def combine_df(nu: np.ndarray) -> np.ndarray:
    """Denominator df (...,) of a mean of squared t statistics on `nu` (..., r) df, by matching its expectation.

    As lmerTest's contestMD: 2 where one of them is at most 2, and their mean where they are equal.

    Examples
    --------
    >>> combine_df(np.array([[4.0, 1000.0], [5.0, 5.0]])).round(3).tolist()
    [5.992, 5.0]
    """
    nu = np.asarray(nu, dtype=float)
    r = nu.shape[-1]
    few = np.where(nu > 2, nu, np.inf)
    excess = np.sum(2.0 / (few - 2.0), axis=-1)  # E - r with E = sum nu / (nu - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        combined = 2.0 + 2.0 * r / excess  # 2 E / (E - r)
    equal = np.max(nu, axis=-1) - np.min(nu, axis=-1) < 1e-8
    combined = np.where(np.any(nu <= 2, axis=-1), 2.0, combined)
    return np.where(np.isnan(nu).any(axis=-1), np.nan, np.where(equal, np.mean(nu, axis=-1), combined))


def kenward_roger_scale(covariance: np.ndarray, gradient: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale (b,) of the F statistic and denominator df (b,) of Kenward and Roger.

    `covariance` (b, r, r) of the estimates before it is adjusted, its `gradient` (b, k+1, r, r) in theta and `W`
    (b, k+1, k+1) = cov(theta). Without positive df there is no test: NaN.
    """
    r = covariance.shape[1]
    H = _solve(covariance[:, None, :, :], gradient)  # (b, k+1, r, r)
    trace = np.einsum("birr->bi", H)  # (b, k+1)
    A1 = np.einsum("bij,bi,bj->b", W, trace, trace)
    A2 = np.einsum("bij,birs,bjsr->b", W, H, H)
    with np.errstate(divide="ignore", invalid="ignore"):
        B = (A1 + 6 * A2) / (2 * r)
        shape = ((r + 1) * A1 - (r + 4) * A2) / ((r + 2) * A2)
        c = np.stack([shape, r - shape, r + 2 - shape]) / (3 * r + 2 * (1 - shape))  # (3, b)
        V0, V1, V2 = 1 + c[0] * B, 1 - c[1] * B, 1 - c[2] * B
        mean = 1 - A2 / r  # 1 / E
        both = (np.abs(mean) < 1e-14) & (np.abs(V1) < 1e-14)
        rho = np.where(both, 1.0, mean / V1) ** 2 * np.where(np.abs(V0) < 1e-10, 0.0, V0) / V2 / r
        df = 4 + (r + 2) / (r * rho - 1)
        scale = np.where(np.abs(df - 2) < 1e-2, 1.0, df * mean / (df - 2))
    valid = (df > 0) & (scale > 0)
    return np.where(valid, scale, np.nan), np.where(valid, df, np.nan)


def _gradient(model: MixedModel, theta: Array, a: Array, covariance: np.ndarray) -> np.ndarray:
    # derivatives of `covariance` (b, r, r) in theta (b, k+1, r, r); that in s_0 by homogeneity
    g = model.likelihood.ratios(theta)
    pairs = in_pieces(lambda g: model.likelihood.gradient_pairs(g, a), g, a.shape[0] * a.shape[1])  # (k, r, r, b)
    by_component = np.moveaxis(to_numpy(pairs), -1, 0)  # (b, k, r, r)
    ratios, s_0 = to_numpy(g).T, to_numpy(theta[-1, :])  # (b, k), (b,)
    by_residual = covariance / s_0[:, None, None] - np.einsum("bk,bkrs->brs", ratios, by_component)
    return np.concatenate([by_component, by_residual[:, None, :, :]], axis=1)


def _adjustment(model: MixedModel, theta: Array, a: Array, W: Array) -> np.ndarray:
    # sum_ij W_ij t_ij of all pairs of contrasts (b, r, r)
    g = model.likelihood.ratios(theta)
    pairs = in_pieces(lambda g: model.likelihood.adjustment_pairs(g, a), g, a.shape[0] * a.shape[1])  # (k, k, r, r, b)
    weights = to_numpy(ratio_weights(W, g) / theta[-1, :][None, None, :])  # (k, k, b)
    total = np.einsum("ijb,ijrsb->brs", weights, to_numpy(pairs))
    return 0.5 * (total + np.swapaxes(total, 1, 2))


def _wald(estimate: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    # estimate' covariance^-1 estimate / r (b,); NaN where that is no covariance
    solved = _solve(covariance, estimate[:, :, None])[:, :, 0]  # (b, r)
    value = np.einsum("br,br->b", estimate, solved) / estimate.shape[1]
    smallest = np.linalg.eigvalsh(_finite(covariance))[:, 0]  # (b,)
    return np.where(smallest > 0, value, np.nan)


def _solve(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    # A^-1 B for stacks of symmetric A, by their eigenvalues: nothing is raised for a singular one
    values, vectors = np.linalg.eigh(_finite(A))
    with np.errstate(divide="ignore", invalid="ignore"):
        return vectors @ ((np.swapaxes(vectors, -1, -2) @ B) / values[..., None])


def _finite(A: np.ndarray) -> np.ndarray:
    # eigenvalue routines raise for NaN: such a matrix becomes zero, which has no inverse either
    return np.where(np.isfinite(A).all(axis=(-1, -2), keepdims=True), A, 0.0)


def _genes_first(values: Array) -> np.ndarray:
    return np.moveaxis(to_numpy(values), -1, 0)
