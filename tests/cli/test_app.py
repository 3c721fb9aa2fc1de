"""The command line: what it writes, and one sentence with exit code 2 for everything that is wrong."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import cupy_like_runtime
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("rich", reason='the command line needs: pip install ".[cli]"')

import lmm_gpu
from lmm_gpu import simuRNAseq
from lmm_gpu.backend import cuda_devices
from lmm_gpu.cli import app, demo, output, run
from lmm_gpu.cli.selftest import checks, runner
from lmm_gpu.sumstats.accumulator import Accumulator

RNG = np.random.default_rng(41)
N = 120
DONOR = np.arange(N) % 6
GENES = ["g,1", 'g"2', "g/3", "é", "g 5", "zero"]
CELLS = [f"cell{cell}" for cell in range(N)]
OBS = pd.DataFrame(
    {"arm": np.where(DONOR < 3, "ctrl", "stim"), "donor": [f"D{d}" for d in DONOR], "depth": RNG.uniform(0.5, 2, N)},
    index=CELLS,
)
COUNTS = RNG.poisson(4.0, size=(N, 6)) * (np.array(GENES) != "zero")
FORMULA = "~ arm + (1 | donor)"
RESULTS = {"results.csv.gz", "genes.csv.gz", "fit.h5", "run.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Cells in several formats, sound and broken."""
    place = tmp_path_factory.mktemp("cells")
    sparse.save_npz(place / "cells.npz", sparse.csr_matrix(COUNTS))
    OBS.to_csv(place / "obs.csv")
    OBS[:50].to_csv(place / "short.csv")
    (place / "genes.txt").write_text("\n".join(GENES), encoding="utf-8")
    (place / "some.txt").write_text("é\ng/3\nzero\n", encoding="utf-8")
    (place / "broken.npz").write_bytes((place / "cells.npz").read_bytes()[:200])
    (place / "notes.txt").write_text("not cells")
    sparse.save_npz(place / "log.npz", sparse.csr_matrix(np.where(COUNTS == 7, np.nan, np.log1p(COUNTS))))
    return place


@pytest.fixture(scope="module")
def h5ad(folder) -> Path:
    anndata = pytest.importorskip("anndata", reason='.h5ad needs: pip install ".[io]"')
    var = pd.DataFrame(index=GENES)
    cells = anndata.AnnData(sparse.csr_matrix(COUNTS, dtype="float32"), OBS.astype({"arm": "category"}), var)
    cells.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


@pytest.fixture
def command(capsys, folder, monkeypatch):
    """Run `lmm-gpu` with some arguments among the cells: exit code, standard output, standard error."""
    monkeypatch.chdir(folder)

    def run_command(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            app.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run_command


NPZ = ("cells.npz", "--obs", "obs.csv", "--features", "genes.txt")


def python_fit(**options):
    with pytest.warns(UserWarning, match=r"1 of \d features do not vary"):
        return lmm_gpu.fit((COUNTS, OBS), FORMULA, features=GENES, progress=False, **options)


def assert_table(path, wanted):
    found = pd.read_csv(path, keep_default_na=True)
    assert found.columns.tolist() == wanted.columns.tolist()
    for name in wanted:
        if wanted[name].dtype == object:
            assert found[name].tolist() == wanted[name].tolist()
        else:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-7, atol=1e-12, err_msg=name)


# --- what it writes -------------------------------------------------------------------------------


def test_fit_writes_four_files(command, tmp_path):
    code, out, _ = command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path / "new" / "results")
    assert code == 0
    assert {path.name for path in (tmp_path / "new" / "results").iterdir()} == RESULTS
    assert_table(tmp_path / "new" / "results" / "results.csv.gz", python_fit().test())
    assert "6 genes, 120 cells" in out and "no_variance" in out
    assert all(f"wrote {tmp_path}" in line for line in out.splitlines() if line.startswith("wrote"))


