"""What the engine must heed to run on CUDA through CuPy, on `cupy_like`: waits, launches, garbage, devices, memory."""

from __future__ import annotations

from dataclasses import replace

import cupy_like_device as cuda
import dense
import numpy as np
import pytest
from cupy_like import asarray, xp

from lmm_gpu.backend import linalg
from lmm_gpu.backend.arrays import like, zeros
from lmm_gpu.backend.fusion import fused
from lmm_gpu.estimation import fisher_scoring
from lmm_gpu.estimation.fisher_scoring import Rules, advance, maximise
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.status import Status
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # a function that cannot be fused
FIRST, SECOND = cuda.DEVICES
PD, NOT_PD, SINGULAR = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones((2, 2))


def launches(function, *args, **options) -> int:
    with cuda.counting() as count:
        function(*args, **options)
    return count.launches


FREE = Rules()


def model_of(name, m=8, method="REML", seed=0):
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, m, seed)
    return MixedModel.build(cross_products(*map(asarray, (design.X, design.Z, Y)), d=design.d), method), design


def iteration(name, m=8, method="REML", rules=FREE):
    """Count of one step of the loop, away from the start."""
    model, design = model_of(name, m, method)
    state = fisher_scoring._begin(asarray(dense.draw_theta(design, m, "positive")))
    with cuda.counting() as count:
        advance(state, model.likelihood, rules)
    return count


@pytest.mark.parametrize("bad", [NOT_PD, np.full((2, 2), np.nan), -np.eye(2)])
def test_cholesky_flags_what_is_not_positive_definite(bad):
    L, ok = linalg.cholesky(asarray(np.stack([PD, bad, PD])))
    np.testing.assert_array_equal(ok.get(), [True, False, True])
    np.testing.assert_allclose(L.get()[1], np.eye(2))


@pytest.mark.parametrize("shape", [(3, 0, 0), (0, 2, 2)])
def test_nothing_to_factorise_is_positive_definite(shape):
    nothing = asarray(np.empty(shape))
    (L, ok), (inverse, logdet, valid) = linalg.cholesky(nothing), linalg.inverse_and_logdet(nothing)
    assert L.shape == inverse.shape == shape
    assert ok.shape == valid.shape == logdet.shape == shape[:1]
    assert ok.get().all() and valid.get().all() and (logdet.get() == 0).all()


@pytest.mark.parametrize("bad", [SINGULAR, np.full((2, 2), np.nan)])
def test_solve_flags_what_is_singular(bad):
    _, ok = linalg.solve(*(asarray(np.stack(stack)) for stack in ([PD, bad, PD], [np.eye(2)] * 3)))
    np.testing.assert_array_equal(ok.get(), [True, False, True])


@pytest.mark.parametrize("bad", [NOT_PD, np.full((2, 2), np.nan), SINGULAR])
def test_small_matrices_are_flagged(bad):
    A = asarray(np.stack([PD, bad, PD], axis=-1))
    inverse, ok = linalg.inverse_small(A)
    np.testing.assert_array_equal(ok.get(), [True, False, True])
    np.testing.assert_allclose(inverse.get()[:, :, 0], np.linalg.inv(PD))


def test_zeros_stay_with_their_reference():
    assert zeros((2,), asarray([1.0], device=SECOND)).device == SECOND


def test_like_stays_with_its_reference():
    assert like([1.0], asarray([1.0], device=SECOND)).device == SECOND


@pytest.mark.parametrize("name", ["one_nested", "two"])
def test_a_fit_on_the_second_device(name):
    design = dense.DESIGNS[name]
    arrays = (asarray(values, device=SECOND) for values in (design.X, design.Z, dense.draw_genes(design, 4)))
    fit = fit_summary(cross_products(*arrays, d=design.d), FitOptions(block=2))
    assert (fit.estimates.status == Status.CONVERGED).all()
    for asked_later in (fit.contrast_test(np.eye(3), "satterthwaite").df, fit.cov, fit.FIM_beta, fit.FIM_theta, fit.RE):
        assert np.isfinite(np.asarray(asked_later)).all()


@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside"])
def test_a_fit_inside_its_device(name, method):
    """Whoever calls can enter the device: then everything is there, and nothing on the other one."""
    with cuda.using_device(SECOND), cuda.byte_limit(device=FIRST) as first, cuda.byte_limit(device=SECOND) as second:
        model, _ = model_of(name, 3, method)
        found = maximise(model.likelihood, model.likelihood.start(), Rules(nonnegative=True))
    assert found.theta.device == SECOND
    assert second.allocations > 100 and first.allocations == 0


def test_tables_are_built_inside_their_device():
    """A thread begins on the first device: none may be started for arrays of another one."""
    with cuda.using_device(SECOND):
        likelihood = model_of("two", 4000)[0].likelihood
        assert likelihood.trace_table is not None
        rows = likelihood.trace_table.evaluate(asarray(np.full((2, 3), 0.1)))
    assert rows.device == SECOND


