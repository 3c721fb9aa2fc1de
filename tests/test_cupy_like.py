"""CuPy's ways as `cupy_like` imitates them, one test each; then what the engine must heed of them."""

from __future__ import annotations

import array_api_compat
import cupy_like_device as cuda
import dense
import numpy as np
import pytest
from cupy_like import Array, asarray, xp

from lmm_gpu import linalg, scoring
from lmm_gpu.arrays import like, namespace, to_numpy, zeros
from lmm_gpu.fitting import FitOptions, fit_summary
from lmm_gpu.model import MixedModel
from lmm_gpu.scoring import Rules, Status, advance, maximise
from lmm_gpu.summary import cross_products

FIRST, SECOND = cuda.DEVICES
PD, NOT_PD, SINGULAR = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones((2, 2))


def launches(function, *args, **options) -> int:
    with cuda.counting() as count:
        function(*args, **options)
    return count.launches


# --- the stand-in ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("bad", [NOT_PD, np.full((2, 2), np.nan)])
def test_cholesky_leaves_garbage(bad):
    L = xp.linalg.cholesky(asarray(np.stack([PD, bad, PD]))).get()
    np.testing.assert_allclose(L[::2] @ np.swapaxes(L[::2], 1, 2), np.stack([PD, PD]))
    assert np.isfinite(L).all() and (np.diagonal(L[1]) > 0).all()


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
    np.testing.assert_allclose(xp.linalg.solve(A, asarray([3.0, 3.0])).get()[:, :, 0], 1.0)
    for a, b in [(A[0, ...], A), (A, A[0, ...]), (A, asarray(np.ones((3, 2))))]:
        with pytest.raises(ValueError, match="does not broadcast"):
            xp.linalg.solve(a, b)


def test_stacks_that_loop():
    for function in (xp.linalg.svd, xp.linalg.qr):
        function(asarray(PD))
        with pytest.raises(AssertionError, match="loops per matrix"):
            function(asarray(PD[None]))
    with pytest.raises(AssertionError, match="one launch"):
        sum(asarray([1.0, 2.0]))
    A = asarray(np.stack([np.eye(300)] * 2))
    assert launches(xp.linalg.solve, A, A) == 2 * launches(xp.linalg.solve, A[:1, ...], A[:1, ...])


def test_indices_wrap_around():
    x = asarray([1.0, 2.0, 3.0])
    assert xp.take(x, asarray([3, -1, 7])).get().tolist() == [1.0, 3.0, 2.0]
    assert x[asarray([4])].get().tolist() == [2.0]
    x[asarray([5])] = 0.0
    assert x.get().tolist() == [1.0, 2.0, 0.0]


def test_creation_ignores_device():
    for made in (xp.zeros(2, device=SECOND), xp.eye(2, device=SECOND), xp.zeros_like(asarray([1.0], device=SECOND))):
        assert made.device == FIRST
    assert asarray([1.0], device=SECOND).device == SECOND
    with cuda.using_device(SECOND):
        x = xp.ones(2)
    assert (x + 1.0).device == x.device == SECOND
    with pytest.raises(ValueError, match="different devices"):
        x + xp.ones(2)
    assert (asarray(x, device=FIRST) + xp.ones(2)).device == FIRST


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


# --- what the engine must heed --------------------------------------------------------------------

RESIDUAL = "linalg.cholesky and linalg.solve trust finite numbers: `ok` needs the residual, and what was finite before"
ON_CURRENT = (
    "arrays.zeros and xp.eye, xp.zeros_like, xp.ones_like allocate on the current device: enter the array's own"
)
TRACES_SYNC = "MultiComponent.traces asks bool(any(g != 0)); lookup asks for positions: four waits"
TOO_MANY = "171 to 976 launches where 80 and 160 are wanted: stack less, fuse what is elementwise"
PROPORTIONAL = "linalg.triangular_inverse halves down to 1 x 1: launches grow with q"


def model_of(name, m=8, method="REML", seed=0):
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, m, seed)
    return MixedModel.build(cross_products(*map(asarray, (design.X, design.Z, Y)), d=design.d), method), design


def iteration(name, m=8, method="REML", rules=Rules()):
    """Count of one step of the loop, away from the start."""
    model, design = model_of(name, m, method)
    state = scoring._begin(asarray(dense.draw_theta(design, m, "positive")))
    with cuda.counting() as count:
        advance(state, model.likelihood, rules)
    return count


@pytest.mark.parametrize("bad", [NOT_PD, np.full((2, 2), np.nan), -np.eye(2)])
@pytest.mark.xfail(strict=True, raises=AssertionError, reason=RESIDUAL)
def test_cholesky_flags_what_is_not_positive_definite(bad):
    L, ok = linalg.cholesky(asarray(np.stack([PD, bad, PD])))
    np.testing.assert_array_equal(ok.get(), [True, False, True])
    np.testing.assert_allclose(L.get()[1], np.eye(2))


@pytest.mark.parametrize("bad", [SINGULAR, np.full((2, 2), np.nan)])
@pytest.mark.xfail(strict=True, raises=AssertionError, reason=RESIDUAL)
def test_solve_flags_what_is_singular(bad):
    _, ok = linalg.solve(*(asarray(np.stack(stack)) for stack in ([PD, bad, PD], [np.eye(2)] * 3)))
    np.testing.assert_array_equal(ok.get(), [True, False, True])


