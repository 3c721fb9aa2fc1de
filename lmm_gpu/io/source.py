"""Cells x genes values from memory or from a file, in chunks, with the table that describes the cells."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import Array, entered
from ..backend.late_imports import is_scipy_sparse
from ..backend.sparse import some_rows
from .broken_files import IN_MEMORY, check_size, reading
from .cell_tables import aligned, table_of
from .found import Found, Selection
from .memory_sparse import MemoryCSC, cells_of_genes, part_of
from .readers import find_values, read_features
from .sparse_checks import as_csr, canonical

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
#: Memory that the name of a cell or gene takes, about.
_LABEL_BYTES = 64


@dataclass(frozen=True, eq=False)
class Source:
    """A matrix of n cells x m genes and the table that describes its cells; made by `open_source`.

    A context manager: leaving it closes the file that the matrix is read from, if there is one.

    Attributes
    ----------
    matrix
        Stored cells x stored features: anything whose ``[lo:hi]`` gives rows; read it through `chunks`.
    obs
        (n rows) One row per cell, in the order of the matrix.
    features
        (m,) Names of the genes.
    name
        Name of the matrix in messages: its path, if it has one.
    kept
        (stored cells,) bool: cells of this source; None for all.
    features_kept
        (stored features,) bool: genes of this source; None for all.
    layer
        Layer that the matrix is, "raw" for raw; None for X and for data without layers.
    """

    matrix: Array = field(repr=False)
    obs: pd.DataFrame = field(repr=False)
    features: tuple[str, ...] = field(repr=False)
    name: str
    _files: ExitStack = field(repr=False)
    kept: np.ndarray | None = field(default=None, repr=False)
    features_kept: np.ndarray | None = field(default=None, repr=False)
    layer: str | None = None

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
        """True if the matrix is read in chunks of genes, as one that is stored by columns (CSC)."""
        return bool(getattr(self.matrix, "by_genes", False))

    @property
    def in_memory(self) -> bool:
        """True if chunks are parts of arrays in memory, as they are: making one takes no time."""
        matrix = self.matrix
        array = isinstance(matrix, (np.ndarray, MemoryCSC)) or is_scipy_sparse(matrix)
        return array and self.kept is None and self.features_kept is None

    def where(self, kept: np.ndarray) -> Source:
        """Return the same source with the cells where `kept` (n,) is True; categories without cells are dropped."""
        obs = self.obs[kept].copy()
        for name in obs.columns[[str(dtype) == "category" for dtype in obs.dtypes]]:
            obs[name] = obs[name].cat.remove_unused_categories()
        return replace(self, obs=obs, kept=_narrowed(self.kept, kept))

    def chunks(self, pieces: int | Sequence[slice], *, canonical: bool = True) -> Iterator[tuple[slice, Any]]:
        """Yield the matrix in chunks of rows, in order; in chunks of columns if `by_genes`.

        Parameters
        ----------
        pieces
            Stored rows (columns) per chunk, where the last chunk holds what is left; or the slices to read.
        canonical
            Check the indices of sparse values, add up duplicates and convert them to CSR. False leaves this to the
            caller, as `lmm_gpu.io.sparse_checks.canonical` does it.

        Yields
        ------
        place
            Position of the chunk among the n cells (m genes).
        values
            (cells, m) or (n, genes) as they are stored: `scipy.sparse.csr_array` if sparse (csc_array if `by_genes` and
            not `canonical`), else an array.

        Raises
        ------
        ValueError
            If `pieces` is not a positive number, the file cannot be read any further, or a sparse index lies outside
            the matrix.
        """
        along, across = (self.features_kept, self.kept) if self.by_genes else (self.kept, self.features_kept)
        before = None if along is None else np.concatenate([[0], np.cumsum(along)])  # (stored rows + 1,)
        for piece in self.slices(pieces) if isinstance(pieces, int) else pieces:
            place = piece if before is None else slice(int(before[piece.start]), int(before[piece.stop]))
            if place.start < place.stop or before is None:
                with reading(self.name), entered(self.matrix):
                    values = self._read(piece, None if along is None else along[piece], across, canonical)
                yield place, values

    def _read(self, piece: slice, along: np.ndarray | None, across: np.ndarray | None, as_canonical: bool) -> Any:
        """Read stored rows (columns if `by_genes`) and keep those of `along` and `across`."""
        matrix = self.matrix
        in_rows = is_scipy_sparse(matrix) and matrix.format == "csr"
        values = part_of(matrix, piece) if in_rows else matrix[piece]  # (cells, m) or (n, genes)
        values = values.compute() if hasattr(values, "compute") else values  # dask
        rows, columns = (across, along) if self.by_genes else (along, across)
        in_columns = is_scipy_sparse(values) and values.format == "csc"
        if as_canonical or (columns is not None and not in_columns):  # SciPy trusts the indices that it looks for
            values, in_columns = canonical(values), False
        if rows is not None:
            values = cells_of_genes(values, rows) if in_columns else some_rows(values, rows)
        return values if columns is None else some_columns(values, columns)

    def slices(self, size: int) -> Iterator[slice]:
        """Cut the rows of the matrix (its columns if `by_genes`) into pieces of at most `size`."""
        if size < 1:
            raise ValueError(f"got chunks of {size} cells, expected 1 or more")
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
    use_raw: bool = False,
    features: Sequence[str] | str | Path | None = None,
    feature_types: str | Sequence[str] | None = None,
) -> Source:
    """Open cells x genes values, from memory or from a file, for reading in chunks.

    Parameters
    ----------
    data
        An AnnData; a path to .h5ad, .zarr, .h5 of CellRanger, .mtx or .mtx.gz, or a folder such as
        ``filtered_feature_bc_matrix`` (streamed, never loaded whole; a .mtx has to be sorted by rows or columns, its
        cells may be either, and barcodes.tsv and features.tsv beside it are read), .npz (a SciPy sparse matrix or one
        NumPy array), .csv, .csv.gz or .tsv (a header of gene names, perhaps a first column of cell names); a matrix
        (NumPy, SciPy sparse, DataFrame; CuPy's arrays and cupyx.scipy.sparse, PyTorch's and JAX's arrays, which stay
        on their device); or a pair (matrix, obs).
    obs
        One row per cell: a DataFrame or a path to .csv or .tsv. Only AnnData, .h5ad and .zarr have their own. Where
        both the values and obs have names of the cells, obs is aligned by them.
    layer
        Layer to read instead of X, for AnnData, .h5ad and .zarr; "raw" is raw unless a layer has this name.
    use_raw
        Read raw instead of X, for AnnData, .h5ad and .zarr.
    features
        Names of the genes, or a path to a text file with one per line or CellRanger's features.tsv. By default those
        that `data` has, else Gene1, Gene2, ...
    feature_types
        Types of features to keep, such as "Gene Expression" or ["Gene Expression", "Antibody Capture"]. By default
        only gene expression of CellRanger's files, and all features of AnnData.

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
    name = str(data) if isinstance(data, (str, Path)) else IN_MEMORY
    with ExitStack() as files:
        found = find_values(data, Selection(layer, use_raw, feature_types), files)
        if len(found.matrix.shape) != 2:
            raise ValueError(f"{name} has shape {tuple(found.matrix.shape)}: it needs two axes, cells x genes")
        check_size(_LABEL_BYTES * sum(found.matrix.shape), f"{name} of shape {tuple(found.matrix.shape)}")
        table = table_of(obs, found, name)
        if found.either_way and len(table) == found.matrix.shape[1] != found.matrix.shape[0]:
            logger.info("%s has one column for each row of obs: its columns are taken as cells", name)
            found = replace(found, matrix=as_csr(found.matrix.T))
        table = aligned(table, found, name)
        genes = _gene_names(features, found, name)
        kept, layer = found.features_kept, "raw" if use_raw else layer
        return Source(found.matrix, table, genes, name, files.pop_all(), features_kept=kept, layer=layer)


