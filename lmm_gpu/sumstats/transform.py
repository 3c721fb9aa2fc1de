"""Transforms of raw counts, applied to the non-zeros chunk by chunk, and checks of the values."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from ..backend.arrays import Array, like, namespace, on_host, to_numpy
from ..backend.late_imports import is_scipy_sparse
from ..backend.sparse import is_sparse, stored_values, with_values

logger = logging.getLogger("lmm_gpu")
TRANSFORMS = ("log1p", "log2p1", "normalize")
_SCALES = {"log1p": "log(1 + value)", "log2p1": "log2(1 + value)", "normalize": "log(1 + count / size factor)"}
_SCALES |= {"log2 cpm": "log2 counts per million"}  # of voom
#: The information squares variances: sums of the fourth powers of larger numbers overflow float64.
_LARGEST = 1e70
#: Bits that the compiled pass returns: a value that cannot be used (NaN, infinite, too large, or negative where it is
#: transformed); one that is not a whole number, where values are transformed; a negative one, where they are not.
UNUSABLE, FRACTION, NEGATIVE = 1, 2, 4
#: Number of values that are examined for fractions at a time.
_EXAMINED = 2**16


def scale_of(label: str | None) -> str:
    """Name the scale of values with the given `Transform.label`.

    >>> scale_of("normalize to 10000.0"), scale_of(None)
    ('log(1 + count / size factor)', 'value')
    """
    return _SCALES.get((label or "").partition(" to ")[0], "value")


@dataclass(frozen=True)
class Transform:
    """Transform of the values of a matrix of cells x genes.

    Parameters
    ----------
    name : {None, "log1p", "log2p1", "normalize"}
        Values as they are; log(1 + y); log2(1 + y); log(1 + y / size factor).
    size_factors : array (n,), optional
        One positive factor per cell, for "normalize".
    target : float, optional
        Total count per cell after normalizing, if the size factors are totals over a target.

    Examples
    --------
    >>> Transform("log2p1").apply(np.array([[0.0, 3.0]])).tolist()
    [[0.0, 2.0]]
    """

    name: str | None = None
    size_factors: np.ndarray | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in TRANSFORMS:
            raise ValueError(f"transform={self.name!r} is not known; use None or one of {', '.join(TRANSFORMS)}")

    @property
    def label(self) -> str | None:
        """Name of the transform with its target: statistics can be added only if it is the same.

        >>> Transform("normalize", np.ones(2), target=1e4).label
        'normalize to 10000.0'
        """
        return self.name if self.target is None else f"{self.name} to {self.target!r}"

    def apply(self, Y: Any, rows: slice | np.ndarray = slice(None)) -> Any:
        """Transform a chunk whose cells are `rows` of the whole; a sparse chunk stays sparse.

        Raises
        ------
        ValueError
            If values to be transformed are negative.
        """
        if self.name is None:
            return Y
        factors = None if self.size_factors is None else self.size_factors[rows]  # (cells,)
        if is_sparse(Y):
            Y = Y.tocsr()
            of_entries = None if factors is None else np.repeat(factors, np.diff(to_numpy(Y.indptr)))
            return with_values(Y, self._of_entries(Y.data, of_entries))
        return self._of_entries(stored_values(Y), None if factors is None else factors[:, None])

    def apply_to_counts(self, values: np.ndarray) -> None:
        """Transform dense values in float64 in place; only for transforms without size factors.

        Raises
        ------
        ValueError
            If values are negative.
        """
        assert self.size_factors is None
        if self.name is None:
            return
        _refuse_negative(self.name, float(values.min(initial=0.0)))
        np.log1p(values, out=values)
        if self.name == "log2p1":
            values /= math.log(2.0)

    def _of_entries(self, stored: Array, factors: np.ndarray | None) -> Array:
        xp = namespace(stored)
        if array_api_compat.size(stored):
            _refuse_negative(self.name, float(xp.min(stored)))
        values = xp.astype(stored, xp.float64, copy=True)  # the caller's values are not changed
        if self.name == "normalize":
            assert factors is not None
            values /= like(factors, values)
        values = np.log1p(values, out=values) if on_host(values) else xp.log1p(values)
        if self.name == "log2p1":
            values /= math.log(2.0)
        return values


def _refuse_negative(transform: str | None, least: float) -> None:
    if least < 0:
        raise ValueError(
            f"{transform} is for counts, but values go down to {least:g}: are they transformed already? "
            "Then fit them as they are"
        )


def looks_like_counts(Y: Any) -> bool:
    """Return whether a matrix has non-negative integers only, with at least one above zero."""
    values = stored_values(Y)
    xp = namespace(values)
    if array_api_compat.size(values) == 0 or values.dtype == xp.bool or has_fractions(Y):
        return False
    return bool(xp.min(values) >= 0) and bool(xp.max(values) > 0)


def has_fractions(Y: Any) -> bool:
    """Return whether any value is not a whole number; on the host the search ends at the first one."""
    values = stored_values(Y)
    xp = namespace(values)
    if not xp.isdtype(values.dtype, "real floating"):
        return False
    if not on_host(values):
        return bool(xp.any(values != xp.floor(values)))
    flat = values.reshape(-1) if values.flags.c_contiguous else values.T.reshape(-1)
    blocks = (flat[lo : lo + _EXAMINED] for lo in range(0, flat.size, _EXAMINED))
    return any(bool((block != np.floor(block)).any()) for block in blocks)


def least_value(Y: Any) -> float:
    """Smallest stored value, 0 if there is none."""
    values = stored_values(Y)
    return float(namespace(values).min(values)) if 0 not in values.shape else 0.0


def any_value(Y: Any) -> bool:
    """Return whether any value is not zero."""
    values = stored_values(Y)
    return bool(namespace(values).any(values))


def recognise(Y: Any, is_counts: bool | None) -> Transform:
    """Choose the transform of values: raw counts as log2(1 + y), with one log line; others as they are.

    Raises
    ------
    ValueError
        If `is_counts` is True and the values, where given, are not whole numbers.
    """
    if is_counts not in (None, True, False):
        raise ValueError(f"is_counts={is_counts!r}: wanted True, False, or None to detect counts")
    if is_counts is None:
        is_counts = looks_like_counts(Y)
        if is_counts:
            logger.warning(
                "raw counts recognised: fitting log2(1 + y); another transform (--transform) or is_counts=False "
                "(--no-counts) overrides this"
            )
    elif is_counts and Y is not None and has_fractions(Y):
        raise ValueError(not_counts("the matrix"))
    return Transform("log2p1" if is_counts else None)


def not_counts(name: str, place: str = "") -> str:
    """Message for is_counts=True on values at a `place` that are not whole numbers."""
    where = f" ({place})" if place else ""
    return (
        f"is_counts=True, but {name} has values that are not whole numbers{where}: are they normalised already? "
        "Then fit them as they are, with is_counts=False"
    )


def warn_not_counts(transform: str, name: str, place: str) -> None:
    """Warn that a transform of counts was given for values that are not whole numbers."""
    warnings.warn(
        f"transform={transform!r} is for raw counts, but {name} has values that are not whole numbers ({place}): are "
        "they already normalised? Then leave out the transform, or name the layer of the raw counts. Counts that are "
        "only scaled, such as counts per million, can be used",
        stacklevel=2,
    )


def check_still_counts(Y: Any, name: str, place: str) -> None:
    """Refuse values at a `place` that are not counts, in a matrix that was auto-detected as counts."""
    if any_value(Y) and not looks_like_counts(Y):
        raise ValueError(
            f"{name} began with raw counts but {place} hold other values; say which it is: is_counts=True or False, or "
            "a transform"
        )


def squares_fit(norms: Array) -> bool:
    """Return whether sums of squares (m,) are finite, and small enough that no value can be too large.

    >>> squares_fit(np.array([1.0, 4.0])), squares_fit(np.array([1.0, np.nan]))
    (True, False)
    """
    return bool(namespace(norms).all(norms < _LARGEST**2))  # False with NaN


def check_values(Y: Any, what: str = "Y", first_row: int = 0, first_column: int = 0) -> None:
    """Refuse values that are not numbers, infinite or too large to be squared, with their number and first position.

    `first_row` and `first_column` are the position of a chunk within the whole.
    """
    values = stored_values(Y)
    xp = namespace(values)
    if not xp.isdtype(values.dtype, ("bool", "integral", "real floating")):
        raise ValueError(f"{what} holds values of type {values.dtype}; wanted numbers")
    if array_api_compat.size(values) == 0 or not xp.isdtype(values.dtype, "real floating"):
        return
    if float(xp.min(values)) > -_LARGEST and float(xp.max(values)) < _LARGEST:  # False with NaN
        return
    wrong = ~(np.abs(to_numpy(values).astype(float)) < _LARGEST)
    if is_sparse(Y):
        Y = (Y if is_scipy_sparse(Y) else Y.get()).tocoo()
        bad = np.stack([Y.row[wrong], Y.col[wrong]], axis=1)  # (bad, 2)
    else:
        bad = np.argwhere(wrong)  # (bad, axes)
    first = tuple(int(at) + start for at, start in zip(bad[0], (first_row, first_column), strict=False))
    raise ValueError(
        f"{what} holds {len(bad)} value(s) that are NaN, infinite or above {_LARGEST:g}, the first at position "
        f"{first}; remove or impute them"
    )
