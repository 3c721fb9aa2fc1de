"""Sums of products, and the centres that they are taken about."""

from __future__ import annotations

from itertools import pairwise

import array_api_strict
import dense
import numpy as np
import pytest
import scipy.sparse

from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.estimation.projection import Projection
from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.centring import centre_of, centred_products, constant_of, recentred
from lmm_gpu.sumstats.products import GeneProducts, design_products
from lmm_gpu.sumstats.summary_stats import SummaryStats

DESIGN = dense.DESIGNS["two"]
N = DESIGN.n
GROUP = dense.one_hot(np.arange(N) % 3, 3)
x = np.random.default_rng(2).normal(size=N)


def far(m=3, mean=1e6, seed=0):
    """Genes (n, m) at `mean` with a spread of 1, and how they vary, exactly: multiples of 2^-20."""
    Y = np.round(dense.draw_genes(DESIGN, m, seed) * 2**20) / 2**20
    return Y + mean, Y


def project(ss):
    return Projection.build(ss).genes(ss).sums


# --- what makes the constant ----------------------------------------------------------------------


MAKE_ONE = {
    "intercept": (np.column_stack([x, np.ones(N)]), [0, 1]),
    "intercept in other units": (np.column_stack([np.full(N, 1e-6), x]), [1e6, 0]),
    "groups": (np.column_stack([GROUP, x]), [1, 1, 1, 0]),
    "groups in other units": (np.column_stack([GROUP * [1e-6, 1, 3], x + 9]), [1e6, 1, 1 / 3, 0]),
    "groups, one without cells": (np.column_stack([GROUP[:, 0], np.zeros(N), 1 - GROUP[:, 0]]), [1, 0, 1]),
    "groups twice": (np.column_stack([GROUP, GROUP]), [0.5] * 6),
}
KINDS = [np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_matrix, array_api_strict.asarray]


