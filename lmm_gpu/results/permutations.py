"""A test of the test: relabel the donors, fit and test all genes again from the sums, and look at the p-values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.late_imports import pd, scipy
from ..backend.linalg import inverse_spd
from ..design.contrasts import contrast_rows
from ..estimation.fitting import fit_genes
from ..inference.pvalues import benjamini_hochberg, f_log10_pvalue, t_log10_pvalue
from ..inference.satterthwaite import check_df_method
from .blockwise import Fitted
from .contrast_arrays import quiet_contrast_test, quiet_f_test, say_fallback
from .exchange import Exchange
from .exchangeable import Strata, find_exchange

if TYPE_CHECKING:
    from .lmm_fit import LMMFit

#: Levels of the calibration.
LEVELS = (0.05, 0.01, 0.001)
#: Median of chi-squared on one degree of freedom.
_MEDIAN_CHI2 = 0.454936423119572
#: Two log10 p-values closer than this are a tie: relabellings that mirror each other differ by rounding.
TIE = 1e-6


@dataclass(frozen=True, eq=False)
class Permutation:
    """p-values of a contrast after relabellings of the donors, and what follows from them."""

    contrast: str
    df: str  #: method of the degrees of freedom that was applied
    group: str  #: random effect whose levels were relabelled
    scheme: str  #: the exchange in words
    log10_possible: float  #: logarithm of the number of different labellings, the observed one included
    features: tuple[str, ...]
    observed: np.ndarray  #: (m,), log10 p-values of the data as they are
    relabelled: np.ndarray  #: (n, m), log10 p-values of the relabelled data
    status: np.ndarray  #: (m,), words

    @property
    def n(self) -> int:
        """Number of relabellings."""
        return len(self.relabelled)

    @property
    def calibration(self) -> pd.DataFrame:
        """Share of the p-values of relabelled data below each level.

        Columns level, share, se (of the share, from the spread between relabellings) and ratio, share over level: 1 for
        a calibrated test, more for an anti-conservative one.
        """
        shares = np.array([_share_below(self.relabelled, level) for level in LEVELS])  # (levels, n)
        mean = np.nanmean(shares, axis=1)
        se = np.nanstd(shares, axis=1, ddof=1) / math.sqrt(self.n) if self.n > 1 else np.full(len(LEVELS), np.nan)
        return pd.DataFrame({"level": LEVELS, "share": mean, "se": se, "ratio": mean / np.array(LEVELS)})

    @property
    def inflation(self) -> float:
        """Lambda, the median chi-squared statistic of the relabelled data over its expectation; 1 if calibrated."""
        found = self.relabelled[np.isfinite(self.relabelled)]
        return float(scipy.special.chdtri(1, 10.0 ** np.median(found)) / _MEDIAN_CHI2) if found.size else math.nan

    @property
    def table(self) -> pd.DataFrame:
        """Permutation p-values: one row per gene.

        variable, contrast, p_value (of the test), permutation_p_value, the share of labellings, the observed one
        included, whose p-value is at most the observed (Phipson and Smyth 2010), adj_permutation_p_value
        (Benjamini-Hochberg), and status.
        """
        tested = np.isfinite(self.relabelled)
        as_small = np.count_nonzero(tested & (self.relabelled <= self.observed + TIE), axis=0)
        p = np.where(np.isfinite(self.observed), (1.0 + as_small) / (1.0 + tested.sum(axis=0)), np.nan)
        return pd.DataFrame(
            {
                "variable": np.asarray(self.features, dtype=object),
                "contrast": self.contrast,
                "p_value": 10.0**self.observed,
                "permutation_p_value": p,
                "adj_permutation_p_value": benjamini_hochberg(np.log10(p)),
                "status": self.status,
            }
        )

    def __repr__(self) -> str:
        rows = self.calibration.itertuples()
        shares = ", ".join(f"{row.share:.2%} below {row.level:g}" for row in rows)
        return (
            f"Permutation of {self.contrast} (df: {self.df})\n  {self.n} of {_count(self.log10_possible)} labellings: "
            f"{self.scheme}\n  p-values: {shares}; lambda {self.inflation:.2f}"
        )


def permutation(
    fit: LMMFit,
    contrast: Any,
    n: int = 200,
    seed: int = 0,
    *,
    df: str = "generalized",
    strata: Strata = None,
    progress: bool = True,
) -> Permutation:
    """Relabel the donors, fit and test every gene again, and report how the test is calibrated on these data.

    For a contrast between donors, such as a treatment of whole donors. The sums over the cells of relabelled data
    follow from those of the data: no cells are read. Every relabelling is fitted as the data were, with the variances
    estimated anew.

    Parameters
    ----------
    contrast : str, dict, array (p,) or (c, p), DataFrame
        One hypothesis, as `test` takes it; an array of several rows is one F test.
    n : int
        Number of relabellings; all of them if there are no more.
    seed : int
        Of the random relabellings.
    df : str
        Degrees of freedom, as in `test`.
    strata : str, list of str, or dict of level to stratum, optional
        Donors are exchanged within strata: factors of the model, or a table of the levels. By default all other factors
        of the model that are constant within donors; [] for none. Donors that the contrast does not compare, and those
        in different levels of a coarser random effect, are never exchanged. Covariates that are constant within donors
        are taken out of the labels before these are exchanged (Smith's scheme), which is approximate; without
        covariates the permutation test is exact if labels were assigned at random within strata.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Permutation
        calibration (share of p-values below 5 %, 1 %, 0.1 %), inflation (lambda), table (permutation p-values of the
        genes); `lmm_gpu.pl.permutation` draws it. Genes with an effect add to the variance between relabelled donors:
        with strong effects in many genes the shares are conservative.

    Raises
    ------
    ValueError
        For contrasts within donors, interactions, or donors of which none are exchangeable, with the reason.

    References
    ----------
    Winkler et al. (2014), Permutation inference for the general linear model, NeuroImage 92, 381-397. Phipson and Smyth
    (2010), Permutation p-values should never be zero, Statistical Applications in Genetics and Molecular Biology 9, 39.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "ctrl", "stim")})
    >>> Y = rng.normal(size=(80, 50)) + rng.normal(size=(8, 50))[donor]
    >>> found = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)").permutation("arm[T.stim]")
    >>> found.n, bool(0.02 < found.calibration["share"][0] < 0.08)
    (69, True)
    """
    from tqdm.auto import tqdm

    check_df_method(df, fit.method)
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n={n!r}: at least one relabelling is needed, as a whole number")
    C, label = _one_hypothesis(fit, contrast)
    summary = fit.summary.on(to_numpy)
    exchange = find_exchange(summary, C, label, strata)
    labellings = exchange.draw(int(n), seed)
    say_fallback(fit, df)
    found = np.full((len(labellings), fit.summary.m), np.nan)
    with tqdm(labellings, "relabelling", unit="labellings", leave=False, disable=None if progress else True) as shown:
        for place, codes in enumerate(shown):
            found[place] = _log10_p_of(fit, exchange, summary, codes, C, df)
    return Permutation(
        contrast=label,
        df=df,
        group=exchange.group,
        scheme=exchange.scheme,
        log10_possible=exchange.log10_possible,
        features=fit.summary.features,
        observed=_log10_p(fit, C, df),
        relabelled=found,
        status=fit.status.to_numpy(),
    )


def _one_hypothesis(fit: Fitted, contrast: Any) -> tuple[np.ndarray, str]:
    if contrast is None:
        raise ValueError("permutation() needs a contrast between donors, such as 'condition[T.stim]'")
    C, labels = contrast_rows(contrast, fit.summary.fixed_names)
    if len(C) > 1 and not isinstance(contrast, np.ndarray):
        raise ValueError(
            f"permutation() tests one hypothesis, and got {len(C)} contrasts ({', '.join(labels[:3])}, ...): give them "
            "one at a time, or as an array for one F test"
        )
    return C, labels[0] if len(C) == 1 else f"joint ({', '.join(labels[:3])}{', ...' if len(labels) > 3 else ''})"


def _log10_p_of(fit: LMMFit, exchange: Exchange, summary: Any, codes: np.ndarray, C: np.ndarray, df: str) -> np.ndarray:
    # of the relabelled data (m,); NaN where the labels become collinear with other columns
    changed = exchange.relabelled(summary, codes)
    if inverse_spd(changed.XX)[0] is None:
        return np.full(changed.m, np.nan)
    estimates, model = fit_genes(changed, fit.options)
    return _log10_p(dataclasses.replace(fit, estimates=estimates, summary=changed, model=model), C, df)


def _log10_p(fit: Fitted, C: np.ndarray, df: str) -> np.ndarray:
    if len(C) == 1:
        tested = quiet_contrast_test(fit, C, df)
        return t_log10_pvalue(tested.t[0], np.broadcast_to(tested.df, tested.t.shape)[0])
    jointly = quiet_f_test(fit, C, df)
    return f_log10_pvalue(jointly.statistic, jointly.df1, jointly.df)


def _share_below(log10_p: np.ndarray, level: float) -> np.ndarray:
    # of each relabelling (n,)
    tested = np.isfinite(log10_p)
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = np.count_nonzero(tested & (log10_p <= math.log10(level)), axis=1) / tested.sum(axis=1)
    return shares


def _count(log10: float) -> str:
    return f"{round(10.0**log10):,}" if log10 < 9 else f"about 10^{log10:.0f}"
