"""Dispatch from data to the reader of its kind: objects in memory and files. Nothing here unpickles.

Readers of files are imported when a file is opened.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .broken_files import IN_MEMORY, check_size, reading
from .files import MARKET, STORES, TABLES, suffix_of
from .found import Found, Selection, kept_features, types_of
from .memory_sparse import in_memory

if TYPE_CHECKING:
    import pandas as pd

MATRICES = (*STORES, ".h5", ".npz", *MARKET, *TABLES)


def find_values(data: Any, selection: Selection, files: ExitStack) -> Found:
    """Find the values in an AnnData, a matrix, a DataFrame or a path; `files` takes what must be closed later."""
    if isinstance(data, (str, Path)):
        return _open_path(Path(data), selection, files)
    if hasattr(data, "obs") and hasattr(data, "var_names"):  # an AnnData, recognised without importing anndata
        return _from_anndata(data, selection)
    selection.refuse_layers()
    kept_features(None, selection.feature_types, IN_MEMORY)
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return _from_frame(data, IN_MEMORY)
    if not hasattr(data, "shape"):
        raise ValueError(f"got {type(data).__name__}, expected an AnnData, a path, a matrix or a pair (matrix, obs)")
    return Found(_by_rows(data, IN_MEMORY))


def read_features(path: Path) -> Sequence[str]:
    """Read gene names, one per line; of CellRanger's features.tsv (identifier, name, type) the names if unique."""
    from .market_files import feature_names
    from .text_tables import read_names

    return feature_names(read_names(path), path)


def _open_path(path: Path, selection: Selection, files: ExitStack) -> Found:
    from .market_files import market_file_of, open_market
    from .stores import open_store
    from .tenx import open_10x
    from .text_tables import check_exists, read_genes_by_cells

    if path.is_dir() and path.suffix.lower() != ".zarr":
        path = market_file_of(path)
    suffix = suffix_of(path, MATRICES)
    check_exists(path)
    types = selection.feature_types
    if suffix in STORES:
        return open_store(path, suffix, selection, files)
    selection.refuse_layers()
    if suffix == ".h5":
        return open_10x(path, types, files)
    if suffix in MARKET:
        return open_market(path, types)
    kept_features(None, types, path)
    if suffix == ".npz":
        return Found(_by_rows(_read_npz(path), path))
    import pandas as pd

    values, cells, genes = read_genes_by_cells(path)
    return Found(values, None if cells is None else pd.DataFrame(index=pd.Index(cells, dtype=object)), genes)


def _from_anndata(data: Any, selection: Selection) -> Found:
    from .stores import check_layer

    use_raw = check_layer(
        selection.layer, data.layers, data.X is not None, data.raw is not None, selection.use_raw, "the AnnData"
    )
    from_layer = selection.layer is not None and not use_raw
    holder = data.raw if use_raw else data
    matrix = data.layers[selection.layer] if from_layer else holder.X
    kept = kept_features(types_of(holder.var), selection.feature_types, "the AnnData", genes_only=False)
    return Found(_by_rows(matrix, "the AnnData"), data.obs, [str(gene) for gene in holder.var_names], kept)


def _read_npz(path: Path) -> Any:
    from scipy import sparse

    with reading(path):
        _check_members(path)
        with np.load(path, allow_pickle=False) as archive:
            if "format" in archive.files:
                return sparse.load_npz(path)
            arrays = {name: archive[name] for name in archive.files[:2]}
            names = archive.files
    if len(names) != 1:
        raise ValueError(
            f"{path} holds {len(names)} arrays ({', '.join(names[:5])}), expected one, cells x genes: save it with "
            "scipy.sparse.save_npz(path, matrix) or numpy.savez(path, matrix)"
        )
    return arrays[names[0]]


def _check_members(path: Path) -> None:
    """Refuse an archive with arrays that memory cannot hold, or that are longer or shorter than they claim."""
    with zipfile.ZipFile(path) as archive:
        check_size(sum(member.file_size for member in archive.infolist()), "it")
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
                start = file.tell()
            size = int(np.prod([int(length) for length in shape], dtype=object)) * dtype.itemsize
            if not dtype.hasobject and size != member.file_size - start:
                raise ValueError(f"{member.filename} claims {size:,} bytes and has {member.file_size - start:,}")


def _from_frame(frame: pd.DataFrame, name: str | Path) -> Found:
    import pandas as pd

    from .text_tables import refuse_text_columns

    refuse_text_columns(
        [gene for gene, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)], name
    )
    genes = None if isinstance(frame.columns, pd.RangeIndex) else [str(gene) for gene in frame.columns]
    return Found(frame.to_numpy(np.float64, na_value=np.nan), pd.DataFrame(index=frame.index), genes)


def _by_rows(matrix: Any, name: str | Path) -> Any:
    """Return a matrix of which rows, or columns, are cheap to take."""
    if hasattr(matrix, "to_memory") and hasattr(matrix, "group"):  # of a backed AnnData
        from .stores import stored_matrix

        with reading(name):
            return stored_matrix(matrix.group)
    if isinstance(matrix, np.ndarray):  # np.matrix and views of AnnData as plain arrays
        return np.asarray(matrix)
    try:
        return in_memory(matrix)
    except ValueError as error:
        raise ValueError(f"{name} is no valid sparse matrix: {error}") from error
