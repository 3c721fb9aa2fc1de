"""The variance parameters of random-effects terms: variances and covariances, and where they stand in theta.

A term such as (x | donor) has k columns per level and a k x k covariance matrix Sigma of its effects. Its parameters
are the variances of the k effects, then the covariances of the pairs (1, 2), (1, 3), (2, 3), ... in that order.
V is linear in all of them: Sigma = sum_l sigma_l E_l with E_aa = e_a e_a' and E_ab = e_a e_b' + e_b e_a'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..backend.arrays import Array, namespace
from ..backend.sparse import diagonal_of, is_diagonal
from ..sumstats.summary_stats import SummaryStats

Entries = list[list[Array]]  #: a small matrix whose entries are arrays of the same shape


@dataclass(frozen=True)
class Term:
    """One random-effects term: `effects` columns per level, stored effect by effect in the rows of Z'Z."""

    first: int  #: first row of its effects
    levels: int
    effects: int
    parameters: tuple[int, ...]  #: rows of theta

    @property
    def size(self) -> int:
        """Number of columns of Z."""
        return self.levels * self.effects

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Effects (a, b), a <= b, of each parameter, in the order of theta."""
        return pairs(self.effects)

    def rows(self, effect: int) -> tuple[int, int]:
        """Range of rows of one effect."""
        return self.first + effect * self.levels, self.first + (effect + 1) * self.levels

    def matrix(self, theta: Array) -> Entries:
        """Covariance matrix of the effects, from all variance parameters (L, b): k rows of k vectors (b,)."""
        result: Entries = [[theta[0, :]] * self.effects for _ in range(self.effects)]
        for row, (a, b) in zip(self.parameters, self.pairs, strict=True):
            result[a][b] = result[b][a] = theta[row, :]
        return result


@dataclass(frozen=True)
class LevelBlock:
    """Terms of one grouping, whose levels share no observation: their effects together, level by level."""

    terms: tuple[Term, ...]

    @property
    def levels(self) -> int:
        """Number of levels."""
        return self.terms[0].levels

    @property
    def effects(self) -> int:
        """Number of columns of Z per level."""
        return sum(term.effects for term in self.terms)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Range of rows of every effect."""
        return [term.rows(a) for term in self.terms for a in range(term.effects)]

    @property
    def parameters(self) -> dict[int, tuple[int, int]]:
        """Effects (a, b), a <= b, of each row of theta that is theirs."""
        found: dict[int, tuple[int, int]] = {}
        at = 0
        for term in self.terms:
            found |= {row: (at + a, at + b) for row, (a, b) in zip(term.parameters, term.pairs, strict=True)}
            at += term.effects
        return found

    def matrix(self, theta: Array) -> Entries:
        """Covariance matrix of all effects, from all variance parameters (L, b)."""
        zero = namespace(theta).zeros_like(theta[0, :])
        result: Entries = [[zero] * self.effects for _ in range(self.effects)]
        for row, (a, b) in self.parameters.items():
            result[a][b] = result[b][a] = theta[row, :]
        return result


def widest_block(ZZ: Any, terms: Sequence[Term]) -> LevelBlock | None:
    """The term with the most columns, and all others of its grouping, as in (x || g); None if levels share cells.

    Levels share no cell if Z'Z of any two of the effects is diagonal.
    """
    widest = max(terms, key=lambda term: term.size)

    def fits(one: Term, other: Term) -> bool:
        at = [(one.rows(a), other.rows(b)) for a in range(one.effects) for b in range(other.effects)]
        return one.levels == other.levels and all(is_diagonal(ZZ, rows, columns) for rows, columns in at)

    if not fits(widest, widest):
        return None
    return LevelBlock(tuple(term for term in terms if term is widest or (fits(term, term) and fits(term, widest))))


@dataclass(frozen=True)
class CrossedCovariance:
    """Block diagonal covariance D_R of the effects that are not eliminated, of b genes; never formed."""

    blocks: tuple[tuple[int, Entries], ...]  #: levels of each term, and the matrix of its effects, of vectors (b,)

    @classmethod
    def of(cls, terms: Sequence[Term], theta: Array) -> CrossedCovariance:
        """Return the covariance of `terms` at all variance parameters (L, b)."""
        return cls(tuple((term.levels, term.matrix(theta)) for term in terms))

    def times(self, A: Array) -> Array:
        """D_R A (b, q_R, c) for `A` (b, q_R, c)."""
        parts: list[Array] = []
        at = 0
        for levels, gamma in self.blocks:
            k = len(gamma)
            rows = [A[:, at + a * levels : at + (a + 1) * levels, :] for a in range(k)]
            parts += [sum(gamma[a][b][:, None, None] * rows[b] for b in range(k)) for a in range(k)]
            at += k * levels
        return namespace(A).concat(parts, axis=1) if parts else A


