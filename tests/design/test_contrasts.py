"""Contrasts compared with Python's arithmetic on unit vectors and with R's contrast.matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_gpu.design.contrasts import contrast_matrix, contrast_rows, parse_contrast

AWKWARD = [
    "Intercept",
    "condition[T.pre-B]",
    "condition[T.a/b]",
    "log(libsize)",
    "np.log(x + 1)",
    "cls1:trtB",
    "cls1",
    "cls10",
    "C(day, contr.treatment(base='d 0'))[T.d 1]",
    "two words",
    "two",
    "1st",
    "β.x_2",
    "a*b",
    "`q`",
]
NAMES = ["A", "B", "C"]


def numbers():
    return st.sampled_from(["1", "2", "3.", ".5", "0.25", "1e1", "2.5E-1", "-4"])


def constants():
    return st.one_of(numbers(), st.tuples(numbers(), numbers()).map(lambda pair: f"({pair[0]} - {pair[1]} + 20)"))


def combined(children):
    """Linear expressions as pairs: as a user writes it, and as Python reads it with `unit` for the names."""
    gap = st.sampled_from(["", " ", "  "])
    pairs = st.tuples(children, st.sampled_from("+-"), gap, children)
    return st.one_of(
        pairs.map(lambda t: tuple(f"{left}{t[2]}{t[1]}{t[2]}{right}" for left, right in zip(t[0], t[3], strict=True))),
        st.tuples(constants(), gap, children).map(lambda t: tuple(f"{t[0]}{t[1]}*{t[1]}({side})" for side in t[2])),
        st.tuples(children, gap, constants()).map(lambda t: tuple(f"({side}){t[1]}/{t[1]}{t[2]}" for side in t[0])),
        children.map(lambda t: tuple(f"-({side})" for side in t)),
    )


def linear_expressions():
    bare = st.integers(0, len(AWKWARD) - 1).map(lambda at: (AWKWARD[at], f"unit[{at}]"))
    quoted = st.integers(0, len(AWKWARD) - 2).map(lambda at: (f"`{AWKWARD[at]}`", f"unit[{at}]"))
    return st.recursive(st.one_of(bare, quoted), combined, max_leaves=8)


@given(linear_expressions())
def test_any_linear_expression_is_what_python_makes_of_unit_vectors(pair):
    expression, python = pair
    expected = eval(python, {"unit": np.eye(len(AWKWARD))})
    if expected.any():
        np.testing.assert_allclose(parse_contrast(expression, AWKWARD), expected, rtol=1e-12, atol=1e-12)
    else:
        with pytest.raises(ValueError, match="all its weights are zero"):
            parse_contrast(expression, AWKWARD)


@given(st.text(alphabet="AB C12.e+-*/()`'\"[:\n", max_size=30))
def test_any_text_is_read_or_refused_with_a_value_error(text):
    try:
        assert np.isfinite(parse_contrast(text, NAMES)).all()
    except ValueError as error:
        assert str(error).startswith("contrast ")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("A", [1, 0, 0]),
        ("-A", [-1, 0, 0]),
        ("--A-+B", [1, -1, 0]),
        ("A-B-C", [1, -1, -1]),
        ("A-(B-C)", [1, -1, 1]),
        ("A/2/2*8", [2, 0, 0]),
        ("2*3*A - B*(1+1)/4", [6, -0.5, 0]),
        ("-A*-2", [2, 0, 0]),
        ("A + 1 - 1", [1, 0, 0]),
        ("(A - A)*B + C", [0, 0, 1]),
        ("\t( A+B ) /\n2", [0.5, 0.5, 0]),
    ],
)
def test_precedence_and_signs(expression, expected):
    np.testing.assert_array_equal(parse_contrast(expression, NAMES), expected)


def test_the_longest_name_wins_and_quotes_overrule_it():
    names = ["A", "B", "A-B"]
    np.testing.assert_array_equal(parse_contrast("A-B", names), [0, 0, 1])
    np.testing.assert_array_equal(parse_contrast("A - B", names), [1, -1, 0])
    np.testing.assert_array_equal(parse_contrast("`A`-'B'", names), [1, -1, 0])
    np.testing.assert_array_equal(parse_contrast('"A-B"-A', names), [-1, 0, 1])


def test_numbers_take_precedence_over_columns_of_the_same_name():
    np.testing.assert_array_equal(parse_contrast("2*`2` - A", ["2", "A"]), [2, -1])


def test_reads_what_r_reads():
    # contrast.matrix of FLASHMM 1.3.0 under R 4 gave this matrix for these names and expressions.
    names = ["log(libsize)", *(f"cls{k}" for k in range(1, 5)), *(f"cls{k}:trtB" for k in range(1, 5))]
    expected = np.zeros((9, 3))
    expected[5:, 0] = 0.25
    expected[1, 1], expected[2, 1] = 1, -1
    expected[0, 2] = 1
    contrast = {"avgB": "(cls1:trtB+cls2:trtB+cls3:trtB+cls4:trtB)/4", "cls1-cls2": "cls1-cls2", "lib": "log(libsize)"}
    pd.testing.assert_frame_equal(
        contrast_matrix(contrast, names), pd.DataFrame(expected, names, ["avgB", "cls1-cls2", "lib"])
    )


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "it is empty"),
        ("  \n", "it is empty"),
        ("A*B", "not linear: a column cannot be multiplied"),
        ("A*(2 + B)", "not linear: a column cannot be multiplied"),
        ("1/A", "not linear: division by a column"),
        ("A/(B - C)", "not linear: division by a column"),
        ("A - 1", "not linear: remove the constant term -1"),
        ("2", "not linear: remove the constant term 2"),
        ("A/0", "division by zero"),
        ("A/(1 - 1)", "division by zero"),
        ("A - A", "all its weights are zero"),
        ("0*A", "all its weights are zero"),
        ("(A", r"expected '\)' before the end"),
        ("A)", r"before '\)'"),
        ("A B", "expected an operator or the end before 'B'"),
        ("(A)(B)", r"expected an operator or the end before '\(B\)'"),
        ("A +", r"expected a column name, a number or '\(' before the end"),
        ("A ** 2", r"expected a column name, a number or '\(' before '\* 2'"),
        ("A - D", "no column is called 'D'; the columns are"),
        ("2A", "no column is called '2A'"),
        ("`A", "no column is called '`A'"),
        ("A - ''", "no column is called ''"),
        ("1e999*A", "too large"),
        ("1e300*1e300*A", "too large"),
        ("(" * 5000 + "A" + ")" * 5000, "too deeply nested"),
        ("A" + "+A" * 100_000, "too long"),
    ],
)
def test_refuses_with_the_reason(expression, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_contrast(expression, NAMES)
    assert len(str(caught.value)) < 1000


def test_either_quote_names_a_coefficient():
    """formulaic writes single quotes, whatever the formula has."""
    names = ["A", "C(arm, contr.treatment('ctrl'))[T.stim]"]
    np.testing.assert_array_equal(parse_contrast('C(arm, contr.treatment("ctrl"))[T.stim]', names), [0, 1])


def test_long_flat_expressions_and_long_signs_are_read():
    np.testing.assert_array_equal(parse_contrast("A" + "+A" * 9_999, NAMES), [10_000, 0, 0])
    np.testing.assert_array_equal(parse_contrast("-" * 10_001 + "A", NAMES), [-1, 0, 0])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("cls1:trtb", "cls1:trtB"), ("log(libsze)", "log(libsize)"), ("condition[T.pre-C]", "condition[T.pre-B]")],
)
def test_an_unknown_name_suggests_the_closest(typed, meant):
    with pytest.raises(ValueError) as caught:
        parse_contrast(f"cls1 - {typed}", AWKWARD)
    assert f"no column is called {typed!r}" in str(caught.value)
    assert meant in str(caught.value)


def test_matrix_from_a_list_or_one_expression_is_named_by_the_expressions():
    assert list(contrast_matrix(["A-B", "C"], NAMES).columns) == ["A-B", "C"]
    pd.testing.assert_frame_equal(contrast_matrix("A-B", NAMES), contrast_matrix({"A-B": "A-B"}, NAMES))


@pytest.mark.parametrize(
    ("contrast", "names", "message"),
    [
        (["A", "A"], NAMES, r"contrasts that repeat \['A'\]"),
        ({1: "A", "1": "B"}, NAMES, r"contrasts that repeat \['1'\]"),
        ("A", ["A", "B", "A"], r"column names that repeat \['A'\]"),
        ({}, NAMES, "got no contrast"),
        ([], NAMES, "got no contrast"),
        ({"x": 1}, NAMES, r"contrast 'x': got weights of shape \(\), expected \(3,\)"),
    ],
)
def test_matrix_refuses(contrast, names, message):
    with pytest.raises(ValueError, match=message):
        contrast_matrix(contrast, names)


@pytest.mark.parametrize(
    ("contrast", "rows", "labels"),
    [
        (None, np.eye(3), NAMES),
        ("A - B", [[1, -1, 0]], ["A - B"]),
        (["A - B", "C"], [[1, -1, 0], [0, 0, 1]], ["A - B", "C"]),
        ({"A": 1, "B": -0.5}, [[1, -0.5, 0]], ["A - 0.5*B"]),
        ({"C": np.float64(-1), "A": 2}, [[2, 0, -1]], ["2*A - C"]),
        ({"x": "A-B", "y": [0, 0, 1], "z": {"B": 3}}, [[1, -1, 0], [0, 0, 1], [0, 3, 0]], ["x", "y", "z"]),
        ([-1, 0, 1], [[-1, 0, 1]], ["-A + C"]),
        (np.array([0.5, 0.5, -1]), [[0.5, 0.5, -1]], ["0.5*A + 0.5*B - C"]),
        (np.array([[1, 0, 0], [0, 1, -1]]), [[1, 0, 0], [0, 1, -1]], ["contrast1", "contrast2"]),
        (pd.DataFrame({"u": [3, 1.0], "v": [0, 1]}, ["B", "A"]), [[1, 3], [1, 0]], ["u", "v"]),
        (pd.Series([3, 1.0], ["B", "A"], name="u"), [[1, 3]], ["u"]),
        (pd.Series([3, 1.0], ["B", "A"]), [[1, 3]], ["contrast1"]),
    ],
)
def test_rows_from_every_way_of_writing(contrast, rows, labels):
    found, found_labels = contrast_rows(contrast, NAMES[: np.shape(rows)[1]])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, rows)
    assert found_labels == labels


def test_rows_and_matrix_agree():
    matrix = contrast_matrix({"x": "two words - two", "y": "cls10/2"}, AWKWARD)
    rows, labels = contrast_rows(matrix.sample(frac=1, random_state=1), AWKWARD)
    np.testing.assert_array_equal(rows, matrix.T)
    assert labels == ["x", "y"]


@given(st.lists(st.integers(-8, 8).map(lambda eighths: eighths / 8), min_size=3, max_size=3).filter(any))
def test_the_label_of_weights_reads_back_as_the_weights(weights):
    rows, (label,) = contrast_rows(weights, NAMES)
    np.testing.assert_array_equal(parse_contrast(label, NAMES), rows[0])


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        ([1, 2], r"got weights of shape \(2,\), expected \(3,\)"),
        (np.ones((2, 4)), r"contrast 'contrast1': got weights of shape \(4,\), expected \(3,\)"),
        (np.ones((1, 1, 3)), r"shape \(1, 3\), expected \(3,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\), expected \(3,\)"),
        ([1, np.nan, 0], r"NaN or infinite weights for \['B'\]"),
        ({"A": np.inf}, r"NaN or infinite weights for \['A'\]"),
        ([0, 0, 0], "all its weights are zero"),
        (np.array([[1, 0, 0], [0, 0, 0]]), "contrast 'contrast2': all its weights are zero"),
        ({"A": 1, "D": -1}, "no column is called 'D'"),
        ({"A": 1, "x": "A - B"}, r"contrast 'A': got weights of shape \(\)"),
        ({"x": ["u", "v", "w"]}, "contrast 'x': got .*, expected 3 numbers"),
        ([[1, 0, 0], [1, 2]], r"contrast 'contrast2': got weights of shape \(2,\)"),
        ({}, "all its weights are zero"),
        (pd.DataFrame({"u": [1.0, 2]}, ["A", "D"]), r"rows lack \['B', 'C'\] and include the unknown \['D'\]"),
        (pd.DataFrame({"u": [1.0, 2, 3, 4]}, ["A", "B", "C", "A"]), r"rows of the contrast that repeat \['A'\]"),
    ],
)
def test_rows_refuse(contrast, message):
    with pytest.raises(ValueError, match=message):
        contrast_rows(contrast, NAMES)


def test_levels_of_a_number_are_asked_for_in_the_formula():
    with pytest.raises(
        ValueError, match=r"no column is called 'sex\[T.2\]'; sex is a number in this model: write C\(sex\)"
    ):
        contrast_matrix({"sex": "sex[T.2]"}, ["Intercept", "sex"])
