"""The Python face: AnnData or a file and an lme4 formula in, one mixed model per gene out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .arrays import resolve_device
from .design import build_design
from .fitting import FitOptions, fit_summary
from .io import Source, open_source
from .plan import parse_memory
from .results import LMMFit
from .stream import accumulate, check_size_factors, count_size_factors
from .summary import SummaryStats
from .transform import Transform


def summarize(
    data: Any,
    formula: str,
    *,
    obs: pd.DataFrame | str | Path | None = None,
    layer: str | None = None,
    features: Sequence[str] | str | Path | None = None,
    transform: str | None = None,
    size_factors: str | np.ndarray | None = None,
    is_counts: bool | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    progress: bool = True,
) -> SummaryStats:
    """Sum up cells for `fit`: all that a mixed model needs to know of them.

    Parameters
    ----------
    data : AnnData, path, (matrix, obs), or Source
        Cells x genes: an AnnData; a path to .h5ad (streamed, never loaded whole), .npz, .mtx, .csv; a matrix and its
        obs table; or what `lmm_gpu.io.open_source` opened.
    formula : str
        lme4 syntax, such as ``"~ condition * cell_type + (1 | donor)"``.
    obs : DataFrame or path, optional
        Table of the cells, for data that have none.
    layer : str, optional
        Layer of the AnnData in place of X.
    features : sequence of str or path, optional
        Gene names, for data that have none.
    transform : {None, "log1p", "log2p1", "normalize"}
        None: the values as they are, but raw counts as log2(1 + y). "normalize": log(1 + count / size factor).
    size_factors : str or array (n,), optional
        For "normalize": a column of obs or one factor per cell; by default total counts over their mean.
    is_counts : bool, optional
        Whether the values are raw counts; by default they are looked at. Ignored if `transform` is given.
    device : {"auto", "cpu"}
    memory : int or str, optional
        Budget for chunks of cells, such as "2GB".
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    SummaryStats

    Raises
    ------
    ValueError
        For a formula, table or matrix that cannot be used, with what to do about it.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"condition": list("ab") * 30, "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> summarize((Y, obs), "~ condition + (1 | donor)").fixed_names
    ('Intercept', 'condition[T.b]')
    """
    resolve_device(device)
    budget = parse_memory(memory)
    if not isinstance(formula, str):
        raise ValueError(f"got formula={formula!r}; wanted text such as '~ condition + (1 | donor)'")
    with data if isinstance(data, Source) else open_source(data, obs, layer=layer, features=features) as source:
        design = build_design(formula, source.obs)
        chosen = _chosen_transform(source, transform, size_factors, budget, progress)
        with _bar("reading", source.n, "cell", progress) as step:
            return accumulate(source, design, chosen, is_counts=is_counts, memory=budget, progress=step)


def fit(
    data: Any,
    formula: str | None = None,
    *,
    method: str = "REML",
    bounds: str = "auto",
    max_iter: int = 50,
    epsilon: float = 1e-5,
    device: str = "auto",
    memory: int | str | None = None,
    progress: bool = True,
    **reading: Any,
) -> LMMFit:
    """Fit one linear mixed model per gene.

    Parameters
    ----------
    data : SummaryStats, or what `summarize` takes
    formula : str, optional
        lme4 syntax; only for data that are not summed up yet.
    method : {"REML", "ML"}
    bounds : {"auto", "nonnegative", "none"}
        "auto": variance components may be negative as long as V is positive definite, and are held at or above zero
        for a gene that has no such optimum. "nonnegative": never negative. "none": no fallback.
    max_iter : int
    epsilon : float
        Converged when every partial derivative of the log-likelihood is at most this.
    device : {"auto", "cpu"}
    memory : int or str, optional
        Budget for chunks of cells and blocks of genes, such as "2GB".
    progress : bool
        Show progress bars on a terminal.
    **reading
        `obs`, `layer`, `features`, `transform`, `size_factors`, `is_counts` of `summarize`.

    Returns
    -------
    LMMFit
        `fit.test("condition[T.stim]")` has the table; its degrees of freedom are honest for few donors.

    Raises
    ------
    ValueError
        As `summarize`, and for a rank-deficient X. A gene's own trouble is a status, never an exception.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"condition": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> table = fit((Y, obs), "~ condition + (1 | donor)").test("condition[T.b]")
    >>> table[["variable", "contrast"]].iloc[0].tolist(), table["df"].le(4).all().item()
    (['Gene1', 'condition[T.b]'], True)
    """
    started = time.perf_counter()
    resolve_device(device)
    options = FitOptions(method, bounds, max_iter, epsilon, memory=memory)
    if isinstance(data, SummaryStats):
        if formula is not None or reading:
            surplus = ", ".join((["formula"] if formula is not None else []) + list(reading))
            raise ValueError(f"summary statistics already hold their model and values: leave out {surplus}")
        summary = data
    else:
        if formula is None:
            raise ValueError("a formula is needed, such as '~ condition + (1 | donor)'")
        summary = summarize(data, formula, device=device, memory=memory, progress=progress, **reading)
    with _bar("fitting", summary.m, "gene", progress) as step:
        return replace(fit_summary(summary, options, step), seconds=time.perf_counter() - started)


def _chosen_transform(
    source: Source, name: str | None, size_factors: Any, memory: int | None, progress: bool
) -> Transform | None:
    if name != "normalize" and size_factors is not None:
        raise ValueError(f"got size_factors with transform={name!r}: they are for transform='normalize' only")
    if name is None:
        return None
    return Transform(name, _factors(source, size_factors, memory, progress) if name == "normalize" else None)


def _factors(source: Source, size_factors: Any, memory: int | None, progress: bool) -> np.ndarray:
    if size_factors is None:
        with _bar("counting", source.n, "cell", progress) as step:
            return count_size_factors(source, memory, step)
    if isinstance(size_factors, str):
        if size_factors not in source.obs:
            raise ValueError(f"obs has no column {size_factors!r}; it has {', '.join(map(str, source.obs.columns))}")
        return check_size_factors(source.obs[size_factors].to_numpy(), f"obs column {size_factors!r}: the values")
    if np.shape(size_factors) != (source.n,):
        raise ValueError(f"size_factors have shape {np.shape(size_factors)}, wanted one per cell: ({source.n},)")
    if isinstance(size_factors, pd.Series) and not size_factors.index.equals(source.obs.index):
        raise ValueError("size_factors are not labelled as obs is: pass size_factors.loc[obs.index], or an array")
    return check_size_factors(size_factors, "size_factors")


@contextmanager
def _bar(what: str, total: int, unit: str, progress: bool) -> Iterator[Callable[[int], object]]:
    # disable=None: silent unless standard error is a terminal
    with tqdm(total=total, desc=what, unit=unit, leave=False, disable=None if progress else True) as bar:
        yield bar.update
