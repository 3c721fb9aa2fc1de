"""Cells in, tables out: whatever holds the values is read in chunks of rows, and no file is ever left half-written."""

from __future__ import annotations

import importlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import io as scipy_io
from scipy import sparse

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Source:
    """A matrix of n cells x m genes and the table that describes its cells; made by `open_source`.

    A context manager: leaving it closes the file that the matrix is read from, if there is one.

    Attributes
    ----------
    matrix
        (n, m): anything whose ``[lo:hi]`` gives rows; read it through `chunks`.
    obs
        One row per cell, in the order of the matrix.
    features
        One name per gene.
    name
        What to call the matrix in a message.
    """

    matrix: Any = field(repr=False)
    obs: pd.DataFrame = field(repr=False)
    features: tuple[str, ...] = field(repr=False)
    name: str
    _files: ExitStack = field(repr=False)

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def m(self) -> int:
        """Number of genes."""
        return len(self.features)

    def chunks(self, cells: int) -> Iterator[tuple[slice, Any]]:
        """Yield the matrix in chunks of rows, in order.

        Parameters
        ----------
        cells
            Rows per chunk; the last chunk holds what is left.

        Yields
        ------
        rows
            Where the chunk lies.
        values
            (cells, m) as they are stored: `scipy.sparse.csr_array` if sparse, else an array.

        Raises
        ------
        ValueError
            If `cells` is not a positive number, or the file cannot be read any further.
        """
        if cells < 1:
            raise ValueError(f"got chunks of {cells} cells, wanted 1 or more")
        for start in range(0, self.n, cells):
            rows = slice(start, min(start + cells, self.n))
            with _reading(self.name):
                values = self.matrix[rows]  # (cells, m)
                values = values.compute() if hasattr(values, "compute") else values  # dask
            yield rows, sparse.csr_array(values) if sparse.issparse(values) else values

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


@dataclass(frozen=True, eq=False)
class _Contents:
    """What a reader found: values, the cells' table (perhaps only their labels), and gene names if it has them."""

    matrix: Any  # (n, m)
    cells: pd.DataFrame | None = None
    genes: Sequence[str] | None = None


