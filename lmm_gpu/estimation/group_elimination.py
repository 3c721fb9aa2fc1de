"""Eliminate the random effects of one grouping, level by level, and border the rest.

The levels of the widest grouping share no observation: with Z_g = Q_g L_g' (thin QR, L_g L_g' = Z_g'Z_g, k x k)

    K_g = (I + L_g' Gamma L_g)^-1,   A = X+'X+ - sum X~_g'X~_g + sum X~_g' K_g X~_g,   X~_g = Q_g'X+ = L_g^+ Z_g'X+

where X+ = [X, Z_R] are the fixed columns and those of the other (crossed) effects, whose covariance D_R borders A:

    S_R = A_RR - A_RX A_XX^-1 A_XR,   F_R = S_R (I + D_R S_R)^-1,   W = (A + [0, 0; 0, D_R^-1])^-1

written without the inverse of D_R. Then Z_e'P0Z_e = diag(M_g) - C W C' with M_g = L_g K_g L_g' and
C_g = L_g K_g X~_g, Z_e'P0Z_R = (C_R - C_X J) (I - D_R F_R) with J = A_XX^-1 A_XR, and Z_R'P0Z_R = F_R.
Nothing of the size of all levels squared is formed. Arrays are batch first, with one entry or b on the axis of genes;
rows of the eliminated effects are ordered as in Z, effect by effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backend.arrays import Array, namespace, zeros
from ..backend.linalg import DEPENDENT, cholesky, cholesky_rows, eigh_stack, identity, inverse_and_logdet, solve_rows
from .covariance_terms import Entries, congruent, entries, product, transposed

#: Share of a crossed effect's squares that is added to S_R, which is singular where X explains an effect.
_JITTER = 1e-13


@dataclass(frozen=True)
class GroupedDesign:
    """Products of the design, with the eliminated effects in the coordinates of their QR decompositions.

    The first axis is that of genes: one entry where all genes share the design, else b.
    """

    root: Array  #: (k, k, 1 or b, G), L_g
    loads: Array  #: (1 or b, k G, p+q_R), X~
    within: Array  #: (1 or b, p+q_R, p+q_R), X+'X+ - X~'X~
    border: Array  #: (1 or b, p+q_R, p+q_R), B with BB' the pseudo-inverse of `within`
    border_error: Array  #: (1 or b, p+q_R), squared factors by which relative errors of products are larger in B'X+'y
    n_fixed: int  #: p

    @classmethod
    def build(cls, ZZ: Array, ZX: Array, XX: Array, n_fixed: int) -> GroupedDesign:
        """Return the design with products (k, k, 1 or b, G), (1 or b, k G, p+q_R) and (1 or b, p+q_R, p+q_R)."""
        xp = namespace(ZX)
        root = _roots(entries(ZZ))
        root = xp.stack([xp.stack(row, axis=0) for row in root], axis=0)
        loads = rotated(root, ZX)
        within = XX - xp.matmul(xp.matrix_transpose(loads), loads)
        squares = xp.linalg.diagonal(XX)
        left = xp.linalg.diagonal(within) > DEPENDENT * squares  # else in the span of the eliminated effects
        within = xp.where(left[:, :, None] & left[:, None, :], within, 0.0)
        border, error = _pseudo_roots(within, squares)
        return cls(root, loads, within, border, error, n_fixed)

    @property
    def rank(self) -> int:
        """Rank of [X, Z], of a design that all genes share."""
        xp, k = namespace(self.loads), self.root.shape[0]
        own = sum(int(xp.count_nonzero(self.root[a, a, ...])) for a in range(k))
        return own + int(xp.count_nonzero(self.border_error[0, :]))

    @property
    def per_gene(self) -> bool:
        """True if each gene has its own design."""
        return bool(self.loads.shape[0] > 1)

    def without_fixed(self) -> GroupedDesign:
        """Return the design of the random effects alone, without what only the remainder of y needs."""
        p = self.n_fixed
        loads, within = self.loads[:, :, p:], self.within[:, p:, p:]
        return GroupedDesign(self.root, loads, within, self.border[:, :0, :0], self.border_error[:, :0], 0)

    def take(self, index: Array) -> GroupedDesign:
        """Return the design of the genes at `index`."""
        if not self.per_gene:
            return self
        xp = namespace(index)
        rest = (self.loads, self.within, self.border, self.border_error)
        loads, within, border, error = (xp.take(x, index, axis=0) for x in rest)
        return GroupedDesign(xp.take(self.root, index, axis=2), loads, within, border, error, self.n_fixed)

    def part(self, lo: int, hi: int) -> GroupedDesign:
        """Return the design of a range of genes."""
        if not self.per_gene:
            return self
        rest = (self.loads, self.within, self.border, self.border_error)
        loads, within, border, error = (x[lo:hi, ...] for x in rest)
        return GroupedDesign(self.root[:, :, lo:hi, :], loads, within, border, error, self.n_fixed)

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

    K: Entries  #: (k, k) of (b, G)
    moved: Entries  #: L K (k, k) of (b, G)
    M: Entries  #: L K L' (k, k) of (b, G)
    C: Array  #: (b, k G, p+q_R)
    A: Array  #: (b, p+q_R, p+q_R)
    W: Array  #: (b, p+q_R, p+q_R)
    J: Array  #: (b, p, q_R), A_XX^-1 A_XR
    F_R: Array  #: (b, q_R, q_R), Z_R'P0Z_R
    D_R: Array  #: (b, q_R, q_R)
    logdet: Array  #: (b,), log det of V / s_0, and of A_XX where there are fixed columns
    ok: Array  #: (b,), bool

    @property
    def K_R(self) -> Array:
        """(I + D_R S_R)^-1 (b, q_R, q_R)."""
        return identity(self.F_R.shape[1], self.F_R)[None, :, :] - namespace(self.F_R).matmul(self.D_R, self.F_R)

    @property
    def crossed_block(self) -> Array:
        """Z_e'P0Z_R (b, k G, q_R)."""
        xp, p = namespace(self.C), self.J.shape[1]
        return xp.matmul(self.C[:, :, p:] - xp.matmul(self.C[:, :, :p], self.J), self.K_R)


