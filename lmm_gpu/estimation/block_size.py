"""Sizes of a model: the time and memory that its genes take, and how many are fitted together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..backend.threads import workers

#: Bytes of a block when no budget is given: more genes at once would not be faster.
BLOCK_BYTES = 256 * 2**20
#: Genes of a block: with fewer, the overhead of calls dominates; with more, the arrays exceed the caches.
MOST_GENES = 2048
#: Genes of a block on a device: few genes would leave it waiting for launches; batched solvers take no more.
MOST_GENES_ON_DEVICE = 65_535


#: With at most so many random effects all are decomposed together.
FEW_EFFECTS = 2000
#: Evaluations that a gene takes, about.
EVALUATIONS = 10


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: p fixed columns, and the widths d of the random effects."""

    p: int
    d: tuple[int, ...]
    rest: int | None = None  #: random effects that are not eliminated; by default those of all but the widest

    def bytes_per_gene(self) -> int:
        """Bytes that one gene of a block needs during a fit, all temporaries counted."""
        q, k, p = sum(self.d), len(self.d), self.p
        rest = self.rest if self.rest is not None else q - max(self.d)
        vectors = 8 * q + 6 * p + 12 * (k + 1) ** 2
        return 8 * (vectors + rest * (q + 4 * p + 12 * rest))


def blocks_pay(shape: Shape, genes: int, together: int = 1) -> bool:
    """Return whether eliminating the widest effect level by level takes less time than decomposing all effects.

    So many effects of one grouping, t, are eliminated `together`, as intercepts and slopes are. In floating point
    operations, the decomposition takes 10 q^3 once. An evaluation by levels takes t + 2 sums over G levels of
    t (t + 1) / 2 products of s = p + q_R columns, and a few times s^3, per gene, where q_R effects are not eliminated,
    against 3 q q_R^2 + 6 q_R^3. Of one effect, fewer levels than `FEW_EFFECTS` are always decomposed.

    Examples
    --------
    >>> blocks_pay(Shape(p=2, d=(2972, 1128, 14)), genes=1), blocks_pay(Shape(p=2, d=(259, 46)), genes=1)
    (True, False)
    >>> blocks_pay(Shape(p=63, d=(259, 259)), genes=10_000, together=2)
    True
    """
    q, levels = sum(shape.d), max(shape.d)
    if together == 1 and q <= FEW_EFFECTS:
        return False
    s, rest = shape.p + q - together * levels, q - levels
    by_levels = (together + 2) * together * (together + 1) * levels * s * s + 6 * s**3
    decomposed = 3 * q * rest**2 + 6 * rest**3 + q
    return EVALUATIONS * genes * (by_levels - decomposed) < 10 * q**3


def table_bytes(sizes: tuple[int, ...], q_R: int, functions: int) -> int:
    """Bytes that the tables of a design take while they are built.

    Of `functions` numbers at every node of the grid of `sizes`, four copies; and a few matrices (q_R, q_R) at every
    node of one effect.
    """
    return 8 * (4 * math.prod(sizes) * functions + 5 * max(sizes) * q_R * q_R)


def genes_per_block(shape: Shape, memory: int | None, most: int = MOST_GENES) -> int:
    """Largest block of genes that the memory budget (bytes) allows, at most `most`; None is a moderate budget.

    Raises
    ------
    MemoryError
        If the budget does not hold a single gene, with the numbers.
    """
    need = shape.bytes_per_gene()
    if memory is None:
        return max(1, min(most, BLOCK_BYTES // need))
    if need > memory:
        raise MemoryError(f"one gene needs {need:,} bytes, memory allows {memory:,}; raise memory to {need:,} or more")
    return min(most, memory // need)


def threads_within(shape: Shape, memory: int | None) -> int:
    """Number of threads that fit the budget with one gene each, at most one per processor."""
    return workers() if memory is None else max(1, min(workers(), memory // shape.bytes_per_gene()))
