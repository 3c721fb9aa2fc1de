"""The estimates of a fit with labels: one object for the Python and the R-compatible API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.late_imports import LateFunctions, pd
from ..backend.threads import one_blas_thread
from ..estimation.estimates import Estimates
from ..estimation.fit_options import FitOptions
from ..estimation.mixed_model import MixedModel
from ..estimation.status import Status
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats

if TYPE_CHECKING:
    from . import (
        blockwise,
        contrast_arrays,
        fit_file,
        fitted_values,
        fixed_effect_tests,
        named_contrasts,
        permutations,
        random_effects,
        variance_components,
    )
    from . import variance_partition as partition
    from .blockwise import GeneBlock
else:  # most of these are not needed for the first estimates, and import the whole of inference
    blockwise = LateFunctions(f"{__package__}.blockwise")
    contrast_arrays = LateFunctions(f"{__package__}.contrast_arrays")
    fit_file = LateFunctions(f"{__package__}.fit_file")
    fitted_values = LateFunctions(f"{__package__}.fitted_values")
    fixed_effect_tests = LateFunctions(f"{__package__}.fixed_effect_tests")
    named_contrasts = LateFunctions(f"{__package__}.named_contrasts")
    partition = LateFunctions(f"{__package__}.variance_partition")
    permutations = LateFunctions(f"{__package__}.permutations")
    random_effects = LateFunctions(f"{__package__}.random_effects")
    variance_components = LateFunctions(f"{__package__}.variance_components")

__all__ = ["Estimates", "LMMFit"]


@dataclass(frozen=True, eq=False)
class LMMFit:
    """One linear mixed model per gene.

    Features are columns: `coef`, `se`, `t`, `p` are DataFrames p x m, `theta`, `se_theta`, `dlogL` are
    (k+1) x m with rows var1 .. vark, var0 (residual last), `logLik`, `niter`, `status`, `converged` are Series.
    `cov`, `FIM_beta` (p x p x m), `FIM_theta` ((k+1) x (k+1) x m) and `RE` (q x m) are formed when asked for,
    and None unless the fit was asked to output them. Every attribute is also a key: `fit["theta"]`.

    `options` are those of the fit; a model without one of the components is fitted with the same. `seconds` is the time
    that `lmm_gpu.fit` took, reading included.

    `se` are those at theta; `t`, `p` and `df` with them follow `ddf`: "residual" (n - p, FLASHMM's) for the
    R-compatible API, "satterthwaite" for `fit`. `test` averages over what theta may be: take p-values from it.

    Coefficients are in the unit of the values that were fitted, per unit of their column of X; variance components
    in the square of that unit.

    Examples
    --------
    >>> import lmm_gpu
    >>> obs = pd.DataFrame({"arm": np.repeat(["ctrl", "stim"], 40), "donor": np.repeat(list("pqrstuvw"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(80, 3))
    >>> fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)")
    >>> fit.coef.shape, fit.theta.index.tolist(), fit.RE.shape, fit.cov.shape
    ((2, 3), ['var1', 'var0'], (8, 3), (2, 2, 3))
    >>> fit["coef"].equals(fit.coef), fit.converged.all().item()
    (True, True)
    """

    estimates: Estimates
    summary: SummaryStats
    model: MixedModel = field(repr=False)
    options: FitOptions = field(default_factory=FitOptions)
    ddf: str = "satterthwaite"
    outputs: tuple[str, ...] = ("cov", "FIM_beta", "FIM_theta", "RE", "summary_data")
    seconds: float | None = None

    KEYS = (
        *("method", "epsilon", "dlogL", "logLik", "niter", "coef", "se", "t", "p", "df", "cov", "theta", "se_theta"),
        *("FIM_beta", "FIM_theta", "RE", "summary_data", "status", "converged"),
    )
    _SETTINGS = ("method", "epsilon", "ddf", "outputs", "bounds", "max_iter")

    @property
    def method(self) -> str:
        """Estimation method, "REML" or "ML"."""
        return self.options.method

    @property
    def epsilon(self) -> float:
        """Tolerance of the gradient of the log-likelihood."""
        return self.options.epsilon

    @property
    def bounds(self) -> str:
        """Bounds of the variance components: "auto", "nonnegative" or "none"."""
        return self.options.bounds

    @property
    def max_iter(self) -> int:
        """Scoring iterations at most, as `fit` was asked for."""
        return self.options.max_iter

    @property
    def engine(self) -> str:
        """Algorithm that evaluated the likelihoods, chosen by the model and by cost.

        "spectral" for one random effect, "spectral, widest effect eliminated" for several, "elimination by levels" for
        correlated effects, weights per gene, and thousands of levels.
        """
        return self.model.engine

    # --- tests, variance components and random effects ---

    test = fixed_effect_tests.test
    anova = fixed_effect_tests.anova
    contrast = named_contrasts.contrast
    marginal_means = named_contrasts.marginal_means
    residual_prior = fixed_effect_tests.residual_prior
    contrast_test = contrast_arrays.contrast_test
    f_test = contrast_arrays.f_test
    variance_test = variance_components.variance_test
    variance_intervals = variance_components.variance_intervals
    variance_fractions = variance_components.variance_fractions
    permutation = permutations.permutation
    fitted = fitted_values.fitted
    ranef = random_effects.ranef
    variances = variance_components.variances
    variance_partition = partition.variance_partition

    # --- a mapping, as R's list is ---

    def keys(self) -> tuple[str, ...]:
        """Names of what the fit holds, as R's list has them.

        Returns
        -------
        tuple of str

        Examples
        --------
        >>> LMMFit.KEYS[:3]
        ('method', 'epsilon', 'dlogL')
        """
        return self.KEYS

    def __getitem__(self, key: str) -> Any:
        if key not in self.KEYS:
            raise KeyError(f"{key!r} is not part of a fit; known: {', '.join(self.KEYS)}")
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.KEYS

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS)

    def __repr__(self) -> str:
        about = self._described()
        ending = f"; {about['time']}" if "time" in about else ""
        return f"LMMFit ({self.method}): {about['model']}\n  {about['size']}\n  status: {about['status']}{ending}"

    def _repr_html_(self) -> str:
        cell = '<{0} style="text-align:left">{1}</{0}>'.format
        rows = [f"<tr>{cell('th', name)}{cell('td', escape(text))}</tr>" for name, text in self._described().items()]
        return f"<table><caption>LMMFit ({self.method})</caption>{''.join(rows)}</table>"

    def _described(self) -> dict[str, str]:
        ss = self.summary
        counts = ", ".join(f"{n:,} {word}" for word, n in self.status.value_counts().items())
        effects = ", ".join(f"{name} ({d})" for name, d in zip(ss.component_names, ss.d, strict=True))
        size = f"{ss.n:,} cells, {ss.m:,} genes, {len(ss.fixed_names)} fixed effects, random effects: {effects}"
        taken = {} if self.seconds is None else {"time": f"read and fitted in {self.seconds:.1f} s"}
        return {"model": ss.formula or "X, Z", "size": size, "status": counts} | taken

    # --- kept in a file ---

    def save(self, path: str | Path) -> None:
        """Write to one HDF5 file, for `load`; a file at `path` is replaced once all of it is written.

        It holds the summary statistics as `SummaryStats.save` writes them and the estimates in the group
        ``estimates``; `lmm_gpu.results.fit_file` describes the rest.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        ValueError
            If h5py is not installed.

        Examples
        --------
        >>> import tempfile
        >>> from lmm_gpu.results.fitting import fit_summary
        >>> from lmm_gpu.sumstats.assembly import cross_products
        >>> rng = np.random.default_rng(1)
        >>> Z = np.repeat(np.eye(6), 10, axis=0)  # (60, 6)
        >>> fit = fit_summary(cross_products(np.ones((60, 1)), Z, rng.normal(size=(60, 3))))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fit.save(f"{folder}/fit.h5")
        ...     again = LMMFit.load(f"{folder}/fit.h5")
        >>> again.theta.equals(fit.theta), again.RE.equals(fit.RE), again.test().equals(fit.test())
        (True, True, True)
        """
        fit_file.write_fit(path, self.summary, self.estimates, {name: getattr(self, name) for name in self._SETTINGS})

    @classmethod
    def load(cls, path: str | Path) -> LMMFit:
        """Read what `save` wrote: contrasts, covariances and random effects come from it, without the cells.

        Parameters
        ----------
        path : str or Path
            Such as the ``fit.h5`` of a folder that ``lmm-gpu fit`` wrote.

        Returns
        -------
        LMMFit

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is truncated, altered, or something else, or h5py is not installed.

        Examples
        --------
        >>> LMMFit.load("nowhere.h5")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.h5'
        """
        summary, estimates, settings = fit_file.read_fit(path)
        with one_blas_thread():
            model = MixedModel.decompose(summary, settings["method"])
        ddf, outputs = settings.pop("ddf"), settings.pop("outputs")
        return cls(estimates, summary, model, FitOptions(**settings), ddf, outputs)

    # --- estimates ---

    @property
    def coef(self) -> pd.DataFrame:
        """Fixed effects (p x m)."""
        return self._by_coefficient(self.estimates.coef)

    @property
    def se(self) -> pd.DataFrame:
        """Standard errors of the fixed effects at theta, roots of the diagonals of `cov` (p x m)."""
        return self._by_coefficient(self.estimates.se)

    @property
    def t(self) -> pd.DataFrame:
        """T statistics, coef / se (p x m)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._by_coefficient(self.estimates.coef / self.estimates.se)

    @property
    def p(self) -> pd.DataFrame:
        """Two-sided p-values of the t statistics on `df` (p x m)."""
        from ..inference.pvalues import t_pvalue

        return self._by_coefficient(t_pvalue(self.t.to_numpy(), np.asarray(self.df)))

    @property
    def df(self) -> float | pd.DataFrame:
        """Degrees of freedom: n - p, or p x m for methods that differ between genes."""
        if self.ddf == "residual" and contrast_arrays.dropped_observations(self.summary) is None:
            return float(self.model.likelihood.residual_df)
        C = np.eye(len(self.summary.fixed_names))
        return self._by_coefficient(np.broadcast_to(self.contrast_test(C, self.ddf).df, self.estimates.coef.shape))

    @property
    def theta(self) -> pd.DataFrame:
        """Variance components, residual last ((k+1) x m)."""
        return self._by_component(self.estimates.theta)

    @property
    def se_theta(self) -> pd.DataFrame:
        """Standard errors of the variance components ((k+1) x m)."""
        return self._by_component(self.estimates.se_theta)

    @property
    def dlogL(self) -> pd.DataFrame:
        """Gradient of the log-likelihood at theta ((k+1) x m)."""
        return self._by_component(self.estimates.dlogL)

    @property
    def logLik(self) -> pd.Series:
        """Log-likelihood (restricted for REML); lme4's REML value is this less half of log det X'X.

        With weights it is that of the values as they are: it includes half of the sum of log w.
        As FLASHMM reports it, with quad / s_0 = N: that of theta at an optimum, not for a feature stopped by max_iter.
        """
        ss = self.summary
        log_weights = to_numpy(ss.own.log_weights) if isinstance(ss, WeightedStats) else ss.log_weights
        return self._by_feature(self.estimates.logLik + 0.5 * log_weights)

    @property
    def AIC(self) -> pd.Series:
        """Akaike's criterion of each feature, as lme4's: smaller is better; after REML for equal fixed effects only."""
        return fitted_values.information_criterion(self, 2.0)

    @property
    def BIC(self) -> pd.Series:
        """Bayesian (Schwarz's) criterion of each feature, as lme4's; as `AIC` with log n per parameter."""
        return fitted_values.information_criterion(self, float(np.log(self.summary.n)))

    @property
    def niter(self) -> pd.Series:
        """Scoring iterations."""
        return self._by_feature(self.estimates.niter)

    @property
    def status(self) -> pd.Series:
        """Status of each feature: the outcome of its estimation in one word."""
        words = {int(status): status.word for status in Status}
        return self._by_feature(np.array([words[int(s)] for s in self.estimates.status], dtype=object))

    @property
    def converged(self) -> pd.Series:
        """Features whose estimate is an optimum (bool): converged, converged_at_rounding or boundary."""
        return self._by_feature(self.estimates.converged)

    # --- formed when asked for ---

    @property
    def cov(self) -> np.ndarray | None:
        """Covariance matrices of the fixed effects (p, p, m)."""
        p = len(self.summary.fixed_names)
        return self._formed("cov", (p, p), lambda at: to_numpy(at.model.covariance(at.theta)))

    @property
    def FIM_beta(self) -> np.ndarray | None:
        """Information of the fixed effects, X' V^-1 X (p, p, m)."""
        p = len(self.summary.fixed_names)
        return self._formed("FIM_beta", (p, p), lambda at: to_numpy(at.model.information_beta(at.theta)))

    @property
    def FIM_theta(self) -> np.ndarray | None:
        """Expected information of the variance components ((k+1), (k+1), m)."""
        rows = self.estimates.theta.shape[0]
        form = lambda at: to_numpy(at.model.likelihood.information(at.theta))  # noqa: E731
        return self._formed("FIM_theta", (rows, rows), form)

    @property
    def RE(self) -> pd.DataFrame | None:
        """Best linear unbiased predictions of the random effects (q x m)."""
        q = len(self.summary.random_names)
        found = self._formed("RE", (q,), lambda at: to_numpy(at.model.random_effects(at.theta)))
        return None if found is None else pd.DataFrame(found, self.summary.random_names, self.summary.features)

    @property
    def summary_data(self) -> SummaryStats | None:
        """The summary statistics that were fitted."""
        return self.summary if "summary_data" in self.outputs else None

    # --- plumbing ---

    def _formed(self, name: str, shape: tuple[int, ...], form: Callable[[GeneBlock], np.ndarray]) -> np.ndarray | None:
        if name not in self.outputs:
            return None
        result = np.full((*shape, self.summary.m), np.nan)
        for genes, formed in blockwise.by_block(self, form):
            result[..., genes] = formed
        return result

    def _by_coefficient(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, list(self.summary.fixed_names), list(self.summary.features))

    def _by_component(self, values: np.ndarray) -> pd.DataFrame:
        names = [f"var{i + 1}" for i in range(values.shape[0] - 1)] + ["var0"]
        return pd.DataFrame(values, names, list(self.summary.features))

    def _by_feature(self, values: np.ndarray) -> pd.Series:
        return pd.Series(values, list(self.summary.features))
