"""What the values may come in: objects in memory and files, each turned into a matrix that gives rows.

No statistics and no checks of what belongs together: that is `lmm_gpu.io`. Nothing here unpickles.
"""

from __future__ import annotations

import gzip
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
from scipy import sparse

from ..backend.arrays import entered, is_sparse_on_device
from ..backend.optional import require
from .files import TABLES, separator_of, suffix_of
from .hdf5_sparse import StoredSparse
from .matrix_market import MarketMatrix, read_header

logger = logging.getLogger(__name__)
STORES = (".h5ad", ".zarr")
MATRICES = (*STORES, ".h5", ".npz", ".mtx", ".mtx.gz", *TABLES)
# what libraries raise when a file is not what its ending says, or ends too early
BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Found:
    """Values, and what came with them: the cells' table (perhaps only their labels) and the genes' names."""

    matrix: Any  # (n, m)
    cells: pd.DataFrame | None = None
    genes: Sequence[Any] | pd.Index | None = None
    either_way: bool = False  #: cells may be the columns: so they are in the .mtx of CellRanger


def find_values(data: Any, layer: str | None, files: ExitStack) -> Found:
    """Find the values in an AnnData, a matrix, a DataFrame or a path; `files` takes what must be closed later."""
    if isinstance(data, (str, Path)):
        return _open_path(Path(data), layer, files)
    if hasattr(data, "obs") and hasattr(data, "var_names"):  # an AnnData, known without importing anndata
        _check_layer(layer, data.layers, data.X is not None, "the AnnData")
        matrix = data.X if layer is None else data.layers[layer]
        return Found(_by_rows(matrix, "the AnnData"), data.obs, data.var_names)
    _refuse_layer(layer)
    if isinstance(data, pd.DataFrame):
        return _from_frame(data, "the matrix")
    if not hasattr(data, "shape"):
        raise ValueError(f"got {type(data).__name__}, wanted an AnnData, a path, a matrix, or a pair (matrix, obs)")
    return Found(_by_rows(data, "the matrix"))


def read_obs(path: Path) -> pd.DataFrame:
    """Read the table of the cells; a first column of unique texts, or without a name, labels the rows."""
    suffix_of(path, TABLES)
    _check_exists(path)
    with reading(path):
        table = pd.read_csv(path, sep=separator_of(path), low_memory=False)
    first = table.columns[0]
    if first.startswith("Unnamed"):  # row names of R's write.csv, or the index of pandas' to_csv
        return table.set_index(first).rename_axis(None)
    if table[first].is_unique and not pd.api.types.is_numeric_dtype(table[first].dtype):
        return table.set_index(first, drop=False).rename_axis(None)
    return table


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Turn whatever a reader says about a broken file into one sentence with the file's name."""
    try:
        yield
    except BROKEN as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"cannot read {name}: {reason}; is the file complete, and what its ending says?") from error


def as_csr(values: Any) -> Any:
    """Turn SciPy's sparse matrices of any format into csr_array, CuPy's into its CSR; leave all else alone."""
    if is_sparse_on_device(values):
        with entered(values):
            return values.tocsr()
    is_sparse: bool = sparse.issparse(values)
    return sparse.csr_array(values) if is_sparse else values


def _open_path(path: Path, layer: str | None, files: ExitStack) -> Found:
    suffix = suffix_of(path, MATRICES)
    _check_exists(path)
    if suffix in STORES:
        return _open_store(path, suffix, layer, files)
    _refuse_layer(layer)
    if suffix in TABLES:
        return _read_matrix_table(path)
    if suffix == ".npz":
        return Found(_by_rows(_read_npz(path), path))
    if suffix == ".h5":
        return _open_10x(path, files)
    with reading(path):
        return Found(_open_market(path), either_way=True)


def _open_10x(path: Path, files: ExitStack) -> Found:
    """Open what CellRanger 3 and later writes: genes x cells by columns, which is cells x genes by rows."""
    h5py = require("h5py", "reading .h5")
    with reading(path):
        group = files.enter_context(h5py.File(path, "r")).get("matrix")
        if group is None or "features" not in group:
            raise ValueError("it has no matrix/features: it is not what CellRanger 3 and later write")
        cells = pd.DataFrame(index=_texts(group["barcodes"]))
        names, ids = (_texts(group["features"][column]) for column in ("name", "id"))
        matrix = StoredSparse(group, tuple(group["shape"][()][::-1]))
    return Found(matrix, cells, unique_names(names, ids, path))


def _texts(dataset: Any) -> list[str]:
    return [text.decode("utf-8") for text in dataset[()].tolist()]


def unique_names(names: Sequence[str], ids: Sequence[str], path: Path | str) -> Sequence[str]:
    """Names of genes if they are unique, else their identifiers, with one line that says so."""
    if pd.Index(names).is_unique:
        return names
    logger.info("gene names of %s are not unique: its identifiers are used instead", path)
    return ids


