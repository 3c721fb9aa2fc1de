"""Products of genes less a centre for each level of the random effects: they keep the digits within groups.

y'y of a gene that is nearly constant within donors is far larger than what is left of it on [X Z]. That remainder is
the same for y - Z c whatever c is, and where c are values of the donors' own cells, y - Z c is as small as the spread
within donors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..backend.arrays import Array, namespace, zeros
from ..backend.sparse import is_sparse
from .products import GeneProducts

if TYPE_CHECKING:
    from .summary_stats import SummaryStats


@dataclass(frozen=True, kw_only=True)
class Within(GeneProducts):
    """Products of y - Z c with the design and themselves; `Ysum` is None."""

    centre: Array  #: (q, m), c


def within_of(genes: GeneProducts, centre: Array) -> Within:
    """Products of y - Z c from an accumulation of these values, with the centres c (q, m)."""
    return Within(XY=genes.XY, ZY=genes.ZY, Ynorm=genes.Ynorm, Ysum=None, centre=centre)


def shifted(genes: Within, ss: SummaryStats, shift: Array) -> Within:
    """Products of y - Z (c + `shift`) (q, m) from those of y - Z c: no cells are needed."""
    xp = namespace(shift)
    moved = ss.ZZ @ shift  # (q, m)
    return Within(
        XY=genes.XY - ss.ZX.T @ shift,
        ZY=genes.ZY - moved,
        Ynorm=genes.Ynorm - xp.sum(shift * (2.0 * genes.ZY - moved), axis=0),
        Ysum=None,
        centre=genes.centre + shift,
    )


def add_within(a: SummaryStats, b: SummaryStats) -> Within | None:
    """Add the products of two statistics about the left's centres; about the right's for levels that only it has."""
    if a.n == 0 or b.n == 0:
        return b.within if a.n == 0 else a.within
    if a.within is None or b.within is None:
        return None
    xp = namespace(a.ZX)
    squares = a.ZZ.diagonal() if is_sparse(a.ZZ) else xp.linalg.diagonal(a.ZZ)
    ours = (squares > 0)[:, None]  # (q, 1); without cells a centre may be anything
    centre = xp.where(ours, a.within.centre, b.within.centre)
    theirs = shifted(b.within, b, centre - b.within.centre)
    genes = GeneProducts(a.within.XY + theirs.XY, a.within.ZY + theirs.ZY, a.within.Ynorm + theirs.Ynorm, None)
    return within_of(genes, centre)


def join_within(parts: Sequence[SummaryStats]) -> Within | None:
    """Join the products of statistics of consecutive genes; parts without centres have them at zero."""
    if all(part.within is None for part in parts):
        return None
    about = [part.within or within_of(part.gene_products, zeros(part.ZY.shape, part.ZY)) for part in parts]
    joined = GeneProducts.join(about)
    assert joined.centre is not None
    return within_of(joined, joined.centre)


def without_levels(within: Within | None, kept: Array, dropped: Array) -> Within | None:
    """Products without some levels, given by position; None if these have centres, which they are needed for."""
    if within is None:
        return None
    xp = namespace(within.ZY)
    if bool(xp.any(xp.take(within.centre, dropped, axis=0) != 0)):
        return None
    return replace(within, ZY=xp.take(within.ZY, kept, axis=0), centre=xp.take(within.centre, kept, axis=0))
