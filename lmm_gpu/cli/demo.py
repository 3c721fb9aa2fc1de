"""The whole way on simulated cells, where it is known which genes changed."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..simulation import SimulatedCounts, simuRNAseq
from .run import Run, check_writable, fit_to_folder

DEMO_FORMULA = "~ 0 + cls + cls:trt + (1 | sam)"
FDR = 0.05


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
    check_writable(folder)
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
