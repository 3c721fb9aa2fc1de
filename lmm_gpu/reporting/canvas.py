"""Shared parts of all plots: lazy matplotlib, colour-blind-safe colours, titles and legends, labels, and files."""

from __future__ import annotations

import base64
import io
import logging
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.optional import require
from ..io.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
#: Colours of Okabe and Ito, which are distinguishable with red-green colour blindness.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PINK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY, DARK = "#B0B0B0", "#444444"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILLION)
#: With more points than this, SVG and PDF files hold a bitmap of the points instead of one shape per point.
DENSE = 2000
#: Maximum number of points that labels avoid.
_AVOIDED = 60
#: Widths in inches: one character of a legend, one of a title, and the legend's handle with its padding.
_CHARACTER, _TITLE_CHARACTER, _HANDLE = 0.06, 0.08, 0.35
#: Maximum number of characters of a tick label.
_LONGEST = 40
SUFFIXES = (".png", ".svg", ".pdf")


def need(module: str) -> Any:
    """Import a module of the extra `plots`; raise ValueError with the install command if it is missing."""
    return require(module, "plotting", 'pip install "lmm-gpu[plots]"')


def axes(ax: Axes | None, width: float = 5.0, height: float = 4.2) -> Axes:
    """Return `ax`, or the axes of a new figure (sizes in inches), without the top and right spines."""
    if ax is None:
        _, ax = need("matplotlib.pyplot").subplots(figsize=(width, height), layout="constrained")
    assert ax is not None
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    return ax


def head(ax: Axes, title: str, ncols: int = 3) -> None:
    """Put the title above the axes and the legend in rows below the title, where neither covers a point."""
    handles, labels = ax.get_legend_handles_labels()
    width = ax.get_window_extent().width / ax.figure.dpi
    ncols = _columns_that_fit(labels, ncols, width)
    rows = -(-len(handles) // ncols)
    title = textwrap.fill(title, max(int(width / _TITLE_CHARACTER), 10), break_long_words=False)
    ax.set_title(title, loc="left", fontsize="medium", fontweight="bold", pad=8 + 14 * rows)
    if handles:
        spacing = {"borderaxespad": 0.2, "borderpad": 0.2, "handletextpad": 0.3, "columnspacing": 1.2}
        style: dict[str, Any] = {"ncols": ncols, "frameon": False, "fontsize": "small"} | spacing
        legend = ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **style)
        legend.set_in_layout(False)  # otherwise a wide legend would shrink the axes
        for handle in legend.legend_handles:
            if handle is not None and hasattr(handle, "set_sizes"):  # keep small points visible in the legend
                handle.set_sizes([25.0])


def _columns_that_fit(labels: Sequence[str], most: int, width: float) -> int:
    """Return the number of legend columns, at most `most`, that fit `width` inches."""
    for ncols in range(min(most, len(labels)), 1, -1):
        columns = np.array_split([len(label) for label in labels], ncols)
        if sum(max(column) * _CHARACTER + _HANDLE for column in columns) <= width:
            return ncols
    return 1


def shortened(name: str, most: int = 28) -> str:
    """Shorten a name of more than `most` characters by leaving out its middle.

    >>> shortened("ENSG00000000003.12-TSPAN6", 15)
    'ENSG000…-TSPAN6'
    """
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def room_for(names: Iterable[str]) -> float:
    """Return the extra height in inches that vertical tick labels need, compared with short ones."""
    return _CHARACTER * max(max(len(_on_axis(name)) for name in names) - 6, 0)


def name_places(ax: Axes, names: Sequence[str]) -> None:
    """Write `names` as vertical tick labels at 0, 1, ... of the x axis."""
    ax.set_xticks(range(len(names)), [_on_axis(name) for name in names], rotation=90, fontsize="small")


def _on_axis(name: str) -> str:
    return shortened(str(name), _LONGEST)


def whole_numbers() -> Any:
    """Return a tick locator for counts."""
    return need("matplotlib.ticker").MaxNLocator(integer=True, min_n_ticks=1)


#: Axis label of an effect by the transform of the values.
_EFFECTS = {
    "log2p1": "log2 fold change",
    "log1p": "log fold change (natural log)",
    "normalize": "log fold change (natural log)",
    "log2 cpm": "log2 fold change",
}


