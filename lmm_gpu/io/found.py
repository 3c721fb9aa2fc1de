"""Values and what came with them, as the readers of the file formats return them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..backend.arrays import Array

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
GENES = "Gene Expression"


@dataclass(frozen=True, eq=False)
class Found:
    """A matrix of n cells x m features, perhaps with a table or the names of the cells and the names of the features.

    Attributes
    ----------
    matrix
        ``matrix[lo:hi]`` gives cells (features if it has ``by_genes``).
    cells
        Table of the cells; without columns if only their names are known.
    genes
        One name per feature.
    features_kept
        (m,) bool: features that enter; None for all.
    either_way
        The columns may be the cells, as in the .mtx of CellRanger.
    """

    matrix: Array
    cells: pd.DataFrame | None = None
    genes: Sequence[str] | None = None
    features_kept: np.ndarray | None = None
    either_way: bool = False


@dataclass(frozen=True)
class Selection:
    """The matrix to read of data that have several, and the features to keep.

    Attributes
    ----------
    layer
        Name of a layer; None for X.
    use_raw
        Read raw instead of X.
    feature_types
        Types of features to keep; None for gene expression alone in CellRanger's files, and for all elsewhere.
    """

    layer: str | None = None
    use_raw: bool = False
    feature_types: str | Sequence[str] | None = None

    def refuse_layers(self) -> None:
        """Refuse a layer, or raw, for data that have none."""
        if self.layer is not None:
            raise ValueError(f"got layer={self.layer!r}, but only AnnData, .h5ad and .zarr have layers: leave it out")
        if self.use_raw:
            raise ValueError("got use_raw=True, but only AnnData, .h5ad and .zarr have raw: leave it out")


def kept_features(
    types: Sequence[str] | None,
    wanted: str | Sequence[str] | None,
    name: str | Path,
    *,
    genes_only: bool = True,
) -> np.ndarray | None:
    """Choose features by their types.

    Parameters
    ----------
    types
        Type of each feature, such as "Gene Expression" or "Antibody Capture"; None if the data have none.
    wanted
        Types to keep; None for the default.
    name
        Name of the data for messages.
    genes_only
        By default keep gene expression alone; otherwise keep all, with a warning if there are several types.

    Returns
    -------
    array of bool (features,), or None for all

    Raises
    ------
    ValueError
        If `wanted` has types that the data have not, or there are several types but none is gene expression.
    """
    if types is None:
        if wanted is not None:
            raise ValueError(f"got feature_types={wanted!r}, but {name} has no feature types: leave it out")
        return None
    counts = Counter(types)
    if wanted is None:
        if len(counts) > 1 and not genes_only:
            logger.warning(
                "%s has features of several types, and all enter: %s; feature_types= chooses", name, _listed(counts)
            )
        if len(counts) < 2 or not genes_only:
            return None
        if GENES not in counts:
            raise ValueError(f"{name} has features of the types {_listed(counts)}: choose with feature_types=")
        others = Counter({kind: count for kind, count in counts.items() if kind != GENES})
        logger.warning(
            "%s: only the %d features of type %s enter, left out are %s; feature_types= chooses others",
            name, counts[GENES], GENES, _listed(others),
        )  # fmt: skip
        wanted = GENES
    chosen = {wanted} if isinstance(wanted, str) else set(wanted)
    if unknown := chosen - set(counts):
        raise ValueError(f"{name} has no features of type {', '.join(sorted(unknown))}: it has {_listed(counts)}")
    return np.array([kind in chosen for kind in types])


def types_of(var: pd.DataFrame) -> Sequence[str] | None:
    """Return the column ``feature_types`` of var, which scanpy writes for CellRanger's files; None without it."""
    return [str(kind) for kind in var["feature_types"]] if "feature_types" in var else None


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in counts.most_common(10))
