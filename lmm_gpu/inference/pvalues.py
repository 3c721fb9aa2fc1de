"""Tails of Student's t and of F, and false discovery rates, on the host; NaN in means NaN out, in place."""

from __future__ import annotations

import numpy as np

from ..backend.late_imports import scipy
from ..backend.threads import in_threads

#: Where p itself still has all its digits; below, only its logarithm does.
_SMALLEST_P = 1e-290
#: Degrees of freedom from which on Hill's expansion is exact to rounding.
_MANY_DF = 1e4
#: Entries per thread and task.
_CHUNK = 32_768
ALTERNATIVES = ("two-sided", "less", "greater")


def t_pvalue(t: np.ndarray, df: np.ndarray | float, alternative: str = "two-sided") -> np.ndarray:
    """p-values of t statistics, of the shape of `t`.

    Parameters
    ----------
    t : array
    df : array or float
        Degrees of freedom, broadcast against `t`.
    alternative : {"two-sided", "less", "greater"}

    Raises
    ------
    ValueError
        For another alternative.

    Examples
    --------
    >>> float(np.round(t_pvalue(np.array(2.0), 10.0), 6))
    0.073388
    """
    _check_alternative(alternative)
    # always the lower tail: 1 - cdf would lose everything below 1e-16
    if alternative == "two-sided":
        return 2.0 * _lower_tail(df, -np.abs(t))
    return _lower_tail(df, t if alternative == "less" else -np.asarray(t))


def _lower_tail(df: np.ndarray | float, t: np.ndarray) -> np.ndarray:
    # Student's t distribution function; large tables in chunks on threads
    df, t = np.broadcast_arrays(np.asarray(df, dtype=float), np.asarray(t, dtype=float))
    if t.size <= _CHUNK:
        return _student(df, t)
    pieces = range(0, t.size, _CHUNK)
    df, flat = df.reshape(-1), t.reshape(-1)
    parts = in_threads(lambda lo: _student(df[lo : lo + _CHUNK], flat[lo : lo + _CHUNK]), pieces)
    return np.concatenate(list(parts)).reshape(t.shape)


