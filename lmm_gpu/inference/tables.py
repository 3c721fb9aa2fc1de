"""Tests as a tidy table: one row per feature and contrast, named as pertpy's and decoupler's plots read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..backend.late_imports import pd, scipy
from .f_tests import FTest
from .pvalues import benjamini_hochberg, f_log10_pvalue, f_pvalue, t_log10_pvalue, t_pvalue
from .t_tests import ContrastTest


def tidy(
    tested: ContrastTest,
    features: Sequence[str],
    labels: Sequence[str],
    extra: Mapping[str, np.ndarray],
    *,
    alternative: str = "two-sided",
    level: float = 0.95,
) -> pd.DataFrame:
    """Table of c contrasts of m features, contrast after contrast.

    Parameters
    ----------
    tested : ContrastTest
    features, labels : m and c names
    extra : mapping of str to array (m,)
        Columns that are the same for every contrast.
    alternative : {"two-sided", "less", "greater"}
    level : float
        Coverage of the confidence interval, between 0 and 1.

    Returns
    -------
    DataFrame
        variable, contrast, log_fc, se, statistic, df, p_value, adj_p_value, log10_p_value, ci_low, ci_high,
        and `extra`. Adjusted p-values are Benjamini and Hochberg's within each contrast.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: the coverage of the interval must lie between 0 and 1, such as 0.95")
    estimate, t = tested.estimate, tested.t  # (c, m)
    df = np.broadcast_to(tested.df, estimate.shape)
    log10_p = t_log10_pvalue(t, df, alternative)
    low, high = _interval(tested.tested, tested.se, df, level, alternative)
    columns = {
        "log_fc": estimate,
        "se": tested.se,
        "statistic": t,
        "df": df,
        "p_value": t_pvalue(t, df, alternative),
        "adj_p_value": np.stack([benjamini_hochberg(row) for row in log10_p]),
        "log10_p_value": log10_p,
        "ci_low": low,
        "ci_high": high,
    }
    return _stacked(columns, features, labels, extra)


def tidy_f(
    tested: Sequence[FTest], features: Sequence[str], labels: Sequence[str], extra: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Table of several F tests of m features, test after test.

    Parameters
    ----------
    tested : sequence of FTest
    features, labels : m names, and one per test
    extra : mapping of str to array (m,)
        Columns that are the same for every test.

    Returns
    -------
    DataFrame
        variable, contrast, statistic (F), df1, df (of the denominator), p_value, adj_p_value, log10_p_value, and
        `extra`. Adjusted p-values are Benjamini and Hochberg's within each test.
    """
    log10_p = [f_log10_pvalue(test.statistic, test.df1, test.df) for test in tested]
    columns = {
        "statistic": np.stack([test.statistic for test in tested]),
        "df1": np.stack([np.full(test.statistic.shape, test.df1) for test in tested]),
        "df": np.stack([test.df for test in tested]),
        "p_value": np.stack([f_pvalue(test.statistic, test.df1, test.df) for test in tested]),
        "adj_p_value": np.stack([benjamini_hochberg(row) for row in log10_p]),
        "log10_p_value": np.stack(log10_p),
    }
    return _stacked(columns, features, labels, extra)


def to_wide(table: pd.DataFrame, column: str = "statistic") -> pd.DataFrame:
    """Turn one column of a table of tests into contrasts x features, as `decoupler.mt.ulm` reads it.

    Parameters
    ----------
    table : DataFrame
        Of `LMMFit.test`.
    column : str
        A column of numbers.

    Returns
    -------
    DataFrame
        One row per contrast and one column per feature, in the order of the table. Features that lack the number in
        any contrast are left out, as decoupler takes no NaN.

    Raises
    ------
    ValueError
        For a column that the table lacks.

    Examples
    --------
    >>> table = pd.DataFrame({"variable": ["g2", "g1"], "contrast": "b - a", "statistic": [2.5, -1.0]})
    >>> to_wide(table).to_dict("split")["data"]
    [[2.5, -1.0]]
    """
    lacking = [name for name in ("variable", "contrast", column) if name not in table]
    if lacking:
        raise ValueError(f"the table has no {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")
    rows, columns = table["contrast"].unique(), table["variable"].unique()
    wide = table.pivot(index="contrast", columns="variable", values=column).loc[rows, columns]
    return wide.dropna(axis=1).rename_axis(index=None, columns=None)


def _stacked(
    columns: Mapping[str, np.ndarray], features: Sequence[str], labels: Sequence[str], extra: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """One row per label and feature, from columns (labels, features) and `extra` (features,)."""
    c, m = len(labels), len(features)
    names = {"variable": np.tile(np.asarray(features, dtype=object), c), "contrast": np.repeat(list(labels), m)}
    return pd.DataFrame(
        names
        | {name: values.reshape(-1) for name, values in columns.items()}
        | {name: np.tile(values, c) for name, values in extra.items()}
    )


def _interval(
    estimate: np.ndarray, se: np.ndarray, df: np.ndarray, level: float, alternative: str
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence limits; one of them infinite for a one-sided alternative."""
    tail = 0.5 * (1 - level) if alternative == "two-sided" else 1 - level
    reach = -scipy.special.stdtrit(df, tail) * se
    low = estimate - (np.inf if alternative == "less" else reach)
    high = estimate + (np.inf if alternative == "greater" else reach)
    return low, high
