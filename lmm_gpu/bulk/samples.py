"""Counts of samples as callers pass them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..backend.optional import require


def as_samples(data: Any) -> Any:
    """Return samples as an AnnData.

    Parameters
    ----------
    data : AnnData, path or pair (counts, obs)
        Counts of samples x genes; the obs table of a pair has one row per sample, in the same order.

    Raises
    ------
    ValueError
        For any other object, or if counts and obs do not describe the same samples.
    """
    if hasattr(data, "obs") and hasattr(data, "layers"):
        return data
    anndata = require("anndata", "voom and dream")
    if isinstance(data, (str, Path)):
        return anndata.read_h5ad(data)
    if not (isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], pd.DataFrame)):
        kind = type(data).__name__
        raise ValueError(f"got {kind}, expected counts of samples x genes: AnnData, .h5ad or a pair (counts, obs)")
    counts, obs = data
    labelled = isinstance(counts, pd.DataFrame)
    if len(np.shape(counts)) != 2 or np.shape(counts)[0] != len(obs):
        shape = " x ".join(map(str, np.shape(counts)))
        raise ValueError(f"obs has {len(obs)} rows, the counts are {shape}: expected samples x genes; transpose them")
    if labelled and list(counts.index) != list(obs.index):
        raise ValueError("the row names of counts and obs differ: give both the same samples in the same order")
    names = counts.columns.astype(str) if labelled else [f"Gene{j + 1}" for j in range(np.shape(counts)[1])]
    values = counts.to_numpy(float) if labelled else counts
    return anndata.AnnData(values, obs.set_axis(obs.index.astype(str)), pd.DataFrame(index=names))


def layer_of(samples: Any, layer: str | None) -> Any:
    """Return X, or a layer of the samples; raise ValueError if there is no such layer."""
    if layer is None:
        return samples.X
    if layer not in samples.layers:
        known = ", ".join(samples.layers) or "none"
        raise ValueError(f"layer={layer!r}: the samples have no such layer (layers: {known})")
    return samples.layers[layer]
