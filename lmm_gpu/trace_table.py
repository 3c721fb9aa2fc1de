"""What all genes share: traces and log determinant are functions of the variance ratios alone.

T, B and log det A depend on a gene only through its ratios g = (g_1 .. g_k), and on nothing else but the
design. With many genes it is cheaper to tabulate these functions once, on a Chebyshev grid, than to factorise
matrices per gene and iteration. In x_i = log(1 + g_i lam_i), lam_i the largest eigenvalue of effect i alone,
they are analytic in a strip of half-width pi around the real line, so that a grid of some fifty points per effect
is accurate to near rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .arrays import Array, like, namespace

#: Functions of the ratios: T (k, b), B (k, k, b) and log det (b,).
TraceFunctions = tuple[Array, Array, Array]

#: Ratios up to this are tabulated; genes beyond are evaluated exactly.
LARGEST_RATIO = 4.0
#: Relative interpolation error that the grid is chosen for.
ACCURACY = 1e-12


@dataclass(frozen=True)
class Axis:
    """Chebyshev grid in x = log(1 + g lam) on [lo, hi]."""

    lam: float
    lo: float
    hi: float
    size: int

    @classmethod
    def build(cls, lam: float, lowest: float) -> Axis:
        """Grid from 1 + g lam = `lowest` up to the largest ratio, as fine as the accuracy needs.

        The nearest singularity is pi away from the real line: Bernstein's ellipse gives the rate.
        """
        lo, hi = math.log(lowest), math.log1p(LARGEST_RATIO * lam)
        height = math.pi / (0.5 * (hi - lo))
        rate = height + math.sqrt(1.0 + height * height)
        return cls(lam, lo, hi, math.ceil(-math.log(ACCURACY) / math.log(rate)) + 4)

    def ratios(self, reference: Array) -> Array:
        """Ratios g (size,) at the Chebyshev nodes."""
        xp = namespace(reference)
        steps = like([(j + 0.5) / self.size for j in range(self.size)], reference)
        x = 0.5 * (self.lo + self.hi) + 0.5 * (self.hi - self.lo) * xp.cos(math.pi * steps)
        return xp.expm1(x) / self.lam

    def basis(self, g: Array) -> Array:
        """Chebyshev polynomials (b, size) at the ratios `g` (b,), which must lie inside."""
        xp = namespace(g)
        t = (2.0 * xp.log1p(g * self.lam) - (self.lo + self.hi)) / (self.hi - self.lo)
        one = xp.ones_like(t)
        angle = xp.acos(xp.minimum(xp.maximum(t, -one), one))  # (b,)
        return xp.cos(angle[:, None] * like(list(range(self.size)), g)[None, :])

    def transform(self, reference: Array) -> Array:
        """Matrix (size, size) from values at the nodes to Chebyshev coefficients."""
        rows = [
            [
                math.cos(m * math.pi * (j + 0.5) / self.size) * (1.0 if m == 0 else 2.0) / self.size
                for j in range(self.size)
            ]
            for m in range(self.size)
        ]
        return like(rows, reference)

    def covers(self, g: Array) -> Array:
        """Whether the ratios `g` (b,) lie on the grid."""
        A = 1.0 + g * self.lam
        return (math.exp(self.lo) <= A) & (math.exp(self.hi) >= A)


@dataclass(frozen=True)
class TraceTable:
    """Tabulated trace functions of k ratios."""

    axes: tuple[Axis, ...]
    coefficients: Array  #: (size_1, .., size_k, w), w = k + k^2 + 1 scaled functions

    @classmethod
    def build(
        cls, axes: tuple[Axis, ...], exact: Callable[[Array], TraceFunctions | None], reference: Array
    ) -> TraceTable | None:
        """Evaluate `exact` at all nodes of the grid and transform; None if it is None."""
        xp = namespace(reference)
        grids = xp.meshgrid(*[axis.ratios(reference) for axis in axes], indexing="ij")
        g = xp.stack([xp.reshape(grid, (-1,)) for grid in grids], axis=0)  # (k, nodes)
        functions = exact(g)
        if functions is None:
            return None
        values = _pack(functions, _scale(axes, g))  # (nodes, w)
        table = xp.reshape(values, (*[axis.size for axis in axes], values.shape[1]))
        for position, axis in enumerate(axes):
            rotated = xp.tensordot(axis.transform(reference), table, axes=((1,), (position,)))
            table = xp.moveaxis(rotated, 0, position)
        return cls(axes, table)

    def covers(self, g: Array) -> Array:
        """Whether each gene's ratios `g` (k, b) lie on the grid (b,)."""
        inside = self.axes[0].covers(g[0, :])
        for i, axis in enumerate(self.axes[1:], start=1):
            inside = inside & axis.covers(g[i, :])
        return inside

    def evaluate(self, g: Array) -> TraceFunctions:
        """T (k, b), B (k, k, b) and log det (b,) at ratios `g` (k, b) that the table covers."""
        xp = namespace(g)
        k, b = g.shape
        table = self.coefficients
        first = xp.reshape(table, (table.shape[0], -1))
        values = self.axes[0].basis(g[0, :]) @ first  # (b, the other axes and functions)
        for i, axis in enumerate(self.axes[1:], start=1):
            values = xp.reshape(values, (b, axis.size, -1))
            values = xp.matmul(axis.basis(g[i, :])[:, None, :], values)[:, 0, :]
        return _unpack(values, _scale(self.axes, g), k)


def _scale(axes: tuple[Axis, ...], g: Array) -> Array:
    # 1 + g_i lam_i (k, b): traces fall like its inverse, so that their product with it is of one size
    xp = namespace(g)
    return xp.stack([1.0 + g[i, :] * axis.lam for i, axis in enumerate(axes)], axis=0)


def _pack(functions: TraceFunctions, scale: Array) -> Array:
    xp = namespace(scale)
    T, B, logdet = functions
    k, b = T.shape
    scaled = B * scale[:, None, :] * scale[None, :, :]
    return xp.concat([T * scale, xp.reshape(scaled, (k * k, b)), logdet[None, :]], axis=0).T


def _unpack(values: Array, scale: Array, k: int) -> TraceFunctions:
    xp = namespace(values)
    rows = values.T  # (w, b)
    B = xp.reshape(rows[k : k + k * k, :], (k, k, rows.shape[1]))
    return rows[:k, :] / scale, B / (scale[:, None, :] * scale[None, :, :]), rows[-1, :]
