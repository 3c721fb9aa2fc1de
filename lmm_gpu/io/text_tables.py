"""Text tables of cells and genes: every column is read as text and becomes numbers only where no value changes."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .broken_files import limited, reading
from .files import TABLES, separator_of, suffix_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
#: Words that programs write for a missing number. In a column of texts they are levels like any other.
MISSING_WORDS = frozenset({"NA", "N/A", "n/a", "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "#N/A"})
#: A number as programs write it: no leading zeros (007), no plus sign, no bare exponent (1E1).
_NUMBER = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+)(?:[eE][+-]\d+)?|-?[iI]nf")
_INTEGER = re.compile(r"-?\d{1,18}")
#: Separators of columns, and their names in messages.
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_TRUTHS = ({"True", "False"}, {"TRUE", "FALSE"})


def read_obs(path: Path) -> pd.DataFrame:
    """Read the table of the cells.

    A first column of unique texts, or without a name, labels the rows. A column becomes numbers only if every value
    can be written back as it was; numeric columns are named in one log line. Empty fields are missing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read as a table.
    """
    suffix_of(path, TABLES)
    check_exists(path)
    with reading(path):
        texts = _read_texts(path)
    first = texts.columns[0]
    unnamed = first == ""  # row names of R's write.csv, or the index of pandas' to_csv
    labels = texts[first]
    if unnamed:
        texts = texts.drop(columns=first)
    table = texts.copy()
    for name in texts.columns:
        table[name] = _typed(texts[name], f"{path}: column {name!r}")
    if unnamed or (_is_unique(labels) and not _is_number_column(labels)):
        table.index = labels.to_numpy()
    _log_types(table, path)
    return table


def read_genes_by_cells(path: Path) -> tuple[np.ndarray, list[str] | None, list[str]]:
    """Read a text table of numbers with a header of gene names and perhaps a first column of cell names.

    Returns
    -------
    values : array (n, m)
    cells : list of str or None
    genes : list of str

    Raises
    ------
    ValueError
        If it cannot be read, or a value is no number.
    """
    import pandas as pd

    with reading(path):
        with opened_text(path) as file:
            genes = _header_of(file.readline(), path)
            form = {"sep": separator_of(path), "header": None, "low_memory": False, "converters": {0: str}}
            table: pd.DataFrame = pd.read_csv(file, **form)  # type: ignore[call-overload]
        if len(genes) == table.shape[1] - 1:  # R's write.table gives the row names no header
            genes = ["", *genes]
        if len(genes) != table.shape[1]:
            raise ValueError(f"its header has {len(genes)} columns, its rows have {table.shape[1]}")
        cells, first = None, table.iloc[:, 0]  # as text, so that the cell 007 keeps its name
        numbers = pd.to_numeric(first, errors="coerce")
        if genes[0] == "" or (numbers.isna() & ~first.isin({"", *MISSING_WORDS})).any():
            cells, genes, table = first.tolist(), genes[1:], table.iloc[:, 1:]
        else:
            table.isetitem(0, numbers.to_numpy(float))
    texts = [gene for gene, dtype in zip(genes, table.dtypes, strict=True) if not pd.api.types.is_numeric_dtype(dtype)]
    refuse_text_columns(texts, path)
    return table.to_numpy(np.float64, na_value=np.nan), cells, genes


def refuse_text_columns(names: Sequence[Hashable], source: str | Path) -> None:
    """Refuse columns of a matrix that are not numbers."""
    if names:
        raise ValueError(
            f"{source} has columns that are not numbers ({', '.join(map(str, names[:5]))}): keep only genes in it, and "
            "pass what describes the cells as obs"
        )


def read_names(path: Path) -> list[list[str]]:
    """Read the lines of a file of names, split at tabs: genes, features.tsv or barcodes.tsv, also as .gz.

    Raises
    ------
    ValueError
        If it cannot be read as UTF-8 text.
    """
    with reading(path), opened_text(path) as file:
        text = file.read().decode("utf-8-sig")
    return [line.strip().split("\t") for line in text.splitlines() if line.strip()]


@contextmanager
def opened_text(path: Path) -> Iterator[BinaryIO]:
    """Open a text file, decompressed if it is gzip; reading more than fits into memory raises ValueError."""
    with open(path, "rb") as raw:
        is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
        yield limited(gzip.GzipFile(fileobj=raw) if is_gzip else raw)


def with_plain_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert columns of objects that hold nothing but numbers to float64, with one log line.

    Such columns come from joined tables or filled holes; as they are, each number would become a level.
    """
    columns = [name for name, values in frame.items() if values.dtype == object and _holds_numbers(values)]
    if not columns:
        return frame
    logger.info("obs columns %s contain numbers as objects: they are taken as numeric", ", ".join(map(str, columns)))
    return frame.assign(**{str(name): frame[name].astype(float) for name in columns})


