# ruff: noqa: E402
"""The model of `benchmarks/scaling.py`: units, limits and growth of what it predicts; nothing is timed."""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict, replace

import pytest
from paths import ROOT

FOLDER = ROOT / "benchmarks"
if not FOLDER.exists():
    pytest.skip("benchmarks are not part of this installation: run it in a checkout", allow_module_level=True)
sys.path.insert(0, str(FOLDER))
for package in ("anndata", "h5py"):
    pytest.importorskip(package, reason='pip install "lmm-gpu[io]"')

import scaling
import work_model
from machine_rates import Machine
from scaling import Counted, Place, Prices, Size, bottleneck, computing, on_cores, predict, row, summing_up
from tb_statistics import simulate
from work_model import COUNTED, GPUS, Rates, Work, added, extrapolated, on_the_host, scaled, seconds, work_of_fit

RATES = Rates(10.0, 0.01, 0.02, 0.001, 0.04)
MACHINE = Machine(
    cores=2,
    host=RATES,
    read_per_s={"gzip": 1e7, "lzf": 2e7, "none": 1e8},
    stored_bytes={"gzip": 2.0, "lzf": 4.0, "none": 8.0},
    add_seconds={1: 5e-8, 2: 6e-8},
    number_seconds=1e-9,
    cell_seconds={1: 1e-6, 2: 1e-6},
    cell_bytes={1: 500.0, 2: 80.0},
    row_seconds=0.0,
    fixed_seconds={"design": 0.0, "fit": 0.0, "test": 0.0},
)
WORK = Work(100, 5, 1e9, 1e6, 1e10, 1e8, 1e7)
PARTS = ("shared by all genes", "all genes", "contrast", "test of all genes")
COUNT = Counted(5, (259,), dict.fromkeys(PARTS, WORK), dict.fromkeys(PARTS, WORK))
SIZE, HERE = Size(1_000_000), Place("here", 2)


