"""Variance components: functions of a fit for tests, intervals and fractions. `LMMFit` has them as methods."""

from __future__ import annotations

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.late_imports import pd, scipy
from ..estimation.covariance_terms import mean_variances, terms_of
from ..estimation.fitting import fit_genes
from ..estimation.mixed_model import MixedModel
from ..estimation.one_component import SingleComponent
from ..inference.pvalues import benjamini_hochberg
from ..inference.variance_tests import (
    ALTERNATIVES,
    METHODS,
    VarianceTest,
    exact_null,
    exact_test,
    likelihood_ratio,
    likelihood_ratio_test,
    variance_limits,
    wald_test,
)
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats
from .blockwise import Fitted, by_block, shared_columns
from .fitted_values import gene_position


def variance_test(
    fit: Fitted,
    component: str | int | None = None,
    method: str | None = None,
    alternative: str = "greater",
    *,
    draws: int = 100_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test that a variance component is zero: one row per feature and component.

    Parameters
    ----------
    component : str or int, optional
        Name or position of a random effect; by default each of them is tested.
    method : {"rlrt", "lrt", "wald"}, optional
        "rlrt": exact restricted likelihood ratio, for a single random effect and REML, where it is the default.
        Its null distribution is simulated once for all features; p is at least 1 / (draws + 1). "lrt": likelihood
        ratio, which fits again without the component if there are several. "wald": estimate over standard error,
        for many groups only: z stays below the root of half their number, however large the variance.
    alternative : {"greater", "two-sided"}
        "greater": a variance above zero. The null distribution is half a point at zero and half chi-squared with
        one df, and an estimate at or below zero has p = 1. "two-sided": also the negative components that fits
        with bounds="auto" or "none" allow; chi-squared with one df.
    draws, seed : int
        Of the simulation for "rlrt".

    Returns
    -------
    DataFrame
        variable, component, variance, statistic, p_value, adj_p_value, log10_p_value, mean_expr, status. Adjusted
        p-values are Benjamini and Hochberg's within each component.

    Raises
    ------
    ValueError
        For an unknown component or method, or one that the fit does not allow.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor] * [0, 2]
    >>> fit = lmm_gpu.fit((Y, pd.DataFrame({"donor": donor.astype(str)})), "~ 1 + (1 | donor)")
    >>> (fit.variance_test(draws=1000)["p_value"] < 0.01).tolist()
    [False, True]
    """
    if component is None:
        each = [_component_test(fit, one, method, alternative, draws, seed) for one in range(len(fit.summary.d))]
        return pd.concat(each, ignore_index=True)
    return _component_test(fit, component_position(fit, component), method, alternative, draws, seed)


def _component_test(fit: Fitted, at: int, method: str | None, alternative: str, draws: int, seed: int) -> pd.DataFrame:
    exact = isinstance(fit.model.likelihood, SingleComponent) and fit.method == "REML"
    method = method or ("rlrt" if exact else "lrt")
    _check_variance_test(fit, method, alternative)
    row, effects = _row_and_effects(fit, at)
    variance, se = fit.estimates.theta[row], fit.estimates.se_theta[row]  # (m,)
    if method == "wald":
        tested = wald_test(variance, se, alternative)
    elif method == "rlrt":
        null = exact_null(_single(fit.model), draws, seed)
        tested = exact_test(_likelihood_ratio(fit, at), variance, null)
    else:
        tested = likelihood_ratio_test(_likelihood_ratio(fit, at), variance, alternative, effects)
    return _variance_table(fit, at, tested)


def variance_intervals(fit: Fitted, level: float = 0.95) -> pd.DataFrame:
    """Confidence intervals of the variance components: one row per feature and component, residual last.

    By chi-squared quantiles of the mean square that a component is estimated from, on its effective df, less what
    the residual and other components put into it. A lower limit below zero says that zero is not excluded.

    Parameters
    ----------
    level : float
        Coverage, between 0 and 1.

    Returns
    -------
    DataFrame
        variable, component, variance, se, ci_low, ci_high.

    Raises
    ------
    ValueError
        For a level that is no coverage.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str)})
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
    >>> fit = lmm_gpu.fit((Y, obs), "~ 1 + (1 | donor)")
    >>> table = fit.variance_intervals()
    >>> table["component"].tolist(), table.eval("ci_low < variance < ci_high").all().item()
    (['donor', 'donor', 'residual', 'residual'], True)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: the coverage of the interval must lie between 0 and 1, such as 0.95")
    low, high = (np.full(fit.estimates.theta.shape, np.nan) for _ in range(2))  # (k+1, m)
    for genes, limits in by_block(fit, lambda at: variance_limits(at.model.likelihood, at.theta, level)):
        low[:, genes], high[:, genes] = limits
    names, features = fit.summary.variance_names, fit.summary.features
    for row in _covariance_rows(fit.summary):  # no mean square: normal limits
        reach = -scipy.special.ndtri(0.5 * (1 - level)) * fit.estimates.se_theta[row]
        low[row], high[row] = fit.estimates.theta[row] - reach, fit.estimates.theta[row] + reach
    return pd.DataFrame(
        {
            "variable": np.tile(np.asarray(features, dtype=object), len(names)),
            "component": np.repeat(list(names), len(features)),
            "variance": fit.estimates.theta.ravel(),
            "se": fit.estimates.se_theta.ravel(),
            "ci_low": low.ravel(),
            "ci_high": high.ravel(),
        }
    )


