"""A folder of results, from which a run is shown and repeated: run.json says what was run, on what, and how it went."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from .._version import __version__, versions
from ..backend.optional import require
from ..results.lmm_fit import LMMFit
from ..sumstats.checkpoint import file_identity
from ..sumstats.summary_stats import SummaryStats

RECORD = "run.json"
RECORD_FORMAT = "lmm_gpu run"
RECORD_VERSION = 1
#: What can be asked for with --table.
TABLE_FORMATS = ("csv.gz", "parquet")
_TEXTS = ("variable", "contrast", "status")


def record_of(
    fit: LMMFit,
    data: Any,
    contrasts: Sequence[str] | None,
    options: Mapping[str, Any],
    timings: Mapping[str, float],
    identity: str,
) -> dict[str, Any]:
    """What run.json says of a run.

    Parameters
    ----------
    fit : LMMFit
    data : path
        What was fitted.
    contrasts : sequence of str, optional
        As they were given.
    options : mapping
        Every other option of `lmm-gpu fit` that was given, by the name of its parameter and in its own type.
    timings : mapping of str to float
        Seconds of each part.
    identity : str
        `data_identity` of the data, before they were read.
    """
    given = {"contrast": None if contrasts is None else list(contrasts)} | dict(options)
    return {
        "format": RECORD_FORMAT,
        "format_version": RECORD_VERSION,
        "data": _plain(data if isinstance(data, Path) else str(data)),
        "data_identity": identity,
        **about(fit.summary),
        "contrasts": list(contrasts or fit.summary.fixed_names),
        "df": options.get("df"),
        "options": {name: _plain(value) for name, value in given.items() if value is not None},
        "status": {str(word): int(count) for word, count in fit.status.value_counts().items()},
        "seconds": round(sum(timings.values()), 3),
        "timings": {part: round(seconds, 3) for part, seconds in timings.items()},
        "peak_memory": peak_memory(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def about(summary: SummaryStats) -> dict[str, Any]:
    """Model and size of summary statistics."""
    return {
        "formula": summary.formula,
        "transform": summary.transform,
        "cells": summary.n,
        "genes": summary.m,
        "fixed_effects": list(summary.fixed_names),
        "random_effects": dict(zip(summary.component_names, summary.d, strict=True)),
    }


def data_identity(data: Any) -> str:
    """Size and time of the last change of a file or folder: what tells another version of the data."""
    return file_identity(str(data))


def peak_memory() -> int | None:
    """Most bytes that this process has held so far; None where the system does not tell (Windows).

    >>> peak_memory() is None or peak_memory() > 1e6
    True
    """
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def read_record(path: Path) -> dict[str, Any]:
    """Read a run.json, so that the run can be repeated.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not what `lmm-gpu fit` writes, or is of a newer format.

    Warns
    -----
    UserWarning
        If another lmm_gpu wrote it.
    """
    remedy = "pass the run.json of a folder that lmm-gpu fit wrote"
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path} as JSON ({error}): {remedy}") from None
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise ValueError(f"{path} is no record of a run of this lmm_gpu: {remedy}")
    if record.get("format_version") != RECORD_VERSION:
        found = record.get("format_version")
        raise ValueError(
            f"{path} has version {found} of the format, this lmm_gpu knows {RECORD_VERSION}: update lmm_gpu"
        )
    wanted = {"data": str, "data_identity": str, "options": dict, "versions": dict, "df": str}
    lacking = [name for name, of in wanted.items() if not isinstance(record.get(name), of)]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}, or has something else there: {remedy}")
    version = record["versions"].get("lmm_gpu")
    if version != __version__:
        warnings.warn(f"{path} is of lmm_gpu {version}, this is {__version__}: numbers may differ", stacklevel=2)
    return record


def check_data(record: Mapping[str, Any], path: Path, data: Any) -> None:
    """See whether `data` are those of a recorded run.

    Raises
    ------
    ValueError
        If these were moved or removed.

    Warns
    -----
    UserWarning
        If the file was changed since.
    """
    if _plain(data) != record["data"]:
        return
    if not Path(data).exists():
        raise ValueError(
            f"{data}, which {path} is of, is not there any more: say where, lmm-gpu fit DATA --config {path}"
        )
    if data_identity(data) != record["data_identity"]:
        warnings.warn(f"{data} was changed after the run that {path} is of: results may differ", stacklevel=2)


def load_run(folder: Path) -> tuple[LMMFit, pd.DataFrame, dict[str, Any]]:
    """Fit, table of tests and record of a folder that `lmm-gpu fit` wrote.

    Raises
    ------
    ValueError, OSError
        If it is no such folder.
    """
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "not there"
        raise ValueError(f"{folder} is {kind}: wanted the folder that lmm-gpu fit -o wrote")
    missing = [name for name in (RECORD, "fit.h5") if not (folder / name).is_file()]
    tables = [folder / f"results.{ending}" for ending in TABLE_FORMATS if (folder / f"results.{ending}").is_file()]
    if missing or not tables:
        lacks = ", ".join([*missing, *([] if tables else ["results.csv.gz"])])
        raise ValueError(f"{folder} has no {lacks}: wanted the folder that lmm-gpu fit -o wrote")
    fit, table = LMMFit.load(folder / "fit.h5"), read_results(tables[0])
    lacking = [name for name in (*_TEXTS, "log10_p_value") if name not in table]
    if lacking or not set(table["variable"]) <= set(fit.summary.features):
        raise ValueError(f"{tables[0]} is not of the fit beside it: run lmm-gpu fit again")
    return fit, table, read_record(folder / RECORD)


def read_results(path: Path) -> pd.DataFrame:
    """Read a table of tests as it was written: a gene that is called NA or 007 keeps its name, numbers their digits."""
    if path.suffix == ".parquet":
        require("pyarrow", "reading .parquet")
        return pd.read_parquet(path)
    try:
        names = pd.read_csv(path, nrows=0).columns
        numbers = {name: ["", "nan"] for name in names if name not in _TEXTS}
        texts: Any = dict.fromkeys([name for name in _TEXTS if name in names], str)
        options: Any = {"keep_default_na": False, "na_values": numbers, "float_precision": "round_trip"}
        return pd.read_csv(path, dtype=texts, **options)
    except (EOFError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}): run lmm-gpu fit again") from None


def _plain(value: Any) -> Any:
    # what JSON holds; paths such that they are found from anywhere
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value


def command_of(record: Mapping[str, Any]) -> str:
    """Write the command that was run, as a shell takes it.

    >>> command_of({"data": "/data/cells.h5ad", "options": {"formula": "~ a + (1 | b)", "is_counts": False}})
    "lmm-gpu fit /data/cells.h5ad --formula '~ a + (1 | b)' --no-counts"
    """
    words = ["lmm-gpu", "fit", record["data"]]
    for name, value in record["options"].items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(("--counts" if value else "--no-counts") if name == "is_counts" else flag)
        else:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]
    return shlex.join(words)
