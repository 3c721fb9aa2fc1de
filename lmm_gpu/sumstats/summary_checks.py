"""Checks of summary statistics: shapes when they are made, invariants when they come from a file or are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..backend.arrays import namespace, to_numpy
from ..backend.blocks import blocks
from ..backend.sparse import is_sparse

if TYPE_CHECKING:
    from .summary_fields import SummaryFields

#: Products about zero and about a centre come from the same cells if they agree to this.
_AGREE = 1e-6
#: Symmetry and inequalities may be violated by this share: products of the user may come from float32.
_ROUNDED = 1e-5
#: Products that are examined at a time.
_EXAMINED = 2**20


def check_shapes(ss: SummaryFields) -> None:
    """Refuse arrays and labels whose sizes do not match."""
    p, q, m = len(ss.fixed_names), len(ss.random_names), len(ss.features)
    wanted = {"XX": (p, p), "XY": (p, m), "ZX": (q, p), "ZY": (q, m), "ZZ": (q, q), "Ynorm": (m,)}
    for name, shape in wanted.items():
        got = tuple(getattr(ss, name).shape)
        if got != shape:
            raise ValueError(
                f"{name} has shape {got}, wanted {shape} for {p} fixed, {q} random columns and {m} features"
            )
    check_components(ss.d, q)
    if not {column for term in ss.terms or () for column in term.columns} <= set(range(p)):
        raise ValueError(f"terms are {ss.terms}; wanted columns of X by position, from 0 to {p - 1}")
    if sum(ss.term_sizes) != len(ss.d):
        raise ValueError(f"random_terms are {ss.random_terms}; expected one effect for each of d = {ss.d}")
    if len(ss.component_names) != len(ss.d):
        raise ValueError(f"component_names are {', '.join(ss.component_names)}; wanted one for each of d = {ss.d}")


def check_centred(ss: SummaryFields) -> None:
    """Refuse centred products of other cells than those about zero, as after replacing only one of them."""
    if ss.centred is None:
        return
    xp, about = namespace(ss.XY), ss.centred
    wanted = about.XY + (ss.XX @ about.constant)[:, None] * about.centre[None, :]  # (p, m)
    unit = xp.sqrt(xp.linalg.diagonal(ss.XX))[:, None] * xp.sqrt(ss.Ynorm)[None, :]
    if bool(xp.any(xp.abs(wanted - ss.XY) > _AGREE * unit)):
        raise ValueError("centred is of other cells or genes than XY: replace both, or give centred=None")


def check_components(d: Sequence[int], q: int) -> None:
    """Refuse component widths that do not add up to the columns of Z."""
    if len(d) == 0 or any(width < 1 for width in d) or sum(d) != q:
        raise ValueError(
            f"sum(d) must equal the number of columns of Z: got d = {tuple(d)} with sum {sum(d)}, Z has {q} columns; "
            "d lists the columns of Z per random effect"
        )


def check_invariants(ss: SummaryFields) -> None:
    """Refuse numbers that cannot be sums over cells: for statistics that were read from a file, or are to be added.

    n is not negative; all numbers are real and finite; X'X, Z'Z are symmetric, X'X is positive semi-definite, and every
    product obeys the Cauchy-Schwarz inequality with the squares of its two factors.

    Raises
    ------
    ValueError
        With the name of the array and what is wrong with it.
    """
    if ss.n < 0:
        raise ValueError(f"n is {ss.n}; wanted a number of cells, 0 or more")
    arrays = {name: to_numpy(getattr(ss, name)) for name in ("XX", "ZX", "XY", "ZY", "Ynorm")}
    arrays["ZZ"] = ss.ZZ.tocoo().data if is_sparse(ss.ZZ) else to_numpy(ss.ZZ)
    if ss.Ysum is not None:
        arrays["Ysum"] = to_numpy(ss.Ysum)
    for name, A in arrays.items():
        if A.dtype.kind != "f":
            raise ValueError(f"{name} holds values of type {A.dtype}; wanted real numbers in floating point")
        if not np.isfinite(A.sum(dtype=float)) and not np.isfinite(A).all():
            raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(A))} values that are NaN or infinite")
    squares = {
        "X": np.diagonal(arrays["XX"]),
        "Z": ss.ZZ.diagonal() if is_sparse(ss.ZZ) else np.diagonal(arrays["ZZ"]),
        "Y": arrays["Ynorm"],
    }
    for name, values in squares.items():
        if (values < 0).any():
            raise ValueError(f"sums of squares of {name} are negative in {np.count_nonzero(values < 0)} columns")
    for name, left, right in (("XX", "X", "X"), ("ZZ", "Z", "Z"), ("ZX", "Z", "X"), ("XY", "X", "Y"), ("ZY", "Z", "Y")):
        if not (name == "ZZ" and is_sparse(ss.ZZ)):
            _check_product(name, arrays[name], squares[left], squares[right])
    if "Ysum" in arrays:
        _check_product(
            "Ysum",
            arrays["Ysum"][None, :],
            np.array([float(ss.n if ss.total_weight is None else ss.total_weight)]),
            squares["Y"],
        )
    _check_gram(arrays["XX"], squares["X"])


def _check_product(name: str, A: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    # some rows at a time: Z'Z may be the largest array there is
    wrong, asymmetry, largest = 0, 0.0, 0.0
    for lo, hi in blocks(len(A), max(1, _EXAMINED // max(A.shape[1], 1))):
        size = np.abs(A[lo:hi])
        wrong += int(np.count_nonzero(size > (1 + _ROUNDED) * np.sqrt(left[lo:hi])[:, None] * np.sqrt(right)[None, :]))
        if name in ("XX", "ZZ"):
            asymmetry = max(asymmetry, np.abs(A[lo:hi] - A[:, lo:hi].T).max(initial=0))
            largest = max(largest, size.max(initial=0))
    if asymmetry > _ROUNDED * largest:
        raise ValueError(f"{name} is not symmetric")
    if wrong:
        raise ValueError(f"{name} has {wrong} products too large for the squares of their factors")


def _check_gram(XX: np.ndarray, squares: np.ndarray) -> None:
    unit = np.sqrt(np.where(squares > 0, squares, 1.0))
    values = np.linalg.eigvalsh(XX / unit[:, None] / unit[None, :])
    if values.min(initial=0) < -_ROUNDED * len(XX):
        raise ValueError("XX is not positive semi-definite: it is not X'X of any cells")
