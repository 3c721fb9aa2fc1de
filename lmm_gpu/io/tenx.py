"""CellRanger's .h5 files: genes x cells by columns, which is cells x genes by rows.

Version 3 and later: group "matrix", whose features have types. Version 2: a group for each genome, with genes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .broken_files import reading
from .found import Found, kept_features
from .hdf5_files import check_hdf5_content, child, open_hdf5
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
        group = _matrix_of(store)
        check_hdf5_content(group)
        cells = pd.DataFrame(index=pd.Index(_texts(group["barcodes"]), dtype=object))
        types: list[str] | None = None
        if "features" in group:
            features = group["features"]
            names, ids = _texts(features["name"]), _texts(features["id"])
            types = _texts(features["feature_type"]) if "feature_type" in features else None
        else:
            names, ids = _texts(group["gene_names"]), _texts(group["genes"])
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


def _matrix_of(store: Any) -> Any:
    """Return the group of the matrix.

    Raises
    ------
    ValueError
        If there is none, or version 2 has those of several genomes.
    """
    if "matrix" in store and "features" in child(store, "matrix"):
        return child(store, "matrix")
    groups = [child(store, name) for name in store]
    genomes = [
        group for group in groups if hasattr(group, "keys") and {"genes", "gene_names", "barcodes"} <= set(group)
    ]
    if len(genomes) > 1:
        names = ", ".join(group.name.lstrip("/") for group in genomes)
        raise ValueError(f"it has the matrices of several genomes ({names}): save the one to fit as .h5ad")
    if not genomes:
        raise ValueError("it has neither matrix/features nor a genome with genes: it is not what CellRanger writes")
    return genomes[0]


def _texts(dataset: Any) -> list[str]:
    return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in dataset[()].tolist()]