def effect_label(transform: str | None) -> str:
    """Return the axis label of an effect, with its unit, for values transformed as `Transform.label` says.

    >>> effect_label("log2p1"), effect_label("normalize to 10000.0"), effect_label(None)
    ('log2 fold change', 'log fold change (natural log)', 'effect (unit of the fitted values)')
    """
    return _EFFECTS.get((transform or "").partition(" to ")[0], "effect (unit of the fitted values)")


def point_size(m: int) -> float:
    """Return a marker area in square points that suits `m` points, from 10 to 30,000."""
    return float(np.interp(np.log10(max(m, 1)), [1.0, 4.5], [40.0, 6.0]))


def label_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], others: np.ndarray) -> None:
    """Write `names` at `x`, `y` (l,); adjustText moves them so that they overlap neither each other nor `others`.

    `others` has shape (points, 2). Call this after everything else is drawn: the positions depend on the final layout.
    """
    if not len(names):
        return
    adjust_text = need("adjustText").adjust_text
    logging.getLogger("adjustText").setLevel(logging.ERROR)  # it logs every label that it cannot place perfectly
    halo = [need("matplotlib.patheffects").withStroke(linewidth=2, foreground="white")]
    style: dict[str, Any] = {"fontsize": "small", "path_effects": halo, "zorder": 4}
    texts = [ax.text(u, v, shortened(name), **style) for u, v, name in zip(x, y, names, strict=True)]
    avoided = others[:_AVOIDED]
    line = {"arrowstyle": "-", "color": DARK, "lw": 0.6}
    space = {"expand": (1.2, 1.5), "force_text": (0.3, 1.0), "force_static": (0.1, 0.2)}
    adjust_text(texts, avoided[:, 0], avoided[:, 1], ax=ax, arrowprops=line, iter_lim=150, **space)


def save(ax: Axes, path: str | Path, dpi: int = 200) -> None:
    """Save the figure of `ax` as .png, .svg or .pdf.

    An existing file is replaced only after the new one is complete. Text stays text in .svg and .pdf, and the output
    is reproducible: the same plot gives the same bytes.

    Parameters
    ----------
    ax : matplotlib axes
        As returned by every plot function.
    path : str or Path
        Missing parent folders are created.
    dpi : int
        Dots per inch of .png, and of the points of dense plots in .svg and .pdf.

    Raises
    ------
    ValueError
        For another file extension.

    Examples
    --------
    >>> import tempfile, pandas as pd
    >>> from lmm_gpu import pl
    >>> table = pd.DataFrame({"contrast": "b - a", "log10_p_value": [-1.0, -0.3, -0.1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pl.save(pl.qq(table), f"{folder}/qq.svg")
    ...     Path(folder, "qq.svg").read_text().startswith("<?xml")
    True
    """
    suffix = check_plot_path(path)
    with replacing(path) as part:
        _write(ax, part, suffix, dpi)


def as_address(ax: Axes, most: int = 60_000, dpi: int = 144) -> tuple[str, float]:
    """Return the plot as a data: URL and its width in inches, and close the figure of `ax`.

    The background is transparent. The format is SVG, or PNG if the SVG has more than `most` bytes.
    """
    figure: Any = ax.figure.canvas.figure
    kind, drawn = "svg+xml", io.BytesIO()
    _write(ax, drawn, ".svg", dpi, transparent=True)
    if len(drawn.getvalue()) > most:
        kind, drawn = "png", io.BytesIO()
        _write(ax, drawn, ".png", dpi, transparent=True)
    need("matplotlib.pyplot").close(figure)
    return f"data:image/{kind};base64,{base64.b64encode(drawn.getvalue()).decode()}", float(figure.get_figwidth())


#: Metadata of each format: no dates, so that files are reproducible.
_METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": "lmm_gpu"},
    ".svg": {"Creator": "lmm_gpu", "Date": None},
    ".pdf": {"Creator": "lmm_gpu", "CreationDate": None},
}


def _write(ax: Axes, target: Any, suffix: str, dpi: int, transparent: bool = False) -> None:
    text = {"svg.fonttype": "none", "svg.hashsalt": "lmm_gpu", "pdf.fonttype": 42}
    metadata: Any = _METADATA[suffix]
    with need("matplotlib").rc_context(text):
        figure: Any = ax.figure.canvas.figure  # the whole figure, also for a subfigure
        figure.savefig(target, format=suffix[1:], dpi=dpi, metadata=metadata, transparent=transparent)


def check_plot_path(path: str | Path) -> str:
    """Return the file extension of `path`; raise ValueError if plots cannot be written in that format."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write a plot to {path}: the file name must end in {', '.join(SUFFIXES)}")
    return suffix
