"""Summary statistics of other cells, other genes, or without a random effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..backend.arrays import indices, namespace
from ..backend.sparse import is_sparse
from ..design.terms import merged_terms
from .alignment import aligned, check_same_cells, check_unique
from .centring import add_centred, join_centred
from .products import GeneProducts
from .random_terms import terms_without
from .summary_checks import check_invariants
from .summary_content import joined_parts
from .summary_fields import with_products
from .within import add_within, join_within, without_levels

if TYPE_CHECKING:
    from .summary_stats import SummaryStats


def added(left: SummaryStats, right: SummaryStats) -> SummaryStats:
    """Sum of the statistics of different cells, in the order of the left; see `SummaryStats.__add__`."""
    a, b = aligned(left, right)
    parts = joined_parts(left, right)
    for side in (left, right):
        check_invariants(side)
    names = left.keys()
    total = {name: getattr(a, name) + getattr(b, name) for name in names}
    sums = None if a.Ysum is None or b.Ysum is None else a.Ysum + b.Ysum
    weights = None if a.total_weight is None or b.total_weight is None else a.total_weight + b.total_weight
    logs = a.log_weights + b.log_weights
    terms = a.terms and merged_terms(a.terms, a.n, b.terms or a.terms, b.n)
    labels: dict[str, Any] = {"terms": terms, "parts": parts, "total_weight": weights, "log_weights": logs}
    return replace(a, **total, Ysum=sums, centred=add_centred(a, b), within=add_within(a, b), **labels)


def concatenated(parts: Sequence[SummaryStats]) -> SummaryStats:
    """Statistics of all genes of the parts, which have the same cells; see `SummaryStats.concat`."""
    if not parts or not all(hasattr(part, "gene_products") for part in parts):
        raise ValueError("SummaryStats.concat takes a list of SummaryStats of the same cells, at least one")
    features = tuple(name for part in parts for name in part.features)
    try:
        for part in parts[1:]:
            check_same_cells(parts[0], part)
        check_unique("features", features)
    except ValueError as error:
        raise ValueError(f"cannot concatenate summary statistics: {error}") from None
    genes = GeneProducts.join([part.gene_products for part in parts])
    return with_products(parts[0], genes, join_centred(parts), within=join_within(parts), features=features)


def without_component(ss: SummaryStats, component: int) -> SummaryStats:
    """Statistics of the model without a random effect, given by position; see `SummaryStats.without`."""
    xp, ends = namespace(ss.ZX), [sum(ss.d[: i + 1]) for i in range(len(ss.d))]
    lo, hi = ends[component] - ss.d[component], ends[component]
    kept = [i for i in range(ends[-1]) if not lo <= i < hi]
    rows, dropped = indices(kept, ss.ZX), indices(list(range(lo, hi)), ss.ZX)
    others = [i for i in range(len(ss.d)) if i != component]
    return replace(
        ss,
        ZX=xp.take(ss.ZX, rows, axis=0),
        ZY=xp.take(ss.ZY, rows, axis=0),
        ZZ=ss.ZZ[kept][:, kept] if is_sparse(ss.ZZ) else xp.take(xp.take(ss.ZZ, rows, axis=0), rows, axis=1),
        d=tuple(ss.d[i] for i in others),
        random_names=tuple(ss.random_names[i] for i in kept),
        component_names=tuple(ss.component_names[i] for i in others),
        formula=None,
        random_terms=terms_without(ss.random_terms, component),
        centred=ss.centred and replace(ss.centred, ZY=xp.take(ss.centred.ZY, rows, axis=0)),
        within=without_levels(ss.within, rows, dropped),
    )
