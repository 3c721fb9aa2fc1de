"""One random effect: in the eigenbasis of S = Z'RZ everything is diagonal.

S = U diag(lam) U' once per design and c = U' Z'Ry for all genes; then, with w = 1 / (1 + g lam), every
number that Fisher scoring needs is a sum over q of elementwise products: no matrix per gene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..backend.arrays import Array, namespace
from ..backend.fusion import fused
from ..backend.host_decompositions import decomposed_on_host
from ..backend.linalg import eigh_psd, log_product
from .likelihood import Likelihood, Traces
from .projection import ProjectedGenes, Projection


@dataclass(frozen=True)
class SingleComponent(Likelihood):
    """Likelihood of (s_1, s_0) for b genes; q random-effect columns."""

    lam: Array  #: (q,), eigenvalues of S
    lam_trace: Array  #: (q,), eigenvalues whose traces enter: of S (REML) or of Z'Z (ML)
    inverse_lam: Array  #: (q,), 1 / lam, 0 where S is singular
    amplification: Array  #: (1, q), squared factors by which relative errors of the sums are larger in c / lam^1/2
    U: Array  #: (q, q), eigenvectors of S
    rotation: Array  #: (q, q), U', with rows of zeros where S is singular and U' Z'Ry is rounding error
    c: Array  #: (q, b), U' Z'Ry
    yry: Array  #: (b,)
    rss: Array  #: (b,)
    rss_error: Array  #: (b,)
    n_effective: int
    residual_df: int
    rank: int
    n_components: int = 1

    @classmethod
    def decompose(cls, projection: Projection, method: str) -> SingleComponent:
        """Decompose the design once; no genes yet."""
        lam, U, lam_trace, inverse_lam, amplification, rotation, rank = _eigenbasis(projection.S, projection.ZZ, method)
        p = projection.XXinv.shape[0]
        return cls(
            lam=lam,
            lam_trace=lam if lam_trace is None else lam_trace,
            inverse_lam=inverse_lam,
            amplification=amplification,
            U=U,
            rotation=rotation,
            c=U[:, :0],
            yry=lam[:0],
            rss=lam[:0],
            rss_error=lam[:0],
            n_effective=projection.n - (p if method == "REML" else 0),
            residual_df=projection.n - p,
            rank=rank,
        )

    def with_genes(self, genes: ProjectedGenes) -> SingleComponent:
        """Return the likelihood of `genes` of the same design."""
        c = self.rotation @ genes.sums.zry  # (q, b)
        within = c if genes.within is genes.sums else self.rotation @ genes.within.zry
        h = namespace(c).sqrt(self.inverse_lam)[:, None] * within
        rss, error = self._remainder(genes.within, h, self.amplification)
        return replace(self, c=c, yry=genes.sums.yry, rss=rss, rss_error=error)

    def with_rotated(self, c: Array, rss: Array) -> SingleComponent:
        """Return the likelihood of genes with U' Z'Ry (q, b), 0 where S is singular, and known exact `rss` (b,)."""
        return replace(self, c=c, yry=rss + self.inverse_lam @ (c * c), rss=rss, rss_error=0.0 * rss)

    def select(self, index: Array) -> SingleComponent:
        """Return the likelihood for the genes at `index`."""
        xp = namespace(self.c)
        yry, rss, error = (xp.take(x, index, axis=0) for x in (self.yry, self.rss, self.rss_error))
        return replace(self, c=xp.take(self.c, index, axis=1), yry=yry, rss=rss, rss_error=error)

    def traces(self, g: Array) -> Traces:
        """T, B, E, h'A^-1 h and log det at the ratios `g` (1, b)."""
        xp = namespace(g)
        ok = self._positive(g)  # (b,)
        w, w2, c2w, c2w2 = _sums(None, self.lam[:, None], xp.where(ok, g, 0.0), self.c)  # (q, b) each
        if self.lam_trace is not self.lam:
            ok_trace = 1.0 + xp.max(self.lam_trace) * g[0, :] > 0
            w, w2 = _weights(None, self.lam_trace[:, None], xp.where(ok_trace, g, 0.0))
            ok = ok & ok_trace
        T, B = self._weighted_traces(w, w2)
        between_ss = self.inverse_lam @ c2w  # (b,), a sum of squares: its error is relative
        return Traces(
            T=T,
            B=B,
            E=xp.sum(c2w2, axis=0)[None, :],
            between_ss=between_ss,
            between_error=between_ss,
            logdet=-log_product(w),
            ok=ok,
        )

    def design_traces(self, g: Array) -> tuple[Array, Array]:
        """T (1, b) and B (1, 1, b) of `traces`."""
        xp = namespace(g)
        ok = 1.0 + xp.max(self.lam_trace) * g[0, :] > 0  # (b,)
        return self._weighted_traces(*_weights(None, self.lam_trace[:, None], xp.where(ok, g, 0.0)))

    def _weighted_traces(self, w: Array, w2: Array) -> tuple[Array, Array]:
        lam = self.lam_trace[None, :]  # (1, q)
        return lam @ w, ((lam * lam) @ w2)[None, :, :]

    def traces_at_zero(self) -> Traces:
        """T, B, E, h'A^-1 h and log det without random effects: w = 1."""
        xp, lam = namespace(self.c), self.lam_trace
        zero = xp.zeros_like(self.yry)  # (b,)
        squares = self.c * self.c  # (q, b)
        T, B = zero + xp.sum(lam), zero + xp.sum(lam * lam)  # (b,)
        between_ss = self.inverse_lam @ squares  # (b,)
        return Traces(
            T=T[None, :],
            B=B[None, None, :],
            E=xp.sum(squares, axis=0)[None, :],
            between_ss=between_ss,
            between_error=between_ss,
            logdet=zero,
            ok=zero == 0,
        )

    def random_effects(self, g: Array) -> Array:
        """BLUPs (q, b)."""
        return self.U @ self._rotated_effects(g)

    def effect_form(self, g: Array, a: Array, v: Array | None = None) -> Array:
        """a' u (c, b): the eigenvectors meet the few columns of `a`, not the genes."""
        return (self.U.T @ a).T @ self._rotated_effects(g)

    def variance_form(self, g: Array, a: Array) -> Array:
        """a' N a (c, b): one matrix product for all genes."""
        w = self._shrinkage(g)
        ua = self.U.T @ a  # (q, c)
        return (ua * ua).T @ (g * w)

    def covariance_form(self, g: Array, a: Array) -> Array:
        """a' N a for all pairs of columns (c, c, b)."""
        return self._weighted_pairs(g * self._shrinkage(g), a)

    def gradient_form(self, g: Array, a: Array) -> Array:
        """|w|^2 (1, c, b)."""
        w = self._shrinkage(g)
        ua = self.U.T @ a  # (q, c)
        return ((ua * ua).T @ (w * w))[None, :, :]

    def adjustment_form(self, g: Array, a: Array) -> Array:
        """w' ZVZ w (1, 1, c, b)."""
        w = self._shrinkage(g)
        ua = self.U.T @ a  # (q, c)
        return ((ua * ua).T @ (self.lam[:, None] * w * w * w))[None, None, :, :]

    def gradient_pairs(self, g: Array, a: Array) -> Array:
        """w' w (1, c, c, b)."""
        w = self._shrinkage(g)
        return self._weighted_pairs(w * w, a)[None, :, :, :]

    def adjustment_pairs(self, g: Array, a: Array) -> Array:
        """w' ZVZ w (1, 1, c, c, b)."""
        w = self._shrinkage(g)
        return self._weighted_pairs(self.lam[:, None] * w * w * w, a)[None, None, :, :, :]

    def curvature_form(self, g: Array) -> Array:
        """e' ZVZ e (1, 1, b)."""
        xp = namespace(g)
        w = self._shrinkage(g)
        cw = self.c * w  # (q, b)
        return xp.sum(self.lam[:, None] * w * cw * cw, axis=0)[None, None, :]

    def _weighted_pairs(self, weights: Array, a: Array) -> Array:
        # a' U diag(weight) U' a (c, c, b) for `weights` (q, b): one matrix product for all genes
        xp = namespace(a)
        ua = self.U.T @ a  # (q, c)
        q, c = ua.shape
        pairs = xp.reshape(ua[:, :, None] * ua[:, None, :], (q, c * c))
        return xp.reshape(pairs.T @ weights, (c, c, weights.shape[1]))

    def _rotated_effects(self, g: Array) -> Array:
        # U' u (q, b)
        w = self._shrinkage(g)
        return g * self.c * w

    def _shrinkage(self, g: Array) -> Array:
        # w = 1 / (1 + g lam) (q, b)
        return 1.0 / (1.0 + self.lam[:, None] * namespace(g).where(self._positive(g), g, 0.0))

    def _positive(self, g: Array) -> Array:
        # every 1 + g lam is positive (b,): the largest lam decides
        return 1.0 + namespace(g).max(self.lam) * g[0, :] > 0


