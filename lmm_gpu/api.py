"""The Python face: AnnData or a file and an lme4 formula in, one mixed model per gene out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .backend.dask_client import connected, is_dask
from .backend.devices import resolve
from .backend.memory import parse_memory
from .design.cell_query import matching_cells
from .design.design import Design, build_design
from .estimation.fit_options import FitOptions
from .io.archive import kind_of
from .io.readers import MATRICES
from .io.source import Source, open_source
from .results.fitting import fit_summary
from .results.lmm_fit import LMMFit
from .sumstats.checkpoint import Checkpoint, digest, file_identity
from .sumstats.dask_sums import read_on_workers, reduce_chunks, totals_of_chunks
from .sumstats.gene_filter import NO_FILTER, GeneFilter, is_number
from .sumstats.streaming import accumulate, check_size_factors, count_totals
from .sumstats.summary_stats import STATISTICS, SummaryStats
from .sumstats.transform import Transform

logger = logging.getLogger("lmm_gpu")


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
    size_factors: str | np.ndarray | None = None,
    target: float | None = None,
    is_counts: bool | None = None,
    cells: str | None = None,
    min_cells: int = 0,
    min_mean: float | None = None,
    device: Any = "auto",
    memory: int | str | None = None,
    scheduler: Any = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> SummaryStats:
    """Sum up cells for `fit`: all that a mixed model needs to know of them.

    Parameters
    ----------
    data : AnnData, path, (matrix, obs), or Source
        Cells x genes: an AnnData; a path to .h5ad, .zarr, .h5 of CellRanger, .mtx (streamed, never loaded whole), .npz
        or .csv; a matrix and its obs table; or what `lmm_gpu.io.open_source` returned. Chunks of a dask array are summed
        up where dask has them.
    formula : str
        lme4 syntax, such as ``"~ condition * cell_type + (1 | donor)"``.
    obs : DataFrame or path, optional
        Table of the cells, for data that have none.
    layer : str, optional
        Layer of the AnnData in place of X.
    use_raw : bool
        Use ``raw`` of the AnnData in place of X; ``layer="raw"`` means the same.
    features : sequence of str or path, optional
        Gene names, for data that have none.
    feature_types : str or sequence of str, optional
        Types of features to keep; by default gene expression alone of CellRanger's files, all features of an AnnData.
    transform : {None, "log1p", "log2p1", "normalize"}
        None: the values as they are, but raw counts as log2(1 + y). "normalize": log(1 + count / size factor).
    size_factors : str or array (n,), optional
        For "normalize": a column of obs or one factor per cell; by default total counts over `target`.
    target : float, optional
        For "normalize": the total count that cells are brought to; by default the mean total of these cells. Statistics
        of several sites add only if all of them were given the same.
    is_counts : bool, optional
        Whether the values are raw counts; by default they are looked at. Ignored if `transform` is given.
    cells : str, optional
        Which cells to take, by their obs: ``"n_counts > 500 and condition == 'stim'"``; comparisons with numbers and
        texts, ``in [...]``, and, or, not, parentheses, names in backquotes. Cells where it is unknown are left out.
    min_cells : int
        Keep genes that are not zero in so many cells at least.
    min_mean : float, optional
        Keep genes whose mean, of the values as they are stored, is at least this.
    device : str, or list of str
        "auto" (a CUDA device if there is one, else the host), "cpu", "cuda", "cuda:1", or several of them.
    memory : int or str, optional
        Budget for chunks of cells, such as "2GB". Those of a dask array are as large as they are.
    scheduler : distributed.Client or str, optional
        Dask workers, or the address of their scheduler ("tcp://..."), which read the chunks of .h5ad and .zarr
        themselves and compute those of a dask array. By default a dask array is computed wherever dask does.
    progress : bool
        Show a progress bar on a terminal.
    checkpoint : path, optional
        File to write the sums to every so often, and to go on from if it is there: after a kill, the same call ends
        with the same bytes. It is removed at the end. Not for chunks that dask computes, which recovers by itself.

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
    resolve(device)
    budget = parse_memory(memory)
    if not isinstance(formula, str):
        raise ValueError(f"got formula={formula!r}; wanted text such as '~ condition + (1 | donor)'")
    genes = GeneFilter(min_cells, min_mean)
    where: dict[str, Any] = {"layer": layer, "use_raw": use_raw, "features": features, "feature_types": feature_types}
    opened = data if isinstance(data, Source) else open_source(data, obs, **where)
    with connected(scheduler) as client, opened as whole:
        source = select_cells(whole, cells)
        source = read_on_workers(source, budget) if client else source
        design = build_design(formula, source.obs)
        values = {"transform": transform, "target": target, "is_counts": is_counts}
        saved = _checkpoint(checkpoint, source, design, values | {"size_factors": _as_text(size_factors)}, genes)
        count = _counting(source, client, budget, progress, saved)
        chosen = _chosen_transform(source, transform, size_factors, target, count)
        options: dict[str, Any] = {"is_counts": is_counts, "genes": genes}
        if is_dask(source.matrix):
            return reduce_chunks(source, design, chosen, **options, client=client)
        with _reading_bar("reading", source, progress) as step:
            summary = accumulate(source, design, chosen, **options, memory=budget, progress=step, checkpoint=saved)
    if saved is not None:
        saved.remove()
    return summary


