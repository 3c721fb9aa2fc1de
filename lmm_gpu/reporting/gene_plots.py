"""Plots of one gene: group by group, or donors as lines between the levels of a factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..results.lmm_fit import LMMFit
from ..sumstats.transform import scale_of
from .canvas import (
    BLUE,
    DARK,
    DENSE,
    GREY,
    PALETTE,
    VERMILLION,
    axes,
    head,
    name_places,
    point_size,
    room_for,
    shortened,
)
from .fit_plots import NAMED
from .group_means import group_means, is_factor, paired_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gene(
    fit: LMMFit,
    feature: str,
    *,
    by: str | None = None,
    facet: str | None = None,
    component: str | None = None,
    cells: pd.Series | None = None,
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Plot one gene: donors as lines between conditions, or donor by donor.

    With a factor of the design as `by`, the x axis has its levels, the points are the means of the cells of each
    donor with their intervals, and lines join the means of one donor. Otherwise one position per donor shows the
    mean of the cells, and the fitted mean X beta + Z u (shrunk towards the fixed effects) with its interval, which
    includes the uncertainty of the fixed effects. All of it is computed from the summary statistics. A gene with a
    negative variance is refitted with ``bounds="nonnegative"``, and the title says so.

    Parameters
    ----------
    fit : LMMFit
    feature : str
        Name of the gene.
    by : str, optional
        A factor such as "condition": paired plot. A fixed effect such as "condition[T.stim]" that is constant within
        every donor: donor by donor, sorted and coloured by it; by default the first such effect.
    facet : str, optional
        Second factor of a paired plot, such as "cell_type": one panel per level.
    component : str, optional
        Name of the random effect whose levels are the groups; by default the first one that fits.
    cells : Series, optional
        Values of single cells on the scale of the fit, indexed by group: drawn as dots (donor by donor only).
    level : float
        Coverage of the intervals.
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown gene, random effect or fixed effect, if the sums do not contain the means by `by` and `facet`
        (with the random effect to add), for groups in `cells` that the fit lacks, or if matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> donor = np.repeat(list("pqrs"), 10)
    >>> Y = np.random.default_rng(1).normal(size=(40, 1)) + np.repeat([3, 2, 0, 1], 10)[:, None]
    >>> obs = pd.DataFrame({"donor": donor, "arm": ["ctrl", "stim"] * 20})
    >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor) + (1 | donor:arm)")
    >>> [text.get_text() for text in lmm_gpu.pl.gene(fit, "Gene1").get_xticklabels()]
    ['r', 's', 'q', 'p']
    >>> [text.get_text() for text in lmm_gpu.pl.gene(fit, "Gene1", by="arm").get_xticklabels()]
    ['ctrl', 'stim']
    """
    if facet is not None and by is None:
        raise ValueError("facet= needs by=, the factor of the x axis")
    if by is not None and (facet is not None or is_factor(fit, by)):
        if cells is not None:
            raise ValueError("cells= is for plots donor by donor: leave out by= and facet=, or cells=")
        return _paired(fit, paired_means(fit, feature, by, facet, component, level), feature, by, level, ax)
    means = group_means(fit, feature, component, by, level)
    named, at = len(means) <= NAMED, np.arange(len(means))
    width, room = float(np.clip(0.22 * len(means), 4.8, 10.0)), room_for(means.index) if named else 0.0
    ax = axes(ax, width, 4.3 + room)
    if cells is not None:
        _draw_cells(ax, means, cells)
    _draw_fitted(ax, means, level)
    size = np.interp(means["cells"], [0, means["cells"].max()], [5, 60] if named else [1, 4])
    label, lw = f"mean of the cells ({_cell_counts(means)})", 0.8 if named else 0.3
    ax.scatter(at, means["mean"], s=size, facecolor="none", edgecolor=DARK, lw=lw, label=label, zorder=3)
    if named:
        name_places(ax, list(means.index))
    else:
        ax.set_xticks([])
    count = "" if named else f"{len(means):,} groups of "
    ax.set(xlabel=count + means.attrs["component"], ylabel=scale_of(fit.summary.transform), xlim=(-0.8, at[-1] + 0.8))
    note = " (negative variance held at zero)" if means.attrs["nonnegative"] else ""
    head(ax, shortened(str(feature)) + note)
    return ax


def _cell_counts(means: pd.DataFrame) -> str:
    few, many = int(means["cells"].min()), int(means["cells"].max())
    return f"{few:,} to {many:,} per group" if few < many else f"{many:,} per group"