def check_exists(path: Path) -> None:
    """Refuse a path that does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: check the spelling; relative paths start at {Path.cwd()}")


def _read_texts(path: Path) -> pd.DataFrame:
    import pandas as pd

    _check_header(path)
    with opened_text(path) as file:
        table = pd.read_csv(file, sep=separator_of(path), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if not isinstance(table.index, pd.RangeIndex):  # R's write.table gives the row names no header
        table = table.reset_index(names="")
    empty = table == ""
    if empty.iloc[:, -1].any():  # pandas fills short rows with empty fields
        _refuse_short_rows(path)
    table = table.mask(empty)
    return table.rename(columns={name: "" for name in table.columns[:1] if str(name).startswith("Unnamed:")})


def _check_header(path: Path) -> None:
    """Refuse a header that has a name twice, as pandas would rename the second column, or is split otherwise."""
    with opened_text(path) as file:
        names = _header_of(next((line for line in file if line.strip()), b""), path)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"its header has several columns named {', '.join(twice)}: rename or drop all but one")


def _header_of(line: bytes, path: Path) -> list[str]:
    """Return the names of a header; one whose columns are separated by something else is refused."""
    text, expected = line.decode("utf-8-sig"), separator_of(path)
    names = next(csv.reader([text], delimiter=expected), [])
    for separator, name in _SEPARATORS.items() if len(names) == 1 else ():
        if separator != expected and len(next(csv.reader([text], delimiter=separator), [])) > 1:
            raise ValueError(
                f"its columns are separated by {name}, but its ending stands for {_SEPARATORS[expected]}: save it with "
                f"{_SEPARATORS[expected]}" + ("" if separator != "\t" else ", or rename it to .tsv")
            )
    return names


def _refuse_short_rows(path: Path) -> None:
    """Refuse rows with fewer fields than the header, such as the last one of an incomplete copy."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with opened_text(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            rows = (row for row in csv.reader(text, delimiter=separator_of(path)) if row)
            fields = len(next(rows, []))
            short = [number for number, row in enumerate(rows, start=1) if len(row) < fields]
    finally:
        csv.field_size_limit(limit)
    if short:
        raise ValueError(f"{len(short)} of its rows have fewer fields than its header (first: row {short[0]})")


def _is_unique(labels: pd.Series) -> bool:
    return bool(labels.is_unique and not labels.isna().any())


def _is_number_column(texts: pd.Series) -> bool:
    return bool(len(texts)) and all(_NUMBER.fullmatch(text) for text in texts)


def _typed(texts: pd.Series, name: str) -> pd.Series:
    """Convert a column of texts to truth values, integers or floats if every text can be written back as it was."""
    import pandas as pd

    distinct = texts.dropna().unique().tolist()
    if any(set(distinct) <= truths for truths in _TRUTHS) and distinct and not texts.isna().any():
        return texts.str.lower() == "true"
    numbers = [text for text in distinct if text not in MISSING_WORDS]
    missing = sorted(set(distinct) & MISSING_WORDS)
    if not numbers or not all(map(_NUMBER.fullmatch, numbers)) or not _are_distinct(numbers):
        if missing:
            logger.info(
                "%s has the texts %s as levels; leave fields empty where a value is missing", name, ", ".join(missing)
            )
        if not distinct:
            return texts.astype(float)
        return texts
    if missing:
        logger.info("%s is numeric: %s are taken as missing", name, ", ".join(missing))
    if len(numbers) == len(distinct) and not texts.isna().any() and all(map(_INTEGER.fullmatch, numbers)):
        return texts.astype(np.int64)
    values = {text: float(text) for text in numbers}
    return pd.Series(texts.map(values).to_numpy(float), texts.index)


def _are_distinct(numbers: Sequence[str]) -> bool:
    """Tell whether different texts are different numbers, which 1.1 and 1.10 are not."""
    return len({float(text) for text in numbers}) == len(numbers)


def _holds_numbers(values: pd.Series) -> bool:
    distinct = values.dropna()
    return bool(len(distinct)) and all(isinstance(x, Real) and not isinstance(x, (bool, np.bool_)) for x in distinct)


def _log_types(table: pd.DataFrame, path: Path) -> None:
    numeric = [str(name) for name, values in table.items() if values.dtype.kind in "if"]
    if numeric:
        logger.info("%s: numeric columns are %s; every other column is read as text", path, ", ".join(numeric))