def select_cells(source: Source, query: str | None) -> Source:
    """The cells of `source` that meet a query on its obs; all of them for None.

    Raises
    ------
    ValueError
        If the query cannot be used, or no cell meets it.
    """
    if query is None:
        return source
    kept, unknown = matching_cells(query, source.obs)
    if unknown:
        logger.warning("of %d cells it is not known whether %s: they are left out", unknown, query)
    if not kept.any():
        raise ValueError(f"cells={query!r} is met by none of {source.n} cells")
    logger.info("%d of %d cells are taken", np.count_nonzero(kept), source.n)
    return source.where(kept)


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
    data : SummaryStats, path to saved ones, or what `summarize` takes
    formula : str, optional
        lme4 syntax; only for data that are not summed up yet.
    method : {"REML", "ML"}
    bounds : {"auto", "nonnegative", "none"}
        "auto": variance components may be negative as long as V is positive definite, and are held at or above zero
        for a gene that has no such optimum. "nonnegative": never negative. "none": no fallback.
    max_iter : int
    epsilon : float
        Converged when every partial derivative of the log-likelihood is at most this.
    device : str, or list of str
        "auto" (a CUDA device if there is one, else the host), "cpu", "cuda", "cuda:1", or several of them.
    memory : int or str, optional
        Budget for chunks of cells and blocks of genes, such as "2GB".
    scheduler : distributed.Client or str, optional
        Dask workers, or the address of their scheduler ("tcp://..."): cells are summed up there as `summarize` says,
        and genes are fitted there, in blocks. Without it genes are fitted here, those of a dask array as well.
    progress : bool
        Show progress bars on a terminal.
    **reading
        `obs`, `layer`, `use_raw`, `features`, `feature_types`, `transform`, `size_factors`, `target`, `is_counts`,
        `cells`, `min_cells`, `min_mean`, `checkpoint` of `summarize`.

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
    options = FitOptions(method, bounds, max_iter, epsilon, memory=memory, device=device)
    summary = saved_statistics(data, formula)
    if summary is not None:
        if formula is not None or reading:
            surplus = ", ".join((["formula"] if formula is not None else []) + list(reading))
            raise ValueError(f"summary statistics already hold their model and values: leave out {surplus}")
    elif formula is None:
        raise ValueError("a formula is needed, such as '~ condition + (1 | donor)'")
    with connected(scheduler) as client:
        if summary is None:
            assert formula is not None
            reading |= {"device": device, "memory": memory, "scheduler": client, "progress": progress}
            summary = summarize(data, formula, **reading)
        with _bar("fitting", summary.m, "gene", progress) as step:
            fitted = fit_summary(summary, options, step, client)
    return replace(fitted, seconds=time.perf_counter() - started)


def saved_statistics(data: Any, formula: str | None = None) -> SummaryStats | None:
    """Return `data` that are summed up already, from memory or from a file; None for cells.

    Without a formula only statistics make sense: then a file that is none of cells is refused if it holds none.
    """
    if isinstance(data, SummaryStats):
        return data
    if not isinstance(data, (str, Path)):
        return None
    of_cells = str(data).lower().endswith(tuple(ending for ending in MATRICES if ending != ".h5"))
    if kind_of(data) == STATISTICS or (formula is None and not of_cells):
        return SummaryStats.load(data)
    return None


