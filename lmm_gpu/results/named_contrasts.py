"""Contrasts by the names of factors and levels, for tests of a fit. `LMMFit` has the functions as methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..backend.arrays import to_numpy
from ..design.marginal_means import contrasts_by_name
from ..design.marginal_means import marginal_means as means_by_name
from .blockwise import Fitted

if TYPE_CHECKING:
    import pandas as pd


def contrast(
    fit: Fitted,
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    weights: str = "equal",
    **variables: Any,
) -> pd.DataFrame:
    """Contrasts between marginal means, by the names of factors and levels: to give to `test`.

    A marginal mean averages over the levels of the other factors, with covariates at their means, as emmeans does.

    Parameters
    ----------
    by : str or sequence of str, optional
        Factors whose levels each get a contrast.
    at : dict, optional
        Levels, lists of levels, or values at which other variables are held.
    weights : {"equal", "proportional"}
        Weights of the levels of the other factors: equal, or in proportion to their cells.
    **variables
        A pair for each variable that is compared: ``condition=("stim", "ctrl")`` is stim - ctrl. A list of tuples is
        several pairs; "pairwise" is every pair. A side of a tuple may be a list of levels, which are averaged. Two
        variables give contrasts of contrasts.

    Returns
    -------
    DataFrame (p, L)
        One contrast per column.

    Raises
    ------
    ValueError
        For unknown variables or levels, and for means that are not estimable.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"arm": list("ab") * 30, "kind": list("xxyy") * 15, "donor": list("uvwxyz") * 10})
    >>> fit = lmm_gpu.fit((np.random.default_rng(1).normal(size=(60, 2)), obs), "~ arm * kind + (1 | donor)")
    >>> fit.contrast(arm=("b", "a"), by="kind").columns.tolist()
    ['b - a | kind=x', 'b - a | kind=y']
    """
    ss = fit.summary
    XX = to_numpy(ss.XX)
    return contrasts_by_name(ss.terms, ss.fixed_names, variables, by=by, at=at, weights=weights, XX=XX)


def marginal_means(
    fit: Fitted, by: str | Sequence[str], *, at: Mapping[str, Any] | None = None, weights: str = "equal"
) -> pd.DataFrame:
    """Marginal means of the levels of factors as contrasts, to give to `test`.

    Parameters
    ----------
    by : str or sequence of str
        Factors whose combinations of levels each get a mean.
    at : dict, optional
        Levels, lists of levels, or values at which other variables are held.
    weights : {"equal", "proportional"}
        As in `contrast`.

    Returns
    -------
    DataFrame (p, L)
        One mean per column.

    Raises
    ------
    ValueError
        For unknown variables or levels, and for means that are not estimable.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"arm": list("ab") * 30, "donor": np.repeat(list("uvwxyz"), 10)})
    >>> fit = lmm_gpu.fit((np.random.default_rng(1).normal(size=(60, 2)), obs), "~ arm + (1 | donor)")
    >>> fit.marginal_means("arm")
               arm=a  arm=b
    Intercept    1.0    1.0
    arm[T.b]     0.0    1.0
    """
    ss = fit.summary
    return means_by_name(ss.terms, ss.fixed_names, by, at=at, weights=weights, XX=to_numpy(ss.XX))
