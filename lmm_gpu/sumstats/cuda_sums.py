"""Accumulate the genes of cells that lie on a device in tables there, by CUDA kernels.

The tables are those of `group_tables`: sums by group, products with covariates, and squares. A first kernel finds the
largest value of each gene in a chunk; a second one adds every value, times its cell's factor, to the tables as integers
on a grid of 2^-62 of that value; a third one adds the integers to the sums in double precision. Integers do not round,
so that the sums are the same bit by bit however the threads are scheduled, given the same chunks.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import numpy as np

from ..backend.arrays import Array, entered, is_sparse_on_device, namespace, to_numpy, zeros
from ..backend.cuda_kernels import compiles_kernels, cuda_source, definitions, kernel
from ..backend.devices import resolve
from ..backend.late_imports import scipy
from .device_chunks import DeviceMatrix, typed
from .grouped_design import GroupedDesign
from .products import GeneProducts, row_totals
from .transform import FRACTION, NEGATIVE, UNUSABLE, Transform

logger = logging.getLogger("lmm_gpu")
#: Threads of a block, and blocks of a launch: enough to fill the largest devices.
_THREADS, _BLOCKS = 256, 4096
#: Layouts and transforms, as `kernels/group_sums.cu` numbers them.
_KINDS = {"csr": 0, "csc": 1, "dense": 2}
_MODES = {None: 0, "log1p": 1, "log2p1": 1, "normalize": 2}
#: Below the exponent of any number: a gene without values.
_NO_VALUE = -2000


def tables_for(design: GroupedDesign, m: int, weights: np.ndarray | None, Y: Any) -> DeviceTables | None:
    """Return tables on the device of a chunk; None if kernels cannot add it up, or memory is short there."""
    values = Y.data if is_sparse_on_device(Y) else Y
    if design.random_columns or not compiles_kernels(values):
        return None
    rows = design.groups + design.covariates.shape[1] + 1
    need = 24 * rows * m + 12 * design.n * (len(design.groupings) + design.covariates.shape[1] + 1)
    (device,) = resolve("auto", values)
    if need <= device.free_bytes():
        return DeviceTables(design, m, weights, values)
    logger.info("sums by group take %s bytes, more than %s has left: the host adds up", f"{need:,}", device.name)
    return None


class DeviceTables:
    """Tables of m genes over the cells of a design that were added, on the device of some values.

    Parameters
    ----------
    design : GroupedDesign
        Without random effects of which a cell has several columns.
    m : int
        Number of genes.
    weights : array (n,), optional
        One weight per cell.
    reference : array
        On the device.
    """

    def __init__(self, design: GroupedDesign, m: int, weights: np.ndarray | None, reference: Array):
        self.design, self.m = design, m
        codes, factors, exponents = _scaled_design(design, weights)
        self.rows = design.groups + design.covariates.shape[1] + 1
        with entered(reference):
            xp = self.xp = namespace(reference)
            self.codes, self.factors, self.row_exponents = map(xp.asarray, (codes, factors, exponents))
            self.sums = zeros((self.rows, m), reference, dtype=xp.float64)
            self.high, self.low = (zeros((self.rows, m), reference, dtype=xp.uint64) for _ in range(2))
            self.exponents = zeros((m,), reference, dtype=xp.int32)
        self._size_factors: tuple[Any, Array | None] = (None, None)

    def add(self, rows: slice, genes: slice, Y: Any, transform: Transform, centre: np.ndarray | None = None) -> int:
        """Add a chunk (cells, genes) of stored values, dense, less `centre` (m,), or compressed.

        Returns
        -------
        int
            0, or bits of `transform`: `UNUSABLE`, `FRACTION`, `NEGATIVE`.
        """
        kind, matrix = _matrix(Y)
        options = options_of(kind, *matrix[:2])
        majors, minors = Y.shape[::-1] if kind == "csc" else Y.shape
        with entered(matrix[0]):
            xp = self.xp
            where = (*matrix, majors, minors, rows.start, genes.start)
            how = (_MODES[transform.name], _divisor(transform), self._factors_of(transform), self._on(centre))
            flags = xp.zeros((3,), dtype=xp.int32)
            self.exponents[genes] = _NO_VALUE
            blocks = min(_BLOCKS, -(-majors * 32 // _THREADS))
            self._run("largest", options, blocks, (*where, *how, self.exponents, flags))
            design = (len(self.codes), self.design.covariates.shape[1], self.design.n, self.codes, self.factors)
            tables = (self.design.groups, self.m, self.high, self.low)
            self._run("group_sums", options, blocks, (*where, *how, self.exponents, *design, *tables))
            self._fold(options, genes)
            found = to_numpy(flags).tolist()  # waits: the chunk's memory can be used again
        return sum(bit for bit, flag in zip((UNUSABLE, FRACTION, NEGATIVE), found, strict=True) if flag)

    def _fold(self, options: tuple[str, ...], genes: slice) -> None:
        blocks = min(_BLOCKS, -(-self.rows * (genes.stop - genes.start) // _THREADS))
        shape = (self.rows, self.m, genes.start, genes.stop)
        arrays = (self.exponents, self.row_exponents, *shape, self.high, self.low, self.sums)
        self._run("fold", options, blocks, arrays)

    def _run(self, name: str, options: tuple[str, ...], blocks: int, arguments: tuple[Any, ...]) -> None:
        run = kernel(self.sums, _source(), name, options)
        if run is None:
            raise RuntimeError(f"the CUDA kernel {name} could not be compiled: set LMM_GPU_KERNELS=0 to go without it")
        if blocks:
            run((blocks,), (_THREADS,), arguments)

    def _on(self, values: np.ndarray | None) -> Any:
        # a null pointer for no values
        return 0 if values is None or not values.any() else self.xp.asarray(values)

    def _factors_of(self, transform: Transform) -> Any:
        if transform.size_factors is None:
            return 0
        if self._size_factors[0] is not transform:
            self._size_factors = transform, self.xp.asarray(np.asarray(transform.size_factors, dtype=float))
        return self._size_factors[1]

    def products(self) -> GeneProducts:
        """Products of the cells that were added with the design, on the host."""
        sums, groups = to_numpy(self.sums), self.design.groups
        XY, Ysum = self.design.products(sums[:groups], sums[groups:-1])
        return GeneProducts(XY, sums[: self.design.q], sums[-1].copy(), Ysum)


def device_counts(Y: Any) -> np.ndarray:
    """Number of cells in which each gene of a chunk on a device is not zero, and its total: (m, 2)."""
    data = Y.data if is_sparse_on_device(Y) else Y
    xp = namespace(data)
    shown = (data != 0).astype(xp.float64)
    return np.column_stack([_totals(_with_data(Y, shown)), _totals(Y)])


def cell_totals(Y: Any) -> np.ndarray:
    """Sums over the genes of a chunk (cells, m), dense or sparse, on any device: (cells,), on the host."""
    if not (is_sparse_on_device(Y) and Y.format == "csr" and compiles_kernels(Y.data)):
        return to_numpy(row_totals(Y))
    with entered(Y):
        return _totals(DeviceMatrix(Y.data, Y.indices, Y.indptr, Y.shape[::-1], "csc"))


def _with_data(Y: Any, data: Array) -> Any:
    return DeviceMatrix(data, Y.indices, Y.indptr, Y.shape, Y.format) if is_sparse_on_device(Y) else data


def _totals(Y: Any) -> np.ndarray:
    # sums over the cells (m,)
    n, m = Y.shape
    everyone = GroupedDesign.from_matrices(np.ones((n, 1)), scipy.sparse.csr_array((n, 0)), ())
    tables = DeviceTables(everyone, m, None, Y.data if is_sparse_on_device(Y) else Y)
    tables.add(slice(0, n), slice(0, m), Y, Transform())
    total: np.ndarray = tables.products().XY[0]
    return total


def _scaled_design(design: GroupedDesign, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (groupings, n), factors (groupings + c + 1, n) of size 1 at most, and exponents of the tables' rows.

    A factor is a cell's slope, covariate or 1, times its weight, divided by 2^exponent: the smallest that suits all
    cells of the row.
    """
    several, c = len(design.groupings), design.covariates.shape[1]
    codes = np.zeros((several, design.n), np.int32)
    factors = np.ones((several + c + 1, design.n))
    for place, grouping in enumerate(design.groupings):
        codes[place] = grouping.codes
        codes[place] += grouping.rows.start
        if grouping.weights is not None:
            factors[place] = grouping.weights
    factors[several:-1] = design.covariates.T
    if weights is not None:
        factors *= weights
    exponents = np.zeros(design.groups + c + 1, np.int32)
    for place, row in enumerate(factors):
        of_cells = codes[place] if place < several else np.full(1, design.groups + place - several)
        largest = np.zeros(len(exponents))
        np.maximum.at(largest, of_cells, np.abs(row) if place < several else np.abs(row).max(initial=0.0))
        mantissas, found = np.frexp(largest)
        found = found - (mantissas == 0.5)  # a power of two may be 1
        exponents[largest > 0] = found[largest > 0]
        row[:] = np.ldexp(row, -exponents[of_cells])
    return codes, factors, exponents


def _matrix(Y: Any) -> tuple[str, tuple[Any, Any, Any]]:
    # layout, and the arrays data, indices and indptr
    if not is_sparse_on_device(Y):
        return "dense", (namespace(Y).ascontiguousarray(Y), 0, 0)
    return Y.format, (Y.data, Y.indices, Y.indptr.astype(namespace(Y.data).int64))


def options_of(kind: str, values: Array, places: Array) -> tuple[str, ...]:
    """Options of the compiler for a layout ("csr", "csc", "dense"), and the types of its values and indices."""
    index = "int" if kind == "dense" else typed(places)
    return (*definitions({"KIND": _KINDS[kind]}), f"-DVALUE={typed(values)}", f"-DINDEX={index}")


def _divisor(transform: Transform) -> float:
    return math.log(2.0) if transform.name == "log2p1" else 1.0


@functools.cache
def _source() -> str:
    return cuda_source("lmm_gpu.sumstats", "kernels/group_sums.cu")
