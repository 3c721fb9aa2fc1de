"""Columns of obs as formulas see them: types, levels, dates, mixed objects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lmm_gpu.design.design import build_design, fixed_design
from lmm_gpu.design.obs_columns import ObsColumns

N = 60
RNG = np.random.default_rng(4)
AGE, X = RNG.integers(20, 90, N), RNG.integers(0, 6, N)
TYPES = [
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "float32",
    "Int16",
    "UInt8",
    "object",
]
FORMULAS = ["I(age**2)", "I(age*age)", "age:x", "I(x - 3)", "I(-x)", "I(age + x)", "I(age*3)", "I(x - age)",
            "abs(x - 3)", "log(x+1)", "I(x**2)", "I(x/2)", "I(x//2)", "I(x % 4)", "poly(x, 2, raw=TRUE)", "scale(x)",
            "center(age)", "exp(x)", "I(age > 40)"]  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("kind", TYPES)
def test_numbers_do_not_depend_on_their_stored_type(formula, kind):
    table = pd.DataFrame({"age": AGE, "x": X})
    wanted, names = fixed_design(f"~ {formula}", table.astype(float))
    found, found_names = fixed_design(f"~ {formula}", table.astype(kind))
    np.testing.assert_allclose(found, wanted, rtol=1e-15, atol=1e-14)
    assert found_names == names


@pytest.mark.parametrize("kind", ["int8", "uint16", "float64", "Int32", "object", "category"])
def test_levels_of_whole_numbers_are_named_without_a_point(kind):
    table = pd.DataFrame({"batch": [1, 2, 10] * 4, "donor": list("ab") * 6}).astype({"batch": kind})
    assert fixed_design("~ C(batch)", table)[1] == ("Intercept", "C(batch)[T.2]", "C(batch)[T.10]")
    design = build_design("~ 1 + (1 | batch)", table)
    assert design.random_names == ("batch[1]", "batch[2]", "batch[10]")


def test_names_that_parse_as_numbers_stay_distinct():
    names = ["891e3", "891000", "04567", "4567", "1E1", "10", "007", "7"]
    table = pd.DataFrame({"donor": np.repeat(names, 2)})
    assert set(build_design("~ 1 + (1 | donor)", table).random_names) == {f"donor[{name}]" for name in names}


def test_numbers_in_a_column_of_objects_are_numbers(caplog):
    caplog.set_level("INFO", "lmm_gpu")
    table = pd.DataFrame({"age": pd.Series([31, 45.5, np.int8(3), True + 1], dtype=object)})
    X, names = fixed_design("~ age", table)
    assert names == ("Intercept", "age") and X[:, 1].tolist() == [31, 45.5, 3, 2]
    assert "obs column 'age' of type object has only numbers and is used as a number" in caplog.text
    truth = fixed_design("~ male", pd.DataFrame({"male": pd.Series([True, False], dtype=object)}))
    assert truth[0].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, "a", 2.0, "b"], "mixes values of the types float, int, str"),
        ([True, 1, False, 0], "mixes values of the types bool, int"),
        (pd.date_range("2024-01-01", periods=4), "has dates or times"),
        (pd.date_range("2024-01-01", periods=4, tz="UTC"), "has dates or times"),
        (pd.period_range("2024-01", periods=4, freq="M"), "has dates or times"),
        (pd.to_timedelta([1, 2, 3, 4], unit="D"), "has dates or times"),
        ([1j, 2, 3, 4], "has complex numbers"),
    ],
)
def test_columns_that_are_neither_numbers_nor_text(values, says):
    with pytest.raises(ValueError, match=f"obs column 'a' {says}"):
        fixed_design("~ a", pd.DataFrame({"a": values}))


def test_groups_that_are_written_alike_are_refused():
    with pytest.raises(ValueError, match=r"several values that are all written '1'.*astype\(str\)"):
        ObsColumns(pd.DataFrame({"a": pd.Series([1, "1", 2], dtype=object)})).groups("a")


def test_lines_say_what_was_assumed(caplog):
    caplog.set_level("INFO", "lmm_gpu")
    table = pd.DataFrame(
        {
            "stage": pd.Categorical(["I", "II", "III"] * 4, categories=["I", "II", "III", "IV"], ordered=True),
            "batch": [1, 2, 3] * 4,
            "code": ["10", "20", "30"] * 4,
        }
    )
    names = fixed_design("~ stage + batch", table)[1]
    assert names == ("Intercept", "stage[T.II]", "stage[T.III]", "batch")
    fixed_design("~ code", table)
    for text in (
        "'stage': categories without cells are dropped: IV",
        "'stage' is ordered and coded by treatment contrasts; C(stage, contr.poly)",
        "'batch' has 3 distinct whole numbers and is used as a number; C(batch) makes it a factor",
        "'code' is text that reads as numbers, and is used as a factor",
    ):
        assert caplog.text.count(text) == 1, text


def test_polynomials_of_ordered_levels():
    stage = pd.Categorical(["I", "II", "III"] * 4, ordered=True)
    X, names = fixed_design("~ C(stage, contr.poly)", pd.DataFrame({"stage": stage}))
    np.testing.assert_allclose(X[:3, 1:], [[-(0.5**0.5), 6**-0.5], [0, -2 * 6**-0.5], [0.5**0.5, 6**-0.5]], atol=1e-12)
    assert names[1:] == ("C(stage, contr.poly)[.L]", "C(stage, contr.poly)[.Q]")


def test_values_that_cannot_name_groups_are_refused():
    table = pd.DataFrame({"donor": [[0], [1]] * 5})
    with pytest.raises(ValueError, match="cannot name groups"):
        ObsColumns(table).groups("donor")


@pytest.mark.parametrize("formula", ["~ `1`", "~ x + `1`", "~ x:`1`", "~ x + (`1` | g)", "~ x + (1 | g) + `1`"])
def test_a_column_named_like_the_intercept_is_refused(formula):
    table = pd.DataFrame({"1": np.arange(12.0), "x": np.arange(12.0) % 5, "g": list("abcd") * 3})
    with pytest.raises(ValueError, match="column named '1'"):
        build_design(formula, table)
