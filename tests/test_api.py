"""The Python API: equal results for every kind of input, and errors before and while reading."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lmm_gpu
from lmm_gpu import fit, lmmfit, summarize
from lmm_gpu.io.source import open_source

RNG = np.random.default_rng(31)
N, M = 90, 6
GENES = [f"g{gene}" for gene in range(M)]
CELLS = [f"cell{cell}" for cell in range(N)]
DONOR = np.arange(N) % 6
OBS = pd.DataFrame(
    {"donor": [f"D{d}" for d in DONOR], "arm": np.where(DONOR < 3, "ctrl", "stim"), "depth": RNG.uniform(0.5, 2, N)},
    index=CELLS,
)
VALUES = RNG.normal(size=(6, M))[DONOR] + RNG.normal(size=(N, M))
COUNTS = RNG.poisson(5.0, size=(N, M))
FORMULA = "~ arm + (1 | donor)"
ARM = "arm[T.stim]"


def quiet_fit(data, formula=FORMULA, **options):
    return fit(data, formula, progress=False, **options)


def same(one, other, rtol=1e-10):
    for name in ("theta", "coef", "se", "logLik"):
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def plain():
    """From the design written out by hand."""
    X = np.column_stack([np.ones(N), DONOR >= 3])
    return lmmfit(VALUES.T, X, np.eye(6)[DONOR])


@pytest.fixture(scope="module")
def adata():
    anndata = pytest.importorskip("anndata", reason='AnnData needs: pip install ".[io]"')
    layers = {"counts": sparse.csr_matrix(COUNTS)}
    return anndata.AnnData(sparse.csr_matrix(VALUES), OBS, pd.DataFrame(index=GENES), layers=layers)


@pytest.fixture(scope="module")
def h5ad(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.copy().write_h5ad(path)
    return path


# --- ways in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_matrix, sparse.coo_matrix, pd.DataFrame])
def test_matrix_and_obs(kind, plain):
    same(quiet_fit((kind(VALUES), OBS.reset_index(drop=True))), plain)
    same(quiet_fit(kind(VALUES), obs=OBS.reset_index(drop=True)), plain)


def test_anndata_and_files(adata, h5ad, plain):
    for data in (adata, h5ad, str(h5ad)):
        found = quiet_fit(data)
        same(found, plain)
        assert found.coef.columns.tolist() == GENES
        assert found.coef.index.tolist() == ["Intercept", ARM]


def test_an_open_source(h5ad, plain):
    with open_source(h5ad) as source:
        same(quiet_fit(source), plain)


def test_a_view_of_an_anndata(adata):
    kept = np.flatnonzero(DONOR != 2)
    same(quiet_fit(adata[kept, 1:4]), quiet_fit((VALUES[kept, 1:4], OBS.iloc[kept].reset_index(drop=True))))


def test_layers(adata, h5ad):
    for data in (adata, h5ad):
        same(quiet_fit(data, layer="counts"), quiet_fit((np.log2(1.0 + COUNTS), OBS)), rtol=1e-9)


def test_other_files(tmp_path, plain):
    sparse.save_npz(tmp_path / "cells.npz", sparse.csr_matrix(VALUES))
    pd.DataFrame(VALUES, CELLS, GENES).to_csv(tmp_path / "cells.csv")
    OBS.to_csv(tmp_path / "obs.csv")
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    for name, more in {"cells.npz": {"features": tmp_path / "genes.txt"}, "cells.csv": {}}.items():
        found = quiet_fit(tmp_path / name, obs=tmp_path / "obs.csv", **more)
        same(found, plain)
        assert found.coef.columns.tolist() == GENES


def test_summary_statistics_are_the_intermediate_result(adata, plain):
    summary = summarize(adata, FORMULA, progress=False)
    same(fit(summary, progress=False), plain)
    assert fit(summary, method="ML", progress=False).method == "ML"


def test_two_sites_that_share_no_cells(plain):
    sites = [slice(0, 40), slice(40, N)]  # every donor in both
    parts = [summarize((VALUES[site], OBS.iloc[site]), FORMULA, progress=False) for site in sites]
    assert [part.n for part in parts] == [40, 50]
    same(fit(parts[0] + parts[1], progress=False), plain)


@pytest.mark.parametrize("memory", ["10KB", 4_000, "1GB", None])
def test_results_do_not_depend_on_memory(h5ad, memory, plain):
    same(quiet_fit(h5ad, memory=memory), plain)


def test_cells_with_the_same_name(plain):
    same(quiet_fit((VALUES, OBS.set_axis(["cell"] * N))), plain)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, np.log2(1 + COUNTS)),
        ({"is_counts": False}, COUNTS),
        ({"transform": "log1p"}, np.log1p(COUNTS)),
        ({"transform": "log2p1"}, np.log2(1 + COUNTS)),
        ({"transform": "normalize"}, np.log1p(COUNTS / (COUNTS.sum(1) / COUNTS.sum(1).mean())[:, None])),
        ({"transform": "normalize", "size_factors": "depth"}, np.log1p(COUNTS / OBS[["depth"]].to_numpy())),
        ({"transform": "normalize", "size_factors": OBS["depth"]}, np.log1p(COUNTS / OBS[["depth"]].to_numpy())),
        ({"transform": "normalize", "size_factors": [2.0] * N}, np.log1p(COUNTS / 2)),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("memory", [None, 4_000])
def test_transforms(options, values, kind, memory):
    summary = summarize((kind(COUNTS), OBS), FORMULA, memory=memory, progress=False, **options)
    np.testing.assert_allclose(summary.Ynorm, (values**2).sum(axis=0), rtol=1e-11)
    np.testing.assert_allclose(summary.mean(), values.mean(axis=0), rtol=1e-11)
    target = f" to {float(COUNTS.sum(1).mean())!r}" if options == {"transform": "normalize"} else ""
    label = (options.get("transform") or "") + target if options else "log2p1"
    assert summary.transform == (label or None)


def test_sites_that_are_added_have_one_target():
    """Each site's own mean total would make another transform of each: they add if all have the same target."""
    sites = [(COUNTS[some], OBS[some]) for some in (slice(0, 40), slice(40, N))]
    options = {"transform": "normalize", "progress": False}
    whole = summarize((COUNTS, OBS), FORMULA, target=50, **options)
    parts = [summarize(site, FORMULA, target=50.0, **options) for site in sites]
    np.testing.assert_allclose((parts[0] + parts[1]).Ynorm, whole.Ynorm, rtol=1e-12)
    wanted = np.log1p(50 * COUNTS / COUNTS.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(whole.Ynorm, (wanted**2).sum(axis=0), rtol=1e-12)
    ours = [summarize(site, FORMULA, **options) for site in sites]
    with pytest.raises(ValueError, match=r"transform differ.*normalize to .*normalize to"):
        ours[0] + ours[1]


# --- which cells and genes ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_cells_that_meet_a_query(kind):
    some = ((OBS["depth"] > 1) & (OBS["arm"] == "stim")).to_numpy()
    obs = OBS.astype({"donor": "category", "arm": "category"})  # donors of the other arm are categories without cells
    options = {"transform": "normalize", "progress": False, "memory": 4_000}
    found = summarize((kind(COUNTS), obs), "~ depth + (1 | donor)", cells="depth > 1 and arm == 'stim'", **options)
    wanted = summarize((kind(COUNTS[some]), OBS[some]), "~ depth + (1 | donor)", **options)
    assert found.n == wanted.n == some.sum() and found.random_names == wanted.random_names
    for name in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum"):
        np.testing.assert_allclose(found[name] if name != "Ysum" else found.Ysum, getattr(wanted, name), rtol=1e-12)
    assert found.transform == wanted.transform


def test_size_factors_of_some_cells():
    some = (OBS["arm"] == "stim").to_numpy()
    options = {"transform": "normalize", "size_factors": "depth", "progress": False}
    found = summarize((COUNTS, OBS), "~ depth + (1 | donor)", cells="arm == 'stim'", **options)
    wanted = np.log1p(COUNTS / OBS[["depth"]].to_numpy())[some]
    np.testing.assert_allclose(found.Ynorm, (wanted**2).sum(axis=0), rtol=1e-12)


def test_unknown_cells_are_left_out_with_a_line(caplog):
    obs = OBS.assign(depth=OBS["depth"].where(DONOR != 2))
    found = summarize((COUNTS, obs), FORMULA, cells="depth > 0", progress=False)
    assert found.n == (DONOR != 2).sum()
    assert f"for {(DONOR == 2).sum()} cells it is unknown whether depth > 0: they are left out" in caplog.text


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("memory", [None, 4_000])
@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({"min_cells": 30}, lambda counts: (counts > 0).sum(axis=0) >= 30),
        ({"min_mean": 0.5}, lambda counts: counts.mean(axis=0) >= 0.5),
        ({"min_cells": 20, "min_mean": 1.0}, lambda c: ((c > 0).sum(axis=0) >= 20) & (c.mean(axis=0) >= 1)),
        ({"min_cells": 0}, lambda counts: np.ones(M, dtype=bool)),
    ],
)
def test_genes_that_are_seen_enough(kind, memory, options, keep):
    counts = RNG.poisson([0.01, 0.2, 0.4, 0.6, 1.2, 30.0], size=(N, M))
    counts[:, 2] *= 9  # few cells, large mean
    kept = keep(counts)
    assert kept.sum() > 1 and (kept.all() == (options == {"min_cells": 0}))
    data = kind(counts)
    found = summarize((data, OBS), FORMULA, features=GENES, memory=memory, progress=False, **options)
    assert found.features == tuple(np.array(GENES)[kept])
    np.testing.assert_allclose(found.Ynorm, (np.log2(1 + counts[:, kept]) ** 2).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.ZY, np.eye(6)[DONOR].T @ np.log2(1 + counts[:, kept]), rtol=1e-12)


