"""Figures in the READMEs equal benchmarks/results, markers are replaced in place, and `python -m benchmarks` runs."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

if not (ROOT / "benchmarks").exists():
    pytest.skip("the benchmarks are not here: they are in the repository and in the sdist", allow_module_level=True)
for folder in (ROOT / "benchmarks", ROOT):
    sys.path.insert(0, str(folder))

from benchmarks import __main__ as runner  # noqa: E402
from benchmarks import figures  # noqa: E402


@pytest.mark.parametrize("path", figures.READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_equal_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert list(figures.found(text)), f"{path} has no block of figures"
    assert figures.differing(text) == [], "python -m benchmarks --table writes them"


def test_every_block_is_used_and_every_marker_is_closed():
    texts = [path.read_text(encoding="utf-8") for path in figures.READMES]
    assert {name for text in texts for name, _ in figures.found(text)} == set(figures.blocks())
    for name in figures.blocks():
        assert [text.count(f"<!-- {name} -->") for text in texts] == [text.count(f"<!-- /{name} -->") for text in texts]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Copy of the results in a temporary folder."""
    for name in {results for results, _ in figures.blocks().values()}:
        text = (figures.RESULTS / f"{name}.json").read_text(encoding="utf-8")
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    return tmp_path


def change(path, edit):
    record = json.loads(path.read_text(encoding="utf-8"))
    edit(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_changed_results_and_figures_are_detected(results):
    text = figures.READMES[0].read_text(encoding="utf-8")
    tampered = text.replace("| n - p, ", "| n - p, 1", 1)
    assert tampered != text
    assert figures.differing(tampered) == ["peers"]

    def slower(record):
        record["cases"][0]["peers"][0]["ms_per_gene_fit_and_tests"] *= 2

    change(results / "peers.json", slower)
    assert "peers" in figures.differing(text)
    assert figures.differing(figures.written(text)) == []


def test_writing_figures_is_idempotent_and_keeps_other_text(results):
    text = "# Title\n\n- **Speed**: <!-- speed -->old<!-- /speed --> (how).\n\n<!-- peers -->\n<!-- /peers -->\nend\n"
    once = figures.written(text)
    assert figures.written(once) == once
    assert once.startswith("# Title\n\n- **Speed**: <!-- speed -->")
    assert once.endswith("<!-- /peers -->\nend\n")
    assert "\n<!-- peers -->\n| program | time per gene" in once
    assert max(map(len, once.split("<!-- peers -->")[0].splitlines())) <= figures.WIDTH


def test_numbers_of_the_table_equal_the_json(results):
    def known(record):
        case = next(case for case in record["cases"] if case["name"] == "cells_1")
        row = next(row for row in case["peers"] if row["peer"] == "flash-mm")
        row |= {"ms_per_gene_fit": 12.34, "ms_per_gene_fit_and_tests": 123.4, "genes": case["genes"] // 2}
        row["answered"] = row["genes"] // 4

    change(results / "peers.json", known)
    line = next(line for line in figures.made("peers").splitlines() if line.startswith("| flash-mm"))
    half = json.loads((results / "peers.json").read_text())["cases"]
    genes = next(case for case in half if case["name"] == "cells_1")["genes"] // 2
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"123 ({genes:,})"


def test_faster_programs_are_named(results):
    def behind(record):
        case = next(case for case in record["cases"] if case["name"] == "cells_1")
        for row in case["peers"]:
            if row["peer"] == "lmm_gpu":
                row["ms_per_gene_fit_and_tests"] = 1e6
                row["seconds_to_first_gene"] = 0.0

    change(results / "peers.json", behind)
    last = " ".join(figures.made("peers").split("Where others are better")[1].split())
    assert "these data: flash-mm" in last
    assert "the first gene" not in last


def test_failing_script_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.py").write_text("print('before'); raise SystemExit('no such thing')")
    (tmp_path / "good.py").write_text("print('fine'); open('good.txt', 'w').close()")
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "SCRIPTS", tuple(runner.Script(name, (), ()) for name in ("bad", "absent", "good")))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert runner.main() == 1
    said = capsys.readouterr().out
    assert "bad: FAILED" in said and "no such thing" in said
    assert "absent: skipped" in said
    assert (tmp_path / "good.txt").exists()


def test_results_describe_the_machine(tmp_path):
    code = "import machine; o = machine.parser('x', None).parse_args(); machine.write({'a': 1}, o)"
    path = tmp_path / "x.json"
    subprocess.run(
        [sys.executable, "-c", code, "--output", str(path)], cwd=ROOT / "benchmarks", check=True, capture_output=True
    )
    record = json.loads(path.read_text())
    assert record["a"] == 1
    assert record["machine"]["processors"] >= 1
    assert {"lmm_gpu", "numpy", "python"} <= set(record["machine"]["versions"])


# --- how answers are compared ---------------------------------------------------------------------


def test_differences_use_genes_with_an_interior_optimum_in_both():
    from peer.running import Answers, difference

    rng = np.random.default_rng(0)
    wanted = Answers(np.ones(4), rng.uniform(1, 2, (4, 2)), rng.normal(size=(4, 3)), np.ones((4, 3)), np.ones((4, 3)))
    wanted.theta[1, 0] = 0.0  # at the boundary
    found = copy.deepcopy(wanted)
    found.se[0, 2] += 0.25
    found.coef[1] += 9.0
    found.theta[2] += 99.0
    found.converged[2] = 0.0
    found.se[3] = np.nan
    gap = difference(found, wanted)
    assert (gap["genes"], gap["genes_with_boundary"]) == (1, 2)
    assert gap["se"] == pytest.approx(0.25)
    assert gap["coef"] == gap["theta"] == 0.0
    assert gap["coef_with_boundary"] == pytest.approx(9.0)


def test_adapter_of_lmm_gpu_equals_a_direct_fit(tmp_path):
    from peer import cases
    from peer.environments import PEERS
    from peer.running import run

    import lmm_gpu

    case = cases.simulated(tmp_path, "small", 300, 6, 5, 2)
    Y = np.fromfile(case.folder / "Y.f64").reshape(5, 300)
    X = np.fromfile(case.folder / "X.f64").reshape(6, 300).T
    codes = np.fromfile(case.folder / "groups.i4", "<i4").reshape(2, 300)
    Z = np.hstack([np.eye(width)[code] for code, width in zip(codes, case.levels, strict=True)])
    wanted = lmm_gpu.fit(lmm_gpu.sslmm(X, Y, Z, d=list(case.levels)), bounds="nonnegative")
    found, answers = run(next(peer for peer in PEERS if peer.name == "lmm_gpu"), case, 1.0, install=False)
    assert (found["genes"], found["answered"], found["df"]) == (5, 5, "Satterthwaite")
    np.testing.assert_allclose(answers.theta, wanted.theta.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(answers.se, wanted.se.T, rtol=1e-6)


def test_missing_and_old_results_are_reported(results, capsys):
    (results / "solver.json").write_text("{}")
    (results / "growth.json").unlink()
    with pytest.raises(
        ValueError, match=r"solver\.json has no .*written by an older version: python -m benchmarks --only solver"
    ):
        figures.made("speed")
    with pytest.raises(ValueError, match=r"growth\.json is missing: python -m benchmarks --only growth"):
        figures.made("growth")
    assert runner.write_figures() == 1
    assert "python -m benchmarks --only" in capsys.readouterr().out
