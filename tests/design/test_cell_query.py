"""Queries give the same cells as pandas where pandas is safe; anything but comparisons is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_gpu.design.cell_query import matching_cells

OBS = pd.DataFrame(
    {
        "n_counts": [100, 600, 900, 600, 50, 1000],
        "share": [0.1, 0.5, -0.2, 1e-3, 0.0, 2.5e3],
        "condition": pd.Categorical(["stim", "ctrl", "stim", "stim", "ctrl", "none"]),
        "batch": ["1", "2", "it's", 'a "b"', "and", "1"],
        "doublet": [True, False, False, True, False, False],
        "cell type": ["B", "T", "T", "B", "NK", "NK"],
        "obs.age": pd.Categorical([30, 40, 30, 50, 60, 30]),
    },
    index=list("uvwxyz"),
)

QUERIES = [
    "n_counts > 500",
    "n_counts >= 600 and condition == 'stim'",
    "n_counts > 500 & (condition == 'stim' | condition == 'ctrl')",
    "not condition == 'stim' or share > 0.2",
    "condition in ['stim', 'none'] and not doublet",
    "condition not in ['stim']",
    "`cell type` == \"T\" or `cell type` != 'B' and share <= -.2",
    'batch == "it\'s"',
    "share == 2.5e3",
    "share > -1E-1 and share < +1",
    "doublet == False",
    "not (doublet or n_counts < 100)",
    "not not doublet",
    "batch in ['1', 'and']",
    "n_counts in [600, 50.0]",
    "500 < n_counts",
    "50 < n_counts <= 600",
    "n_counts in (600, 50)",
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_same_as_pandas(query):
    wanted = OBS.eval(query).to_numpy(bool)
    found, unknown = matching_cells(query, OBS)
    np.testing.assert_array_equal(found, wanted)
    assert unknown == 0 and 0 < wanted.sum() < len(OBS)


def test_quotes_within_quotes():
    np.testing.assert_array_equal(matching_cells(r"batch == 'it\'s'", OBS)[0], OBS["batch"] == "it's")
    np.testing.assert_array_equal(matching_cells(r'batch == "a \"b\""', OBS)[0], OBS["batch"] == 'a "b"')


def test_names_with_dots_and_categories_of_numbers():
    np.testing.assert_array_equal(matching_cells("obs.age > 35", OBS)[0], [False, True, False, True, True, False])


SIMPLE = st.sampled_from(["n_counts > 500", "share < 0.3", "doublet", "condition == 'stim'", "batch != '1'"])


@given(
    st.recursive(
        SIMPLE,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
            inner.map("({})".format),
            inner.map("not ({})".format),
        ),
    )
)
def test_any_nesting(query):
    np.testing.assert_array_equal(matching_cells(query, OBS)[0], OBS.eval(query).to_numpy(bool))


@pytest.mark.parametrize(
    ("query", "wanted", "unknown"),
    [
        ("x > 1", [False, True, False], 1),
        ("x != 1", [False, True, False], 1),
        ("not x > 1", [True, False, False], 1),
        ("not x in [1, 2]", [False, False, False], 1),
        ("g == 'a' or x > 1", [True, True, False], 1),
        ("g == 'a' and x > 1", [False, False, False], 1),
        ("g != 'a'", [False, False, True], 1),
    ],
)
def test_missing_values_are_unknown(query, wanted, unknown):
    obs = pd.DataFrame({"x": [1.0, 2.0, np.nan], "g": ["a", None, "b"]})
    for table in (obs, obs.astype({"g": "category"}), obs.convert_dtypes()):
        found, count = matching_cells(query, table)
        assert found.tolist() == wanted and count == unknown


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "cannot read cells='': .*expected text such as"),
        ("n_counts", "expected an operator such as == after the column 'n_counts'"),
        ("n_counts >", "expected text such as"),
        ("n_counts > 5 5", "expected text such as"),
        ("n_counts = 5", "expected text such as"),
        ("5 < 6", "cannot use '5'; expected the name of a column"),
        ("(n_counts > 5", "never closed"),
        ("n_counts in 5", r"expected a list of values such as \['a', 'b'\] in place of '5'"),
        ("n_counts in []", "expected a list of values"),
        ("n_count > 5", "obs has no column 'n_count'; it has n_counts"),
        ("`n count` > 5", "obs has no column 'n count'"),
        ("n_counts == '5'", "column 'n_counts' contains numbers, and is compared with '5'"),
        ("condition == 5", "column 'condition' contains text, and is compared with 5.0"),
        ("condition > 'a'", "column 'condition' contains text, which only == and != compare"),
        ("doublet == 1", "column 'doublet' contains True or False, and is compared with 1.0"),
        ("condition == stim", "expected a number, text in quotes, True or False in place of 'stim'"),
        ("condition == -'stim'", "expected a number, text in quotes"),
        ("condition == None", "expected a number, text in quotes"),
        ("condition is 'stim'", "expected one of the operators"),
        ("condition == 'stim", "unterminated string"),
        ("@n_counts > 5", "expected text such as"),
        ("n_counts.max() > 5", "cannot use 'n_counts.max\\(\\)'"),
        ("__import__('os').system('touch ran') == 0", "expected the name of a column of obs"),
        ("n_counts > 5 and open('ran', 'w')", "cannot use .open"),
        ("n_counts > (lambda: 1)()", "expected a number"),
        ("n_counts ** 2 > 5", "cannot use 'n_counts \\*\\* 2'"),
        ("n_counts > 1" + "0" * 400, "too large"),
        ("n_counts > 5" + " and n_counts > 5" * 1000, "at most 10,000 characters"),
        ("(" * 60 + "n_counts > 5" + ")" * 60, "50 parentheses within each other"),
        ("not " * 2400 + "doublet", "nested too deeply"),
        ("n_counts > 5\0", "null character"),
    ],
)
def test_refused(query, says):
    with pytest.raises(ValueError, match=says):
        matching_cells(query, OBS)


def test_only_texts():
    with pytest.raises(ValueError, match="got cells=5; expected text"):
        matching_cells(5, OBS)
