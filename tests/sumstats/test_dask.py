"""Accumulation of chunks on the workers that hold them: any chunking gives the same sums, also if workers die."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

pytest.importorskip("dask.array", reason='needs: pip install ".[dask]"')
pytest.importorskip("distributed", reason='needs: pip install ".[dask]"')

import dask
import dask.array as da
import distributed

import lmm_gpu
from lmm_gpu.backend.dask_client import is_dask
from lmm_gpu.design.design import build_design
from lmm_gpu.estimation.dask_fits import _genes, _ranges, fit_block
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.projection import Projection
from lmm_gpu.io import stored_arrays
from lmm_gpu.io.source import open_source
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats import dask_tasks
from lmm_gpu.sumstats.dask_sums import _Grid, _pieces, read_on_workers, reduce_chunks
from lmm_gpu.sumstats.dask_tasks import ChunkSums, Rows, add, telling
from lmm_gpu.sumstats.streaming import accumulate
from lmm_gpu.sumstats.transform import Transform, recognise

N, M = 240, 9
RNG = np.random.default_rng(12)
DONOR = RNG.permutation(np.arange(N) % 8)
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "arm": np.where(DONOR < 4, "ctrl", "stim"),
        "x": RNG.normal(size=N),
        "depth": RNG.uniform(0.5, 2.0, N),
    },
    index=[f"cell{i}" for i in range(N)],
)
GENES = [f"g{i}" for i in range(M)]
FORMULA = "~ arm + x + (1 | donor)"
COUNTS = RNG.poisson(np.exp(0.3 * RNG.normal(size=(8, M)))[DONOR], size=(N, M))
VALUES = RNG.normal(size=(N, M)) + RNG.normal(size=(8, M))[DONOR]
DESIGN = build_design(FORMULA, OBS)
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")


@pytest.fixture
def here():
    """Tasks of dask one after the other in this thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(params=[False, True])
def compiled(request, monkeypatch):
    """Both passes over values: products of SciPy, and the compiled one, which small chunks do not use."""
    if request.param:
        pytest.importorskip("numba")
        monkeypatch.setattr(dask_tasks, "FUSED_VALUES", 0)
        real = dask_tasks._group_sums
        monkeypatch.setattr(
            dask_tasks, "_group_sums", lambda *given: pytest.fail("not compiled") if given[2].shape[0] else real(*given)
        )
    return request.param


def by_hand(Y):
    X, Z = DESIGN.X, DESIGN.Z.toarray()
    products = {"XX": X.T @ X, "XY": X.T @ Y, "ZX": Z.T @ X, "ZY": Z.T @ Y, "ZZ": Z.T @ Z}
    return products | {"Ynorm": (Y * Y).sum(axis=0), "Ysum": Y.sum(axis=0)}


def assert_statistics(found, Y):
    assert found.n == N
    for name, wanted in by_hand(Y).items():
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-11, atol=1e-11, err_msg=name)


def assert_same_fit(found, wanted):
    assert found.status.tolist() == wanted.status.tolist()
    for name in ("coef", "se", "theta", "p"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, err_msg=name)


def summed(Y, transform=None, **options):
    with open_source((Y, OBS)) as source:
        return reduce_chunks(source, DESIGN, transform, **options)


def chunked(Y, rows, columns, form=None):
    """A dask array of `Y` in such chunks."""
    array = da.from_array(Y, chunks=(rows, columns))
    return array.map_blocks(form, dtype=Y.dtype) if form else array


@st.composite
def splits(draw, size):
    """Widths of chunks, some of them empty."""
    edges = sorted(draw(st.lists(st.integers(0, size), max_size=5)))
    return tuple(hi - lo for lo, hi in zip([0, *edges], [*edges, size], strict=True))


# --- the sums -------------------------------------------------------------------------------------


FORMS = [None, sparse.csr_array, sparse.csr_matrix, sparse.csc_array]


