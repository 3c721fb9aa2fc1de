"""Blocks on devices: every gene once, the same numbers, whatever memory or devices there are."""

from __future__ import annotations

import sys
import threading
import time

import array_api_strict
import cupy_like_device as cuda
import cupy_like_runtime
import dense
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from lmm_gpu import _flashmm_sums
from lmm_gpu.backend import cuda_devices, linalg
from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.backend.devices import Cuda, Device, Given, resolve
from lmm_gpu.backend.scheduler import Ranges, run
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.flashmm_api import lmmfit
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

GENES = 12


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    """CuPy with two devices."""
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: cupy_like_runtime.module)
    monkeypatch.setattr(cuda_devices, "_COPIERS", {})
    cupy_like_runtime.log.clear()
    return cupy_like_runtime


class Small(Device):
    """A host whose memory holds so many genes at a time."""

    threaded = False

    def __init__(self, genes: int, name: str = "small"):
        self.genes, self.name, self.released = genes, name, 0

    def release(self) -> None:
        self.released += 1


def work_of(seen, *, fails=()):
    def work(device, bounds, loaded):
        assert loaded == bounds
        if bounds[1] - bounds[0] > getattr(device, "genes", 10**9):
            raise MemoryError("too many")
        if bounds[0] in fails:
            raise ZeroDivisionError("a bug")
        seen.append((device.name, bounds))

    return work


def load(device, bounds):
    return bounds


def genes_done(results):
    return sum(hi - lo for (lo, hi), _ in results)


def genes_of(seen):
    return sorted(gene for _, (lo, hi) in seen for gene in range(lo, hi))


# --- ranges ---------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 20))
def test_every_gene_once_however_often_memory_runs_out(m, size, room):
    seen, device = [], Small(room)
    ranges = [(lo, min(lo + size, m)) for lo in range(0, m, size)]
    assert genes_done(run([device], 1, ranges, load, work_of(seen))) == m
    assert genes_of(seen) == list(range(m))
    assert max(hi - lo for _, (lo, hi) in seen) <= room
    assert device.released <= np.ceil(np.log2(size)) + 1  # a size that did not fit is not tried again


def test_not_even_one_gene():
    with pytest.raises(MemoryError, match=r"a single feature does not fit the memory of small: [\d,]+ bytes are free"):
        list(run([Small(0)], 1, [(0, 8)], load, work_of([])))


def test_ranges_are_cut_once_memory_ran_out():
    ranges = Ranges([(0, 8), (8, 16)])
    ranges.halve(ranges.take())
    assert [ranges.take() for _ in range(5)] == [(0, 4), (4, 8), (8, 12), (12, 16), None]


# --- workers --------------------------------------------------------------------------------------


def test_several_devices_share_the_work():
    seen, together = [], threading.Barrier(3, timeout=20)

    def work(device, bounds, loaded):
        if bounds[0] < 3:
            together.wait()  # three blocks are under way at once
        seen.append((device.name, bounds))

    chosen = [Small(99, name) for name in "abc"]
    assert genes_done(run(chosen, 1, [(i, i + 1) for i in range(9)], load, work)) == 9
    assert genes_of(seen) == list(range(9)) and {name for name, _ in seen} == set("abc")


def test_a_small_device_beside_a_large_one():
    seen = []
    list(run([Small(1, "small"), Small(99, "large")], 1, [(i, i + 5) for i in range(0, 50, 5)], load, work_of(seen)))
    assert genes_of(seen) == list(range(50))


@pytest.mark.parametrize("workers", [1, 4])
def test_an_error_ends_it(workers):
    seen = []
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(run([Device()], workers, [(i, i + 1) for i in range(1000)], load, work_of(seen, fails={5})))
    assert len(seen) < 1000


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_the_generator_ends_it(workers):
    """As an interrupt from the keyboard does: blocks under way are finished, the others are left."""
    seen = []

    def work(device, bounds, loaded):
        time.sleep(0.002)
        seen.append(bounds)

    done = run([Device()], workers, [(i, i + 1) for i in range(1000)], load, work)
    next(done)
    done.close()
    assert 1 <= len(seen) < 1000


def test_an_error_while_reading_ends_it():
    def broken(device, bounds):
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        list(run([Cuda(0)], 1, [(0, 1), (1, 2)], broken, work_of([])))


