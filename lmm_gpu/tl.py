"""Tools on AnnData in scanpy's style: `lmm_gpu.tl.lmm(adata, formula)` writes its results into `adata`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .api import fit
from .design.cell_query import matching_cells
from .design.contrasts import contrast_rows
from .design.design import build_design, used_cells
from .inference.pvalues import z_scores
from .pertpy_model import LinearMixedModel
from .results.lmm_fit import LMMFit

if TYPE_CHECKING:
    from anndata import AnnData
__all__ = ["LinearMixedModel", "lmm"]
#: scanpy's names of the columns of a test, ours, and the types in which scanpy stores them.
_SCANPY = {
    "names": ("variable", "O"),
    "scores": ("score", "float32"),
    "logfoldchanges": ("log_fc", "float32"),
    "pvals": ("p_value", "float64"),
    "pvals_adj": ("adj_p_value", "float64"),
}
#: First of the last columns of the table of tests, which are the same for every contrast.
_FIRST_OF_GENE = "mean_expr"
#: Group of the cells that belong to no contrast.
_REFERENCE = "reference"
#: Status of genes of `adata` that were not fitted: removed by min_cells, min_mean or genes.
_LEFT_OUT = "left_out"


def lmm(
    adata: AnnData,
    formula: str = "",
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
        Key of the results: in ``adata.uns``, as `scanpy.tl.rank_genes_groups` writes them; in ``adata.varm``, as tables
        with one row per gene; and in ``adata.obs``.
    layer, transform : str, optional
        As `lmm_gpu.fit`.
    df : str
        Degrees of freedom, as `LMMFit.test`.
    **options
        Other options of `lmm_gpu.fit`.

    Returns
    -------
    LMMFit
        For further tests and plots. These are written once all of them are computed:

        ``adata.uns[key_added]``
            Read by `scanpy.get.rank_genes_groups_df` and by every plot ``scanpy.pl.rank_genes_groups*``: contrasts are
            the groups; in each, genes are sorted by falling score (genes without a test last). ``scores`` are z-scores
            of the p-values with the sign of the effect, as t statistics on different df are not comparable.
            ``logfoldchanges`` are on the scale of the fit, not scanpy's log2. The last group, "reference", does not
            differ from itself (effect 0, p-value 1); scanpy's plots need it.
        ``adata.varm[key_added]``
            Per gene: mean_expr, status, variances, iterations.
        ``adata.varm[f"{key_added}_{contrast}"]``
            Per gene: log_fc, se, statistic, df, p_value, adj_p_value, log10_p_value, ci_low, ci_high.
        ``adata.obs[key_added]``
            For scanpy's plots only: the contrast that each cell belongs to, that is, whose regressor is positive there
            (the last one, if there are several); "reference" for all others.

        Genes that were not fitted have NaN and the status "left_out". A "/" in names becomes "|", as HDF5 has no such
        keys.

    Raises
    ------
    ValueError
        As `lmm_gpu.fit` and `LMMFit.test`; for a joint test; for contrasts whose names differ only in "/" and "|".

    Examples
    --------
    >>> import anndata, lmm_gpu
    >>> donor = np.repeat(np.arange(6), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 3, "ctrl", "stim")})
    >>> adata = anndata.AnnData(np.random.default_rng(1).normal(size=(60, 4)), obs.set_index(obs.index.astype(str)))
    >>> fit = lmm_gpu.tl.lmm(adata, "~ arm + (1 | donor)")
    >>> list(adata.varm), adata.uns["lmm"]["scores"].dtype.names
    (['lmm', 'lmm_arm[T.stim]'], ('arm[T.stim]', 'reference'))
    """
    if not formula or "groupby" in options:
        raise ValueError(
            "lmm() compares by a formula in place of groupby: lmm(adata, '~ condition + (1 | donor)'), with the donors "
            "or samples of the cells as a random effect; contrast= names what is tested"
        )
    fitted = fit(adata, formula, layer=layer, transform=transform, **options)
    table = fitted.test(contrast, df=df)
    if "log_fc" not in table:
        raise ValueError(
            "a joint test has no direction, which scanpy's tables need: use lmm_gpu.fit(...).test(...) instead"
        )
    if contrast is None and len(fitted.summary.fixed_names) > 1:
        table = table[table["contrast"] != "Intercept"]
    names = dict(zip(table["contrast"].unique(), _safe(table["contrast"].unique()), strict=True))
    table = table.assign(contrast=table["contrast"].map(names))
    raw = bool(options.get("use_raw")) or (layer == "raw" and "raw" not in adata.layers)
    genes = (adata.raw if raw else adata).var_names
    params = {"method": "lmm", "formula": formula, "df": df, "reml": fitted.method == "REML"}
    params |= {"groupby": key_added, "reference": _REFERENCE, "use_raw": raw, "corr_method": "benjamini-hochberg"}
    params |= {name: value for name, value in (("layer", layer), ("transform", fitted.summary.transform)) if value}
    ranked = {"params": params, **_ranked(table, genes)}
    per_gene = _per_gene(fitted, table, adata.var_names)
    groups = _groups(adata.obs, formula, contrast, names, options.get("cells"))
    adata.uns[key_added] = ranked
    adata.obs[key_added] = groups
    for name, frame in per_gene.items():
        adata.varm[f"{key_added}{name}"] = frame
    return fitted


