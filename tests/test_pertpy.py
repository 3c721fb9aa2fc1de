"""The class with pertpy's methods, against formulaic-contrasts and pertpy where they are installed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

anndata = pytest.importorskip("anndata", reason='AnnData needs: pip install ".[io]"')

import lmm_gpu  # noqa: E402
from lmm_gpu.tl import LinearMixedModel  # noqa: E402

G, EACH, M = 8, 12, 6
RNG = np.random.default_rng(2)
DONOR = np.repeat(np.arange(G), EACH)
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "arm": np.where(DONOR % 2 == 0, "ctrl", "stim"),
        "kind": np.tile(list("BTNBTN"), G * EACH // 6),
        "age": RNG.normal(size=G)[DONOR],
        "cell type": np.tile(list("xy"), G * EACH // 2),
    },
    index=[f"c{i}" for i in range(G * EACH)],
)
Y = RNG.normal(size=(G * EACH, M)) + RNG.normal(size=(G, M))[DONOR] + np.outer(OBS["arm"] == "stim", np.arange(M))
VAR = pd.DataFrame({"keep": [True, False] * 3}, index=[f"g{i}" for i in range(M)])
FIXED = [
    "arm + kind",
    "arm * kind + age",
    "0 + arm + kind",
    "0 + arm:kind",
    "kind:age + arm",
    "C(arm, Treatment('stim')) * kind",
]


@pytest.fixture
def adata():
    return anndata.AnnData(Y.copy(), OBS.copy(), VAR.copy(), layers={"twice": 2 * Y})


def test_tests_are_those_of_the_fit(adata):
    model = LinearMixedModel(adata, "~ arm + kind + (1 | donor)")
    assert model.variables == {"arm", "kind"} and model.design.shape == (G * EACH, 4)
    with pytest.raises(ValueError, match="call fit"):
        model.test_contrasts(model.contrast("arm", "ctrl", "stim"))
    model.fit(progress=False)
    found = model.test_contrasts(
        {"stim": model.contrast("arm", "ctrl", "stim"), "T": model.cond(kind="T") - model.cond()}
    )
    fit = lmm_gpu.fit(adata, "~ arm + kind + (1 | donor)", progress=False)
    wanted = fit.test({"stim": "arm[T.stim]", "T": "kind[T.T]"})
    for table in (found, wanted):
        table.sort_values(["contrast", "variable"], inplace=True, ignore_index=True)
    pd.testing.assert_frame_equal(found, wanted)
    array = model.test_contrasts(np.array([0.0, 1, 0, 0]), df="residual")
    assert array["contrast"].isna().all() and (array["df"] == G * EACH - 4).all()
    twice = LinearMixedModel(adata, "~ arm + (1 | donor)", layer="twice", mask="keep")
    twice.fit(progress=False)
    assert twice.results.summary.features == ("g0", "g2", "g4")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_groups_are_compared_with_a_baseline(adata):
    table = LinearMixedModel.compare_groups(
        adata,
        "kind",
        "B",
        ["T", "N"],
        paired_by="donor",
        fit_kwargs={"progress": False},
        test_kwargs={"df": "residual"},
    )
    fit = lmm_gpu.fit(adata, "~ kind + (1 | donor)", progress=False)
    for group in "TN":
        wanted = fit.test(f"kind[T.{group}]", df="residual").sort_values("p_value")
        np.testing.assert_array_equal(table.loc[table["contrast"] == group, "p_value"], wanted["p_value"])
    spaces = LinearMixedModel.compare_groups(
        adata, "cell type", "x", "y", random="(1 | donor) + (1 | kind)", fit_kwargs={"progress": False}
    )
    assert spaces["contrast"].tolist() == ["y"] * M


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fixed", FIXED)
def test_conditions_are_those_of_formulaic_contrasts(adata, fixed):
    contrasts = pytest.importorskip("formulaic_contrasts", reason="pip install formulaic-contrasts")
    try:
        theirs = contrasts.FormulaicContrasts(adata.obs, f"~ {fixed}")
    except TypeError:
        pytest.skip("formulaic-contrasts 1.0 needs formulaic < 1.2")
    model = LinearMixedModel(adata, f"~ {fixed} + (1 | donor)")
    for values in ({"arm": "stim"}, {"arm": "stim", "kind": "N"}, {"kind": "T"}, {}, {"arm": "ctrl", "kind": "B"}):
        np.testing.assert_allclose(model.cond(**values), theirs.cond(**values), atol=1e-12)
    np.testing.assert_allclose(
        model.contrast("arm", "ctrl", "stim"), theirs.contrast("arm", "ctrl", "stim"), atol=1e-12
    )


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_pertpy_gives_way_to_ours(adata):
    """In a balanced design the estimates of least squares are those of the mixed model."""
    pertpy = pytest.importorskip("pertpy", reason="pip install pertpy 'statsmodels<0.15'", exc_type=ImportError)
    try:
        theirs = pertpy.tl.Statsmodels(adata, "~ arm + kind")
    except (TypeError, ImportError):
        pytest.skip("pertpy 1.0 needs formulaic-contrasts, and formulaic < 1.2")
    ours = LinearMixedModel(adata, "~ arm + kind + (1 | donor)")
    tables = []
    for model, options in ((theirs, {}), (ours, {"progress": False})):
        model.fit(**options)
        contrasts = {"stim": model.contrast("arm", "ctrl", "stim"), "T": model.cond(kind="T") - model.cond(kind="B")}
        table = model.test_contrasts(contrasts).sort_values(["contrast", "variable"])
        tables.append(table[["contrast", "variable", "log_fc"]].reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables)
    table = ours.test_contrasts(ours.contrast("arm", "ctrl", "stim"))
    theirs.plot_volcano(table, return_fig=True)
    assert {"variable", "log_fc", "p_value", "adj_p_value", "contrast"} <= set(table.columns)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda adata: LinearMixedModel(adata, np.ones((96, 1))), "needs a formula"),
        (lambda adata: LinearMixedModel(adata, "~ arm + (1 | donor)", layer="no"), "layer='no'.*twice"),
        (lambda adata: LinearMixedModel(adata, "~ arm + (1 | donor)", mask="no"), "mask='no'"),
        (lambda adata: LinearMixedModel(adata, "~ arm + (1 | donor)").cond(sex="m"), "no factor or covariate 'sex'"),
        (lambda adata: LinearMixedModel(adata, "~ arm + (1 | donor)").cond(arm="m"), "arm has no level"),
        (lambda adata: LinearMixedModel(adata, "~ C(arm, contr.sum) + (1 | donor)").cond(), "no reference level"),
        (lambda adata: LinearMixedModel.compare_groups(adata, "arm", "ctrl", "stim"), "needs donors"),
    ],
)
def test_what_cannot_be_used_is_refused(adata, call, message):
    with pytest.raises(ValueError, match=message):
        call(adata)
