"""Loads of the levels of one grouping on the other columns: X~ of k rows per level, and sums over its levels.

Two sums are all that traces need, and they are adjoint to each other: with symmetric k x k matrices V_g per level,

    gram(V) = sum_g X~_g' V_g X~_g  (s x s),        quadratic(W)_g = X~_g W X~_g'  (k x k per level).

Both are linear in products of pairs of columns, which are the same for all genes that share a design: one matrix
product serves a block of genes. Where levels meet few of the columns, as students meet few lecturers, the products are
sparse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from ..backend.arrays import Array, namespace
from ..backend.linalg import identity, upper_triangle
from ..backend.sparse import is_sparse
from .covariance_terms import Entries, pairs
from .sparse_loads import products_of_pairs

#: Bytes that dense products of pairs of columns may take; beyond, sums are formed gene by gene.
LARGEST_PRODUCTS = 2**26


class LevelLoads(ABC):
    """X~ of b genes, or of one design that all share; rows effect by effect, as those of Z."""

    genes: int  #: 1 or b
    rows: int  #: k G
    columns: int  #: s

    @abstractmethod
    def times(self, v: Array) -> Array:
        """X~ v (b, k G, c) for `v` (b, s, c)."""

    @abstractmethod
    def transposed_times(self, v: Array) -> Array:
        """X~'v (b, s, c) for `v` (b, k G, c)."""

    @abstractmethod
    def gram(self, V: Entries) -> Array:
        """Sums over the levels of X~_g'V_g X~_g (b, s, s) for symmetric V, (k, k) of (b, G)."""

    @abstractmethod
    def quadratic(self, W: Array) -> Entries:
        """X~_g W X~_g' of each level, (k, k) of (b, G), for symmetric `W` (b, s, s)."""

    @abstractmethod
    def without_first(self, columns: int) -> LevelLoads:
        """Return the loads on all columns but the first few."""

    def take(self, index: Array) -> LevelLoads:
        """Return the loads of the genes at `index`."""
        return self

    def part(self, lo: int, hi: int) -> LevelLoads:
        """Return the loads of a range of genes."""
        return self


@dataclass(frozen=True)
class StackedLoads(LevelLoads):
    """Loads that differ from gene to gene, or whose products would be too large: one matrix product a gene."""

    effects: int
    matrix: Array  #: (1 or b, k G, s)

    @property
    def genes(self) -> int:  # type: ignore[override]
        """Number of designs."""
        return int(self.matrix.shape[0])

    @property
    def rows(self) -> int:  # type: ignore[override]
        """Rows of all effects."""
        return int(self.matrix.shape[1])

    @property
    def columns(self) -> int:  # type: ignore[override]
        """Columns of X and of the effects that are not eliminated."""
        return int(self.matrix.shape[2])

    def times(self, v: Array) -> Array:
        """X~ v (b, k G, c)."""
        return namespace(v).matmul(self.matrix, v)

    def transposed_times(self, v: Array) -> Array:
        """X~'v (b, s, c)."""
        xp = namespace(v)
        return xp.matmul(xp.matrix_transpose(self.matrix), v)

    def gram(self, V: Entries) -> Array:
        """Sums over the levels of X~_g'V_g X~_g (b, s, s)."""
        return self.transposed_times(times_levels(V, self.matrix))

    def quadratic(self, W: Array) -> Entries:
        """X~_g W X~_g' of each level."""
        xp = namespace(W)
        moved, parts = by_effect(xp.matmul(self.matrix, W), self.effects), by_effect(self.matrix, self.effects)
        return [[xp.sum(x * y, axis=2) for y in parts] for x in moved]

    def without_first(self, columns: int) -> StackedLoads:
        """Return the loads on the other columns."""
        return StackedLoads(self.effects, self.matrix[:, :, columns:])

    def take(self, index: Array) -> StackedLoads:
        """Return the loads of some genes."""
        if self.genes == 1:
            return self
        return StackedLoads(self.effects, namespace(index).take(self.matrix, index, axis=0))

    def part(self, lo: int, hi: int) -> StackedLoads:
        """Return the loads of a range of genes."""
        return StackedLoads(self.effects, self.matrix[lo:hi, :, :]) if self.genes > 1 else self


