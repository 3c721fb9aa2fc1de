"""Several random effects: diagonalise the one with the most columns, solve only the rest per gene.

S = K K' with K (q x r) rotated so that K_e'K_e = diag(mu) for the largest effect e. Then, per gene,
A = I + K'DK = diag(1 + g_e mu) + K_R' D_R K_R, and what is left to factorise is q_R x q_R (q_R = q - d_e):

    delta = 1 / (1 + g_e mu)
    F  = K_R diag(delta) K_R',  F1 = K_R diag(mu delta^2) K_R',  F2 = K_R diag(mu^2 delta^3) K_R'
    M  = K_R A^-1 K_R' = H F,   H = (I + F D_R)^-1 = I - M D_R

F, F1 and F2 of all genes of a block are one matrix product of the row pairs of K_R with stacked weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

from .arrays import Array, flag_indices, indices, like, namespace
from .likelihood import Likelihood, Traces
from .linalg import eigh_psd, identity, inverse_and_logdet, root_psd, solve
from .plan import blocks
from .summary import Projected
from .trace_table import Axis, TraceFunctions, TraceTable


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
    pairs: Array  #: (q_R (q_R + 1) / 2, r), products of the rows of K_R
    unpack: Array  #: (q_R * q_R,), position in `pairs` of every entry of a symmetric matrix
    eliminated: int  #: which effect is eliminated
    blocks: tuple[tuple[int, int], ...]  #: rows of K_R of each remaining effect

    @classmethod
    def build(cls, S: Array, d: tuple[int, ...]) -> Root:
        """Decompose S (q, q) twice: its root, and the eliminated effect's part of it."""
        xp = namespace(S)
        K, K_inverse = root_psd(S)
        e = max(range(len(d)), key=lambda i: d[i])
        start = sum(d[:e])
        K_e = K[start : start + d[e], :]
        mu, Q = eigh_psd(K_e.T @ K_e)
        K_R = xp.concat([K[:start, :], K[start + d[e] :, :]], axis=0) @ Q
        rows = list(combinations_with_replacement(range(K_R.shape[0]), 2))
        position = {pair: i for i, pair in enumerate(rows)}
        square = [position[min(a, b), max(a, b)] for a in range(K_R.shape[0]) for b in range(K_R.shape[0])]
        first, second = (indices([pair[i] for pair in rows], S) for i in (0, 1))
        return cls(
            mu=mu,
            K_e=K_e @ Q,
            K_R=K_R,
            inverse=Q.T @ K_inverse,
            pairs=xp.take(K_R, first, axis=0) * xp.take(K_R, second, axis=0),
            unpack=indices(square, S),
            eliminated=e,
            blocks=_blocks([width for i, width in enumerate(d) if i != e]),
        )

    def split(self, g: Array) -> tuple[Array, Array]:
        """Ratios (k, b) as those of the eliminated effect (b,) and of the rows of K_R (b, q_R)."""
        xp = namespace(g)
        rest = [i for i in range(g.shape[0]) if i != self.eliminated]
        rows = [i for i, (lo, hi) in zip(rest, self.blocks, strict=True) for _ in range(hi - lo)]
        return g[self.eliminated, :], xp.take(g, indices(rows, g), axis=0).T

    def gram(self, *weights: Array) -> list[Array]:
        """K_R diag(weight) K_R' (b, q_R, q_R) for each of `weights` (r, b), in one matrix product."""
        xp = namespace(*weights)
        b, q_R = weights[0].shape[1], self.K_R.shape[0]
        stacked = xp.concat([weight.T for weight in weights], axis=0)  # (b * len(weights), r)
        packed = stacked @ self.pairs.T  # (b * len(weights), pairs)
        square = xp.reshape(xp.take(packed, self.unpack, axis=1), (len(weights) * b, q_R, q_R))
        return [square[i * b : (i + 1) * b, :, :] for i in range(len(weights))]

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

    def solve(self, g: Array, x: Array) -> tuple[Array, Array]:
        """(I + K'DK)^-1 x for one vector per gene, x (r, b), without any inverse; and validity (b,)."""
        g_e, D_R = self.split(g)
        delta, ok = self.delta(g_e)
        (F,) = self.gram(delta)
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
        (q_R, r), c, b = self.K_R.shape, a_e.shape[1], g.shape[1]
        g_e, D_R = self.split(g)
        delta, _ = self.delta(g_e)
        (F,) = self.gram(delta)
        L_e = self.K_e.T @ a_e  # (r, c)
        crossed = xp.reshape(self.K_R[:, None, :] * L_e.T[None, :, :], (q_R * c, r))
        crossed = xp.reshape((crossed @ (g_e[None, :] * delta)).T, (b, q_R, c))  # g_e K_R diag(delta) L_e
        loaded = D_R[:, :, None] * a_R[None, :, :]  # (b, q_R, c)
        u = crossed + xp.matmul(F, loaded)  # (b, q_R, c), K_R diag(delta) x
        C = identity(q_R, F)[None, :, :] + F * D_R[:, None, :]
        solved, _ = solve(C, u)
        diagonal = (g_e * g_e)[None, :] * ((L_e * L_e).T @ delta)  # (c, b), |delta^1/2 g_e L_e|^2
        rest = loaded * (crossed + u) - u * D_R[:, :, None] * solved  # (b, q_R, c)
        return diagonal + xp.sum(rest, axis=1).T

    def apply(self, inner: Elimination, x: Array) -> Array:
        """(I + K'DK)^-1 x for vectors x (r, c, b), one set of c columns per gene."""
        xp = namespace(x)
        scaled = inner.delta[:, None, :] * x  # (r, c, b)
        u = xp.permute_dims(xp.tensordot(self.K_R, scaled, axes=1), (2, 0, 1))  # (b, q_R, c)
        DHu = inner.D_R[:, :, None] * xp.matmul(inner.H, u)  # (b, q_R, c)
        back = xp.tensordot(self.K_R.T, xp.permute_dims(DHu, (1, 2, 0)), axes=1)  # (r, c, b)
        return scaled - inner.delta[:, None, :] * back

    def trace_functions(self, g: Array) -> TraceFunctions | None:
        """T, B and log det at many ratios (k, nodes), or None if V is not positive definite at one of them."""
        xp = namespace(g)
        found = [self.traces(g[:, lo:hi]) for lo, hi in blocks(g.shape[1], 64)]
        if not bool(xp.all(xp.concat([inner.ok for _, _, inner in found], axis=0))):
            return None
        T, B, logdet = zip(*[(T, B, inner.logdet) for T, B, inner in found], strict=True)
        return xp.concat(T, axis=-1), xp.concat(B, axis=-1), xp.concat(logdet, axis=-1)

    def traces(self, g: Array) -> tuple[Array, Array, Elimination]:
        """T (k, b), B (k, k, b) and the elimination they came from."""
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
        return xp.stack(T, axis=0), xp.stack([xp.stack(row, axis=0) for row in B], axis=0), inner


