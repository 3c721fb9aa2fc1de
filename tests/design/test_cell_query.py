"""Queries are pandas' own where these are safe, and nothing but comparisons is understood."""

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
def test_what_is_missing_is_unknown(query, wanted, unknown):
    obs = pd.DataFrame({"x": [1.0, 2.0, np.nan], "g": ["a", None, "b"]})
    for table in (obs, obs.astype({"g": "category"}), obs.convert_dtypes()):
        found, count = matching_cells(query, table)
        assert found.tolist() == wanted and count == unknown


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "at 'the end': wanted the name of a column"),
        ("n_counts", "wanted an operator such as == after the column 'n_counts'"),
        ("n_counts >", "at 'the end': wanted a number"),
        ("n_counts > 5 5", "at '5': wanted and, or, or the end"),
        ("n_counts = 5", "at '= 5': wanted a column, a value, or an operator"),
        ("5 < n_counts", "at '5': wanted the name of a column"),
        ("(n_counts > 5", "at 'the end': wanted \\)"),
        ("n_counts in 5", "at '5': wanted \\["),
        ("n_counts in []", "at '\\]': wanted a number"),
        ("n_count > 5", "obs has no column 'n_count'; it has n_counts"),
        ("n_counts == '5'", "column 'n_counts' holds numbers, and is compared with '5'"),
        ("condition == 5", "column 'condition' holds texts, and is compared with 5.0"),
        ("condition > 'a'", "column 'condition' holds texts, which > does not compare"),
        ("doublet == 1", "column 'doublet' holds True or False, and is compared with 1.0"),
        ("condition == stim", "at 'stim': wanted a number, a text in quotes"),
        ("condition == 'stim", "wanted a column, a value, or an operator"),
        ("@n_counts > 5", "at '@n_counts > 5'"),
        ("n_counts.max() > 5", "no column 'n_counts.max'"),
        ("__import__('os').system('touch ran') == 0", "no column '__import__'"),
        ("n_counts > 5 and open('ran', 'w')", "no column 'open'"),
        ("n_counts > (lambda: 1)()", "at '\\(': wanted a number"),
        ("n_counts ** 2 > 5", "at '\\*\\* 2 > 5'"),
    ],
)
def test_refused(query, says):
    with pytest.raises(ValueError, match=says):
        matching_cells(query, OBS)


def test_only_texts():
    with pytest.raises(ValueError, match="got cells=5; wanted text"):
        matching_cells(5, OBS)
