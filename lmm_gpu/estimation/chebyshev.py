"""Chebyshev tables of functions of the variance ratios, shared by all genes.

Traces, log determinants and variances of contrasts depend on a gene only through its ratios g = (g_1 .. g_k),
and else on the design. With many genes it is cheaper to tabulate these functions on a Chebyshev grid than to
factorise matrices per gene and iteration. In x_i = log(1 + g_i lam_i), lam_i the largest eigenvalue of effect i
alone, they are analytic in a strip of half-width pi around the real line, so that a grid of about fifty points per
effect is accurate to near rounding (Trefethen, Approximation Theory and Approximation Practice, theorem 8.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..backend.arrays import Array, flag_indices, indices, like, namespace, on_host, threads_for
from ..backend.blocks import blocks
from ..backend.fusion import fused
from ..backend.threads import in_threads

#: Ratios up to this are tabulated; genes beyond are evaluated exactly.
LARGEST_RATIO = 4.0
#: Relative interpolation error that the grid is chosen for.
ACCURACY = 1e-12
#: Relative error between the nodes above which a table is not used.
TOLERANCE = 1e-10
#: Number of points at which a table is checked.
_PROBES = 64
#: Points that are evaluated together on the host, within its caches.
_BLOCK = 8
#: Bytes of the points that are evaluated together on a device.
LARGEST_PART = 2**28


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

        The nearest singularity is pi away from the real line: Bernstein's ellipse through it gives the rate.
        """
        lo, hi = math.log(lowest), math.log1p(LARGEST_RATIO * lam)
        height = math.pi / (0.5 * (hi - lo))
        rate = height + math.sqrt(1.0 + height * height)
        return cls(lam, lo, hi, math.ceil(-math.log(ACCURACY) / math.log(rate)) + 4)

    def nodes(self) -> list[float]:
        """Chebyshev nodes of [-1, 1]."""
        return [math.cos(math.pi * (j + 0.5) / self.size) for j in range(self.size)]

    def ratios(self, t: list[float], reference: Array) -> Array:
        """Ratios g at positions `t` of [-1, 1]."""
        middle, half = 0.5 * (self.lo + self.hi), 0.5 * (self.hi - self.lo)
        return like([math.expm1(middle + half * one) / self.lam for one in t], reference)

    def basis(self, g: Array, degrees: Array) -> Array:
        """Chebyshev polynomials (b, size) of the `degrees` (1, size) at the ratios `g` (b,), which must lie inside."""
        middle, half = 0.5 * (self.lo + self.hi), 0.5 * (self.hi - self.lo)
        return _chebyshev(None, g[:, None], degrees, self.lam, middle, half)

    def numbers(self) -> tuple[float, ...]:
        """lam, middle and half width in x, and the range of 1 + g lam, as kernels need them."""
        middle, half = 0.5 * (self.lo + self.hi), 0.5 * (self.hi - self.lo)
        return self.lam, middle, half, math.exp(self.lo), math.exp(self.hi)

    def transform(self, reference: Array) -> Array:
        """Matrix (size, size) from values at the nodes to Chebyshev coefficients."""
        n = self.size
        weights = [1.0 / n] + [2.0 / n] * (n - 1)
        rows = [[weights[m] * math.cos(m * math.pi * (j + 0.5) / n) for j in range(n)] for m in range(n)]
        return like(rows, reference)

    def covers(self, g: Array) -> Array:
        """Flags (b,) of ratios `g` (b,) that lie on the grid."""
        return _covers(None, g, self.lam, math.exp(self.lo), math.exp(self.hi))


@fused
def _chebyshev(xp: Any, _: None, g: Array, degrees: Array, lam: float, middle: float, half: float) -> Array:
    # cos(n arccos t) at the place t of [-1, 1] where log(1 + g lam) lies
    t = (xp.log1p(g * lam) - middle) / half
    t = xp.where(t > 1.0, 1.0, xp.where(t < -1.0, -1.0, t))
    return xp.cos(xp.acos(t) * degrees)


@fused
def _covers(xp: Any, _: None, g: Array, lam: float, lowest: float, highest: float) -> Array:
    A = 1.0 + g * lam
    return (lowest <= A) & (highest >= A)