def test_names_on_the_screen_are_whole(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    genes = [f"ENSG0000020448{gene}" for gene in range(6)]
    (tmp_path / "ensembl.txt").write_text("\n".join(genes))
    cells = ("cells.npz", "--obs", "obs.csv", "--features", tmp_path / "ensembl.txt", "-f", "~ 0 + arm + (1 | donor)")
    levels = ("-c", "arm[ctrl]", "-c", "arm[stim]", "-c", "arm[ctrl] - arm[stim] + arm[ctrl] - arm[stim]")
    _, out, _ = command("fit", *cells, *levels, "-o", tmp_path / "all")
    assert all(f"{gene}  " in out for gene in genes[:5]) and "arm[ctrl]  " in out and "arm[stim]  " in out


def test_every_way_in_gives_the_same_table(command, tmp_path, h5ad):
    command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path / "npz")
    command("fit", h5ad, "-f", FORMULA, "-o", tmp_path / "h5ad")
    one, other = (pd.read_csv(tmp_path / name / "results.csv.gz") for name in ("npz", "h5ad"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-7)


def test_table_of_genes(command, tmp_path):
    command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path)
    genes = pd.read_csv(tmp_path / "genes.csv.gz").set_index("variable")
    fit = python_fit()
    assert genes.index.tolist() == GENES
    assert genes["status"].tolist() == fit.status.tolist()
    columns = {"donor_variance": fit.theta.loc["var1"], "residual_variance": fit.theta.loc["var0"]}
    columns |= {f"{name}_{what}": fit[what].loc[name] for name in fit.coef.index for what in ("coef", "se")}
    columns |= {"niter": fit.niter, "logLik": fit.logLik}
    assert set(genes.columns) == {"status", *columns}
    for name, wanted in columns.items():
        np.testing.assert_allclose(genes[name], wanted, rtol=1e-6, atol=1e-12)


def test_record_of_the_run(command, tmp_path):
    command(
        "fit",
        *NPZ,
        "-f",
        FORMULA,
        "-o",
        tmp_path,
        "--transform",
        "log1p",
        "-c",
        "x = arm[T.stim]/2",
        "--df",
        "residual",
    )
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["data"] == str(Path("cells.npz").absolute()) and record["formula"] == FORMULA
    assert record["contrasts"] == ["x = arm[T.stim]/2"] and record["df"] == "residual"
    assert (
        record["options"]["obs"] == str(Path("obs.csv").absolute())
        and record["options"]["transform"] == record["transform"] == "log1p"
    )
    assert (record["cells"], record["genes"], record["random_effects"]) == (N, 6, {"donor": 6})
    assert sum(record["status"].values()) == 6 and record["status"]["no_variance"] == 1
    assert record["versions"]["lmm_gpu"] == lmm_gpu.__version__


@pytest.mark.parametrize(
    ("arguments", "fit", "test"),
    [
        (["-c", "arm[T.stim]"], {}, {"contrast": ["arm[T.stim]"]}),
        (
            ["-c", "half = arm[T.stim]/2", "-c", "Intercept"],
            {},
            {"contrast": {"half": "arm[T.stim]/2", "Intercept": "Intercept"}},
        ),
        (["--df", "residual"], {}, {"df": "residual"}),
        (["--method", "ML", "--bounds", "nonnegative"], {"method": "ML", "bounds": "nonnegative"}, {}),
        (["--transform", "log1p"], {"transform": "log1p"}, {}),
        (["--no-counts"], {"is_counts": False}, {}),
        (
            ["--transform", "normalize", "--size-factors", "depth"],
            {"transform": "normalize", "size_factors": "depth"},
            {},
        ),
        (["--transform", "normalize", "--target", "20"], {"transform": "normalize", "target": 20}, {}),
        (["--cells", "depth > 0.8"], {"cells": "depth > 0.8"}, {}),
        (["--resume"], {}, {}),
        (["--threads", "2"], {}, {}),
        (["--genes", "some.txt"], {"genes": ["é", "g/3", "zero"]}, {}),
        (["--memory", "20KB", "--device", "cpu"], {}, {}),
    ],
)
def test_options(command, tmp_path, arguments, fit, test):
    code, *_ = command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path, *arguments)
    assert code == 0
    assert_table(tmp_path / "results.csv.gz", python_fit(**fit).test(**test))


