"""Observed variance of a contrast between levels of a random effect over that of the model, from the sums alone.

A mixed model has one variance per random effect, common to all its levels. Where some levels vary more than others (the
donors of one treatment, the cells of one type), the standard error of a contrast is too small or too large.

A contrast is l'ybar for the means ybar of the levels of the finest random effect. Let r be the residuals of the means,
and let level d of the random effect between which the contrast is tested contribute e_d = l_d'r. If the model holds,
the squares e_d^2 over their expectations average to 1. They are weighted by the variance that each level contributes to
the estimate, as in a sandwich estimate of the variance (Bell and McCaffrey 2002, Survey Methodology 28, 169-181).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, to_numpy
from ..backend.late_imports import scipy
from ..backend.sparse import is_sparse
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats
from .group_levels import Grouping, groupings
from .strata import Stratum, strata, tested_between

#: Random-effect columns, and size of the matrix of contributions, beyond which nothing is looked at; genes that are.
_MOST_COLUMNS, _LARGEST, _MOST_GENES = 5000, 1_000_000, 1000
#: Genes below which averages over genes say nothing.
_FEWEST_GENES = 20
#: A gene deviates if its variance is at least this many times that of the model and more than chance explains.
_TIMES, _CHANCE = 1.5, 1e-3
#: Relative length of the part of a contrast that is not estimable from means.
_NOT_ESTIMABLE = 1e-6
#: Weights below this share of the largest are zero; so is a squared contribution relative to the largest.
_ZERO = 1e-9


@dataclass(frozen=True)
class ObservedVariance:
    """Variance of one contrast in the data over that of the model."""

    component: int  #: the random effect between whose levels the contrast is tested
    ratio: float  #: average over genes
    too_many: float  #: factor of false positives at 5 % that follows from the ratio
    deviating: float  #: share of genes whose variance is larger than the model says
    partial: bool  #: the contrast concerns only some of the cells of each level


@dataclass(frozen=True)
class _Means:
    """Means of the levels of the finest random effect."""

    X: np.ndarray  #: (G, p)
    Y: np.ndarray  #: (G, m)
    cells: np.ndarray  #: (G,)
    members: Sequence[np.ndarray | None]  #: (G, d_j), share of cells in the levels of random effect j; None: the finest
    theta: np.ndarray  #: (k+1, m), at zero or above

    @property
    def weights(self) -> np.ndarray:
        """Precision (G,) of the means by the variances of the median gene, correlations aside."""
        ratio = float(np.median(self.theta[:-1].sum(axis=0) / self.theta[-1]))
        w: np.ndarray = 1.0 / (ratio + 1.0 / self.cells)
        return w

    def of_components(self, A: np.ndarray) -> list[np.ndarray]:
        """Factors (D, .) whose product with their transpose is A Cov A' of each component, residual last."""
        return [A if part is None else A @ part for part in self.members] + [A / np.sqrt(self.cells)]

    def level(self, component: int) -> np.ndarray:
        """Share (G, D) of the cells of each mean in the levels of one random effect."""
        part = self.members[component]
        return np.eye(len(self.cells)) if part is None else part


def observed_variances(summary: SummaryStats, theta: np.ndarray | None, C: np.ndarray) -> list[ObservedVariance | None]:
    """Compare the variance of each contrast of `C` (c, p) in the data with that of the model at `theta` (k+1, m).

    None for contrasts within levels, for random effects that are no groups, with weights, and for fewer than 20 genes.
    """
    found = groupings(summary)
    weighted = isinstance(summary, WeightedStats) or summary.total_weight is not None
    known = not weighted and [group.name for group in found] == list(summary.component_names)
    if theta is None or not known or len(theta) != len(found) + 1 or sum(summary.d) > _MOST_COLUMNS:
        return [None] * len(C)
    means = _level_means(summary, found, theta)
    if means is None:
        return [None] * len(C)
    between = tested_between(strata(summary), C)
    return [None if one is None else _observed(means, c, one) for c, one in zip(C, between, strict=True)]


