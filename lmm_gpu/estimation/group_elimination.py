"""Eliminate the random effects of one grouping, level by level, and border the rest.

The levels of a grouping share no observation: with Z_g = Q_g L_g' (thin QR, L_g L_g' = Z_g'Z_g, k x k)

    K_g = (I + L_g' Gamma L_g)^-1,   A = X+'X+ - sum X~_g'X~_g + sum X~_g' K_g X~_g,   X~_g = Q_g'X+ = L_g^+ Z_g'X+

where X+ = [X, Z_R] are the fixed columns and those of the other (crossed) effects, whose covariance D_R borders A:

    S_R = A_RR - A_RX A_XX^-1 A_XR,   F_R = S_R (I + D_R S_R)^-1,   W = (A + [0, 0; 0, D_R^-1])^-1

written without the inverse of D_R. Then Z_e'P0Z_e = diag(M_g) - C W C' with M_g = L_g K_g L_g' and
C_g = L_g K_g X~_g, Z_e'P0Z_R = (C_R - C_X J) K_R with J = A_XX^-1 A_XR and K_R = I - D_R F_R, and Z_R'P0Z_R = F_R.
With Omega = D_R K_R', W = [A_XX^-1 + J Omega J', -J Omega; -Omega J', Omega].
Neither C nor anything of the size of all levels squared is formed. Arrays are batch first, with one entry or b on the
axis of genes; rows of the eliminated effects are ordered as in Z, effect by effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..backend.arrays import Array, namespace, zeros
from ..backend.linalg import (
    DEPENDENT,
    cholesky,
    cholesky_rows,
    eigh_stack,
    identity,
    inverse_and_logdet,
    solve_lower,
    solve_rows,
)
from .covariance_terms import CrossedCovariance, Entries, congruent, entries, product, transposed
from .level_loads import LevelLoads, times_levels

#: Share of a crossed effect's squares that is added to S_R, which is singular where X explains an effect.
_JITTER = 1e-13


@dataclass(frozen=True)
class GroupedDesign:
    """Products of the design, with the eliminated effects in the coordinates of their QR decompositions.

    The first axis is that of genes: one entry where all genes share the design, else b.
    """

    root: Array  #: (k, k, 1 or b, G), L_g
    loads: LevelLoads  #: X~ (1 or b, k G, p+q_R)
    within: Array  #: (1 or b, p+q_R, p+q_R), X+'X+ - X~'X~
    border: Array  #: (1 or b, p+q_R, p+q_R), B with BB' the pseudo-inverse of `within`
    border_error: Array  #: (1 or b, p+q_R), squared factors by which relative errors of products are larger in B'X+'y
    n_fixed: int  #: p

    @classmethod
    def build(cls, root: Array, loads: LevelLoads, XX: Array, n_fixed: int) -> GroupedDesign:
        """Return the design with roots L_g (k, k, 1 or b, G), loads X~, and products X+'X+ (1 or b, p+q_R, p+q_R)."""
        xp = namespace(XX)
        one = xp.ones_like(root[0, 0, ...])
        effects = range(root.shape[0])
        within = XX - loads.gram([[one if a == b else 0.0 * one for b in effects] for a in effects])
        squares = xp.linalg.diagonal(XX)
        left = xp.linalg.diagonal(within) > DEPENDENT * squares  # else in the span of the eliminated effects
        within = xp.where(left[:, :, None] & left[:, None, :], within, 0.0)
        border, error = _pseudo_roots(within, squares)
        return cls(root, loads, within, border, error, n_fixed)

    @property
    def ranks(self) -> Array:
        """Ranks of [X, Z] (1 or b,)."""
        xp, k = namespace(self.root), self.root.shape[0]
        own = sum(xp.count_nonzero(self.root[a, a, ...], axis=1) for a in range(k))
        return xp.astype(own + xp.count_nonzero(self.border_error, axis=1), self.root.dtype)

    @property
    def per_gene(self) -> bool:
        """True if each gene has its own design."""
        return self.loads.genes > 1

    @cached_property
    def without_fixed(self) -> GroupedDesign:
        """The design of the random effects alone, without what only the remainder of y needs."""
        p = self.n_fixed
        loads, within = self.loads.without_first(p), self.within[:, p:, p:]
        return GroupedDesign(self.root, loads, within, self.border[:, :0, :0], self.border_error[:, :0], 0)

    def take(self, index: Array) -> GroupedDesign:
        """Return the design of the genes at `index`."""
        if not self.per_gene:
            return self
        xp = namespace(index)
        rest = (self.within, self.border, self.border_error)
        within, border, error = (xp.take(x, index, axis=0) for x in rest)
        root = xp.take(self.root, index, axis=2)
        return GroupedDesign(root, self.loads.take(index), within, border, error, self.n_fixed)

    def part(self, lo: int, hi: int) -> GroupedDesign:
        """Return the design of a range of genes."""
        if not self.per_gene:
            return self
        within, border, error = (x[lo:hi, ...] for x in (self.within, self.border, self.border_error))
        root = self.root[:, :, lo:hi, :]
        return GroupedDesign(root, self.loads.part(lo, hi), within, border, error, self.n_fixed)

    def amplification(self, squares: Array) -> Array:
        """Squared factors (1 or b, k G) by which relative errors of Z'y are larger once it is `rotated`.

        `squares` (k, 1 or b, G) are the squared lengths of the eliminated columns.
        """
        xp, k = namespace(squares), squares.shape[0]
        lengths = xp.sqrt(squares)
        nothing = xp.zeros_like(lengths[0, ...])
        columns = [xp.concat([lengths[a, ...] if a == c else nothing for a in range(k)], axis=1) for c in range(k)]
        return xp.sum(xp.square(rotated(self.root, xp.stack(columns, axis=2))), axis=2)


