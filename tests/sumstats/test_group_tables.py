"""The compiled pass against SciPy's products and dense products: every format, type, design, split and thread count."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats import group_tables
from lmm_gpu.sumstats.gene_filter import GeneFilter
from lmm_gpu.sumstats.gene_queues import GeneQueues
from lmm_gpu.sumstats.group_tables import GroupTables
from lmm_gpu.sumstats.grouped_design import GroupedDesign
from lmm_gpu.sumstats.streaming import accumulate
from lmm_gpu.sumstats.transform import Transform

pytest.importorskip("numba", reason='needs: pip install ".[fast]"')

N, M = 90, 11
RNG = np.random.default_rng(5)
OBS = pd.DataFrame(
    {
        "donor": RNG.integers(0, 6, N).astype(str),
        "type": RNG.integers(0, 5, N).astype(str),
        "depth": RNG.uniform(0.5, 2.0, N),
        "x": RNG.normal(size=N),
    }
)
COUNTS = RNG.poisson(0.7, (N, M)) * RNG.integers(1, 4, (N, M))
COUNTS[3, 2], COUNTS[50, 7] = 5000, 1_000_000  # beyond the look-up
FORMULAS = [
    "~ x + type + (1 | donor)",
    "~ 1 + (1 | donor) + (1 | type)",
    "~ x + depth + (x || donor)",
    "~ 0 + x + (0 + x | donor)",
]
TRANSFORMS = {
    "log2p1": lambda y: np.log2(1 + y),
    "log1p": lambda y: np.log1p(y),
    "normalize": lambda y: np.log1p(y / OBS["depth"].to_numpy()[:, None]),
    None: lambda y: y,
}
WEIGHTS = RNG.uniform(0.2, 3.0, N)


def transform_of(name):
    return Transform(name, OBS["depth"].to_numpy() if name == "normalize" else None)


def by_hand(design, Y, weights=None):
    X, Z, W = design.X, design.Z.toarray(), np.diag(np.ones(N) if weights is None else weights)
    products = {"XX": X.T @ W @ X, "XY": X.T @ W @ Y, "ZX": Z.T @ W @ X, "ZY": Z.T @ W @ Y, "ZZ": Z.T @ W @ Z}
    return products | {"Ynorm": np.diag(W) @ (Y * Y), "Ysum": np.diag(W) @ Y}


def assert_statistics(found, wanted):
    for name, values in wanted.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12, atol=1e-13 * scale, err_msg=name)


def accumulated(Y, formula, transform, cells=N, **options):
    with open_source((Y, OBS)) as source:
        pieces = list(source.slices(cells))
        return accumulate(source, build_design(formula, OBS), transform_of(transform), pieces=pieces, **options)


@pytest.mark.parametrize("kind", [sparse.csr_array, np.asarray])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_products_of_any_design(kind, transform, formula, weights):
    wanted = by_hand(build_design(formula, OBS), TRANSFORMS[transform](COUNTS), weights)
    for fused in (True, False):
        found = accumulated(kind(COUNTS.astype("float32")), formula, transform, 40, fused=fused, weights=weights)
        assert_statistics(found, wanted)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "f4", "f8", ">f8"]
)
@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("kind", [sparse.csr_array, np.asarray])
def test_types(dtype, index, kind):
    if dtype == ">f8" and kind is sparse.csr_array:
        pytest.skip("SciPy has no sparse matrices of this type")
    Y = kind((COUNTS % 100).astype(dtype))
    if sparse.issparse(Y):
        Y.indices, Y.indptr = Y.indices.astype(index), Y.indptr.astype(index)
    wanted = by_hand(build_design(FORMULAS[0], OBS), np.log1p((COUNTS % 100).astype(dtype).astype(float)))
    assert_statistics(accumulated(Y, FORMULAS[0], "log1p", fused=True), wanted)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, N), st.integers(1, 5), st.sampled_from([sparse.csr_array, np.asarray]))
def test_bitwise_the_same_for_any_chunks_and_threads(cells, threads, kind):
    Y = kind(COUNTS)
    whole = accumulated(Y, FORMULAS[0], "log2p1", fused=True, threads=1)
    found = accumulated(Y, FORMULAS[0], "log2p1", cells, fused=True, threads=threads)
    for name in ("XY", "ZY", "Ynorm", "Ysum"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", [sparse.csr_array, np.asarray])
def test_bitwise_the_same_for_ranges_of_genes_that_stay_in_the_cache(kind, threads, monkeypatch):
    Y = kind(COUNTS)
    whole = accumulated(Y, FORMULAS[0], "normalize", fused=True, threads=1)
    monkeypatch.setattr(group_tables, "_TABLE_BYTES", 1)
    monkeypatch.setattr(group_tables, "_TILE_VALUES", 10)
    tables = GroupTables(GroupedDesign.of(build_design(FORMULAS[0], OBS)), M, fused=True, threads=threads)
    assert len(tables._ranges(M, 10 * M)) > threads
    found = accumulated(Y, FORMULAS[0], "normalize", fused=True, threads=threads)
    for name in ("XY", "ZY", "Ynorm", "Ysum"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_ranges_of_genes_add_chunks_in_order():
    """Threads do not wait for each other between chunks, and yet no chunk overtakes another within a gene."""
    order, queues, last = [], GeneQueues(2), threading.Event()

    def first_waits_for_last(lo, hi, chunk):
        if (chunk, lo) == (0, 0):
            assert last.wait(60)
        order.append((lo, chunk))
        if (chunk, lo) == (2, 1):
            last.set()
        return 1 << chunk

    added = [queues.add(partial(first_waits_for_last, chunk=chunk), [(0, 1), (1, 2)]) for chunk in range(3)]
    assert [one.flags() for one in added] == [1, 2, 4]
    assert order == [(1, 0), (1, 1), (1, 2), (0, 0), (0, 1), (0, 2)]
    queues.add(lambda lo, hi: order.clear() or 0, [(0, 1), (1, 2)])
    queues.add(lambda lo, hi: order.append((lo, hi)) or 0, [(0, 2)])  # other ranges wait
    assert order == [(0, 2)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [4, N])
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, np.asarray])
def test_some_cells_and_genes(kind, size, fused):
    cells, genes = RNG.random(N) < 0.6, RNG.random(M) < 0.7
    design = build_design(FORMULAS[0], OBS[cells])
    X, Z, Y = design.X, design.Z.toarray(), np.log1p(COUNTS[cells][:, genes])
    with open_source((kind(COUNTS), OBS)) as source:
        some = replace(source.where(cells), features_kept=genes, features=tuple(np.array(source.features)[genes]))
        found = accumulate(some, design, Transform("log1p"), pieces=list(source.slices(size)), fused=fused)
    assert_statistics(found, {"XY": X.T @ Y, "ZY": Z.T @ Y, "Ynorm": (Y * Y).sum(axis=0), "Ysum": Y.sum(axis=0)})


@pytest.mark.parametrize("index", [-1, N, 2**30])
def test_cells_outside_a_matrix_by_columns_are_refused(index):
    Y = sparse.csc_array(COUNTS)
    Y.indices = Y.indices.copy()
    Y.indices[5] = index
    with open_source((Y, OBS)) as source, pytest.raises(ValueError, match=f"a sparse index is {index}"):
        cells = np.arange(N) % 2 == 0
        accumulate(source.where(cells), build_design(FORMULAS[0], OBS[cells]), Transform("log1p"), fused=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_genes_by_columns(transform, formula):
    """CSC in pieces of genes gives the bits of CSR."""
    design, Y = build_design(formula, OBS), sparse.csc_array(COUNTS)
    grouped = GroupedDesign.of(design)
    tables, by_rows = (GroupTables(grouped, M, fused=True, threads=threads) for threads in (3, 1))
    rows = slice(0, N)
    for genes in (slice(0, 4), slice(4, M)):
        assert tables.add_fused(rows, genes, Y[:, genes], transform_of(transform)).flags() & 3 == 0
    by_rows.add_fused(rows, slice(0, M), sparse.csr_array(Y), transform_of(transform))
    np.testing.assert_array_equal(tables.sums, by_rows.sums)
    np.testing.assert_array_equal(tables.moments, by_rows.moments)


def test_genes_of_rows_in_pieces():
    design, Y = build_design(FORMULAS[0], OBS), sparse.csr_array(COUNTS)
    grouped = GroupedDesign.of(design)
    tables = GroupTables(grouped, M, fused=True)
    for genes in (slice(0, 4), slice(4, M)):
        tables.add_fused(slice(0, N), genes, Y[:, genes], Transform("log1p"))
    found = tables.products()
    wanted = by_hand(design, np.log1p(COUNTS))
    for name in ("XY", "ZY", "Ynorm", "Ysum"):
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [sparse.csr_array, np.asarray])
@pytest.mark.parametrize(
    ("value", "transform", "message"),
    [
        (np.nan, "log1p", r"holds 1 value\(s\) that are NaN.*position \(41, 3\)"),
        (np.inf, "log2p1", r"holds 1 value\(s\) that are NaN.*position \(41, 3\)"),
        (-1e90, "log2p1", r"holds 1 value\(s\) that are NaN.*position \(41, 3\)"),
        (-2.0, "log1p", "log1p is for counts, but values go down to -2"),
        (-2.0, "normalize", "normalize is for counts, but values go down to -2"),
    ],
)
def test_values_that_cannot_be_used(kind, value, transform, message):
    Y = COUNTS.astype(float)
    Y[41, 3] = value
    with pytest.raises(ValueError, match=message):
        accumulated(kind(Y), FORMULAS[0], transform, 20, fused=True)


def test_counts_that_are_none_later():
    Y = COUNTS.astype(float)
    Y[41, 3] = 0.5
    with open_source((sparse.csr_array(Y), OBS)) as source:
        design, pieces = build_design(FORMULAS[0], OBS), list(source.slices(20))
        with pytest.raises(ValueError, match="began with raw counts but cells 40 to 59 hold other values"):
            accumulate(source, design, None, pieces=pieces, fused=True)
        with pytest.raises(ValueError, match=r"is_counts=True, but the matrix has values .* \(cells 40 to 59\)"):
            accumulate(source, design, None, is_counts=True, pieces=pieces, fused=True)
        with pytest.warns(UserWarning, match=r"transform='log1p' is for raw counts.*\(cells 40 to 59\)"):
            accumulate(source, design, Transform("log1p"), pieces=pieces, fused=True)


def test_unsorted_and_outside_indices_are_found():
    tables = GroupTables(GroupedDesign.of(build_design(FORMULAS[0], OBS)), M, fused=True, threads=2)
    for kind, (long, short) in {sparse.csr_array: (N, M), sparse.csc_array: (M, N)}.items():
        for indices in ([0, 1], [2, 1], [1, 1], [1, short], [1, -1], [-1, 1]):
            Y = kind((N, M))
            Y.data, Y.indices = np.ones(2), np.array(indices, np.int32)
            Y.indptr = np.append(np.zeros(long // 2 + 1, np.int32), np.full(long - long // 2, 2, np.int32))
            assert tables.in_order(Y) == (indices == [0, 1]), (kind, indices)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array])
def test_duplicates_are_added_up_before_the_transform(kind):
    once = kind(COUNTS.astype("float32"))
    Y = kind((np.repeat(once.data / 2, 2), np.repeat(once.indices, 2), 2 * once.indptr), shape=once.shape)
    found = accumulated(Y, FORMULAS[0], "log1p", 20, fused=True)
    assert_statistics(found, by_hand(build_design(FORMULAS[0], OBS), np.log1p(COUNTS)))


def test_filters_count_the_stored_values():
    found = accumulated(sparse.csr_array(COUNTS), FORMULAS[0], "log1p", 20, fused=True, genes=GeneFilter(min_cells=40))
    kept = (COUNTS > 0).sum(axis=0) >= 40
    assert found.m == kept.sum() and 0 < kept.sum() < M
    np.testing.assert_allclose(found.Ysum, np.log1p(COUNTS[:, kept]).sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("cells", [40, N])
def test_sparse_genes_far_from_zero_keep_their_digits(fused, cells):
    """As dense ones do, among genes that are mostly zero."""
    values = RNG.normal(size=(N, M))
    values[:, 1] += 1e6
    values[:, 4] -= 1e7
    values[:, 6] = COUNTS[:, 6]
    design = build_design(FORMULAS[0], OBS)
    Q = np.linalg.qr(design.X, mode="complete")[0][:, design.p :]
    for kind in (sparse.csr_array, np.asarray):
        found = accumulated(kind(values), FORMULAS[0], None, cells, fused=fused)
        assert (found.centred.centre != 0).tolist() == [gene in (1, 4) for gene in range(M)]
        beta = np.linalg.solve(found.XX, found.centred.XY)
        left = found.centred.Ynorm - (found.centred.XY * beta).sum(axis=0)
        np.testing.assert_allclose(left, ((Q.T @ values) ** 2).sum(axis=0), rtol=1e-7)
        np.testing.assert_allclose(found.XY, design.X.T @ values, rtol=1e-11, atol=1e-9)
