"""Matrix Market files with their names beside them: barcodes.tsv and features.tsv (or genes.tsv), also as .gz."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .broken_files import check_size, reading
from .files import MARKET
from .found import Found, kept_features
from .matrix_market import MarketMatrix, read_header
from .sparse_checks import as_csr
from .text_tables import read_names

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
_NAMES = (".tsv", ".tsv.gz", ".txt", ".txt.gz")


def market_file_of(folder: Path) -> Path:
    """Return the matrix.mtx or matrix.mtx.gz of a folder such as ``filtered_feature_bc_matrix``.

    Raises
    ------
    ValueError
        If the folder has neither.
    """
    for suffix in MARKET:
        if (folder / f"matrix{suffix}").is_file():
            return folder / f"matrix{suffix}"
    inside = folder / "filtered_feature_bc_matrix"
    hint = f"did you mean {inside}?" if inside.is_dir() else "pass a file, or a folder as CellRanger writes it"
    raise ValueError(f"{folder} is a folder without matrix.mtx or matrix.mtx.gz: {hint}")


def open_market(path: Path, feature_types: str | Sequence[str] | None) -> Found:
    """Open a .mtx or .mtx.gz file with the barcodes and features that lie beside it.

    Raises
    ------
    ValueError
        If a file cannot be read, or the files beside the matrix have other lengths than its rows and columns.
    """
    with reading(path):
        matrix = _matrix_of(path)
    barcodes, features = _beside(path, ("barcodes",)), _beside(path, ("features", "genes"))
    cells = None if barcodes is None else [row[0] for row in read_names(barcodes)]
    rows = None if features is None else read_names(features)
    oriented = _oriented(matrix, cells, rows, path, [file for file in (barcodes, features) if file is not None])
    if rows is None:
        return Found(
            matrix if oriented is None else oriented,
            _labels(cells),
            features_kept=kept_features(None, feature_types, path),
            either_way=oriented is None,
        )
    types = [row[2] for row in rows] if all(len(row) > 2 for row in rows) else None
    names = feature_names(rows, path if features is None else features)
    assert oriented is not None
    return Found(oriented, _labels(cells), names, kept_features(types, feature_types, path))


def feature_names(rows: Sequence[Sequence[str]], path: Path) -> Sequence[str]:
    """Return the names of genes: of features.tsv (identifier, name, type) the second column if it is unique."""
    if rows and all(len(row) > 1 for row in rows):
        return unique_names([row[1] for row in rows], [row[0] for row in rows], path)
    return ["\t".join(row) for row in rows]


def unique_names(names: Sequence[str], ids: Sequence[str], path: Path | str) -> Sequence[str]:
    """Return names of genes if they are unique, else their identifiers, with a log line."""
    if len(set(names)) == len(names):
        return names
    logger.info("gene names of %s are not unique: its identifiers are used instead", path)
    return ids


def _matrix_of(path: Path) -> Any:
    header = read_header(path)
    if (header.layout, header.symmetry) == ("coordinate", "general") and header.field != "complex":
        matrix = MarketMatrix(path, header)
        if matrix.is_sorted:
            return matrix
        logger.info("%s is sorted neither by rows nor by columns: it is loaded into memory as a whole", path)
    import scipy.io

    if header.layout == "array":
        check_size(8 * header.sizes[0] * header.sizes[1], "it")
    return as_csr(scipy.io.mmread(path))


def _beside(path: Path, kinds: Sequence[str]) -> Path | None:
    """Find the file of names that belongs to a matrix: matrix.mtx and barcodes.tsv, a_matrix.mtx and a_barcodes.tsv."""
    for file in _candidates(path, kinds):
        if file.is_file():
            return file
    return None


def _candidates(path: Path, kinds: Sequence[str]) -> Iterator[Path]:
    stem = path.name.lower().removesuffix(".gz").removesuffix(".mtx")
    stem = path.name[: len(stem)]
    prefixes = [f"{stem}.", f"{stem}_", ""]
    if stem.lower().endswith("matrix"):
        prefixes.insert(0, stem[: -len("matrix")])
    for prefix in prefixes:
        for kind in kinds:
            for suffix in _NAMES:
                yield path.with_name(f"{prefix}{kind}{suffix}")


def _oriented(
    matrix: Any, cells: Sequence[str] | None, features: Sequence[Any] | None, path: Path, files: Sequence[Path]
) -> Any:
    """Return the matrix as cells x features by the numbers of names; None if there are no names."""
    if cells is None and features is None:
        return None
    rows, columns = matrix.shape
    counts = [None if names is None else len(names) for names in (features, cells)]
    if all(count in (None, size) for count, size in zip(counts, (rows, columns), strict=True)):
        return as_csr(matrix.T)
    if all(count in (None, size) for count, size in zip(counts, (columns, rows), strict=True)):
        return matrix
    found = " and ".join(
        f"{count:,} {what}" for count, what in zip(counts, ("features", "barcodes"), strict=True) if count
    )
    raise ValueError(
        f"{path} has {rows:,} rows and {columns:,} columns, but {', '.join(file.name for file in files)} beside it "
        f"{'have' if len(files) > 1 else 'has'} {found}: use files of one run, or move these away"
    )


def _labels(names: Sequence[str] | None) -> pd.DataFrame | None:
    import pandas as pd

    return None if names is None else pd.DataFrame(index=np.array(names, dtype=object))
