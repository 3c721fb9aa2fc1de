"""Cells in, tables out: whatever holds the values is read in chunks of rows, and no file is ever left half-written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..backend.arrays import entered
from ..backend.sparse import is_sparse, some_rows
from .readers import Found, as_csr, find_values, read_features, read_obs, reading

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
        What to call the matrix in a message: its path, if it has one.
    kept
        (rows of the matrix,): which of them are cells of this source; None for all.
    """

    matrix: Any = field(repr=False)
    obs: pd.DataFrame = field(repr=False)
    features: tuple[str, ...] = field(repr=False)
    name: str
    _files: ExitStack = field(repr=False)
    kept: np.ndarray | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def m(self) -> int:
        """Number of genes."""
        return len(self.features)

    @property
    def by_genes(self) -> bool:
        """Whether the matrix is read in chunks of genes, as one that is stored by columns (CSC)."""
        return bool(getattr(self.matrix, "by_genes", False))

    def where(self, kept: np.ndarray) -> Source:
        """The same source with some of its cells only: those where `kept` (n,) is True; categories without cells go."""
        obs = self.obs[kept].copy()
        for name in obs.columns[[isinstance(dtype, pd.CategoricalDtype) for dtype in obs.dtypes]]:
            obs[name] = obs[name].cat.remove_unused_categories()
        stored = kept
        if self.kept is not None:
            stored = self.kept.copy()  # (stored cells,)
            stored[self.kept] = kept
        return replace(self, obs=obs, kept=stored)

    def chunks(self, pieces: int | Sequence[slice]) -> Iterator[tuple[slice, Any]]:
        """Yield the matrix in chunks of rows, in order; in chunks of columns if `by_genes`.

        Parameters
        ----------
        pieces
            Stored rows (columns) per chunk, where the last chunk holds what is left; or the slices to read.

        Yields
        ------
        place
            Where the chunk lies among the n cells (m genes).
        values
            (cells, m) or (n, genes) as they are stored: `scipy.sparse.csr_array` if sparse, else an array.

        Raises
        ------
        ValueError
            If `pieces` is not a positive number, or the file cannot be read any further.
        """
        before = None if self.kept is None else np.concatenate([[0], np.cumsum(self.kept)])  # (stored cells + 1,)
        for piece in self.slices(pieces) if isinstance(pieces, int) else pieces:
            place = piece
            if before is not None and not self.by_genes:
                place = slice(int(before[piece.start]), int(before[piece.stop]))
            with reading(self.name), entered(self.matrix):
                values = self.matrix[piece]  # (cells, m) or (n, genes)
                values = without_duplicates(values.compute() if hasattr(values, "compute") else values)  # dask
                if self.kept is not None:
                    values = some_rows(values, self.kept if self.by_genes else self.kept[piece])
            yield place, values

    def slices(self, size: int) -> Iterator[slice]:
        """Cut the rows of the matrix (its columns, if `by_genes`) into pieces of at most `size`."""
        if size < 1:
            raise ValueError(f"got chunks of {size} cells, wanted 1 or more")
        end = self.matrix.shape[1 if self.by_genes else 0]
        return (slice(start, min(start + size, end)) for start in range(0, end, size))

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
        An AnnData; a path to .h5ad, .zarr, .h5 of CellRanger, .mtx or .mtx.gz (streamed, never loaded whole; a .mtx
        has to be sorted by rows or columns, and its cells may be either), .npz (a SciPy sparse matrix or one NumPy
        array), .csv, .csv.gz or .tsv (a header of gene names, perhaps a first column of cell names); a matrix (NumPy,
        SciPy sparse, DataFrame; CuPy's arrays and cupyx.scipy.sparse, PyTorch's and JAX's arrays, which stay on their
        device); or a pair (matrix, obs).
    obs
        One row per cell: a DataFrame or a path to .csv or .tsv. Only AnnData, .h5ad and .zarr bring their own.
    layer
        Layer to read instead of X, for AnnData, .h5ad and .zarr.
    features
        Names of the genes, or a path to a text file with one per line or CellRanger's features.tsv. By default those
        that `data` has, else Gene1, Gene2, ...

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
        table = _table_of(obs, found, name)
        if found.either_way and len(table) == found.matrix.shape[1] != found.matrix.shape[0]:
            logger.info("%s has one column for each row of obs: its columns are taken as cells", name)
            found = replace(found, matrix=as_csr(found.matrix.T))
        _check_obs(table, found, name)
        return Source(found.matrix, table, _gene_names(features, found, name), name, files.pop_all())


def without_duplicates(values: Any) -> Any:
    """SciPy's sparse matrices as csr_array, where what is stored for one place in two parts is added up."""
    values = as_csr(values)
    if is_sparse(values) and not values.has_canonical_format:
        values = values.copy()  # rows of a matrix in memory are views
        values.sum_duplicates()
    return values


def _table_of(obs: pd.DataFrame | str | Path | None, found: Found, name: str) -> pd.DataFrame:
    """Give the table of the cells: the one that was passed, else the one that came with the values."""
    table = read_obs(Path(obs)) if isinstance(obs, (str, Path)) else obs
    if table is None and found.cells is not None and found.cells.shape[1]:
        table = found.cells
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{name} needs a table that describes its cells: pass obs=, a DataFrame or a path to .csv")
    return table


def _check_obs(table: pd.DataFrame, found: Found, name: str) -> None:
    """Refuse a table that is not about the rows of the matrix."""
    n, m = found.matrix.shape
    if len(table) != n:
        advice = "transpose it, cells are the rows" if len(table) == m else "both need one row per cell"
        raise ValueError(f"obs has {len(table)} rows, but {name} has {n} rows and {m} columns: {advice}")
    if found.cells is not None:
        _check_labels(found.cells.index, table.index, name)


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
        features = read_features(Path(features))
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
