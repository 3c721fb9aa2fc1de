"""Random command lines end with exit code 0, or with 2 and one sentence: never with a traceback."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("h5py", reason='saved fits need: pip install ".[cli]"')

from lmm_gpu.cli import app

TRIES = 60  # per seed
FILES = ["cells.npz", "cells.csv", "obs.csv", "genes.txt", "sums.h5", "run", "run/fit.h5", "run/run.json", "broken.h5"]
FILES += ["empty", "nowhere.h5ad", ".", "", "/dev/null", "odd\x1b[31m.csv", "run/results.csv.gz", "a" * 300, "x\x00y"]
FORMULAS = [
    "~ arm + (1 | donor)",
    "~ 0 + arm + depth + (1 | donor)",
    "~ arm * depth + (1 | donor)",
    "~ 1 + (1 | donor)",
]
FORMULAS += [
    "~ arm",
    "(1 | donor)",
    "",
    "~",
    "~ arm + (1 | donor",
    "~ arm + (depth | donor)",
    "~ log(depth) + (1 | arm:donor)",
]
FORMULAS += [
    "~ __import__('os') + (1 | donor)",
    "~ " + "(" * 200 + "arm" + ")" * 200,
    "~ (arm + depth)**9 + (1 | donor)",
]
CONTRASTS = [
    "arm[T.y]",
    "x = arm[T.y]",
    "arm[x] - arm[y]",
    "arm",
    "",
    " = ",
    "a = b = c",
    "1e400*arm[T.y]",
    "arm[T.y]/0",
    "é",
]
TEXTS = [
    "auto",
    "cpu",
    "cuda",
    "cuda:9",
    "REML",
    "ML",
    "none",
    "nonnegative",
    "donor",
    "arm",
    "depth",
    "log1p",
    "normalize",
]
TEXTS += [
    "2GB",
    "1KB",
    "-1",
    "0",
    "1e400",
    "nan",
    "generalized",
    "residual",
    "kenward-roger",
    "less",
    "csv.gz",
    "g1",
    "\x00",
]
NUMBERS = ["0", "1", "2", "-1", "0.5", "1e9", "nan", "inf", "-inf", "x", "", "0.05", "99999999999999999999"]
QUERIES = ["depth > 1", "arm == 'x'", "depth", "arm in ['x', 'y']", "nowhere > 1", "depth > ", "True", "1", "(" * 99]
OUTPUTS = [
    "out",
    "out.csv",
    "out.csv.gz",
    "out.tsv",
    "out.h5",
    "out.html",
    "out.png",
    "out.svg",
    "out.json",
    "obs.csv/x",
]
KINDS = ["volcano", "ma", "qq", "pvalue-hist", "variance", "convergence", "gene", "pie"]
#: Candidates of options by their name; of all others, any text.
VALUES = {"formula": FORMULAS, "contrast": CONTRASTS, "cells": QUERIES, "obs": FILES, "features": FILES, "data": FILES}
VALUES |= {"files": FILES, "fitted": FILES, "folder": FILES, "config": FILES, "kind": KINDS}
NUMERIC = ("target", "min_cells", "min_mean", "level", "labels", "fdr", "min_change", "seed", "genes")
LIKELY = {"data": ["cells.npz", "cells.csv", "sums.h5"], "obs": ["obs.csv"], "features": ["genes.txt"]}
LIKELY |= {"formula": FORMULAS[:4], "contrast": CONTRASTS[:2], "fitted": ["run", "run/fit.h5"], "folder": ["run"]}
LIKELY |= {"files": ["sums.h5"], "config": ["run"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    rng, donor = np.random.default_rng(3), np.arange(48) % 6
    Y = rng.poisson(3.0, size=(48, 4))
    sparse.save_npz(place / "cells.npz", sparse.csr_matrix(Y))
    pd.DataFrame(Y, columns=list("abcd")).to_csv(place / "cells.csv", index=False)
    shutil.copy(place / "cells.csv", place / "odd\x1b[31m.csv")
    obs = pd.DataFrame({"arm": np.where(donor < 3, "x", "y"), "donor": [f"D{one}" for one in donor]})
    obs.assign(depth=rng.uniform(0.5, 2, 48)).to_csv(place / "obs.csv", index=False)
    (place / "genes.txt").write_text("g1\ng\x1b[31m2\ng3\ng4\n", encoding="utf-8")
    (place / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (place / "empty").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        cells = ["cells.npz", "--obs", "obs.csv", "--features", "genes.txt", "-f", "~ arm + (1 | donor)"]
        for words in (["fit", *cells, "-o", "run"], ["summarize", *cells, "-o", "sums.h5"]):
            with pytest.raises(SystemExit):
                app.main(words)
    return place


def value_of(parameter, dice: random.Random) -> str:
    if parameter.name == "output":
        return dice.choice(OUTPUTS if dice.random() < 0.8 else FILES)
    if parameter.name in LIKELY and dice.random() < 0.7:
        return dice.choice(LIKELY[parameter.name])
    if parameter.name in NUMERIC:
        return dice.choice(NUMBERS)
    return dice.choice(VALUES.get(parameter.name, TEXTS))


def command_line(command, name: str, dice: random.Random) -> list[str]:
    """A command with its arguments and required options, most of the time, and some others."""
    words = [name]
    for parameter in command.params:
        if parameter.name in ("help", "scheduler"):  # no network
            continue
        if not any(flag.startswith("-") for flag in parameter.opts):
            words += [value_of(parameter, dice) for _ in range(dice.choice([1, 1, 1, 1, 0, 2]))]
        elif dice.random() < (0.95 if parameter.required else 0.5 if parameter.name == "obs" else 0.12):
            flag = dice.choice(parameter.opts + parameter.secondary_opts)
            words += [flag] if getattr(parameter, "is_flag", False) else [flag, value_of(parameter, dice)]
    return words


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
@pytest.mark.filterwarnings("ignore")
def test_a_random_command_line_ends_in_a_sentence(made, tmp_path, monkeypatch, capsys, seed):
    commands = {
        name: command
        for name, command in app.typer.main.get_command(app.app).commands.items()
        if name not in ("demo", "selftest", "info")
    }
    dice, ended = random.Random(seed), []
    for number in range(TRIES):
        place = tmp_path / str(number)
        shutil.copytree(made, place)
        monkeypatch.chdir(place)
        name = dice.choice(sorted(commands))
        words = command_line(commands[name], name, dice)
        with pytest.raises(SystemExit) as exit_:
            app.main(words)
        said = capsys.readouterr()
        code = exit_.value.code or 0
        assert code in (0, 2), (words, code, said.err)
        assert "Traceback" not in said.err + said.out and "\x1b" not in said.err + said.out, (words, said.err)
        errors = [line for line in said.err.splitlines() if line.startswith(("error: ", '{"level": "error"'))]
        assert len(errors) == (code == 2), (words, said.err)
        if code == 2:
            assert said.out == "", (words, said.out)
        replaced = words if "--force" in words and code == 0 else []  # a file that --output names
        for kept in {"cells.npz", "cells.csv", "obs.csv", "genes.txt", "sums.h5"} - set(replaced):
            assert (place / kept).read_bytes() == (made / kept).read_bytes(), words
        ended.append(code)
    assert 0 in ended and 2 in ended