def test_genes_far_from_zero_are_filtered_with_their_centre():
    found = summarize((VALUES + 1e6, OBS), FORMULA, min_mean=1e6 + VALUES.mean(axis=0)[0], progress=False)
    assert found.centred is not None and found.centred.XY.shape == found.XY.shape
    assert 0 < found.m < M


def test_stored_zeros_are_no_cells():
    stored = sparse.csr_matrix(np.ones((N, 2)))
    stored.data[::2] = np.arange(N) < 3  # the first gene is seen in three cells
    found = summarize((stored, OBS), FORMULA, min_cells=4, progress=False)
    assert found.features == ("Gene2",)


def test_fit_takes_the_same_options():
    found = quiet_fit((COUNTS, OBS), cells="depth > 0.7", min_mean=4.9)
    wanted = quiet_fit((COUNTS[OBS["depth"] > 0.7], OBS[OBS["depth"] > 0.7]), min_mean=4.9)
    assert found.summary.features == wanted.summary.features
    same(found, wanted)


# --- options --------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_python_api():
    found = quiet_fit((VALUES, OBS))
    assert (found.method, found.epsilon, found.ddf) == ("REML", 1e-5, "satterthwaite")
    assert (found.df.loc[ARM] <= 6 - 2).all()  # donors less two: the effect is between donors
    assert found.test(ARM)["df"].tolist() == pytest.approx(found.df.loc[ARM].tolist(), rel=1e-5)


