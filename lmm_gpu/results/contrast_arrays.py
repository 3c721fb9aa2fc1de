"""Tests of fixed effects as arrays: functions of a fit. `LMMFit` has `contrast_test` and `f_test` as methods."""

from __future__ import annotations

import logging

import numpy as np

from ..backend.arrays import like, to_numpy
from ..backend.sparse import is_sparse
from ..estimation.status import Status
from ..inference.averaged_tests import AveragedTests, contrasts_at_once, covered
from ..inference.empirical_bayes import Prior
from ..inference.f_tests import FTest, combine_df
from ..inference.f_tests import f_test as f_test_of_model
from ..inference.satterthwaite import GRADIENT_METHODS, check_df_method
from ..inference.strata import between_within_df, between_within_directions, orthonormal_rows
from ..inference.t_tests import ContrastTest, contrast_se_and_df
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats
from .blockwise import Fitted, GeneBlock, by_block, computing

logger = logging.getLogger("lmm_gpu")


def contrast_test(fit: Fitted, C: np.ndarray, method: str, prior: Prior | None = None) -> ContrastTest:
    """Estimates, standard errors and df of contrasts as arrays, from which `test` makes its table.

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
    check_df_method(method, fit.method)
    say_fallback(fit, method)
    return quiet_contrast_test(fit, C, method, prior)


def quiet_contrast_test(fit: Fitted, C: np.ndarray, method: str, prior: Prior | None = None) -> ContrastTest:
    """`contrast_test` without its log line."""
    if method != "generalized":
        return _closed_form(fit, C, method, prior)
    return _averaged(fit, C, prior) if _is_averaged(fit) else _approximate(fit, C, prior)


def _closed_form(fit: Fitted, C: np.ndarray, method: str, prior: Prior | None) -> ContrastTest:
    between_within = _with_dropped(fit.summary, between_within_df(fit.summary, C, _rank(fit))[:, None])
    with computing(fit):
        needed = method in GRADIENT_METHODS or prior is not None
        ready = fit.model.prepare(like(C, fit.model.XXinv), gradient=needed)
    se, df = (np.full((C.shape[0], fit.summary.m), np.nan) for _ in range(2))

    def form(block: GeneBlock) -> tuple[np.ndarray, np.ndarray]:
        model = block.model if method == "lmertest" else block.design
        cap = between_within if between_within.shape[1] == 1 else between_within[:, block.genes]
        return contrast_se_and_df(model, block.theta, ready, method, cap, prior)

    for genes, (of_se, of_df) in by_block(fit, form):
        se[:, genes], df[:, genes] = of_se, of_df
    se[:, _untested(fit)] = np.nan
    return ContrastTest(C @ fit.estimates.coef, se, df)


def _averaged(fit: Fitted, C: np.ndarray, prior: Prior | None) -> ContrastTest:
    # the default test of models whose variances are averaged over
    size, summary = contrasts_at_once(fit.summary), shared_design(fit)
    assert summary is not None
    parts = [_averaged_rows(fit, summary, C[lo : lo + size], prior) for lo in range(0, len(C), size)]
    location, se, df = (np.concatenate(part) for part in zip(*parts, strict=True))
    se[:, _untested(fit)] = np.nan
    return ContrastTest(C @ fit.estimates.coef, se, df, location)


def _averaged_rows(
    fit: Fitted, summary: SummaryStats, C: np.ndarray, prior: Prior | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with computing(fit):
        tests = AveragedTests.build(summary.select(slice(0)).on(to_numpy), C)
    location, se, df = (np.full((C.shape[0], fit.summary.m), np.nan) for _ in range(3))

    def form(block: GeneBlock) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tests.t(block.projected(tests.projection, summary), prior)

    for genes, found in by_block(fit, form):
        for values, new in zip((location, se, df), found, strict=True):
            values[:, genes] = new
    return location, se, df


def _approximate(fit: Fitted, C: np.ndarray, prior: Prior | None) -> ContrastTest:
    # the default test of other models: Kenward and Roger's, Satterthwaite's where that has none
    plain = _closed_form(fit, C, "satterthwaite", prior)
    if fit.method != "REML":
        return plain
    adjusted = _closed_form(fit, C, "kenward-roger", prior)
    valid = (adjusted.se > 0) & (adjusted.df > 0) & np.isfinite(plain.df)
    return ContrastTest(plain.estimate, np.where(valid, adjusted.se, plain.se), np.where(valid, adjusted.df, plain.df))


def f_test(fit: Fitted, C: np.ndarray, method: str, prior: Prior | None = None) -> FTest:
    """F statistics and df of several contrasts at once as arrays, from which `test` makes a joint table.

    Parameters
    ----------
    C : array (c, p)
        Contrasts in rows, over the fixed effects.
    method : str
        Degrees of freedom, as `test`.
    prior : Prior, optional
        Of the residual variances, for a moderated test by the default method.

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
    check_df_method(method, fit.method)
    say_fallback(fit, method)
    return quiet_f_test(fit, C, method, prior)


