"""The checks of devices: they pass on the host and on the imitated CuPy, and each fails where something is wrong."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import cupy_like_runtime
import numpy as np
import pytest

from lmm_gpu.backend import cuda_devices, fusion
from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.backend.devices import Cuda, Device
from lmm_gpu.cli.selftest import checks, runner
from lmm_gpu.cli.selftest import rates as rates_module
from lmm_gpu.cli.selftest.cases import allowed, fit_deviation, largest, repeated, statistics
from lmm_gpu.cli.selftest.checks import CHECKS, LIMIT, Subject
from lmm_gpu.cli.selftest.rates import FROM_HOST, MATMUL, WITHIN, rates
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.status import Status
from lmm_gpu.results.fitting import fit_summary

ONLY_CUDA = {"fused kernels", "no hidden synchronisation", "two devices", "out of memory"}


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    """CuPy with two devices."""
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: cupy_like_runtime.module)
    monkeypatch.setattr(cuda_devices, "_cupyx", lambda: cupy_like_runtime.cupyx)


def on(device, **options):
    return Subject(device, quick=True, **options)


def cuda():
    return on(Cuda(0), other=Cuda(1))


# --- all is well ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_imitation(name):
    found = runner.check(name, cuda())
    assert found["status"] == "passed", found["reason"]
    assert found["deviation"] <= found["limit"] and found["seconds"] > 0


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_host(name):
    found = runner.check(name, on(Device()))
    assert found["status"] == ("skipped" if name in ONLY_CUDA else "passed"), found["reason"]
    assert (found["status"] == "skipped") == bool(found["reason"])


# --- each check fails where something is wrong ------------------------------------------------------


class Inexact(Device):
    """Has six digits of what it is given."""

    threaded = False

    def put(self, x):
        x = to_numpy(x)
        return x * (1 + 1e-6) if x.dtype == float else x


class InexactCuda(Cuda):
    def put(self, x):
        return super().put(Inexact().put(x))


INEXACT = ["products of cells", "fit, one effect", "fit, two effects", "fit, three effects", "fit with tables"]
INEXACT += ["indefinite genes", "more than 65,535 genes at once", "two streams"]


@pytest.mark.parametrize("name", INEXACT)
def test_cancellation_is_detected(name):
    found = runner.check(name, on(Inexact()))
    assert found["status"] == "failed" and "deviates by" in found["reason"]
    assert found["deviation"] > found["limit"] >= LIMIT


@pytest.mark.parametrize("effects", [1, 2, 3])
def test_limits_follow_from_what_rounding_moves(effects):
    """More than any of the perturbations that it is made of moves, and far less than an error of single precision."""
    summary = statistics(effects, 40)
    wanted = fit_summary(summary, FitOptions(device="cpu")).estimates
    moved = fit_summary(replace(summary, ZY=summary.ZY * (1 + 1e-15)), FitOptions(device="cpu")).estimates
    of_estimates, of_tests = allowed(effects, 40)
    assert fit_deviation(moved, wanted) < of_estimates < 1e-6 and 0 < of_tests < 1e-6


def test_a_second_device_that_is_wrong():
    found = runner.check("two devices", on(Cuda(0), other=InexactCuda(1)))
    assert found["status"] == "failed" and "deviates by" in found["reason"]


def test_a_device_without_a_second_one():
    found = runner.check("two devices", on(Cuda(0)))
    assert (found["status"], found["reason"]) == ("skipped", "there is no second CUDA device")


def test_a_kernel_that_is_wrong(monkeypatch):
    advance = checks.advance

    def wrong(state, *others):
        after = advance(state, *others)
        return replace(after, value=after.value * (1 + 1e-7)) if fusion._fusing.get() else after

    monkeypatch.setattr(checks, "advance", wrong)
    assert runner.check("fused kernels", cuda())["status"] == "failed"


def test_waiting_is_found(monkeypatch):
    advance = checks.advance

    def waits(state, *others):
        assert float(state.length[0]) >= 0
        return advance(state, *others)

    monkeypatch.setattr(checks, "advance", waits)
    found = runner.check("no hidden synchronisation", cuda())
    assert found["status"] == "failed" and "SynchronisationError: float makes the host wait" in found["reason"]


def test_a_cupy_that_does_not_report_waiting(monkeypatch):
    monkeypatch.setattr(Cuda, "no_waiting", lambda self: nullcontext())
    found = runner.check("no hidden synchronisation", cuda())
    assert found["status"] == "failed" and "this check cannot fail" in found["reason"]


@pytest.mark.parametrize("name", ["cholesky", "solve", "inverse_small"])
@pytest.mark.parametrize("verdict", [True, False])
def test_bad_matrices_that_are_not_flagged(monkeypatch, name, verdict):
    factorise = getattr(checks, name)

    def careless(*operands):
        found, ok = factorise(*operands)
        return found, ok | True if verdict else ok & False

    monkeypatch.setattr(checks, name, careless)
    found = runner.check("bad matrices", cuda())
    assert found["status"] == "failed" and "flags the wrong matrices" in found["reason"]


def test_indefinite_genes_that_are_not_flagged(monkeypatch):
    evaluate = checks._evaluate

    def careless(*operands):
        found = evaluate(*operands)
        return replace(found, ok=found.ok | True)

    monkeypatch.setattr(checks, "_evaluate", careless)
    assert "indefinite matrices are not flagged" in runner.check("indefinite genes", cuda())["reason"]


@pytest.mark.parametrize(("gene", "reason"), [(1, "a gene of NaN is converged"), (6, "a constant gene is converged")])
def test_bad_genes_that_are_not_reported(monkeypatch, gene, reason):
    def careless(*operands):
        fit = fit_summary(*operands)
        fit.estimates.status[gene] = Status.CONVERGED
        return fit

    monkeypatch.setattr(checks, "fit_summary", careless)
    assert runner.check("bad genes", on(Device()))["reason"] == reason


def test_a_bad_gene_that_moves_another_one(monkeypatch):
    def careless(*operands):
        fit = fit_summary(*operands)
        fit.estimates.coef[:, 2] *= 1 + 1e-6
        return fit

    monkeypatch.setattr(checks, "fit_summary", careless)
    found = runner.check("bad genes", on(Device()))
    assert found["status"] == "failed" and "deviates by" in found["reason"]


def test_a_batch_that_is_cut(monkeypatch):
    """What would happen if a library left the matrices beyond its limit alone."""
    evaluate = checks._evaluate

    def cut(summary, theta, put):
        found = evaluate(summary, theta, put)
        found.value[65_535:] = 0.0
        return found

    monkeypatch.setattr(checks, "_evaluate", cut)
    assert runner.check("more than 65,535 genes at once", on(Device()))["status"] == "failed"


def test_a_limit_without_effect(monkeypatch):
    monkeypatch.setattr(Cuda, "limited", lambda self, size: nullcontext())
    found = runner.check("out of memory", cuda())
    assert found["status"] == "failed" and "the limit has no effect" in found["reason"]


def test_another_allocator(monkeypatch):
    monkeypatch.setattr(Cuda, "pool_bytes", lambda self: (0, 0))
    assert runner.check("out of memory", cuda())["status"] == "skipped"


def test_tables_that_are_not_made(monkeypatch):
    monkeypatch.setattr(checks, "TABULATED", 10)
    assert runner.check("fit with tables", on(Device()))["reason"] == "nothing was tabulated"


# --- what is compared -----------------------------------------------------------------------------


def test_numbers_that_are_missing():
    assert largest(np.array([1.0, np.nan]), np.array([1.5, np.nan]), 2.0) == 0.25
    with pytest.raises(AssertionError, match="NaN on one device"):
        largest(np.array([1.0, 2.0]), np.array([1.0, np.nan]))


def test_genes_that_ended_otherwise():
    wanted = fit_summary(statistics(1, 6), FitOptions()).estimates
    status = wanted.status.copy()
    status[2] = Status.CONVERGED_AT_ROUNDING
    assert fit_deviation(replace(wanted, status=status), wanted) == 0.0
    status[2] = Status.MAX_ITER
    with pytest.raises(AssertionError, match=r"1 of 6 genes have another status, such as gene \[2\]"):
        fit_deviation(replace(wanted, status=status), wanted)


def test_repeated_genes():
    few = statistics(2, 3)
    many = repeated(few, 4)
    assert (many.m, len(set(many.features))) == (12, 12)
    np.testing.assert_array_equal(many.select(slice(9, 12)).ZY, few.ZY)


# --- all of it ------------------------------------------------------------------------------------


def finite(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_selftest(monkeypatch):
    seen = []
    some = ["products of cells", "no hidden synchronisation", "broken"]
    monkeypatch.setitem(CHECKS, "broken", lambda subject: float("inf"))
    found = runner.selftest("cpu", quick=True, checks=some, timing=False, report=seen.append)
    assert seen == found["checks"] and [one["name"] for one in seen] == some
    assert found["counts"] == {"passed": 1, "skipped": 1, "failed": 1} and not found["passed"]
    assert finite(json.dumps(found))["device"] == "cpu" and found["rates"] == []


def test_an_error_is_a_failure(monkeypatch):
    monkeypatch.setitem(CHECKS, "broken", lambda subject: 1 // 0)
    found = runner.check("broken", on(Device()))
    assert found["status"] == "failed" and found["deviation"] is None
    assert found["reason"].startswith("ZeroDivisionError: ") and "(test_selftest.py, line " in found["reason"]


def test_subject_of_a_selftest():
    assert runner.subject_of("cuda:1", True).other.name == "cuda:0"
    assert runner.subject_of("cpu", True).other is None
    with pytest.raises(ValueError, match="devices are checked one at a time"):
        runner.subject_of("cuda:0,cuda:1", True)
    with pytest.raises(ValueError, match="cannot be used"):
        runner.subject_of("cuda:7", True)


@pytest.mark.parametrize("device", [Device(), "cuda"])
def test_rates(monkeypatch, device):
    monkeypatch.setattr(rates_module, "REPEATS", 1)
    rows = list(rates(Cuda(0) if device == "cuda" else device, quick=True))
    assert [row["what"] for row in rows[:3]] == [WITHIN, FROM_HOST, MATMUL]
    assert {row["compared_with"] for row in rows[3:]} == {WITHIN, FROM_HOST, MATMUL}
    for row in rows:
        assert row["seconds"] > 0 and (row["gb_per_s"] or row["gflop_per_s"]) > 0
        own = {one["what"]: one["gb_per_s"] or one["gflop_per_s"] for one in rows[:3]}
        if row["share"] is not None:
            rate = row["gflop_per_s"] if row["compared_with"] == MATMUL else row["gb_per_s"]
            assert row["share"] == rate / own[row["compared_with"]]
