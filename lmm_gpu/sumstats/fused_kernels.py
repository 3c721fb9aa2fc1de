"""One pass over cells, compiled by numba: transform every value and add it to the tables of its cell's groups.

Tables are flat: row ``codes[g][r]`` of `sums` (rows x m genes) is the group of cell r in grouping g, and gene j has its
products with c covariates and its sum of squares from ``moments[j * (c + 1)]`` on. `counted`, unless it is empty, has
two numbers per gene: the cells in which it is not zero, and its total before the transform.

Cells are taken in order and a call works on a range of genes: sums are bitwise the same for any number of threads and
chunks. A cell goes through several short loops rather than one: its values stay in the first cache, and each loop reads
one row of a table from start to end. Indices are unsigned: numba would check signed ones for negative values. The codes
are a tuple of arrays: numba compiles for their number.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from .transform import FRACTION, NEGATIVE, UNUSABLE

#: Values as they are; log(1 + y) * scale; log(1 + y / factor of the cell).
AS_IS, LOG, NORMALIZED = 0, 1, 2
_LARGEST = 1e70
_U = np.uint64
#: Counts of a cell that are tabulated for its size factor, where the cell has this many times as many values.
_TABULATED, _WORTH = 16, 4
#: Genes of a dense chunk that are added at a time: their rows of the tables stay in the cache.
_TILE = 256
_compiled: Any = numba.njit(nogil=True, cache=True, boundscheck=False)


@_compiled
def in_order(indices, indptr, size):  # type: ignore[no-untyped-def]
    """Return whether the indices of every row ascend, without duplicates, and are below `size`."""
    for k in range(indptr.shape[0] - 1):
        row = indices[indptr[k] : indptr[k + 1]]
        wrong = 0
        for i in range(_U(1), _U(row.shape[0])):
            wrong += row[i] <= row[i - _U(1)]
        if wrong or (row.shape[0] and (row[0] < 0 or row[row.shape[0] - 1] >= size)):
            return False
    return True


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
def _transform(values, mode, factor, scale, table, out):  # type: ignore[no-untyped-def]
    # values of a cell, of which small counts are looked up in `table`
    if mode == AS_IS:
        unusable: Any = 0
        negative: Any = 0
        for i in range(_U(0), _U(values.shape[0])):
            v = np.float64(values[i])
            unusable += not abs(v) < _LARGEST
            negative += v < 0
            out[i] = v
        return (UNUSABLE if unusable else 0) | (NEGATIVE if negative else 0)
    flags: Any = 0
    known = np.uint32(table.shape[0])
    for i in range(_U(0), _U(values.shape[0])):
        y = values[i]
        whole = np.int32(y)
        place = np.uint32(whole)
        if place < known and whole == y:
            out[i] = table[_U(place)]
        else:
            out[i], bad = _value(y, mode, factor, scale)
            flags |= bad
    return flags


@_compiled
def _small_counts(factor, table):  # type: ignore[no-untyped-def]
    for y in range(table.shape[0]):
        table[y] = math.log1p(y / factor)


@_compiled
def _add_cell(buffer, genes, weight, r, codes, slopes, covariates, m, sums, moments):  # type: ignore[no-untyped-def]
    # add the values of a cell to the rows of its groups and to the moments of its genes
    c, count = covariates.shape[1], _U(genes.shape[0])
    width, mm = _U(c + 1), _U(m)
    for g in range(len(codes)):
        a = _U(codes[g][r]) * mm
        s = slopes[r, g] * weight if slopes.shape[0] else weight
        if s == 1.0:
            for i in range(_U(0), count):
                sums[a + _U(np.uint32(genes[i]))] += buffer[i]
        else:
            for i in range(_U(0), count):
                sums[a + _U(np.uint32(genes[i]))] += s * buffer[i]
    if c == 1:
        x = covariates[r, 0]
        for i in range(_U(0), count):
            v = buffer[i]
            p = _U(np.uint32(genes[i])) * width
            moments[p] += x * (weight * v)
            moments[p + _U(1)] += v * (weight * v)
    else:
        for i in range(_U(0), count):
            v = buffer[i]
            p = _U(np.uint32(genes[i])) * width
            for h in range(c):
                moments[p + _U(h)] += covariates[r, h] * (weight * v)
            moments[p + _U(c)] += v * (weight * v)


@_compiled
def _count(values, genes, counted):  # type: ignore[no-untyped-def]
    # cells in which a gene is not zero, and its total before the transform
    for i in range(_U(0), _U(genes.shape[0])):
        p = _U(np.uint32(genes[i])) * _U(2)
        counted[p] += values[i] != 0
        counted[p + _U(1)] += values[i]


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
def add_csr(  # type: ignore[no-untyped-def]
    data, indices, indptr, first, lo, hi, m, values, design, sums, moments, counted
):
    """Add genes lo to hi of rows of a CSR chunk `in_order` whose first cell is `first`."""
    mode, scale, factors, lookup = values
    weights, codes, slopes, covariates = design
    buffer, small = np.empty(hi - lo, np.float64), np.empty(_TABULATED, np.float64)
    flags = 0
    for k in range(indptr.shape[0] - 1):
        r, i, e = first + k, np.int64(indptr[k]), np.int64(indptr[k + 1])
        many = e - i > _TABULATED * _WORTH
        if lo > 0:
            i = _first_from(indices, i, e, lo)
        if hi < m:
            e = _first_from(indices, i, e, hi)
        factor, table = 1.0, lookup
        if mode == NORMALIZED:
            factor = factors[r]
            if many:
                _small_counts(factor, small)
                table = small
        flags |= _transform(data[i:e], mode, factor, scale, table, buffer)
        weight = weights[r] if weights.shape[0] else 1.0
        _add_cell(buffer, indices[i:e], weight, r, codes, slopes, covariates, m, sums, moments)
        if counted.shape[0]:
            _count(data[i:e], indices[i:e], counted)
    return flags


@_compiled
def add_dense(  # type: ignore[no-untyped-def]
    Y, first, lo, hi, m, values, design, sums, moments, counted
):
    """Add genes lo to hi of rows of a dense chunk; zeros are skipped, as every transform keeps them."""
    mode, scale, factors, lookup = values
    weights, codes, slopes, covariates = design
    buffer, genes = np.empty(hi - lo, np.float64), np.empty(hi - lo, np.uint32)
    stored, small = np.empty(hi - lo, Y.dtype), np.empty(_TABULATED, np.float64)
    flags = 0
    for k in range(Y.shape[0]):
        r, row = first + k, Y[k]
        count = _U(0)
        for j in range(_U(lo), _U(hi)):  # without a branch
            genes[count] = np.uint32(j)
            stored[count] = row[j]
            count += _U(row[j] != 0)
        factor, table = 1.0, lookup
        if mode == NORMALIZED:
            factor = factors[r]
            _small_counts(factor, small)
            table = small
        flags |= _transform(stored[:count], mode, factor, scale, table, buffer)
        weight = weights[r] if weights.shape[0] else 1.0
        _add_cell(buffer, genes[:count], weight, r, codes, slopes, covariates, m, sums, moments)
        if counted.shape[0]:
            _count(stored[:count], genes[:count], counted)
    return flags


@_compiled
def add_values(Y, centre, first, lo, hi, m, design, sums, moments):  # type: ignore[no-untyped-def]
    """Add genes lo to hi of rows of a dense chunk as they are, less the centre, some genes at a time."""
    weights, codes, slopes, covariates = design
    c, negative = covariates.shape[1], 0
    row, of_genes = np.empty(_TILE, np.float64), np.empty((c + 1, _TILE), np.float64)
    for start in range(lo, hi, _TILE):
        width = min(_TILE, hi - start)
        for j in range(width):
            for h in range(c + 1):
                of_genes[h, j] = moments[(start + j) * (c + 1) + h]
        about = centre[start : start + width]
        for k in range(Y.shape[0]):
            r, stored = first + k, Y[k, start : start + width]
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
def _add_gene(stored, cells, values, design, table, buffer, moment):  # type: ignore[no-untyped-def]
    # add the values of a gene to its sums over groups (groups,) and to its moments (c + 1,)
    mode, scale, factors, lookup = values
    weights, codes, slopes, covariates = design
    c, count, known = covariates.shape[1], _U(stored.shape[0]), np.uint32(lookup.shape[0])
    first, squares, flags = moment[0], moment[c], 0
    for i in range(count):
        y, r = stored[i], _U(np.uint32(cells[i]))
        whole = np.int32(y)
        place = np.uint32(whole)
        if place < known and whole == y:
            v = lookup[_U(place)]
        else:
            v, bad = _value(y, mode, factors[r] if mode == NORMALIZED else 1.0, scale)
            flags |= bad
        weight = weights[r] if weights.shape[0] else 1.0
        for g in range(len(codes)):
            s = slopes[r, g] * weight if slopes.shape[0] else weight
            table[_U(codes[g][r])] += s * v
        weighted = weight * v
        squares += v * weighted
        if c:
            first += covariates[r, 0] * weighted
        if c > 1:
            buffer[i] = weighted
    for h in range(1, c):
        total = moment[h]
        for i in range(count):
            total += covariates[_U(np.uint32(cells[i])), h] * buffer[i]
        moment[h] = total
    if c:
        moment[0] = first
    moment[c] = squares
    return flags


@_compiled
def add_csc(  # type: ignore[no-untyped-def]
    data, indices, indptr, lo, hi, first_gene, m, values, design, sums, moments, counted
):
    """Add genes lo to hi of a CSC chunk of all cells, `in_order`, that starts at `first_gene`."""
    groups, c = sums.shape[0] // m, design[3].shape[1]
    table, buffer = np.empty(groups, np.float64), np.empty(len(design[1][0]), np.float64)
    flags = 0
    for j in range(lo, hi):
        stored, cells = data[indptr[j] : indptr[j + 1]], indices[indptr[j] : indptr[j + 1]]
        gene = first_gene + j
        for g in range(groups):
            table[g] = sums[g * m + gene]
        moment = moments[gene * (c + 1) : (gene + 1) * (c + 1)]
        flags |= _add_gene(stored, cells, values, design, table, buffer, moment)
        for g in range(groups):
            sums[g * m + gene] = table[g]
        if counted.shape[0]:
            for i in range(_U(0), _U(stored.shape[0])):
                counted[2 * gene] += stored[i] != 0
                counted[2 * gene + 1] += stored[i]
    return flags