@settings(deadline=None, max_examples=60)
@given(splits(N), splits(M), st.sampled_from(FORMS), st.sampled_from([10**9, 0]))
def test_any_chunking_gives_the_same_sums(rows, columns, form, few):
    with dask.config.set(scheduler="synchronous"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask_tasks, "FUSED_VALUES", few)
        assert_statistics(summed(chunked(VALUES, rows, columns, form)), VALUES)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("form", [None, sparse.csr_array])
def test_counts_of_any_type(here, caplog, dtype, form):
    found = summed(chunked(COUNTS.astype(dtype), 50, 4, form))
    assert_statistics(found, np.log2(1.0 + COUNTS))
    assert found.transform == "log2p1"
    assert sum("raw counts recognised" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(("transform", "values"), [("log1p", np.log1p(COUNTS)), (None, COUNTS)])
def test_a_transform_that_is_given(here, compiled, transform, values):
    options = {} if transform else {"is_counts": False}
    assert_statistics(summed(chunked(COUNTS, 70, 5), transform and Transform(transform), **options), values)


@pytest.mark.parametrize("size_factors", [None, "depth"])
def test_normalized(here, compiled, size_factors):
    totals = COUNTS.sum(axis=1) if size_factors is None else OBS["depth"].to_numpy()
    factors = totals / totals.mean() if size_factors is None else totals
    found = lmm_gpu.summarize(
        (chunked(COUNTS, 70, 4, sparse.csr_array), OBS), FORMULA, transform="normalize", size_factors=size_factors
    )
    assert_statistics(found, np.log1p(COUNTS / factors[:, None]))


@pytest.mark.parametrize("rows", [(1, 239), (0, 40, 200), (240,)])
def test_far_from_zero_no_digits_are_lost(here, compiled, rows):
    """y'Ry of y + 1e7 is that of y, which sums about zero cannot tell."""
    far = VALUES.astype(np.longdouble) + np.where(np.arange(M) % 2, 1e7, 0.0)
    found = summed(chunked(far.astype(float), rows, 4))
    X = DESIGN.X
    residuals = VALUES - X @ np.linalg.lstsq(X, VALUES, rcond=None)[0]
    wanted = (residuals**2).sum(axis=0)
    np.testing.assert_allclose(Projection.build(found).genes(found).sums.yry, wanted, rtol=1e-6)


def test_sparse_chunks_among_dense_ones(here):
    def form(block, block_id=None):
        return sparse.csr_array(block) if block_id[0] % 2 else block

    array = da.from_array(VALUES + 1e3, chunks=(50, 5)).map_blocks(form, dtype=float)
    assert_statistics(summed(array), VALUES + 1e3)


def test_anndata_with_a_dask_array(here):
    anndata = pytest.importorskip("anndata", reason='needs: pip install ".[io]"')
    cells = anndata.AnnData(
        chunked(np.zeros((N, M)), 60, M), OBS.astype({"arm": "category"}), pd.DataFrame(index=GENES)
    )
    cells.layers["values"] = chunked(VALUES, 60, 4)
    found = lmm_gpu.summarize(cells, FORMULA, layer="values")
    assert_statistics(found, VALUES)
    assert found.features == tuple(GENES)


def test_a_whole_fit(here):
    wanted = lmm_gpu.fit((COUNTS, OBS), FORMULA, features=GENES)
    assert_same_fit(lmm_gpu.fit((chunked(COUNTS, 100, 4), OBS), FORMULA, features=GENES), wanted)


@pytest.mark.parametrize("rows", [(1, 239), (0, 40, 200), (60,) * 4])
@pytest.mark.parametrize("form", [None, sparse.csr_array])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_cells": 60},
        {"min_mean": 0.5, "is_counts": False},
        {"transform": "normalize", "target": 20.0, "min_cells": 60},
        {"transform": "normalize"},
    ],
)
def test_some_cells_and_some_genes(here, rows, form, options):
    """As taking them by hand does; whole chunks are left out, and single cells of others."""
    counts = COUNTS * (np.arange(N)[:, None] % (1 + np.arange(M)) == 0) + np.eye(N, M, dtype=int)  # rarer and rarer
    counts[counts.sum(axis=1) == 0, 0] = 1
    obs = OBS.assign(place=np.arange(N))
    kept = (obs["place"] >= 61) & (obs["x"] > -1)
    some = {name: value for name, value in options.items() if not name.startswith("min_")}
    found = lmm_gpu.summarize(
        (chunked(counts, rows, (5, 4), form), obs), FORMULA, cells="place >= 61 and x > -1", features=GENES, **options
    )
    counts, obs = counts[kept], obs[kept]
    seen = (counts > 0).sum(axis=0) >= options.get("min_cells", 0)
    seen &= counts.mean(axis=0) >= options.get("min_mean", 0)
    assert seen.any() and seen.all() == (not options.keys() & {"min_cells", "min_mean"})
    wanted = lmm_gpu.summarize((counts, obs), FORMULA, features=GENES, **some)
    assert found.features == tuple(np.array(GENES)[seen])
    assert (found.n, found.transform, found.terms) == (kept.sum(), wanted.transform, wanted.terms)
    for name in STATISTICS:
        values = getattr(wanted, name)
        values = values[..., seen] if values.shape[-1] == M else values
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-11, atol=1e-11, err_msg=name)