@pytest.mark.parametrize("option", [["--min-cells", "1"], ["--min-mean", "0.1"]])
def test_genes_that_are_seen(command, tmp_path, option):
    assert command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path, *option)[0] == 0
    assert pd.read_csv(tmp_path / "genes.csv.gz")["variable"].tolist() == GENES[:-1]  # all but "zero"


def test_resume(command, tmp_path, monkeypatch):
    """What a run that ended too early has left in its folder is gone on from, and is gone with the results."""
    monkeypatch.setattr("lmm_gpu.sumstats.chunk_plan._MOST_VALUES", 50)
    added, left = [], [1]
    add = Accumulator.add

    def counted(self, rows, *args):
        if not left[0]:
            raise MemoryError("no more")
        left[0] -= 1
        added.append(rows)
        add(self, rows, *args)

    monkeypatch.setattr(Accumulator, "add", counted)
    arguments = ["fit", *NPZ, "-f", FORMULA, "-o", tmp_path, "--resume"]
    assert command(*arguments)[0] == 2 and (tmp_path / "checkpoint.h5").exists()
    left[0] = -1
    assert command(*arguments)[0] == 0
    assert len(added) > 5 and [rows.start for rows in added[1:]] == [rows.stop for rows in added[:-1]]
    assert {path.name for path in tmp_path.iterdir()} == RESULTS
    assert_table(tmp_path / "results.csv.gz", python_fit().test())


def test_contrasts_that_were_not_asked_for_are_warned_of(command, tmp_path):
    obs = pd.DataFrame({"donor": np.repeat(list("abcdef"), 20), "half": np.tile(list("st"), 60)})
    obs.to_csv(tmp_path / "halves.csv", index=False)
    Y = np.random.default_rng(0).normal(size=(120, 3))
    pd.DataFrame(Y, columns=list("xyz")).to_csv(tmp_path / "values.csv", index=False)
    cells = tmp_path / "values.csv", "--obs", tmp_path / "halves.csv"
    code, _, said = command("fit", *cells, "-f", "~ half + (1 | donor)", "-o", tmp_path / "run")
    assert code == 0 and "Write '~ half + (1 | donor) + (1 | donor:half)'" in said
    code, _, said = command("test", tmp_path / "run", "-o", tmp_path / "all.csv")
    assert code == 0 and "(1 | donor:half)" in said
    code, _, said = command("fit", *cells, "-f", "~ 1 + (1 | donor)", "-o", tmp_path / "mean")
    assert code == 0 and said.splitlines() == [f"{cells[0]} has negative values: they are fitted as they are"]


def test_warnings_are_single_lines(command, tmp_path):
    _, _, err = command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path)
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "obs.csv: numeric columns are depth; every other column is read as text"
    assert lines[1].startswith("raw counts recognised")
    assert lines[2].startswith("warning: 1 of 6 features do not vary")


def test_only_an_intercept(command, tmp_path):
    code, out, _ = command("fit", *NPZ, "-f", "~ 1 + (1 | donor)", "-o", tmp_path)
    assert code == 0 and "Intercept" in out


def test_results_are_replaced(command, tmp_path):
    for contrast in ("arm[T.stim]", "Intercept"):
        command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path, "-c", contrast)
        assert set(pd.read_csv(tmp_path / "results.csv.gz")["contrast"]) == {contrast}
    assert {path.name for path in tmp_path.iterdir()} == RESULTS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help(command, arguments):
    code, out, err = command(*arguments)
    assert code == 0 and err == ""
    assert "fit" in out and "demo" in out