def quiet_f_test(fit: Fitted, C: np.ndarray, method: str, prior: Prior | None = None) -> FTest:
    """`f_test` without its log line."""
    if method == "generalized" and _is_averaged(fit):
        return _averaged_f(fit, C, prior)
    if prior is not None:
        advice = "test its contrasts one by one" if method == "generalized" else "use df='generalized'"
        raise ValueError(f"moderate=True: a joint F test with df={method!r} has no moderated form; {advice}")
    if method == "generalized":
        return _approximate_f(fit, C)
    return _closed_form_f(fit, C, method)


def _closed_form_f(fit: Fitted, C: np.ndarray, method: str) -> FTest:
    directions = between_within_directions(fit.summary, C, _rank(fit))
    between_within = _with_dropped(fit.summary, np.atleast_1d(combine_df(directions)))
    statistic, df = (np.full(fit.summary.m, np.nan) for _ in range(2))

    def form(at: GeneBlock) -> FTest:
        cap = between_within if between_within.size == 1 else between_within[at.genes]
        return f_test_of_model(at.model, at.theta, C, method, cap)

    for genes, part in by_block(fit, form):
        statistic[genes], df[genes] = part.statistic, part.df
    statistic[_untested(fit)] = np.nan
    return FTest(statistic, len(directions), df)


def _averaged_f(fit: Fitted, C: np.ndarray, prior: Prior | None) -> FTest:
    Q, summary = orthonormal_rows(C, to_numpy(fit.model.XXinv)), shared_design(fit)
    assert summary is not None
    with computing(fit):
        tests = AveragedTests.build(summary.select(slice(0)).on(to_numpy), Q, joint=True)
    statistic, df = (np.full(fit.summary.m, np.nan) for _ in range(2))

    def form(block: GeneBlock) -> tuple[np.ndarray, np.ndarray]:
        return tests.f(block.projected(tests.projection, summary), prior)

    for genes, part in by_block(fit, form):
        statistic[genes], df[genes] = part
    statistic[_untested(fit)] = np.nan
    return FTest(statistic, len(Q), df)


def _approximate_f(fit: Fitted, C: np.ndarray) -> FTest:
    plain = _closed_form_f(fit, C, "satterthwaite")
    if fit.method != "REML":
        return plain
    adjusted = _closed_form_f(fit, C, "kenward-roger")
    valid = (adjusted.statistic >= 0) & (adjusted.df > 0) & np.isfinite(plain.df)
    return FTest(
        np.where(valid, adjusted.statistic, plain.statistic), plain.df1, np.where(valid, adjusted.df, plain.df)
    )


def say_fallback(fit: Fitted, method: str) -> None:
    """Log why the default test does not average over the variances, and which test takes its place."""
    if method == "generalized" and (reason := _why_not_averaged(fit)):
        used = {"REML": "Kenward and Roger's test (df='kenward-roger')", "ML": "Satterthwaite's (df='satterthwaite')"}
        logger.warning("df='generalized' is %s for this model: %s", used[fit.method], reason)


def _why_not_averaged(fit: Fitted) -> str | None:
    if len(fit.estimates.theta) > len(fit.summary.d) + 1:
        return "its random effects are correlated, as those of (x | donor)"
    if shared_design(fit) is None:
        return "each gene has weights of its own"
    return None if _is_averaged(fit) else "its random effects have too many levels to average over their variances"


def shared_design(fit: Fitted) -> SummaryStats | None:
    """Statistics with one design for all genes; None for genes whose weights are not proportional to each other."""
    return fit.summary.shared() if isinstance(fit.summary, WeightedStats) else fit.summary


def _untested(fit: Fitted) -> np.ndarray:
    # genes (m,) without a valid residual variance
    return np.isin(fit.estimates.status, [int(Status.FAILED), int(Status.ILL_CONDITIONED)])


def _rank(fit: Fitted) -> int:
    # of Z once X is projected out, of the design that genes share
    return int(fit.model.likelihood.rank)


def dropped_observations(summary: SummaryStats) -> np.ndarray | None:
    """Number of observations that each gene lacks, by weights of zero (m,); None if no gene lacks any."""
    if not isinstance(summary, WeightedStats):
        return None
    dropped = summary.n - to_numpy(summary.own.n)
    return dropped if dropped.any() else None


def _with_dropped(summary: SummaryStats, df: np.ndarray) -> np.ndarray:
    # between-within df (..., 1) less the observations that a gene lacks (..., m): each takes one at most
    dropped = dropped_observations(summary)
    return df if dropped is None else np.maximum(df - dropped, np.minimum(df, 1.0))


def _is_averaged(fit: Fitted) -> bool:
    summary = shared_design(fit)
    averaged = summary is not None and not is_sparse(summary.ZZ)
    return averaged and covered(fit.summary, len(fit.estimates.theta))