def test_synchronisations_of_the_loop():
    """One component: whether genes are done, each time. The wait inside the step is another test's."""
    model, _ = model_of("one_nested")
    with cuda.counting() as count:
        outcome = maximise(model.likelihood, model.likelihood.start(), Rules())
    steps = int(outcome.niter.get().max()) + 1
    assert all(one.site.startswith("fisher_scoring.maximise") for one in count.synchronisations)
    assert len(count.synchronisations) <= steps + 2


def test_the_loop_waits_rarely():
    model, _ = model_of("one_nested")
    with cuda.counting() as count:
        outcome = maximise(model.likelihood, model.likelihood.start(), Rules())
    assert len(count.synchronisations) <= 3 + int(outcome.niter.get().max()) / 4


def test_tables_are_read_without_waiting():
    likelihood = model_of("two", 4000)[0].likelihood
    assert likelihood.trace_table is not None
    theta = asarray(dense.draw_theta(dense.DESIGNS["two"], 4000, "positive"))
    with cuda.no_synchronisation():
        likelihood.attempt(theta)


def test_launches_with_tables():
    few, many = iteration("two", 200), iteration("two", 4000)
    assert few.launches == many.launches <= 160


@pytest.mark.parametrize("rules", [Rules(), Rules(nonnegative=True)], ids=["free", "nonnegative"])
@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside"])
def test_launches_do_not_grow_with_genes(name, rules):
    few, many = iteration(name, 4, rules=rules), iteration(name, 24, rules=rules)  # not so many that tables pay
    assert few.launches == many.launches
    assert many.bytes > 3 * few.bytes


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


def test_launches_of_several_components_do_not_grow_with_q():
    counts = set()
    for levels in (3, 6):
        rng, n = np.random.default_rng(levels), 60
        Z = np.hstack([dense.one_hot(rng.permutation(np.arange(n) % size), size) for size in (10, levels)])
        Y = rng.normal(size=(n, 4))
        stats = cross_products(*map(asarray, (np.ones((n, 1)), Z, Y)), d=(10, levels))
        counts.add(launches(MixedModel.build(stats).likelihood.evaluate, asarray(np.ones((3, 4)))))
    assert len(counts) == 1


@pytest.mark.imitation
def test_functions_that_cannot_be_fused_are_computed_as_written():
    """With one warning that names it, and never again through the tracer."""

    def doubled_in_length(xp, _, x):
        return (xp.concat([x, x]),)

    function = fused(doubled_in_length)
    with pytest.warns(RuntimeWarning, match="doubled_in_length could not be fused .* cupy.fuse cannot take in concat"):
        (first,) = function(None, asarray([1.0, 2.0]))
    (second,) = function(None, asarray([1.0, 2.0]))  # a second warning would be an error here
    for found in (first, second):
        np.testing.assert_array_equal(found.get(), [1.0, 2.0, 1.0, 2.0])


@pytest.mark.imitation
def test_errors_of_the_arrays_do_not_prevent_fusion():
    function = fused(lambda xp, _, x, y: (x + y,))
    x = asarray([1.0, 2.0])
    with pytest.raises(ValueError, match="enter the array's device"):
        function(None, x, asarray([1.0, 2.0], device=SECOND))
    with cuda.byte_limit(0), pytest.raises(MemoryError):
        function(None, x, x)
    assert launches(function, None, x, x) == 1


@pytest.mark.imitation
def test_numbers_of_a_fused_function_meet_arrays_only():
    x = asarray([1.0, 2.0])
    (found,) = xp.fuse(lambda x, lo, hi: ((x - lo) * hi,))(x, 1.0, 3.0)
    np.testing.assert_array_equal(found.get(), [0.0, 3.0])
    for wrong in (
        lambda x, lo, hi: (x * (lo + hi),),
        lambda x, lo, hi: (x * xp.log(lo) + hi,),
        lambda x, lo, hi: (xp.where(x > lo, 1.0, hi),),
        lambda x, lo, hi: ((x > lo) * 0.5,),
    ):
        with pytest.raises(TypeError, match="half precision"):
            xp.fuse(wrong)(x, 1.0, 3.0)


LIMITS = {"one_nested": 80, "two": 160, "three_widest_inside": 160}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "rules", [Rules(), Rules(nonnegative=True), Rules(relaxed=True)], ids=["free", "held", "relaxed"]
)
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


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (np.int64(60), FitOptions()),
        (60, FitOptions(max_iter=np.int64(50))),
        (60, FitOptions(epsilon=np.float64(1e-5))),
    ],
    ids=["n", "max_iter", "epsilon"],
)
def test_options_and_sizes_may_be_numpys(n, options):
    """NumPy's scalars promote on CuPy and others refuse them: what the caller gives becomes Python's numbers."""
    design = dense.DESIGNS["one_nested"]
    stats = cross_products(*map(asarray, (design.X, design.Z, dense.draw_genes(design, 4))), d=design.d)
    fit = fit_summary(replace(stats, n=n), options)
    assert (fit.estimates.status == Status.CONVERGED).all()
