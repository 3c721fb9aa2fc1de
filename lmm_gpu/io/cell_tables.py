"""The table of the cells meets the rows of the matrix: the same cells, in the same order."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .found import Found
from .text_tables import read_obs, with_plain_numbers

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def table_of(obs: pd.DataFrame | str | Path | None, found: Found, name: str) -> pd.DataFrame:
    """Return the table of the cells: the one that was passed, else the one that came with the values.

    Raises
    ------
    ValueError
        If there is none.
    """
    table = read_obs(Path(obs)) if isinstance(obs, (str, Path)) else obs
    if table is None and found.cells is not None and found.cells.shape[1]:
        table = found.cells
    if not (hasattr(table, "columns") and hasattr(table, "iloc")):
        labelled = found.cells is not None and not name.endswith((".h5", "_matrix", ".mtx", ".mtx.gz"))
        turned = " (its own has no columns: are its rows genes? then transpose it)" if labelled else ""
        raise ValueError(
            f"{name} needs a table that describes its cells{turned}: pass obs=, a DataFrame or a path to .csv"
        )
    assert table is not None
    return with_plain_numbers(table)


def aligned(table: pd.DataFrame, found: Found, name: str) -> pd.DataFrame:
    """Return the table in the order of the rows of the matrix, by the names of the cells where both have them.

    Raises
    ------
    ValueError
        If the table has another number of cells, or other cells.
    """
    n, m = found.matrix.shape
    if len(table) != n:
        advice = "transpose it, cells are the rows" if len(table) == m else "both need one row per cell"
        raise ValueError(f"obs has {len(table)} rows, but {name} has {n} rows and {m} columns: {advice}")
    if found.cells is None or found.cells is table or _are_numbers(found.cells.index):
        return table
    rows = found.cells.index.astype(str)
    if _are_numbers(table.index):
        return _aligned_by_column(table, rows, name)
    labels = table.index.astype(str)
    if labels.equals(rows):
        return table
    if not labels.is_unique or not rows.is_unique or set(labels) != set(rows):
        _refuse(rows, labels, name)
    logger.warning("obs has the cells of %s in another order: its rows are sorted by their names", name)
    return table.iloc[labels.get_indexer(rows)]


def _aligned_by_column(table: pd.DataFrame, rows: pd.Index, name: str) -> pd.DataFrame:
    """Sort a table without names by the column that has the names of the cells, if there is one."""
    import pandas as pd

    for column in table.columns:
        if table[column].ndim != 1 or table[column].dtype.kind in "biufc" or not table[column].is_unique:
            continue
        labels = pd.Index(table[column].astype(str))
        if set(labels) == set(rows):
            if not labels.equals(rows):
                logger.warning("obs has the cells of %s in another order: its rows are sorted by %r", name, column)
            return table.iloc[labels.get_indexer(rows)]
    logger.info("obs has no names of the cells: its rows are taken in the order of %s", name)
    return table


def _are_numbers(labels: pd.Index) -> bool:
    """Tell whether labels are auto-generated: the row numbers, from 0 or 1."""
    import pandas as pd

    if isinstance(labels, pd.RangeIndex) or not len(labels):
        return True
    if str(labels[0]) not in ("0", "1"):
        return False
    start = int(str(labels[0]))
    return all(str(label) == str(number) for number, label in enumerate(labels, start))


def _refuse(rows: pd.Index, labels: pd.Index, name: str) -> None:
    for what, index in (("obs", labels), (name, rows)):
        if not index.is_unique and set(rows) == set(labels):
            twice = index[index.duplicated()][0]
            raise ValueError(
                f"{what} has the cell {twice} more than once, so that obs cannot be aligned: name each once"
            )
    wrong = np.flatnonzero(~labels.isin(rows))
    if not len(wrong):
        wrong = np.flatnonzero(rows != labels)
    pairs = ", ".join(f"{rows[row]} / {labels[row]}" for row in wrong[:3])
    raise ValueError(
        f"{len(wrong)} of {len(rows)} cells have other names in {name} / in obs ({pairs}): pass the obs of these cells"
    )
