"""A run on files: read, fit, test, and write a folder of results; and the same on simulated cells."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from .contrasts import contrast_matrix
from .design import build_design
from .inference import check_df_method
from .io import open_source, write_json, write_table
from .python_interface import fit as fit_cells
from .python_interface import select_cells
from .results import LMMFit
from .simulation import SimulatedCounts, simuRNAseq

DEMO_FORMULA = "~ 0 + cls + cls:trt + (1 | sam)"
FDR = 0.05


@dataclass(frozen=True)
class Run:
    """A finished run: the fit, its table of tests, and the files it left."""

    fit: LMMFit
    table: pd.DataFrame
    written: dict[Path, str]
    seconds: float

    def strongest(self, count: int) -> pd.DataFrame:
        """Rows with the smallest p-values, compared in log space; the intercept only where there is nothing else."""
        effects = self.table[self.table["contrast"] != "Intercept"]
        tested = effects if len(effects) else self.table
        return tested.sort_values("log10_p_value", kind="stable").head(count)


def fit_to_folder(
    data: Any,
    formula: str,
    folder: Path,
    contrasts: Sequence[str] | None = None,
    *,
    df: str = "satterthwaite",
    **options: Any,
) -> Run:
    """Fit `data` and write results.csv.gz, genes.csv.gz and run.json into `folder`.

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

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_df_method(df)
    _check_writable(folder)
    started = time.perf_counter()
    where = {name: options.pop(name, None) for name in ("obs", "layer", "features")}
    cells = options.pop("cells", None)
    with open_source(data, **where) as opened:
        source = select_cells(opened, cells)
        names = build_design(formula, source.obs).fixed_names
        named = contrast_matrix(_named(contrasts), names) if contrasts else None  # before the cells are read
        fit = fit_cells(source, formula, **options)
    table = fit.test(named, df=df)
    written = {
        folder / "results.csv.gz": f"{len(table):,} tests: gene x contrast",
        folder / "genes.csv.gz": "one row per gene: status, iterations, variances, coefficients",
        folder / "run.json": "model, options, versions, counts",
    }
    seconds = time.perf_counter() - started
    results, genes, record = written
    write_table(table, results)
    write_table(gene_table(fit), genes)
    write_json(_record(fit, data, formula, contrasts, df, where | {"cells": cells} | options, seconds), record)
    return Run(fit, table, written, seconds)


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


def _check_writable(folder: Path) -> None:
    # said before the work, not after it
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"cannot write results to {folder}: {existing} is a file, wanted a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write results to {folder}: no permission to write into {existing}")


def _record(
    fit: LMMFit,
    data: Any,
    formula: str,
    contrasts: Sequence[str] | None,
    df: str,
    options: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    from . import __version__

    return {
        "data": str(data),
        "formula": formula,
        "contrasts": list(contrasts or fit.summary.fixed_names),
        "df": df,
        "options": {name: str(value) for name, value in options.items() if value is not None},
        "transform": fit.summary.transform,
        "cells": fit.summary.n,
        "genes": fit.summary.m,
        "random_effects": dict(zip(fit.summary.component_names, fit.summary.d, strict=True)),
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
    run = fit_to_folder(path, DEMO_FORMULA, folder, [f"{name} = {column}" for name, column in names.items()])
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
