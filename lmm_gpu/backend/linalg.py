"""Factorisations, made only here; every batched one returns an `ok` mask per matrix.

Libraries differ for a matrix that is not positive definite: NumPy raises for the whole stack, CUDA libraries
never raise and leave garbage. Callers get finite numbers and `ok = False` instead.

Two layouts: matrices of the size of the number of variance components are (k, k, b), features last, and are
factorised by unrolled elementwise operations; larger ones are stacks (b, q, q) for the library's routines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .arrays import Array, indices, like, namespace, on_host, raises_for_bad_matrices, to_numpy, zeros
from .fusion import fused
from .host_decompositions import decomposed_on_host
from .late_imports import scipy

#: A pivot below this share of its diagonal entry is rounding: the column depends on those before it.
DEPENDENT = 1e-10
#: Entries of a null vector of unit length below this are rounding: the column has no part in the dependence.
NO_PART = 1e-4
#: Rounding unit of float64, in which the engine computes.
EPS = 2.0**-52
#: A pivot of the information below this share of its diagonal entry is rounding.
LOST_PIVOT = 64 * EPS
#: Relative residual of a factorisation above which it is garbage.
RESIDUAL = 1e-9
#: Rows of a matrix from which on a triangular solve gains more than its call costs.
LARGE = 100
#: Rows of a matrix up to which its eigenvalues take less time than an attempt to factorise it alone.
SMALL = 16
#: Rows of the largest matrices whose eigenvectors CUDA's batched routine finds well.
LARGEST_BATCHED_EIGH = 32
#: Number of positive factors that are multiplied before their logarithm is taken.
FACTORS = 8


def eps(x: Array) -> float:
    """Rounding unit of the dtype of `x`, as a Python float."""
    return float(namespace(x).finfo(x.dtype).eps)


# --- stacks of very small matrices, features last -------------------------------------------------

Vectors = Sequence[Array]


def cholesky_rows(xp: Any, A: Sequence[Vectors]) -> tuple[list[list[Array]], Array]:
    """Cholesky factors of symmetric k x k matrices whose entries are vectors over features.

    Parameters
    ----------
    xp : namespace
    A : k rows of k vectors (b,)

    Returns
    -------
    factor : k rows of k vectors (b,)
        Lower triangle; the diagonal holds 1 / L_jj, and 0 where the pivot is not above rounding, so that a
        solve leaves that unknown at 0 (a generalised inverse, as for components that are confounded).
    ok : bool array (b,)
        Every pivot is positive.
    """
    k = len(A)
    factor: list[list[Array]] = [[None] * k for _ in range(k)]
    ok = xp.isfinite(A[0][0])
    for j in range(k):
        pivot = A[j][j]
        for c in range(j):
            pivot = pivot - factor[j][c] * factor[j][c]
        good = pivot > LOST_PIVOT * A[j][j]
        ok = ok & good
        factor[j][j] = xp.where(good, 1.0 / xp.sqrt(xp.where(good, pivot, 1.0)), 0.0)
        for i in range(j + 1, k):
            entry = A[i][j]
            for c in range(j):
                entry = entry - factor[i][c] * factor[j][c]
            factor[i][j] = entry * factor[j][j]
    return factor, ok


def solve_rows(factor: list[list[Array]], rhs: Vectors) -> list[Array]:
    """Solve with the factor of `cholesky_rows`: k vectors to k vectors."""
    k = len(rhs)
    x: list[Array] = []
    for i in range(k):
        value = rhs[i]
        for c in range(i):
            value = value - factor[i][c] * x[c]
        x.append(value * factor[i][i])
    for i in reversed(range(k)):
        value = x[i]
        for c in range(i + 1, k):
            value = value - factor[c][i] * x[c]
        x[i] = value * factor[i][i]
    return x


def rows_of(A: Array) -> list[list[Array]]:
    """Entries of small matrices (k, k, b) as k rows of k vectors: views."""
    return [[A[i, j, :] for j in range(A.shape[1])] for i in range(A.shape[0])]


@fused
def _inverse_rows(xp: Any, _: None, A: Sequence[Vectors]) -> tuple[tuple[Vectors, ...], Array]:
    # columns of the inverse, and `ok`
    factor, ok = cholesky_rows(xp, A)
    zero = 0.0 * factor[0][0]
    unit = [[zero + 1.0 if i == j else zero for i in range(len(A))] for j in range(len(A))]
    return tuple(tuple(solve_rows(factor, column)) for column in unit), ok


def inverse_small(A: Array) -> tuple[Array, Array]:
    """Inverses of symmetric k x k matrices (k, k, b), and the `ok` mask of `cholesky_rows`."""
    xp = namespace(A)
    columns, ok = _inverse_rows(None, rows_of(A))
    return xp.reshape(xp.stack([entry for column in columns for entry in column], axis=0), A.shape), ok


# --- diagonal matrices, features last --------------------------------------------------------------


def log_product(x: Array) -> Array:
    """Sum over the first axis of log `x` (q, b), positive: the log determinants of diagonal matrices (b,).

    A logarithm takes as long as a dozen products, so there is one for every few factors. Factors between 1e-38 and
    1e38 cannot leave the range of float64.
    """
    xp = namespace(x)
    q, b = x.shape
    whole = q - q % FACTORS
    grouped = xp.prod(xp.reshape(x[:whole, :], (FACTORS, whole // FACTORS, b)), axis=0)  # (q // FACTORS, b)
    return xp.sum(xp.log(grouped), axis=0) + xp.sum(xp.log(x[whole:, :]), axis=0)


# --- stacks of small matrices, batch first --------------------------------------------------------


def identity(q: int, reference: Array) -> Array:
    """Identity matrix (q, q) in the library, device and dtype of `reference`."""
    xp = namespace(reference)
    return like(xp.eye(q), reference)


def upper_triangle(q: int, reference: Array) -> tuple[Array, Array]:
    """Positions (pairs,) of the entries i <= j of a matrix (q, q), row by row, and the place there of all entries.

    >>> import numpy as np
    >>> triangle, unpack = upper_triangle(2, np.zeros(1))
    >>> triangle.tolist(), unpack.tolist()
    ([0, 1, 3], [0, 1, 1, 2])
    """
    xp = namespace(reference)
    i = indices(list(range(q)), reference)
    row, column = xp.broadcast_to(i[:, None], (q, q)), xp.broadcast_to(i[None, :], (q, q))
    low, high = xp.minimum(row, column), xp.maximum(row, column)
    upper = xp.where(row <= column, row * q + column, q * q)  # sorted, those below the diagonal come last
    triangle = xp.argsort(xp.reshape(upper, (q * q,)), stable=True)[: q * (q + 1) // 2]
    return triangle, xp.reshape(low * q - low * (low - 1) // 2 + high - low, (q * q,))


def solve_lower(L: Array, B: Array) -> Array:
    """Solve L X = B for stacks of lower triangular matrices (b, q, q) and of right-hand sides (b, q, c)."""
    xp = namespace(L)
    if on_host(L) and L.shape[1] >= LARGE:
        one = partial(scipy.linalg.solve_triangular, lower=True, check_finite=False)
        solved = [one(factor, rhs) for factor, rhs in zip(L, B, strict=True)]
        return xp.stack(solved, axis=0) if solved else B
    return xp.linalg.solve(L, B)


def cholesky(A: Array, unit: Array | None = None) -> tuple[Array, Array]:
    """Lower Cholesky factors of a stack, the identity and `ok = False` where a matrix is not positive definite.

    Parameters
    ----------
    A : array (b, q, q), symmetric
    unit : array (q, q), optional
        The identity, if known.

    Returns
    -------
    L : array (b, q, q)
    ok : bool array (b,)
    """
    xp = namespace(A)
    if A.shape[1] == 0:  # nothing has a largest entry
        return A, xp.isfinite(xp.sum(A, axis=(1, 2)))
    unit = (identity(A.shape[1], A) if unit is None else unit)[None, :, :]
    if raises_for_bad_matrices(A):
        finite = xp.isfinite(xp.sum(A, axis=(1, 2)))  # (b,)
        L, ok = _factorised(xp.where(finite[:, None, None], A, unit), unit)
        ok = ok & finite
    else:
        L = xp.linalg.cholesky(A)
        ok = _is_small(A - xp.matmul(L, xp.matrix_transpose(L)), xp.max(xp.linalg.diagonal(A), axis=1))
    pivots = xp.min(xp.linalg.diagonal(L), axis=1)  # (b,)
    ok = _and_positive(None, ok, pivots)  # (b,)
    return xp.where(ok[:, None, None], L, unit), ok


def independent_columns(A: Array) -> Array:
    """Flags (b,) of Gram matrices (b, q, q) whose columns are not linearly dependent, as `DEPENDENT` has it."""
    xp = namespace(A)
    squares = xp.linalg.diagonal(A)  # (b, q)
    unit = 1.0 / xp.sqrt(xp.where(squares > 0, squares, 1.0))
    L, ok = cholesky(A * unit[:, :, None] * unit[:, None, :])
    return ok & xp.all(xp.square(xp.linalg.diagonal(L)) > DEPENDENT, axis=1)


def solve(A: Array, B: Array) -> tuple[Array, Array]:
    """Solve a stack of general systems A X = B: (b, q, q) and (b, q, c) to (b, q, c) and `ok` (b,)."""
    xp = namespace(A)
    if raises_for_bad_matrices(A):
        return _bisect(xp.linalg.solve, A, B)
    X = xp.linalg.solve(A, B)
    size = _size_of_system(None, *map(_largest, (A, X, B)), float(A.shape[1]))  # (b,)
    return X, _is_small(B - xp.matmul(A, X), size)


def _largest(stack: Array) -> Array:
    return namespace(stack).max(namespace(stack).abs(stack), axis=(1, 2))  # (b,)


def _is_small(residual: Array, size: Array) -> Array:
    # a factorisation gives its matrix back; NaN is not small
    return _below(None, _largest(residual), size)


@fused
def _size_of_system(xp: Any, _: None, A: Array, X: Array, B: Array, q: float) -> Array:
    return A * X * q + B


@fused
def _below(xp: Any, _: None, residual: Array, size: Array) -> Array:
    return residual <= RESIDUAL * size


@fused
def _and_positive(xp: Any, _: None, ok: Array, pivot: Array) -> Array:
    return ok & (pivot > 0)


def _factorised(A: Array, unit: Array) -> tuple[Array, Array]:
    # Cholesky factors by a library that raises: bad small matrices are found by their eigenvalues, large ones by halves
    xp = namespace(A)
    if A.shape[1] > SMALL:
        return _bisect(xp.linalg.cholesky, A)
    try:
        return xp.linalg.cholesky(A), xp.isfinite(A[:, 0, 0])
    except Exception as error:
        if not _is_bad_matrix(error):
            raise
    good = xp.min(xp.linalg.eigvalsh(A), axis=1) > 0  # (b,)
    L, ok = _bisect(xp.linalg.cholesky, xp.where(good[:, None, None], A, unit))
    return L, ok & good


def _is_bad_matrix(error: Exception) -> bool:
    return "LinAlg" in type(error).__name__  # each library has its own LinAlgError


def _bisect(factorise: Callable[..., Array], *stacks: Array) -> tuple[Array, Array]:
    # A library that raises does so for the whole stack: halve it until the bad matrices stand alone.
    xp = namespace(*stacks)
    b = stacks[0].shape[0]
    try:
        result = factorise(*stacks)
    except Exception as error:
        if not _is_bad_matrix(error):
            raise
        if b == 1:
            return xp.zeros_like(stacks[-1]), zeros((1,), stacks[0], dtype=xp.bool)
        parts = [_bisect(factorise, *[A[half, :, :] for A in stacks]) for half in (slice(b // 2), slice(b // 2, b))]
        return xp.concat([part[0] for part in parts], axis=0), xp.concat([part[1] for part in parts], axis=0)
    return result, xp.isfinite(xp.sum(result, axis=(1, 2)))


def eigh_stack(A: Array) -> tuple[Array, Array]:
    """Eigenvalues (b, q) and eigenvectors (b, q, q) of a stack of symmetric matrices of finite numbers."""
    if A.shape[1] == 1:
        return A[:, 0, :], namespace(A).ones_like(A)
    return (_eigh_on_host if A.shape[1] > LARGEST_BATCHED_EIGH else _eigh)(A)


def _eigh(A: Array) -> tuple[Array, Array]:
    values, vectors = namespace(A).linalg.eigh(0.5 * (A + namespace(A).matrix_transpose(A)))
    return values, vectors


_eigh_on_host = decomposed_on_host(_eigh)


def inverse_and_logdet(A: Array, unit: Array | None = None) -> tuple[Array, Array, Array]:
    """Inverses (b, q, q), log determinants (b,) and `ok` (b,) of a stack of symmetric positive definite matrices."""
    xp = namespace(A)
    unit = identity(A.shape[1], A) if unit is None else unit
    L, ok = cholesky(A, unit)
    unit = xp.broadcast_to(unit, A.shape)
    if raises_for_bad_matrices(A):
        inverse, _ = _bisect(xp.linalg.solve, xp.where(ok[:, None, None], A, unit), unit)
    else:
        inverse = xp.linalg.solve(A, unit)
    logdet = 2.0 * xp.sum(xp.log(xp.linalg.diagonal(L)), axis=1)  # (b,)
    return inverse, logdet, ok


# --- one matrix per design ------------------------------------------------------------------------


@decomposed_on_host
def eigh_psd(S: Array, scale: Array | None = None) -> tuple[Array, Array]:
    """Eigenvalues (q,) and eigenvectors (q, q) of a positive semi-definite matrix; rounding becomes exactly 0.

    Rounding is what lies below `DEPENDENT` times `scale` (0-d), the size of the numbers that S is a difference of;
    below q * eps times the largest eigenvalue if there is none.
    """
    xp = namespace(S)
    if S.shape[0] == 0:
        return zeros((0,), S), S
    values, vectors = xp.linalg.eigh(0.5 * (S + S.T))
    cut = S.shape[0] * eps(S) * xp.max(xp.abs(values)) if scale is None else DEPENDENT * scale
    return xp.where(values > cut, values, 0.0), vectors


@decomposed_on_host
def largest_eigenvalue(S: Array) -> Array:
    """Largest eigenvalue (0-d) of a symmetric matrix."""
    xp = namespace(S)
    return xp.max(xp.linalg.eigvalsh(0.5 * (S + S.T)))


@decomposed_on_host
def root_psd(S: Array, squares: Array) -> tuple[Array, Array]:
    """Root K (q, r) with S = K K', and a left inverse of K (r, q); r is the numerical rank.

    Eigenvalues of S in units of `squares` (q,), the squared lengths of its columns before anything was projected
    out, are dropped if they are rounding: donors nested in a fixed effect make S singular.
    """
    xp = namespace(S)
    unit = xp.sqrt(xp.where(squares > 0, squares, 1.0))  # (q,)
    values, vectors = eigh_psd(S / (unit[:, None] * unit[None, :]), xp.ones_like(unit[0]))
    first = S.shape[0] - int(to_numpy(xp.count_nonzero(values)))  # eigh sorts in ascending order
    root = xp.sqrt(values[first:])  # (r,)
    vectors = vectors[:, first:]  # (q, r)
    kept = xp.sum(xp.square(vectors * root[None, :]), axis=1) > DEPENDENT  # (q,), rows above rounding error
    K = xp.where(kept[:, None], unit[:, None] * vectors * root[None, :], 0.0)
    return K, (vectors / (unit[:, None] * root[None, :])).T


@decomposed_on_host
def inverse_spd(A: Array) -> tuple[Array | None, list[int]]:
    """Inverse of one symmetric matrix, scaled to unit diagonal before its Cholesky factorisation.

    Scaling matters: cells by log-library-size gives condition numbers above 1e8 that are only units.

    Returns
    -------
    inverse : array (p, p) or None
        None if the matrix is singular to working accuracy.
    dependent : list of int
        The columns that take part in a linear dependence, empty if there is none.
    """
    xp = namespace(A)
    p = A.shape[0]
    diagonal = xp.linalg.diagonal(A)
    empty = [i for i, x in enumerate(to_numpy(diagonal).tolist()) if not (x > 0 and math.isfinite(x))]
    if empty:
        return None, empty
    scale = 1.0 / xp.sqrt(diagonal)  # (p,)
    scaled = A * scale[:, None] * scale[None, :]
    values, vectors = xp.linalg.eigh(0.5 * (scaled + scaled.T))
    if float(values[0]) <= DEPENDENT:
        null = to_numpy(xp.max(xp.where((values <= DEPENDENT)[None, :], xp.abs(vectors), 0.0), axis=1))
        return None, [i for i in range(p) if null[i] > NO_PART]
    Linv = xp.linalg.solve(xp.linalg.cholesky(scaled), identity(p, A))
    return (Linv.T @ Linv) * scale[:, None] * scale[None, :], []


@decomposed_on_host
def orthonormal_columns(A: Array) -> Array:
    """Matrix T (p, p) with T'A T = I and T T' = A^-1, for one symmetric positive definite matrix."""
    xp = namespace(A)
    scale = 1.0 / xp.sqrt(xp.linalg.diagonal(A))  # (p,)
    L = xp.linalg.cholesky(A * scale[:, None] * scale[None, :])
    return xp.matrix_transpose(xp.linalg.solve(L, identity(A.shape[0], A))) * scale[:, None]
