"""Tasks from files to one file: `summarize`, `merge`, and the tables of a saved fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..api import progress_bar
from ..io.files import check_table_path, write_table
from ..results.lmm_fit import LMMFit
from ..sumstats.summary_stats import SummaryStats
from .cell_reading import opened_cells, read_options
from .contrast_options import contrasts_of, with_names_of_run
from .output_files import check_output
from .results_folder import FIT, files_of_run, sha256
from .run import tested
from .run_record import about, checked_fit


def summarize_to_file(
    data: Path,
    formula: str,
    path: Path,
    reading: Mapping[str, Any],
    computing: Mapping[str, Any],
    *,
    resume: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write the summary statistics of `data` to `path`, and return a description of them.

    Parameters
    ----------
    data, formula, reading, computing
        As `opened_cells`.
    path : Path
    resume : bool
        Keep a checkpoint beside `path` until the statistics are written.
    force : bool
        Replace a file that lmm-gpu did not write.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_output(path, [data, *(reading.get(name) for name in ("obs", "features", "genes"))], force=force)
    options = read_options(reading, path.with_name(f"{path.stem}.checkpoint.h5") if resume else None)
    with opened_cells(data, formula, reading, computing) as model:
        checkpoint = model.checkpoint(options)
        summary = model.summarize(options, progress_bar(True), checkpoint)
    written = _save(summary, path)
    if checkpoint is not None:
        checkpoint.remove()
    return written


def merge_files(files: Sequence[Path], path: Path, *, force: bool = False) -> dict[str, Any]:
    """Add the summary statistics in `files` and write them to `path`; return their description.

    Raises
    ------
    ValueError
        If a file has other content, another model or other genes, is given twice, or is `path`.
    """
    check_output(path, files, force=force)
    twice = [str(file) for file, times in Counter(file.resolve() for file in files).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice: its cells would count twice; name each file once")
    total = SummaryStats.load(files[0])
    known = {sha256(files[0]): files[0]}
    for file in files[1:]:
        part = SummaryStats.load(file)
        if (content := sha256(file)) in known:
            raise ValueError(
                f"{file} is a copy of {known[content]}: its cells would count twice; leave one of them out"
            )
        known[content] = file
        try:
            total = total + part
        except ValueError as error:
            raise ValueError(f"{file} and the files before it: {error}") from None
    return _save(total, path)


def _save(summary: SummaryStats, path: Path) -> dict[str, Any]:
    summary.save(path)
    return about(summary) | {"fingerprint": summary.fingerprint, "written": [str(path)]}


def write_tests(
    fitted: Path,
    contrasts: Sequence[str] | None,
    path: Path,
    *,
    df: str,
    alternative: str,
    level: float,
    force: bool = False,
) -> dict[str, Any]:
    """Write a table of tests of a saved fit; return a description of it.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """

    def test(fit: LMMFit) -> pd.DataFrame:
        names = fit.summary.fixed_names
        matrix = contrasts_of(with_names_of_run(contrasts, fitted, names), names)
        return tested(fit, matrix, df=df, alternative=alternative, level=level)

    table = write_table_of_fit(fitted, path, test, force=force)
    return {"tests": len(table), "contrasts": list(dict.fromkeys(table["contrast"])), "df": df, "written": [str(path)]}


def write_table_of_fit(
    fitted: Path, path: Path, make: Callable[[LMMFit], pd.DataFrame], *, force: bool = False
) -> pd.DataFrame:
    """Write the table that `make` makes of a saved fit, and return it.

    Parameters
    ----------
    fitted : Path
        Folder that `lmm-gpu fit` wrote, or a file with a fit.
    path : Path
        The table, .csv, .csv.gz, .tsv or .parquet.
    make : callable
    force : bool
        Replace a file that lmm-gpu did not write.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_table_path(path)
    folder, file = (fitted, fitted / FIT) if fitted.is_dir() else (fitted.parent, fitted)
    check_output(path, [file, fitted, *files_of_run(folder)], force=force)
    table = make(checked_fit(fitted))
    write_table(table, path)
    return table


def partition_table(fit: LMMFit) -> pd.DataFrame:
    """Return the variance partition, one row per gene."""
    return fit.variance_partition().add_suffix("_fraction").rename_axis("variable")