def test_the_next_block_is_read_while_one_is_computed():
    reading = [threading.Event() for _ in range(3)]

    def load(device, bounds):
        reading[bounds[0]].set()
        return device.put(np.ones(2))

    def work(device, bounds, loaded):
        if bounds[0] < 2:
            assert reading[bounds[0] + 1].wait(20)

    assert genes_done(run([Cuda(1)], 1, [(0, 1), (1, 2), (2, 3)], load, work)) == 3
    waits = [word for word in cupy_like_runtime.log if word.startswith("wait")]
    assert waits == ["wait 0", "wait 1", "wait 2", "wait 3"]  # for the caller's work, then for the copy of each block


def test_work_of_the_caller_is_waited_for():
    """Copies and computations begin after what the caller's stream was given before: it may still write the input."""
    list(run([Cuda(0)], 1, [(0, 1), (1, 2)], lambda device, bounds: device.put(np.ones(2)), work_of_nothing))
    assert cupy_like_runtime.log.count("copies wait for 0") == 2


def work_of_nothing(device, bounds, loaded):
    return None


def test_fits_share_a_stream_and_a_thread_for_copies():
    """CuPy's pool keeps memory for every stream, and its libraries keep handles for every thread."""
    threads = set()

    def load(device, bounds):
        threads.add(threading.current_thread().ident)
        return device.put(np.ones(2))

    for _ in range(3):
        list(run([Cuda(0)], 1, [(0, 1), (1, 2)], load, work_of_nothing))
    assert len(threads) == 1
    assert Cuda(0).copier is Cuda(0).copier


def test_one_device_computes_on_the_caller_s_thread():
    computing = set()
    run_on = lambda device, bounds, loaded: computing.add(threading.current_thread().ident)  # noqa: E731
    list(run([Cuda(0)], 1, [(0, 1), (1, 2)], load, run_on))
    assert computing == {threading.current_thread().ident}


# --- fits -----------------------------------------------------------------------------------------


def statistics(name, m=GENES):
    design = dense.DESIGNS[name]
    return cross_products(design.X, design.Z, dense.draw_genes(design, m), d=design.d)


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.status, wanted.status)
    for key in ("theta", "coef", "se", "logLik"):
        a, b = (getattr(fit.estimates, key) for fit in (found, wanted))
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8 * np.abs(b).max())


@pytest.mark.parametrize("name", ["one_nested", "two"])
def test_a_fit_on_cuda(name):
    ss = statistics(name)
    found = fit_summary(ss, FitOptions(device="cuda:1"))
    assert_same(found, fit_summary(ss, FitOptions(device="cpu")))
    C = np.eye(3)
    wanted = fit_summary(ss, FitOptions(device="cpu")).contrast_test(C, "satterthwaite")
    np.testing.assert_allclose(found.contrast_test(C, "satterthwaite").df, wanted.df, rtol=1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["one_nested", "two"])
def test_methods_of_a_fit_on_cuda(name):
    """The statistics stay on the host: whatever is asked of the fit combines them with the model on the device."""
    ss = statistics(name)
    found, wanted = (fit_summary(ss, FitOptions(device=device)) for device in ("cuda", "cpu"))
    asked = {
        "ranef": lambda fit: fit.ranef()[["blup", "sd"]],
        "test": lambda fit: fit.test("X2")[["se", "df"]],
        "F test": lambda fit: fit.test(np.eye(3)[1:])["statistic"],
        "kenward-roger": lambda fit: fit.test("X2", df="kenward-roger")[["se", "df"]],
        "lmertest": lambda fit: fit.test("X2", df="lmertest")["df"],
    }
    for key, method in asked.items():
        ours, theirs = np.asarray(method(found)), np.asarray(method(wanted))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("chosen", [["cuda:0", "cuda:1"], "strict"])
def test_a_fit_on_two_devices(chosen):
    if chosen == "strict":
        both = (array_api_strict.Device(name) for name in ("device1", "device2"))
        chosen = [Given(array_api_strict.asarray([0.0], device=device)) for device in both]
    ss = statistics("two")
    assert_same(fit_summary(ss, FitOptions(device=chosen, block=2)), fit_summary(ss, FitOptions(device="cpu")))