@dataclass(frozen=True)
class Elimination:
    """The covariance at given ratios, for b genes: all that traces and forms are composed of."""

    loads: LevelLoads
    K: Entries  #: (k, k) of (b, G)
    moved: Entries  #: L K (k, k) of (b, G)
    M: Entries  #: L K L' (k, k) of (b, G)
    A_inverse: Array  #: A_XX^-1 (b, p, p)
    J: Array  #: (b, p, q_R), A_XX^-1 A_XR
    F_R: Array  #: (b, q_R, q_R), Z_R'P0Z_R
    D_R: CrossedCovariance
    logdet: Array  #: (b,), log det of V / s_0, and of A_XX where there are fixed columns
    ok: Array  #: (b,), bool

    @cached_property
    def K_R(self) -> Array:
        """(I + D_R S_R)^-1 (b, q_R, q_R)."""
        return identity(self.F_R.shape[1], self.F_R)[None, :, :] - self.D_R.times(self.F_R)

    @property
    def covariance(self) -> Array:
        """Covariance of the fixed effects over s_0, W_XX (b, p, p)."""
        xp, Jt = namespace(self.J), namespace(self.J).matrix_transpose(self.J)
        return self.A_inverse + xp.matmul(self.J, self.D_R.times(self.shrunk(Jt)))

    @property
    def W(self) -> Array:
        """Inverse of the bordered A (b, p+q_R, p+q_R)."""
        xp, vt = namespace(self.F_R), namespace(self.F_R).matrix_transpose
        if self.F_R.shape[1] == 0:
            return self.A_inverse
        omega = self.D_R.times(vt(self.K_R))
        JO = xp.matmul(self.J, omega)
        top = xp.concat([self.A_inverse + xp.matmul(JO, vt(self.J)), -JO], axis=2)
        return xp.concat([top, xp.concat([-vt(JO), omega], axis=2)], axis=1)

    def solve(self, v: Array) -> Array:
        """W v (b, p+q_R, c) for `v` (b, p+q_R, c)."""
        xp, p = namespace(v), self.A_inverse.shape[1]
        top, rest = v[:, :p, :], v[:, p:, :]
        solved = xp.matmul(self.A_inverse, top)
        if self.F_R.shape[1] == 0:
            return solved
        u = self.D_R.times(self.shrunk(rest - xp.matmul(xp.matrix_transpose(self.J), top)))
        return xp.concat([solved - xp.matmul(self.J, u), u], axis=1)

    def shrunk(self, v: Array) -> Array:
        """K_R' v (b, q_R, c) for `v` (b, q_R, c)."""
        return v - namespace(v).matmul(self.F_R, self.D_R.times(v))

    def crossed_times(self, v: Array) -> Array:
        """Z_e'P0Z_R v (b, k G, c) for `v` (b, q_R, c)."""
        xp = namespace(v)
        u = v - self.D_R.times(xp.matmul(self.F_R, v))  # K_R v
        return times_levels(self.moved, self.loads.times(xp.concat([-xp.matmul(self.J, u), u], axis=1)))