def pairs(effects: int) -> tuple[tuple[int, int], ...]:
    """Pairs (a, b) of the parameters of a term with so many correlated effects.

    >>> pairs(3)
    ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    """
    off_diagonal = tuple((a, b) for b in range(effects) for a in range(b))
    return (*((a, a) for a in range(effects)), *off_diagonal)


def terms_of(d: Sequence[int], effects: Sequence[int]) -> tuple[Term, ...]:
    """Terms of a design whose random effects have widths `d`, of which each term takes the next few.

    >>> [(term.first, term.levels, term.parameters) for term in terms_of((5, 5, 3), (2, 1))]
    [(0, 5, (0, 1, 2)), (10, 3, (3,))]
    """
    terms: list[Term] = []
    first, at, row = 0, 0, 0
    for count in effects:
        widths = set(d[at : at + count])
        if len(widths) != 1:
            raise ValueError(f"the effects of a term have {sorted(widths)} levels; expected the same number for all")
        parameters = count * (count + 1) // 2
        terms.append(Term(first, d[at], count, tuple(range(row, row + parameters))))
        first, at, row = first + count * d[at], at + count, row + parameters
    return tuple(terms)


def mean_variances(summary: SummaryStats) -> list[float]:
    """Mean over the cells of what one unit of each variance or covariance adds to the variance of a cell (L,).

    With weights of cells the mean is weighted.
    """
    found, total = [], summary.n if summary.total_weight is None else summary.total_weight
    for term in terms_of(summary.d, summary.term_sizes):
        for a, b in term.pairs:
            products = diagonal_of(summary.ZZ, term.rows(a), term.rows(b), summary.ZX)
            found.append((1 if a == b else 2) * float(namespace(products).sum(products)) / total)
    return found


def orders(a: int, b: int) -> tuple[tuple[int, int], ...]:
    """Entries of E_ab that are one: (a, b) and, off the diagonal, (b, a)."""
    return ((a, b),) if a == b else ((a, b), (b, a))


def congruent(L: Entries, A: Entries) -> Entries:
    """L' A L, entry by entry, for a symmetric A: (k, k) of arrays that broadcast."""
    return product(transposed(L), product(A, L))


def product(A: Entries, B: Entries) -> Entries:
    """A B, entry by entry."""
    inner = range(len(B))
    return [[sum(row[c] * B[c][j] for c in inner) for j in range(len(B[0]))] for row in A]


def transposed(A: Entries) -> Entries:
    """A', entry by entry."""
    return [list(column) for column in zip(*A, strict=True)]


def entries(A: Array) -> Entries:
    """Entries of an array (k, k, ...) as rows of views."""
    return [[A[i, j, ...] for j in range(A.shape[1])] for i in range(A.shape[0])]


def crossed(A: Entries, B: Entries, left: tuple[int, int], right: tuple[int, int]) -> Iterator[tuple[Array, Array]]:
    """Pairs of entries whose products add up to tr(E_left A E_right B), for symmetric A and B."""
    for a, b in orders(*left):
        for c, d in orders(*right):
            yield A[b][c], B[d][a]


def stacked(A: Entries) -> Array:
    """Entries as one array, batch first: (..., k, k)."""
    xp = namespace(A[0][0])
    return xp.stack([xp.stack(row, axis=-1) for row in A], axis=-2)


def by_pairs(v: Array, w: Array, term: Term, a: int, b: int) -> Array:
    """v'E_ab w (b, ...) of vectors (b, q, ...) in the order of Z."""
    xp = namespace(v)
    (lo_a, hi_a), (lo_b, hi_b) = term.rows(a), term.rows(b)
    found = xp.sum(v[:, lo_a:hi_a, ...] * w[:, lo_b:hi_b, ...], axis=1)
    if a == b:
        return found
    return found + xp.sum(v[:, lo_b:hi_b, ...] * w[:, lo_a:hi_a, ...], axis=1)
