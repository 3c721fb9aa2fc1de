"""The tidy table: its columns, what they mean, and intervals that say the same as the p-values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lmm_gpu.inference.pvalues import t_pvalue
from lmm_gpu.inference.t_tests import ContrastTest
from lmm_gpu.inference.tables import tidy, to_wide

FEATURES, LABELS = ("g1", "g2", "g3"), ("a", "b")
ESTIMATE = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, np.nan]])
SE = np.array([[0.5, 0.25, 1.0], [2.0, 0.01, np.nan]])
DF = np.array([[4.0, 3.5, 100.0], [1.0, 12.0, np.nan]])
TESTED = ContrastTest(ESTIMATE, SE, DF)


def table(tested=TESTED, **options):
    return tidy(tested, FEATURES, LABELS, {"size": np.array([7.0, 8.0, 9.0])}, **options)


def test_one_row_per_feature_contrast_after_contrast():
    found = table()
    assert list(found.columns) == [
        *("variable", "contrast", "log_fc", "se", "statistic", "df", "p_value", "adj_p_value", "log10_p_value"),
        *("ci_low", "ci_high", "size"),
    ]
    assert found["variable"].tolist() == ["g1", "g2", "g3"] * 2
    assert found["contrast"].tolist() == ["a"] * 3 + ["b"] * 3
    np.testing.assert_array_equal(found["log_fc"], ESTIMATE.ravel())
    np.testing.assert_array_equal(found["se"], SE.ravel())
    np.testing.assert_array_equal(found["df"], DF.ravel())
    np.testing.assert_array_equal(found["statistic"], (ESTIMATE / SE).ravel())
    np.testing.assert_array_equal(found["size"], [7.0, 8, 9] * 2)
    assert found.index.tolist() == list(range(6))


def test_one_df_for_all_genes_is_repeated():
    found = table(ContrastTest(ESTIMATE, SE, np.array([[9.0], [5.0]])))
    assert found["df"].tolist() == [9.0] * 3 + [5.0] * 3


def test_p_values_are_adjusted_within_a_contrast():
    # two df: P(|T| > t) = 1 - t / sqrt(2 + t^2)
    t = np.array([[3.0, 2.0, 1.0], [0.5, 9.0, np.nan]])
    found = table(ContrastTest(t, np.ones_like(t), np.full_like(t, 2.0)))
    p = 1 - t / np.sqrt(2 + t**2)
    np.testing.assert_allclose(found["p_value"], p.ravel(), rtol=1e-12)
    np.testing.assert_allclose(found["log10_p_value"], np.log10(p.ravel()), rtol=1e-12)
    adjusted = [[min(3 * p[0, 0], 1.5 * p[0, 1], p[0, 2]), min(1.5 * p[0, 1], p[0, 2]), p[0, 2]]]
    adjusted += [[p[1, 0], min(2 * p[1, 1], p[1, 0]), np.nan]]
    np.testing.assert_allclose(found["adj_p_value"], np.ravel(adjusted), rtol=1e-12)


@pytest.mark.parametrize("level", [0.6, 0.95, 0.999])
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_the_interval_holds_what_is_not_rejected(alternative, level):
    found = table(alternative=alternative, level=level)
    estimate, se, df = (array.ravel() for array in (ESTIMATE, SE, DF))
    known = ~np.isnan(estimate)
    for end, open_side in (("ci_low", "less"), ("ci_high", "greater")):
        limit = found[end].to_numpy()
        assert np.isnan(limit[~known]).all()
        if alternative == open_side:
            assert np.isinf(limit[known]).all() and (np.sign(limit[known]) == (1 if end == "ci_high" else -1)).all()
        else:
            at_limit = t_pvalue((estimate - limit) / se, df, alternative)[known]
            np.testing.assert_allclose(at_limit, 1 - level, rtol=1e-8)
    assert (found["ci_low"][known] < estimate[known]).all() and (found["ci_high"][known] > estimate[known]).all()


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_rejected_at_five_percent_means_zero_is_outside(alternative):
    rng = np.random.default_rng(0)
    t = 3 * rng.normal(size=(1, 200))
    tested = ContrastTest(t, np.ones_like(t), np.full_like(t, 6.0))
    found = tidy(tested, [str(i) for i in range(200)], ["c"], {}, alternative=alternative, level=0.95)
    outside = (found["ci_low"] > 0) | (found["ci_high"] < 0)
    rejected = found["p_value"] < 0.05
    assert 10 < rejected.sum() < 190
    np.testing.assert_array_equal(outside, rejected)


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, np.nan])
def test_levels_that_are_no_coverage(level):
    with pytest.raises(ValueError, match=r"level=.*between 0 and 1, such as 0\.95"):
        table(level=level)


def test_unknown_alternatives():
    with pytest.raises(ValueError, match=r"alternative='two\.sided'.*two-sided, less, greater"):
        table(alternative="two.sided")


def test_wide_tables_keep_the_order_and_leave_out_genes_without_a_number():
    table = pd.DataFrame(
        {
            "variable": ["g3", "g1", "g2"] * 2,
            "contrast": ["b"] * 3 + ["a"] * 3,
            "statistic": [1.0, 2.0, 3.0, 4.0, np.nan, 6.0],
        }
    )
    wide = to_wide(table, "statistic")
    assert list(wide.index) == ["b", "a"] and list(wide.columns) == ["g3", "g2"]
    np.testing.assert_array_equal(wide, [[1.0, 3.0], [4.0, 6.0]])
    with pytest.raises(ValueError, match="has no z"):
        to_wide(table, "z")
