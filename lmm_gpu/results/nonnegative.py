"""Estimates with nonnegative variances, for quantities that do not exist at a negative one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..estimation.fitting import fit_genes
from .blockwise import Fitted


def negative_variances(fit: Fitted, genes: np.ndarray) -> np.ndarray:
    """Mask of the `genes` (positions) with a negative variance component; covariances may be negative."""
    names = fit.summary.variance_names
    variances = np.array([".cov(" not in name for name in names])
    return np.asarray((fit.estimates.theta[:, genes][variances] < 0).any(axis=0))


def nonnegative_estimates(fit: Fitted, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance components and fixed effects of `genes`, refitted with bounds="nonnegative" where one is negative.

    Parameters
    ----------
    fit : LMMFit
    genes : array of int (g,)
        Positions of the genes.

    Returns
    -------
    theta, coef : array (k+1, g), (p, g)
    """
    theta, coef = fit.estimates.theta[:, genes].copy(), fit.estimates.coef[:, genes].copy()
    negative = np.flatnonzero(negative_variances(fit, genes))
    if negative.size:
        options = replace(fit.options, bounds="nonnegative", theta0=None)
        refitted, _ = fit_genes(fit.summary.with_genes(genes[negative].tolist()), options)
        theta[:, negative], coef[:, negative] = refitted.theta, refitted.coef
    return theta, coef
