"""Plot of a permutation test: QQ plot of the p-values of relabelled data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..results.permutations import Permutation
from .canvas import BLUE, DARK, GREY, VERMILLION, axes, head

if TYPE_CHECKING:
    from matplotlib.axes import Axes
#: Relabellings that are drawn as lines of their own, and points of a line.
_LINES, _POINTS = 50, 300


def permutation(found: Permutation, *, ax: Axes | None = None) -> Axes:
    r"""QQ plot of the p-values of relabelled data: on the diagonal for a calibrated test.

    Parameters
    ----------
    found : Permutation
        Made by `LMMFit.permutation`.
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes
        One grey line per relabelling (at most 50), a blue one for all of them together, and one for the data as they
        are. The legend reports lambda.

    Raises
    ------
    ValueError
        If `found` is something else, or no gene has a p-value.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> donor = np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = np.random.default_rng(1).normal(size=(80, 20))
    >>> found = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)").permutation("arm[T.stim]", n=10)
    >>> lmm_gpu.pl.permutation(found).get_xlabel()
    'expected $-\\log_{10}$ p-value'
    """
    if not isinstance(found, Permutation):
        raise ValueError(f"got {type(found).__name__}; expected the result of fit.permutation(...)")
    if not np.isfinite(found.relabelled).any():
        raise ValueError(f"{found.contrast}: no gene has a p-value, there is nothing to plot")
    ax = axes(ax)
    for place, row in enumerate(found.relabelled[:_LINES]):
        _line(ax, row, color=GREY, lw=0.5, label="one relabelling" if place == 0 else None)
    _line(ax, found.relabelled.ravel(), color=BLUE, lw=2, label=f"all {found.n:,}: $\\lambda$ = {found.inflation:.2f}")
    if np.isfinite(found.observed).any():
        _line(ax, found.observed, color=VERMILLION, lw=2, label="data as they are")
    far = max(ax.get_xlim())
    ax.plot([0, far], [0, far], color=DARK, lw=0.8, ls="--")
    ax.set(xlabel="expected $-\\log_{10}$ p-value", ylabel="observed $-\\log_{10}$ p-value", xlim=(0, far))
    ax.set_ylim(bottom=0)
    head(ax, f"{found.contrast}, labels of {found.group} exchanged")
    return ax


def _line(ax: Axes, log10_p: np.ndarray, **style: Any) -> None:
    # observed over expected -log10 p
    observed = np.sort(log10_p[np.isfinite(log10_p)])
    rank = np.unique(np.rint(np.geomspace(1, max(observed.size, 1), _POINTS)).astype(int))
    if observed.size:
        ax.plot(-np.log10(rank / (observed.size + 1.0)), -observed[rank - 1], **style)
