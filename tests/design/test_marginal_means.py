"""Marginal means against averages of rows of X over explicit grids of cells."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

import lmm_gpu
from lmm_gpu.design.fixed_effects import fixed_columns
from lmm_gpu.design.marginal_means import contrasts_by_name, marginal_means
from lmm_gpu.design.obs_columns import ObsColumns

N = 300
RNG = np.random.default_rng(6)
OBS = pd.DataFrame(
    {
        "cond": RNG.choice(["ctrl", "stim"], N, p=[0.3, 0.7]),
        "kind": RNG.choice(["B", "NK", "T"], N),
        "batch": RNG.choice([1, 2, 3], N, p=[0.6, 0.3, 0.1]),
        "age": RNG.normal(40, 10, N),
        "x": RNG.uniform(1, 3, N),
    }
)
LEVELS = {"cond": ["ctrl", "stim"], "kind": ["B", "NK", "T"], "batch": [1, 2, 3]}
FORMULAS = ["cond*kind + C(batch)", "cond*kind*age + C(batch)", "0 + kind + kind:cond + age", "cond:kind + C(batch)",
            "C(cond, contr.sum)*C(kind, contr.helmert) + C(batch, contr.poly) + log(x)", "cond*age + kind + C(batch):x",
            "cond*kind + C(batch) + I(age**2) + age", "cond + kind:C(batch) + x:age"]  # fmt: skip


def grid_row(text, **at):
    """Mean of the rows of X at all combinations of levels, with covariates at their means."""
    names = [name for name in LEVELS if name in text]
    values = [np.atleast_1d(at.get(name, LEVELS[name])).tolist() for name in names]
    rows = pd.DataFrame(list(product(*values)), columns=names)
    for name in ("age", "x"):
        rows[name] = at.get(name, OBS[name].mean())
    both = pd.concat([OBS, rows], ignore_index=True)
    return fixed_columns(text, ObsColumns(both)).X[len(OBS) :].mean(axis=0)


def contrasts(text, variables, **options):
    fixed = fixed_columns(text, ObsColumns(OBS))
    return contrasts_by_name(fixed.terms, fixed.names, variables, XX=fixed.X.T @ fixed.X, **options)


@pytest.mark.parametrize("text", FORMULAS)
def test_differences_of_means(text):
    found = contrasts(text, {"cond": ("stim", "ctrl")}, by="kind")
    assert list(found.columns) == [f"stim - ctrl | kind={kind}" for kind in LEVELS["kind"]]
    for kind in LEVELS["kind"]:
        wanted = grid_row(text, cond="stim", kind=kind) - grid_row(text, cond="ctrl", kind=kind)
        np.testing.assert_allclose(found[f"stim - ctrl | kind={kind}"], wanted, atol=1e-10)
    average = contrasts(text, {"cond": ("stim", "ctrl")})["stim - ctrl"]
    np.testing.assert_allclose(average, grid_row(text, cond="stim") - grid_row(text, cond="ctrl"), atol=1e-10)


@pytest.mark.parametrize("text", FORMULAS)
def test_sides_of_several_levels_and_variables_that_are_held(text):
    found = contrasts(text, {"kind": (["B", "NK"], "T")}, at={"cond": "stim"})["(B, NK) - T"]
    wanted = grid_row(text, kind=["B", "NK"], cond="stim") - grid_row(text, kind="T", cond="stim")
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_a_list_of_pairs_has_one_contrast_for_each():
    text = FORMULAS[0]
    found = contrasts(text, {"kind": [("NK", "B"), ("T", "B")], "cond": ("stim", "ctrl")})
    assert list(found.columns) == ["NK - B : stim - ctrl", "T - B : stim - ctrl"]
    for kind in ("NK", "T"):
        one = contrasts(text, {"kind": (kind, "B"), "cond": ("stim", "ctrl")})
        np.testing.assert_array_equal(found[f"{kind} - B : stim - ctrl"], one.iloc[:, 0])
    assert list(contrasts(text, {"kind": [("T", "B")]}).columns) == ["T - B"]
    averaged = contrasts(text, {"kind": (["B", "NK"], ["T"])})
    np.testing.assert_array_equal(contrasts(text, {"kind": [(["B", "NK"], "T")]}), averaged)
    with pytest.raises(ValueError, match="two pairs or two sets"):
        contrasts(text, {"kind": [["NK", "B"], ["T", "B"]]})
    with pytest.raises(ValueError, match="expected a pair"):
        contrasts(text, {"kind": [("NK", "B", "T"), ("T", "B")]})


def test_pairs_and_contrasts_of_contrasts():
    text = FORMULAS[0]
    pairs = contrasts(text, {"kind": "pairwise"})
    assert list(pairs.columns) == ["B - NK", "B - T", "NK - T"]
    found = contrasts(text, {"cond": ("stim", "ctrl"), "kind": ("T", "B")})
    (label,) = found.columns
    assert label == "stim - ctrl : T - B"
    wanted = sum(
        (1 if (c == "stim") == (k == "T") else -1) * grid_row(text, cond=c, kind=k)
        for c, k in product(["stim", "ctrl"], "TB")
    )
    np.testing.assert_allclose(found[label], wanted, atol=1e-10)


def test_covariates_at_values():
    for text in (FORMULAS[1], FORMULAS[6]):
        found = contrasts(text, {"age": (60, 40)}, by="cond")["age 60 - 40 | cond=stim"]
        wanted = grid_row(text, cond="stim", age=60.0) - grid_row(text, cond="stim", age=40.0)
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    found = contrasts(FORMULAS[4], {"cond": ("stim", "ctrl")}, at={"x": 2.0, "batch": 2})
    assert np.isfinite(found).all().all()


def test_covariates_from_an_origin():
    text, far = "cond*age + kind", OBS.assign(age=OBS["age"] + 1e6)
    near, fixed = (fixed_columns(text, ObsColumns(table)) for table in (OBS, far))
    at = ({"age": 45.0}, {"age": 1e6 + 45.0})
    for table, one, held in ((OBS, near, at[0]), (far, fixed, at[1])):
        row = marginal_means(one.terms, one.names, "cond", at=held)["cond=stim"].to_numpy()
        ols = np.linalg.lstsq(one.X, table["x"].to_numpy(), rcond=None)[0]
        held["fitted"] = row @ ols
    assert at[0]["fitted"] == pytest.approx(at[1]["fitted"], rel=1e-8)


def test_proportional_weights():
    text = "cond*kind + C(batch)"
    share = OBS["batch"].value_counts(normalize=True)
    wanted = sum(share[batch] * grid_row(text, cond="stim", kind="B", batch=batch) for batch in share.index)
    fixed = fixed_columns(text, ObsColumns(OBS))
    options = {"weights": "proportional", "XX": fixed.X.T @ fixed.X}
    found = marginal_means(fixed.terms, fixed.names, ["cond", "kind"], **options)["cond=stim, kind=B"]
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    joint = OBS.groupby(["kind", "batch"]).size() / N
    wanted = sum(w * grid_row(text, cond="stim", kind=kind, batch=batch) for (kind, batch), w in joint.items())
    found = marginal_means(fixed.terms, fixed.names, "cond", **options)["cond=stim"]
    np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize(
    ("variables", "options", "says"),
    [
        ({}, {}, "at least one variable"),
        ({"condition": ("stim", "ctrl")}, {}, "no factor or covariate 'condition'; it has cond"),
        ({"cond": ("stim", "control")}, {}, "cond has no level 'control'; it has ctrl, stim"),
        ({"cond": "stim"}, {}, r"expected a pair such as cond=\('stim', 'ctrl'\)"),
        ({"cond": "stim"}, {}, r"pass at=\{'cond': 'stim'\}"),
        ({"cond": ("stim", "ctrl")}, {"by": "age"}, "age is a covariate of the model and has no levels"),
        ({"cond": ("stim", "ctrl")}, {"by": "cond"}, "cond is given twice"),
        ({"cond": ("stim", "ctrl")}, {"at": {"age": "old"}}, "age='old': expected a number"),
        ({"cond": ("stim", "ctrl")}, {"weights": "cells"}, "weights='cells' is not known"),
    ],
)
def test_refused(variables, options, says):
    with pytest.raises(ValueError, match=says):
        contrasts(FORMULAS[1], variables, **options)


def test_transforms_of_all_cells_are_known_at_the_mean_alone():
    fixed = fixed_columns("cond + scale(age) + poly(x, 2)", ObsColumns(OBS))
    row = marginal_means(fixed.terms, fixed.names, "cond")["cond=ctrl"]
    assert row["Intercept"] == 1 and row["scale(age)"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="scale\\(age\\) depends on all cells"):
        marginal_means(fixed.terms, fixed.names, "cond", at={"age": 30})


def test_models_given_as_matrices_have_no_names():
    with pytest.raises(ValueError, match="it was given as matrices"):
        contrasts_by_name(None, ["a"], {"cond": ("stim", "ctrl")})


def test_means_of_combinations_without_cells_are_refused(tmp_path):
    donor = np.arange(N) % 10
    keep = ((OBS["cond"] != "stim") | (OBS["kind"] != "T")).to_numpy()
    Y = RNG.normal(size=(N, 2))[keep]
    fit = lmm_gpu.fit((Y, OBS.assign(donor=donor.astype(str))[keep]), "~ cond*kind + (1 | donor)", progress=False)
    fit.save(tmp_path / "fit.h5")
    for one in (fit, lmm_gpu.LMMFit.load(tmp_path / "fit.h5")):
        with pytest.raises(ValueError, match="not estimable: no cells have the combination of levels of cond:kind"):
            one.contrast(cond=("stim", "ctrl"), by="kind")
        rows = one.contrast(cond=("stim", "ctrl"), at={"kind": ["B", "NK"]})
        table = one.test(rows)
        cells = OBS[keep].assign(y=Y[:, 0]).groupby(["cond", "kind"])["y"].mean()
        rough = cells["stim"][["B", "NK"]].mean() - cells["ctrl"][["B", "NK"]].mean()
        assert table["log_fc"].iloc[0] == pytest.approx(rough, abs=0.1)
