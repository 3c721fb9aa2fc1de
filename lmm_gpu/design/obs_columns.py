"""Columns of obs as formulas see them: float64 numbers, or categories without unused levels."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import pandas as pd

from .safe_code import require_column

logger = logging.getLogger("lmm_gpu")
#: A column of whole numbers with so few distinct values may have been meant as a factor: one log line asks.
_FEW_VALUES = range(3, 13)


class ObsColumns:
    """Checked columns of a table of cells; each is read, and its log lines are written, once.

    Parameters
    ----------
    obs : DataFrame
        One row per cell, n rows.

    Raises
    ------
    ValueError
        From its methods: for an unknown or repeated column, missing or infinite values, dates, or mixed types.

    Examples
    --------
    >>> columns = ObsColumns(pd.DataFrame({"age": [31, 45], "donor": ["D1", "D2"]}))
    >>> columns.variable("age").tolist(), columns.variable("donor").cat.categories.tolist()
    ([31.0, 45.0], ['D1', 'D2'])
    """

    def __init__(self, obs: pd.DataFrame):
        if not len(obs):
            raise ValueError("obs has no rows: it needs one for each cell")
        self.obs = obs
        self.truths: set[str] = set()  #: variables that are True or False in obs
        self._variables: dict[str, pd.Series] = {}

    @property
    def names(self) -> Collection[str]:
        """Names of the columns of obs."""
        return list(self.obs.columns)

    def __len__(self) -> int:
        return len(self.obs)

    def variable(self, name: str) -> pd.Series:
        """Return a column for the fixed part of a formula: float64, or category with the levels that have cells."""
        if name not in self._variables:
            self._variables[name] = self._read(name)
        return self._variables[name]

    def raw(self, name: str) -> pd.Series:
        """Return a column as it is in obs, with rows numbered from 0 and without missing values."""
        column = self.obs[require_column(name, self.names)]
        if column.ndim != 1:
            raise ValueError(f"obs has {column.shape[1]} columns named {name!r}: rename or drop all but one")
        # cells may share a label, and formulaic aligns by label
        column = pd.Series(column.array, name=name, copy=False)
        missing = column.isna().to_numpy(bool)
        self.refuse_rows(f"obs column {name!r}", missing, "missing", "fill them in, or drop these cells")
        return column

    def groups(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Return the level of each cell (n,) and the names of the levels, in order, for a grouping column.

        A grouping column is never a number: whole numbers stored as floating-point numbers are named without the
        ".0", so that donor 7 has one name in every file.
        """
        column = self.raw(name)
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.cat.remove_unused_categories()
        try:
            codes, labels = pd.factorize(column, sort=not _is_mixed(column))
        except TypeError as error:  # lists, dicts, arrays
            raise ValueError(
                f"obs column {name!r} has values that cannot name groups ({error}): make them text, as with "
                f"obs[{name!r}].astype(str)"
            ) from error
        names = [_level_name(label) for label in labels]
        if len(set(names)) < len(names):
            twice = next(text for text in names if names.count(text) > 1)
            raise ValueError(
                f"obs column {name!r} has several values that are all written {twice!r}, such as a number and a text: "
                f"make them one type, as with obs[{name!r}].astype(str)"
            )
        return codes, names

    def refuse_rows(self, column: str, bad: np.ndarray, what: str, advice: str) -> None:
        """Raise a ValueError that counts the rows where `bad` (n,) is True and names the first of them."""
        if bad.any():
            first = ", ".join(map(str, self.obs.index[bad][:3]))
            raise ValueError(f"{column} is {what} in {bad.sum()} of {len(bad)} rows (first: {first}): {advice}")

    def _read(self, name: str) -> pd.Series:
        column = self.raw(name)
        if isinstance(column.dtype, pd.CategoricalDtype):
            return self._categories(name, column)
        if column.dtype == np.dtype(object):
            column = _numbers_of_objects(name, column)
        if pd.api.types.is_numeric_dtype(column.dtype):
            return self._numbers(name, column)
        if _is_date(column):
            raise ValueError(
                f"obs column {name!r} has dates or times ({column.dtype}): convert it to a number, such as days since "
                "the first one, or to text for a factor"
            )
        factor = self._categories(name, column.astype("category"))
        if _reads_as_numbers(factor.cat.categories):
            logger.info("obs column %r is text that reads as numbers, and is used as a factor", name)
        return factor

    def _numbers(self, name: str, column: pd.Series) -> pd.Series:
        if column.dtype.kind == "c":
            raise ValueError(f"obs column {name!r} has complex numbers: use their real and imaginary parts")
        if column.dtype.kind == "b":
            self.truths.add(name)
        values = column.to_numpy(dtype=np.float64)
        advice = "correct them, or drop these cells"
        self.refuse_rows(f"obs column {name!r}", ~np.isfinite(values), "infinite", advice)
        if column.dtype.kind in "iu":
            distinct = np.unique(values)
            if len(distinct) in _FEW_VALUES:
                logger.info(
                    "obs column %r has %d distinct whole numbers and is used as a number; C(%s) makes it a factor",
                    *(name, len(distinct), name),
                )
        return pd.Series(values, name=name)

    def _categories(self, name: str, column: pd.Series) -> pd.Series:
        used = column.cat.remove_unused_categories()
        unused = column.cat.categories.difference(used.cat.categories, sort=False)
        if len(unused):
            logger.info("obs column %r: categories without cells are dropped: %s", name, _listed(unused))
        if used.cat.ordered:
            logger.info(
                "obs column %r is ordered and coded by treatment contrasts; C(%s, contr.poly) has R's polynomials",
                *(name, name),
            )
        # as plain text: of categories in pandas' own string type formulaic would make columns of objects
        plain = used.cat.rename_categories(used.cat.categories.astype(object).tolist())
        return plain.cat.as_unordered().rename(name)


