"""Traces of Z'P0Z over the variance parameters, from an elimination of the widest term.

T_l = tr(E_l Z'P0Z) and B_lm = tr(E_l Z'P0Z E_m Z'P0Z). Of the eliminated term Z'P0Z = diag(M_g) - C W C' enters by the
blocks N_g = C_g W C_g' of its levels and by R_l = sum C_g'E_l C_g; in the basis [I, -J; 0, I] of the border, in which W
is block diagonal, R_l W consists of R_XX A_XX^-1, R_XR Omega and Q_l Omega = (Q_l K_R) D_R, and Q_l K_R also has the
crossed terms: tr(E_l N N') over a crossed effect is the trace of its block of K_R'Q_l K_R. Nothing of the size of all
levels squared is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backend.arrays import Array, namespace
from .covariance_terms import Entries, LevelBlock, Term, crossed, orders, product, transposed
from .group_elimination import Elimination

Pair = tuple[int, int]


def design_traces(at: Elimination, eliminated: LevelBlock, rest: Sequence[Term]) -> tuple[Array, Array]:
    """T (L, b) and B (L, L, b) for the parameters of all terms, in the order of theta."""
    xp = namespace(at.F_R)
    found = _Traces.of(at, eliminated, rest)
    rows = sorted([*eliminated.parameters, *(row for term in rest for row in term.parameters)])
    B = {(i, j): found.squares(i, j) for i in rows for j in rows[: i + 1]}
    table = [xp.stack([B[max(i, j), min(i, j)] for j in rows], axis=0) for i in rows]
    return xp.stack([found.trace(row) for row in rows], axis=0), xp.stack(table, axis=0)


def level_blocks(at: Elimination, eliminated: LevelBlock) -> Entries:
    """Z'P0Z of each level of the eliminated terms: (k, k) of (b, levels)."""
    N, effects = _explained(at), range(eliminated.effects)
    return [[at.M[a][b] - N[a][b] for b in effects] for a in effects]


def crossed_blocks(at: Elimination, rest: Sequence[Term], t: int) -> Entries:
    """Z'P0Z of each level of term `t` of the others: (k, k) of (b, levels)."""
    xp, places = namespace(at.F_R), _places(rest)
    effects = [places[t, a] for a in range(rest[t].effects)]
    return [[xp.linalg.diagonal(at.F_R[:, a, b]) for b in effects] for a in effects]


def _explained(at: Elimination) -> Entries:
    # N_g = C_g W C_g' of each level (k, k) of (b, G)
    return product(product(at.moved, at.loads.quadratic(at.W)), transposed(at.moved))


def _places(rest: Sequence[Term]) -> dict[tuple[int, int], slice]:
    # where each effect of a term stands among the crossed ones
    found, lo = {}, 0
    for t, term in enumerate(rest):
        for effect in range(term.effects):
            found[t, effect] = slice(lo, lo + term.levels)
            lo += term.levels
    return found


