"""Forms of contrasts and BLUPs of correlated random effects, from an elimination (`group_elimination`).

For a contrast with loadings a (p, c) in orthonormal coordinates of X, w = Z'V0^-1 X W a are the weights that its
estimate gives the levels; gradients are w'E_l w, Kenward and Roger's adjustments w'E_l Z'P0Z E_m w.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from ..backend.arrays import Array, namespace
from ..backend.blocks import blocks
from ..backend.linalg import identity
from .covariance_terms import Entries, LevelBlock, Term, by_pairs, product, transposed
from .group_elimination import Elimination, GroupedDesign
from .grouped_traces import crossed_blocks, level_blocks
from .level_loads import times_levels
from .likelihood import Likelihood

#: Bytes of the matrices of the genes that are evaluated together.
PIECE_BYTES = 2**26
F = TypeVar("F", bound="GroupedForms")


class GroupedForms(Likelihood):
    """Forms of contrasts; `GroupedEffects` has them."""

    terms: tuple[Term, ...]
    eliminated: LevelBlock
    design: GroupedDesign

    @property
    def rest(self) -> tuple[Term, ...]:
        """Terms that are not eliminated."""
        return tuple(term for term in self.terms if term not in self.eliminated.terms)

    @property
    def form_rows(self) -> int:
        """Number of random effects."""
        return sum(term.size for term in self.terms)

    @property
    def variance_rows(self) -> int:
        """Number of columns that the levels are loaded on."""
        return self.design.loads.columns

    @abstractmethod
    def _eliminated(self, g: Array) -> Elimination:
        """Eliminate at the parameters over s_0, `g` (L, b)."""

    @abstractmethod
    def _residual_effects(self, at: Elimination) -> tuple[Array, Array]:
        """Z'P0y (b, q) and the fixed effects of Ry (b, p)."""

    @abstractmethod
    def _part(self: F, lo: int, hi: int) -> F:
        """Return the likelihood of a range of genes."""

    def _pieces(self, form: Callable[[Any, Array], Array], g: Array, columns: int = 0) -> Array:
        """`form` (..., b) of so few genes at a time that their matrices stay small; `columns` are added to X."""
        s, size, own = self.design.loads.columns, self.design.loads.rows, self.design.per_gene
        need = 8 * (size * (3 * s * own + 2 * columns + 24) + (s + columns) * (s + columns) * (self.n_components + 8))
        step = max(1, PIECE_BYTES // need)
        if g.shape[1] <= step:
            return form(self, g)
        parts = [form(self._part(lo, hi), g[:, lo:hi]) for lo, hi in blocks(g.shape[1], step)]
        return namespace(g).concat(parts, axis=-1)

    def random_effects(self, g: Array) -> Array:
        """BLUPs u = D e (q, b)."""
        return self._pieces(lambda part, g: part._random_effects(g), g)

    def _random_effects(self, g: Array) -> Array:
        xp = namespace(g)
        e, _ = self._residual_effects(self._eliminated(g))
        return xp.permute_dims(self._weighted(e, g), (1, 0))

    def _weighted(self, e: Array, g: Array) -> Array:
        # D e (b, q)
        parts: list[Array] = []
        for term in self.terms:
            gamma = term.matrix(g)
            rows = [e[:, lo:hi] for lo, hi in map(term.rows, range(term.effects))]
            parts += [sum(gamma[a][b][:, None] * rows[b] for b in range(term.effects)) for a in range(term.effects)]
        return namespace(e).concat(parts, axis=1)

    def conditional_variances(self, g: Array) -> Array:
        """Diagonal of D - D Z'P0Z D (q, b): with a design without X, the variances of u given y over s_0."""
        return self._pieces(lambda part, g: part._conditional_variances(g), g)

    def _conditional_variances(self, g: Array) -> Array:
        xp, at = namespace(g), self._eliminated(g)
        rows: list[Array] = []
        blocks: list[tuple[LevelBlock | Term, Entries]] = [(self.eliminated, level_blocks(at, self.eliminated))]
        blocks += [(term, crossed_blocks(at, self.rest, t)) for t, term in enumerate(self.rest)]
        for block, values in blocks:
            gamma = [[entry[:, None] for entry in row] for row in block.matrix(g)]  # (b, 1) each
            moved = product(product(gamma, values), gamma)
            rows += [gamma[a][a] - moved[a][a] for a in range(block.effects)]  # (b, levels) each
        size = self.eliminated.effects
        joined = self._joined(xp.concat(rows[:size], axis=1), xp.concat([moved[0][0][:, :0], *rows[size:]], axis=1))
        return xp.permute_dims(joined, (1, 0))

    def effect_form(self, g: Array, a: Array, v: Array | None = None) -> Array:
        """Minus a' of the fixed effects of Ry (c, b): what the random effects take from ordinary least squares."""
        xp = namespace(g)
        if v is None:
            v = self._pieces(lambda part, g: xp.permute_dims(part._residual_effects(part._eliminated(g))[1], (1, 0)), g)
        return -(a.T @ v)

    def variance_form(self, g: Array, a: Array) -> Array:
        """a'(W - I) a (c, b)."""
        xp, p = namespace(g), self.design.n_fixed

        def form(part: Any, g: Array) -> Array:
            return xp.permute_dims(xp.sum(xp.matmul(part._excess(g), a[None, :, :]) * a[None, :, :], axis=1), (1, 0))

        assert a.shape[0] == p
        return self._pieces(form, g, a.shape[1])

    def covariance_form(self, g: Array, a: Array) -> Array:
        """a'(W - I) a of all pairs (c, c, b)."""
        xp = namespace(g)

        def form(part: Any, g: Array) -> Array:
            return xp.permute_dims(xp.matmul(a.T[None, :, :], xp.matmul(part._excess(g), a[None, :, :])), (1, 2, 0))

        return self._pieces(form, g, a.shape[1])

    def _excess(self, g: Array) -> Array:
        # W_XX - I (b, p, p)
        p, at = self.design.n_fixed, self._eliminated(g)
        return at.covariance - identity(p, g)[None, :, :]

    def gradient_form(self, g: Array, a: Array) -> Array:
        """w'E_l w (L, c, b) for w = Z'V^-1 X W a, one per contrast."""
        return self._forms(lambda w: self._by_parameter(w, w), g, a)

    def gradient_pairs(self, g: Array, a: Array) -> Array:
        """w'E_l w (L, c, c, b) of all pairs of contrasts."""
        return self._forms(lambda w: self._by_parameter(w[:, :, :, None], w[:, :, None, :]), g, a)

    def _by_parameter(self, v: Array, w: Array) -> Array:
        # v'E_l w (b, L, ...) of vectors (b, q, ...)
        xp = namespace(w)
        return xp.stack([by_pairs(v, w, term, a, b) for term in self.terms for a, b in term.pairs], axis=1)

    def _forms(self, of: Callable[[Array], Array], g: Array, a: Array) -> Array:
        xp = namespace(g)

        def form(part: Any, g: Array) -> Array:
            found = of(part._loadings(part._eliminated(g), a))
            return xp.permute_dims(found, (*range(1, found.ndim), 0))

        return self._pieces(form, g, a.shape[1])

    def _loadings(self, at: Elimination, a: Array) -> Array:
        """W = Z'V0^-1 X W a (b, q, c), in the order of Z."""
        xp = namespace(a)
        shared = xp.broadcast_to(a[None, :, :], (at.J.shape[0], *a.shape))  # (b, p, c)
        crossed = xp.matmul(xp.matrix_transpose(at.J), shared)  # (b, q_R, c)
        solved = at.solve(xp.concat([shared, xp.zeros_like(crossed)], axis=1))
        eliminated = times_levels(at.moved, self.design.loads.times(solved))
        return self._joined(eliminated, at.shrunk(crossed))

    def adjustment_form(self, g: Array, a: Array) -> Array:
        """w'E_l ZVZ E_m w (L, L, c, b), one contrast after the other."""
        xp = namespace(g)

        def form(part: Any, g: Array) -> Array:
            at = part._eliminated(g)
            w = part._loadings(at, a)
            found = [part._moved_pairs(at, w[:, :, i : i + 1])[:, :, 0, :, 0] for i in range(a.shape[1])]
            return xp.permute_dims(xp.stack(found, axis=1), (2, 3, 1, 0))

        return self._pieces(form, g, a.shape[1] + self.n_components)

    def adjustment_pairs(self, g: Array, a: Array) -> Array:
        """w'E_l ZVZ E_m w (L, L, c, c, b) of all pairs of contrasts."""
        xp = namespace(g)

        def form(part: Any, g: Array) -> Array:
            at = part._eliminated(g)
            return xp.permute_dims(part._moved_pairs(at, part._loadings(at, a)), (1, 3, 2, 4, 0))

        return self._pieces(form, g, a.shape[1] * self.n_components)

    def curvature_form(self, g: Array) -> Array:
        """e'E_l ZVZ E_m e (L, L, b) for e = Z'P0y."""
        xp = namespace(g)

        def form(part: Any, g: Array) -> Array:
            at = part._eliminated(g)
            e, _ = part._residual_effects(at)
            return xp.permute_dims(part._moved_pairs(at, e[:, :, None])[:, :, 0, :, 0], (1, 2, 0))

        return self._pieces(form, g, self.n_components)

    def _moved_pairs(self, at: Elimination, w: Array) -> Array:
        """w_i'E_l Z'P0Z E_m w_j (b, L, c, L, c) of vectors w (b, q, c)."""
        xp, L, b, c = namespace(w), self.n_components, w.shape[0], w.shape[2]
        turned = [self._turned(w, term, i, j) for term in self.terms for i, j in term.pairs]  # (b, q, c) each
        v = xp.concat(turned, axis=2)  # (b, q, L c)
        eliminated, rest = self._split(v)
        vt = xp.matrix_transpose
        M = times_levels(at.M, eliminated)
        r = at.loads.transposed_times(times_levels(transposed(at.moved), eliminated))  # (b, p+q_R, L c)
        found = xp.matmul(vt(eliminated), M) - xp.matmul(vt(r), at.solve(r))
        if rest.shape[1]:
            cross = xp.matmul(vt(eliminated), at.crossed_times(rest))
            found = found + cross + vt(cross) + xp.matmul(vt(rest), xp.matmul(at.F_R, rest))
        return xp.reshape(found, (b, L, c, L, c))

    def _turned(self, w: Array, term: Term, a: int, b: int) -> Array:
        # E_l w (b, q, c)
        xp, parts = namespace(w), []
        for other in self.terms:
            for effect in range(other.effects):
                lo, hi = other.rows(effect)
                source = None
                if other is term and effect in (a, b):
                    source = other.rows(b if effect == a else a)
                parts.append(xp.zeros_like(w[:, lo:hi, :]) if source is None else w[:, source[0] : source[1], :])
        return xp.concat(parts, axis=1)

    def _split(self, v: Array) -> tuple[Array, Array]:
        # rows (b, q, ...) in the order of Z into those of the eliminated effects and the others
        xp = namespace(v)
        rest = [v[:, term.first : term.first + term.size, ...] for term in self.rest]
        return xp.concat([v[:, lo:hi, ...] for lo, hi in self.eliminated.rows], axis=1), xp.concat(
            [v[:, :0, ...], *rest], axis=1
        )

    def _joined(self, eliminated: Array, rest: Array) -> Array:
        # back into the order of Z
        parts: list[Array] = []
        first, second = 0, 0
        for term in self.terms:
            if term in self.eliminated.terms:
                parts.append(eliminated[:, first : first + term.size, ...])
                first += term.size
            else:
                parts.append(rest[:, second : second + term.size, ...])
                second += term.size
        return namespace(rest).concat(parts, axis=1)
