"""Correlated random effects and groupings of any size: the likelihood of covariance matrices by block elimination.

The term with the most columns is eliminated level by level, with all others of its grouping, as in (x || g); the rest
border the fixed columns (`group_elimination`).
The variance parameters are variances and covariances (`covariance_terms`); V is linear in them. Between the levels
there are only sums of squares: y'P0 P0 y - rss is the squared length of P0 y in the span of [X Z], which follows from
X'P0 y = 0 and e = Z'P0 y, and y'P0 y = y'P0 P0 y + sum g_l e'E_l e. Contrasts are in
coordinates in which X'X is the identity: their loadings `a` are (p, c), and y enters as Ry, of which X'Ry = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..backend.arrays import Array, indices, namespace, on_host, zeros
from ..backend.linalg import eigh_psd
from ..backend.sparse import diagonal_of, submatrix
from .covariance_terms import CrossedCovariance, LevelBlock, Term, by_pairs
from .fisher_scoring import Outcome, Rules
from .group_elimination import (
    Elimination,
    GroupedDesign,
    eliminate,
    level_roots,
    rotated,
    times_vectors,
    transposed_times,
)
from .grouped_forms import GroupedForms
from .grouped_traces import design_traces
from .level_loads import shared_loads
from .likelihood import Traces
from .projection import ProjectedGenes, Projection, Remainder
from .semidefinite import maximise_semidefinite, smallest_eigenvalues
from .sparse_loads import sparse_loads

#: A covariance matrix whose smallest eigenvalue is less than this share of s_0 per unit of effect is singular.
SINGULAR = 1e-10


@dataclass(frozen=True)
class GroupedEffects(GroupedForms):
    """Likelihood of (sigma_1 .. sigma_L, s_0) for b genes."""

    by_levels = True

    terms: tuple[Term, ...]
    eliminated: LevelBlock
    design: GroupedDesign
    scale: Array  #: (L, 1), mean squares of the effects of each variance, in the average row
    y: Array  #: (b, k G), Q_g'Ry
    within_y: Array  #: (b, q_R), Z_R'Ry less the part of the eliminated effects
    zry: Array  #: (q, b), Z'Ry
    yry: Array  #: (b,)
    rss: Array  #: (b,)
    rss_error: Array  #: (b,)
    amplification: Array  #: (1 or b, k G), as of `_remainder`, of the coordinates of `y`
    n_effective: int | Array  #: (b,) where genes have observations of their own, as have the next two
    residual_df: int | Array
    rank: int | Array
    n_components: int
    reml: bool

    @classmethod
    def decompose(
        cls, projection: Projection, terms: Sequence[Term], eliminated: LevelBlock, method: str
    ) -> GroupedEffects:
        """Eliminate some terms of the design; no genes yet. `projection.xxz` makes columns of X orthonormal."""
        xp, p = namespace(projection.ZX), projection.xxz.shape[0]
        ZZ, ZX = projection.ZZ, projection.ZX
        others = [term for term in terms if term not in eliminated.terms]
        rest = [row for term in others for row in range(term.first, term.first + term.size)]
        design = eliminated_design(projection, eliminated, rest)
        own = [term.rows(a) for term in terms for a in range(term.effects)]
        squares = [xp.sum(diagonal_of(ZZ, at, at, ZX)) / projection.n for at in own]
        lengths = [diagonal_of(ZZ, at, at, ZX)[None, :] for at in eliminated.rows]  # (1, G) each
        return cls(
            terms=tuple(terms),
            eliminated=eliminated,
            design=design,
            scale=_scales(terms, squares),
            y=zeros((0, design.loads.rows), ZX),
            within_y=zeros((0, len(rest)), ZX),
            zry=zeros((ZZ.shape[0], 0), ZX),
            yry=zeros((0,), ZX),
            rss=zeros((0,), ZX),
            rss_error=zeros((0,), ZX),
            amplification=design.amplification(xp.stack(lengths, axis=0)),
            n_effective=projection.n - (p if method == "REML" else 0),
            residual_df=projection.n - p,
            rank=int(design.ranks[0]) - p,
            n_components=sum(len(t.parameters) for t in terms),
            reml=method == "REML",
        )

    def without_fixed(self) -> GroupedEffects:
        """Return the likelihood of designs without X, for what depends on the design alone."""
        return replace(self, design=self.design.without_fixed)

    # --- genes ---

    def with_genes(self, genes: ProjectedGenes) -> GroupedEffects:
        """Return the likelihood of other genes of the same design."""
        y, within_y = self._levels(genes.sums.zry)
        levels = y, within_y
        if genes.within is not genes.sums:
            levels = self._levels(genes.within.zry)
        rss, error = self._within_levels(genes.within, *levels)
        sums = {"zry": genes.sums.zry, "yry": genes.sums.yry, "rss": rss, "rss_error": error}
        return replace(self, y=y, within_y=within_y, **sums)

    def _levels(self, zry: Array) -> tuple[Array, Array]:
        # Q_g'Ry (b, k G), and Z_R'Ry less the part of the eliminated effects (b, q_R)
        eliminated, rest = self._split(namespace(zry).permute_dims(zry, (1, 0)))  # (b, k G), (b, q_R)
        y = rotated(self.design.root, eliminated[:, :, None])[:, :, 0]
        return y, rest - self._loaded(y)[:, self.design.n_fixed :]

    def _loaded(self, y: Array) -> Array:
        # X~'y (b, p+q_R)
        return self.design.loads.transposed_times(y[:, :, None])[:, :, 0]

    def _outside_levels(self, y: Array) -> Array:
        # X'Ry, which is zero, less the part of the eliminated effects (b, p): exactly zero for columns in their span
        xp, p = namespace(y), self.design.n_fixed
        inside = xp.linalg.diagonal(self.design.within)[:, :p] == 0  # (1 or b, p)
        return xp.where(inside, 0.0, -self._loaded(y)[:, :p])

    def fixed_outside(self) -> Array:
        """X'Ry less the part of the eliminated effects (b, p)."""
        return self._outside_levels(self.y)

    def _within_levels(self, sums: Remainder, y: Array, within_y: Array) -> tuple[Array, Array]:
        # the residual sum of squares on [X Z] (b,) and its error: y'Ry less the parts of the levels and of the border
        xp, design = namespace(y), self.design
        h = transposed_times(design.border, xp.concat([self._outside_levels(y), within_y], axis=1))  # (b, p+q_R)
        explained = xp.sum(y * y, axis=1) + xp.sum(h * h, axis=1)
        size = xp.sum(self.amplification * y * y, axis=1) + xp.sum(design.border_error * h * h, axis=1)
        return self._guarded(sums, explained, size)

    def select(self, index: Array) -> GroupedEffects:
        """Return the same likelihood for the genes at `index` (integers) only."""
        xp = namespace(index)
        return replace(
            self,
            design=self.design.take(index),
            y=xp.take(self.y, index, axis=0),
            within_y=xp.take(self.within_y, index, axis=0),
            zry=xp.take(self.zry, index, axis=1),
            yry=xp.take(self.yry, index, axis=0),
            rss=xp.take(self.rss, index, axis=0),
            rss_error=xp.take(self.rss_error, index, axis=0),
            **self._own(lambda x: xp.take(x, index, axis=0)),
        )

    def _part(self, lo: int, hi: int) -> GroupedEffects:
        # a range of genes; of a design without genes, itself
        if self.yry.shape[0] == 0:
            return self
        genes = {"y": self.y[lo:hi, :], "within_y": self.within_y[lo:hi, :], "zry": self.zry[:, lo:hi]}
        genes |= {"yry": self.yry[lo:hi], "rss": self.rss[lo:hi], "rss_error": self.rss_error[lo:hi]}
        genes |= self._own(lambda x: x[lo:hi, ...])
        return replace(self, design=self.design.part(lo, hi), **genes)

    def _own(self, some: Callable[[Array], Array]) -> dict[str, Array]:
        # some genes of what each has for itself if genes have designs of their own
        if not self.design.per_gene:
            return {}
        names = ("amplification", "n_effective", "residual_df", "rank")
        return {name: some(getattr(self, name)) for name in names}

    # --- the likelihood ---

    def traces(self, g: Array) -> Traces:
        """Reduce the data at the parameters over s_0, `g` (L, b)."""
        L, p = self.n_components, self.design.n_fixed
        found = self._pieces(lambda part, g: _packed(part._traces(g)), g)
        return _unpacked(found, L, p)

    def design_traces(self, g: Array) -> tuple[Array, Array]:
        """T (L, b) and B (L, L, b) of `traces`."""
        xp, L = namespace(g), self.n_components

        def rows(part: GroupedEffects, g: Array) -> Array:
            T, B = design_traces(part._trace_elimination(g, None), part.eliminated, part.rest)
            return xp.concat([T, xp.reshape(B, (L * L, g.shape[1]))], axis=0)

        found = self._pieces(rows, g)
        return found[:L, :], xp.reshape(found[L:, :], (L, L, g.shape[1]))

    def traces_at_zero(self) -> Traces:
        """Reduce the data without random effects: of a design that all share, its traces are formed once."""
        zero = zeros((self.n_components, self.yry.shape[0]), self.yry)
        if self.design.per_gene:
            return self.traces(zero)
        found = self._pieces(lambda part, g: _packed(part._traces(g[:, :1])), zero)
        return _unpacked(found, self.n_components, self.design.n_fixed)

    def _eliminated(self, g: Array) -> Elimination:
        return eliminate(self.design, self.eliminated.matrix(g), CrossedCovariance.of(self.rest, g))

    def _trace_elimination(self, g: Array, full: Elimination | None) -> Elimination:
        # the elimination whose traces enter: with the fixed columns for REML, without them for ML
        if self.reml:
            return full or self._eliminated(g)
        return self.without_fixed()._eliminated(g)

    def _traces(self, g: Array) -> Traces:
        xp = namespace(g)
        at = self._eliminated(g)
        traced = self._trace_elimination(g, at)
        T, B = design_traces(traced, self.eliminated, self.rest)
        e, beta = self._residual_effects(at)
        E = xp.stack([by_pairs(e, e, term, a, b) for term in self.terms for a, b in term.pairs], axis=0)  # (L, b)
        squares = self._span_squares(e)  # (b,)
        return Traces(
            T=T,
            B=B,
            E=E,
            between_ss=squares + xp.sum(g * E, axis=0),
            between_error=squares + xp.sum(xp.abs(g * E), axis=0),
            logdet=traced.logdet,
            ok=at.ok & traced.ok,
            v=xp.permute_dims(beta, (1, 0)),
        )

    def _span_squares(self, e: Array) -> Array:
        # squared length (b,) of the part of P0 y in the span of [X Z], from X'P0 y = 0 and Z'P0 y = `e` (b, q)
        xp, design = namespace(e), self.design
        eliminated, rest = self._split(e)
        t = rotated(design.root, eliminated[:, :, None])[:, :, 0]  # (b, k G)
        border = xp.concat([zeros((e.shape[0], design.n_fixed), e), rest], axis=1)
        h = transposed_times(design.border, border - self._loaded(t))  # (b, p+q_R)
        return xp.sum(t * t, axis=1) + xp.sum(h * h, axis=1)

    def _residual_effects(self, at: Elimination) -> tuple[Array, Array]:
        """Z'P0y (b, q), in the order of Z, and the fixed effects of Ry (b, p)."""
        xp, p = namespace(self.y), self.design.n_fixed
        loaded = self._loaded(times_vectors(at.K, self.y))  # (b, p+q_R)
        Ay = xp.concat([loaded[:, :p] + self._outside_levels(self.y), self.within_y + loaded[:, p:]], axis=1)
        beta = at.solve(Ay[:, :, None])
        e = times_vectors(at.moved, self.y - self.design.loads.times(beta)[:, :, 0])
        h = Ay[:, p:] - transposed_times(at.J, Ay[:, :p])  # (b, q_R)
        return self._joined(e, at.shrunk(h[:, :, None])[:, :, 0]), beta[:, :p, 0]

    def residual_traces(self, theta: Array) -> Array:
        """tr(P0 P0) (b,) at `theta` (L+1, b): residual degrees of freedom in the sense of dream's eBayes."""
        return 2.0 * theta[-1, :] ** 2 * self.information(theta)[-1, -1, :]

    # --- covariance matrices that are to be positive semi-definite ---

    @property
    def correlated(self) -> bool:
        """True if there are covariances: without any, covariance matrices are positive where variances are."""
        return any(term.effects > 1 for term in self.terms)

    def maximise_nonnegative(self, start: Array | None, rules: Rules) -> Outcome:
        """Maximise over positive semi-definite covariance matrices."""
        return maximise_semidefinite(self, start, rules)

    def indefinite(self, theta: Array) -> Array:
        """Flags (b,) of genes with a covariance matrix that has a negative eigenvalue."""
        return smallest_eigenvalues(self, theta) < -SINGULAR

    def at_boundary(self, theta: Array) -> Array:
        """Flags (b,) of genes with a singular covariance matrix."""
        return namespace(theta).abs(smallest_eigenvalues(self, theta)) <= SINGULAR


