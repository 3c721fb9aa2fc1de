"""Calibration of the tests in designs with one, two or three random effects: false positives, power and FDR.

Values are normal. Rates are over the nominal level, 1 being exact. Kenward-Roger's and Satterthwaite's tests, t tests
of pseudobulk means, limma's moderated ones and dream are measured on the same genes, wherever they apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import machine
import numpy as np
from calibration_groups import (
    EFFECT,
    LEVELS,
    Groups,
    Samples,
    codings,
    described,
    discoveries,
    one_hot,
    power,
    rates,
    uneven,
)

#: Design, groups, and true variances over that of the residual.
Design = tuple[str, Groups, tuple[float, ...]]
ARM = np.array([[0.0, 1.0]])
#: Genes whose p-values are compared between codings.
_CODED = 100


def averaged(level: np.ndarray) -> np.ndarray:
    """Rows (levels, G) that average the groups of each level."""
    columns = one_hot(level)
    return (columns / columns.sum(axis=0)).T


def two_arms(average: np.ndarray, arm: np.ndarray, blocks: np.ndarray | None = None) -> Samples | None:
    """Pseudobulk samples of two arms (S,), with blocks (S,) as fixed effects; None without residual df."""
    X = np.column_stack([np.ones(len(arm)) if blocks is None else one_hot(blocks), arm])
    C = np.eye(X.shape[1])[-1:]
    return Samples(average, X, C) if np.linalg.matrix_rank(X) == X.shape[1] < len(X) else None


def types(donors: int, cells: np.ndarray, C: np.ndarray, effects: int = 2, **options: Any) -> Groups:
    """Three types of cells in each donor; every other donor is treated; one column for the effect in each type."""
    donor, kind = np.tile(np.arange(donors), 3), np.repeat(np.arange(3), donors)
    K, arm = np.eye(3)[kind], (donor % 2)[:, None]
    Z = {"donor": one_hot(donor), "donor:type": one_hot(3 * donor + kind)}
    bulk = None
    if len(C) == 1:
        bulk = two_arms(np.eye(3 * donors)[kind == 0], np.arange(donors) % 2)
    elif len(C) == 2:  # the interaction, within donors
        bulk = Samples(
            np.eye(3 * donors), np.hstack([one_hot(donor), K[:, 1:], K[:, 1:] * arm]), np.eye(donors + 4)[-2:]
        )
    return Groups(np.tile(cells, 3), np.hstack([K, K * arm]), dict(list(Z.items())[:effects]), C, bulk, **options)


def samples(donor: np.ndarray, arm: np.ndarray, cells: Any = 50) -> Groups:
    """Samples of donors, each in one arm: effects of donors and samples."""
    arms = averaged(donor) @ arm
    between = np.isin(arms, (0, 1)).all()
    each = np.eye(len(donor))
    bulk = two_arms(averaged(donor), arms) if between else two_arms(each, arm, donor)
    X = np.column_stack([np.ones(len(donor)), arm])
    return Groups(np.broadcast_to(cells, donor.shape), X, {"donor": one_hot(donor), "sample": each}, ARM, bulk)


def donors_only(cells: np.ndarray, covariate: np.ndarray, **options: Any) -> Groups:
    """One effect, of donors, and a covariate of donors."""
    X, each = np.column_stack([np.ones(len(cells)), covariate]), np.eye(len(cells))
    return Groups(cells, X, {"donor": each}, ARM, Samples(each, X, ARM), **options)


def partly(both: int, donors: int = 20) -> Groups:
    """Donors of which some have a sample in both arms, and the others one."""
    others = donors - both
    donor = np.r_[np.arange(both), np.arange(both), both + np.arange(others)]
    return samples(donor, np.r_[np.zeros(both), np.ones(both), np.arange(others) % 2])


def sites(count: int, per: int) -> Groups:
    """Sites with donors, one of them in the other arm than the rest of its site."""
    site = np.repeat(np.arange(count), per)
    arm = np.where(np.arange(count * per) % per == 0, 1 - site % 2, site % 2)
    each = np.eye(len(site))
    Z = {"site": one_hot(site), "donor": each}
    return Groups(np.full(len(site), 50), np.column_stack([each[:, 0] ** 0, arm]), Z, ARM, two_arms(each, arm, site))


def visits(donors: int) -> Groups:
    """Three visits of each donor, treated from the second on, with uneven cells."""
    donor, visit = np.repeat(np.arange(donors), 3), np.tile(np.arange(3), donors)
    cells = np.random.default_rng(1).permutation(uneven(3 * donors))
    return samples(donor, (visit > 0).astype(float), cells)


def three_groups(per: int, cells: int, **options: Any) -> Groups:
    """Three groups of donors, compared jointly."""
    X, each = np.eye(3)[np.arange(3 * per) % 3], np.eye(3 * per)
    C = np.array([[1.0, -1, 0], [0, 1, -1]])
    return Groups(np.full(3 * per, cells), X, {"donor": each}, C, Samples(each, X, C), **options)


def batches(count: int, per: int) -> Groups:
    """Batches of donors, every other one treated, with three types of cells: effects of batch, donor and donor:type."""
    donors = count * per
    batch = np.repeat(np.arange(count), per)
    groups = types(donors, np.full(donors, 50), np.eye(6)[3:4])
    bulk = two_arms(np.eye(3 * donors)[:donors], np.arange(donors) % 2, batch)
    return replace(groups, Z={"batch": one_hot(np.tile(batch, 3)), **groups.Z}, samples=bulk)


def paired(donors: int) -> Groups:
    """Two samples of each donor, one treated, with three types of cells: effects of donor, sample and donor:type."""
    donor, arm, kind = (part.ravel() for part in np.indices((donors, 2, 3)))
    K, first = np.eye(3)[kind], kind == 0
    Z = {"donor": one_hot(donor), "sample": one_hot(2 * donor + arm), "donor:type": one_hot(3 * donor + kind)}
    bulk = two_arms(np.eye(len(donor))[first], arm[first], donor[first])
    return Groups(np.full(len(donor), 50), np.hstack([K, K * arm[:, None]]), Z, np.eye(6)[3:4], bulk)


def unequal(first: int, second: int) -> Groups:
    """Two arms of donors; those of the second differ three times as much."""
    arm = np.repeat([0.0, 1], [first, second])
    return donors_only(np.full(len(arm), 100), arm, scale={"donor": 1 + 2 * arm})


def one_effect() -> Iterator[Design]:
    """Yield designs with one random effect: few cells, moderation, covariates, three groups."""
    halves = np.arange(12) % 2
    few = np.array([2, 3, 2, 3, 3, 2])
    yield "effect in one type, 6 donors, no donor:type effect", types(6, np.full(6, 50), np.eye(6)[3:4], 1), (0.1,)
    yield "joint F, three groups of 3 donors", three_groups(3, 50), (0.1,)
    yield "joint F, moderated, three groups of 3 donors of 3 cells", three_groups(3, 3, moderate=True), (0.3,)
    for name, cells in (("", np.full(12, 50)), (", 5 to 400 cells", np.random.default_rng(2).permutation(uneven(12)))):
        outlier = donors_only(cells, np.r_[np.linspace(-1, 1, 11), 6.0])
        yield f"covariate with an outlier, 12 donors{name}", outlier, (0.05,)
    yield "12 donors of 2 to 5 cells", donors_only(2 + np.arange(12) // 2 % 4, halves), (0.3,)
    yield "moderated, 6 donors of 2 or 3 cells", donors_only(few, halves[:6], moderate=True), (0.3,)


def two_effects() -> Iterator[Design]:
    """Yield designs with two random effects: types of cells, joint tests, replicates, pairs, sites and visits."""
    first, all_types = np.eye(6)[3:4], np.eye(6)[3:]
    interaction = np.array([[0.0, 0, 0, 1, -1, 0], [0, 0, 0, 0, 1, -1]])
    for donors in (6, 12):
        for name, cells in (("50 cells", np.full(donors, 50)), ("5 to 400 cells", uneven(donors))):
            for variances in ((0.3, 0.01), (0.1, 0.1), (0.01, 0.3), (0.0, 0.1)):
                yield f"effect in one type, {donors} donors, {name}", types(donors, cells, first), variances
    yield "effect in one type, 6 donors, 2 to 4 cells", types(6, np.tile([2, 3, 4], 2), first), (0.3, 0.1)
    for name, C in (("effects in three types", all_types), ("interaction", interaction)):
        for variances in ((0.3, 0.01), (0.1, 0.1)):
            yield f"joint F, {name}, 6 donors", types(6, np.full(6, 50), C), variances
    for variances in ((0.1, 0.02), (0.02, 0.1)):
        replicate = samples(np.r_[np.arange(12), 0], np.r_[np.arange(12) % 2, 0])
        yield "12 donors, one with a replicate", replicate, variances
    for both in (1, 4, 10):
        yield f"{both} of 20 donors in both arms", partly(both), (0.1, 0.05)
    for variances in ((0.05, 0.2), (0.2, 0.2), (0.2, 0.05)):
        yield "4 sites of 10 donors, partly confounded", sites(4, 10), variances
    for variances in ((0.1, 0.05), (0.05, 0.1)):
        yield "3 visits of 8 donors, 5 to 400 cells", visits(8), variances


def designs() -> Iterator[Design]:
    """Yield all designs; in the last ones the model's assumptions do not hold."""
    yield from one_effect()
    yield from two_effects()
    for variances in ((0.1, 0.1, 0.05), (0.02, 0.1, 0.01)):
        yield "three effects: 3 batches of 4 donors, effect in one type", batches(3, 4), variances
        yield "three effects: 6 donors with 2 samples, effect in one type", paired(6), variances
    for first, second in ((5, 5), (8, 4), (8, 2)):
        yield f"unequal variances: {first} donors, {second} with 9 times", unequal(first, second), (0.1,)
    noisy = np.tile([3.0, 1, 1], 12)  # levels of donor:type
    different = types(12, np.full(12, 50), np.eye(6)[3:4], scale={"donor:type": noisy})
    yield "unequal variances: the tested one of three types with 9 times", different, (0.02, 0.1)


