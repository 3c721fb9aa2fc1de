"""Statistics of a model without the columns of X that no cell determines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import indices, like, namespace, to_numpy
from ..design.rank import Dependence, columns_to_keep
from .gene_weights import WeightedStats

if TYPE_CHECKING:
    from .summary_stats import SummaryStats

logger = logging.getLogger("lmm_gpu")
_SHOWN = 5


def without_empty_cells(summary: SummaryStats) -> SummaryStats:
    """Statistics without the interaction columns whose combinations of levels have no cells; one log line names them.

    Models that were given as matrices, without terms, are returned as they are.

    Raises
    ------
    ValueError
        If columns of X are linearly dependent for another reason, with these columns.
    """
    if not summary.terms or not all(term.products for term in summary.terms):
        return summary
    kept, dropped = columns_to_keep(to_numpy(summary.XX), summary.fixed_names, summary.terms)
    if not dropped:
        return summary
    names = [summary.fixed_names[one.column] for one in dropped]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    what = "1 column of X is" if len(names) == 1 else f"{len(names)} columns of X are"
    logger.warning("%s dropped, as combinations of levels have no cells: %s", what, shown)
    return _with_columns(summary, kept, dropped)


def _with_columns(summary: SummaryStats, kept: Sequence[int], dropped: Sequence[Dependence]) -> SummaryStats:
    from ..design.reference_grid import terms_with_missing_cells

    xp, places = namespace(summary.XX), indices(kept, summary.XX)
    centred: Any = summary.centred
    if centred is not None:
        constant = to_numpy(centred.constant).copy()  # (p,)
        for one in reversed(dropped):  # X_j = X weights
            constant += constant[one.column] * one.weights
        constant = like(constant[list(kept)], centred.constant)
        centred = replace(centred, XY=xp.take(centred.XY, places, axis=0), constant=constant)
    own: dict[str, Any] = {}
    if isinstance(summary, WeightedStats):
        XX = xp.take(xp.take(summary.own.XX, places, axis=0), places, axis=1)  # (p, p, m)
        own["weights"] = replace(summary.own, XX=XX, ZX=xp.take(summary.own.ZX, places, axis=1))
    null = [np.eye(len(one.weights))[one.column] - one.weights for one in dropped]  # (p,) each, X null = 0
    terms = terms_with_missing_cells(summary.terms or (), len(summary.fixed_names), null)
    return replace(
        summary,
        XX=xp.take(xp.take(summary.XX, places, axis=0), places, axis=1),
        XY=xp.take(summary.XY, places, axis=0),
        ZX=xp.take(summary.ZX, places, axis=1),
        fixed_names=tuple(summary.fixed_names[column] for column in kept),
        terms=tuple(term.keeping(kept) for term in terms),
        centred=centred,
        **own,
    )