def test_cells_on_cuda():
    """Y in memory, multiplied on the device block by block, and fitted there."""
    design = dense.DESIGNS["two"]
    Y = dense.draw_genes(design, GENES).T
    wanted = lmmfit(Y, design.X, design.Z, list(design.d), device="cpu", is_counts=False)
    found = lmmfit(Y, design.X, design.Z, list(design.d), device="cuda", nBlocks=5, is_counts=False)
    assert_same(found, wanted)
    assert sum(word.startswith("wait") for word in cupy_like_runtime.log) >= 5


def test_a_wide_sparse_design_is_not_made_dense_for_cuda(monkeypatch):
    design = dense.DESIGNS["two"]
    Y, Z = dense.draw_genes(design, GENES).T, sparse.csr_array(design.Z)
    monkeypatch.setattr(_flashmm_sums, "_LARGEST_DESIGN", Z.shape[0] * Z.shape[1] - 1)
    monkeypatch.setattr(_flashmm_sums, "_put", None)
    wanted = lmmfit(Y, design.X, Z, list(design.d), device="cpu", is_counts=False)
    assert_same(lmmfit(Y, design.X, Z, list(design.d), device="cuda", is_counts=False), wanted)


def test_wide_systems_are_solved_as_one_batch(monkeypatch):
    """CuPy's own limit is 256 rows; above it, it solves for one gene after another."""
    monkeypatch.setattr(cuda_devices, "_PROBES", {})
    if "cupyx.lapack" in sys.modules:  # the real CuPy
        monkeypatch.setattr(sys.modules["cupyx.lapack"], "gesv", None)
    (device,) = resolve("cuda")
    A = np.eye(300) + np.random.default_rng(0).uniform(size=(3, 300, 300)) / 300
    with device.entered():
        x, ok = linalg.solve(device.put(A), device.put(np.ones((3, 300, 1))))
    assert to_numpy(ok).all()
    np.testing.assert_allclose(A @ to_numpy(x), 1.0, rtol=1e-12)
    if "cupyx.lapack" not in sys.modules:
        launches = []
        for some in (A, A[:1]):
            with cuda.counting() as count:
                linalg.solve(device.put(some), device.put(np.ones((len(some), 300, 1))))
            launches.append(count.launches)
        assert launches[0] == launches[1]


def test_a_fit_of_more_columns_than_cupy_solves_as_a_batch():
    rng, levels = np.random.default_rng(5), (150, 140)
    codes = [rng.permutation(np.arange(900) % several) for several in levels]
    Z = np.hstack([np.eye(several)[code] for several, code in zip(levels, codes, strict=True)])
    X = np.column_stack([np.ones(900), rng.normal(size=900)])
    Y = Z @ rng.normal(size=(290, 2)) * [0.5, 1.0] + rng.normal(size=(900, 2))
    ss = cross_products(X, Z, Y, d=levels)
    assert_same(*(fit_summary(ss, FitOptions(device=device)) for device in ("cuda", "cpu")))


def test_memory_that_runs_out_at_any_allocation():
    """Whichever allocation fails while blocks are fitted, the numbers are the same and nothing stays behind."""
    ss = statistics("one_nested", 4)
    wanted = fit_summary(ss, FitOptions(device="cpu"))
    with cuda.byte_limit() as memory:
        fit_summary(ss, FitOptions(device="cuda"))
    total, failed, fitted = memory.allocations, 0, 0
    assert total > 100
    for k in range(1, total, total // 40):
        with cuda.byte_limit(fail_at=k):
            try:
                found = fit_summary(ss, FitOptions(device="cuda"))
            except MemoryError:  # while the design is decomposed there is nothing to make smaller
                failed += 1
                continue
        fitted += 1
        assert_same(found, wanted)
    assert fitted > failed
    assert any("pool freed" in word for word in cupy_like_runtime.log)


def test_a_device_with_little_memory():
    """The limit is kept and the results are the same; with too little memory, the error states the amounts."""
    ss = statistics("two", 40)
    wanted = fit_summary(ss, FitOptions(device="cpu"))
    with cuda.byte_limit() as plenty:
        fit_summary(ss, FitOptions(device="cuda", block=40))
    before = cuda.MEMORIES[0].live
    limit = before + (plenty.peak - before) // 2
    with cuda.byte_limit(limit) as memory:
        found = fit_summary(ss, FitOptions(device="cuda", block=40))
    assert_same(found, wanted)
    assert memory.peak <= limit
    with cuda.byte_limit(before + 20_000), pytest.raises(MemoryError):
        fit_summary(ss, FitOptions(device="cuda", block=40))