def aligned(projection: Projection, eliminated: LevelBlock) -> Projection:
    """Turn the orthonormal columns of X so that those in the span of the eliminated terms come apart from the others.

    What an elimination leaves of the former is then exactly zero: their coefficients keep their digits however small
    the residual variance is.
    """
    design = eliminated_design(projection, eliminated, [])
    return replace(projection, xxz=projection.xxz @ eigh_psd(design.within[0, :, :])[1])


def eliminated_design(projection: Projection, eliminated: LevelBlock, rest: list[int]) -> GroupedDesign:
    """Return the design with some terms eliminated, bordered by X and the columns `rest` of Z."""
    xp, T, p = namespace(projection.ZX), projection.xxz, projection.xxz.shape[0]
    ZZ, ZX = projection.ZZ, projection.ZX @ T  # (q, q), (q, p)
    within = xp.matmul(T.T, xp.matmul(projection.XX, T))
    rows = [row for lo, hi in eliminated.rows for row in range(lo, hi)]
    ZX_R = xp.take(ZX, indices(rest, ZX), axis=0)
    ZZ_R = submatrix(ZZ, rest, rest, ZX)
    XX = xp.concat([xp.concat([within, ZX_R.T], axis=1), xp.concat([ZX_R, ZZ_R], axis=1)], axis=0)
    products = [[diagonal_of(ZZ, a, b, ZX)[None, :] for b in eliminated.rows] for a in eliminated.rows]
    root = xp.stack([xp.stack(row, axis=0) for row in level_roots(products)], axis=0)  # (k, k, 1, G)
    ZX_e = xp.take(ZX, indices(rows, ZX), axis=0)
    loads = sparse_loads(root, ZX_e, ZZ, rows, rest) if on_host(ZX) else None
    if loads is None:
        loads = rotated(root, xp.concat([ZX_e, submatrix(ZZ, rows, rest, ZX)], axis=1)[None, :, :])[0, :, :]
    return GroupedDesign.build(root, shared_loads(loads, eliminated.effects, ZX), XX[None, ...], p)


