"""Factorisations against their defining equations; a bad matrix is marked and harms no neighbour.

Residuals are relative to the norms of what is multiplied, with a bound in units of rounding.
"""

from __future__ import annotations

import cupy_like_device as cuda
import numpy as np
import pytest
from cupy_like import asarray, xp

from lmm_gpu.backend import host_decompositions, linalg
from lmm_gpu.backend.arrays import namespace
from lmm_gpu.backend.host_decompositions import decomposed_on_host

EPS = np.finfo(float).eps


def positive_definite(b, q, seed=0, condition=1e3):
    """A stack (b, q, q) with eigenvalues from 1 to `condition`."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(b, q, q)))[0]
    return (Q * np.geomspace(1, condition, q)) @ np.swapaxes(Q, 1, 2)


def features_last(stack):
    return np.moveaxis(stack, 0, -1)


def norm(stack):
    return np.linalg.norm(stack, axis=(-2, -1))


def test_eps_is_that_of_the_dtype():
    assert linalg.eps(np.zeros(1)) == EPS
    assert linalg.eps(np.zeros(1, dtype=np.float32)) == np.finfo(np.float32).eps


# --- very small matrices, features last -----------------------------------------------------------


def factored(A):
    return linalg.cholesky_rows(np, linalg.rows_of(A))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_solve_rows(k):
    A, x = positive_definite(20, k), np.random.default_rng(1).normal(size=(20, k, 1))
    factor, ok = factored(features_last(A))
    found = linalg.solve_rows(factor, list(features_last(A @ x)[:, 0, :]))
    assert np.asarray(ok).all()
    np.testing.assert_allclose(found, features_last(x)[:, 0, :], atol=1e3 * 100 * EPS)  # condition x rounding


@pytest.mark.parametrize("k", [1, 2, 4])
def test_inverse_small(k):
    A = positive_definite(20, k)
    inverse, ok = linalg.inverse_small(features_last(A))
    assert np.asarray(ok).all()
    residual = A @ np.moveaxis(np.asarray(inverse), -1, 0) - np.eye(k)
    assert norm(residual).max() < 1e3 * 100 * EPS


def test_scale_does_not_matter_to_small_matrices():
    """Variances in one unit and counts in another: a pivot is judged against its own diagonal."""
    units = np.array([1e-8, 1.0, 1e8])
    A = positive_definite(5, 3)
    inverse, ok = linalg.inverse_small(features_last(A * units[:, None] * units))
    assert np.asarray(ok).all()
    unscaled = np.moveaxis(np.asarray(inverse), -1, 0) * units[:, None] * units
    assert norm(A @ unscaled - np.eye(3)).max() < 1e3 * 100 * EPS


def test_small_matrices_that_are_not_positive_definite():
    A = positive_definite(6, 3, seed=2)
    A[1] = np.diag([1.0, -1.0, 2.0])
    A[3] = np.ones((3, 3))
    A[4] = np.nan
    factor, ok = factored(features_last(A))
    np.testing.assert_array_equal(ok, [True, False, True, False, False, True])
    good = [0, 2, 5]
    rhs = np.random.default_rng(3).normal(size=(3, 6))
    found = linalg.solve_rows(factor, list(rhs))
    expected = np.linalg.solve(A[good], rhs.T[good][:, :, None])[:, :, 0].T
    np.testing.assert_allclose(np.asarray(found)[:, good], expected, atol=1e3 * 100 * EPS)


def test_a_singular_small_system_is_solved_where_it_can_be():
    """Two confounded components: one stays at zero, and the equations are still satisfied."""
    A = np.array([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [1.0, 1.0, 3.0]])
    rhs = A @ np.array([1.0, -3.0, 2.0])
    factor, ok = factored(A[:, :, None])
    x = np.asarray(linalg.solve_rows(factor, list(rhs[:, None])))[:, 0]
    assert not np.asarray(ok)[0]
    assert x[1] == 0
    np.testing.assert_allclose(A @ x, rhs, atol=100 * EPS)


# --- stacks, batch first --------------------------------------------------------------------------

SIZES = [1, 2, 3, 8, 13]


def test_identity():
    np.testing.assert_array_equal(linalg.identity(3, np.zeros(2, dtype=np.float32)), np.eye(3, dtype=np.float32))
    assert linalg.identity(3, np.zeros(2, dtype=np.float32)).dtype == np.float32


@pytest.mark.parametrize("q", SIZES)
def test_cholesky(q):
    A = positive_definite(7, q)
    L, ok = map(np.asarray, linalg.cholesky(A))
    assert ok.all()
    np.testing.assert_array_equal(L, np.tril(L))
    assert (norm(L @ np.swapaxes(L, 1, 2) - A) / norm(A)).max() < 10 * q * EPS


@pytest.mark.parametrize("bad", [[0], [6], [2, 3], [0, 1, 2, 3, 4, 5, 6]])
def test_cholesky_marks_what_it_cannot_factorise(bad):
    """As many ways to be bad as there are; neighbours get the bits that they get alone."""
    A = positive_definite(7, 4)
    alone, _ = linalg.cholesky(A)
    spoilt = A.copy()
    for i, kind in zip(bad, np.resize(["negative", "nan", "inf"], len(bad)), strict=True):
        spoilt[i] = {"negative": -np.eye(4), "nan": np.nan * A[i], "inf": np.diag([np.inf] * 4)}[kind]
    L, ok = map(np.asarray, linalg.cholesky(spoilt))
    good = np.setdiff1d(np.arange(7), bad)
    np.testing.assert_array_equal(np.flatnonzero(ok), good)
    np.testing.assert_array_equal(L[good], np.asarray(alone)[good])
    np.testing.assert_array_equal(L[bad], np.broadcast_to(np.eye(4), (len(bad), 4, 4)))


def test_cholesky_of_an_indefinite_matrix_with_a_positive_diagonal():
    A = np.array([[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
    np.testing.assert_array_equal(linalg.cholesky(A)[1], [False, True])


@pytest.mark.parametrize("q", SIZES)
def test_inverse_and_logdet(q):
    A = positive_definite(5, q, condition=1e4)
    inverse, logdet, ok = map(np.asarray, linalg.inverse_and_logdet(A))
    assert ok.all()
    assert norm(A @ inverse - np.eye(q)).max() < 1e4 * 10 * q * EPS
    np.testing.assert_allclose(logdet, np.log(np.geomspace(1, 1e4, q)).sum(), atol=1e-11)


def test_inverse_and_logdet_of_nothing():
    """Matrices without rows: one random effect, all of it eliminated."""
    inverse, logdet, ok = map(np.asarray, linalg.inverse_and_logdet(np.zeros((3, 0, 0))))
    assert inverse.shape == (3, 0, 0)
    np.testing.assert_array_equal(logdet, np.zeros(3))
    assert ok.all()


def test_inverse_and_logdet_is_finite_everywhere():
    A = positive_definite(4, 3)
    A[2] = np.diag([1.0, -1.0, 1.0])
    inverse, logdet, ok = map(np.asarray, linalg.inverse_and_logdet(A))
    np.testing.assert_array_equal(ok, [True, True, False, True])
    assert np.isfinite(inverse).all()
    assert np.isfinite(logdet).all()


# --- one matrix per design ------------------------------------------------------------------------


def semi_definite(q, rank, seed=0):
    root = np.random.default_rng(seed).normal(size=(q, rank))
    return root @ root.T


@pytest.mark.parametrize("rank", [0, 1, 4, 7])
def test_eigh_psd(rank):
    S = semi_definite(7, rank)
    values, U = map(np.asarray, linalg.eigh_psd(S))
    assert np.count_nonzero(values) == rank
    assert (values >= 0).all()
    np.testing.assert_allclose(U.T @ U, np.eye(7), atol=1e-14)
    np.testing.assert_allclose((U * values) @ U.T, S, atol=1e-14 * max(1.0, np.abs(S).max()))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_root_psd(rank, scale):
    """S = K K', and the second is a left inverse of the first, whatever the units of S."""
    S = scale * semi_definite(7, rank)
    K, inverse = map(np.asarray, linalg.root_psd(S, np.diagonal(S)))
    assert K.shape == (7, rank)
    np.testing.assert_allclose(K @ K.T, S, atol=1e-13 * np.abs(S).max())
    np.testing.assert_allclose(inverse @ K, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(K @ inverse @ S, S, atol=1e-12 * np.abs(S).max())


def test_rank_of_a_root_does_not_depend_on_units():
    """What is left of a difference of large numbers is rounding, in columns of any size."""
    S, units = semi_definite(7, 4), np.logspace(-6, 6, 7)
    noise = 1e-13 * np.random.default_rng(2).normal(size=(7, 7))
    noisy = (S + noise + noise.T) * units[:, None] * units
    K, _ = map(np.asarray, linalg.root_psd(noisy, np.diagonal(S) * units**2))
    assert K.shape == (7, 4)


def test_rows_that_are_rounding_are_zero():
    """A random effect that the fixed effects explain leaves nothing, and no noise either."""
    S = np.zeros((5, 5))
    S[:3, :3], S[3:, 3:] = positive_definite(1, 3)[0], 1e-15
    K, _ = map(np.asarray, linalg.root_psd(S, np.ones(5)))
    assert K.shape == (5, 3)
    assert (K[3:] == 0).all()


def test_root_of_zero_has_no_columns():
    K, inverse = linalg.root_psd(np.zeros((3, 3)), np.ones(3))
    assert K.shape == (3, 0)
    assert inverse.shape == (0, 3)


def test_inverse_spd_in_mixed_units():
    """Cells by log-library-size: the condition number is 1e24, of which the units make up all but 1e3."""
    units = np.array([1e-6, 1.0, 1e6])
    A = positive_definite(1, 3)[0]
    inverse, dependent = linalg.inverse_spd(A * units[:, None] * units)
    assert dependent == []
    np.testing.assert_allclose((inverse * units[:, None] * units) @ A, np.eye(3), atol=1e3 * 100 * EPS)


@pytest.mark.parametrize(
    ("columns", "dependent"),
    [
        (lambda a, b, c, d: [a, b, a + b, c], [0, 1, 2]),
        (lambda a, b, c, d: [a, b, c, 1e6 * b], [1, 3]),
        (lambda a, b, c, d: [a, 0 * a, b, c], [1]),
        (lambda a, b, c, d: [a, b, a + 1e-9 * b, c], [0, 2]),
    ],
)
def test_inverse_spd_names_the_columns_of_a_dependence(columns, dependent):
    X = np.column_stack(columns(*np.random.default_rng(5).normal(size=(4, 50))))
    inverse, found = linalg.inverse_spd(X.T @ X)
    assert inverse is None
    assert found == dependent


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_inverse_spd_of_a_diagonal_that_cannot_be(value):
    assert linalg.inverse_spd(np.diag([1.0, value, 2.0])) == (None, [1])


# --- matrices of a design -------------------------------------------------------------------------


@pytest.mark.imitation
@pytest.mark.parametrize("largest", [512, 4])
def test_a_design_is_decomposed_on_the_host_unless_it_is_large(largest, monkeypatch):
    """Results are where the matrix was, with its values, and other dtypes stay as they are."""
    monkeypatch.setattr(host_decompositions, "LARGEST", largest)
    root = np.random.default_rng(0).normal(size=(5, 5))
    A = root @ root.T

    def eigen(matrix, name, nothing):
        xp = namespace(matrix)
        values, vectors = xp.linalg.eigh(matrix)
        return values, (vectors, xp.astype(values > 0, xp.int64)), nothing, len(name)

    with cuda.counting() as count:
        values, (vectors, positive), nothing, length = decomposed_on_host(eigen)(asarray(A), "abc", None)
    assert ("eigh" in {one.name for one in count.operations}) == (largest == 4)
    assert namespace(values) is namespace(vectors) is namespace(positive) is xp
    np.testing.assert_allclose(vectors.get() @ np.diag(values.get()) @ vectors.get().T, A, atol=1e-13)
    assert positive.dtype == np.int64 and positive.get().tolist() == [1] * 5
    assert nothing is None and length == 3


@pytest.mark.imitation
@pytest.mark.parametrize("q", [linalg.LARGEST_BATCHED_EIGH, linalg.LARGEST_BATCHED_EIGH + 1])
def test_larger_stacks_than_jacobis_are_decomposed_on_the_host(q):
    root = np.random.default_rng(0).normal(size=(2, q, q))
    A = root @ np.swapaxes(root, 1, 2)
    with cuda.counting() as count:
        values, vectors = linalg.eigh_stack(asarray(A))
    assert ("eigh" in {one.name for one in count.operations}) == (q <= linalg.LARGEST_BATCHED_EIGH)
    np.testing.assert_allclose(values.get(), np.linalg.eigvalsh(A), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(A @ vectors.get(), vectors.get() * values.get()[:, None, :], atol=1e-10)
