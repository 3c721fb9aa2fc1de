"""Running sums over chunks: what has been added up so far, and nothing of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse

from ..backend.arrays import entered, namespace, to_numpy
from ..backend.sparse import on_device, stored_values, with_values
from ..design.design import Design
from .centring import centre_of, constant_of
from .grouped_design import GroupedDesign
from .products import column_sums, design_products, products_of_chunk
from .transform import Transform, any_value, check_still_counts, check_values, recognise


class Accumulator:
    """Sums over the chunks that were added.

    Parameters
    ----------
    design : Design
        Of the n cells.
    m : int
        Number of genes.
    transform : Transform or None
        None: values as they are, unless they are raw counts by `is_counts` or by their looks.
    is_counts : bool, optional
        Overrules the looks; ignored if a transform is given.
    counting : bool
        Also count, for each gene, the cells in which it is not zero, and add up its values before the transform.
    most : int, optional
        How many numbers to hold at a time beyond the sums and the chunk, for sparse chunks.
    """

    def __init__(
        self,
        design: Design,
        m: int,
        transform: Transform | None = None,
        is_counts: bool | None = None,
        *,
        counting: bool = False,
        most: int | None = None,
    ):
        self.design, self.most = design, most
        self.values = _Values(transform, is_counts)
        self.constant, self.products = constant_of(design.X), design_products(design.X, design.Z)
        self.grouped: GroupedDesign | None = None
        self.sums = {"XY": np.zeros((design.p, m)), "ZY": np.zeros((design.q, m))}
        self.sums |= {name: np.zeros(m) for name in ("Ynorm", "Ysum", *(("cells", "total") if counting else ()))}
        self.centre: np.ndarray | None = None
        self.begun = False

    def add(self, rows: slice, genes: slice, Y: Any, name: str) -> None:
        """Add the values `Y` of some cells and genes, as they are stored.

        Raises
        ------
        ValueError
            If values are NaN or infinite, or show that they were not counts after all.
        """
        if not Y.shape[0]:
            return
        with entered(Y):
            self._add(rows, genes, Y, name)
        self.begun = True

    def _add(self, rows: slice, genes: slice, Y: Any, name: str) -> None:
        check_values(Y, name, rows.start, genes.start)
        if "cells" in self.sums:
            for counted, A in gene_counts(Y).items():
                self.sums[counted][genes] += A
        by_cells = genes.stop - genes.start == self.sums["Ysum"].shape[0]
        place = f"cells {rows.start} to {rows.stop - 1}" if by_cells else f"genes {genes.start} to {genes.stop - 1}"
        Y = self.values.of(Y, rows, name, place)
        sums = {name: A[..., genes] for name, A in self.sums.items()}  # views
        if scipy.sparse.issparse(Y):
            self._add_sparse(rows, Y, sums)
        else:
            # about the centre of the first chunk, for all
            if not self.begun and (centre := centre_of(Y, self.constant)) is not None:
                self.centre = to_numpy(centre)
            products = products_of_chunk(self.design.X[rows], self.design.Z[rows], Y, self.centre)
            for product, A in products.items():
                sums[product] += A

    def _add_sparse(self, rows: slice, Y: Any, sums: dict[str, np.ndarray]) -> None:
        self.expect_sparse()
        assert self.grouped is not None
        Y = scipy.sparse.csr_array((Y.data.astype(np.float64, copy=False), Y.indices, Y.indptr), shape=Y.shape)
        self.grouped.add_products(rows, Y, sums["XY"], sums["ZY"], self.most)
        ones, squares = np.ones(Y.shape[0]), np.square(Y.data)
        sums["Ynorm"] += scipy.sparse.csr_array((squares, Y.indices, Y.indptr), shape=Y.shape).T @ ones
        if not self.grouped.has_sums:
            sums["Ysum"] += Y.T @ ones

    def expect_sparse(self) -> None:
        """Make ready for sparse chunks: some numbers per cell are held meanwhile, better before there are any."""
        self.grouped = self.grouped or GroupedDesign(self.design.X, self.design.Z, self.design.d)

    def finished(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Products of the design, and those with the genes about their "centre"."""
        genes = {name: self.sums[name] for name in ("XY", "ZY", "Ynorm", "Ysum")}
        if self.grouped is not None:
            self.grouped.derive(genes["XY"], genes["ZY"], genes["Ysum"])
        return self.products, genes | {"centre": self.centre}

    def state(self) -> tuple[dict[str, np.ndarray | None], dict[str, int | str | None]]:
        """Arrays and attributes from which `restore` goes on."""
        flags = {"decided": self.values.decided, "begun": self.begun, "grouped": self.grouped is not None}
        values = {"transform": self.values.transform.name, "most": self.most}
        return self.sums | {"centre": self.centre}, values | {name: int(flag) for name, flag in flags.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Go on from a `state` of the same design, genes, transform and filters."""
        self.sums = {name: arrays[name] for name in self.sums}
        self.centre, self.begun, self.most = arrays.get("centre"), bool(values["begun"]), values.get("most")
        if values["grouped"]:
            self.expect_sparse()
        if not self.values.decided and values["decided"]:
            self.values.transform, self.values.decided = Transform(values.get("transform")), True


class _Values:
    """The values to be fitted: unless it is given, the first chunk that is not all zero decides on the transform."""

    def __init__(self, transform: Transform | None, is_counts: bool | None):
        if transform is None and is_counts is not None:
            transform = recognise(None, is_counts)
        self.looking = transform is None
        self.decided = transform is not None
        self.transform = transform or Transform()

    def of(self, Y: Any, rows: slice, name: str, place: str) -> Any:
        """Values of a chunk of the cells `rows`; a refusal says `place` and of what."""
        if not self.decided and any_value(Y):
            self.transform, self.decided = recognise(Y, None), True
        elif self.looking and self.transform.name:
            check_still_counts(Y, name, place)
        return self.transform.apply(Y, rows)


def gene_counts(Y: Any) -> dict[str, np.ndarray]:
    """In how many of these "cells" each gene is not zero (m,), and its "total" (m,)."""
    if on_device(Y):
        values = stored_values(Y)
        xp = namespace(values)
        parts = {"cells": xp.astype(values != 0, xp.float64), "total": xp.astype(values, xp.float64)}
        return {name: to_numpy(column_sums(with_values(Y, part))) for name, part in parts.items()}
    return {"cells": _non_zeros(Y), "total": np.asarray(Y.sum(axis=0, dtype=float)).reshape(-1)}


def _non_zeros(Y: Any) -> np.ndarray:
    if not scipy.sparse.issparse(Y):
        return np.count_nonzero(Y, axis=0)  # (m,)
    held = Y.indices if Y.data.all() else Y.indices[Y.data != 0]
    return np.bincount(held, minlength=Y.shape[1])
