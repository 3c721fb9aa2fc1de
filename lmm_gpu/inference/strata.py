"""Strata of a design: which contrasts are compared between the levels of which random effect, and on how many df."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..backend.arrays import to_numpy
from ..sumstats.summary_stats import SummaryStats

#: A contrast this close (relative, squared) to the span of a random effect lies in it. Sums over 10^6 cells are good
#: to 1e-13; a covariate that varies within groups by 1e-5 of its mean is still told from one that does not.
IN_SPAN = 1e-10
#: With more df between groups than this the variance is known well enough for Satterthwaite's.
MANY = 100
#: A contrast of which the levels' own cells tell more than this share is one within levels.
_MOSTLY = 0.7
#: Rows whose gram matrix in units of their own lengths has smaller eigenvalues repeat others.
_DEPENDENT = 1e-10


@dataclass(frozen=True)
class Stratum:
    """What lies between the levels of one random effect."""

    component: int  #: j, which random effect
    coarser: tuple[int, ...]  #: random effects of lower rank, in which it may be nested
    finer: tuple[int, ...]  #: random effects that are nested in it
    left: np.ndarray  #: (p, p), X'(I - P_j)X for the projection P_j on it
    df: float  #: between its levels, once X and the coarser effects are taken out
    ZZ: np.ndarray  #: (d_j, d_j), Z_j'Z_j
    whole: bool = True  #: whether the contrasts that it is for lie in it altogether

    @property
    def cells(self) -> np.ndarray:
        """Squared lengths of its columns (d_j,): the cells of each level."""
        return np.diagonal(self.ZZ)

    @property
    def few(self) -> bool:
        """Whether its df are so few that the uncertainty of the variance between its levels matters to a test."""
        return 1 <= self.df <= MANY

    def holds(self, C: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Whether the contrasts in the rows of `C` (c, p), of `size` (c,) = c'X'X c, lie in its span (c,)."""
        return np.einsum("cp,pr,cr->c", C, self.left, C) < IN_SPAN * size


def binding_strata(summary: SummaryStats, C: np.ndarray) -> list[Stratum | None]:
    """Return the stratum of fewest df in which each contrast of `C` (c, p) lies; None for those within all levels."""
    size = np.einsum("cp,pr,cr->c", C, to_numpy(summary.XX), C)
    found: list[Stratum | None] = [None] * len(C)
    for stratum in sorted(strata(summary), key=lambda stratum: -stratum.df):
        for i in np.flatnonzero(stratum.holds(C, size)):
            found[i] = stratum
    return found


def weighed_strata(
    summary: SummaryStats, C: np.ndarray, bound: Sequence[Stratum | None] | None = None
) -> list[Stratum | None]:
    """Return the stratum whose variance matters most to each contrast of `C` (c, p); `bound` if it is at hand.

    That is the one in which it lies; else, not `whole`, the one of few df without which the least of its information
    is left, if that is less than 70 %: as for an effect in one type of cells of a treatment between donors. None for
    what is known within all levels.
    """
    XX = to_numpy(summary.XX)
    found = binding_strata(summary, C) if bound is None else list(bound)
    within = [i for i, one in enumerate(found) if one is None]
    if not within:
        return found
    variance = np.einsum("cp,cp->c", C, np.linalg.solve(XX, C.T).T)
    least = np.full(len(C), _MOSTLY)
    for stratum in strata(summary):
        kept = variance / _variance_within(stratum.left, np.diagonal(XX), C)  # (c,)
        for i in within:
            if stratum.few and kept[i] < least[i]:
                found[i], least[i] = replace(stratum, whole=False), kept[i]
    return found


