"""Sums with a weight per gene and observation are those of rows scaled by the square roots of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from lmm_gpu.sumstats.assembly import cross_products
from lmm_gpu.sumstats.gene_weights import check_weights, column_pairs, weighted_products

N, M = 40, 5


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(N), rng.normal(size=N)])
    donor, batch = rng.integers(0, 6, N), rng.integers(0, 3, N)
    Z = np.hstack([np.eye(6)[donor], np.eye(6)[donor] * X[:, 1:], np.eye(3)[batch]])
    return X, Z, rng.normal(size=(N, M)), rng.uniform(0.2, 3.0, size=(N, M))


def dense_pairs(own, gene, q):
    ZZ = np.zeros((q, q))
    ZZ[own.rows, own.columns] = own.ZZ[:, gene]
    return ZZ + ZZ.T - np.diag(np.diag(ZZ))


@pytest.mark.parametrize("sparse", [False, True])
def test_products_are_those_of_scaled_rows(data, sparse):
    X, Z, Y, W = data
    found = weighted_products(X, scipy.sparse.csr_array(Z) if sparse else Z, Y, W, d=(6, 6, 3))
    for gene in range(M):
        root = np.sqrt(W[:, [gene]])
        wanted = cross_products(root * X, root * Z, root * Y[:, [gene]])
        np.testing.assert_allclose(found.own.XX[:, :, gene], wanted.XX, rtol=1e-12)
        np.testing.assert_allclose(found.own.ZX[:, :, gene], wanted.ZX, rtol=1e-12, atol=1e-13)
        ZZ = dense_pairs(found.own, gene, 15)
        np.testing.assert_allclose(ZZ, wanted.ZZ, atol=1e-12)
        for name in ("XY", "ZY", "Ynorm"):
            np.testing.assert_allclose(getattr(found, name)[..., gene], getattr(wanted, name)[..., 0], rtol=1e-12)
    np.testing.assert_allclose(found.own.log_weights, np.log(W).sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.own.mean, W.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.XX, X.T @ X, rtol=1e-13)


def test_blocks_of_genes_give_the_same(data, monkeypatch):
    X, Z, Y, W = data
    whole = weighted_products(X, Z, Y, W, d=(6, 6, 3))
    monkeypatch.setattr("lmm_gpu.sumstats.gene_weights._BLOCK_BYTES", 1)
    parts = weighted_products(X, Z, Y, W, d=(6, 6, 3))
    for name in ("XX", "ZX", "ZZ"):
        np.testing.assert_allclose(getattr(parts.own, name), getattr(whole.own, name), rtol=1e-13)


def test_genes_are_selected_with_their_weights(data):
    X, Z, Y, W = data
    whole = weighted_products(X, Z, Y, W, d=(6, 6, 3))
    for part, genes in ((whole.select(slice(1, 3)), [1, 2]), (whole.with_genes([4, 0]), [4, 0])):
        wanted = weighted_products(X, Z, Y[:, genes], W[:, genes], d=(6, 6, 3))
        np.testing.assert_allclose(part.own.ZZ, wanted.own.ZZ, rtol=1e-13)
        np.testing.assert_allclose(part.XY, wanted.XY, rtol=1e-13)


def test_a_component_is_dropped_with_its_pairs(data):
    X, Z, Y, W = data
    found = weighted_products(X, Z, Y, W, d=(6, 6, 3)).without(1)
    wanted = weighted_products(X, np.delete(Z, np.s_[6:12], axis=1), Y, W, d=(6, 3))
    order = np.lexsort((found.own.columns, found.own.rows))
    np.testing.assert_allclose(found.own.ZZ[order], wanted.own.ZZ, rtol=1e-13)
    np.testing.assert_allclose(found.own.ZX, wanted.own.ZX, rtol=1e-13)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_weights_that_are_negative_or_not_finite_are_refused(data, bad):
    X, Z, Y, W = data
    W[3, 2] = bad
    with pytest.raises(ValueError, match="1 of 200 weights are negative or not finite"):
        weighted_products(X, Z, Y, W)


def test_weights_of_another_shape_are_refused(data):
    X, Z, Y, W = data
    with pytest.raises(ValueError, match=r"weights have shape \(40, 4\); expected one per value, \(40, 5\)"):
        weighted_products(X, Z, Y, W[:, :4])


def test_weighted_statistics_do_not_add(data):
    X, Z, Y, W = data
    one = weighted_products(X, Z, Y, W)
    with pytest.raises(ValueError, match="fit all samples together"):
        one + one


def test_pairs_of_columns_are_those_that_share_an_observation(data):
    Z = data[1]
    (rows, columns), values = column_pairs(Z)
    ZZ = Z.T @ Z
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == set(zip(*np.nonzero(np.triu(ZZ)), strict=True))
    np.testing.assert_allclose(values.sum(axis=0), ZZ[rows, columns], atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e10])
def test_weights_of_one_gene_far_from_one_are_refused(data, scale):
    *_, Y, W = data
    W = W * np.where(np.arange(M) == 2, scale, 1.0)
    with pytest.raises(ValueError, match="divide the weights by their mean"):
        check_weights(Y, W)
