"""Plots of a table of tests: volcano, MA, p-value histogram and QQ plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special, stats

from ..results.lmm_fit import LMMFit
from ..sumstats.transform import scale_of
from .canvas import (
    BLUE,
    DARK,
    DENSE,
    GREY,
    VERMILLION,
    axes,
    effect_label,
    head,
    label_points,
    point_size,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
#: Median of chi-squared on one degree of freedom.
_MEDIAN_CHI2 = float(special.chdtri(1, 0.5))
#: Line style of a threshold.
_LIMIT: dict[str, Any] = {"color": DARK, "lw": 0.8, "ls": "--", "zorder": 0}
#: Maximum number of points of a QQ plot; more would overlap.
_QQ_POINTS = 2000


def one_contrast(data: Any, contrast: Any = None, columns: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """Return the rows of one contrast of a table of tests, or of a fit that is tested for it, and its name.

    `contrast` may be left out if the table has a single contrast besides the intercept.

    Raises
    ------
    ValueError
        If the contrast is ambiguous or unknown, if the table lacks `columns`, or if no gene has a p-value.
    """
    table = data.test(contrast) if isinstance(data, LMMFit) else data
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"got {type(data).__name__}; expected a fit, or a table of its tests: fit.test(...)")
    lacking = [name for name in ("contrast", "log10_p_value", *columns) if name not in table]
    if lacking:
        remedy = "F tests have no direction, use qq or pvalue_hist" if "df1" in table else "pass fit.test(...)"
        raise ValueError(f"the table has no column {', '.join(lacking)}: {remedy}")
    known = list(dict.fromkeys(table["contrast"]))
    if contrast is not None and not isinstance(data, LMMFit):
        chosen = [contrast] if contrast in known else []
    else:
        chosen = [name for name in known if name != "Intercept"] or known
    if len(chosen) != 1:
        got = f"contrast={contrast!r}" if contrast is not None else f"{len(known)} contrasts"
        raise ValueError(f"got {got}; choose one with contrast=: {', '.join(map(str, known))}")
    rows = table[table["contrast"] == chosen[0]]
    if not np.isfinite(rows["log10_p_value"].to_numpy(float)).any():
        raise ValueError(f"{chosen[0]}: no gene has a p-value, there is nothing to plot")
    return rows, str(chosen[0])


def volcano(
    data: Any,
    contrast: Any = None,
    *,
    fdr: float = 0.05,
    min_change: float = 0.0,
    labels: int | Sequence[str] = 10,
    ax: Axes | None = None,
) -> Axes:
    """Volcano plot: effects against -log10 p-values, one point per gene, significant genes in colour.

    Parameters
    ----------
    data : DataFrame or LMMFit
        Table made by `LMMFit.test`, or a fit to be tested.
    contrast : optional
        Name of a contrast in the table; for a fit, anything that `LMMFit.test` accepts. May be left out if there is
        only one contrast besides the intercept.
    fdr : float
        Genes with an adjusted p-value of at most `fdr` are significant; a dashed line marks the threshold.
    min_change : float
        Smallest absolute effect of a significant gene.
    labels : int or sequence of str
        Number of significant genes to label, smallest p-value first, or the names of the genes to label.
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If the contrast is ambiguous or unknown, for an F test, for unknown gene names, or if matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> donor = np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = np.random.default_rng(1).normal(size=(80, 3)) + np.outer(donor >= 4, [0, 5, -5])
    >>> ax = lmm_gpu.pl.volcano(lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)"))
    >>> sorted(text.get_text() for text in ax.texts)
    ['Gene2', 'Gene3']
    """
    table, name = one_contrast(data, contrast, ("variable", "log_fc", "adj_p_value"))
    x, y = table["log_fc"].to_numpy(float), -table["log10_p_value"].to_numpy(float)
    ax, cut = axes(ax), _cut(y, table["adj_p_value"].to_numpy(float), fdr)
    if cut is not None:
        ax.axhline(cut, **_LIMIT)
    for at in (-min_change, min_change) if min_change else ():
        ax.axvline(at, **_LIMIT)
    ax.set(xlabel=effect_label(table.attrs.get("transform")), ylabel="$-\\log_{10}$ p-value")
    return _effects(ax, table, name, x, y, _called(table, fdr, min_change), labels)


def ma(
    data: Any,
    contrast: Any = None,
    *,
    fdr: float = 0.05,
    min_change: float = 0.0,
    labels: int | Sequence[str] = 10,
    ax: Axes | None = None,
) -> Axes:
    """MA plot: effects against mean expression, one point per gene, significant genes in colour.

    Parameters
    ----------
    data, contrast, fdr, min_change, labels, ax
        As in `volcano`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        As `volcano`, and if the summary statistics do not include the sums of the values.

    Examples
    --------
    >>> import pandas as pd, lmm_gpu
    >>> table = pd.DataFrame({"variable": ["a", "b"], "contrast": "x", "log_fc": [1.0, 0.1], "mean_expr": [2.0, 3.0]})
    >>> table["log10_p_value"], table["adj_p_value"] = [-9.0, -0.5], [2e-9, 0.3]
    >>> [text.get_text() for text in lmm_gpu.pl.ma(table).texts]
    ['a']
    """
    table, name = one_contrast(data, contrast, ("variable", "log_fc", "adj_p_value", "mean_expr"))
    x, y = table["mean_expr"].to_numpy(float), table["log_fc"].to_numpy(float)
    if np.isnan(x).all() and len(x):
        raise ValueError(
            "mean expression is not available: the summary statistics do not include the sums of the values (Ysum)"
        )
    ax = axes(ax)
    ax.axhline(0.0, color=DARK, lw=0.8, zorder=0)
    for at in (-min_change, min_change) if min_change else ():
        ax.axhline(at, **_LIMIT)
    transform = table.attrs.get("transform")
    unit = f", {scale_of(transform)}" if transform else ""
    ax.set(xlabel=f"mean expression{unit}", ylabel=effect_label(transform))
    return _effects(ax, table, name, x, y, _called(table, fdr, min_change), labels)


def pvalue_hist(data: Any, contrast: Any = None, *, bins: int | None = None, ax: Axes | None = None) -> Axes:
    """Histogram of p-values, with the band that holds 95 % of the bars if no gene has an effect.

    Parameters
    ----------
    data, contrast
        As in `volcano`; joint F tests too.
    bins : int, optional
        By default 5 to 40, by the number of features.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        As `volcano`.

    Examples
    --------
    >>> import pandas as pd, lmm_gpu
    >>> table = pd.DataFrame({"contrast": "x", "log10_p_value": np.log10([0.01, 0.02, 0.5, 0.9])})
    >>> [int(bar.get_height()) for bar in lmm_gpu.pl.pvalue_hist(table, bins=2).containers[0]]
    [2, 2]
    """
    table, name = one_contrast(data, contrast)
    log10_p = table["log10_p_value"].to_numpy(float)
    p = 10.0 ** log10_p[np.isfinite(log10_p)]
    bins = bins or next((count for count in (40, 20, 10) if p.size >= 20 * count), 5)
    low, high = (stats.binom(p.size, 1.0 / bins).ppf(tail) for tail in (0.025, 0.975))
    ax = axes(ax)
    count, *_ = ax.hist(p, bins=bins, range=(0.0, 1.0), color=BLUE, edgecolor="white", lw=0.5)
    ax.axhspan(low, high, color=GREY, alpha=0.5, lw=0, zorder=0, label="95 % of bars if no gene has an effect")
    for at, style in ((low, ":"), (p.size / bins, "--"), (high, ":")):
        ax.axhline(at, color=DARK, lw=0.8, ls=style)
    ax.yaxis.set_major_locator(whole_numbers())
    ax.set(xlabel="p-value", ylabel="genes", xlim=(0.0, 1.0), ylim=(0.0, 1.06 * max(high, *np.ravel(count))))
    head(ax, name + _untested(~np.isfinite(log10_p)))
    return ax


def qq(data: Any, contrast: Any = None, *, ax: Axes | None = None) -> Axes:
    """QQ plot: observed against expected -log10 p-values, with pointwise 95 % limits under the null hypothesis.

    The legend reports lambda, the median chi-squared statistic over its expectation: 1 for calibrated tests.

    Parameters
    ----------
    data, contrast, ax
        As in `volcano`; F tests are accepted as well. With many genes, those with large p-values are thinned out.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        As `volcano`.

    Examples
    --------
    >>> import pandas as pd, lmm_gpu
    >>> table = pd.DataFrame({"contrast": "x", "log10_p_value": np.log10([0.25, 0.5, 0.75])})
    >>> ax = lmm_gpu.pl.qq(table)
    >>> ax.collections[-1].get_offsets().data.round(2).tolist()
    [[0.6, 0.6], [0.3, 0.3], [0.12, 0.12]]
    """
    table, name = one_contrast(data, contrast)
    log10_p = table["log10_p_value"].to_numpy(float)
    observed = np.sort(log10_p[np.isfinite(log10_p)])  # (t,)
    t = observed.size
    rank = np.arange(1, t + 1) if t <= _QQ_POINTS else np.unique(np.rint(np.geomspace(1, t, _QQ_POINTS)).astype(int))
    expected = -np.log10(rank / (t + 1.0))
    low, high = (-np.log10(special.betaincinv(rank, t - rank + 1, tail)) for tail in (0.975, 0.025))
    inflation = special.chdtri(1, 10.0 ** np.median(observed)) / _MEDIAN_CHI2
    ax = axes(ax)
    ax.fill_between(expected, low, high, color=GREY, alpha=0.5, lw=0, label="95 % limits if no gene has an effect")
    ax.plot([0, expected[0]], [0, expected[0]], color=DARK, lw=0.8, ls="--")
    shown: dict[str, Any] = {"s": point_size(rank.size), "color": BLUE, "lw": 0, "rasterized": rank.size > DENSE}
    ax.scatter(expected, -observed[rank - 1], label=f"$\\lambda$ = {inflation:.2f}", **shown)
    ax.set(xlabel="expected $-\\log_{10}$ p-value", ylabel="observed $-\\log_{10}$ p-value")
    head(ax, name + _untested(~np.isfinite(log10_p)))
    return ax


def _called(table: pd.DataFrame, fdr: float, min_change: float) -> dict[str, np.ndarray]:
    """Masks (m,) of the tested rows: not significant, down, up."""
    change = table["log_fc"].to_numpy(float)
    significant = (table["adj_p_value"].to_numpy(float) <= fdr) & (np.abs(change) >= min_change)
    tested = np.isfinite(change) & np.isfinite(table["log10_p_value"].to_numpy(float))
    return {
        "not significant": tested & ~significant,
        "down": tested & significant & (change < 0),
        "up": tested & significant & (change > 0),
    }


def _cut(y: np.ndarray, adjusted: np.ndarray, fdr: float) -> float | None:
    """Return the threshold of -log10 p (m,): the Benjamini-Hochberg critical value of the last significant gene."""
    significant, others = y[adjusted <= fdr], y[adjusted > fdr]
    if not significant.size:
        return None
    critical = -np.log10(fdr * significant.size / (significant.size + others.size))
    return float(np.clip(critical, others.max(initial=-np.inf), significant.min()))  # clip: valid for other adjustments


def _effects(
    ax: Axes,
    table: pd.DataFrame,
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    called: dict[str, np.ndarray],
    labels: int | Sequence[str],
) -> Axes:
    """Draw the points, the title and the gene labels; everything else is already on the axes."""
    colours = {"not significant": GREY, "down": BLUE, "up": VERMILLION}
    for call, rows in called.items():
        ax.margins(0.14, 0.08)  # room for labels
        ax.scatter(
            x[rows],
            y[rows],
            s=point_size(x.size),
            color=colours[call],
            lw=0,
            label=f"{call} ({np.count_nonzero(rows):,})",
            rasterized=x.size > DENSE,
        )
    head(ax, name + _untested(~np.any(list(called.values()), axis=0)))
    _label(ax, table, x, y, called, labels)
    return ax


def _label(
    ax: Axes,
    table: pd.DataFrame,
    x: np.ndarray,
    y: np.ndarray,
    called: dict[str, np.ndarray],
    labels: int | Sequence[str],
) -> None:
    """Label the significant genes of smallest p-value, or the given genes, away from the strongest points."""
    names = table["variable"].astype(str).to_numpy()
    drawn = np.any(list(called.values()), axis=0) & np.isfinite(x) & np.isfinite(y)
    order = np.lexsort((-np.abs(table["log_fc"]), table["log10_p_value"]))
    strongest = order[((called["up"] | called["down"]) & drawn)[order]]
    if isinstance(labels, int):
        chosen = strongest[:labels]
    else:
        wanted = [labels] if isinstance(labels, str) else list(labels)
        unknown = [name for name in wanted if name not in set(names)]
        if unknown:
            raise ValueError(f"labels={', '.join(unknown)}: the table has no such gene")
        chosen = np.flatnonzero(np.isin(names, wanted) & drawn)
    label_points(ax, x[chosen], y[chosen], names[chosen], np.column_stack([x, y])[strongest])


def _untested(lost: np.ndarray) -> str:
    """Mention in the title how many genes (mask `lost`, (m,)) the plot leaves out."""
    return f" ({np.count_nonzero(lost):,} without a test)" if lost.any() else ""
