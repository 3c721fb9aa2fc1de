"""One pass over cells, compiled by numba: check, transform and add every value to the tables of its cell's groups.

Tables are flat: row `codes[r, g]` of `sums` (rows x m genes) is the group of cell r in grouping g, and gene j has its
products with c covariates and its sum of squares from ``moments[j * (c + 1)]`` on. Cells are taken in order and a call
works on a range of genes: sums are bitwise the same for any number of threads and chunks.

Indices are unsigned: numba would check signed ones for negative values. Bits of the result: 1 for a value that cannot
be used (NaN, infinite, too large, negative where it is transformed, or outside of the matrix), 2 for one that is not a
whole number.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

#: Values as they are; log(1 + y) * scale; log(1 + y / factor of the cell).
AS_IS, LOG, NORMALIZED = 0, 1, 2
_LARGEST = 1e70
_U = np.uint64
#: Counts of a cell that are tabulated for its size factor, where the cell has this many times as many values.
_TABULATED, _WORTH = 16, 4
_compiled: Any = numba.njit(nogil=True, cache=True, boundscheck=False)


@_compiled
def _value(y, mode, factor, scale):  # type: ignore[no-untyped-def]
    v = np.float64(y)
    bad = 0 if abs(v) < _LARGEST else 1
    if v != math.floor(v):
        bad |= 2
    if mode != AS_IS:
        if v < 0:
            bad |= 1
        elif mode == LOG:
            v = np.float64(math.log1p(v) * scale)
        else:
            v = np.float64(math.log1p(v / factor))
    return v, bad


@_compiled
def _add_row(buffer, places, count, weight, r, codes, slopes, covariates, m, sums, moments):  # type: ignore[no-untyped-def]
    # add the values of a cell, which are in `buffer`, to the rows of its groups and to its genes' moments
    c = covariates.shape[1]
    width, mm = _U(c + 1), _U(m)
    for g in range(codes.shape[1]):
        a = _U(codes[r, g]) * mm
        s = slopes[r, g] * weight if slopes.shape[0] else weight
        if s == 1.0:
            for i in range(_U(0), count):
                sums[a + _U(places[i])] += buffer[i]
        else:
            for i in range(_U(0), count):
                sums[a + _U(places[i])] += s * buffer[i]
    if c == 1:
        x = covariates[r, 0]
        for i in range(_U(0), count):
            v = buffer[i]
            p = _U(places[i]) * width
            moments[p] += x * (weight * v)
            moments[p + _U(1)] += v * (weight * v)
    else:
        for i in range(_U(0), count):
            v = buffer[i]
            p = _U(places[i]) * width
            for h in range(c):
                moments[p + _U(h)] += covariates[r, h] * (weight * v)
            moments[p + _U(c)] += v * (weight * v)


@_compiled
def _first_from(indices, i, e, lo):  # type: ignore[no-untyped-def]
    # the first position from i up to e whose column is at least lo, by binary search
    while i < e:
        middle = (i + e) >> _U(1)
        if indices[middle] < lo:
            i = middle + _U(1)
        else:
            e = middle
    return i


@_compiled
def add_csr(  # type: ignore[no-untyped-def]
    data,
    indices,
    indptr,
    first,
    lo,
    hi,
    m,
    mode,
    scale,
    factors,
    lookup,
    weights,
    codes,
    slopes,
    covariates,
    sums,
    moments,
):
    """Add rows of a CSR chunk whose first cell is `first`, genes lo to hi; the columns of each row are sorted."""
    known = np.uint32(lookup.shape[0])
    buffer, places = np.empty(hi - lo, np.float64), np.empty(hi - lo, np.uint32)
    small = np.empty(_TABULATED, np.float64)
    flags = 0
    for k in range(indptr.shape[0] - 1):
        r = first + k
        i, e = _U(indptr[k]), _U(indptr[k + 1])
        if lo > 0:
            i = _first_from(indices, i, e, lo)
        factor = factors[r] if mode == NORMALIZED else 1.0
        table, size = lookup, known
        if mode == NORMALIZED and e - i > _U(_TABULATED * _WORTH):
            for y in range(_TABULATED):
                small[y] = math.log1p(y / factor)
            table, size = small, np.uint32(_TABULATED)
        count, before = _U(0), lo - 1
        while i < e:
            j = indices[i]
            if j >= hi:
                if j >= m:
                    flags |= 1
                break
            if j <= before:
                flags |= 1
                break
            y = data[i]
            i += _U(1)
            before = j
            whole = np.int32(y)
            place = np.uint32(whole)
            if place < size and whole == y:
                v = table[_U(place)]
            else:
                v, bad = _value(y, mode, factor, scale)
                flags |= bad
            buffer[count] = v
            places[count] = np.uint32(j)
            count += _U(1)
        weight = weights[r] if weights.shape[0] else 1.0
        _add_row(buffer, places, count, weight, r, codes, slopes, covariates, m, sums, moments)
    return flags


@_compiled
def add_dense(  # type: ignore[no-untyped-def]
    Y, first, lo, hi, m, mode, scale, factors, lookup, weights, codes, slopes, covariates, sums, moments
):
    """Add rows of a dense chunk in C order, genes lo to hi; zeros are skipped, as every transform keeps them."""
    known = np.uint32(lookup.shape[0])
    buffer, places = np.empty(hi - lo, np.float64), np.empty(hi - lo, np.uint32)
    flags = 0
    for k in range(Y.shape[0]):
        r = first + k
        row = Y[k]
        count = _U(0)
        for j in range(_U(lo), _U(hi)):  # without a branch
            places[count] = np.uint32(j)
            count += _U(row[j] != 0)
        factor = factors[r] if mode == NORMALIZED else 1.0
        for i in range(_U(0), count):
            y = row[_U(places[i])]
            whole = np.int32(y)
            place = np.uint32(whole)
            if place < known and whole == y:
                buffer[i] = lookup[_U(place)]
            else:
                v, bad = _value(y, mode, factor, scale)
                flags |= bad
                buffer[i] = v
        weight = weights[r] if weights.shape[0] else 1.0
        _add_row(buffer, places, count, weight, r, codes, slopes, covariates, m, sums, moments)
    return flags


@_compiled
def add_values(  # type: ignore[no-untyped-def]
    Y, centre, first, lo, hi, m, weights, codes, slopes, covariates, sums, moments
):
    """Add rows of a dense chunk in C order as they are, less the centre, genes lo to hi."""
    c, width = covariates.shape[1], hi - lo
    row = np.empty(width, np.float64)
    for k in range(Y.shape[0]):
        r = first + k
        weight = weights[r] if weights.shape[0] else 1.0
        for j in range(width):
            row[j] = np.float64(Y[k, lo + j]) - centre[lo + j]
        for g in range(codes.shape[1]):
            s = slopes[r, g] * weight if slopes.shape[0] else weight
            a = np.int64(codes[r, g]) * m + lo
            table = sums[a : a + width]
            for j in range(width):
                table[j] += s * row[j]
        moment = moments[lo * (c + 1) : hi * (c + 1)]
        if c == 1:
            x = covariates[r, 0] * weight
            for j in range(width):
                moment[2 * j] += x * row[j]
                moment[2 * j + 1] += weight * row[j] * row[j]
        else:
            for j in range(width):
                v = weight * row[j]
                for h in range(c):
                    moment[j * (c + 1) + h] += covariates[r, h] * v
                moment[j * (c + 1) + c] += v * row[j]


@_compiled
def add_csc(  # type: ignore[no-untyped-def]
    data,
    indices,
    indptr,
    n,
    lo,
    hi,
    first_gene,
    m,
    mode,
    scale,
    factors,
    lookup,
    weights,
    codes,
    slopes,
    covariates,
    sums,
    moments,
):
    """Add genes lo to hi of a CSC chunk of all cells that starts at `first_gene`: the sums of a gene stay in cache."""
    known = np.uint32(lookup.shape[0])
    groups, c = sums.shape[0] // m, covariates.shape[1]
    table, moment = np.empty(groups, np.float64), np.empty(c + 1, np.float64)
    flags = 0
    for j in range(lo, hi):
        gene = first_gene + j
        for g in range(groups):
            table[g] = sums[g * m + gene]
        for h in range(c + 1):
            moment[h] = moments[gene * (c + 1) + h]
        before = -1
        for i in range(_U(indptr[j]), _U(indptr[j + 1])):
            stored = indices[i]
            if stored <= before or stored >= n:
                flags |= 1
                break
            before = stored
            r = _U(np.uint32(stored))
            y = data[i]
            whole = np.int32(y)
            place = np.uint32(whole)
            if place < known and whole == y:
                v = lookup[_U(place)]
            else:
                v, bad = _value(y, mode, factors[r] if mode == NORMALIZED else 1.0, scale)
                flags |= bad
            weight = weights[r] if weights.shape[0] else 1.0
            for g in range(codes.shape[1]):
                s = slopes[r, g] * weight if slopes.shape[0] else weight
                table[_U(codes[r, g])] += s * v
            for h in range(c):
                moment[h] += covariates[r, h] * (weight * v)
            moment[c] += v * (weight * v)
        for g in range(groups):
            sums[g * m + gene] = table[g]
        for h in range(c + 1):
            moments[gene * (c + 1) + h] = moment[h]
    return flags
