"""Variance components and random effects: the methods of `LMMFit` that test, bound, share out and predict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from ..backend.arrays import Array, to_numpy
from ..backend.linalg import identity
from ..estimation.covariance_terms import terms_of
from ..estimation.fitting import fit_genes
from ..estimation.grouped_effects import GroupedEffects
from ..estimation.likelihood import Likelihood
from ..estimation.many_components import MultiComponent
from ..estimation.mixed_model import MixedModel, in_pieces
from ..estimation.one_component import SingleComponent
from ..estimation.projection import Projection
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
from ..sumstats.summary_stats import SummaryStats
from .blockwise import Fitted


class FitVariances(Fitted):
    """Variance components and random effects of a fit; `LMMFit` has them."""

    converged: Any  # a Series, one bool per feature

    def variance_test(
        self,
        component: str | int | None = None,
        method: str | None = None,
        alternative: str = "greater",
        *,
        draws: int = 100_000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Test that a variance component is zero: one row per feature.

        Parameters
        ----------
        component : str or int, optional
            Name or position of a random effect; may be left out if there is one.
        method : {"rlrt", "lrt", "wald"}, optional
            "rlrt": exact restricted likelihood ratio, for a single random effect and REML, where it is the default.
            Its null distribution is simulated once for all features; p is at least 1 / (draws + 1). "lrt": likelihood
            ratio, which fits again without the component if there are several. "wald": estimate over standard error,
            for many groups only: z stays below the root of half their number, however large the variance.
        alternative : {"greater", "two-sided"}
            "greater": a variance above zero. The null distribution is half a point at zero and half chi-squared with
            one df, and an estimate at or below zero has p = 1. "two-sided": also the negative components that fits
            with bounds="auto" or "none" allow; chi-squared with one df. One of k correlated effects is tested with its
            covariances: by the mixture in equal parts of chi-squared with k - 1 and k df, or "two-sided" with k df.
        draws, seed : int
            Of the simulation for "rlrt".

        Returns
        -------
        DataFrame
            variable, component, variance, statistic, p_value, adj_p_value, log10_p_value, mean_expr, status.

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
        at = self._component(component)
        exact = isinstance(self.model.likelihood, SingleComponent) and self.method == "REML"
        method = method or ("rlrt" if exact else "lrt")
        self._check_variance_test(method, alternative)
        row, effects = self._row_and_effects(at)
        variance, se = self.estimates.theta[row], self.estimates.se_theta[row]  # (m,)
        if method == "wald":
            tested = wald_test(variance, se, alternative)
        elif method == "rlrt":
            null = exact_null(_single(self.model), draws, seed)
            tested = exact_test(self._likelihood_ratio(at), variance, null)
        else:
            tested = likelihood_ratio_test(self._likelihood_ratio(at), variance, alternative, effects)
        return self._variance_table(at, tested)

    def variance_intervals(self, level: float = 0.95) -> pd.DataFrame:
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
        low, high = (np.full(self.estimates.theta.shape, np.nan) for _ in range(2))  # (k+1, m)
        for genes, limits in self._by_block(lambda model, theta: variance_limits(model.likelihood, theta, level)):
            low[:, genes], high[:, genes] = limits
        names, features = self.summary.variance_names, self.summary.features
        for row in _covariance_rows(self.summary):  # no mean square: normal limits
            reach = norm.isf(0.5 * (1 - level)) * self.estimates.se_theta[row]
            low[row], high[row] = self.estimates.theta[row] - reach, self.estimates.theta[row] + reach
        return pd.DataFrame(
            {
                "variable": np.tile(np.asarray(features, dtype=object), len(names)),
                "component": np.repeat(list(names), len(features)),
                "variance": self.estimates.theta.ravel(),
                "se": self.estimates.se_theta.ravel(),
                "ci_low": low.ravel(),
                "ci_high": high.ravel(),
            }
        )

    def variance_fractions(self) -> pd.DataFrame:
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
        ZZ, mean = to_numpy(self.summary.ZZ), []
        for term in terms_of(self.summary.d, self.summary.term_sizes):
            for a, b in term.pairs:
                products = np.diagonal(ZZ[slice(*term.rows(a)), slice(*term.rows(b))])
                mean.append((1 if a == b else 2) * products.sum() / self.summary.n)
        parts = self.estimates.theta * np.array([*mean, 1.0])[:, None]  # (k+1, m)
        shares = parts / parts.sum(axis=0)
        return pd.DataFrame(shares, list(self.summary.variance_names), list(self.summary.features))

    def ranef(self, component: str | int | None = None) -> pd.DataFrame:
        """Best linear unbiased predictions with conditional standard deviations: one row per feature and effect.

        Parameters
        ----------
        component : str or int, optional
            Name or position of one random effect; by default all of them.

        Returns
        -------
        DataFrame
            variable, component, effect, blup, sd. The sd are lme4's condVar: given theta and the fixed effects, so
            without the uncertainty of these; NaN for a negative component.

        Raises
        ------
        ValueError
            For an unknown component.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
        >>> obs = pd.DataFrame({"donor": donor.astype(str)})
        >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
        >>> fit = lmm_gpu.fit((Y, obs), "~ 1 + (1 | donor)")
        >>> table = fit.ranef("donor")
        >>> table["effect"].tolist()[:2], len(table), bool((table["sd"] > 0).all())
        (['donor[0]', 'donor[1]'], 16, True)
        """
        chosen = range(len(self.summary.d)) if component is None else [self._component(component)]
        ends = np.cumsum([0, *self.summary.d])
        rows = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in chosen])
        m, grouped = self.summary.m, isinstance(self.model.likelihood, GroupedEffects)
        bare = None if grouped else unprojected(self.summary)
        blup, sd = (np.full((rows.size, m), np.nan) for _ in range(2))
        formed = self._by_block(
            lambda model, at: (to_numpy(model.random_effects(at)), conditional_sd(bare or _without_fixed(model), at))
        )
        for genes, (u, spread) in formed:
            blup[:, genes], sd[:, genes] = u[rows], spread[rows]
        owner = np.repeat(list(self.summary.component_names), self.summary.d)[rows]
        return pd.DataFrame(
            {
                "variable": np.repeat(np.asarray(self.summary.features, dtype=object), rows.size),
                "component": np.tile(owner, m),
                "effect": np.tile(np.asarray(self.summary.random_names, dtype=object)[rows], m),
                "blup": blup.T.ravel(),
                "sd": sd.T.ravel(),
            }
        )

    def variances(self, gene: str | int) -> pd.DataFrame:
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
        features = self.summary.features
        at = features.index(gene) if gene in features else gene
        if isinstance(at, bool) or not isinstance(at, (int, np.integer)) or not 0 <= at < len(features):
            raise ValueError(
                f"gene={gene!r} is not part of the fit; give one of its {len(features)} names or positions"
            )
        theta = self.estimates.theta[:, at]
        sd, correlation = np.sqrt(np.where(theta >= 0, theta, np.nan)), np.full(theta.shape, np.nan)
        for row, (i, j) in _covariance_rows(self.summary).items():
            sd[row], correlation[row] = np.nan, theta[row] / (sd[i] * sd[j])
        columns = {"variance": theta, "sd": sd, "correlation": correlation}
        return pd.DataFrame({"component": list(self.summary.variance_names), **columns})

    def _row_and_effects(self, component: int) -> tuple[int, int]:
        # row of theta of a component's variance, and number of effects of its term
        at = 0
        for term in terms_of(self.summary.d, self.summary.term_sizes):
            if component < at + term.effects:
                return term.parameters[component - at], term.effects
            at += term.effects
        raise IndexError(component)

    def _component(self, component: str | int | None) -> int:
        names = self.summary.component_names
        k = len(names)
        positions = {i: i % k for i in range(-k, k)} | {name: i for i, name in enumerate(names)}
        if component is None and k == 1:
            return 0
        if component is None or isinstance(component, bool) or component not in positions:
            raise ValueError(f"component={component!r}: wanted one of {', '.join(names)}, or its position from 0")
        return positions[component]

    def _check_variance_test(self, method: str, alternative: str) -> None:
        if method not in METHODS:
            raise ValueError(f"method={method!r} is not known; use one of {', '.join(METHODS)}")
        if alternative not in ALTERNATIVES:
            raise ValueError(f"alternative={alternative!r} is not known; use one of {', '.join(ALTERNATIVES)}")
        if method != "rlrt":
            return
        if not isinstance(self.model.likelihood, SingleComponent) or self.method != "REML":
            raise ValueError(
                f"method='rlrt' is exact for one random effect and REML; this fit has {len(self.summary.d)} and is by "
                f"{self.method}: use method='lrt'"
            )
        if alternative != "greater":
            raise ValueError("method='rlrt' tests for a variance above zero; for negative ones too use method='lrt'")

    def _likelihood_ratio(self, at: int) -> np.ndarray:
        """Twice the gain in log-likelihood by the component (m,); NaN where either model has no optimum."""
        ratio = np.full(self.summary.m, np.nan)
        if isinstance(self.model.likelihood, SingleComponent):
            found = self._by_block(lambda model, theta: to_numpy(likelihood_ratio(_single(model), theta)))
            for genes, part in found:
                ratio[genes] = part
            return np.where(self.converged, ratio, np.nan)
        null, _ = fit_genes(self.summary.without(at), self.options)
        ratio = 2.0 * (self.estimates.logLik - null.logLik)
        return np.where(self.converged & null.converged, ratio, np.nan)

    def _variance_table(self, at: int, tested: VarianceTest) -> pd.DataFrame:
        columns = self._columns()
        return pd.DataFrame(
            {
                "variable": np.asarray(self.summary.features, dtype=object),
                "component": self.summary.component_names[at],
                "variance": self.estimates.theta[self._row_and_effects(at)[0]],
                "statistic": tested.statistic,
                "p_value": 10.0**tested.log10_p,
                "adj_p_value": benjamini_hochberg(tested.log10_p),
                "log10_p_value": tested.log10_p,
                "mean_expr": columns["mean_expr"],
                "status": columns["status"],
            }
        )


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


def unprojected(summary: SummaryStats) -> Likelihood:
    """Likelihood of no genes with Z'Z in place of S: its N = D (I + Z'Z D)^-1 is the conditional covariance / s_0."""
    projection = Projection.build(summary)
    bare = replace(projection, S=projection.ZZ)
    if len(summary.d) == 1:
        return SingleComponent.decompose(bare, "REML")
    return MultiComponent.decompose(bare, summary.d, "REML")


def _without_fixed(model: MixedModel) -> Likelihood:
    assert isinstance(model.likelihood, GroupedEffects)
    return model.likelihood.without_fixed()


def conditional_sd(bare: Likelihood, theta: Array) -> np.ndarray:
    """Standard deviations (q, b) of u given y, theta and beta, as lme4's condVar; NaN for a negative component.

    `bare` is `unprojected` of the design.
    """
    g = bare.ratios(theta)
    if isinstance(bare, GroupedEffects):
        with np.errstate(invalid="ignore"):
            return np.sqrt(to_numpy(theta[-1, :][None, :] * bare.conditional_variances(g)))
    unit = identity(bare.random_effects(g[:, :0]).shape[0], theta)
    form = in_pieces(lambda g: bare.variance_form(g, unit), g, unit.shape[0] ** 2)  # (q, b)
    with np.errstate(invalid="ignore"):
        return np.sqrt(to_numpy(theta[-1, :][None, :] * form))
