"""Scoring by one CUDA kernel is the loop of `fisher_scoring` over array operations, on the real CuPy.

These tests run on a GPU, or on the host by an emulation of the device: `python -m pytest -p emulate` with the folder of
`emulate.py` in PYTHONPATH, so that it is imported before CuPy.
"""

from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="needs CuPy")

from lmm_gpu.backend import cuda_kernels  # noqa: E402
from lmm_gpu.backend.cuda_kernels import without_kernels  # noqa: E402
from lmm_gpu.backend.devices import cuda_count  # noqa: E402
from lmm_gpu.estimation import cuda_scoring, fisher_scoring  # noqa: E402
from lmm_gpu.estimation.fisher_scoring import Evaluation, Rules, State  # noqa: E402
from lmm_gpu.estimation.fit_options import FitOptions  # noqa: E402
from lmm_gpu.estimation.fitting import fit_genes  # noqa: E402
from lmm_gpu.estimation.mixed_model import MixedModel  # noqa: E402
from lmm_gpu.estimation.status import Status  # noqa: E402
from lmm_gpu.sumstats.assembly import cross_products  # noqa: E402
from lmm_gpu.sumstats.gene_weights import weighted_products  # noqa: E402

COUNT, REASON = cuda_count()
pytestmark = [
    pytest.mark.skipif(not COUNT, reason=f"needs a CUDA device, or the emulation of one: {REASON}"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # a kernel that does not compile
]
RULES = {
    "free": Rules(),
    "no fallback": Rules(most_refused=40),
    "nonnegative": Rules(nonnegative=True),
    "relaxed": Rules(nonnegative=True, relaxed=True, max_iter=200),
    "few": Rules(max_iter=3),
}


def genes(design, m, seed=0):
    """Genes of all kinds: usual, without random effects, nearly without noise, of tiny and huge units."""
    rng = np.random.default_rng(seed)
    Y = dense.draw_genes(design, m, seed)
    Y[:, 1::4] = rng.normal(size=(design.n, Y[:, 1::4].shape[1]))  # components at zero, or negative
    Y[:, 2::8] *= 1e-6
    Y[:, 3::8] *= 1e6
    return Y


def likelihood_of(design, Y, method="REML"):
    return MixedModel.build(cross_products(design.X, design.Z, Y, d=design.d).on(cupy.asarray), method).likelihood


def tabulated_likelihood(design, Y, method="REML"):
    """Likelihood with tables, as of many genes."""
    stats = cross_products(design.X, design.Z, Y, d=design.d).on(cupy.asarray)
    likelihood = MixedModel.decompose(stats.select(slice(0)), method, None, 4000).with_genes(stats).likelihood
    assert likelihood.trace_table is not None
    return likelihood


def both(objective, start, rules, interrupted=None):
    """Outcomes by the kernel, which has to be there, and by array operations."""
    found = cuda_scoring.by_kernel(objective, start, rules, interrupted)
    assert found is not None
    return found, fisher_scoring.maximise(objective, start, rules, interrupted)


def assert_same_counts(found, expected):
    for name in ("niter", "refused", "status"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.get(), other.get(), err_msg=name)


def assert_same(found, expected):
    assert_same_counts(found, expected)
    size = np.abs(expected.theta.get()).max(axis=0)  # (b,)
    np.testing.assert_allclose(found.theta.get() / size, expected.theta.get() / size, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.yPy.get(), expected.yPy.get(), rtol=1e-12)


# --- one step ---------------------------------------------------------------------------------------

ONE_STEP = """
extern "C" __global__ void one_step(
    double* numbers, long long* counts, const double* found, long long b, double epsilon, long long max_iter,
    long long most_refused, bool nonnegative, bool relaxed) {
    const long long gene = blockIdx.x;
    double* x = numbers + gene;  // one row per number of the state
    State state;
    for (int i = 0; i < ROWS; i++) { state.theta[i] = *x; x += b; }
    for (int i = 0; i < ROWS; i++) { state.step[i] = *x; x += b; }
    double* scalars[] = {&state.length, &state.value, &state.slack, &state.yPy, &state.decrement};
    for (int i = 0; i < 5; i++) { *scalars[i] = *x; x += b; }
    state.niter = counts[gene]; state.refused = counts[b + gene]; state.status = counts[2 * b + gene];
    state.done = counts[3 * b + gene];
    Evaluation at;
    const double* y = found + gene;
    at.value = *y; y += b;
    for (int i = 0; i < ROWS; i++) { at.score[i] = *y; y += b; }
    for (int i = 0; i < ROWS; i++) for (int j = 0; j < ROWS; j++) { at.information[i][j] = *y; y += b; }
    at.yPy = *y; at.rounding = y[b]; at.ok = y[2 * b] != 0; at.outside_table = y[3 * b] != 0;
    const Rules rules = {epsilon, max_iter, most_refused, nonnegative, relaxed};
    double trial[ROWS];
    next_trial(rules, state, trial);
    advance(rules, trial, at, state);
    x = numbers + gene;
    for (int i = 0; i < ROWS; i++) { *x = state.theta[i]; x += b; }
    for (int i = 0; i < ROWS; i++) { *x = state.step[i]; x += b; }
    for (int i = 0; i < 5; i++) { *x = *scalars[i]; x += b; }
    counts[gene] = state.niter; counts[b + gene] = state.refused; counts[2 * b + gene] = state.status;
    counts[3 * b + gene] = state.done;
}
"""


def drawn_state(k, b, rng):
    """States and evaluations of all kinds: at zero, at rounding, not valid, done, and with numbers that are none."""
    kinds = [0.0, np.nan, np.inf, -np.inf, 1e-300, 1e300]
    numbers = rng.normal(size=(2 * k + 7, b)) * np.exp(3 * rng.normal(size=(2 * k + 7, b)))
    theta, step, length = numbers[:k, :], numbers[k + 1 : 2 * k + 1, :], numbers[2 * k + 2, :]
    theta[...] = np.where(rng.random((k, b)) < 0.3, 0.0, np.abs(theta))
    length[:] = rng.choice([1.0, 0.5, 2.0**-24], b)
    step[...] = np.where(rng.random((k, b)) < 0.3, -theta * (1 + 1e-14) / length, step)  # lands at zero
    numbers[2 * k + 4 :, :] = np.abs(numbers[2 * k + 4 :, :]) * rng.choice([1.0, 1e-12, 1e-24], (3, b))
    root = rng.normal(size=(k + 1, k + 1, b))
    information = np.einsum("ija,kja->ika", root, root) * rng.choice([1.0, 1e12, 1e24], b)
    score = rng.normal(size=(k + 1, b)) * rng.choice([1.0, 1e-6, 1e-12], b)
    numbers[2 * k + 3, :] = value = rng.normal(size=b)
    value = value + rng.choice([0.0, 1.0, -1.0], b) * np.abs(rng.normal(size=b))
    flags = [rng.random(b) < share for share in (0.8, 0.1)]
    rows = [value[None, :], score, information.reshape(-1, b), np.abs(rng.normal(size=(2, b))), np.stack(flags)]
    found = np.concatenate([np.asarray(row, dtype=float) for row in rows])
    for x in (numbers, found[:-2, :]):
        x[...] = np.where(rng.random(x.shape) < 0.003, rng.choice(kinds, x.shape), x)
    counts = [rng.integers(0, 4, b), rng.integers(0, 3, b), rng.choice([0, 0, 0, 1, 4, 6], b), rng.random(b) < 0.1]
    return numbers, np.stack([np.asarray(x, dtype=np.int64) for x in counts]), found


def step_of_the_loop(rules, numbers, counts, found):
    """The same by `fisher_scoring`."""
    k = (len(numbers) - 7) // 2
    rows = range(k + 1)
    state = State(tuple(numbers[: k + 1]), tuple(numbers[k + 1 : 2 * k + 2]), *numbers[2 * k + 2 :], *counts[:3], None)
    state = replace(state, done=counts[3] != 0)
    information = found[k + 2 : -4].reshape(k + 1, k + 1, -1)
    at = Evaluation(
        found[0],
        tuple(found[1 : k + 2]),
        tuple(tuple(information[i, j] for j in rows) for i in rows),
        *found[-4:-2],
        ok=found[-2] != 0,
        outside_table=found[-1] != 0,
    )
    trial = fisher_scoring._trial(rules.nonnegative, state)
    after = fisher_scoring._step(rules, trial, at, state)
    scalars = [after.length, after.value, after.slack, after.yPy, after.decrement]
    return np.stack([*after.theta, *after.step, *scalars]), np.stack(
        [after.niter, after.refused, after.status, after.done]
    )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("rules", [*RULES.values(), Rules(relaxed=True, max_iter=3)], ids=[*RULES, "free relaxed"])
def test_one_step(rules, k):
    numbers, counts, found = drawn_state(k, 3000, np.random.default_rng(k))
    rules = replace(rules, most_refused=rules.most_refused and 2, max_iter=3)
    with np.errstate(all="ignore"):
        wanted, wanted_counts = step_of_the_loop(rules, numbers, counts, found)
    options = cuda_scoring._options(k)
    step = cuda_kernels.kernel(cupy.zeros(1), cuda_scoring._source() + ONE_STEP, "one_step", options)
    numbers, counts = cupy.asarray(numbers), cupy.asarray(counts)
    step((3000,), (1,), (numbers, counts, cupy.asarray(found), 3000, *cuda_scoring._arguments(rules)))
    np.testing.assert_array_equal(counts.get(), wanted_counts)
    np.testing.assert_allclose(numbers.get(), wanted, rtol=1e-9)
    running = wanted_counts[2] == 0
    assert running.any() and not running.all()


# --- whole maximisations ----------------------------------------------------------------------------


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ["one_nested", "one_crossed"])
def test_one_effect(name, rules):
    design = dense.DESIGNS[name]
    found, expected = both(likelihood_of(design, genes(design, 70)), None, rules)
    assert_same(found, expected)
    if rules.nonnegative:
        assert (expected.theta[0, :] == 0).any() and (expected.theta[0, :] > 0).any()
    if rules == RULES["free"]:
        assert (expected.theta[0, :] < 0).any()