def _safe(labels: Iterable[str]) -> list[str]:
    """Return labels that HDF5 accepts as keys."""
    labels = list(labels)
    safe = [label.replace("/", "|") for label in labels]
    if len({*safe, _REFERENCE}) <= len(labels):
        raise ValueError(
            f"contrasts {', '.join(labels)}: '/' becomes '|' in AnnData, where one more group is {_REFERENCE!r}, and "
            "two names are equal then: rename one"
        )
    return safe


def _ranked(table: pd.DataFrame, genes: pd.Index) -> dict[str, np.recarray]:
    """Return one record array per quantity: contrasts are fields, their genes sorted by falling score."""
    scores = z_scores(table["statistic"].to_numpy(), table["log10_p_value"].to_numpy())
    groups = {
        str(name): _of_genes(rows, genes)
        .assign(variable=genes.astype(str))
        .sort_values("score", ascending=False, kind="stable")
        for name, rows in table.assign(score=scores).groupby("contrast", sort=False)
    }
    same = {"score": 0.0, "log_fc": 0.0, "p_value": 1.0, "adj_p_value": 1.0}
    groups[_REFERENCE] = pd.DataFrame({"variable": genes.astype(str), **same})
    return {
        name: pd.DataFrame({label: rows[ours].to_numpy() for label, rows in groups.items()}).to_records(
            index=False, column_dtypes=dtype
        )
        for name, (ours, dtype) in _SCANPY.items()
    }


def _per_gene(fitted: LMMFit, table: pd.DataFrame, genes: pd.Index) -> dict[str, pd.DataFrame]:
    """Return tables of one row per gene, by suffix of the key: one of the genes, and one per contrast."""
    columns = list(table.columns)
    first = columns.index(_FIRST_OF_GENE)
    common = table[["variable", *columns[first:]]].iloc[: len(fitted.summary.features)]
    common = _of_genes(common.assign(niter=fitted.niter.to_numpy()), genes)
    common["status"] = common["status"].fillna(_LEFT_OUT)
    common.columns = [name.replace("/", "|") for name in common.columns]
    tests = {
        f"_{name}": _of_genes(rows[["variable", *columns[2:first]]], genes)
        for name, rows in table.groupby("contrast", sort=False)
    }
    return {"": common, **tests}


def _of_genes(rows: pd.DataFrame, genes: pd.Index) -> pd.DataFrame:
    """Return one row per gene of AnnData, in its order; NaN for genes that were not fitted."""
    found: pd.DataFrame = rows.set_index("variable").reindex(genes.astype(str))
    found.index = genes
    return found


def _groups(obs: pd.DataFrame, formula: str, contrast: Any, names: Mapping[str, str], cells: Any) -> pd.Categorical:
    """Return the contrast that each cell belongs to, as `lmm` documents it."""
    kept = np.ones(len(obs), dtype=bool)
    if isinstance(cells, str):
        kept, _ = matching_cells(cells, obs)
    elif cells is not None:
        kept = np.asarray(cells, dtype=bool)
    kept = kept & used_cells(formula, obs)
    design = build_design(formula, obs[kept])
    columns = list(design.kept_columns)
    X = design.X[:, columns]
    C, labels = contrast_rows(contrast, [design.fixed_names[i] for i in columns])
    of_cell = np.full(len(obs), _REFERENCE, dtype=object)
    for row, label in zip(C, labels, strict=True):
        if label in names:
            of_cell[np.flatnonzero(kept)[X @ row > 0]] = names[label]
    present = [name for name in (*names.values(), _REFERENCE) if (of_cell == name).any()]
    return pd.Categorical(of_cell, categories=present)
