"""A run on files: read, fit, test, and write a folder of results."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..api import fit as fit_cells
from ..api import progress_bar, saved_statistics
from ..design.contrasts import contrast_matrix
from ..estimation.fit_options import FitOptions
from ..inference.diagnostics import diagnose
from ..inference.satterthwaite import check_df_method
from ..io.files import check_table_path, write_table
from ..results.lmm_fit import LMMFit
from ..sumstats.estimable import without_empty_cells
from ..sumstats.summary_stats import SummaryStats
from .cell_reading import opened_cells, read_options
from .contrast_options import contrasts_of
from .options import TABLE_FORMATS
from .output_files import check_results_folder, written_by_us
from .results_folder import FIT, RECORD, commit, locked, table_names
from .run_record import data_identity, record_of


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    fit : LMMFit
    table : DataFrame
        Tests: one row per gene and contrast.
    written : dict of Path to str
        Files of the run and their contents, in words.
    record : dict
        Content of run.json.
    """

    fit: LMMFit
    table: pd.DataFrame
    written: dict[Path, str]
    record: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Time to read, fit and test."""
        return float(self.record["seconds"])

    def strongest(self, count: int) -> pd.DataFrame:
        """Rows with the smallest p-values, compared in log space; the intercept only if there is nothing else."""
        effects = self.table[self.table["contrast"] != "Intercept"]
        tested = effects if len(effects) else self.table
        return tested.sort_values("log10_p_value", kind="stable").head(count)


def fit_to_folder(
    data: Path,
    formula: str | None,
    folder: Path,
    contrasts: Sequence[str] | None = None,
    *,
    df: str = "generalized",
    table_format: str = "csv.gz",
    resume: bool = False,
    force: bool = False,
    reading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Fit `data` and write results.csv.gz, genes.csv.gz, fit.h5 and run.json into `folder`.

    Parameters
    ----------
    data, formula, **options
        As `lmm_gpu.fit`.
    folder : Path
        Created if it does not exist. A run in it is replaced when the new one is complete.
    contrasts : sequence of str, optional
        "a - b" or "name = a - b"; by default every coefficient.
    df : str
        Method of degrees of freedom.
    table_format : {"csv.gz", "parquet"}
        Format of both tables.
    resume : bool
        Keep a checkpoint in `folder` until the results are there.
    force : bool
        Replace files that lmm-gpu did not write.
    reading : mapping, optional
        Options of `lmm_gpu.summarize` on how cells are read.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    reading = dict(reading or {})
    check_df_method(df, options.get("method", "REML"))
    if table_format not in TABLE_FORMATS:
        raise ValueError(f"table={table_format!r} is not known; use one of {', '.join(TABLE_FORMATS)}")
    results, genes = table_names(table_format)
    check_table_path(results)
    inputs = [data, *(reading.get(name) for name in ("obs", "features", "genes"))]
    check_results_folder(folder, (results, genes, FIT, RECORD), inputs, force=force)
    checkpoint = folder / "checkpoint.h5" if resume else None
    clock, identity = Clock(), data_identity(data)
    with locked(folder):
        summary, matrix = _summed(data, formula, contrasts, reading, options, checkpoint, clock)
        fit = _fitted(summary, options, clock)
        with clock("testing"):
            table = tested(fit, matrix, df=df)
        chosen = {"formula": formula, "df": df, "table": table_format} | reading | options
        parts = {
            results: clock.timed("writing", lambda path: write_table(table, path)),
            genes: clock.timed("writing", lambda path: write_table(gene_table(fit), path)),
            FIT: clock.timed("writing", fit.save),
        }
        record = commit(
            folder,
            parts,
            lambda: record_of(fit, data, contrasts, chosen, clock.seconds, identity),
            obsolete=_tables_of_other_formats(folder, table_format),
        )
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    written = {
        folder / results: f"{len(table):,} tests: gene x contrast",
        folder / genes: "one row per gene: status, iterations, variances, coefficients",
        folder / FIT: "the fit with its statistics, for lmm-gpu test, plot and report",
        folder / RECORD: f"options of the run; lmm-gpu fit --config {folder / RECORD} repeats it",
    }
    return Run(fit, table, written, record | {"written": [str(path) for path in written]})


class Clock:
    """Seconds that the parts of a run took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time inside this context to `part`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def timed(self, part: str, write: Callable[[Path], object]) -> Callable[[Path], None]:
        """Return `write` as a function whose calls are added to `part`."""

        def timed_write(path: Path) -> None:
            with self(part):
                write(path)

        return timed_write


