"""Projecting the fixed effects out: of the random effects once per design, of the genes block by block.

With R = I - X XXinv X':  S = Z'RZ,  Z'Ry = Z'y - Z'X beta_ols  and  y'Ry = y'y - (X'y)' beta_ols.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backend.arrays import Array, namespace
from ..backend.linalg import eps, inverse_spd, orthonormal_columns
from ..sumstats.summary_stats import SummaryStats

#: y'Ry below this share of y'y is rounding: the gene does not vary once X is taken out.
NO_VARIANCE = 1e-13
#: y'Ry below this share of y'y has lost ten of its sixteen digits.
FEW_DIGITS = 1e-10
#: A spread of so many rounding units of the values themselves is rounding too.
_ROUNDED = 4


@dataclass(frozen=True)
class ProjectedGenes:
    """What is left of b genes once X is projected out."""

    beta_ols: Array  #: (p, b)
    zry: Array  #: (q, b), Z'Ry
    yry: Array  #: (b,), y'Ry
    has_residual_variance: Array  #: (b,), bool: there is variance left; all-zero and constant genes have none
    ill_conditioned: Array  #: (b,), bool: what is left is a small difference of large numbers


@dataclass(frozen=True)
class Projection:
    """What all genes share: the design with X projected out of the random effects."""

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
        beta = beta_c + k c.
        """
        about, centred = summary.centred or summary, summary.centred
        beta = self.XXinv @ about.XY  # (p, b), of y less its centre
        yry = about.Ynorm - namespace(beta).sum(about.XY * beta, axis=0)  # (b,)
        varies = yry > NO_VARIANCE * about.Ynorm
        if centred is not None:
            varies = varies & (yry > summary.n * namespace(yry).square(_ROUNDED * eps(yry) * centred.centre))
        return ProjectedGenes(
            beta_ols=beta if centred is None else beta + centred.constant[:, None] * centred.centre[None, :],
            zry=about.ZY - self.ZX @ beta,
            yry=yry,
            has_residual_variance=varies,
            ill_conditioned=varies & (yry < FEW_DIGITS * about.Ynorm),
        )
