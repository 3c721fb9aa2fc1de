"""Tails of t in exact decimal arithmetic, and Benjamini and Hochberg's procedure word by word."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from lmm_gpu.inference.pvalues import benjamini_hochberg, f_log10_pvalue, f_pvalue, t_log10_pvalue, t_pvalue, z_scores

ALTERNATIVES = ("two-sided", "less", "greater")


@cache
def exact_tail(t: float, df: int, digits: int = 60) -> Decimal:
    """P(|T| > t) for even df: a finite sum (Abramowitz and Stegun 26.7.4), in decimals."""
    assert df % 2 == 0
    with localcontext() as context:
        context.prec = digits
        squared = Decimal(t) ** 2
        cosine2 = df / (df + squared)
        term = total = Decimal(1)
        for j in range(2, df, 2):
            term *= cosine2 * (j - 1) / j
            total += term
        return 1 - (squared / (df + squared)).sqrt() * total


# --- F --------------------------------------------------------------------------------------------


@cache
def exact_upper_tail(F: float, half: int, df: int) -> Decimal:
    """P(F > F) on 2 half and df degrees of freedom: a finite sum (Abramowitz and Stegun 26.6.4), in decimals."""
    with localcontext() as context:
        context.prec = 60
        W = 2 * half * Decimal(F)
        x = df / (df + W)
        term = total = Decimal(1)
        for j in range(1, half):
            term *= (1 - x) * (Decimal(df) / 2 + j - 1) / j
            total += term
        return x ** (Decimal(df) / 2) * total


@pytest.mark.parametrize("half", [1, 2, 5, 40])
@pytest.mark.parametrize("df", [1, 3, 8, 250, 100_000])
@pytest.mark.parametrize("F", [0.001, 0.7, 2.0, 9.0, 600.0, 1e6])
def test_upper_tails_of_F(F, half, df):
    exact = exact_upper_tail(F, half, df)
    assert f_log10_pvalue(F, 2 * half, df) == pytest.approx(float(exact.log10()), rel=1e-11, abs=1e-11)
    if exact > Decimal("1e-290"):
        assert f_pvalue(F, 2 * half, df) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("df", [1.0, 4.7, 300.0, 1e5])
def test_F_on_one_df_is_t_squared(df):
    t = np.array([0.01, 1.0, 4.0, 60.0, 500.0, np.nan])
    np.testing.assert_allclose(f_log10_pvalue(t**2, 1, df), t_log10_pvalue(t, df), rtol=1e-10)


# --- Student's t ----------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [2, 4, 6, 18, 100, 998])
@pytest.mark.parametrize("t", [0.001, 0.5, 1.5, 2.0, 3.7, 8.0, 25.0, 1000.0])
def test_tails_of_even_df(t, df):
    exact = exact_tail(t, df, digits=1700)
    assert t_log10_pvalue(t, df) == pytest.approx(float(exact.log10()), rel=1e-12, abs=1e-12)
    if exact > Decimal("1e-290"):
        assert t_pvalue(t, df) == pytest.approx(float(exact), rel=1e-11)
        assert t_pvalue(-t, df) == t_pvalue(t, df)


def test_one_df_is_the_cauchy_distribution():
    t = np.array([1e-3, 0.3, 1.0, 7.0, 1e4, 1e12])
    np.testing.assert_allclose(t_pvalue(t, 1), 2 / np.pi * np.arctan(1 / t), rtol=1e-12)


@pytest.mark.parametrize("df", [0.7, 2.5, 4.000001, 37.2])
@pytest.mark.parametrize("t", [0.4, 1.9, 6.0])
def test_tails_of_any_df_are_integrals_of_the_density(t, df):
    scale = np.exp(special.gammaln((df + 1) / 2) - special.gammaln(df / 2)) / np.sqrt(df * np.pi)
    # x = t / u maps the tail to (0, 1)
    area, _ = integrate.quad(lambda u: (1 + (t / u) ** 2 / df) ** (-(df + 1) / 2) * t / u**2, 0, 1, epsabs=0)
    assert t_pvalue(t, df) == pytest.approx(2 * scale * area, rel=1e-8)


@pytest.mark.parametrize(("t", "df"), [(60.0, 100_000), (38.6, 2_000), (45.0, 1_500), (1e30, 12), (1e60, 4)])
def test_logarithms_far_below_the_smallest_float(t, df):
    exact = float(exact_tail(t, df, digits=950).log10())
    assert exact < -200
    assert t_log10_pvalue(t, df) == pytest.approx(exact, rel=1e-13)
    assert t_log10_pvalue(-t, df, "less") == pytest.approx(exact - np.log10(2), rel=1e-13)
    assert t_log10_pvalue(t, df, "greater") == pytest.approx(exact - np.log10(2), rel=1e-13)


def test_sixty_standard_errors_on_a_hundred_thousand_df():
    assert t_log10_pvalue(60.0, 1e5) == pytest.approx(-769.856423, abs=5e-7)
    assert t_pvalue(60.0, 1e5) == 0.0


def test_the_logarithm_is_smooth_where_the_formula_changes():
    t = np.linspace(36.0, 41.0, 2001)  # p from 1e-276 to 1e-350 on 1e6 df
    log10_p = t_log10_pvalue(t, 1e6)
    assert log10_p[0] > -285 and log10_p[-1] < -330
    slope, bend = np.diff(log10_p), np.diff(log10_p, 2)
    assert (slope < 0).all()
    assert np.abs(bend - np.median(bend)).max() < 1e-3 * np.abs(slope).min()


@given(st.floats(-30, 30), st.floats(0.5, 1e6))
def test_alternatives_fit_together(t, df):
    two_sided, less, greater = (t_pvalue(t, df, alternative) for alternative in ALTERNATIVES)
    assert less + greater == pytest.approx(1.0, rel=1e-12)
    assert two_sided == pytest.approx(2 * min(less, greater), rel=1e-12)
    assert (greater <= less) if t > 0 else (less <= greater)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_large_tables_are_split_without_a_trace(alternative):
    rng = np.random.default_rng(3)
    t, df = 5 * rng.standard_t(4, size=(2, 40_001)), rng.uniform(1, 30, size=(2, 1))
    t[1, 5] = np.nan
    whole = t_pvalue(t, df, alternative)
    assert whole.shape == t.shape
    for row, row_t, row_df in zip(whole, t, df, strict=True):
        pieces = [t_pvalue(row_t[lo : lo + 997], row_df, alternative) for lo in range(0, row_t.size, 997)]
        np.testing.assert_array_equal(row, np.concatenate(pieces))


@pytest.mark.parametrize("function", [t_pvalue, t_log10_pvalue])
def test_nan_in_is_nan_out_in_place(function):
    t, df = np.array([1.0, np.nan, 2.0, 1.0]), np.array([5.0, 5.0, np.nan, 7.0])
    found = function(t, df)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])
    assert found[0] == function(1.0, 5.0)


def test_ends_of_the_scale():
    np.testing.assert_array_equal(t_pvalue(np.array([0.0, np.inf, -np.inf]), 3.0), [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(t_log10_pvalue(np.array([0.0, np.inf, -np.inf]), 3.0), [0.0, -np.inf, -np.inf])


@pytest.mark.parametrize("function", [t_pvalue, t_log10_pvalue])
def test_unknown_alternatives_are_refused(function):
    with pytest.raises(ValueError, match=r"alternative='both' .* two-sided, less, greater"):
        function(1.0, 3.0, "both")


# --- false discovery rate -------------------------------------------------------------------------


def textbook(p: list[float]) -> list[float]:
    """The smallest level at which Benjamini and Hochberg's step-up procedure rejects each hypothesis."""
    adjusted = []
    for candidate in p:
        # rejected at level q if there is a p(i) >= candidate with p(i) <= q i / m
        levels = [other * len(p) / sum(one <= other for one in p) for other in p if other >= candidate]
        adjusted.append(min(1.0, *levels))
    return adjusted