def measured(groups: Groups, variances: tuple[float, ...], genes: int, rng: np.random.Generator) -> dict[str, Any]:
    """Rates, power and false discoveries of every method in one design."""
    p = groups.X.shape[1]
    null_values = groups.simulate(variances, np.zeros((p, genes)), rng)
    null = groups.p_values(*null_values)
    sizes = np.r_[np.ones(genes // 4), rng.uniform(1, 3, genes // 9)]
    changed = groups.p_values(*groups.simulate(variances, np.outer(groups.effect(variances), sizes), rng))
    return {
        "rates": {method: rates(found) for method, found in null.items()},
        "power": {method: power(found[: genes // 4]) for method, found in changed.items()},
        "discoveries": {method: discoveries(null[method], found[genes // 4 :]) for method, found in changed.items()},
        "codings": between_codings(groups, *(values[..., :_CODED] for values in null_values)),
    }


def between_codings(groups: Groups, mean: np.ndarray, squares: np.ndarray) -> dict[str, float]:
    """Largest difference of log10 p between the codings of X, by method of the mixed model."""
    plain = groups.mixed_model(mean, squares)
    coded = [groups.recoded(T).mixed_model(mean, squares) for T in codings(groups.X.shape[1]).values()]
    return {
        method: float(max(np.nanmax(np.abs(np.log10(other[method] / p))) for other in coded))
        for method, p in plain.items()
    }


def study(genes: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield rates, power and false discoveries of one design after the other."""
    for number, (name, groups, variances) in enumerate(designs()):
        if quick and number % 3:
            continue
        row = measured(groups, variances, genes, np.random.default_rng([7, number]))
        yield {"design": name, "variances": variances, "genes": genes, **row}


def main() -> None:
    """Print and write the rates."""
    parser = machine.parser("calibration_designs", __doc__)
    parser.add_argument("--genes", type=int, help="for each design; 4,000 by default, 1,000 with --quick")
    options = parser.parse_args()
    rows = []
    for row in study(options.genes or (1_000 if options.quick else 4_000), options.quick):
        rows.append(row)
        print(described(row), flush=True)
    machine.write({"levels": LEVELS, "effect": EFFECT, "rows": rows}, options)


if __name__ == "__main__":
    main()
