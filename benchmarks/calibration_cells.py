"""Cells of donors in two arms: the groups of the calibration study that they make, and p-values of all methods."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from calibration_designs import donors_only, samples
from calibration_groups import Groups
from scipy import sparse

import lmm_gpu

#: Genes whose values are at this distance below or above are reported separately where counts are rare.
LOW = 0.1


def by_sample(donor: np.ndarray, arm: np.ndarray, sample_effect: bool) -> tuple[Groups, np.ndarray]:
    """Groups of the cells of each donor in each arm, and the group of each cell (n,).

    Donors in both arms have random effects of donors and, if wanted, of samples.
    """
    found, code, cells = np.unique(np.stack([donor, arm]), axis=1, return_inverse=True, return_counts=True)
    if len(found[0]) == len(np.unique(donor)):
        return donors_only(cells, found[1].astype(float)), code.ravel()
    groups = samples(found[0], found[1].astype(float), cells)
    return (groups if sample_effect else replace(groups, Z={"donor": groups.Z["donor"]})), code.ravel()


def sums_of(values: Any, code: np.ndarray) -> np.ndarray:
    """Sums (G, genes) of the values (n, genes) of the cells of each group."""
    indicator = sparse.csr_array((np.ones(len(code)), (code, np.arange(len(code)))))
    found = indicator @ values
    return np.asarray(found.todense() if sparse.issparse(found) else found)


def log_values(counts: Any) -> sparse.csr_array:
    """log(1 + counts over size factors) of cells (n, genes); size factors are totals over their mean."""
    counts = sparse.csr_array(counts)
    total = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sparse.diags_array(1.0 / np.where(total > 0, total / total.mean(), 1.0)) @ counts
    return sparse.csr_array(scaled.log1p())


def p_values(groups: Groups, code: np.ndarray, values: Any, counts: Any) -> dict[str, np.ndarray]:
    """P-values (genes,): the mixed model of `values` (n, genes), pseudobulk t tests of their means, limma and dream."""
    mean = sums_of(values, code) / groups.cells[:, None]
    squares = np.asarray(values.multiply(values).sum(axis=0)).ravel()
    return groups.p_values(mean, squares) | of_counts(groups, sums_of(counts, code))


def of_counts(groups: Groups, counts: np.ndarray) -> dict[str, np.ndarray]:
    """P-values (genes,) of voom with limma and, where donors have several samples, with dream; NaN if filtered."""
    names = [f"g{i}" for i in range(counts.shape[1])]
    donor = groups.Z["donor"].argmax(axis=1)
    obs = pd.DataFrame({"arm": np.where(groups.X[:, -1] > 0, "b", "a"), "donor": [f"d{i}" for i in donor]})
    repeated = len(np.unique(donor)) < len(donor)
    formulas = {"limma": "~ arm" + repeated * " + donor"} | ({"dream": "~ arm + (1 | donor)"} if repeated else {})
    found = {}
    for name, formula in formulas.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = lmm_gpu.dream((pd.DataFrame(counts, columns=names), obs), formula, contrast="arm[T.b]")
        found[name] = table.set_index("variable")["p_value"].reindex(names).to_numpy()
    return found
