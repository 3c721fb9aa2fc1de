"""Folders of zarr: missing chunks and links, which zarr would read as zeros or follow anywhere.

zarr leaves out chunks that are all zero, so a missing file is no proof of an incomplete copy. Chunks of a sparse matrix
or of texts cannot be all zero; in tables, some can.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.optional import require
from .broken_files import reading

logger = logging.getLogger(__name__)
_ADVICE = "the copy is incomplete; copy it again"


def open_zarr(path: Path) -> Any:
    """Open a folder of zarr (version 2 or 3) for reading.

    Raises
    ------
    ValueError
        If zarr is missing, it is none, or it has links that lead out of it.
    """
    zarr = require("zarr", "reading .zarr")
    with reading(path):
        _refuse_links(path)
        return zarr.open_group(path, mode="r")


def _refuse_links(path: Path) -> None:
    root = os.path.realpath(path)
    for folder, folders, files in os.walk(root):
        for name in itertools.chain(folders, files):
            place = os.path.join(folder, name)
            if os.path.islink(place) and not os.path.realpath(place).startswith(root + os.sep):
                raise ValueError(f"{os.path.relpath(place, root)} is a link out of the folder: copy what it points to")


def missing_chunks(array: Any) -> list[tuple[int, ...]]:
    """Return the positions in the grid of chunks that a zarr array in a folder has no file for; none of HDF5."""
    files = chunk_files(array)
    if files is None:
        return []
    grid = [range(-(-size // step)) for size, step in zip(array.shape, _stored_chunks(array), strict=True)]
    return [place for place in itertools.product(*grid) if not os.path.exists(files(place))]


def _stored_chunks(array: Any) -> tuple[int, ...]:
    return tuple(array.shards or array.chunks) if getattr(array, "shards", None) else tuple(array.chunks)


def chunk_files(array: Any) -> Any:
    """Return a function from the position of a chunk to its file; None for other stores than local folders."""
    root = getattr(getattr(array, "store", None), "root", None)
    metadata: Any = getattr(array, "metadata", None)
    if not isinstance(root, Path) or not hasattr(metadata, "encode_chunk_key"):
        return None
    base = root / array.path
    return lambda place: base / metadata.encode_chunk_key(place)


def check_zarr_sparse(group: Any, indptr: np.ndarray) -> None:
    """Refuse a sparse matrix of which chunks are missing.

    A chunk of indices may be missing if all of its entries are the first of their rows.

    Raises
    ------
    ValueError
        With the array.
    """
    stored = int(indptr[-1])
    for name in ("indptr", "data", "indices") if stored else ():
        for place in missing_chunks(group[name]):
            step = _stored_chunks(group[name])[0]
            lo, hi = place[0] * step, min(place[0] * step + step, stored)
            if name == "indices" and np.isin(np.arange(lo, hi), indptr).all():
                continue
            raise ValueError(f"{group[name].path} has no chunk {place[0]}: {_ADVICE}")


def report_missing_chunks(array: Any) -> None:
    """Warn of a dense matrix of which chunks are missing: zarr leaves out those that hold its fill value alone."""
    missing = missing_chunks(array) if hasattr(array, "chunks") else []
    if missing:
        logger.warning(
            "%s has no file for %d of its chunks (first: %s), which are read as %s; compare the copy if in doubt",
            array.path, len(missing), missing[0], array.fill_value,
        )  # fmt: skip


def check_zarr_table(table: Any) -> None:
    """Check the columns of obs or var for missing chunks.

    Refused are texts without a chunk, and categories of which every code is missing though there are several. One log
    line names the other columns that lack chunks, and what is read instead: zarr's fill value, as anndata reads them.
    Left out of it are the codes of one category, and the mask of a column that may have missing values but has none.
    """
    lacking = []
    for array, part, levels in _columns(table):
        missing = missing_chunks(array)
        total = -(-array.shape[0] // _stored_chunks(array)[0]) if array.shape else 1
        if not missing or not array.size:
            continue
        is_whole = len(missing) == total
        if getattr(array.dtype, "kind", "O") not in "biufc" or (part == "codes" and levels > 1 and is_whole):
            raise ValueError(f"{array.path} has no chunk {missing[0]}: {_ADVICE}, or remove unused categories")
        if not (is_whole and part in ("codes", "mask")):
            lacking.append(f"{array.path} ({len(missing)} of {total} chunks, read as {array.fill_value})")
    if lacking:
        logger.warning(
            "chunks are missing of %s: zarr leaves out those of zeros; compare the copy if in doubt", ", ".join(lacking)
        )


def _columns(table: Any) -> Iterator[tuple[Any, str, int]]:
    """Yield the arrays of a table, with the name of those that are a part of a column, and its number of categories."""
    if not hasattr(table, "members"):  # zarr 2, whose stores do not tell where chunks are
        return
    for _, item in table.members():
        if not hasattr(item, "members"):
            yield item, "", 0
            continue
        levels = item["categories"].shape[0] if "categories" in item else 0
        for name, part in item.members():
            if not hasattr(part, "members"):
                yield part, name, levels
