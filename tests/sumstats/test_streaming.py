"""Cells chunk by chunk: the sums of any split, and what only shows while the cells are read."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lmm_gpu.backend.threads import in_threads, workers
from lmm_gpu.design.design import build_design
from lmm_gpu.estimation.projection import Projection
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.streaming import accumulate, cells_per_chunk, check_size_factors, count_totals
from lmm_gpu.sumstats.transform import Transform

N, M = 31, 5
RNG = np.random.default_rng(4)
OBS = pd.DataFrame({"donor": RNG.permutation(np.arange(N) % 4).astype(str), "x": RNG.normal(size=N)})
DESIGN = build_design("~ x + (1 | donor)", OBS)
VALUES = RNG.normal(size=(N, M))
COUNTS = RNG.poisson(2.0, size=(N, M))
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")


def chunked(Y, cells, transform=None, **options):
    """Sums over chunks of so many cells."""
    with open_source((Y, OBS)) as source:
        return accumulate(source, DESIGN, transform, pieces=list(source.slices(cells)), **options)


def memory_for(cells, m):
    """A budget that holds so many cells of m genes, by trial."""
    return next(memory for memory in range(1, 10**6) if m and fits(m, memory) == cells)


def fits(m, memory):
    try:
        return cells_per_chunk(m, memory)
    except MemoryError:
        return 0


def by_hand(Y):
    X, Z = DESIGN.X, DESIGN.Z.toarray()
    products = {"XX": X.T @ X, "XY": X.T @ Y, "ZX": Z.T @ X, "ZY": Z.T @ Y, "ZZ": Z.T @ Z}
    return products | {"Ynorm": (Y * Y).sum(axis=0), "Ysum": Y.sum(axis=0)}


def assert_statistics(found, Y):
    assert found.n == N
    for name, wanted in by_hand(Y).items():
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-12, atol=1e-12)


# --- sums -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, N + 3), st.sampled_from([np.asarray, sparse.csr_array, sparse.csc_matrix]))
def test_any_chunk_size_gives_the_same_statistics(cells, kind):
    assert_statistics(chunked(kind(VALUES), cells), VALUES)


@pytest.mark.parametrize("cells", [1, 4, N])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_any_chunk_size_gives_the_same_transform(cells, kind):
    factors = COUNTS.sum(axis=1) / COUNTS.sum(axis=1).mean()
    normalized = np.log1p(COUNTS / factors[:, None])
    assert_statistics(chunked(kind(COUNTS), cells, Transform("normalize", factors)), normalized)
    assert_statistics(chunked(kind(COUNTS), cells), np.log2(1.0 + COUNTS))
    assert_statistics(chunked(kind(COUNTS), cells, is_counts=False), COUNTS)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float32", "bool"])
def test_sums_are_in_float64(dtype):
    Y = (100 * (COUNTS > 0)).astype(dtype)  # squares do not fit 8 bits
    assert_statistics(chunked(Y, 7, is_counts=False), Y.astype(float))


def test_sparse_fixed_effects():
    obs = OBS.assign(plate=[f"P{cell % 9}" for cell in range(N)])
    design = build_design("~ 0 + plate + (1 | donor)", obs)
    with open_source((VALUES, obs)) as source:
        found = accumulate(source, design, None, memory=memory_for(6, M))
    np.testing.assert_array_equal(found.XX, design.X.T @ design.X)
    np.testing.assert_allclose(found.XY, design.X.T @ VALUES, rtol=1e-12)


def test_labels():
    found = chunked(VALUES, 8)
    assert found.features == tuple(f"Gene{gene}" for gene in range(1, M + 1))
    assert found.fixed_names == ("Intercept", "x")
    assert found.random_names == tuple(f"donor[{donor}]" for donor in range(4))
    assert found.component_names == ("donor",) and found.d == (4,)
    assert found.formula == "~ x + (1 | donor)"


def test_progress_counts_cells():
    steps = []
    chunked(VALUES, 9, progress=steps.append)
    assert steps == [9, 9, 9, 4]


def test_no_genes():
    with pytest.raises(ValueError, match="the matrix has no genes"), open_source((VALUES[:, :0], OBS)) as source:
        accumulate(source, DESIGN, None)


# --- counts ---------------------------------------------------------------------------------------


def test_the_transform_is_recorded():
    assert chunked(COUNTS, 10).transform == "log2p1"
    assert chunked(VALUES, 10).transform is None
    assert chunked(COUNTS, 10, is_counts=False).transform is None
    assert chunked(COUNTS, 10, Transform("log1p")).transform == "log1p"


@pytest.mark.parametrize("cells", [1, 5])
def test_counts_are_recognised_once(cells, caplog):
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        chunked(COUNTS, cells)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_a_later_chunk_that_is_not_counts_is_refused(kind):
    Y = COUNTS.astype(float)
    Y[25, 2] = 0.5
    with pytest.raises(ValueError, match=r"began with raw counts but cells 20 to 29 hold other values.*is_counts=True"):
        chunked(kind(Y), 10)
    with pytest.raises(ValueError, match=r"is_counts=True, but the matrix has values .* \(cells 20 to 29\)"):
        chunked(kind(Y), 10, is_counts=True)
    assert_statistics(chunked(kind(Y), 10, is_counts=False), Y)
    assert_statistics(chunked(kind(Y), N), Y)  # seen at once, they are no counts


@pytest.mark.parametrize("cells", [1, 2, N])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_empty_cells_do_not_decide(cells, kind):
    Y = COUNTS.copy()
    Y[[0, 1, 17]] = 0
    assert_statistics(chunked(kind(Y), cells), np.log2(1.0 + Y))


def test_zeros_alone_are_no_counts():
    found = chunked(np.zeros((N, M)), 4)
    assert found.transform is None and not found.Ynorm.any()


@pytest.mark.parametrize("cells", [3, N])
def test_bad_values_have_their_place_in_the_whole(cells):
    Y = VALUES.copy()
    Y[22, 3] = np.inf
    with pytest.raises(ValueError, match=r"^the matrix holds 1 value.*position \(22, 3\)"):
        chunked(Y, cells)


@pytest.mark.parametrize("cells", [1, 6, N])
def test_values_far_from_zero_keep_their_digits(cells):
    """All dense chunks are accumulated about one centre; a chunk of one cell does not hide the others."""
    Q = np.linalg.qr(DESIGN.X, mode="complete")[0][:, DESIGN.X.shape[1] :]
    found = chunked(VALUES + 1e6, cells)
    np.testing.assert_allclose(
        Projection.build(found).genes(found).sums.yry, ((Q.T @ VALUES) ** 2).sum(axis=0), rtol=1e-8
    )
    np.testing.assert_allclose(found.XY, DESIGN.X.T @ (VALUES + 1e6), rtol=1e-12)


# --- size factors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 6, N])
@pytest.mark.parametrize(
    ("kind", "dtype"), [(np.asarray, "uint8"), (np.asarray, "float16"), (sparse.csr_array, "uint8")]
)
def test_total_counts(cells, kind, dtype):
    Y = (COUNTS + 50).astype(dtype)  # totals that do not fit 8 bits
    with open_source((kind(Y), OBS)) as source:
        found = count_totals(source, pieces=list(source.slices(cells)))
    np.testing.assert_array_equal(found, Y.astype(float).sum(axis=1))


def test_cells_without_counts_have_no_size_factor():
    Y = COUNTS.copy()
    Y[[3, 9]] = 0
    message = r"total counts of 2 cell\(s\) are not positive.*remove these cells"
    with pytest.raises(ValueError, match=message), open_source((Y, OBS)) as source:
        count_totals(source)


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf])
def test_size_factors_are_positive_numbers(bad):
    with pytest.raises(ValueError, match=r"depth of 1 cell\(s\) are not positive numbers"):
        check_size_factors([1.0, bad, 2.0], "depth")


def test_size_factors_are_numbers():
    with pytest.raises(ValueError, match="depth: wanted numbers"):
        check_size_factors(["a", "b"], "depth")


# --- memory ---------------------------------------------------------------------------------------


@given(st.integers(1, 10**5), st.integers(1, 10**10))
def test_a_chunk_fits_its_budget(m, memory):
    cells = fits(m, memory)
    assert cells * 8 * m <= memory  # the values alone, as float64
    if cells == 0:
        with pytest.raises(MemoryError, match=rf"one cell needs [\d,]+ bytes, memory allows {memory:,}; raise memory"):
            cells_per_chunk(m, memory)


def test_the_refusal_names_what_would_do():
    with pytest.raises(MemoryError) as caught:
        cells_per_chunk(100, 10)
    wanted = int(str(caught.value).split(" bytes")[0].split()[-1].replace(",", ""))
    assert cells_per_chunk(100, wanted) == 1


def test_without_a_budget_there_is_always_a_chunk():
    assert cells_per_chunk(10**12, None) == 1
    assert cells_per_chunk(1, None) > 1000


# --- threads --------------------------------------------------------------------------------------


def test_threads_keep_the_order_and_pass_on_failures():
    tasks = list(range(50))
    assert list(in_threads(lambda task: task * task, tasks)) == [task * task for task in tasks]
    assert list(in_threads(abs, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda task: 1 / task, [2, 1, 0]))


@pytest.mark.skipif(workers() < 2, reason="a second thread needs a second processor")
def test_tasks_run_side_by_side():
    from threading import Barrier

    both = Barrier(2, timeout=30)  # passed only by two threads at once
    assert sorted(in_threads(lambda _: both.wait(), range(2))) == [0, 1]
