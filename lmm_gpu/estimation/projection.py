"""Project the fixed effects out of the random effects, once per design, and of the genes, block by block.

With R = I - X XXinv X':  S = Z'RZ,  Z'Ry = Z'y - Z'X beta_ols  and  y'Ry = y'y - (X'y)' beta_ols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..backend.arrays import Array, namespace
from ..backend.linalg import eps, inverse_spd, orthonormal_columns
from ..sumstats.summary_stats import SummaryStats

#: y'Ry below this share of y'y is rounding error: the gene does not vary once X is taken out.
NO_VARIANCE = 1e-13
#: A standard deviation of so many rounding units of the values themselves is rounding error too.
_ROUNDED = 4
#: Rounding units by which a sum over cells may be off, and by how many more for the square root of their number.
_UNITS, _UNITS_PER_ROOT = 4.0, 0.05


def rounding_unit(n: int, reference: Array) -> float:
    """Relative rounding error of a sum over n observations."""
    return eps(reference) * (_UNITS + _UNITS_PER_ROOT * math.sqrt(n))


@dataclass(frozen=True)
class Remainder:
    """Sums of b genes with X projected out, and how accurate they are."""

    zry: Array  #: (q, b), Z'Ry
    yry: Array  #: (b,), y'Ry
    size: Array  #: (b,), sum of squares of the numbers that y'Ry is a difference of
    unit: float  #: rounding error of y'Ry relative to `size`


@dataclass(frozen=True)
class ProjectedGenes:
    """Sums of b genes once X is projected out."""

    beta_ols: Array  #: (p, b)
    sums: Remainder
    within: Remainder  #: the same of values less their group means where those are known, else `sums` itself
    has_residual_variance: Array  #: (b,), bool: all-zero and constant genes have none


@dataclass(frozen=True)
class Projection:
    """The design with X projected out of the random effects, shared by all genes."""

    n: int
    XX: Array  #: (p, p)
    XXinv: Array  #: (p, p)
    xxz: Array  #: (p, q), XXinv X'Z
    S: Array  #: (q, q), Z'RZ
    ZX: Array  #: (q, p)
    ZZ: Array  #: (q, q)

    @classmethod
    def build(cls, summary: SummaryStats, by_blocks: bool = False) -> Projection:
        """Project X out of Z; for an elimination `by_blocks` only make the columns of X orthonormal.

        Then `xxz` (p, p) is T with X T orthonormal, in which contrasts are given, and S is never formed.

        Raises
        ------
        ValueError
            If X is rank deficient (with the columns involved) or there are not more cells than columns.
        """
        ss = summary
        p = ss.XX.shape[0]
        if ss.n <= p:
            raise ValueError(
                f"the model has {p} fixed-effect columns but only {ss.n} cells: no residual is left; drop terms"
            )
        XXinv, dependent = inverse_spd(ss.XX)
        if XXinv is None:
            names = ", ".join(ss.fixed_names[i] for i in dependent)
            raise ValueError(
                f"X is rank deficient (not full column rank, XX is not positive definite): these columns are zero or "
                f"linearly dependent: {names}; drop one of them, or the term that they repeat"
            )
        if by_blocks:
            return cls(ss.n, ss.XX, XXinv, xxz=orthonormal_columns(ss.XX), S=None, ZX=ss.ZX, ZZ=ss.ZZ)
        xxz = XXinv @ ss.ZX.T  # (p, q)
        return cls(n=ss.n, XX=ss.XX, XXinv=XXinv, xxz=xxz, S=ss.ZZ - ss.ZX @ xxz, ZX=ss.ZX, ZZ=ss.ZZ)

    def genes(self, summary: SummaryStats) -> ProjectedGenes:
        """Project X out of the genes of `summary`, some or all of the design's.

        R(y - c) = Ry where X makes the constant, X k = 1: there the sums about a centre have more digits, and
        beta = beta_c + k c. What lies within the levels of Z does not change when their means are subtracted.
        """
        about, centred = summary.centred or summary, summary.centred
        beta, sums = self._without_fixed_effects(about)
        varies = sums.yry > NO_VARIANCE * about.Ynorm
        if centred is not None:
            varies = varies & (sums.yry > summary.n * namespace(beta).square(_ROUNDED * eps(beta) * centred.centre))
        return ProjectedGenes(
            beta_ols=beta if centred is None else beta + centred.constant[:, None] * centred.centre[None, :],
            sums=sums,
            within=sums if summary.within is None else self._without_fixed_effects(summary.within)[1],
            has_residual_variance=varies,
        )

    def _without_fixed_effects(self, about: Any) -> tuple[Array, Remainder]:
        # beta (p, b), and the sums without X, from X'y, Z'y and y'y of y less some centre
        xp = namespace(about.XY)
        beta = self.XXinv @ about.XY  # (p, b)
        lengths = xp.sqrt(xp.linalg.diagonal(self.XX))  # (p,)
        fitted = xp.square(lengths @ xp.abs(beta))  # (b,), bounds |X beta|^2 without cancellation
        remainder = Remainder(
            zry=about.ZY - self.ZX @ beta,
            yry=about.Ynorm - xp.sum(about.XY * beta, axis=0),
            size=about.Ynorm + fitted,
            unit=rounding_unit(self.n, beta),
        )
        return beta, remainder
