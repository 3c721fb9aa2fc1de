"""The default test: t and F tests that average over what the variances may be, for one or two random effects.

Which rule applies depends on the hypothesis alone. A contrast that has one source of information, because it cannot be
estimated within the levels of the coarser random effect or can be there without loss, is tested with the weights of the
estimate as they are (`fixed_weight_rule`). One that can be estimated within those levels and between them too is
re-weighted (`reweighted_rule`). In balanced designs both are the exact t and F tests where there are such tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..estimation.projection import ProjectedGenes, Projection
from ..sumstats.summary_stats import SummaryStats
from .empirical_bayes import Prior
from .estimate_weights import EstimateWeights
from .fixed_weight_rule import f_mixture, t_mixture, wald
from .mixtures import matched, matched_t
from .pivots import TOP, Pivots, fine_spacing, genes_at
from .reweighted_rule import reweighted
from .strata import IN_SPAN, Stratum, between_within_df, between_within_directions, strata

#: Random-effect columns, and nodes of the grid, beyond which nothing is averaged.
LARGEST, MOST_NODES = 3000, 6000
#: Numbers that the weights of estimates at the nodes may take together.
_MOST_WEIGHTS = 2e7
#: A share of the information within levels this close to 0 or 1 is 0 or 1.
_NEAR = 1e-6
#: Genes that are averaged together.
GENES = 256


@dataclass(frozen=True)
class AveragedTests:
    """Tests of contrasts, prepared for any genes of a design."""

    projection: Projection  #: on the host
    C: np.ndarray  #: (c, p)
    pivots: Pivots
    weights: EstimateWeights
    fine_pivots: Pivots | None  #: for contrasts that are re-weighted
    fine_weights: EstimateWeights | None
    two_sources: np.ndarray  #: (c,), bool
    testable: np.ndarray  #: (c,), bool: something is left to test against

    @classmethod
    def build(cls, summary: SummaryStats, C: np.ndarray, *, joint: bool = False) -> AveragedTests:
        """Prepare the contrasts in the rows of `C` (c, p) of a `covered` design for `t` or, where `joint`, for `f`."""
        found, projection = strata(summary), Projection.build(summary)
        pivots = Pivots.build(projection, summary.d, [one.rank for one in found])
        coarser, rank = found[pivots.order[0]], pivots.K1.shape[1]
        df = between_within_directions(summary, C, rank) if joint else between_within_df(summary, C, rank)
        testable = np.isfinite(df)
        two = (two_sources_jointly if joint else two_sources)(coarser, C) | (0 in pivots.r[: len(summary.d)])
        weights = EstimateWeights.build(pivots, projection, C, summary.d)
        fine = pivots.refined() if two.any() else None
        fine_weights = None if fine is None else EstimateWeights.build(fine, projection, C, summary.d)
        return cls(projection, C, pivots, weights, fine, fine_weights, two, testable)

    def t(
        self, genes: ProjectedGenes, theta: np.ndarray, estimate: np.ndarray, prior: Prior | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimates that are tested, standard errors and df (c, b) of each contrast.

        `estimate` (c, b) has the weights of `theta` (k+1, b), which is at zero or above. NaN where nothing is left to
        test against.
        """
        shape = self.C.shape[0], theta.shape[1]
        location, scale, df = (np.full(shape, np.nan) for _ in range(3))
        for lo in range(0, shape[1], GENES):
            part = slice(lo, lo + GENES)
            for rule, rows in ((self._fixed, ~self.two_sources), (self._reweighted, self.two_sources)):
                chosen = np.flatnonzero(rows & self.testable)
                if chosen.size:
                    found = rule(genes_at(genes, part), theta[:, part], estimate[:, part], chosen, prior)
                    for values, new in zip((location, scale, df), found, strict=True):
                        values[chosen, part] = new
        return location, scale, df

    def _fixed(
        self, genes: ProjectedGenes, theta: np.ndarray, estimate: np.ndarray, rows: np.ndarray, prior: Prior | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        squares = self.pivots.of_genes(genes)
        forms = self.weights.at(self.pivots, self._ratios(theta))
        scale, df = np.empty((len(rows), theta.shape[1])), np.empty((len(rows), theta.shape[1]))
        for place, i in enumerate(rows):
            v, weight = t_mixture(self.pivots, squares, {name: form[i, i] for name, form in forms.items()}, prior)
            precision, df[place] = matched(1.0 / v, weight, 1, self._between(int(i)) or self._most(prior))
            scale[place] = 1.0 / np.sqrt(precision)
        return estimate[rows], scale, df

    def _reweighted(
        self, genes: ProjectedGenes, theta: np.ndarray, estimate: np.ndarray, rows: np.ndarray, prior: Prior | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.fine_pivots is not None and self.fine_weights is not None
        squares, ols = self.fine_pivots.of_genes(genes), self.C @ genes.beta_ols  # (c, b)
        parts = []
        for i in rows:
            weights = self.fine_weights.only(int(i))
            at, covariance, weight = reweighted(self.fine_pivots, squares, weights, ols[i : i + 1], prior)
            sd = np.sqrt(covariance[:, 0, 0])
            parts.append(matched_t(at[:, 0], np.broadcast_to(sd, weight.shape), weight, self._most(prior)))
        location, scale, df = (np.stack(part) for part in zip(*parts, strict=True))
        return location, scale, df

    def f(
        self, genes: ProjectedGenes, theta: np.ndarray, estimate: np.ndarray, prior: Prior | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """F statistics and denominator df (b,) of all contrasts, which are linearly independent; arguments as `t`."""
        if len(self.C) == 1:
            location, scale, df = self.t(genes, theta, estimate, prior)
            return (location[0] / scale[0]) ** 2, df[0]
        statistic, df = (np.full(theta.shape[1], np.nan) for _ in range(2))
        for lo in range(0, theta.shape[1] if self.testable.all() else 0, GENES // 4):
            part = slice(lo, lo + GENES // 4)
            statistic[part], df[part] = self._f(genes_at(genes, part), theta[:, part], estimate[:, part], prior)
        return statistic, df

    def _f(
        self, genes: ProjectedGenes, theta: np.ndarray, estimate: np.ndarray, prior: Prior | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.fine_pivots is not None and self.fine_weights is not None:
            squares, ols = self.fine_pivots.of_genes(genes), self.C @ genes.beta_ols
            at, covariance, weight = reweighted(self.fine_pivots, squares, self.fine_weights, ols, prior)
            statistics = wald(at, covariance)
        else:
            forms = self.weights.at(self.pivots, self._ratios(theta))
            squares = self.pivots.of_genes(genes)
            statistics, weight = f_mixture(self.pivots, squares, forms, estimate, self._ordered(theta), prior)
        return matched(statistics, weight, len(self.C), self._most(prior))

    def _ordered(self, theta: np.ndarray) -> np.ndarray:
        # variances (3, b) of the coarser effect, the finer one and the residual
        rows = [np.maximum(theta[j], 0.0) for j in self.pivots.order]
        return np.stack([rows[0], rows[1] if len(rows) == 2 else np.zeros_like(rows[0]), theta[-1]])

    def _ratios(self, theta: np.ndarray) -> np.ndarray:
        ordered = self._ordered(theta)
        with np.errstate(divide="ignore", invalid="ignore"):  # genes without a valid estimate
            ratios: np.ndarray = ordered[:2] / ordered[2]
        return np.where(np.isfinite(ratios), ratios, 0.0)

    def _between(self, i: int) -> float:
        # df between levels of the coarser effect, for an estimate that lies between them altogether
        ll, q1 = (self.weights.forms[name][:, :, i, i] for name in ("ll", "q1"))
        return float(self.pivots.r[0]) if (q1 > (1.0 - _NEAR) * ll).all() else 0.0

    def _most(self, prior: Prior | None) -> float:
        return self.pivots.residual_df + (0.0 if prior is None else prior.df)


def covered(summary: SummaryStats, theta_rows: int) -> bool:
    """Return True for models whose variances are averaged over: one or two random effects, not too many columns.

    With hundreds of levels of both effects the grid would be large, and Kenward and Roger's test agrees.
    """
    small = sum(summary.d) <= LARGEST and _nodes(summary) <= MOST_NODES
    return len(summary.d) <= 2 and theta_rows == len(summary.d) + 1 and small


def contrasts_at_once(summary: SummaryStats) -> int:
    """Number of contrasts whose weights at all nodes fit the memory of `_MOST_WEIGHTS` numbers."""
    return max(1, int(_MOST_WEIGHTS // (_nodes(summary) * sum(summary.d))))


def _nodes(summary: SummaryStats) -> float:
    return float(np.prod([TOP / fine_spacing(levels) for levels in summary.d]))


def two_sources(coarser: Stratum, C: np.ndarray) -> np.ndarray:
    """Contrasts (c,) of `C` (c, p) on which the levels of the coarser effect keep some, not all of the information."""
    kept = coarser.kept_within(C)
    return (kept > _NEAR) & (kept < 1.0 - _NEAR)


def two_sources_jointly(coarser: Stratum, Q: np.ndarray) -> np.ndarray:
    """Flags (r,), all true if a combination of the contrasts Q (r, p), orthonormal in (X'X)^-1, has `two_sources`."""
    left, size, _ = np.linalg.svd(coarser.lost(Q), full_matrices=True)
    estimable = left[:, np.count_nonzero(size > IN_SPAN**0.5) :].T @ Q  # (e, p), within levels
    estimated = coarser.efficiency >= IN_SPAN
    scaled = (estimable @ coarser.axes[estimated].T) / np.sqrt(coarser.efficiency[estimated])
    most = np.linalg.norm(scaled @ scaled.T, 2) if len(estimable) else 1.0
    return np.full(len(Q), bool(most > 1.0 + _NEAR))