def complete_rows(names: Collection[str], obs: pd.DataFrame) -> np.ndarray:
    """Return True (n,) for the cells without missing values in any of the columns `names`; log what is left out.

    Raises
    ------
    ValueError
        If no cell is complete.

    Examples
    --------
    >>> complete_rows(["age"], pd.DataFrame({"age": [31.0, None], "donor": ["D1", None]})).tolist()
    [True, False]
    """
    complete = np.ones(len(obs), dtype=bool)
    for name in names:
        missing = obs.loc[:, name].isna().to_numpy(bool)
        if missing.any():
            logger.warning("%d of %d cells are left out: obs column %r is missing", missing.sum(), len(obs), name)
            complete &= ~(missing if missing.ndim == 1 else missing.any(axis=1))
    if len(obs) and not complete.any():
        raise ValueError(f"no cell has a value in all of the columns that the formula uses: {', '.join(names)}")
    return complete


def _numbers_of_objects(name: str, column: pd.Series) -> pd.Series:
    """Numbers or truth values in a column of objects as such; other columns as they are."""
    kind = pd.api.types.infer_dtype(column, skipna=False)
    if kind in ("string", "date", "datetime", "datetime64", "timedelta", "timedelta64", "period", "interval"):
        return column if kind in ("string", "interval") else pd.Series(pd.array(column.tolist()), name=name)
    if kind == "boolean":
        return column.astype(bool)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
        logger.info("obs column %r of type object has only numbers and is used as a number", name)
        return column.astype(np.float64)
    kinds = sorted({type(value).__name__ for value in column})
    raise ValueError(
        f"obs column {name!r} mixes values of the types {', '.join(kinds)}: make them all numbers, or all text with "
        f"obs[{name!r}].astype(str)"
    )


def _is_mixed(column: pd.Series) -> bool:
    # values of several types have no order
    return column.dtype == np.dtype(object) and pd.api.types.infer_dtype(column, skipna=False).startswith("mixed")


def _is_date(column: pd.Series) -> bool:
    return column.dtype.kind in "mM" or isinstance(column.dtype, (pd.PeriodDtype, pd.DatetimeTZDtype))


def _reads_as_numbers(labels: pd.Index) -> bool:
    try:
        return len(labels) > 2 and bool(np.isfinite([float(label) for label in labels]).all())
    except (TypeError, ValueError):
        return False


def _level_name(label: object) -> str:
    whole = isinstance(label, (float, np.floating)) and float(label).is_integer()
    return str(int(label)) if whole else str(label)  # type: ignore[call-overload]


def _listed(labels: pd.Index) -> str:
    shown = ", ".join(map(str, labels[:5]))
    return shown + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
