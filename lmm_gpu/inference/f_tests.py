"""Several contrasts at once: F tests with Satterthwaite's or Kenward and Roger's denominator degrees of freedom.

The rows of the contrasts are replaced by rows Q that span them and are orthonormal in (X'X)^-1: the hypothesis fixes
that basis up to a rotation, so that nothing depends on how X is coded or on the order and scale of the rows. What
depends on a gene are r x r matrices of all pairs of these, formed by the engine and decomposed on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..backend.arrays import Array, like, to_numpy
from ..estimation.mixed_model import MixedModel, in_pieces, ratio_weights
from .satterthwaite import check_df_method, limit_df, residual_df, theta_covariance
from .strata import orthonormal_rows

#: pbkrtest's limits, of numbers without unit: differences from zero, from zero in a numerator, and of df from 2.
_ZERO, _ZERO_NUMERATOR, _AT_TWO = 1e-14, 1e-10, 0.01


@dataclass(frozen=True)
class FTest:
    """One F statistic per gene, on the host."""

    statistic: np.ndarray  #: (m,)
    df1: int
    df: np.ndarray  #: (m,), denominator degrees of freedom


@dataclass(frozen=True)
class JointContrasts:
    """Estimates of r contrasts and their covariances, for the genes of a model."""

    model: MixedModel
    theta: Array  #: (k+1, b)
    Q: Array  #: (r, p), orthonormal in (X'X)^-1

    @cached_property
    def loadings(self) -> Array:
        """Loadings on the random effects (q, r)."""
        return (self.Q @ self.model.xxz).T

    @cached_property
    def estimate(self) -> np.ndarray:
        """Estimates (b, r)."""
        return _genes_first(self.Q @ self.model.coefficients(self.theta))

    @cached_property
    def covariance(self) -> np.ndarray:
        """Covariance matrices of the estimates (b, r, r)."""
        model, a = self.model, self.loadings
        g, s_0 = model.likelihood.ratios(self.theta), self.theta[-1, :]
        form = in_pieces(lambda g: model.likelihood.covariance_form(g, a), g, a.shape[0] * a.shape[1])
        return _genes_first(s_0[None, None, :] * ((self.Q @ model.XXinv @ self.Q.T)[:, :, None] + form))

    @cached_property
    def gradient(self) -> np.ndarray:
        """Derivatives of `covariance` in theta (b, k+1, r, r); that in s_0 by homogeneity."""
        model, a = self.model, self.loadings
        g = model.likelihood.ratios(self.theta)
        pairs = in_pieces(lambda g: model.likelihood.gradient_pairs(g, a), g, a.shape[0] * a.shape[1])  # (k, r, r, b)
        by_component = _genes_first(pairs)  # (b, k, r, r)
        ratios, s_0 = to_numpy(g).T, to_numpy(self.theta[-1, :])  # (b, k), (b,)
        by_residual = self.covariance / s_0[:, None, None] - np.einsum("bk,bkrs->brs", ratios, by_component)
        return np.concatenate([by_component, by_residual[:, None, :, :]], axis=1)

    def adjustment(self, W: Array) -> np.ndarray:
        """Half of what Kenward and Roger add to `covariance` (b, r, r), for `W` (k+1, k+1, b) = cov(theta)."""
        model, a = self.model, self.loadings
        g = model.likelihood.ratios(self.theta)
        pairs = in_pieces(lambda g: model.likelihood.adjustment_pairs(g, a), g, a.shape[0] * a.shape[1])
        weights = to_numpy(ratio_weights(W, g) / self.theta[-1, :][None, None, :])  # (k, k, b)
        total = np.einsum("ijb,ijrsb->brs", weights, to_numpy(pairs))
        result: np.ndarray = 0.5 * (total + np.swapaxes(total, 1, 2))
        return result


def f_test(model: MixedModel, theta: Array, C: np.ndarray, method: str, between_within: np.ndarray) -> FTest:
    """Test that all contrasts are zero, for the genes of `model`.

    Parameters
    ----------
    model : MixedModel
        b genes.
    theta : array (k+1, b)
    C : array (c, p)
        Contrasts in rows, which may repeat each other.
    method : {"satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
        "satterthwaite" and "lmertest" combine the df of principal directions of the estimates as Fai and Cornelius
        (1996) and lmerTest's contestMD do. Here these are principal in the metric (X'X)^-1, which the hypothesis fixes;
        contestMD takes the rows of C as they are, so that its df depend on the reference level of a factor. They agree
        where the directions have equal df. "kenward-roger" is the scaled F of Kenward and Roger, which has no basis.
    between_within : array () or (b,)
        Between-within df of the rows, from `combine_df(between_within_directions(...))`.

    Raises
    ------
    ValueError
        For another method.

    References
    ----------
    Fai and Cornelius (1996), J. Stat. Comput. Simul. 54, 363-378. Kenward and Roger (1997), Biometrics 53, 983-997.
    Kuznetsova, Brockhoff and Christensen (2017), lmerTest, J. Stat. Softw. 82(13). Halekoh and Hojsgaard (2014),
    pbkrtest, J. Stat. Softw. 59(9).
    """
    check_df_method(method)
    joint = JointContrasts(model, theta, like(orthonormal_rows(C, to_numpy(model.XXinv)), theta))
    if method == "kenward-roger":
        return _kenward_roger(joint)
    if method in ("satterthwaite", "lmertest"):
        return _by_directions(joint, method, between_within)
    fixed = residual_df(model) if method == "residual" else between_within
    statistic = _wald(joint.estimate, joint.covariance)
    return FTest(statistic, joint.Q.shape[0], np.array(np.broadcast_to(fixed, statistic.shape)))


def _kenward_roger(joint: JointContrasts) -> FTest:
    W, _ = theta_covariance(joint.model, joint.theta, "kenward-roger")  # (k+1, k+1, b)
    adjusted = joint.covariance + 2.0 * joint.adjustment(W)
    scale, df = kenward_roger_scale(joint.covariance, joint.gradient, _genes_first(W))
    return FTest(scale * _wald(joint.estimate, adjusted), joint.Q.shape[0], df)


def _by_directions(joint: JointContrasts, method: str, between_within: np.ndarray) -> FTest:
    W, known = theta_covariance(joint.model, joint.theta, method)  # (k+1, k+1, b), (b,)
    values, slope = _principal(joint.covariance, joint.gradient)
    nu = _direction_df(values, slope, _genes_first(W))  # (b, r)
    at_boundary = to_numpy(joint.model.likelihood.at_boundary(joint.theta))  # (b,)
    df = limit_df(combine_df(nu), method, at_boundary, to_numpy(known), between_within)
    return FTest(_wald(joint.estimate, joint.covariance), joint.Q.shape[0], df)


def _principal(covariance: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (b, r) of the principal directions of the estimates, and their gradient (b, k+1, r).

    `covariance` (b, r, r) and its `gradient` (b, k+1, r, r).
    """
    values, vectors = np.linalg.eigh(_finite(covariance))
    values = np.where(np.isnan(covariance[:, :1, 0]), np.nan, values)
    return values, np.einsum("brd,bkrs,bsd->bkd", vectors, gradient, vectors)