def test_units():
    """By hand: 10^9 bytes at 10^10 a second, and so on."""
    found = seconds(WORK, replace(RATES, host_gb_per_s=1.0))
    wanted = {
        "launching": 1e-3,
        "copying": 1e-3,
        "memory": 0.1,
        "products": 0.5,
        "solving": 0.1,
        "eigenvectors": 2.5e-4,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert found["most"] == pytest.approx(sum(wanted.values()))
    assert found["least"] == pytest.approx(found["most"] - 1e-3)
    assert seconds(replace(WORK, launches=10**6), RATES)["least"] == pytest.approx(10.0)  # only asking is left


@pytest.mark.parametrize(
    ("rate", "part"),
    [
        ("memory_tb_per_s", "memory"),
        ("product_tflop_per_s", "products"),
        ("solve_tflop_per_s", "solving"),
        ("eigen_tflop_per_s", "eigenvectors"),
    ],
)
def test_twice_the_rate_is_half_the_time_of_its_part_alone(rate, part):
    before, after = seconds(WORK, RATES), seconds(WORK, replace(RATES, **{rate: 2 * getattr(RATES, rate)}))
    assert after[part] == pytest.approx(before[part] / 2)
    assert before["most"] - after["most"] == pytest.approx(before[part] / 2)


def test_work_adds_up_and_scales():
    twice = added(WORK, WORK)
    assert asdict(twice) == asdict(replace(scaled(WORK, 2.0), launches=200, waits=10))
    assert scaled(WORK, 0.5).launches == WORK.launches


def test_work_of_more_genes_is_on_the_line_through_those_counted():
    a, b = COUNTED
    few, more = (Work(9, 1, 100.0 + 3.0 * m, 0.0, 7.0 * m) for m in (a, b))
    found = extrapolated(few, more, 1000)
    assert (found.bytes, found.product_flop, found.launches) == (3100.0, 7000.0, 9)


def test_decompression_on_one_thread_limits_gzip():
    """1.6e9 non-zeros at 10^7 a second; adding takes half of that, meanwhile."""
    found = summing_up(MACHINE, SIZE, HERE, 40)
    assert found["reading"] == pytest.approx(160.0)
    assert found["adding"] == 0
    assert found["design"] == pytest.approx(1.0)
    assert bottleneck(predict(MACHINE, SIZE, HERE, COUNT), HERE) == "reading"


def test_on_one_core_nothing_overlaps():
    found = summing_up(MACHINE, SIZE, replace(HERE, cores=1), 0)
    assert found["reading"] == pytest.approx(160.0) and found["adding"] == pytest.approx(80.0)
    assert bottleneck(found, replace(HERE, cores=1)) == "reading"


def test_accumulation_limits_uncompressed_files():
    place = replace(HERE, compression="none")
    found = summing_up(MACHINE, SIZE, place, 0)
    assert found["reading"] + found["adding"] == pytest.approx(80.0)
    assert bottleneck(found, place) == "adding"


def test_the_disk_bounds_many_readers():
    place = Place("many", 10_000, readers=5_000, compression="none", disk_gb_per_s=1.0)
    assert summing_up(MACHINE, SIZE, place, 0)["reading"] == pytest.approx(8 * 1.6)
    faster = replace(place, disk_gb_per_s=2.0)
    assert summing_up(MACHINE, SIZE, faster, 0)["reading"] == pytest.approx(8 * 0.8)


@pytest.mark.parametrize("stage", ["design", "reading"])
def test_twice_the_readers_halve_what_each_of_them_does(stage):
    one, two = (summing_up(MACHINE, SIZE, Place("", 64, readers=n), 40) for n in (4, 8))
    assert two[stage] == pytest.approx(one[stage] / 2)


def test_many_donors_cost_one_addition_per_sum_and_chunk():
    place = replace(HERE, compression="none")
    few, many = (sum(summing_up(MACHINE, SIZE, place, q).values()) for q in (0, 1000))
    chunks = SIZE.non_zeros / scaling.CHUNK_VALUES
    assert many - few == pytest.approx(1e-9 * 1000 * SIZE.genes * chunks, rel=0.01)


@pytest.mark.parametrize("gpu", [None, "H100"])
def test_only_accumulation_grows_with_cells(gpu):
    place = Place("", 64, 32, gpu, 8 if gpu else 0)
    rows = [predict(MACHINE, Size(cells), place, COUNT) for cells in scaling.CELLS]
    for before, after in itertools.pairwise(rows):
        assert after["reading"] == pytest.approx(10 * before["reading"])
        assert (after["fit"], after["test"]) == (before["fit"], before["test"])


def test_more_cores_and_gpus_never_slow_shared_work():
    assert on_cores(RATES, 4).memory_tb_per_s == 4 * RATES.memory_tb_per_s
    assert on_cores(RATES, 4).us_per_launch == RATES.us_per_launch
    times = [computing(MACHINE, SIZE, Place("", 64, 1, "H100", n), COUNT)["fit"] for n in (1, 2, 8)]
    assert times == sorted(times, reverse=True)
    shared = seconds(WORK, GPUS["H100"])["most"]
    assert times[-1] > shared  # what the genes share is computed on each


def test_a_row_says_what_it_costs_and_that_it_is_a_model():
    found = row(MACHINE, SIZE, HERE, COUNT, Prices(2.0))
    assert found["what"] == "model"
    assert found["total_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["node_hours"] == pytest.approx(found["total_seconds"] / 3600)
    assert found["cost"] == pytest.approx(2 * found["node_hours"])
    assert row(MACHINE, SIZE, HERE, COUNT)["cost"] is None
    with_gpus = row(MACHINE, SIZE, replace(HERE, gpu="H100", gpus=8), COUNT, Prices(2.0, 3.0))
    assert with_gpus["cost"] == pytest.approx(26 * with_gpus["node_hours"])
    assert found["memory_gb"] == pytest.approx(0.5 + 8e-9 * 20_000 * (5 + 259))


@pytest.mark.parametrize("effects", [1, 2])
def test_the_host_is_asked_for_more_calls_and_no_more_products(effects):
    summary = simulate(max(COUNTED), effects, cells=2_000, donors=30)
    cuda = work_of_fit(summary, 1000)
    with on_the_host():
        host = work_of_fit(summary, 1000)
    for name in ("all genes", "test of all genes"):
        assert host[name].launches > cuda[name].launches
        assert host[name].product_flop <= cuda[name].product_flop


def test_counting_as_on_the_host_ends_with_its_context():
    before = (work_model.fisher_scoring.READ_EVERY, work_model.linalg.raises_for_bad_matrices)
    with on_the_host():
        assert work_model.fisher_scoring.READ_EVERY == 1
    assert (work_model.fisher_scoring.READ_EVERY, work_model.linalg.raises_for_bad_matrices) == before