def test_no_gene_is_seen_enough(here):
    with pytest.raises(ValueError, match="no gene has min_cells=241 and min_mean=None: the largest number of cells"):
        lmm_gpu.summarize((chunked(COUNTS, 60, 4), OBS), FORMULA, min_cells=241)


def test_a_position_is_among_the_cells_that_are_taken(here):
    values, obs = VALUES.copy(), OBS.assign(place=np.arange(N))
    values[150, 3] = np.nan
    with pytest.raises(ValueError, match=r"at position \(50, 3\)"):
        lmm_gpu.summarize((chunked(values, 60, M), obs), FORMULA, cells="place >= 100")


def test_no_checkpoint_of_what_dask_computes(here, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint='.*' is for cells that are read here.*leave out checkpoint"):
        lmm_gpu.summarize((chunked(COUNTS, 60, 4), OBS), FORMULA, checkpoint=tmp_path / "sums.h5")


def test_entries_stored_twice_are_added(here, compiled):
    """Before the transform, as it is elsewhere."""
    data, indices, indptr = np.ones(2 * N), np.zeros(2 * N, dtype=np.int32), np.arange(0, 2 * N + 1, 2)
    Y = sparse.csr_array((data, indices, indptr), shape=(N, 1))  # 1 + 1 in each cell
    array = da.map_blocks(lambda: Y.copy(), chunks=((N,), (1,)), dtype=float, meta=sparse.csr_array((0, 0)))
    found = summed(array, Transform("log2p1"))
    np.testing.assert_allclose(found.Ysum, [N * np.log2(3.0)], rtol=1e-12)


def test_terms_are_those_of_the_design(here):
    wanted = lmm_gpu.fit((VALUES, OBS), FORMULA).anova()
    found = lmm_gpu.fit((chunked(VALUES, 60, 4), OBS), FORMULA).anova()
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-8)


def test_a_chunk_is_accumulated_in_the_task_that_makes_it(here):
    """No chunk is the result of a task, which could be moved."""
    made = da.map_blocks(lambda block_info: block_info, chunks=((80,) * 3, (5, 4)), dtype=float, meta=np.zeros((0, 0)))
    array = (made + 1) * 2
    with open_source((array, OBS)) as source:
        parts = _Grid(source, None).each(lambda Y: 0)
    left = set(parts[0, 0].__dask_graph__())
    assert parts.shape == (3, 2)
    for stage in (made, array):
        assert not left & {(stage.name, i, j) for i in range(3) for j in range(2)}


def test_additions_change_nothing_that_they_are_given():
    """A task may run again when a worker died."""
    parts = [ChunkSums(*(np.full(2, value) for _ in range(2)), cells=np.ones(2)) for value in (1.0, 5.0, 1.0)]
    total = add(parts)
    assert total.sums.tolist() == [7.0, 7.0] and total.cells.tolist() == [3.0, 3.0] and total.total is None
    assert [part.moments.tolist() for part in parts] == [[1.0, 1.0], [5.0, 5.0], [1.0, 1.0]]