def average_variances(summary: SummaryStats, theta: np.ndarray) -> np.ndarray:
    """Variance that every component adds in the average cell ((k+1), m): s_0 over the mean weight of the residual."""
    parts = np.asarray(theta * np.array([*mean_variances(summary), 1.0])[:, None])
    if isinstance(summary, WeightedStats):
        parts[-1] /= to_numpy(summary.own.mean)
    elif summary.total_weight is not None:
        parts[-1] /= summary.total_weight / summary.n
    return parts


def variance_fractions(fit: Fitted) -> pd.DataFrame:
    """Share of every component in the variance that the fixed effects leave ((k+1) x m), residual last.

    For one grouping this is the intraclass correlation and its complement. A component counts with its variance
    in the average cell, s_i tr(Z_i'Z_i) / n: s_i itself for groups, s_i times the mean square of x for a slope.
    A covariance counts with what it adds to the variance in the average cell. A negative component has a negative
    share.

    Returns
    -------
    DataFrame ((k+1) x m)
        Without unit; the shares of a feature add up to 1.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str)})
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
    >>> fit = lmm_gpu.fit((Y, obs), "~ 1 + (1 | donor)")
    >>> shares = fit.variance_fractions()
    >>> shares.index.tolist(), shares.sum().round(12).tolist()
    (['donor', 'residual'], [1.0, 1.0])
    """
    parts = average_variances(fit.summary, fit.estimates.theta)  # (k+1, m)
    shares = parts / parts.sum(axis=0)
    return pd.DataFrame(shares, list(fit.summary.variance_names), list(fit.summary.features))


def variances(fit: Fitted, gene: str | int) -> pd.DataFrame:
    """Variance components of one gene as standard deviations and correlations.

    Parameters
    ----------
    gene : str or int
        Name or position.

    Returns
    -------
    DataFrame
        One row per variance or covariance, residual last: component, variance, sd (NaN for a covariance or a
        negative variance), correlation (NaN for a variance).

    Raises
    ------
    ValueError
        For a gene that the fit does not have.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "x": np.tile(np.arange(10.0), 8)})
    >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
    >>> lmm_gpu.fit((Y, obs), "~ x + (x | donor)").variances("Gene1")["component"].tolist()
    ['donor', 'donor.x', 'donor.cov(Intercept,x)', 'residual']
    """
    theta = fit.estimates.theta[:, gene_position(fit, gene)]
    sd, correlation = np.sqrt(np.where(theta >= 0, theta, np.nan)), np.full(theta.shape, np.nan)
    for row, (i, j) in _covariance_rows(fit.summary).items():
        sd[row], correlation[row] = np.nan, theta[row] / (sd[i] * sd[j])
    columns = {"variance": theta, "sd": sd, "correlation": correlation}
    return pd.DataFrame({"component": list(fit.summary.variance_names), **columns})


