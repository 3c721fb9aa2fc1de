"""Arguments of the FLASHMM API: matrices of any library with or without labels, widths of Z, and contrasts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from .backend.arrays import is_sparse_on_device, to_numpy
from .backend.late_imports import is_frame, is_scipy_sparse, is_series, pd
from .backend.sparse import on_device
from .design.contrasts import contrast_rows
from .io.sparse_checks import canonical
from .sumstats.alignment import default_names
from .sumstats.products import LARGEST_DENSE
from .sumstats.summary_checks import check_components
from .sumstats.summary_stats import SummaryStats
from .sumstats.transform import check_values


def read_matrix(
    A: Any, name: str, *, one_row: bool = False, anywhere: bool = False
) -> tuple[Any, list[str] | None, list[str] | None]:
    """Read an array, sparse matrix or DataFrame; return it and the labels of its rows and columns, if any.

    The matrix is copied to the host, unless `anywhere` lets a matrix on a device stay there. With `one_row` a vector
    is a row, else a column.
    """
    if anywhere and on_device(A) and len(A.shape) == 2:
        return canonical(A), None, None
    rows = columns = None
    if is_frame(A):
        rows, columns = axis_labels(A.index), axis_labels(A.columns)
        A = _frame_values(A, name)
    A = on_host(A, name)
    if A.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds values of type {A.dtype}; expected a matrix of numbers")
    if A.ndim == 1:
        A = A.reshape((1, -1) if one_row else (-1, 1))
    if A.ndim != 2:
        raise ValueError(f"{name} has {A.ndim} dimensions; expected a matrix")
    try:
        return canonical(A), rows, columns
    except ValueError as error:
        raise ValueError(f"{name} is no valid sparse matrix: {error}") from error


def axis_labels(axis: pd.Index) -> list[str] | None:
    """Labels of an axis of a DataFrame; None if pandas only numbered it."""
    return None if isinstance(axis, pd.RangeIndex) else [str(label) for label in axis]


def check_same_cells(labels: Mapping[str, list[str] | None]) -> None:
    """Refuse tables that name their cells differently, or in another order: nothing here aligns them."""
    named = [(name, cells) for name, cells in labels.items() if cells is not None]
    for (first, cells), (other, found) in pairwise(named):
        wrong = [pair for pair in zip(cells, found, strict=False) if pair[0] != pair[1]]
        if wrong:
            example = " / ".join(wrong[0])
            advice = (
                f"sort {other} like {first}, with .loc" if set(cells) == set(found) else "give those of the same cells"
            )
            raise ValueError(
                f"{len(wrong)} of {len(cells)} cells have other names in {first} / in {other} ({example}): {advice}, "
                "or drop the names with .to_numpy() if the order is right"
            )


def choose_labels(
    given: Sequence[str] | None, found: Sequence[str] | None, count: int, prefix: str, what: str
) -> tuple[str, ...]:
    """Return the labels given by the caller, else those of the data, else generated ones; refuse duplicates."""
    chosen = found if given is None else given
    if chosen is None:
        return default_names(prefix, count)
    if isinstance(chosen, str):
        raise ValueError(f"{what} is the text {chosen!r}; expected a sequence of {count} names")
    names = tuple(str(name) for name in chosen)
    if len(names) != count:
        raise ValueError(f"{what} has {len(names)} names, expected {count}")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{what}: duplicate names {', '.join(twice[:5])}; make them unique")
    return names


def component_widths(d: int | Sequence[int] | None, q: int) -> tuple[int, ...]:
    """Columns of Z per random effect, from an integer, a sequence, or None for one effect."""
    values = np.atleast_1d(np.asarray(q if d is None else d))
    if values.ndim != 1 or values.dtype.kind not in "iuf" or (values % 1 != 0).any():
        raise ValueError(f"d={d!r}: expected whole numbers, the columns of Z per random effect; they add up to {q}")
    widths = tuple(int(width) for width in values)
    check_components(widths, q)
    return widths


def read_weights(weights: Any, m: int, n: int) -> np.ndarray | None:
    """Return positive weights (n,) or (m, n) as float64; None for None.

    Raises
    ------
    ValueError
        For another shape, and for weights that are not positive numbers.
    """
    if weights is None:
        return None
    values: Any = weights.to_numpy() if is_series(weights) or is_frame(weights) else on_host(weights, "weights")
    found: np.ndarray = dense(values).astype(float)
    if found.shape not in ((n,), (m, n)):
        raise ValueError(
            f"weights have shape {found.shape}; expected one per cell, ({n},), or one per feature and cell, ({m}, {n})"
        )
    bad = int(np.count_nonzero(~(np.isfinite(found) & (found > 0))))
    if bad:
        raise ValueError(
            f"{bad} of {found.size} weights are not positive numbers: leave out cells that are not to be used; fit "
            "features that lack some cells on their own, without these"
        )
    return found


def read_statistics(
    given: Mapping[str, Any],
    d: int | Sequence[int] | None,
    Y_names: Sequence[str] | None,
    X_names: Sequence[str] | None,
) -> SummaryStats:
    """Summary statistics from the matrices XX, XY, ZX, ZY, ZZ, Ynorm and n, each checked."""
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"lmm needs XX, XY, ZX, ZY, ZZ, Ynorm and n, or one SummaryStats; missing: {', '.join(missing)}"
        )
    products: dict[str, Any] = {}
    rows, columns = {}, {}
    for name in ("XX", "XY", "ZX", "ZY", "ZZ"):
        matrix, rows[name], columns[name] = read_matrix(given[name], name)
        check_values(matrix, name)
        wide = name == "ZZ" and matrix.shape[0] > LARGEST_DENSE
        products[name] = (matrix if wide else dense(matrix)).astype(float)
    norms, _, _ = read_matrix(given["Ynorm"], "Ynorm", one_row=True)
    check_values(norms, "Ynorm")
    p, q, m = len(products["XX"]), products["ZZ"].shape[0], products["XY"].shape[1]
    widths = component_widths(d, q)
    return SummaryStats(
        n=_whole_number(given["n"]),
        **products,
        Ynorm=dense(norms).astype(float).reshape(-1),
        d=widths,
        features=choose_labels(Y_names, columns["XY"], m, "Gene", "Y_names"),
        fixed_names=choose_labels(X_names, rows["XY"], p, "X", "X_names"),
        random_names=choose_labels(None, rows["ZX"], q, "Z", "rows of ZX"),
        component_names=default_names("var", len(widths)),
    )


def relabelled(
    summary: SummaryStats,
    d: int | Sequence[int] | None,
    Y_names: Sequence[str] | None,
    X_names: Sequence[str] | None,
) -> SummaryStats:
    """Return `summary` with the given widths of its random effects and labels."""
    widths = summary.d if d is None else component_widths(d, sum(summary.d))
    return replace(
        summary,
        d=widths,
        component_names=summary.component_names if widths == summary.d else default_names("var", len(widths)),
        features=choose_labels(Y_names, summary.features, summary.m, "Gene", "Y_names"),
        fixed_names=choose_labels(X_names, summary.fixed_names, len(summary.fixed_names), "X", "X_names"),
    )


def coefficient_rows(index: Any, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Rows (c, p) of an identity matrix for chosen fixed effects, and their names."""
    if index is None:
        return contrast_rows(None, names)
    wanted = [index] if np.ndim(index) == 0 else list(index)
    positions = {i: i % len(names) for i in range(-len(names), len(names))} | {name: i for i, name in enumerate(names)}
    known = [isinstance(i, (str, Integral)) and not isinstance(i, bool) and i in positions for i in wanted]
    if not (wanted and all(known)):
        choice = f"0 to {len(names) - 1} or {', '.join(names)}"
        raise ValueError(f"index={index!r}: expected fixed effects by position or name, {choice}")
    found = [positions[i] for i in wanted]
    return np.eye(len(names))[found], [names[i] for i in found]


