"""Summary statistics from products of cells: about their centres first, then about zero."""

from __future__ import annotations

from typing import Any

from ..backend.arrays import Array, entered, flag_indices
from .alignment import default_names
from .centring import centred_products, constant_of, with_constant
from .products import DesignProducts, GeneProducts, design_products
from .summary_stats import SummaryStats

_PREFIXES = {"features": "Gene", "fixed_names": "X", "random_names": "Z", "component_names": "var"}


def cross_products(X: Any, Z: Any, Y: Any, **labels: Any) -> SummaryStats:
    """Summary statistics of cells.

    Parameters
    ----------
    X, Z, Y : array or SciPy sparse matrix (n, p), (n, q), (n, m)
        Fixed-effect design, random-effect design and genes; each dense or sparse.
    **labels
        The remaining fields of `SummaryStats`; by default one random effect and numbered names.

    Returns
    -------
    SummaryStats

    Examples
    --------
    >>> import numpy as np
    >>> ss = cross_products(np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2))
    >>> ss.XY.tolist(), ss.ZY.tolist()
    ([[12.0, 16.0]], [[2.0, 4.0], [10.0, 12.0]])
    """
    with entered(Y):
        constant = constant_of(X)
        return assemble(design_products(X, Z), centred_products(X, Z, Y, constant), constant, **labels)


def assemble(design: DesignProducts, genes: GeneProducts, constant: Array | None = None, **labels: Any) -> SummaryStats:
    """Summary statistics from products, with numbered names for labels that are not given.

    Products about a centre are moved back to zero with the coefficients (p,) of the `constant`, and kept as `centred`.
    """
    centred = None
    if constant is not None and genes.centre is not None and flag_indices(genes.centre).size:
        centred = with_constant(genes, constant)
        genes = genes.about_zero(design, constant)
    (p, m), q = genes.XY.shape, design.ZZ.shape[0]
    labels = {"d": (q,), **{name: value for name, value in labels.items() if value is not None}}
    counts = {"features": m, "fixed_names": p, "random_names": q, "component_names": len(labels["d"])}
    for name, prefix in _PREFIXES.items():
        if name not in labels:
            labels[name] = default_names(prefix, counts[name])
    products = {"XY": genes.XY, "ZY": genes.ZY, "Ynorm": genes.Ynorm, "Ysum": genes.Ysum}
    sums = {"XX": design.XX, "ZX": design.ZX, "ZZ": design.ZZ, "total_weight": design.total_weight}
    return SummaryStats(n=design.n, **sums, **products, centred=centred, **labels)
