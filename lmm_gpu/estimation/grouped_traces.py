"""Traces of Z'P0Z over the variance parameters, from an elimination of the widest term.

T_l = tr(E_l Z'P0Z) and B_lm = tr(E_l Z'P0Z E_m Z'P0Z), in blocks: with C W C' of the levels of the eliminated term,
N = Z_e'P0Z_R for the crossed ones, and F_R = Z_R'P0Z_R. Nothing of the size of all levels squared is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backend.arrays import Array, namespace
from .covariance_terms import Entries, Term, crossed, orders
from .group_elimination import Elimination, by_effect

Pair = tuple[int, int]


def design_traces(at: Elimination, terms: Sequence[Term], widest: int) -> tuple[Array, Array]:
    """T (L, b) and B (L, L, b) for the parameters of all terms, in the order of theta."""
    xp = namespace(at.W)
    found = _Traces(at, terms, widest, EliminatedTraces.of(at, terms[widest].effects), at.crossed_block)
    rows = [(t, pair) for t, term in enumerate(terms) for pair in term.pairs]
    B = {(i, j): found.squares(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1)}
    table = [[B[max(i, j), min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
    T = xp.stack([found.trace(*row) for row in rows], axis=0)
    return T, xp.stack([xp.stack(row, axis=0) for row in table], axis=0)


def level_blocks(at: Elimination, terms: Sequence[Term], widest: int, t: int) -> Entries:
    """Z'P0Z of each level of a term: (k, k) of (b, levels)."""
    xp, effects = namespace(at.W), range(terms[t].effects)
    if t == widest:
        eliminated = EliminatedTraces.of(at, terms[t].effects)
        return [[eliminated.M[a][b] - eliminated.N[a][b] for b in effects] for a in effects]
    first = sum(term.size for i, term in enumerate(terms[:t]) if i != widest)
    at_effect = [slice(first + a * terms[t].levels, first + (a + 1) * terms[t].levels) for a in effects]
    return [[xp.linalg.diagonal(at.F_R[:, a, b]) for b in at_effect] for a in at_effect]


@dataclass(frozen=True)
class EliminatedTraces:
    """Sums over the levels of the eliminated term."""

    M: Entries  #: (k, k) of (b, G)
    N: Entries  #: C W C' of the levels (k, k) of (b, G)
    R: dict[Pair, Array]  #: C_a'C_b W (b, p+q_R, p+q_R)

    @classmethod
    def of(cls, at: Elimination, effects: int) -> EliminatedTraces:
        """Form the sums of a term with so many effects."""
        xp = namespace(at.C)
        parts, moved = by_effect(at.C, effects), by_effect(xp.matmul(at.C, at.W), effects)
        N = [[xp.sum(moved[a] * parts[b], axis=2) for b in range(effects)] for a in range(effects)]
        R = {(a, b): xp.matmul(xp.matrix_transpose(parts[a]), moved[b]) for a in range(effects) for b in range(effects)}
        return cls(at.M, N, R)

    def trace(self, a: int, b: int) -> Array:
        """tr(E_ab Z'P0Z) (b,)."""
        return _times(a, b) * namespace(self.N[0][0]).sum(self.M[a][b] - self.N[a][b], axis=1)

    def squares(self, left: Pair, right: Pair) -> Array:
        """tr(E_l Z'P0Z E_m Z'P0Z) (b,)."""
        xp, M, N = namespace(self.N[0][0]), self.M, self.N
        found = sum(xp.sum(x * y, axis=1) for x, y in crossed(M, M, left, right))
        found = found - 2.0 * sum(xp.sum(x * y, axis=1) for x, y in crossed(M, N, left, right))
        return found + xp.sum(self._summed(*left) * xp.matrix_transpose(self._summed(*right)), axis=(1, 2))

    def _summed(self, a: int, b: int) -> Array:
        # sum C_g'E_ab C_g W
        return self.R[a, b] if a == b else self.R[a, b] + self.R[b, a]


@dataclass(frozen=True)
class _Traces:
    at: Elimination
    terms: Sequence[Term]
    widest: int
    eliminated: EliminatedTraces
    N: Array  #: (b, k G, q_R), Z_e'P0Z_R

    def trace(self, t: int, pair: Pair) -> Array:
        # tr(E_l Z'P0Z) (b,)
        if t == self.widest:
            return self.eliminated.trace(*pair)
        xp, (a, b) = namespace(self.N), pair
        return _times(a, b) * xp.sum(xp.linalg.diagonal(self._block(t, a, t, b)), axis=1)

    def squares(self, left: tuple[int, Pair], right: tuple[int, Pair]) -> Array:
        # tr(E_l Z'P0Z E_m Z'P0Z) (b,)
        (t, l), (s, m) = left, right
        if t == s == self.widest:
            return self.eliminated.squares(l, m)
        if t == self.widest:
            return self.squares(right, left)
        xp = namespace(self.N)
        found = xp.zeros_like(self.at.logdet)
        for a, b in orders(*l):
            for c, d in orders(*m):
                if s == self.widest:
                    parts = by_effect(self.N, self.terms[s].effects)
                    found = found + xp.sum(
                        parts[c][:, :, self._rows(t, a)] * parts[d][:, :, self._rows(t, b)], axis=(1, 2)
                    )
                else:
                    # F_bc o F_ad, as F is symmetric
                    found = found + xp.sum(self._block(t, b, s, c) * self._block(t, a, s, d), axis=(1, 2))
        return found

    def _block(self, t: int, a: int, s: int, b: int) -> Array:
        # of F_R (b, levels, levels): effect a of term t by effect b of term s
        return self.at.F_R[:, self._rows(t, a), self._rows(s, b)]

    def _rows(self, t: int, effect: int) -> slice:
        # an effect's place among the crossed ones
        first = sum(term.size for i, term in enumerate(self.terms[:t]) if i != self.widest)
        lo = first + effect * self.terms[t].levels
        return slice(lo, lo + self.terms[t].levels)


def _times(a: int, b: int) -> float:
    # how often a pair of effects appears in E_ab
    return 1.0 if a == b else 2.0
