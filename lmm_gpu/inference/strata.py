"""Strata of a design: between the levels of which random effect a hypothesis is tested, and on how many df.

Everything here depends on the hypothesis c'beta = 0 alone, never on how X is coded. With P_j the projection on Z_j, the
cells leave X'(I - P_j)X of the information X'X once the levels of random effect j are fixed. In a basis of the
coefficients in which X'X is the identity its eigenvalues are the efficiencies, between 0 and 1, of comparisons within
the levels (James and Wilkinson 1971, Biometrika 58, 279-294). A contrast with a part along an efficiency of zero cannot
be estimated within the levels: it is tested between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend.arrays import Array, to_numpy
from ..backend.sparse import is_sparse
from ..sumstats.summary_stats import SummaryStats

#: Relative (squared) size below which a vector lies in a span, or an efficiency is zero. Sums over 10^6 cells are
#: accurate to 1e-13; a covariate that varies within groups by 1e-5 of its mean is distinguished from a constant one.
IN_SPAN = 1e-10
#: Rows whose Gram matrix in units of their own lengths has smaller eigenvalues are linear combinations of others.
_DEPENDENT = 1e-10
_MANY_LEVELS = 2000


@dataclass(frozen=True)
class Stratum:
    """Comparisons between the levels of one random effect."""

    component: int  #: j, position of the random effect
    rank: int  #: of Z_j
    df: float  #: between its levels, once X and the random effects of lower rank are taken out
    within_gram: np.ndarray  #: (p, p), X'(I - P_j)X for the projection P_j on Z_j
    efficiency: np.ndarray  #: (p,), eigenvalues of `within_gram` where X'X is the identity
    axes: np.ndarray  #: (p, p), rows that turn contrasts into coordinates along the efficiencies

    def lost(self, C: np.ndarray) -> np.ndarray:
        """Coordinates (c, z) of the contrasts `C` (c, p) along comparisons that the levels' own cells cannot make."""
        along: np.ndarray = C @ self.axes.T
        return along[:, self.efficiency < IN_SPAN]

    def kept_within(self, C: np.ndarray) -> np.ndarray:
        """Share (c,) of the information on the contrasts `C` (c, p) that is left within levels; 0 if not estimable.

        c'(X'X)^-1 c over c'(X'(I - P_j)X)^- c.
        """
        along = C @ self.axes.T  # (c, p)
        size = np.sum(along**2, axis=1)  # (c,)
        estimated = self.efficiency >= IN_SPAN
        estimable = np.sum(along[:, ~estimated] ** 2, axis=1) <= IN_SPAN * size
        variance = np.sum(along[:, estimated] ** 2 / self.efficiency[estimated], axis=1)
        return np.where(estimable & (variance > 0), size / np.where(variance > 0, variance, 1.0), 0.0)


def strata(summary: SummaryStats) -> list[Stratum]:
    """Return the stratum of each random effect, in the order of the model.

    The df are the rank of Z_j less the directions of its span that belong to X or to random effects of lower rank, in
    which it may be nested: those say nothing about how much the levels of Z_j differ. Of a sparse Z'Z, random effects
    of more than 2,000 levels are not looked for among those of lower rank.
    """
    ZZ = summary.ZZ if is_sparse(summary.ZZ) else to_numpy(summary.ZZ)
    return list(_strata(to_numpy(summary.XX), to_numpy(summary.ZX), ZZ, summary.d))


def _strata(XX: np.ndarray, ZX: np.ndarray, ZZ: Array, d: Sequence[int]) -> Iterator[Stratum]:
    rows = [slice(hi - width, hi) for width, hi in zip(d, np.cumsum(d), strict=True)]
    ranks = [explained(ZX[at], ZZ[at, at])[1] for at in rows]
    whiten, p = _whitening(XX), XX.shape[0]
    for j, (at, rank) in enumerate(zip(rows, ranks, strict=True)):
        coarser = [i for i, less in enumerate(ranks) if less < rank and not (is_sparse(ZZ) and d[i] > _MANY_LEVELS)]
        A = np.r_[(*(rows[i] for i in coarser), slice(0, 0))]  # their columns of Z
        gram = np.block([[XX, ZX[A].T], [ZX[A], _dense(ZZ[A][:, A])]])
        within = gram - explained(np.hstack([ZX[at], _dense(ZZ[at][:, A])]), ZZ[at, at])[0]
        df = float(rank - _null_directions(within, gram) + _null_directions(gram, gram))
        gram_within = within[:p, :p]
        values, vectors = np.linalg.eigh(whiten @ gram_within @ whiten.T)
        yield Stratum(j, rank, df, gram_within, values, vectors.T @ whiten)


def tested_between(found: Sequence[Stratum], C: np.ndarray) -> list[Stratum | None]:
    """Return the stratum that each contrast of `C` (c, p) is tested in; None within the levels of all random effects.

    The coarsest random effect within whose levels the contrast cannot be estimated. Where such a stratum has no df, as
    with one sample per donor and treatment, a coarser one that has some information on the contrast takes its place.
    """
    ordered = sorted(found, key=lambda one: (one.rank, one.df))
    kept = np.array([one.kept_within(C) for one in ordered])  # (strata, c)
    return [_first(ordered, kept[:, i]) for i in range(len(C))]


