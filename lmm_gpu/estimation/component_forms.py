"""Forms of contrasts and BLUPs of several random effects, from the root of S in eliminated form.

For the loadings a of a contrast on the random effects, N = D (I + S D)^-1 and w = (I + S D)^-1 a.
"""

from __future__ import annotations

from abc import abstractmethod

from ..backend.arrays import Array, namespace
from ..backend.blocks import ranges
from .block_elimination import EliminatedFactor, Solution
from .likelihood import Likelihood


class ComponentForms(Likelihood):
    """Forms of contrasts; `MultiComponent` has them."""

    root: EliminatedFactor
    d: tuple[int, ...]

    @abstractmethod
    def _whitened(self, g: Array) -> Solution:
        """v = A^-1 h (r, b), so that Z'P0 y = K v."""

    @property
    def form_rows(self) -> int:
        """Number of random effects."""
        return sum(self.d)

    @property
    def variance_rows(self) -> int:
        """Number of random effects that are not eliminated."""
        return int(self.root.K_R.shape[0])

    def random_effects(self, g: Array) -> Array:
        """BLUPs (q, b)."""
        xp, root = namespace(g), self.root
        solution = self._whitened(g)
        g_e, D_R = root.split(g)
        return xp.concat(root.components(g_e[None, :] * (root.K_e @ solution.v), D_R.T * solution.e_R), axis=0)

    def effect_form(self, g: Array, a: Array, v: Array | None = None) -> Array:
        """a' u (c, b): the roots meet the few columns of `a`, not the genes."""
        root = self.root
        v = self._whitened(g).v if v is None else v
        g_e, D_R = root.split(g)
        a_e, a_R = root.rows(a)
        return g_e[None, :] * ((root.K_e.T @ a_e).T @ v) + a_R.T @ (D_R.T * (root.K_R @ v))

    def variance_form(self, g: Array, a: Array) -> Array:
        """a' N a = a'D a - x' A^-1 x with x = K'D a (c, b)."""
        xp = namespace(g)
        prior = xp.stack([xp.sum(part * part, axis=0) for part in self._parts(a)], axis=0)  # (k, c)
        return prior.T @ g - self.root.quadratic_form(g, *self.root.rows(a))

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
        return xp.stack([xp.sum(w_i * w_i, axis=0) for w_i in self._effect_weights(g, a)], axis=0)

    def adjustment_form(self, g: Array, a: Array) -> Array:
        """w_i' ZVZ_ij w_j (k, k, c, b)."""
        x, y = self._loaded_pairs(g, self._effect_weights(g, a))  # (r, k, c, b)
        return namespace(g).sum(x[:, :, None, :, :] * y[:, None, :, :, :], axis=0)

    def gradient_pairs(self, g: Array, a: Array) -> Array:
        """w_i' w_i (k, c, c, b)."""
        xp = namespace(g)
        stacks = [xp.permute_dims(w_i, (2, 1, 0)) for w_i in self._effect_weights(g, a)]  # (b, c, d_i)
        products = [xp.matmul(w_i, xp.matrix_transpose(w_i)) for w_i in stacks]  # (b, c, c)
        return xp.permute_dims(xp.stack(products, axis=0), (0, 2, 3, 1))

    def adjustment_pairs(self, g: Array, a: Array) -> Array:
        """w_i' ZVZ_ij w_j (k, k, c, c, b)."""
        xp, (k, b), c = namespace(g), g.shape, a.shape[1]
        x, y = (xp.reshape(z, (z.shape[0], k * c, b)) for z in self._loaded_pairs(g, self._effect_weights(g, a)))
        square = xp.matmul(xp.permute_dims(x, (2, 1, 0)), xp.permute_dims(y, (2, 0, 1)))  # (b, k * c, k * c)
        return xp.permute_dims(xp.reshape(square, (b, k, c, k, c)), (1, 3, 2, 4, 0))

    def curvature_form(self, g: Array) -> Array:
        """e_i' ZVZ_ij e_j (k, k, b)."""
        root = self.root
        solution = self._whitened(g)
        e = [e_i[:, None, :] for e_i in root.components(root.K_e @ solution.v, solution.e_R)]  # (d_i, 1, b)
        x, y = self._loaded_pairs(g, e)  # (r, k, 1, b)
        return namespace(g).sum(x[:, :, None, 0, :] * y[:, None, :, 0, :], axis=0)

    def _effect_weights(self, g: Array, a: Array) -> list[Array]:
        # w_i (d_i, c, b) for w = a - K A^-1 K'D a
        xp, root = namespace(g), self.root
        y = root.apply(root.inner(g), self._loaded(g, a))  # (r, c, b)
        K = root.components(root.K_e, root.K_R)
        return [part[:, :, None] - xp.tensordot(K_i, y, axes=1) for part, K_i in zip(self._parts(a), K, strict=True)]

    def _loaded_pairs(self, g: Array, w: list[Array]) -> tuple[Array, Array]:
        # x_i = K_i'w_i and A^-1 x_i (r, k, c, b): w_i' ZVZ_ij w_j = x_i' A^-1 x_j
        xp, root = namespace(g), self.root
        K = root.components(root.K_e, root.K_R)
        x = xp.stack([xp.tensordot(K_i.T, w_i, axes=1) for K_i, w_i in zip(K, w, strict=True)], axis=1)
        r, k, c, b = x.shape
        y = root.apply(root.inner(g), xp.reshape(x, (r, k * c, b)))
        return x, xp.reshape(y, (r, k, c, b))

    def _parts(self, a: Array) -> list[Array]:
        # rows of a (q, c) of each random effect
        return [a[lo:hi, :] for lo, hi in ranges(self.d)]

    def _loaded(self, g: Array, a: Array) -> Array:
        # x = K'D a = sum_i g_i K_i'a_i (r, c, b)
        xp = namespace(g)
        K = self.root.components(self.root.K_e, self.root.K_R)
        loads = xp.stack([K_i.T @ part for K_i, part in zip(K, self._parts(a), strict=True)], axis=0)  # (k, r, c)
        return xp.tensordot(loads, g, axes=((0,), (0,)))