@dataclass(frozen=True)
class RatioTable:
    """w tabulated functions of the ratios of one or several effects."""

    axes: tuple[Axis, ...]
    coefficients: Array  #: (size_1, .., size_k, w)
    degrees: tuple[Array, ...]  #: (1, size_i), 0 .. size_i - 1

    @classmethod
    def build(
        cls,
        axes: tuple[Axis, ...],
        values: Array,
        functions: Callable[[Array], Array],
        size: Array | None = None,
        numbers: int = 1,
    ) -> RatioTable | None:
        """Interpolate `values` (w, size_1, .., size_k) at the nodes of the axes.

        None if the table is not accurate between its nodes, compared with `functions`, from ratios (k, b) to values
        (w, b): effects that overlap can bring a singularity close. Errors are judged against the largest value of each
        function, and against `size` (w,), what is added to it. `numbers` are those that `functions` need per ratio.
        """
        xp = namespace(values)
        coefficients = xp.moveaxis(values, 0, -1)  # (size_1, .., size_k, w)
        for position, axis in enumerate(axes):
            rotated = xp.tensordot(axis.transform(values), coefficients, axes=((1,), (position,)))
            coefficients = xp.moveaxis(rotated, 0, position)
        table = cls(axes, coefficients, tuple(like([list(range(axis.size))], values) for axis in axes))
        probes = xp.stack([axis.ratios(_probes(i), values) for i, axis in enumerate(axes)], axis=0)
        error = xp.max(xp.abs(table.evaluate(probes) - _in_blocks(functions, probes, numbers)), axis=1)  # (w,)
        nodes = math.prod(values.shape[1:])
        largest = xp.max(xp.abs(xp.reshape(values, (values.shape[0], nodes))), axis=1)
        largest = largest if size is None else size + largest
        return table if bool(xp.all(error <= TOLERANCE * largest)) else None

    def evaluate(self, g: Array) -> Array:
        """Values (w, b) at ratios `g` (k, b) that the grid covers."""
        xp = namespace(g)
        sizes, width = self.coefficients.shape[:-1], self.coefficients.shape[-1]
        flat = xp.reshape(self.coefficients, (sizes[0], math.prod(sizes[1:]) * width))
        values = self.axes[0].basis(g[0, :], self.degrees[0]) @ flat
        for i, axis in enumerate(self.axes[1:], start=1):
            rest = math.prod(sizes[i + 1 :]) * width
            values = xp.reshape(values, (g.shape[1], axis.size, rest))  # (b, size_i, the other axes and functions)
            values = xp.matmul(axis.basis(g[i, :], self.degrees[i])[:, None, :], values)[:, 0, :]
        return values.T

    def covers(self, g: Array) -> Array:
        """Flags (b,) of genes whose ratios `g` (k, b) lie on the grid."""
        inside = self.axes[0].covers(g[0, :])
        for i, axis in enumerate(self.axes[1:], start=1):
            inside = inside & axis.covers(g[i, :])
        return inside


def on_grid(axes: tuple[Axis, ...], functions: Callable[[Array], Array], reference: Array, numbers: int = 1) -> Array:
    """Values (w, size_1, .., size_k) at the nodes of the axes of `functions`, from ratios (k, b) to values (w, b)."""
    xp = namespace(reference)
    grids = xp.meshgrid(*[axis.ratios(axis.nodes(), reference) for axis in axes], indexing="ij")
    g = xp.stack([xp.reshape(grid, (-1,)) for grid in grids], axis=0)  # (k, nodes)
    values = _in_blocks(functions, g, numbers)  # (w, nodes)
    return xp.reshape(values, (values.shape[0], *[axis.size for axis in axes]))


def at_once(few: int, numbers: int, reference: Array) -> int:
    """Return the number of points to evaluate together: `few` on the host, all on a device within `LARGEST_PART`.

    Every point needs that many `numbers`; on a device the calls count, on the host its caches.
    """
    return few if on_host(reference) else max(few, LARGEST_PART // (8 * numbers))


def _in_blocks(functions: Callable[[Array], Array], g: Array, numbers: int) -> Array:
    # values (w, b) at the ratios `g` (k, b), a few at a time
    ranges = blocks(g.shape[1], at_once(_BLOCK, numbers, g))
    parts = in_threads(lambda at: functions(g[:, at[0] : at[1]]), ranges, threads_for(g))
    return joined(list(parts), axis=1)


def joined(parts: Sequence[Array], axis: int) -> Array:
    """Concatenate arrays; a single one is not copied."""
    return parts[0] if len(parts) == 1 else namespace(*parts).concat(list(parts), axis=axis)


def _probes(axis: int) -> list[float]:
    # positions of [-1, 1] that fill the grid evenly (Kronecker's sequence), the lowest corner first
    step = (0.5 * (math.sqrt(5.0) - 1.0)) ** (axis + 1)
    return [-1.0] + [2.0 * ((j * step) % 1.0) - 1.0 for j in range(1, _PROBES)]


def lookup(table: RatioTable | None, g: Array, exact: Callable[[Array], Array]) -> Array:
    """Values (w, b) at ratios `g` (k, b): from the table where it covers them, else by `exact`."""
    if table is None:
        return exact(g)
    xp, covered = namespace(g), table.covers(g)
    inside, outside = flag_indices(covered), flag_indices(~covered)
    if outside.size == 0:
        return table.evaluate(g)
    if inside.size == 0:
        return exact(g)
    first, second = indices(inside, g), indices(outside, g)
    parts = [table.evaluate(xp.take(g, first, axis=1)), exact(xp.take(g, second, axis=1))]
    return xp.take(xp.concat(parts, axis=1), xp.argsort(xp.concat([first, second], axis=0), stable=True), axis=1)