def _packed(t: Traces) -> Array:
    # traces as rows (..., b), to be concatenated over genes
    xp = namespace(t.T)
    L = t.T.shape[0]
    rows = [
        t.T,
        xp.reshape(t.B, (L * L, t.B.shape[2])),
        t.E,
        t.between_ss[None, :],
        t.logdet[None, :],
        t.between_error[None, :],
        xp.astype(t.ok, t.T.dtype)[None, :],
        t.v,
    ]
    genes = t.between_ss.shape[0]  # traces may be those of one gene for all
    return xp.concat([xp.broadcast_to(row, (row.shape[0], genes)) for row in rows], axis=0)


def _unpacked(rows: Array, L: int, p: int) -> Traces:
    xp, at = namespace(rows), L + L * L
    return Traces(
        T=rows[:L, :],
        B=xp.reshape(rows[L:at, :], (L, L, rows.shape[1])),
        E=rows[at : at + L, :],
        between_ss=rows[at + L, :],
        logdet=rows[at + L + 1, :],
        between_error=rows[at + L + 2, :],
        ok=rows[at + L + 3, :] > 0.5,
        v=rows[at + L + 4 :, :],
    )


def _scales(terms: Sequence[Term], squares: Sequence[Array]) -> Array:
    # mean squares of the effects (L, 1), of a covariance the geometric mean of its two
    xp, found, at = namespace(squares[0]), [], 0
    for term in terms:
        own = squares[at : at + term.effects]
        found += [xp.sqrt(own[a] * own[b]) for a, b in term.pairs]
        at += term.effects
    return xp.stack(found, axis=0)[:, None]
