"""From counts to values, by formula; what counts as counts; and what is refused, with its place."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import sparse

from lmm_gpu.sumstats.transform import Transform, check_values, looks_like_counts, recognise

COUNTS = np.random.default_rng(1).poisson(1.0, size=(6, 4))
FACTORS = np.array([0.5, 1.0, 2.0, 0.1, 3.0, 1.5])
FORMULAS = {
    "log1p": lambda y, s: np.log(1.0 + y),
    "log2p1": lambda y, s: np.log2(1.0 + y),
    "normalize": lambda y, s: np.log(1.0 + y / s[:, None]),
}
FORMATS = [np.asarray, sparse.csr_array, sparse.csc_array, sparse.coo_array, sparse.csr_matrix, sparse.lil_matrix]


def plain(values):
    return values.toarray() if sparse.issparse(values) else values


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "float64"])
def test_formulas(name, kind, dtype):
    Y = kind(COUNTS.astype(dtype))
    found = Transform(name, FACTORS).apply(Y)
    assert sparse.issparse(found) == sparse.issparse(Y) and found.dtype == np.float64
    np.testing.assert_allclose(plain(found), FORMULAS[name](COUNTS, FACTORS), rtol=1e-14)
    np.testing.assert_array_equal(plain(Y), COUNTS)  # the caller's values are as they were


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_a_chunk_takes_the_factors_of_its_cells(kind):
    found = Transform("normalize", FACTORS).apply(kind(COUNTS[2:5]), slice(2, 5))
    np.testing.assert_allclose(plain(found), FORMULAS["normalize"](COUNTS, FACTORS)[2:5], rtol=1e-14)


def test_no_transform_hands_the_values_on():
    Y = sparse.csr_array(COUNTS)
    assert Transform().apply(Y) is Y


def test_stored_zeros_stay_zero():
    Y = sparse.csr_array((np.array([0.0, 3.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 3))
    np.testing.assert_array_equal(Transform("log2p1").apply(Y).toarray(), [[0.0, 2.0, 0.0]])


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("name", FORMULAS)
def test_negative_values_are_no_counts(name, kind):
    with pytest.raises(ValueError, match=rf"{name} is for counts, but values go down to -2\.5: .*fit them as they are"):
        Transform(name, FACTORS).apply(kind(COUNTS - 2.5))


def test_unknown_transforms():
    with pytest.raises(ValueError, match="transform='log' is not known; use None or one of log1p, log2p1, normalize"):
        Transform("log")


# --- recognition ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (COUNTS, True),
        (COUNTS.astype("uint16"), True),
        (COUNTS.astype("float32"), True),
        (COUNTS + 0.5, False),
        (np.log1p(COUNTS), False),
        (COUNTS - 1, False),
        (0 * COUNTS, False),
        (COUNTS > 0, False),
        (1e15 * COUNTS, True),
    ],
)
def test_counts_are_non_negative_whole_numbers(kind, values, expected):
    assert looks_like_counts(kind(values)) is expected


def test_nothing_is_no_counts():
    assert not looks_like_counts(np.empty((0, 3), dtype=int))


def test_recognised_counts_are_said_in_one_line(caplog):
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        assert recognise(COUNTS, None) == Transform("log2p1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "raw counts recognised: fitting log2(1 + y)" in caplog.text
    caplog.clear()
    assert recognise(COUNTS + 0.5, None) == Transform()
    assert not caplog.records


@pytest.mark.parametrize("values", [COUNTS, COUNTS + 0.5])
def test_the_caller_decides_without_a_message(values, caplog):
    assert recognise(np.ceil(values), True) == Transform("log2p1")
    assert recognise(values, False) == Transform()
    assert not caplog.records


def test_other_answers_are_refused():
    with pytest.raises(ValueError, match="is_counts='no': wanted True, False, or None"):
        recognise(COUNTS, "no")


# --- values that cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200, -1e200])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_array, sparse.coo_array])
def test_bad_values_are_counted_and_located(kind, bad):
    Y = COUNTS.astype(float)
    Y[2, 3] = Y[4, 0] = Y[4, 1] = bad
    with pytest.raises(ValueError, match=r"^Y holds 3 value\(s\) that are NaN.* position \((2, 3|4, 0)\); remove"):
        check_values(kind(Y))


def test_the_place_is_that_within_the_whole():
    Y = np.zeros((3, 2))
    Y[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"cells\.h5ad holds 1 value.*position \(101, 1\)"):
        check_values(Y, "cells.h5ad", first_row=100)


def test_vectors_have_places_too():
    with pytest.raises(ValueError, match=r"Ynorm holds 1 value.*position \(2,\)"):
        check_values(np.array([1.0, 2.0, np.nan]), "Ynorm")


@pytest.mark.parametrize("values", [np.array([["a"]]), np.array([[1j]]), np.array([[None]])])
def test_invalid_numbers(values):
    with pytest.raises(ValueError, match=r"^Y holds values of type .*; wanted numbers"):
        check_values(values)


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float16", "float32", "bool", "longdouble"])
def test_ordinary_values_pass(dtype):
    check_values(COUNTS.astype(dtype))
    check_values(np.empty((0, 2), dtype=dtype))
