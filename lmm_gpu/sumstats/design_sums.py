"""Cross products and the constant of a design, from the groups of its cells: no X (n, p) and no Z (n, q) are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .centring import constant_of
from .grouped_design import GroupedDesign, Grouping
from .products import DesignProducts, design_products

if TYPE_CHECKING:
    from ..design.design import Design

#: With more groups, cross-tabulated counts of pairs of groupings would take more memory than the design itself.
_MOST_GROUPS = 4096


def products_of_design(design: Design, grouped: GroupedDesign, weights: np.ndarray | None = None) -> DesignProducts:
    """n, X'WX, Z'WX and Z'WZ of all cells of a design; W = I without weights (n,).

    Examples
    --------
    >>> import pandas as pd
    >>> from lmm_gpu.design.design import build_design
    >>> design = build_design("~ a + (1 | d)", pd.DataFrame({"a": list("xyxy"), "d": list("uuvv")}))
    >>> found = products_of_design(design, GroupedDesign.of(design))
    >>> found.XX.tolist(), found.ZX.tolist(), found.ZZ.tolist()
    ([[4.0, 2.0], [2.0, 2.0]], [[2.0, 1.0], [2.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]])
    """
    if grouped.random_columns or grouped.groups > _MOST_GROUPS:
        return design_products(design.X, design.Z, weights)
    numbers = grouped.covariates[:, : len(grouped.rest)]  # (n, c)
    total = None if weights is None else float(weights.sum())
    w = np.ones(design.n) if weights is None else weights
    tables = [_group_sums(grouping, numbers, w) for grouping in grouped.groupings]  # (groups, c) each
    XX, ZX, ZZ = np.zeros((grouped.p, grouped.p)), np.zeros((grouped.q, grouped.p)), np.zeros((grouped.q, grouped.q))
    XX[np.ix_(grouped.rest, grouped.rest)] = numbers.T @ (numbers * w[:, None])
    for a, of_a in zip(grouped.groupings, tables, strict=True):
        _put(XX, a, grouped.rest, of_a)
        if a.rows.stop <= grouped.q:
            ZX[a.rows, grouped.rest] = of_a
        for b in grouped.groupings:
            counts = cross_tabulated(a, b, w)  # (groups of a, groups of b)
            if len(a.columns) and len(b.columns):
                XX[np.ix_(a.columns, b.columns)] = a.values.T @ counts @ b.values
            if a.rows.stop <= grouped.q:
                if len(b.columns):
                    ZX[a.rows, b.columns] = counts @ b.values
                if b.rows.stop <= grouped.q:
                    ZZ[a.rows, b.rows] = counts
    return DesignProducts(design.n, XX, ZX, ZZ, total)


def _put(XX: np.ndarray, a: Grouping, rest: list[int], of_a: np.ndarray) -> None:
    # products of the columns of a grouping with the covariates
    if len(a.columns) and rest:
        XX[np.ix_(a.columns, rest)] = a.values.T @ of_a
        XX[np.ix_(rest, a.columns)] = (a.values.T @ of_a).T


def _group_sums(grouping: Grouping, numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of columns (n, c) over the groups, (groups, c)."""
    w = weights if grouping.weights is None else weights * grouping.weights
    width = grouping.rows.stop - grouping.rows.start
    sums = np.empty((width, numbers.shape[1]))
    for column in range(numbers.shape[1]):
        sums[:, column] = np.bincount(grouping.codes, w * numbers[:, column], minlength=width)
    return sums


def cross_tabulated(a: Grouping, b: Grouping, weights: np.ndarray) -> np.ndarray:
    """Sum of the weights of the cells in each pair of groups, (groups of a, groups of b)."""
    rows, columns = (one.rows.stop - one.rows.start for one in (a, b))
    w = weights
    for one in (a, b):
        w = w if one.weights is None else w * one.weights
    pair = a.codes.astype(np.int64) * columns + b.codes
    return np.bincount(pair, w, minlength=rows * columns).reshape(rows, columns)


def constant_of_design(design: Design) -> np.ndarray | None:
    """Coefficients k (p,) with X k = 1 in every cell; None if the columns of X do not make a constant."""
    fixed = design.fixed
    if fixed.tabled and (found := constant_of(fixed.table[fixed.counts > 0])) is not None:
        constant = np.zeros(design.p)
        constant[list(fixed.tabled)] = found
        return constant
    return constant_of(design.X) if fixed.valued else None