@pytest.mark.parametrize("dtype", [bool, np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("values", [[0, 0], [0, 3], [3, -1], [2, 0.5], [0.5, -2]])
@pytest.mark.parametrize("form", [np.array, sparse.csr_array])
def test_one_value_decides_whether_they_are_counts(dtype, values, form):
    """As looking at all of them does."""
    Y = form(np.array([values], dtype=float).astype(dtype))
    found = telling(Rows("Y", 0), Y)
    assert found.size <= 1
    assert found.any() == bool(Y.toarray().any() if sparse.issparse(Y) else Y.any())
    assert recognise(found, None).name == recognise(Y, None).name


# --- what only shows on the way -------------------------------------------------------------------


def test_zeros_decide_nothing(here, caplog):
    late = COUNTS * (np.arange(N) >= 100)[:, None]
    assert summed(chunked(late, 30, 4)).transform == "log2p1"
    assert summed(chunked(np.zeros((N, M)), 30, 4)).transform is None


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("few", [10**9, 0])
def test_no_counts_after_all(here, monkeypatch, few, form):
    monkeypatch.setattr(dask_tasks, "FUSED_VALUES", few)
    values = COUNTS.astype(float)
    values[200, 7] = 0.5
    message = "began with raw counts but cells 180 to 239 hold other values; say which it is: is_counts=True or False"
    with pytest.raises(ValueError, match=message):
        summed(chunked(values, 60, 4, form))
    assert_statistics(summed(chunked(values, 60, 4, form), is_counts=False), values)
    with pytest.raises(ValueError, match=r"is_counts=True, but the matrix has values .* \(cells 180 to 239\)"):
        summed(chunked(values, 60, 4, form), is_counts=True)
    with pytest.warns(UserWarning, match="transform='log1p' is for raw counts"):
        assert_statistics(summed(chunked(values, 60, 4, form), Transform("log1p")), np.log1p(values))
    values[200, 7] = -1
    with pytest.raises(ValueError, match="log1p is for counts, but values go down to -1"):
        summed(chunked(values, 60, 4, form), Transform("log1p"))


@pytest.mark.parametrize("where", [(3, 1), (200, 7)])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("few", [10**9, 0])
def test_not_a_number(here, monkeypatch, where, form, few):
    monkeypatch.setattr(dask_tasks, "FUSED_VALUES", few)
    values = VALUES.copy()
    values[where] = np.nan
    with pytest.raises(ValueError, match=rf"the matrix holds 1 value\(s\) that are NaN.* at position \({where[0]}, "):
        summed(chunked(values, 60, M, form))


@pytest.mark.parametrize("rows", [(240,), (70, 80, 90), (0, 200, 40)])
@pytest.mark.parametrize("columns", [M, 4])
def test_genes_that_are_nearly_constant_within_donors_keep_their_digits(here, rows, columns):
    """As `accumulate` does, though no chunk but the first knows which cell of a donor comes first."""
    order = np.argsort(DONOR % 4, kind="stable")  # donors are not in all chunks
    spread = np.where(np.arange(M) % 2, 1.0, 1e-6)
    near = (100 * RNG.normal(size=(8, M))[DONOR] + 100 * spread * VALUES)[order]
    obs = OBS.iloc[order]
    design = build_design("~ arm + (1 | donor)", obs)
    with open_source((chunked(near, rows, columns), obs)) as source:
        found = reduce_chunks(source, design, None)
    exact, donor = near.astype(np.longdouble), DONOR[order]
    means = np.stack([exact[donor == d].mean(axis=0) for d in range(8)])
    wanted = ((exact - means[donor]) ** 2).sum(axis=0).astype(float)
    within = found.within
    left = within.Ynorm - (within.ZY**2 / np.diag(found.ZZ)[:, None]).sum(axis=0)
    np.testing.assert_allclose(left[::2], wanted[::2], rtol=1e-6)
    np.testing.assert_allclose(within.XY, design.X.T @ (near - design.Z @ within.centre), rtol=1e-9, atol=1e-6)
    assert (within.centre != 0).any(axis=0)[::2].all()


def test_no_numbers(here):
    with pytest.raises(ValueError, match="holds values of type <U1; wanted numbers"):
        summed(da.from_array(np.full((N, M), "a"), chunks=100))


def test_no_genes(here):
    with pytest.raises(ValueError, match="the matrix has no genes"):
        summed(da.zeros((N, 0)))


def test_a_cell_without_counts(here):
    with pytest.raises(ValueError, match=r"the total counts of 1 cell\(s\) are not positive"):
        lmm_gpu.summarize((chunked(COUNTS * (np.arange(N) != 5)[:, None], 60, 4), OBS), FORMULA, transform="normalize")


def test_obs_of_other_cells(here):
    with pytest.raises(ValueError, match="obs has 239 rows, but the matrix has 240 rows"):
        lmm_gpu.summarize((chunked(VALUES, 60, 4), OBS[1:]), FORMULA)


@pytest.mark.parametrize("scheduler", ["nonsense", "nonsense://here", 3.5, "tcp://127.0.0.1:1"])
def test_no_scheduler_there(scheduler):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300ms"}),
        pytest.raises(ValueError, match=r"cannot use scheduler=.*; wanted a dask Client or the address"),
    ):
        lmm_gpu.summarize((VALUES, OBS), FORMULA, scheduler=scheduler)


def test_without_dask(monkeypatch):
    """One sentence, with what to install."""
    import importlib

    real = importlib.import_module

    def without(name, *rest):
        if name.partition(".")[0] in ("dask", "distributed"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ValueError, match=r'scheduler= needs the package distributed: pip install "lmm-gpu\[dask\]"'):
        lmm_gpu.fit((VALUES, OBS), FORMULA, scheduler="tcp://127.0.0.1:8786")
    lmm_gpu.fit((VALUES, OBS), FORMULA)


def test_dask_objects_are_recognised():
    assert is_dask(da.zeros(3))
    assert not any(is_dask(other) for other in (np.zeros(3), sparse.csr_array((2, 2)), pd.DataFrame(), None))


# --- blocks of genes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "memory"), [(0, None), (1, None), (2, None), (4, None), (2, 10_000), (50, None)])
def test_blocks_for_every_thread(threads, memory):
    ss = summed_here(VALUES)
    ranges = _ranges(ss, memory, threads)
    assert [lo for lo, _ in ranges] == [0, *[hi for _, hi in ranges[:-1]]] and ranges[-1][1] == M
    assert max(hi - lo for lo, hi in ranges) <= -(-M // max(threads, 1))


def summed_here(Y):
    with open_source((Y, OBS)) as source:
        return accumulate(source, DESIGN, None, is_counts=False)


@pytest.mark.filterwarnings("error")
def test_a_block_equals_a_separate_fit():
    """Which warns of nothing: whoever puts blocks together does."""
    ss = summed_here(VALUES * (np.arange(M) != 4))
    part = fit_block(ss.select(slice(0)), _genes(ss.select(slice(3, 7))), FitOptions(block=M))
    with pytest.warns(UserWarning, match="1 of 9 features do not vary"):
        wanted = fit_summary(ss).estimates
    for name, values in vars(part).items():
        atol = 1e-9 if name == "dlogL" else 0.0  # zero at the optimum: what is left is rounding
        np.testing.assert_allclose(values, getattr(wanted, name)[..., 3:7], rtol=1e-10, atol=atol, err_msg=name)


# --- on workers -----------------------------------------------------------------------------------


def two_processes():
    """A cluster of two processes of little memory."""
    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        memory_limit="768MiB",
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )


@pytest.fixture(scope="module")
def cluster():
    with two_processes() as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def doomed():
    """A client with separate workers: a worker killed while it starts may not be restarted."""
    with two_processes() as cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


def pids(client):
    return set(client.run(os.getpid).values())


def mortal(Y, rows, marker, columns=M):
    """A dask array whose third chunk kills the worker that makes it, once."""

    def make(block_info=None):
        (lo, hi), (left, right) = block_info[None]["array-location"]
        if lo == 2 * rows and not os.path.exists(marker):
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sparse.csr_array(Y[lo:hi, left:right])

    chunks = da.core.normalize_chunks((rows, columns), Y.shape)
    return da.map_blocks(make, chunks=chunks, dtype=Y.dtype, meta=sparse.csr_array((0, 0), dtype=Y.dtype))


@pytest.mark.parametrize("columns", [M, 4])
def test_on_workers(client, columns):
    wanted = lmm_gpu.fit((COUNTS, OBS), FORMULA, transform="normalize", features=GENES)
    array = chunked(COUNTS, 50, columns, sparse.csr_array)
    found = lmm_gpu.fit((array, OBS), FORMULA, transform="normalize", features=GENES, scheduler=client)
    assert_same_fit(found, wanted)
    pd.testing.assert_frame_equal(found.test("arm[T.stim]"), wanted.test("arm[T.stim]"), rtol=1e-8)


@pytest.mark.parametrize("formula", [FORMULA, "~ arm + (1 | donor) + (0 + x | donor)"])
def test_a_worker_is_killed_while_it_reads(doomed, tmp_path, formula):
    before, marker = pids(doomed), tmp_path / "killed"
    found = lmm_gpu.fit((mortal(COUNTS, 20, str(marker)), OBS), formula, is_counts=True, scheduler=doomed)
    assert marker.exists()
    assert_same_fit(found, lmm_gpu.fit((COUNTS, OBS), formula, is_counts=True))
    doomed.wait_for_workers(2, timeout=60)
    assert len(pids(doomed) & before) == 1


def test_a_worker_is_killed_while_it_fits(doomed, tmp_path):
    marker = tmp_path / "killed"

    class Killer(distributed.WorkerPlugin):
        name = "killer"

        def __init__(self, marker):
            self.marker = marker

        def transition(self, key, start, finish, **_):
            if finish == "executing" and str(key).startswith("fit_block-") and not os.path.exists(self.marker):
                Path(self.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    doomed.register_plugin(Killer(str(marker)))
    found = lmm_gpu.fit(summed_here(VALUES), scheduler=doomed)
    assert marker.exists()
    assert_same_fit(found, fit_summary(summed_here(VALUES)))


def test_a_chunk_that_always_kills():
    """One sentence, not a trace of the scheduler's."""

    def make(block_info=None):
        os.kill(os.getpid(), signal.SIGKILL)

    array = da.map_blocks(make, chunks=((N,), (M,)), dtype=float, meta=np.zeros((0, 0)))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        two_processes() as cluster,
        pytest.raises(MemoryError, match=r"workers were killed repeatedly by the same task.*rechunk to fewer cells"),
    ):
        lmm_gpu.summarize((array, OBS), FORMULA, scheduler=cluster)


def test_more_than_the_memory_of_the_workers(client):
    """Made on the workers, chunk by chunk, 1.6 GiB in all."""
    cells, genes, count = 2000, 1000, 104
    donor = np.arange(cells * count) % 50
    obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 25, "a", "b")})

    def make(block_info=None):
        row = block_info[None]["chunk-location"][0]
        return np.full((cells, genes), np.sqrt(row + 1.0))

    array = da.map_blocks(make, chunks=((cells,) * count, (genes,)), dtype=float, meta=np.zeros((0, 0)))
    assert array.nbytes > 2 * 768 * 2**20
    found = lmm_gpu.summarize((array, obs), "~ arm + (1 | donor)", is_counts=False, scheduler=client)
    np.testing.assert_allclose(found.Ynorm, cells * count * (count + 1) / 2, rtol=1e-12)
    np.testing.assert_allclose(found.ZY, cells / 50 * np.sqrt(np.arange(1, count + 1)).sum(), rtol=1e-12)


