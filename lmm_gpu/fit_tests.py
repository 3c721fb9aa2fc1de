"""Tests of fixed effects: the methods of `LMMFit` that make tables of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .advice import advise, advise_coding
from .arrays import like, to_numpy
from .contrasts import contrast_rows
from .degrees_of_freedom import between_within_df, between_within_directions, check_df_method, is_satterthwaite
from .estimates import Fitted
from .f_tests import FTest, RowSpace, combine_df, f_test
from .inference import ContrastTest, needs_genes, spread
from .moderation import Prior, fit_prior
from .table import tidy, tidy_f


class FitTests(Fitted):
    """Tests of the fixed effects of a fit; `LMMFit` has them."""

    def test(
        self,
        contrast: Any = None,
        df: str = "satterthwaite",
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
        df : {"satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"}
            Degrees of freedom. Satterthwaite's use the expected information and are at most the between-within df,
            which also apply where a component is held at zero. "kenward-roger" (REML only): pbkrtest's, with its
            adjusted standard errors; cautious where a component is at zero. "lmertest": lmerTest's, by the observed
            information; between-within where a component is held at zero, where lmerTest itself jumps to about
            n - p. "residual": n - p. After a fit by ML all but "kenward-roger" apply, with ML's variances and their
            information.
        alternative : {"two-sided", "less", "greater"}
        level : float
            Coverage of the confidence interval.
        joint : bool
            One F test that all contrasts are zero.
        moderate : bool
            Squeeze residual variances towards their common value as limma's eBayes does (Smyth 2004). Worth it for
            few samples, as in bulk or pseudobulk data; with thousands of cells it changes nothing. A contrast within
            groups gets limma's t on df + prior df; the uncertainty between groups is not limma's to reduce.

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
        tested = self.contrast_test(C, df, self.residual_prior() if moderate else None)
        return tidy(tested, self.summary.features, labels, self._columns(), alternative=alternative, level=level)

    def anova(self, df: str = "satterthwaite") -> pd.DataFrame:
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
        terms = {name: list(columns) for name, columns in self.summary.terms if name != "1"}
        if not terms:
            raise ValueError("there is no term to test: the fixed part of the formula is the intercept alone")
        for sentence in advise_coding(self.summary):
            warnings.warn(sentence, stacklevel=2)
        unit = np.eye(len(self.summary.fixed_names))
        return self._f_table({name: unit[columns] for name, columns in terms.items()}, df)

    def residual_prior(self) -> Prior:
        """limma's prior of the residual variances, on n - p less the rank of Z after X degrees of freedom."""
        df = self.model.likelihood.default_df - self.model.likelihood.rank
        if df < 1:
            raise ValueError("moderate=True needs residual degrees of freedom, and the random effects leave none")
        prior = fit_prior(self.estimates.theta[-1], df)
        estimated = np.count_nonzero(np.isfinite(self.estimates.theta[-1]))
        return Prior(min(prior.df, df * (estimated - 1.0)), prior.variance)  # no more than all features together have

    def contrast_test(self, C: np.ndarray, method: str, prior: Prior | None = None) -> ContrastTest:
        """Estimate, standard error and df of the contrasts in the rows of `C` (c, p); NaN without an estimate."""
        check_df_method(method, self.method)
        between_within = between_within_df(self.summary, C, self.model.likelihood.rank)
        gradient = is_satterthwaite(method) or prior is not None
        with self._computing():
            ready = self.model.prepare(like(C, self.model.XXinv), gradient=gradient)
        se, df = (np.full((C.shape[0], self.summary.m), np.nan) for _ in range(2))
        form = lambda model, at: spread(model, at, ready, method, between_within, prior)  # noqa: E731
        for genes, (of_se, of_df) in self._by_block(form, of_genes=needs_genes(method)):
            se[:, genes], df[:, genes] = of_se, of_df
        return ContrastTest(C @ self.estimates.coef, se, df)

    def f_test(self, C: np.ndarray, method: str) -> FTest:
        """F statistic and df of all contrasts in the rows of `C` (c, p) at once; NaN without an estimate."""
        check_df_method(method, self.method)
        between_within = float(combine_df(between_within_directions(self.summary, C, self.model.likelihood.rank)))
        rows = RowSpace.of(C, to_numpy(self.model.XXinv))
        statistic, df = (np.full(self.summary.m, np.nan) for _ in range(2))
        for genes, part in self._by_block(lambda model, at: f_test(model, at, rows, method, between_within)):
            statistic[genes], df[genes] = part.statistic, part.df
        return FTest(statistic, rows.rank, df)

    def _f_table(self, tests: Mapping[str, np.ndarray], df: str) -> pd.DataFrame:
        tested = [self.f_test(C, df) for C in tests.values()]
        return tidy_f(tested, self.summary.features, list(tests), self._columns())
