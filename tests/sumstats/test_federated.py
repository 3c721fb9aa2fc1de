"""Sites that keep their cells and send sums: the same fit as that of all cells in one place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("rich", reason='the command line needs: pip install ".[cli]"')
pytest.importorskip("h5py", reason='saved statistics need: pip install ".[cli]"')

import lmm_gpu
from lmm_gpu import SummaryStats
from lmm_gpu.cli import app
from lmm_gpu.sumstats.accumulator import Accumulator

RNG = np.random.default_rng(7)
SITES = {"oslo": range(0, 6), "lima": range(4, 9), "pune": range(9, 14)}  # donors D4 and D5 went to two of them
GENES = tuple(f"g{gene}" for gene in range(8))
FORMULAS = ["~ arm + age + (1 | donor)", "~ arm * age + (1 | donor) + (1 | batch)"]


def cells_of(site):
    """Counts, genes in an order of their own, and obs of a site."""
    n = 90
    donor = RNG.choice(list(SITES[site]), n)
    obs = pd.DataFrame(
        {
            "donor": [f"D{d}" for d in donor],
            "arm": np.where(RNG.random(n) < 0.5, "ctrl", "stim"),
            "age": 30.0 + donor,
            "batch": RNG.choice([f"{site}1", f"{site}2", "shared"], n),
            "depth": RNG.uniform(0.5, 2.0, n),
        },
        index=[f"{site}-{cell}" for cell in range(n)],
    )
    order = RNG.permutation(len(GENES))
    level = np.exp(RNG.normal(1.0, 0.4, len(GENES)) + 0.3 * RNG.normal(size=(20, 8))[donor])  # (n, m)
    return RNG.poisson(level)[:, order], [GENES[gene] for gene in order], obs


CELLS = {site: cells_of(site) for site in SITES}


def pooled():
    """All cells in one place, genes in the order of the first site."""
    first = CELLS["oslo"][1]
    counts = [pd.DataFrame(values, columns=genes)[first] for values, genes, _ in CELLS.values()]
    return pd.concat(counts).to_numpy(), first, pd.concat([obs for *_, obs in CELLS.values()])


def assert_same_fit(found, wanted, rtol=1e-10):
    assert found.summary.n == wanted.summary.n
    assert set(found.summary.random_names) == set(wanted.summary.random_names)
    for name in ("coef", "se", "theta", "t", "p"):
        np.testing.assert_allclose(found[name][wanted.coef.columns], wanted[name], rtol=rtol, err_msg=name)
    np.testing.assert_allclose(found.RE.loc[wanted.RE.index, wanted.RE.columns], wanted.RE, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(
    "reading",
    [
        {},
        {"transform": "log1p"},
        {"transform": "normalize", "size_factors": "depth"},
        {"transform": "normalize", "target": 25.0},
        {"is_counts": False},
        {"cells": "depth > 0.6 and age >= 31"},
    ],
)
def test_merged_is_pooled(tmp_path, formula, reading):
    """Through files, as sites send them."""
    for site, (counts, genes, obs) in CELLS.items():
        part = lmm_gpu.summarize((counts, obs), formula, features=genes, progress=False, **reading)
        part.save(tmp_path / f"{site}.h5")
    oslo, lima, pune = (SummaryStats.load(tmp_path / f"{site}.h5") for site in SITES)
    total = oslo + lima + pune
    counts, genes, obs = pooled()
    wanted = lmm_gpu.fit((counts, obs), formula, features=genes, progress=False, **reading)
    assert_same_fit(lmm_gpu.fit(total, progress=False), wanted)


def test_any_order_of_sites():
    formula = FORMULAS[0]
    parts = [lmm_gpu.summarize((c, obs), formula, features=genes, progress=False) for c, genes, obs in CELLS.values()]
    one, other = parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])
    assert_same_fit(lmm_gpu.fit(other, progress=False), lmm_gpu.fit(one, progress=False))


def test_a_site_without_an_arm_is_refused_with_the_remedy():
    counts, genes, obs = CELLS["lima"]
    only = (obs["arm"] == "ctrl").to_numpy()
    with pytest.raises(ValueError, match=r"arm has one level, 'ctrl', .* C\(arm, levels=\['ctrl', "):
        lmm_gpu.summarize((counts[only], obs[only]), "~ 0 + arm + (1 | donor)", features=genes, progress=False)


@pytest.mark.parametrize("formula", ["~ arm + (1 | donor)", "~ C(arm, contr.sum) + (1 | donor)"])
def test_sites_with_other_levels_are_refused_with_the_remedy(formula):
    """With sum contrasts the columns of both sites have the same names and another meaning."""
    counts, genes, obs = CELLS["lima"]
    one, other = (
        obs.assign(arm=np.resize(["a", "b", "c"], len(obs))),
        obs.assign(arm=np.resize(["a", "b", "d"], len(obs))),
    )
    parts = [lmm_gpu.summarize((counts, table), formula, features=genes, progress=False) for table in (one, other)]
    with pytest.raises(ValueError, match=r"only on the left: c; .* C\(arm, levels=\['a', 'b', 'c', 'd'\]\)"):
        parts[0] + parts[1]


def test_a_site_without_an_arm_takes_part_if_all_name_the_levels():
    formula = "~ C(arm, levels=['ctrl', 'stim']) + age + (1 | donor)"
    sites = {site: (counts, genes, obs.assign(arm="ctrl") if site == "lima" else obs)
             for site, (counts, genes, obs) in CELLS.items()}  # fmt: skip
    oslo, lima, pune = (
        lmm_gpu.summarize((counts, obs), formula, features=genes, progress=False)
        for counts, genes, obs in sites.values()
    )
    counts, genes, obs = pooled()
    obs = obs.assign(arm=np.concatenate([table["arm"] for *_, table in sites.values()]))
    wanted = lmm_gpu.fit((counts, obs), formula, features=genes, progress=False)
    assert_same_fit(lmm_gpu.fit(oslo + lima + pune, progress=False), wanted)


def test_sites_that_normalize_to_their_own_means_are_refused():
    parts = [
        lmm_gpu.summarize((c, obs), FORMULAS[0], features=genes, transform="normalize", progress=False)
        for c, genes, obs in CELLS.values()
    ]
    with pytest.raises(ValueError, match=r"transform.*normalize to "):
        parts[0] + parts[1]


# --- on the command line --------------------------------------------------------------------------


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run `lmm-gpu` among the cells of all sites: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    for site, (counts, genes, obs) in (CELLS | {"pooled": pooled()}).items():
        sparse.save_npz(f"{site}.npz", sparse.csr_matrix(counts))
        (tmp_path / f"{site}.txt").write_text("\n".join(genes))
        obs.to_csv(f"{site}.csv")

    def run_command(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            app.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run_command


def of(site):
    return f"{site}.npz", "--obs", f"{site}.csv", "--features", f"{site}.txt", "-f", FORMULAS[0]


def assert_refused(said, message):
    code, out, err = said
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err
    assert err.count("\n") == 1 and "Traceback" not in err


def test_summarize_takes_the_options_of_reading(command):
    options = ["--transform", "normalize", "--target", "25", "--cells", "depth > 0.8", "--min-cells", "1"]
    code, _, err = command("summarize", *of("oslo"), "-o", "oslo.h5", *options, "--min-mean", "1.5", "--resume")
    assert code == 0, err
    counts, genes, obs = CELLS["oslo"]
    kept = (obs["depth"] > 0.8).to_numpy()
    seen = counts[kept].mean(axis=0) >= 1.5
    assert seen.any() and not seen.all()
    total = counts[kept].sum(axis=1, keepdims=True)
    values = np.log1p(counts[kept] / (total / 25.0))[:, seen]
    found = SummaryStats.load("oslo.h5")
    assert found.features == tuple(np.array(genes)[seen]) and found.transform == "normalize to 25.0"
    np.testing.assert_allclose(found.Ysum, values.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.Ynorm, (values**2).sum(axis=0), rtol=1e-12)


def test_summarize_resumes(command, monkeypatch, tmp_path):
    """A checkpoint lies beside the file, and is gone with it."""
    monkeypatch.setattr("lmm_gpu.sumstats.chunk_plan._MOST_VALUES", 50)
    monkeypatch.setattr("lmm_gpu.sumstats.checkpoint._SHARE", np.inf)
    added, left = [], [2]
    add = Accumulator.add

    def counted(self, rows, *args):
        if not left[0]:
            raise MemoryError("no more")
        left[0] -= 1
        added.append(rows)
        add(self, rows, *args)

    monkeypatch.setattr(Accumulator, "add", counted)
    arguments = ["summarize", *of("oslo"), "-o", "oslo.h5", "--resume"]
    assert command(*arguments)[0] == 2
    assert (tmp_path / "oslo.checkpoint.h5").exists() and not (tmp_path / "oslo.h5").exists()
    left[0] = -1
    assert command(*arguments)[0] == 0
    assert len(added) > 5 and [rows.start for rows in added[1:]] == [rows.stop for rows in added[:-1]]
    assert not (tmp_path / "oslo.checkpoint.h5").exists()
    counts, genes, obs = CELLS["oslo"]
    wanted = lmm_gpu.summarize((counts, obs), FORMULAS[0], features=genes, progress=False)
    np.testing.assert_allclose(SummaryStats.load("oslo.h5").ZY, wanted.ZY, rtol=1e-12)


@pytest.mark.parametrize("option", [["--cells", "age > 1"], ["--min-cells", "1"], ["--target", "9"]])
def test_statistics_cannot_be_filtered(command, option):
    command("summarize", *of("oslo"), "-o", "oslo.h5")
    assert_refused(command("fit", "oslo.h5", "-o", "run", *option), f"leave out {option[0]}")


@pytest.fixture
def merged(command):
    for site in SITES:
        assert command("summarize", *of(site), "-o", f"{site}.h5")[0] == 0
    assert command("merge", "oslo.h5", "lima.h5", "pune.h5", "-o", "all.h5")[0] == 0
    return command


def test_commands_give_the_pooled_fit(merged, tmp_path):
    assert merged("fit", "all.h5", "-o", "together")[0] == 0
    assert merged("fit", *of("pooled"), "-o", "pooled")[0] == 0
    assert_same_fit(lmm_gpu.LMMFit.load("together/fit.h5"), lmm_gpu.LMMFit.load("pooled/fit.h5"))
    one, other = (pd.read_csv(f"{name}/results.csv.gz") for name in ("together", "pooled"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-10)
    assert not list(tmp_path.rglob("*.part"))


def test_merging_a_merge(merged):
    assert merged("merge", "oslo.h5", "lima.h5", "-o", "two.h5")[0] == 0
    assert_refused(merged("merge", "two.h5", "pune.h5", "-o", "two.h5"), "it is an input (two.h5)")
    assert merged("merge", "two.h5", "pune.h5", "-o", "three.h5")[0] == 0
    one, other = (SummaryStats.load(name) for name in ("three.h5", "all.h5"))
    assert one.n == other.n and one.random_names == other.random_names
    np.testing.assert_array_equal(one.ZY, other.ZY)


def test_the_written_file_is_reported(command):
    code, out, _ = command("summarize", *of("oslo"), "-o", "new/oslo.h5")
    assert code == 0
    assert out == "wrote new/oslo.h5  (90 cells, 8 genes, 3 fixed effects, random effects: donor (6))\n"


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv"])
def test_tests_of_a_saved_fit(merged, suffix):
    merged("fit", "all.h5", "-o", "run")
    shutil.copy("run/fit.h5", "alone.h5")
    options = ["-c", "x = arm[T.stim] - age", "-c", "age", "--df", "residual", "--alternative", "less", "--level", 0.9]
    for fitted in ("run", "alone.h5"):
        code, out, err = merged("test", fitted, *options, "-o", f"table{suffix}")
        assert (code, out) == (0, f"wrote table{suffix}  (16 tests: gene x contrast)\n")
        assert all(line.startswith("warning: ") for line in err.splitlines())  # no slope: advice about a contrast
        found = pd.read_csv(f"table{suffix}", sep="\t" if suffix == ".tsv" else ",")
        contrasts = {"x": "arm[T.stim] - age", "age": "age"}
        wanted = lmm_gpu.LMMFit.load("run/fit.h5").test(contrasts, df="residual", alternative="less", level=0.9)
        pd.testing.assert_frame_equal(found, wanted, rtol=1e-12, check_dtype=False)


def test_a_parquet_table(merged):
    pytest.importorskip("pyarrow", reason="writing .parquet needs: pip install pyarrow")
    merged("fit", "all.h5", "-o", "run")
    assert merged("test", "run", "-o", "table.parquet")[0] == 0
    pd.testing.assert_frame_equal(pd.read_parquet("table.parquet"), lmm_gpu.LMMFit.load("run/fit.h5").test())


def test_json(merged):
    """One object for each command, and nothing else on standard output."""
    code, out, err = merged("merge", "oslo.h5", "lima.h5", "-o", "two.h5", "--json")
    record = json.loads(out)
    assert (code, err, record["written"]) == (0, "", ["two.h5"])
    assert (record["cells"], record["genes"], record["random_effects"]) == (180, 8, {"donor": 9})
    assert record["fingerprint"] == SummaryStats.load("two.h5").fingerprint
    record = json.loads(merged("fit", "two.h5", "-o", "run", "--json")[1])
    with open("run/run.json", encoding="utf-8") as file:
        assert record == json.load(file) | {"written": record["written"]}
    assert [name.rpartition("/")[2] for name in record["written"]] == [
        "results.csv.gz",
        "genes.csv.gz",
        "fit.h5",
        "run.json",
    ]
    code, out, _ = merged("test", "run", "-c", "age", "-o", "t.csv", "--json")
    assert json.loads(out) == {"tests": 8, "contrasts": ["age"], "df": "generalized", "written": ["t.csv"]}


@pytest.mark.parametrize("arguments", [["merge", "oslo.h5", "-o", "x.h5"], ["merge", "--sites", "2"], ["marge"]])
def test_mistakes_as_json(command, arguments):
    code, out, err = command(*arguments, "--json")
    said = json.loads(err)
    assert (code, out, said["level"]) == (2, "", "error")
    assert said["message"] and "\n" not in said["message"]


def test_warnings_as_json(command):
    sparse.save_npz("oslo.npz", sparse.csr_matrix(CELLS["oslo"][0] * (np.arange(8) > 0)))
    code, out, err = command("fit", *of("oslo"), "-o", "run", "--json")
    table, counts, first, *others = [json.loads(line) for line in err.splitlines()]
    assert "numeric columns" in table["message"]
    assert code == 0 and json.loads(out)["status"]["no_variance"] == 1
    assert counts["message"].startswith("raw counts recognised")
    assert first["level"] == "warning" and first["message"].startswith("1 of 8 features do not vary")
    assert all(other["level"] == "warning" for other in others)


# --- what is wrong --------------------------------------------------------------------------------


def test_wrong_files_are_refused(merged, tmp_path):
    whole = (tmp_path / "oslo.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:5000])
    (tmp_path / "copy.h5").write_bytes(whole)
    merged("fit", "all.h5", "-o", "run")
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in [
        (["merge", "oslo.h5", "cut.h5", "-o", "x.h5"], "cannot use cut.h5: "),
        (["merge", "oslo.h5", "oslo.npz", "-o", "x.h5"], "cannot use oslo.npz: "),
        (["merge", "oslo.h5", "run/fit.h5", "-o", "x.h5"], "it is no file of lmm_gpu summary statistics"),
        (["merge", "oslo.h5", "./oslo.h5", "-o", "x.h5"], "oslo.h5 is named twice: its cells would count twice"),
        (["merge", "oslo.h5", "copy.h5", "-o", "x.h5"], "copy.h5 is a copy of oslo.h5: its cells would count twice"),
        (["merge", "oslo.h5", "nowhere.h5", "-o", "x.h5"], "No such file or directory: nowhere.h5"),
        (
            ["merge", "oslo.h5", "lima.h5", "-o", "run"],
            "cannot write run: it is a folder; give the name of a regular or new file",
        ),
        (["merge", "oslo.h5", "lima.h5", "-o", "oslo.h5/x"], "cannot write oslo.h5/x: oslo.h5 is a file"),
        (["summarize", *of("oslo"), "-o", "run"], "cannot write run: it is a folder"),
        (["fit", "cut.h5", "-o", "x"], "cannot use cut.h5: "),
        (["fit", "run/fit.h5", "-o", "x"], "it is no file of lmm_gpu summary statistics"),
        (["fit", "oslo.npz", "-o", "x"], "oslo.npz needs a formula"),
        (["fit", "run", "-o", "x"], "run needs a formula"),
        (
            ["fit", "all.h5", "-f", "~ arm + (1 | donor)", "-o", "x"],
            "has its model and values already: leave out --formula",
        ),
        (["fit", "all.h5", "--transform", "log1p", "-o", "x"], "leave out --transform"),
        (["fit", "all.h5", "-c", "arm[stim]", "-o", "x"], "no column is called 'arm[stim]'"),
        (["test", "run", "-c", "arm[stim]", "-o", "x.csv"], "no column is called 'arm[stim]'"),
        (["test", "run", "--df", "kr", "-o", "x.csv"], "--df 'kr' is not known"),
        (["test", "run", "--alternative", "more", "-o", "x.csv"], "--alternative 'more' is not known"),
        (["test", "run", "--level", "95", "-o", "x.csv"], "must lie between 0 and 1"),
        (["test", "run", "-o", "x.xlsx"], "cannot write a table to x.xlsx: the name must end in"),
        (["test", "all.h5", "-o", "x.csv"], "it is no file of lmm_gpu fit"),
        (["test", ".", "-o", "x.csv"], ". has no run.json: expected the folder"),
        (["test", "nowhere", "-o", "x.csv"], "No such file or directory: nowhere"),
    ]:
        assert_refused(merged(*arguments), message)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_models_are_refused(merged):
    other = ("lima.npz", "--obs", "lima.csv", "--features", "lima.txt")
    for change, message in [
        (["-f", "~ arm + (1 | donor)"], "fixed_names differ: only on the left: age"),
        (["-f", FORMULAS[0], "--transform", "log1p"], "transform differ: 'log2p1' on the left, 'log1p' on the right"),
        (["-f", "~ arm + age + (1 | batch)"], "component_names differ: only on the left: donor"),
    ]:
        assert merged("summarize", *other, *change, "-o", "lima.h5")[0] == 0
        said = merged("merge", "oslo.h5", "lima.h5", "-o", "x.h5")
        assert_refused(said, f"lima.h5 and the files before it: cannot add summary statistics: {message}")


@pytest.mark.parametrize("name", ["fit", "summarize", "merge", "test", "demo"])
def test_help_has_an_example(command, name):
    code, out, err = command(name, "--help")
    assert code == 0 and err == ""
    assert f"Example: lmm-gpu {name}" in " ".join(out.split())