@dataclass(frozen=True)
class MultiComponent(Likelihood):
    """Likelihood of (s_1 .. s_k, s_0) for b genes."""

    root: Root  #: of S = Z'RZ: quadratic forms in y, and traces for REML
    root_trace: Root  #: the root whose traces enter: of S (REML) or of Z'Z (ML)
    table: TraceTable | None  #: these traces, tabulated, if there are enough genes
    d: tuple[int, ...]
    h: Array  #: (r, b), Z'Ry = K h
    yry: Array  #: (b,)
    residual_df: int
    default_df: int
    rank: int
    n_components: int

    @classmethod
    def build(cls, projected: Projected, d: tuple[int, ...], method: str) -> MultiComponent:
        """Decompose the design once and rotate all genes."""
        root = Root.build(projected.S, d)
        root_trace = root if method == "REML" else Root.build(projected.ZZ, d)
        p, genes = projected.beta_ols.shape
        return cls(
            root=root,
            root_trace=root_trace,
            table=tabulate(root_trace, projected.S if method == "REML" else projected.ZZ, d, genes),
            d=d,
            h=root.inverse @ projected.zry,
            yry=projected.yry,
            residual_df=projected.n - (p if method == "REML" else 0),
            default_df=projected.n - p,
            rank=root.mu.shape[0],
            n_components=len(d),
        )

    def select(self, index: Array) -> MultiComponent:
        """Return the likelihood for the genes at `index`."""
        xp = namespace(self.h)
        return replace(self, h=xp.take(self.h, index, axis=1), yry=xp.take(self.yry, index, axis=0))

    def traces(self, g: Array) -> Traces:
        """T, B, E, z and log det at the ratios `g` (k, b): from the table for the genes that it covers."""
        if self.table is None:
            return self._exact(g)
        covered = self.table.covers(g)
        inside, outside = flag_indices(covered), flag_indices(~covered)
        if outside.size == 0:
            return self._tabulated(g)
        if inside.size == 0:
            return self._exact(g)
        xp, first, second = namespace(g), indices(inside, g), indices(outside, g)
        parts = [
            self.select(first)._tabulated(xp.take(g, first, axis=1)),
            self.select(second)._exact(xp.take(g, second, axis=1)),
        ]
        order = xp.argsort(xp.concat([first, second], axis=0))
        joined = {
            name: xp.take(xp.concat([getattr(part, name) for part in parts], axis=-1), order, axis=value.ndim - 1)
            for name, value in vars(parts[0]).items()
        }
        return Traces(**joined)

    def _exact(self, g: Array) -> Traces:
        T, B, inner_trace = self.root_trace.traces(g)
        inner = inner_trace if self.root_trace is self.root else self.root.inner(g)
        E, z = self._squares(self._whitened(inner))
        return Traces(T, B, E, z, inner_trace.logdet, inner.ok & inner_trace.ok)

    def _tabulated(self, g: Array) -> Traces:
        # where the table covers g, V is positive definite: one solve per gene is left
        assert self.table is not None
        T, B, logdet = self.table.evaluate(g)
        v, ok = self.root.solve(g, self.h)
        E, z = self._squares(v)
        return Traces(T, B, E, z, logdet, ok)

    def _squares(self, v: Array) -> tuple[Array, Array]:
        """E and z (k, b) from v = A^-1 h (r, b)."""
        xp, root = namespace(v), self.root
        mu_v = root.mu[:, None] * v
        e_R, h_R = root.K_R @ v, root.K_R @ self.h  # (q_R, b)
        E = [xp.sum(e_R[lo:hi, :] * e_R[lo:hi, :], axis=0) for lo, hi in root.blocks]
        z = [xp.sum(h_R[lo:hi, :] * e_R[lo:hi, :], axis=0) for lo, hi in root.blocks]
        E.insert(root.eliminated, xp.sum(mu_v * v, axis=0))
        z.insert(root.eliminated, xp.sum(mu_v * self.h, axis=0))
        return xp.stack(E, axis=0), xp.stack(z, axis=0)

    def random_effects(self, g: Array) -> Array:
        """BLUPs (q, b)."""
        xp = namespace(g)
        v, _ = self.root.solve(g, self.h)
        g_e, D_R = self.root.split(g)
        rest = D_R.T * (self.root.K_R @ v)  # (q_R, b)
        start = sum(self.d[: self.root.eliminated])
        return xp.concat([rest[:start, :], g_e[None, :] * (self.root.K_e @ v), rest[start:, :]], axis=0)

    def effect_form(self, g: Array, a: Array) -> Array:
        """a' u (c, b)."""
        return a.T @ self.random_effects(g)

    def variance_form(self, g: Array, a: Array) -> Array:
        """a' N a = a'D a - x' A^-1 x with x = K'D a (c, b)."""
        xp = namespace(g)
        a_e, a_R = self.root.rows(a)
        prior = xp.stack([xp.sum(part * part, axis=0) for part in self._parts(a)], axis=0)  # (k, c)
        return prior.T @ g - self.root.quadratic_form(g, a_e, a_R)

    def covariance_form(self, g: Array, a: Array) -> Array:
        """a' N a for all pairs of columns (c, c, b)."""
        xp = namespace(g)
        x = self._loaded(g, a)
        solved = xp.permute_dims(self.root.apply(self.root.inner(g), x), (2, 0, 1))  # (b, r, c)
        prior = xp.stack([part.T @ part for part in self._parts(a)], axis=0)  # (k, c, c)
        explained = xp.matmul(xp.permute_dims(x, (2, 1, 0)), solved)  # (b, c, c)
        return xp.tensordot(prior, g, axes=((0,), (0,))) - xp.permute_dims(explained, (1, 2, 0))

    def gradient_form(self, g: Array, a: Array) -> Array:
        """|w_i|^2 (k, c, b) for w = a - K A^-1 K'D a."""
        xp = namespace(g)
        y = self.root.apply(self.root.inner(g), self._loaded(g, a))  # (r, c, b)
        K = [self.root.K_R[lo:hi, :] for lo, hi in self.root.blocks]
        K.insert(self.root.eliminated, self.root.K_e)
        w = [part[:, :, None] - xp.tensordot(K_i, y, axes=1) for part, K_i in zip(self._parts(a), K, strict=True)]
        return xp.stack([xp.sum(w_i * w_i, axis=0) for w_i in w], axis=0)

    def _whitened(self, inner: Elimination) -> Array:
        # v = A^-1 h (r, b), so that Z'P0 y = K v
        return self.root.apply(inner, self.h[:, None, :])[:, 0, :]

    def _parts(self, a: Array) -> list[Array]:
        # rows of a (q, c) of each random effect
        return [a[lo:hi, :] for lo, hi in _blocks(self.d)]

    def _loaded(self, g: Array, a: Array) -> Array:
        # x = K'D a = sum_i g_i K_i'a_i (r, c, b)
        xp = namespace(g)
        K = [self.root.K_R[lo:hi, :] for lo, hi in self.root.blocks]
        K.insert(self.root.eliminated, self.root.K_e)
        loads = xp.stack([K_i.T @ part for K_i, part in zip(K, self._parts(a), strict=True)], axis=0)  # (k, r, c)
        return xp.tensordot(loads, g, axes=((0,), (0,)))


