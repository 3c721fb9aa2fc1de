"""Tools on AnnData, as scanpy has them: `lmm_gpu.tl.lmm(adata, formula)` writes its results into `adata`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .api import fit
from .inference.pvalues import z_scores
from .results.lmm_fit import LMMFit

if TYPE_CHECKING:
    from anndata import AnnData
__all__ = ["lmm"]
#: scanpy's names of what it keeps of a test, ours, and how it stores them.
_SCANPY = {
    "names": ("variable", "O"),
    "scores": ("score", "float32"),
    "logfoldchanges": ("log_fc", "float32"),
    "pvals": ("p_value", "float64"),
    "pvals_adj": ("adj_p_value", "float64"),
}
#: Columns of the table of tests that are the same for every contrast follow this one, which is the first of them.
_FIRST_OF_GENE = "mean_expr"


def lmm(
    adata: AnnData,
    formula: str,
    *,
    contrast: Any = None,
    key_added: str = "lmm",
    layer: str | None = None,
    transform: str | None = None,
    df: str = "generalized",
    **options: Any,
) -> LMMFit:
    """Fit one linear mixed model per gene, test contrasts, and write the results into `adata`.

    Parameters
    ----------
    adata : AnnData
        Cells x genes; `obs` has the columns of the formula.
    formula : str
        lme4 syntax, such as ``"~ condition * cell_type + (1 | donor)"``.
    contrast : optional
        What `LMMFit.test` takes; by default every coefficient but the intercept.
    key_added : str
        Where the results go: as `scanpy.tl.rank_genes_groups` does it into ``adata.uns[key_added]``, and as tables
        with one row per gene into ``adata.varm``.
    layer, transform : str, optional
        As `lmm_gpu.fit`.
    df : str
        Degrees of freedom, as `LMMFit.test`.
    **options
        The others of `lmm_gpu.fit`.

    Returns
    -------
    LMMFit
        For further tests and pictures. Written are

        ``adata.uns[key_added]``
            What `scanpy.get.rank_genes_groups_df` reads: contrasts as groups, in each the genes by falling score
            (genes without a test last). ``scores`` are z-scores of the p-values with the sign of the effect, as t
            statistics on different df do not compare. ``logfoldchanges`` are on the scale of the fit, not scanpy's
            log2.
        ``adata.varm[key_added]``
            Per gene: mean_expr, status, variances, iterations.
        ``adata.varm[f"{key_added}_{contrast}"]``
            Per gene: log_fc, se, statistic, df, p_value, adj_p_value, log10_p_value, ci_low, ci_high.

        A "/" in names becomes "|", as HDF5 has no such keys.

    Raises
    ------
    ValueError
        As `lmm_gpu.fit` and `LMMFit.test`; for a joint test; for contrasts whose names differ in "/" and "|" alone.

    Examples
    --------
    >>> import anndata, lmm_gpu
    >>> donor = np.repeat(np.arange(6), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 3, "ctrl", "stim")})
    >>> adata = anndata.AnnData(np.random.default_rng(1).normal(size=(60, 4)), obs.set_index(obs.index.astype(str)))
    >>> fit = lmm_gpu.tl.lmm(adata, "~ arm + (1 | donor)")
    >>> list(adata.varm), adata.uns["lmm"]["scores"].dtype.names
    (['lmm', 'lmm_arm[T.stim]'], ('arm[T.stim]',))
    """
    fitted = fit(adata, formula, layer=layer, transform=transform, **options)
    table = fitted.test(contrast, df=df)
    if "log_fc" not in table:
        raise ValueError("a joint test has no direction, and scanpy no place for it: use lmm_gpu.fit(...).test(...)")
    if contrast is None and len(fitted.summary.fixed_names) > 1:
        table = table[table["contrast"] != "Intercept"]
    table = table.assign(contrast=_safe(table["contrast"]))
    params = {"method": "lmm", "formula": formula, "df": df, "reml": fitted.method == "REML"}
    params |= {"groupby": "contrast", "reference": "0", "use_raw": False, "corr_method": "benjamini-hochberg"}
    params |= {name: value for name, value in (("layer", layer), ("transform", fitted.summary.transform)) if value}
    adata.uns[key_added] = {"params": params, **_ranked(table)}
    for name, frame in _per_gene(fitted, table).items():
        adata.varm[f"{key_added}{name}"] = frame.set_index(adata.var_names)
    return fitted


def _safe(labels: pd.Series) -> pd.Series:
    """Labels that HDF5 can have as keys."""
    safe = labels.str.replace("/", "|")
    if safe.nunique() < labels.nunique():
        raise ValueError(
            f"contrasts {', '.join(labels.unique())}: '/' becomes '|' in AnnData, and then two are the same: name them"
        )
    return safe


def _ranked(table: pd.DataFrame) -> dict[str, np.recarray]:
    """One record array per quantity, contrasts as fields, the genes of each by falling score."""
    table = table.assign(score=z_scores(table["statistic"].to_numpy(), table["log10_p_value"].to_numpy()))
    groups = {
        str(name): rows.sort_values("score", ascending=False, kind="stable")
        for name, rows in table.groupby("contrast", sort=False)
    }
    return {
        name: pd.DataFrame({label: rows[ours].to_numpy() for label, rows in groups.items()}).to_records(
            index=False, column_dtypes=dtype
        )
        for name, (ours, dtype) in _SCANPY.items()
    }


def _per_gene(fitted: LMMFit, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables of one row per gene, by what is added to the key: of the gene, and of each contrast."""
    columns = list(table.columns)
    first = columns.index(_FIRST_OF_GENE)
    genes = len(fitted.summary.features)
    common = table[columns[first:]].iloc[:genes].assign(niter=fitted.niter.to_numpy())
    common.columns = [name.replace("/", "|") for name in common.columns]
    tests = {f"_{name}": rows[columns[2:first]] for name, rows in table.groupby("contrast", sort=False)}
    return {"": common, **tests}
