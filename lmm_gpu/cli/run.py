"""A run on files: read, fit, test, and write a folder of results."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..api import fit as fit_cells
from ..api import saved_statistics, select_cells, summarize
from ..design.contrasts import contrast_matrix
from ..design.design import build_design
from ..estimation.fit_options import FitOptions
from ..inference.diagnostics import advise
from ..inference.satterthwaite import check_df_method
from ..io.files import check_table_path, write_json, write_table
from ..io.source import open_source
from ..results.lmm_fit import LMMFit
from ..sumstats.summary_stats import SummaryStats
from .run_record import RECORD, TABLE_FORMATS, about, data_identity, record_of


@dataclass(frozen=True)
class Run:
    """A finished run: the fit, its table of tests, the files it left, and what run.json says."""

    fit: LMMFit
    table: pd.DataFrame
    written: dict[Path, str]
    record: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Time to read, fit and test."""
        return self.record["seconds"]

    def strongest(self, count: int) -> pd.DataFrame:
        """Rows with the smallest p-values, compared in log space; the intercept only where there is nothing else."""
        effects = self.table[self.table["contrast"] != "Intercept"]
        tested = effects if len(effects) else self.table
        return tested.sort_values("log10_p_value", kind="stable").head(count)


def fit_to_folder(
    data: Any,
    formula: str | None,
    folder: Path,
    contrasts: Sequence[str] | None = None,
    *,
    df: str = "generalized",
    table_format: str = "csv.gz",
    reading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Fit `data` and write results.csv.gz, genes.csv.gz, fit.h5 and run.json into `folder`.

    Parameters
    ----------
    data, formula, **options
        As `lmm_gpu.fit`.
    folder : Path
        Made if it does not exist; its files are replaced when all is computed.
    contrasts : sequence of str, optional
        "a - b" or "name = a - b"; by default every coefficient.
    df : str
        Method of degrees of freedom.
    table_format : {"csv.gz", "parquet"}
        Ending of both tables.
    reading : mapping, optional
        How cells are read, as `lmm_gpu.summarize`.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_df_method(df, options.get("method", "REML"))
    check_writable(folder)
    if table_format not in TABLE_FORMATS:
        raise ValueError(f"table={table_format!r} is not known; use one of {', '.join(TABLE_FORMATS)}")
    reading, clock, identity = dict(reading or {}), Clock(), data_identity(data)
    results, genes = (folder / f"{name}.{table_format}" for name in ("results", "genes"))
    check_table_path(results)
    fit, named = _Task(data, formula, contrasts, reading, options, clock).fitted()
    with clock("testing"):
        table = _tested(fit, named, df=df)
    with clock("writing"):
        write_table(table, results)
        write_table(gene_table(fit), genes)
        fit.save(folder / "fit.h5")
    given = {"formula": formula, "df": df, "table": table_format} | reading | options
    given.pop("checkpoint", None)
    record = record_of(fit, data, contrasts, given, clock.seconds, identity)
    written = {
        results: f"{len(table):,} tests: gene x contrast",
        genes: "one row per gene: status, iterations, variances, coefficients",
        folder / "fit.h5": "the fit with its statistics, for lmm-gpu test, plot and report",
        folder / RECORD: f"what was run; lmm-gpu fit --config {folder / RECORD} repeats it",
    }
    write_json(record, folder / RECORD)
    _remove_other_tables(folder, table_format)
    return Run(fit, table, written, record | {"written": [str(path) for path in written]})


class Clock:
    """Seconds that the parts of a run took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside as `part`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def _remove_other_tables(folder: Path, table_format: str) -> None:
    # of an earlier run in the other format: they would not be of this fit
    for other in TABLE_FORMATS:
        for name in ("results", "genes") if other != table_format else ():
            (folder / f"{name}.{other}").unlink(missing_ok=True)


def summarize_to_file(data: Any, formula: str, path: Path, **options: Any) -> dict[str, Any]:
    """Write the summary statistics of `data` to `path`; return what they are of. Parameters as `lmm_gpu.summarize`."""
    check_writable(path.parent, path)
    return _keep(summarize(data, formula, **options), path)


def merge_files(files: Sequence[Path], path: Path) -> dict[str, Any]:
    """Add the summary statistics in `files`, one after the other, and write them to `path`; return what they are of.

    Raises
    ------
    ValueError
        If a file is not what it should be, is of another model or of other genes, or is named twice.
    """
    check_writable(path.parent, path)
    twice = [str(file) for file, times in Counter(file.resolve() for file in files).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice: its cells would count twice; name each file once")
    total = SummaryStats.load(files[0])
    known = {_content_of(files[0]): files[0]}
    for file in files[1:]:
        part = SummaryStats.load(file)
        if (content := _content_of(file)) in known:
            raise ValueError(
                f"{file} is a copy of {known[content]}: its cells would count twice; leave one of them out"
            )
        known[content] = file
        try:
            total = total + part
        except ValueError as error:
            raise ValueError(f"{file} and the files before it: {error}") from None
    return _keep(total, path)


def _content_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tests(
    fitted: Path, contrasts: Sequence[str] | None, path: Path, *, df: str, alternative: str, level: float
) -> dict[str, Any]:
    """Write a table of tests of a saved fit, or of the one in a folder; return what was tested.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_table_path(path)
    check_writable(path.parent, path)
    fit = LMMFit.load(fitted / "fit.h5" if fitted.is_dir() else fitted)
    names = fit.summary.fixed_names
    table = _tested(fit, _matrix(contrasts, names), df=df, alternative=alternative, level=level)
    write_table(table, path)
    return {"tests": len(table), "contrasts": list(contrasts or names), "df": df, "written": [str(path)]}


@dataclass(frozen=True)
class _Task:
    """What is asked of a run: its arguments, and the time that it takes."""

    data: Any
    formula: str | None
    contrasts: Sequence[str] | None
    reading: dict[str, Any]
    options: dict[str, Any]
    clock: Clock

    def fitted(self) -> tuple[LMMFit, pd.DataFrame | None]:
        """Fit, and make rows of the contrasts: before the cells are read, as they may be misspelled."""
        FitOptions(**{name: value for name, value in self.options.items() if name != "scheduler"})  # so may these
        with self.clock("reading"):
            summary = saved_statistics(self.data, self.formula)
        if summary is None:
            summary, named = self._summed()
            surplus: dict[str, Any] = {}
        else:
            named = _matrix(self.contrasts, summary.fixed_names)
            surplus = {"formula": self.formula} | self.reading  # refused: saved sums have theirs
        with self.clock("fitting"):
            fit = fit_cells(summary, **surplus, **self.options)
        return replace(fit, seconds=self.clock.seconds["reading"] + self.clock.seconds["fitting"]), named

    def _summed(self) -> tuple[SummaryStats, pd.DataFrame | None]:
        if self.formula is None:
            raise ValueError(f"{self.data} needs a formula, such as '~ condition + (1 | donor)'")
        where = {name: self.reading[name] for name in ("obs", "layer", "features") if name in self.reading}
        rest = {name: value for name, value in self.reading.items() if name not in (*where, "cells")}
        rest |= {name: self.options[name] for name in ("device", "memory", "scheduler") if name in self.options}
        with self.clock("reading"), open_source(self.data, **where) as opened:
            source = select_cells(opened, self.reading.get("cells"))
            named = _matrix(self.contrasts, build_design(self.formula, source.obs).fixed_names)
            return summarize(source, self.formula, **rest), named


def _matrix(contrasts: Sequence[str] | None, names: Sequence[str]) -> pd.DataFrame | None:
    if not contrasts:
        return None
    try:
        return contrast_matrix(_named(contrasts), names)
    except ValueError as error:
        if any("=" in text and " = " not in text for text in contrasts):
            raise ValueError(f"{error}; a name of your own stands before ' = ', with the spaces") from None
        raise


def _tested(fit: LMMFit, contrasts: pd.DataFrame | None, **how: Any) -> pd.DataFrame:
    # fit.test, which takes a test of every coefficient for a look around; from here tables and reports are written
    table = fit.test(contrasts, **how)
    names = [name for name in fit.summary.fixed_names if name != "Intercept"]
    if contrasts is None and names:
        for sentence in advise(fit.summary, contrast_matrix(names, fit.summary.fixed_names).to_numpy().T, names):
            warnings.warn(sentence, stacklevel=3)
    return table


def _keep(summary: SummaryStats, path: Path) -> dict[str, Any]:
    summary.save(path)
    return about(summary) | {"fingerprint": summary.fingerprint, "written": [str(path)]}


def gene_table(fit: LMMFit) -> pd.DataFrame:
    """One row per gene: status, niter, logLik, variance components, coefficients and standard errors."""
    frame = pd.DataFrame({"status": fit.status, "niter": fit.niter, "logLik": fit.logLik})
    names = fit.summary.variance_names
    parts = [frame, fit.theta.T.set_axis([f"{name}_variance" for name in names], axis=1)]
    parts += [fit.coef.T.add_suffix("_coef"), fit.se.T.add_suffix("_se")]
    return pd.concat(parts, axis=1).rename_axis("variable").reset_index().set_index("variable")


def _named(contrasts: Sequence[str]) -> dict[str, str]:
    # "name = expression", or the expression as its own name; column names hold no " = "
    pairs = [text.split(" = ", 1) if " = " in text else (text, text) for text in contrasts]
    named = {name.strip(): expression for name, expression in pairs}
    if len(named) < len(pairs):
        raise ValueError(f"got {len(pairs)} contrasts with {len(named)} names: give each a name of its own")
    return named


def check_writable(folder: Path, file: Path | None = None) -> None:
    """Refuse a folder, or a file in it, that cannot be written: before the work, not after it."""
    what = f"cannot write {'results to ' + str(folder) if file is None else file}"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{what}: {existing} is a file, wanted a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: no permission to write into {existing}")
    if file is not None and file.is_dir():
        raise ValueError(f"{what}: it is a folder, wanted the name of a file")