def tabulate(root: Root, S: Array, d: tuple[int, ...], genes: int) -> TraceTable | None:
    """Table of the traces of `root`, S = K K', or None if it would cost more than the genes do."""
    xp = namespace(S)
    largest = [float(xp.max(eigh_psd(S[lo:hi, lo:hi])[0])) for lo, hi in _blocks(d)]
    if not all(lam > 0 for lam in largest):
        return None
    for lowest in (0.1, 1.0 - 0.9 / len(d)):  # below the second, V is positive definite for sure
        axes = tuple(Axis.build(lam, lowest) for lam in largest)
        if math.prod(axis.size for axis in axes) > genes:
            continue
        table = TraceTable.build(axes, root.trace_functions, S)
        if table is not None:
            return table
    return None


def _blocks(widths: list[int] | tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    # consecutive (lo, hi) ranges of the given widths
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return tuple(zip([0, *ends[:-1]], ends, strict=True)) if ends else ()


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
    # F - sign F E (I + sign E F E)^-1 E F, with diagonal E (b, q_R)
    xp = namespace(F)
    EF = E[:, :, None] * F  # (b, q_R, q_R)
    inverse, logdet, ok = inverse_and_logdet(identity(F.shape[1], F)[None, :, :] + sign * EF * E[:, None, :])
    return F - sign * xp.matmul(xp.matrix_transpose(EF), xp.matmul(inverse, EF)), logdet, ok