def _chosen_transform(
    source: Source, name: str | None, size_factors: Any, target: float | None, count: Callable[[], np.ndarray]
) -> Transform | None:
    if name != "normalize" and size_factors is not None:
        raise ValueError(f"got size_factors with transform={name!r}: they are for transform='normalize' only")
    _check_target(target, name, size_factors)
    if name != "normalize":
        return None if name is None else Transform(name)
    if size_factors is not None:
        return Transform(name, _given_factors(source, size_factors))
    total = count()  # (n,)
    target = float(total.mean() if target is None else target)
    return Transform(name, total / target, target)


def _counting(
    source: Source, client: Any, memory: int | None, progress: bool, checkpoint: Checkpoint | None
) -> Callable[[], np.ndarray]:
    """How the total counts of the cells (n,) are found."""

    def count() -> np.ndarray:
        if is_dask(source.matrix):
            return totals_of_chunks(source, client)
        with _reading_bar("counting", source, progress) as step:
            return count_totals(source, memory, step, checkpoint=checkpoint)

    return count


def _check_target(target: Any, name: str | None, size_factors: Any) -> None:
    if target is None:
        return
    if name != "normalize" or size_factors is not None:
        raise ValueError(f"got target={target!r}: it is for transform='normalize' without size_factors only")
    if not is_number(target, 0) or not target:
        raise ValueError(f"target={target!r}: wanted a total count, above 0, such as 10000")


def _checkpoint(
    path: str | Path | None, source: Source, design: Design, values: dict[str, Any], genes: GeneFilter
) -> Checkpoint | None:
    if path is None:
        return None
    if is_dask(source.matrix):
        raise ValueError(
            f"checkpoint={str(path)!r} is for cells that are read here, not for chunks that dask computes, which it "
            "runs again where a worker dies: leave out checkpoint (--resume)"
        )
    return Checkpoint(path, _about(source, design, values, genes != NO_FILTER))


def _about(source: Source, design: Design, values: dict[str, Any], counting: bool) -> dict[str, str]:
    # what the sums depend on, in the words of a refusal
    matrix = source.matrix
    return {
        "data": source.name,
        "version of the data": file_identity(source.name),
        "shape": f"{matrix.shape[0]} x {matrix.shape[1]} {matrix.dtype}",
        "genes": digest(source.features),
        "cells": "all" if source.kept is None else digest(source.kept),
        "formula": design.formula,
        "design": digest(design.X, design.Z.data, design.Z.indices, design.fixed_names, design.random_names),
        "values": ", ".join(f"{name}={value}" for name, value in values.items() if value is not None) or "as they look",
        "gene filter": "yes" if counting else "no",
    }


def _as_text(size_factors: Any) -> Any:
    return size_factors if size_factors is None or isinstance(size_factors, str) else digest(np.asarray(size_factors))


def _given_factors(source: Source, size_factors: Any) -> np.ndarray:
    if isinstance(size_factors, str):
        if size_factors not in source.obs:
            raise ValueError(f"obs has no column {size_factors!r}; it has {', '.join(map(str, source.obs.columns))}")
        return check_size_factors(source.obs[size_factors].to_numpy(), f"obs column {size_factors!r}: the values")
    if np.shape(size_factors) != (source.n,):
        raise ValueError(f"size_factors have shape {np.shape(size_factors)}, wanted one per cell: ({source.n},)")
    if isinstance(size_factors, pd.Series) and not size_factors.index.equals(source.obs.index):
        raise ValueError("size_factors are not labelled as obs is: pass size_factors.loc[obs.index], or an array")
    return check_size_factors(size_factors, "size_factors")


def _reading_bar(what: str, source: Source, progress: bool) -> AbstractContextManager[Callable[[int], object]]:
    return _bar(what, *((source.m, "gene") if source.by_genes else (source.n, "cell")), progress)


@contextmanager
def _bar(what: str, total: int, unit: str, progress: bool) -> Iterator[Callable[[int], object]]:
    # disable=None: silent unless standard error is a terminal
    with tqdm(total=total, desc=what, unit=unit, leave=False, disable=None if progress else True) as bar:
        yield bar.update
