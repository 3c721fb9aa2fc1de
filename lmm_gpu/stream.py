"""Cells to summary statistics, chunk by chunk: a matrix larger than memory is read once and never held whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from .design import Design
from .io import Source
from .plan import default_memory
from .products import centre_of, constant_of, design_products, gene_products
from .summary import SummaryStats, assemble
from .transform import Transform, check_values, looks_like_counts, recognise

logger = logging.getLogger("lmm_gpu")

#: Larger chunks are not faster.
_CHUNK_BYTES = 2**28
#: A chunk, its transform and its float64 copy live at the same time.
_COPIES = 4
#: A fixed-effect matrix with a smaller share of non-zeros is multiplied as sparse.
_SPARSE_DENSITY = 0.3


def accumulate(
    source: Source,
    design: Design,
    transform: Transform | None,
    *,
    is_counts: bool | None = None,
    memory: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> SummaryStats:
    """Sum the statistics of all cells of `source`.

    Parameters
    ----------
    source : Source
        n cells x m genes.
    design : Design
        Of the same n cells.
    transform : Transform or None
        None: values as they are, unless they are raw counts by `is_counts` or by their looks.
    is_counts : bool, optional
        Overrules the looks; ignored if a transform is given.
    memory : int, optional
        Bytes that the chunks and their temporaries may take.
    progress : callable, optional
        Called with the number of cells read after each chunk.

    Raises
    ------
    ValueError
        If there are no genes, values are NaN or infinite, or a later chunk shows that they were not counts after all.
    """
    if source.m == 0:
        raise ValueError(f"{source.name} has no genes: wanted at least one column")
    X: Any = design.X
    if np.count_nonzero(X) < _SPARSE_DENSITY * X.size:
        X = scipy.sparse.csr_array(X)
    constant, centre, total = constant_of(X), None, None
    values = _Values(transform, is_counts)
    for rows, Y in source.chunks(cells_per_chunk(source.m, memory)):
        check_values(Y, source.name, rows.start)
        Y = values.of(Y, rows, source.name)
        centre = centre_of(Y, constant) if total is None else centre  # of the first chunk, for all
        part = gene_products(X[rows], design.Z[rows], Y, centre)
        total = part if total is None else {name: total[name] + part[name] for name in total}
        if progress is not None:
            progress(rows.stop - rows.start)
    assert total is not None
    return assemble(
        design_products(X, design.Z),
        total | {"centre": centre},
        constant,
        d=design.d,
        features=source.features,
        fixed_names=tuple(design.fixed_names),
        random_names=tuple(design.random_names),
        component_names=tuple(design.component_names),
        formula=design.formula,
        transform=values.transform.name,
        terms=design.terms,
    )


class _Values:
    """The values to be fitted: unless it is given, the first chunk that is not all zero decides on the transform."""

    def __init__(self, transform: Transform | None, is_counts: bool | None):
        if transform is None and is_counts is not None:
            transform = recognise(None, is_counts)
        self.looking = transform is None
        self.decided = transform is not None
        self.transform = transform or Transform()

    def of(self, Y: Any, rows: slice, name: str) -> Any:
        """Values of a chunk whose cells are `rows`."""
        if not self.decided and _any(Y):
            self.transform, self.decided = recognise(Y, None), True
        elif self.looking and self.transform.name and not looks_like_counts(Y) and _any(Y):
            raise ValueError(
                f"{name} began with raw counts but cells {rows.start} to {rows.stop - 1} hold other values; "
                "say which it is: is_counts=True or False, or a transform"
            )
        return self.transform.apply(Y, rows)


def count_size_factors(
    source: Source, memory: int | None = None, progress: Callable[[int], object] | None = None
) -> np.ndarray:
    """Size factors (n,) in a first pass over the cells: total counts over their mean.

    Raises
    ------
    ValueError
        If a cell has no counts, or the values are negative.
    """
    totals = []
    for rows, Y in source.chunks(cells_per_chunk(source.m, memory)):
        check_values(Y, source.name, rows.start)
        totals.append(np.asarray(Y.sum(axis=1, dtype=float)).reshape(-1))  # (cells,)
        if progress is not None:
            progress(rows.stop - rows.start)
    total = check_size_factors(np.concatenate(totals), "the total counts")
    return total / total.mean()


def check_size_factors(factors: Any, what: str) -> np.ndarray:
    """Refuse size factors that are not positive numbers, with how many."""
    try:
        factors = np.asarray(factors, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: wanted numbers, one positive size factor per cell ({error})") from error
    bad = int(np.count_nonzero(~(np.isfinite(factors) & (factors > 0))))
    if bad:
        raise ValueError(f"{what} of {bad} cell(s) are not positive numbers; remove these cells before normalizing")
    return factors


def cells_per_chunk(m: int, memory: int | None) -> int:
    """Cells of m genes that a memory budget holds as dense float64, temporaries counted.

    Raises
    ------
    MemoryError
        If the budget does not hold a single cell, with the numbers.
    """
    need = 8 * _COPIES * max(m, 1)
    if memory is None:
        return max(1, min(default_memory(), _CHUNK_BYTES) // need)
    if need > memory:
        raise MemoryError(f"one cell needs {need:,} bytes, memory allows {memory:,}; raise memory to {need:,} or more")
    return memory // need


def _any(Y: Any) -> bool:
    return bool((Y.data if scipy.sparse.issparse(Y) else np.asarray(Y)).any())