@dataclass(frozen=True)
class SharedLoads(LevelLoads):
    """Loads that all genes share, with the products of all pairs of columns; dense, or sparse on the host.

    Products of two effects are those of the first on the second and of the second on the first, summed.
    """

    effects: int
    matrix: Any  #: (k G, s)
    products: Any  #: (L G, s (s + 1) / 2), pairs of effects in the order of `covariance_terms.pairs`
    triangle: Array  #: (s (s + 1) / 2,), positions of the upper triangle among the s * s entries
    unpack: Array  #: (s * s,), position in that triangle of every entry
    weight: Array  #: (s (s + 1) / 2,), 1 on the diagonal, else 2
    genes: int = 1

    @property
    def rows(self) -> int:  # type: ignore[override]
        """Rows of all effects."""
        return int(self.matrix.shape[0])

    @property
    def columns(self) -> int:  # type: ignore[override]
        """Columns of X and of the effects that are not eliminated."""
        return int(self.matrix.shape[1])

    def times(self, v: Array) -> Array:
        """X~ v (b, k G, c)."""
        return _one_product(self.matrix, v)

    def transposed_times(self, v: Array) -> Array:
        """X~'v (b, s, c)."""
        return _one_product(self.matrix.T, v)

    def gram(self, V: Entries) -> Array:
        """Sums over the levels of X~_g'V_g X~_g (b, s, s)."""
        xp, s = namespace(V[0][0]), self.columns
        stacked = xp.concat([V[a][b] for a, b in pairs(self.effects)], axis=1)  # (b, L G)
        packed = (self.products.T @ stacked.T).T  # (b, pairs)
        return xp.reshape(xp.take(packed, self.unpack, axis=1), (stacked.shape[0], s, s))

    def quadratic(self, W: Array) -> Entries:
        """X~_g W X~_g' of each level."""
        xp, s = namespace(W), self.columns
        packed = xp.take(xp.reshape(W, (W.shape[0], s * s)), self.triangle, axis=1) * self.weight[None, :]
        found = (self.products @ packed.T).T  # (b, L G)
        G = found.shape[1] // len(pairs(self.effects))
        result: Entries = [[found] * self.effects for _ in range(self.effects)]
        for i, (a, b) in enumerate(pairs(self.effects)):
            part = found[:, i * G : (i + 1) * G]
            result[a][b] = result[b][a] = part if a == b else 0.5 * part
        return result

    def without_first(self, columns: int) -> SharedLoads:
        """Return the loads on the other columns."""
        s = self.columns - columns
        kept = self.products[:, self.products.shape[1] - s * (s + 1) // 2 :]  # pairs of the last columns stand last
        return _with_products(self.matrix[:, columns:], kept, self.effects, self.weight)


def shared_loads(matrix: Any, effects: int, reference: Array) -> LevelLoads:
    """Loads (k G, s) that all genes share, in the form that takes the least work; `matrix` may be sparse."""
    G, s, L = matrix.shape[0] // effects, matrix.shape[1], len(pairs(effects))
    if is_sparse(matrix):
        return _with_products(matrix, products_of_pairs(matrix, effects), effects, reference)
    if 8 * L * G * (s * (s + 1) // 2) > LARGEST_PRODUCTS:
        return StackedLoads(effects, matrix[None, :, :])
    return _with_products(matrix, _dense_products(matrix, effects), effects, reference)


def _with_products(matrix: Any, products: Any, effects: int, reference: Array) -> SharedLoads:
    xp, s = namespace(reference), matrix.shape[1]
    triangle, unpack = upper_triangle(s, reference)
    weight = xp.take(xp.reshape(2.0 - identity(s, reference), (s * s,)), triangle)
    return SharedLoads(effects, matrix, products, triangle, unpack, weight)


def _dense_products(matrix: Array, effects: int) -> Array:
    # (L G, pairs of columns)
    xp, s = namespace(matrix), matrix.shape[1]
    triangle, _ = upper_triangle(s, matrix)
    parts = by_effect(matrix[None, :, :], effects)
    left, right = ([xp.take(part[0, :, :], at, axis=1) for part in parts] for at in (triangle // s, triangle % s))
    rows = [left[a] * right[a] if a == b else left[a] * right[b] + left[b] * right[a] for a, b in pairs(effects)]
    return xp.concat(rows, axis=0)


def times_levels(A: Entries, B: Array) -> Array:
    """A_g B_g (b, k G, c) for A (k, k) of (b, G) and B (1 or b, k G, c)."""
    k = len(A)
    blocks = by_effect(B, k)
    rows = [sum(A[a][c][:, :, None] * blocks[c] for c in range(k)) for a in range(k)]
    return namespace(B).concat(rows, axis=1)


def by_effect(v: Array, effects: int) -> list[Array]:
    """Rows of each eliminated effect of an array (b, k G, ...)."""
    G = v.shape[1] // effects
    return [v[:, a * G : (a + 1) * G, ...] for a in range(effects)]


def _one_product(A: Any, v: Array) -> Array:
    # A v (b, rows, c) for one matrix A, which may be sparse, and `v` (b, columns, c), as one product
    xp = namespace(v)
    b, columns, c = v.shape
    flat = xp.reshape(xp.permute_dims(v, (1, 0, 2)), (columns, b * c))
    return xp.permute_dims(xp.reshape(A @ flat, (A.shape[0], b, c)), (1, 0, 2))