def component_position(fit: Fitted, component: str | int | None) -> int:
    """Position of a random effect given by name or position."""
    names = fit.summary.component_names
    k = len(names)
    positions = {i: i % k for i in range(-k, k)} | {name: i for i, name in enumerate(names)}
    if component is None and k == 1:
        return 0
    if component is None or isinstance(component, bool) or component not in positions:
        raise ValueError(f"component={component!r}: wanted one of {', '.join(names)}, or its position from 0")
    return positions[component]


def _check_variance_test(fit: Fitted, method: str, alternative: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; use one of {', '.join(METHODS)}")
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative={alternative!r} is not known; use one of {', '.join(ALTERNATIVES)}")
    if method != "rlrt":
        return
    if not isinstance(fit.model.likelihood, SingleComponent) or fit.method != "REML":
        raise ValueError(
            f"method='rlrt' is exact for one random effect and REML; this fit has {len(fit.summary.d)} and is by "
            f"{fit.method}: use method='lrt'"
        )
    if alternative != "greater":
        raise ValueError("method='rlrt' tests for a variance above zero; for negative ones too use method='lrt'")


def _likelihood_ratio(fit: Fitted, at: int) -> np.ndarray:
    """Twice the gain in log-likelihood by the component (m,); NaN where either model has no optimum."""
    ratio = np.full(fit.summary.m, np.nan)
    if isinstance(fit.model.likelihood, SingleComponent):
        found = by_block(fit, lambda at: to_numpy(likelihood_ratio(_single(at.model), at.theta)))
        for genes, part in found:
            ratio[genes] = part
        return np.where(fit.converged, ratio, np.nan)
    null, _ = fit_genes(fit.summary.without(at), fit.options)
    ratio = 2.0 * (fit.estimates.logLik - null.logLik)
    return np.where(fit.converged & null.converged, ratio, np.nan)


def _variance_table(fit: Fitted, at: int, tested: VarianceTest) -> pd.DataFrame:
    columns = shared_columns(fit)
    return pd.DataFrame(
        {
            "variable": np.asarray(fit.summary.features, dtype=object),
            "component": fit.summary.component_names[at],
            "variance": fit.estimates.theta[_row_and_effects(fit, at)[0]],
            "statistic": tested.statistic,
            "p_value": 10.0**tested.log10_p,
            "adj_p_value": benjamini_hochberg(tested.log10_p),
            "log10_p_value": tested.log10_p,
            "mean_expr": columns["mean_expr"],
            "status": columns["status"],
        }
    )


def _row_and_effects(fit: Fitted, component: int) -> tuple[int, int]:
    # row of theta of a component's variance, and number of effects of its term
    at = 0
    for term in terms_of(fit.summary.d, fit.summary.term_sizes):
        if component < at + term.effects:
            return term.parameters[component - at], term.effects
        at += term.effects
    raise IndexError(component)


def _covariance_rows(summary: SummaryStats) -> dict[int, tuple[int, int]]:
    # rows of theta that are covariances, with the rows of the two variances
    found = {}
    for term in terms_of(summary.d, summary.term_sizes):
        for row, (a, b) in zip(term.parameters, term.pairs, strict=True):
            if a != b:
                found[row] = term.parameters[a], term.parameters[b]
    return found


def _single(model: MixedModel) -> SingleComponent:
    assert isinstance(model.likelihood, SingleComponent)
    return model.likelihood
