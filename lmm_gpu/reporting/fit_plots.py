"""Pictures of a fit: shares of the variance, how estimation ended, and one gene group by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from ..backend.arrays import like, to_numpy
from ..estimation.mixed_model import Contrasts
from ..inference.group_levels import Grouping, groupings, level_name
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
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
#: Up to so many features or groups have their names on the axis, and so many features one bar each.
NAMED, BARS = 40, 60
_COLOURS = {
    "converged": BLUE,
    "converged_at_rounding": PALETTE[4],
    "boundary": PALETTE[1],
    "max_iter": VERMILLION,
    "failed": PALETTE[3],
}


def variance(fit: LMMFit, *, kind: str | None = None, ax: Axes | None = None) -> Axes:
    """Shares of the random effects and the residual in the variance that the fixed effects leave.

    Parameters
    ----------
    fit : LMMFit
    kind : {"bars", "violin"}, optional
        "bars": one per feature, sorted by its residual share, negative shares below zero. "violin": how the shares of
        all features are spread, by component, with median and quartiles. By default bars for up to 60 features.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For another kind, a fit without an estimate, or if matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor] * [0.5, 2]
    >>> fit = lmm_gpu.fit((Y, pd.DataFrame({"donor": donor.astype(str)})), "~ 1 + (1 | donor)")
    >>> [text.get_text() for text in lmm_gpu.pl.variance(fit).get_xticklabels()]
    ['Gene2', 'Gene1']
    """
    shares = fit.variance_fractions().replace([np.inf, -np.inf], np.nan).dropna(axis=1)  # (k+1, estimated)
    kind = kind or ("bars" if shares.shape[1] <= BARS else "violin")
    if kind not in ("bars", "violin"):
        raise ValueError(f"kind={kind!r} is not known; use 'bars' or 'violin'")
    if not shares.shape[1]:
        raise ValueError("no feature has an estimate of its variances")
    colours = dict(zip(shares.index, [*(PALETTE * len(shares))[: len(shares) - 1], GREY], strict=True))
    lost = fit.summary.m - shares.shape[1]
    title = "shares of variance" + (f" ({lost:,} without estimate)" if lost else "")
    if kind == "bars":
        room = room_for(shares.columns) if shares.shape[1] <= NAMED else 0.0
        ax = axes(ax, width=float(np.clip(0.25 * shares.shape[1], 4.0, 9.0)), height=4.2 + room)
        _share_bars(ax, shares, colours)
        head(ax, title, ncols=4)
    else:
        ax = axes(ax, width=float(np.clip(1.2 * len(shares), 4.6, 9.0)))
        _share_violins(ax, shares, colours)
        head(ax, title)
    ax.set_ylabel("share")
    return ax


def _share_bars(ax: Axes, shares: pd.DataFrame, colours: dict[str, str]) -> None:
    ordered = shares[shares.columns[np.argsort(shares.iloc[-1], kind="stable")]]
    up, down = np.zeros(ordered.shape[1]), np.zeros(ordered.shape[1])  # (estimated,), heights so far
    at = np.arange(ordered.shape[1])
    for component, share in zip(ordered.index, ordered.to_numpy(), strict=True):
        start = np.where(share < 0, down, up)  # (estimated,)
        drawn = {"color": colours[component], "lw": 0, "label": component}
        if at.size <= BARS:
            ax.bar(at, share, 0.85, start, **drawn)
        else:
            ax.fill_between(at, start, start + share, step="mid", rasterized=True, **drawn)
        up, down = up + np.maximum(share, 0), down + np.minimum(share, 0)
    ax.set_xlim(-0.6, at.size - 0.4)
    if down.min() < 0:
        ax.axhline(0.0, color=DARK, lw=0.8)
    if at.size <= NAMED:
        name_places(ax, ordered.columns)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{at.size:,} features, sorted by residual share")


def _share_violins(ax: Axes, shares: pd.DataFrame, colours: dict[str, str]) -> None:
    for at, (component, share) in enumerate(zip(shares.index, shares.to_numpy(), strict=True)):
        quartiles = np.quantile(share, [0.25, 0.5, 0.75])
        if np.ptp(share) > 1e-12:  # the density of one value is none
            bodies: Any = ax.violinplot(share, [at], widths=0.85, showextrema=False)["bodies"]
            for body in bodies:
                body.set(facecolor=colours[component], edgecolor="none", alpha=0.9)
        ax.vlines(at, quartiles[0], quartiles[2], color=DARK, lw=5)
        ax.scatter([at], [quartiles[1]], s=22, color="white", edgecolor=DARK, zorder=3)
    if shares.to_numpy().min() < 0:
        ax.axhline(0.0, color=DARK, lw=0.8, zorder=0)
    ax.set_xticks(range(len(shares)), shares.index)


def convergence(fit: LMMFit, *, ax: Axes | None = None) -> Axes:
    """How many iterations the features took, by status; the legend counts them.

    Parameters
    ----------
    fit : LMMFit
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> donor = np.repeat(np.arange(8), 10)
    >>> Y = np.random.default_rng(1).normal(size=(80, 3)) + donor[:, None]
    >>> fit = lmm_gpu.fit((Y, pd.DataFrame({"donor": donor.astype(str)})), "~ 1 + (1 | donor)")
    >>> [text.get_text() for text in lmm_gpu.pl.convergence(fit).get_legend().get_texts()]
    ['converged (3)']
    """
    status, niter = fit.status.to_numpy(), fit.niter.to_numpy()
    words = [str(word) for word in fit.status.value_counts().index]  # the most frequent first, and behind
    ax, most = axes(ax), 0
    for i, word in enumerate(words):
        taken = niter[(status == word) & np.isfinite(niter)]
        value, count = np.unique(taken, return_counts=True)
        most = max([most, *count])
        ax.bar(value, count, 0.9 * 0.65**i, color=_COLOURS.get(word, GREY))
        ax.bar([np.nan], [0], color=_COLOURS.get(word, GREY), label=f"{word} ({np.count_nonzero(status == word):,})")
    ax.set(xlabel="iterations", ylabel="features")
    ax.xaxis.set_major_locator(whole_numbers())
    if most > 100:  # so that the few that took long are seen
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.6)
    else:
        ax.yaxis.set_major_locator(whole_numbers())
    head(ax, f"{fit.method}, {fit.summary.m:,} features", ncols=2)
    return ax


def gene(
    fit: LMMFit,
    feature: str,
    *,
    component: str | None = None,
    by: str | None = None,
    cells: pd.Series | None = None,
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """One feature, group by group (donor by donor): means of the cells, and fitted means with intervals.

    Both come from the summary statistics. A fitted mean is X beta + Z u, averaged over the cells of the group, so
    that few cells are drawn towards the fixed effects; its interval is for that value, given the variances, and
    includes the uncertainty of the fixed effects.

    Parameters
    ----------
    fit : LMMFit
    feature : str
    component : str, optional
        The random effect with the groups; by default the first of `fit` that has any.
    by : str, optional
        Fixed effect that is 0 or 1 in each whole group: splits and colours the groups. By default the first such.
    cells : Series, optional
        The feature's values in single cells, on the scale of the fit, indexed by group: drawn as dots behind.
    level : float
        Coverage of the intervals.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown feature, component or fixed effect, groups in `cells` that the fit lacks, or if matplotlib is
        missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> donor = np.repeat(list("pqrs"), 10)
    >>> Y = np.random.default_rng(1).normal(size=(40, 1)) + np.repeat([3, 2, 0, 1], 10)[:, None]
    >>> fit = lmm_gpu.fit((Y, pd.DataFrame({"donor": donor})), "~ 1 + (1 | donor)")
    >>> [text.get_text() for text in lmm_gpu.pl.gene(fit, "Gene1").get_xticklabels()]
    ['r', 's', 'q', 'p']
    """
    means = group_means(fit, feature, component, by, level)
    named, at = len(means) <= NAMED, np.arange(len(means))
    width, room = float(np.clip(0.22 * len(means), 4.8, 10.0)), room_for(means.index) if named else 0.0
    ax = axes(ax, width, 4.0 + room)
    if cells is not None:
        _draw_cells(ax, means, cells)
    _draw_fitted(ax, means)
    size = np.interp(means["cells"], [0, means["cells"].max()], [5, 60] if named else [1, 4])
    few, many = int(means["cells"].min()), int(means["cells"].max())
    label = f"mean of {few:,} to {many:,} cells" if few < many else f"mean of {many:,} cells"
    lw = 0.8 if named else 0.3
    ax.scatter(at, means["mean"], s=size, facecolor="none", edgecolor=DARK, lw=lw, label=label, zorder=3)
    if named:
        name_places(ax, means.index)
    else:
        ax.set_xticks([])
    count = "" if named else f"{len(means):,} groups of "
    ax.set(xlabel=count + means.attrs["component"], ylabel=scale_of(fit.summary.transform), xlim=(-0.8, at[-1] + 0.8))
    head(ax, str(feature))
    return ax


def _draw_fitted(ax: Axes, means: pd.DataFrame) -> None:
    """Fitted means with their intervals, in a colour for each value of `by`."""
    by, named = means.attrs["by"], len(means) <= NAMED
    for value, colour, label in ((0.0, BLUE, f"not {by}" if by else "fitted mean"), (1.0, VERMILLION, by)):
        rows = np.flatnonzero(means["by"] == value)
        if rows.size:
            reach = means[["fitted", "ci_low", "ci_high"]].iloc[rows]
            ax.vlines(rows, reach["ci_low"], reach["ci_high"], color=colour, lw=1.2, alpha=1.0 if named else 0.4)
            ax.scatter(rows, reach["fitted"], s=16 if named else 4, color=colour, lw=0, label=label, zorder=3)


def group_means(
    fit: LMMFit, feature: str, component: str | None = None, by: str | None = None, level: float = 0.95
) -> pd.DataFrame:
    """What `gene` shows, one row per group: cells, mean, fitted, ci_low, ci_high, by; sorted by `by` and fitted."""
    summary = fit.summary
    if feature not in summary.features:
        raise ValueError(f"{feature!r} is not a feature of the fit; it has {', '.join(summary.features[:5])}, ...")
    i = summary.features.index(feature)
    group, rows = _group(fit, component)
    filled = np.flatnonzero(group.counts > 0)
    counts, rows = group.counts[filled, None], rows[filled]  # (groups, 1), (groups,)
    K, L = group.sums[filled] / counts, to_numpy(summary.ZZ)[rows] / counts  # (groups, p), (groups, q)
    model = fit.model.with_genes(summary.select(slice(i, i + 1)))
    theta = like(fit.estimates.theta[:, [i]], model.beta_ols)  # (k+1, 1)
    fitted = K @ to_numpy(model.coefficients(theta)) + L @ to_numpy(model.random_effects(theta))  # (groups, 1)
    about, k = like(K, model.beta_ols), like(L.T, model.beta_ols)
    loadings = Contrasts(about, a=(about @ model.xxz).T - k, ols=((about @ model.XXinv) * about).sum(axis=1))
    with np.errstate(invalid="ignore"):
        se = np.sqrt(to_numpy(model.contrast_variance(theta, loadings)))  # (groups, 1), of X beta + Z u
    reach = special.ndtri(0.5 + 0.5 * level) * se
    column = _column(fit, group, by)
    found = pd.DataFrame(
        {
            "cells": counts[:, 0],
            "mean": to_numpy(summary.ZY)[rows, i] / counts[:, 0],
            "fitted": fitted[:, 0],
            "ci_low": (fitted - reach)[:, 0],
            "ci_high": (fitted + reach)[:, 0],
            "by": 0.0 if column is None else np.rint(K[:, column]),
        },
        index=[level_name(summary.random_names[row], group.name) for row in rows],
    )
    found.attrs = {"component": group.name, "by": "" if column is None else summary.fixed_names[column]}
    return found.sort_values(["by", "fitted"], kind="stable")


def _group(fit: LMMFit, component: str | None) -> tuple[Grouping, np.ndarray]:
    """The grouping and its rows of Z."""
    known = {group.name: group for group in groupings(fit.summary)}
    if not known or (component is not None and component not in known):
        raise ValueError(f"component={component!r}: the random effects that are groups: {', '.join(known) or 'none'}")
    group = known[component] if component is not None else next(iter(known.values()))
    at = fit.summary.component_names.index(group.name)
    first = sum(fit.summary.d[:at])
    return group, np.arange(first, first + fit.summary.d[at])


def _whole(group: Grouping) -> np.ndarray:
    """Which fixed effects (p,) are 0 or 1 in whole groups, of both kinds."""
    counts = group.counts[group.counts > 0, None]
    share = group.sums[group.counts > 0] / counts  # (groups, p)
    return group.indicators & (np.isclose(share, 0) | np.isclose(share, 1)).all(axis=0) & (np.ptp(share, axis=0) > 0.5)


def options_for(fit: LMMFit, weights: np.ndarray) -> dict[str, str]:
    """Options of `gene` that show a contrast (p,): the first groups that are wholly of one of the cells it compares.

    None if what it compares varies within all groups.
    """
    for group in groupings(fit.summary):
        compared = np.flatnonzero(_whole(group) & (weights != 0))
        if compared.size:
            return {"component": group.name, "by": fit.summary.fixed_names[compared[0]]}
    return {}


def _column(fit: LMMFit, group: Grouping, by: str | None) -> int | None:
    """Position of the fixed effect that colours the groups."""
    whole, names = _whole(group), fit.summary.fixed_names
    if by is None:
        return int(np.flatnonzero(whole)[0]) if whole.any() else None
    if by not in names or not whole[names.index(by)]:
        known = ", ".join(names[i] for i in np.flatnonzero(whole)) or "none"
        raise ValueError(f"by={by!r}: wanted a fixed effect that is 0 or 1 in a whole group of {group.name}: {known}")
    return names.index(by)


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
