"""`lmm-gpu plot` and `lmm-gpu report`: what they draw of a folder, and one sentence for what they cannot."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("jinja2", reason='the report needs: pip install ".[report]"')

from lmm_gpu import pl
from lmm_gpu.cli import app
from lmm_gpu.cli.plot_kinds import KINDS

RNG = np.random.default_rng(9)
N = 80
DONOR = np.arange(N) % 8
STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of two contrasts."""
    place = tmp_path_factory.mktemp("runs")
    genes = pd.DataFrame(RNG.normal(3, 1, size=(N, 12)), columns=[f"g{i}" for i in range(12)])
    genes.to_csv(place / "cells.csv", index=False)
    obs = pd.DataFrame({"arm": np.where(DONOR < 4, "ctrl", "stim"), "donor": [f"D{d}" for d in DONOR]})
    obs.assign(depth=RNG.normal(size=N)).to_csv(place / "obs.csv", index=False)
    arguments = ["cells.csv", "--obs", "obs.csv", "-f", "~ arm + depth + (1 | donor)", "-o", "run"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(place)
        app.main(["fit", *arguments])
    assert not ended.value.code
    return place


@pytest.fixture
def command(capsys, place, monkeypatch):
    monkeypatch.chdir(place)

    def run_command(*arguments):
        with pytest.raises(SystemExit) as ended:
            app.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    yield run_command
    plt.close("all")


@pytest.mark.parametrize("ending", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_plot_in_every_format(command, tmp_path, kind, ending):
    options = ["--gene", "g3"] if kind == "gene" else ["-c", "depth"] if "contrast" in KINDS[kind] else []
    path = tmp_path / "made" / f"plot.{ending}"
    assert command("plot", "run", kind, *options, "-o", path) == (0, f"wrote {path}\n", "")
    assert path.read_bytes().startswith(STARTS[ending])


@pytest.mark.parametrize("name", ["q.png", "q.svg", "q.pdf", "q.html"])
def test_own_plots_and_pages_are_replaced_and_others_are_not(command, tmp_path, name):
    words = ["report", "run"] if name.endswith("html") else ["plot", "run", "qq", "-c", "depth"]
    assert command(*words, "-o", tmp_path / name)[0] == command(*words, "-o", tmp_path / name)[0] == 0
    (tmp_path / name).write_text("mine")
    code, _, err = command(*words, "-o", tmp_path / name)
    assert code == 2 and "was not written by lmm-gpu" in err and (tmp_path / name).read_text() == "mine"
    assert command(*words, "-o", tmp_path / name, "--force")[0] == 0


def test_options_reach_the_plot(command, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pl, "volcano", lambda table, **options: drawn.append(options) or plt.subplots()[1])
    monkeypatch.setattr(pl, "gene", lambda fit, name, **options: drawn.append((name, options)) or plt.subplots()[1])
    chosen = ["-c", "depth", "--labels", "3", "--fdr", "0.2", "--min-change", "0.5"]
    command("plot", "run", "volcano", *chosen, "-o", tmp_path / "v.png")
    command(
        "plot", "run", "gene", "--gene", "g1", "--by", "arm[T.stim]", "--component", "donor", "-o", tmp_path / "g.png"
    )
    assert drawn == [
        {"contrast": "depth", "labels": 3, "fdr": 0.2, "min_change": 0.5},
        ("g1", {"by": "arm[T.stim]", "component": "donor"}),
    ]


def test_report(command, tmp_path):
    code, out, err = command("report", "run", "-o", tmp_path / "r.html")
    assert code == 0 and err == "" and re.fullmatch(rf"wrote {tmp_path}/r.html  \(0\.\d MB, 2 contrasts\)\n", out)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h3>depth</h3>" in page and "cells.csv" in page and "--formula" in page and "Satterthwaite" in page
    code, out, _ = command("report", "run", "-c", "depth", "-o", tmp_path / "r.html", "--json")
    assert code == 0 and json.loads(out)["contrasts"] == ["depth"]
    assert "<h3>arm[T.stim]</h3>" not in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "run", "pie", "-o", "x.png"], "there is no plot called 'pie'; there are volcano, ma, qq"),
        (["plot", "run", "volcano", "-o", "x.gif"], "the file name must end in .png, .svg, .pdf"),
        (["plot", "run", "volcano", "-o", "x.png"], "got 3 contrasts; choose one with --contrast: Intercept, arm"),
        (["plot", "run", "volcano", "-c", "arm", "-o", "x.png"], "got --contrast 'arm'; choose one"),
        (["plot", "run", "qq", "--gene", "g1", "-o", "x.png"], "--gene is not for qq, which takes --contrast"),
        (["plot", "run", "gene", "-o", "x.png"], "name the gene: lmm-gpu plot RUN gene --gene NAME"),
        (["plot", "run", "gene", "--gene", "TP53", "-o", "x.png"], "'TP53' is not a gene of the fit; it has g0, g1"),
        (
            ["plot", "nowhere", "qq", "-o", "x.png"],
            "nowhere does not exist: expected the folder that lmm-gpu fit -o wrote",
        ),
        (["plot", "cells.csv", "qq", "-o", "x.png"], "cells.csv is a file: expected the folder"),
        (["plot", "run", "variance", "-o", "obs.csv/x.png"], "obs.csv is a file, expected a folder"),
        (["report", ".", "-o", "x.html"], ". has no run.json: expected the folder"),
        (["report", "run", "-o", "x.pdf"], "cannot write a report to x.pdf: expected a name that ends in .html"),
        (
            ["report", "run", "-c", "arm", "-o", "x.html"],
            "the run has no contrast 'arm'; it has Intercept, arm[T.stim]",
        ),
    ],
)
def test_arguments_that_plot_refuses(command, place, arguments, message):
    before = sorted(place.rglob("*"))
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(place.rglob("*")) == before
