"""Cells in memory with a weight for each gene, as a layer of an AnnData or a matrix: to their weighted sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..backend.arrays import to_numpy
from ..backend.late_imports import is_scipy_sparse, scipy
from ..backend.sparse import on_device
from .cell_model import CellModel, ReadOptions
from .gene_filter import GeneFilter
from .gene_weights import WeightedStats, weighted_statistics
from .transform import Transform, check_values, recognise


def gene_weights(data: Any, weights: Any) -> Any | None:
    """Weights (n, m) per observation and gene of `data`; None for weights (n,) that all genes share.

    A name is a column of obs if there is one, else a layer.
    """
    if isinstance(weights, str):
        layers = getattr(data, "layers", None)
        is_layer = layers is not None and weights in layers and weights not in data.obs
        return layers[weights] if layers is not None and is_layer else None
    two_axes = len(getattr(weights, "shape", ())) == 2
    if isinstance(weights, pd.DataFrame):
        return weights.to_numpy(float)
    return weights if two_axes else None


def summarize_weighted(model: CellModel, W: Any, options: ReadOptions) -> WeightedStats:
    """Accumulate the statistics of opened cells with a weight per gene.

    Parameters
    ----------
    model : CellModel
        n selected cells of a matrix that fits in memory.
    W : array or SciPy sparse matrix (n, m)
        Positive weights; of all stored rows, or of the selected ones.
    options : ReadOptions
        Of which transforms without size factors can be used.

    Raises
    ------
    ValueError
        For weights of another shape, and options that are not available.
    """
    if options.transform == "normalize" or options.genes != GeneFilter():
        raise ValueError(
            "transform='normalize' and gene filters are not available with a weight per gene: apply them first"
        )
    source = model.source
    kept = source.kept
    if kept is not None and W.shape[0] == kept.size:
        W = W[np.flatnonzero(kept)]
    parts = [to_numpy(part) if on_device(part) else part for _, part in source.chunks(max(source.n, source.m, 1))]
    stack = scipy.sparse if is_scipy_sparse(parts[0]) else np
    Y = stack.hstack(parts) if source.by_genes else stack.vstack(parts)
    check_values(Y, source.name)
    transform = Transform(options.transform) if options.transform else recognise(Y, options.is_counts)
    Y = transform.apply(Y, slice(0, source.n))
    return weighted_statistics(model.design, Y, W, source.features, transform.label)