def eliminate(design: GroupedDesign, gamma: Entries, D_R: CrossedCovariance) -> Elimination:
    """Eliminate at Gamma, k rows of k vectors (b,), with the covariance `D_R` of the crossed effects."""
    root = entries(design.root)
    spread = congruent(root, [[entry[:, None] for entry in row] for row in gamma])  # (b, G) each
    inverse, logdet, ok = _inverse(
        [[1.0 + x if i == j else x for j, x in enumerate(row)] for i, row in enumerate(spread)]
    )
    moved = product(root, inverse)
    A = design.within + design.loads.gram(inverse)
    rest = _bordered(A, design.n_fixed, D_R)
    return Elimination(
        loads=design.loads,
        K=inverse,
        moved=moved,
        M=product(moved, transposed(root)),
        A_inverse=rest.A_inverse,
        J=rest.J,
        F_R=rest.F_R,
        D_R=D_R,
        logdet=logdet + rest.logdet,
        ok=ok & rest.ok,
    )


@dataclass(frozen=True)
class _Border:
    """Parts of W: see `Elimination`."""

    A_inverse: Array
    J: Array
    F_R: Array
    logdet: Array  #: (b,), log det A_XX + log det (I + S_R D_R)
    ok: Array  #: (b,), bool: both are positive definite


def _bordered(A: Array, p: int, D_R: CrossedCovariance) -> _Border:
    xp, q = namespace(A), A.shape[1] - p
    A_XR = A[:, :p, p:]
    nothing = zeros((A.shape[0],), A)
    inverse, logdet, ok = inverse_and_logdet(A[:, :p, :p]) if p else (A[:, :p, :p], nothing, nothing == 0)
    J = xp.matmul(inverse, A_XR)
    if q == 0:
        return _Border(inverse, J, A[:, p:, p:], logdet, ok)
    S = A[:, p:, p:] - xp.matmul(xp.matrix_transpose(A_XR), J) if p else A
    F_R, logdet_R, good = _shrunk(S, xp.linalg.diagonal(A)[:, p:], D_R)
    return _Border(inverse, J, F_R, logdet + logdet_R, ok & good)


def _shrunk(S: Array, squares: Array, D: CrossedCovariance) -> tuple[Array, Array, Array]:
    # S (I + D S)^-1 and log det (I + S D) by way of a root of S, with which validity shows as positive definiteness:
    # with S = L L' and I + L'D L = N N' it is Y'Y, Y = N^-1 L'
    xp, unit = namespace(S), identity(S.shape[1], S)
    L, ok = cholesky(S + (_JITTER * xp.abs(squares))[:, :, None] * unit[None, :, :], unit)
    Lt = xp.matrix_transpose(L)
    N, good = cholesky(unit[None, :, :] + xp.matmul(Lt, D.times(L)), unit)
    Y = solve_lower(N, Lt)
    logdet = 2.0 * xp.sum(xp.log(xp.linalg.diagonal(N)), axis=1)
    return xp.matmul(xp.matrix_transpose(Y), Y), logdet, ok & good