def _student(df: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Distribution function of Student's t: cells give degrees of freedom so many that the normal one does."""
    if not (df >= _MANY_DF).all():
        result: np.ndarray = scipy.special.stdtr(df, t)
        return result
    result = scipy.special.ndtr(np.copysign(_normal_equivalent(df, t), t))
    return result


def _normal_equivalent(df: np.ndarray, t: np.ndarray) -> np.ndarray:
    """|z| with the same tail as t, by Hill's expansion; exact to rounding for ten thousand degrees of freedom.

    References
    ----------
    Hill (1970), Algorithm 395: Student's t-distribution, Communications of the ACM 13, 617-619.
    """
    a = df - 0.5
    b = 48.0 * a * a
    z2 = np.minimum(a * np.log1p(t * t / df), 1e12)  # an infinite t too has a tail: none
    correction = (((-0.4 * z2 - 3.3) * z2 - 24.0) * z2 - 85.5) / (0.8 * z2 * z2 + 100.0 + b)
    result: np.ndarray = np.sqrt(z2) * (1.0 + (z2 + 3.0 + correction) / b)
    return result


def t_log10_pvalue(t: np.ndarray, df: np.ndarray | float, alternative: str = "two-sided") -> np.ndarray:
    """log10 of `t_pvalue`, exact where the p-value itself underflows.

    Examples
    --------
    >>> float(np.round(t_log10_pvalue(np.array(60.0), 1e5), 6))
    -769.856423
    """
    _check_alternative(alternative)
    t, df = np.broadcast_arrays(np.asarray(t, dtype=float), np.asarray(df, dtype=float))
    p = np.asarray(t_pvalue(t, df, alternative))
    tiny = p < _SMALLEST_P
    with np.errstate(divide="ignore"):
        result = np.array(np.log10(p))
    if tiny.any():
        log_p = _log_two_sided(np.abs(t[tiny]), df[tiny])
        result[tiny] = (log_p if alternative == "two-sided" else log_p - np.log(2.0)) / np.log(10.0)
    return result[()]


def f_pvalue(F: np.ndarray, df1: float, df: np.ndarray | float) -> np.ndarray:
    """p-values of F statistics on `df1` and `df` degrees of freedom, of the shape of `F`.

    Examples
    --------
    >>> float(np.round(f_pvalue(np.array(4.0), 1, 10.0), 6))
    0.073388
    """
    result: np.ndarray = scipy.special.fdtrc(df1, df, F)
    return result


def f_log10_pvalue(F: np.ndarray, df1: float, df: np.ndarray | float) -> np.ndarray:
    """log10 of `f_pvalue`, exact where the p-value itself underflows.

    Examples
    --------
    >>> float(np.round(f_log10_pvalue(np.array(3600.0), 1, 1e5), 6))
    -769.856423
    """
    F, df = np.broadcast_arrays(np.asarray(F, dtype=float), np.asarray(df, dtype=float))
    p = np.asarray(f_pvalue(F, df1, df))
    tiny = p < _SMALLEST_P
    with np.errstate(divide="ignore"):
        result = np.array(np.log10(p))
    if tiny.any():
        result[tiny] = _log_upper_tail(df1 * F[tiny], df1, df[tiny]) / np.log(10.0)
    return result[()]


def _log_two_sided(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Logarithm of P(|T| > t), for a t far in the tail."""
    return _log_upper_tail(t * t, 1.0, df)


def _log_upper_tail(W: np.ndarray, df1: float, df: np.ndarray) -> np.ndarray:
    """Logarithm of P(df1 F > W) = I_x(df/2, df1/2), x = df / (df + W), for a W far in the tail.

    By the continued fraction of the incomplete beta function (Press et al., Numerical Recipes, 6.4).
    """
    a, b, x = 0.5 * df, 0.5 * df1, 1.0 / (1.0 + W / df)
    log_x, log_1mx = -np.log1p(W / df), -np.log1p(df / W)
    result: np.ndarray = (
        a * log_x + b * log_1mx - scipy.special.betaln(a, b) - np.log(a) + np.log(_beta_fraction(a, b, x))
    )
    return result


def _beta_fraction(a: np.ndarray, b: float, x: np.ndarray, terms: int = 100) -> np.ndarray:
    # modified Lentz; converges at once this far in the tail
    c = np.ones_like(x)
    d = 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, terms):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + numerator * d)
            c = 1.0 + numerator / c
            fraction = fraction * d * c
    result: np.ndarray = fraction
    return result


def benjamini_hochberg(log10_p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values from log10 p-values (m,); NaN is left out and left in place.

    References
    ----------
    Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57, 289-300.

    Examples
    --------
    >>> benjamini_hochberg(np.log10([0.01, np.nan, 0.04, 0.03])).round(3).tolist()
    [0.03, nan, 0.04, 0.04]
    """
    return 10.0 ** log10_benjamini_hochberg(log10_p)


def log10_benjamini_hochberg(log10_p: np.ndarray) -> np.ndarray:
    """log10 of `benjamini_hochberg`: adjusted p-values below the smallest float, too.

    >>> log10_benjamini_hochberg(np.array([-400.0, -1.0])).round(3).tolist()
    [-399.699, -1.0]
    """
    log10_p = np.asarray(log10_p, dtype=float)
    adjusted = np.full(log10_p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(log10_p))
    if tested.size:
        order = tested[np.argsort(log10_p[tested], kind="stable")]
        scaled = log10_p[order] + np.log10(order.size / np.arange(1, order.size + 1))
        adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 0.0)
    return adjusted


def z_scores(t: np.ndarray, log10_p: np.ndarray) -> np.ndarray:
    """Normal quantiles with the two-sided p-values of `log10_p` and the signs of `t`, of the shape of `t`.

    Statistics on many and on few degrees of freedom become comparable, as by limma's zscoreT.

    Examples
    --------
    >>> z_scores(np.array([2.0, -40.0]), np.log10([0.05, 0.05])).round(3).tolist()
    [1.96, -1.96]
    """
    result: np.ndarray = -np.sign(t) * scipy.special.ndtri_exp(np.minimum(np.log(10.0) * log10_p, 0.0) - np.log(2.0))
    return result


def _check_alternative(alternative: str) -> None:
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative={alternative!r} is not known; use one of {', '.join(ALTERNATIVES)}")