@pytest.mark.parametrize("bad", [NOT_PD, np.full((2, 2), np.nan), SINGULAR])
def test_small_matrices_are_flagged(bad):
    A = asarray(np.stack([PD, bad, PD], axis=-1))
    inverse, ok = linalg.inverse_small(A)
    np.testing.assert_array_equal(ok.get(), [True, False, True])
    np.testing.assert_allclose(inverse.get()[:, :, 0], np.linalg.inv(PD))


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=ON_CURRENT)
def test_zeros_stay_with_their_reference():
    assert zeros((2,), asarray([1.0], device=SECOND)).device == SECOND


def test_like_stays_with_its_reference():
    assert like([1.0], asarray([1.0], device=SECOND)).device == SECOND


@pytest.mark.parametrize("name", ["one_nested", "two"])
@pytest.mark.xfail(strict=True, raises=ValueError, reason=ON_CURRENT)
def test_a_fit_on_the_second_device(name):
    design = dense.DESIGNS[name]
    arrays = (asarray(values, device=SECOND) for values in (design.X, design.Z, dense.draw_genes(design, 4)))
    fit = fit_summary(cross_products(*arrays, d=design.d), FitOptions(block=2))
    assert (fit.estimates.status == Status.CONVERGED).all()


@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside"])
def test_a_fit_inside_its_device(name, method):
    """Whoever calls can enter the device: then everything is there, and nothing on the other one."""
    design = dense.DESIGNS[name]
    with cuda.using_device(SECOND), cuda.byte_limit(device=FIRST) as first, cuda.byte_limit(device=SECOND) as second:
        model, design = model_of(name, 3, method)
        found = maximise(model.likelihood, model.likelihood.start(), Rules(nonnegative=True))
    assert found.theta.device == SECOND
    assert second.allocations > 100 and first.allocations == 0


def test_what_the_loop_waits_for():
    """One component: whether genes are done, each time. The wait inside the step is another test's."""
    model, _ = model_of("one_nested")
    with cuda.counting() as count:
        outcome = maximise(model.likelihood, model.likelihood.start(), Rules())
    steps = int(outcome.niter.get().max()) + 1
    assert all(one.site.startswith("scoring.maximise") for one in count.synchronisations)
    assert len(count.synchronisations) <= steps + 2


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="scoring.maximise reads `done` after every step; every fourth would do"
)
def test_the_loop_waits_rarely():
    model, _ = model_of("one_nested")
    with cuda.counting() as count:
        outcome = maximise(model.likelihood, model.likelihood.start(), Rules())
    assert len(count.synchronisations) <= 3 + int(outcome.niter.get().max()) / 4


@pytest.mark.xfail(strict=True, raises=cuda.SynchronisationError, reason=TRACES_SYNC)
def test_tables_are_read_without_waiting():
    likelihood = model_of("two", 4000)[0].likelihood
    assert likelihood.trace_table is not None
    g = asarray(np.abs(dense.draw_theta(dense.DESIGNS["two"], 4000, "positive")[:2]))
    with cuda.no_synchronisation():
        likelihood.traces(g)


@pytest.mark.parametrize("rules", [Rules(), Rules(nonnegative=True)], ids=["free", "nonnegative"])
@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside"])
def test_launches_do_not_grow_with_genes(name, rules):
    few, many = iteration(name, 4, rules=rules), iteration(name, 64, rules=rules)
    assert few.launches == many.launches
    assert many.bytes > 4 * few.bytes


def test_launches_of_one_component_do_not_grow_with_q(method):
    assert iteration("one_nested", 4, method).launches == iteration("one_crossed", 4, method).launches
    wide = dense.Design(np.ones((60, 1)), np.kron(np.eye(20), np.ones((3, 1))), (20,))
    narrow = dense.Design(np.ones((60, 1)), np.kron(np.eye(4), np.ones((15, 1))), (4,))
    counts = set()
    for design in (wide, narrow):
        stats = cross_products(*map(asarray, (design.X, design.Z, dense.draw_genes(design, 4))), d=design.d)
        likelihood = MixedModel.build(stats, method).likelihood
        counts.add(launches(likelihood.evaluate, asarray(np.ones((2, 4)))))
    assert len(counts) == 1


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=PROPORTIONAL)
def test_launches_of_several_components_do_not_grow_with_q():
    counts = set()
    for levels in (3, 6):
        rng, n = np.random.default_rng(levels), 60
        Z = np.hstack([dense.one_hot(rng.permutation(np.arange(n) % size), size) for size in (10, levels)])
        Y = rng.normal(size=(n, 4))
        stats = cross_products(*map(asarray, (np.ones((n, 1)), Z, Y)), d=(10, levels))
        counts.add(launches(MixedModel.build(stats).likelihood.evaluate, asarray(np.ones((3, 4)))))
    assert len(counts) == 1


LIMITS = {"one_nested": 80, "two": 160, "three_widest_inside": 160}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "rules", [Rules(), Rules(nonnegative=True), Rules(relaxed=True)], ids=["free", "held", "relaxed"]
)
@pytest.mark.xfail(strict=True, raises=AssertionError, reason=TOO_MANY)
def test_launches_of_an_iteration(name, rules):
    assert iteration(name, rules=rules).launches <= LIMITS[name]


def test_memory_runs_out_without_a_trace():
    """Whichever allocation fails, the error is a MemoryError, and dropping it frees all that was taken."""
    model, _ = model_of("one_nested", 4)
    start = model.likelihood.start()
    with cuda.byte_limit() as memory:
        model.likelihood.evaluate(start)
    live = cuda.MEMORIES[0].live
    for k in range(1, memory.allocations + 1):
        with cuda.byte_limit(fail_at=k):
            failed = False
            try:
                model.likelihood.evaluate(start)
            except MemoryError:
                failed = True
        assert failed
        assert cuda.MEMORIES[0].live == live
