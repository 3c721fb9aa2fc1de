"""Tests of fixed effects: the methods of `LMMFit` that make tables of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..backend.arrays import like, to_numpy
from ..design.contrasts import contrast_rows
from ..design.marginal_means import contrasts_by_name, marginal_means
from ..estimation.grouped_effects import GroupedEffects
from ..estimation.status import Status
from ..inference.diagnostics import advise, advise_coding
from ..inference.empirical_bayes import Prior, fit_prior
from ..inference.f_tests import FTest, RowSpace, combine_df, f_test
from ..inference.satterthwaite import check_df_method, is_satterthwaite
from ..inference.strata import (
    between_within_directions,
    binding_strata,
    common_stratum,
    df_of_strata,
    weighed_strata,
    within_df,
)
from ..inference.t_tests import ContrastTest, contrast_se_and_df, needs_genes
from ..inference.tables import tidy, tidy_f
from ..sumstats.gene_weights import WeightedStats
from .blockwise import Fitted


class FitTests(Fitted):
    """Tests of the fixed effects of a fit; `LMMFit` has them."""

    def test(
        self,
        contrast: Any = None,
        df: str = "generalized",
        alternative: str = "two-sided",
        level: float = 0.95,
        *,
        joint: bool = False,
        moderate: bool = False,
    ) -> pd.DataFrame:
        """Test contrasts of the fixed effects: one row per feature and contrast.

        Parameters
        ----------
        contrast : str, list of str, dict, array (p,) or (c, p), DataFrame (p x c), optional
            "a - b" over the fixed-effect names, {name: weight}, {label: "a - b", ...}, or a contrast matrix;
            by default every coefficient. An array of several rows is one F test of all of them.
        df : {"generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
            Degrees of freedom. "generalized": standard errors and df of a contrast between groups (donors) weigh how
            uncertain the variance between them is; that is the exact t test of group means where all groups are
            alike, and holds its level where they are few or of unequal size (`inference.generalized_pvalues`). Contrasts
            that lie between groups in part, such as an effect in one type of cells, likewise. For other contrasts, and
            more than 100 df between groups, it is "satterthwaite": by the expected information, at most the
            between-within df, which also apply where a component is held at zero. "kenward-roger" (REML only):
            pbkrtest's, with its adjusted standard errors; cautious where a component is at zero. "lmertest":
            lmerTest's, by the observed information; between-within where a component is held at zero, where lmerTest
            itself jumps to about n - p. "residual": n - p. After a fit by ML all but "kenward-roger" apply, with ML's
            variances and their information.
        alternative : {"two-sided", "less", "greater"}
        level : float
            Coverage of the confidence interval.
        joint : bool
            One F test that all contrasts are zero.
        moderate : bool
            Squeeze residual variances towards their common value as limma's eBayes does (Smyth 2004). Worth it for
            few samples, as in bulk or pseudobulk data; with thousands of cells it changes nothing. A contrast within
            groups gets limma's t on df + prior df; the uncertainty between groups is not limma's to reduce.
            With weights per gene it is dream's eBayes: all of a gene's variances are scaled by what its residual
            variance, over the mean of its weights, is squeezed by.

        Returns
        -------
        DataFrame
            variable, contrast, log_fc, se, statistic, df, p_value, adj_p_value (Benjamini-Hochberg within a
            contrast), log10_p_value, ci_low, ci_high, mean_expr, status, and <component>_variance. Of a joint test:
            variable, contrast, statistic (F), df1, df (of the denominator), p_value, adj_p_value, log10_p_value,
            and the same last columns.

        Raises
        ------
        ValueError
            For unknown names, methods or alternatives, with the known ones.

        Warns
        -----
        UserWarning
            Where a named contrast compares groups of cells of fewer than three levels of a random effect, or compares
            cells within levels while no random effect lets that difference vary between them.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
        >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
        >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
        >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)")
        >>> table = fit.test({"stim vs ctrl": "arm[T.stim]"})
        >>> table[["variable", "contrast"]].values.tolist(), table["df"].round(1).tolist()
        ([['Gene1', 'stim vs ctrl'], ['Gene2', 'stim vs ctrl']], [6.0, 6.0])
        >>> fit.test("arm[T.stim]", df="residual")["df"].tolist()
        [78.0, 78.0]
        """
        check_df_method(df, self.method)
        C, labels = contrast_rows(contrast, self.summary.fixed_names)
        if contrast is not None:
            for sentence in advise(self.summary, C, labels):
                warnings.warn(sentence, stacklevel=2)
        if joint or (isinstance(contrast, np.ndarray) and len(C) > 1):
            if moderate:
                raise ValueError("moderate=True is for contrasts one by one: leave out joint, or moderate")
            if alternative != "two-sided":
                raise ValueError(f"alternative={alternative!r}: a joint F test has no direction; use 'two-sided'")
            shown = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
            return self._f_table({f"joint ({shown})": C}, df)
        if moderate and isinstance(self.summary, WeightedStats):
            tested = self._squeezed(self.contrast_test(C, df))
        else:
            tested = self.contrast_test(C, df, self.residual_prior() if moderate else None)
        table = tidy(tested, self.summary.features, labels, self._columns(), alternative=alternative, level=level)
        table.attrs["transform"] = self.summary.transform  # the unit of log_fc, for axis labels
        return table

    def contrast(
        self,
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        **variables: Any,
    ) -> pd.DataFrame:
        """Contrasts between marginal means, by the names of factors and levels: to give to `test`.

        A marginal mean averages over the levels of the other factors, with covariates at their means, as emmeans does.

        Parameters
        ----------
        by : str or sequence of str, optional
            Factors whose levels each get a contrast.
        at : dict, optional
            Levels, lists of levels, or values at which other variables are held.
        weights : {"equal", "proportional"}
            Weights of the levels of the other factors: equal, or in proportion to their cells.
        **variables
            A pair for each variable that is compared: ``condition=("stim", "ctrl")`` is stim - ctrl. A side may be a
            list of levels; "pairwise" is every pair. Two variables give contrasts of contrasts.

        Returns
        -------
        DataFrame (p, L)
            One contrast per column.

        Raises
        ------
        ValueError
            For unknown variables or levels, and for means that are not estimable.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> obs = pd.DataFrame({"arm": list("ab") * 30, "kind": list("xxyy") * 15, "donor": list("uvwxyz") * 10})
        >>> fit = lmm_gpu.fit((np.random.default_rng(1).normal(size=(60, 2)), obs), "~ arm * kind + (1 | donor)")
        >>> fit.contrast(arm=("b", "a"), by="kind").columns.tolist()
        ['b - a | kind=x', 'b - a | kind=y']
        """
        ss = self.summary
        XX = to_numpy(ss.XX)
        return contrasts_by_name(ss.terms, ss.fixed_names, variables, by=by, at=at, weights=weights, XX=XX)

    def marginal_means(
        self, by: str | Sequence[str], *, at: Mapping[str, Any] | None = None, weights: str = "equal"
    ) -> pd.DataFrame:
        """Marginal means of the levels of factors as contrasts, to give to `test`.

        Parameters
        ----------
        by : str or sequence of str
            Factors whose combinations of levels each get a mean.
        at : dict, optional
            Levels, lists of levels, or values at which other variables are held.
        weights : {"equal", "proportional"}
            As in `contrast`.

        Returns
        -------
        DataFrame (p, L)
            One mean per column.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> obs = pd.DataFrame({"arm": list("ab") * 30, "donor": np.repeat(list("uvwxyz"), 10)})
        >>> fit = lmm_gpu.fit((np.random.default_rng(1).normal(size=(60, 2)), obs), "~ arm + (1 | donor)")
        >>> fit.marginal_means("arm")
                   arm=a  arm=b
        Intercept    1.0    1.0
        arm[T.b]     0.0    1.0
        """
        ss = self.summary
        return marginal_means(ss.terms, ss.fixed_names, by, at=at, weights=weights, XX=to_numpy(ss.XX))

    def anova(self, df: str = "generalized") -> pd.DataFrame:
        """Test every term of the formula, all others in the model (type III): one F test per feature and term.

        All coefficients of a term are zero, as `car::Anova(type = 3)` has it. What that means for a factor that is
        part of an interaction is a matter of its coding: with the usual treatment coding it is the effect at the
        other factor's reference level; write ``C(a, contr.sum) * C(b, contr.sum)`` for effects that are averages
        over its levels (SAS's and lmerTest's type III).

        Parameters
        ----------
        df : str
            As in `test`.

        Returns
        -------
        DataFrame
            As `test` of several contrasts at once; contrast is the term. The intercept is left out.

        Raises
        ------
        ValueError
            If the fit is not from a formula, or has nothing but an intercept.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> obs = pd.DataFrame({"dose": list("abc") * 20, "donor": np.repeat(list("uvwxyz"), 10)})
        >>> Y = np.random.default_rng(1).normal(size=(60, 2))
        >>> table = lmm_gpu.fit((Y, obs), "~ dose + (1 | donor)").anova()
        >>> table[["variable", "contrast", "df1"]].values.tolist()
        [['Gene1', 'dose', 2], ['Gene2', 'dose', 2]]
        """
        check_df_method(df, self.method)
        if self.summary.terms is None:
            raise ValueError(
                "the terms of the model are unknown: it was given as matrices, or its summary is of an older version; "
                "give test() the rows of each term as an array"
            )
        terms = {term.name: list(term.columns) for term in self.summary.terms if term.name != "1"}
        if not terms:
            raise ValueError("there is no term to test: the fixed part of the formula is the intercept alone")
        for sentence in advise_coding(self.summary):
            warnings.warn(sentence, stacklevel=2)
        unit = np.eye(len(self.summary.fixed_names))
        return self._f_table({name: unit[columns] for name, columns in terms.items()}, df)

    def residual_prior(self) -> Prior:
        """limma's prior of the residual variances, on n - p less the rank of Z after X degrees of freedom.

        Returns
        -------
        Prior
            df and variance of the prior, as `test` uses them with ``moderate=True``.

        Raises
        ------
        ValueError
            If the random effects leave no residual degrees of freedom.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> Y = np.random.default_rng(1).normal(size=(60, 5))
        >>> fit = lmm_gpu.fit((Y, pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 10)})), "~ 1 + (1 | donor)")
        >>> prior = fit.residual_prior()
        >>> bool(0.5 < prior.variance < 2.0), bool(prior.df > 0)
        (True, True)
        """
        df = self.model.likelihood.residual_df - self.model.likelihood.rank
        if df < 1:
            raise ValueError("moderate=True needs residual degrees of freedom, and the random effects leave none")
        prior = fit_prior(self.estimates.theta[-1], df)
        estimated = np.count_nonzero(np.isfinite(self.estimates.theta[-1]))
        return Prior(min(prior.df, df * (estimated - 1.0)), prior.variance)  # no more than all features together have

    def contrast_test(self, C: np.ndarray, method: str, prior: Prior | None = None) -> ContrastTest:
        """Estimate, standard error and df of contrasts, as arrays: what `test` makes its table of.

        Parameters
        ----------
        C : array (c, p)
            Contrasts in rows, over the fixed effects.
        method : str
            Degrees of freedom, as `test`.
        prior : Prior, optional
            Of the residual variances, for moderated tests.

        Returns
        -------
        ContrastTest
            estimate, se, df (c, m); NaN for a feature without an estimate.

        Raises
        ------
        ValueError
            For an unknown method, or one that the fit does not allow.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
        >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
        >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
        >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)")
        >>> tested = fit.contrast_test(np.array([[0.0, 1.0]]), "between-within")
        >>> bool(np.allclose(tested.estimate, fit.coef.loc[["arm[T.stim]"]])), tested.df.tolist()
        (True, [[6.0, 6.0]])
        """
        check_df_method(method, self.method)
        method = self._available(method)
        bound = binding_strata(self.summary, C)
        between_within = df_of_strata(bound, within_df(self.summary, self.model.likelihood.rank))
        bound = weighed_strata(self.summary, C, bound) if method == "generalized" else bound
        gradient = is_satterthwaite(method) or prior is not None
        with self._computing():
            ready = self.model.prepare(like(C, self.model.XXinv), gradient=gradient)
        se, df = (np.full((C.shape[0], self.summary.m), np.nan) for _ in range(2))
        form = lambda model, at: contrast_se_and_df(model, at, ready, method, between_within, prior, bound)  # noqa: E731
        for genes, (of_se, of_df) in self._by_block(form, of_genes=needs_genes(method, bound)):
            se[:, genes], df[:, genes] = of_se, of_df
        se[:, self.estimates.status == Status.FAILED] = np.nan
        return ContrastTest(C @ self.estimates.coef, se, df)

    def f_test(self, C: np.ndarray, method: str) -> FTest:
        """F statistic and df of several contrasts at once, as arrays: what `test` makes a joint table of.

        Parameters
        ----------
        C : array (c, p)
            Contrasts in rows, over the fixed effects.
        method : str
            Degrees of freedom, as `test`.

        Returns
        -------
        FTest
            statistic (m,), df1, the rank of `C`, and df (m,) of the denominator; NaN for a feature without an estimate.

        Raises
        ------
        ValueError
            For an unknown method, or one that the fit does not allow.

        Examples
        --------
        >>> import numpy as np, pandas as pd, lmm_gpu
        >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
        >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
        >>> Y = rng.normal(size=(80, 2)) + rng.normal(size=(8, 2))[donor]
        >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)")
        >>> tested = fit.f_test(np.array([[0.0, 1.0]]), "residual")
        >>> bool(np.allclose(tested.statistic, fit.t.loc["arm[T.stim]"] ** 2)), tested.df1
        (True, 1)
        """
        check_df_method(method, self.method)
        method = self._available(method)
        between_within = float(combine_df(between_within_directions(self.summary, C, self.model.likelihood.rank)))
        rows = RowSpace.of(C, to_numpy(self.model.XXinv))
        stratum = common_stratum(self.summary, C) if method == "generalized" else None
        statistic, df = (np.full(self.summary.m, np.nan) for _ in range(2))
        for genes, part in self._by_block(lambda model, at: f_test(model, at, rows, method, between_within, stratum)):
            statistic[genes], df[genes] = part.statistic, part.df
        statistic[self.estimates.status == Status.FAILED] = np.nan
        return FTest(statistic, rows.rank, df)

    def _squeezed(self, tested: ContrastTest) -> ContrastTest:
        # dream's eBayes, on tr(P0 P0) residual degrees of freedom
        summary = self.summary
        assert isinstance(summary, WeightedStats)
        variance, df = self.estimates.theta[-1] / to_numpy(summary.own.mean), np.full(summary.m, np.nan)  # (m,)
        for genes, found in self._by_block(lambda model, theta: to_numpy(model.likelihood.residual_traces(theta))):
            df[genes] = found
        prior = fit_prior(variance, df)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.sqrt(prior.posterior(variance, df) / variance)
        return ContrastTest(tested.estimate, tested.se * factor, np.minimum(tested.df + prior.df, np.nansum(df)))

    def _available(self, method: str) -> str:
        # generalized p-values need the sums of squares between the levels of uncorrelated effects
        if method != "generalized" or not isinstance(self.model.likelihood, GroupedEffects):
            return method
        return "kenward-roger" if self.method == "REML" else "satterthwaite"

    def _f_table(self, tests: Mapping[str, np.ndarray], df: str) -> pd.DataFrame:
        tested = [self.f_test(C, df) for C in tests.values()]
        return tidy_f(tested, self.summary.features, list(tests), self._columns())
