"""Laws of mixed models that hold for every data set, on data that hypothesis draws.

Scales: coefficients and their standard errors relative to the standard errors, theta to the residual variance.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import dense
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

GENES = 6
pytestmark = pytest.mark.filterwarnings("ignore:.*did not converge:UserWarning")
few = settings(deadline=None, max_examples=12, derandomize=True)
designs = st.sampled_from(["one_nested", "one_crossed", "two", "two_widest_last"]).map(dense.DESIGNS.get)
methods = st.sampled_from(["REML", "ML"])
seeds = st.integers(0, 10_000)
powers = st.floats(-6, 6).map(lambda x: 10.0**x)


def fit(design, Y, method="REML", **options):
    """Estimates with the loop run tight, so that what is left is rounding."""
    summary = cross_products(design.X, design.Z, Y, d=design.d)
    return fit_summary(summary, FitOptions(method=method, max_iter=200, **options))


def assert_same(found, wanted, tolerance, *, beta=None, se=1.0, theta=1.0):
    """`found` has the coefficients `beta`, and `se` times the errors and `theta` times the components of `wanted`.

    The same genes converge, but for a rare one that Fisher scoring has no time for, all of them.
    """
    np.testing.assert_array_equal(found.converged, wanted.converged)
    genes = wanted.converged.to_numpy()
    assert np.count_nonzero(genes) >= GENES - 1
    a, b = found.estimates, wanted.estimates
    beta = b.coef if beta is None else beta
    assert np.max((np.abs(a.theta - theta * b.theta) / (theta * b.theta[-1]))[:, genes]) < tolerance
    assert np.max((np.abs(a.se - se * b.se) / (se * b.se))[:, genes]) < tolerance
    assert np.max((np.abs(a.coef - beta) / (se * b.se))[:, genes]) < tolerance


@few
@given(designs, seeds, st.lists(st.integers(0, 60), max_size=6), st.randoms(use_true_random=False))
def test_any_split_of_the_cells_adds_up(design, seed, cuts, random):
    Y = dense.draw_genes(design, GENES, seed)
    order = random.sample(range(design.n), design.n)
    bounds = sorted([0, *cuts, design.n])
    parts = [
        cross_products(design.X[rows], design.Z[rows], Y[rows], d=design.d)
        for rows in (order[lo:hi] for lo, hi in pairwise(bounds))
    ]
    total, whole = sum(parts[1:], start=parts[0]), cross_products(design.X, design.Z, Y, d=design.d)
    for name in ("n", "XX", "XY", "ZX", "ZY", "ZZ", "Ynorm"):
        np.testing.assert_allclose(total[name], whole[name], rtol=1e-12, atol=1e-12 * np.max(np.abs(whole[name])))
    options = FitOptions(max_iter=200)
    assert_same(fit_summary(total, options), fit_summary(whole, options), 1e-8)


@few
@given(designs, seeds, methods, st.lists(st.integers(0, 19), min_size=1, unique=True), st.integers(1, 25))
def test_any_block_of_genes_gives_the_same_rows(design, seed, method, chosen, block):
    Y = dense.draw_genes(design, 20, seed)
    whole, part = fit(design, Y, method), fit(design, Y[:, chosen], method, block=block)
    np.testing.assert_array_equal(part.converged, whole.converged.iloc[chosen])
    units = {"theta": whole.estimates.theta[-1], "coef": whole.estimates.se, "se": whole.estimates.se}
    for name, unit in units.items():
        error = np.abs(getattr(part.estimates, name) - getattr(whole.estimates, name)[:, chosen]) / unit[..., chosen]
        assert error.max() < 1e-7, name
    np.testing.assert_allclose(part.logLik, whole.logLik.iloc[chosen], rtol=1e-10)


@few
@given(designs, seeds, methods, powers)
def test_the_unit_of_y(design, seed, method, c):
    """y -> c y: beta by c, theta by c^2, and no other status than one of convergence."""
    Y = dense.draw_genes(design, GENES, seed)
    wanted = fit(design, Y, method)
    assert_same(fit(design, c * Y, method), wanted, 1e-6, beta=c * wanted.estimates.coef, se=c, theta=c * c)


@few
@given(designs, seeds, methods, st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_adding_fixed_effects_to_y_changes_only_their_estimates(design, seed, method, a):
    """y -> y + X a: beta by a, nothing else."""
    Y, a = dense.draw_genes(design, GENES, seed), np.array(a[: design.X.shape[1]])[:, None]
    wanted = fit(design, Y, method)
    found = fit(design, Y + design.X @ a, method)
    assert_same(found, wanted, 1e-7, beta=wanted.estimates.coef + a)
    np.testing.assert_allclose(found.logLik, wanted.logLik, rtol=1e-9)


@few
@given(designs, seeds, methods, powers, st.integers(0, 2))
def test_the_unit_of_a_fixed_effect(design, seed, method, c, column):
    """x_j -> c x_j: beta_j and its error by 1/c, the rest stays."""
    Y, units = dense.draw_genes(design, GENES, seed), np.ones(design.X.shape[1])
    units[column % units.size] = c
    wanted = fit(design, Y, method)
    found = fit(replace(design, X=design.X * units), Y, method)
    per_unit = 1 / units[:, None]
    assert_same(found, wanted, 1e-7, beta=wanted.estimates.coef * per_unit, se=per_unit)
    np.testing.assert_allclose(found.logLik, wanted.logLik, rtol=1e-9)


@few
@given(designs, seeds, methods, st.randoms(use_true_random=False))
def test_other_coordinates_of_the_fixed_effects(design, seed, method, random):
    """X -> X M: beta by M^-1, theta stays."""
    p = design.X.shape[1]
    M = np.eye(p) + 0.3 * np.array([[random.uniform(-1, 1) for _ in range(p)] for _ in range(p)])
    Y = dense.draw_genes(design, GENES, seed)
    wanted, found = fit(design, Y, method), fit(replace(design, X=design.X @ M), Y, method)
    genes = wanted.converged.to_numpy()
    np.testing.assert_array_equal(found.converged, genes)
    error = np.abs(M @ found.estimates.coef - wanted.estimates.coef) / wanted.estimates.se
    assert error[:, genes].max() < 1e-7
    error = np.abs(found.estimates.theta - wanted.estimates.theta) / wanted.estimates.theta[-1]
    assert error[:, genes].max() < 1e-7


@few
@given(designs, seeds, methods, st.randoms(use_true_random=False))
def test_names_of_donors_do_not_matter(design, seed, method, random):
    """Columns of Z in another order within each effect: the same fit."""
    Y = dense.draw_genes(design, GENES, seed)
    shuffled = [part[:, random.sample(range(part.shape[1]), part.shape[1])] for part in design.parts]
    assert_same(fit(replace(design, Z=np.hstack(shuffled)), Y, method), fit(design, Y, method), 1e-7)


@few
@given(st.sampled_from(["two", "three_widest_inside"]), seeds, methods)
def test_order_of_random_effects_does_not_matter(name, seed, method):
    design = dense.DESIGNS[name]
    Y, k = dense.draw_genes(design, GENES, seed), len(design.d)
    turned = replace(design, Z=np.hstack(design.parts[::-1]), d=design.d[::-1])
    options = {"bounds": "nonnegative", "epsilon": 1e-7}
    wanted, found = fit(design, Y, method, **options), fit(turned, Y, method, **options)
    found_theta = found.estimates.theta[[*range(k)[::-1], k]]
    genes = wanted.converged.to_numpy()
    np.testing.assert_array_equal(found.converged, genes)
    error = np.abs(found_theta - wanted.estimates.theta) / wanted.estimates.theta[-1]
    assert error[:, genes].max() < 1e-6
    np.testing.assert_allclose(found.logLik[genes], wanted.logLik[genes], rtol=1e-9)


@few
@given(seeds, methods, powers)
def test_the_unit_of_a_random_effect(seed, method, c):
    """Z_i -> c Z_i: its variance by 1/c^2, the same model."""
    design = dense.DESIGNS["two"]
    Y, c = dense.draw_genes(design, GENES, seed), c**0.5
    wanted = fit(design, Y, method)
    found = fit(replace(design, Z=np.hstack([design.parts[0], c * design.parts[1]])), Y, method)
    rescaled = replace(wanted.estimates, theta=wanted.estimates.theta * np.array([[1.0], [c**-2], [1.0]]))
    weights = np.array([[1.0], [c * c], [1.0]])  # a ratio is judged by what it does to V
    genes = wanted.converged.to_numpy()
    np.testing.assert_array_equal(found.converged, genes)
    error = weights * np.abs(found.estimates.theta - rescaled.theta) / wanted.estimates.theta[-1]
    assert error[:, genes].max() < 1e-5
    assert (np.abs(found.estimates.coef - wanted.estimates.coef) / wanted.estimates.se)[:, genes].max() < 1e-5


# --- many cells: rounding of the likelihood grows with them, and is still no failure ---------------


def repeated(design, Y, doublings):
    """Statistics of every cell 2^doublings times."""
    summary = cross_products(design.X, design.Z, Y, d=design.d)
    for _ in range(doublings):
        summary = replace(summary, parts=("first",)) + replace(summary, parts=("second",))
    return summary


@pytest.mark.parametrize("doublings", [6, 12])
@pytest.mark.parametrize("name", ["one_nested", "two", "slope"])
def test_up_to_a_quarter_million_cells(name, doublings, method):
    design = dense.DESIGNS[name]
    found = fit_summary(repeated(design, dense.draw_genes(design, 60), doublings), FitOptions(method=method))
    assert found.converged.all(), found.status.value_counts().to_dict()


@pytest.mark.parametrize("name", ["one_nested", "two", "slope"])
def test_a_likelihood_of_one_is_as_rough_as_any(name, method):
    """log L(c y) = log L(y) - N log c is near zero for c = L^(1/N): that says nothing of its rounding."""
    design, doublings = dense.DESIGNS[name], 5
    Y = dense.draw_genes(design, 60)
    options = FitOptions(method=method)
    wanted = fit_summary(repeated(design, Y, doublings), options)
    N = wanted.summary.n - (design.X.shape[1] if method == "REML" else 0)
    c = np.exp(wanted.estimates.logLik / N)
    found = fit_summary(repeated(design, c * Y, doublings), options)
    np.testing.assert_allclose(found.logLik, 0, atol=1e-9 * N)
    assert found.converged.all(), found.status.value_counts().to_dict()
