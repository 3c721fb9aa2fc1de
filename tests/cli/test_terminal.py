"""Terminal output: odd streams, widths, locales and names; Ctrl-C; progress bars."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tqdm import tqdm

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("h5py", reason='saved fits need: pip install ".[cli]"')

from lmm_gpu.cli import app
from lmm_gpu.cli.output import Output, clean
from lmm_gpu.cli.run_record import load_run

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX shells and signals")
FIT = ["fit", "cells.csv", "--obs", "obs.csv", "-f", "~ arm + (1 | donor)", "-o", "run"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    rng, donor = np.random.default_rng(3), np.arange(48) % 6
    names = ["a\x1b[31m", "é", "\u202ec", "d"]
    pd.DataFrame(rng.normal(size=(48, 4)), columns=names).to_csv(tmp_path / "cells.csv", index=False)
    obs = pd.DataFrame({"arm": np.where(donor < 3, "x", "y"), "donor": [f"D{one}" for one in donor]})
    obs.to_csv(tmp_path / "obs.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str, place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f'lmm-gpu() {{ "{sys.executable}" -m lmm_gpu "$@"; }}; {line}'
    changed = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run(["bash", "-c", script], cwd=place, env=changed, capture_output=True, text=True)


def words(arguments: list[str]) -> str:
    return "lmm-gpu " + " ".join(f"'{word}'" for word in arguments)


# --- streams --------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("line", "environment"),
    [
        (f"{words(FIT)} | head -1; exit ${{PIPESTATUS[0]}}", {}),
        (f"{words(FIT)} --json | true; exit ${{PIPESTATUS[0]}}", {}),
        (f"{words(FIT)} 2>&1 >&- | true; exit ${{PIPESTATUS[0]}}", {}),
        (f"{words(FIT)} >&-", {}),
        (f"{words(FIT)} 2>&-", {}),
        (f"{words(FIT)} <&- >&- 2>&-", {}),
        (words(FIT), {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}),
        (words(FIT), {"PYTHONWARNINGS": "error"}),
        (words(FIT), {"HOME": "/nonexistent", "COLUMNS": "1"}),
    ],
)
def test_finished_work_is_kept_whatever_the_terminal_is(place, line, environment):
    done = shell(line, place, **environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr
    assert len(load_run(place / "run")[1]) == 8


@posix
def test_a_result_that_cannot_be_printed_is_an_error(place):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    done = shell("lmm-gpu info --json > /dev/full", place)
    assert done.returncode == 2 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [1, 2, 10, 43, 44, 59, 60, 99, 100, 200])
def test_tables_fit_terminals_of_any_width(place, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in (FIT, ["info"], ["guide"], ["fit", "--help"]):
        with pytest.raises(SystemExit) as ended:
            app.main(arguments)
        assert not ended.value.code and capsys.readouterr().out


def test_a_warning_is_never_an_exception(capsys):
    with warnings.catch_warnings(), Output().attached():
        warnings.warn("few donors", stacklevel=1)
    assert capsys.readouterr().err == "warning: few donors\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Output().attached():
            warnings.warn("few donors", stacklevel=1)
        with pytest.raises(UserWarning):  # the filters of the caller are back
            warnings.warn("few donors", stacklevel=1)


def test_the_logger_is_left_as_it_was(capsys):
    logger = logging.getLogger("lmm_gpu")
    before = logger.level, logger.propagate, list(logger.handlers)
    with Output(json=True).attached():
        logger.info("one line")
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert json.loads(capsys.readouterr().err) == {"level": "info", "message": "one line"}


# --- names ----------------------------------------------------------------------------------------


def test_control_characters_of_names_are_escaped(place, capsys):
    with pytest.raises(SystemExit):
        app.main(FIT)
    said = capsys.readouterr()
    assert "a\\x1b[31m" in said.out and "\x1b" not in said.out and "\\u202ec" in said.out and "é" in said.out
    with pytest.raises(SystemExit):
        app.main([*FIT, "-c", "\x1b]0;title\x07"])
    assert "\x1b" not in capsys.readouterr().err
    assert load_run(place / "run")[0].summary.features[0] == "a\x1b[31m"


@pytest.mark.parametrize("text", ["plain", "é ü 中", "two\nlines", "[red]brackets[/red]"])
def test_other_characters_stay(text):
    assert clean(text) == text


# --- progress bars --------------------------------------------------------------------------------


def test_a_line_during_a_progress_bar_is_whole(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    output = Output()
    with tqdm(total=10, file=screen, mininterval=0, ncols=40) as bar:
        bar.update(3)
        output.note("info", "raw counts recognised")
        bar.update(3)
    rows = [line.split("\r")[-1] for line in screen.getvalue().split("\n")]
    assert "raw counts recognised" in rows


# --- Ctrl-C ---------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("module", ["typer", "lmm_gpu.cli.app", "pandas", "lmm_gpu.cli.run", "h5py"])
def test_an_interrupt_during_an_import_is_one_line(place, module):
    code = (
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv[1:] = {FIT!r}\n"
        "from lmm_gpu.__main__ import main\n"
        "main()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    *notes, last = done.stderr.splitlines()  # a line of the run itself may come first
    assert last.startswith("error: interrupted; ") and "Traceback" not in done.stderr and len(notes) <= 1
    assert not (place / "run").exists()
