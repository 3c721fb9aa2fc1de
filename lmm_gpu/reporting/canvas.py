"""What the pictures share: matplotlib when it is needed, colours that all eyes tell apart, labels, and files."""

from __future__ import annotations

import base64
import io
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.optional import need
from ..io.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
#: Okabe and Ito's colours, which those who confuse red and green tell apart.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PINK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY, DARK = "#B0B0B0", "#444444"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILLION)
#: From so many points on, SVG and PDF hold a picture of the points in place of each.
DENSE = 2000
#: Points that labels keep away from, at most.
_AVOIDED = 60
#: Inches: a character of a legend and of a title, and what a legend has before and after each text.
_CHARACTER, _TITLE_CHARACTER, _HANDLE = 0.06, 0.08, 0.35
#: Characters of a name on an axis, at most.
_LONGEST = 40
SUFFIXES = (".png", ".svg", ".pdf")


def axes(ax: Axes | None, width: float = 5.0, height: float = 4.2) -> Axes:
    """Return `ax`, or the axes of a new figure of so many inches, without its upper and right spine."""
    if ax is None:
        _, ax = need("matplotlib.pyplot").subplots(figsize=(width, height), layout="constrained")
    assert ax is not None
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    return ax


def head(ax: Axes, title: str, ncols: int = 3) -> None:
    """Put the title above the axes, and the legend in rows between them, where neither hides a point."""
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
        legend.set_in_layout(False)  # the title keeps its place; its width would take that of the axes
        for handle in legend.legend_handles:
            if handle is not None and hasattr(handle, "set_sizes"):  # points are seen there, however small
                handle.set_sizes([25.0])


def _columns_that_fit(labels: Sequence[str], most: int, width: float) -> int:
    """Columns of a legend, filled one after the other, within so many inches."""
    for ncols in range(min(most, len(labels)), 1, -1):
        columns = np.array_split([len(label) for label in labels], ncols)
        if sum(max(column) * _CHARACTER + _HANDLE for column in columns) <= width:
            return ncols
    return 1


def shortened(name: str, most: int = 28) -> str:
    """Leave out the middle of a name that is longer than `most`.

    >>> shortened("ENSG00000000003.12-TSPAN6", 15)
    'ENSG000…-TSPAN6'
    """
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def room_for(names: Sequence[str]) -> float:
    """Inches that upright names below an axis take, beyond those of short ones."""
    return _CHARACTER * max(max(len(_on_axis(name)) for name in names) - 6, 0)


def name_places(ax: Axes, names: Sequence[str]) -> None:
    """Write names upright below 0, 1, ... of the x axis."""
    ax.set_xticks(range(len(names)), [_on_axis(name) for name in names], rotation=90, fontsize="small")


def _on_axis(name: str) -> str:
    return shortened(str(name), _LONGEST)


def whole_numbers() -> Any:
    """Where ticks of counts are."""
    return need("matplotlib.ticker").MaxNLocator(integer=True, min_n_ticks=1)


def point_size(m: int) -> float:
    """Area in square points that shows 10 points and does not smear 30,000."""
    return float(np.interp(np.log10(max(m, 1)), [1.0, 4.5], [40.0, 6.0]))


def label_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], others: np.ndarray) -> None:
    """Write `names` at `x`, `y` (l,), moved by adjustText off each other and off `others` (points, 2).

    To be called when all else is drawn: what moves a label is the size of the text on the page.
    """
    if not len(names):
        return
    adjust_text = need("adjustText").adjust_text
    logging.getLogger("adjustText").setLevel(logging.ERROR)  # it tells each time that a name is long
    halo = [need("matplotlib.patheffects").withStroke(linewidth=2, foreground="white")]
    style: dict[str, Any] = {"fontsize": "small", "path_effects": halo, "zorder": 4}
    texts = [ax.text(u, v, shortened(name), **style) for u, v, name in zip(x, y, names, strict=True)]
    avoided = others[:_AVOIDED]
    line = {"arrowstyle": "-", "color": DARK, "lw": 0.6}
    space = {"expand": (1.2, 1.5), "force_text": (0.3, 1.0), "force_static": (0.1, 0.2)}
    adjust_text(texts, avoided[:, 0], avoided[:, 1], ax=ax, arrowprops=line, iter_lim=150, **space)


def save(ax: Axes, path: str | Path, dpi: int = 200) -> None:
    """Write the figure of `ax` as .png, .svg or .pdf, replacing the file only once all of it is written.

    Text stays text in .svg and .pdf, and the same picture is the same file.

    Parameters
    ----------
    ax : matplotlib axes
        As every picture returns them.
    path : str or Path
        Folders on the way are made.
    dpi : int
        Dots per inch of .png, and of the points of crowded pictures in the others.

    Raises
    ------
    ValueError
        For another suffix.

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
    suffix = check_picture_path(path)
    with replacing(path) as part:
        _write(ax, part, suffix, dpi)


def as_address(ax: Axes, most: int = 60_000, dpi: int = 144) -> tuple[str, float]:
    """Picture as a data: address for a page, and its width in inches; the figure of `ax` is closed.

    On a transparent ground, as SVG, or as PNG where that would take over `most` bytes.
    """
    figure: Any = ax.figure.canvas.figure
    kind, drawn = "svg+xml", io.BytesIO()
    _write(ax, drawn, ".svg", dpi, transparent=True)
    if len(drawn.getvalue()) > most:
        kind, drawn = "png", io.BytesIO()
        _write(ax, drawn, ".png", dpi, transparent=True)
    need("matplotlib.pyplot").close(figure)
    return f"data:image/{kind};base64,{base64.b64encode(drawn.getvalue()).decode()}", float(figure.get_figwidth())


def _write(ax: Axes, target: Any, suffix: str, dpi: int, transparent: bool = False) -> None:
    metadata: dict[str, Any] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    text = {"svg.fonttype": "none", "svg.hashsalt": "lmm_gpu", "pdf.fonttype": 42}
    with need("matplotlib").rc_context(text):
        figure: Any = ax.figure.canvas.figure  # of a subfigure, all of it
        figure.savefig(target, format=suffix[1:], dpi=dpi, metadata=metadata, transparent=transparent)


def check_picture_path(path: str | Path) -> str:
    """Return the ending of a picture to be written, refused if it is unknown."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write a picture to {path}: wanted a name that ends in {', '.join(SUFFIXES)}")
    return suffix
