"""Summary statistics in the shape of a tuberculosis study: 500,000 cells, 259 donors, 46 batches, p = 63.

Drawn exactly at summary level: with y = W c + e, W = [X Z] and e ~ N(0, s_0 I), W'y = W'W c + W'e needs only
W'e ~ N(0, s_0 W'W), and y'y the part of e outside the span of W, which is chi-squared. No values of cells are drawn.

The `hard` variants resemble real tables: donors of very different sizes, and random effects that are zero for part of
the genes, so that about a quarter of the genes have an estimate at or below zero.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from lmm_gpu import SummaryStats
from lmm_gpu.sumstats.alignment import default_names

CELLS, DONORS, BATCHES, SITES, CELL_TYPES, COVARIATES = 499_713, 259, 46, 10, 29, 5
#: Share of genes without any random effect in the hard variants; about 60 % of these have an estimate below zero.
WITHOUT_EFFECT = 0.4
#: Relative sizes of the smallest and the largest donor in the hard variants.
SIZES = (5, 400)


def uneven_codes(rng: np.random.Generator, donors: int, cells: int) -> np.ndarray:
    """Donor (cells,) of every cell, the sizes of the donors log-uniform between `SIZES`; every donor has cells."""
    sizes = np.exp(rng.uniform(*np.log(SIZES), donors))
    codes = rng.choice(donors, cells, p=sizes / sizes.sum())
    codes[:donors] = np.arange(donors)
    return codes


def design(
    effects: int | str, cells: int = CELLS, seed: int = 0, donors: int = DONORS, *, hard: bool = False
) -> tuple[sp.csr_array, sp.csr_array, list[int]]:
    """X (cell type, treatment within cell type, covariates), Z and the widths of its blocks."""
    rng, row = np.random.default_rng(seed), np.arange(cells)

    def one_hot(codes: np.ndarray, width: int) -> sp.csr_array:
        return sp.csr_array((np.ones(cells), (row, codes)), shape=(cells, width))

    donor = uneven_codes(rng, donors, cells) if hard else rng.integers(0, donors, cells)
    cell_type = rng.integers(0, CELL_TYPES, cells)
    treated = (donor % 2).astype(float)
    within = sp.csr_array((treated, (row, cell_type)), shape=(cells, CELL_TYPES))
    X = sp.hstack([one_hot(cell_type, CELL_TYPES), within, sp.csr_array(rng.normal(size=(cells, COVARIATES)))])
    Z = [one_hot(donor, donors)]
    if effects == "slope":
        Z.append(sp.csr_array((rng.normal(size=cells), (row, donor)), shape=(cells, donors)))
    else:
        Z += [one_hot(rng.integers(0, width, cells), width) for width in (BATCHES, SITES)[: int(effects) - 1]]
    return X.tocsr(), sp.hstack(Z).tocsr(), [block.shape[1] for block in Z]


def simulate(
    genes: int, effects: int | str = 1, cells: int = CELLS, seed: int = 0, donors: int = DONORS, *, hard: bool = False
) -> SummaryStats:
    """Statistics of `genes` genes with random effects of up to a tenth of the residual variance."""
    X, Z, d = design(effects, cells, seed, donors, hard=hard)
    return draw(X, Z, d, genes, seed, without_effect=WITHOUT_EFFECT if hard else 0.0)


def draw(
    X: sp.csr_array, Z: sp.csr_array, d: list[int], genes: int, seed: int = 0, *, without_effect: float = 0.0
) -> SummaryStats:
    """Statistics of `genes` genes of any design; a share `without_effect` of them has no random effects."""
    rng, p, n = np.random.default_rng(seed + 1), X.shape[1], X.shape[0]
    W = sp.hstack([X, Z]).tocsr()
    WW = (W.T @ W).toarray()
    values, vectors = np.linalg.eigh(WW)
    kept = values > 1e-8 * values[-1]
    root = vectors[:, kept] * np.sqrt(values[kept])  # W'W = root root'
    s_0 = rng.uniform(0.1, 1.0, genes)
    spread = [np.sqrt(s_0 * rng.uniform(0, 0.1, genes) / (i + 1)) for i in range(len(d))]
    if without_effect:
        present = rng.uniform(size=genes) >= without_effect
        spread = [s * present for s in spread]
    u = [rng.normal(size=(width, genes)) * s for width, s in zip(d, spread, strict=True)]
    c = np.concatenate([0.1 * rng.normal(size=(p, genes)), *u])
    We = root @ (rng.normal(size=(root.shape[1], genes)) * np.sqrt(s_0))
    outside = s_0 * rng.chisquare(n - root.shape[1], genes)
    inside = np.sum((vectors[:, kept].T @ We / np.sqrt(values[kept])[:, None]) ** 2, axis=0)
    Wy = WW @ c + We
    yy = np.sum(c * (WW @ c), axis=0) + 2 * np.sum(c * We, axis=0) + inside + outside
    names = [default_names(prefix, count) for prefix, count in (("Gene", genes), ("X", p), ("Z", Z.shape[1]))]
    return SummaryStats(
        n, WW[:p, :p], Wy[:p], WW[p:, :p], Wy[p:], WW[p:, p:], yy, tuple(d), *names, default_names("var", len(d))
    )
