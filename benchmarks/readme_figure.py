"""Draw the figure of the README, light and dark: a volcano plot and the calibration of the tests.

The volcano plot is that of the README's example; the calibration panel shows results/calibration.json.
`python benchmarks/readme_figure.py` writes lmm_gpu/guide/overview-light.svg and -dark.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import lmm_gpu
from lmm_gpu import pl

ROOT = Path(__file__).parent.parent
#: Methods of the calibration panel: title and colour.
METHODS = {
    "generalized": ("lmm_gpu\n(default)", "#009E73"),
    "satterthwaite": ("Satterthwaite", "#E69F00"),
    "residual (n - p)": ("cells as\nsamples (n - p)", "#D55E00"),
}
TITLE: dict[str, Any] = {"fontsize": "medium", "fontweight": "bold", "pad": 8}
#: Colours of text and background.
THEMES = {"light": ("#1a1d21", "#ffffff"), "dark": ("#e6e8ea", "#0d1117")}


def example() -> Any:
    """Table of tests of the README's example."""
    genes = {"nGenes": 300, "nDEgenes": 45, "minbeta": 1, "maxbeta": 2, "var_randomeffects": 0.05}
    cells = lmm_gpu.simuRNAseq(nCells=3000, nsam=12, ncls=2, seed=6, **genes)
    fit = lmm_gpu.fit((cells.counts.T, cells.metadata), "~ trt + cls + (1 | sam)", is_counts=True, progress=False)
    return fit.test("trt[T.B]")


def calibration(ax: Any) -> None:
    """False positive rate over the nominal 0.1 %, one point per design without effects."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "calibration.json").read_text(encoding="utf-8"))["rows"]
    between = [row for row in rows if row["contrast"] == "between"]
    rng = np.random.default_rng(0)
    for at, (method, (_, colour)) in enumerate(METHODS.items()):
        rates = np.maximum([row["false"][method][2] for row in between], 0.05)  # (designs,)
        ax.scatter(at + rng.uniform(-0.18, 0.18, rates.size), rates, s=16, color=colour, lw=0, alpha=0.9)
    ax.axhline(1.0, color=plt.rcParams["text.color"], lw=0.8, ls="--", zorder=0)
    ax.set_yscale("log")
    ax.set_xticks(range(len(METHODS)), [title for title, _ in METHODS.values()])
    ax.set(ylabel="false positives / nominal rate (0.1 %)", xlim=(-0.5, len(METHODS) - 0.5))
    ax.set_title(f"{len(between)} simulated designs without effects", loc="left", **TITLE)
    ax.spines[["top", "right"]].set_visible(False)


def draw(table: Any, theme: str) -> Path:
    """Write the figure in one theme; return its path."""
    ink, ground = THEMES[theme]
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    with mpl.rc_context({**colours, "figure.facecolor": ground, "axes.facecolor": ground}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.7), layout="constrained")
        pl.volcano(table, labels=5, ax=left)
        calibration(right)
        left.set_title("Example below: 12 donors, 3,000 cells", loc="left", **TITLE)
        handles, labels = left.get_legend_handles_labels()
        left.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 0.0), frameon=False, fontsize="small")
        for text in left.texts:
            text.set_path_effects([])
        path = ROOT / "lmm_gpu" / "guide" / f"overview-{theme}.svg"
        with mpl.rc_context({"svg.hashsalt": "lmm_gpu", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None, "Creator": "lmm_gpu"})
        plt.close(figure)
    return path


def main() -> None:
    table = example()
    for theme in THEMES:
        path = draw(table, theme)
        print(f"wrote {path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
