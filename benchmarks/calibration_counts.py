"""Calibration of the tests with counts: false positives, power and FDR of negative binomial and Poisson cells.

Counts are fitted as log(1 + counts over size factors). limma and dream have voom's weights of pseudobulk counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import machine
import numpy as np
from calibration_cells import LOW, by_sample, log_values, p_values
from calibration_groups import LEVELS, described, discoveries, power, rates, uneven
from scipy import sparse

#: Log-normal distribution of the mean count of genes: median, and SD of the logarithm.
_MEAN, _SPREAD = 0.15, 1.2
#: SD of the logarithms of donors, of samples of a donor, and of size factors of cells; size of the negative binomial.
_DONORS, _SAMPLES, _FACTORS, _SIZE = 0.3, 0.15, 0.3, 2.0
#: Range of the log fold changes of changed genes, up or down.
_CHANGES = 0.3, 1.2
_SHARE = 0.1


@dataclass(frozen=True)
class CountDesign:
    """Cells of donors in two arms."""

    name: str
    donor: np.ndarray  #: (n,)
    arm: np.ndarray  #: (n,)
    samples: bool = False  #: whether samples of a donor differ
    poisson: bool = False

    def simulate(self, genes: int, changed: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Counts (n, genes), and log fold changes (genes,) of a share `changed` of the genes."""
        donors = self.donor.max() + 1
        change = np.where(np.arange(genes) < changed * genes, rng.uniform(*_CHANGES, genes), 0.0)
        change *= rng.choice([-1, 1], genes)
        logs = np.log(_MEAN) + _SPREAD * rng.normal(size=genes) + _DONORS * rng.normal(size=(donors, genes))
        of_samples = np.stack([logs, logs + change])  # (2, donors, genes)
        if self.samples:
            of_samples += _SAMPLES * rng.normal(size=of_samples.shape)
        mean = np.exp(of_samples)[self.arm, self.donor]  # (n, genes)
        mean *= np.exp(_FACTORS * rng.normal(size=(len(self.donor), 1)))
        if not self.poisson:
            mean *= rng.standard_gamma(_SIZE, size=mean.shape) / _SIZE
        return rng.poisson(mean), change

    def p_values(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """P-values (genes,) of all methods."""
        groups, code = by_sample(self.donor, self.arm, self.samples)
        return p_values(groups, code, log_values(counts), sparse.csr_array(counts))


def within(donors: int, cells: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Donors (n,) and arms (n,) of donors that have a share of their cells in the second arm."""
    donor = np.repeat(np.arange(donors), cells)
    return donor, (np.arange(donors * cells) % cells < share * cells).astype(int)


def designs() -> Iterator[CountDesign]:
    """Yield the designs."""
    six, twelve, ten = (np.repeat(np.arange(n), cells) for n, cells in ((6, 100), (12, uneven(12)), (10, 100)))
    yield CountDesign("6 donors of 100 cells", six, six % 2)
    yield CountDesign("12 donors of 5 to 400 cells", twelve, twelve % 2)
    yield CountDesign("12 donors of 5 to 400 cells, Poisson", twelve, twelve % 2, poisson=True)
    yield CountDesign("8 donors against 2", ten, (ten > 7).astype(int))
    yield CountDesign("8 donors, half of the cells in each arm", *within(8, 100, 0.5), samples=True)
    yield CountDesign("8 donors, 5 % of the cells in one arm", *within(8, 200, 0.05))


def study(genes: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rates of genes that are detected, rare ones and others, in one design after the other."""
    for number, design in enumerate(designs()):
        if quick and number % 2 == 0:
            continue
        rng = np.random.default_rng([11, number])
        counts, _ = design.simulate(genes, 0.0, rng)
        null = design.p_values(counts)
        mixed, change = design.simulate(genes, _SHARE, rng)
        tested = design.p_values(mixed)
        for name, of_null, of_mixed in (
            ("rare", *(one.mean(axis=0) <= LOW for one in (counts, mixed))),
            ("other", *(one.mean(axis=0) > LOW for one in (counts, mixed))),
        ):
            yield {
                "design": f"{design.name}, {name} genes",
                "genes": int(of_null.sum()),
                "rates": {method: rates(p[of_null]) for method, p in null.items()},
                "power": {method: power(p[of_mixed & (change != 0)]) for method, p in tested.items()},
                "discoveries": {
                    method: discoveries(p[of_mixed & (change == 0)], p[of_mixed & (change != 0)])
                    for method, p in tested.items()
                },
            }


def main() -> None:
    """Print and write the rates."""
    parser = machine.parser("calibration_counts", __doc__)
    parser.add_argument("--genes", type=int, help="for each design; 10,000 by default, 1,000 with --quick")
    options = parser.parse_args()
    rows = []
    for row in study(options.genes or (1_000 if options.quick else 10_000), options.quick):
        rows.append(row)
        print(described(row), flush=True)
    machine.write({"levels": LEVELS, "rows": rows}, options)


if __name__ == "__main__":
    main()
