"""Parts of the calibration study: pseudobulk tests, codings, false discoveries, sums of cells."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from paths import ROOT
from scipy import sparse, stats

if not (ROOT / "benchmarks").exists():
    pytest.skip("the benchmarks are not here: they are in the repository and in the sdist", allow_module_level=True)
sys.path.insert(0, str(ROOT / "benchmarks"))

import calibration_cells
import calibration_designs as designs
import calibration_groups as study

from lmm_gpu.sumstats.assembly import cross_products


@pytest.fixture(scope="module")
def means():
    return np.random.default_rng(1).normal(size=(12, 7))


def test_pseudobulk_tests_are_those_of_scipy(means):
    arm = np.arange(12) % 2
    found = designs.donors_only(np.full(12, 9), arm).samples.p_values(means)["pseudobulk t"]
    np.testing.assert_allclose(found, stats.ttest_ind(means[arm == 1], means[arm == 0]).pvalue, rtol=1e-9)
    pairs = designs.samples(np.repeat(np.arange(6), 2), np.tile([0.0, 1], 6)).samples.p_values(means)["pseudobulk t"]
    np.testing.assert_allclose(pairs, stats.ttest_rel(means[1::2], means[::2]).pvalue, rtol=1e-9)
    three = designs.three_groups(4, 9).samples.p_values(means)["pseudobulk t"]
    np.testing.assert_allclose(three, stats.f_oneway(*(means[i::3] for i in range(3))).pvalue, rtol=1e-9)


def test_designs_without_residual_df_have_no_pseudobulk_test():
    assert designs.partly(1).samples is None and designs.partly(4).samples is not None


@pytest.mark.parametrize("p", [2, 6])
def test_codings_are_those_of_their_names(p):
    T = study.codings(p)
    cells = np.arange(1.0, p + 1) ** 2  # means of the levels
    treatment, total, helmert = (np.linalg.solve(T[name], cells) for name in ("treatment", "sum", "Helmert"))
    np.testing.assert_allclose(treatment, [cells[0], *(cells[1:] - cells[0])])
    np.testing.assert_allclose(total, [cells.mean(), *(cells[:-1] - cells.mean())])
    steps = [(cells[j] - cells[:j].mean()) / (j + 1) for j in range(1, p)]  # R's contr.helmert
    np.testing.assert_allclose(helmert, [cells.mean(), *steps])


def test_recoded_groups_test_the_same_hypothesis():
    groups = designs.types(6, np.full(6, 20), np.eye(6)[3:4])
    beta = np.arange(6.0)
    for T in study.codings(6).values():
        other, gamma = groups.recoded(T), np.linalg.solve(T, beta)
        np.testing.assert_allclose(other.X @ gamma, groups.X @ beta)
        np.testing.assert_allclose(other.C @ gamma, groups.C @ beta)


def test_false_discoveries_of_known_p_values():
    null, changed = np.r_[1e-9, np.full(899, 0.5)], np.full(100, 1e-9)
    found = study.discoveries(null, changed)
    assert found == {"rate": round(1 / 101, 4), "called": 101, "found": 1.0}
    assert study.discoveries(np.full(900, 0.5), np.full(100, 0.5)) == {"rate": 0.0, "called": 0, "found": 0.0}


def test_sums_of_groups_are_those_of_cells():
    rng = np.random.default_rng(2)
    donor, arm = rng.integers(0, 5, size=200), rng.integers(0, 2, size=200)
    counts = rng.poisson(1.0, size=(200, 4))
    values = calibration_cells.log_values(counts)
    groups, code = calibration_cells.by_sample(donor, arm, True)
    mean = calibration_cells.sums_of(values, code) / groups.cells[:, None]
    found = groups.statistics(mean, np.asarray(values.multiply(values).sum(axis=0)).ravel())
    size = counts.sum(axis=1) / counts.sum(axis=1).mean()
    Y = np.log1p(counts / np.where(size > 0, size, 1.0)[:, None])
    np.testing.assert_allclose(values.toarray(), Y, rtol=1e-12)
    Z = np.hstack([np.eye(5)[donor], np.eye(len(groups.cells))[code]])
    wanted = cross_products(np.column_stack([np.ones(200), arm]), Z, Y, d=(5, len(groups.cells)))
    for name in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "n", "d"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, err_msg=name)


def test_sums_of_sparse_and_dense_values_are_equal():
    Y, code = np.random.default_rng(3).poisson(1.0, size=(30, 4)), np.arange(30) % 7
    np.testing.assert_array_equal(
        calibration_cells.sums_of(sparse.csr_array(Y), code), calibration_cells.sums_of(Y, code)
    )
