"""CuPy's ways as `cupy_like` imitates them, one test each: that the stand-in can fail where CuPy fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import array_api_compat
import cupy_like_device as cuda
import cupy_like_linalg
import numpy as np
import pytest
from cupy_like import Array, asarray, xp

from lmm_gpu.backend.arrays import namespace, to_numpy

FIRST, SECOND = cuda.DEVICES
PD, NOT_PD, SINGULAR = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones((2, 2))


def launches(function, *args, **options) -> int:
    with cuda.counting() as count:
        function(*args, **options)
    return count.launches


def test_it_is_an_array_library():
    x = asarray([1.0, 2.0])
    assert array_api_compat.array_namespace(x, 1.0, None) is xp is namespace(x)
    assert array_api_compat.device(x) == FIRST
    assert isinstance(array_api_compat.to_device(x, "cpu"), np.ndarray)
    assert (xp.ones(2).dtype, xp.arange(2).dtype, asarray([1.5]).dtype) == (xp.float64, xp.int64, xp.float64)


def test_operations_are_numpys():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    x, y = asarray(a), asarray(b)
    pairs = [
        (2.0 - x / 3.0, 2.0 - a / 3.0),
        (x @ y, a @ b),
        (xp.sum(x, axis=0), a.sum(axis=0)),
        (x[1, :], a[1]),
        (x[0, 1], a[0, 1]),
        (x[None, :, 1:], a[None, :, 1:]),
        (xp.where(x > 2, x, -1.0), np.where(a > 2, a, -1.0)),
        (xp.take(x, asarray([2, 0]), axis=1), a[:, [2, 0]]),
        (xp.tensordot(x, y, axes=((1,), (0,))), np.tensordot(a, b, axes=1)),
        (xp.concat([x, x], axis=1), np.hstack([a, a])),
        (xp.stack([x, x], axis=-1), np.stack([a, a], axis=-1)),
        (xp.reshape(x.T, (6,)), a.T.ravel()),
        (~(x > 2) | (x == 0), ~(a > 2) | (a == 0)),
    ]
    for found, wanted in pairs:
        assert isinstance(found, Array)
        np.testing.assert_array_equal(found.get(), wanted)


@pytest.mark.imitation
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: np.asarray(x),
        lambda x: x + np.ones(2),
        lambda x: np.ones(2) * x,
        lambda x: x * np.float64(2.0),
        lambda x: np.float64(2.0) * x,
        lambda x: np.sqrt(x),
        lambda x: x[np.array([0])],
        lambda x: hash(x),
        lambda x: hash(x.device),
    ],
)
def test_numpy_does_not_mix(wrong):
    with pytest.raises(TypeError):
        wrong(asarray([1.0, 4.0]))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.get(),
        lambda x: bool(x[0] > 0),
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: range(xp.count_nonzero(x)),
        lambda x: x.tolist(),
        lambda x: x[x > 1],
        lambda x: x.__setitem__(x > 1, 0.0),
        lambda x: xp.nonzero(x),
        lambda x: xp.unique_values(x),
        lambda x: xp.clip(x, 0.0, 1.0),
        lambda x: xp.sign(x),
        lambda x: to_numpy(x),
    ],
)
def test_the_host_waits(wait):
    x = asarray([1.0, 2.0])
    with cuda.counting() as count:
        wait(x)
    assert len(count.synchronisations) == 1
    assert "test_cupy_like" in count.synchronisations[0].site
    with cuda.no_synchronisation(), pytest.raises(cuda.SynchronisationError):
        wait(x)


def test_the_host_does_not_wait_for_operations():
    with cuda.no_synchronisation():
        x = asarray(np.ones((3, 2, 2)))
        xp.any(xp.linalg.cholesky(x) > 0)
        x[0, ...] = xp.take(x, asarray([1]), axis=0)[0, ...]


@pytest.mark.imitation
@pytest.mark.parametrize("bad", [NOT_PD, np.full((2, 2), np.nan)])
def test_cholesky_leaves_garbage(bad):
    L = xp.linalg.cholesky(asarray(np.stack([PD, bad, PD]))).get()
    np.testing.assert_allclose(L[::2] @ np.swapaxes(L[::2], 1, 2), np.stack([PD, PD]))
    assert np.isfinite(L).all() and (np.diagonal(L[1]) > 0).all()


@pytest.mark.imitation
@pytest.mark.parametrize("bad", [SINGULAR, np.full((2, 2), np.nan)])
def test_solve_inv_and_eigh_leave_garbage(bad):
    A = np.stack([PD, bad, PD])
    x = asarray(A)
    solved, inverse = xp.linalg.solve(x, x).get(), xp.linalg.inv(x).get()
    np.testing.assert_allclose(solved[::2], np.stack([np.eye(2)] * 2), atol=1e-15)
    np.testing.assert_allclose(inverse[::2] @ A[::2], np.stack([np.eye(2)] * 2), atol=1e-15)
    values, vectors = (part.get() for part in xp.linalg.eigh(x))
    np.testing.assert_allclose(values[0], [1.0, 3.0])
    np.testing.assert_allclose(vectors[0] * values[0] @ vectors[0].T, PD)
    assert all(np.isfinite(part).all() for part in (solved, inverse, values, vectors))


def test_solve_does_not_broadcast():
    A = asarray(np.stack([PD] * 3))
    for a, wanted in ((A, (3, 2)), (A[0, ...], (2,))):  # a vector is one right-hand side of every matrix
        found = xp.linalg.solve(a, asarray([3.0, 3.0])).get()
        assert found.shape == wanted
        np.testing.assert_allclose(found, 1.0)
    for a, b in [(A[0, ...], A), (A, A[0, ...]), (A, asarray(np.ones((3, 2))))]:
        with pytest.raises(ValueError):
            xp.linalg.solve(a, b)


@pytest.mark.imitation
def test_stacks_that_loop(monkeypatch):
    monkeypatch.setattr(cupy_like_linalg, "batched_solve_limit", 256)
    for function in (xp.linalg.svd, xp.linalg.qr):
        function(asarray(PD))
        with pytest.raises(AssertionError, match="loops per matrix"):
            function(asarray(PD[None]))
    with pytest.raises(AssertionError, match="one launch"):
        sum(asarray([1.0, 2.0]))
    A = asarray(np.stack([np.eye(300)] * 2))
    assert launches(xp.linalg.solve, A, A) == 2 * launches(xp.linalg.solve, A[:1, ...], A[:1, ...])


@pytest.mark.imitation
def test_stacks_larger_than_tested():
    A = asarray(np.ones((65_536, 1, 1)))
    for function in (xp.linalg.cholesky, xp.linalg.inv, lambda x: x @ x):
        function(A[1:, ...])
        with pytest.raises(AssertionError, match="65,536 matrices"):
            function(A)


def test_indices_wrap_around():
    x = asarray([1.0, 2.0, 3.0])
    assert xp.take(x, asarray([3, -1, 7])).get().tolist() == [1.0, 3.0, 2.0]
    assert x[asarray([4])].get().tolist() == [2.0]
    x[asarray([5])] = 0.0
    assert x.get().tolist() == [1.0, 2.0, 0.0]


@pytest.mark.imitation
def test_creation_ignores_device():
    for made in (xp.zeros(2, device=SECOND), xp.eye(2, device=SECOND), xp.zeros_like(asarray([1.0], device=SECOND))):
        assert made.device == FIRST
    assert asarray([1.0], device=SECOND).device == SECOND
    with cuda.using_device(SECOND):
        x = xp.ones(2)
        assert (x + 1.0).device == x.device == SECOND
    for mixed in (lambda: x + 1.0, lambda: x + xp.ones(2), lambda: x @ x, lambda: xp.concat([x, x])):
        with pytest.raises(ValueError, match="enter the array's device"):
            mixed()
    assert (asarray(x, device=FIRST) + xp.ones(2)).device == FIRST
    assert x.get().tolist() == [1.0, 1.0]


def test_every_thread_begins_on_the_first_device():
    with cuda.using_device(SECOND), ThreadPoolExecutor(1) as pool:
        assert pool.submit(cuda.current_device).result() == FIRST


def test_launches_and_bytes():
    a, b, stack = asarray(np.ones((20, 30))), asarray(np.ones((30, 10))), asarray(np.ones((5, 4, 4)))
    for count, function in {
        0: lambda: (xp.permute_dims(stack[:, 1:, :], (1, 0, 2)), xp.reshape(a, (-1,)), a.T, stack.mT, a[None, 0, :]),
        1: lambda: a @ b,
        2: lambda: xp.matmul(stack.mT, stack),  # the transposed stack is copied
        3: lambda: xp.concat([a, a, a]),  # each part is
        4: lambda: xp.matmul(stack, stack[0, ...]),  # pointers to every matrix
        5: lambda: xp.linalg.cholesky(stack),
        6: lambda: xp.linalg.solve(stack, stack[:, :, :1]),
    }.items():
        assert launches(function) == count
    assert launches(lambda: b.T @ a.T) == launches(lambda: xp.sum(a, axis=0)) == launches(lambda: -a) == 1
    with cuda.counting() as counted:
        a * a[:1, :] + 1.0
    assert counted.bytes == 8 * (600 + 30 + 600) + 8 * (600 + 600)
    assert counted.launches_by(lambda one: one.name) == {"multiply": 1, "add": 1}


def test_solutions_and_eigenvectors_lie_transposed():
    """A product copies them, where NumPy's and `cholesky`'s lie in order."""
    stack = asarray(np.stack([PD] * 5))
    solved, (_, vectors), L = xp.linalg.solve(stack, stack), xp.linalg.eigh(stack), xp.linalg.cholesky(stack)
    assert launches(xp.matmul, stack, solved) == launches(xp.matmul, vectors, stack) == 2
    assert launches(xp.matmul, vectors.mT, stack) == launches(xp.matmul, L, stack) == 1
    np.testing.assert_allclose(solved.get(), np.stack([np.eye(2)] * 5), atol=1e-15)


def test_fusion_is_one_launch():
    x = asarray(np.arange(6.0).reshape(2, 3))
    two = xp.fuse(lambda a, b: (xp.where(a > 1.0, a * b, -a), xp.sum(a + b, axis=0)))
    with cuda.counting() as count:
        product, total = two(x, x)
    assert count.launches == 1
    np.testing.assert_array_equal(product.get(), [[0.0, -1.0, 4.0], [9.0, 16.0, 25.0]])
    assert total.get().tolist() == [6.0, 10.0, 14.0]
    for refused in (lambda a: a @ a.T, lambda a: a[0, ...], lambda a: xp.concat([a, a]), xp.zeros_like, xp.clip):
        with pytest.raises((TypeError, cuda.SynchronisationError)), cuda.no_synchronisation():
            xp.fuse(refused)(x)


def test_memory_is_limited():
    live = cuda.MEMORIES[0].live
    with cuda.byte_limit(live + 16_384) as memory:
        x = xp.zeros(1024)
        y = x[:512]  # a view takes nothing
        assert memory.live == live + 8192
        with pytest.raises(MemoryError, match="Out of memory allocating"):
            xp.zeros(1025)
        del x
        assert memory.live == live + 8192  # the view holds it
        del y
        assert (memory.live, memory.peak) == (live, live + 8192)
    with cuda.byte_limit(fail_at=2):
        xp.zeros(1)
        with pytest.raises(cuda.OutOfMemoryError):
            xp.zeros(1)
        xp.zeros(1)
