"""Sums of squares whose distribution is known at the true variances, for any number of random effects.

With P0 = s_0 P, g_i = s_i / s_0 and effects ordered from the coarsest to the finest, take effects 1, .., j as fixed:
y'P0 y then depends on the ratios of the finer ones alone. The differences from one j to the next, and what is left when
all effects are fixed,

    R_j(g_j, .., g_k) ~ s_0 chi2 on r_j df,    R_0 ~ s_0 chi2 on r_0 df

are independent at the true ratios, whatever the balance. They are found on a grid of the ratios that all genes share.
With S = Z'RZ = K K' (R projects X out) and h = K^+ Z'Ry,

    y'P0 y = y'Ry - h'h + h' A^-1 h,   A = I + sum_i g_i K_i'K_i.

Where A = F'F without effect j, the singular values of K_j F^-1 are roots of s and V its right singular vectors,
R_j = sum_a (V'F^-T h)_a^2 / (1 + g_j s_a), in the space that the coarser effects leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..backend.late_imports import scipy
from ..estimation.projection import ProjectedGenes, Projection, Remainder
from .strata import IN_SPAN, inverse_root

#: Largest grid coordinate x = log(1 + g n), n the mean squared length of the effect's columns (cells per level), for
#: all but genes whose levels differ far more than their cells.
TOP = 13.0
#: Largest spacing of the grid, with one or two effects and with more.
SPACING = (0.5, 0.8)
#: Tail areas of chi-squared that grids leave out, at the low and at the high end.
_LOW, _HIGH = 1e-5, 1e-6
#: Largest range of a grid below zero, and beyond `TOP`.
_FARTHEST = 16.0


@dataclass(frozen=True)
class Axis:
    """Grid of one random effect, even in x.

    Nodes x >= 0 stand for the ratios g = (e^x - 1) / n. Nodes x <= 0, at the front, stand for g = 0 with the variance
    of the stratum a share e^x of what independent cells would give.
    """

    x: np.ndarray  #: (E,)
    below: int  #: S, nodes of shares; x = 0 is the last of these, and the first ratio
    n: float  #: mean squared length of the columns of Z

    @classmethod
    def build(cls, n: float, r: int, spacing: float, top: float = TOP) -> Axis:
        """Grid for a sum of squares on `r` df, up to `top` and beyond with few df; without df there are no shares."""
        low, middle, high = scipy.special.chdtri(max(r, 1), [1.0 - _LOW, 0.5, _HIGH])
        down = min(float(np.log(high / low)), _FARTHEST) if r > 0 else 0.0
        up = top + min(max(float(np.log(middle / low)) - 6.0, 0.0), _FARTHEST)
        shares = spacing * np.arange(-(int(down / spacing) + 1), 1)
        return cls(np.concatenate([shares, spacing * np.arange(int(up / spacing) + 1)]), len(shares), n)

    @property
    def g(self) -> np.ndarray:
        """Ratios (T,)."""
        result: np.ndarray = np.expm1(self.x[self.below :]) / self.n
        return result

    @property
    def ratio(self) -> np.ndarray:
        """Positions (E,) of the nodes among the ratios."""
        return np.maximum(np.arange(len(self.x)) - self.below, 0)

    @property
    def share(self) -> np.ndarray:
        """Shares (E,), 1 for the nodes of ratios."""
        result: np.ndarray = np.exp(np.minimum(self.x, 0.0))
        return result

    @property
    def log_step(self) -> np.ndarray:
        """Logarithms of the weights (E,) of an integral over x, by the trapezoidal rule below and above zero."""
        weight = np.ones(len(self.x))
        weight[[0, self.below - 1, self.below, -1]] = 0.5
        step: np.ndarray = np.log(weight * (self.x[1] - self.x[0]))
        return step

    @property
    def log_measure(self) -> np.ndarray:
        """Logarithms of the weights (T,) of an integral over g."""
        result: np.ndarray = (self.log_step + self.x)[self.below :] - np.log(self.n)
        return result


@dataclass(frozen=True)
class GenePivots:
    """Sums of squares of b genes at the ratios; the grid of R_j has axes (T_k, .., T_j), the finest effect first."""

    h: np.ndarray  #: (r, b)
    R0: np.ndarray  #: (b,)
    R: tuple[np.ndarray, ...]  #: (T_k, .., T_j, b) for each effect j
    fall: tuple[np.ndarray, ...]  #: -dR_j / dx_j, of the same shapes


@dataclass(frozen=True)
class Level:
    """Decompositions for one effect, with the coarser ones fixed, at all nodes of the finer ones."""

    basis: np.ndarray  #: (r, m), the space that the coarser effects leave
    at: tuple[tuple[int, ...], ...]  #: nodes of the finer effects, the finest first
    s: tuple[np.ndarray, ...]  #: (r_j,)
    V: tuple[np.ndarray, ...]  #: (r_j, m), orthonormal rows
    root: tuple[np.ndarray, ...]  #: F^-T of the finer effects: (m, m), or its diagonal (m,)
    log_det: tuple[float, ...]  #: log det F'F


@dataclass(frozen=True)
class Pivots:
    """A design, shared by all genes. Effects are ordered from the coarsest to the finest."""

    order: tuple[int, ...]  #: positions of the effects in the model
    K: tuple[np.ndarray, ...]  #: (d_j, r); K'K of the finest effect is diagonal
    H: np.ndarray  #: (r, q), rows that make h of Z'Ry
    r: tuple[int, ...]  #: r_1, .., r_k, r_0
    residual_df: int  #: N - p
    axes: tuple[Axis, ...]
    ZZ: tuple[tuple[np.ndarray, ...], ...]  #: blocks Z_i'Z_j
    nested: np.ndarray  #: (k, k), bool: whether Z_j lies in the span of Z_i

    @classmethod
    def build(cls, projection: Projection, d: Sequence[int], ranks: Sequence[int], top: float = TOP) -> Pivots:
        """Decompose a design.

        `projection` is on the host, `ranks` are those of the columns of Z of each effect, `top` is that of the grid.
        """
        order = tuple(sorted(range(len(d)), key=lambda j: ranks[j]))
        ends = np.cumsum([0, *d])
        rows = [np.arange(ends[j], ends[j + 1]) for j in order]
        ZZ = tuple(tuple(projection.ZZ[np.ix_(a, b)] for b in rows) for a in rows)
        size = float(np.diagonal(projection.ZZ).max())
        K, H = _factor(projection.S, size)
        _, turn = np.linalg.eigh(K[rows[-1]].T @ K[rows[-1]])
        parts = tuple(K[at] @ turn for at in rows)
        r, left = [], np.eye(K.shape[1])
        for part in parts:
            rest = _left_by(part @ left, size)
            r.append(left.shape[1] - rest.shape[1])
            left = left @ rest
        residual_df = projection.n - projection.XXinv.shape[0]
        axes = tuple(
            Axis.build(_mean_size(ZZ[i][i]), r[i], spacing(len(part), len(d)), top) for i, part in enumerate(parts)
        )
        nested = np.array([[_is_nested(ZZ[j][j], ZZ[i][j], ZZ[i][i]) for j in range(len(d))] for i in range(len(d))])
        return cls(order, parts, turn.T @ H, (*r, residual_df - K.shape[1]), residual_df, axes, ZZ, nested)

    @property
    def shape(self) -> tuple[int, ...]:
        """Ratios of each effect (T_k, .., T_1), the finest first."""
        return tuple(len(axis.g) for axis in reversed(self.axes))

    @cached_property
    def ratio(self) -> np.ndarray:
        """Positions of all nodes (E_k, .., E_1) on the grid of ratios (T_k, .., T_1), both flat."""
        place = np.ix_(*(axis.ratio for axis in reversed(self.axes)))
        result: np.ndarray = np.ravel_multi_index(place, self.shape).reshape(-1)
        return result

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Decompositions for each effect."""
        left, found = np.eye(self.H.shape[0]), []
        for j, r in enumerate(self.r[:-1]):
            inside = [part @ left for part in self.K[j:]]
            _, turn = np.linalg.eigh(inside[-1].T @ inside[-1])
            if j:  # in the whole space the finest effect is diagonal as it is
                left, inside = left @ turn, [part @ turn for part in inside]
            steps = [
                (at, root, log_det, *_spectrum(inside[0], root, r))
                for at, root, log_det in _roots(inside[1:], [axis.g for axis in self.axes[j + 1 :]], left.shape[1])
            ]
            at, root, log_det, s, V = zip(*steps, strict=True)
            found.append(Level(left, at, s, V, root, log_det))
            left = left @ _left_by(inside[0], float(np.diagonal(self.ZZ[j][j]).max()))
        return tuple(found)

    def of_genes(self, genes: ProjectedGenes) -> GenePivots:
        """Sums of squares of b genes."""
        h, within = self.H @ genes.sums.zry, self.H @ genes.within.zry  # (r, b)
        R0 = np.maximum(genes.within.yry - np.sum(within * within, axis=0), 0.0)  # (b,)
        R, fall = [], []
        for j, (level, axis) in enumerate(zip(self.levels, self.axes, strict=True)):
            of_level = level.basis.T @ h  # (m, b)
            shape = *(len(finer.g) for finer in reversed(self.axes[j:])), h.shape[1]
            values, falls = np.empty(shape), np.empty(shape)
            for at, s, V, root in zip(level.at, level.s, level.V, level.root, strict=True):
                squares = (times(V, root) @ of_level) ** 2  # (r_j, b)
                shrunken = 1.0 / (1.0 + np.multiply.outer(axis.g, s))  # (T_j, r_j)
                values[at] = shrunken @ squares
                falls[at] = ((axis.g + 1.0 / axis.n)[:, None] * s * shrunken**2) @ squares
            R.append(values)
            fall.append(falls)
        return GenePivots(h, R0, tuple(R), tuple(fall))

    @cached_property
    def log_determinant(self) -> np.ndarray:
        """log det A at the ratios (T_k, .., T_1)."""
        level, g = self.levels[0], self.axes[0].g
        result = np.empty(self.shape)
        for at, s, log_det in zip(level.at, level.s, level.log_det, strict=True):
            result[at] = log_det + np.log1p(np.multiply.outer(g, s)).sum(axis=1)
        return result

    @cached_property
    def log_jeffreys(self) -> np.ndarray:
        """Half of log det of the information of the ratios once s_0 is taken out (T_k, .., T_1).

        The information is half of tr(Z_i'P0 Z_j Z_j'P0 Z_i) - T_i T_j / (N - p), T_i = tr(Z_i'P0 Z_i).
        """
        level, result = self.levels[0], np.empty(self.shape)
        for at, s, V, root in zip(level.at, level.s, level.V, level.root, strict=True):
            traces, squares = _traces(self.K[1:], s, V, root, self.axes[0].g)
            information = 0.5 * (squares - np.einsum("it,jt->ijt", traces, traces) / self.residual_df)
            sign, log_det = np.linalg.slogdet(np.moveaxis(information, -1, 0))
            result[at] = np.where(sign > 0, 0.5 * log_det, -np.inf)
        return np.maximum(result, np.max(result) - 300.0)

    def solved(self, place: int, x: np.ndarray) -> np.ndarray:
        """A^-1 x (T_1, c, r) for x (T_1, c, r), at one node of the finer effects and all ratios of the coarsest."""
        level, g = self.levels[0], self.axes[0].g[:, None]
        s, V, root = level.s[place], level.V[place], level.root[place]
        y = times(x, root.T)
        y = y - ((y @ V.T) * (g * s / (1.0 + g * s))[:, None, :]) @ V
        return times(y, root)


