"""Running sums over chunks of cells."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import entered, is_sparse_on_device
from ..backend.late_imports import is_scipy_sparse
from ..backend.sparse import on_device, with_values
from ..io.sparse_checks import canonical
from .chunk_samples import gene_counts, sampled_centre, stored_cells
from .cuda_sums import DeviceTables, device_counts, tables_for
from .design_sums import constant_of_design, products_of_design
from .device_chunks import DeviceMatrix, by_cupy, from_device
from .gene_queues import Added
from .group_tables import AS_THEY_ARE, GroupTables
from .grouped_design import GroupedDesign, Grouping
from .products import DesignProducts, GeneProducts, products_of_chunk
from .transform import (
    UNUSABLE,
    Transform,
    check_values,
    squares_fit,
)
from .value_check import Chunk, ValueCheck
from .within import Within
from .within_sums import WithinSums, clearly_varying, nearly_constant, sampled_cells, widest_grouping

if TYPE_CHECKING:
    from ..design.design import Design

logger = logging.getLogger("lmm_gpu")
_GENES = ("XY", "ZY", "Ynorm", "Ysum")
#: Cells, in pairs of one group, and stored values of a gene, in any groups, that are looked at first.
_FEW_PAIRED, _FEW_STORED = 32, 128
#: Chunks that are being added while the next one is read: threads that are done with one begin with the next.
_AT_ONCE = 1
#: Smallest number of cells of counts from which centres are estimated.
_FEW_CELLS = 30


@dataclass(frozen=True)
class Passes:
    """Implementation of the passes over chunks; the sums depend on it by rounding only.

    Parameters
    ----------
    fused : bool
        Use the compiled pass over values on the host.
    threads : int
        Threads of that pass.
    most : int, optional
        Numbers to hold beyond the sums and the chunk where the compiled pass is not used.
    """

    fused: bool = False
    threads: int = 1
    most: int | None = None


class Accumulator:
    """Sums over the chunks that were added.

    Parameters
    ----------
    design : Design
        Of the n cells.
    m : int
        Number of genes.
    transform : Transform or None
        None: values as they are, unless they are raw counts according to `is_counts` or auto-detection.
    is_counts : bool, optional
        Overrides auto-detection; ignored if a transform is given.
    weights : array (n,), optional
        One positive weight per cell.
    counting : bool
        Also count, for each gene, the cells in which it is not zero, and add its values before the transform.
    passes : Passes
    """

    def __init__(
        self,
        design: Design,
        m: int,
        transform: Transform | None = None,
        is_counts: bool | None = None,
        *,
        weights: np.ndarray | None = None,
        counting: bool = False,
        passes: Passes | None = None,
    ):
        self.design, self.m, self.weights, self.passes = design, m, weights, passes or Passes()
        self.values = ValueCheck(transform, is_counts)
        self.grouped, self.constant = GroupedDesign.of(design), constant_of_design(design)
        self.products = products_of_design(design, self.grouped, weights)
        self.tables: GroupTables | None = None
        self.on_device: DeviceTables | None = None
        self.dense: dict[str, np.ndarray] = {}
        self.counted = np.zeros((m, 2)) if counting else None  # cells in which a gene is not zero, and its total
        self.centre = np.zeros(m)
        self.within: WithinSums | None = None
        self.begun = False
        self.adding: list[tuple[Chunk, Any, Added]] = []

    def add(self, rows: slice, genes: slice, Y: Any, name: str) -> None:
        """Add the stored values `Y` (cells, genes) of some cells and genes of the matrix `name`.

        Sparse values need not be canonical if the compiled pass is used.

        Raises
        ------
        ValueError
            If values are NaN, infinite or negative counts, or are no counts although earlier ones were.
        """
        if not Y.shape[0]:
            return
        Y = by_cupy(Y)
        by_cells = genes.stop - genes.start == self.m
        place = f"cells {rows.start} to {rows.stop - 1}" if by_cells else f"genes {genes.start} to {genes.stop - 1}"
        with entered(Y):
            self._add(Chunk(rows, genes, name, place), Y)
        self.begun = True

    def _add(self, chunk: Chunk, Y: Any) -> None:
        if on_device(Y):
            if (there := self._tables_on_device(Y)) is not None:
                self._add_on_device(chunk, Y, there)
                return
            Y = from_device(Y) if isinstance(Y, DeviceMatrix) or self.within is not None else Y
        if self.passes.fused and is_scipy_sparse(Y):
            tables = self.expect_sparse()
            Y = Y if tables.fused and tables.in_order(Y) else canonical(Y)
        late = self.values.decided and (self._fuses(chunk, Y) or _shows_in_squares(Y, self.values.transform))
        if not late:
            check_values(Y, chunk.name, chunk.rows.start, chunk.genes.start)
        self.values.decide(Y)
        if not self.begun or chunk.genes.stop - chunk.genes.start < self.m:
            self._choose_centre(chunk, Y)
        if not on_device(Y):
            with np.errstate(invalid="ignore", over="ignore"):
                self._add_within(chunk, Y)
        if self._fuses(chunk, Y):
            self.adding.append((chunk, Y, self._add_fused(chunk, Y)))
            self._report(_AT_ONCE)
            return
        self._report(0)
        self._count(chunk, Y)
        self.values.check(Y, chunk)
        in_tiles = isinstance(Y, np.ndarray) and self.values.transform.size_factors is None
        left = self.values.transform if in_tiles else AS_THEY_ARE
        Y = Y if in_tiles else self.values.transform.apply(Y, chunk.rows)
        if is_scipy_sparse(Y):
            self._add_sparse(chunk, Y)
            return
        with np.errstate(invalid="ignore", over="ignore"):
            norms = self._add_dense(chunk.rows, chunk.genes, Y, left)
        if late and not squares_fit(norms):
            check_values(Y, chunk.name, chunk.rows.start, chunk.genes.start)

    def _fuses(self, chunk: Chunk, Y: Any) -> bool:
        if not self.passes.fused or on_device(Y) or not self.expect_sparse().fused:
            return False
        if self._as_they_are(Y):
            return chunk.genes == slice(0, self.m)
        return not self.centre[chunk.genes].any()

    def _as_they_are(self, Y: Any) -> bool:
        # such values have few zeros, which are skipped otherwise
        return self.values.transform.name is None and not is_scipy_sparse(Y)

    def _add_fused(self, chunk: Chunk, Y: Any) -> Added:
        """Begin to add a chunk by the compiled pass."""
        tables = self.expect_sparse()
        if not self._as_they_are(Y):
            return tables.add_fused(chunk.rows, chunk.genes, Y, self.values.transform, self.counted)
        self._count(chunk, Y)
        return tables.add_values(chunk.rows, Y, self.centre)

    def _report(self, left: int) -> None:
        """Wait for chunks that are being added, up to so many that are `left`, and report what is wrong with them."""
        while len(self.adding) > left:
            chunk, Y, added = self.adding.pop(0)
            flags, tables = added.flags(), self.expect_sparse()
            if self._as_they_are(Y) and not squares_fit(tables.moments[:, -1]):
                flags |= UNUSABLE
            self.values.report(flags, Y, chunk)

    def _tables_on_device(self, Y: Any) -> DeviceTables | None:
        # None if the chunks are not added up by kernels
        if self.within is not None or (is_sparse_on_device(Y) and self.centre.any()):
            return None
        if self.on_device is None:
            self.on_device = tables_for(self.grouped, self.m, self.weights, Y)
        return self.on_device

    def _add_on_device(self, chunk: Chunk, Y: Any, tables: DeviceTables) -> None:
        self.values.decide(Y)
        if not self.begun:
            self._choose_centre(chunk, Y)
        flags = tables.add(chunk.rows, chunk.genes, Y, self.values.transform, self.centre)
        if flags & UNUSABLE:
            self.values.report(flags, from_device(Y), chunk)
            raise ValueError(f"{chunk.name} has indices that are out of range in {chunk.place}")
        self.values.report(flags, Y, chunk)
        if self.counted is not None:
            self.counted[chunk.genes] += device_counts(Y)

    def _add_sparse(self, chunk: Chunk, Y: Any) -> None:
        far = np.flatnonzero(self.centre[chunk.genes])
        if far.size:  # sparse, yet far from zero: there are hardly any zeros
            self._add_dense(chunk.rows, chunk.genes.start + far, Y[:, far].toarray())
            kept = np.ones(Y.shape[1])
            kept[far] = 0.0
            Y = with_values(Y, Y.data * kept[Y.indices])
        self.expect_sparse().add(chunk.rows, chunk.genes, Y)

    def _choose_centre(self, chunk: Chunk, Y: Any) -> None:
        counts = is_scipy_sparse(Y) or self.values.transform.name is not None
        if counts and Y.shape[0] < min(_FEW_CELLS, self.design.n):
            return  # a few equal counts are not a gene that is far from zero
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite values are refused later
            centre = sampled_centre(Y, self.values.transform, chunk.rows, self.constant)
        if centre is not None:
            self.centre[chunk.genes] = centre

    def _count(self, chunk: Chunk, Y: Any) -> None:
        if self.counted is not None:
            self.counted[chunk.genes] += np.column_stack(list(gene_counts(Y).values()))

    def _add_dense(
        self, rows: slice, genes: slice | np.ndarray, Y: Any, transform: Transform = AS_THEY_ARE
    ) -> np.ndarray:
        """Add dense values, transformed, about the centre; return the sums of squares (genes,) so far."""
        if not on_device(Y):
            tables = self.expect_sparse()
            tables.add_dense(rows, genes, Y, self.centre[genes], transform)
            return tables.moments[genes, -1]
        if not self.dense:
            self.dense = self._zeros()
        weights = None if self.weights is None else self.weights[rows]
        found = products_of_chunk(self.design.X[rows], self.design.Z[rows], Y, self.centre[genes], weights)
        for name, A in self.dense.items():
            A[..., genes] += getattr(found, name)
        return self.dense["Ynorm"][genes]

    def _add_within(self, chunk: Chunk, Y: Any) -> None:
        """Add stored values of genes that are nearly constant within groups, as the first chunk of a gene has it."""
        by_genes = chunk.genes.stop - chunk.genes.start < self.m
        if (by_genes or not self.begun) and (grouping := widest_grouping(self.grouped)) is not None:
            genes = self._nearly_constant(chunk, Y, grouping)
            if genes.size:
                found = WithinSums(self.grouped, grouping, chunk.genes.start + genes, self.weights)
                if by_genes:
                    found.add(chunk.rows, self._transformed(Y, genes, chunk.rows))
                self.within = found if self.within is None else self.within.joined(found)
        if self.within is not None and not by_genes:
            self.within.add(chunk.rows, self._transformed(Y, self.within.genes, chunk.rows))

    def _nearly_constant(self, chunk: Chunk, Y: Any, grouping: Grouping) -> np.ndarray:
        codes = grouping.codes[chunk.rows]
        genes: np.ndarray = np.arange(Y.shape[1])
        if is_scipy_sparse(Y):
            genes = genes[2 * stored_cells(Y) > Y.shape[0]]  # genes of many zeros are far from constant
        genes = genes[~self._clearly_varying(chunk, Y, genes, codes)]
        if not genes.size:
            return genes
        cells = sampled_cells(codes)
        sample = self._of_cells(chunk, Y, genes, cells)
        return np.asarray(genes[nearly_constant(codes[cells], sample)])

    def _clearly_varying(self, chunk: Chunk, Y: Any, genes: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Genes (g,) that need no closer look; those of a matrix by columns by the first values that are stored."""
        if is_scipy_sparse(Y) and Y.format == "csc":
            few = min(_FEW_STORED, np.diff(Y.indptr)[genes].min(initial=_FEW_STORED))
            places = Y.indptr[genes] + np.arange(few)[:, None]  # (few, g)
            groups, values = codes[Y.indices[places]], np.log1p(np.abs(Y.data[places]))
            order = np.argsort(groups, axis=0, kind="stable")
            return clearly_varying(*(np.take_along_axis(A, order, axis=0) for A in (groups, values)))
        cells = sampled_cells(codes, _FEW_PAIRED)
        cells = cells[np.argsort(codes[cells], kind="stable")]
        return clearly_varying(codes[cells], self._of_cells(chunk, Y, genes, cells))

    def _of_cells(self, chunk: Chunk, Y: Any, genes: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Dense transformed values (cells, genes) of some cells and genes of a chunk."""
        by_rows = is_scipy_sparse(Y) and Y.format == "csr"
        Y = Y[cells] if by_rows else (Y if len(genes) == Y.shape[1] else Y[:, genes])
        Y = Y[:, genes] if by_rows else (Y.tocsr() if is_scipy_sparse(Y) else Y)[cells]
        return self._transformed(Y, np.arange(len(genes)), cells + chunk.rows.start)

    def _transformed(self, Y: Any, genes: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        # dense values of some genes
        values = Y if len(genes) == Y.shape[1] else Y[:, genes]
        values = values.toarray() if is_scipy_sparse(values) else values
        return np.asarray(self.values.transform.apply(values, rows))

    def within_groups(self) -> Within | None:
        """Products of the genes about their groups, if some are nearly constant within groups."""
        return None if self.within is None else self.within.products(self.finished()[1])

    def _zeros(self) -> dict[str, np.ndarray]:
        p, q, m = self.design.p, self.design.q, self.m
        return {"XY": np.zeros((p, m)), "ZY": np.zeros((q, m)), "Ynorm": np.zeros(m), "Ysum": np.zeros(m)}

    def expect_sparse(self) -> GroupTables:
        """Return the tables of sparse chunks; better made before there are any, as some numbers per cell are held."""
        if self.tables is None:
            passes = self.passes
            self.tables = GroupTables(
                self.grouped, self.m, self.weights, fused=passes.fused, threads=passes.threads, most=passes.most
            )
        return self.tables

    def finished(self) -> tuple[DesignProducts, GeneProducts]:
        """Products of the design, and those of the genes about their centre.

        Raises
        ------
        ValueError
            As `add`, which may not have waited for the last chunk.
        """
        self._report(0)
        parts = [tables.products() for tables in (self.tables, self.on_device) if tables is not None]
        if self.dense or not parts:
            parts.append(GeneProducts(**(self.dense or self._zeros())))
        total = parts[0]
        for part in parts[1:]:
            total = GeneProducts(**{name: getattr(total, name) + getattr(part, name) for name in _GENES})
        centre = self.centre if self.centre.any() else None
        return self.products, GeneProducts(total.XY, total.ZY, total.Ynorm, total.Ysum, centre)

    def state(self) -> tuple[dict[str, np.ndarray | None], dict[str, int | str | None]]:
        """Arrays and attributes from which `restore` continues."""
        self._report(0)
        flags = {"decided": self.values.decided, "begun": self.begun, "warned": self.values.warned}
        arrays: dict[str, np.ndarray | None] = {"centre": self.centre, "counted": self.counted}
        arrays |= {f"dense/{name}": A for name, A in self.dense.items()}
        if self.within is not None:
            arrays |= self.within.state()
        if self.tables is not None:
            arrays |= self.tables.state()
        values: dict[str, int | str | None] = {"transform": self.values.transform.name, "most": self.passes.most}
        return arrays, values | {name: int(flag) for name, flag in flags.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Continue from a `state` of the same design, genes, transform and filters."""
        self.counted = arrays.get("counted")
        self.dense = {name: arrays[f"dense/{name}"] for name in _GENES if f"dense/{name}" in arrays}
        self.centre, self.begun = arrays["centre"], bool(values["begun"])
        self.values.warned = bool(values["warned"])
        self.passes = Passes(self.passes.fused, self.passes.threads, values.get("most"))
        if "tables/sums" in arrays:
            tables = self.expect_sparse()
            tables.most = self.passes.most
            tables.sums, tables.moments = arrays["tables/sums"], arrays["tables/moments"]
        if "within/genes" in arrays and (grouping := widest_grouping(self.grouped)) is not None:
            self.within = WithinSums(self.grouped, grouping, arrays["within/genes"], self.weights)
            self.within.restore(arrays)
        if not self.values.decided and values["decided"]:
            self.values.transform, self.values.decided = Transform(values.get("transform")), True


def _shows_in_squares(Y: Any, transform: Transform) -> bool:
    # of dense values as they are, NaN, infinite and too large ones show in the sums of squares
    return transform.name is None and isinstance(Y, np.ndarray) and Y.dtype.kind == "f"
