"""One pass over cells, compiled by numba: transform every value and add it to the tables of its cell's groups.

Tables are flat: row ``codes[g][r]`` of `sums` (rows x m genes) is the group of cell r in grouping g, and gene j has its
products with c covariates and its sum of squares from ``moments[j * (c + 1)]`` on. `counted`, unless it is empty, has
two numbers per gene: the cells in which it is not zero, and its total before the transform.

Cells are taken in order and a call works on a range of genes: sums are bitwise the same for any number of threads and
chunks. A cell goes through several short loops rather than one: its values stay in the first cache, and each loop reads
one row of a table from start to end. Indices are unsigned: numba would check signed ones for negative values. Arrays
are neither sliced nor taken from tuples in the loops over rows: numba would count references. The codes of CSC and of
values as they are come as a tuple all the same, for which loops over groupings are unrolled.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .transform import FRACTION, NEGATIVE, UNUSABLE

#: Values as they are; log(1 + y) * scale; log(1 + y / factor of the cell).
AS_IS, LOG, NORMALIZED = 0, 1, 2
_LARGEST = 1e70
_U = np.uint64
#: Counts of a cell that are tabulated for its size factor, where the cell has this many times as many values.
_TABULATED, _WORTH = 16, 4
#: Genes of values as they are that are added at a time: their rows of the tables stay in the cache.
_TILE = 256
#: Genes of a CSC chunk whose sums are copied from and to the tables at a time: whole cache lines.
_GENES = 64
#: Bytes of a cache line, and lines of the next row that are read ahead.
_LINE, _AHEAD = 64, 32
_compiled: Any = numba.njit(nogil=True, cache=True, boundscheck=False)


def _typed_prefetch(typing: Any, array: Any, place: Any) -> Any:
    """Have the processor read a place of an array into its cache."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = context.make_array(signature.args[0])(context, builder, given[0]).data
        byte = builder.bitcast(builder.gep(pointer, [given[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.type, number, number, number])
        read, all_caches, data = number(0), number(3), number(1)
        builder.call(
            builder.module.declare_intrinsic("llvm.prefetch", [byte.type], kind), [byte, read, all_caches, data]
        )
        return context.get_dummy_value()

    return types.void(array, place), generate


_prefetch: Any = intrinsic(_typed_prefetch)


@_compiled
def _read_ahead(array, i, e):  # type: ignore[no-untyped-def]
    # the part of a row that a thread takes is too short for the processor to foresee the next one
    step = _U(max(1, _LINE // array.itemsize))
    for place in range(i, min(e, i + _U(_AHEAD) * step), step):
        _prefetch(array, place)


@_compiled
def in_order(indices, indptr, size, bounds, ends):  # type: ignore[no-untyped-def]
    """Return whether the indices of every row ascend, without duplicates, and are below `size`.

    Row t of `ends` (bounds + 1, rows) receives where the indices of each row reach bounds[t], and the last one where
    the row ends.
    """
    last = bounds.shape[0]
    for k in range(indptr.shape[0] - 1):
        i, e = np.int64(indptr[k]), np.int64(indptr[k + 1])
        row = indices[i:e]
        wrong = 0
        for at in range(_U(1), _U(row.shape[0])):
            wrong += row[at] <= row[at - _U(1)]
        if wrong or (row.shape[0] and (row[0] < 0 or row[row.shape[0] - 1] >= size)):
            return False
        for t in range(last):  # while the row is in the cache
            i = _first_from(indices, i, e, bounds[t])
            ends[t, k] = i
        ends[last, k] = e
    return True


@_compiled
def _first_from(indices, i, e, lo):  # type: ignore[no-untyped-def]
    # the first position from i up to e whose index is at least lo, by binary search
    while i < e:
        middle = (i + e) >> 1
        if indices[middle] < lo:
            i = middle + 1
        else:
            e = middle
    return i


@_compiled
def _value(y, mode, factor, scale):  # type: ignore[no-untyped-def]
    # a value that is not looked up, and its flags
    v = np.float64(y)
    if not abs(v) < _LARGEST:
        return v, UNUSABLE
    if mode == AS_IS:
        return v, NEGATIVE if v < 0 else 0
    if v < 0:
        return v, UNUSABLE
    flags = FRACTION if v != math.floor(v) else 0
    return np.float64(math.log1p(v) * scale if mode == LOG else math.log1p(v / factor)), flags


@_compiled
def _tabulate(factor, table):  # type: ignore[no-untyped-def]
    for y in range(_TABULATED):
        table[y] = math.log1p(y / factor)


@_compiled
def _as_they_are(data, i, e, out):  # type: ignore[no-untyped-def]
    unusable: Any = 0
    negative: Any = 0
    for t in range(e - i):
        v = np.float64(data[i + t])
        unusable += not abs(v) < _LARGEST
        negative += v < 0
        out[t] = v
    return (UNUSABLE if unusable else 0) | (NEGATIVE if negative else 0)


@_compiled
def _transform(data, i, e, mode, factor, scale, table, known, out):  # type: ignore[no-untyped-def]
    # values i to e of a cell, of which counts below `known` are looked up in `table`
    if mode == AS_IS:
        return _as_they_are(data, i, e, out)
    flags: Any = 0
    for t in range(e - i):
        y = data[i + t]
        whole = np.int32(y)
        place = np.uint32(whole)
        if place < known and whole == y:
            out[t] = table[_U(place)]
        else:
            out[t], bad = _value(y, mode, factor, scale)
            flags |= bad
    return flags


@_compiled
def _add_cell(buffer, genes, i, e, weight, r, codes, slopes, covariates, m, sums, moments):  # type: ignore[no-untyped-def]
    # add the values of a cell, whose genes are genes[i:e], to the rows of its groups and to the moments of its genes
    c, count = covariates.shape[1], e - i
    width = _U(c + 1)
    for g in range(codes.shape[0]):
        a = _U(codes[g, r]) * _U(m)
        s = slopes[r, g] * weight if slopes.shape[0] else weight
        if s == 1.0:
            for t in range(count):
                sums[a + _U(np.uint32(genes[i + t]))] += buffer[t]
        else:
            for t in range(count):
                sums[a + _U(np.uint32(genes[i + t]))] += s * buffer[t]
    if c == 1:
        x = covariates[r, 0]
        for t in range(count):
            v = buffer[t]
            p = _U(np.uint32(genes[i + t])) * width
            moments[p] += x * (weight * v)
            moments[p + _U(1)] += v * (weight * v)
    else:
        for t in range(count):
            v = buffer[t]
            p = _U(np.uint32(genes[i + t])) * width
            for h in range(c):
                moments[p + _U(h)] += covariates[r, h] * (weight * v)
            moments[p + _U(c)] += v * (weight * v)


@_compiled
def _count(data, genes, i, j, e, counted):  # type: ignore[no-untyped-def]
    # cells in which a gene is not zero, and its total, of the values from data[j] on of genes[i:e]
    for t in range(e - i):
        p = _U(np.uint32(genes[i + t])) * _U(2)
        counted[p] += data[j + t] != 0
        counted[p + _U(1)] += data[j + t]


@_compiled
def _table(mode, lookup):  # type: ignore[no-untyped-def]
    # values of small counts, and their number; of normalized ones, they are computed for each cell
    table = np.zeros(max(_TABULATED, lookup.shape[0]), np.float64)
    for y in range(lookup.shape[0]):
        table[y] = lookup[y]
    return table, np.uint32(0 if mode == NORMALIZED else lookup.shape[0])


@_compiled
def add_csr(  # type: ignore[no-untyped-def]
    data, indices, begins, ends, first, m, values, design, sums, moments, counted
):
    """Add the values from begins[k] to ends[k] of each row k of a CSR chunk `in_order` whose first cell is `first`."""
    mode, scale, factors, lookup = values
    weights, codes, slopes, covariates = design
    buffer, flags, factor = np.empty(m, np.float64), 0, 1.0
    table, known = _table(mode, lookup)
    rows = begins.shape[0]
    for k in range(rows):
        r, i, e = first + k, _U(begins[k]), _U(ends[k])
        if k + 1 < rows:
            _read_ahead(data, _U(begins[k + 1]), _U(ends[k + 1]))
            _read_ahead(indices, _U(begins[k + 1]), _U(ends[k + 1]))
        if mode == NORMALIZED:
            factor, known = factors[r], np.uint32(0)
            if e - i > _U(_TABULATED * _WORTH):
                _tabulate(factor, table)
                known = np.uint32(_TABULATED)
        flags |= _transform(data, i, e, mode, factor, scale, table, known, buffer)
        weight = weights[r] if weights.shape[0] else 1.0
        _add_cell(buffer, indices, i, e, weight, r, codes, slopes, covariates, m, sums, moments)
        if counted.shape[0]:
            _count(data, indices, i, i, e, counted)
    return flags


@_compiled
def add_dense(  # type: ignore[no-untyped-def]
    Y, first, lo, hi, m, values, design, sums, moments, counted
):
    """Add genes lo to hi of rows of a dense chunk; zeros are skipped, as every transform keeps them."""
    mode, scale, factors, lookup = values
    weights, codes, slopes, covariates = design
    buffer, genes = np.empty(hi - lo, np.float64), np.empty(hi - lo, np.uint32)
    stored, none, flags, factor = np.empty(hi - lo, Y.dtype), _U(0), 0, 1.0
    table, known = _table(mode, lookup)
    flat, width = Y.reshape(-1), Y.shape[1]
    part = hi - lo < width  # of rows: the processor does not foresee the next one
    step = _U(max(1, _LINE // Y.itemsize)) if part else _U(max(1, hi - lo))
    for k in range(Y.shape[0]):
        r, count, at = first + k, _U(0), _U(k * width)
        for j in range(_U(lo), _U(hi), step):
            if part:
                _prefetch(flat, min(at + _U(width) + j, _U(flat.size - 1)))
            for gene in range(j, min(j + step, _U(hi))):  # without a branch
                y = flat[at + gene]
                genes[count] = np.uint32(gene)
                stored[count] = y
                count += _U(y != 0)
        if mode == NORMALIZED:
            factor, known = factors[r], np.uint32(_TABULATED)
            _tabulate(factor, table)
        flags |= _transform(stored, none, count, mode, factor, scale, table, known, buffer)
        weight = weights[r] if weights.shape[0] else 1.0
        _add_cell(buffer, genes, none, count, weight, r, codes, slopes, covariates, m, sums, moments)
        if counted.shape[0]:
            _count(stored, genes, none, none, count, counted)
    return flags


@_compiled
def add_values(Y, centre, first, lo, hi, m, design, sums, moments):  # type: ignore[no-untyped-def]
    """Add genes lo to hi of rows of a dense chunk as they are, less the centre, some genes at a time."""
    weights, codes, slopes, covariates = design
    c, negative, flat = covariates.shape[1], 0, Y.reshape(-1)
    row, of_genes = np.empty(_TILE, np.float64), np.empty((c + 1, _TILE), np.float64)
    for start in range(lo, hi, _TILE):
        width = min(_TILE, hi - start)
        for j in range(width):
            for h in range(c + 1):
                of_genes[h, j] = moments[(start + j) * (c + 1) + h]
        about = centre[start : start + width]
        for k in range(Y.shape[0]):
            r, stored = first + k, Y[k, start : start + width]
            if k + 1 < Y.shape[0]:
                _read_ahead(flat, _U((k + 1) * Y.shape[1] + start), _U((k + 1) * Y.shape[1] + start + width))
            weight = weights[r] if weights.shape[0] else 1.0
            for j in range(width):
                negative += stored[j] < 0
                row[j] = np.float64(stored[j]) - about[j]
            for g in range(len(codes)):
                s = slopes[r, g] * weight if slopes.shape[0] else weight
                a = np.int64(codes[g][r]) * m + start
                table = sums[a : a + width]
                for j in range(width):
                    table[j] += s * row[j]
            for h in range(c):
                x, products = covariates[r, h] * weight, of_genes[h]
                for j in range(width):
                    products[j] += x * row[j]
            squares = of_genes[c]
            for j in range(width):
                squares[j] += weight * row[j] * row[j]
        for j in range(width):
            for h in range(c + 1):
                moments[(start + j) * (c + 1) + h] = of_genes[h, j]
    return NEGATIVE if negative else 0


@_compiled
def _transposed(sums, at, m, table, genes, groups, back):  # type: ignore[no-untyped-def]
    # copy the sums of some genes, from position `at` on, to a table (genes, groups), or back
    for g in range(groups):
        for j in range(genes):
            if back:
                sums[g * m + at + j] = table[j * groups + g]
            else:
                table[j * groups + g] = sums[g * m + at + j]


@_compiled
def _count_gene(data, i, e, counted, at):  # type: ignore[no-untyped-def]
    for t in range(i, e):
        counted[at] += data[t] != 0
        counted[at + _U(1)] += data[t]


@_compiled
def add_csc(  # type: ignore[no-untyped-def]
    data, indices, indptr, lo, hi, first_gene, m, values, codes, covariates, weights, slopes, sums, moments, counted
):
    """Add genes lo to hi of a CSC chunk of all cells, `in_order`, that starts at `first_gene`.

    Weights and slopes are None if there are none: numba leaves them out of the loop.
    """
    mode, scale, factors, lookup = values
    groups, c, known, flags = sums.shape[0] // m, covariates.shape[1], np.uint32(lookup.shape[0]), 0
    table, buffer = np.empty(_GENES * groups, np.float64), np.empty(len(codes[0]), np.float64)
    for start in range(lo, hi, _GENES):
        count = min(_GENES, hi - start)
        _transposed(sums, first_gene + start, m, table, count, groups, False)
        for j in range(start, start + count):
            i, e, gene = _U(indptr[j]), _U(indptr[j + 1]), _U(first_gene + j)
            at, moment = _U((j - start) * groups), gene * _U(c + 1)
            first, squares = moments[moment], moments[moment + _U(c)]
            for t in range(i, e):
                y, r = data[t], _U(np.uint32(indices[t]))
                whole = np.int32(y)
                place = np.uint32(whole)
                if place < known and whole == y:
                    v = lookup[_U(place)]
                else:
                    v, bad = _value(y, mode, factors[r] if mode == NORMALIZED else 1.0, scale)
                    flags |= bad
                weight = 1.0 if weights is None else weights[r]
                for g in range(len(codes)):
                    s = weight if slopes is None else slopes[r, g] * weight
                    table[at + _U(codes[g][r])] += s * v
                weighted = weight * v
                squares += v * weighted
                if c:
                    first += covariates[r, 0] * weighted
                if c > 1:
                    buffer[t - i] = weighted
            for h in range(_U(1), _U(c)):
                total = moments[moment + h]
                for t in range(i, e):
                    total += covariates[_U(np.uint32(indices[t])), h] * buffer[t - i]
                moments[moment + h] = total
            if c:
                moments[moment] = first
            moments[moment + _U(c)] = squares
            if counted.shape[0]:
                _count_gene(data, i, e, counted, gene * _U(2))
        _transposed(sums, first_gene + start, m, table, count, groups, True)
    return flags
