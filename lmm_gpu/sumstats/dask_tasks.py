"""What runs on a worker of dask: a chunk of cells meets its rows of the design, a block of genes is fitted.

Nothing here changes what it is given, so that any task can run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from ..backend.arrays import Array, entered, flag_indices, to_numpy
from ..backend.optional import require
from ..backend.sparse import some_rows, stored_values
from ..io.broken_files import reading
from ..io.hdf5_sparse import read_part
from ..io.sparse_checks import canonical
from .accumulator import gene_counts
from .centring import centre_of
from .products import products_of_chunk, row_totals
from .transform import Transform, check_still_counts, check_values


@dataclass(frozen=True)
class Rows:
    """What a chunk of cells meets where it lies: its rows of the design, and how its values are fitted."""

    name: str
    start: int  # the first cell, of those that are taken
    kept: np.ndarray | None = None  # (stored cells,), which cells are taken; None for all
    X: Any = None  # (cells, p)
    Z: Any = None  # (cells, q)
    transform: Transform = field(default_factory=Transform)
    looked_at: bool = False  # the transform was chosen by the looks of other cells
    counting: bool = False  # for a filter of genes

    def checked(self, Y: Any) -> Any:
        """Values of the cells that are taken, as they are stored."""
        Y = canonical(Y)
        Y = Y if self.kept is None else some_rows(Y, self.kept)
        check_values(Y, self.name, self.start)
        return Y

    def values(self, Y: Any) -> Any:
        """Values to be fitted (cells, genes), of those that were `checked`."""
        if self.looked_at and self.transform.name:
            check_still_counts(Y, self.name, f"cells {self.start} to {self.start + Y.shape[0] - 1}")
        return self.transform.apply(Y)


def read(name: Path, key: str, sparse: tuple[int, bool] | None, place: np.ndarray) -> Any:
    """Rows, or columns of a matrix that is `sparse` and stored by these; of its places only theirs are read."""
    piece = opened(place)
    with reading(name), ExitStack() as files:
        if name.is_dir():
            stored = require("zarr", "reading .zarr").open_group(name, mode="r")[key]
        else:
            stored = files.enter_context(require("h5py", "reading .h5ad").File(name, "r"))[key]
        if sparse is None:
            return stored[piece]
        return read_part(stored, *sparse, stored["indptr"][piece.start : piece.stop + 1])


def products(rows: Rows, centre: Array, Y: Any) -> dict[str, Array]:
    """Products of a chunk, and what a filter of genes counts in it."""
    stored = rows.checked(Y)
    Y = rows.values(stored)
    if scipy.sparse.issparse(Y) and flag_indices(centre).size:  # among chunks that are dense
        Y = Y.toarray()
    return products_of_chunk(rows.X, rows.Z, Y, centre) | (gene_counts(stored) if rows.counting else {})


def centre(rows: Rows, constant: Array | None, Y: Any) -> Array:
    """Where a first chunk says that its genes are to be summed up about (m,)."""
    found = centre_of(rows.values(rows.checked(Y)), constant)
    return np.zeros(Y.shape[1]) if found is None else to_numpy(found)


def totals(rows: Rows, Y: Any) -> dict[str, Array]:
    """Total counts of the cells of a chunk."""
    return {"total": row_totals(rows.checked(Y))}  # (cells,)


def telling(rows: Rows, Y: Any) -> np.ndarray:
    """One value that tells whether these are counts: one that no count is, if there is any, else the largest."""
    values = to_numpy(stored_values(rows.checked(Y))).reshape(-1)
    if values.dtype.kind == "f" and (wrong := (values < 0) | (values != np.floor(values))).any():
        return values[wrong][:1]
    if values.size == 0:
        return values
    return values[[values.argmin() if values.min() < 0 else values.argmax()]]


def boxed(function: Callable[..., Any], Y: Any, *given: np.ndarray) -> np.ndarray:
    """What `function` makes of a chunk and of what is given besides, as a chunk of an array of objects."""
    with entered(Y):
        return column([function(*map(opened, given), Y)])  # (1, 1)


def opened(box: Any) -> Any:
    """What is in the box of `boxed`; anything else as it is."""
    return box[0, 0] if isinstance(box, np.ndarray) and box.dtype == object else box


def add(parts: Sequence[Any]) -> dict[str, Array]:
    """Sum of what chunks add; none of them is changed."""
    first, *others = map(opened, parts)
    total = {name: values.copy() for name, values in first.items()}
    for part in others:
        for name, values in part.items():
            total[name] += values
    return total


def column(items: Sequence[Any]) -> np.ndarray:
    """Objects as a table (items, 1), which dask cuts and hands out as it does chunks."""
    table = np.empty((len(items), 1), dtype=object)  # (items, 1)
    for i, item in enumerate(items):
        table[i, 0] = item
    return table
