"""Small multiples of growth.py."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

TITLES = {
    "cells": ("Cells", "40 donors"),
    "donors": ("Donors", "20,000 cells"),
    "components": ("Variance components", "20,000 cells, 40 donors"),
    "genes": ("Genes in one call", "5,000 cells, start-up included"),
}
#: Colour-blind-safe colours (Okabe and Ito) and markers.
STYLES = {
    "lmm_gpu": ("#000000", "o"),
    "flash-mm": ("#0072B2", "s"),
    "lme-python": ("#D55E00", "^"),
    "statsmodels": ("#009E73", "D"),
    "lme4": ("#CC79A7", "v"),
}


def draw(points: list[dict], path: Path) -> Path:
    """Draw one panel per axis, both scales logarithmic, the same for all panels; return `path`."""
    axes = [axis for axis in TITLES if any(point["axis"] == axis for point in points)]
    figure, panels = plt.subplots(
        1, len(axes), figsize=(3.1 * len(axes) + 0.6, 3.7), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, axis in zip(panels[0], axes, strict=True):
        _panel(panel, axis, [point for point in points if point["axis"] == axis and "ms_per_gene" in point])
    panels[0, 0].set_ylabel("milliseconds per gene, one processor")
    panels[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def _panel(panel: plt.Axes, axis: str, points: list[dict]) -> None:
    for peer, (color, mark) in STYLES.items():
        line = sorted((point["value"], point["ms_per_gene"]) for point in points if point["peer"] == peer)
        if line:
            panel.plot(*zip(*line, strict=True), color=color, marker=mark, markersize=5, linewidth=1.6, label=peer)
    values = sorted({point["value"] for point in points})
    panel.set(xscale="log", yscale="log", xticks=values, xticklabels=[_short(value) for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    title, rest = TITLES[axis]
    panel.set_title(title, fontsize=11, loc="left")
    panel.set_xlabel(rest, fontsize=9, color="#555555")
    panel.grid(color="#e6e6e6", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.08)


def _short(value: int) -> str:
    return f"{value // 1000}k" if value >= 1000 else str(value)