def read_features(path: Path) -> Sequence[str]:
    """Read gene names, one per line; of CellRanger's features.tsv (identifier, name, type) the names if unique."""
    with reading(path):
        content = path.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    rows = [line.strip().split("\t") for line in text.splitlines() if line.strip()]
    if rows and all(len(row) > 1 for row in rows):
        return unique_names([row[1] for row in rows], [row[0] for row in rows], path)
    return ["\t".join(row) for row in rows]


def _open_market(path: Path) -> Any:
    header = read_header(path)
    if (header.layout, header.symmetry) == ("coordinate", "general") and header.field != "complex":
        matrix = MarketMatrix(path, header)
        if matrix.is_sorted:
            return matrix
        logger.info("%s is sorted neither by rows nor by columns: loading it whole", path)
    return _by_rows(scipy.io.mmread(path), path)


def _open_store(path: Path, suffix: str, layer: str | None, files: ExitStack) -> Found:
    """Open X or a layer without loading it; anndata itself would load the layers, the embeddings and the graphs."""
    elements = require("anndata.io", f"reading {suffix}")
    library = require({".h5ad": "h5py", ".zarr": "zarr"}[suffix], f"reading {suffix}")
    with reading(path):
        is_file = suffix == ".h5ad"
        store = files.enter_context(library.File(path, "r")) if is_file else library.open_group(path, mode="r")
        cells, genes = (elements.read_elem(store[key]) for key in ("obs", "var"))
        layers = list(store.get("layers", ()))
    _check_layer(layer, layers, "X" in store, path)
    with reading(path):
        stored = store["X" if layer is None else f"layers/{layer}"]
        return Found(_stored_matrix(stored), cells, genes.index)


def _stored_matrix(stored: Any) -> Any:
    """A dense dataset as it is, a sparse group by its encoding."""
    if not hasattr(stored, "keys"):
        return stored
    kind = str(stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format", "")))
    shape = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))
    if kind.removesuffix("_matrix") not in ("csr", "csc"):
        raise ValueError(f"it holds values as {kind or 'something unknown'}, not as an array, CSR or CSC")
    return StoredSparse(stored, tuple(shape), by_genes=kind.startswith("csc"))


def _read_npz(path: Path) -> Any:
    with reading(path), np.load(path, allow_pickle=False) as archive:
        if "format" in archive.files:
            return sparse.load_npz(path)
        arrays = {name: archive[name] for name in archive.files}
    if len(arrays) != 1:
        raise ValueError(
            f"{path} holds {len(arrays)} arrays ({', '.join(arrays)}), wanted one, cells x genes: save it with "
            "scipy.sparse.save_npz(path, matrix) or numpy.savez(path, matrix)"
        )
    return next(iter(arrays.values()))


def _read_matrix_table(path: Path) -> Found:
    with reading(path):
        form: dict[str, Any] = {"sep": separator_of(path), "header": None}
        # the header is read apart, for pandas renames genes that appear twice
        genes = pd.read_csv(path, nrows=1, dtype=str, keep_default_na=False, **form).iloc[0].tolist()
        table = pd.read_csv(path, skiprows=1, low_memory=False, **form)
        if len(genes) == table.shape[1] - 1:  # R's write.table gives the row names no header
            genes = ["", *genes]
        if genes[0] == "" or not pd.api.types.is_numeric_dtype(table[0].dtype):
            table, genes = table.set_index(0), genes[1:]
        table.columns = pd.Index(genes)
    return _from_frame(table, path)


def _from_frame(frame: pd.DataFrame, name: str | Path) -> Found:
    texts = [str(gene) for gene, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if texts:
        raise ValueError(
            f"{name} has columns that are not numbers ({', '.join(texts[:5])}): leave only genes in it, and put what "
            "describes the cells in obs"
        )
    genes = None if isinstance(frame.columns, pd.RangeIndex) else frame.columns
    return Found(frame.to_numpy(np.float64, na_value=np.nan), pd.DataFrame(index=frame.index), genes)


def _by_rows(matrix: Any, name: str | Path) -> Any:
    """Make sure that rows, or columns, are cheap to take."""
    if hasattr(matrix, "to_memory") and hasattr(matrix, "group"):  # of a backed AnnData
        with reading(name):
            return _stored_matrix(matrix.group)
    return np.asarray(matrix) if isinstance(matrix, np.ndarray) else as_csr(matrix)  # np.matrix, views of AnnData


def _check_layer(layer: str | None, layers: Iterable[str], has_x: bool, name: str | Path) -> None:
    known = ", ".join(layers) or "none"
    if layer is None and not has_x:
        raise ValueError(f"{name} has no X: name the layer to read with layer= (layers: {known})")
    if layer is not None and layer not in layers:
        raise ValueError(f"{name} has no layer {layer!r} (layers: {known})")


def _refuse_layer(layer: str | None) -> None:
    if layer is not None:
        raise ValueError(f"got layer={layer!r}, but only AnnData, .h5ad and .zarr have layers: leave it out")


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: check the spelling; relative paths start at {Path.cwd()}")
