"""Residuals of single cells, which a fit does not have: read from the cells again, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import psutil

from .api import progress_bar
from .backend.arrays import to_numpy
from .backend.memory import parse_memory
from .backend.sparse import is_sparse
from .results.fitted_values import gene_position, predictions
from .results.lmm_fit import LMMFit
from .sumstats.cell_model import CellModel, ReadOptions, open_cells
from .sumstats.streaming import plan_pieces
from .sumstats.transform import Transform

#: Kinds of residuals.
KINDS = ("conditional", "marginal")
#: Share of the free memory that the residuals may take.
_SHARE = 0.5


def residuals(
    fit: LMMFit,
    data: Any,
    genes: str | Sequence[str] | None = None,
    *,
    kind: str = "conditional",
    standardized: bool = False,
    size_factors: str | np.ndarray | pd.Series | None = None,
    memory: int | str | None = None,
    progress: bool = True,
    **reading: Any,
) -> pd.DataFrame:
    """Residuals of the cells that a model was fitted to; the cells are streamed, never loaded whole.

    Parameters
    ----------
    fit : LMMFit
        Fitted by a formula.
    data : AnnData, path, (matrix, obs), or Source
        The same cells as `lmm_gpu.fit` had.
    genes : str or sequence of str, optional
        Names of genes of the fit; by default all, if the residuals fit half of the free memory.
    kind : {"conditional", "marginal"}
        y - X beta - Z u, or y - X beta.
    standardized : bool
        Divide by the residual standard deviation of the gene, with weights by that of the cell.
    size_factors : str or array (n,), optional
        As `lmm_gpu.fit` had them, for ``transform="normalize"``.
    memory : int or str, optional
        Budget for chunks of cells.
    progress : bool
        Show a progress bar on a terminal.
    **reading
        `obs`, `layer`, `use_raw`, `features`, `feature_types`, `cells` and `weights` as `lmm_gpu.fit` had them.

    Returns
    -------
    DataFrame (n, g)
        Cells in rows, labelled as obs; cells that the fit left out are not there. In the unit of the fitted values.

    Raises
    ------
    ValueError
        For other cells than the fit had, unknown genes, or a result that does not fit the memory.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> donor = np.repeat(np.arange(6), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 3, "ctrl", "stim")})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)")
    >>> lmm_gpu.residuals(fit, (Y, obs), "Gene2").shape
    (60, 1)
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; use one of {', '.join(KINDS)}")
    if fit.summary.formula is None:
        raise ValueError("the fit has no formula: residuals are Y - X @ fit.coef - Z @ fit.RE of its matrices")
    names = [genes] if isinstance(genes, str) else list(fit.summary.features if genes is None else genes)
    places = np.array([gene_position(fit, name) for name in names], dtype=int)
    budget = parse_memory(memory)
    with open_cells(data, fit.summary.formula, **reading, memory=budget) as cells:
        _check_same_cells(fit, cells, len(names))
        transform = _transform(fit, cells, size_factors, progress)
        found = _stream(fit, cells, transform, places, kind, budget, progress)
        obs = cells.source.obs
    if standardized:
        found = found / np.sqrt(fit.estimates.theta[-1, places])
        found = found if cells.weights is None else found * np.sqrt(cells.weights)[:, None]
    return pd.DataFrame(found, obs.index, [fit.summary.features[place] for place in places])


def _check_same_cells(fit: LMMFit, cells: CellModel, g: int) -> None:
    design, summary = cells.design, fit.summary
    columns = [design.fixed_names[i] for i in design.kept_columns]
    if cells.source.n != summary.n or columns != list(summary.fixed_names):
        raise ValueError(
            f"these are other cells than the fit had: {cells.source.n:,} cells with the fixed effects "
            f"{', '.join(columns)}, and the fit has {summary.n:,} cells with {', '.join(summary.fixed_names)}; give "
            "the data, layer=, cells= and weights= of the fit"
        )
    if set(design.random_names) != set(summary.random_names):
        raise ValueError("these cells have other levels of the random effects than the fit: give the data of the fit")
    free, wanted = psutil.virtual_memory().available, 8.0 * cells.source.n * g
    if wanted > _SHARE * free:
        raise ValueError(
            f"the residuals of {g:,} genes x {cells.source.n:,} cells take {wanted / 1e9:.1f} GB, more than half of "
            f"the {free / 1e9:.1f} GB that are free: name fewer genes, genes=['...']"
        )


def _transform(fit: LMMFit, cells: CellModel, size_factors: Any, progress: bool) -> Transform:
    name, _, target = (fit.summary.transform or "").partition(" to ")
    if not name:
        return Transform()
    options = ReadOptions(name, size_factors, float(target) if target and size_factors is None else None)
    made = cells.transform(options, progress_bar(progress))
    assert made is not None
    return made


def _stream(
    fit: LMMFit,
    cells: CellModel,
    transform: Transform,
    places: np.ndarray,
    kind: str,
    memory: int | None,
    progress: bool,
) -> np.ndarray:
    source, design = cells.source, cells.design
    column = {name: i for i, name in enumerate(source.features)}
    lacking = [name for name in (fit.summary.features[place] for place in places) if name not in column]
    if lacking:
        raise ValueError(f"the data have no gene {', '.join(lacking[:3])}, which the fit has")
    columns = np.array([column[fit.summary.features[place]] for place in places])
    beta, u = predictions(fit, places)
    order = {name: i for i, name in enumerate(fit.summary.random_names)}
    u = u[[order[name] for name in design.random_names]] if kind == "conditional" else 0.0 * u
    X = design.X[:, list(design.kept_columns)]
    found = np.asarray(-(X @ beta) - design.Z @ u)  # (n, g)
    by_genes, wanted = source.by_genes, np.full(source.m, -1)
    wanted[columns] = np.arange(len(columns))
    unit = "gene" if by_genes else "cell"
    with progress_bar(progress)("reading", source.m if by_genes else source.n, unit) as step:
        for place, Y in source.chunks(plan_pieces(source, memory)):
            rows = slice(None) if by_genes else place
            some = np.flatnonzero(wanted[place] >= 0) if by_genes else columns
            into = wanted[place][some] if by_genes else np.arange(len(columns))
            values = transform.apply(Y, slice(0, source.n) if by_genes else place)[:, some]
            found[rows, into] += to_numpy(values.toarray() if is_sparse(values) else values)
            step(place.stop - place.start)
    return found
