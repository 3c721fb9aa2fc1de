"""Centres: genes whose mean is many times their standard deviation are accumulated about a centre."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..backend.arrays import Array, flag_indices, like, namespace, on_host, zeros
from ..backend.late_imports import is_scipy_sparse
from ..backend.linalg import eigh_psd, eps
from ..backend.sparse import is_sparse
from .host_products import sums_and_squares
from .products import GeneProducts, as_float64, dense_array, gene_products, recentred

if TYPE_CHECKING:
    from .summary_stats import SummaryStats

#: A gene is accumulated about its mean where abs(mean) exceeds this many standard deviations.
FAR = 30.0
#: Number of cells, about, from which the mean and standard deviation of a gene are estimated.
SAMPLED_CELLS = 1024
#: Consecutive cells that are read together: of genes that are stored one after the other, this fills cache lines.
_BLOCK_CELLS = 64
#: Coefficients of the constant are tried as multiples of this, which sums of whole numbers do not round.
_SHORT = 2.0**-20
#: X k may differ from 1 by this many rounding units, the accuracy of the values themselves.
_UNITS = 64


@dataclass(frozen=True, kw_only=True)
class Centred(GeneProducts):
    """Products of y - centre with the design, which projections use in place of those about zero."""

    centre: Array  #: (m,)
    constant: Array  #: (p,), k with X k = 1


def sampled_blocks(n: int) -> list[tuple[int, int]]:
    """Ranges of cells, evenly spaced out of n, with about `SAMPLED_CELLS` cells.

    >>> sampled_blocks(100)
    [(0, 100)]
    """
    if n <= SAMPLED_CELLS:
        return [(0, n)]
    count = SAMPLED_CELLS // _BLOCK_CELLS
    return [(lo, lo + _BLOCK_CELLS) for lo in (i * (n - _BLOCK_CELLS) // (count - 1) for i in range(count))]


def centred_products(X: Any, Z: Any, Y: Any, constant: Array | None, weights: Array | None = None) -> GeneProducts:
    """`gene_products` about a centre; the centre is None where none is needed or possible."""
    return gene_products(X, Z, Y, centre_of(Y, constant), weights)


def centre_of(Y: Any, constant: Array | None, transform: Callable[[Any], Any] = lambda values: values) -> Array | None:
    """Centres of the genes (m,): the mean where it is far from zero for the standard deviation, else 0.

    None for a sparse matrix, whose zeros it would fill, and without a `constant` to move the products back to zero.
    """
    if constant is None or is_sparse(Y) or Y.shape[0] == 0:
        return None
    xp, blocks = namespace(Y), [transform(Y[lo:hi, :]) for lo, hi in sampled_blocks(Y.shape[0])]
    cells = sum(block.shape[0] for block in blocks)
    if on_host(Y):
        total, squares = sums_and_squares(blocks)
    else:
        values = as_float64(xp.concat(blocks, axis=0))  # one launch of each operation
        total, squares = xp.sum(values, axis=0), xp.sum(values * values, axis=0)
    mean = total / cells
    variance = squares / cells - xp.square(mean)  # to rounding of mean^2, which is less than what it is compared with
    return xp.where(xp.square(mean) > FAR**2 * variance, mean, 0.0)


def constant_of(X: Any) -> Array | None:
    """Coefficients k (p,) with X k = 1 in every cell; None if the columns of X do not make a constant.

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
    # the first column that has the same value in all cells; most others show in some of them that they have not
    if is_scipy_sparse(X):
        low, high = (dense_array(values).reshape(-1) for values in (X.min(axis=0), X.max(axis=0)))  # (p,)
        found = flag_indices((low == high) & (low != 0)).tolist()
    else:
        low, xp, some = X[0, :], namespace(X), X[: min(SAMPLED_CELLS, X.shape[0]), :]
        likely = flag_indices(xp.all(some == low[None, :], axis=0) & (low != 0)).tolist()
        found = [j for j in likely if bool(xp.all(X[:, j] == low[j]))]
    if not found:
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


def add_centred(a: SummaryStats, b: SummaryStats) -> Centred | None:
    """Add the centred products of two statistics about the left's centre; None if either has none."""
    if a.n == 0 or b.n == 0:
        return b.centred if a.n == 0 else a.centred
    if a.centred is None or b.centred is None or (constant := shared_constant(a, b)) is None:
        return None
    ours, shift = a.centred, a.centred.centre - b.centred.centre
    theirs = recentred(b.centred, b.design_products, b.centred.constant, shift)
    assert ours.Ysum is not None and theirs.Ysum is not None
    return Centred(
        XY=ours.XY + theirs.XY,
        ZY=ours.ZY + theirs.ZY,
        Ynorm=ours.Ynorm + theirs.Ynorm,
        Ysum=ours.Ysum + theirs.Ysum,
        centre=ours.centre,
        constant=constant,
    )


def join_centred(parts: Sequence[SummaryStats]) -> Centred | None:
    """Join the centred products of statistics of consecutive genes; parts without a centre have it at zero."""
    centred = [part.centred for part in parts if part.centred is not None]
    if not centred or any(part.Ysum is None for part in parts):
        return None
    about = [part.centred or replace(part.gene_products, centre=zeros((part.m,), part.XY)) for part in parts]
    return with_constant(GeneProducts.join(about), centred[0].constant)


def with_constant(genes: GeneProducts, constant: Array) -> Centred:
    """Centred products from products about a centre and the coefficients of the constant."""
    assert genes.centre is not None
    return Centred(XY=genes.XY, ZY=genes.ZY, Ynorm=genes.Ynorm, Ysum=genes.Ysum, centre=genes.centre, constant=constant)


def shared_constant(a: SummaryStats, b: SummaryStats) -> Array | None:
    """Coefficients that make the constant in the cells of both statistics, None if there are none for certain.

    Each has its own; a level that only one of them has is missing in the other's.
    """
    assert a.centred is not None and b.centred is not None
    ours, theirs = a.centred.constant, b.centred.constant
    either = namespace(ours).where(ours != 0, ours, theirs)
    for k in (ours, theirs, either):
        if _makes_constant(k, a) and _makes_constant(k, b):
            return k
    return None


def _makes_constant(k: Array, stats: SummaryStats) -> bool:
    # |X k - 1|^2 = d'X'X d for d = k - (coefficients known to make the constant)
    assert stats.centred is not None
    d = k - stats.centred.constant
    return bool(float(namespace(d).sum(d * (stats.XX @ d))) <= stats.n * (_UNITS * eps(d)) ** 2)
