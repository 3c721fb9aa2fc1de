"""The roots of several random effects: diagonalise the one with the most columns, solve only the rest per gene.

S = K K' with K (q x r) rotated so that K_e'K_e = diag(mu) for the largest effect e. Then, per gene,
A = I + K'DK = diag(1 + g_e mu) + K_R' D_R K_R, and what is left to factorise is q_R x q_R (q_R = q - d_e):

    delta = 1 / (1 + g_e mu)
    F  = K_R diag(delta) K_R',  F1 = K_R diag(mu delta^2) K_R',  F2 = K_R diag(mu^2 delta^3) K_R'
    M  = K_R A^-1 K_R' = H F,   H = (I + F D_R)^-1 = I - M D_R

F, F1 and F2 of all genes of a block are one matrix product of the row pairs of K_R with stacked weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from .arrays import Array, indices, like, namespace
from .linalg import eigh_psd, identity, inverse_and_logdet, root_psd, solve

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
class Root:
    """S = K K' with its rows split into the eliminated effect and the rest, and columns rotated."""

    mu: Array  #: (r,)
    K_e: Array  #: (d_e, r)
    K_R: Array  #: (q_R, r)
    inverse: Array  #: (r, q), pseudo-inverse of K, columns in the order of S
    pairs: Array | None  #: (q_R (q_R + 1) / 2, r), products of the rows of K_R, None if they would be too large
    triangle: Array  #: (q_R (q_R + 1) / 2,), positions of the upper triangle among the q_R * q_R entries
    unpack: Array  #: (q_R * q_R,), position in that triangle of every entry of a symmetric matrix
    eliminated: int  #: which effect is eliminated
    blocks: tuple[tuple[int, int], ...]  #: rows of K_R of each remaining effect

    @classmethod
    def build(cls, S: Array, squares: Array, d: tuple[int, ...]) -> Root:
        """Decompose S (q, q) twice: its root, and the eliminated effect's part of it.

        `squares` (q,) are the squared lengths of the columns of Z: what is small against them is rounding.
        """
        xp = namespace(S)
        K, K_inverse = root_psd(S, squares)
        e = max(range(len(d)), key=lambda i: d[i])
        start = sum(d[:e])
        K_e = K[start : start + d[e], :]
        mu, Q = eigh_psd(K_e.T @ K_e)
        K_R = xp.concat([K[:start, :], K[start + d[e] :, :]], axis=0) @ Q
        triangle, unpack = _triangle(K_R)
        return cls(
            mu=mu,
            K_e=K_e @ Q,
            K_R=K_R,
            inverse=Q.T @ K_inverse,
            pairs=_row_pairs(K_R),
            triangle=triangle,
            unpack=unpack,
            eliminated=e,
            blocks=ranges([width for i, width in enumerate(d) if i != e]),
        )

    def split(self, g: Array) -> tuple[Array, Array]:
        """Ratios (k, b) as those of the eliminated effect (b,) and of the rows of K_R (b, q_R)."""
        xp = namespace(g)
        rest = [i for i in range(g.shape[0]) if i != self.eliminated]
        rows = [i for i, (lo, hi) in zip(rest, self.blocks, strict=True) for _ in range(hi - lo)]
        return g[self.eliminated, :], xp.take(g, indices(rows, g), axis=0).T

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
        return xp.take(xp.reshape(square, (square.shape[0], -1)), self.triangle, axis=1).T

    def packed_F(self, g_e: Array) -> Array:
        """Upper triangles of the part of F (pairs, b) that depends on the eliminated effect's ratio (1, b)."""
        (F,) = self.gram(namespace(g_e).where(self.mu[:, None] > 0, self.delta(g_e[0, :])[0], 0.0))
        return self.packed(F)

    def packed_F_rest(self) -> Array:
        """Upper triangle of the rest of F (pairs, 1): directions that the eliminated effect has no part in."""
        (F,) = self.gram(namespace(self.mu).astype(self.mu == 0, self.mu.dtype)[:, None])
        return self.packed(F)

    def delta(self, g_e: Array) -> tuple[Array, Array]:
        """1 / (1 + g_e mu) (r, b), and whether all of it is positive (b,)."""
        xp = namespace(g_e)
        A_e = 1.0 + self.mu[:, None] * g_e[None, :]  # (r, b)
        positive = A_e > 0
        return 1.0 / xp.where(positive, A_e, 1.0), xp.all(positive, axis=0)

    def eliminate(self, g: Array, delta: Array, ok: Array, F: Array) -> Elimination:
        """Solve what the eliminated effect leaves: M, H and the log determinant."""
        xp = namespace(g)
        _, D_R = self.split(g)
        solve = _solve_one if len(self.blocks) <= 1 else _solve_signed
        M, logdet, ok_rest = solve(F, D_R)
        H = identity(F.shape[1], F)[None, :, :] - M * D_R[:, None, :]
        return Elimination(delta, M, H, D_R, logdet - xp.sum(xp.log(delta), axis=0), ok & ok_rest)

    def inner(self, g: Array) -> Elimination:
        """(I + K'DK)^-1 at the ratios `g` (k, b)."""
        delta, ok = self.delta(self.split(g)[0])
        (F,) = self.gram(delta)
        return self.eliminate(g, delta, ok, F)

    def solve(self, g: Array, x: Array, packed_F: Array | None = None) -> tuple[Array, Array]:
        """(I + K'DK)^-1 x for one vector per gene, x (r, b), without any inverse; and validity (b,)."""
        g_e, D_R = self.split(g)
        delta, ok = self.delta(g_e)
        F = self.gram(delta)[0] if packed_F is None else self.unpacked(packed_F.T)  # (b, q_R, q_R)
        scaled = delta * x  # (r, b)
        C = identity(F.shape[1], F)[None, :, :] + F * D_R[:, None, :]  # (b, q_R, q_R)
        u, solved = solve(C, (self.K_R @ scaled).T[:, :, None])  # (b, q_R, 1)
        return scaled - delta * (self.K_R.T @ (D_R * u[:, :, 0]).T), ok & solved

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
        q_R = self.K_R.shape[0]
        g_e, D_R = self.split(g)
        delta, _ = self.delta(g_e)
        (F,) = self.gram(delta)
        L_e = self.K_e.T @ a_e  # (r, c)
        crossed = g_e[:, None, None] * self._crossed(delta, L_e)  # (b, q_R, c), K_R diag(delta) g_e L_e
        loaded = D_R[:, :, None] * a_R[None, :, :]  # (b, q_R, c)
        u = crossed + xp.matmul(F, loaded)  # (b, q_R, c), K_R diag(delta) x
        C = identity(q_R, F)[None, :, :] + F * D_R[:, None, :]
        solved, _ = solve(C, u)
        diagonal = (g_e * g_e)[None, :] * ((L_e * L_e).T @ delta)  # (c, b), |delta^1/2 g_e L_e|^2
        rest = loaded * (crossed + u) - u * D_R[:, :, None] * solved  # (b, q_R, c)
        return diagonal + xp.sum(rest, axis=1).T

    def _crossed(self, delta: Array, L_e: Array) -> Array:
        # K_R diag(delta) L_e (b, q_R, c): what is formed has the fewer of the genes and the columns
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

    def apply(self, inner: Elimination, x: Array) -> Array:
        """(I + K'DK)^-1 x for vectors x (r, c, b), one set of c columns per gene."""
        xp = namespace(x)
        scaled = inner.delta[:, None, :] * x  # (r, c, b)
        u = xp.permute_dims(xp.tensordot(self.K_R, scaled, axes=1), (2, 0, 1))  # (b, q_R, c)
        DHu = inner.D_R[:, :, None] * xp.matmul(inner.H, u)  # (b, q_R, c)
        back = xp.tensordot(self.K_R.T, xp.permute_dims(DHu, (1, 2, 0)), axes=1)  # (r, c, b)
        return scaled - inner.delta[:, None, :] * back

    def traces(self, g: Array) -> tuple[Array, Array, Array, Array]:
        """T (k, b), B (k, k, b), log det (b,) and validity (b,) at the ratios `g` (k, b)."""
        xp = namespace(g)
        g_e, _ = self.split(g)
        delta, ok = self.delta(g_e)
        mu_delta = self.mu[:, None] * delta  # (r, b)
        F, F1, F2 = self.gram(delta, mu_delta * delta, mu_delta * mu_delta * delta)
        inner = self.eliminate(g, delta, ok, F)
        HF1 = xp.matmul(inner.H, F1)  # (b, q_R, q_R)
        DHF1 = inner.D_R[:, :, None] * HF1
        DHF2 = inner.D_R[:, :, None] * inner.H * F2  # its sum is tr(D_R H F2)

        T_e = xp.sum(mu_delta, axis=0) - xp.sum(xp.linalg.diagonal(DHF1), axis=1)  # (b,)
        B_ee = xp.sum(mu_delta * mu_delta, axis=0) + _total(DHF1 * xp.matrix_transpose(DHF1) - 2.0 * DHF2)  # (b,)
        crossed = xp.sum(HF1 * inner.H, axis=2)  # (b, q_R), diagonal of H F1 H'
        squares = inner.M * inner.M
        diagonal = xp.linalg.diagonal(inner.M)  # (b, q_R)
        T = [xp.sum(diagonal[:, lo:hi], axis=1) for lo, hi in self.blocks]
        B_e = [xp.sum(crossed[:, lo:hi], axis=1) for lo, hi in self.blocks]
        B = [[_total(squares[:, lo:hi, a:z]) for a, z in self.blocks] for lo, hi in self.blocks]

        e = self.eliminated
        T.insert(e, T_e)
        for row, value in zip(B, B_e, strict=True):
            row.insert(e, value)
        B.insert(e, [*B_e[:e], B_ee, *B_e[e:]])
        B_all = xp.stack([xp.stack(row, axis=0) for row in B], axis=0)  # (k, k, b)
        return xp.stack(T, axis=0), B_all, inner.logdet, inner.ok


