"""Plots of a fit as a whole: variance shares, variance partition, and the progress of the estimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..results.lmm_fit import LMMFit
from .canvas import (
    BLUE,
    DARK,
    GREY,
    PALETTE,
    VERMILLION,
    axes,
    head,
    name_places,
    room_for,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
#: Maximum number of genes or groups with tick labels, and of genes with one bar each.
NAMED, BARS = 40, 60
_COLOURS = {
    "converged": BLUE,
    "converged_at_rounding": PALETTE[4],
    "boundary": PALETTE[1],
    "max_iter": VERMILLION,
    "failed": PALETTE[3],
    "ill_conditioned": PALETTE[2],
}


def variance(fit: LMMFit, *, kind: str | None = None, ax: Axes | None = None) -> Axes:
    """Shares of the random effects and the residual in the variance that the fixed effects leave unexplained.

    Parameters
    ----------
    fit : LMMFit
    kind : {"bars", "violin"}, optional
        "bars": one stacked bar per gene, sorted by the residual share; negative shares are drawn below zero.
        "violin": distribution over the genes, one violin per component, with median and quartiles. By default bars
        for up to 60 genes.
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For an unknown kind, a fit without any estimate, or if matplotlib is missing.

    See Also
    --------
    variance_partition : includes the fixed effects.

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
    _check_estimated(shares)
    title = "shares of the unexplained variance" + _without_estimate(fit.summary.m - shares.shape[1])
    ax = _draw_bars(shares, title, ax) if kind == "bars" else _draw_violins(shares, title, ax)
    ax.set_ylabel("share of variance")
    return ax


def variance_partition(fit: LMMFit, *, ax: Axes | None = None) -> Axes:
    """Violin plot over the genes: fraction of variance by fixed term, random effect and residual.

    Parameters
    ----------
    fit : LMMFit
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes
        Terms in the order of their median, the residual last; the marks are median and quartiles.

    Raises
    ------
    ValueError
        For a fit without any estimate, or if matplotlib is missing.

    See Also
    --------
    LMMFit.variance_partition : the numbers, and their definition.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = rng.normal(size=(80, 9)) + 2 * rng.normal(size=(8, 9))[donor]
    >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)")
    >>> [text.get_text() for text in lmm_gpu.pl.variance_partition(fit).get_xticklabels()][-1]
    'residual'
    """
    shares = fit.variance_partition().dropna().T  # (terms, estimated)
    _check_estimated(shares)
    order = shares.iloc[:-1].median(axis=1).sort_values(ascending=False, kind="stable").index
    title = "variance partition" + _without_estimate(fit.summary.m - shares.shape[1])
    ax = _draw_violins(shares.loc[[*order, shares.index[-1]]], title, ax)
    ax.set_ylabel("fraction of variance")
    return ax