@pytest.mark.parametrize("name", ["fit", "summarize", "merge", "test", "plot", "report", "demo", "info", "selftest"])
def test_the_help_of_a_command_has_an_example_of_it(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = command(name, "--help")
    assert code == 0 and f"Example: lmm-gpu {name}" in out


def test_reading_has_the_same_options_wherever_cells_are_read():
    fit, summarize = (
        {parameter.name for parameter in app.typer.main.get_command(app.app).commands[name].params}
        for name in ("fit", "summarize")
    )
    taken = set(inspect.signature(lmm_gpu.summarize).parameters) - {"data", "progress", "checkpoint"}
    assert taken <= fit & summarize and {"resume", "force", "json", "help"} >= summarize - taken - {"data", "output"}


@pytest.mark.parametrize(("typed", "completed"), [("lmm-gpu re", "report"), ("lmm-gpu fit --trans", "--transform")])
def test_completion(typed, completed):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_LMM_GPU_COMPLETE": "complete_bash"}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | words
    done = subprocess.run([sys.executable, "-m", "lmm_gpu"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.split() == [completed]


@pytest.mark.parametrize(("columns", "shown"), [(50, False), (80, True), (160, True)])
def test_names_are_whole_in_a_terminal_of_any_width(command, tmp_path, monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = command("fit", *NPZ, "-f", "~ 0 + arm + (1 | donor)", "-c", "arm[stim]", "-o", tmp_path)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and ["g,1", "arm[stim]"] in [row[:2] for row in rows]  # brackets are no markup
    assert ("FDR" in out) is shown


def test_version(command):
    assert command("--version") == (0, f"lmm-gpu {lmm_gpu.__version__}\n", "")


@pytest.mark.parametrize(
    ("log10_p", "text"), [(-769.86, "1e-770"), (-2.0, "0.01"), (-300.5, "1e-300"), (0.0, "1"), (np.nan, "nan")]
)
def test_p_values_are_printed_below_the_smallest_float(log10_p, text):
    assert output.p_value_text(log10_p) == text


# --- what is wrong --------------------------------------------------------------------------------

WRONG = {
    "unknown file": (["nowhere.h5ad"], "there is no nowhere.h5ad: check the spelling"),
    "wrong extension": (["notes.txt"], "the ending of notes.txt is not known"),
    "folder": (["."], ". is a folder without matrix.mtx"),
    "broken": (["broken.npz", "--obs", "obs.csv"], "cannot read broken.npz"),
    "no obs": (["cells.npz"], "cells.npz needs a table that describes its cells"),
    "unknown obs": (["cells.npz", "--obs", "nowhere.csv"], "there is no nowhere.csv"),
    "obs of no table": (["cells.npz", "--obs", "cells.npz"], "the ending of cells.npz is not known"),
    "short obs": (["cells.npz", "--obs", "short.csv"], "obs has 50 rows, but cells.npz has 120 rows"),
    "NaN": (["log.npz", "--obs", "obs.csv"], "log.npz holds"),
    "unknown features": (["cells.npz", "--obs", "obs.csv", "--features", "nowhere.txt"], "nowhere.txt"),
    "layer": ([*NPZ, "--layer", "raw"], "only AnnData, .h5ad and .zarr have layers"),
    "unknown column": ([*NPZ, "-f", "~ arm + (1 | donr)"], "obs has no column 'donr': did you mean donor?"),
    "bad formula": ([*NPZ, "-f", "~ arm + (1 | donor"], "cannot read the random term"),
    "no random term": ([*NPZ, "-f", "~ arm"], "has no random term"),
    "code": ([*NPZ, "-f", "~ eval('depth') + (1 | donor)"], "a formula may contain"),
    "unknown contrast": (
        [*NPZ, "-c", "arm[T.Stim]"],
        "no column is called 'arm[T.Stim]'; the closest are ['arm[T.stim]']",
    ),
    "name without spaces": ([*NPZ, "-c", "stim=arm[T.stim]"], "a name is separated by ' = ', with spaces"),
    "empty contrast": ([*NPZ, "-c", ""], "it is empty"),
    "contrast twice": ([*NPZ, "-c", "a = Intercept", "-c", "a = arm[T.stim]"], "got 2 contrasts with 1 names"),
    "df": ([*NPZ, "--df", "kr"], "--df 'kr' is not known; use one of generalized, satterthwaite"),
    "df of ML": ([*NPZ, "--df", "kenward-roger", "--method", "ML"], "derived for REML and this fit is by ML"),
    "method": ([*NPZ, "--method", "reml"], "--method 'reml' is not known"),
    "bounds": ([*NPZ, "--bounds", "no"], "--bounds 'no' is not known"),
    "transform": ([*NPZ, "--transform", "log"], "--transform 'log' is not known"),
    "size factors": ([*NPZ, "--size-factors", "depth"], "they are for --transform 'normalize' only"),
    "unknown size factors": ([*NPZ, "--transform", "normalize", "--size-factors", "dp"], "obs has no column 'dp'"),
    "query": ([*NPZ, "--cells", "depth >"], "cannot read --cells 'depth >': invalid syntax; expected text such as"),
    "no cells": ([*NPZ, "--cells", "depth > 99"], "--cells 'depth > 99' is true for none of"),
    "negative filter": ([*NPZ, "--min-mean", "-1"], "--min-mean -1.0: wanted a number, 0 or more"),
    "device": ([*NPZ, "--device", "cuda"], "--device 'cuda' cannot be used"),
    "memory": ([*NPZ, "--memory", "lots"], "--memory 'lots' is not an amount of memory"),
    "too little memory": ([*NPZ, "--memory", "9"], "a chunk needs 769 bytes, memory allows 9; raise memory"),
    "output is a file": ([*NPZ, "-o", "notes.txt"], "cannot write results to notes.txt: notes.txt is a file"),
    "output below a file": ([*NPZ, "-o", "notes.txt/results"], "cannot write results to notes.txt/results"),
    "unknown option": ([*NPZ, "--contrasts", "x"], "No such option: --contrasts"),
    "option without value": ([*NPZ, "--memory"], "requires an argument"),
}


def assert_refused(answer, message):
    code, out, err = answer
    err = "".join(line for line in err.splitlines(True) if "numeric columns are" not in line)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err
    assert err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_and_exit_code_two(command, tmp_path, folder, name):
    arguments, message = WRONG[name]
    before = sorted(folder.rglob("*"))
    defaults = [
        *(["-f", FORMULA] if "-f" not in arguments else []),
        *(["-o", tmp_path / "r"] if "-o" not in arguments else []),
    ]
    assert_refused(command("fit", *defaults, *arguments), message)
    assert not (tmp_path / "r").exists() and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "Missing"),
        (["fit", "cells.npz"], "Missing option"),
        (["fti", "cells.npz"], "No such command 'fti'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["demo", "--cells", "many"], "Invalid value for '--cells'"),
        (["demo", "-o", "notes.txt"], "notes.txt is a file"),
    ],
)
def test_wrong_commands(command, arguments, message):
    assert_refused(command(*arguments), message)


def test_broken_h5ad(command, tmp_path, h5ad):
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(h5ad.read_bytes()[:3000])
    assert_refused(command("fit", cut, "-f", FORMULA, "-o", tmp_path / "r"), f"cannot read {cut}")
    assert not (tmp_path / "r").exists()


def test_impossible_demonstrations(command, tmp_path):
    for numbers, message in ((["--cells", "0"], "nCells=0"), (["--genes", "0"], "nGenes=0")):
        code, _, err = command("demo", "-o", tmp_path / "demo", *numbers)
        assert code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "demo").exists()


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission(command, tmp_path):
    tmp_path.chmod(0o500)
    assert_refused(command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path / "r"), "no permission to write into")