def test_options_reach_the_fit():
    loose = quiet_fit((VALUES, OBS), method="ML", bounds="nonnegative", epsilon=1.0)
    assert (loose.method, loose.epsilon) == ("ML", 1.0)
    assert (loose.theta.to_numpy() >= 0).all()
    with pytest.warns(UserWarning, match="did not converge"):
        assert (
            quiet_fit((VALUES, OBS.assign(donor=RNG.permutation(DONOR))), max_iter=1, epsilon=1e-12).niter <= 1
        ).all()


def test_progress_is_silent_without_a_terminal(capsys):
    fit((VALUES, OBS), FORMULA)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_one_gene():
    assert len(quiet_fit((VALUES[:, :1], OBS)).test(ARM)) == 1


def test_unusual_names_of_columns_levels_and_genes():
    obs = pd.DataFrame({"état, n°": np.where(DONOR < 3, 'a "0"/x', "b, (c):[d] - e"), "患者 id": OBS["donor"]})
    genes = ["a,b", 'c"d', "e/f", "é", " ", "-"]
    found = quiet_fit((pd.DataFrame(VALUES, OBS.index, genes), obs), "~\n `état, n°`\t+ (1 | `患者 id`)\n")
    assert found.test()["variable"].tolist() == genes * 2
    name = found.coef.index[1]
    assert name == "état, n°[T.b, (c):[d] - e]"
    for contrast in (name, f'"{name}"', {"x": f"2*{name} - {name}"}):
        np.testing.assert_allclose(found.test(contrast)["log_fc"], found.coef.loc[name], rtol=1e-12)
    assert "患者 id_variance" in found.test(name)


# --- what is refused ------------------------------------------------------------------------------