@pytest.mark.parametrize("where", [lambda cluster: cluster, lambda cluster: cluster.scheduler_address])
def test_ways_to_name_the_workers(cluster, where):
    found = lmm_gpu.fit((chunked(COUNTS, 100, M), OBS), FORMULA, scheduler=where(cluster))
    assert_same_fit(found, lmm_gpu.fit((COUNTS, OBS), FORMULA))


def test_an_active_client(cluster):
    """Dask computes there, so chunks are accumulated there."""
    own = os.getpid()

    def make(block_info=None):
        if os.getpid() == own:
            raise RuntimeError("not on a worker")
        return VALUES[slice(*block_info[None]["array-location"][0])]

    array = da.map_blocks(make, chunks=((100, 140), (M,)), dtype=float, meta=np.zeros((0, 0)))
    with distributed.Client(cluster):
        assert_statistics(lmm_gpu.summarize((array, OBS), FORMULA), VALUES)
    with pytest.raises(RuntimeError, match="not on a worker"):
        lmm_gpu.summarize((array, OBS), FORMULA)


def test_workers_that_come_late(caplog):
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        concurrent.futures.ThreadPoolExecutor(1) as elsewhere,
    ):
        found = elsewhere.submit(lmm_gpu.fit, (chunked(COUNTS, 100, M), OBS), FORMULA, scheduler=cluster)
        while not any("has no workers yet: waiting" in line for line in caplog.messages):
            assert not found.done(), found.exception()
            time.sleep(0.05)
        cluster.scale(1)
        assert_same_fit(found.result(), lmm_gpu.fit((COUNTS, OBS), FORMULA))


