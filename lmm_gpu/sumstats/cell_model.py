"""Cells and the model of a formula, opened for reading: the one way from data to summary statistics.

`open_cells` opens the data, selects cells and builds the design; contrasts can be checked against its columns before
any cell is read. `CellModel.summarize` reads the cells, here or on dask workers. The Python API and the shell use both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..backend.dask_client import connected, is_dask
from ..backend.devices import Device
from ..design.design import Design, build_design, used_cells
from ..io.source import Source, open_source
from .checkpoint import Checkpoint, data_digest, digest
from .gene_filter import GeneFilter, is_number
from .gene_weights import check_magnitude
from .streaming import accumulate, check_size_factors, count_totals
from .summary_stats import SummaryStats
from .transform import Transform

logger = logging.getLogger("lmm_gpu")
#: Opens a progress bar for a task, with the number and the unit of its steps.
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class ReadOptions:
    """Options of `summarize` that say how values are read; see there."""

    transform: str | None = None
    size_factors: str | np.ndarray | pd.Series | None = None
    target: float | None = None
    is_counts: bool | None = None
    genes: GeneFilter = field(default_factory=GeneFilter)
    threads: int | None = None
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if self.transform != "normalize" and self.size_factors is not None:
            raise ValueError(
                f"got size_factors with transform={self.transform!r}: they are for transform='normalize' only"
            )
        if self.target is None:
            return
        if self.transform != "normalize" or self.size_factors is not None:
            raise ValueError(f"got target={self.target!r}: it is for transform='normalize' without size_factors only")
        if not is_number(self.target, 0) or not self.target:
            raise ValueError(f"target={self.target!r}: wanted a total count, above 0, such as 10000")


@dataclass(frozen=True)
class CellModel:
    """Opened cells, their design and weights."""

    source: Source
    design: Design
    client: Any = None
    memory: int | None = None
    weights: np.ndarray | None = None
    device: Device | None = None  #: to accumulate on
    used: np.ndarray | None = None  #: (selected cells,), those with weight and complete values; None for all

    def checkpoint(self, options: ReadOptions) -> Checkpoint | None:
        """The checkpoint of `options`; the caller removes it once the results are on disk."""
        if options.checkpoint is None:
            return None
        if is_dask(self.source.matrix):
            raise ValueError(
                f"checkpoint={str(options.checkpoint)!r} is for cells that are read here, not for chunks that dask "
                "computes, which it runs again where a worker dies: leave out checkpoint (--resume)"
            )
        return Checkpoint(options.checkpoint, self._identity(options))

    def summarize(
        self, options: ReadOptions, bar: Bar | None = None, checkpoint: Checkpoint | None = None
    ) -> SummaryStats:
        """Read the cells and accumulate their summary statistics.

        Parameters
        ----------
        options : ReadOptions
        bar : callable, optional
            Opens a progress bar.
        checkpoint : Checkpoint, optional
            As `CellModel.checkpoint` returns it; it is not removed here.

        Raises
        ------
        ValueError
            For values that cannot be used, and a checkpoint of another run.
        """
        bar = bar or _no_bar
        transform = self.transform(options, bar, checkpoint)
        given: dict[str, Any] = {"is_counts": options.is_counts, "genes": options.genes, "weights": self.weights}
        if is_dask(self.source.matrix):
            from .dask_sums import reduce_chunks

            return reduce_chunks(self.source, self.design, transform, **given, client=self.client)
        given |= {"memory": self.memory, "threads": options.threads, "checkpoint": checkpoint}
        given |= {"device": self.device}
        with self._bar(bar, "reading") as step:
            return accumulate(self.source, self.design, transform, **given, progress=step)

    def transform(self, options: ReadOptions, bar: Bar, checkpoint: Checkpoint | None = None) -> Transform | None:
        """The transform of `options`, with its size factors; None for one that depends on the values."""
        if options.transform != "normalize":
            return None if options.transform is None else Transform(options.transform)
        if options.size_factors is not None:
            return Transform("normalize", self._size_factors(options.size_factors))
        total = self._totals(bar, checkpoint)  # (n,)
        target = float(total.mean() if options.target is None else options.target)
        return Transform("normalize", total / target, target)

    def _totals(self, bar: Bar, checkpoint: Checkpoint | None) -> np.ndarray:
        if is_dask(self.source.matrix):
            from .dask_sums import totals_of_chunks

            return totals_of_chunks(self.source, self.client)
        with self._bar(bar, "counting") as step:
            return count_totals(self.source, self.memory, step, checkpoint=checkpoint)

    def _size_factors(self, given: str | np.ndarray | pd.Series) -> np.ndarray:
        source = self.source
        if isinstance(given, str):
            return check_size_factors(column_of(source, given), f"obs column {given!r}: the values")
        selected = source.n if self.used is None else len(self.used)
        if np.shape(given) != (selected,):
            raise ValueError(f"size_factors have shape {np.shape(given)}, wanted one per cell: ({selected},)")
        if self.used is not None:
            given = given[self.used] if isinstance(given, pd.Series) else np.asarray(given)[self.used]
        if isinstance(given, pd.Series) and not given.index.equals(source.obs.index):
            raise ValueError("size_factors are not labelled as obs is: pass size_factors.loc[obs.index], or an array")
        return check_size_factors(given, "size_factors")

    def _bar(self, bar: Bar, what: str) -> AbstractContextManager[Callable[[int], object]]:
        source = self.source
        return bar(what, source.m, "gene") if source.by_genes else bar(what, source.n, "cell")

    def _identity(self, options: ReadOptions) -> dict[str, str]:
        # everything that the sums depend on, in the words of a refusal
        source, design, given = self.source, self.design, options
        values = {"transform": given.transform, "target": given.target, "is_counts": given.is_counts}
        factors = None if given.size_factors is None else digest(self._size_factors(given.size_factors))
        values["size_factors"] = factors
        filters = {"min_cells": given.genes.min_cells or None, "min_mean": given.genes.min_mean}
        matrix = source.matrix
        return {
            "data": source.name,
            "version of the data": data_digest(matrix, source.name),
            "layer": str(getattr(source, "layer", None) or _location(matrix)),
            "shape": f"{matrix.shape[0]} x {matrix.shape[1]} {matrix.dtype}",
            "genes": digest(source.features),
            "cells": "all" if source.kept is None else digest(source.kept),
            "formula": design.formula,
            "design": digest(design.X, design.Z, design.fixed_names, design.random_names),
            "weights": "none" if self.weights is None else digest(self.weights),
            "values": _listed(values) or "auto-detected",
            "gene filter": _listed(filters) or "none",
        }


def _location(matrix: Any) -> str:
    # where a matrix is in its file: X, layers/counts, raw/X
    stored = getattr(matrix, "group", matrix)
    return str(getattr(stored, "name", None) or getattr(stored, "path", None) or "X")


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)


@contextmanager
def open_cells(
    data: Any,
    formula: str,
    *,
    obs: pd.DataFrame | str | Path | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    features: Sequence[str] | str | Path | None = None,
    feature_types: str | Sequence[str] | None = None,
    cells: str | np.ndarray | Sequence[bool] | None = None,
    weights: str | np.ndarray | pd.Series | None = None,
    scheduler: Any = None,
    memory: int | None = None,
    device: Device | None = None,
) -> Iterator[CellModel]:
    """Open data, select cells and build the design of a formula, without reading values.

    Parameters
    ----------
    data, formula, obs, layer, use_raw, features, feature_types, cells, weights, scheduler
        As `lmm_gpu.summarize`.
    memory : int, optional
        Budget for chunks of cells, in bytes.
    device : Device, optional
        On which to accumulate, if it can.

    Yields
    ------
    CellModel

    Raises
    ------
    ValueError
        For a formula, table or matrix that cannot be used.
    """
    if not isinstance(formula, str):
        raise ValueError(f"got formula={formula!r}; wanted text such as '~ condition + (1 | donor)'")
    where: dict[str, Any] = {"layer": layer, "use_raw": use_raw, "features": features, "feature_types": feature_types}
    opened = data if isinstance(data, Source) else open_source(data, obs, **where)
    with connected(scheduler) as client, opened as whole:
        selected = select_cells(whole, cells)
        given = None if weights is None else _weights_of(selected, weights)
        used = used_cells(formula, selected.obs)
        if given is not None and not given.all():
            logger.warning("%d of %d cells have weight 0 and are left out", np.count_nonzero(given == 0), selected.n)
            used = used & (given > 0)
        source = selected if used.all() else selected.where(used)
        given = None if given is None else given[used]
        if client:
            from .dask_sums import read_on_workers

            source = read_on_workers(source, memory)
        left_out = None if used.all() else used
        yield CellModel(source, build_design(formula, source.obs), client, memory, given, device, left_out)


def select_cells(source: Source, cells: str | np.ndarray | Sequence[bool] | None) -> Source:
    """Select cells of `source` by a query on its obs or by a boolean mask (n,); None selects all.

    Raises
    ------
    ValueError
        If the query or the mask cannot be used, or selects no cell.
    """
    if cells is None:
        return source
    if isinstance(cells, str):
        from ..design.cell_query import matching_cells

        kept, unknown = matching_cells(cells, source.obs)
        if unknown:
            logger.warning("for %d cells it is unknown whether %s: they are left out", unknown, cells)
        if not kept.any():
            raise ValueError(f"cells={cells!r} is true for none of {source.n} cells")
    else:
        kept = _mask(cells, source)
    logger.info("%d of %d cells are selected", np.count_nonzero(kept), source.n)
    return source.where(kept)


def _mask(cells: Any, source: Source) -> np.ndarray:
    if isinstance(cells, pd.Series) and not cells.index.equals(source.obs.index):
        raise ValueError("cells= is a Series that is not labelled as obs is: pass cells.loc[obs.index], or an array")
    kept = np.asarray(cells)
    if kept.dtype != bool or kept.shape != (source.n,):
        raise ValueError(
            f"cells= has shape {kept.shape} and type {kept.dtype}; wanted a query such as 'n_counts > 500', or a "
            f"boolean mask with one value for each of {source.n} cells"
        )
    if not kept.any():
        raise ValueError(f"cells= is True for none of {source.n} cells")
    return kept


def _weights_of(source: Source, weights: str | np.ndarray | pd.Series) -> np.ndarray:
    """Weights (n,) of the selected cells, from a column of obs or an array."""
    what = f"weights={weights!r}" if isinstance(weights, str) else "weights"
    if isinstance(weights, str):
        given: Any = column_of(source, weights)
    else:
        given = weights
        if isinstance(given, pd.Series) and not given.index.equals(source.obs.index):
            raise ValueError("weights are not labelled as obs is: pass weights.loc[obs.index], or an array")
    try:
        found = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: wanted numbers, one weight per cell ({error})") from error
    if found.shape != (source.n,):
        raise ValueError(f"{what} has shape {found.shape}, wanted one weight per cell: ({source.n},)")
    bad = int(np.count_nonzero(~(np.isfinite(found) & (found >= 0))))
    if bad:
        raise ValueError(f"{what}: {bad} of {source.n} weights are negative, infinite or missing; 0 leaves a cell out")
    if not found.any():
        raise ValueError(f"{what}: all weights are 0, so that no cell is left")
    check_magnitude(found[found > 0].mean(), 1e50)
    return found


def column_of(source: Source, name: str) -> np.ndarray:
    """Values of a column of obs.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    if name not in source.obs:
        raise ValueError(f"obs has no column {name!r}; it has {', '.join(map(str, source.obs.columns))}")
    return np.asarray(source.obs[name].to_numpy())


def _no_bar(what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _: None)