def holed(value):
    values = VALUES.copy()
    values[40, 2] = value
    return values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formula": None}, "a formula is needed, such as"),
        ({"formula": 3}, "got formula=3; wanted text such as '~ condition"),
        ({"formula": ""}, "has no random term: add at least one"),
        ({"formula": "~ arm"}, "has no random term: add at least one"),
        ({"formula": "~ arm + (1 | donro)"}, "obs has no column 'donro': did you mean donor"),
        ({"formula": "~ ARM + (1 | donor)"}, "obs has no column 'ARM'"),
        ({"formula": "~ arm + (1 | donor"}, "cannot read the random term"),
        ({"formula": "~ arm + donor + (1 | donor)"}, "X is rank deficient"),
        ({"formula": "~ arm + (arm | donor)"}, "the cells of a group do not determine their covariances"),
        ({"data": (VALUES, OBS[:50])}, "obs has 50 rows, but the matrix has 90 rows and 6 columns"),
        ({"data": (VALUES.T, OBS)}, "transpose it, cells are the rows"),
        ({"data": VALUES}, "needs a table that describes its cells: pass obs="),
        ({"data": (VALUES, OBS.to_dict())}, "needs a table that describes its cells"),
        ({"data": [VALUES, OBS]}, "got list, expected an AnnData, a path, a matrix or a pair"),
        ({"data": "cells.xlsx"}, "the ending of cells.xlsx is not known"),
        ({"data": (VALUES[:0], OBS[:0])}, "obs has no rows"),
        ({"data": (VALUES[:1], OBS[:1])}, "the factor arm has one level, 'ctrl', in these cells"),
        ({"data": (VALUES[:, :0], OBS)}, "the matrix has no genes: wanted at least one column"),
        ({"data": (VALUES, OBS.assign(donor="D1"))}, r"\(1 \| donor\) has a single group"),
        ({"data": (VALUES, OBS.assign(donor=CELLS))}, "has as many groups as there are cells"),
        ({"data": (VALUES, OBS.assign(arm=None))}, "no cell has a value in all of the columns .*: arm, donor"),
        ({"data": (holed(np.nan), OBS)}, r"holds 1 value.*NaN.*position \(40, 2\); remove or impute"),
        ({"data": (sparse.csr_array(holed(np.inf)), OBS), "memory": 4_000}, r"position \(40, 2\)"),
        ({"data": (1e170 * VALUES, OBS)}, r"holds 540 value\(s\)"),
        ({"data": (VALUES.astype(str), OBS)}, "holds values of type .*; wanted numbers"),
        ({"data": (VALUES + 1j, OBS)}, "holds values of type complex128; wanted numbers"),
        ({"features": ["a", "b"]}, "got 2 gene names for the 6 columns"),
        ({"features": list("aabcde")}, r"1 gene names of the matrix appear more than once \(a\)"),
        ({"layer": "counts"}, "only AnnData, .h5ad and .zarr have layers"),
        ({"transform": "log"}, "transform='log' is not known; use None or one of log1p, log2p1, normalize"),
        ({"transform": "log1p"}, "log1p is for counts, but values go down to"),
        ({"cells": "depht > 1"}, "obs has no column 'depht'; it has depth"),
        ({"cells": "depth > 100"}, "cells='depth > 100' is true for none of 90 cells"),
        ({"min_cells": -1}, "min_cells=-1: wanted a number, 0 or more"),
        ({"min_mean": "5"}, "min_mean='5': wanted a number, 0 or more"),
        (
            {"min_cells": 91},
            "no gene has min_cells=91 and min_mean=None: the largest number of cells with a gene is 90",
        ),
        ({"transform": "log1p", "target": 5}, "got target=5: it is for transform='normalize' without size_factors"),
        ({"transform": "normalize", "target": 5, "size_factors": "depth"}, "got target=5: it is for"),
        ({"transform": "normalize", "target": 0}, "target=0: wanted a total count, above 0"),
        ({"transform": "normalize"}, "total counts of .* are not positive numbers"),
        ({"is_counts": True}, "log2p1 is for counts, but values go down to"),
        ({"is_counts": "no"}, "is_counts='no': wanted True, False, or None"),
        ({"size_factors": "depth"}, "got size_factors with transform=None: they are for transform='normalize' only"),
        ({"transform": "log1p", "size_factors": "depth"}, "got size_factors with transform='log1p'"),
        ({"transform": "normalize", "size_factors": "dpth"}, "obs has no column 'dpth'; it has donor, arm, depth"),
        ({"transform": "normalize", "size_factors": "arm"}, "obs column 'arm': the values: wanted numbers"),
        ({"transform": "normalize", "size_factors": [1.0]}, r"size_factors have shape \(1,\), wanted .*\(90,\)"),
        ({"transform": "normalize", "size_factors": OBS["depth"][::-1]}, "size_factors are not labelled as obs is"),
        ({"transform": "normalize", "size_factors": np.zeros(N)}, r"size_factors of 90 cell\(s\) are not positive"),
        ({"method": "reml"}, "method='reml' is not known"),
        ({"bounds": "positive"}, "bounds='positive' is not known"),
        ({"device": "cuda:9"}, "device='cuda:9' cannot be used"),
        ({"memory": "much"}, "memory='much' is not an amount of memory"),
        ({"max_iter": 0}, "at least one iteration"),
        ({"epsilon": 0}, "the tolerance must be positive"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit(**({"data": (VALUES, OBS), "formula": FORMULA, "progress": False} | arguments))
    assert "\n" not in str(caught.value)


def test_a_budget_that_holds_no_cell():
    with pytest.raises(MemoryError, match=r"one cell needs [\d,]+ bytes, memory allows 20; raise memory to"):
        quiet_fit((VALUES, OBS), memory=20)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"there is no nowhere\.h5ad: check the spelling"):
        quiet_fit("nowhere.h5ad")