@pytest.mark.parametrize("rules", [RULES["nonnegative"], RULES["few"]], ids=["nonnegative", "few"])
def test_one_effect_by_maximum_likelihood(rules):
    """Traces of Z'Z, whose eigenvalues are not those of S."""
    design = dense.DESIGNS["one_nested"]
    assert_same(*both(likelihood_of(design, genes(design, 40), "ML"), None, rules))


def test_many_levels_are_shared_by_threads():
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 150, 600)
    design = dense.Design(np.column_stack([np.ones(600), rng.normal(size=600)]), dense.one_hot(levels, 150), (150,))
    objective = likelihood_of(design, genes(design, 33))
    assert objective.c.shape[0] > cuda_scoring.LANES * cuda_scoring.EIGENVALUES_PER_LANE
    assert_same(*both(objective, None, Rules()))


@pytest.mark.parametrize("rules", [RULES["free"], RULES["nonnegative"], RULES["few"]], ids=["free", "held", "few"])
@pytest.mark.parametrize("name", ["two_within", "two_widest_last"])
def test_two_effects(name, rules):
    """Whichever is eliminated; genes that leave the tables stop there."""
    design = dense.DESIGNS[name]
    found, expected = both(tabulated_likelihood(design, genes(design, 24)), None, rules)
    assert_same(found, expected)
    if rules.nonnegative:
        assert (expected.theta[:2, :] == 0).any() and (expected.theta[:2, :] > 0).all(axis=0).any()
    elif rules.max_iter > 3:
        assert (expected.status == int(Status.OUTSIDE_TABLE)).any()