def open_source(
    data: Any,
    obs: pd.DataFrame | str | Path | None = None,
    *,
    layer: str | None = None,
    features: Sequence[str] | str | Path | None = None,
) -> Source:
    """Open cells x genes values, from memory or from a file, for reading in chunks.

    Parameters
    ----------
    data
        An AnnData; a path to .h5ad or .zarr (streamed, never loaded whole), .npz (a SciPy sparse matrix or one NumPy
        array), .mtx, .mtx.gz, .csv, .csv.gz or .tsv (a header of gene names, perhaps a first column of cell names);
        a matrix (NumPy, SciPy sparse, DataFrame); or a pair (matrix, obs).
    obs
        One row per cell: a DataFrame or a path to .csv or .tsv. Only AnnData, .h5ad and .zarr bring their own.
    layer
        Layer to read instead of X, for AnnData, .h5ad and .zarr.
    features
        Names of the genes, or a path to a text file with one per line. By default those that `data` has, else
        Gene1, Gene2, ...

    Returns
    -------
    Source
        n cells, m genes.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If a file cannot be read or is of an unknown kind, a package for reading it is missing, the layer does not
        exist, obs is missing or does not describe these cells, or gene names are too few, too many or not unique.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"donor": ["D1", "D1", "D2"]})
    >>> with open_source((np.arange(6).reshape(3, 2), obs)) as source:
    ...     for rows, values in source.chunks(2):
    ...         print(rows.start, rows.stop, values.tolist())
    0 2 [[0, 1], [2, 3]]
    2 3 [[4, 5]]
    >>> source.features
    ('Gene1', 'Gene2')
    """
    if isinstance(data, tuple) and len(data) == 2:
        data, obs = data
    name = str(data) if isinstance(data, (str, Path)) else "the matrix"
    with ExitStack() as files:
        contents = _contents(data, layer, files)
        if len(contents.matrix.shape) != 2:
            raise ValueError(f"{name} has shape {tuple(contents.matrix.shape)}: it needs two axes, cells x genes")
        table = _matching_obs(obs, contents, name)
        genes = _gene_names(features, contents, name)
        return Source(contents.matrix, table, genes, name, files.pop_all())
    raise AssertionError  # pragma: no cover (an ExitStack may swallow errors, says the type checker; this one does not)


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table as .csv, .csv.gz, .tsv or .parquet, replacing the file only once all of it is written.

    Parameters
    ----------
    frame
        Its index becomes the first column unless it is a plain 0, 1, 2, ...
    path
        Folders on the way are made.

    Raises
    ------
    ValueError
        If the ending is unknown, or .parquet is asked for and pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_table(pd.DataFrame({"variable": ["ISG15"], "log_fc": [2.5]}), f"{folder}/results/table.csv")
    ...     print(Path(folder, "results", "table.csv").read_text())
    variable,log_fc
    ISG15,2.5
    <BLANKLINE>
    """
    suffix = _suffix(path, TABLE_SUFFIXES)
    if suffix == ".parquet":
        _require("pyarrow", "writing .parquet", "pip install pyarrow, or write .csv.gz instead")
    index = not isinstance(frame.index, pd.RangeIndex)
    with _replacing(path) as part:
        if suffix == ".parquet":
            frame.to_parquet(part, engine="pyarrow")
        else:
            frame.to_csv(part, sep=_separator(suffix), index=index, compression="gzip" if suffix[-2:] == "gz" else None)


def write_json(obj: Any, path: str | Path) -> None:
    """Write an object as JSON, replacing the file only once all of it is written.

    Parameters
    ----------
    obj
        Dictionaries, lists, texts, numbers, None.
    path
        Folders on the way are made.

    Raises
    ------
    TypeError
        If `obj` holds anything that JSON cannot.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json({"cells": 3}, f"{folder}/run.json")
    ...     json.loads(Path(folder, "run.json").read_text())
    {'cells': 3}
    """
    with _replacing(path) as part:
        part.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replacing(path: str | Path) -> Iterator[Path]:
    """Give a path in the same folder to write to; it takes the place of `path` if all went well, else it goes."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _reading(name: str | Path) -> Iterator[None]:
    """Turn whatever a reader says about a broken file into one sentence with the file's name."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"cannot read {name}: {reason}; is the file complete, and what its ending says?") from error


def _require(module: str, purpose: str, advice: str = 'pip install "lmm-gpu[io]"') -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{purpose} needs the package {module.partition('.')[0]}: {advice}") from error


def _suffix(path: str | Path, known: Sequence[str]) -> str:
    for suffix in known:
        if str(path).lower().endswith(suffix):
            return suffix
    raise ValueError(f"cannot tell what {path} is by its ending: it should be one of {', '.join(known)}")


def _separator(suffix: str) -> str:
    return "\t" if ".tsv" in suffix else ","


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}: check the spelling and the folder ({Path.cwd()})")
    return Path(path)


def _contents(data: Any, layer: str | None, files: ExitStack) -> _Contents:
    if hasattr(data, "obs") and hasattr(data, "var_names"):  # an AnnData, known without importing anndata
        matrix = data.X if layer is None else _layer(data.layers, layer, "the AnnData")
        if matrix is None:
            raise ValueError(f"the AnnData has no X: name one of its layers ({', '.join(data.layers)}) as layer=")
        return _Contents(_in_memory(matrix), data.obs, data.var_names)
    suffix = None
    if isinstance(data, (str, Path)):
        suffix = _suffix(data, tuple(READERS))
        _existing(data)
        if suffix in (".h5ad", ".zarr"):
            return _read_store(Path(data), suffix, layer, files)
    if layer is not None:
        raise ValueError(f"got layer={layer!r}, but only AnnData, .h5ad and .zarr have layers: leave it out")
    if suffix is not None:
        return READERS[suffix](Path(data), suffix)
    if isinstance(data, pd.DataFrame):
        return _from_frame(data, "the matrix")
    if not hasattr(data, "shape"):
        raise ValueError(f"got {type(data).__name__}, wanted an AnnData, a path, a matrix, or a pair (matrix, obs)")
    return _Contents(_in_memory(data))
