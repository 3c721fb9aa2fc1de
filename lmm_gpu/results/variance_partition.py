"""Variance partition: fractions of the variance of each gene by fixed term, random effect and residual."""

from __future__ import annotations

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.late_imports import pd
from ..design.terms import Term
from ..inference.group_levels import groupings
from ..sumstats.summary_stats import SummaryStats
from .blockwise import Fitted
from .nonnegative import nonnegative_estimates
from .variance_components import average_variances

#: Relative accuracy of sums of weights.
_SAME = 1e-12


def variance_partition(fit: Fitted) -> pd.DataFrame:
    """Fractions of the variance that each fixed term, each random effect and the residual explain.

    The definition is that of variancePartition (Hoffman and Schadt 2016, doi:10.1186/s12859-016-1323-z). A random
    effect contributes its variance in the average sample, s_i tr(Z_i'Z_i) / n, which is s_i for a random
    intercept. A fixed term contributes the variance of its fitted values X_t beta_t over the n samples (divisor
    n), and these contributions are scaled to the variance of their sum X beta. All of it follows from X'X, Z'Z
    and the estimates. Genes with a negative variance component are refitted with ``bounds="nonnegative"``.
    The residual contributes s_0 over the mean weight. variancePartition fits by maximum likelihood: ``method="ML"``
    gives its numbers.

    Returns
    -------
    DataFrame (m x terms)
        One row per gene; the columns are the fixed terms, the random effects and the residual. Every row sums
        to 1; NaN for a gene without an estimate.

    Raises
    ------
    ValueError
        If the design was given as matrices and its column means cannot be derived: X has no intercept and no
        random effect is a grouping.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
    >>> shares = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)").variance_partition()
    >>> shares.columns.tolist(), shares.sum(axis=1).round(12).tolist()
    (['arm', 'donor', 'residual'], [1.0, 1.0])
    """
    theta, coef = nonnegative_estimates(fit, np.arange(fit.summary.m))
    fixed = _fixed_variances(fit.summary, coef)
    parts = {**fixed, **dict(zip(fit.summary.variance_names, average_variances(fit.summary, theta), strict=True))}
    table = pd.DataFrame(parts, index=pd.Index(fit.summary.features))
    return table.div(table.sum(axis=1, min_count=len(parts)), axis=0)


def _fixed_variances(summary: SummaryStats, coef: np.ndarray) -> dict[str, np.ndarray]:
    """Variance (m,) of the fitted values of each fixed term over the samples, scaled to that of their sum."""
    terms = summary.terms or [Term(name, (i,)) for i, name in enumerate(summary.fixed_names)]
    covariance = _covariance(summary)  # (p, p)
    alone = {}
    for term in terms:
        rows = list(term.columns)
        if term.name not in ("1", "Intercept"):
            alone[term.name] = np.einsum("im,ij,jm->m", coef[rows], covariance[np.ix_(rows, rows)], coef[rows])
    total = np.einsum("im,ij,jm->m", coef, covariance, coef)
    added = np.sum(list(alone.values()), axis=0) if alone else np.ones_like(total)
    scale = np.divide(total, added, out=np.zeros_like(total), where=added > 0)
    return {name: part * np.where(np.isnan(added), np.nan, scale) for name, part in alone.items()}


def _covariance(summary: SummaryStats) -> np.ndarray:
    """Covariance matrix of the columns of X over the samples (p, p), divisor n."""
    groups, XX = groupings(summary), to_numpy(summary.XX)
    if groups:
        sums = groups[0].sums.sum(axis=0)  # (p,)
        within = groups[0].within  # X'X about the means of the groups: no cancellation
        counts = groups[0].counts[:, None]
        means = np.divide(groups[0].sums, counts, out=np.zeros_like(groups[0].sums), where=counts > 0)
        centred = means - sums / summary.n
        return np.asarray(within + (counts * centred).T @ centred) / summary.n
    total = summary.n if summary.total_weight is None else summary.total_weight
    constant = np.flatnonzero(np.isclose(np.diagonal(XX), total, rtol=_SAME, atol=0.0))
    intercept = [i for i in constant if summary.fixed_names[i] in ("Intercept", "(Intercept)")]
    if not intercept:
        raise ValueError(
            "variance_partition needs the column means of X, and the sums do not include them: give X an intercept "
            "(column 'Intercept'), or use a formula with a grouping such as (1 | donor)"
        )
    mean = XX[intercept[0]] / total
    return np.asarray(XX / total - np.outer(mean, mean))
