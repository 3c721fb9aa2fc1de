"""Are p-values what they say? False positives over nominal of every method of df, where nothing has an effect; power.

Cells are normal: with a group of cells for each donor and condition, the sums of each group are all that a fit needs,
and are drawn exactly. One component, the donors; the treatment lies between donors or within them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

import lmm_gpu
from lmm_gpu.pvalues import t_pvalue

DONORS, SPREADS, RATIOS, CONTRASTS = (6, 10, 20, 60), ("100 each", "5 to 400"), (0.0, 0.01, 0.1), ("between", "within")
LEVELS = (0.05, 0.01, 0.001)
#: Name of a rule, bounds of the fit, and method of df. The first is the default.
RULES = {
    "generalized": ("auto", "generalized"),
    "generalized, >= 0": ("nonnegative", "generalized"),
    "satterthwaite": ("auto", "satterthwaite"),
    "satterthwaite, >= 0": ("nonnegative", "satterthwaite"),
    "kenward-roger, >= 0": ("nonnegative", "kenward-roger"),
    "lmertest, >= 0": ("nonnegative", "lmertest"),
    "between-within, >= 0": ("nonnegative", "between-within"),
    "residual (n - p)": ("auto", "residual"),
}
#: Of the standard error that the true variances have: the effect for power.
EFFECT = 4.0


@dataclass(frozen=True)
class Groups:
    """Cells of each donor and condition."""

    donor: np.ndarray  #: (G,)
    treated: np.ndarray  #: (G,), 0 or 1
    cells: np.ndarray  #: (G,)

    @classmethod
    def of(cls, donors: int, spread: str, contrast: str) -> Groups:
        """100 cells of each donor, or from 5 to 400; every other donor treated, or 30 to 70 % of each one's cells."""
        each = np.full(donors, 100) if spread == "100 each" else np.rint(np.geomspace(5, 400, donors)).astype(int)
        donor = np.arange(donors)
        if contrast == "between":
            return cls(donor, donor % 2, each)
        share = 0.5 if spread == "100 each" else np.where(donor % 2, 0.3, 0.7)
        some = np.maximum(2, np.rint(each * share)).astype(int)
        return cls(np.tile(donor, 2), np.repeat([0, 1], donors), np.concatenate([each - some, some]))

    @property
    def X(self) -> np.ndarray:
        """Intercept and treatment (G, 2)."""
        return np.stack([np.ones(len(self.donor)), self.treated], axis=1)

    @property
    def Z(self) -> np.ndarray:
        """Donors (G, D)."""
        return np.eye(self.donor.max() + 1)[self.donor]

    def simulate(self, ratio: float, genes: int, effect: float, rng: np.random.Generator) -> tuple:
        """Statistics of genes with residual variance 1, and the means of the groups (G, genes)."""
        n, X, Z = self.cells[:, None], self.X, self.Z
        u = rng.normal(size=(Z.shape[1], genes)) * np.sqrt(ratio)
        mean = Z @ u + effect * X[:, 1:] + rng.normal(size=(len(n), genes)) / np.sqrt(n)  # (G, genes)
        squares = (n * mean**2).sum(axis=0) + rng.chisquare(n.sum() - len(n), genes)
        names = [[f"{what}{i}" for i in range(size)] for what, size in (("G", genes), ("X", 2), ("Z", Z.shape[1]))]
        products = {name: A.T @ (n * B) for name, (A, B) in self._pairs(X, Z, mean).items()}
        labels = dict(zip(("features", "fixed_names", "random_names"), map(tuple, names), strict=True))
        d = (Z.shape[1],)
        summary = lmm_gpu.SummaryStats(
            n=int(n.sum()), **products, Ynorm=squares, d=d, component_names=("donor",), **labels
        )
        return summary, mean

    @staticmethod
    def _pairs(X: np.ndarray, Z: np.ndarray, Y: np.ndarray) -> dict:
        return {"XX": (X, X), "XY": (X, Y), "ZX": (Z, X), "ZY": (Z, Y), "ZZ": (Z, Z)}

    def standard_error(self, ratio: float) -> float:
        """Of the treatment, with the true variances."""
        V = ratio * self.Z @ self.Z.T + np.diag(1.0 / self.cells)
        return float(np.sqrt(np.linalg.inv(self.X.T @ np.linalg.solve(V, self.X))[1, 1]))

    def pseudobulk(self, mean: np.ndarray) -> np.ndarray:
        """P-values (genes,) of the t test of donors' means, paired where both conditions are in each donor."""
        treated, control = mean[self.treated == 1], mean[self.treated == 0]
        if len(self.donor) > self.donor.max() + 1:
            return stats.ttest_rel(treated, control).pvalue
        return stats.ttest_ind(treated, control).pvalue


def p_values(summary: lmm_gpu.SummaryStats, groups: Groups, mean: np.ndarray) -> dict[str, np.ndarray]:
    """P-values (genes,) of the treatment by every rule."""
    fits = {bounds: lmm_gpu.fit(summary, bounds=bounds, progress=False) for bounds in ("auto", "nonnegative")}
    found = {}
    for name, (bounds, method) in RULES.items():
        tested = fits[bounds].contrast_test(np.array([[0.0, 1.0]]), method)
        found[name] = t_pvalue(tested.t, tested.df)[0]
    return found | {"pseudobulk t": groups.pseudobulk(mean)}


def study(genes: int, seed: int = 0, report=print) -> list[dict]:
    """One row for each design, variance ratio and contrast."""
    rows = []
    for contrast, donors, spread, ratio in itertools.product(CONTRASTS, DONORS, SPREADS, RATIOS):
        rng = np.random.default_rng(
            [seed, donors, SPREADS.index(spread), RATIOS.index(ratio), ["between", "within"].index(contrast)]
        )
        groups = Groups.of(donors, spread, contrast)
        null = p_values(*_drawn(groups, ratio, genes, 0.0, rng))
        effect = EFFECT * groups.standard_error(ratio)
        changed = p_values(*_drawn(groups, ratio, genes // 4, effect, rng))
        row = {"contrast": contrast, "donors": donors, "cells": spread, "ratio": ratio, "genes": genes}
        row["false"] = {name: [float((p < level).mean() / level) for level in LEVELS] for name, p in null.items()}
        row["power"] = {name: [float((p < level).mean()) for level in LEVELS] for name, p in changed.items()}
        rows.append(row)
        report(_line(row))
    return rows


def _drawn(groups: Groups, ratio: float, genes: int, effect: float, rng: np.random.Generator) -> tuple:
    summary, mean = groups.simulate(ratio, genes, effect, rng)
    return summary, groups, mean


def _line(row: dict) -> str:
    shown = ("generalized", "satterthwaite", "residual (n - p)", "pseudobulk t")
    rates = "  ".join("/".join(f"{x:5.2f}" for x in row["false"][name]) for name in shown)
    power = " ".join(f"{row['power'][name][0]:.2f}" for name in ("generalized", "generalized, >= 0", "pseudobulk t"))
    return f"{row['contrast']:8s}{row['donors']:3d} donors {row['cells']:9s} {row['ratio']:4g}  {rates}   power {power}"