def contrasts_in_columns(contrast: Any, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Rows (c, p) of contrasts as R has them, in the columns of a matrix whose rows need no names, and their labels."""
    unnamed = is_frame(contrast) and isinstance(contrast.index, pd.RangeIndex)
    if unnamed and len(contrast) == len(names):
        contrast = contrast.set_axis(names)
    if (
        isinstance(contrast, (str, Mapping))
        or is_frame(contrast)
        or is_series(contrast)
        or np.asarray(contrast).dtype.kind in "UO"
    ):
        return contrast_rows(contrast, names)
    columns = np.asarray(contrast)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or len(columns) != len(names):
        wanted = f"{len(names)} rows, one per fixed effect: {', '.join(names)}"
        raise ValueError(f"contrast has shape {columns.shape}; expected contrasts in columns and {wanted}")
    return contrast_rows(columns.T, names)


def check_shapes(X: Any, Y: Any, Z: Any) -> None:
    """Refuse matrices that are not of the same cells, and empty ones."""
    n = X.shape[0]
    if Z.shape[0] != n or Y.shape[1] != n:
        turn = "; Y has cells in its rows: pass Y.T" if Y.shape[0] == n != Y.shape[1] else ""
        raise ValueError(
            f"the cells do not match: X has {n} rows, Z has {Z.shape[0]} rows, Y has {Y.shape[1]} columns; "
            f"all three must be the number of cells{turn}"
        )
    if 0 in X.shape or 0 in Y.shape:
        raise ValueError(f"nothing to fit: X has shape {X.shape}, Y has shape {Y.shape}; expected at least one of each")


def dense(A: Any) -> np.ndarray:
    """Return `A` as a dense array."""
    values: np.ndarray = A.toarray() if is_scipy_sparse(A) else A
    return values


def rows_of(Y: Any, lo: int, hi: int) -> Any:
    """Return rows lo to hi of `Y`, without a copy if these are all."""
    return Y if (lo, hi) == (0, Y.shape[0]) else Y[lo:hi, :]


def _frame_values(frame: pd.DataFrame, name: str) -> Any:
    types = list(frame.dtypes)
    texts = [str(label) for label, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if texts:
        raise ValueError(f"{name} has columns that are not numbers ({', '.join(texts[:5])}): encode or drop them")
    if types and all(isinstance(dtype, pd.SparseDtype) and dtype.fill_value == 0 for dtype in types):
        return frame.sparse.to_coo()  # type: ignore[attr-defined]
    values = frame.to_numpy()
    return values if values.dtype.kind != "O" else frame.to_numpy(float, na_value=np.nan)  # of several types


def on_host(A: Any, name: str) -> Any:
    """Return `A`, of any library and device, as a NumPy array or a SciPy sparse matrix."""
    if isinstance(A, np.ma.MaskedArray):
        return np.ma.filled(A.astype(float), np.nan)
    if is_sparse_on_device(A):
        return A.get()
    if not is_scipy_sparse(A) and hasattr(A, "dtype"):
        with suppress(TypeError):  # of no array library, but perhaps an array still: h5py, xarray, pandas
            A = to_numpy(A)
    try:
        return A if is_scipy_sparse(A) else np.asarray(A)
    except ValueError as error:  # lists of unequal length, AnnData
        raise ValueError(f"{name} is of type {type(A).__name__}; expected a matrix of numbers ({error})") from error


def _whole_number(n: Any) -> int:
    values = np.asarray(n).reshape(-1)
    if values.size != 1 or values.dtype.kind not in "iuf" or values[0] % 1 != 0:
        raise ValueError(f"n={n!r}: expected the number of cells, a whole number")
    return int(values[0])
