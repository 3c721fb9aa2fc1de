"""`python -m benchmarks gpu`: whatever a stage does, the next one runs and the file says what happened."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("benchmarks.gpu", reason="the benchmarks are not installed")
from benchmarks import gpu
from benchmarks.gpu_rows import Rows, largest

NOTHING = ("timeit", "-n1", "-r1", "pass")


@pytest.fixture
def stages(monkeypatch):
    def use(*stages):
        monkeypatch.setattr(gpu, "STAGES", stages)
        monkeypatch.setattr(gpu, "_sanitizer", lambda: None)

    return use


def test_a_stage_that_fails_does_not_end_it(stages, tmp_path, capsys):
    stages(gpu.Stage("bad", 20, "fails", ("no_such_module",)), gpu.Stage("good", 20, "works", NOTHING))
    assert gpu.main(["--output", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["status"] for one in found["stages"]] == ["exit 1", "exit 0"]
    assert found["failed"] == ["bad: exit 1"] and "No module named" in found["stages"][0]["end of output"]
    assert "machine" in found and "good: works" in capsys.readouterr().out


def test_without_time_a_stage_is_left_out(stages, tmp_path):
    stages(gpu.Stage("late", 20, "works", NOTHING))
    assert gpu.main(["--output", str(tmp_path), "--budget", "1"]) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["failed"] == ["late: no time left"]


def test_a_stage_that_hangs_is_stopped():
    status, said = gpu._process([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"], 2, {})
    assert (status, said.strip()) == ("stopped after 2 s", "1")


def test_rows_hold_errors_and_wrong_numbers(monkeypatch, tmp_path):
    monkeypatch.setenv("GPU_PARTS", str(tmp_path))
    rows = Rows("stage")
    rows.add("broken", lambda: {"x": 1 // 0})
    rows.add("wrong", lambda: {"ok": largest([1.0], [2.0]) < 0.5})
    rows.add("right", lambda: {"ok": largest([1.0], [2.0], 4.0) < 0.5})
    found = json.loads((tmp_path / "stage.json").read_text())
    assert [one["ok"] for one in found] == [False, False, True]
    assert found[0]["error"].startswith("ZeroDivisionError") and largest([1.0], [float("nan")]) == float("inf")


def test_the_model_in_the_guide_is_that_of_the_counts():
    """`python -m benchmarks.gpu_model` prints the table."""
    from benchmarks import gpu_model

    assert gpu_model.table() in (gpu.ROOT / "lmm_gpu" / "guide" / "gpu.md").read_text(encoding="utf-8")
