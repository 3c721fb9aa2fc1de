"""Calibration of the tests on real data whose labels are permuted: no gene has an effect, and values are as they are.

`--data` is OneK1K's folder, as for peers.py: counts.npz (cells x genes) and obs.csv with donor and cell_type. Labels of
donors are permuted, or those of the cells of each donor. In `--bulk`, a folder with counts.csv.gz (samples x genes) and
obs.csv with sample, donor and time, those of the visits of each patient. Genes are correlated: the error of a rate is
that of its average over permutations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pandas as pd
from calibration_cells import by_sample, log_values, of_counts, p_values, sums_of
from calibration_designs import donors_only
from calibration_groups import LEVELS, METHODS, Groups, described, one_hot, rates
from scipy import sparse

import lmm_gpu

#: Share of cells in which a gene is seen, at least; and at most for a rare one.
_SEEN, _RARE = 0.05, 0.15
#: Genes of bulk samples in one permutation, drawn at random.
_BULK = 1000
#: P-values (genes,) by method, NaN for genes that are left out.
PValues = dict[str, np.ndarray]
#: One permutation: p-values by design.
Permutation = Callable[[np.random.Generator], dict[str, PValues]]


class Cells:
    """Cells of donors, with their types."""

    def __init__(self, folder: Path):
        obs = pd.read_csv(folder / "obs.csv")
        counts = sparse.csr_array(sparse.load_npz(folder / "counts.npz"))
        values = log_values(counts)  # of all genes
        self.share = np.asarray((counts > 0).mean(axis=0)).ravel()  # (genes,) cells in which a gene is seen
        seen = self.share >= _SEEN
        self.counts, self.values, self.share = counts[:, seen], values[:, seen], self.share[seen]
        self.donor = np.unique(obs["donor"], return_inverse=True)[1]
        self.types, self.type = np.unique(obs["cell_type"], return_inverse=True)

    def of_type(self, kind: str) -> tuple[np.ndarray, Any, Any]:
        """Donors (n,), values and counts of the cells of one type."""
        rows = np.flatnonzero(self.type == self.types.tolist().index(kind))
        return np.unique(self.donor[rows], return_inverse=True)[1], self.values[rows], self.counts[rows]

    def donors_permuted(self, name: str, kind: str, treated: float, donors: int | None = None) -> Permutation:
        """One type of cells; a share of the donors, all or some drawn at random, is in the second arm."""
        donor, values, counts = self.of_type(kind)

        def permuted(rng: np.random.Generator) -> dict[str, PValues]:
            total = donor.max() + 1
            drawn = rng.permutation(total)[: donors or total]
            arm = np.full(total, -1)
            arm[drawn] = np.arange(len(drawn)) < treated * len(drawn)
            rows = np.flatnonzero(arm[donor] >= 0)
            of_rows = np.unique(donor[rows], return_inverse=True)[1]
            groups, code = by_sample(of_rows, arm[donor[rows]], False)
            return {name: p_values(groups, code, values[rows], counts[rows])}

        return permuted

    def pooled(self, kinds: Mapping[str, str]) -> Permutation:
        """All types in one model, half of the donors treated; the effect in each of some types is tested."""
        pairs = np.stack([self.donor, self.type])
        (donor, kind), code, cells = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
        mean = sums_of(self.values, code.ravel()) / cells[:, None]
        squares = np.asarray(self.values.multiply(self.values).sum(axis=0)).ravel()
        counts, K, Z = sums_of(self.counts, code.ravel()), one_hot(kind), {"donor": one_hot(donor)}
        positions = {name: self.types.tolist().index(one) for one, name in kinds.items()}

        def permuted(rng: np.random.Generator) -> dict[str, PValues]:
            total = donor.max() + 1
            arm = (rng.permutation(total) < total // 2)[donor].astype(float)
            X = np.hstack([K, K * arm[:, None]])
            groups = Groups(cells, X, Z | {"donor:type": np.eye(len(donor))}, np.eye(X.shape[1])[K.shape[1] :])
            tested = groups.each_contrast(mean, squares)
            found = {}
            for name, at in positions.items():
                here = kind == at
                alone = donors_only(cells[here], arm[here])
                found[name] = {method: p[at] for method, p in tested.items()}
                found[name] |= alone.samples.p_values(mean[here]) | of_counts(alone, counts[here])
            return found

        return permuted

    def cells_permuted(self, name: str, kind: str, treated: float, by_rarity: bool = False) -> Permutation:
        """One type of cells; a share of the cells of each donor is in the second arm."""
        donor, values, counts = self.of_type(kind)
        size = np.bincount(donor)

        def permuted(rng: np.random.Generator) -> dict[str, PValues]:
            order = np.lexsort((rng.random(len(donor)), donor))  # random within donors
            rank = np.empty(len(donor), dtype=int)
            rank[order] = np.concatenate([np.arange(n) for n in size])
            arm = (rank < np.maximum(1, np.rint(treated * size))[donor]).astype(int)
            groups, code = by_sample(donor, arm, False)
            found, rare = p_values(groups, code, values, counts), self.share < _RARE
            parts = {", rare genes": rare, ", other genes": ~rare} if by_rarity else {"": rare | True}
            return {name + part: {method: p[genes] for method, p in found.items()} for part, genes in parts.items()}

        return permuted


def visits_permuted(folder: Path) -> Permutation:
    """Bulk samples of patients; the labels of the visits of each patient are permuted, the first two are compared."""
    obs = pd.read_csv(folder / "obs.csv", index_col="sample", dtype={"donor": "category"})
    counts = pd.read_csv(folder / "counts.csv.gz", index_col=0)
    size, counts = counts.sum(axis=1), counts.loc[:, (counts >= 10).mean() >= 0.5]
    contrast, formula = "time[T.T2]", "~ time + (1 | donor)"

    def permuted(rng: np.random.Generator) -> dict[str, PValues]:
        time = obs.groupby("donor", observed=True)["time"].transform(lambda labels: rng.permutation(labels.to_numpy()))
        shown, genes = obs.assign(time=time), rng.permutation(counts.columns)[:_BULK]
        logs = np.log2((counts[genes] + 0.5).div(size + 1.0, axis=0) * 1e6).to_numpy()
        fit = lmm_gpu.fit((logs, shown), formula, is_counts=False, progress=False)
        found = {name: fit.test(contrast, df=name)["p_value"].to_numpy() for name in METHODS}
        for name, model in (("limma", "~ time + donor"), ("dream", formula)):
            table = lmm_gpu.dream((counts[genes], shown), model, contrast=contrast).set_index("variable")["p_value"]
            found[name] = table.reindex(genes).to_numpy()
        return {"bulk, visits of 11 patients": found}

    return permuted


def designs(data: Path, bulk: Path | None) -> Iterator[tuple[Permutation, float]]:
    """Yield permutations, and the share of the wanted number that is enough: rates far from 1 need fewer."""
    cells = Cells(data)
    yield cells.donors_permuted("CD4 T cells, 20 against 20 donors", "cd4nc", 0.5), 1.0
    yield cells.donors_permuted("CD4 T cells, 32 against 8 donors", "cd4nc", 0.2), 1.0
    yield cells.donors_permuted("CD4 T cells, 3 against 3 donors", "cd4nc", 0.5, 6), 1.0
    yield cells.cells_permuted("half of the CD4 T cells of each donor", "cd4nc", 0.5), 1.0
    yield cells.cells_permuted("5 % of the CD4 T cells of each donor", "cd4nc", 0.05, by_rarity=True), 1.0
    kinds = {"mononc": "non-classical monocytes", "monoc": "classical monocytes", "bmem": "B cells"}
    for kind, title in kinds.items():
        yield cells.donors_permuted(f"{title} alone, 20 against 20 donors", kind, 0.5), 1.0
    yield cells.pooled({kind: f"{title}, all types in one model" for kind, title in kinds.items()}), 0.25
    if bulk is not None:
        yield visits_permuted(bulk), 1.0


def study(data: Path, bulk: Path | None, permutations: int) -> Iterator[dict[str, Any]]:
    """Yield average rates over permutations with their standard errors, of one design after the other."""
    for permuted, share in designs(data, bulk):
        times = max(2, round(share * permutations))
        found: dict[str, dict[str, list[list[float]]]] = {}
        for number in range(times):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                p_values_of = permuted(np.random.default_rng([13, number]))
            for name, by_method in p_values_of.items():
                for method, p in by_method.items():
                    found.setdefault(name, {}).setdefault(method, []).append(rates(p))
        for name, of_methods in found.items():
            yield {
                "design": name,
                "permutations": times,
                "rates": {method: np.mean(each, axis=0).round(4).tolist() for method, each in of_methods.items()},
                "errors": {
                    method: (np.std(each, axis=0, ddof=1) / times**0.5).round(4).tolist()
                    for method, each in of_methods.items()
                },
            }


def main() -> None:
    """Print and write the rates."""
    parser = machine.parser("calibration_data", __doc__)
    parser.add_argument("--data", type=Path, help="OneK1K's folder; without it nothing is measured")
    parser.add_argument("--bulk", type=Path, help="folder of bulk samples, by default shock_rnaseq beside --data")
    parser.add_argument("--permutations", type=int, help="100 by default, 4 with --quick")
    options = parser.parse_args()
    data, bulk = options.data, options.bulk or (options.data and options.data.parent / "shock_rnaseq")
    if data is None or not (data / "counts.npz").exists():
        print("skipped: --data names no folder with counts.npz and obs.csv")
        return
    if not (bulk / "counts.csv.gz").exists():
        print(f"bulk samples are skipped: {bulk} has no counts.csv.gz")
        bulk = None
    rows: list[dict[str, Any]] = []
    try:
        for row in study(data, bulk, options.permutations or (4 if options.quick else 100)):
            rows.append(row)
            print(described(row), flush=True)
    finally:  # what is done is kept, also when interrupted
        machine.write({"levels": LEVELS, "rows": rows}, options)


if __name__ == "__main__":
    main()