@given(st.lists(st.one_of(st.just(np.nan), st.floats(1e-250, 1.0)), max_size=25))
def test_adjusted_p_values_are_the_textbooks(p):
    found = benjamini_hochberg(np.log10(np.array(p, dtype=float)))
    tested = [value for value in p if not np.isnan(value)]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(p))
    np.testing.assert_allclose(found[~np.isnan(found)], textbook(tested), rtol=1e-11)


def test_ties_share_their_value():
    np.testing.assert_allclose(benjamini_hochberg(np.log10([0.02, 0.02, 0.9])), [0.03, 0.03, 0.9], rtol=1e-12)


def test_p_values_that_underflow_keep_their_order():
    # p = 1e-307, 1e-400, 1e-320 of 1,000: what can be written as a float is, the rest is zero
    log10_p = np.concatenate([[-307.0, -400.0, -320.0], np.zeros(997)])
    adjusted = benjamini_hochberg(log10_p)
    assert adjusted[0] == pytest.approx(1e-307 * 1000 / 3, rel=1e-11)
    assert adjusted[1] == 0.0 and 0.0 < adjusted[2] < 1e-316
    assert (adjusted[3:] == 1.0).all()


def test_nothing_to_adjust():
    assert benjamini_hochberg(np.array([])).shape == (0,)
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()


def test_z_scores_have_the_p_values_and_signs_of_t_statistics():
    t, df = np.array([-40.0, -2.0, 0.5, 3.0, 60.0]), np.array([3.0, 5.0, 7.0, 40.0, 1e5])
    z = z_scores(t, t_log10_pvalue(t, df))
    assert (np.sign(z) == np.sign(t)).all()
    np.testing.assert_allclose(2 * special.ndtr(-np.abs(z[:4])), 2 * special.stdtr(df[:4], -np.abs(t[:4])), rtol=1e-10)
    assert 59.0 < z[4] < 60.0  # far below the smallest float, nearly normal