def spacing(levels: int, effects: int) -> float:
    """Spacing that resolves a likelihood of log(1 + g n), whose standard deviation is about sqrt(2 / df)."""
    return float(min(SPACING[effects > 2], 1.7 * np.sqrt(2.0 / max(levels, 1))))


def times(x: np.ndarray, root: np.ndarray) -> np.ndarray:
    """The product of x (..., m) and a matrix (m, m), or the diagonal (m,) of one."""
    result: np.ndarray = x * root if root.ndim == 1 else x @ root
    return result


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


def _left_by(K: np.ndarray, size: float) -> np.ndarray:
    # orthonormal columns (m, m - rank) that the rows of K (d, m) leave
    _, s, rows = np.linalg.svd(K, full_matrices=True)
    return rows[int(np.count_nonzero(s**2 > IN_SPAN * size)) :].T


def _roots(
    K: Sequence[np.ndarray], g: Sequence[np.ndarray], m: int
) -> Iterator[tuple[tuple[int, ...], np.ndarray, float]]:
    """Yield nodes of effects, F^-T with F'F = A of these and log det A; K'K (m, m) of the last one is diagonal."""
    if not K:
        yield (), np.ones(m), 0.0
    elif len(K) == 1:
        size = np.sum(K[0] ** 2, axis=0)
        for i, ratio in enumerate(g[0]):
            yield (i,), 1.0 / np.sqrt(1.0 + ratio * size), float(np.log1p(ratio * size).sum())
    else:
        for at, root, log_det in _roots(K[1:], g[1:], m):
            s, V = _spectrum(K[0], root, min(K[0].shape))
            full = np.diag(root) if root.ndim == 1 else root
            for i, ratio in enumerate(g[0]):
                shrink = 1.0 - 1.0 / np.sqrt(1.0 + ratio * s)
                yield (*at, i), full - (V.T * shrink) @ (V @ full), log_det + float(np.log1p(ratio * s).sum())


