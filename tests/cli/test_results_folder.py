"""A results folder holds one whole run, or says that it does not, whatever interrupts the writing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("h5py", reason='saved fits need: pip install ".[cli]"')

from lmm_gpu.cli import results_folder
from lmm_gpu.cli.results_folder import LOCK, RECORD, commit, locked
from lmm_gpu.cli.run import fit_to_folder
from lmm_gpu.cli.run_record import checked_fit, load_run
from lmm_gpu.io.files import write_table

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="it ends child processes: POSIX only")
FORMULA = "~ arm + (1 | donor)"


@pytest.fixture
def cells(tmp_path):
    rng, donor = np.random.default_rng(3), np.arange(48) % 6
    pd.DataFrame(rng.normal(size=(48, 3)), columns=list("abc")).to_csv(tmp_path / "cells.csv", index=False)
    obs = pd.DataFrame({"arm": np.where(donor < 3, "x", "y"), "donor": [f"D{one}" for one in donor]})
    obs.to_csv(tmp_path / "obs.csv", index=False)
    return tmp_path / "cells.csv"


def run(cells: Path, folder: Path, **options):
    reading = {"obs": cells.with_name("obs.csv")}
    return fit_to_folder(cells, FORMULA, folder, reading=reading, **options)


def refuses(function, folder: Path) -> bool:
    try:
        function(folder)
    except ValueError as error:
        assert "lmm-gpu fit" in str(error) or "repeat it" in str(error)
        return True
    return False


# --- the commit -----------------------------------------------------------------------------------


def killed_at(event: int, folder: Path, write) -> bool:
    """Run `write` in a child process that dies at its `event`-th change of a file below `folder`; True if it died."""
    child = os.fork()
    if child == 0:
        left = [event]

        def count(name, arguments):
            changes = name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
            changes = changes or (name == "open" and "w" in str(arguments[1]))
            left[0] -= changes and str(folder) in str(arguments[0])
            if left[0] == 0:
                os._exit(9)

        sys.addaudithook(count)
        write()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@posix
def test_after_a_kill_at_every_write_the_folder_holds_one_run_or_says_that_it_does_not(cells, tmp_path):
    first = run(cells, tmp_path / "first")
    second = run(cells, tmp_path / "second", method="ML")
    folder = tmp_path / "r"

    def replace_first_by_second():
        with locked(folder):
            parts = {"results.csv.gz": lambda path: write_table(second.table, path), "fit.h5": second.fit.save}
            commit(folder, parts, lambda: second.record)

    outcomes, event = [], 0
    while True:
        event += 1
        run(cells, folder)  # what a killed run left does not stop the next one
        assert {path.name for path in folder.iterdir()} == {"results.csv.gz", "genes.csv.gz", "fit.h5", RECORD}
        died = killed_at(event, folder, replace_first_by_second)
        if refuses(load_run, folder):
            assert refuses(checked_fit, folder)
            outcomes.append("refused")
        else:
            fit, table, record = load_run(folder)
            whole = first if fit.method == "REML" else second
            np.testing.assert_array_equal(table["p_value"], whole.table["p_value"])
            assert record["options"].get("method", "REML") == fit.method == checked_fit(folder).method
            outcomes.append(fit.method)
        if not died:
            break
    assert event > 10 and outcomes[0] == "REML" and outcomes[-1] == "ML" and "refused" in outcomes
    assert outcomes == sorted(outcomes, key=["REML", "refused", "ML"].index)


@pytest.mark.parametrize("name", ["fit.h5", "results.csv.gz"])
def test_a_file_of_another_run_is_refused(cells, tmp_path, name):
    run(cells, tmp_path / "one")
    run(cells, tmp_path / "two", method="ML")
    os.replace(tmp_path / "two" / name, tmp_path / "one" / name)
    with pytest.raises(ValueError, match=rf"{name} is not the file that .*run.json describes"):
        load_run(tmp_path / "one")


@posix
def test_an_interrupt_during_the_commit_waits_for_its_end(cells, tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        signal.raise_signal(signal.SIGINT)
        replace(source, target)

    folder = tmp_path / "r"
    folder.mkdir()
    parts = {"a.txt": lambda path: path.write_text("a"), "b.txt": lambda path: path.write_text("b")}
    record = {"format": "lmm_gpu run"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results_folder, "write_json", lambda content, path: path.write_text(json.dumps(content)))
        patch.setattr(os, "replace", interrupted)
        commit(folder, parts, lambda: record)
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b.txt", RECORD}
    results_folder.check_files(folder, json.loads((folder / RECORD).read_text()), ("a.txt", "b.txt"))


# --- the lock -------------------------------------------------------------------------------------


def test_a_second_run_names_the_first(tmp_path):
    message = rf"process {os.getpid()} on {socket.gethostname()}"
    with locked(tmp_path / "r"), pytest.raises(ValueError, match=message), locked(tmp_path / "r"):
        raise AssertionError("two runs in one folder")
    assert not (tmp_path / "r").exists()  # nothing was written


@posix
def test_the_lock_of_a_dead_process_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid}))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1}', "", "[]", '{"host": 3}'])
def test_a_lock_that_may_be_alive_is_refused_with_its_name(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(ValueError, match=rf"or remove .*{LOCK} if that run is not alive"), locked(tmp_path):
        raise AssertionError("the folder was locked")
    assert (tmp_path / LOCK).read_text() == content


def test_folders_that_were_created_for_nothing_are_removed(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert not (tmp_path / "a").exists()


# --- the checkpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "summarize"])
def test_the_checkpoint_stays_until_the_results_are_on_disk(cells, tmp_path, monkeypatch, command):
    pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
    from lmm_gpu.cli import app

    def full(*_):
        raise OSError(28, "No space left on device")

    output = tmp_path / ("r" if command == "fit" else "sums.h5")
    checkpoint = output / "checkpoint.h5" if command == "fit" else tmp_path / "sums.checkpoint.h5"
    words = [
        command,
        str(cells),
        "--obs",
        str(cells.with_name("obs.csv")),
        "-f",
        FORMULA,
        "-o",
        str(output),
        "--resume",
    ]
    monkeypatch.setattr("lmm_gpu.sumstats.checkpoint._SHARE", 1e9)  # written after every chunk
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("lmm_gpu.results.lmm_fit.LMMFit.save" if command == "fit" else SAVE, full)
        app.main(words)
    assert ended.value.code == 2 and checkpoint.is_file()
    with pytest.raises(SystemExit) as ended:
        app.main(words)
    assert not ended.value.code and not checkpoint.exists() and output.exists()


SAVE = "lmm_gpu.sumstats.summary_stats.SummaryStats.save"