def eliminate(design: GroupedDesign, gamma: Entries, D_R: Array) -> Elimination:
    """Eliminate at Gamma, k rows of k vectors (b,), with the covariance `D_R` (b, q_R, q_R) of the crossed effects."""
    xp, p = namespace(design.loads), design.n_fixed
    root = entries(design.root)
    spread = congruent(root, [[entry[:, None] for entry in row] for row in gamma])  # (b, G) each
    inverse, logdet, ok = _inverse(
        [[1.0 + x if i == j else x for j, x in enumerate(row)] for i, row in enumerate(spread)]
    )
    moved = product(root, inverse)
    KX = times_levels(inverse, design.loads)  # (b, k G, p+q_R)
    A = design.within + xp.matmul(xp.matrix_transpose(design.loads), KX)
    C = times_levels(moved, design.loads)
    W, J, F_R, logdet_A, good = _bordered(A, p, D_R)
    M = product(moved, transposed(root))
    return Elimination(inverse, moved, M, C, A, W, J, F_R, D_R, logdet + logdet_A, ok & good)


def _bordered(A: Array, p: int, D_R: Array) -> tuple[Array, Array, Array, Array, Array]:
    # W, J, F_R, log det A_XX + log det (I + S_R D_R), and whether both are positive definite
    xp, q = namespace(A), A.shape[1] - p
    if A.shape[1] == 0:
        nothing = xp.zeros_like(D_R[:, :0, :0])
        return A, nothing, nothing, zeros((A.shape[0],), A), zeros((A.shape[0],), A) == 0
    if q == 0:
        W, logdet, ok = inverse_and_logdet(A)
        return W, A[:, :, :0], A[:, :0, :0], logdet, ok
    A_XX, A_XR = A[:, :p, :p], A[:, :p, p:]
    if p == 0:
        J, S, logdet, ok, inverse = A_XR, A, 0.0, None, A_XX
    else:
        inverse, logdet, ok = inverse_and_logdet(A_XX)
        J = xp.matmul(inverse, A_XR)
        S = A[:, p:, p:] - xp.matmul(xp.matrix_transpose(A_XR), J)
    F_R, logdet_R, good = _shrunk(S, xp.linalg.diagonal(A)[:, p:], D_R)
    omega = D_R - xp.matmul(D_R, xp.matmul(F_R, D_R))
    if p == 0:
        return omega, J, F_R, logdet_R, good
    JO = xp.matmul(J, omega)
    top = xp.concat([inverse + xp.matmul(JO, xp.matrix_transpose(J)), -JO], axis=2)
    bottom = xp.concat([-xp.matrix_transpose(JO), omega], axis=2)
    return xp.concat([top, bottom], axis=1), J, F_R, logdet + logdet_R, ok & good


def _shrunk(S: Array, squares: Array, D: Array) -> tuple[Array, Array, Array]:
    # S (I + D S)^-1 and log det (I + S D) by way of a root of S, with which validity shows as positive definiteness
    xp, unit = namespace(S), identity(S.shape[1], S)
    L, ok = cholesky(S + (_JITTER * xp.abs(squares))[:, :, None] * unit[None, :, :], unit)
    Lt = xp.matrix_transpose(L)
    inverse, logdet, good = inverse_and_logdet(unit[None, :, :] + xp.matmul(Lt, xp.matmul(D, L)), unit)
    return xp.matmul(L, xp.matmul(inverse, Lt)), logdet, ok & good


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


def _roots(A: Entries) -> Entries:
    # Cholesky factors of positive semi-definite matrices: columns that depend on those before them are zero
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


def times_levels(A: Entries, B: Array) -> Array:
    """A_g B_g (b, k G, c) for A (k, k) of (b, G) and B (1 or b, k G, c)."""
    k = len(A)
    G = B.shape[1] // k
    blocks = [B[:, c * G : (c + 1) * G, :] for c in range(k)]
    rows = [sum(A[a][c][:, :, None] * blocks[c] for c in range(k)) for a in range(k)]
    return namespace(B).concat(rows, axis=1)


def times_vectors(A: Entries, v: Array) -> Array:
    """A_g v_g (b, k G) for vectors (b, k G)."""
    return times_levels(A, v[:, :, None])[:, :, 0]


def by_effect(v: Array, effects: int) -> Sequence[Array]:
    """Rows of each eliminated effect of an array (b, k G, ...)."""
    G = v.shape[1] // effects
    return [v[:, a * G : (a + 1) * G, ...] for a in range(effects)]


def transposed_times(A: Array, v: Array) -> Array:
    """A'v (b, c) for A (1 or b, rows, c) and v (b, rows)."""
    xp = namespace(v)
    if A.shape[0] == 1:
        return v @ A[0, :, :]
    return xp.matmul(xp.matrix_transpose(A), v[:, :, None])[:, :, 0]