def _first(ordered: Sequence[Stratum], kept: np.ndarray) -> Stratum | None:
    needed = [one for one, share in zip(ordered, kept, strict=True) if share == 0]
    if not needed:
        return None
    tells = [one for one, share in zip(ordered, kept, strict=True) if share < 1 - IN_SPAN**0.5]
    return next((one for one in [*needed, *tells] if one.df > 0), needed[0])


def between_within_df(summary: SummaryStats, C: np.ndarray, rank: int) -> np.ndarray:
    """Between-within df (c,) of the contrasts `C` (c, p); NaN where nothing is left to test against.

    `rank` is that of Z once X is taken out: n - p - rank df are left within the levels of all random effects.

    References
    ----------
    Pinheiro and Bates (2000), Mixed-Effects Models in S and S-PLUS, section 2.4.2.
    """
    within = within_df(summary, rank)
    df = np.array([within if one is None else one.df for one in tested_between(strata(summary), C)])
    return np.where(df > 0, df, np.nan)


def between_within_directions(summary: SummaryStats, C: np.ndarray, rank: int) -> np.ndarray:
    """Between-within df (r,) of directions that span the rows of `C` (c, p), coarsest stratum first.

    As many combinations of the contrasts as cannot be estimated within the levels of the coarsest random effect are
    tested between its levels, as many more as cannot within those of the next between these, and the rest within.
    """
    Q = orthonormal_rows(C, np.linalg.inv(to_numpy(summary.XX)))  # (r, p)
    lost = np.zeros((Q.shape[0], 0))
    df: list[float] = []
    usable = 0.0
    for stratum in sorted(strata(summary), key=lambda one: (one.rank, one.df)):
        lost = np.hstack([lost, stratum.lost(Q)])
        usable = stratum.df if stratum.df > 0 else usable
        df += [usable] * (_rank(lost) - len(df))
    df += [within_df(summary, rank)] * (Q.shape[0] - len(df))
    return np.where(np.asarray(df) > 0, df, np.nan)


def within_df(summary: SummaryStats, rank: int) -> float:
    """Residual df n - p - rank within the levels of all random effects; `rank` is that of Z after X."""
    return float(summary.n - summary.XX.shape[0] - rank)


def orthonormal_rows(C: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """Rows Q (r, p) that span those of `C` (c, p), with Q metric Q' = I."""
    gram = C @ metric @ C.T  # (c, c)
    scale = 1.0 / np.sqrt(np.diagonal(gram))  # (c,)
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale[None, :])
    kept = values > _DEPENDENT
    Q: np.ndarray = (vectors[:, kept] / np.sqrt(values[kept])).T @ (scale[:, None] * C)
    return Q


def _dense(A: Array) -> np.ndarray:
    result: np.ndarray = A.toarray() if is_sparse(A) else A
    return result


def explained(ZX: np.ndarray, ZZ: Array) -> tuple[np.ndarray, int]:
    """X'P X (p, p) for the projection P on one random effect, and its rank."""
    root = inverse_root(ZZ)
    if root.ndim == 1:  # one-hot columns
        loads = ZX * root[:, None]
        return loads.T @ loads, int(np.count_nonzero(root))
    loads = root @ ZX
    return loads.T @ loads, root.shape[0]


def inverse_root(ZZ: Array) -> np.ndarray:
    """Rows A (rank, d) with A'A = (Z'Z)^+; the diagonal alone (d,) where Z'Z is diagonal. Z'Z may be sparse."""
    diagonal = ZZ.diagonal()
    if (ZZ.count_nonzero() if is_sparse(ZZ) else np.count_nonzero(ZZ)) == np.count_nonzero(diagonal):
        result: np.ndarray = np.sqrt(np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0))
        return result
    values, vectors = np.linalg.eigh(_dense(ZZ))
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    result = (vectors[:, kept] / np.sqrt(values[kept])).T
    return result


def _whitening(XX: np.ndarray) -> np.ndarray:
    # rows W with W X'X W' = I
    scale = 1.0 / np.sqrt(np.diagonal(XX))
    values, vectors = np.linalg.eigh(XX * scale[:, None] * scale[None, :])
    W: np.ndarray = (vectors / np.sqrt(values)).T * scale[None, :]
    return W


def _null_directions(A: np.ndarray, size: np.ndarray) -> int:
    """Number of eigenvalues of A that are zero, in units of the diagonal of `size`."""
    diagonal = np.diagonal(size)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return int(np.count_nonzero(np.linalg.eigvalsh(A * scale[:, None] * scale[None, :]) < IN_SPAN))


def _rank(columns: np.ndarray) -> int:
    # of coordinates of orthonormal rows
    return int(np.count_nonzero(np.linalg.svd(columns, compute_uv=False) > IN_SPAN**0.5)) if columns.size else 0