def variance_bars(fit: LMMFit, genes: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Stacked bars of chosen genes: fraction of variance by fixed term, random effect and residual.

    Parameters
    ----------
    fit : LMMFit
    genes : sequence of str
        Names of the genes, in the order of the bars.
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For unknown genes, genes without an estimate, or if matplotlib is missing.

    See Also
    --------
    LMMFit.variance_partition : the numbers, and their definition.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = rng.normal(size=(80, 9)) + 2 * rng.normal(size=(8, 9))[donor]
    >>> ax = lmm_gpu.pl.variance_bars(lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)"), ["Gene3", "Gene1"])
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['Gene3', 'Gene1']
    """
    chosen = [genes] if isinstance(genes, str) else list(genes)
    unknown = [name for name in chosen if name not in set(fit.summary.features)]
    if unknown or not chosen:
        raise ValueError(f"genes={', '.join(unknown) or 'none'}: expected names of genes of the fit")
    shares = fit.variance_partition().loc[chosen].T  # (terms, genes)
    lost = shares.columns[shares.isna().any()]
    if len(lost):
        raise ValueError(f"genes={', '.join(lost)}: no estimate of the variances, see fit.status")
    ax = _draw_bars(shares, "variance partition", ax, ordered=True)
    ax.set_ylabel("fraction of variance")
    return ax


def _check_estimated(shares: pd.DataFrame) -> None:
    if not shares.shape[1]:
        raise ValueError("no gene has an estimate of its variances, there is nothing to plot")


def _without_estimate(count: int) -> str:
    return f" ({count:,} without estimate)" if count else ""


def _colours_of(terms: pd.Index[str]) -> dict[str, str]:
    """Colours by term; the residual, which is last, is grey."""
    return dict(zip(terms, [*(PALETTE * len(terms))[: len(terms) - 1], GREY], strict=True))


def _draw_bars(shares: pd.DataFrame, title: str, ax: Axes | None, *, ordered: bool = False) -> Axes:
    """Stacked bars of shares (terms, genes), sorted by the residual share unless they are `ordered`."""
    if not ordered:
        shares = shares[shares.columns[np.argsort(shares.iloc[-1], kind="stable")]]
    room = room_for(shares.columns) if shares.shape[1] <= NAMED else 0.0
    legend = 0.2 * max(len(shares) - 3, 0)  # inches
    ax = axes(ax, width=float(np.clip(0.25 * shares.shape[1], 4.6, 9.0)), height=4.2 + room + legend)
    _stack(ax, shares, _colours_of(shares.index))
    head(ax, title, ncols=4)
    return ax


def _stack(ax: Axes, shares: pd.DataFrame, colours: dict[str, str]) -> None:
    up, down = np.zeros(shares.shape[1]), np.zeros(shares.shape[1])  # (genes,), heights so far
    at = np.arange(shares.shape[1])
    for component, share in zip(shares.index, shares.to_numpy(), strict=True):
        start = np.where(share < 0, down, up)  # (genes,)
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
        name_places(ax, list(shares.columns))
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{at.size:,} genes, sorted by residual share")


def _draw_violins(shares: pd.DataFrame, title: str, ax: Axes | None) -> Axes:
    """One violin per row of shares (terms, genes), with median and quartiles."""
    colours, slot = _colours_of(shares.index), 1.2
    room = room_for(shares.index) if len(shares) > 6 or max(map(len, shares.index)) > 14 else 0.0
    ax = axes(ax, width=float(np.clip(slot * len(shares), 4.6, 9.0)), height=4.2 + room)
    for at, (component, share) in enumerate(zip(shares.index, shares.to_numpy(), strict=True)):
        quartiles = np.quantile(share, [0.25, 0.5, 0.75])
        if np.ptp(share) > 1e-12:  # shares, between 0 and 1; a single value has no density
            bodies: Any = ax.violinplot(share, [at], widths=0.85, showextrema=False)["bodies"]
            for body in bodies:
                body.set(facecolor=colours[component], edgecolor="none", alpha=0.9)
        ax.vlines(at, quartiles[0], quartiles[2], color=DARK, lw=5)
        ax.scatter([at], [quartiles[1]], s=22, color="white", edgecolor=DARK, zorder=3)
    if shares.to_numpy().min() < 0:
        ax.axhline(0.0, color=DARK, lw=0.8, zorder=0)
    if room:
        name_places(ax, list(shares.index))
    else:
        ax.set_xticks(range(len(shares)), list(shares.index))
    head(ax, title)
    return ax


def convergence(fit: LMMFit, *, ax: Axes | None = None) -> Axes:
    """Histogram of the number of iterations, by status; the legend has the number of genes of each status.

    Parameters
    ----------
    fit : LMMFit
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

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
    words = [str(word) for word in fit.status.value_counts().index]  # the most frequent first, at the back
    ax, most = axes(ax), 0
    for i, word in enumerate(words):
        taken = niter[(status == word) & np.isfinite(niter)]
        value, count = np.unique(taken, return_counts=True)
        most = max([most, *count])
        ax.bar(value, count, 0.9 * 0.65**i, color=_COLOURS.get(word, GREY))
        ax.bar([np.nan], [0], color=_COLOURS.get(word, GREY), label=f"{word} ({np.count_nonzero(status == word):,})")
    ax.set(xlabel="iterations", ylabel="genes")
    ax.xaxis.set_major_locator(whole_numbers())
    if most > 100:  # a log scale, so that rare large numbers of iterations remain visible
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.6)
    else:
        ax.yaxis.set_major_locator(whole_numbers())
    head(ax, f"{fit.method}, {fit.summary.m:,} genes", ncols=2)
    return ax
