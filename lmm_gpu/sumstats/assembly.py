"""Summary statistics from products of cells: about their centres first, then about zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backend.arrays import Array, entered, flag_indices
from .alignment import default_names
from .centring import Centred, centred_products, constant_of, recentred
from .products import design_products
from .summary_stats import SummaryStats


def cross_products(X: Any, Z: Any, Y: Any, **labels: Any) -> SummaryStats:
    """Summary statistics of cells: X (n, p), Z (n, q) and Y (n, m), each dense or SciPy sparse.

    `labels` are the remaining fields of `SummaryStats`; by default one random effect and numbered names.
    """
    with entered(Y):
        constant = constant_of(X)
        return assemble(design_products(X, Z), centred_products(X, Z, Y, constant), constant, **labels)


def assemble(
    design: Mapping[str, Any],
    genes: Mapping[str, Any],
    constant: Array | None = None,
    **labels: Any,
) -> SummaryStats:
    """Summary statistics from products, with numbered names where `labels` has none.

    `genes` are about their "centre" (m,), if they have one, which the `constant` (p,) moves back.
    """
    genes, centred = dict(genes), None
    centre = genes.pop("centre", None)
    if constant is not None and centre is not None and flag_indices(centre).size:
        centred = Centred(centre, constant, **genes)
        genes = recentred(genes, design, constant, -centre)
    (p, m), q = genes["XY"].shape, design["ZZ"].shape[0]
    defaults = {
        "d": (q,),
        "features": default_names("Gene", m),
        "fixed_names": default_names("X", p),
        "random_names": default_names("Z", q),
    }
    labels = {**defaults, **{name: value for name, value in labels.items() if value is not None}}
    labels.setdefault("component_names", default_names("var", len(labels["d"])))
    return SummaryStats(**design, **genes, centred=centred, **labels)
