"""A memory budget holds, and the results do not depend on it."""

import tracemalloc

import dense
import numpy as np
import pytest

from lmm_gpu.fitting import FitOptions, fit_summary
from lmm_gpu.plan import parse_memory
from lmm_gpu.summary import cross_products


@pytest.fixture(scope="module", params=[(60,), (60, 25), (60, 60)], ids=["one", "two", "as wide"])
def summary(request):
    rng, n, m = np.random.default_rng(8), 1500, 300 if request.param == (60, 60) else 3000
    Z = np.hstack([dense.one_hot(rng.integers(0, width, n), width) for width in request.param])
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 9))])
    Y = Z @ rng.normal(scale=0.4, size=(Z.shape[1], m)) + rng.normal(size=(n, m))
    return cross_products(X, Z, Y, d=request.param)


def fitted_with_peak(summary, memory):
    """The fit, and the bytes it held at most beyond what it keeps: its results, and the rotated genes in them."""
    tracemalloc.start()
    try:
        fit = fit_summary(summary, FitOptions(memory=memory))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return fit, peak - kept


@pytest.mark.parametrize("memory", ["8MB", "30MB"])
def test_the_budget_holds(summary, memory):
    fit_summary(summary, FitOptions(memory=memory))  # imports and caches of the libraries
    _, peak = fitted_with_peak(summary, memory)
    assert peak <= 1.25 * parse_memory(memory)


def test_the_results_do_not_depend_on_it(summary):
    plain = fit_summary(summary, FitOptions()).estimates
    tight = fit_summary(summary, FitOptions(memory="2MB")).estimates
    np.testing.assert_array_equal(tight.status, plain.status)
    np.testing.assert_array_equal(tight.niter, plain.niter)
    np.testing.assert_allclose(tight.theta / plain.theta[-1], plain.theta / plain.theta[-1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(tight.coef, plain.coef, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(tight.se, plain.se, rtol=1e-9)