def _level_means(summary: SummaryStats, found: Sequence[Grouping], theta: np.ndarray) -> _Means | None:
    valid = np.flatnonzero(np.isfinite(theta).all(axis=0) & (theta[-1] > 0))
    if valid.size < _FEWEST_GENES:
        return None
    genes = valid[:: -(-valid.size // _MOST_GENES)]
    rows = [slice(hi - width, hi) for width, hi in zip(summary.d, np.cumsum(summary.d), strict=True)]
    finest = int(np.argmax([np.count_nonzero(group.counts) for group in found]))
    kept = np.flatnonzero(found[finest].counts > 0)
    cells, at = found[finest].counts[kept], rows[finest]
    ZZ: Array = summary.ZZ if is_sparse(summary.ZZ) else to_numpy(summary.ZZ)
    blocks = [None if j == finest else ZZ[at, other][kept] for j, other in enumerate(rows)]
    members = [None if one is None else (one.toarray() if is_sparse(one) else one) / cells[:, None] for one in blocks]
    Y = to_numpy(summary.ZY[at][:, genes])[kept] / cells[:, None]
    return _Means(found[finest].sums[kept] / cells[:, None], Y, cells, members, np.maximum(theta[:, genes], 0.0))


def _observed(means: _Means, c: np.ndarray, stratum: Stratum) -> ObservedVariance | None:
    if len(means.cells) * stratum.rank > _LARGEST:
        return None
    level = means.level(stratum.component)  # (G, D)
    if (level.max(axis=1) < 1.0).any():  # levels of the finest effect lie across
        return None
    WX = means.weights[:, None] * means.X
    gram = means.X.T @ WX
    inverse = np.linalg.pinv(gram, hermitian=True)
    if np.linalg.norm(gram @ inverse @ c - c) > _NOT_ESTIMABLE * np.linalg.norm(c):
        return None
    weights = WX @ inverse @ c  # (G,), l
    L = level.T * weights  # (D, G)
    B = L - (L @ means.X) @ (inverse @ WX.T)
    ratio, chance_df = _ratio(means, L, B)
    if ratio is None:
        return None
    df = max(stratum.df, 1.0)
    rate = 2 * scipy.special.stdtr(df, scipy.special.stdtrit(df, 0.05 / 2) / np.sqrt(max(ratio.mean(), 1.0)))
    beyond = max(_TIMES, float(scipy.special.chdtri(chance_df, _CHANCE)) / chance_df)
    used = np.abs(L) > _ZERO**0.5 * np.abs(L).max()  # (D, G)
    partial = bool(((level.T > 0) & ~used)[used.any(axis=1)].any())
    return ObservedVariance(
        stratum.component, float(ratio.mean()), float(rate / 0.05), float(np.mean(ratio > beyond)), partial
    )


def _ratio(means: _Means, L: np.ndarray, B: np.ndarray) -> tuple[np.ndarray | None, float]:
    # observed over expected variance (m,), and the chi-squared df of its variation by chance, for the median gene
    squares = (B @ means.Y) ** 2  # (D, m), e_d^2
    of_residuals, of_estimate = means.of_components(B), means.of_components(L)
    expected = np.stack([np.sum(one**2, axis=1) for one in of_residuals], axis=1) @ means.theta  # (D, m)
    share = np.stack([np.sum(one**2, axis=1) for one in of_estimate], axis=1) @ means.theta
    used = expected.mean(axis=1) > _ZERO * share.mean(axis=1).max()
    if not used.any():
        return None, 0.0
    weight = share[used] / expected[used]  # (D, m)
    ratio = np.sum(weight * squares[used], axis=0) / np.sum(share[used], axis=0)
    middle = np.median(means.theta / means.theta[-1], axis=1)  # (k+1,)
    covariance = sum(s * one[used] @ one[used].T for s, one in zip(middle, of_residuals, strict=True))  # (D, D)
    a = np.median(weight, axis=1)
    spread = float(a @ np.asarray(covariance) ** 2 @ a)
    return ratio, float(a @ np.diagonal(covariance)) ** 2 / spread
