"""Root of several random effects: diagonalise the one with the most columns, solve only the rest per gene.

S = K K' with K (q x r) rotated so that K_e'K_e = diag(mu) for the largest effect e. Then, per gene,
A = I + K'DK = diag(1 + g_e mu) + K_R' D_R K_R, and what is left to factorise is q_R x q_R (q_R = q - d_e):

    delta = 1 / (1 + g_e mu)
    F  = K_R diag(delta) K_R',  F1 = K_R diag(mu delta^2) K_R',  F2 = K_R diag(mu^2 delta^3) K_R'
    M  = K_R A^-1 K_R' = H F,   H = (I + F D_R)^-1 = I - M D_R

F, F1 and F2 of all genes of a block are one matrix product of the row pairs of K_R with stacked weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..backend.arrays import Array, indices, namespace
from ..backend.blocks import ranges
from ..backend.fusion import fused
from ..backend.linalg import eigh_psd, identity, inverse_and_logdet, root_psd, solve, upper_triangle

#: Bytes that the products of row pairs may take; beyond, F is formed gene by gene in one stacked product.
LARGEST_PAIRS = 2**26


@dataclass(frozen=True)
class Elimination:
    """(I + K'DK)^-1 of b genes in eliminated form."""

    delta: Array  #: (r, b)
    M: Array  #: (b, q_R, q_R)
    H: Array  #: (b, q_R, q_R)
    D_R: Array  #: (b, q_R), ratios g of the rest, one per row
    logdet: Array  #: (b,)
    ok: Array  #: (b,)


@dataclass(frozen=True)
class Solution:
    """(I + K'DK)^-1 x of one vector x per gene."""

    v: Array  #: (r, b)
    e_R: Array  #: (q_R, b), K_R v, which the product would lose digits of where ratios are large
    ok: Array  #: (b,)


@dataclass(frozen=True)
class EliminatedFactor:
    """S = K K' with its rows split into the eliminated effect and the rest, and columns rotated."""

    mu: Array  #: (r,)
    K_e: Array  #: (d_e, r)
    K_R: Array  #: (q_R, r)
    inverse: Array  #: (r, q), pseudo-inverse of K, columns in the order of S
    amplification: Array  #: (1, r), squared factors by which relative errors of Z'y are larger in `inverse` @ Z'y
    pairs: Array | None  #: (q_R (q_R + 1) / 2, r), products of the rows of K_R, None if they would be too large
    triangle: Array  #: (q_R (q_R + 1) / 2,), positions of the upper triangle among the q_R * q_R entries
    identity: Array  #: (q_R, q_R)
    unit: Array  #: (q_R (q_R + 1) / 2, 1), its upper triangle
    unpack: Array  #: (q_R * q_R,), position in that triangle of every entry of a symmetric matrix
    eliminated: int  #: position of the eliminated effect
    effects: Array  #: (q_R,), effect of every row of K_R
    members: Array  #: (k, q_R), 1 where a row of K_R belongs to an effect
    weights: Array  #: (k, r), mu in the row of the eliminated effect, else 0
    blocks: tuple[tuple[int, int], ...]  #: rows of K_R of each remaining effect

    @classmethod
    def build(cls, S: Array, squares: Array, d: tuple[int, ...]) -> EliminatedFactor:
        """Decompose S (q, q) twice: its root, and the eliminated effect's part of it.

        `squares` (q,) are the squared lengths of the columns of Z; smaller eigenvalues are rounding error.
        """
        xp = namespace(S)
        K, K_inverse = root_psd(S, squares)
        e = max(range(len(d)), key=lambda i: d[i])
        rest = [width for i, width in enumerate(d) if i != e]
        start = sum(d[:e])
        K_e = K[start : start + d[e], :]
        mu, Q = eigh_psd(K_e.T @ K_e)
        K_R = xp.concat([K[:start, :], K[start + d[e] :, :]], axis=0) @ Q
        triangle, unpack = upper_triangle(K_R.shape[0], K_R)
        inverse = Q.T @ K_inverse  # (r, q)
        unit = identity(K_R.shape[0], K_R)
        effects = indices([i for i, width in enumerate(d) if i != e for _ in range(width)], K_R)
        return cls(
            mu=mu,
            K_e=K_e @ Q,
            K_R=K_R,
            inverse=inverse,
            amplification=((inverse * inverse) @ squares)[None, :],
            pairs=_row_pairs(K_R),
            triangle=triangle,
            identity=unit,
            unit=xp.take(xp.reshape(unit, (-1,)), triangle)[:, None],
            unpack=unpack,
            eliminated=e,
            members=xp.stack([xp.astype(effects == i, mu.dtype) for i in range(len(d))], axis=0),
            weights=xp.stack([mu if i == e else xp.zeros_like(mu) for i in range(len(d))], axis=0),
            effects=effects,
            blocks=ranges(rest),
        )

    def numbers(self, columns: int = 0) -> int:
        """Numbers that an evaluation at one ratio needs, all temporaries counted; with that many `columns` of loads."""
        q_R, r = self.K_R.shape
        return int(12 * q_R * (q_R + columns) + 6 * (r + self.K_e.shape[0]) * (1 + columns))

    def split(self, g: Array) -> tuple[Array, Array]:
        """Ratios (k, b) as those of the eliminated effect (b,) and of the rows of K_R (b, q_R)."""
        return g[self.eliminated, :], namespace(g).take(g, self.effects, axis=0).T

    def gram(self, *weights: Array) -> list[Array]:
        """K_R diag(weight) K_R' (b, q_R, q_R) for each of `weights` (r, b), in one matrix product."""
        xp, b = namespace(*weights), weights[0].shape[1]
        if self.pairs is None:
            return [xp.matmul(self.K_R[None, :, :] * weight.T[:, None, :], self.K_R.T) for weight in weights]
        square = self.unpacked(xp.concat([weight.T for weight in weights], axis=0) @ self.pairs.T)
        return [square[i * b : (i + 1) * b, :, :] for i in range(len(weights))]

    def unpacked(self, packed: Array) -> Array:
        """Symmetric matrices (b, q_R, q_R) from their upper triangles (b, pairs)."""
        xp, q_R = namespace(packed), self.K_R.shape[0]
        return xp.reshape(xp.take(packed, self.unpack, axis=1), (packed.shape[0], q_R, q_R))

    def packed(self, square: Array) -> Array:
        """Upper triangles (pairs, b) of symmetric matrices (b, q_R, q_R)."""
        xp = namespace(square)
        return xp.take(
            xp.reshape(square, (square.shape[0], square.shape[1] * square.shape[2])), self.triangle, axis=1
        ).T

    def packed_F(self, g_e: Array) -> Array:
        """Upper triangles of the part of F (pairs, b) that depends on the eliminated effect's ratio (1, b)."""
        (F,) = self.gram(namespace(g_e).where(self.mu[:, None] > 0, self.delta(g_e[0, :])[0], 0.0))
        return self.packed(F)

    def packed_F_rest(self) -> Array:
        """Upper triangle of the rest of F (pairs, 1): directions that the eliminated effect has no part in."""
        (F,) = self.gram(namespace(self.mu).astype(self.mu == 0, self.mu.dtype)[:, None])
        return self.packed(F)

    def delta(self, g_e: Array) -> tuple[Array, Array]:
        """1 / (1 + g_e mu) (r, b), and flags (b,) of genes with positive values only."""
        delta, positive = _inverse_or_one(None, self.mu[:, None], g_e[None, :])
        return delta, namespace(g_e).all(positive, axis=0)

    def eliminate(self, g: Array, delta: Array, ok: Array, F: Array) -> Elimination:
        """Solve for the remaining effects: M, H and the log determinant."""
        _, D_R = self.split(g)
        solve = _solve_one if len(self.blocks) <= 1 else _solve_signed
        M, logdet, ok_rest = solve(F, D_R, self.identity)
        H = _complement(None, self.identity[None, :, :], M, D_R[:, None, :])
        logdet = logdet - namespace(g).sum(namespace(g).log(delta), axis=0)
        return Elimination(delta, M, H, D_R, logdet, ok & ok_rest)

    def inner(self, g: Array) -> Elimination:
        """(I + K'DK)^-1 at the ratios `g` (k, b)."""
        delta, ok = self.delta(g[self.eliminated, :])
        (F,) = self.gram(delta)
        return self.eliminate(g, delta, ok, F)

    def F(self, g: Array) -> Array:
        """F = K_R diag(delta) K_R' (b, q_R, q_R) at the ratios `g` (k, b)."""
        return self.gram(self.delta(g[self.eliminated, :])[0])[0]

    def system(self, g: Array, F: Array) -> Array:
        """I + F D_R (b, q_R, q_R)."""
        return _grown(None, self.split(g)[1][:, None, :], F, self.identity[None, :, :])

    def packed_system(self, g: Array, packed_F: Array) -> Array:
        """The same from the upper triangles of F (pairs, b): with one remaining effect half as much to write."""
        if len(self.blocks) > 1:
            return self.system(g, self.unpacked(packed_F.T))
        rest = 1 - self.eliminated
        return self.unpacked((packed_F * g[rest : rest + 1, :] + self.unit).T)

    def solve(self, g: Array, x: Array, C: Array) -> Solution:
        """(I + K'DK)^-1 x for one vector per gene, x (r, b), without any inverse.

        `C` (b, q_R, q_R) is `system` at these ratios.
        """
        g_e, D_R = self.split(g)
        delta, ok = self.delta(g_e)
        scaled = delta * x  # (r, b)
        e_R, solved = solve(C, (self.K_R @ scaled).T[:, :, None])  # (b, q_R, 1)
        v = scaled - delta * (self.K_R.T @ (D_R * e_R[:, :, 0]).T)  # (r, b)
        return Solution(v, e_R[:, :, 0].T, ok & solved)

    def rows(self, a: Array) -> tuple[Array, Array]:
        """Rows of a matrix (q, c) of the eliminated effect (d_e, c) and of the rest (q_R, c)."""
        lo = self.blocks[self.eliminated - 1][1] if self.eliminated else 0
        hi = lo + self.K_e.shape[0]
        return a[lo:hi, :], namespace(a).concat([a[:lo, :], a[hi:, :]], axis=0)

    def quadratic_form(self, g: Array, a_e: Array, a_R: Array) -> Array:
        """x' (I + K'DK)^-1 x (c, b) for x = K'D a, without forming x for every gene.

        With x = g_e L_e + L_R, L_e = K_e'a_e and L_R = K_R'D_R a_R, what enters are K_R diag(delta) L_e, one matrix
        product for all genes, and F = K_R diag(delta) K_R'.
        """
        xp = namespace(g)
        g_e, D_R = self.split(g)
        delta, _ = self.delta(g_e)
        (F,) = self.gram(delta)
        L_e = self.K_e.T @ a_e  # (r, c)
        crossed = g_e[:, None, None] * self._crossed(delta, L_e)  # (b, q_R, c), K_R diag(delta) g_e L_e
        loaded = D_R[:, :, None] * a_R[None, :, :]  # (b, q_R, c)
        u = crossed + xp.matmul(F, loaded)  # (b, q_R, c), K_R diag(delta) x
        solved, _ = solve(self.system(g, F), u)
        diagonal = (g_e * g_e)[None, :] * ((L_e * L_e).T @ delta)  # (c, b), |delta^1/2 g_e L_e|^2
        rest = loaded * (crossed + u) - u * D_R[:, :, None] * solved  # (b, q_R, c)
        return diagonal + xp.sum(rest, axis=1).T

    def _crossed(self, delta: Array, L_e: Array) -> Array:
        # K_R diag(delta) L_e (b, q_R, c), by the smaller of the genes and the columns
        xp, (q_R, r), (b, c) = namespace(delta), self.K_R.shape, (delta.shape[1], L_e.shape[1])
        if b < c:
            weighted = xp.reshape(self.K_R[None, :, :] * delta.T[:, None, :], (b * q_R, r))
            return xp.reshape(weighted @ L_e, (b, q_R, c))
        rows = xp.reshape(self.K_R[:, None, :] * L_e.T[None, :, :], (q_R * c, r))
        return xp.reshape(delta.T @ rows.T, (b, q_R, c))

    def components(self, x_e: Array, x_R: Array) -> list[Array]:
        """Parts of every effect, in order, from that of the eliminated one and the rows of the rest."""
        parts = [x_R[lo:hi, ...] for lo, hi in self.blocks]
        parts.insert(self.eliminated, x_e)
        return parts

    def sums(self, x_r: Array, x_R: Array) -> Array:
        """mu-weighted sums of `x_r` (r, b) for the eliminated effect, sums of `x_R` (q_R, b) for the others (k, b)."""
        return self.weights @ x_r + self.members @ x_R

    def apply(self, inner: Elimination, x: Array) -> Array:
        """(I + K'DK)^-1 x for vectors x (r, c, b), one set of c columns per gene."""
        xp = namespace(x)
        scaled = inner.delta[:, None, :] * x  # (r, c, b)
        u = xp.permute_dims(xp.tensordot(self.K_R, scaled, axes=1), (2, 0, 1))  # (b, q_R, c)
        DHu = inner.D_R[:, :, None] * xp.matmul(inner.H, u)  # (b, q_R, c)
        back = xp.tensordot(self.K_R.T, xp.permute_dims(DHu, (1, 2, 0)), axes=1)  # (r, c, b)
        return scaled - inner.delta[:, None, :] * back

    def traces(self, g: Array) -> tuple[Array, Array, Array, Array, Array]:
        """T (k, b), B (k, k, b), log det (b,), validity (b,) and F (b, q_R, q_R) at the ratios `g` (k, b)."""
        xp = namespace(g)
        delta, ok = self.delta(g[self.eliminated, :])
        mu_delta = self.mu[:, None] * delta  # (r, b)
        F, F1, F2 = self.gram(delta, mu_delta * delta, mu_delta * mu_delta * delta)
        inner = self.eliminate(g, delta, ok, F)
        HF1 = xp.matmul(inner.H, F1)  # (b, q_R, q_R)
        D_column = inner.D_R[:, :, None]
        DHF1, crossed, squares = _entries(None, inner.H, HF1, inner.M, D_column)
        both = _trace_pair(None, DHF1, xp.matrix_transpose(DHF1), D_column, inner.H, F2)

        T_e = xp.sum(mu_delta, axis=0) - xp.sum(xp.linalg.diagonal(DHF1), axis=1)  # (b,)
        B_ee = xp.sum(mu_delta * mu_delta, axis=0) + _total(both)  # (b,)
        diagonal = xp.linalg.diagonal(inner.M)  # (b, q_R)
        T = [xp.sum(diagonal[:, lo:hi], axis=1) for lo, hi in self.blocks]
        B_e = [_total(crossed[:, lo:hi, :]) for lo, hi in self.blocks]  # traces of blocks of H F1 H'
        B = {}
        for i, (lo, hi) in enumerate(self.blocks):
            for j, (a, z) in enumerate(self.blocks[: i + 1]):
                B[i, j] = B[j, i] = _total(squares[:, lo:hi, a:z])

        e, rest = self.eliminated, range(len(self.blocks))
        T.insert(e, T_e)
        rows = [[B[i, j] for j in rest] for i in rest]
        for row, value in zip(rows, B_e, strict=True):
            row.insert(e, value)
        rows.insert(e, [*B_e[:e], B_ee, *B_e[e:]])
        stacked = xp.stack([value for row in rows for value in row], axis=0)  # (k * k, b)
        B_all = xp.reshape(stacked, (len(rows), len(rows), g.shape[1]))
        return xp.stack(T, axis=0), B_all, inner.logdet, inner.ok, F


def _row_pairs(K_R: Array) -> Array | None:
    # products of the rows a <= b of K_R, if they are not too large
    q_R, r = K_R.shape
    if 4 * q_R * (q_R + 1) * r > LARGEST_PAIRS:
        return None
    xp, (triangle, _) = namespace(K_R), upper_triangle(q_R, K_R)
    return xp.take(K_R, triangle // q_R, axis=0) * xp.take(K_R, triangle % q_R, axis=0)


def _total(stack: Array) -> Array:
    # sum of the entries of each matrix of a stack (b,)
    return namespace(stack).sum(stack, axis=(1, 2))


def _solve_one(F: Array, D_R: Array, unit: Array) -> tuple[Array, Array, Array]:
    """M = (I + g F)^-1 F, its log determinant and validity: one remaining effect, g of either sign."""
    C = _grown(None, D_R[:, :, None], F, unit[None, :, :])  # (b, q_R, q_R)
    inverse, logdet, ok = inverse_and_logdet(C, unit)
    return namespace(F).matmul(inverse, F), logdet, ok


def _solve_signed(F: Array, D_R: Array, unit: Array) -> tuple[Array, Array, Array]:
    """M = (F^-1 + D_R)^-1 for ratios of mixed sign, as two symmetric steps.

    Positive ratios first: they keep I + E F E positive definite. The negative ones then decide validity:
    I - E F+ E is positive definite exactly if V is.
    """
    up, down = _signed_roots(None, D_R)
    M, logdet_up, ok_up = _downdate(F, up, 1.0, unit)
    M, logdet_down, ok_down = _downdate(M, down, -1.0, unit)
    return M, logdet_up + logdet_down, ok_up & ok_down


def _downdate(F: Array, E: Array, sign: float, unit: Array) -> tuple[Array, Array, Array]:
    """(F^-1 + sign E^2)^-1 for diagonal E (b, q_R) at or above zero, its log determinant and validity.

    Where E is not zero, F E C^-1 E^-1 with C = I + sign E F E: it does not cancel, as F - sign F E C^-1 E F does when
    the ratios are large.
    """
    xp = namespace(F)
    column, row = E[:, :, None], E[:, None, :]
    EF, C = _scaled(sign, column, row, F, unit[None, :, :])  # (b, q_R, q_R)
    inverse, logdet, ok = inverse_and_logdet(C, unit)
    FEC = xp.matmul(xp.matrix_transpose(EF), inverse)
    M = _chosen(sign, row, FEC, F, xp.matmul(FEC, EF))
    return _symmetric(None, M, xp.matrix_transpose(M)), logdet, ok


# --- elementwise functions: one kernel each where the library compiles them --------------------------------


@fused
def _inverse_or_one(xp: Any, _: None, mu: Array, g: Array) -> tuple[Array, Array]:
    # 1 / (1 + g mu), and whether that is positive
    A = 1.0 + mu * g
    positive = A > 0
    return 1.0 / xp.where(positive, A, 1.0), positive


@fused
def _grown(xp: Any, _: None, D: Array, F: Array, unit: Array) -> Array:
    return unit + D * F


@fused
def _complement(xp: Any, _: None, unit: Array, M: Array, D: Array) -> Array:
    return unit - M * D


@fused
def _symmetric(xp: Any, _: None, M: Array, transposed: Array) -> Array:
    return 0.5 * (M + transposed)


@fused
def _entries(xp: Any, _: None, H: Array, HF1: Array, M: Array, D: Array) -> tuple[Array, ...]:
    return D * HF1, HF1 * H, M * M


@fused
def _trace_pair(xp: Any, _: None, DHF1: Array, transposed: Array, D: Array, H: Array, F2: Array) -> Array:
    # its sum is tr((D H F1)^2) - 2 tr(D H F2)
    return DHF1 * transposed - 2.0 * D * H * F2


@fused
def _signed_roots(xp: Any, _: None, D: Array) -> tuple[Array, Array]:
    # square roots of the positive and of the negative part
    up = xp.where(D > 0, D, 0.0)
    return xp.sqrt(up), xp.sqrt(up - D)


@fused
def _scaled(xp: Any, sign: float, column: Array, row: Array, F: Array, unit: Array) -> tuple[Array, Array]:
    EF = column * F
    return EF, unit + sign * EF * row


@fused
def _chosen(xp: Any, sign: float, row: Array, FEC: Array, F: Array, FECEF: Array) -> Array:
    present = row > 0
    return xp.where(present, FEC / xp.where(present, row, 1.0), F - sign * FECEF)
