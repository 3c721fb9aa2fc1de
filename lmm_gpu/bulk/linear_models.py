"""Linear models without random effects, gene by gene, with or without weights: limma's lmFit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array
from ..backend.linalg import inverse_spd


@dataclass(frozen=True)
class LinearFit:
    """One linear model per gene."""

    coef: np.ndarray  #: (p, m)
    covariance: np.ndarray  #: (p, p, m), of the coefficients over the residual variance
    variance: np.ndarray  #: (m,), residual variance
    df: float  #: residual degrees of freedom
    fitted: np.ndarray  #: (n, m)


def fit_linear(X: np.ndarray, Y: np.ndarray, W: np.ndarray | None = None) -> LinearFit:
    """Fit Y (n, m) on X (n, p) by least squares, with weights (n, m) per observation and gene if given.

    Raises
    ------
    ValueError
        If X is rank deficient, or leaves no residual degrees of freedom.
    """
    n, p = X.shape
    if n <= p:
        raise ValueError(
            f"the model has {p} fixed-effect columns but only {n} samples: no residual is left; drop terms"
        )
    inverse, dependent = inverse_spd(X.T @ X)
    if inverse is None:
        raise ValueError(f"X is rank deficient: columns {dependent} are zero or linearly dependent")
    if W is None:
        coef = np.linalg.lstsq(X, Y, rcond=None)[0]
        covariance: Array = np.repeat(inverse[:, :, None], Y.shape[1], axis=2)
        residual = Y - X @ coef
        return LinearFit(coef, covariance, (residual**2).sum(axis=0) / (n - p), float(n - p), X @ coef)
    scaled = np.sqrt(W.T)[:, :, None] * X  # (m, n, p)
    Q, R = np.linalg.qr(scaled)
    inverse_R = np.linalg.solve(R, np.broadcast_to(np.eye(p), R.shape))  # (m, p, p)
    effects = np.swapaxes(Q, 1, 2) @ (np.sqrt(W.T) * Y.T)[:, :, None]  # (m, p, 1)
    coef = (inverse_R @ effects)[:, :, 0].T  # (p, m)
    residual = Y - X @ coef
    variance = (W * residual**2).sum(axis=0) / (n - p)
    covariance = np.moveaxis(inverse_R @ np.swapaxes(inverse_R, 1, 2), 0, -1)
    return LinearFit(coef, covariance, variance, float(n - p), X @ coef)
