"""Cells read from dense and sparse Z as groups, and the products of dense genes that are added up by them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from lmm_gpu import _flashmm_sums, sslmm
from lmm_gpu.sumstats import host_products, matrix_groups
from lmm_gpu.sumstats.grouped_design import indicator_matrix
from lmm_gpu.sumstats.matrix_groups import read_groupings

N, Q = 130, 7
RNG = np.random.default_rng(8)
DONOR, BATCH, DEPTH = RNG.integers(0, Q, N), RNG.integers(0, 3, N), RNG.uniform(0.5, 2.0, N)
ONE = np.eye(Q)[DONOR]
CROSSED = np.hstack([ONE, np.eye(3)[BATCH]])
SLOPES = np.hstack([ONE, DEPTH[:, None] * ONE])
#: Z, and the number of groupings that it is read as.
GROUPED = {
    "one effect": (ONE, 1),
    "first and last columns empty": (np.eye(Q + 4)[DONOR + 2], 1),
    "crossed": (CROSSED, 2),
    "slopes": (SLOPES, 2),
    "a common column": (np.hstack([np.ones((N, 1)), ONE]), 2),
}
NOT_GROUPED = {
    "a cell of no group": ONE * (np.arange(N) > 0)[:, None],
    "a cell of two groups": np.maximum(ONE, np.arange(N)[:, None] == N - 1),
    "a cell of no group and one of two": np.where(np.arange(N)[:, None] == 3, 0, ONE + np.eye(N, Q, 60)),
    "values in any two columns": np.eye(Q)[DONOR] + np.eye(Q)[(DONOR + 1 + BATCH) % Q],
    "numbers": RNG.normal(size=(N, 3)),
    "nothing": np.zeros((N, 3)),
}
KINDS = {
    "dense": np.asarray,
    "Fortran": np.asfortranarray,
    "every other row": lambda Z: np.repeat(Z, 2, axis=0)[::2],
    "float32": lambda Z: Z.astype("f4"),
    "sparse": sparse.csr_array,
}


@pytest.fixture(params=[2**21, 64], ids=["one block", "blocks"])
def _blocks_of_z(request, monkeypatch):
    monkeypatch.setattr(matrix_groups, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_blocks_of_z")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GROUPED)
def test_groupings_have_the_columns_that_they_are_read_from(name, kind):
    Z, count = GROUPED[name]
    found = read_groupings(KINDS[kind](Z))
    assert len(found) == count
    stored = Z.astype("f4") if kind == "float32" else Z
    np.testing.assert_array_equal(indicator_matrix(found, slice(0, N)).toarray(), stored)
    np.testing.assert_array_equal(indicator_matrix(found, slice(20, 50)).toarray(), stored[20:50])


@pytest.mark.usefixtures("_blocks_of_z")
@pytest.mark.parametrize("kind", ["dense", "Fortran", "sparse"])
@pytest.mark.parametrize("name", NOT_GROUPED)
def test_other_columns_are_not_groups(name, kind):
    assert read_groupings(KINDS[kind](NOT_GROUPED[name])) is None


def test_logical_and_whole_numbers():
    for kind in (bool, "i1", "i8"):
        assert read_groupings(ONE.astype(kind))[0].codes.tolist() == DONOR.tolist()


@pytest.mark.parametrize("tile", [2**19, 100])
@pytest.mark.parametrize(
    ("genes", "fused"), [(3, False), (300, False), (300, True)], ids=["few", "many", "many, compiled"]
)
@pytest.mark.parametrize("name", [*GROUPED, *NOT_GROUPED])
def test_sums_are_those_of_dense_products(name, genes, fused, tile, monkeypatch):
    if fused:
        pytest.importorskip("numba", reason='needs: pip install ".[fast]"')
    monkeypatch.setattr(_flashmm_sums, "is_worth_fusing", lambda *_: fused)
    monkeypatch.setattr(_flashmm_sums, "_MANY_VALUES", 1)
    monkeypatch.setattr(host_products, "_TILE_VALUES", tile)
    monkeypatch.setattr(host_products, "_NARROWEST", 5)
    Z = GROUPED[name][0] if name in GROUPED else NOT_GROUPED[name]
    X = np.column_stack([np.ones(N), DEPTH, DONOR % 2, RNG.integers(0, 2, (N, 5))])
    Y = RNG.normal(size=(genes, N))
    Y[1] += 5e4  # far from zero: about a centre
    weights = RNG.uniform(0.5, 2.0, N)
    for dtype, order, w in (("f8", "C", None), ("f8", "F", weights), ("f8", "F", None), ("f4", "C", None)):
        values = np.array(Y, dtype, order=order)
        values.flags.writeable = w is None
        found, y = sslmm(X, values, Z, is_counts=False, weights=w), values.astype("f8").T
        W = np.diag(np.ones(N) if w is None else w)
        wanted = {"XX": X.T @ W @ X, "ZX": Z.T @ W @ X, "ZZ": Z.T @ W @ Z, "XY": X.T @ W @ y, "ZY": Z.T @ W @ y}
        wanted |= {"Ynorm": np.diag(W) @ y**2, "Ysum": np.diag(W) @ y}
        for what, expected in wanted.items():
            scale = np.abs(expected).max()
            np.testing.assert_allclose(getattr(found, what), expected, rtol=1e-12, atol=1e-13 * scale, err_msg=what)
        assert found.centred.centre[1] != 0 == found.centred.centre[0]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_counts_are_transformed_in_tiles(dtype, monkeypatch):
    monkeypatch.setattr(_flashmm_sums, "_MANY_VALUES", 1)
    monkeypatch.setattr(host_products, "_TILE_VALUES", 100)
    Y = RNG.poisson(2.0, (40, N)).astype(dtype)
    before, found = Y.copy(), sslmm(np.ones((N, 1)), Y, ONE, is_counts=True)
    wanted = np.log2(1.0 + Y.T.astype("f8"))
    np.testing.assert_allclose(found.ZY, ONE.T @ wanted, rtol=1e-12)
    np.testing.assert_allclose(found.Ynorm, (wanted**2).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(Y, before)
    Y[-1, -1] = -1
    with pytest.raises(ValueError, match="values go down to -1"):
        sslmm(np.ones((N, 1)), Y, ONE, is_counts=True)


def test_values_of_the_caller_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(_flashmm_sums, "_MANY_VALUES", 1)
    Y = np.asfortranarray(RNG.normal(size=(3, N)) + 1e6)
    before = Y.copy()
    sslmm(np.ones((N, 1)), Y, ONE)
    np.testing.assert_array_equal(Y, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e71])
def test_values_of_z_that_cannot_be_used(bad):
    Z = ONE.copy()
    Z[5, DONOR[5]] = bad
    with pytest.raises(ValueError, match=r"Z holds 1 value.*position \(5, "):
        sslmm(np.ones((N, 1)), RNG.normal(size=(2, N)), Z)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_dense_design_and_dense_values_are_not_copied(order):
    n, q, m = 20_000, 400, 60
    codes = RNG.integers(0, q, n)
    Z, X, Y = (np.asarray(A, order=order) for A in (np.eye(q)[codes], np.ones((n, 3)), RNG.normal(size=(m, n))))
    X[:, 1], X[:, 2] = codes % 2, RNG.normal(size=n)
    sslmm(X[:100], Y[:, :100], Z[:100])  # imports
    tracemalloc.start()
    found = sslmm(X, Y, Z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < Y.nbytes < Z.nbytes / 6
    np.testing.assert_allclose(found.ZY, Z.T @ Y.T, rtol=1e-12, atol=1e-12)
