"""TODO docstring."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..backend.optional import require

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def suffix_of(path: str | Path, known: Iterable[str]) -> str:
    """Find out which of the known endings a path has."""
    for suffix in known:
        if str(path).lower().endswith(suffix):
            return suffix
    raise ValueError(f"cannot tell from its ending what {path} is: it should be one of {', '.join(known)}")


def separator_of(path: str | Path) -> str:
    """Find out what stands between the columns of a text table."""
    return "\t" if suffix_of(path, TABLES).startswith(".tsv") else ","


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
    except OSError as error:
        if error.filename is not None and str(error.filename) == str(part):
            error.filename = str(target)  # what the caller knows
        raise
    finally:
        part.unlink(missing_ok=True)
