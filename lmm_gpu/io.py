"""Cells in, tables out: whatever holds the values is read in chunks of rows, and no file is ever left half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from .readers import TABLES, Found, as_csr, find_values, read_obs, reading, require, separator_of, suffix_of


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
        What to call the matrix in a message: its path, if it has one.
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
            with reading(self.name):
                values = self.matrix[rows]  # (cells, m)
                values = values.compute() if hasattr(values, "compute") else values  # dask
            yield rows, as_csr(values)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


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
        found = find_values(data, layer, files)
        if len(found.matrix.shape) != 2:
            raise ValueError(f"{name} has shape {tuple(found.matrix.shape)}: it needs two axes, cells x genes")
        table = _matching_obs(obs, found, name)
        return Source(found.matrix, table, _gene_names(features, found, name), name, files.pop_all())


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
    suffix = check_table_path(path)
    with replacing(path) as part:
        if suffix == ".parquet":
            frame.to_parquet(part, engine="pyarrow")
        else:
            index = not isinstance(frame.index, pd.RangeIndex)
            compression: Literal["gzip"] | None = "gzip" if suffix.endswith(".gz") else None
            frame.to_csv(part, sep=separator_of(path), index=index, compression=compression)


def check_table_path(path: str | Path) -> str:
    """Return the ending of a table to be written, refused if it is unknown or a package for it is missing."""
    suffix = suffix_of(path, (*TABLES, ".parquet"))
    if suffix == ".parquet":
        require("pyarrow", "writing .parquet", "pip install pyarrow, or write .csv.gz instead")
    return suffix


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
    with replacing(path) as part:
        part.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path in the same folder to write to; it takes the place of `path` if all went well, else it goes."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _matching_obs(obs: pd.DataFrame | str | Path | None, found: Found, name: str) -> pd.DataFrame:
    """Give the table of the cells, refused if it is not about the rows of the matrix."""
    table = read_obs(Path(obs)) if isinstance(obs, (str, Path)) else obs
    if table is None and found.cells is not None and found.cells.shape[1]:
        table = found.cells
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{name} needs a table that describes its cells: pass obs=, a DataFrame or a path to .csv")
    n, m = found.matrix.shape
    if len(table) != n:
        advice = "transpose it, cells are the rows" if len(table) == m else "both need one row per cell"
        raise ValueError(f"obs has {len(table)} rows, but {name} has {n} rows and {m} columns: {advice}")
    if found.cells is not None:
        _check_labels(found.cells.index, table.index, name)
    return table


def _check_labels(rows: pd.Index, labels: pd.Index, name: str) -> None:
    """Compare the names of the rows with those of obs, where both have names."""
    if isinstance(rows, pd.RangeIndex) or isinstance(labels, pd.RangeIndex):
        return
    wrong = np.flatnonzero(rows.astype(str) != labels.astype(str))
    if len(wrong):
        pairs = ", ".join(f"{rows[row]} / {labels[row]}" for row in wrong[:3])
        moved = set(rows.astype(str)) == set(labels.astype(str))
        advice = "sort obs like the matrix, with obs.loc" if moved else "pass the obs of these cells"
        raise ValueError(f"{len(wrong)} of {len(rows)} cells have other names in {name} / in obs ({pairs}): {advice}")


def _gene_names(features: Sequence[str] | str | Path | None, found: Found, name: str) -> tuple[str, ...]:
    m = found.matrix.shape[1]
    if isinstance(features, (str, Path)):
        with reading(features):
            lines = Path(features).read_text(encoding="utf-8").splitlines()
        features = [line.strip() for line in lines if line.strip()]
    given = found.genes if features is None else features
    names = [f"Gene{gene}" for gene in range(1, m + 1)] if given is None else [str(gene) for gene in given]
    if len(names) != m:
        raise ValueError(f"got {len(names)} gene names for the {m} columns of {name}: wanted one for each")
    twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{len(twice)} gene names of {name} appear more than once ({', '.join(twice[:5])}): make them unique, in "
            "AnnData with var_names_make_unique()"
        )
    return tuple(names)
