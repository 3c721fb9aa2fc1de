"""Two random effects: at a fixed ratio of one of them, the other is diagonal like a single effect.

At ratio g_e of the eliminated effect let F = K_R diag(delta) K_R' = U diag(lam) U', with `root`'s symbols. Then for
every ratio g of the remaining effect, with h = 1 / (1 + g lam), H = U diag(h) U' and M = U diag(lam h) U'; an
evaluation needs sums over the q_R eigenvalues. One decomposition per g_e serves all g: a whole table of both
ratios costs no more than the nodes of one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..backend.arrays import Array, namespace, threads_for
from ..backend.blocks import blocks
from ..backend.linalg import eigh_stack
from ..backend.threads import in_threads
from .block_elimination import EliminatedFactor
from .chebyshev import at_once, joined

#: Ratios that are decomposed, or tabulated, together on the host, within its caches.
NODES = 4
#: Fields that have one row per ratio.
_BY_NODE = ("g_e", "positive", "lam", "U", "F1", "F2")


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of the remaining effect and rotated matrices, at J ratios of the eliminated effect."""

    root: EliminatedFactor
    g_e: Array  #: (J,)
    delta: Array  #: (r, J), 1 / (1 + g_e mu)
    positive: Array  #: (J,), bool: 1 + g_e mu is positive
    lam: Array  #: (J, q_R), eigenvalues of F
    U: Array  #: (J, q_R, q_R), its eigenvectors
    F1: Array  #: (J, q_R, q_R), U' F1 U
    F2: Array  #: (J, q_R), diagonal of U' F2 U

    @classmethod
    def build(cls, root: EliminatedFactor, g_e: Array) -> Spectra:
        """Decompose F at the ratios `g_e` (J,) of the eliminated effect of two, a few at a time."""
        ranges = blocks(g_e.shape[0], at_once(NODES, root.numbers(), g_e))
        parts = list(in_threads(lambda at: cls._build(root, g_e[at[0] : at[1]]), ranges, threads_for(g_e)))
        rows = {name: joined([getattr(part, name) for part in parts], axis=0) for name in _BY_NODE}
        return cls(root=root, delta=joined([part.delta for part in parts], axis=1), **rows)

    @classmethod
    def _build(cls, root: EliminatedFactor, g_e: Array) -> Spectra:
        xp = namespace(g_e)
        delta, positive = root.delta(g_e)
        mu_delta = root.mu[:, None] * delta  # (r, J)
        F, F1, F2 = root.gram(delta, mu_delta * delta, mu_delta * mu_delta * delta)  # (J, q_R, q_R) each
        lam, U = eigh_stack(F)
        return cls(
            root=root,
            g_e=g_e,
            delta=delta,
            positive=positive,
            lam=lam,
            U=U,
            F1=xp.matmul(_transposed(U), xp.matmul(F1, U)),
            F2=xp.sum(U * xp.matmul(F2, U), axis=1),
        )

    def traces(self, g: Array) -> tuple[Array, Array, Array, Array]:
        """T (2, J, I), B (2, 2, J, I), log det (J, I) and validity (J, I) at ratios `g` (I,) of the other effect."""
        xp = namespace(g)
        h, ok = self._shrinkage(g)  # (J, I, q_R)
        g_row, lam = g[None, :], self.lam[:, None, :]
        F1_diagonal = xp.linalg.diagonal(self.F1)  # (J, q_R)
        mu_delta = self.root.mu[:, None] * self.delta  # (r, J)
        lam_h = lam * h
        T_e = xp.sum(mu_delta, axis=0)[:, None] - g_row * _weighted(h, F1_diagonal)  # (J, I)
        squares = xp.sum(xp.matmul(h, self.F1 * self.F1) * h, axis=2)  # (J, I), tr (H F1)^2
        crossed = 2.0 * g_row * _weighted(h, self.F2)
        B_ee = xp.sum(mu_delta * mu_delta, axis=0)[:, None] - crossed + g_row * g_row * squares
        T_f, B_ff = xp.sum(lam_h, axis=2), xp.sum(lam_h * lam_h, axis=2)
        B_ef = _weighted(h * h, F1_diagonal)
        logdet = -xp.sum(xp.log(self.delta), axis=0)[:, None] - xp.sum(xp.log(h), axis=2)
        T = self._in_order(T_e, T_f)
        B = [self._in_order(B_ee, B_ef), self._in_order(B_ef, B_ff)]
        return T, self._in_order(*B), logdet, ok

    def variance_form(self, g: Array, a: Array) -> Array:
        """a' N a (c, J, I) for the columns of `a` (q, c): a'D a - x' A^-1 x with x = K'D a."""
        xp = namespace(g)
        a_e, a_R = self.root.rows(a)
        h, _ = self._shrinkage(g)
        L_e = self.root.K_e.T @ a_e  # (r, c)
        rotated, x = self._rotated_rows(a_R), self.g_e[:, None, None] * self._projected(self.delta, L_e)  # (J, q_R, c)
        explained = self.g_e[:, None] * (self.delta.T @ (L_e * L_e))  # (J, c)
        prior_e = self.g_e[:, None] * (xp.sum(a_e * a_e, axis=0)[None, :] - explained)  # (J, c)
        prior_R = xp.sum(a_R * a_R, axis=0)[None, None, :]
        rest = xp.matmul(h, 2.0 * rotated * x - x * x)  # (J, I, c)
        rest = rest + xp.matmul(g[None, :, None] * self.lam[:, None, :] * h, rotated * rotated)
        return xp.permute_dims(prior_e[:, None, :] + g[None, :, None] * (prior_R - rest), (2, 0, 1))

    def gradient_form(self, g: Array, a: Array) -> Array:
        """|w_i|^2 (2, c, J, I) for w = (I + S D)^-1 a, the columns of `a` being (q, c)."""
        xp = namespace(g)
        a_e, a_R = self.root.rows(a)
        h, _ = self._shrinkage(g)
        L_e = self.root.K_e.T @ a_e  # (r, c)
        mu_delta2 = self.root.mu[:, None] * self.delta * self.delta  # (r, J)
        x0, x1 = self._projected(self.delta, L_e), self._projected(mu_delta2, L_e)  # (J, q_R, c)
        g_e, g_f = self.g_e[:, None, None], g[None, :, None]
        w_R = h[:, :, :, None] * (self._rotated_rows(a_R) - g_e * x0)[:, None, :, :]  # (J, I, q_R, c)
        once = (self.delta.T @ (L_e * L_e))[:, None, :]  # (J, 1, c)
        twice = (mu_delta2.T @ (L_e * L_e))[:, None, :]
        a_y = g_e * once + g_f * xp.sum(x0[:, None, :, :] * w_R, axis=2)  # (J, I, c), a_e'K_e y with y = A^-1 x
        y_y = g_e * g_e * twice + 2.0 * g_e * g_f * xp.sum(x1[:, None, :, :] * w_R, axis=2)
        y_y = y_y + g_f * g_f * xp.sum(w_R * xp.matmul(self.F1[:, None, :, :], w_R), axis=2)  # |K_e y|^2
        w_e = xp.sum(a_e * a_e, axis=0)[None, None, :] - 2.0 * a_y + y_y
        parts = self._in_order(w_e, xp.sum(w_R * w_R, axis=2))  # (2, J, I, c)
        return xp.permute_dims(parts, (0, 3, 1, 2))

    def numbers(self, others: int, columns: int) -> int:
        """Numbers that a table of `others` ratios of the other effect needs per ratio of the eliminated one."""
        q_R = int(self.lam.shape[1])
        return 8 * q_R * q_R + 4 * others * q_R * (1 + columns)

    def nodes(self, lo: int, hi: int) -> Spectra:
        """Return the same at some of the ratios of the eliminated effect."""
        rows = {name: getattr(self, name)[lo:hi, ...] for name in _BY_NODE}
        return replace(self, **rows, delta=self.delta[:, lo:hi])

    def _shrinkage(self, g: Array) -> tuple[Array, Array]:
        # h = 1 / (1 + g lam) (J, I, q_R), and whether all of it is positive (J, I)
        xp = namespace(g)
        A = 1.0 + g[None, :, None] * self.lam[:, None, :]
        return 1.0 / xp.where(A > 0, A, 1.0), xp.all(A > 0, axis=2) & self.positive[:, None]

    def _rotated_rows(self, a_R: Array) -> Array:
        # U' a_R (J, q_R, c)
        return namespace(a_R).matmul(
            _transposed(self.U), namespace(a_R).broadcast_to(a_R, (*self.lam.shape, a_R.shape[1]))
        )

    def _projected(self, weights: Array, L_e: Array) -> Array:
        # U' K_R diag(weights) L_e (J, q_R, c) for weights (r, J)
        xp = namespace(weights)
        (J, q_R), (r, c) = self.lam.shape, L_e.shape
        weighted = xp.reshape(self.root.K_R[None, :, :] * weights.T[:, None, :], (J * q_R, r))
        return xp.matmul(_transposed(self.U), xp.reshape(weighted @ L_e, (J, q_R, c)))

    def _in_order(self, of_eliminated: Array, of_rest: Array) -> Array:
        # both effects' values stacked (2, ...) in the order of theta
        pair = [of_rest, of_eliminated] if self.root.eliminated else [of_eliminated, of_rest]
        return namespace(of_rest).stack(pair, axis=0)


def _transposed(stack: Array) -> Array:
    return namespace(stack).matrix_transpose(stack)


def _weighted(h: Array, weights: Array) -> Array:
    # sums over the eigenvalues (J, I): h (J, I, q_R), weights (J, q_R)
    return namespace(h).matmul(h, weights[:, :, None])[:, :, 0]
