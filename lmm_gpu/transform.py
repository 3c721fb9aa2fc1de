"""From raw counts to the values that are fitted: on the non-zeros, chunk by chunk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

logger = logging.getLogger("lmm_gpu")

TRANSFORMS = ("log1p", "log2p1", "normalize")


@dataclass(frozen=True)
class Transform:
    """Value transform of a matrix of cells x genes.

    Parameters
    ----------
    name : {None, "log1p", "log2p1", "normalize"}
        Values as they are; log(1 + y); log2(1 + y); log(1 + y / size factor).
    size_factors : array (n,), optional
        One positive factor per cell, for "normalize".

    Examples
    --------
    >>> Transform("log2p1").apply(np.array([[0.0, 3.0]])).tolist()
    [[0.0, 2.0]]
    """

    name: str | None = None
    size_factors: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in TRANSFORMS:
            raise ValueError(f"transform={self.name!r} is not known; use None or one of {', '.join(TRANSFORMS)}")

    def apply(self, Y: Any, rows: slice = slice(None)) -> Any:
        """Transform a chunk whose cells are `rows` of the whole; sparse stays sparse."""
        if self.name is None:
            return Y
        if scipy.sparse.issparse(Y):
            Y = Y.tocsr().astype("float64")  # a copy: the caller's values are not touched
            Y.data = self._of_entries(Y.data, np.repeat(np.arange(Y.shape[0]), np.diff(Y.indptr)), rows)
            return Y
        Y = np.asarray(Y, dtype=float)
        return self._of_entries(Y, np.broadcast_to(np.arange(Y.shape[0])[:, None], Y.shape), rows)

    def _of_entries(self, values: np.ndarray, cell: np.ndarray, rows: slice) -> np.ndarray:
        if self.name == "log2p1":
            return np.log1p(values) / np.log(2.0)
        if self.name == "normalize":
            assert self.size_factors is not None
            values = values / self.size_factors[rows][cell]
        return np.log1p(values)


def looks_like_counts(Y: Any) -> bool:
    """Whether a matrix holds nothing but non-negative integers, with at least one above zero."""
    values = Y.data if scipy.sparse.issparse(Y) else np.asarray(Y)
    if values.size == 0 or values.dtype == bool:
        return False
    if np.issubdtype(values.dtype, np.integer):
        return bool(values.min() >= 0 and values.max() > 0)
    return bool(values.min() >= 0 and values.max() > 0 and (values == np.floor(values)).all())


def recognise(Y: Any, is_counts: bool | None) -> Transform:
    """Decide how values are fitted: raw counts as log2(1 + y), said in one log line; others as they are."""
    if is_counts is None:
        is_counts = looks_like_counts(Y)
        if is_counts:
            logger.warning("Y holds raw counts: fitting log2(1 + Y); is_counts=False or a transform decides otherwise")
    return Transform("log2p1" if is_counts else None)


def check_values(Y: Any, what: str = "Y") -> None:
    """Refuse NaN and infinite values, with how many and where the first one is (row, column of the chunk)."""
    if scipy.sparse.issparse(Y):
        Y = Y.tocoo()
        stored = np.flatnonzero(~np.isfinite(Y.data))
        bad = np.stack([Y.row[stored], Y.col[stored]], axis=1)  # (bad, 2)
    else:
        bad = np.argwhere(~np.isfinite(np.asarray(Y, dtype=float)))  # (bad, axes)
    if len(bad):
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{what} holds {len(bad)} NaN or infinite value(s), the first at position {first}; remove or impute them"
        )
