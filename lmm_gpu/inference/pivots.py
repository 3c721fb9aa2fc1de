"""Sums of squares whose distribution is known at the true variances, for one or two random effects.

With P0 = s_0 P, "inf" for an effect taken as fixed, effect 1 the coarser one and g_i = s_i / s_0,

    R0        = y'P0(inf, inf) y                       ~ s_0 chi2 on r0 df
    R2(g2)    = y'P0(inf, g2) y - R0                   ~ s_0 chi2 on r2 df
    R1(g1,g2) = y'P0(g1, g2) y - y'P0(inf, g2) y       ~ s_0 chi2 on r1 df

at the true ratios, independently and whatever the balance. They are found on a grid of the ratios that all genes share.
With S = Z'RZ = K K' (R projects X out), h = K^+ Z'Ry and the columns of K rotated so that K2'K2 = diag(m),

    y'P0 y = y'Ry - h'h + h' A^-1 h,   A = I + g1 K1'K1 + g2 diag(m),

and with D = (I + g2 diag(m))^-1 and K1 D K1' = W diag(s) W', A^-1 = D - D K1'W diag(g1 / (1 + g1 s)) W'K1 D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..estimation.projection import ProjectedGenes, Projection, Remainder
from .mixtures import TINY
from .strata import IN_SPAN, inverse_root

#: Largest grid coordinate x = log(1 + g n), n the mean squared length of the effect's columns (cells per level).
TOP = 13.0
#: Spacing of the grid of the ratios, as far as sums of squares are inverted on it.
SPACING = 0.5


@dataclass(frozen=True)
class Axis:
    """Grid of the ratio of one random effect, even in x = log(1 + g n)."""

    x: np.ndarray  #: (T,)
    n: float  #: mean squared length of the columns of Z

    @classmethod
    def build(cls, n: float, spacing: float) -> Axis:
        """Grid from 0 to `TOP`; a single node at 0 for an effect that the model does not have (n = 0)."""
        return cls(spacing * np.arange(int(TOP / spacing) + 1), n) if n > 0 else cls(np.zeros(1), 1.0)

    @property
    def g(self) -> np.ndarray:
        """Ratios (T,)."""
        result: np.ndarray = np.expm1(self.x) / self.n
        return result

    @property
    def spacing(self) -> float:
        """Distance of two nodes."""
        return float(self.x[1] - self.x[0]) if len(self.x) > 1 else 1.0

    @property
    def log_measure(self) -> np.ndarray:
        """Logarithm of the trapezoidal weights of dg (T,)."""
        ends = np.ones(len(self.x))
        ends[[0, -1]] = 0.5
        return np.log(ends) + self.x - np.log(self.n) if len(self.x) > 1 else np.zeros(1)


@dataclass(frozen=True)
class GenePivots:
    """Sums of squares of b genes."""

    h: np.ndarray  #: (r, b)
    R0: np.ndarray  #: (b,)
    R2: np.ndarray  #: (T2, b)
    R1: np.ndarray  #: (T2, T1, b)


@dataclass(frozen=True)
class Pivots:
    """A design with one or two random effects, shared by all genes."""

    order: tuple[int, ...]  #: positions of the random effects in the model, the coarser one first
    K1: np.ndarray  #: (d1, r)
    K2: np.ndarray  #: (d2, r), K2'K2 = diag(m)
    H: np.ndarray  #: (r, q), rows that make h of Z'Ry
    m: np.ndarray  #: (r,)
    r: tuple[int, int, int]  #: r1, r2, r0
    residual_df: int  #: N - p
    axes: tuple[Axis, Axis]
    ZZ: tuple[np.ndarray, ...]  #: Z1'Z1, Z2'Z1, Z2'Z2; of one effect Z1'Z1 alone
    nested: bool  #: whether Z1 lies in the span of Z2

    @classmethod
    def build(cls, projection: Projection, d: Sequence[int], ranks: Sequence[int]) -> Pivots:
        """Decompose a design; `projection` is on the host, `ranks` are those of the effects' columns of Z."""
        order = tuple(sorted(range(len(d)), key=lambda j: ranks[j]))
        ends = np.cumsum([0, *d])
        rows = [np.arange(ends[j], ends[j + 1]) for j in order]
        ZZ = projection.ZZ
        K, H = _factor(projection.S, np.diagonal(ZZ).max())
        K1, K2 = K[rows[0]], K[rows[1]] if len(d) == 2 else K[:0]
        m, turn = np.linalg.eigh(K2.T @ K2)
        r1 = int(np.count_nonzero(np.linalg.svd(K1, compute_uv=False) ** 2 > IN_SPAN * np.diagonal(ZZ).max()))
        residual_df, r = projection.n - projection.XXinv.shape[0], K.shape[1]
        blocks = tuple(ZZ[np.ix_(a, b)] for a, b in _pairs(rows))
        sizes = [float(np.diagonal(ZZ)[at][np.diagonal(ZZ)[at] > 0].mean()) for at in rows]
        axes = Axis.build(sizes[0], SPACING), Axis.build(sizes[1] if len(d) == 2 else 0.0, SPACING)
        return cls(
            order=order,
            K1=K1 @ turn,
            K2=K2 @ turn,
            H=turn.T @ H,
            m=np.maximum(m, 0.0),
            r=(r1, r - r1, residual_df - r),
            residual_df=residual_df,
            axes=axes,
            ZZ=blocks,
            nested=len(d) == 2 and _is_nested(blocks),
        )

    def refined(self) -> Pivots:
        """Return the same on a grid that is fine enough to integrate likelihoods on."""
        spacings = [fine_spacing(r) for r in self.r[:2]]
        two = len(self.order) == 2
        one, other = self.axes
        return replace(self, axes=(Axis.build(one.n, spacings[0]), Axis.build(other.n if two else 0.0, spacings[1])))

    @cached_property
    def shrunken(self) -> np.ndarray:
        """D = 1 / (1 + g2 m) (T2, r)."""
        shrunken: np.ndarray = 1.0 / (1.0 + np.multiply.outer(self.axes[1].g, self.m))
        return shrunken

    @cached_property
    def spectra(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues s (T2, d1) of K1 D K1' and rows W'K1 (T2, d1, r)."""
        s, W = np.linalg.eigh((self.K1[None] * self.shrunken[:, None, :]) @ self.K1.T)
        return np.maximum(s, 0.0), np.swapaxes(W, 1, 2) @ self.K1

    @cached_property
    def finer_spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (r2,) of K2'K2 where effect 1 is fixed, and rows (r2, r) that turn h to them."""
        _, _, rows = np.linalg.svd(self.K1, full_matrices=True)
        free = rows[self.r[0] :]  # (r2, r)
        s, V = np.linalg.eigh((free * self.m) @ free.T)
        return np.maximum(s, 0.0), V.T @ free

    def of_genes(self, genes: ProjectedGenes) -> GenePivots:
        """Sums of squares of b genes on the grid."""
        h, within = self.H @ genes.sums.zry, self.H @ genes.within.zry  # (r, b)
        R0 = np.maximum(genes.within.yry - np.sum(within * within, axis=0), 0.0)  # (b,)
        s2, turn = self.finer_spectrum
        g1, g2 = (axis.g for axis in self.axes)
        R2 = (1.0 / (1.0 + np.multiply.outer(g2, s2))) @ (turn @ h) ** 2  # (T2, b)
        R1 = np.empty((len(g2), len(g1), h.shape[1]))
        for i, (D, s, rows) in enumerate(zip(self.shrunken, *self.spectra, strict=True)):
            some = s > IN_SPAN * s.max()
            squares = ((rows[some] * D) @ h) ** 2 / s[some, None]  # (r1, b)
            R1[i] = (1.0 / (1.0 + np.multiply.outer(g1, s[some]))) @ squares
        return GenePivots(h, R0, R2, R1)

    @cached_property
    def log_determinant(self) -> np.ndarray:
        """log det A (T2, T1)."""
        s, _ = self.spectra
        finer = np.log1p(np.multiply.outer(self.axes[1].g, self.m)).sum(axis=1)  # (T2,)
        result: np.ndarray = finer[:, None] + np.log1p(self.axes[0].g[None, :, None] * s[:, None, :]).sum(axis=2)
        return result

    @cached_property
    def log_jeffreys(self) -> np.ndarray:
        """Half of log det of the information of the ratios once s_0 is taken out (T2, T1)."""
        return np.stack([self._log_jeffreys(*parts) for parts in zip(self.shrunken, *self.spectra, strict=True)])

    def _log_jeffreys(self, D: np.ndarray, s: np.ndarray, rows: np.ndarray) -> np.ndarray:
        # tr(Zi'P0Zj Zj'P0Zi) - T_i T_j / (N - p), halved, at one ratio of effect 2 and all of effect 1 (T1,)
        g1 = self.axes[0].g[:, None]  # (T1, 1)
        shrink = 1.0 / (1.0 + g1 * s)  # (T1, d1)
        T1, B11 = (s * shrink).sum(axis=1), ((s * shrink) ** 2).sum(axis=1)
        N = self.residual_df
        one = B11 - T1 * T1 / N
        if len(self.order) == 1:
            result: np.ndarray = 0.5 * np.log(np.maximum(0.5 * one, TINY))
            return result
        mD = self.m * D  # (r,)
        N2 = rows * (D * np.sqrt(self.m))  # (d1, r)
        c, e, G = (N2**2).sum(axis=1), (N2**2) @ mD, N2 @ N2.T
        f = g1 * shrink  # (T1, d1)
        T2, B12 = mD.sum() - f @ c, (shrink**2) @ c
        B22 = (mD**2).sum() - 2.0 * f @ e + np.einsum("ti,ij,tj->t", f, G**2, f)
        det = one * (B22 - T2 * T2 / N) - (B12 - T1 * T2 / N) ** 2
        result = 0.5 * np.log(np.maximum(0.25 * det, TINY))
        return result

    def solved(self, i: int, x: np.ndarray) -> np.ndarray:
        """A^-1 x (T1, c, r) at node i of effect 2 and all of effect 1, for x (T1, c, r)."""
        D, (s, rows) = self.shrunken[i], (part[i] for part in self.spectra)
        g1 = self.axes[0].g[:, None]
        moved = (x * D) @ rows.T  # (T1, c, d1)
        correction = (moved * (g1 / (1.0 + g1 * s))[:, None, :]) @ rows  # (T1, c, r)
        result: np.ndarray = (x - correction) * D
        return result


def fine_spacing(r: int) -> float:
    """Spacing that resolves a likelihood of log(1 + g n), whose standard deviation is about sqrt(2 / r) for r df."""
    return float(min(SPACING, 1.7 * np.sqrt(2.0 / max(r, 1))))


def genes_at(genes: ProjectedGenes, at: slice | np.ndarray) -> ProjectedGenes:
    """Some of the genes."""

    def some(sums: Remainder) -> Remainder:
        return Remainder(sums.zry[:, at], sums.yry[at], sums.size[at], sums.unit)

    return ProjectedGenes(genes.beta_ols[:, at], some(genes.sums), some(genes.within), genes.has_residual_variance[at])


def _factor(S: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    # K (q, r) with S = K K', and its pseudo-inverse (r, q)
    values, vectors = np.linalg.eigh(S)
    kept = values > IN_SPAN * size
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, (vectors[:, kept] / root).T


def _pairs(rows: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(rows[0], rows[0])] if len(rows) == 1 else [(rows[0], rows[0]), (rows[1], rows[0]), (rows[1], rows[1])]


def _is_nested(blocks: Sequence[np.ndarray]) -> bool:
    # whether the columns of Z1 lie in the span of Z2
    ZZ11, ZZ21, ZZ22 = blocks
    root = inverse_root(ZZ22)
    loads = root[:, None] * ZZ21 if root.ndim == 1 else root @ ZZ21
    size = np.diagonal(ZZ11)
    return bool((size - np.sum(loads**2, axis=0) <= IN_SPAN * size).all())
