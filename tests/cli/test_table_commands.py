"""Commands that write tables give those of the Python API."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("h5py", reason='saved fits need: pip install ".[cli]"')

import lmm_gpu
from lmm_gpu.cli import app
from lmm_gpu.cli.contrast_options import contrasts_of, split_name

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RNG = np.random.default_rng(7)
N = 96
DONOR = np.arange(N) % 8
OBS = pd.DataFrame(
    {
        "arm": np.where(DONOR < 4, "x", "y"),
        "donor": [f"D{one}" for one in DONOR],
        "dose": np.array(["dose = 10", "none", "a=b"])[np.arange(N) // 8 % 3],
    }
)
Y = RNG.normal(size=(N, 3)) + RNG.normal(size=(8, 3))[DONOR]
FORMULA = "~ arm + dose + (1 | donor)"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tables")
    pd.DataFrame(Y, columns=["NA", "ISG15", "c"]).to_csv(place / "cells.csv", index=False)
    OBS.to_csv(place / "obs.csv", index=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(place)
        app.main(["fit", "cells.csv", "--obs", "obs.csv", "-f", FORMULA, "-o", "run"])
    assert not ended.value.code
    return place


@pytest.fixture
def command(place, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture(scope="module")
def fit(place):
    return lmm_gpu.LMMFit.load(place / "run" / "fit.h5")


def assert_written(path, wanted):
    found = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in wanted.select_dtypes("number")})
    pd.testing.assert_frame_equal(found, wanted.reset_index(drop=True), check_dtype=False, rtol=1e-12)


TABLES = {
    "test": (["test", "run", "--df", "residual"], lambda fit: fit.test(df="residual")),
    "anova": (["anova", "run"], lambda fit: fit.anova()),
    "anova by df": (["anova", "run", "--df", "kenward-roger"], lambda fit: fit.anova("kenward-roger")),
    "anova type": (["anova", "run", "--type", "II"], lambda fit: fit.anova(type=2)),
    "variance-test": (["variance-test", "run"], lambda fit: fit.variance_test()),
    "wald": (["variance-test", "run", "--method", "wald"], lambda fit: fit.variance_test("donor", method="wald")),
    "ranef": (["ranef", "run/fit.h5", "--component", "donor"], lambda fit: fit.ranef("donor")),
    "permute": (
        ["permute", "run", "-c", "arm[T.y]", "-n", "5", "--df", "satterthwaite", "--strata", "none"],
        lambda fit: fit.permutation("arm[T.y]", n=5, df="satterthwaite").table,
    ),
    "partition": (
        ["partition", "run"],
        lambda fit: fit.variance_partition().add_suffix("_fraction").rename_axis("variable").reset_index(),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_python_api(command, tmp_path, fit, name):
    words, wanted = TABLES[name]
    code, out, _ = command(*words, "-o", tmp_path / "t.csv")
    assert code == 0 and out.startswith(f"wrote {tmp_path / 't.csv'}  (")
    assert_written(tmp_path / "t.csv", wanted(fit))
    code, out, _ = command(*words, "-o", tmp_path / "t.csv", "--json")  # our own file is replaced
    assert code == 0 and json.loads(out)["written"] == [str(tmp_path / "t.csv")]


def test_permute_reports_the_calibration_and_draws_it(command, tmp_path, fit):
    words = [
        "permute",
        "run",
        "-c",
        "name = arm[T.y]",
        "-n",
        "5",
        "-o",
        tmp_path / "p.csv",
        "--plot",
        tmp_path / "p.svg",
    ]
    code, out, _ = command(*words)
    assert code == 0 and "5 of 70 labellings" in out and "<svg" in (tmp_path / "p.svg").read_text()
    code, out, _ = command(*words, "--json")
    record = json.loads(out)
    wanted = fit.permutation("arm[T.y]", n=5)
    assert record["contrast"] == "name" and record["relabellings"] == 5
    assert record["calibration"][0]["share"] == wanted.calibration["share"][0]
    assert record["written"] == [str(tmp_path / "p.csv"), str(tmp_path / "p.svg")]


@pytest.mark.parametrize("run", ["run", "run/fit.h5"])
@pytest.mark.parametrize("name", ["results.csv.gz", "genes.csv.gz"])
def test_tables_of_the_run_itself_are_never_replaced(command, place, run, name):
    before = (place / "run" / name).read_bytes()
    code, _, err = command("test", run, "-o", f"run/{name}", "--force")
    assert code == 2 and f"run/{name}: it is an input" in err
    assert (place / "run" / name).read_bytes() == before
    assert command("test", run, "-o", "run/more.csv")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["variance-test", "run", "--component", "batch"], "--component 'batch'"),
        (["variance-test", "run", "--method", "exact"], "--method 'exact' is not known"),
        (["ranef", "run", "--component", "batch"], "--component 'batch'"),
        (["anova", "run", "--type", "4"], "--type '4' is not known"),
        (["anova", "run", "--df", "kr"], "--df 'kr' is not known"),
        (["permute", "run", "-c", "dose[T.none]"], "not a contrast between the levels of donor"),
        (["permute", "run", "-c", "arm[T.y]", "--strata", "dose"], "--strata 'dose' is not a factor"),
        (["permute", "run", "-c", "arm[T.y]", "-n", "0"], "at least one relabelling"),
        (["partition", "nowhere"], "No such file or directory: nowhere"),
    ],
)
def test_wrong_options_are_named_as_the_shell_names_them(command, tmp_path, words, message):
    code, out, err = command(*words, "-o", tmp_path / "t.csv")
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "t.csv").exists()


# --- contrasts ------------------------------------------------------------------------------------

NAMES = ["Intercept", "dose[T.dose = 10]", "dose[T.none]", "x[a] = y]"]


@pytest.mark.parametrize(
    ("text", "name", "expression"),
    [
        ("dose[T.dose = 10] - dose[T.none]", None, "dose[T.dose = 10] - dose[T.none]"),
        ("high = dose[T.dose = 10]", "high", "dose[T.dose = 10]"),
        ("a = dose[T.none]", "a", "dose[T.none]"),
        ("dose[T.typo = 9]", None, "dose[T.typo = 9]"),
        ("x[a] = y]", None, "x[a] = y]"),
        ("odd = x[a] = y]", "odd", "x[a] = y]"),
    ],
)
def test_an_equals_sign_inside_a_level_separates_nothing(text, name, expression):
    assert split_name(text, NAMES) == (text if name is None else name, expression)


def test_levels_with_equals_signs_are_tested(command, tmp_path, fit):
    text = "dose[T.dose = 10] - dose[T.none]"
    assert command("test", "run", "-c", text, "-c", f"named = {text}", "-o", tmp_path / "t.csv")[0] == 0
    assert_written(tmp_path / "t.csv", fit.test({text: text, "named": text}))


def test_names_are_given_once():
    with pytest.raises(ValueError, match="got 2 contrasts with 1 names"):
        contrasts_of(["a = Intercept", "a = dose[T.none]"], NAMES)


# --- samples --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    anndata = pytest.importorskip("anndata", reason='.h5ad needs: pip install ".[io]"')
    pytest.importorskip("statsmodels", reason='voom needs: pip install ".[bulk]"')
    place = tmp_path_factory.mktemp("samples")
    donor, kind = np.repeat(np.arange(8), 60), np.tile(["B", "T"], 240)
    obs = pd.DataFrame({"donor": [f"D{one}" for one in donor], "cell_type": kind})
    obs["condition"] = np.where(donor % 2 == 0, "ctrl", "stim")
    counts = RNG.poisson(RNG.uniform(1, 6, 40), size=(480, 40)).astype(float)
    genes = pd.DataFrame(index=[f"g{one}" for one in range(40)])
    cells = anndata.AnnData(counts, obs=obs.set_index(obs.index.astype(str)), var=genes)
    cells.write_h5ad(place / "cells.h5ad")
    return place


def test_samples_are_those_of_the_python_api(samples, command, monkeypatch):
    import anndata

    monkeypatch.chdir(samples)
    code, out, _ = command("pseudobulk", "cells.h5ad", "-o", "pb.h5ad", "--min-cells", 5)
    assert code == 0 and out == "wrote pb.h5ad  (16 samples, 40 genes)\n"
    found, wanted = anndata.read_h5ad("pb.h5ad"), lmm_gpu.pseudobulk("cells.h5ad", min_cells=5)
    np.testing.assert_array_equal(found.X, wanted.X)
    assert command("pseudobulk", "cells.h5ad", "-o", "cells.h5ad", "--force")[0] == 2  # an input
    words = ["dream", "pb.h5ad", "-f", "~ condition", "--by", "cell_type", "-c", "stim = condition[T.stim]", "-o"]
    assert command(*words, "table.csv")[0] == command(*words, "table.csv")[0] == 0
    table = lmm_gpu.dream(wanted, "~ condition", by="cell_type", contrast={"stim": "condition[T.stim]"})
    assert_written("table.csv", table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pseudobulk", "cells.h5ad", "--by", "donor,batch", "-o", "x.h5ad"], "batch"),
        (["pseudobulk", "cells.h5ad", "-o", "x.csv"], "expected a name that ends in .h5ad"),
        (["dream", "nowhere.h5ad", "-f", "~ condition", "-o", "x.csv"], "there is no nowhere.h5ad"),
        (["dream", "broken.h5ad", "-f", "~ condition", "-o", "x.csv"], "cannot read broken.h5ad as .h5ad"),
        (["dream", "cells.h5ad", "-f", "~ condition", "--by", "batch", "-o", "x.csv"], "batch"),
    ],
)
def test_samples_that_cannot_be_made_or_tested(samples, command, monkeypatch, words, message):
    monkeypatch.chdir(samples)
    (samples / "broken.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    code, out, err = command(*words)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert not list(samples.glob("x.*"))


def test_contrasts_of_the_run_are_known_by_name(command, place, tmp_path):
    assert (
        command("fit", "cells.csv", "--obs", "obs.csv", "-f", FORMULA, "-c", "treated = arm[T.y]", "-o", "named")[0]
        == 0
    )
    assert command("test", "named", "-c", "treated", "-o", tmp_path / "t.csv")[0] == 0
    assert set(pd.read_csv(tmp_path / "t.csv")["contrast"]) == {"treated"}
    code, out, _ = command("permute", "named", "-c", "treated", "-n", "5", "-o", tmp_path / "p.csv")
    assert code == 0 and "Permutation of treated" in out


@pytest.mark.parametrize("turned", [False, True])
def test_dream_reads_tables_of_samples(command, place, tmp_path, turned):
    rng = np.random.default_rng(3)
    names = [f"s{i}" for i in range(12)]
    counts = pd.DataFrame(rng.poisson(100, (12, 40)), index=names, columns=[f"g{j}" for j in range(40)])
    samples = pd.DataFrame({"day": ["a", "b"] * 6, "subject": np.repeat(list("uvwxyz"), 2)}, index=names)
    (counts.T if turned else counts).sample(frac=1, random_state=1).to_csv(tmp_path / "counts.csv")
    samples.to_csv(tmp_path / "samples.csv")
    words = [
        "dream",
        tmp_path / "counts.csv",
        "-f",
        "~ day + (1 | subject)",
        "-c",
        "day[T.b]",
        "-o",
        tmp_path / "t.csv",
    ]
    assert command(*words, "--obs", tmp_path / "samples.csv")[0] == 0
    found = pd.read_csv(tmp_path / "t.csv").set_index("variable")["log_fc"]
    wanted = lmm_gpu.dream((counts, samples), "~ day + (1 | subject)", contrast="day[T.b]")
    assert wanted.attrs["transform"] == "log2 cpm"
    pd.testing.assert_series_equal(found.sort_index(), wanted.set_index("variable")["log_fc"].sort_index())
    code, _, err = command(*words)
    assert code == 2 and "or as .csv or .tsv with --obs" in err
    samples.rename(index={"s3": "other"}).to_csv(tmp_path / "samples.csv")
    code, _, err = command(*words, "--obs", tmp_path / "samples.csv")
    assert code == 2 and "first: " in err and "names of the samples" in err
