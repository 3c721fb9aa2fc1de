"""Rates of false positives and power of the tests in designs with one, two or three random effects.

Groups of cells of one donor, sample or type are drawn exactly, by their means and the sum of squares within them, so
that thousands of genes take seconds. Rates are over the nominal level, 1 being exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import machine
import numpy as np
from scipy import stats

import lmm_gpu
from lmm_gpu.inference.pvalues import f_pvalue, t_pvalue

LEVELS = (0.05, 0.01, 0.001)
METHODS = ("generalized", "kenward-roger", "satterthwaite")
#: Effect for power, in standard errors at the true variances.
EFFECT = 4.0


@dataclass(frozen=True)
class Groups:
    """Groups of cells with the same X and Z, and hypotheses about their means."""

    cells: np.ndarray  #: (G,)
    X: np.ndarray  #: (G, p)
    Z: dict[str, np.ndarray]  #: one-hot columns (G, d) of each random effect
    C: np.ndarray  #: (c, p), one contrast, or several for a joint test
    pseudobulk: Callable[[np.ndarray], np.ndarray] | None = None  #: p-values of means of groups (G, m)
    moderate: bool = False
    scale: dict[str, np.ndarray] = field(default_factory=dict)  #: factors of the SD of levels (d,)

    def simulate(
        self, variances: tuple[float, ...], genes: int, beta: np.ndarray, rng: np.random.Generator
    ) -> tuple[lmm_gpu.SummaryStats, np.ndarray]:
        """Statistics of genes with residual variance 1, and the means of the groups (G, genes)."""
        n, X, Z = self.cells[:, None].astype(float), self.X, np.hstack(list(self.Z.values()))
        mean = (X @ beta)[:, None] + rng.normal(size=(len(n), genes)) / np.sqrt(n)
        for (name, part), variance in zip(self.Z.items(), variances, strict=True):
            sd = np.sqrt(variance) * self.scale.get(name, np.ones(part.shape[1]))
            mean += part @ (sd[:, None] * rng.normal(size=(part.shape[1], genes)))
        within = int(n.sum()) - len(n)
        squares = (n * mean**2).sum(axis=0) + (rng.chisquare(within, genes) if within else 0.0)
        numbered = lambda letter, count: tuple(f"{letter}{i}" for i in range(count))  # noqa: E731
        summary = lmm_gpu.SummaryStats(
            n=int(n.sum()),
            XX=X.T @ (n * X),
            XY=X.T @ (n * mean),
            ZX=Z.T @ (n * X),
            ZY=Z.T @ (n * mean),
            ZZ=Z.T @ (n * Z),
            Ynorm=squares,
            d=tuple(part.shape[1] for part in self.Z.values()),
            features=numbered("g", genes),
            fixed_names=numbered("x", X.shape[1]),
            random_names=numbered("z", Z.shape[1]),
            component_names=tuple(self.Z),
        )
        return summary, mean

    def effect(self, variances: tuple[float, ...]) -> np.ndarray:
        """Coefficients (p,) of an effect of `EFFECT` standard errors in the first contrast."""
        V = np.diag(1.0 / self.cells)
        for part, variance in zip(self.Z.values(), variances, strict=True):
            V = V + variance * part @ part.T
        covariance = np.linalg.inv(self.X.T @ np.linalg.solve(V, self.X))
        se = np.sqrt(self.C[0] @ covariance @ self.C[0])
        return np.linalg.pinv(self.C)[:, 0] * EFFECT * se

    def p_values(self, summary: lmm_gpu.SummaryStats, mean: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (genes,) by every method, and of pseudobulk means."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # designs with few donors, on purpose
            fit = lmm_gpu.fit(summary, progress=False)
            prior = fit.residual_prior() if self.moderate else None
        found = {}
        for method in METHODS:
            if len(self.C) > 1:
                F = fit.f_test(self.C, method)
                found[method] = f_pvalue(F.statistic, F.df1, F.df)
            else:
                t = fit.contrast_test(self.C, method, prior)
                found[method] = t_pvalue(t.t, np.broadcast_to(t.df, t.t.shape))[0]
        return found | ({"pseudobulk": self.pseudobulk(mean)} if self.pseudobulk else {})


def one_hot(levels: np.ndarray) -> np.ndarray:
    """Indicator columns of levels."""
    found, at = np.unique(levels, return_inverse=True)
    return np.eye(len(found))[at]


def uneven(donors: int) -> np.ndarray:
    """Cells of each donor, from 5 to 400."""
    return np.rint(np.geomspace(5, 400, donors)).astype(int)


def t_of_means(X: np.ndarray, C: np.ndarray, rows: np.ndarray | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """t test of one contrast of least squares on the means of some groups."""

    def tested(mean: np.ndarray) -> np.ndarray:
        Y = mean if rows is None else mean[rows]
        inverse = np.linalg.pinv(X.T @ X)
        beta, df = inverse @ X.T @ Y, len(X) - np.linalg.matrix_rank(X)
        s2 = ((Y - X @ beta) ** 2).sum(axis=0) / df
        return np.asarray(2 * stats.t.sf(np.abs(C @ beta) / np.sqrt(s2 * (C @ inverse @ C)), df))

    return tested


def types(donors: int, cells: np.ndarray, C: np.ndarray, effects: int = 2) -> Groups:
    """Three types of cells in each donor; every other donor is treated; one column for the effect in each type."""
    donor, kind = np.tile(np.arange(donors), 3), np.repeat(np.arange(3), donors)
    K, arm = np.eye(3)[kind], (donor % 2)[:, None]
    Z = {"donor": one_hot(donor), "donor:type": one_hot(3 * donor + kind)}
    first = np.flatnonzero(kind == 0)
    X = np.column_stack([np.ones(donors), np.arange(donors) % 2])
    bulk = t_of_means(X, np.array([0.0, 1]), first) if len(C) == 1 and C[0, 3:].tolist() == [1, 0, 0] else None
    return Groups(np.tile(cells, 3), np.hstack([K, K * arm]), dict(list(Z.items())[:effects]), C, bulk)


def samples(donor: np.ndarray, arm: np.ndarray, cells: Any = 50, **options: Any) -> Groups:
    """Samples of donors, each in one arm: effects of donors and samples."""
    X = np.column_stack([np.ones(len(donor)), arm])
    Z = {"donor": one_hot(donor), "sample": np.eye(len(donor))}
    return Groups(np.broadcast_to(cells, donor.shape), X, Z, np.array([[0.0, 1]]), **options)


def donors_only(cells: np.ndarray, covariate: np.ndarray, **options: Any) -> Groups:
    """One effect, of donors, and a covariate of donors."""
    X = np.column_stack([np.ones(len(cells)), covariate])
    bulk = t_of_means(X, np.array([0.0, 1]))
    return Groups(cells, X, {"donor": np.eye(len(cells))}, np.array([[0.0, 1]]), bulk, **options)


def partly(both: int, donors: int = 20) -> Groups:
    """Donors of which some have a sample in both arms, and the others one."""
    others = donors - both
    donor = np.r_[np.arange(both), np.arange(both), both + np.arange(others)]
    return samples(donor, np.r_[np.zeros(both), np.ones(both), np.arange(others) % 2])


def sites(count: int, per: int) -> Groups:
    """Sites with donors, one of them in the other arm than the rest of its site."""
    site = np.repeat(np.arange(count), per)
    arm = np.where(np.arange(count * per) % per == 0, 1 - site % 2, site % 2)
    X = np.column_stack([np.ones(len(site)), arm])
    bulk = t_of_means(np.column_stack([one_hot(site), arm]), np.r_[np.zeros(count), 1.0])
    Z = {"site": one_hot(site), "donor": np.eye(len(site))}
    return Groups(np.full(len(site), 50), X, Z, np.array([[0.0, 1]]), bulk)


def visits(donors: int) -> Groups:
    """Three visits of each donor, treated from the second on, with uneven cells."""
    donor, visit = np.repeat(np.arange(donors), 3), np.tile(np.arange(3), donors)
    cells = np.random.default_rng(1).permutation(uneven(3 * donors))
    return samples(donor, (visit > 0).astype(float), cells)


def batches(count: int, per: int) -> Groups:
    """Batches of donors, every other one treated, with three types of cells: effects of batch, donor and donor:type."""
    donors = count * per
    batch, arm = np.repeat(np.arange(count), per), np.arange(donors) % 2
    groups = types(donors, np.full(donors, 50), np.eye(6)[3:4])
    bulk = t_of_means(np.column_stack([one_hot(batch), arm]), np.r_[np.zeros(count), 1.0], np.arange(donors))
    return replace(groups, Z={"batch": one_hot(np.tile(batch, 3)), **groups.Z}, pseudobulk=bulk)


def paired(donors: int) -> Groups:
    """Two samples of each donor, one treated, with three types of cells: effects of donor, sample and donor:type."""
    donor, arm, kind = (part.ravel() for part in np.indices((donors, 2, 3)))
    K = np.eye(3)[kind]
    Z = {"donor": one_hot(donor), "sample": one_hot(2 * donor + arm), "donor:type": one_hot(3 * donor + kind)}
    return Groups(np.full(len(donor), 50), np.hstack([K, K * arm[:, None]]), Z, np.eye(6)[3:4])


def designs() -> Iterator[tuple[str, Groups, tuple[float, ...]]]:
    """Yield name, groups and true variances over that of the residual."""
    first, all_types = np.eye(6)[3:4], np.eye(6)[3:]
    interaction = np.array([[0.0, 0, 0, 1, -1, 0], [0, 0, 0, 0, 1, -1]])
    for donors in (6, 12):
        for name, cells in (("50 cells", np.full(donors, 50)), ("5 to 400 cells", uneven(donors))):
            for variances in ((0.3, 0.01), (0.1, 0.1), (0.0, 0.1)):
                yield f"effect in one type, {donors} donors, {name}", types(donors, cells, first), variances
    yield "effect in one type, 6 donors, no donor:type effect", types(6, np.full(6, 50), first, 1), (0.1,)
    for name, C in (("effects in three types", all_types), ("interaction", interaction)):
        for variances in ((0.3, 0.01), (0.1, 0.1)):
            yield f"joint F, {name}, 6 donors", types(6, np.full(6, 50), C), variances
    yield "12 donors, one with a replicate", samples(np.r_[np.arange(12), 0], np.r_[np.arange(12) % 2, 0]), (0.1, 0.02)
    for both in (1, 4, 10):
        yield f"{both} of 20 donors in both arms", partly(both), (0.1, 0.05)
    for variances in ((0.05, 0.2), (0.2, 0.2)):
        yield "4 sites of 10 donors, partly confounded", sites(4, 10), variances
    yield "3 visits of 8 donors, 5 to 400 cells", visits(8), (0.1, 0.05)
    group = np.arange(9) % 3
    three = Groups(
        np.full(18, 50), np.eye(3)[np.tile(group, 2)], {"donor": np.tile(np.eye(9), (2, 1))}, interaction[:, 3:]
    )
    yield "joint F, three groups of 3 donors", three, (0.1,)
    outlier = np.r_[np.linspace(-1, 1, 11), 6.0]
    yield "covariate with an outlier, 12 donors", donors_only(np.full(12, 50), outlier), (0.05,)
    yield (
        "moderated, 6 donors of 2 or 3 cells",
        donors_only(np.array([2, 3, 2, 3, 3, 2]), np.arange(6) % 2, moderate=True),
        (0.3,),
    )
    for variances in ((0.1, 0.1, 0.05), (0.02, 0.1, 0.01)):
        yield "three effects: 3 batches of 4 donors, effect in one type", batches(3, 4), variances
        yield "three effects: 6 donors with 2 samples, effect in one type", paired(6), variances
    yield (
        "unequal variances: 8 donors, 2 with 9 times",
        donors_only(np.full(10, 100), np.r_[np.zeros(8), 1, 1], scale={"donor": np.r_[np.ones(8), 3, 3]}),
        (0.1,),
    )


def study(genes: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield rates and power of one design after the other."""
    for number, (name, groups, variances) in enumerate(designs()):
        if quick and number % 3:
            continue
        rng = np.random.default_rng([7, number])
        null = groups.p_values(*groups.simulate(variances, genes, np.zeros(groups.X.shape[1]), rng))
        changed = groups.p_values(*groups.simulate(variances, genes // 4, groups.effect(variances), rng))
        yield {
            "design": name,
            "variances": variances,
            "genes": genes,
            "rates": {method: [_share(p, level) / level for level in LEVELS] for method, p in null.items()},
            "power": {method: [_share(p, level) for level in LEVELS] for method, p in changed.items()},
        }


def _share(p: np.ndarray, level: float) -> float:
    return round(float(np.mean(p < level)), 5)


def main() -> None:
    """Print and write the rates."""
    parser = machine.parser("calibration_designs", __doc__)
    parser.add_argument("--genes", type=int, help="for each design; 10,000 by default, 1,000 with --quick")
    options = parser.parse_args()
    rows = []
    for row in study(options.genes or (1_000 if options.quick else 10_000), options.quick):
        rows.append(row)
        shown = "  ".join("/".join(f"{rate:5.2f}" for rate in rates) for rates in row["rates"].values())
        print(f"{row['design']:58s} {row['variances']!s:17s} {shown}", flush=True)
    machine.write({"levels": LEVELS, "methods": METHODS, "rows": rows}, options)


if __name__ == "__main__":
    main()