def test_a_contrast_is_checked_before_the_cells_are_read(command, tmp_path):
    answer = command("fit", "log.npz", "--obs", "obs.csv", "-f", FORMULA, "-c", "arm", "-o", tmp_path / "r")
    assert_refused(answer, "no column is called 'arm'")  # and not the NaN among the cells


def test_no_partial_file_remains(command, tmp_path):
    command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path)
    old = (tmp_path / "results.csv.gz").read_bytes()
    (tmp_path / "results.csv.gz").unlink()
    (tmp_path / "results.csv.gz").mkdir()  # cannot be replaced by a file
    code, _, err = command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path)
    assert code == 2 and "results.csv.gz: it is a folder" in err and "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == RESULTS
    assert old


@pytest.mark.parametrize("name", ["results.csv.gz", "genes.csv.gz"])
def test_a_full_disk_leaves_the_old_tables(command, tmp_path, monkeypatch, name):
    command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    to_csv = pd.DataFrame.to_csv

    def full(self, target, **options):
        if name in str(target):
            to_csv(self[:2], target, **options)
            raise OSError(28, "No space left on device", str(target))
        to_csv(self, target, **options)

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    code, _, err = command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path, "--method", "ML")
    assert code == 2 and "error: No space left on device" in err and "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == RESULTS
    assert (tmp_path / name).read_bytes() == old[name] and (tmp_path / "run.json").read_bytes() == old["run.json"]


