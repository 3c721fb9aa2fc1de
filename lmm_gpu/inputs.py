"""What callers of the R face bring: matrices of any library with or without labels, and the widths of Z."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from .arrays import to_numpy
from .summary import check_components, default_names

#: A design matrix with a smaller share of non-zeros is handled as sparse.
_SPARSE_DENSITY = 0.2


def read_matrix(A: Any, name: str, *, one_row: bool = False) -> tuple[Any, list[str] | None, list[str] | None]:
    """Read an array, SciPy sparse matrix or DataFrame; return it and the labels of its rows and columns, if any."""
    rows = columns = None
    if isinstance(A, pd.DataFrame):
        rows, columns = ([str(label) for label in axis] for axis in (A.index, A.columns))
        sparse = len(A.columns) > 0 and all(isinstance(dtype, pd.SparseDtype) for dtype in A.dtypes)
        A = A.sparse.to_coo().tocsr() if sparse else A.to_numpy()
    if isinstance(A, pd.Series):
        A = A.to_numpy()
    if scipy.sparse.issparse(A):
        return A.tocsr(), rows, columns
    if isinstance(A, (list, tuple)):
        A = np.asarray(A)
    A = to_numpy(A)
    if A.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds values of type {A.dtype}; numbers are wanted")
    if A.ndim == 1:
        A = A[None, :] if one_row else A[:, None]
    if A.ndim != 2:
        raise ValueError(f"{name} has {A.ndim} dimensions; a matrix is wanted")
    return A, rows, columns


def choose_labels(
    given: Sequence[str] | None, found: list[str] | None, count: int, prefix: str, what: str
) -> tuple[str, ...]:
    """Labels given by the caller, else those found on the data, else numbered ones; refused if not unique."""
    if given is None and found is None:
        return default_names(prefix, count)
    names = tuple(str(name) for name in (found if given is None else given) or ())
    if len(names) != count:
        raise ValueError(f"{what} has {len(names)} names, wanted {count}")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{what}: duplicate names {', '.join(twice[:5])}; make them unique")
    return names


def component_widths(d: int | Sequence[int] | None, q: int) -> tuple[int, ...]:
    """Columns of Z per random effect, from an integer, a sequence, or None for one effect."""
    widths = (q,) if d is None else tuple(int(width) for width in np.atleast_1d(np.asarray(d)))
    check_components(widths, q)
    return widths


def dense(A: Any) -> np.ndarray:
    """`A` as a dense array."""
    return A.toarray() if scipy.sparse.issparse(A) else A


def sparse_if_worth_it(Z: Any) -> Any:
    """Make one-hot columns sparse: the product then touches each cell once per random effect."""
    if scipy.sparse.issparse(Z) or np.count_nonzero(Z) > _SPARSE_DENSITY * Z.size:
        return Z
    return scipy.sparse.csr_array(Z)


def rows_of(Y: Any, lo: int, hi: int) -> Any:
    """Rows lo to hi of `Y`, without a copy if that is all of it."""
    return Y if (lo, hi) == (0, Y.shape[0]) else Y[lo:hi, :]
