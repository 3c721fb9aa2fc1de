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
from lmm_gpu.estimation.fisher_scoring import Rules  # noqa: E402
from lmm_gpu.estimation.fit_options import FitOptions  # noqa: E402
from lmm_gpu.estimation.fitting import fit_genes  # noqa: E402
from lmm_gpu.estimation.mixed_model import MixedModel  # noqa: E402
from lmm_gpu.estimation.status import Status  # noqa: E402
from lmm_gpu.sumstats.assembly import cross_products  # noqa: E402

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


def both(objective, start, rules, interrupted=None):
    """Outcomes by the kernel, which has to be there, and by array operations."""
    found = cuda_scoring.by_kernel(objective, start, rules, interrupted)
    assert found is not None
    return found, fisher_scoring.maximise(objective, start, rules, interrupted)


def assert_same(found, expected):
    for name in ("niter", "refused", "status"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.get(), other.get(), err_msg=name)
    size = np.abs(expected.theta.get()).max(axis=0)  # (b,)
    np.testing.assert_allclose(found.theta.get() / size, expected.theta.get() / size, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.yPy.get(), expected.yPy.get(), rtol=1e-12)


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
    np.testing.assert_allclose(found.theta, expected.theta, rtol=rtol, atol=rtol * np.abs(expected.theta).max())
    np.testing.assert_allclose(found.se, expected.se, rtol=rtol)


@pytest.mark.parametrize("bounds", ["auto", "none"])
def test_a_whole_fit(bounds):
    """Refits and continued genes included; nothing but the kernels differs."""
    design = dense.DESIGNS["one_nested"]
    stats = cross_products(design.X, design.Z, genes(design, 40), d=design.d)
    assert_same_estimates(*estimates_of(stats, FitOptions(device="cuda", bounds=bounds)))


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
        assert taken and all((outcome is not None) == by_kernel for outcome in taken)


def test_the_environment_turns_kernels_off(monkeypatch):
    design = dense.DESIGNS["one_nested"]
    objective = likelihood_of(design, dense.draw_genes(design, 8))
    monkeypatch.setenv(cuda_kernels.VARIABLE, "0")
    assert cuda_scoring.by_kernel(objective, None, Rules()) is None


def test_a_kernel_that_does_not_compile_is_replaced_with_one_warning(monkeypatch):
    design = dense.DESIGNS["one_nested"]
    objective = likelihood_of(design, dense.draw_genes(design, 8))
    monkeypatch.setattr(cuda_scoring, "_source", lambda name: 'extern "C" __global__ void one_component() { no }')
    with pytest.warns(RuntimeWarning, match="one_component could not be compiled.*LMM_GPU_KERNELS=0") as warned:
        found = [cuda_scoring.maximise(objective, None, Rules()) for _ in range(2)]
    assert len([one for one in warned if one.category is RuntimeWarning]) == 1
    assert all((outcome.status == int(Status.CONVERGED)).all() for outcome in found)


def test_kernels_need_the_shared_memory_that_the_device_has():
    x = cupy.zeros(1)
    assert cuda_kernels.kernel(x, "", "nothing", (), shared_bytes=2**30) is None
