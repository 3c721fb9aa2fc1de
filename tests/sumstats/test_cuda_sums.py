"""Sums over cells by CUDA kernels, on the real CuPy: those of the host, whatever the layout, type and order of values.

They run on a GPU, or on an emulated one: `pytest -p real_cupy`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

cupy = pytest.importorskip("cupy", reason="needs CuPy")

import lmm_gpu  # noqa: E402
from lmm_gpu.backend.devices import Cuda, cuda_count  # noqa: E402
from lmm_gpu.design.design import build_design  # noqa: E402
from lmm_gpu.io.source import open_source  # noqa: E402
from lmm_gpu.sumstats import cuda_sums, device_chunks, streaming  # noqa: E402
from lmm_gpu.sumstats.cuda_sums import DeviceTables  # noqa: E402
from lmm_gpu.sumstats.device_chunks import DeviceMatrix, by_cupy, copied  # noqa: E402
from lmm_gpu.sumstats.group_tables import GroupTables  # noqa: E402
from lmm_gpu.sumstats.grouped_design import GroupedDesign  # noqa: E402
from lmm_gpu.sumstats.streaming import accumulate, count_totals  # noqa: E402
from lmm_gpu.sumstats.transform import Transform  # noqa: E402

COUNT, REASON = cuda_count()
pytestmark = pytest.mark.skipif(not COUNT, reason=f"needs a CUDA device, or the emulation of one: {REASON}")
N, M = 90, 12
RNG = np.random.default_rng(11)
COUNTS = RNG.poisson(0.8, (N, M)).astype(np.float32)
OBS = pd.DataFrame(
    {
        "donor": RNG.integers(0, 6, N).astype(str),
        "kind": RNG.integers(0, 3, N).astype(str),
        "depth": RNG.normal(size=N),
        "weight": RNG.uniform(0.5, 3, N),
    }
)
FORMULA = "~ kind + depth + (1 | donor) + (0 + depth | donor)"
PIECES = [slice(0, 7), slice(7, 50), slice(50, N)]
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")
WEIGHTS = OBS["weight"].to_numpy()


@pytest.fixture
def added(monkeypatch):
    """Number of chunks that were added on the device."""
    shapes = []
    add = DeviceTables.add
    monkeypatch.setattr(DeviceTables, "add", lambda *args: shapes.append(args[3].shape) or add(*args))
    return shapes


def sums(Y, *, device, transform=None, weights=None, pieces=PIECES, formula=FORMULA, **options):
    with open_source((Y, OBS)) as source:
        design = build_design(formula, OBS)
        options |= {"weights": weights, "pieces": pieces}
        return accumulate(source, design, transform, **options, device=Cuda(0) if device == "cuda" else None)


def assert_same(found, wanted, rtol=1e-13):
    assert (found.n, found.features, found.transform) == (wanted.n, wanted.features, wanted.transform)
    for name in STATISTICS:
        A, B = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(A, B, rtol=rtol, atol=rtol * np.abs(B).max())


HOW = {
    "auto-detected": {},
    "log1p": {"transform": Transform("log1p")},
    "as they are": {"is_counts": False},
    "normalize": {"transform": Transform("normalize", WEIGHTS)},
    "weights": {"weights": WEIGHTS},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_chunks_from_the_host(added, layout, how):
    Y = COUNTS if layout == "dense" else sparse.csr_array(COUNTS)
    assert_same(sums(Y, device="cuda", **HOW[how]), sums(Y, device="cpu", **HOW[how]))
    assert added == [(43, M), (40, M)]  # the host took the first, to choose the transform


@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", "int32", "int64", "float64", ">f4"])
def test_types_of_values(added, kind):
    Y = COUNTS.astype(kind)
    for values in (Y, sparse.csr_array(Y)) if Y.dtype.isnative else (Y,):
        assert_same(sums(values, device="cuda"), sums(values, device="cpu"))
    assert added


def tables_of(Y, formula=FORMULA, weights=None, transform=None):
    """Sums and moments of all cells in one chunk."""
    design = GroupedDesign.of(build_design(formula, OBS))
    tables = DeviceTables(design, Y.shape[1], weights, cupy.zeros(1))
    tables.add(slice(0, N), slice(0, Y.shape[1]), copied(Y, Cuda(0)).arrived(), transform or Transform())
    return tables.sums.get()


def test_the_order_of_cells_does_not_matter_bit_by_bit(monkeypatch):
    """The sums are integers until all cells of a chunk are added."""
    Y = np.where(COUNTS > 0, RNG.normal(size=(N, M)), 0.0)
    wanted = tables_of(sparse.csr_array(Y), weights=WEIGHTS)
    order = RNG.permutation(N)
    monkeypatch.setitem(globals(), "OBS", OBS.iloc[order].reset_index(drop=True))
    for values in (sparse.csr_array(Y[order]), Y[order], sparse.csc_array(Y[order])):
        np.testing.assert_array_equal(tables_of(values, weights=WEIGHTS[order]), wanted)


def test_sums_are_as_good_as_exact_ones():
    """Of genes on very different scales; an outlier costs the others 2^-62 of its size, and no more."""
    Y = RNG.normal(size=(N, M)) * 10.0 ** np.linspace(-60, 60, M)
    Y[5] *= 1e6
    found = tables_of(sparse.csr_array(Y))
    codes = np.unique(OBS["donor"], return_inverse=True)[1]
    for group in range(6):
        for gene in range(M):
            values = Y[codes == group, gene]
            grid = 2.0**-61 * np.abs(Y[:, gene]).max()
            assert abs(found[group, gene] - math.fsum(values)) <= len(values) * (grid + 2e-16 * np.abs(values).max())
    squares = [math.fsum(y * y for y in column) for column in Y.T.tolist()]
    np.testing.assert_allclose(found[-1], squares, rtol=4e-16)


def test_genes_far_from_zero_and_nearly_constant_ones(added):
    Y = RNG.normal(size=(N, M)) + 1e6
    for values in (Y, sparse.csr_array(Y), OBS["donor"].astype(float).to_numpy()[:, None] + 1e-9 * Y):
        some = {"is_counts": False, "pieces": [slice(0, 50), slice(50, 70), slice(70, N)]}
        found, wanted = (sums(values, device=device, **some) for device in ("cuda", "cpu"))
        assert_same(found, wanted)
        assert (found.centred is None, found.within is None) == (wanted.centred is None, wanted.within is None)
    assert added == [(20, M)] * 2  # of the first; the others are the host's


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_values_that_cannot_be_used(layout):
    put = sparse.csr_array if layout == "csr" else np.asarray
    bad = COUNTS.astype(float)
    bad[40, 3] = np.nan
    with pytest.raises(ValueError, match=r"NaN, infinite or above 1e\+70, the first at position \(40, 3\)"):
        sums(put(bad), device="cuda")
    bad[40, 3] = -2
    with pytest.raises(ValueError, match="log1p is for counts, but values go down to -2"):
        sums(put(bad), device="cuda", transform=Transform("log1p"))
    bad[40, 3] = 0.5
    with pytest.raises(ValueError, match="cells 7 to 49 hold other values"):
        sums(put(bad), device="cuda")


def test_memory_that_is_short_leaves_the_sums_to_the_host(monkeypatch, added, caplog):
    monkeypatch.setattr(Cuda, "free_bytes", lambda self: 100)
    caplog.set_level("INFO", logger="lmm_gpu")
    assert_same(sums(sparse.csr_array(COUNTS), device="cuda"), sums(COUNTS, device="cpu"))
    assert not added and "the host adds up" in caplog.text


def test_the_public_functions(monkeypatch, added):
    monkeypatch.setattr(streaming, "plan_pieces", lambda *args, **options: PIECES)
    for some in ({"min_cells": 50, "min_mean": 0.7}, {"transform": "normalize"}):
        found = lmm_gpu.summarize((sparse.csr_array(COUNTS), OBS), FORMULA, device="cuda", **some)
        assert_same(found, lmm_gpu.summarize((COUNTS, OBS), FORMULA, device="cpu", **some))
    assert added


def test_cells_of_cupyx_are_counted_and_added_up_where_they_lie():
    csp = pytest.importorskip("cupyx.scipy.sparse")
    host = sparse.csr_matrix(COUNTS)
    Y = csp.csr_matrix(tuple(map(cupy.asarray, (host.data, host.indices, host.indptr))), shape=host.shape)
    design = build_design(FORMULA, OBS)
    with open_source((Y, OBS)) as source:
        np.testing.assert_array_equal(count_totals(source, pieces=PIECES), COUNTS.sum(axis=1))
        assert_same(accumulate(source, design, None, pieces=PIECES), sums(COUNTS, device="cpu"))


def test_a_tensor_of_pytorch_is_taken_without_a_copy(monkeypatch):
    x = cupy.ones((2, 3))
    tensor = SimpleNamespace(device=SimpleNamespace(type="cuda", index=0), __dlpack__=None)
    monkeypatch.setattr(device_chunks.array_api_compat, "is_torch_array", lambda Y: Y is tensor)
    monkeypatch.setattr(cupy, "from_dlpack", lambda given: x if given is tensor else None)
    assert by_cupy(tensor) is x and by_cupy(x) is x


def test_an_index_outside_of_the_matrix_is_refused():
    design = GroupedDesign.of(build_design(FORMULA, OBS))
    tables = DeviceTables(design, M, None, cupy.zeros(1))
    Y = DeviceMatrix(cupy.ones(1), cupy.asarray([M]), cupy.asarray([0] + [1] * N), (N, M))
    assert tables.add(slice(0, N), slice(0, M), Y, Transform()) == 1
    assert not tables.sums.any()


def test_tables_agree_with_those_of_the_host():
    design = GroupedDesign.of(build_design("~ kind + depth + (depth | donor)", OBS))
    host, device = GroupTables(design, M, WEIGHTS), DeviceTables(design, M, WEIGHTS, cupy.zeros(1))
    Y = sparse.csr_array(COUNTS)
    host.add(slice(0, N), slice(0, M), Y)
    device.add(slice(0, N), slice(0, M), copied(Y, Cuda(0)).arrived(), Transform())
    np.testing.assert_allclose(device.sums.get()[: design.groups], host.sums, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(device.sums.get()[design.groups :].T, host.moments, rtol=1e-14, atol=1e-14)
    assert cuda_sums.tables_for(design, M, None, cupy.zeros(1)) is not None


def test_an_index_outside_of_cupyx_matrices_is_an_error():
    csp = pytest.importorskip("cupyx.scipy.sparse")
    Y = csp.csr_matrix((cupy.ones(N), cupy.full(N, M + 3), cupy.arange(N + 1)), shape=(N, M))
    with open_source((Y, OBS)) as source, pytest.raises(ValueError, match="out of range in cells 0 to 6"):
        accumulate(source, build_design(FORMULA, OBS), None, pieces=PIECES)