def test_interrupting_is_no_mistake(command, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "fit_cells", interrupted)
    code, out, err = command("fit", *NPZ, "-f", FORMULA, "-o", tmp_path / "r")
    assert code == 130 and "interrupted" in err and "Traceback" not in err + out
    assert not (tmp_path / "r").exists()


# --- demo and the installed script ----------------------------------------------------------------


def test_demo_reports_what_it_found(command, tmp_path):
    pytest.importorskip("anndata", reason='.h5ad needs: pip install ".[io]"')
    code, out, err = command("demo", "--cells", 600, "--genes", 60, "--seed", 5, "-o", tmp_path)
    assert code == 0 and "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == RESULTS | {"cells.h5ad"}
    truth = simuRNAseq(nGenes=60, nCells=600, nsam=24, ncls=4, ntrt=2, nDEgenes=6, seed=5).DEgenes
    changed = {(row.gene, f"cell type {row.cluster}") for row in truth.itertuples()}
    table = pd.read_csv(tmp_path / "results.csv.gz")
    called = table[table["adj_p_value"] <= 0.05]
    pairs = set(zip(called["variable"], called["contrast"], strict=True))
    assert (
        f"{len(pairs & changed)} of the 6 truly changed genes found; {len(pairs - changed)} of the {len(pairs)}" in out
    )
    assert len(table) == 4 * 60


def test_demo_is_a_fit_of_its_cells(command, tmp_path):
    pytest.importorskip("anndata", reason='.h5ad needs: pip install ".[io]"')
    command("demo", "--cells", 400, "--genes", 60, "-o", tmp_path / "demo")
    contrasts = [f"cell type {cls} = cls[{cls}]:trt[T.B]" for cls in (1, 2, 3, 4)]
    asked = [word for contrast in contrasts for word in ("-c", contrast)]
    code, *_ = command("fit", tmp_path / "demo" / "cells.h5ad", "-f", demo.DEMO_FORMULA, *asked, "-o", tmp_path / "fit")
    assert code == 0
    one, other = (pd.read_csv(tmp_path / name / "results.csv.gz") for name in ("demo", "fit"))
    pd.testing.assert_frame_equal(one, other)


@pytest.fixture
def script():
    path = Path(sys.executable).with_name("lmm-gpu")
    if not path.exists():
        pytest.skip('the script is not installed: pip install ".[cli]"')
    return path