def test_a_scheduler_that_goes_away(here):
    """One sentence for what distributed raises then: that futures were cancelled."""

    def make(block_info=None):
        raise concurrent.futures.CancelledError("_add-2d4c cancelled for reason: scheduler-connection-lost.")

    array = da.map_blocks(make, chunks=((N,), (M,)), dtype=float, meta=np.zeros((0, 0)))
    with pytest.raises(ConnectionError, match="the dask scheduler stopped before the computation was complete"):
        lmm_gpu.summarize((array, OBS), FORMULA)


def test_errors_are_returned_unchanged(client):
    values = VALUES.copy()
    values[150, 3] = np.inf
    with pytest.raises(ValueError, match=r"holds 1 value\(s\) that are NaN, infinite .* at position \(150, 3\)"):
        lmm_gpu.summarize((chunked(values, 60, M), OBS), FORMULA, scheduler=client)
    with pytest.raises(ValueError, match="rank deficient"):
        lmm_gpu.fit((chunked(VALUES, 60, M), OBS.assign(y=OBS["x"])), "~ x + y + (1 | donor)", scheduler=client)


def test_one_warning_for_all_blocks(client):
    with pytest.warns(UserWarning, match="2 of 9 features do not vary") as caught:
        found = fit_summary(summed_here(VALUES * (np.arange(M) % 8 > 0)), FitOptions(), client=client)
    assert len(caught) == 1
    assert found.status.tolist().count("no_variance") == 2