def test_two_effects_by_maximum_likelihood():
    design = dense.DESIGNS["two_within"]
    assert_same(*both(tabulated_likelihood(design, genes(design, 12), "ML"), None, Rules(nonnegative=True)))


def test_more_rows_than_threads(monkeypatch):
    monkeypatch.setattr(cuda_scoring, "THREADS", 32)
    rng = np.random.default_rng(4)
    n, d = 400, (40, 36)
    Z = np.hstack([dense.one_hot(rng.permutation(np.arange(n) % width), width) for width in d])
    design = dense.Design(np.column_stack([np.ones(n), rng.normal(size=n)]), Z, d)
    objective = tabulated_likelihood(design, dense.draw_genes(design, 3))
    assert objective.root.K_R.shape[0] > cuda_scoring.THREADS > cuda_scoring.FEW_ROWS
    assert_same(*both(objective, None, Rules()))


# --- levels that share no cell ----------------------------------------------------------------------


def slopes(m, seed=1):
    """Intercepts and slopes by 20 donors: the design and genes."""
    rng = np.random.default_rng(seed)
    donor, x = rng.permutation(np.arange(400) % 20), rng.normal(size=400)
    D = dense.one_hot(donor, 20)
    X = np.column_stack([np.ones(400), donor % 2, x, rng.normal(size=400)])  # the last: not in their span
    design = dense.Design(X, np.hstack([D, D * x[:, None]]), (20, 20))
    return design, dense.draw_genes(design, m, seed)


