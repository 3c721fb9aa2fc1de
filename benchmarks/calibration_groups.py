"""Designs of the calibration study: groups of cells with the same X and Z, simulated values, p-values of all methods.

Groups of cells are drawn exactly, by their means and the sum of squares within them, so that thousands of genes take
seconds. Each gene has a residual variance of its own, as limma assumes it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

import lmm_gpu
from lmm_gpu.bulk.linear_models import fit_linear
from lmm_gpu.inference.empirical_bayes import fit_prior
from lmm_gpu.inference.pvalues import f_pvalue, t_pvalue

LEVELS = (0.05, 0.01, 0.001)
#: df methods of `LMMFit.test` that are studied.
METHODS = ("generalized", "kenward-roger", "satterthwaite")
#: Effect for power, in standard errors at the true variances; for false discovery rates from one to three times that.
EFFECT = 4.0
#: Degrees of freedom of the distribution of the genes' variances.
_PRIOR_DF = 8.0
#: Share of changed genes in mixtures, and the level of Benjamini and Hochberg's method for them.
CHANGED, FDR = 0.1, 0.05


@dataclass(frozen=True)
class Samples:
    """Pseudobulk samples, each the mean of some groups, and their linear model."""

    average: np.ndarray  #: (S, G)
    X: np.ndarray  #: (S, p)
    C: np.ndarray  #: (c, p)

    def p_values(self, mean: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (genes,) of the t or F test of means of groups (G, genes): as it is, and moderated as in limma."""
        fit = fit_linear(self.X, self.average @ mean)
        prior = fit_prior(fit.variance, fit.df)
        estimate, q = self.C @ fit.coef, len(self.C)
        form = np.linalg.inv(self.C @ fit.covariance[:, :, 0] @ self.C.T)
        F = np.einsum("cm,cd,dm->m", estimate, form, estimate) / q
        most = fit.df * mean.shape[1]
        return {
            "pseudobulk t": stats.f.sf(F / np.where(fit.variance > 0, fit.variance, np.nan), q, fit.df),
            "limma": stats.f.sf(F / prior.posterior(fit.variance, fit.df), q, min(fit.df + prior.df, most)),
        }