def test_summary_statistics_hold_their_model():
    summary = summarize((VALUES, OBS), FORMULA, progress=False)
    message = "summary statistics already have their model and values: leave out formula, transform"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(summary, FORMULA, transform="log1p")


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match="contrast= is not an option of fit: test a contrast of the fit"):
        quiet_fit((VALUES, OBS), contrast=ARM)


def test_a_wrong_option_costs_no_reading(monkeypatch):
    monkeypatch.setattr(lmm_gpu.sumstats.cell_model, "open_source", lambda *_, **__: pytest.fail("opened the data"))
    for option in ({"method": "reml"}, {"bounds": "no"}, {"device": "tpu"}, {"memory": "much"}):
        with pytest.raises(ValueError):
            fit((VALUES, OBS), FORMULA, **option)


# --- habits from other packages -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    anndata = pytest.importorskip("anndata", reason='AnnData needs: pip install ".[io]"')
    rng, donor = np.random.default_rng(3), np.repeat(np.arange(6), 8)
    obs = pd.DataFrame({"donor": [f"D{d}" for d in donor], "arm": np.where(donor < 3, "a", "b")})
    obs.index = [f"c{i}" for i in range(48)]
    var = pd.DataFrame({"highly_variable": [True, False, True, False]}, index=["NA", "ISG15", "CD3D", "nan"])
    return anndata.AnnData(rng.normal(size=(48, 4)), obs, var)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a: lmm_gpu.fit(a, "~ arm + (1 | donor)", groupby="arm"),
            "groupby= is not an option of fit: the formula",
        ),
        (lambda a: lmm_gpu.fit(a, "~ arm + (1 | donor)", n_jobs=2), "n_jobs=.*use threads="),
        (lambda a: lmm_gpu.fit(a, "~ arm + (1 | donor)", transfrom="log1p"), "did you mean transform"),
        (lambda a: lmm_gpu.fit(a, "~ arm"), "dream fits fixed effects alone"),
        (lambda a: lmm_gpu.fit(type(a)(a.X, a.obs).T, "~ arm + (1 | donor)"), "are its rows genes"),
        (lambda a: lmm_gpu.fit(a, "~ arm + (1 | donor)", genes=np.array([True, False])), "genes= is a boolean mask"),
        (lambda a: lmm_gpu.tl.lmm(a, groupby="arm"), "a formula in place of groupby"),
        (lambda a: lmm_gpu.report(a, "page.html"), "report.. takes a fit, a table of its tests and a path"),
    ],
)
def test_habits_get_an_answer(small, call, message):
    with pytest.raises(ValueError, match=message):
        call(small)


def test_genes_by_mask(small):
    for mask in (small.var["highly_variable"], small.var["highly_variable"].to_numpy()):
        fit = lmm_gpu.fit(small, "~ arm + (1 | donor)", genes=mask, progress=False)
        assert fit.summary.features == ("NA", "CD3D")


def test_a_donor_both_fixed_and_random_is_said(small):
    with pytest.warns(UserWarning, match="donor is both a fixed effect and a random intercept"):
        lmm_gpu.fit(small, "~ donor + (1 | donor)", progress=False)


def test_a_gene_named_na_stays_one(small, tmp_path):
    frame = pd.DataFrame(small.X, columns=small.var_names)
    frame.to_csv(tmp_path / "cells.csv", index=False)
    small.obs.to_csv(tmp_path / "obs.csv", index=False)
    fit = lmm_gpu.fit(tmp_path / "cells.csv", "~ arm + (1 | donor)", obs=tmp_path / "obs.csv", progress=False)
    assert fit.summary.features == ("NA", "ISG15", "CD3D", "nan")
    assert fit.test("arm[T.b]")["variable"].tolist() == ["NA", "ISG15", "CD3D", "nan"]
