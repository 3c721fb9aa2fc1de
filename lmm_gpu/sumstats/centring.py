"""TODO docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.sparse

from ..backend.arrays import Array, flag_indices, like, namespace, zeros
from ..backend.linalg import eigh_psd, eps
from ..backend.sparse import is_sparse
from .products import as_float64, dense_array, gene_products, join_genes

#: A gene whose mean is more than so many times its spread is summed up about its mean.
_FAR = 30.0
#: About so many cells tell where a gene lies.
_CELLS_LOOKED_AT = 1000
#: Coefficients of the constant are tried as multiples of this, which sums of whole numbers do not round.
_SHORT = 2.0**-20
#: X k may differ from 1 by so many rounding units: the values themselves are not told any better.
_UNITS = 64


@dataclass(frozen=True)
class Centred:
    """Products of y - centre with the design: those that projections use, where there are any."""

    centre: Array  #: (m,)
    constant: Array  #: (p,), k with X k = 1
    XY: Array  #: (p, m)
    ZY: Array  #: (q, m)
    Ynorm: Array  #: (m,)
    Ysum: Array  #: (m,)


def centred_products(X: Any, Z: Any, Y: Any, constant: Array | None) -> dict[str, Any]:
    """`gene_products` about the "centre" that they come with, which is None where none is needed or possible."""
    centre = centre_of(Y, constant)
    return gene_products(X, Z, Y, centre) | {"centre": centre}


def recentred(genes: Mapping[str, Array], design: Mapping[str, Any], constant: Array, shift: Array) -> dict[str, Array]:
    """Products of y - `shift` (m,) from those of y: no cells are needed, as X'1 = X'X k and Z'1 = Z'X k."""
    n = design["n"]
    return {
        "XY": genes["XY"] - (design["XX"] @ constant)[:, None] * shift[None, :],
        "ZY": genes["ZY"] - (design["ZX"] @ constant)[:, None] * shift[None, :],
        "Ynorm": genes["Ynorm"] - shift * (2.0 * genes["Ysum"] - n * shift),
        "Ysum": genes["Ysum"] - n * shift,
    }


def centre_of(Y: Any, constant: Array | None) -> Array | None:
    """Where to sum up each gene about (m,): the mean of those far from zero for their spread, else 0.

    None for a sparse matrix, whose zeros it would fill, and without the `constant` that moves it back.
    """
    if constant is None or is_sparse(Y) or Y.shape[0] == 0:
        return None
    Y = as_float64(Y[:: max(1, Y.shape[0] // _CELLS_LOOKED_AT), :])  # (some cells, m)
    xp = namespace(Y)
    mean = xp.mean(Y, axis=0)  # (m,)
    spread = xp.mean(xp.square(Y - mean[None, :]), axis=0)
    return xp.where(xp.square(mean) > _FAR**2 * spread, mean, 0.0)


def constant_of(X: Any) -> Array | None:
    """Coefficients k (p,) with X k = 1 in every cell, None if the columns of X do not make a constant.

    Examples
    --------
    >>> import numpy as np
    >>> constant_of(np.array([[1.0, 0.0, 5.0], [0.0, 1.0, 7.0], [0.0, 1.0, 8.0]]))
    array([1., 1., 0.])
    """
    X = as_float64(X)
    if 0 in X.shape:
        return None
    column = _constant_column(X)
    return _solved_constant(X) if column is None else column


def _constant_column(X: Any) -> Array | None:
    # the first column that has the same value in all cells
    if scipy.sparse.issparse(X):
        low, high = (dense_array(values).reshape(-1) for values in (X.min(axis=0), X.max(axis=0)))  # (p,)
    else:
        low, high = namespace(X).min(X, axis=0), namespace(X).max(X, axis=0)
    found = flag_indices((low == high) & (low != 0))
    if found.size == 0:
        return None
    return like([1.0 / float(low[j]) if j == found[0] else 0.0 for j in range(X.shape[1])], low)


def _solved_constant(X: Any) -> Array | None:
    # least squares with two steps of refinement; X may be rank deficient
    XX = dense_array(X.T @ X)  # (p, p)
    xp, p = namespace(XX), XX.shape[0]
    squares = xp.linalg.diagonal(XX)
    unit = xp.sqrt(xp.where(squares > 0, squares, 1.0))  # (p,)
    values, vectors = eigh_psd(XX / (unit[:, None] * unit[None, :]), xp.ones_like(unit[0]))
    inverse = xp.where(values > 0, 1.0 / xp.where(values > 0, values, 1.0), 0.0)  # (p,)
    one = zeros((X.shape[0],), XX) + 1.0  # (n,)
    k = zeros((p,), XX)
    for _ in range(3):
        k = k + (vectors @ (inverse * (vectors.T @ ((X.T @ (one - X @ k)) / unit)))) / unit
    for candidate in (xp.round(k / _SHORT) * _SHORT + 0.0, k):  # + 0.0: no -0
        if float(xp.max(xp.abs(X @ candidate - one))) <= _UNITS * eps(k):
            return candidate
    return None


def add_centred(a: Any, b: Any) -> Centred | None:
    """Add the sums of two `SummaryStats` about the centre of the left; None if one has only those about zero."""
    if a.n == 0 or b.n == 0:
        return b.centred if a.n == 0 else a.centred
    if a.centred is None or b.centred is None or (constant := shared_constant(a, b)) is None:
        return None
    theirs = recentred(vars(b.centred), vars(b), b.centred.constant, a.centred.centre - b.centred.centre)
    total = {name: getattr(a.centred, name) + theirs[name] for name in theirs}
    return Centred(a.centred.centre, constant, **total)


def join_centred(parts: Sequence[Any]) -> Centred | None:
    """Join the sums about centres of `SummaryStats` of consecutive genes; zero is the centre of those without."""
    centred = [part.centred for part in parts if part.centred is not None]
    if not centred or any(part.Ysum is None for part in parts):
        return None
    about = [part.centred or _about_zero(part, centred[0].constant) for part in parts]
    names = ("centre", "XY", "ZY", "Ynorm", "Ysum")
    return Centred(constant=centred[0].constant, **join_genes([{n: vars(part)[n] for n in names} for part in about]))


def _about_zero(ss: Any, constant: Array) -> Centred:
    assert ss.Ysum is not None
    return Centred(zeros((ss.m,), ss.XY), constant, XY=ss.XY, ZY=ss.ZY, Ynorm=ss.Ynorm, Ysum=ss.Ysum)


def shared_constant(a: Any, b: Any) -> Array | None:
    """Coefficients that make the constant in the cells of both of two `SummaryStats`, None if that is not sure.

    Each brings its own; a level that only one of them has is missing in the other's.
    """
    ours, theirs = a.centred.constant, b.centred.constant
    either = namespace(ours).where(ours != 0, ours, theirs)
    for k in (ours, theirs, either):
        if _holds(k, a) and _holds(k, b):
            return k
    return None


def _holds(k: Array, stats: Any) -> bool:
    # |X k - 1|^2 = d'X'X d for d = k - (what is known to make the constant)
    d = k - stats.centred.constant
    return float(namespace(d).sum(d * (stats.XX @ d))) <= stats.n * (_UNITS * eps(d)) ** 2