def _draw_fitted(ax: Axes, means: pd.DataFrame, level: float) -> None:
    """Draw the fitted means with their intervals, one colour per value of `by`."""
    by, named = means.attrs["by"], len(means) <= NAMED
    interval = f"fitted mean, {100 * level:g} % interval"
    labels = means.attrs["labels"] if by else (interval, "")
    for value, colour, label in zip((0.0, 1.0), (BLUE, VERMILLION), labels, strict=True):
        rows = np.flatnonzero(means["by"] == value)
        if rows.size:
            reach = means[["fitted", "ci_low", "ci_high"]].iloc[rows]
            ax.vlines(rows, reach["ci_low"], reach["ci_high"], color=colour, lw=1.2, alpha=1.0 if named else 0.4)
            ax.scatter(rows, reach["fitted"], s=16 if named else 4, color=colour, lw=0, label=label, zorder=3)


def _draw_cells(ax: Axes, means: pd.DataFrame, cells: Any) -> None:
    position = {name: at for at, name in enumerate(means.index)}
    levels = [str(name) for name in cells.index]
    unknown = list(dict.fromkeys(name for name in levels if name not in position))
    if unknown:
        raise ValueError(f"cells is indexed by {', '.join(unknown[:5])}: no group of {means.attrs['component']}")
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(levels))
    at = np.array([position[name] for name in levels]) + jitter  # (cells,)
    s = 0.3 * point_size(len(levels))
    ax.scatter(at, cells.to_numpy(), s=s, color=GREY, lw=0, zorder=0, rasterized=len(levels) > DENSE)


def _paired(fit: LMMFit, means: pd.DataFrame, feature: str, by: str, level: float, ax: Axes | None) -> Axes:
    """Draw `paired_means`: the facets side by side, in each one position per level of `by`."""
    order = list(means.attrs["order"].values())
    levels, facets = _ordered(means["by"], order[0]), _ordered(means["facet"], order[-1])
    step = len(levels) + 0.6
    at = means["facet"].map(facets.index).to_numpy() * step + means["by"].map(levels.index).to_numpy()
    ticks = [i * step + j for i in range(len(facets)) for j in range(len(levels))]
    names = levels * len(facets)
    upright = len(ticks) > 5 and max(map(len, names)) > 4
    width = float(np.clip(0.75 * len(ticks) + 1.2, 3.6, 12.0))
    ax = axes(ax, width, 4.2 + (room_for(names) if upright else 0.0))
    for _, one in means.assign(at=at).groupby(["facet", "unit"], sort=False):
        joined = one.sort_values("at")
        ax.plot(joined["at"], joined["mean"], color=GREY, lw=0.9, zorder=1)
    _draw_means(ax, means.assign(at=at), levels, level)
    if upright:
        ax.set_xticks(ticks, names, rotation=90, fontsize="small")
    else:
        ax.set_xticks(ticks, names)
    for i, name in enumerate(facets if len(facets) > 1 else []):
        middle = i * step + 0.5 * (len(levels) - 1)
        ax.text(middle, 0.99, str(name), transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize="small")
        if i:
            ax.axvline(i * step - 0.8, color=GREY, lw=0.6)
    if len(facets) > 1:  # room for their names above the points
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.08 * (high - low))
    ax.set(xlabel=by, ylabel=scale_of(fit.summary.transform), xlim=(-0.6, ticks[-1] + 0.6))
    head(ax, shortened(str(feature)), ncols=2)
    return ax


def _draw_means(ax: Axes, means: pd.DataFrame, levels: list[str], level: float) -> None:
    """Draw the means of the cells with intervals, and the average over the donors of each position."""
    unit = means.attrs["unit"]
    for j, name in enumerate(levels):
        rows, colour = means[means["by"] == name], PALETTE[j % len(PALETTE)]
        ax.vlines(rows["at"], rows["ci_low"], rows["ci_high"], color=colour, lw=1.1, alpha=0.7, zorder=2)
        ax.scatter(rows["at"], rows["mean"], s=18, color=colour, lw=0, zorder=3)
    first = means.iloc[:0]
    label = f"cells of one {unit}: mean, {100 * level:g} % interval"
    ax.errorbar(first["at"], first["mean"], yerr=[[], []], fmt="o", ms=4, color=PALETTE[0], lw=1.1, label=label)
    average = means.groupby("at")["mean"].mean()
    ax.hlines(
        average, average.index - 0.22, average.index + 0.22, color=DARK, lw=2.2, zorder=4, label=f"average of {unit}s"
    )


def _ordered(names: pd.Series, known: list[str]) -> list[str]:
    """Levels in the order of the model, reference first; unknown ones last, in the order in which they appear."""
    place = {name: at for at, name in enumerate(known)}
    return sorted(dict.fromkeys(names), key=lambda name: place.get(name, len(known)))
