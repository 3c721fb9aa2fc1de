"""Tests of fixed effects: functions of a fit that make tables. `LMMFit` has them as methods."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import to_numpy
from ..design.contrasts import contrast_rows
from ..design.term_hypotheses import TYPES, has_empty_cells, term_hypotheses
from ..design.terms import INTERCEPT
from ..estimation.grouped_effects import GroupedEffects
from ..inference.diagnostics import diagnose, diagnose_untestable
from ..inference.empirical_bayes import Prior, fit_prior
from ..inference.satterthwaite import check_df_method
from ..inference.t_tests import ContrastTest
from ..inference.tables import tidy, tidy_f
from ..sumstats.gene_weights import WeightedStats
from .blockwise import Fitted, GeneBlock, by_block, shared_columns
from .contrast_arrays import contrast_test, quiet_f_test, say_fallback, shared_design

if TYPE_CHECKING:
    import pandas as pd


def test(
    fit: Fitted,
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
        Degrees of freedom. "generalized" (default): averages over what the variances may be, given how uncertain they
        are; that is the exact t test where donors are alike, and valid with few or uneven donors. With correlated
        random effects, weights that differ between genes or very many levels it is Kenward and Roger's test (after ML:
        Satterthwaite's), and a log line says so.
        "satterthwaite": by the expected information, at most the between-within df, which also apply at the boundary: a
        component is held at zero or a covariance matrix is singular. "kenward-roger" (REML only): pbkrtest's, with its
        adjusted standard errors; conservative where a component is at zero. "lmertest": lmerTest's, by the observed
        information; between-within at the boundary, where lmerTest itself jumps to about n - p. "between-within":
        levels of the coarsest random effect within whose levels the contrast cannot be estimated, less what is
        estimated between them. "residual": n - p.
        The p-values depend on the hypothesis, not on how a factor is coded.
    alternative : {"two-sided", "less", "greater"}
    level : float
        Coverage of the confidence interval.
    joint : bool
        One F test that all contrasts are zero.
    moderate : bool
        Squeeze residual variances towards their common value as limma's eBayes does (Smyth 2004). Useful for few
        samples, as in bulk or pseudobulk data; with thousands of cells nothing changes. A contrast within groups gets
        limma's t on df + prior df; the uncertainty of the variance between groups stays. With weights per gene it is
        dream's eBayes: all variances of a gene are scaled by the factor by which its residual variance, over the mean
        of its weights, is squeezed.

    Returns
    -------
    DataFrame
        variable, contrast, log_fc, se, statistic, df, p_value, adj_p_value (Benjamini-Hochberg within a
        contrast), log10_p_value, ci_low, ci_high, mean_expr, status, and <component>_variance. log_fc is the estimate
        of the fit; by the default test statistic and interval belong to its average over what the variances may be,
        which differs a little where groups have different sizes. Of a joint test: variable, contrast, statistic (F),
        df1, df (of the denominator), p_value, adj_p_value, log10_p_value, and the same last columns.

    Raises
    ------
    ValueError
        For unknown names, methods or alternatives, with the known ones.

    Warns
    -----
    UserWarning
        For contrasts that nothing is left to test against (p-values are NaN), and for named contrasts that compare
        groups with fewer than three levels of a random effect, or cells within levels while no random effect lets that
        difference vary between them; where compared levels or cells vary more than the common variances of the model
        say; and where few cells of rare genes are compared with many.

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
    check_df_method(df, fit.method)
    C, labels = contrast_rows(contrast, fit.summary.fixed_names)
    together = joint or (isinstance(contrast, np.ndarray) and len(C) > 1)
    if together and alternative != "two-sided":
        raise ValueError(f"alternative={alternative!r}: a joint F test has no direction; use 'two-sided'")
    for sentence in _sentences(fit, C, labels, contrast is not None):
        warnings.warn(sentence, stacklevel=2)
    if together:
        shown = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
        return _f_table(fit, {f"joint ({shown})": C}, df, moderate)
    if moderate and isinstance(fit.summary, WeightedStats) and shared_design(fit) is None:
        tested = _squeezed(fit, fit.summary, contrast_test(fit, C, df))
    else:
        tested = contrast_test(fit, C, df, residual_prior(fit) if moderate else None)
    table = tidy(tested, fit.summary.features, labels, shared_columns(fit), alternative=alternative, level=level)
    table.attrs["transform"] = fit.summary.transform  # the unit of log_fc
    return table


def _sentences(fit: Fitted, C: np.ndarray, labels: Sequence[str], named: bool) -> list[str]:
    untestable = list(diagnose_untestable(fit.summary, C, labels, fit.model.likelihood.rank))
    return untestable + (list(diagnose(fit.summary, C, labels, fit.estimates.theta)) if named else [])


def anova(fit: Fitted, df: str = "generalized", type: int | str = 3) -> pd.DataFrame:
    """Test every term of the formula: one F test per feature and term.

    Parameters
    ----------
    df : str
        As in `test`.
    type : {1, 2, 3} or {"I", "II", "III"}
        Type I: each term after those before it. II: each after all terms that do not contain it. III: each after all
        others, with effects averaged over the levels of the other factors, and covariates of its interactions at zero.
        These are lmerTest's hypotheses; they do not depend on how factors are coded. (``car::Anova(type = 3)`` tests
        the coefficients as they are coded: give those to `test` as an array.)

    Returns
    -------
    DataFrame
        As `test` of several contrasts at once; contrast is the term. The intercept is left out.

    Raises
    ------
    ValueError
        If the fit is not from a formula, or has nothing but an intercept, or for an unknown type.

    Warns
    -----
    UserWarning
        For type III where combinations of levels have no cells: then averages over levels depend on which.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"dose": list("abc") * 20, "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 2))
    >>> table = lmm_gpu.fit((Y, obs), "~ dose + (1 | donor)").anova()
    >>> table[["variable", "contrast", "df1"]].values.tolist()
    [['Gene1', 'dose', 2], ['Gene2', 'dose', 2]]
    """
    check_df_method(df, fit.method)
    terms = fit.summary.terms
    if terms is None or not any(term.products for term in terms if term.name != INTERCEPT):
        if terms is not None and all(term.name == INTERCEPT for term in terms):
            raise ValueError("there is no term to test: the fixed part of the formula is the intercept alone")
        raise ValueError(
            "the terms of the model are unknown: it was given as matrices, or its summary is of an older version; "
            "give test() the rows of each term as an array"
        )
    rows = term_hypotheses(terms, to_numpy(fit.summary.XX), type)
    if TYPES[type] == 3 and has_empty_cells(terms):
        warnings.warn(
            "combinations of levels without cells: type III averages over the levels that are left; type 2 does not "
            "average",
            stacklevel=2,
        )
    return _f_table(fit, rows, df)


def residual_prior(fit: Fitted) -> Prior:
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
    df = fit.model.likelihood.residual_df - fit.model.likelihood.rank
    if df < 1:
        raise ValueError("moderate=True needs residual degrees of freedom, and the random effects leave none")
    variance = fit.estimates.theta[-1]
    if isinstance(fit.summary, WeightedStats):
        variance = variance / to_numpy(fit.summary.own.mean)
    prior = fit_prior(variance, df)
    estimated = np.count_nonzero(np.isfinite(fit.estimates.theta[-1]))
    return Prior(min(prior.df, df * (estimated - 1.0)), prior.variance)  # no more than all features together have


def _squeezed(fit: Fitted, summary: WeightedStats, tested: ContrastTest) -> ContrastTest:
    # dream's eBayes, on tr(P0 P0) residual degrees of freedom
    variance, df = fit.estimates.theta[-1] / to_numpy(summary.own.mean), np.full(summary.m, np.nan)  # (m,)

    def form(block: GeneBlock) -> np.ndarray:
        likelihood = block.model.likelihood
        assert isinstance(likelihood, GroupedEffects)
        return to_numpy(likelihood.residual_traces(block.theta))

    for genes, found in by_block(fit, form):
        df[genes] = found
    prior = fit_prior(variance, df)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.sqrt(prior.posterior(variance, df) / variance)
    return ContrastTest(tested.estimate, tested.se * factor, np.minimum(tested.df + prior.df, np.nansum(df)))


def _f_table(fit: Fitted, tests: Mapping[str, np.ndarray], df: str, moderate: bool = False) -> pd.DataFrame:
    prior = residual_prior(fit) if moderate else None
    say_fallback(fit, df)
    tested = [quiet_f_test(fit, C, df, prior) for C in tests.values()]
    return tidy_f(tested, fit.summary.features, list(tests), shared_columns(fit))