def _summed(
    data: Path,
    formula: str | None,
    contrasts: Sequence[str] | None,
    reading: dict[str, Any],
    options: Mapping[str, Any],
    checkpoint: Path | None,
    clock: Clock,
) -> tuple[SummaryStats, pd.DataFrame | None]:
    """Return the summary statistics and the contrast matrix, which is checked before the cells are read."""
    FitOptions(**{name: value for name, value in options.items() if name != "scheduler"})  # checked first, too
    with clock("reading"):
        summary = saved_statistics(data, formula)
        if summary is not None:
            surplus = given_names({"formula": formula} | reading)
            if surplus:
                raise ValueError(f"{data} has its model and values already: leave out {', '.join(surplus)}")
            summary = without_empty_cells(summary)
            return summary, contrasts_of(contrasts, summary.fixed_names)
        if formula is None:
            raise ValueError(f"{data} needs a formula, such as '~ condition + (1 | donor)'")
        with opened_cells(data, formula, reading, options) as model:
            design = model.design
            matrix = contrasts_of(contrasts, [design.fixed_names[i] for i in design.kept_columns])
            values = read_options(reading, checkpoint)
            summary = model.summarize(values, progress_bar(True), model.checkpoint(values))
    return summary, matrix


def given_names(options: Mapping[str, Any]) -> list[str]:
    """Return the names of options that were given, as ``name=``."""
    return [f"{name}=" for name, value in options.items() if value is not None]


def _fitted(summary: SummaryStats, options: Mapping[str, Any], clock: Clock) -> LMMFit:
    with clock("fitting"):
        fit = fit_cells(summary, **options)
    return replace(fit, seconds=clock.seconds["reading"] + clock.seconds["fitting"])


def tested(fit: LMMFit, contrasts: pd.DataFrame | None, **how: Any) -> pd.DataFrame:
    """Return `fit.test`, with its warnings for the default contrasts too: the table is written and reported."""
    table = fit.test(contrasts, **how)
    names = [name for name in fit.summary.fixed_names if name != "Intercept"]
    if contrasts is None and names:
        C = contrast_matrix(names, fit.summary.fixed_names).to_numpy().T
        for sentence in diagnose(fit.summary, C, names, fit.estimates.theta):
            warnings.warn(sentence, stacklevel=2)
    return table


def gene_table(fit: LMMFit) -> pd.DataFrame:
    """One row per gene: status, niter, logLik, variance components, coefficients and standard errors."""
    frame = pd.DataFrame({"status": fit.status, "niter": fit.niter, "logLik": fit.logLik})
    names = fit.summary.variance_names
    parts = [frame, fit.theta.T.set_axis([f"{name}_variance" for name in names], axis=1)]
    parts += [fit.coef.T.add_suffix("_coef"), fit.se.T.add_suffix("_se")]
    return pd.concat(parts, axis=1).rename_axis("variable").reset_index().set_index("variable")


def _tables_of_other_formats(folder: Path, table_format: str) -> list[str]:
    # of an earlier run of ours: they would not be of this fit
    names = [name for other in TABLE_FORMATS if other != table_format for name in table_names(other)]
    return [name for name in names if (folder / name).is_file() and written_by_us(folder / name)]
