"""The restricted (or full) log-likelihood of the variance components, written once for every likelihood.

A likelihood reduces the data of one gene at variance ratios g_i = s_i / s_0 to a few numbers (`Traces`);
everything that Fisher scoring needs is composed of those here. Notation as in Xu et al. (FLASH-MM), with
V = s_0 I + sum_i s_i Z_i Z_i', theta = (s_1 .. s_k, s_0), P0 = s_0 P, and ZVZ = Z' P0 Z:

    loglik = -1/2 [ N log(2 pi s_0) + log det A + yPy / s_0 ],   N = n - p (REML) or n (ML)
    score_i = ( E_i / s_0^2 - T_i / s_0 ) / 2,    score_0 = ( yR2y / s_0^2 - (N - sum g_i T_i) / s_0 ) / 2
    2 s_0^2 information: F_ij = B_ij,  F_i0 = T_i - sum_j g_j B_ij,  F_00 = N - 2 sum g_i T_i + g' B g

The quadratic forms are sums of what lies within and between the levels of the random effects. With S = K K',
h = K^+ Z'Ry and A = I + K'DK,

    yPy = y'P0 y = rss + h'A^-1 h,    yR2y = y'P0 P0 y = yPy - sum g_i E_i,    rss = y'Ry - h'h,

where rss, the residual sum of squares of y on [X Z], does not depend on the ratios. It is the only difference of large
numbers: where the cells of a level are nearly equal, its rounding error decides how many digits s_0 has.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, TypeVar

from ..backend.arrays import Array, namespace
from ..backend.fusion import fused
from ..backend.linalg import Vectors, rows_of
from .chebyshev import RatioTable
from .fisher_scoring import Evaluation
from .projection import ProjectedGenes, Remainder

if TYPE_CHECKING:
    from .grouped_effects import GroupedEffects

#: Relative rounding error of the terms of the log-likelihood, and of the terms of h'A^-1 h, which are fewer.
ROUNDING, ROUNDING_BETWEEN = 1e-13, 1e-15
L = TypeVar("L", bound="Likelihood")


@dataclass(frozen=True)
class Traces:
    """Numbers that one evaluation leaves per gene; b genes, k components."""

    T: Array  #: (k, b), tr(ZVZ_ii)
    B: Array  #: (k, k, b), sum of squares of the block ZVZ_ij
    E: Array  #: (k, b), |Z_i' P0 y|^2
    between_ss: Array  #: (b,), h'A^-1 h = y'P0 y - rss
    between_error: Array  #: (b,), its rounding error in units of the rounding of one operation
    logdet: Array  #: (b,), log det(V / s_0) up to the part of X
    ok: Array  #: (b,), bool: the covariance matrix is positive definite
    outside_table: Array | None = None  #: (b,), bool: not evaluated, as the ratios lie outside of the tables
    v: Array | None = None  #: (r, b), A^-1 h, which the random effects follow from, where it took a solve


@dataclass(frozen=True)
class _Point:
    """Traces, ratios and residual variance as vectors (b,), for one kernel."""

    s_0: Array
    unit: Array  #: residual variance without random effects, the scale of s_0
    rss: Array
    g: Vectors  #: k vectors
    T: Vectors  #: k vectors
    B: tuple[Vectors, ...]  #: k rows of k vectors
    E: Vectors  #: k vectors
    between_ss: Array
    between_error: Array
    logdet: Array
    ok: Array


class Likelihood(ABC):
    """Likelihood of the variance components for a block of genes; the contract of the two implementations.

    Attributes
    ----------
    n_components : int
        k; theta has k + 1 rows, the residual variance s_0 last.
    n_effective : int or array (b,)
        N = n - p for REML, n for ML; an array where genes have observations of their own, as for the next two.
    residual_df : int or array (b,)
        n - p.
    rank : int or array (b,)
        Rank of Z after X is projected out.
    yry : array (b,)
        Residual sum of squares of each gene after ordinary least squares on X.
    rss : array (b,)
        Residual sum of squares on [X Z], at least its rounding error.
    rss_error : array (b,)
        Bound of the rounding error of `rss`.
    """

    n_components: int
    n_effective: int | Array
    residual_df: int | Array
    rank: int | Array
    yry: Array
    rss: Array
    rss_error: Array

    by_levels: ClassVar[bool] = False  #: eliminates levels: a `GroupedEffects`

    @property
    def form_rows(self) -> int:
        """Numbers per gene, contrast and variance that forms of contrasts take."""
        return 1

    @property
    def variance_rows(self) -> int:
        """The same of `variance_form`."""
        return 1

    @abstractmethod
    def with_genes(self: L, genes: ProjectedGenes) -> L:
        """Return the likelihood of other genes of the same design."""

    @abstractmethod
    def select(self: L, index: Array) -> L:
        """Return the same likelihood for the genes at `index` (integers) only."""

    @abstractmethod
    def traces(self, g: Array) -> Traces:
        """Reduce the data at the variance ratios `g` (k, b)."""

    @abstractmethod
    def design_traces(self, g: Array) -> tuple[Array, Array]:
        """T (k, b) and B (k, k, b) of `traces`, which no data enter."""

    @abstractmethod
    def traces_at_zero(self) -> Traces:
        """Reduce the data without random effects, where all ratios are zero."""

    @abstractmethod
    def random_effects(self, g: Array) -> Array:
        """BLUPs u = D e (q, b)."""

    @abstractmethod
    def effect_form(self, g: Array, a: Array, v: Array | None = None) -> Array:
        """a' u (c, b) of the BLUPs u for the columns of `a` (q, c); `v` of the evaluation there, if known."""

    @abstractmethod
    def variance_form(self, g: Array, a: Array) -> Array:
        """a' N a (c, b) for the columns of `a` (q, c), where N = D (I + S D)^-1."""

    @abstractmethod
    def covariance_form(self, g: Array, a: Array) -> Array:
        """a' N a (c, c, b), all pairs of columns of `a` (q, c)."""

    @abstractmethod
    def gradient_form(self, g: Array, a: Array) -> Array:
        """|w_i|^2 (k, c, b) for w = (I + S D)^-1 a, the columns of `a` being (q, c)."""

    def untabulated(self: L) -> L:
        """Return the same without tables."""
        return self

    @abstractmethod
    def adjustment_form(self, g: Array, a: Array) -> Array:
        """w_i' ZVZ_ij w_j (k, k, c, b) for the w of `gradient_form`."""

    @abstractmethod
    def gradient_pairs(self, g: Array, a: Array) -> Array:
        """w_i' w_i (k, c, c, b) of all pairs of the w of `gradient_form`."""

    @abstractmethod
    def adjustment_pairs(self, g: Array, a: Array) -> Array:
        """w_i' ZVZ_ij w_j (k, k, c, c, b) of all pairs of the w of `gradient_form`."""

    @abstractmethod
    def curvature_form(self, g: Array) -> Array:
        """e_i' ZVZ_ij e_j (k, k, b) for e = Z' P0 y."""

    def variance_table(self, a: Array, size: Array) -> RatioTable | None:
        """Table of `variance_form` (c, b) for the columns of `a` (q, c), or None where it would not pay.

        Its errors are to be small against the values and `size` (c,).
        """
        return None

    def gradient_table(self, a: Array, size: Array) -> RatioTable | None:
        """Table of `gradient_form` as rows (k * c, b), likewise; `size` (k * c,)."""
        return None

    def start(self) -> Array:
        """FLASHMM's start (k+1, b): no random effects, s_0 from ordinary least squares."""
        xp = namespace(self.yry)
        s_0 = self.yry / self.residual_df
        return xp.stack([xp.zeros_like(s_0)] * self.n_components + [s_0], axis=0)

    def begin(self) -> tuple[Array, Evaluation]:
        """FLASHMM's start (k+1, b), and the evaluation there, which needs no factorisation."""
        theta = self.start()
        return theta, self._composed(theta[-1, :], self.ratios(theta), self.traces_at_zero())

    def attempt(self, theta: Array) -> Evaluation:
        """`evaluate` for the scoring loop: it never waits for the device, but a gene may have left the tables."""
        return self.evaluate(theta)

    def evaluate(self, theta: Array) -> Evaluation:
        """Log-likelihood, score and Fisher information at `theta` (k+1, b)."""
        return self._composed(theta[-1, :], g := self._valid_ratios(theta), self.traces(g))

    def information(self, theta: Array) -> Array:
        """Fisher information at `theta` (k+1, b) alone (k+1, k+1, b): a gene matters by its theta only."""
        xp, k = namespace(theta), self.n_components
        g = self.ratios(theta)  # (k, b)
        T, B = self.design_traces(g)
        entries = _information(None, theta[k, :], 1.0 * self.n_effective, rows(g), rows(T), _square_rows(B))
        flat = xp.stack([entry for row in entries for entry in row], axis=0)
        return xp.reshape(flat, (k + 1, k + 1, theta.shape[1]))

    def observed_information(self, theta: Array) -> Array:
        """Observed information (k+1, k+1, b) at `theta` (k+1, b): the negative Hessian of the log-likelihood.

        y'P V_i P V_j P y less the expected information, where V_0 = (V - sum_i s_i V_i) / s_0 and P V P = P.
        """
        xp = namespace(theta)
        g, s_0 = self.ratios(theta), theta[-1, :]  # (k, b), (b,)
        t = self.traces(g)
        curvature = self.curvature_form(g)  # (k, k, b)
        by_residual = t.E - xp.sum(curvature * g[None, :, :], axis=1)  # (k, b)
        yR2y = self.rss + t.between_ss - xp.sum(g * t.E, axis=0)  # (b,)
        corner = yR2y - xp.sum(g * by_residual, axis=0)  # (b,)
        top = xp.concat([curvature, by_residual[:, None, :]], axis=1)  # (k, k+1, b)
        bottom = xp.concat([by_residual, corner[None, :]], axis=0)  # (k+1, b)
        quadratic = xp.concat([top, bottom[None, :, :]], axis=0) / (s_0 * s_0 * s_0)[None, None, :]
        return quadratic - self._composed(s_0, g, t).information

    def at_boundary(self, theta: Array) -> Array:
        """Flags (b,) of genes with a component of exactly zero; a start at zero moves at once."""
        xp = namespace(theta)
        return xp.any(theta[: self.n_components, :] == 0, axis=0)

    def ratios(self, theta: Array) -> Array:
        """Variance ratios g (k, b) at `theta` (k+1, b)."""
        return theta[: self.n_components, :] / theta[self.n_components :, :]

    def _valid_ratios(self, theta: Array) -> Array:
        k = self.n_components
        return _ratios(None, theta[:k, :], theta[k:, :])  # (k, b)

    def _composed(self, s_0: Array, g: Array, t: Traces) -> Evaluation:
        """Log-likelihood, score and information from the traces at s_0 (b,) and the ratios `g` (k, b)."""
        point = _Point(
            s_0=s_0,
            unit=self.yry / self.residual_df,
            rss=self.rss,
            g=rows(g),
            T=rows(t.T),
            B=_square_rows(t.B),
            E=rows(t.E),
            between_ss=t.between_ss,
            between_error=t.between_error,
            logdet=t.logdet,
            ok=t.ok,
        )
        evaluation = _compose(None, 1.0 * self.n_effective, point)
        return replace(evaluation, outside_table=t.outside_table, v=t.v)

    def _remainder(self, sums: Remainder, h: Array, amplification: Array) -> tuple[Array, Array]:
        """Residual sum of squares on [X Z] (b,), at least as large as its rounding error, and that error (b,).

        `h` (r, b) is that of `sums`. `amplification` (1, r) are the squared factors by which relative errors of the
        sums are larger in h: the error of h_j is that of a number of the size of h_j times the factor.
        """
        squares = h * h  # (r, b)
        return self._guarded(sums, namespace(h).sum(squares, axis=0), (amplification @ squares)[0, :])

    def _guarded(self, sums: Remainder, explained: Array, size: Array) -> tuple[Array, Array]:
        # y'Ry less what is explained (b,), a sum of squares of numbers as accurate as those of `size` (b,)
        values, error = _within_ss(None, sums.yry, explained, sums.size + size, sums.unit)
        left = self.residual_df > self.rank  # without any degree of freedom, nothing is left but rounding error
        if isinstance(left, bool):
            return (values, error) if left else (0.0 * values, 0.0 * error)
        xp = namespace(values)
        return xp.where(left, values, 0.0), xp.where(left, error, 0.0)