def test_as_a_module(folder):
    done = subprocess.run(
        [sys.executable, "-m", "lmm_gpu", "fit", "cells.npz", "-o", "x"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert_refused((done.returncode, done.stdout, done.stderr), "cells.npz needs a formula, such as")


def test_the_installed_script(script, folder, tmp_path):
    wanted = ["fit", *NPZ, "-f", FORMULA, "-c", "arm[T.stim]", "-o", str(tmp_path)]
    done = subprocess.run([script, *wanted], cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0
    _, counts, warning = done.stderr.splitlines()
    assert counts.startswith("raw counts recognised") and warning.startswith("warning: 1 of 6 features do not vary")
    assert_table(tmp_path / "results.csv.gz", python_fit().test("arm[T.stim]"))
    failed = subprocess.run(
        [script, *wanted, "--df", "kr"], cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    assert_refused((failed.returncode, failed.stdout, failed.stderr), "--df 'kr' is not known")


# --- info -----------------------------------------------------------------------------------------


def test_info(command, monkeypatch):
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: cupy_like_runtime.module)
    monkeypatch.setenv("COLUMNS", "120")
    code, printed, _ = command("info")
    assert code == 0
    for expected in ("numpy", np.__version__, "imitation 1", "compute 9.0", "driver 13.0", "a fit runs on cuda:0"):
        assert expected in printed
    code, printed, _ = command("info", "--json")
    found = json.loads(printed)
    assert code == 0 and found["device"] == "cuda:0" and found["why_not"].endswith("; with kernels")
    monkeypatch.setenv("LMM_GPU_KERNELS", "0")
    code, printed, _ = command("info", "--json")
    assert json.loads(printed)["why_not"].endswith("; without kernels, as LMM_GPU_KERNELS=0")


def test_info_without_cuda(command, monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'cupy'")

    monkeypatch.setattr(cuda_devices, "_cupy", missing)
    code, printed, _ = command("info")
    assert code == 0 and "a fit runs on cpu (not cuda: CuPy is not installed" in printed


# --- selftest -------------------------------------------------------------------------------------


@pytest.fixture
def few_checks(monkeypatch):
    """Checks that take no time, and no rates: one passes, one is skipped."""
    some = {"one": lambda subject: 1e-12, "two": checks.CHECKS["two devices"]}
    rate = {"what": "copy", "size": "2 numbers", "seconds": 0.5, "gb_per_s": 1.5, "gflop_per_s": None, "share": 0.25}
    monkeypatch.setattr(runner, "CHECKS", some)
    monkeypatch.setattr(runner, "rates", lambda device, quick: [rate | {"compared_with": "copy"}])
    return some


def test_selftest(command, few_checks, tmp_path):
    words = ("selftest", "--device", "cpu", "--quick", "-o", tmp_path / "made" / "found.json")
    assert command(*words)[0] == 0
    code, printed, _ = command(*words)  # its own file is replaced
    assert code == 0
    assert "passed   one" in printed and "skipped  two" in printed and "there is no second CUDA device" in printed
    assert "25.0%" in printed and "cpu: 1 passed, 0 failed, 1 skipped" in printed
    found = json.loads((tmp_path / "made" / "found.json").read_text())
    assert found["passed"] and found["quick"] and found["system"]["versions"]["numpy"] == np.__version__


def test_selftest_for_programs(command, few_checks):
    code, printed, error = command("selftest", "--device", "cpu", "--json")
    assert code == 0 and error == "" and [one["name"] for one in json.loads(printed)["checks"]] == ["one", "two"]


def test_a_selftest_that_fails(command, few_checks, tmp_path):
    few_checks["bad"] = lambda subject: 0.5
    code, printed, _ = command("selftest", "--device", "cpu", "-o", tmp_path / "found.json")
    assert code == 1 and "failed   bad" in printed and "deviates by 5.0e-01" in printed
    assert not json.loads((tmp_path / "found.json").read_text())["passed"]


def test_a_selftest_of_a_device_that_is_not_there(command, monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'cupy'")

    monkeypatch.setattr(cuda_devices, "_cupy", missing)
    code, _, error = command("selftest", "--device", "cuda")
    assert code == 2 and "--device 'cuda' cannot be used (CuPy is not installed" in error
