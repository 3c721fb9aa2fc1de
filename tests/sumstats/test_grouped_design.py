"""Sums over groups of cells are X'Y and Z'Y of any design: dense products are the judge."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.design_sums import constant_of_design, products_of_design
from lmm_gpu.sumstats.group_tables import GroupTables
from lmm_gpu.sumstats.grouped_design import _FEW_COLUMNS, _MOST_GROUPS, GroupedDesign
from lmm_gpu.sumstats.streaming import accumulate

N, M = 60, 7
RNG = np.random.default_rng(3)
Y = sparse.csr_array(RNG.poisson(0.6, (N, M)) * RNG.normal(size=(N, M)))
DONOR, TYPE = RNG.integers(0, 6, N), RNG.integers(0, 5, N)


def one_hot(codes, width):
    return np.eye(width)[codes]


def products(X, Z, d, pieces=((0, N),), most=None):
    """Sums over chunks of cells, and the design they were made with."""
    tables = GroupTables(GroupedDesign.from_matrices(X, sparse.csr_array(Z), d), M, most=most)
    for lo, hi in pieces:
        tables.add(slice(lo, hi), slice(0, M), Y[lo:hi])
    return tables.design, tables.products()


def assert_products(X, Z, d, **how):
    design, found = products(X, Z, d, **how)
    dense = Y.toarray()
    wanted = {"XY": X.T @ dense, "ZY": Z.T @ dense, "Ysum": dense.sum(axis=0), "Ynorm": (dense**2).sum(axis=0)}
    sizes = {"XY": abs(X).T @ abs(dense), "ZY": abs(Z).T @ abs(dense), "Ysum": abs(dense).sum(axis=0)}
    for name, values in wanted.items():  # sums may be small differences of large terms
        error = np.abs(getattr(found, name) - values)
        assert (error <= 1e-13 * sizes.get(name, values) + 1e-12).all(), name
    return design


DONORS = one_hot(DONOR, 6)
FIXED = {
    "constant": np.ones((N, 1)),
    "constant in donors": np.column_stack([np.ones(N), DONOR % 2, 0.1 * DONOR**2]),
    "cell types": np.column_stack(
        [np.ones(N), one_hot(TYPE, 5)[:, 1:], one_hot(TYPE, 5)[:, 1:] * (DONOR % 2)[:, None]]
    ),
    "continuous": np.column_stack([np.ones(N), RNG.normal(size=(N, 3))]),
    "all": np.column_stack([np.ones(N), one_hot(TYPE, 5)[:, 1:], RNG.normal(size=N), DONOR % 3, -2.5 * (TYPE == 1)]),
    "none": np.zeros((N, 0)),
}
RANDOM = {
    "donor": (DONORS, (6,)),
    "a level without cells": (np.column_stack([DONORS, np.zeros(N)]), (7,)),
    "donor and type": (np.column_stack([DONORS, one_hot(TYPE, 5)]), (6, 5)),
    "slope": (np.column_stack([DONORS, DONORS * RNG.normal(size=(N, 1))]), (6, 6)),
    "slope alone": (DONORS * RNG.normal(size=(N, 1)), (6,)),
    "cells outside": (DONORS * (TYPE > 1)[:, None], (6,)),
    "not one value per cell": (RNG.normal(size=(N, 4)), (4,)),
}


@pytest.mark.parametrize("fixed", FIXED)
@pytest.mark.parametrize("random", RANDOM)
@pytest.mark.parametrize("most", [None, 1, 2 * M])
def test_any_design(fixed, random, most):
    assert_products(FIXED[fixed], *RANDOM[random], most=most)


@settings(deadline=None)
@given(st.lists(st.integers(0, N), max_size=6))
def test_any_split(cuts):
    ends = sorted({0, N, *cuts})
    assert_products(FIXED["all"], *RANDOM["slope"], pieces=list(pairwise(ends)))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 9))
def test_any_columns(seed, p, levels):
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((N, p)) < 0.5, rng.integers(0, levels, (N, p)), rng.choice([0, 0.3, 1e6], (N, p)))
    assert_products(X, *RANDOM["donor"])


def test_columns_go_where_they_cost_least():
    design = assert_products(FIXED["all"], *RANDOM["donor"])
    donors, types = design.groupings
    assert list(donors.columns) == [0, 6]
    assert list(types.columns) == [1, 2, 3, 4, 7] and len(types.values) == 5
    assert design.rest == [5] and design.groups == 6 + 5


def test_few_columns_are_multiplied():
    X = np.column_stack([one_hot(TYPE, 5)[:, : _FEW_COLUMNS - 1]])
    design = assert_products(X, *RANDOM["donor"])
    assert len(design.groupings) == 1 and design.rest == list(range(_FEW_COLUMNS - 1))


def test_groups_that_are_too_many_share_no_pass():
    """Two factors of 20 levels each make 400 groups together: they take two passes."""
    n, rng = 4000, np.random.default_rng(1)
    a, b = rng.integers(0, 20, n), rng.integers(0, 20, n)
    X = np.column_stack([one_hot(a, 20), one_hot(b, 20)[:, 1:]])
    design = GroupedDesign.from_matrices(X, sparse.csr_array(one_hot(rng.integers(0, 3, n), 3)), (3,))
    fixed = design.groupings[1:]
    assert len(fixed) > 1 and all(len(part.values) <= _MOST_GROUPS for part in fixed)
    wanted = sparse.csr_array(rng.poisson(1.0, (n, 4)).astype(float))
    tables = GroupTables(design, 4)
    tables.add(slice(0, n), slice(0, 4), wanted)
    np.testing.assert_allclose(tables.products().XY, X.T @ wanted.toarray(), rtol=1e-12)


def test_the_cells_are_left_as_they_were():
    before = Y.copy()
    assert_products(FIXED["all"], *RANDOM["slope"])
    assert (before != Y).nnz == 0


# --- from the table of a design -------------------------------------------------------------------


CELLS = pd.DataFrame(
    {
        "donor": RNG.integers(0, 6, N).astype(str),
        "type": RNG.integers(0, 5, N).astype(str),
        "batch": RNG.integers(0, 3, N).astype(str),
        "x": RNG.normal(size=N),
        "z": RNG.normal(size=N),
    }
)
CELLS["age"] = CELLS["donor"].map({str(i): 20.0 + 7 * i for i in range(6)})
CELLS["sex"] = CELLS["donor"].map({str(i): "fm"[i % 2] for i in range(6)})
FORMULAS = [
    "~ type * sex + age + x + (1 | donor)",
    "~ 0 + type + x:type + (1 | donor) + (1 | batch)",
    "~ 1 + (x | donor)",
    "~ age + sex + (0 + x | donor)",
    "~ 0 + x + (x || donor) + (1 | batch)",
    "~ x + z + I(x**2) + I(z**2) + x:z + type + (1 | donor)",
]


MANY, MANY_Y = pd.concat([CELLS] * 20, ignore_index=True), sparse.csr_array(sparse.vstack([Y] * 20))
MANY["x"], MANY["z"] = RNG.normal(size=(2, 20 * N))


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("weights", [None, RNG.uniform(0.1, 2.0, 20 * N)])
def test_products_from_groups_are_those_of_the_matrices(formula, weights):
    design = build_design(formula, MANY)
    grouped = GroupedDesign.of(design)
    found = products_of_design(design, grouped, weights)
    X, Z, w = design.X, design.Z.toarray(), (np.ones(20 * N) if weights is None else weights)[:, None]
    for name, wanted in {"XX": X.T @ (w * X), "ZX": Z.T @ (w * X), "ZZ": Z.T @ (w * Z)}.items():
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-12, atol=1e-9, err_msg=name)
    sparse_tables, dense_tables = (GroupTables(grouped, M, weights) for _ in range(2))
    sparse_tables.add(slice(0, 20 * N), slice(0, M), MANY_Y)
    dense = MANY_Y.toarray()
    dense_tables.add_dense(slice(0, 20 * N), slice(0, M), dense, np.zeros(M))
    for products in (sparse_tables.products(), dense_tables.products()):
        for name, wanted in {"XY": X.T @ (w * dense), "ZY": Z.T @ (w * dense), "Ysum": (w * dense).sum(axis=0)}.items():
            np.testing.assert_allclose(getattr(products, name), wanted, rtol=1e-12, atol=1e-9, err_msg=name)
    constant = constant_of_design(design)
    assert (constant is None) == formula.startswith("~ 0 + x")
    if constant is not None:
        np.testing.assert_allclose(X @ constant, 1, rtol=1e-12)


def test_no_matrix_of_all_cells_is_made(monkeypatch):
    """Factors and a few numbers are accumulated from codes: neither X nor Z is needed."""
    design = build_design(FORMULAS[0], MANY)
    monkeypatch.setattr(type(design), "X", property(lambda _: pytest.fail("X was made")))
    monkeypatch.setattr(type(design), "Z", property(lambda _: pytest.fail("Z was made")))
    for values in (MANY_Y, MANY_Y.toarray()):
        with open_source((values, MANY)) as source:
            assert accumulate(source, design, None).n == 20 * N


def test_a_design_without_random_effects():
    X, Y = np.column_stack([np.ones(6), np.arange(6.0)]), np.random.default_rng(0).normal(size=(6, 3))
    design = GroupedDesign.from_matrices(X, sparse.csr_array((6, 0)), ())
    XY, Ysum = design.products(np.zeros((design.groups, 3)), design.covariates.T @ Y)
    np.testing.assert_allclose(XY, X.T @ Y, rtol=1e-12)
    np.testing.assert_allclose(Ysum, Y.sum(axis=0), rtol=1e-12)
