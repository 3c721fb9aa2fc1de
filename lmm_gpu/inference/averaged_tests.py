"""The default test: t and F tests that average over what the variances may be, for any number of random effects.

At each node of a grid of the variance ratios, the estimate is the generalized least squares one for these ratios, and
has a t distribution on N - p df. `node_weights` says how credible each node is; tail areas are averaged over the nodes.

Which of the two densities applies depends on the hypothesis alone. A contrast that has one source of information,
because it cannot be estimated within the levels of the coarsest random effect or can be there without loss, has the
density by the sums of squares (`Pivotal`). One that can be estimated within those levels and between them too has the
posterior density (`posterior`): how its sources are combined depends on the ratios. In balanced designs the test is the
exact t or F test where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..estimation.projection import ProjectedGenes, Projection
from ..sumstats.summary_stats import SummaryStats
from .empirical_bayes import Prior
from .estimate_weights import EstimateWeights
from .mixtures import chi2_gauss, chi2_points, matched, matched_t, wald
from .node_weights import Pivotal, exponents, posterior, residual_df
from .pivots import TOP, Axis, GenePivots, Pivots, genes_at, spacing
from .strata import IN_SPAN, Stratum, between_within_df, between_within_directions, strata

#: Random-effect columns and nodes, with one or two effects and with more, beyond which nothing is averaged.
LARGEST, MOST_NODES = (3000, 400), (12_000, 40_000)
#: Numbers that the weights of estimates at the nodes may take together.
_MOST_WEIGHTS = 2e7
#: A share of the information within levels this close to 0 or 1 is 0 or 1.
_NEAR = 1e-6
#: Numbers of genes times nodes that are averaged together.
_AT_ONCE = 1_000_000
#: Genes with more weight than this at the end of the grid are tested on one that goes farther, up to this coordinate.
_AT_END, _FARTHER, _FARTHEST = 1e-6, 10.0, 40.0
#: With more df than the second number a t distribution is a normal one; with fewer it is a mixture of three of these,
#: and with fewer than the first number of so many.
_FEW, _KNOWN, _POINTS, _TAIL = 150, 5000, 8, 1e-5


@dataclass(frozen=True)
class Hypothesis:
    """Contrasts that are tested together, and their estimates at the nodes."""

    C: np.ndarray  #: (c, p)
    t: np.ndarray  #: (ratios, c, r), c'beta = c'beta_ols - t'h
    variance: np.ndarray  #: of one source (nodes, c, c), of two (T_k, .., T_1, c, c); over s_0
    eta: np.ndarray | None  #: (nodes, k), exponents of the correction; None with two sources of information

    @classmethod
    def build(cls, pivots: Pivots, weights: EstimateWeights, C: np.ndarray, *, two_sources: bool) -> Hypothesis:
        """Hypothesis that C beta (c,) is zero."""
        t = weights.t.reshape(int(np.prod(pivots.shape)), *weights.t.shape[-2:])
        if two_sources:
            return cls(C, t, weights.variance(pivots), None)
        return cls(C, t, *exponents(pivots, weights))


@dataclass(frozen=True)
class AveragedTests:
    """Tests of contrasts, prepared for any genes of a design."""

    summary: SummaryStats  #: without genes
    C: np.ndarray  #: (c, p)
    joint: bool
    top: float  #: largest coordinate of the grid
    projection: Projection  #: on the host
    pivots: Pivots
    hypotheses: tuple[Hypothesis | None, ...]  #: None where nothing is left to test against

    @classmethod
    def build(cls, summary: SummaryStats, C: np.ndarray, *, joint: bool = False, top: float = TOP) -> AveragedTests:
        """Prepare the contrasts in the rows of `C` (c, p), each for itself or `joint`, of a `covered` design."""
        found, projection = strata(summary), Projection.build(summary)
        pivots = Pivots.build(projection, summary.d, [one.rank for one in found], top)
        coarsest, rank = found[pivots.order[0]], pivots.H.shape[0]
        df = between_within_directions(summary, C, rank) if joint else between_within_df(summary, C, rank)
        two = (two_sources_jointly if joint else two_sources)(coarsest, C) | (0 in pivots.r[:-1])
        weights = EstimateWeights.build(pivots, projection, C, summary.d)
        if joint:
            together = Hypothesis.build(pivots, weights, C, two_sources=bool(two.any()))
            return cls(summary, C, joint, top, projection, pivots, (together if np.isfinite(df).all() else None,))
        rows = [
            Hypothesis.build(pivots, weights.only(i), C[i : i + 1], two_sources=bool(two[i])) if finite else None
            for i, finite in enumerate(np.isfinite(df))
        ]
        return cls(summary, C, joint, top, projection, pivots, tuple(rows))

    @cached_property
    def farther(self) -> AveragedTests:
        """The same tests on a grid that goes farther, for genes whose levels differ far more than their cells."""
        return AveragedTests.build(self.summary, self.C, joint=self.joint, top=self.top + _FARTHER)

    def t(self, genes: ProjectedGenes, prior: Prior | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimates that are tested, standard errors and df (c, b) of each contrast.

        NaN where nothing is left to test against.
        """
        shape, most = (len(self.hypotheses), genes.beta_ols.shape[1]), residual_df(self.pivots, prior)
        location, scale, df = (np.full(shape, np.nan) for _ in range(3))
        beyond = np.zeros(shape[1], dtype=bool)
        for i, part, mixture, at_end in self._mixtures(genes, prior):
            at, covariance, weight = mixture
            location[i, part], scale[i, part], df[i, part] = matched_t(
                at[:, 0], np.sqrt(covariance[:, 0, 0]), weight, most
            )
            beyond[part] |= at_end
        if beyond.any():
            found = self.farther.t(genes_at(genes, np.flatnonzero(beyond)), prior)
            location[:, beyond], scale[:, beyond], df[:, beyond] = found
        return location, scale, df

    def f(self, genes: ProjectedGenes, prior: Prior | None = None) -> tuple[np.ndarray, np.ndarray]:
        """F statistics and denominator df (b,) of the joint hypothesis, whose contrasts are linearly independent."""
        joint = self.hypotheses[0]
        if joint is not None and len(joint.C) == 1:
            location, scale, t_df = self.t(genes, prior)
            return (location[0] / scale[0]) ** 2, t_df[0]
        most = residual_df(self.pivots, prior)
        statistic, df = (np.full(genes.beta_ols.shape[1], np.nan) for _ in range(2))
        beyond = np.zeros(len(df), dtype=bool)
        for _, part, (at, covariance, weight), at_end in self._mixtures(genes, prior):
            statistic[part], df[part] = matched(wald(at, covariance), weight, at.shape[1], most)
            beyond[part] = at_end
        if beyond.any():
            statistic[beyond], df[beyond] = self.farther.f(genes_at(genes, np.flatnonzero(beyond)), prior)
        return statistic, df

    def _mixtures(
        self, genes: ProjectedGenes, prior: Prior | None
    ) -> Iterator[tuple[int, slice, tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]:
        # of each hypothesis and piece of genes: estimates (K, c, b), covariances (K, c, c, b), weights (K, b), and
        # genes (b,) that need a grid that goes farther
        tested = [(i, one) for i, one in enumerate(self.hypotheses) if one is not None]
        if not tested:
            return
        nodes = int(np.prod([len(axis.x) for axis in self.pivots.axes]))
        size = max(1, min(256, _AT_ONCE // nodes) // max(len(one.C) for _, one in tested))
        for lo in range(0, genes.beta_ols.shape[1], size):
            part = slice(lo, lo + size)
            some = genes_at(genes, part)
            squares = self.pivots.of_genes(some)
            needed = any(one.eta is not None for _, one in tested)
            pivotal = Pivotal.of_genes(self.pivots, squares, prior) if needed else None
            for i, one in tested:
                yield (i, part, *self._at_nodes(squares, some.beta_ols, one, pivotal, prior))

    def _at_nodes(
        self, genes: GenePivots, ols: np.ndarray, tested: Hypothesis, pivotal: Pivotal | None, prior: Prior | None
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        if tested.eta is None or pivotal is None:
            found = posterior(self.pivots, genes, tested.variance, prior)
            place, shape = found.at, self.pivots.shape
        else:
            found = pivotal.corrected(tested.eta)
            place, shape = self.pivots.ratio[found.at], tuple(len(axis.x) for axis in reversed(self.pivots.axes))
        k = len(shape)
        ends = found.at_end(shape, [k - 1 - j for j, r in enumerate(self.pivots.r[:-1]) if r > 0])
        beyond = (ends > _AT_END) & (self.top < _FARTHEST)
        c, df = len(tested.C), residual_df(self.pivots, prior)
        estimate = tested.C @ ols - np.take_along_axis(tested.t @ genes.h, place[:, None, :], axis=0)  # (K, c, b)
        covariance = np.moveaxis(tested.variance.reshape(-1, c, c)[found.at], 1, -1)  # (K, c, c, b)
        mixture = _with_residual(estimate, covariance * (found.squares / df)[:, None, None, :], found.weight, df)
        return mixture, beyond


def _with_residual(
    estimate: np.ndarray, covariance: np.ndarray, weight: np.ndarray, df: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # t distributions on few df as mixtures of normal ones
    if df > _KNOWN:
        return estimate, covariance, weight
    quantiles = chi2_points(df, _POINTS, _TAIL, _TAIL) if df < _FEW else chi2_gauss(df)
    points = list(zip(*quantiles, strict=True))
    return (
        np.concatenate([estimate] * len(points)),
        np.concatenate([covariance * (df / W) for W, _ in points]),
        np.concatenate([weight * w for _, w in points]),
    )


def covered(summary: SummaryStats, theta_rows: int) -> bool:
    """Return True for models whose variances are averaged over: uncorrelated random effects, not too many columns.

    With hundreds of levels of several effects the grid would be large, and Kenward and Roger's test agrees.
    """
    more = len(summary.d) > 2
    small = sum(summary.d) <= LARGEST[more] and _nodes(summary) <= MOST_NODES[more]
    return theta_rows == len(summary.d) + 1 and small


def contrasts_at_once(summary: SummaryStats) -> int:
    """Number of contrasts whose weights at all nodes fit the memory of `_MOST_WEIGHTS` numbers."""
    return max(1, int(_MOST_WEIGHTS // (_nodes(summary) * sum(summary.d))))


def _nodes(summary: SummaryStats) -> float:
    axes = (Axis.build(1.0, levels, spacing(levels, len(summary.d))) for levels in summary.d)
    return float(np.prod([len(axis.x) for axis in axes]))


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
