"""The linear mixed model of a block of genes: variance likelihood and fixed effects together.

    u = D e (BLUPs),  beta = beta_ols - xxz u,  cov(beta) = s_0 [ XXinv + xxz N xxz' ],  N = D (I + S D)^-1

No matrix of the size of the random effects is inverted per gene, and nothing p x p is stored per gene unless
the covariance itself is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ..backend.arrays import Array, namespace
from ..backend.blocks import blocks, ranges
from ..backend.linalg import cholesky, inverse_and_logdet, largest_eigenvalue
from ..backend.sparse import is_sparse
from ..backend.threads import workers
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats
from .block_size import Shape, blocks_pay
from .chebyshev import LARGEST_RATIO, RatioTable, lookup
from .covariance_terms import LevelBlock, terms_of, widest_block
from .likelihood import Likelihood, eliminates_levels
from .one_component import SingleComponent
from .projection import ProjectedGenes, Projection

# the other likelihoods are imported for the models that need them

#: Bytes of the vectors of contrasts that are formed together.
LARGEST_PIECE = 2**26
#: Arrays of that size that exist at a time.
TEMPORARIES = 8
#: Smallest eigenvalue of V, as a share of s_0, up to which a gene is taken to be at the edge of positive definite V.
EDGE = 1e-3
#: Algorithms by the names of their likelihoods.
ENGINES = {
    "SingleComponent": "spectral",
    "MultiComponent": "spectral, widest effect eliminated",
    "GroupedEffects": "elimination by levels",
}


@dataclass(frozen=True)
class Contrasts:
    """Contrasts of the fixed effects, ready for any genes of a model."""

    C: Array  #: (c, p), contrasts in rows
    a: Array  #: (q, c), their loadings xxz' C' on the random effects
    ols: Array  #: (c,), c' XXinv c
    variance: RatioTable | None = None  #: a' N a (c, b) of the ratios
    gradient: RatioTable | None = None  #: |w_i|^2 (k * c, b) of the ratios


@dataclass(frozen=True)
class MixedModel:
    """Likelihood of theta, and the fixed effects that follow from theta, for b genes."""

    projection: Projection
    likelihood: Likelihood
    largest: Array  #: (k,), largest eigenvalue of each Z_i'Z_i
    beta_ols: Array  #: (p, b)
    has_residual_variance: Array  #: (b,), bool: the gene has variance left after X
    memory: int | None = None  #: bytes that a fit may take, None if nothing was said

    @classmethod
    def build(cls, summary: SummaryStats, method: str = "REML") -> MixedModel:
        """Return the model of all genes of `summary`."""
        return cls.decompose(summary, method).with_genes(summary)

    @classmethod
    def decompose(
        cls, summary: SummaryStats, method: str = "REML", memory: int | None = None, genes: int | None = None
    ) -> MixedModel:
        """Project X out and decompose the random effects, which all genes share; no genes yet.

        Tables of what depends on the variance ratios alone are made if they pay for so many `genes`, by default those
        of `summary`, and may take `memory` (bytes).
        """
        count = summary.m if genes is None else genes
        needed = max(summary.term_sizes) > 1 or isinstance(summary, WeightedStats) or is_sparse(summary.ZZ)
        if needed or _blocks_pay(summary, count):
            model = cls.by_blocks(summary, method)
        else:
            model = cls.spectral(summary, method, memory, count)
        return replace(model, memory=memory)

    @classmethod
    def spectral(
        cls, summary: SummaryStats, method: str = "REML", memory: int | None = None, genes: int = 0
    ) -> MixedModel:
        """Return the design with all random effects decomposed together."""
        projection = Projection.build(summary)
        likelihood = cls._likelihood(projection, summary.d, method, memory, genes)
        return cls._without_genes(summary, projection, likelihood, _largest_eigenvalues(summary))

    @classmethod
    def by_blocks(cls, summary: SummaryStats, method: str = "REML") -> MixedModel:
        """Return the design for an elimination level by level: correlated effects, and groupings of any size.

        Raises
        ------
        ValueError
            If levels of the widest term share cells, as columns of Z that are not of one grouping do.
        """
        from .grouped_effects import GroupedEffects, aligned

        terms, eliminated = terms_of(summary.d, summary.term_sizes), _widest_block(summary)
        if eliminated is None:
            raise ValueError(
                "the columns of Z of the widest random effect share cells; with correlated effects, weights per gene, "
                "or more than 4,000 columns they must be the levels of one grouping"
            )
        projection = aligned(Projection.build(summary, by_blocks=True), eliminated)
        likelihood = GroupedEffects.decompose(projection, terms, eliminated, method)
        return cls._without_genes(summary, projection, likelihood, likelihood.scale[:, 0])

    @classmethod
    def _without_genes(
        cls, summary: SummaryStats, projection: Projection, likelihood: Likelihood, largest: Array
    ) -> MixedModel:
        return cls(projection, likelihood, largest, projection.XXinv[:, :0], summary.Ynorm[:0] > 0)

    @staticmethod
    def _likelihood(
        projection: Projection, d: tuple[int, ...], method: str, memory: int | None, genes: int
    ) -> Likelihood:
        if len(d) == 1:
            return SingleComponent.decompose(projection, method)
        from .many_components import MultiComponent

        return MultiComponent.decompose(projection, d, method, genes, memory)

    def with_genes(self, summary: SummaryStats) -> MixedModel:
        """Return the model of the genes of `summary`, some or all of those of the design."""
        if isinstance(summary, WeightedStats):
            from .weighted_genes import weighted_genes

            assert eliminates_levels(self.likelihood)
            genes, likelihood = weighted_genes(self.xxz, self.likelihood, summary)
            return self._with(genes, likelihood)
        genes = self.projection.genes(summary)
        return self._with(genes, self.likelihood.with_genes(genes))

    def _with(self, genes: ProjectedGenes, likelihood: Likelihood) -> MixedModel:
        return replace(
            self,
            likelihood=likelihood,
            beta_ols=genes.beta_ols,
            has_residual_variance=genes.has_residual_variance,
        )

    @property
    def engine(self) -> str:
        """Name of the algorithm that evaluates the likelihood."""
        return ENGINES[type(self.likelihood).__name__]

    def shape(self, d: tuple[int, ...]) -> Shape:
        """Sizes of the model, whose random effects have widths `d`."""
        rest = None
        if eliminates_levels(self.likelihood):
            rest = sum(term.size for term in self.likelihood.rest)
        return Shape(self.XXinv.shape[0], d, rest)

    def select(self, index: Array) -> MixedModel:
        """Return the model of the genes at `index`."""
        xp = namespace(self.beta_ols)
        return replace(
            self,
            likelihood=self.likelihood.select(index),
            beta_ols=xp.take(self.beta_ols, index, axis=1),
            has_residual_variance=xp.take(self.has_residual_variance, index, axis=0),
        )

    @property
    def XXinv(self) -> Array:
        """(X'X)^-1 (p, p)."""
        return self.projection.XXinv

    @property
    def xxz(self) -> Array:
        """XXinv X'Z (p, q)."""
        return self.projection.xxz

    def random_effects(self, theta: Array) -> Array:
        """BLUPs (q, b)."""
        return self.likelihood.random_effects(self.likelihood.ratios(theta))

    def coefficients(self, theta: Array, v: Array | None = None) -> Array:
        """Fixed effects (p, b); `v` of the evaluation at `theta`, if known."""
        return self.beta_ols - self.likelihood.effect_form(self.likelihood.ratios(theta), self.xxz.T, v)

    def prepare(self, C: Array, *, gradient: bool = True) -> Contrasts:
        """Contrasts in the rows of `C` (c, p) for many genes: their variances tabulated where that pays."""
        plain = self._contrasts(C)
        variance = self.likelihood.variance_table(plain.a, plain.ols)
        if not gradient:
            return replace(plain, variance=variance)
        steepest = namespace(C).concat([plain.ols / LARGEST_RATIO] * self.likelihood.n_components)  # (k * c,)
        return replace(plain, variance=variance, gradient=self.likelihood.gradient_table(plain.a, steepest))

    def _contrasts(self, C: Array) -> Contrasts:
        return Contrasts(C, a=(C @ self.xxz).T, ols=namespace(C).sum((C @ self.XXinv) * C, axis=1))

    def _gradient_rows(self, g: Array, contrasts: Contrasts) -> Array:
        # |w_i|^2 (k * c, b)
        form = self._formed(self.likelihood.gradient_form, g, contrasts.a, self.likelihood.form_rows)
        return namespace(g).reshape(form, (form.shape[0] * form.shape[1], g.shape[1]))

    def contrast_variance(self, theta: Array, contrasts: Contrasts | Array) -> Array:
        """Variances (c, b) of contrasts, prepared or as rows (c, p)."""
        ready = contrasts if isinstance(contrasts, Contrasts) else self._contrasts(contrasts)
        g = self.likelihood.ratios(theta)
        exact = self.likelihood.variance_form
        form = lookup(ready.variance, g, lambda g: self._formed(exact, g, ready.a, self.likelihood.variance_rows))
        return theta[-1, :][None, :] * (ready.ols[:, None] + form)

    def contrast_gradient(self, theta: Array, contrasts: Contrasts | Array, variance: Array | None = None) -> Array:
        """Gradient (k+1, c, b) of `contrast_variance` in theta; `variance` (c, b) there, if known."""
        xp = namespace(theta)
        ready = contrasts if isinstance(contrasts, Contrasts) else self._contrasts(contrasts)
        g = self.likelihood.ratios(theta)  # (k, b)
        rows = lookup(ready.gradient, g, lambda g: self._gradient_rows(g, ready))
        by_component = xp.reshape(rows, (g.shape[0], ready.ols.shape[0], g.shape[1]))  # (k, c, b)
        variance = self.contrast_variance(theta, ready) if variance is None else variance
        total = variance / theta[-1, :][None, :]
        by_residual = total - xp.sum(g[:, None, :] * by_component, axis=0)  # (c, b)
        return xp.concat([by_component, by_residual[None, :, :]], axis=0)

    def contrast_adjustment(self, theta: Array, contrasts: Contrasts, W: Array) -> Array:
        """Half of Kenward and Roger's adjustment of `contrast_variance` (c, b), for `W` (k+1, k+1, b) = cov(theta).

        sum_ij W_ij t_ij over all components, t_ij = w_i' ZVZ_ij w_j / s_0 for the random effects; the rows of the
        residual follow from these, t_0j = -sum_i g_i t_ij, and are taken into the weights.
        """
        xp = namespace(theta)
        g = self.likelihood.ratios(theta)  # (k, b)
        form = self._formed(self.likelihood.adjustment_form, g, contrasts.a, self.likelihood.form_rows)
        return xp.sum(ratio_weights(W, g)[:, :, None, :] * form, axis=(0, 1)) / theta[-1, :][None, :]

    def _formed(self, form: Callable[[Array, Array], Array], g: Array, a: Array, rows: int) -> Array:
        """`form` (..., c, b) of contrasts with loadings `a`, for few genes and contrasts at a time.

        It takes `rows` numbers for each gene, contrast and variance.
        """
        most = max(1, self._piece_bytes // (8 * rows * (g.shape[0] + 1)))  # contrasts of one gene
        parts = [
            in_pieces(partial(_with_loadings, form, a[:, lo:hi]), g, rows * (hi - lo), self._piece_bytes)
            for lo, hi in blocks(a.shape[1], most)
        ]
        return parts[0] if len(parts) == 1 else namespace(g).concat(parts, axis=-2)

    @property
    def _piece_bytes(self) -> int:
        if self.memory is None:
            return LARGEST_PIECE
        return min(LARGEST_PIECE, self.memory // (TEMPORARIES * workers()))

    def covariance(self, theta: Array) -> Array:
        """Covariance matrices of the fixed effects (p, p, b)."""
        g, a = self.likelihood.ratios(theta), self.xxz.T
        form = in_pieces(lambda g: self.likelihood.covariance_form(g, a), g, a.shape[0] * a.shape[1])
        return theta[-1, :][None, None, :] * (self.XXinv[:, :, None] + form)

    def information_beta(self, theta: Array) -> Array:
        """Information of the fixed effects, X' V^-1 X (p, p, b): the inverse of their covariance."""
        xp = namespace(theta)
        cov, scale = self._scaled_covariance(theta)
        inverse, _, _ = inverse_and_logdet(cov)
        scaled = inverse * scale[None, :, None] * scale[None, None, :]
        return xp.permute_dims(scaled, (1, 2, 0)) / theta[-1, :][None, None, :]

    def may_be_indefinite(self, theta: Array) -> Array:
        """Flags (b,) of genes whose negative components may make V indefinite, or nearly so: cheap."""
        xp = namespace(theta)
        if eliminates_levels(self.likelihood):
            return self.likelihood.indefinite(theta)
        negative = xp.minimum(self.likelihood.ratios(theta), xp.zeros_like(theta[:1, :]))  # (k, b)
        return xp.sum(negative * self.largest[:, None], axis=0) <= EDGE - 1.0

    def positive_definite(self, theta: Array) -> Array:
        """Flags (b,) of genes with a positive definite V.

        The restricted likelihood only sees V on the residuals of X; V is positive definite exactly if it is
        there and the covariance of the fixed effects is positive definite too (a Schur complement).
        """
        return cholesky(self._scaled_covariance(theta)[0])[1]

    def _scaled_covariance(self, theta: Array) -> tuple[Array, Array]:
        # cov / s_0 in units in which XXinv has a unit diagonal (b, p, p), and the units (p,)
        xp = namespace(theta)
        cov = xp.permute_dims(self.covariance(theta), (2, 0, 1)) / theta[-1, :][:, None, None]
        scale = 1.0 / xp.sqrt(xp.linalg.diagonal(self.XXinv))
        return cov * scale[None, :, None] * scale[None, None, :], scale


def ratio_weights(W: Array, g: Array) -> Array:
    """J' W J (k, k, b) for J = (I, -g)' (k+1, k): `W` (k+1, k+1, b) with the residual's rows taken into the others."""
    k = g.shape[0]
    edge, corner = W[:k, k, :], W[k, k, :]  # (k, b), (b,)
    crossed = g[:, None, :] * (edge - 0.5 * g * corner[None, :])[None, :, :]  # (k, k, b)
    return W[:k, :k, :] - crossed - namespace(g).permute_dims(crossed, (1, 0, 2))


def _with_loadings(form: Callable[[Array, Array], Array], a: Array, g: Array) -> Array:
    return form(g, a)


def in_pieces(form: Callable[[Array], Array], g: Array, width: int, most: int | None = None) -> Array:
    """`form` (..., b) of the ratios `g` (k, b), for so few genes at a time that `width` numbers each stay small.

    They may take `most` bytes for each variance, by default `LARGEST_PIECE`.
    """
    size = max(1, (LARGEST_PIECE if most is None else most) // (8 * width * (g.shape[0] + 1)))
    if g.shape[1] <= size:
        return form(g)
    return namespace(g).concat([form(g[:, lo:hi]) for lo, hi in blocks(g.shape[1], size)], axis=-1)


def _blocks_pay(summary: SummaryStats, genes: int) -> bool:
    # whether levels are eliminated one by one, which takes a grouping
    shape = Shape(summary.XX.shape[0], summary.d)
    together = summary.d.count(max(summary.d))
    if not any(blocks_pay(shape, genes, most) for most in (1, together)):
        return False
    block = _widest_block(summary)
    return block is not None and blocks_pay(shape, genes, block.effects)


def _widest_block(summary: SummaryStats) -> LevelBlock | None:
    return widest_block(summary.ZZ, terms_of(summary.d, summary.term_sizes))


def _largest_eigenvalues(summary: SummaryStats) -> Array:
    # of each Z_i'Z_i (k,)
    xp = namespace(summary.ZZ)
    return xp.stack([largest_eigenvalue(summary.ZZ[lo:hi, lo:hi]) for lo, hi in ranges(summary.d)])
