"""Sums of counts over the cells of each sample and cell type, from memory or streamed from a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from ..backend.arrays import to_numpy
from ..backend.memory import parse_memory
from ..backend.optional import require
from ..backend.sparse import on_device
from ..io.source import Source, open_source
from ..sumstats.streaming import plan_pieces
from ..sumstats.transform import any_value, check_values, looks_like_counts

logger = logging.getLogger("lmm_gpu")


def pseudobulk(
    data: Any,
    by: Sequence[str] | str = ("donor", "condition", "cell_type"),
    *,
    obs: pd.DataFrame | str | Path | None = None,
    layer: str | None = None,
    features: Sequence[str] | str | Path | None = None,
    min_cells: int = 10,
    memory: int | str | None = None,
) -> Any:
    """Sum the counts of the cells of each group.

    Parameters
    ----------
    data : AnnData, path, (matrix, obs), or Source
        Raw counts, cells x genes, as `summarize` takes them; files are streamed.
    by : str or sequence of str
        Columns of obs whose combinations are the groups.
    obs : DataFrame or path, optional
        Table of the cells, for data that have none.
    layer : str, optional
        Layer of the AnnData in place of X.
    features : sequence of str or path, optional
        Gene names, for data that have none.
    min_cells : int
        Leave out groups of fewer cells.
    memory : int or str, optional
        Budget for chunks of cells, such as "2GB".

    Returns
    -------
    AnnData
        Groups x genes, X the summed counts as float64. obs has the columns of `by`, n_cells, and every other column
        that is constant within the groups.

    Raises
    ------
    ValueError
        If a column is unknown, values are not counts, no group is large enough, or anndata is not installed.

    Examples
    --------
    >>> obs = pd.DataFrame({"donor": list("aabb"), "arm": list("xxyy"), "size": [1, 2, 3, 3]}, index=list("1234"))
    >>> pb = pseudobulk((np.arange(8).reshape(4, 2), obs), by="donor", min_cells=2)
    >>> pb.X.tolist(), list(pb.obs.columns)
    ([[2.0, 4.0], [10.0, 12.0]], ['donor', 'n_cells', 'arm'])
    """
    anndata = require("anndata", "pseudobulk")
    opened = data if isinstance(data, Source) else open_source(data, obs, layer=layer, features=features)
    with opened as source:
        groups, codes = _groups(source.obs, [by] if isinstance(by, str) else list(by), min_cells)
        sums = _sums(source, codes, len(groups), parse_memory(memory))
        var = pd.DataFrame(index=pd.Index(source.features))
    return anndata.AnnData(X=sums, obs=groups, var=var, uns={"pseudobulk": {"min_cells": min_cells}})


def _groups(obs: pd.DataFrame, keys: list[str], min_cells: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Table of the groups that are large enough, and the group of each cell (n,), -1 for those of none."""
    unknown = [name for name in keys if name not in obs]
    if unknown or not keys:
        named = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"by names {named}; expected columns of obs, which has {', '.join(map(str, obs.columns))}")
    table = obs.reset_index(drop=True)
    grouped = table.groupby(keys, observed=True, sort=True, dropna=True)
    codes = grouped.ngroup().fillna(-1).to_numpy(dtype=np.int64, copy=True)  # (n,), -1 where a key is missing
    if (codes < 0).any():
        logger.warning("%d of %d cells have no value of %s: left out", (codes < 0).sum(), len(obs), ", ".join(keys))
    counts = np.bincount(codes[codes >= 0], minlength=grouped.ngroups)
    kept = np.flatnonzero(counts >= min_cells)
    if not kept.size:
        largest = int(counts.max(initial=0))
        raise ValueError(f"none of {len(counts)} groups has min_cells={min_cells} cells; the largest has {largest}")
    if kept.size < len(counts):
        few = len(counts) - kept.size
        logger.warning("%d of %d groups have fewer than %d cells: left out", few, len(counts), min_cells)
    place = np.full(len(counts) + 1, -1)
    place[kept] = np.arange(kept.size)
    codes = place[codes]
    first = np.array([np.flatnonzero(codes == group)[0] for group in range(kept.size)])
    groups = table[keys].iloc[first].assign(n_cells=counts[kept])
    for name in table.columns.difference(keys, sort=False):
        if _is_constant(table[name].to_numpy(object), codes, first):
            groups[name] = table[name].iloc[first]
    groups.index = pd.Index(groups[keys].astype(str).agg("_".join, axis=1))
    for name in groups.columns[[isinstance(dtype, pd.CategoricalDtype) for dtype in groups.dtypes]]:
        groups[name] = groups[name].cat.remove_unused_categories()
    return groups, codes


def _is_constant(values: np.ndarray, codes: np.ndarray, first: np.ndarray) -> bool:
    # a column has one value in each group; missing values are a value
    some = codes >= 0
    same = values[first][codes[some]]
    return bool(np.all((values[some] == same) | (pd.isna(values[some]) & pd.isna(same))))


def _sums(source: Source, codes: np.ndarray, groups: int, memory: int | None) -> np.ndarray:
    sums = np.zeros((groups, source.m))
    kept = np.flatnonzero(codes >= 0)
    members = scipy.sparse.csr_array((np.ones(kept.size), (codes[kept], kept)), shape=(groups, source.n))
    for place, Y in source.chunks(plan_pieces(source, memory)):
        rows, columns = (slice(None), place) if source.by_genes else (place, slice(None))
        check_values(Y, source.name)
        if any_value(Y) and not looks_like_counts(Y):
            raise ValueError(f"{source.name} holds values that are not counts; layer= names the raw counts")
        Y = to_numpy(Y) if on_device(Y) else Y
        product = members[:, rows] @ Y
        sums[:, columns] += product.toarray() if scipy.sparse.issparse(product) else product
    return sums
