"""The whole way from cells to tests on simulated cells, whose changed genes are known."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import scipy.sparse

from ..backend.optional import require
from ..simulation import SimulatedCounts, simuRNAseq
from .h5ad_output import write_h5ad
from .options import TABLE_FORMATS
from .output_files import check_results_folder
from .results_folder import FIT, RECORD, table_names
from .run import Run, fit_to_folder

if TYPE_CHECKING:
    from anndata import AnnData

DEMO_FORMULA = "~ 0 + cls + cls:trt + (1 | sam) + (1 | sam:cls)"
FDR = 0.05


@dataclass(frozen=True)
class Truth:
    """Comparison of the tests with the simulated changes.

    Attributes
    ----------
    changed, found, false : int
        Genes that truly change, those of them that were called, and genes that were called wrongly.
    seconds : float
        Time to simulate and write the cells.
    """

    changed: int
    found: int
    false: int
    seconds: float

    def describe(self) -> str:
        """Return the comparison in one sentence."""
        claimed = self.found + self.false
        share = f"{self.false / claimed:.1%}" if claimed else "none"
        return (
            f"at {FDR:.0%} FDR: {self.found} of the {self.changed} truly changed genes found; "
            f"{self.false} of the {claimed} called ({share}) are false"
        )


def demonstrate(
    folder: Path, *, seed: int, cells: int, genes: int, force: bool = False, say: Callable[[str], object] = print
) -> tuple[Run, Truth]:
    """Simulate cells with known changes, write them as .h5ad and fit them as `fit_to_folder` does."""
    names = ("cells.h5ad", *table_names(TABLE_FORMATS[0]), FIT, RECORD)
    check_results_folder(folder, names, force=force)
    started = time.perf_counter()
    say(f"simulating {cells:,} cells x {genes:,} genes of 24 donors and 4 cell types (seed {seed})")
    data = simuRNAseq(nGenes=genes, nCells=cells, nsam=24, ncls=4, ntrt=2, nDEgenes=genes // 10, seed=seed)
    path = folder / "cells.h5ad"
    write_h5ad(_cells(data), path, "demo")
    simulated = time.perf_counter() - started
    say(f"wrote {path}; fitting {DEMO_FORMULA}")
    types = sorted(data.metadata["cls"].unique())
    contrasts = [f"cell type {cls} = cls[{cls}]:trt[T.{data.treatment}]" for cls in types]
    with warnings.catch_warnings():  # the simulated donors do not differ in how they respond
        warnings.filterwarnings("ignore", message=".* no random effect lets its effect differ")
        run = fit_to_folder(path, DEMO_FORMULA, folder, contrasts, force=force)
    return run, _compare(run.table, data.DEgenes, simulated)


def _compare(table: pd.DataFrame, changed: pd.DataFrame, seconds: float) -> Truth:
    called = table[table["adj_p_value"] <= FDR]
    pairs = set(zip(called["variable"], called["contrast"], strict=True))
    truth = {(gene, f"cell type {cls}") for gene, cls in zip(changed["gene"], changed["cluster"], strict=True)}
    return Truth(len(truth), len(pairs & truth), len(pairs - truth), seconds)


def _cells(data: SimulatedCounts) -> AnnData:
    anndata = require("anndata", "writing .h5ad")
    counts = scipy.sparse.csr_matrix(data.counts.to_numpy().T)  # (cells, genes)
    metadata = data.metadata.astype(dict.fromkeys(("sam", "cls", "trt"), "category"))
    adata: AnnData = anndata.AnnData(counts, obs=metadata, var=pd.DataFrame(index=data.counts.index))
    return adata
