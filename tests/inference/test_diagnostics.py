"""Warnings about tests that say less than they seem to, on tables of cells whose flaws are known."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest

from lmm_gpu import fit, lmm, sslmm
from lmm_gpu.inference.group_levels import groupings
from lmm_gpu.sumstats.assembly import cross_products

N = 96
OBS = pd.DataFrame(
    {
        "donor": np.repeat(list("abcdefgh"), 12),
        "arm": np.repeat(["u", "v"], 48),
        "rare": np.repeat(["u", "v"], [72, 24]),  # two donors
        "dose": np.repeat(["0", "1", "2"], [36, 36, 24]),
        "cls": np.tile(list("ppqq"), 24),
        "half": np.tile(list("st"), 48),
        "x": np.random.default_rng(0).normal(size=N),
    }
)
Y = np.random.default_rng(1).normal(size=(N, 2))


def said(formula, contrast, obs=OBS, **options):
    """Warnings of a test."""
    result = fit((Y, obs), formula, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result.test(contrast, **options)
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("formula", "contrast"),
    [
        ("~ arm + x + (1 | donor)", "arm[T.v]"),
        ("~ arm + x + (1 | donor)", None),
        ("~ 0 + arm + (1 | donor)", "arm[v] - arm[u]"),
        ("~ arm + half + (1 | donor) + (1 | donor:half)", "half[T.t]"),
        ("~ x + (x || donor)", "x"),
        ("~ 0 + cls + cls:arm + (1 | donor) + (1 | donor:cls)", ["cls[p]:arm[T.v]", "cls[q]:arm[T.v]"]),
        ("~ dose + (1 | donor) + (1 | half)", "Intercept"),
    ],
)
def test_nothing_to_say(formula, contrast):
    assert said(formula, contrast) == []


@pytest.mark.parametrize(
    ("formula", "contrast", "groups"),
    [
        ("~ rare + (1 | donor)", "rare[T.v]", ["rare[T.v] has cells of 2 levels of donor"]),
        ("~ C(rare, contr.treatment('v')) + (1 | donor)", None, []),
        ("~ 0 + rare + (1 | donor)", "rare[v] - rare[u]", ["rare[v] has cells of 2 levels of donor"]),
        ("~ dose + (1 | donor)", "dose[T.2]", ["dose[T.2] has cells of 2 levels of donor"]),
        ("~ dose + (1 | donor)", "dose[T.1]", []),
        ("~ dose + (1 | donor)", ["dose[T.1]", "dose[T.2] - dose[T.1]"], ["dose[T.2] has cells of 2 levels of donor"]),
        (
            "~ 0 + cls + cls:rare + (1 | donor:cls) + (1 | donor)",
            "cls[p]:rare[T.v]",
            ["cls[p]:rare[T.v] has cells of 2 levels of donor:cls", "cls[p]:rare[T.v] has cells of 2 levels of donor"],
        ),
    ],
)
def test_few_donors_in_a_group(formula, contrast, groups):
    found = said(formula, contrast)
    assert len(found) == bool(groups)
    if groups:
        assert found[0].startswith(", ".join(groups) + ": fewer than 3 are too few to estimate how much they differ")


def test_few_donors_in_the_reference():
    flipped = OBS.assign(rare=OBS["rare"].map({"u": "z", "v": "a"}))  # the two donors are the reference now
    (found,) = said("~ rare + (1 | donor)", "rare[T.z]", flipped)
    assert found.startswith("the reference level of rare has cells of 2 levels of donor: fewer than 3")


def test_a_pair_of_plates_is_no_group_of_few_donors():
    """Both halves are on both plates: the contrast is within plates."""
    obs = OBS.assign(plate=np.tile(list("kkmm"), N // 4))
    found = said("~ half + (1 | plate) + (1 | donor)", "half[T.t]", obs)
    assert len(found) == 1 and "lie within the levels of plate" in found[0]


@pytest.mark.parametrize(
    ("formula", "contrast", "remedy"),
    [
        ("~ half + (1 | donor)", "half[T.t]", "(1 | donor:half)"),
        ("~ C(half, contr.sum) + (1 | donor)", "C(half, contr.sum)[S.s]", "(1 | donor:half)"),
        ("~ x + (1 | donor)", "x", "(0 + x | donor)"),
        ("~ arm * half + (1 | donor)", "arm[T.v]:half[T.t]", "(1 | donor:half)"),
        ("~ half * cls + (1|donor)+(1|donor:half)", "half[T.t]", "(1 | donor:cls) + (1 | donor:half:cls)"),
        (
            "~ 0 + cls + cls:half + (1 | donor) + (1 | donor:cls)",
            "cls[p]:half[T.t]",
            "(1 | donor:half) + (1 | donor:cls:half)",
        ),
        ("~ 0 + cls + cls:arm + (1 | donor)", "cls[p]:arm[T.v]", "(1 | donor:cls)"),
    ],
)
def test_a_contrast_within_donors_without_a_slope(formula, contrast, remedy):
    (found,) = said(formula, contrast)
    assert f"{contrast!r}: the compared cells lie within the levels of donor" in found
    better = re.search(r"Write '(.*)'$", found)[1]
    assert better == f"{formula} + {remedy}"
    assert said(better, contrast) == []  # the advice works, and silences it


def test_contrasts_share_a_sentence():
    found = said("~ half + cls + x + (1 | donor)", ["half[T.t]", "cls[T.q]", "x", "half[T.t] - x"])
    assert len(found) == 1 and "'half[T.t]', 'cls[T.q]', 'x' and 1 more: the compared cells" in found[0]


def test_every_contrast_gets_its_own_random_effect():
    formula, contrasts = "~ half + x + (1 | donor)", ["half[T.t]", "x"]
    (found,) = said(formula, contrasts)
    better = re.search(r"Write '(.*)'$", found)[1]
    assert better == f"{formula} + (1 | donor:half) + (0 + x | donor)"
    assert said(better, contrasts) == []


def test_groups_without_cells():
    Z = np.hstack([pd.get_dummies(OBS["donor"]).to_numpy(float), np.zeros((N, 2))])
    X = np.column_stack([np.ones(N), OBS["arm"] == "v"]).astype(float)
    result = lmm(sslmm(X, Y.T, Z))
    with pytest.warns(UserWarning, match=r"have no cells \(2 of var1\): leave their columns out of Z"):
        result.test("X2")


def test_errors_about_matrices_do_not_advise_on_formulas():
    X = np.column_stack([np.ones(N), OBS["half"] == "t"]).astype(float)
    result = lmm(sslmm(X, Y.T, pd.get_dummies(OBS["donor"]).to_numpy(float)))
    with pytest.warns(UserWarning, match="Add columns to Z: one for each level of var1 and each group of cells"):
        result.test("X2")


def test_slopes_are_no_groups():
    donors = pd.get_dummies(OBS["donor"]).to_numpy(float)
    x = OBS["x"].to_numpy()[:, None]
    scaled = x * np.sqrt(N / np.sum(x**2))  # their squares add up to n, as counts do
    Z = np.hstack([donors, donors * x, donors * scaled])
    summary = cross_products(np.ones((N, 1)), Z, Y, d=(8, 8, 8), component_names=("a", "b", "c"))
    assert [group.name for group in groupings(summary)] == ["a"]


def test_indicators_are_distinguished_from_numbers():
    X = np.column_stack([np.ones(N), OBS["arm"] == "v", OBS["x"], np.tile([0, 2], N // 2), np.tile([0.5, 0.5], N // 2)])
    summary = cross_products(X.astype(float), pd.get_dummies(OBS["donor"]).to_numpy(float), Y)
    assert groupings(summary)[0].indicators.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(("donors", "df", "errors"), [(6, 4, "8.6"), (5, 3, "12.9"), (7, 5, None)])
def test_few_degrees_of_freedom_with_many_genes(donors, df, errors):
    """A t distribution on 4 df has its 0.05 % point at 8.61, on 3 df at 12.92 (tables of Fisher and Yates)."""
    obs = pd.DataFrame(
        {"donor": np.repeat(list("abcdefgh")[:donors], 8), "arm": np.repeat(["u", "v"], [24, 8 * donors - 24])}
    )
    values = np.random.default_rng(3).normal(size=(len(obs), 40))
    for genes, expected in ((40, errors), (2, None)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit((values[:, :genes], obs), "~ arm + (1 | donor)", progress=False).test("arm[T.v]")
        found = [str(one.message) for one in caught if "degrees of freedom between levels" in str(one.message)]
        assert len(found) == (expected is not None)
        assert not found or (f"'arm[T.v]': {df} degrees" in found[0] and f"effect of {expected} standard" in found[0])


MARGIN = "alone is not enough: p-values are too small where such averages vary"


@pytest.mark.parametrize(
    ("formula", "contrast", "added"),
    [
        ("~ half + cls + (1 | donor) + (1 | donor:half:cls)", "half[T.t]", "(1 | donor:half)"),
        ("~ half + cls + (1 | donor) + (1 | cls:donor:half)", "cls[T.q]", "(1 | cls:donor)"),
        ("~ 0 + cls + cls:half + (1 | donor) + (1 | donor:half:cls)", "cls[p]:half[T.t]", None),
        (
            "~ 0 + cls + cls:half + (1 | donor) + (1 | donor:half:cls)",
            "cls[p]:half[T.t] + cls[q]:half[T.t]",
            "(1 | donor:half)",
        ),
        ("~ 0 + cls + cls:half + (1 | donor) + (1 | donor:half:cls)", "cls[p]:half[T.t] - cls[q]:half[T.t]", None),
        ("~ half + cls + (1 | donor) + (1 | donor:half) + (1 | donor:half:cls)", "half[T.t]", None),
        ("~ half + cls + (1 | donor) + (0 + x | donor) + (1 | donor:half:cls)", "half[T.t]", None),
        ("~ arm + cls + (1 | donor) + (1 | donor:arm:cls)", "arm[T.v]", None),  # constant within donors
    ],
)
def test_margins_that_an_average_needs(formula, contrast, added):
    found = [text for text in said(formula, contrast) if MARGIN in text]
    assert len(found) == (added is not None)
    assert added is None or found[0].endswith(f"Write '{formula} + {added}'")