def rows(values: Array) -> tuple[Array, ...]:
    """Rows of an array (k, b), as vectors for one kernel."""
    return tuple(values[i, :] for i in range(values.shape[0]))


def _square_rows(values: Array) -> tuple[Vectors, ...]:
    return tuple(tuple(row) for row in rows_of(values))


@fused
def _within_ss(xp: Any, _: None, yry: Array, explained: Array, size: Array, unit: float) -> tuple[Array, Array]:
    error = unit * size
    return xp.maximum(yry - explained, error), error


@fused
def _ratios(xp: Any, _: None, components: Array, s_0: Array) -> Array:
    # variance ratios; those of a residual variance that is not positive are not valid, whatever they are
    return components / xp.where(s_0 > 0, s_0, 1.0)


@fused
def _compose(xp: Any, _: None, N: float | Array, at: _Point) -> Evaluation:
    """Value, score and information as in the module's docstring."""
    positive = at.s_0 > 0
    s_0 = xp.where(positive, at.s_0, 1.0)
    gE = [g_i * E_i for g_i, E_i in zip(at.g, at.E, strict=True)]
    yPy = at.rss + at.between_ss
    yR2y = yPy - sum(gE)
    # what cancels in the value does not in its error; without the unit of y, on which no decision may depend
    relative = N * xp.log(s_0 / xp.where(at.unit > 0, at.unit, 1.0))
    size = 0.5 * (xp.abs(relative) + xp.abs(at.logdet) + xp.abs(yPy / s_0))
    value = -0.5 * (N * xp.log(2 * math.pi * s_0) + at.logdet + yPy / s_0)

    gT, F = _fisher(at.g, at.T, at.B, N)
    score = [0.5 * (E_i / s_0 - T_i) / s_0 for E_i, T_i in zip(at.E, at.T, strict=True)]
    score.append(0.5 * (yR2y / s_0 - (N - gT)) / s_0)
    scale = 0.5 / (s_0 * s_0)
    return Evaluation(
        value=value,
        score_rows=tuple(score),
        information_rows=tuple(tuple(scale * entry for entry in row) for row in F),
        yPy=yPy,
        rounding=ROUNDING * (1.0 + size) + ROUNDING_BETWEEN * at.between_error / s_0,
        ok=at.ok & positive & xp.isfinite(value),
    )