@dataclass(frozen=True)
class _Traces:
    at: Elimination
    N: Entries  #: C W C' of the levels of the eliminated terms (k, k) of (b, G)
    pairs: dict[int, Pair]  #: effects of the parameters of the eliminated terms
    crossed_pairs: dict[int, tuple[int, Pair]]  #: term and effects of those of the others
    places: dict[tuple[int, int], slice]
    moments: dict[int, tuple[Array, Array]]  #: R_l W (b, p+q_R, p+q_R) and Q_l K_R (b, q_R, q_R) of a parameter

    @classmethod
    def of(cls, at: Elimination, eliminated: LevelBlock, rest: Sequence[Term]) -> _Traces:
        """Form the sums over the levels."""
        pairs = eliminated.parameters
        moments = {row: _moments(at, *pair) for row, pair in pairs.items()}
        others: dict[int, tuple[int, Pair]] = {}
        for t, term in enumerate(rest):
            others |= {row: (t, pair) for row, pair in zip(term.parameters, term.pairs, strict=True)}
        return cls(at, _explained(at), pairs, others, _places(rest), moments)

    def trace(self, row: int) -> Array:
        """tr(E_l Z'P0Z) (b,)."""
        xp = namespace(self.at.F_R)
        if row in self.pairs:
            a, b = self.pairs[row]
            return _times(a, b) * xp.sum(self.at.M[a][b] - self.N[a][b], axis=1)
        t, (a, b) = self.crossed_pairs[row]
        return _times(a, b) * xp.sum(xp.linalg.diagonal(self._block(t, a, t, b)), axis=1)

    def squares(self, left: int, right: int) -> Array:
        """tr(E_l Z'P0Z E_m Z'P0Z) (b,)."""
        if left in self.pairs and right in self.pairs:
            return self._eliminated_squares(left, right)
        if left in self.pairs:
            return self._mixed_squares(left, *self.crossed_pairs[right])
        if right in self.pairs:
            return self._mixed_squares(right, *self.crossed_pairs[left])
        xp, (t, l), (s, m) = namespace(self.at.F_R), self.crossed_pairs[left], self.crossed_pairs[right]
        blocks = [self._block(t, b, s, c) * self._block(t, a, s, d) for a, b in orders(*l) for c, d in orders(*m)]
        return sum(xp.sum(block, axis=(1, 2)) for block in blocks)  # F_bc o F_ad, as F is symmetric

    def _eliminated_squares(self, left: int, right: int) -> Array:
        xp, M, N = namespace(self.at.F_R), self.at.M, self.N
        l, m = self.pairs[left], self.pairs[right]
        found = sum(xp.sum(x * y, axis=1) for x, y in crossed(M, M, l, m))
        found = found - 2.0 * sum(xp.sum(x * y, axis=1) for x, y in crossed(M, N, l, m))
        return found + xp.sum(self.moments[left][0] * xp.matrix_transpose(self.moments[right][0]), axis=(1, 2))

    def _mixed_squares(self, eliminated: int, t: int, pair: Pair) -> Array:
        # trace of the block of K_R'Q_l K_R
        xp, (a, b) = namespace(self.at.F_R), pair
        K, V = self.at.K_R[:, :, self.places[t, a]], self.moments[eliminated][1][:, :, self.places[t, b]]
        return _times(a, b) * xp.sum(K * V, axis=(1, 2))

    def _block(self, t: int, a: int, s: int, b: int) -> Array:
        # of F_R (b, levels, levels): effect a of term t by effect b of term s
        return self.at.F_R[:, self.places[t, a], self.places[s, b]]


def _moments(at: Elimination, a: int, b: int) -> tuple[Array, Array]:
    # R_l W in the basis in which W is block diagonal, and Q_l K_R
    xp, p, effects = namespace(at.F_R), at.A_inverse.shape[1], range(len(at.moved))
    L = at.moved
    V = [[sum(L[i][c] * L[j][d] for i, j in orders(a, b)) for d in effects] for c in effects]
    R = at.loads.gram(V)
    if at.F_R.shape[1] == 0:
        return xp.matmul(R, at.A_inverse), at.F_R
    vt, D = xp.matrix_transpose, at.D_R
    R_XX, R_XR = R[:, :p, :p], R[:, :p, p:]
    bent = R_XR - xp.matmul(R_XX, at.J)  # (b, p, q_R)
    Q = R[:, p:, p:] - xp.matmul(vt(at.J), bent) - xp.matmul(vt(R_XR), at.J) if p else R
    QK = Q - xp.matmul(vt(D.times(Q)), at.F_R)  # Q K_R, as Q D_R = (D_R Q)'
    top = xp.concat([xp.matmul(R_XX, at.A_inverse), vt(D.times(at.shrunk(vt(bent))))], axis=2)
    bottom = xp.concat([xp.matmul(vt(bent), at.A_inverse), vt(D.times(vt(QK)))], axis=2)
    return xp.concat([top, bottom], axis=1), QK


def _times(a: int, b: int) -> float:
    # how often a pair of effects appears in E_ab
    return 1.0 if a == b else 2.0
