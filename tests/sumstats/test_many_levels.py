"""Random effects of tens of thousands of levels: Z'Z is never dense while cells are summed up, added or stored."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lmm_gpu
from lmm_gpu import SummaryStats, lmm, sslmm
from lmm_gpu.sumstats.gene_weights import weighted_products

N, Q = 16_000, 8_000
#: A dense Z'Z has 0.5 GB, a dense Z twice as much.
MOST_BYTES = 150_000_000
RNG = np.random.default_rng(0)
LEVEL, FEW = np.concatenate([RNG.permutation(Q), RNG.integers(0, Q, N - Q)]), RNG.integers(0, 40, N)
X, Y = np.column_stack([np.ones(N), RNG.normal(size=N)]), RNG.normal(size=(2, N)) + RNG.normal(size=(2, Q))[:, LEVEL]


def columns(codes, width):
    return sparse.csr_array((np.ones(len(codes)), (np.arange(len(codes)), codes)), shape=(len(codes), width))


Z = columns(LEVEL, Q)
CROSSED = sparse.csr_array(sparse.hstack([Z, columns(FEW, 40)]))
OBS = pd.DataFrame(
    {"x": X[:, 1], "level": pd.Categorical.from_codes(LEVEL, [f"l{i}" for i in range(Q)]), "few": FEW.astype(str)}
)


@pytest.fixture(autouse=True)
def _memory_is_limited():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_BYTES


def site(levels, cells=LEVEL):
    """Statistics of the cells of some levels, whose columns of Z are named."""
    kept = np.isin(cells, levels)
    codes = np.searchsorted(levels, cells[kept])
    frame = pd.DataFrame.sparse.from_spmatrix(columns(codes, len(levels)), columns=[f"l{i}" for i in levels])
    return sslmm(X[kept], Y[:, kept], frame, d=len(levels))


def assert_products(found, Z, Y=Y):
    assert sparse.issparse(found.ZZ)
    assert abs(found.ZZ - Z.T @ Z).max() == 0
    np.testing.assert_allclose(found.ZY, Z.T @ Y.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", [False, True])
def test_sums_of_cells(counts):
    values = np.rint(np.exp(np.abs(Y))) if counts else Y
    for matrix in (values, sparse.csr_array(values)):
        found = sslmm(X, matrix, CROSSED, d=(Q, 40))
        assert found.ZZ.nnz < 2e5
        np.testing.assert_allclose(found.ZY, CROSSED.T @ (np.log2(1 + values.T) if counts else values.T), rtol=1e-11)
    assert found.without(1).ZZ.shape == (Q, Q)
    assert_products(sslmm(X, Y, CROSSED), CROSSED)


def test_sums_of_a_stream():
    source = Y.T.astype("f4"), OBS
    found = lmm_gpu.summarize(source, "~ x + (1 | level) + (1 | few)", progress=False)
    assert sparse.issparse(found.ZZ)
    assert found.ZZ.nnz < 2e5


@pytest.mark.parametrize(
    "bounds", [(0, 6000, Q), (0, 2100, 4200), (0, 6000, 6010)], ids=["sparse", "dense", "sparse and dense"]
)
def test_sites_with_other_levels(bounds):
    total, *others = [site(np.arange(lo, hi)) for lo, hi in pairwise(bounds)]
    for other in others:
        total = total + other
    kept = np.isin(LEVEL, np.arange(bounds[-1]))
    assert_products(total, Z[kept, : bounds[-1]], Y[:, kept])


def test_sites_with_the_same_levels():
    rows = slice(0, N // 2), slice(N // 2, N)
    halves = [sslmm(X[some], Y[:, some], Z[some], d=Q) for some in rows]
    total = halves[0] + SummaryStats.concat([halves[1].select(slice(0, 1)), halves[1].select(slice(1, 2))])
    assert_products(total, Z)


def test_files_and_summary_level_data(tmp_path):
    found = sslmm(X, Y, Z)
    found.save(tmp_path / "sums.h5")
    assert_products(SummaryStats.load(tmp_path / "sums.h5"), Z)
    given = {name: found[name] for name in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "n")}
    assert_products(lmm(**given, max_iter=1, output_SS=True).summary_data, Z)


def test_weights_per_gene_that_are_equal():
    labels = {"d": (Q,), "features": ("a", "b")}
    assert_products(weighted_products(X, Z, Y.T, np.full((N, 2), 2.0), **labels).shared(), Z)