def some_columns(values: Any, kept: np.ndarray) -> Any:
    """Return the columns of NumPy or SciPy values where `kept` is True."""
    return values[:, np.flatnonzero(kept)]


def _narrowed(before: np.ndarray | None, kept: np.ndarray) -> np.ndarray:
    """Combine a selection of what is stored with a selection among what it keeps."""
    if before is None:
        return kept
    stored = before.copy()
    stored[before] = kept
    return stored


def _gene_names(features: Sequence[str] | str | Path | None, found: Found, name: str) -> tuple[str, ...]:
    if isinstance(features, (str, Path)):
        features = read_features(Path(features))
    stored, kept = int(found.matrix.shape[1]), found.features_kept
    given = found.genes if features is None else features
    names = [f"Gene{gene}" for gene in range(1, stored + 1)] if given is None else [str(gene) for gene in given]
    m = stored if kept is None else int(np.count_nonzero(kept))
    if kept is not None and len(names) == stored:
        names = [names[i] for i in np.flatnonzero(kept)]
    if len(names) != m:
        raise ValueError(f"got {len(names)} gene names for the {m} columns of {name}: expected one for each")
    if len(set(names)) < len(names):
        twice = sorted({gene for gene, count in Counter(names).items() if count > 1})
        raise ValueError(
            f"{len(twice)} gene names of {name} appear more than once ({', '.join(twice[:5])}): make them unique, in "
            "AnnData with var_names_make_unique()"
        )
    return tuple(names)
