"""Formulas that are sums of columns: the design is the one that formulaic makes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lmm_gpu.design import formula as formulas
from lmm_gpu.design.design import build_design, used_cells
from lmm_gpu.design.plain_formula import plain_formula, plain_summands

RNG = np.random.default_rng(3)
N = 60
OBS = pd.DataFrame(
    {
        "arm": pd.Categorical(RNG.choice(["low", "ctrl", "high"], N), ["ctrl", "unused", "low", "high"]),
        "kind": RNG.choice(["B", "T[4]", "NK: a"], N),
        "plate": pd.Categorical(RNG.integers(7, 10, N)),
        "dose": pd.Categorical(RNG.choice([0.5, 1.0, 2.0], N), ordered=True),
        "treated": RNG.random(N) < 0.5,
        "age": RNG.normal(50, 9, N),
        "batch": RNG.integers(1, 4, N),
        "day": 20240101.0 + RNG.random(N),
        "T": RNG.normal(size=N),
        "donor": np.repeat(list("uvwxyz"), 10),
        "sample": np.tile([f"s{i}" for i in range(4)], 15),
    },
    index=[f"cell{i // 2}" for i in range(N)],  # labels that repeat
)
RANDOM = "(1 | donor)"
FIXED = [
    *("1", "arm", "age", "kind", "plate", "dose", "treated", "batch", "day", "T"),
    *("1 + arm", "arm + 1", "arm + age", "age + arm + kind", "batch+treated+plate", "  day\n + arm ", "age + T + day"),
    *("arm + kind + plate + dose + treated + age + batch + day + T",),
]


def of_formulaic(monkeypatch, formula: str, obs: pd.DataFrame):
    with monkeypatch.context() as patch:
        patch.setattr(formulas, "plain_formula", lambda text: None)
        patch.setattr(formulas, "plain_summands", lambda text: None)
        return build_design(formula, obs), used_cells(formula, obs)


@pytest.mark.parametrize("obs", [OBS, OBS.iloc[:25]], ids=["cells", "some"])
@pytest.mark.parametrize("fixed", FIXED)
def test_the_design_is_that_of_formulaic(monkeypatch, fixed, obs):
    formula = f"~ {fixed} + {RANDOM} + (1|donor:sample)"
    assert plain_formula(fixed) is not None
    assert plain_summands(formula.lstrip("~ ")) is not None
    found, (expected, cells) = build_design(formula, obs), of_formulaic(monkeypatch, formula, obs)
    assert found.fixed.names == expected.fixed.names and found.terms == expected.terms
    np.testing.assert_array_equal(found.X, expected.X)
    for name in ("codes", "table", "tabled", "values", "valued"):
        np.testing.assert_array_equal(getattr(found.fixed, name), getattr(expected.fixed, name))
    assert found.random_names == expected.random_names and (found.Z != expected.Z).nnz == 0
    np.testing.assert_array_equal(used_cells(formula, obs), cells)


def test_missing_values_are_found_without_formulaic(monkeypatch):
    obs = OBS.assign(age=OBS["age"].where(RNG.random(N) < 0.9))
    formula = f"~ arm + age + {RANDOM}"
    cells = used_cells(formula, obs)
    assert 0 < cells.sum() < N
    np.testing.assert_array_equal(cells, obs["age"].notna())
    with pytest.raises(ValueError, match="missing"):
        build_design(formula, obs)


@pytest.mark.parametrize("fixed", ["nothing", "arm + nothing", "lone", "complex", "lone + arm"])
def test_errors_are_those_of_other_formulas(monkeypatch, fixed):
    obs = OBS.assign(lone="only", complex=1j)
    formula = f"~ {fixed} + {RANDOM}"
    with pytest.raises(ValueError) as found:
        build_design(formula, obs)
    with pytest.raises(ValueError) as expected:
        of_formulaic(monkeypatch, formula, obs)
    assert str(found.value) == str(expected.value)


OTHERS = ["", "0", "arm + 0", "arm - 1", "arm + arm", "arm:kind", "arm * age", "log(age)", "`arm`", "arm +", "+ arm"]
OTHERS += ["arm age", "(arm)", "2 + arm", "arm ++ age", "True", "lambda", "arm.x", "C(arm)", "1 + 1", "ärm", "arm; age"]


SLOPES = ["(1 + age | donor)", "(age | donor)", "(age || donor)", "(1+age+T||donor) + (1 | sample)", "( arm | donor )"]
SLOPES += ["(1 | sample) + (age | donor)", "(1 + T | donor:sample) + (1 | donor)"]


@pytest.mark.parametrize("random", SLOPES)
def test_random_terms_are_those_of_formulaic(monkeypatch, random):
    formula = f"~ arm + {random} + age"
    assert plain_summands(formula.lstrip("~ ")) is not None
    found, (expected, _) = build_design(formula, OBS), of_formulaic(monkeypatch, formula, OBS)
    assert found.random_names == expected.random_names and found.random_terms == expected.random_terms
    assert (found.Z != expected.Z).nnz == 0
    np.testing.assert_array_equal(found.X, expected.X)
    assert [str(term) for term in formulas.split_formula(formula)[1]] == [
        str(term) for term in of_split(monkeypatch, formula)
    ]


def of_split(monkeypatch, formula: str):
    with monkeypatch.context() as patch:
        patch.setattr(formulas, "plain_summands", lambda text: None)
        return formulas.split_formula(formula)[1]


@pytest.mark.parametrize("text", [*OTHERS, "(1 | donor)"])
def test_other_formulas_are_left_to_formulaic(text):
    assert plain_formula(text) is None


@pytest.mark.parametrize(
    "text", ["(arm * T | donor)", "(0 + age | donor)", "(1 | donor/sample)", "arm + ((1 | donor))"]
)
def test_other_random_terms_are_left_to_formulaic(text):
    assert plain_summands(text) is None
