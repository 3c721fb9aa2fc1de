"""Exchanges of the labels of donors under which a hypothesis about them stays true, and the sums of relabelled cells.

A contrast between donors compares columns of X that are constant within them. With x (G, r) the values of the donors
along the r tested directions, and P the exchange of two or more donors, the columns become X + Z D C with
D = (P - I) x, so that all sums follow from those of the donors:

    X*'Y = X'Y + C'D' Z'Y,   Z'X* = Z'X + Z'Z D C,   X*'X* = X'X + X'Z D C + C'D' Z'X + C'D' Z'Z D C.

Donors are exchangeable if they differ in nothing but what is tested: in no other column of the tested factors, in no
other factor, and in no coarser random effect. Of covariates, x is residualised on them beforehand (Smith's scheme); the
rest of x stays where it is.

References
----------
Winkler, Ridgway, Webster, Smith and Nichols (2014), Permutation inference for the general linear model, NeuroImage 92,
381-397 (exchangeability blocks; Smith's scheme in table 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ..sumstats.products import GeneProducts
from ..sumstats.summary_stats import SummaryStats

#: Draws of a new relabelling that may all have been drawn before; then no more are searched for.
_REPEATED_DRAWS = 1000


@dataclass(frozen=True)
class Exchange:
    """Labels of donors along the tested directions, and the donors among which they may move."""

    group: str  #: random effect whose levels are relabelled
    rows: np.ndarray  #: (G,), its columns of Z that have cells
    C: np.ndarray  #: (r, p), the tested directions
    values: np.ndarray  #: (v, r), the different labels, less what covariates explain
    codes: np.ndarray  #: (G,), label of each donor
    blocks: np.ndarray  #: (G,), donors of one block are exchangeable
    scheme: str  #: description of the exchange in words

    @property
    def log10_possible(self) -> float:
        """Logarithm of the number of different relabellings, the observed one included."""
        counts = [np.unique(self.codes[members], return_counts=True)[1] for members in self._members()]
        logs = [math.lgamma(count.sum() + 1) - sum(math.lgamma(k + 1) for k in count) for count in counts]
        return sum(logs) / math.log(10.0)

    def _members(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.blocks == block) for block in np.unique(self.blocks)]

    def draw(self, n: int, seed: int) -> list[np.ndarray]:
        """Return n different relabellings (G,), or all if there are no more; the observed one is not among them."""
        if self.log10_possible <= math.log10(n + 1.5):
            return [codes for codes in self._all() if (codes != self.codes).any()]
        rng, members = np.random.default_rng(seed), self._members()
        found: dict[bytes, np.ndarray] = {self.codes.tobytes(): self.codes}
        repeated = 0
        while len(found) <= n and repeated < _REPEATED_DRAWS:
            codes = self.codes.copy()
            for block in members:
                codes[block] = rng.permutation(codes[block])
            repeated = repeated + 1 if codes.tobytes() in found else 0
            found.setdefault(codes.tobytes(), codes)
        return list(found.values())[1:]

    def _all(self) -> Iterator[np.ndarray]:
        members = self._members()
        for parts in product(*(list(_arrangements(tuple(self.codes[block]))) for block in members)):
            codes = self.codes.copy()
            for block, part in zip(members, parts, strict=True):
                codes[block] = part
            yield codes

    def relabelled(self, summary: SummaryStats, codes: np.ndarray) -> SummaryStats:
        """Return the sums of the cells with the labels `codes` (G,) of their donors; `summary` is on the host."""
        D = self.values[codes] - self.values[self.codes]  # (G, r)
        ZZ = summary.ZZ[:, self.rows]
        change = (ZZ @ D) @ self.C  # (q, p), Z'(X* - X)
        cross = summary.ZX[self.rows].T @ D @ self.C  # (p, p), X'(X* - X)
        square = self.C.T @ (D.T @ (ZZ[self.rows] @ D)) @ self.C
        centred = summary.centred and replace(summary.centred, XY=self._moved(summary.centred, D))
        within = summary.within and replace(summary.within, XY=self._moved(summary.within, D))
        return replace(
            summary,
            XX=summary.XX + cross + cross.T + square,
            ZX=summary.ZX + change,
            XY=self._moved(summary, D),
            centred=centred,
            within=within,
        )

    def _moved(self, products: GeneProducts | SummaryStats, D: np.ndarray) -> np.ndarray:
        moved: np.ndarray = products.XY + self.C.T @ (D.T @ products.ZY[self.rows])  # (p, m)
        return moved


def _arrangements(codes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    # different orders of codes that may repeat
    if not codes:
        yield ()
    for first in sorted(set(codes)):
        at = codes.index(first)
        yield from ((first, *rest) for rest in _arrangements(codes[:at] + codes[at + 1 :]))