@decomposed_on_host
def _eigenbasis(S: Array, ZZ: Array, method: str) -> tuple[Array, Array, Array | None, Array, Array, Array, int]:
    """Eigenvalues and eigenvectors of S, eigenvalues of Z'Z if traces are taken of it, and what follows from them."""
    xp = namespace(S)
    squares = xp.linalg.diagonal(ZZ)  # (q,)
    lam, U = eigh_psd(S, xp.max(squares))
    inverse_lam = xp.where(lam > 0, 1.0 / xp.where(lam > 0, lam, 1.0), 0.0)
    amplification = (inverse_lam * (squares @ (U * U)))[None, :]
    rotation = xp.where((lam > 0)[:, None], U.T, 0.0)
    lam_trace = None if method == "REML" else eigh_psd(ZZ)[0]
    return lam, U, lam_trace, inverse_lam, amplification, rotation, int(xp.count_nonzero(lam))


@fused
def _weights(xp: Any, _: None, lam: Array, g: Array) -> tuple[Array, Array]:
    # w and w^2
    w = 1.0 / (1.0 + lam * g)
    return w, w * w


@fused
def _sums(xp: Any, _: None, lam: Array, g: Array, c: Array) -> tuple[Array, ...]:
    # w, w^2, c^2 w and (c w)^2: an evaluation needs their weighted sums over the eigenvalues
    w = 1.0 / (1.0 + lam * g)
    c2w = c * c * w
    return w, w * w, c2w, c2w * w
