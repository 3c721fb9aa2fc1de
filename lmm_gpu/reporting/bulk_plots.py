"""Plot of the mean-variance trend of bulk and pseudobulk data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import DARK, DENSE, GREY, VERMILLION, axes, head, point_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def voom(data: Any, *, ax: Axes | None = None) -> Axes:
    """Mean-variance trend that `lmm_gpu.voom` estimated: one point per gene, and the fitted curve.

    Parameters
    ----------
    data : AnnData
        As returned by `lmm_gpu.voom`; the trend is in ``uns["voom"]``.
    ax : matplotlib axes, optional
        Axes to draw on; by default those of a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If the data have no trend, or if matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata, lmm_gpu
    >>> obs = pd.DataFrame({"arm": list("ab") * 6}, index=[f"s{i}" for i in range(12)])
    >>> counts = np.random.default_rng(1).poisson(200.0, size=(12, 50)).astype(float)
    >>> ax = lmm_gpu.pl.voom(lmm_gpu.voom(anndata.AnnData(counts, obs=obs), "~ arm"))
    >>> ax.get_xlabel()
    'mean log2(count + 0.5)'
    """
    trend: Mapping[str, Any] = getattr(data, "uns", {}).get("voom") or {}
    if any(name not in trend for name in ("x", "y", "line_x", "line_y")):
        raise ValueError("the data have no uns['voom']: pass what lmm_gpu.voom(...) returned")
    x, y = np.asarray(trend["x"], dtype=float), np.asarray(trend["y"], dtype=float)
    ax = axes(ax)
    ax.scatter(x, y, s=point_size(x.size), color=GREY, lw=0, rasterized=x.size > DENSE, label=f"genes ({x.size:,})")
    ax.plot(trend["line_x"], trend["line_y"], color=VERMILLION, lw=1.8, label="trend")
    ax.set(xlabel="mean log2(count + 0.5)", ylabel="square root of the residual SD")
    ax.spines[["left", "bottom"]].set_color(DARK)
    head(ax, "voom: mean-variance trend")
    return ax
