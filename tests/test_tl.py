"""`tl.lmm` writes into AnnData, and scanpy, pertpy and decoupler read our results as they are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats

import lmm_gpu
from lmm_gpu import tl, to_wide

anndata = pytest.importorskip("anndata", reason='AnnData needs: pip install ".[io]"')

N, M = 120, 30
RNG = np.random.default_rng(8)
DONOR = np.arange(N) % 8
STATE = RNG.integers(0, 3, N)
GENES = [f"g{gene}" for gene in range(M)]
EFFECT = np.where(np.arange(M) % 5 == 1, 3.0, 0.0)
Y = RNG.normal(size=(N, M)) + RNG.normal(size=(8, M))[DONOR] + np.outer(STATE == 1, EFFECT)
Y[:, 7] = 0.0  # without a test
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "arm": np.where(DONOR < 4, "ctrl", "stim"),
        "state": np.array(list("abc"))[STATE],
    },
    index=[f"cell{cell}" for cell in range(N)],
)
FORMULA = "~ arm + state + (1 | donor)"
CONTRASTS = {"b/a": "state[T.b]", "c - b": "state[T.c] - state[T.b]"}
# pertpy 1.0.3, the last for Python 3.11, lacks one requirement and takes no newer version of another
PERTPY = "pertpy draws them: pip install pertpy filelock 'statsmodels<0.15'"
SCANPY = "scanpy reads them: pip install '.[test]'"
COLUMNS = {"names": "variable", "scores": "score", "logfoldchanges": "log_fc"}
COLUMNS |= {"pvals": "p_value", "pvals_adj": "adj_p_value"}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def cells():
    return anndata.AnnData(Y.copy(), OBS.copy(), pd.DataFrame(index=GENES), layers={"shifted": Y + 1.0})


@pytest.fixture(scope="module")
def adata():
    made = cells()
    tl.lmm(made, FORMULA, contrast=CONTRASTS, progress=False)
    return made


@pytest.fixture(scope="module")
def table():
    return lmm_gpu.fit(cells(), FORMULA, progress=False).test(CONTRASTS)


def of_contrast(table, contrast):
    """Rows of one contrast, with z-scores of their p-values."""
    rows = table[table["contrast"] == contrast].set_index("variable")
    return rows.assign(score=np.sign(rows["statistic"]) * scipy.stats.norm.isf(rows["p_value"] / 2))


# --- what is written ------------------------------------------------------------------------------


def test_groups_are_contrasts_with_their_genes_by_falling_score(adata, table):
    kept = adata.uns["lmm"]
    for contrast, group in (("b/a", "b|a"), ("c - b", "c - b")):
        rows = of_contrast(table, contrast)
        scores = rows["score"].dropna().sort_values(ascending=False)
        assert kept["names"][group].tolist() == [*scores.index, "g7"]
        for name, ours in COLUMNS.items():
            if name != "names":
                wanted = rows.loc[kept["names"][group], ours]
                np.testing.assert_allclose(kept[name][group], wanted, rtol=1e-6, err_msg=name)
    assert {name: kept[name].dtype[0] for name in COLUMNS} == {
        "names": np.dtype("O"),
        "scores": np.dtype("float32"),
        "logfoldchanges": np.dtype("float32"),
        "pvals": np.dtype("float64"),
        "pvals_adj": np.dtype("float64"),
    }


def test_tables_of_one_row_per_gene(adata, table):
    assert set(adata.varm) == {"lmm", "lmm_b|a", "lmm_c - b"}
    tested = adata.varm["lmm_c - b"]
    assert list(tested.index) == GENES and list(tested.columns) == list(table.columns[2:11])
    wanted = table[table["contrast"] == "c - b"].set_index("variable")
    pd.testing.assert_frame_equal(tested, wanted[tested.columns], check_names=False)
    genes = adata.varm["lmm"]
    np.testing.assert_allclose(genes["mean_expr"], Y.mean(axis=0))
    assert genes["status"]["g7"] == "no_variance"
    assert {"donor_variance", "residual_variance", "niter"} <= set(genes.columns)


def test_options_reach_the_fit_and_the_test():
    made = cells()
    fit = tl.lmm(made, FORMULA, key_added="kr", layer="shifted", df="kenward-roger", method="REML", progress=False)
    wanted = lmm_gpu.fit(made, FORMULA, layer="shifted", progress=False)
    pd.testing.assert_frame_equal(fit.coef, wanted.coef)
    assert made.uns["kr"]["scores"].dtype.names == ("arm[T.stim]", "state[T.b]", "state[T.c]", "reference")
    found = made.varm["kr_arm[T.stim]"]["df"]
    np.testing.assert_allclose(found, wanted.test("arm[T.stim]", df="kenward-roger")["df"])
    params = made.uns["kr"]["params"]
    assert params["formula"] == FORMULA and params["df"] == "kenward-roger" and params["layer"] == "shifted"


def test_written_and_read_back(adata, tmp_path):
    pytest.importorskip("h5py", reason='.h5ad needs: pip install ".[io]"')
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    for name in COLUMNS:
        assert again.uns["lmm"][name].dtype.names == ("b|a", "c - b", "reference")
        for group in ("b|a", "c - b"):
            np.testing.assert_array_equal(again.uns["lmm"][name][group], adata.uns["lmm"][name][group])
    for key in adata.varm:
        pd.testing.assert_frame_equal(again.varm[key], adata.varm[key], check_dtype=False, check_categorical=False)


def test_results_that_cannot_be_stored_are_refused():
    with pytest.raises(ValueError, match=r"contrasts b/a, b\|a: '/' becomes '\|'"):
        tl.lmm(cells(), FORMULA, contrast={"b/a": "state[T.b]", "b|a": "state[T.c]"}, progress=False)
    made = cells()
    with pytest.raises(ValueError, match="a joint test has no direction"):
        tl.lmm(made, FORMULA, contrast=np.eye(4)[2:], progress=False)
    assert not made.uns and not made.varm


@pytest.mark.parametrize("options", [{"min_cells": 10}, {"min_mean": 0.1}])
def test_genes_that_were_left_out_have_rows_of_nan(options):
    made = cells()
    made.X = np.abs(made.X)
    made.X[:, [0, 5]] = 0.0
    made.X[:3, 5] = 1e-3
    fit = tl.lmm(made, FORMULA, progress=False, **options)
    left_out = [gene for gene in GENES if gene not in fit.summary.features]
    assert {"g0", "g5"} <= set(left_out)
    for key in ("lmm_state[T.b]", "lmm_arm[T.stim]"):
        assert list(made.varm[key].index) == GENES
        assert made.varm[key].loc[left_out].isna().all(axis=None)
    wanted = fit.test("state[T.b]").set_index("variable")["log_fc"]
    np.testing.assert_array_equal(made.varm["lmm_state[T.b]"]["log_fc"].drop(left_out), wanted)
    assert (made.varm["lmm"]["status"] == "left_out").tolist() == [gene in left_out for gene in GENES]
    for group in made.uns["lmm"]["names"].dtype.names[:-1]:
        assert sorted(made.uns["lmm"]["names"][group]) == sorted(GENES)
        assert set(left_out) <= set(made.uns["lmm"]["names"][group][-len(left_out) - 1 :])


def test_cells_are_grouped_by_the_contrast_they_belong_to(adata):
    made = cells()
    tl.lmm(made, "~ state + (1 | donor)", cells="arm == 'stim'", progress=False)
    wanted = np.array(["reference", "state[T.b]", "state[T.c]"], dtype=object)[STATE]
    wanted[DONOR < 4] = "reference"
    assert made.obs["lmm"].tolist() == wanted.tolist()
    assert list(made.obs["lmm"].cat.categories) == ["state[T.b]", "state[T.c]", "reference"]
    assert list(adata.obs["lmm"].cat.categories) == ["b|a", "c - b", "reference"]
    reference = made.uns["lmm"]["logfoldchanges"]["reference"], made.uns["lmm"]["pvals_adj"]["reference"]
    assert (reference[0] == 0).all() and (reference[1] == 1).all()


# --- wide -----------------------------------------------------------------------------------------


def test_wide_has_contrasts_by_features_without_the_untested(table):
    wide = to_wide(table, "log_fc")
    assert wide.index.tolist() == list(CONTRASTS) and wide.columns.tolist() == [g for g in GENES if g != "g7"]
    for contrast in CONTRASTS:
        rows = table[table["contrast"] == contrast].set_index("variable")
        np.testing.assert_array_equal(wide.loc[contrast], rows["log_fc"][wide.columns])
    with pytest.raises(ValueError, match="the table has no t; it has variable, contrast, log_fc"):
        to_wide(table, "t")


# --- read by others -------------------------------------------------------------------------------


def test_scanpy_reads_them(adata, table):
    sc = pytest.importorskip("scanpy", reason=SCANPY)
    for group, contrast in (("b|a", "b/a"), ("c - b", "c - b")):
        found = sc.get.rank_genes_groups_df(adata, group=group, key="lmm").set_index("names")
        wanted = of_contrast(table, contrast).loc[found.index]
        for name, ours in list(COLUMNS.items())[1:]:
            np.testing.assert_allclose(found[name], wanted[ours], rtol=1e-6, err_msg=name)
    strong = sc.get.rank_genes_groups_df(adata, group=None, key="lmm", pval_cutoff=0.05, log2fc_min=1)
    called = table[(table["adj_p_value"] < 0.05) & (table["log_fc"] > 1)]
    assert sorted(strong["names"]) == sorted(called["variable"]) and len(strong) > 0
    sc.pl.rank_genes_groups(adata, key="lmm", n_genes=5, show=False)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert "b|a vs. reference" in titles


PLOTS = {
    "": {},
    "_violin": {"n_genes": 3},
    "_dotplot": {"values_to_plot": "logfoldchanges"},
    "_matrixplot": {"values_to_plot": "log10_pvals"},
    "_stacked_violin": {},
    "_tracksplot": {},
    "_heatmap": {},
}


@pytest.mark.parametrize("formula", [FORMULA, "~ arm + (1 | donor)"])
@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_of_scanpy_draws_them(plot, formula):
    sc = pytest.importorskip("scanpy", reason=SCANPY)
    made = cells()
    made.X = np.abs(made.X)
    tl.lmm(made, formula, progress=False, min_mean=0.1)  # without g7
    getattr(sc.pl, f"rank_genes_groups{plot}")(made, key="lmm", show=False, **PLOTS[plot])
    drawn = [len(ax.collections) + len(ax.lines) + len(ax.images) + len(ax.texts) for ax in plt.gcf().axes]
    assert sum(drawn) > 0


def test_violins_show_the_cells_of_a_contrast_and_the_others():
    sc = pytest.importorskip("scanpy", reason=SCANPY)
    made = cells()
    tl.lmm(made, "~ arm + (1 | donor)", progress=False)
    gene = made.uns["lmm"]["names"]["arm[T.stim]"][0]
    (ax,) = sc.pl.rank_genes_groups_violin(made, "arm[T.stim]", key="lmm", n_genes=1, show=False, jitter=False)
    drawn = [np.asarray(points.get_offsets())[:, 1] for points in ax.collections if len(points.get_offsets()) == N / 2]
    values = made[:, gene].X.ravel()
    for wanted in (values[DONOR >= 4], values[DONOR < 4]):
        assert any(np.allclose(np.sort(found), np.sort(wanted)) for found in drawn)


def test_pertpy_draws_them(table):
    pytest.importorskip("pertpy", reason=PERTPY, exc_type=ImportError)
    from pertpy.tools._differential_gene_expression._base import MethodBase

    class Drawing(MethodBase):
        @classmethod
        def compare_groups(cls, *_, **__):
            raise NotImplementedError

    one = table[table["contrast"] == "b/a"]
    drawn = Drawing(cells()).plot_volcano(one, return_fig=True, to_label=3).axes[0]
    offsets = np.concatenate([np.asarray(c.get_offsets()) for c in drawn.collections])
    tested = one.dropna(subset="p_value")
    wanted = np.column_stack([tested["log_fc"], -np.log10(tested["adj_p_value"])])
    np.testing.assert_allclose(offsets[np.argsort(offsets[:, 0])], wanted[np.argsort(wanted[:, 0])], rtol=1e-6)
    strongest = tested.sort_values("p_value")["variable"][:3]
    assert set(strongest) <= {text.get_text() for text in drawn.texts}


def test_decoupler_scores_and_draws_them(table):
    dc = pytest.importorskip("decoupler", minversion="2", reason="decoupler reads them: pip install '.[test]'")
    targets = [gene for gene in GENES if int(gene[1:]) % 5 == 1]
    net = pd.DataFrame({"source": "TF", "target": targets, "weight": 1.0})
    scores, _ = dc.mt.ulm(to_wide(table, "statistic"), net, tmin=2)
    for contrast in CONTRASTS:  # the t statistic of the slope of the statistics on the weights
        t = table[table["contrast"] == contrast].dropna(subset="statistic").set_index("variable")["statistic"]
        x = t.index.isin(targets) - np.mean(t.index.isin(targets))
        slope = x @ t / (x @ x)
        rest = t - t.mean() - slope * x
        wanted = slope / np.sqrt(rest @ rest / (len(t) - 2) / (x @ x))
        np.testing.assert_allclose(scores.loc[contrast, "TF"], wanted, rtol=1e-4)
    one = table[table["contrast"] == "b/a"].set_index("variable")
    figure = dc.pl.volcano(one, x="log_fc", y="p_value", return_fig=True)
    assert len({text.get_text() for text in figure.axes[0].texts} & set(targets)) == 5
