"""Projecting X out: dense residual makers, and designs that are refused."""

from __future__ import annotations

import dense
import numpy as np
import pytest

from lmm_gpu.estimation.projection import Projection
from lmm_gpu.sumstats.assembly import cross_products

DESIGN = dense.DESIGNS["two"]
Y = dense.draw_genes(DESIGN, 3)


def test_a_rank_deficient_X_is_refused_by_name():
    X = np.column_stack([DESIGN.X, DESIGN.X[:, 1] - 2 * DESIGN.X[:, 0]])
    names = ("(Intercept)", "trt", "age", "again")
    ss = cross_products(X, DESIGN.Z, Y, fixed_names=names)
    with pytest.raises(ValueError, match=r"X is rank deficient .*: \(Intercept\), trt, again; drop one of them"):
        Projection.build(ss)


def test_an_empty_column_of_X_is_refused_by_name():
    ss = cross_products(np.column_stack([DESIGN.X, np.zeros(60)]), DESIGN.Z, Y, fixed_names=("a", "b", "c", "none"))
    with pytest.raises(ValueError, match="linearly dependent: none; drop"):
        Projection.build(ss)


@pytest.mark.parametrize("n", [2, 3])
def test_no_more_cells_than_fixed_effects(n):
    ss = cross_products(DESIGN.X[:n], DESIGN.Z[:n], Y[:n])
    with pytest.raises(ValueError, match=f"3 fixed-effect columns but only {n} cells: no residual is left"):
        Projection.build(ss)


def test_projection(design):
    """X is taken out of Z and Y as the dense residual maker does it."""
    Y = dense.draw_genes(design, 3)
    Q = design.error_contrasts()
    RZ, RY = Q.T @ design.Z, Q.T @ Y
    summary = cross_products(design.X, design.Z, Y, d=design.d)
    found = Projection.build(summary)
    genes = found.genes(summary)
    ols = np.linalg.lstsq(design.X, Y, rcond=None)[0]
    np.testing.assert_allclose(found.S, RZ.T @ RZ, atol=1e-12 * design.n)
    np.testing.assert_allclose(genes.sums.zry, RZ.T @ RY, atol=1e-12 * design.n * np.abs(Y).max())
    np.testing.assert_allclose(genes.sums.yry, (RY**2).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(genes.beta_ols, ols, atol=1e-12)
    np.testing.assert_allclose(found.xxz, np.linalg.lstsq(design.X, design.Z, rcond=None)[0], atol=1e-12)
    np.testing.assert_allclose(found.XXinv @ design.X.T @ design.X, np.eye(design.X.shape[1]), atol=1e-12)
    assert found.n == design.n