TERMS = {"independent": (("d", ("1",)), ("d", ("x",))), "correlated": (("d", ("1", "x")),)}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_slopes(terms, method):
    design, Y = slopes(12)
    stats = cross_products(design.X, design.Z, Y, d=design.d, random_terms=terms).on(cupy.asarray)
    objective = MixedModel.build(stats, method).likelihood
    assert_same(*both(objective, None, Rules()))
    start = cupy.asarray(np.full((objective.n_components + 1, 12), 0.5))
    assert_same(*both(objective, start, Rules(max_iter=3)))


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_genes_with_weights(terms):
    """Every gene has a design of its own, and may lack observations."""
    design, Y = slopes(6)
    W = np.random.default_rng(2).uniform(0.5, 2.0, Y.shape)
    W[:9, 3] = 0.0
    stats = weighted_products(design.X, design.Z, Y, W, d=design.d, random_terms=terms).on(cupy.asarray)
    objective = MixedModel.build(stats).likelihood
    assert objective.design.per_gene
    assert_same(*both(objective, None, Rules()))


def test_covariances_that_are_not_positive_definite_are_refused():
    """By way of a start at which V is indefinite in some genes."""
    design, Y = slopes(12)
    stats = cross_products(design.X, design.Z, Y, d=design.d, random_terms=TERMS["correlated"]).on(cupy.asarray)
    start = np.tile(np.array([[-0.02], [0.3], [0.0], [1.0]]), 12)
    start[0, ::2] = -0.5
    found, expected = both(MixedModel.build(stats).likelihood, cupy.asarray(start), Rules())
    assert_same_counts(found, expected)
    np.testing.assert_array_equal(expected.status.get()[::2], int(Status.FAILED))
    assert (expected.status[1::2] == int(Status.CONVERGED)).all()
    good = cupy.arange(1, 12, 2)
    assert_same(found.select(good), expected.select(good))


def test_crossed_effects_are_left_to_array_operations():
    design = dense.DESIGNS["two"]
    stats = cross_products(design.X, design.Z, dense.draw_genes(design, 4), d=design.d).on(cupy.asarray)
    model = MixedModel.by_blocks(stats, "REML").with_genes(stats)
    assert model.likelihood.rest and cuda_scoring.by_kernel(model.likelihood, None, Rules()) is None


def test_two_effects_without_tables_are_left_to_array_operations():
    design = dense.DESIGNS["two"]
    assert cuda_scoring.by_kernel(likelihood_of(design, genes(design, 4)), None, Rules()) is None


def test_a_given_start_and_an_interrupted_maximisation():
    design = dense.DESIGNS["one_crossed"]
    objective = likelihood_of(design, genes(design, 40))
    start = cupy.asarray(dense.draw_theta(design, 40, "mixed"))
    assert_same(*both(objective, start, Rules()))
    interrupted = fisher_scoring.maximise(objective, None, Rules(max_iter=2))
    assert_same(*both(objective, None, Rules(max_iter=7), replace(interrupted, refused=interrupted.refused + 3)))


def test_genes_fail_after_the_same_number_of_refused_steps():
    design = dense.DESIGNS["one_crossed"]
    objective = likelihood_of(design, genes(design, 40))
    start = cupy.asarray(dense.draw_theta(design, 40, "mixed"))
    found, expected = both(objective, start, Rules(most_refused=1))
    assert_same(found, expected)
    failed = expected.status == int(Status.FAILED)
    assert failed.any() and not failed.all()


def test_numbers_that_are_none_fail():
    design = dense.DESIGNS["one_crossed"]
    objective = likelihood_of(design, genes(design, 40))
    objective.c[3, 5] = np.nan
    objective.c[3, 6] = np.inf
    objective.yry[7] = 0.0
    found, expected = both(objective, None, Rules())
    np.testing.assert_array_equal(found.status.get(), expected.status.get())
    assert (found.status[5:8] == int(Status.FAILED)).all()
    assert int((found.status == int(Status.FAILED)).sum()) == 3


def estimates_of(stats, options):
    """Estimates by kernels and without them."""
    found, _ = fit_genes(stats, options)
    with without_kernels():
        expected, _ = fit_genes(stats, options)
    return found, expected


