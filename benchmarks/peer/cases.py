"""Data sets of the peers: files on disk that programs in any language can read.

A folder contains `meta.dcf` (name: value lines), `Y.f64` (genes x cells), `X.f64` (fixed effects x cells, an intercept
first) and `groups.i4` (variance components x cells, levels from 0), little-endian and by rows; or `statistics.npz` in
place of the cells, for those that fit from sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tb_statistics import WITHOUT_EFFECT, design, simulate, uneven_codes

#: Names of the variance components, and the numbers of levels of those after the donors.
FACTORS, LEVELS = ("donor", "batch", "pool"), (20, 8)
#: Smallest share of cells in which a gene of the real data is detected.
SEEN = 0.05


@dataclass(frozen=True)
class Case:
    """One data set of one model."""

    name: str
    folder: Path
    genes: int
    cells: int
    fixed: int
    levels: tuple[int, ...]
    title: str
    statistics: bool = False

    def describe(self) -> dict:
        names = ("name", "title", "genes", "cells", "fixed", "levels")
        return {name: getattr(self, name) for name in names}


def simulated(
    folder: Path, name: str, cells: int, donors: int, genes: int, components: int = 1, *, hard: bool = False
) -> Case:
    """Cells of donors; a treatment of donors, four cell types, a covariate.

    Variances of random effects are 0 to 0.2 of the residual variance, and 0 for one gene in twenty. In the hard variant
    they are 0 for 40 % of the genes, and the donors have very different numbers of cells.
    """
    rng = np.random.default_rng(1)
    levels = (donors, *LEVELS)[:components]
    groups = np.stack([_all_seen(rng.integers(0, width, cells), width) for width in levels])
    if hard:
        groups[0] = uneven_codes(rng, donors, cells)
    cell_type = rng.integers(0, 4, cells)
    columns = [np.ones(cells), groups[0] % 2, *(cell_type == j for j in (1, 2, 3)), rng.normal(size=cells)]
    X = np.stack(columns).astype(float)
    ratios = rng.uniform(0, 0.2, (components, genes))
    ratios[:, rng.uniform(size=genes) < WITHOUT_EFFECT if hard else slice(10, None, 20)] = 0
    Y = _draw(X, groups, levels, ratios, rng)
    title = f"{cells:,} cells x {donors} donors x {genes:,} genes, {' + '.join(FACTORS[:components])}"
    title += ", uneven donors, 40 % of the genes without random effects" if hard else ""
    return _write(folder, name, Y, X, groups, levels, title)


def tb_cells(folder: Path, cells: int, genes: int) -> Case:
    """Cells in the shape of the tuberculosis study, few genes; X is dense, as most programs require."""
    X, Z, levels = design(1, cells)
    X = X.toarray().T.copy()
    X[0] = 1  # replaces the first cell type: the same model with an intercept
    groups = sp.csr_array(Z).indices.reshape(1, -1)
    rng = np.random.default_rng(2)
    Y = _draw(X, groups, levels, rng.uniform(0.01, 0.1, (1, genes)), rng)
    return _write(folder, "tb_cells", Y, X, groups, levels, f"{cells:,} cells x 259 donors x {genes} genes, p = 63")


def tb_sums(folder: Path, effects: int, genes: int) -> Case:
    """Summary statistics in the shape of the tuberculosis study; no values of cells are drawn."""
    name = f"tb_{effects}"
    summary = simulate(genes, effects)
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    matrices = {key: getattr(summary, key) for key in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")}
    np.savez(path / "statistics.npz", n=summary.n, d=np.array(summary.d), **matrices)
    title = f"sums of {summary.n:,} cells x {genes:,} genes, {' + '.join(FACTORS[:effects])}, p = {len(summary.XX)}"
    case = Case(name, path, genes, summary.n, len(summary.XX), tuple(summary.d), title, statistics=True)
    _meta(case)
    return case


def onek1k(folder: Path, source: Path, components: int = 1) -> Case:
    """Real cells of 40 donors of OneK1K: log1p of counts over size factors, genes detected in 5 % of the cells."""
    obs = pd.read_csv(source / "obs.csv")
    counts = sp.csr_array(sp.load_npz(source / "counts.npz"))
    seen = np.diff(counts.tocsc().indptr) >= SEEN * counts.shape[0]
    Y = np.log1p(counts[:, np.flatnonzero(seen)].toarray() / obs["size_factor"].to_numpy()[:, None]).T.copy()
    donor, cell_type = pd.factorize(obs["donor"])[0], pd.factorize(obs["cell_type"], sort=True)[0]
    age = (obs["age"] - obs["age"].mean()) / obs["age"].std()
    columns = [np.ones(len(obs)), *(cell_type == j for j in (1, 2, 3)), obs["sex"] == 2, age]
    within = pd.factorize(pd.Series(donor).astype(str) + ":" + pd.Series(cell_type).astype(str))[0]
    groups = np.stack([donor, within][:components])
    levels = tuple(int(codes.max()) + 1 for codes in groups)
    random = "donor" if components == 1 else "donor + donor:cell_type"
    title = f"OneK1K, {len(obs):,} real cells x {levels[0]} donors x {len(Y)} genes, {random}"
    return _write(folder, f"onek1k_{components}", Y, np.stack(columns).astype(float), groups, levels, title)


def _all_seen(codes: np.ndarray, width: int) -> np.ndarray:
    codes[:width] = np.arange(width)
    return codes


def _draw(X: np.ndarray, groups: np.ndarray, levels, ratios: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values (genes, cells) of residual variance 0.1 to 1 and random effects of `ratios` (components, genes) of it."""
    genes = ratios.shape[1]
    Y = 0.1 * rng.normal(size=(genes, len(X))) @ X
    Y += rng.normal(size=Y.shape)
    for codes, width, ratio in zip(groups, levels, ratios, strict=True):
        Y += (np.sqrt(ratio)[:, None] * rng.normal(size=(genes, width)))[:, codes]
    return np.sqrt(rng.uniform(0.1, 1.0, genes))[:, None] * Y


def _write(folder: Path, name: str, Y: np.ndarray, X: np.ndarray, groups: np.ndarray, levels, title: str) -> Case:
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    for file, values in (("Y.f64", Y.astype("<f8")), ("X.f64", X.astype("<f8")), ("groups.i4", groups.astype("<i4"))):
        values.tofile(path / file)
    case = Case(name, path, len(Y), Y.shape[1], len(X), tuple(map(int, levels)), title)
    _meta(case)
    return case


def _meta(case: Case) -> None:
    lines = {
        "genes": case.genes,
        "cells": case.cells,
        "fixed": case.fixed,
        "components": len(case.levels),
    }
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    (case.folder / "meta.dcf").write_text(text, encoding="utf-8")