def _spectrum(K: np.ndarray, root: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    # the largest eigenvalues (rank,) of F^-T K'K F^-1 and their vectors (rank, m)
    B = times(K, root.T)
    if len(B) <= B.shape[1]:
        s, U = np.linalg.eigh(B @ B.T)
        s, U = np.maximum(s[len(s) - rank :], IN_SPAN**2 * max(s[-1], 0.0)), U[:, len(s) - rank :]
        return s, (U / np.sqrt(np.maximum(s, np.finfo(float).tiny))).T @ B
    s, V = np.linalg.eigh(B.T @ B)
    return np.maximum(s[len(s) - rank :], 0.0), V[:, len(s) - rank :].T


def _traces(
    K: Sequence[np.ndarray], s: np.ndarray, V: np.ndarray, root: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # T_i (k, T_1) and tr(Z_i'P0 Z_j Z_j'P0 Z_i) (k, k, T_1); K are those of the finer effects
    k = len(K) + 1
    kept = 1.0 / (1.0 + np.multiply.outer(g, s))  # (T_1, r_1)
    lost = 1.0 - kept
    grams = [root**2 * np.sum(one**2, axis=0) if root.ndim == 1 else root @ one.T @ one @ root.T for one in K]
    inner = [times(V, gram) @ V.T for gram in grams]  # (r_1, r_1)
    traces, squares = np.empty((k, len(g))), np.empty((k, k, len(g)))
    traces[0], squares[0, 0] = (s * kept).sum(axis=1), ((s * kept) ** 2).sum(axis=1)
    for i, (gram, form) in enumerate(zip(grams, inner, strict=True), start=1):
        traces[i] = (gram.sum() if gram.ndim == 1 else np.trace(gram)) - lost @ np.diagonal(form)
        squares[0, i] = squares[i, 0] = (kept**2 * s) @ np.diagonal(form)
        for j in range(1, i + 1):
            other = grams[j - 1]
            both = np.sum(times(V, gram) * times(V, other), axis=1)  # (r_1,)
            value = (gram * other).sum() - 2.0 * lost @ both
            value = value + np.einsum("ta,ab,tb->t", lost, form * inner[j - 1], lost)
            squares[i, j] = squares[j, i] = value
    return traces, squares


def _mean_size(ZZ: np.ndarray) -> float:
    size = np.diagonal(ZZ)
    return float(size[size > 0].mean())


def _is_nested(inner: np.ndarray, cross: np.ndarray, outer: np.ndarray) -> bool:
    # whether columns with the Gram matrix `inner` lie in the span of those of `outer`
    root = inverse_root(outer)
    loads = root[:, None] * cross if root.ndim == 1 else root @ cross
    size = np.diagonal(inner)
    return bool((size - np.sum(loads**2, axis=0) <= IN_SPAN * size).all())
