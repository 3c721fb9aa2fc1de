"""CellRanger's .h5 files (version 3 and later): genes x cells by columns, which is cells x genes by rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .broken_files import reading
from .found import Found, kept_features
from .hdf5_files import check_hdf5_content, open_hdf5
from .hdf5_sparse import StoredSparse
from .market_files import unique_names


def open_10x(path: Path, feature_types: str | Sequence[str] | None, files: ExitStack) -> Found:
    """Open the matrix of a CellRanger .h5 file, gene expression alone unless `feature_types` says otherwise.

    Raises
    ------
    ValueError
        If the file cannot be read or is something else.
    """
    import pandas as pd

    store = open_hdf5(path, files)
    with reading(path):
        group = store.get("matrix")
        if group is None or "features" not in group:
            raise ValueError("it has no matrix/features: it is not what CellRanger 3 and later write")
        check_hdf5_content(group)
        cells = pd.DataFrame(index=pd.Index(_texts(group["barcodes"]), dtype=object))
        features = group["features"]
        names, ids = _texts(features["name"]), _texts(features["id"])
        types = _texts(features["feature_type"]) if "feature_type" in features else None
        shape = [int(size) for size in group["shape"][()]]
        if shape != [len(names), len(cells)] or len(ids) != len(names) or len(types or names) != len(names):
            raise ValueError(f"its shape is {shape}, but it has {len(names)} features and {len(cells)} barcodes")
        matrix = StoredSparse(group, (shape[1], shape[0]))
    kept = kept_features(types, feature_types, path)
    if kept is None or kept.all():
        return Found(matrix, cells, unique_names(names, ids, path))
    chosen = [names[i] for i in kept.nonzero()[0]]
    unique = len(set(chosen)) == len(chosen)
    return Found(matrix, cells, names if unique else ids, kept)


def _texts(dataset: Any) -> list[str]:
    return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in dataset[()].tolist()]
