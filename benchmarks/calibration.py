"""Calibration of the p-values: false positive rates over nominal of every df method without effects, and power.

Values are normal, so that the sums of each group of cells (donor x condition) can be drawn exactly. One variance
component, the donors. The treatment is between or within donors, or its effect is tested in one of three cell types,
which is partly between donors.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
from scipy import stats

import lmm_gpu
from lmm_gpu.inference.pvalues import t_pvalue

DONORS, SPREADS, RATIOS = (6, 10, 20, 60), ("100 each", "5 to 400"), (0.0, 0.01, 0.1)
CONTRASTS = ("between", "in part", "within")
LEVELS = (0.05, 0.01, 0.001)
#: Name of a method, bounds of the fit, and df method. The first is the default.
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
#: Methods that are printed and plotted, with their colours.
SHOWN = {"generalized": "#000000", "satterthwaite": "#0072B2", "residual (n - p)": "#D55E00", "pseudobulk t": "#009E73"}
#: Of the standard error that the true variances have: the effect for power.
EFFECT = 4.0


@dataclass(frozen=True)
class Groups:
    """Number of cells by donor, condition and cell type."""

    donor: np.ndarray  #: (G,)
    treated: np.ndarray  #: (G,), 0 or 1
    cells: np.ndarray  #: (G,)
    kind: np.ndarray  #: (G,), type of the cells

    @classmethod
    def of(cls, donors: int, spread: str, contrast: str) -> Groups:
        """Donors of 100, or of 5 to 400 cells; every other donor is treated, or 30 to 70 % of the cells of each."""
        each = np.full(donors, 100) if spread == "100 each" else np.rint(np.geomspace(5, 400, donors)).astype(int)
        donor = np.arange(donors)
        if contrast == "between":
            return cls(donor, donor % 2, each, 0 * donor)
        if contrast == "in part":
            some = np.maximum(2, each // 3)
            return cls(*(np.tile(part, 3) for part in (donor, donor % 2, some)), np.repeat([0, 1, 2], donors))
        share = 0.5 if spread == "100 each" else np.where(donor % 2, 0.3, 0.7)
        some = np.maximum(2, np.rint(each * share)).astype(int)
        treated = np.repeat([0, 1], donors)
        return cls(np.tile(donor, 2), treated, np.concatenate([each - some, some]), 0 * treated)

    @property
    def X(self) -> np.ndarray:
        """Design (G, p): mean and treatment effect of each cell type; the effect in the first is tested."""
        kinds = self.kind[:, None] == np.arange(self.kind.max() + 1)  # (G, types)
        return np.stack([kinds, kinds * self.treated[:, None]], axis=2).reshape(len(kinds), -1).astype(float)

    @property
    def Z(self) -> np.ndarray:
        """Donors (G, D)."""
        return np.eye(self.donor.max() + 1)[self.donor]

    def simulate(self, ratio: float, genes: int, effect: float, rng: np.random.Generator) -> tuple:
        """Statistics of genes with residual variance 1, and the means of the groups (G, genes)."""
        n, X, Z = self.cells[:, None], self.X, self.Z
        u = rng.normal(size=(Z.shape[1], genes)) * np.sqrt(ratio)
        mean = Z @ u + effect * X[:, 1:2] + rng.normal(size=(len(n), genes)) / np.sqrt(n)  # (G, genes)
        squares = (n * mean**2).sum(axis=0) + rng.chisquare(n.sum() - len(n), genes)
        names = [
            [f"{what}{i}" for i in range(size)] for what, size in (("G", genes), ("X", X.shape[1]), ("Z", Z.shape[1]))
        ]
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
        """Standard error of the treatment effect at the true variances."""
        V = ratio * self.Z @ self.Z.T + np.diag(1.0 / self.cells)
        return float(np.sqrt(np.linalg.inv(self.X.T @ np.linalg.solve(V, self.X))[1, 1]))

    def pseudobulk(self, mean: np.ndarray) -> np.ndarray:
        """P-values (genes,) of the t test of donor means, paired if every donor has both conditions."""
        treated, control = (mean[(self.treated == one) & (self.kind == 0)] for one in (1, 0))
        if len(treated) == self.donor.max() + 1:
            return stats.ttest_rel(treated, control).pvalue
        return stats.ttest_ind(treated, control).pvalue


def p_values(summary: lmm_gpu.SummaryStats, mean: np.ndarray, groups: Groups) -> dict[str, np.ndarray]:
    """P-values (genes,) of the treatment by every method."""
    fits = {bounds: lmm_gpu.fit(summary, bounds=bounds, progress=False) for bounds in ("auto", "nonnegative")}
    found = {}
    for name, (bounds, method) in RULES.items():
        tested = fits[bounds].contrast_test(np.eye(len(summary.fixed_names))[1:2], method)
        found[name] = t_pvalue(tested.t, tested.df)[0]
    return found | {"pseudobulk t": groups.pseudobulk(mean)}


def study(genes: int, quick: bool) -> Iterator[dict]:
    """Rows of results: one per contrast, design and variance ratio."""
    donors_of, ratios = (DONORS[:2], RATIOS[1:2]) if quick else (DONORS, RATIOS)
    for contrast, donors, spread, ratio in itertools.product(CONTRASTS, donors_of, SPREADS, ratios):
        rng = np.random.default_rng([donors, SPREADS.index(spread), int(1000 * ratio), len(contrast)])
        groups = Groups.of(donors, spread, contrast)
        null = p_values(*groups.simulate(ratio, genes, 0.0, rng), groups)
        effect = EFFECT * groups.standard_error(ratio)
        changed = p_values(*groups.simulate(ratio, genes // 4, effect, rng), groups)
        row = {"contrast": contrast, "donors": donors, "cells": spread, "ratio": ratio, "genes": genes}
        yield row | {"false": _shares(null, _over_nominal), "power": _shares(changed, _below)}


def counts(genes: int, quick: bool) -> Iterator[dict]:
    """Negative binomial counts of simuRNAseq without effects, fitted as log2(1 + y)."""
    for donors, cells in ((6, 1_200), (12, 3_000), (24, 6_000))[: 2 if quick else 3]:
        made = lmm_gpu.simuRNAseq(nGenes=genes, nCells=cells, nsam=donors, ncls=1, nDEgenes=0, seed=donors)
        obs, Y = made.metadata, np.log2(1.0 + made.counts.to_numpy().T)
        treated = obs.groupby("sam", observed=True)["trt"].first() == made.treatment
        means = np.stack([Y[(obs["sam"] == one).to_numpy()].mean(axis=0) for one in treated.index])  # (donors, genes)
        found = {"pseudobulk t": stats.ttest_ind(means[treated], means[~treated]).pvalue}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some genes are zero in all cells
            fits = {
                bounds: lmm_gpu.fit((Y, obs), "~ trt + (1 | sam)", is_counts=False, bounds=bounds, progress=False)
                for bounds in ("auto", "nonnegative")
            }
            for name, (bounds, method) in RULES.items():
                found[name] = fits[bounds].test(f"trt[T.{made.treatment}]", df=method)["p_value"].to_numpy()
        found = {name: p[np.isfinite(p)] for name, p in found.items()}
        row = {"contrast": "counts", "donors": donors, "cells": f"{cells:,} in all", "genes": genes}
        yield row | {"false": _shares(found, _over_nominal)}


def _over_nominal(p: np.ndarray, level: float) -> float:
    return (p < level).mean() / level


def _below(p: np.ndarray, level: float) -> float:
    return (p < level).mean()


def _shares(found: dict[str, np.ndarray], share: Callable[[np.ndarray, float], float]) -> dict[str, list[float]]:
    return {name: [round(float(share(p, level)), 4) for level in LEVELS] for name, p in found.items()}


def described(row: dict) -> str:
    """Describe the design of a row."""
    ratio = f", ratio {row['ratio']:g}" if "ratio" in row else ""
    return f"{row['contrast']}, {row['donors']} donors, {row['cells']}{ratio}"


def worst(rows: list[dict]) -> dict[str, dict]:
    """Extreme rates by method and contrast: highest at 5 % and 0.1 %, lowest at 5 % with and without donor variance."""
    found: dict[str, dict] = {name: {} for name in [*RULES, "pseudobulk t"]}
    for name, contrast in itertools.product(found, CONTRASTS):
        rates = [(row["ratio"], row["false"][name]) for row in rows if row["contrast"] == contrast]
        found[name][contrast] = {
            "most at 5 %": max(rate[0] for _, rate in rates),
            "most at 0.1 %": max(rate[2] for _, rate in rates),
            "least at 5 %, ratio > 0": min(rate[0] for ratio, rate in rates if ratio > 0),
            "least at 5 %, ratio 0": min((rate[0] for ratio, rate in rates if ratio == 0), default=None),
        }
    return found


def draw(rows: list[dict], path: Path) -> None:
    """Plot the false positive rates over nominal at 5 % and 0.1 %, and the power."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.19 * len(rows) + 1.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    y = np.arange(len(rows))
    for (name, colour), marker in zip(SHOWN.items(), "odsx", strict=True):
        for ax, level in zip(panels[:2], (0, 2), strict=True):
            rate = np.array([row["false"][name][level] for row in rows])
            ax.plot(np.clip(rate, 0.05, 100), y, marker, color=colour, ms=4, label=name)
        if not name.startswith("residual"):  # its power comes with false positives
            power = [row["power"][name][0] if "power" in row else np.nan for row in rows]
            panels[2].plot(power, y, marker, color=colour, ms=4)
    for ax, level, most in zip(panels[:2], (0, 2), (1.15, 1.5), strict=True):
        ax.axvspan(0.8, most, color="#dddddd", lw=0, zorder=0)
        ax.set_xscale("log")
        ax.set_xlim(0.045, 120)
        ax.set_xticks([0.05, 0.2, 1, 5, 20, 100], ["≤ 0.05", "0.2", "1", "5", "20", "100"])
        ax.set_title(f"false positives over nominal, {100 * LEVELS[level]:g} %", fontsize=9, loc="left")
    panels[2].set_xlim(0, 1)
    panels[2].set_title("power at 5 % (effect: 4 standard errors)", fontsize=9, loc="left")
    panels[0].set_yticks(y, [described(row) for row in rows], fontsize=6.5)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for ax in panels:
        ax.grid(axis="y", lw=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = machine.parser("calibration", __doc__)
    parser.add_argument("--genes", type=int, help="per row, by default 20,000, or 2,000")
    options = parser.parse_args()
    genes = options.genes or (2_000 if options.quick else 20_000)
    rows = []
    for row in itertools.chain(study(genes, options.quick), counts(min(genes, 4_000), options.quick)):
        rows.append(row)
        shown = "  ".join("/".join(f"{rate:5.2f}" for rate in row["false"][name]) for name in SHOWN)
        print(f"{described(row):44s} {shown}", flush=True)
    summary = worst(rows)
    for name, contrast in itertools.product(summary, CONTRASTS):
        found = {what: rate for what, rate in summary[name][contrast].items() if rate is not None}
        print(f"{name:22s} {contrast:8s} " + "  ".join(f"{what}: {rate:.2f}" for what, rate in found.items()))
    path = machine.write({"levels": LEVELS, "rows": rows, "worst": summary}, options)
    draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
