"""The Python API: data and an lme4 formula to one mixed model per gene."""

from __future__ import annotations

import difflib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .backend.dask_client import connected
from .backend.devices import resolve
from .backend.memory import parse_memory
from .estimation.fit_options import FitOptions
from .io.archive import kind_of
from .io.readers import MATRICES
from .results.fitting import fit_summary
from .results.lmm_fit import LMMFit
from .sumstats.cell_model import Bar, ReadOptions, open_cells
from .sumstats.gene_filter import GeneFilter
from .sumstats.gene_weights import load_statistics
from .sumstats.summary_stats import STATISTICS, SummaryStats
from .sumstats.weighted_cells import gene_weights, summarize_weighted


def summarize(
    data: Any,
    formula: str,
    *,
    obs: pd.DataFrame | str | Path | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    features: Sequence[str] | str | Path | None = None,
    feature_types: str | Sequence[str] | None = None,
    transform: str | None = None,
    size_factors: str | np.ndarray | pd.Series | None = None,
    target: float | None = None,
    is_counts: bool | None = None,
    weights: str | np.ndarray | pd.Series | None = None,
    cells: str | np.ndarray | Sequence[bool] | None = None,
    genes: Sequence[str] | None = None,
    min_cells: int = 0,
    min_mean: float | None = None,
    device: Any = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    scheduler: Any = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> SummaryStats:
    """Accumulate the summary statistics of cells, from which `fit` estimates the models.

    Parameters
    ----------
    data : AnnData, path, (matrix, obs), or Source
        Cells x genes: an AnnData; a path to .h5ad, .zarr, .h5 of CellRanger, .mtx (streamed, never loaded whole), .npz
        or .csv; a matrix and its obs table; or a source opened by `lmm_gpu.io.open_source`. Chunks of a dask array are
        accumulated where dask has them.
    formula : str
        lme4 syntax, such as ``"~ condition * cell_type + (1 | donor)"``.
    obs : DataFrame or path, optional
        Table of the cells, for data that have none.
    layer : str, optional
        Layer of the AnnData to use instead of X.
    use_raw : bool
        Use ``raw`` of the AnnData instead of X; ``layer="raw"`` means the same.
    features : sequence of str or path, optional
        Gene names, for data that have none.
    feature_types : str or sequence of str, optional
        Types of features to keep; by default gene expression alone of CellRanger's files, all features of an AnnData.
    transform : {None, "log1p", "log2p1", "normalize"}
        None: the values as they are, but raw counts as log2(1 + y). "normalize": log(1 + count / size factor). A
        warning says if values are not whole numbers, as they may be normalised already.
    size_factors : str or array (n,), optional
        For "normalize": a column of obs or one factor per cell; by default total counts over `target`.
    target : float, optional
        For "normalize": the total count to which cells are scaled; by default the mean total of these cells. Statistics
        of several sites can be added only if all have the same target.
    is_counts : bool, optional
        Whether the values are raw counts, auto-detected by default. Ignored if `transform` is given.
    weights : str, array (n,) or matrix (n, m), optional
        Weight of each selected cell, a column of obs or an array: Var(residual) = s_0 / weight. Cells of weight 0 are
        left out. Or a positive weight per cell and gene, such as those of `voom`: a layer of the AnnData or a matrix,
        for data in memory.
    cells : str or boolean array (n,), optional
        Cells to select: a mask, or a query on their obs, ``"n_counts > 500 and condition == 'stim'"``, with comparisons
        with numbers and texts, ``in [...]``, and, or, not, parentheses, and names in backquotes. Cells for which the
        query is unknown are left out.
    genes : sequence of str, or boolean mask, optional
        Names of the genes to keep, in this order; or a mask: a Series labelled by gene, or of the genes of an AnnData.
    min_cells : int
        Smallest number of cells in which a gene is not zero.
    min_mean : float, optional
        Smallest mean of a gene's stored values.
    device : str, or list of str
        "auto" (a CUDA device if there is one, else the host), "cpu", "cuda", "cuda:1", or several of them.
    memory : int or str, optional
        Budget for chunks of cells, such as "2GB". Chunks of a dask array keep their size.
    threads : int, optional
        Threads that read and accumulate; by default one per processor that this process may use (its affinity and the
        quota of its container). The result does not depend on it.
    scheduler : distributed.Client or str, optional
        Dask workers, or the address of their scheduler ("tcp://..."), which read the chunks of .h5ad and .zarr
        themselves and compute those of a dask array. By default a dask array is computed wherever dask does.
    progress : bool
        Show a progress bar on a terminal.
    checkpoint : path, optional
        File for the sums, written at intervals and read if it exists: after a kill, the same call ends with the same
        bytes. It is removed at the end. Not for chunks that dask computes, which dask recomputes itself.

    Returns
    -------
    SummaryStats

    Raises
    ------
    ValueError
        For a formula, table or matrix that cannot be used, with the remedy.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"condition": list("ab") * 30, "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> summarize((Y, obs), "~ condition + (1 | donor)").fixed_names
    ('Intercept', 'condition[T.b]')
    """
    first = resolve(device)[0]
    budget = parse_memory(memory)
    named = None if genes is None else genes if isinstance(genes, str) else _gene_names(genes, data)
    selected = GeneFilter(min_cells, min_mean, named)  # type: ignore[arg-type]
    options = ReadOptions(transform, size_factors, target, is_counts, selected, threads, checkpoint)
    where: dict[str, Any] = {"obs": obs, "layer": layer, "use_raw": use_raw, "features": features}
    where |= {"feature_types": feature_types, "cells": cells, "weights": weights}
    if (own := gene_weights(data, weights)) is not None:
        with open_cells(data, formula, **where | {"weights": None}, memory=budget) as model:
            return summarize_weighted(model, own, options)
    with open_cells(data, formula, **where, scheduler=scheduler, memory=budget, device=first) as model:
        saved = model.checkpoint(options)
        summary = model.summarize(options, progress_bar(progress), saved)
    if saved is not None:
        saved.remove()
    return summary


def _gene_names(genes: Sequence[str], data: Any) -> tuple[str, ...]:
    values = np.asarray(genes)
    if values.dtype != bool:
        return tuple(genes)
    names = genes.index if isinstance(genes, pd.Series) else getattr(data, "var_names", None)
    if names is None or values.shape != (len(names),):
        raise ValueError(
            f"genes= is a boolean mask of shape {values.shape}; wanted a Series labelled by gene, a mask of the genes "
            "of an AnnData, or names"
        )
    return tuple(str(name) for name in np.asarray(names)[values])


def fit(
    data: Any,
    formula: str | None = None,
    *,
    method: str = "REML",
    bounds: str = "auto",
    max_iter: int = 50,
    epsilon: float = 1e-5,
    device: Any = "auto",
    memory: int | str | None = None,
    scheduler: Any = None,
    progress: bool = True,
    **reading: Any,
) -> LMMFit:
    """Fit one linear mixed model per gene.

    Parameters
    ----------
    data : SummaryStats, path to saved ones, or data of `summarize`
    formula : str, optional
        lme4 syntax; only for cells, not for summary statistics.
    method : {"REML", "ML"}
    bounds : {"auto", "nonnegative", "none"}
        "auto": variance components may be negative as long as V is positive definite, and are constrained to be
        non-negative for a gene without such an optimum. "nonnegative": never negative. "none": no fallback.
    max_iter : int
    epsilon : float
        Converged when every partial derivative of the log-likelihood is at most this.
    device : str, or list of str
        "auto" (a CUDA device if there is one, else the host), "cpu", "cuda", "cuda:1", or several of them.
    memory : int or str, optional
        Budget for chunks of cells and blocks of genes, such as "2GB".
    scheduler : distributed.Client or str, optional
        Dask workers, or the address of their scheduler ("tcp://..."): they accumulate the cells, see `summarize`, and
        fit the genes in blocks. Without it genes are fitted here, those of a dask array as well.
    progress : bool
        Show progress bars on a terminal.
    **reading
        `obs`, `layer`, `use_raw`, `features`, `feature_types`, `transform`, `size_factors`, `target`, `is_counts`,
        `weights`, `cells`, `genes`, `min_cells`, `min_mean`, `threads`, `checkpoint` of `summarize`.

    Returns
    -------
    LMMFit
        `fit.test("condition[T.stim]")` has the table; its degrees of freedom are valid with few donors.

    Raises
    ------
    ValueError
        As `summarize`, and for a rank-deficient X. Per-gene failures are reported in `status`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"condition": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> table = fit((Y, obs), "~ condition + (1 | donor)").test("condition[T.b]")
    >>> table[["variable", "contrast"]].iloc[0].tolist(), table["df"].round(3).le(4).all().item()
    (['Gene1', 'condition[T.b]'], True)
    """
    started = time.perf_counter()
    check_reading(reading)
    options = FitOptions(method, bounds, max_iter, epsilon, memory=memory, device=device)
    summary = saved_statistics(data, formula)
    if summary is not None:
        if formula is not None or reading:
            surplus = ", ".join((["formula"] if formula is not None else []) + list(reading))
            raise ValueError(f"summary statistics already have their model and values: leave out {surplus}")
    elif formula is None:
        raise ValueError("a formula is needed, such as '~ condition + (1 | donor)'")
    with connected(scheduler) as client:
        if summary is None:
            assert formula is not None
            reading |= {"device": device, "memory": memory, "scheduler": client, "progress": progress}
            summary = summarize(data, formula, **reading)
        with progress_bar(progress)("fitting", summary.m, "gene") as step:
            fitted = fit_summary(summary, options, step, client)
    return replace(fitted, seconds=time.perf_counter() - started)


#: Options that scanpy, pertpy and scikit-learn have, and what takes their place.
_HABITS = {
    "groupby": "the formula names the factor, '~ condition + (1 | donor)', and fit.test(...) tests it",
    "contrast": "test a contrast of the fit, fit.test('condition[T.stim]')",
    "reference": "test a contrast: fit.test(fit.contrast(condition=('stim', 'ctrl')))",
    "groups": "cells= selects cells, and fit.test(...) takes contrasts",
    "n_jobs": "use threads=",
    "copy": "adata is not changed by fit; pass adata.copy() to tl.lmm",
    "mask_var": "genes= names the genes",
    "design": "the formula is the second argument",
}


def check_reading(given: dict[str, Any]) -> None:
    """Refuse options that `summarize` does not have, with what takes their place.

    Raises
    ------
    ValueError
        With the closest options.
    """
    known = [name for name in inspect.signature(summarize).parameters if name not in ("data", "formula")]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = _HABITS.get(name) or (f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}")
            raise ValueError(f"{name}= is not an option of fit: {hint}")


def saved_statistics(data: Any, formula: str | None = None) -> SummaryStats | None:
    """Return `data` if they are summary statistics, in memory or in a file; None for cells.

    Without a formula only statistics make sense: a file that cannot be cells is refused if it has none.
    """
    if isinstance(data, SummaryStats):
        return data
    if not isinstance(data, (str, Path)):
        return None
    of_cells = str(data).lower().endswith(tuple(ending for ending in MATRICES if ending != ".h5"))
    if formula is None and Path(data).is_dir() and not of_cells:
        raise ValueError(f"{data} needs a formula, such as '~ condition + (1 | donor)'")
    if kind_of(data) == STATISTICS or (formula is None and not of_cells):
        return load_statistics(data)
    return None


def progress_bar(shown: bool) -> Bar:
    """Progress bars of tqdm, if `shown` and standard error is a terminal."""
    if not shown or not sys.stderr or not sys.stderr.isatty():  # tqdm would show nothing, but takes long to import
        return lambda what, total, unit: nullcontext(lambda steps: None)
    return _bar


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit=unit, leave=False) as bar:
        yield bar.update
