"""AnnData files: .h5ad and .zarr, also as old versions of anndata and other programs write them."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.optional import require
from .broken_files import reading
from .found import Found, Selection, kept_features, types_of
from .hdf5_files import check_hdf5_content, child, open_hdf5, start_walker
from .hdf5_sparse import StoredSparse
from .stored_arrays import stored_array
from .zarr_files import check_zarr_sparse, check_zarr_table, open_zarr, report_missing_chunks

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def open_store(path: Path, suffix: str, selection: Selection, files: ExitStack) -> Found:
    """Open X, a layer or raw without loading it, and read obs and the names of var.

    anndata itself would load all layers, embeddings and graphs.

    Raises
    ------
    ValueError
        If the file cannot be read, holds links to other files, or has no such layer.
    """
    is_file = suffix == ".h5ad"
    if is_file:
        start_walker()  # meanwhile anndata is imported
    require("anndata.io", f"reading {suffix}")
    store = open_hdf5(path, files) if is_file else open_zarr(path)
    with reading(path):
        group, has_x = store.get("layers"), "X" in store
        layers = [str(name) for name in group] if hasattr(group, "keys") else []
        raw = next((form for form in ("raw/{}", "raw.{}") if form.format("X") in store), None)
    use_raw = check_layer(selection.layer, layers, has_x, raw is not None, selection.use_raw, path)
    with reading(path):
        place = raw if use_raw and raw is not None else "{}"
        key = place.format("X") if selection.layer is None or use_raw else f"layers/{selection.layer}"
        find, check = (child, check_hdf5_content) if is_file else (operator.getitem, check_zarr_table)
        obs, var, values = (find(store, name) for name in ("obs", place.format("var"), key))
        for table in (obs, var):
            check(table)
        if is_file:
            check_hdf5_content(values)
        extras = store.get("uns", {})
        cells, genes = read_frame(obs, extras), read_frame(var, extras)
        matrix = stored_matrix(values, (len(cells), len(genes)))
    kept = kept_features(types_of(genes), selection.feature_types, path, genes_only=False)
    return Found(matrix, cells, [str(gene) for gene in genes.index], kept)


def check_layer(
    layer: str | None, layers: Iterable[str], has_x: bool, has_raw: bool, use_raw: bool, name: str | Path
) -> bool:
    """Refuse a layer that does not exist; return whether raw is to be read.

    ``layer="raw"`` means raw unless there is a layer of this name.
    """
    layers = list(layers)
    known = ", ".join([*layers, *(["raw"] if has_raw and "raw" not in layers else [])]) or "none"
    if use_raw and layer not in (None, "raw"):
        raise ValueError(f"got use_raw=True and layer={layer!r}: pass one of them")
    if layer == "raw" and "raw" in layers and has_raw and not use_raw:
        logger.info("%s has raw and a layer of this name: the layer is read; use_raw=True reads raw", name)
    use_raw = use_raw or (layer == "raw" and "raw" not in layers and has_raw)
    if use_raw and not has_raw:
        raise ValueError(f"got use_raw=True, but {name} has no raw: leave it out, or name a layer (layers: {known})")
    if layer is None and not use_raw and not has_x:
        raise ValueError(f"{name} has no X: name the layer to read with layer= (layers: {known})")
    if layer is not None and not use_raw and layer not in layers:
        raise ValueError(f"{name} has no layer {layer!r} (layers: {known})")
    return use_raw


def stored_matrix(stored: Any, shape: tuple[int, int] | None = None) -> Any:
    """Open a dense dataset or a sparse group of HDF5 or zarr for reading in chunks.

    Parameters
    ----------
    stored
        Dataset, or group with data, indices and indptr.
    shape
        (cells, genes), for groups that do not state it.

    Raises
    ------
    ValueError
        If it is neither, or has another shape.
    """
    if not hasattr(stored, "keys"):
        if len(stored.shape) != 2 or (shape is not None and tuple(stored.shape) != shape):
            raise ValueError(f"its values have shape {tuple(stored.shape)}, but obs and var are {shape}")
        report_missing_chunks(stored)
        return stored_array(stored)
    kind = str(stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format", "")))
    given = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape", shape))
    if given is None or (shape is not None and tuple(int(size) for size in given) != shape):
        raise ValueError(f"its values have shape {given}, but obs and var are {shape}")
    kind = kind.removesuffix("_matrix") or _format_of(stored, given)
    if kind not in ("csr", "csc"):
        raise ValueError(f"it holds values as {kind or 'something unknown'}, not as an array, CSR or CSC")
    matrix = StoredSparse(stored, (int(given[0]), int(given[1])), by_genes=kind == "csc")
    check_zarr_sparse(stored, matrix.indptr)
    return matrix


def _format_of(stored: Any, shape: Any) -> str:
    """Infer CSR or CSC from the length of indptr, for files that do not state it."""
    fits = [
        kind for kind, size in zip(("csr", "csc"), shape, strict=True) if stored["indptr"].shape == (int(size) + 1,)
    ]
    return fits[0] if len(fits) == 1 else ""


def read_frame(stored: Any, extras: Any) -> pd.DataFrame:
    """Read obs or var.

    Parameters
    ----------
    stored
        A group with one dataset per column (anndata 0.7 and later, other programs), or a compound dataset (before).
    extras
        The group "uns", where anndata before 0.7 keeps the categories.

    Raises
    ------
    ValueError
        If it is no table.
    """
    from anndata.io import read_elem

    if not hasattr(stored, "keys"):
        return _read_compound(stored, extras)
    if str(stored.attrs.get("encoding-type", "")) == "dataframe":
        table: pd.DataFrame = read_elem(stored)
        return table
    return _read_columns(stored)


def _read_columns(group: Any) -> pd.DataFrame:
    """Read a table whose group or columns do not state their encoding."""
    import pandas as pd

    label = str(group.attrs.get("_index", "_index" if "_index" in group else "index"))
    order = [_text(name) for name in group.attrs.get("column-order", ())]
    names = order or [name for name in group if name not in (label, "__categories")]
    columns = {name: _read_column(group, name) for name in names}
    if label not in group:
        raise ValueError(f"{group.name} has no names of its rows ({label})")
    return pd.DataFrame(columns, index=pd.Index(_texts(group[label]), dtype=object))


def _read_column(group: Any, name: str) -> Any:
    from anndata.io import read_elem

    item = group[name]
    if hasattr(item, "keys"):
        if "encoding-type" in item.attrs or not {"codes", "categories"} <= set(item):
            return read_elem(item)
        return _categorical(item["codes"][()], item["categories"])
    old = group.get("__categories", {})
    if name in old:
        return _categorical(_values(item), old[name])
    return _values(item)


def _read_compound(dataset: Any, extras: Any) -> pd.DataFrame:
    import pandas as pd

    records = dataset[()]
    if records.dtype.names is None:
        raise ValueError(f"{dataset.name} is no table")
    label = next((name for name in ("index", "_index") if name in records.dtype.names), records.dtype.names[0])
    columns: dict[str, Any] = {}
    for name in records.dtype.names:
        if name == label:
            continue
        key = f"{name}_categories"
        columns[name] = _decoded(records[name])
        if key in extras and records.dtype[name].kind in "iu":
            columns[name] = _categorical(records[name], extras[key])
    return pd.DataFrame(columns, index=pd.Index(_decoded(records[label]).astype(str), dtype=object))


def _categorical(codes: np.ndarray, categories: Any) -> Any:
    import pandas as pd

    levels: Any = _values(categories)
    return pd.Categorical.from_codes(codes, levels)


def _values(dataset: Any) -> np.ndarray:
    return _decoded(np.atleast_1d(np.asarray(dataset[()])))


def _texts(dataset: Any) -> np.ndarray:
    return np.asarray([str(value) for value in _values(dataset)], dtype=object)


def _decoded(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "SO":
        return np.array([_text(value) for value in values.tolist()], dtype=object)
    return values


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value
