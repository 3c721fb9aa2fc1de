"""Cells on a device are accumulated there: the statistics equal the host's, and no values are copied to it."""

from __future__ import annotations

import cupy_like
import cupyx_like
import numpy as np
import pandas as pd
import pytest
from cupy_like_device import Device
from scipy import sparse

import lmm_gpu
from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.streaming import accumulate, count_totals

N, M = 90, 12
RNG = np.random.default_rng(11)
COUNTS = RNG.poisson(0.8, (N, M)).astype(np.float32)
OBS = pd.DataFrame(
    {
        "donor": RNG.integers(0, 6, N).astype(str),
        "kind": RNG.integers(0, 3, N).astype(str),
        "depth": RNG.normal(size=N),
        "factor": RNG.uniform(0.5, 2, N),
    }
)
FORMULA = "~ kind + depth + (1 | donor) + (0 + depth | donor)"
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")
ON_DEVICE = {
    "dense": cupy_like.asarray,
    "csr": lambda Y: cupyx_like.of(sparse.csr_matrix(Y)),
    "csc": lambda Y: cupyx_like.of(sparse.csc_matrix(Y)),
}
HOW = {
    "auto-detected": {},
    "log1p": {"transform": "log1p"},
    "not counts": {"is_counts": False},
    "normalize": {"transform": "normalize"},
    "size factors": {"transform": "normalize", "size_factors": "factor"},
    "some cells": {"cells": "depth > -0.5"},
    "some genes": {"min_cells": 50, "min_mean": 0.7},
}


@pytest.fixture(params=ON_DEVICE)
def put(request):
    return ON_DEVICE[request.param]


def assert_same(found, wanted):
    assert (found.n, found.features, found.transform) == (wanted.n, wanted.features, wanted.transform)
    for name in STATISTICS:
        A, B = getattr(found, name), getattr(wanted, name)
        assert isinstance(A, np.ndarray)
        np.testing.assert_allclose(A, B, rtol=1e-12, atol=1e-12 * np.abs(B).max())


@pytest.mark.parametrize("how", HOW)
def test_the_statistics_are_those_of_the_host(put, how):
    wanted = lmm_gpu.summarize((COUNTS, OBS), FORMULA, **HOW[how])
    assert_same(lmm_gpu.summarize((put(COUNTS), OBS), FORMULA, **HOW[how]), wanted)


@pytest.mark.parametrize("pieces", [[slice(0, 7), slice(7, 50), slice(50, N)], [slice(i, i + 1) for i in range(N)]])
def test_any_chunks_give_the_same(put, pieces):
    design = build_design(FORMULA, OBS)
    with open_source((put(COUNTS), OBS)) as source, open_source((COUNTS, OBS)) as host:
        assert_same(accumulate(source, design, None, pieces=pieces), accumulate(host, design, None))
        np.testing.assert_array_equal(count_totals(source, pieces=pieces), COUNTS.sum(axis=1))


def test_only_sums_and_sizes_come_to_the_host(put):
    """Two numbers that say whether values are sound, and of each gene its sums: nothing as large as the cells."""
    values, taken = put(COUNTS), []
    original = cupy_like.Array.get
    cupy_like.Array.get = lambda x, *how, **options: taken.append(x.size) or original(x, *how, **options)
    try:
        lmm_gpu.summarize((values, OBS), FORMULA, transform="log1p")
    finally:
        cupy_like.Array.get = original
    names = lmm_gpu.summarize((COUNTS, OBS), FORMULA)
    columns = len(names.random_names) + len(names.fixed_names) + 2  # with sums and squares
    assert taken and max(taken) <= max(columns * M, N + 1)
    assert max(taken) < COUNTS.size


def test_a_matrix_on_another_device_is_accumulated_there(put):
    """Whatever device is the current one, of the thread that reads and of the one that computes."""
    with Device(1):
        values = put(COUNTS)
    for some in ({}, {"cells": "depth > 0"}, {"min_cells": 1, "transform": "normalize"}):
        assert_same(
            lmm_gpu.summarize((values, OBS), FORMULA, **some), lmm_gpu.summarize((COUNTS, OBS), FORMULA, **some)
        )