def _variance_within(left: np.ndarray, squares: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Variances c' left^-1 c (c,) of contrasts within levels, infinite where these do not tell.

    `left` (p, p) is X'(I - P)X, `squares` (p,) the diagonal of X'X.
    """
    scale = 1.0 / np.sqrt(squares)
    values, vectors = np.linalg.eigh(left * scale[:, None] * scale[None, :])
    along = (C * scale) @ vectors  # (c, p)
    known = values > IN_SPAN
    untold = (along[:, ~known] ** 2).sum(axis=1) > IN_SPAN * (along**2).sum(axis=1)
    return np.where(untold, np.inf, (along[:, known] ** 2 / values[known]).sum(axis=1))


def common_stratum(summary: SummaryStats, C: np.ndarray) -> Stratum | None:
    """Return the stratum of all contrasts in the rows of `C` (c, p), None if there is no such one."""
    found = [one for one in weighed_strata(summary, C) if one is not None]
    if len(found) < len(C) or len({one.component for one in found}) > 1:
        return None
    return replace(found[0], whole=all(one.whole for one in found))


def within_df(summary: SummaryStats, rank: int) -> float:
    """n - p - rank, what is left within the levels of all random effects; `rank` is that of Z after X."""
    return float(summary.n - summary.XX.shape[0] - rank)


def df_of_strata(bound: Sequence[Stratum | None], within: float) -> np.ndarray:
    """Between-within df (c,) of contrasts that lie in the strata `bound`, or in none and are tested `within`.

    A contrast whose column X c' is constant within the levels of a random effect (lies in the span of its Z_j) is
    tested between them. 0 says that nothing is left to test against, and becomes NaN.

    References
    ----------
    Pinheiro and Bates (2000), Mixed-Effects Models in S and S-PLUS, section 2.4.2.
    """
    df = np.array([within if stratum is None else stratum.df for stratum in bound])
    return np.where(df > 0, df, np.nan)


def between_within_directions(summary: SummaryStats, C: np.ndarray, rank: int) -> np.ndarray:
    """Between-within df (r,) of directions that span the rows of `C` (c, p), ascending.

    Of the combinations of contrasts, as many as lie in the span of a random effect are tested between its levels,
    those in the span of several against the fewest df, and the rest within.
    """
    XX = to_numpy(summary.XX)
    Q = orthonormal_rows(C, XX)  # (r, p)
    found = np.zeros((Q.shape[0], 0))
    df: list[float] = []
    for stratum in sorted(strata(summary), key=lambda stratum: stratum.df):
        values, vectors = np.linalg.eigh(Q @ stratum.left @ Q.T)
        both = np.hstack([found, vectors[:, values < IN_SPAN]])
        basis, size, _ = np.linalg.svd(both, full_matrices=False)
        found = basis[:, size > 1e-6]
        df += [stratum.df] * (found.shape[1] - len(df))
    df += [within_df(summary, rank)] * (Q.shape[0] - len(df))
    return np.where(np.asarray(df) > 0, df, np.nan)


def strata(summary: SummaryStats) -> Iterator[Stratum]:
    """Yield the stratum of each random effect.

    From the rank of Z_j are taken the directions of its span that belong to X or to random effects of lower rank, in
    which it may be nested: what these explain is no evidence of how much levels of Z_j differ.
    """
    XX, ZX, ZZ = to_numpy(summary.XX), to_numpy(summary.ZX), to_numpy(summary.ZZ)
    rows = [slice(hi - width, hi) for width, hi in zip(summary.d, np.cumsum(summary.d), strict=True)]
    ranks = [_explained(ZX[at], ZZ[at, at])[1] for at in rows]
    for j, (at, rank) in enumerate(zip(rows, ranks, strict=True)):
        coarser = tuple(i for i, less in enumerate(ranks) if less < rank)
        A = np.r_[(*(rows[i] for i in coarser), slice(0, 0))]  # their columns of Z
        whole = np.block([[XX, ZX[A].T], [ZX[A], ZZ[np.ix_(A, A)]]])
        explained, _ = _explained(np.hstack([ZX[at], ZZ[at][:, A]]), ZZ[at, at])
        left = whole - explained
        p = XX.shape[0]
        finer = tuple(i for i, more in enumerate(ranks) if more > rank and _nested(ZZ, rows[i], at))
        df = float(rank - _null_directions(left, whole) + _null_directions(whole, whole))
        yield Stratum(j, coarser, finer, left[:p, :p], df, ZZ[at, at])


def _nested(ZZ: np.ndarray, fine: slice, coarse: slice) -> bool:
    # whether every level of one random effect is made of levels of another: its columns lie in the span of those
    size = np.diagonal(ZZ[coarse, coarse])
    explained, _ = _explained(ZZ[fine, coarse], ZZ[fine, fine])
    return bool((size - np.diagonal(explained) <= IN_SPAN * size).all())


def _null_directions(A: np.ndarray, size: np.ndarray) -> int:
    """Number of eigenvalues of A that are zero, in units of the diagonal of `size`."""
    diagonal = np.diagonal(size)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return int(np.count_nonzero(np.linalg.eigvalsh(A * scale[:, None] * scale[None, :]) < IN_SPAN))


def orthonormal_rows(C: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """Rows Q (r, p) that span those of `C` (c, p), with Q metric Q' = I."""
    gram = C @ metric @ C.T  # (c, c)
    scale = 1.0 / np.sqrt(np.diagonal(gram))  # (c,)
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale[None, :])
    kept = values > _DEPENDENT
    return (vectors[:, kept] / np.sqrt(values[kept])).T @ (scale[:, None] * C)


def _explained(ZX: np.ndarray, ZZ: np.ndarray) -> tuple[np.ndarray, int]:
    """X'P X (p, p) for the projection P on one random effect, and its rank."""
    diagonal = np.diagonal(ZZ)
    if np.count_nonzero(ZZ) == np.count_nonzero(diagonal):  # one-hot columns
        weights = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
        return (ZX * weights[:, None]).T @ ZX, int(np.count_nonzero(diagonal))
    values, vectors = np.linalg.eigh(ZZ)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    loads = vectors[:, kept].T @ ZX / np.sqrt(values[kept])[:, None]
    return loads.T @ loads, int(np.count_nonzero(kept))