@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("memory", [None, "20KB"])
def test_files_are_read_by_the_workers(client, tmp_path, monkeypatch, ending, form, memory):
    """In any folder: workers get the absolute path."""
    anndata = pytest.importorskip("anndata", reason='needs: pip install ".[io]"')
    cells = anndata.AnnData(form(COUNTS.astype("float32")), OBS, pd.DataFrame(index=GENES))
    cells.layers["twice"] = form(2.0 * COUNTS)
    write = cells.write_h5ad if ending == ".h5ad" else cells.write_zarr
    write(tmp_path / f"cells{ending}")
    monkeypatch.chdir(tmp_path)
    options = {"layer": "twice", "is_counts": True, "progress": False, "memory": memory}
    found = lmm_gpu.summarize(f"cells{ending}", FORMULA, scheduler=client, **options)
    assert_statistics(found, np.log2(1.0 + 2.0 * COUNTS))
    assert found.features == tuple(GENES)
    some = {"cells": "x > 0", "min_mean": float(2 * np.median(COUNTS[OBS["x"] > 0].mean(axis=0)))}
    found = lmm_gpu.summarize(f"cells{ending}", FORMULA, scheduler=client, **some, **options)
    wanted = lmm_gpu.summarize(f"cells{ending}", FORMULA, **some, **options)
    assert found.features == wanted.features and len(found.features) == M // 2 + 1
    for name in ("n", *STATISTICS):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-11, err_msg=name)
    with pytest.raises(ValueError, match="leave out checkpoint"):
        lmm_gpu.summarize(f"cells{ending}", FORMULA, scheduler=client, checkpoint="sums.h5", **options)