@fused
def _information(
    xp: Any, _: None, s_0: Array, N: float | Array, g: Vectors, T: Vectors, B: Sequence[Vectors]
) -> tuple[Vectors, ...]:
    # the information alone, k+1 rows of k+1 vectors (b,)
    s_0 = xp.where(s_0 > 0, s_0, 1.0)
    scale = 0.5 / (s_0 * s_0)
    return tuple(tuple(scale * entry for entry in row) for row in _fisher(g, T, B, N)[1])


def _fisher(g: Vectors, T: Vectors, B: Sequence[Vectors], N: float | Array) -> tuple[Array, list[list[Array]]]:
    # sum g_i T_i, and rows of 2 s_0^2 times the information, as in the module's docstring
    gT = sum(g_i * T_i for g_i, T_i in zip(g, T, strict=True))
    Bg = [sum(B_ij * g_j for B_ij, g_j in zip(row, g, strict=True)) for row in B]
    F_i0 = [T_i - Bg_i for T_i, Bg_i in zip(T, Bg, strict=True)]
    F_00 = N - 2 * gT + sum(g_i * Bg_i for g_i, Bg_i in zip(g, Bg, strict=True))
    return gT, [[*row, F_i] for row, F_i in zip(B, F_i0, strict=True)] + [[*F_i0, F_00]]


def eliminates_levels(likelihood: Likelihood) -> TypeGuard[GroupedEffects]:
    """Return whether a likelihood is a `GroupedEffects`, which is not imported for it."""
    return likelihood.by_levels
