"""dream for all cell types at once: voom's weights, weighted mixed models, moderated tests, one table."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd

from ..design.contrasts import contrast_rows
from ..design.design import build_design, fixed_design
from ..design.formula import split_formula
from ..estimation.fit_options import FitOptions
from ..inference.empirical_bayes import fit_prior
from ..inference.t_tests import ContrastTest
from ..inference.tables import tidy
from ..results.fitting import fit_summary
from ..results.lmm_fit import LMMFit
from ..sumstats.gene_weights import weighted_statistics
from .linear_models import fit_linear
from .precision_weights import voom
from .samples import as_samples, layer_of

logger = logging.getLogger("lmm_gpu")
#: Scale of the values of voom, for the axes of plots.
SCALE = "log2 cpm"


def dream(
    pb: Any,
    formula: str,
    *,
    by: str | None = None,
    contrast: Any = None,
    layer: str | None = None,
    min_count: int = 5,
    min_share: float = 0.5,
    df: str = "lmertest",
    moderate: bool = True,
) -> pd.DataFrame:
    """Test every gene of pseudobulk samples as dream does: voom weights, weighted mixed models, empirical Bayes.

    Parameters
    ----------
    pb : AnnData, path or pair (counts, obs)
        Counts of samples x genes, such as `pseudobulk` returns; or a path to .h5ad, or counts (array or DataFrame) and
        the table of the samples.
    formula : str
        lme4 syntax; without random terms it is limma's voom, lmFit and eBayes.
    by : str, optional
        Column of obs: each of its values, such as a cell type, is fitted by itself.
    contrast : optional
        As in `LMMFit.test`; by default every coefficient.
    layer : str, optional
        Layer of counts in place of X.
    min_count, min_share : int, float
        Keep genes with at least `min_count` counts in at least this share of the samples.
    df : str
        Degrees of freedom of a mixed model: "lmertest" is dream's default, "kenward-roger" its other choice.
    moderate : bool
        Squeeze residual variances towards their common value.

    Returns
    -------
    DataFrame
        As `LMMFit.test`, with the column `by` in front if it was given; adjusted p-values are within each of its values
        and contrast.

    Raises
    ------
    ValueError
        If the column is unknown, or none of its values can be fitted.

    References
    ----------
    Hoffman and Roussos (2021), dream: powerful differential expression analysis for repeated measures designs,
    Bioinformatics 37, 192-201.

    Examples
    --------
    >>> import anndata
    >>> rng = np.random.default_rng(1)
    >>> obs = pd.DataFrame({"time": ["t1", "t2"] * 6, "donor": np.repeat(list("uvwxyz"), 2)})
    >>> pb = anndata.AnnData(rng.poisson(200.0, size=(12, 50)).astype(float), obs=obs.set_index(obs.index.astype(str)))
    >>> dream(pb, "~ time + (1 | donor)", contrast="time[T.t2]").shape[0]
    50
    """
    pb = as_samples(pb)
    if by is None:
        return _tested(pb, formula, contrast, layer, (min_count, min_share), df, moderate)
    if by not in pb.obs:
        raise ValueError(f"by={by!r} is not a column of obs, which has {', '.join(map(str, pb.obs.columns))}")
    tables: dict[Any, pd.DataFrame] = {}
    for value in pd.unique(pb.obs[by].dropna()):
        part = pb[(pb.obs[by] == value).to_numpy()].copy()
        try:
            tables[value] = _tested(part, formula, contrast, layer, (min_count, min_share), df, moderate)
        except ValueError as error:
            logger.warning("%s = %s is left out: %s", by, value, error)
    if not tables:
        raise ValueError(f"none of the values of {by!r} can be fitted; the log says why")
    together: pd.DataFrame = pd.concat(tables, names=[by]).reset_index(level=0).reset_index(drop=True)
    return together


def _tested(
    pb: Any, formula: str, contrast: Any, layer: str | None, least: tuple[int, float], df: str, moderate: bool
) -> pd.DataFrame:
    counts = layer_of(pb, layer)
    kept = np.asarray((counts >= least[0]).sum(axis=0)).ravel() >= least[1] * pb.n_obs
    if not kept.any():
        raise ValueError(f"no gene has {least[0]} counts in {least[1]:.0%} of {pb.n_obs} samples")
    v = voom(pb[:, kept].copy(), formula, layer=layer)
    features = tuple(map(str, v.var_names))
    if not split_formula(formula)[1]:
        return _linear_table(v, formula, contrast, features, moderate)
    design = build_design(formula, v.obs)
    summary = weighted_statistics(design, v.X, v.layers["weights"], features, SCALE)
    fit: LMMFit = fit_summary(summary, FitOptions(bounds="nonnegative"))
    with warnings.catch_warnings():  # a sample is one observation: advice on cells does not apply
        warnings.simplefilter("ignore", UserWarning)
        return fit.test(contrast, df=df, moderate=moderate)


def _linear_table(v: Any, formula: str, contrast: Any, features: tuple[str, ...], moderate: bool) -> pd.DataFrame:
    # limma's lmFit and eBayes
    X, names = fixed_design(formula, v.obs)
    fit = fit_linear(X, v.X, v.layers["weights"])
    C, labels = contrast_rows(contrast, names)
    variance, df = fit.variance, np.full(fit.variance.shape, fit.df)
    if moderate:
        prior = fit_prior(variance, fit.df)
        variance = prior.posterior(variance, fit.df)
        df = np.minimum(df + prior.df, fit.df * np.count_nonzero(np.isfinite(variance)))
    se = np.sqrt(np.einsum("cp,pqm,cq->cm", C, fit.covariance, C) * variance)
    tested = ContrastTest(C @ fit.coef, se, np.broadcast_to(df, se.shape))
    status = np.full(len(features), "converged", dtype=object)
    columns = {"mean_expr": v.X.mean(axis=0), "status": status, "residual_variance": fit.variance}
    table = tidy(tested, features, labels, columns)
    table.attrs["transform"] = SCALE
    return table