def test_chunks_of_a_dataset_are_looked_up_once_in_each_process(here, tmp_path, monkeypatch):
    anndata = pytest.importorskip("anndata", reason='needs: pip install ".[io]"')
    cells = anndata.AnnData(sparse.csr_matrix(COUNTS.astype("float32")), OBS, pd.DataFrame(index=GENES))
    looked_up, real = [], stored_arrays._hdf5_extents
    monkeypatch.setattr(stored_arrays, "_hdf5_extents", lambda array: looked_up.append(array.name) or real(array))
    monkeypatch.setattr("lmm_gpu.sumstats.dask_sums._VALUES", 200)
    design = build_design(FORMULA, OBS)
    for factor in (1.0, 2.0):  # another file under the same name
        cells.X = sparse.csr_matrix(factor * COUNTS.astype("float32"))
        cells.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
        with open_source(tmp_path / "cells.h5ad") as source:
            found = read_on_workers(source)
            assert found.matrix.numblocks[0] > 3
            looked_up.clear()
            summary = reduce_chunks(found, design, Transform())
        assert_statistics(summary, factor * COUNTS)
        assert sorted(looked_up) == ["/X/data", "/X/indices"]


def test_the_first_chunk_of_a_file_is_small():
    begins = np.arange(0, 3 * 2**23, 1000)
    pieces = _pieces(begins)
    values = [int(begins[piece.stop] - begins[piece.start]) for piece in pieces]
    assert values[0] <= 2**19 + 1000 and max(values) <= 2**23 + 1000 and len(values) == 4


def test_chunks_of_a_file_have_about_as_many_values(monkeypatch):
    monkeypatch.setattr("lmm_gpu.sumstats.dask_sums._VALUES", 10)
    begins = np.array([0, 3, 6, 9, 12, 40, 41, 41, 41])
    pieces = _pieces(begins)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])] and pieces[-1].stop == 8
    assert [int(begins[piece.stop] - begins[piece.start]) for piece in pieces] == [12, 28, 1]
    assert _pieces(np.zeros(5, int)) == [slice(0, 4)]


def test_on_the_command_line(cluster, tmp_path, monkeypatch, capsys):
    anndata = pytest.importorskip("anndata", reason='needs: pip install ".[io]"')
    cli = pytest.importorskip("lmm_gpu.cli", reason='needs: pip install ".[cli]"')
    monkeypatch.chdir(tmp_path)
    anndata.AnnData(sparse.csr_matrix(COUNTS), OBS, pd.DataFrame(index=GENES)).write_h5ad("cells.h5ad")
    where = ["--scheduler", cluster.scheduler_address]
    for arguments in (
        ["summarize", "cells.h5ad", "-f", FORMULA, "-o", "cells.h5", *where],
        ["fit", "cells.h5", "-o", "there", *where],
        ["fit", "cells.h5ad", "-f", FORMULA, "-o", "here"],
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert not exit_.value.code, capsys.readouterr().err
    assert_same_fit(lmm_gpu.LMMFit.load("there/fit.h5"), lmm_gpu.LMMFit.load("here/fit.h5"))
    one, other = (pd.read_csv(f"{name}/results.csv.gz") for name in ("there", "here"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-8)
