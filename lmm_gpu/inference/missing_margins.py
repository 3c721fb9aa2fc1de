"""Margins of an interaction that a model lacks: (1 | donor:time:type) without (1 | donor:time).

A contrast that averages over the cell types adds up effects of donor x time over them. Without a random effect for them
the interaction takes their variance for that of single samples, and the average has too many degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..backend.arrays import to_numpy
from ..sumstats.summary_stats import SummaryStats
from .group_levels import Grouping, level_name

#: A contrast averages over a factor if effects of the margin give it this many times the variance that effects of the
#: interaction of the same size do; the ratio is 1 for a contrast within one level of the factor.
_AVERAGES = 1.5
#: A contrast between the levels of a grouping has more than this share of that variance between them.
_BETWEEN = 0.5


def missing_margins(summary: SummaryStats, C: np.ndarray, groups: Sequence[Grouping]) -> Iterator[tuple[int, str]]:
    """Yield the position of each of the contrasts `C` (c, p) that averages over a factor, and the margin it needs.

    Only contrasts within the levels of a grouping count, such as donors: `condition` of whole donors needs no margin.
    """
    if len(groups) < len(summary.d):  # slopes may stand for a margin
        return
    weights = np.linalg.solve(to_numpy(summary.XX), C.T)  # (p, c), of ordinary least squares: l = X u
    present = {frozenset(group.name.split(":")) for group in groups}
    for group in groups:
        factors, labels = group.name.split(":"), _labels(summary, group)
        units = [factors.index(one.name) for one in groups if one.name in factors]
        if labels is None or not units:
            continue
        levels = group.sums @ weights  # (d, c), total weight of the cells of each level
        between = _size(levels, labels[:, units[:1]])
        for left_out in (place for place in range(len(factors)) if place != units[0]):
            margin = [name for place, name in enumerate(factors) if place != left_out]
            if frozenset(margin) in present:
                continue
            of_margin = _size(levels, np.delete(labels, left_out, axis=1))
            averages = (of_margin > _AVERAGES * _size(levels, labels)) & (between < _BETWEEN * of_margin)
            yield from ((contrast, ":".join(margin)) for contrast in np.flatnonzero(averages).tolist())


def _labels(summary: SummaryStats, group: Grouping) -> np.ndarray | None:
    """Labels (d, factors) of the levels of an interaction; None where names do not tell them."""
    lo = sum(summary.d[: summary.component_names.index(group.name)])
    names = [level_name(name, group.name).split(":") for name in summary.random_names[lo : lo + len(group.counts)]]
    factors = group.name.count(":") + 1
    return np.array(names) if factors > 2 and all(len(name) == factors for name in names) else None


def _size(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Variance (c,) of contrasts by effects of variance one of the groups with the same `labels` (d, factors).

    `weights` (d, c) are those of the levels of the interaction.
    """
    _, codes = np.unique(labels, axis=0, return_inverse=True)
    sums = np.zeros((codes.max() + 1, weights.shape[1]))
    np.add.at(sums, codes.reshape(-1), weights)
    return np.asarray(np.square(sums).sum(axis=0))