def test_objects_of_the_caller_are_not_modified():
    """CuPy sorts a matrix in place before it multiplies."""
    rows = sparse.csr_matrix(COUNTS)
    for row in range(N):  # entries of a row in the order of no index
        part = slice(rows.indptr[row], rows.indptr[row + 1])
        rows.indices[part], rows.data[part] = rows.indices[part][::-1].copy(), rows.data[part][::-1].copy()
    unsorted = sparse.csr_matrix((rows.data, rows.indices, rows.indptr), shape=rows.shape)
    values = cupyx_like.of(unsorted)
    assert not values.has_canonical_format
    wanted = lmm_gpu.summarize((COUNTS, OBS), FORMULA)
    assert_same(lmm_gpu.summarize((values, OBS), FORMULA), wanted)
    np.testing.assert_array_equal(to_numpy(values.data), unsorted.data)
    np.testing.assert_array_equal(to_numpy(values.indices), unsorted.indices)


def test_entries_of_one_place_are_added_before_they_are_transformed():
    genes = np.repeat(np.arange(N) % M, 2)  # (2 N,), each twice in its cell
    twice = sparse.csr_matrix((np.ones(2 * N), genes, np.arange(0, 2 * N + 1, 2)), shape=(N, M))
    wanted = lmm_gpu.summarize((2.0 * np.eye(M)[np.arange(N) % M], OBS), FORMULA, transform="log1p")
    assert_same(lmm_gpu.summarize((cupyx_like.of(twice), OBS), FORMULA, transform="log1p"), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_unsound_values_are_refused_with_their_place(put, bad):
    Y = COUNTS.astype(float)
    Y[40, 3] = bad
    with pytest.raises(ValueError, match=r"1 value\(s\) that are NaN, infinite or above 1e\+70, .* \(40, 3\)"):
        lmm_gpu.summarize((put(Y), OBS), FORMULA)


def test_negative_values_are_no_counts(put):
    Y = COUNTS.copy()
    Y[1, 1] = -2
    with pytest.raises(ValueError, match="log1p is for counts, but values go down to -2"):
        lmm_gpu.summarize((put(Y), OBS), FORMULA, transform="log1p")


def test_a_gene_far_from_zero_keeps_its_digits():
    Y = RNG.normal(size=(N, M))
    far, near = lmm_gpu.summarize((cupy_like.asarray(Y + 1e6), OBS), FORMULA), lmm_gpu.summarize((Y, OBS), FORMULA)
    assert far.centred is not None
    a, b = lmm_gpu.fit(far), lmm_gpu.fit(near)
    np.testing.assert_allclose(a.theta, b.theta, rtol=1e-6, atol=1e-9)


def test_an_anndata_holds_them(put):
    anndata = pytest.importorskip("anndata")

    class Holder:  # AnnData takes CuPy's arrays, and not those that are like them
        obs, var_names, layers, X = OBS, pd.Index([f"g{i}" for i in range(M)]), {}, put(COUNTS)
        raw, var = None, pd.DataFrame(index=var_names)

    wanted = lmm_gpu.summarize(anndata.AnnData(COUNTS, OBS.set_index(OBS.index.astype(str))), FORMULA)
    found = lmm_gpu.summarize(Holder, FORMULA)
    np.testing.assert_allclose(found.ZY, wanted.ZY, rtol=1e-12)


@pytest.mark.parametrize("number", [0, 1])
def test_sslmm_leaves_them_where_they_are(put, number):
    design = build_design(FORMULA, OBS)
    with Device(number):
        Y = put(np.ascontiguousarray(COUNTS.T))
    for options in ({}, {"nBlocks": 3}, {"is_counts": False}):
        found = lmm_gpu.sslmm(design.X, Y, design.Z, d=design.d, **options)
        assert_same(found, lmm_gpu.sslmm(design.X, COUNTS.T, design.Z, d=design.d, **options))


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_arrays_of_other_libraries(library):
    found = pytest.importorskip(library, reason=f"{library} is not installed")
    asarray = found.asarray if library == "torch" else found.numpy.asarray
    for how in HOW.values():
        assert_same(
            lmm_gpu.summarize((asarray(COUNTS), OBS), FORMULA, **how), lmm_gpu.summarize((COUNTS, OBS), FORMULA, **how)
        )