def _direction_df(values: np.ndarray, slope: np.ndarray, W: np.ndarray) -> np.ndarray:
    # Satterthwaite's df (b, r) of directions with variances `values` (b, r) and `slope`, for `W` (b, k+1, k+1)
    with np.errstate(divide="ignore", invalid="ignore"):
        df: np.ndarray = 2.0 * values**2 / np.einsum("bid,bij,bjd->bd", slope, W, slope)
    return df


def combine_df(nu: np.ndarray) -> np.ndarray:
    """Denominator df (...,) of a mean of squared t statistics on `nu` (..., r) df.

    The harmonic mean of nu - 2, plus 2, matches its expectation, as lmerTest's contestMD has it. That needs more than 2
    df in every direction: with fewer than 4 in one, half of these take the place of 2, so that the result is a
    continuous function of `nu` and equal df stay as they are.

    Examples
    --------
    >>> combine_df(np.array([[4.0, 1000.0], [5.0, 5.0]])).round(3).tolist()
    [5.992, 5.0]
    >>> combine_df(np.array([[1.5, 1.5], [1.5, 1.6]])).round(3).tolist()
    [1.5, 1.547]
    """
    nu = np.asarray(nu, dtype=float)
    constant = np.minimum(2.0, 0.5 * np.min(nu, axis=-1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        combined: np.ndarray = constant[..., 0] + 1.0 / np.mean(1.0 / (nu - constant), axis=-1)
    return combined


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
        both = (np.abs(mean) < _ZERO) & (np.abs(V1) < _ZERO)
        rho = np.where(both, 1.0, mean / V1) ** 2 * np.where(np.abs(V0) < _ZERO_NUMERATOR, 0.0, V0) / V2 / r
        df = 4 + (r + 2) / (r * rho - 1)
        scale = np.where(np.abs(df - 2) < _AT_TWO, 1.0, df * mean / (df - 2))
    valid = (df > 0) & (scale > 0)
    return np.where(valid, scale, np.nan), np.where(valid, df, np.nan)


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
        solved: np.ndarray = vectors @ ((np.swapaxes(vectors, -1, -2) @ B) / values[..., None])
    return solved


def _finite(A: np.ndarray) -> np.ndarray:
    # eigenvalue routines raise for NaN: such a matrix becomes zero, which has no inverse either
    return np.where(np.isfinite(A).all(axis=(-1, -2), keepdims=True), A, 0.0)


def _genes_first(values: Array) -> np.ndarray:
    return np.moveaxis(to_numpy(values), -1, 0)