def rotated(root: Array, ZX: Array) -> Array:
    """L_g^+ Z_g'X (1 or b, k G, c) for products (1 or b, k G, c) with the eliminated effects."""
    xp, k = namespace(ZX), root.shape[0]
    G = ZX.shape[1] // k
    solved: list[Array] = []
    for a in range(k):
        value = ZX[:, a * G : (a + 1) * G, :]
        for c in range(a):
            value = value - root[a, c, ...][:, :, None] * solved[c]
        pivot = root[a, a, ...][:, :, None]
        solved.append(xp.where(pivot > 0, value / xp.where(pivot > 0, pivot, 1.0), 0.0))
    return xp.concat(solved, axis=1)


def level_roots(A: Entries) -> Entries:
    """Cholesky factors of positive semi-definite matrices: columns that depend on those before them are zero."""
    k, xp = len(A), namespace(A[0][0])
    zero = 0.0 * A[0][0]
    L: Entries = [[zero] * k for _ in range(k)]
    for j in range(k):
        pivot = A[j][j] - sum((L[j][c] * L[j][c] for c in range(j)), zero)
        good = pivot > DEPENDENT * A[j][j]
        L[j][j] = xp.where(good, xp.sqrt(xp.where(good, pivot, 1.0)), 0.0)
        for i in range(j + 1, k):
            entry = A[i][j] - sum((L[i][c] * L[j][c] for c in range(j)), zero)
            L[i][j] = xp.where(good, entry / xp.where(good, L[j][j], 1.0), 0.0)
    return L


def _pseudo_roots(A: Array, squares: Array) -> tuple[Array, Array]:
    # B with B B' the pseudo-inverses of A (b, s, s), and squared factors (b, s) of relative errors, 0 for what is left
    # out: eigenvalues that are rounding in units of `squares` (b, s), the diagonal before anything was taken out
    xp = namespace(A)
    if A.shape[1] == 0:
        return A, A[:, 0, :]
    unit = xp.sqrt(xp.where(squares > 0, squares, 1.0))
    values, vectors = eigh_stack(A / (unit[:, :, None] * unit[:, None, :]))
    kept = values > DEPENDENT
    error = xp.where(kept, 1.0 / xp.where(kept, values, 1.0), 0.0)
    return vectors / unit[:, :, None] * xp.sqrt(error)[:, None, :], error


def _inverse(A: Entries) -> tuple[Entries, Array, Array]:
    # inverses of symmetric k x k matrices (b, G), log determinants (b,) and validity (b,), summed over G
    xp, k = namespace(A[0][0]), len(A)
    factor, ok = cholesky_rows(xp, A)
    zero = xp.zeros_like(A[0][0])
    unit = [[zero + 1.0 if i == j else zero for i in range(k)] for j in range(k)]
    inverse = transposed([solve_rows(factor, column) for column in unit])
    good = xp.all(ok, axis=1)  # (b,)
    logs = sum(xp.log(xp.where(factor[j][j] > 0, factor[j][j], 1.0)) for j in range(k))
    return inverse, -2.0 * xp.sum(logs, axis=1), good


def times_vectors(A: Entries, v: Array) -> Array:
    """A_g v_g (b, k G) for vectors (b, k G)."""
    return times_levels(A, v[:, :, None])[:, :, 0]


def transposed_times(A: Array, v: Array) -> Array:
    """A'v (b, c) for A (1 or b, rows, c) and v (b, rows)."""
    xp = namespace(v)
    if A.shape[0] == 1:
        return v @ A[0, :, :]
    return xp.matmul(xp.matrix_transpose(A), v[:, :, None])[:, :, 0]
