"""Several random effects: the likelihood of (s_1 .. s_k, s_0), from the roots of S and Z'Z.

Traces and F depend on the design alone: with many genes they are tabulated over the ratios. Per gene there is one solve
of the size of the effects that are not eliminated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backend.arrays import Array, like, namespace, threads_for, to_numpy
from ..backend.blocks import blocks, ranges
from ..backend.fusion import fused
from ..backend.host_decompositions import decomposed_on_host
from ..backend.linalg import Vectors, largest_eigenvalue
from ..backend.threads import in_threads
from .block_elimination import EliminatedFactor, Solution
from .block_size import table_bytes
from .chebyshev import Axis, RatioTable, at_once, joined, lookup, on_grid
from .component_forms import ComponentForms
from .fisher_scoring import Evaluation
from .likelihood import Traces, rows
from .projection import ProjectedGenes, Projection
from .two_components import NODES, Spectra

#: Where the tables begin, as the smallest 1 + g_i lam_i: the lower, the more negative components they cover.
LOWEST = (0.1, 0.3, 0.55, 0.9)
#: Bytes that the tables may take by default.
LARGEST_TABLES = 2**31


@dataclass(frozen=True)
class MultiComponent(ComponentForms):
    """Likelihood of (s_1 .. s_k, s_0) for b genes."""

    root: EliminatedFactor  #: of S = Z'RZ: quadratic forms in y, and traces for REML
    root_trace: EliminatedFactor  #: the root whose traces enter: of S (REML) or of Z'Z (ML)
    T_0: Array  #: (k, 1), these traces without random effects
    B_0: Array  #: (k, k, 1)
    lam: Array  #: (k, 1), largest eigenvalue of every effect alone
    axes: tuple[Axis, ...] | None  #: grid of the tables, if there are enough genes
    spectra: Spectra | None  #: of two effects, at the grid's ratios of the eliminated one
    trace_table: RatioTable | None
    F_table: RatioTable | None  #: the part of F that depends on the ratio of the eliminated effect
    F_rest: Array | None  #: (pairs, 1), the rest of F
    d: tuple[int, ...]
    h: Array  #: (r, b), Z'Ry = K h
    yry: Array  #: (b,)
    rss: Array  #: (b,)
    rss_error: Array  #: (b,)
    n_effective: int
    residual_df: int
    rank: int
    n_components: int
    n_fixed: int  #: columns of X

    @classmethod
    def decompose(
        cls, projection: Projection, d: tuple[int, ...], method: str, genes: int = 0, memory: int | None = None
    ) -> MultiComponent:
        """Decompose the design once; no genes yet.

        With tables if they pay for that many `genes`, and take no more than `memory` (bytes).
        """
        root, other_root, T, B, positive, lam = _roots(projection.S, projection.ZZ, d, method)
        p = projection.XXinv.shape[0]
        plain = cls(
            root=root,
            root_trace=root if other_root is None else other_root,
            T_0=T[:, :1],
            B_0=B[:, :, :1],
            lam=lam[:, None],
            axes=None,
            spectra=None,
            trace_table=None,
            F_table=None,
            F_rest=None,
            d=d,
            h=root.inverse[:, :0],
            yry=root.mu[:0],
            rss=root.mu[:0],
            rss_error=root.mu[:0],
            n_effective=projection.n - (p if method == "REML" else 0),
            residual_df=projection.n - p,
            rank=root.mu.shape[0],
            n_components=len(d),
            n_fixed=p,
        )
        positive_definite = to_numpy(positive)[1:].tolist()
        return plain._with_tables(positive_definite, genes, LARGEST_TABLES if memory is None else memory)

    def with_genes(self, genes: ProjectedGenes) -> MultiComponent:
        """Return the likelihood of `genes` of the same design."""
        h = self.root.inverse @ genes.sums.zry  # (r, b)
        within = h if genes.within is genes.sums else self.root.inverse @ genes.within.zry
        rss, error = self._remainder(genes.within, within, self.root.amplification)
        return replace(self, h=h, yry=genes.sums.yry, rss=rss, rss_error=error)

    def select(self, index: Array) -> MultiComponent:
        """Return the likelihood for the genes at `index`."""
        xp = namespace(self.h)
        yry, rss, error = (xp.take(x, index, axis=0) for x in (self.yry, self.rss, self.rss_error))
        return replace(self, h=xp.take(self.h, index, axis=1), yry=yry, rss=rss, rss_error=error)

    def attempt(self, theta: Array) -> Evaluation:
        """`evaluate` from the tables alone, with a flag for genes that lie outside of them."""
        if self.trace_table is None:
            return self.evaluate(theta)
        return self._composed(theta[-1, :], g := self._valid_ratios(theta), self._tabulated_traces(g))

    def traces(self, g: Array) -> Traces:
        """Reduce the data at the ratios `g` (k, b)."""
        if self.trace_table is None:
            T, B, logdet, ok, F = self.root_trace.traces(g)
            F = F if self.root_trace is self.root else self.root.F(g)
            return self._with_squares(g, T, B, logdet, ok, self.root.solve(g, self.h, self.root.system(g, F)))
        shared = lookup(self.trace_table, g, self._trace_functions)  # (k + k^2 + 2, b)
        return self._with_squares(g, *self._unscaled(g, shared), self._whitened(g))

    def design_traces(self, g: Array) -> tuple[Array, Array]:
        """T (k, b) and B (k, k, b) of `traces`."""
        if self.trace_table is None:
            return self.root_trace.traces(g)[:2]
        return self._unscaled(g, lookup(self.trace_table, g, self._trace_functions))[:2]

    def _tabulated_traces(self, g: Array) -> Traces:
        # the same from the tables alone, at ratios of zero where they do not reach
        assert self.trace_table is not None and self.F_table is not None
        xp, covered = namespace(g), self.trace_table.covers(g)
        inside = xp.where(covered[None, :], g, 0.0)
        g_e = inside[self.root.eliminated : self.root.eliminated + 1, :]
        whitened = self._whitened_by(inside, self.F_table.evaluate(g_e))
        found = self._with_squares(inside, *self._unscaled(inside, self.trace_table.evaluate(inside)), whitened)
        return replace(found, ok=found.ok & covered, outside_table=~covered)

    def _with_squares(self, g: Array, T: Array, B: Array, logdet: Array, ok: Array, solution: Solution) -> Traces:
        E, between_ss, size = self._squares(g, solution)
        error = size * namespace(g).max(self._scale(g), axis=0)  # (b,), by the condition number of what was solved
        return Traces(T, B, E, between_ss, error, logdet=logdet, ok=ok & solution.ok, v=solution.v)

    def untabulated(self) -> MultiComponent:
        """Return the same without tables."""
        return replace(self, axes=None, spectra=None, trace_table=None, F_table=None, F_rest=None)

    def traces_at_zero(self) -> Traces:
        """Reduce the data without random effects: A = I."""
        xp, k, b = namespace(self.h), self.n_components, self.h.shape[1]
        T, B = xp.broadcast_to(self.T_0, (k, b)), xp.broadcast_to(self.B_0, (k, k, b))
        zero = xp.zeros_like(self.yry)
        at_zero = Solution(self.h, self.root.K_R @ self.h, zero == 0)
        E, between_ss, size = self._squares(xp.zeros_like(T), at_zero)
        return Traces(T, B, E, between_ss, size, logdet=zero, ok=at_zero.ok)

    def variance_table(self, a: Array, size: Array) -> RatioTable | None:
        """Table of `variance_form`, if there is a grid."""
        exact = lambda g: self.variance_form(g, a)  # noqa: E731
        return self._table(exact, lambda at, g: at.variance_form(g, a), size)

    def gradient_table(self, a: Array, size: Array) -> RatioTable | None:
        """Table of `gradient_form` as rows (k * c, b), if there is a grid."""
        exact = lambda g: _rows(self.gradient_form(g, a), 1)  # noqa: E731
        return self._table(exact, lambda at, g: _rows(at.gradient_form(g, a), 2), size)

    def _with_tables(self, positive_definite: Sequence[bool], genes: int, memory: int) -> MultiComponent:
        """The same with tables, if there is a grid that they are accurate on, cheaper than the genes and not too large.

        V grows with every ratio: it is positive definite on the whole grid if it is at the lowest corner, for which
        there are flags in the order of `LOWEST`.
        """
        largest, e = to_numpy(self.lam)[:, 0].tolist(), self.root.eliminated
        for lowest, positive in zip(LOWEST, positive_definite, strict=True) if min(largest) > 0 else ():
            axes = tuple(Axis.build(lam, lowest) for lam in largest)
            nodes = axes[e].size if len(axes) == 2 else math.prod(axis.size for axis in axes)
            functions = len(axes) * (len(axes) + 1) + 2 + self.n_fixed
            too_large = table_bytes(tuple(axis.size for axis in axes), self.root.K_R.shape[0], functions) > memory
            if nodes > genes or too_large or not positive:
                continue
            g_e = axes[e].ratios(axes[e].nodes(), self.lam)  # (J,)
            grid = replace(self, axes=axes, spectra=Spectra.build(self.root, g_e) if len(axes) == 2 else None)
            of_traces = grid if self.root_trace is self.root else grid._with_spectra_of(self.root_trace, g_e)
            traces = of_traces._table(self._trace_functions, self._trace_rows_of)
            F_nodes = self._F_function(g_e[None, :])  # (pairs, J)
            F = RatioTable.build((axes[e],), F_nodes, self._F_function, numbers=self.root.numbers())
            if traces is not None and F is not None:
                return replace(grid, trace_table=traces, F_table=F, F_rest=self.root.packed_F_rest())
        return self

    def _with_spectra_of(self, root: EliminatedFactor, g_e: Array) -> MultiComponent:
        return replace(self, spectra=None if self.spectra is None else Spectra.build(root, g_e))

    def _table(
        self, exact: Callable[[Array], Array], by_spectra: Callable[[Spectra, Array], Array], size: Array | None = None
    ) -> RatioTable | None:
        """Table of functions on the grid, from ratios (k, b) to rows (w, b); None if there is no grid.

        Of two effects it is filled from the spectra: (w, J, I) from J ratios of the eliminated effect and I of the
        other.
        """
        if self.axes is None:
            return None
        numbers = self.root.numbers(self.n_fixed)
        if self.spectra is None:
            return RatioTable.build(self.axes, on_grid(self.axes, exact, self.lam, numbers), exact, size, numbers)
        e, spectra = self.root.eliminated, self.spectra
        g = self.axes[1 - e].ratios(self.axes[1 - e].nodes(), self.lam)  # (I,)
        ranges = blocks(self.axes[e].size, at_once(NODES, spectra.numbers(g.shape[0], self.n_fixed), g))
        parts = in_threads(lambda at: by_spectra(spectra.nodes(*at), g), ranges, threads_for(g))
        values = joined(list(parts), axis=1)  # (w, J, I)
        values = namespace(g).moveaxis(values, 2, 1) if e else values
        return RatioTable.build(self.axes, values, exact, size, numbers)

    def _trace_functions(self, g: Array) -> Array:
        # T, B, log det and validity as rows (k + k^2 + 2, b); traces fall like 1 / (1 + g lam): scaled to one size
        T, B, logdet, ok, _ = self.root_trace.traces(g)
        return self._trace_rows(g, T, B, logdet, ok)

    def _trace_rows_of(self, spectra: Spectra, g: Array) -> Array:
        # the same at the ratios of `spectra` and `g` of the other effect (k + k^2 + 2, J, I)
        xp, J, I = namespace(g), spectra.g_e.shape[0], g.shape[0]
        both = [xp.broadcast_to(spectra.g_e[:, None], (J, I)), xp.broadcast_to(g[None, :], (J, I))]
        ratios = xp.stack(both[::-1] if self.root.eliminated else both, axis=0)  # (2, J, I)
        flat = [xp.reshape(x, (*x.shape[:-2], J * I)) for x in (ratios, *spectra.traces(g))]
        found = self._trace_rows(*flat)
        return xp.reshape(found, (found.shape[0], J, I))

    def _trace_rows(self, g: Array, T: Array, B: Array, logdet: Array, ok: Array) -> Array:
        xp, (k, b), scale = namespace(g), g.shape, self._scale(g)  # (k, b)
        B = xp.reshape(B * scale[:, None, :] * scale[None, :, :], (k * k, b))
        return xp.concat([T * scale, B, logdet[None, :], xp.astype(ok, g.dtype)[None, :]], axis=0)

    def _unscaled(self, g: Array, functions: Array) -> tuple[Array, Array, Array, Array]:
        # T, B, log det and validity from rows of `_trace_functions`
        k, b = g.shape
        scale = self._scale(g)  # (k, b)
        B = namespace(g).reshape(functions[k : k + k * k, :], (k, k, b)) / (scale[:, None, :] * scale[None, :, :])
        return functions[:k, :] / scale, B, functions[-2, :], functions[-1, :] > 0.5

    def _scale(self, g: Array, effect: int | None = None) -> Array:
        # 1 + g lam (k, b) of all effects, or (1, b) of one; 1 where it is not positive, which is not valid anyhow
        return _positive_scale(None, g, self.lam if effect is None else self.lam[effect : effect + 1, :])

    def _F_function(self, g_e: Array) -> Array:
        # upper triangle of the part of F that falls with the ratio (pairs, b), scaled likewise
        return self.root.packed_F(g_e) * self._scale(g_e, self.root.eliminated)

    def _whitened(self, g: Array) -> Solution:
        # v = A^-1 h (r, b), so that Z'P0 y = K v
        if self.F_table is None:
            return self.root.solve(g, self.h, self.root.system(g, self.root.F(g)))
        g_e = g[self.root.eliminated : self.root.eliminated + 1, :]  # (1, b)
        return self._whitened_by(g, lookup(self.F_table, g_e, self._F_function))

    def _whitened_by(self, g: Array, F_scaled: Array) -> Solution:
        # the same from rows of `_F_function` (pairs, b)
        e = self.root.eliminated
        packed_F = F_scaled / self._scale(g[e : e + 1, :], e) + self.F_rest
        return self.root.solve(g, self.h, self.root.packed_system(g, packed_F))

    def _squares(self, g: Array, solution: Solution) -> tuple[Array, Array, Array]:
        """E (k, b), h'A^-1 h (b,), and the size of the numbers that it is a sum of (b,).

        |v|^2 + sum g_i E_i is accurate where ratios are large, h'v near the edge of positive definite V.
        """
        xp = namespace(g)
        v_v, v_h = _products(None, solution.v, self.h)  # (r, b)
        E = self.root.sums(v_v, solution.e_R * solution.e_R)  # (k, b)
        product, squares = xp.sum(v_h, axis=0), xp.sum(v_v, axis=0)  # (b,)
        between_ss, size = _between_ss(None, product, squares, self.yry, self.rss, rows(g), rows(E))
        return E, between_ss, size


@decomposed_on_host
def _roots(
    S: Array, ZZ: Array, d: tuple[int, ...], method: str
) -> tuple[EliminatedFactor, EliminatedFactor | None, Array, Array, Array, Array]:
    """Roots of S, and of Z'Z if traces are taken of it (ML).

    Then T (k, g), B (k, k, g) and validity (g,) at the g ratios of `_corners`, and the largest eigenvalue of every
    effect alone (k,).
    """
    xp = namespace(S)
    squares = xp.linalg.diagonal(ZZ)  # (q,)
    root = EliminatedFactor.build(S, squares, d)
    matrix, other = (S, None) if method == "REML" else (ZZ, EliminatedFactor.build(ZZ, squares, d))
    lam = xp.stack([largest_eigenvalue(matrix[lo:hi, lo:hi]) for lo, hi in ranges(d)])  # (k,)
    T, B, _, positive, _ = (other or root).traces(_corners(lam))
    return root, other, T, B, positive, lam


def _corners(lam: Array) -> Array:
    # ratios (k, 1 + number of grids): none, and the lowest corner of every grid for the largest eigenvalues (k,)
    xp = namespace(lam)
    ends = like([0.0, *(lowest - 1.0 for lowest in LOWEST)], lam)
    return ends[None, :] / xp.where(lam > 0, lam, 1.0)[:, None]


def _rows(values: Array, kept: int) -> Array:
    # all but the last `kept` axes as one
    shape = values.shape
    return namespace(values).reshape(values, (math.prod(shape[:-kept]), *shape[-kept:]))


@fused
def _products(xp: Any, _: None, a: Array, b: Array) -> tuple[Array, Array]:
    return a * a, a * b


@fused
def _between_ss(
    xp: Any, _: None, product: Array, squares: Array, yry: Array, rss: Array, g: Vectors, E: Vectors
) -> tuple[Array, Array]:
    # the form with the smaller terms, and their size; |h|^2 = yry - rss
    gE = [g_i * E_i for g_i, E_i in zip(g, E, strict=True)]
    by_product = xp.sqrt(xp.abs(yry - rss) * squares)
    by_squares = squares + sum(xp.abs(x) for x in gE)
    return xp.where(by_product < by_squares, product, squares + sum(gE)), xp.minimum(by_product, by_squares)


@fused
def _positive_scale(xp: Any, _: None, g: Array, lam: Array) -> Array:
    scale = 1.0 + g * lam
    return xp.where(scale > 0, scale, 1.0)