@dataclass(frozen=True)
class Groups:
    """Groups of cells with the same X and Z, and hypotheses about their means."""

    cells: np.ndarray  #: (G,)
    X: np.ndarray  #: (G, p)
    Z: dict[str, np.ndarray]  #: one-hot columns (G, d) of each random effect
    C: np.ndarray  #: (c, p), one contrast, or several for a joint test
    samples: Samples | None = None  #: for pseudobulk tests
    moderate: bool = False
    scale: dict[str, np.ndarray] = field(default_factory=dict)  #: factors of the SD of levels (d,)

    def simulate(
        self, variances: tuple[float, ...], effects: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means of the groups (G, genes) and sums of squares (genes,) of genes with coefficients `effects` (p, genes).

        Variances and effects are relative to the residual variance of the gene.
        """
        n, genes = self.cells[:, None].astype(float), effects.shape[1]
        mean = self.X @ effects + rng.normal(size=(len(n), genes)) / np.sqrt(n)
        for (name, part), variance in zip(self.Z.items(), variances, strict=True):
            sd = np.sqrt(variance) * self.scale.get(name, np.ones(part.shape[1]))
            mean += part @ (sd[:, None] * rng.normal(size=(part.shape[1], genes)))
        within = int(n.sum()) - len(n)
        squares = (n * mean**2).sum(axis=0) + (rng.chisquare(within, genes) if within else 0.0)
        own = _PRIOR_DF / rng.chisquare(_PRIOR_DF, genes)
        return mean * np.sqrt(own), squares * own

    def statistics(self, mean: np.ndarray, squares: np.ndarray) -> lmm_gpu.SummaryStats:
        """Summary statistics of genes with these means of groups (G, genes) and sums of squares (genes,)."""
        n, X, Z = self.cells[:, None].astype(float), self.X, np.hstack(list(self.Z.values()))
        numbered = lambda letter, count: tuple(f"{letter}{i}" for i in range(count))  # noqa: E731
        return lmm_gpu.SummaryStats(
            n=int(n.sum()),
            XX=X.T @ (n * X),
            XY=X.T @ (n * mean),
            ZX=Z.T @ (n * X),
            ZY=Z.T @ (n * mean),
            ZZ=Z.T @ (n * Z),
            Ynorm=squares,
            d=tuple(part.shape[1] for part in self.Z.values()),
            features=numbered("g", mean.shape[1]),
            fixed_names=numbered("x", X.shape[1]),
            random_names=numbered("z", Z.shape[1]),
            component_names=tuple(self.Z),
        )

    def effect(self, variances: tuple[float, ...]) -> np.ndarray:
        """Coefficients (p,) of an effect of `EFFECT` standard errors in the first contrast."""
        V = np.diag(1.0 / self.cells)
        for part, variance in zip(self.Z.values(), variances, strict=True):
            V = V + variance * part @ part.T
        covariance = np.linalg.inv(self.X.T @ np.linalg.solve(V, self.X))
        se = np.sqrt(self.C[0] @ covariance @ self.C[0])
        return np.linalg.pinv(self.C)[:, 0] * EFFECT * se

    def recoded(self, T: np.ndarray) -> Groups:
        """The same model and hypothesis with the coefficients beta = T gamma, T (p, p): another coding of X."""
        return replace(self, X=self.X @ T, C=self.C @ T)

    def p_values(self, mean: np.ndarray, squares: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (genes,) by every method that applies, by name."""
        found = self.mixed_model(mean, squares)
        if self.samples is not None:
            found |= self.samples.p_values(mean)
        return found | self.dream(mean)

    def mixed_model(self, mean: np.ndarray, squares: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (genes,) of the mixed model by every df method."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # designs with few donors, on purpose
            fit = lmm_gpu.fit(self.statistics(mean, squares), progress=False)
            prior = fit.residual_prior() if self.moderate else None
        found = {}
        for method in METHODS:
            if len(self.C) > 1 and (prior is None or method == METHODS[0]):  # others have no moderated F test
                F = fit.f_test(self.C, method, prior)
                found[method] = f_pvalue(F.statistic, F.df1, F.df)
            elif len(self.C) == 1:
                t = fit.contrast_test(self.C, method, prior)
                found[method] = t_pvalue(t.t, np.broadcast_to(t.df, t.t.shape))[0]
        return found

    def each_contrast(self, mean: np.ndarray, squares: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (c, genes) of each of the contrasts by itself, by every df method."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = lmm_gpu.fit(self.statistics(mean, squares), progress=False)
        tests = {method: fit.contrast_test(self.C, method) for method in METHODS}
        return {method: t_pvalue(t.t, np.broadcast_to(t.df, t.t.shape)) for method, t in tests.items()}

    def dream(self, mean: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (genes,) of dream without voom's weights, one sample per group of cells, by lmerTest's df.

        The effect that has one level per group is the residual of the samples. Nothing for designs that are left
        without random effects, where dream is limma, or without residual df, and for joint tests.
        """
        coarser = {name: part for name, part in self.Z.items() if part.sum(axis=0).max() > 1}
        if not coarser or len(self.C) > 1:
            return {}
        alone = replace(self, cells=np.ones(len(self.cells)), Z=coarser)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = lmm_gpu.fit(alone.statistics(mean, (mean**2).sum(axis=0)), bounds="nonnegative", progress=False)
            if fit.model.likelihood.residual_df == fit.model.likelihood.rank:
                return {}
            t = fit.contrast_test(self.C, "lmertest", fit.residual_prior())
        return {"dream": t_pvalue(t.t, np.broadcast_to(t.df, t.t.shape))[0]}


def codings(p: int) -> dict[str, np.ndarray]:
    """Changes of the coefficients (p, p) to treatment, sum and Helmert coding of p cell means, mean first."""
    treatment, total = np.eye(p), np.vstack([np.eye(p - 1), -np.ones(p - 1)])
    treatment[:, 0] = 1.0
    helmert = np.triu(-np.ones((p, p - 1))) + np.eye(p, k=-1)[:, : p - 1] * np.arange(1, p)
    return {
        "treatment": treatment,
        "sum": np.hstack([np.ones((p, 1)), total]),
        "Helmert": np.hstack([np.ones((p, 1)), helmert]),
    }


def rates(p: np.ndarray) -> list[float]:
    """Shares of p-values below each level, over the level."""
    known = p[np.isfinite(p)]
    return [round(float(np.mean(known < level)) / level, 4) for level in LEVELS]


def power(p: np.ndarray) -> list[float]:
    """Shares of p-values below each level."""
    return [round(float(np.mean(p[np.isfinite(p)] < level)), 4) for level in LEVELS]


def discoveries(null: np.ndarray, changed: np.ndarray) -> dict[str, float]:
    """False discoveries of Benjamini and Hochberg's method at `FDR`, with a share `CHANGED` of changed genes."""
    null, changed = (p[np.isfinite(p)] for p in (null, changed))
    count = min(len(changed), int(len(null) * CHANGED / (1 - CHANGED)))
    null = null[: round(count * (1 - CHANGED) / CHANGED)]
    called = stats.false_discovery_control(np.r_[null, changed[:count]]) < FDR
    wrong = int(called[: len(null)].sum())
    return {
        "rate": round(wrong / max(1, int(called.sum())), 4),
        "called": int(called.sum()),
        "found": round(float(called[len(null) :].mean()), 4),
    }


def described(row: dict[str, Any]) -> str:
    """Design and rates of a row of results, in one line."""
    design = f"{row['design']} {row.get('variances', '')}"
    found = (f"{name[:7]} " + "/".join(f"{rate:.2f}" for rate in of_levels) for name, of_levels in row["rates"].items())
    return f"{design:74s} {'  '.join(found)}"


def one_hot(levels: np.ndarray) -> np.ndarray:
    """Indicator columns of levels."""
    found, at = np.unique(levels, return_inverse=True)
    return np.eye(len(found))[at]


def uneven(donors: int) -> np.ndarray:
    """Cells of each donor, from 5 to 400."""
    return np.rint(np.geomspace(5, 400, donors)).astype(int)