def assert_same_estimates(found, expected, rtol=1e-10):
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.niter, expected.niter)
    np.testing.assert_allclose(found.theta, expected.theta, rtol=rtol, atol=rtol * np.nanmax(np.abs(expected.theta)))
    np.testing.assert_allclose(found.se, expected.se, rtol=rtol)


@pytest.mark.parametrize(
    ("name", "bounds"), [("one_nested", "auto"), ("one_nested", "none"), ("two_widest_last", "auto")]
)
def test_a_whole_fit(name, bounds):
    """Refits, continued genes and genes that left the tables included; nothing but the kernels differs."""
    design = dense.DESIGNS[name]
    stats = cross_products(design.X, design.Z, genes(design, 80), d=design.d)
    assert_same_estimates(*estimates_of(stats, FitOptions(device="cuda", bounds=bounds)))


def test_a_whole_fit_of_slopes():
    design, Y = slopes(12)
    stats = cross_products(design.X, design.Z, Y, d=design.d, random_terms=TERMS["correlated"])
    assert_same_estimates(*estimates_of(stats, FitOptions(device="cuda")))


def test_genes_without_an_interior_optimum_end_at_the_boundary():
    """Group means vary less than the residuals allow: the likelihood grows towards singular V; a refit follows."""
    design = dense.Design(np.ones((20, 1)), dense.one_hot(np.repeat(np.arange(4), 5), 4), (4,))
    Y = np.random.default_rng(0).normal(size=(20, 8))
    Y -= (design.Z @ np.linalg.pinv(design.Z) @ Y) * (1 - 1e-7)  # nearly equal group means
    found, expected = estimates_of(cross_products(design.X, design.Z, Y, d=design.d), FitOptions(device="cuda"))
    assert (expected.status == int(Status.BOUNDARY)).all()
    assert_same_estimates(found, expected)


def test_a_fit_takes_the_kernel(monkeypatch):
    taken = []
    original = cuda_scoring.by_kernel
    monkeypatch.setattr(cuda_scoring, "by_kernel", lambda *args: taken.append(original(*args)) or taken[-1])
    design = dense.DESIGNS["one_nested"]
    stats = cross_products(design.X, design.Z, dense.draw_genes(design, 8), d=design.d)
    for device, by_kernel in (("cuda", True), ("cpu", False)):
        taken.clear()
        fit_genes(stats, FitOptions(device=device))
        assert bool(taken) == by_kernel and all(outcome is not None for outcome in taken)


def test_the_environment_turns_kernels_off(monkeypatch):
    design = dense.DESIGNS["one_nested"]
    objective = likelihood_of(design, dense.draw_genes(design, 8))
    monkeypatch.setenv(cuda_kernels.VARIABLE, "0")
    assert cuda_scoring.by_kernel(objective, None, Rules()) is None


def test_a_kernel_that_does_not_compile_is_replaced_with_one_warning(monkeypatch):
    design = dense.DESIGNS["one_nested"]
    objective = likelihood_of(design, dense.draw_genes(design, 8))
    monkeypatch.setattr(cuda_scoring, "_source", lambda *names: 'extern "C" __global__ void one_component() { no }')
    with pytest.warns(RuntimeWarning, match="one_component could not be compiled.*LMM_GPU_KERNELS=0") as warned:
        found = [cuda_scoring.maximise(objective, None, Rules()) for _ in range(2)]
    assert len([one for one in warned if one.category is RuntimeWarning]) == 1
    assert all((outcome.status == int(Status.CONVERGED)).all() for outcome in found)


def test_kernels_need_the_shared_memory_that_the_device_has():
    x = cupy.zeros(1)
    assert cuda_kernels.kernel(x, "", "nothing", (), shared_bytes=2**30) is None


# --- what a process keeps ---------------------------------------------------------------------------


def test_later_fits_make_no_streams_and_no_handles():
    """CuPy keeps memory for every stream, and its libraries keep handles for every thread."""
    emulate = pytest.importorskip("emulate", reason="counts calls of the emulated device")
    design = dense.DESIGNS["one_nested"]
    stats = cross_products(design.X, design.Z, dense.draw_genes(design, 12), d=design.d)
    options = FitOptions(device="cuda", block=4)  # blocks are copied beside computations
    fit_genes(stats, options)
    before = emulate.counts()
    for _ in range(3):
        fit_genes(stats, options)
    after = emulate.counts()
    assert after["H2D"] > before["H2D"]
    assert (after["STREAM"], after["HANDLE"]) == (before["STREAM"], before["HANDLE"])
