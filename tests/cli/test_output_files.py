"""An output is never an input, and only files of lmm_gpu are replaced without --force."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("h5py", reason='saved fits need: pip install ".[cli]"')

from lmm_gpu.cli import app
from lmm_gpu.cli.output_files import check_output, written_by_us

CELLS = ("cells.csv", "--obs", "obs.csv", "--features", "genes.txt", "-f", "~ arm + (1 | donor)")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Cells, and one file of every kind that the commands write."""
    place = tmp_path_factory.mktemp("made")
    rng, donor = np.random.default_rng(3), np.arange(48) % 6
    pd.DataFrame(rng.normal(size=(48, 3)), columns=list("abc")).to_csv(place / "cells.csv", index=False)
    obs = pd.DataFrame({"arm": np.where(donor < 3, "x", "y"), "donor": [f"D{one}" for one in donor]})
    obs.to_csv(place / "obs.csv", index=False)
    (place / "genes.txt").write_text("a\nb\nc\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for words in [
            ["fit", *CELLS, "-o", "run"],
            ["summarize", *CELLS, "-o", "sums.h5"],
            ["test", "run", "-o", "tests.tsv"],
            ["anova", "run", "-o", "terms.csv.gz"],
            ["variance-test", "run", "-o", "variances.csv"],
            ["ranef", "run", "-o", "blups.csv"],
            ["partition", "run", "-o", "fractions.csv"],
        ]:
            assert call(words) == 0, words
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(words) -> int:
    with pytest.raises(SystemExit) as ended:
        app.main([str(word) for word in words])
    return int(ended.value.code or 0)


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        ["summarize", *CELLS, "-o", "cells.csv"],
        ["summarize", *CELLS, "-o", "obs.csv"],
        ["summarize", *CELLS, "-o", "./genes.txt"],
        ["summarize", *CELLS, "-o", "link.csv"],
        ["merge", "sums.h5", "other.h5", "-o", "sums.h5"],
        ["merge", "sums.h5", "other.h5", "-o", "other.h5"],
        ["test", "run/fit.h5", "-o", "run/fit.h5"],
        ["test", "table.csv", "-o", "table.csv"],
        ["fit", "run/results.csv.gz", "--obs", "obs.csv", "-f", "~ arm + (1 | donor)", "-o", "run"],
    ],
)
def test_an_output_is_never_an_input(place, words, capsys):
    os.link(place / "cells.csv", place / "link.csv")
    shutil.copy(place / "sums.h5", place / "other.h5")
    (place / "table.csv").write_text("variable,niter\n")
    before = contents(place)
    for force in ([], ["--force"]):
        assert call([*words, *force]) == 2
        assert "input" in capsys.readouterr().err or words[0] == "test"
    assert contents(place) == before


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["summarize", *CELLS, "-o", "mine"], "mine"),
        (["test", "run", "-o", "mine.csv"], "mine.csv"),
        (["anova", "run", "-o", "mine.csv"], "mine.csv"),
        (["ranef", "run", "-o", "mine.tsv"], "mine.tsv"),
        (["selftest", "--quick", "-o", "mine.json"], "mine.json"),
        (["fit", *CELLS, "-o", "."], "results.csv.gz"),
        (["fit", *CELLS, "-o", "."], "fit.h5"),
        (["fit", *CELLS, "-o", "."], "run.json"),
    ],
)
@pytest.mark.parametrize("content", ["variable,value\na,1\n", '{"mine": 1}', "\x89HDF\r\n\x1a\n"])
def test_a_foreign_file_is_refused_before_the_work(place, words, file, content, capsys):
    (place / file).write_text(content)
    before = contents(place)
    assert call(words) == 2
    assert f"{file} exists and was not written by lmm-gpu" in capsys.readouterr().err
    assert contents(place) == before


def test_force_replaces_a_foreign_file(place):
    (place / "mine.csv").write_text("mine")
    assert call(["test", "run", "-o", "mine.csv", "--force"]) == 0
    assert (place / "mine.csv").read_text().startswith("variable,contrast")


def test_a_table_of_the_other_format_is_removed_only_if_it_is_of_a_run(place):
    pytest.importorskip("pyarrow", reason="needs: pip install pyarrow")
    pd.DataFrame({"mine": [1]}).to_parquet(place / "run" / "results.parquet")
    assert call(["fit", *CELLS, "-o", "run"]) == 0
    assert pd.read_parquet(place / "run" / "results.parquet")["mine"].tolist() == [1]


def test_every_file_that_is_written_is_recognised(made):
    inputs = {"cells.csv", "obs.csv", "genes.txt"}
    written = [path for path in made.rglob("*") if path.is_file() and path.name not in inputs]
    assert len(written) == 10
    assert [path.name for path in written if not written_by_us(path)] == []
    assert not any(written_by_us(made / name) for name in inputs)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are POSIX's")
def test_devices_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cases = {tmp_path / "pipe": "device, pipe or socket", tmp_path: "it is a folder", Path(os.devnull): "device"}
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            check_output(path, force=True)


def test_an_empty_file_is_replaced(tmp_path):
    (tmp_path / "empty.csv").touch()
    check_output(tmp_path / "empty.csv")