def _triangle(K_R: Array) -> tuple[Array, Array]:
    # where the entries a <= b of a symmetric matrix lie among all, and where each entry lies among those
    q_R = K_R.shape[0]
    rows = list(combinations_with_replacement(range(q_R), 2))
    position = {pair: i for i, pair in enumerate(rows)}
    square = [position[min(a, b), max(a, b)] for a in range(q_R) for b in range(q_R)]
    return indices([a * q_R + b for a, b in rows], K_R), indices(square, K_R)


def _row_pairs(K_R: Array) -> Array | None:
    # products of the rows a <= b of K_R, if they are not too large
    q_R, r = K_R.shape
    if 4 * q_R * (q_R + 1) * r > LARGEST_PAIRS:
        return None
    xp, rows = namespace(K_R), list(combinations_with_replacement(range(q_R), 2))
    first, second = (indices([pair[i] for pair in rows], K_R) for i in (0, 1))
    return xp.take(K_R, first, axis=0) * xp.take(K_R, second, axis=0)


def ranges(widths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Consecutive (lo, hi) of the given widths.

    >>> ranges([2, 3])
    ((0, 2), (2, 5))
    """
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return tuple((hi - width, hi) for width, hi in zip(widths, ends, strict=True))


def _total(stack: Array) -> Array:
    # sum of the entries of each matrix of a stack (b,)
    return namespace(stack).sum(stack, axis=(1, 2))


def _solve_one(F: Array, D_R: Array) -> tuple[Array, Array, Array]:
    """M = (I + g F)^-1 F, its log determinant and validity: one remaining effect, g of either sign."""
    xp = namespace(F)
    inverse, logdet, ok = inverse_and_logdet(identity(F.shape[1], F)[None, :, :] + D_R[:, :, None] * F)
    return xp.matmul(inverse, F), logdet, ok


def _solve_signed(F: Array, D_R: Array) -> tuple[Array, Array, Array]:
    """M = (F^-1 + D_R)^-1 for ratios of mixed sign, as two symmetric steps.

    Positive ratios first: they keep I + E F E positive definite. The negative ones then decide validity:
    I - E F+ E is positive definite exactly if V is.
    """
    xp = namespace(F)
    zero = like(0.0, F)
    M, logdet_up, ok_up = _downdate(F, xp.sqrt(xp.maximum(D_R, zero)), 1.0)
    M, logdet_down, ok_down = _downdate(M, xp.sqrt(xp.maximum(-D_R, zero)), -1.0)
    return M, logdet_up + logdet_down, ok_up & ok_down


def _downdate(F: Array, E: Array, sign: float) -> tuple[Array, Array, Array]:
    """(F^-1 + sign E^2)^-1 for diagonal E (b, q_R) at or above zero, its log determinant and validity.

    Where E is not zero, F E C^-1 E^-1 with C = I + sign E F E: it does not cancel, as F - sign F E C^-1 E F does when
    the ratios are large.
    """
    xp = namespace(F)
    EF = E[:, :, None] * F  # (b, q_R, q_R)
    inverse, logdet, ok = inverse_and_logdet(identity(F.shape[1], F)[None, :, :] + sign * EF * E[:, None, :])
    FEC = xp.matmul(xp.matrix_transpose(EF), inverse)
    present = (E > 0)[:, None, :]
    divided = FEC / xp.where(present, E[:, None, :], 1.0)
    M = xp.where(present, divided, F - sign * xp.matmul(FEC, EF))
    return 0.5 * (M + xp.matrix_transpose(M)), logdet, ok
