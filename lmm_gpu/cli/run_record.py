"""run.json: the data, options, timings and versions of a run, from which it is shown and repeated."""

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
from .options import TABLE_FORMATS
from .results_folder import FIT, RECORD, check_files, table_names

RECORD_FORMAT = "lmm_gpu run"
RECORD_VERSION = 2  #: 2 has the digests of the other files
_TEXTS = ("variable", "contrast", "status")


def record_of(
    fit: LMMFit,
    data: Path,
    contrasts: Sequence[str] | None,
    options: Mapping[str, Any],
    timings: Mapping[str, float],
    identity: str,
) -> dict[str, Any]:
    """Content of run.json, but for the digests of the files.

    Parameters
    ----------
    fit : LMMFit
    data : Path
        The cells or summary statistics that were fitted.
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
        "data": _plain(data),
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
    """Return the model and the size of summary statistics."""
    return {
        "formula": summary.formula,
        "transform": summary.transform,
        "cells": summary.n,
        "genes": summary.m,
        "fixed_effects": list(summary.fixed_names),
        "random_effects": dict(zip(summary.component_names, summary.d, strict=True)),
    }


def data_identity(data: Path) -> str:
    """Size and time of the last change of a file or folder, which differ for another version of the data."""
    return file_identity(str(data))


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not report it (Windows).

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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path} as JSON ({error}): {remedy}") from None
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise ValueError(f"{path} is not the record of a run of lmm_gpu: {remedy}")
    if record.get("format_version") != RECORD_VERSION:
        found = record.get("format_version")
        raise ValueError(
            f"{path} has version {found} of the format, this lmm_gpu knows {RECORD_VERSION}: update lmm_gpu"
        )
    expected = {"data": str, "data_identity": str, "options": dict, "versions": dict, "df": str, "files": dict}
    expected |= {"contrasts": list, "timings": dict}
    lacking = [name for name, kind in expected.items() if not isinstance(record.get(name), kind)]
    if lacking:
        raise ValueError(f"{path} has no valid {', '.join(lacking)}: {remedy}")
    version = record["versions"].get("lmm_gpu")
    if version != __version__:
        warnings.warn(f"{path} is of lmm_gpu {version}, this is {__version__}: numbers may differ", stacklevel=2)
    return record


def check_data(record: Mapping[str, Any], path: Path, data: Any) -> None:
    """Compare `data` with those of a recorded run.

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
            f"{data}, which {path} describes, does not exist any more: name the data, lmm-gpu fit DATA --config {path}"
        )
    if data_identity(data) != record["data_identity"]:
        warnings.warn(f"{data} was changed after the run that {path} describes: results may differ", stacklevel=2)


def load_run(folder: Path) -> tuple[LMMFit, pd.DataFrame, dict[str, Any]]:
    """Return the fit, the table of tests and the record of a folder that `lmm-gpu fit` wrote.

    Raises
    ------
    ValueError, OSError
        If it is no such folder, incomplete, or a file in it is not the one that was written with the others.
    """
    record = _record_in(folder)
    tables = [name for ending in TABLE_FORMATS if (name := table_names(ending)[0]) in record["files"]]
    if not tables:
        raise ValueError(f"{folder / RECORD} names no table of results: run lmm-gpu fit again")
    check_files(folder, record, (FIT, tables[0]))
    fit, table = LMMFit.load(folder / FIT), read_results(folder / tables[0])
    table.attrs["transform"] = fit.summary.transform  # the unit of log_fc
    lacking = [name for name in (*_TEXTS, "log10_p_value") if name not in table]
    if lacking or not set(table["variable"]) <= set(fit.summary.features):
        raise ValueError(f"{folder / tables[0]} does not belong to the fit beside it: run lmm-gpu fit again")
    return fit, table, record


def checked_fit(fitted: Path) -> LMMFit:
    """Load a fit from a folder that `lmm-gpu fit` wrote, whose record must match it, or from a file.

    Raises
    ------
    ValueError, OSError
        As `load_run`.
    """
    if not fitted.is_dir():
        return LMMFit.load(fitted)
    check_files(fitted, _record_in(fitted), (FIT,))
    return LMMFit.load(fitted / FIT)


def _record_in(folder: Path) -> dict[str, Any]:
    expected = "expected the folder that lmm-gpu fit -o wrote"
    if not folder.is_dir():
        raise ValueError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}: {expected}")
    if not (folder / RECORD).is_file():
        if (folder / FIT).is_file():
            raise ValueError(f"{folder} has no {RECORD}: the run was interrupted while it was written; repeat it")
        raise ValueError(f"{folder} has no {RECORD}: {expected}")
    return read_record(folder / RECORD)


def read_results(path: Path) -> pd.DataFrame:
    """Read a table of tests exactly as it was written: a gene called NA or 007 keeps its name, numbers their digits."""
    if path.suffix == ".parquet":
        require("pyarrow", "reading .parquet")
        return pd.DataFrame(pd.read_parquet(path))
    try:
        names = pd.read_csv(path, nrows=0).columns
        numbers = {name: ["", "nan"] for name in names if name not in _TEXTS}
        texts: Any = dict.fromkeys([name for name in _TEXTS if name in names], str)
        options: Any = {"keep_default_na": False, "na_values": numbers, "float_precision": "round_trip"}
        return pd.DataFrame(pd.read_csv(path, dtype=texts, **options))
    except (EOFError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}): run lmm-gpu fit again") from None


def _plain(value: Any) -> Any:
    # values that JSON has; absolute paths, as another command may run elsewhere
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value


def command_of(record: Mapping[str, Any]) -> str:
    """Return the command line of a run, quoted for a shell.

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
