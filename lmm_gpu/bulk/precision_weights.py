"""Precision weights of counts from the trend of their variance in their mean: voom, and dream's version of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..backend.optional import require
from ..design.design import build_design, fixed_design
from ..design.formula import split_formula
from ..estimation.fit_options import FitOptions
from ..results.fitting import fit_summary
from ..results.lmm_fit import LMMFit
from ..sumstats.assembly import cross_products
from .linear_models import fit_linear
from .samples import as_samples, layer_of
from .size_normalisation import check_counts, tmm_factors

logger = logging.getLogger(__name__)

NORMALISATIONS = ("TMM", "none")
#: Rounds of reweighting of lowess, and the share of its range within which fits are interpolated, as in R.
_ROUNDS, _DELTA = 3, 0.01


@dataclass(frozen=True)
class Trend:
    """Square root of the residual standard deviation as a function of the mean log2 count."""

    x: np.ndarray  #: (genes,), mean log2 count
    y: np.ndarray  #: (genes,), square root of the residual standard deviation
    line_x: np.ndarray  #: (genes,), ascending
    line_y: np.ndarray  #: (genes,), the smoothed trend there

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, span: float) -> Trend:
        """Smooth by lowess, as R's with its defaults."""
        lowess = require("statsmodels.nonparametric.smoothers_lowess", "voom", 'pip install "lmm-gpu[bulk]"').lowess
        line = lowess(y, x, frac=span, it=_ROUNDS, delta=_DELTA * float(np.ptp(x)))
        return cls(x, y, line[:, 0], line[:, 1])

    def weights(self, log_counts: np.ndarray) -> np.ndarray:
        """Precision weights of observations with these fitted log2 counts."""
        return np.asarray(np.interp(log_counts, self.line_x, self.line_y) ** -4)


def voom(
    pb: Any,
    formula: str,
    *,
    obs: pd.DataFrame | None = None,
    layer: str | None = None,
    normalize: str = "TMM",
    span: float = 0.5,
) -> Any:
    """Log2 counts per million with a precision weight for each gene and sample.

    With random effects in the formula this is dream's voomWithDreamWeights: a mixed model without weights for each
    gene by maximum likelihood, as there, and fitted values with BLUPs. Without, it is limma's voom.

    Parameters
    ----------
    pb : AnnData, path or pair (counts, obs)
        Counts of samples x genes, such as `pseudobulk` returns; or a path to .h5ad, or counts (array or DataFrame) and
        the table of the samples.
    formula : str
        lme4 syntax, such as ``"~ time + (1 | donor)"``.
    obs : DataFrame, optional
        Table of the samples in place of ``pb.obs``.
    layer : str, optional
        Layer of counts in place of X.
    normalize : {"TMM", "none"}
        Normalisation of library sizes.
    span : float
        Share of genes in each local regression of the trend.

    Returns
    -------
    AnnData
        X is log2 counts per million, ``layers["weights"]`` the weights, ``obs["effective_library_size"]`` library sizes
        times normalisation factors; ``uns["voom"]`` holds the trend (x, y, line_x, line_y), the formula and the options.

    Raises
    ------
    ValueError
        If counts are negative or missing, the formula cannot be used, or anndata or statsmodels are not installed.

    References
    ----------
    Law, Chen, Shi and Smyth (2014), voom: precision weights unlock linear model analysis tools for RNA-seq read counts,
    Genome Biology 15, R29. Hoffman and Roussos (2021), dream, Bioinformatics 37, 192-201.

    Examples
    --------
    >>> import anndata
    >>> rng = np.random.default_rng(1)
    >>> obs = pd.DataFrame({"time": ["t1", "t2"] * 6, "donor": np.repeat(list("uvwxyz"), 2)}, index=[f"s{i}" for i in range(12)])
    >>> v = voom(anndata.AnnData(rng.poisson(200.0, size=(12, 50)).astype(float), obs=obs), "~ time + (1 | donor)")
    >>> v.X.shape, bool((v.layers["weights"] > 0).all())
    ((12, 50), True)
    """  # noqa: E501
    if normalize not in NORMALISATIONS:
        raise ValueError(f"normalize={normalize!r} is not known; use one of {', '.join(NORMALISATIONS)}")
    if not 0 < span <= 1:
        raise ValueError(f"span={span!r}: the share of genes in a local regression lies between 0 and 1, such as 0.5")
    anndata = require("anndata", "voom")
    pb = as_samples(pb)
    counts = check_counts(layer_of(pb, layer))  # (n, m)
    if counts.max(initial=0.0) < 40 and (counts != np.rint(counts)).any():
        logger.warning("voom expects counts, but the values look like logarithms (fractions, all below 40)")
    table = pb.obs if obs is None else obs
    factors = tmm_factors(counts) if normalize == "TMM" else np.ones(len(counts))
    sizes = counts.sum(axis=1) * factors  # (n,)
    E, weights, trend = voom_weights(counts, sizes, formula, table, tuple(map(str, pb.var_names)), span)
    uns = vars(trend) | {
        "formula": formula,
        "normalize": normalize,
        "span": span,
    }
    return anndata.AnnData(
        X=E,
        obs=table.assign(effective_library_size=sizes),
        var=pb.var.copy(),
        layers={"weights": weights},
        uns={"voom": uns},
    )


def voom_weights(
    counts: np.ndarray, sizes: np.ndarray, formula: str, obs: pd.DataFrame, features: Sequence[str], span: float = 0.5
) -> tuple[np.ndarray, np.ndarray, Trend]:
    """Log2 counts per million (n, m), weights (n, m) and their trend for `counts` (n, m) and library `sizes` (n,)."""
    scale = np.log2(sizes + 1.0)[:, None] - np.log2(1e6)  # (n, 1)
    E = np.log2(counts + 0.5) - scale
    sigma, fitted = _unweighted(E, formula, obs, features)
    x, y = E.mean(axis=0) + scale.mean(), np.sqrt(sigma)
    known = np.isfinite(y) & (counts.sum(axis=0) > 0)
    if np.count_nonzero(known) < 3:
        raise ValueError(f"voom needs a variance of at least three genes; {np.count_nonzero(known)} have one")
    trend = Trend.fit(x[known], y[known], span)
    return E, trend.weights(np.where(np.isfinite(fitted), fitted, E) + scale), trend


def _unweighted(
    E: np.ndarray, formula: str, obs: pd.DataFrame, features: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    # residual standard deviations (m,) and fitted values with BLUPs (n, m)
    if not split_formula(formula)[1]:
        linear = fit_linear(fixed_design(formula, obs)[0], E)
        return np.sqrt(linear.variance), linear.fitted
    design = build_design(formula, obs)
    labels = {"d": design.d, "random_terms": design.random_terms, "features": tuple(features)}
    fit: LMMFit = fit_summary(cross_products(design.X, design.Z, E, **labels), FitOptions("ML", bounds="nonnegative"))
    assert fit.RE is not None
    fitted = design.X @ fit.coef.to_numpy() + design.Z @ fit.RE.to_numpy()
    return np.sqrt(fit.theta.to_numpy()[-1]), fitted