@pytest.mark.parametrize("name", MAKE_ONE)
@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_make_the_constant(name, kind):
    X, wanted = MAKE_ONE[name]
    k = to_numpy(constant_of(kind(X)))
    np.testing.assert_allclose(k, wanted, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(X @ k, 1, rtol=1e-14)


@pytest.mark.parametrize(
    "X", [x[:, None], np.column_stack([x, x * x]), GROUP[:, :2], np.zeros((N, 2)), np.zeros((0, 2))]
)
def test_columns_that_do_not(X):
    assert constant_of(X) is None
    assert constant_of(scipy.sparse.csr_array(X)) is None


def test_nearly_equal_is_not_equal():
    """1 + 1e-12 x would leave 1e-6 of a spread of 1 in values at 1e6."""
    assert constant_of((1 + 1e-12 * x)[:, None]) is None


# --- centres --------------------------------------------------------------------------------------


def test_only_genes_far_from_zero_have_a_centre():
    Y = np.column_stack([x, x + 10, x + 1e3, -1e6 + x, np.full(N, 0.1), np.zeros(N)])
    centre = centre_of(Y, np.ones(1))
    assert (centre != 0).tolist() == [False, False, True, True, True, False]
    np.testing.assert_allclose(centre[2:5], Y[:, 2:5].mean(axis=0), rtol=1e-12)


def test_no_centre():
    """Of sparse values, of no cells, and where nothing moves the sums back."""
    assert centre_of(scipy.sparse.csr_array(far()[0]), np.ones(1)) is None
    assert centre_of(np.zeros((0, 3)), np.ones(1)) is None
    assert centre_of(far()[0], None) is None
    for X in (x[:, None], DESIGN.X):
        assert cross_products(X, DESIGN.Z, scipy.sparse.csr_array(far()[0])).centred is None
    assert cross_products(x[:, None], DESIGN.Z, far()[0]).centred is None
    assert cross_products(DESIGN.X, DESIGN.Z, far()[1]).centred is None


def test_moved_products_are_those_of_moved_values():
    Y, shift = dense.draw_genes(DESIGN, 3), np.array([0.0, 2.0, -30.0])
    centred = centred_products(DESIGN.X, DESIGN.Z, Y, None)
    assert centred.centre is None
    found = recentred(centred, design_products(DESIGN.X, DESIGN.Z), constant_of(DESIGN.X), shift)
    wanted = centred_products(DESIGN.X, DESIGN.Z, Y - shift, None)
    for name in ("XY", "ZY", "Ynorm", "Ysum"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-11, atol=1e-10)
    np.testing.assert_array_equal(found.ZY[:, 0], centred.ZY[:, 0])


def test_the_sums_themselves_are_about_zero():
    """As R has them, with the digits that sums of such values can have."""
    Y, _ = far()
    ss = cross_products(DESIGN.X, DESIGN.Z, Y)
    assert ss.centred is not None
    wanted = {"XY": DESIGN.X.T @ Y, "ZY": DESIGN.Z.T @ Y, "Ynorm": (Y * Y).sum(axis=0), "Ysum": Y.sum(axis=0)}
    for name, values in wanted.items():
        np.testing.assert_allclose(getattr(ss, name), values, rtol=1e-12, atol=1e-12 * np.abs(values).max())


def test_genes_join_with_their_centres():
    Y = np.column_stack([far()[0], far()[1]])
    constant = constant_of(DESIGN.X)
    parts = [centred_products(DESIGN.X, DESIGN.Z, Y[:, rows], constant) for rows in (slice(0, 2), slice(2, 6))]
    joined, whole = GeneProducts.join(parts), centred_products(DESIGN.X, DESIGN.Z, Y, constant)
    for name in ("XY", "ZY", "Ynorm", "Ysum", "centre"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-13, atol=1e-10)


def assert_projected(found, Y, atol=1e-8):
    """What is left of exactly known genes (n, m) after X, at the scale of their spread, not of their mean."""
    Q = DESIGN.error_contrasts()
    np.testing.assert_allclose(found.zry, DESIGN.Z.T @ (Q @ (Q.T @ Y)), atol=atol * N)
    np.testing.assert_allclose(found.yry, ((Q.T @ Y) ** 2).sum(axis=0), rtol=atol)


@pytest.mark.parametrize("mean", [1e3, 1e6, -1e6, 1e9])
def test_projections_keep_their_digits(mean):
    Y, spread = far(mean=mean)
    assert_projected(project(cross_products(DESIGN.X, DESIGN.Z, Y)), spread)


@pytest.mark.parametrize("cuts", [[30], [1], [0], [1, 2, 3, 50], [7, 7]])
def test_sums_about_different_centres_add_up(cuts):
    """In either order; parts without cells, or too few to tell the fixed effects apart, do not matter."""
    Y, spread = far()
    bounds = [0, *cuts, N]
    parts = [cross_products(DESIGN.X[lo:hi], DESIGN.Z[lo:hi], Y[lo:hi]) for lo, hi in pairwise(bounds)]
    for some in (parts, parts[::-1]):
        total = sum(some[1:], start=some[0])
        assert_projected(project(total), spread)
        np.testing.assert_allclose(total.Ynorm, (Y * Y).sum(axis=0), rtol=1e-13)


def test_parts_whose_columns_make_the_constant_in_other_ways():
    """Groups that only one part has; a treatment that one part has in all cells."""
    Y, spread = far()
    late = (np.arange(N) >= 30) & (np.arange(N) % 2 == 0) | (np.arange(N) < 20)
    X = np.column_stack([dense.one_hot(np.arange(N) // 20, 3), late, x])
    parts = [cross_products(X[lo:hi], DESIGN.Z[lo:hi], Y[lo:hi]) for lo, hi in ((0, 20), (20, 45), (45, 60))]
    assert len({tuple(part.centred.constant) for part in parts}) == 3
    Q = np.linalg.qr(X, mode="complete")[0][:, 5:]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        a, b, c = (parts[i] for i in order)
        for total in ((a + b) + c, a + (b + c)):
            np.testing.assert_allclose(project(total).yry, ((Q.T @ spread) ** 2).sum(axis=0), rtol=1e-8)


def test_without_a_constant_of_both_the_sums_about_zero_remain():
    """A single cell makes a constant of anything."""
    X = np.column_stack([x, x * x])
    Y, _ = far()
    total = sum((cross_products(X[i : i + 1], DESIGN.Z[i : i + 1], Y[i : i + 1]) for i in range(1, N)),
                start=cross_products(X[:1], DESIGN.Z[:1], Y[:1]))  # fmt: skip
    assert total.centred is None
    np.testing.assert_allclose(total.XY, X.T @ Y, rtol=1e-10)


def test_a_centre_of_other_cells_is_refused():
    ss = cross_products(DESIGN.X, DESIGN.Z, far()[0])
    with pytest.raises(ValueError, match="centred is of other cells or genes than XY: replace both"):
        SummaryStats(**vars(ss) | {"XY": 2 * ss.XY})
    assert SummaryStats(**vars(ss) | {"XY": 2 * ss.XY, "centred": None}).centred is None
