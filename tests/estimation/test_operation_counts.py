"""What the library asks for is what it was when somebody last looked, and grows with nothing but genes.

A regression guard that times nothing: one more pass over the genes or one more launch per iteration fails here, with
the number that moved. The laws beside it need no committed numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import cupy_like_device as cuda
import numpy as np
import operation_counts
import pytest
from cupy_like import asarray
from operation_counts import CELLS, FILE, GENES, NAMES, Work, counted, dense_sums, moved, sparse_sums, stages

from lmm_gpu.backend.arrays import namespace
from lmm_gpu.estimation import likelihood, one_component

ADVICE = "if that is meant: python tests/support/operation_counts.py --write, and show the file's diff in review"


def committed(name):
    return json.loads(FILE.read_text(encoding="utf-8"))[name]


def assert_unmoved(found, name):
    lines = moved(found, committed(name))
    assert not lines, "\n".join([*(f"{name}, {line}" for line in lines), ADVICE])


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_allocates_what_was_committed(name):
    assert_unmoved(operation_counts.of_model(name), name)


def test_accumulation_allocates_what_was_committed():
    assert_unmoved(operation_counts.of_sums()["summing up"], "summing up")


def test_no_model_is_left_over():
    assert set(json.loads(FILE.read_text(encoding="utf-8"))) == {*NAMES, "summing up"}


# --- laws -----------------------------------------------------------------------------------------

AMOUNTS = ("bytes", "product_flop", "solve_flop", "eigen_flop")


@pytest.mark.parametrize("name", ["one effect", "two effects", "two effects, tabulated", "three effects"])
def test_amounts_grow_linearly_with_genes_and_calls_not_at_all(name):
    few, more, most = (stages(name, times * GENES) for times in (1, 2, 3))
    for stage in few:
        assert few[stage].launches == more[stage].launches == most[stage].launches, stage
        assert few[stage].waits == more[stage].waits == most[stage].waits, stage
        for amount in AMOUNTS:
            a, b, c = (getattr(work[stage], amount) for work in (few, more, most))
            assert c - b == pytest.approx(b - a, rel=1e-9), (stage, amount)


@pytest.mark.parametrize("name", ["one effect", "two effects"])
def test_nothing_grows_with_cells_after_accumulation(name):
    assert stages(name, GENES, 2) == stages(name, GENES)


def test_a_device_is_called_a_few_hundred_times_at_most():
    """A call takes 10 to 20 microseconds from Python: 400 of them 4 to 8 ms."""
    assert stages("one effect", GENES)["iteration"].launches <= 25
    assert stages("two effects, tabulated", GENES)["design"].launches <= 400
    assert stages("two effects, tabulated", GENES)["iteration"].launches <= 75


def test_tables_grow_with_the_logarithm_of_cells():
    """Their axes are log(1 + g lam), and lam grows with cells."""
    few, more, most = (stages("two effects, tabulated", GENES, times) for times in (1, 4, 16))
    for stage in ("iteration", "fit of 4 iterations"):
        assert few[stage].launches == more[stage].launches == most[stage].launches
        assert few[stage].bytes < more[stage].bytes < most[stage].bytes < 1.5 * few[stage].bytes


def test_sums_of_dense_cells_grow_linearly_with_cells():
    few, more, most = (asdict(dense_sums(times)) for times in (1, 2, 3))
    assert few["launches"] == more["launches"] == most["launches"] and most["waits"] == 0
    for amount in AMOUNTS:
        assert most[amount] - more[amount] == pytest.approx(more[amount] - few[amount])


def test_products_of_dense_cells_are_those_of_the_design():
    """2 n m (p + q); the genes are read by two products, twice and written for their squares, and by two sums."""
    found, p, q = dense_sums(1), 4, 32
    assert found.product_flop == 2 * CELLS * GENES * (p + q)
    assert found.bytes == pytest.approx(8 * CELLS * (7 * GENES + p + q), rel=0.05)


def test_sums_of_sparse_cells_grow_linearly_with_non_zeros():
    few, more, most = (sparse_sums(times) for times in (20, 40, 60))
    assert few["launches"] == more["launches"] == most["launches"]
    assert few["dense_bytes"] == more["dense_bytes"] == most["dense_bytes"]
    for amount in ("passed_over", "product_flop"):
        assert most[amount] - more[amount] == pytest.approx(more[amount] - few[amount], rel=1e-4)


# --- the guard can fail -----------------------------------------------------------------------------


@pytest.fixture
def counted_anew(monkeypatch):
    """Counts of a model that are not kept."""
    monkeypatch.setattr(operation_counts, "stages", stages.__wrapped__)
    return operation_counts.of_model


def test_a_pass_over_the_genes_is_seen(counted_anew, monkeypatch):
    """One more elementwise operation on (q, b), as the smallest thing that somebody might add."""
    traces = one_component.SingleComponent.traces

    def slower(self, g):
        namespace(self.c).abs(self.c)
        return traces(self, g)

    monkeypatch.setattr(one_component.SingleComponent, "traces", slower)
    lines = moved(counted_anew("one effect"), committed("one effect"))
    assert any(line.startswith("iteration: launches is 26, was 25 (+1, +4.0 %)") for line in lines)
    assert any(line.startswith("iteration: bytes_per_gene is ") and "(+384, " in line for line in lines)


def test_a_launch_per_iteration_is_seen(counted_anew, monkeypatch):
    """Of one number: it moves no bytes to speak of."""
    composed = likelihood.Likelihood._composed

    def slower(self, s_0, g, t):
        namespace(s_0).exp(s_0[:1])
        return composed(self, s_0, g, t)

    monkeypatch.setattr(likelihood.Likelihood, "_composed", slower)
    lines = moved(counted_anew("one effect"), committed("one effect"))
    assert {line.split(":")[0] for line in lines} >= {"iteration", "fit of 4 iterations"}
    assert not any("bytes_per_gene" in line for line in lines)


def test_a_wait_is_seen():
    x = asarray(np.ones(3))
    assert counted(lambda: float(x[0]))[1].waits == 1


def test_memory_is_counted_beyond_what_was_taken():
    held = asarray(np.ones(10_000))
    work = counted(lambda: held + held + held)[1]
    assert isinstance(work, Work) and work.launches == 2
    assert work.peak_bytes == 2 * -(-held.nbytes // cuda.ROUND) * cuda.ROUND


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ({"launches": 5}, "a: launches is 5, was 4 (+1, +25.0 %)"),
        ({"bytes": 1_030}, "a: bytes is 1,030, was 1,000 (+30, +3.0 %)"),
        ({"bytes": 970}, "a: bytes is 970, was 1,000 (-30, -3.0 %)"),
        ({"bytes": 1_010}, None),
        ({"waits": 1}, "a: waits is 1, was 0 (+1)"),
    ],
)
def test_changed_numbers_and_their_differences(now, line):
    was = {"launches": 4, "bytes": 1_000, "waits": 0}
    assert moved({"a": was | now}, {"a": was}) == ([] if line is None else [line])


def test_added_and_removed_stages_are_reported():
    assert moved({"new": {}}, {"old": {}}) == [
        "new: counted, but not in operation_counts.json",
        "old: in operation_counts.json, but not counted",
    ]
