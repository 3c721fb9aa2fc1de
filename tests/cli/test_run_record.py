"""A run is repeated from its folder: run.json holds all that was asked for, in its own type."""

from __future__ import annotations

import gzip
import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("h5py", reason='saved fits need: pip install ".[cli]"')

import lmm_gpu
from lmm_gpu.cli import app
from lmm_gpu.cli.run_record import command_of, load_run, read_record, read_results

RNG = np.random.default_rng(5)
N, M = 96, 7
DONOR = np.arange(N) % 8
GENES = ["NA", "007", "nan", "g 4", 'g"5', "1e5", "é"]
FORMULA = "~ arm + (1 | donor)"
COLUMNS = {"arm": np.where(DONOR < 4, "ctrl", "stim"), "donor": [f"D{d}" for d in DONOR], "depth": RNG.uniform(1, 2, N)}


@pytest.fixture
def cells(tmp_path):
    sparse.save_npz(tmp_path / "cells.npz", sparse.csr_matrix(RNG.poisson(5.0, size=(N, M))))
    pd.DataFrame(COLUMNS).to_csv(tmp_path / "obs.csv", index=False)
    (tmp_path / "genes.txt").write_text("\n".join(GENES), encoding="utf-8")
    return tmp_path / "cells.npz"


@pytest.fixture
def command(capsys, cells, tmp_path, monkeypatch):
    """Run `lmm-gpu` beside the cells: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments):
        with pytest.raises(SystemExit) as ended:
            app.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run_command


FIRST = ("fit", "cells.npz", "--obs", "obs.csv", "--features", "genes.txt", "-f", FORMULA)
OPTIONS = {
    "nothing else": [],
    "reading": ["--transform", "normalize", "--target", "20", "--cells", "depth > 1.2", "--min-cells", "3"],
    "fitting": ["--no-counts", "--method", "ML", "--bounds", "nonnegative", "--memory", "1GB", "--device", "cpu"],
    "tests": ["--df", "kenward-roger", "-c", "half = arm[T.stim]/2", "-c", "Intercept"],
    "normalised": ["--transform", "normalize", "--size-factors", "depth"],
}


def results(folder):
    return gzip.decompress((folder / "results.csv.gz").read_bytes())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_repeated_run_writes_the_same_bytes(command, tmp_path, monkeypatch, options):
    assert command(*FIRST, *options, "-o", "one")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where relative paths lead nowhere
    code, _, err = command("fit", "--config", "../one/run.json", "-o", "two")
    assert code == 0 and "changed" not in err
    assert results(tmp_path / "elsewhere" / "two") == results(tmp_path / "one")
    one, two = (read_record(folder / "run.json") for folder in (tmp_path / "one", tmp_path / "elsewhere" / "two"))
    assert one["options"] == two["options"] and one["data"] == two["data"]


def test_without_another_folder_the_run_is_repeated_in_its_folder(command, tmp_path):
    command(*FIRST, "-o", "one")
    old = results(tmp_path / "one")
    (tmp_path / "one" / "results.csv.gz").unlink()
    assert command("fit", "--config", "one/run.json")[0] == 0
    assert results(tmp_path / "one") == old


def test_the_folder_does_as_well(command, tmp_path):
    command(*FIRST, "-o", "one")
    assert command("fit", "--config", "one", "-o", "two")[0] == 0
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_options_of_the_command_line_win(command, tmp_path):
    command(*FIRST, *OPTIONS["tests"], "-o", "one")
    command("fit", "--config", "one/run.json", "-o", "two", "--df", "residual", "-c", "arm[T.stim]")
    command(*FIRST, "-o", "three", "--df", "residual", "-c", "arm[T.stim]")
    assert results(tmp_path / "two") == results(tmp_path / "three") != results(tmp_path / "one")


def test_options_have_their_own_types(command, tmp_path):
    command(*FIRST, *OPTIONS["reading"], *OPTIONS["fitting"], "-c", "arm[T.stim]", "-o", "one")
    options = read_record(tmp_path / "one" / "run.json")["options"]
    wanted = {"target": 20.0, "min_cells": 3, "is_counts": False, "contrast": ["arm[T.stim]"], "method": "ML"}
    assert {name: options[name] for name in wanted} == wanted
    assert type(options["min_cells"]) is int and options["obs"] == str(tmp_path / "obs.csv")
    assert "resume" not in options and "checkpoint" not in options


def test_the_record_says_what_it_took(command, tmp_path):
    command(*FIRST, "-o", "one")
    record = read_record(tmp_path / "one" / "run.json")
    assert set(record["timings"]) == {"reading", "fitting", "testing", "writing"}
    assert record["seconds"] == pytest.approx(sum(record["timings"].values()), abs=0.01)
    assert record["peak_memory"] is None or 10**7 < record["peak_memory"] < 10**11


def test_the_command_of_a_record_is_the_command(command, tmp_path):
    import shlex

    command(*FIRST, *OPTIONS["reading"], *OPTIONS["tests"], "--no-counts", "-o", "one")
    words = shlex.split(command_of(read_record(tmp_path / "one" / "run.json")))
    assert words[:2] == ["lmm-gpu", "fit"]
    command(*words[1:], "-o", "two")
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_saved_sums_are_repeated_too(command, tmp_path):
    command("summarize", *FIRST[1:], "-o", "sums.h5")
    command("fit", "sums.h5", "-o", "one")
    assert command("fit", "--config", "one/run.json", "-o", "two")[0] == 0
    assert results(tmp_path / "two") == results(tmp_path / "one")


# --- what cannot be repeated ----------------------------------------------------------------------


def refused(answer, *wanted):
    code, out, err = answer
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(text in err for text in wanted), err


def changed(path, **fields):
    record = json.loads(path.read_text(encoding="utf-8"))
    record |= fields
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": None}, "is not the record of a run"),
        ({"format_version": 3}, "has version 3 of the format, this lmm_gpu knows 2: update lmm_gpu"),
        ({"format_version": None}, "has version None of the format"),
        ({"data": None}, "has no valid data"),
        ({"options": None}, "has no valid options"),
        ({"options": ["formula"]}, "has no valid options"),
        ({"options": {"formulas": "~ arm"}}, "has options that lmm-gpu fit does not know (formulas): remove them"),
        ({"options": {"formula": FORMULA, "min_cells": "many"}}, "Invalid value for '--min-cells'"),
        ({"data": "/nowhere/cells.npz"}, "/nowhere/cells.npz, which one/run.json describes, does not exist any more"),
    ],
)
def test_a_record_that_cannot_be_used(command, tmp_path, fields, message):
    command(*FIRST, "-o", "one")
    changed(tmp_path / "one" / "run.json", **fields)
    refused(command("fit", "--config", "one/run.json", "-o", "two"), message)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"not json", b"\xff\xfe", b"{}"])
def test_invalid_records(command, tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    refused(command("fit", "--config", "run.json", "-o", "two"), "run.json", "pass the run.json of a folder")


def test_no_such_record(command):
    refused(command("fit", "--config", "nowhere/run.json", "-o", "two"), "No such file or directory: nowhere/run.json")


def test_data_that_were_moved_can_be_named(command, tmp_path):
    command(*FIRST, "-o", "one")
    os.rename(tmp_path / "cells.npz", tmp_path / "moved.npz")
    refused(command("fit", "--config", "one/run.json"), "name the data, lmm-gpu fit DATA --config one/run.json")
    code, _, err = command("fit", "moved.npz", "--config", "one/run.json", "-o", "two")
    assert code == 0 and "changed" not in err
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_changed_data_are_reported(command, tmp_path):
    command(*FIRST, "-o", "one")
    sparse.save_npz(tmp_path / "cells.npz", sparse.csr_matrix(RNG.poisson(6.0, size=(N, M))))
    code, _, err = command("fit", "--config", "one/run.json", "-o", "two")
    assert code == 0 and "cells.npz was changed after the run that one/run.json describes" in err


def test_another_version_is_reported(command, tmp_path):
    command(*FIRST, "-o", "one")
    changed(tmp_path / "one" / "run.json", versions={"lmm_gpu": "0.0.9"})
    code, _, err = command("fit", "--config", "one/run.json", "-o", "two")
    assert code == 0 and f"is of lmm_gpu 0.0.9, this is {lmm_gpu.__version__}" in err


# --- the tables -----------------------------------------------------------------------------------


def test_parquet(command, tmp_path):
    pytest.importorskip("pyarrow", reason="needs: pip install pyarrow")
    command(*FIRST, "-o", "one")
    assert command("fit", "--config", "one/run.json", "-o", "two", "--table", "parquet")[0] == 0
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "results.parquet",
        "genes.parquet",
        "fit.h5",
        "run.json",
    }
    one, two = (load_run(tmp_path / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one[1], two[1], rtol=1e-12)
    assert two[1]["variable"].tolist() == GENES * 2
    refused(
        command(*FIRST, "-o", "three", "--table", "xlsx"), "--table 'xlsx' is not known; use one of csv.gz, parquet"
    )


def test_no_table_of_an_earlier_run_stays(command, tmp_path):
    pytest.importorskip("pyarrow", reason="needs: pip install pyarrow")
    command(*FIRST, "-o", "one")
    command(*FIRST, "-o", "one", "--table", "parquet", "-c", "Intercept")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "results.parquet",
        "genes.parquet",
        "fit.h5",
        "run.json",
    }


def test_names_and_digits_survive_the_table(command, tmp_path):
    command(*FIRST, "-o", "one")
    fit, table, _ = load_run(tmp_path / "one")
    assert fit.summary.features == tuple(GENES) and table["variable"].tolist() == GENES * 2
    pd.testing.assert_frame_equal(table, fit.test(), check_exact=True, check_dtype=False)


def test_a_table_that_is_cut(command, tmp_path):
    command(*FIRST, "-o", "one")
    path = tmp_path / "one" / "results.csv.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read .*results\.csv\.gz"):
        read_results(path)


@pytest.mark.parametrize("name", ["run.json", "fit.h5", "results.csv.gz"])
def test_a_folder_that_lacks_a_file(command, tmp_path, name):
    command(*FIRST, "-o", "one")
    (tmp_path / "one" / name).unlink()
    with pytest.raises(ValueError, match=rf"one has no {name}: (expected the folder|the run was interrupted)"):
        load_run(tmp_path / "one")
    for other in ("nowhere", "cells.npz"):
        with pytest.raises(ValueError, match=rf"{other} (does not exist|is a file): expected the folder"):
            load_run(tmp_path / other)
