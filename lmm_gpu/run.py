"""A run on files: read, fit, test, and write a folder of results; and the same on simulated cells."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from .contrasts import contrast_matrix
from .degrees_of_freedom import check_df_method
from .design import build_design
from .io import check_table_path, open_source, write_json, write_table
from .python_interface import fit as fit_cells
from .python_interface import saved_statistics, select_cells, summarize
from .results import LMMFit
from .simulation import SimulatedCounts, simuRNAseq
from .summary import SummaryStats

DEMO_FORMULA = "~ 0 + cls + cls:trt + (1 | sam)"
FDR = 0.05


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
    df: str = "satterthwaite",
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
    reading : mapping, optional
        How cells are read, as `lmm_gpu.summarize`.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_df_method(df, options.get("method", "REML"))
    _check_writable(folder)
    started = time.perf_counter()
    reading = dict(reading or {})
    fit, named = _fitted(data, formula, contrasts, reading, options)
    table = fit.test(named, df=df)
    seconds = time.perf_counter() - started
    written = {
        folder / "results.csv.gz": f"{len(table):,} tests: gene x contrast",
        folder / "genes.csv.gz": "one row per gene: status, iterations, variances, coefficients",
        folder / "fit.h5": "the fit with its statistics, for lmm-gpu test",
        folder / "run.json": "model, options, versions, counts",
    }
    results, genes, kept, record_path = written
    record = _record(fit, data, contrasts, df, reading | options, seconds)
    write_table(table, results)
    write_table(gene_table(fit), genes)
    fit.save(kept)
    write_json(record, record_path)
    return Run(fit, table, written, record | {"written": [str(path) for path in written]})


def summarize_to_file(data: Any, formula: str, path: Path, **options: Any) -> dict[str, Any]:
    """Write the summary statistics of `data` to `path`; return what they are of. Parameters as `lmm_gpu.summarize`."""
    _check_writable(path.parent, path)
    return _keep(summarize(data, formula, **options), path)


def merge_files(files: Sequence[Path], path: Path) -> dict[str, Any]:
    """Add the summary statistics in `files`, one after the other, and write them to `path`; return what they are of.

    Raises
    ------
    ValueError
        If a file is not what it should be, is of another model or of other genes, or is named twice.
    """
    _check_writable(path.parent, path)
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
    _check_writable(path.parent, path)
    fit = LMMFit.load(fitted / "fit.h5" if fitted.is_dir() else fitted)
    names = fit.summary.fixed_names
    table = fit.test(_matrix(contrasts, names), df=df, alternative=alternative, level=level)
    write_table(table, path)
    return {"tests": len(table), "contrasts": list(contrasts or names), "df": df, "written": [str(path)]}


def _fitted(
    data: Any, formula: str | None, contrasts: Sequence[str] | None, reading: dict[str, Any], options: dict[str, Any]
) -> tuple[LMMFit, pd.DataFrame | None]:
    """Fit `data`, and make rows of the contrasts: before the cells are read, as they may be misspelled."""
    summary = saved_statistics(data, formula)
    if summary is not None:
        named = _matrix(contrasts, summary.fixed_names)
        return fit_cells(summary, formula, **reading, **options), named
    if formula is None:
        raise ValueError(f"{data} needs a formula, such as '~ condition + (1 | donor)'")
    where = {name: reading[name] for name in ("obs", "layer", "features") if name in reading}
    rest = {name: value for name, value in reading.items() if name not in (*where, "cells")}
    with open_source(data, **where) as opened:
        source = select_cells(opened, reading.get("cells"))
        named = _matrix(contrasts, build_design(formula, source.obs).fixed_names)
        return fit_cells(source, formula, **rest, **options), named


def _matrix(contrasts: Sequence[str] | None, names: Sequence[str]) -> pd.DataFrame | None:
    return contrast_matrix(_named(contrasts), names) if contrasts else None


def _keep(summary: SummaryStats, path: Path) -> dict[str, Any]:
    summary.save(path)
    return _about(summary) | {"fingerprint": summary.fingerprint, "written": [str(path)]}


def _about(summary: SummaryStats) -> dict[str, Any]:
    return {
        "formula": summary.formula,
        "transform": summary.transform,
        "cells": summary.n,
        "genes": summary.m,
        "fixed_effects": list(summary.fixed_names),
        "random_effects": dict(zip(summary.component_names, summary.d, strict=True)),
    }


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


def _check_writable(folder: Path, file: Path | None = None) -> None:
    # said before the work, not after it
    what = f"cannot write {'results to ' + str(folder) if file is None else file}"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{what}: {existing} is a file, wanted a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: no permission to write into {existing}")
    if file is not None and file.is_dir():
        raise ValueError(f"{what}: it is a folder, wanted the name of a file")


def _record(
    fit: LMMFit, data: Any, contrasts: Sequence[str] | None, df: str, options: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    from . import __version__

    return {
        "data": str(data),
        **_about(fit.summary),
        "contrasts": list(contrasts or fit.summary.fixed_names),
        "df": df,
        "options": {name: str(value) for name, value in options.items() if value is not None},
        "status": {str(word): int(count) for word, count in fit.status.value_counts().items()},
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "lmm_gpu": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pandas": pd.__version__,
        },
    }


@dataclass(frozen=True)
class Truth:
    """How the tests compare with the changes that were simulated."""

    changed: int
    found: int
    false: int
    seconds: float

    def describe(self) -> str:
        """Say it in one sentence."""
        claimed = self.found + self.false
        share = f"{self.false / claimed:.1%}" if claimed else "none"
        return (
            f"at {FDR:.0%} FDR: {self.found} of the {self.changed} truly changed genes found; "
            f"{self.false} of the {claimed} called ({share}) are false"
        )


def demonstrate(
    folder: Path, *, seed: int, cells: int, genes: int, say: Callable[[str], object] = print
) -> tuple[Run, Truth]:
    """Simulate cells with known changes, write them as .h5ad and fit them as `fit_to_folder` does."""
    _check_writable(folder)
    started = time.perf_counter()
    say(f"simulating {cells:,} cells x {genes:,} genes of 24 donors and 4 cell types (seed {seed})")
    data = simuRNAseq(nGenes=genes, nCells=cells, nsam=24, ncls=4, ntrt=2, nDEgenes=genes // 10, seed=seed)
    path = folder / "cells.h5ad"
    _write_h5ad(data, path)
    simulated = time.perf_counter() - started
    say(f"wrote {path}; fitting {DEMO_FORMULA}")
    names = {f"cell type {cls}": f"cls[{cls}]:trt[T.{data.treatment}]" for cls in sorted(data.metadata["cls"].unique())}
    contrasts = [f"{name} = {column}" for name, column in names.items()]
    with warnings.catch_warnings():  # the simulated donors do not differ in how they respond
        warnings.filterwarnings("ignore", message=".* no random effect lets its effect differ")
        run = fit_to_folder(path, DEMO_FORMULA, folder, contrasts)
    return run, _compare(run.table, data.DEgenes, simulated)


def _compare(table: pd.DataFrame, changed: pd.DataFrame, seconds: float) -> Truth:
    called = table[table["adj_p_value"] <= FDR]
    pairs = set(zip(called["variable"], called["contrast"], strict=True))
    truth = {(gene, f"cell type {cls}") for gene, cls in zip(changed["gene"], changed["cluster"], strict=True)}
    return Truth(len(truth), len(pairs & truth), len(pairs - truth), seconds)


def _write_h5ad(data: SimulatedCounts, path: Path) -> None:
    try:
        import anndata
    except ImportError as error:
        raise ValueError('writing .h5ad needs anndata: pip install "lmm-gpu[io]"') from error
    import scipy.sparse

    path.parent.mkdir(parents=True, exist_ok=True)
    counts = scipy.sparse.csr_matrix(data.counts.to_numpy().T)  # (cells, genes)
    metadata = data.metadata.astype(dict.fromkeys(("sam", "cls", "trt"), "category"))
    cells = anndata.AnnData(counts, obs=metadata, var=pd.DataFrame(index=data.counts.index))
    part = path.with_name(f".{path.name}.part")
    try:
        cells.write_h5ad(part, compression="lzf")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
