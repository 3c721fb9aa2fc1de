"""Genes that are nearly constant within donors: their residual keeps its digits, whatever is done to the statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy import stats

import lmm_gpu
from lmm_gpu.design.design import build_design
from lmm_gpu.io.source import open_source
from lmm_gpu.sumstats.streaming import accumulate
from lmm_gpu.sumstats.summary_stats import SummaryStats

RNG = np.random.default_rng(3)
DONOR = np.repeat(np.arange(8), 30)
OBS = pd.DataFrame({"donor": [f"D{i}" for i in DONOR], "arm": np.where(DONOR % 2 == 0, "a", "b")})
FORMULA = "~ arm + (1 | donor)"
NOISE = RNG.normal(size=(240, 12))
MEANS = 100 * RNG.normal(size=(8, 12))
SPREAD = np.array([1e-7, 1e-6, 1e-5, 1e-4, 1.0, 1.0] * 2)
VALUES = MEANS[DONOR] + 100 * SPREAD * NOISE
SMALL = SPREAD < 1e-3


def remainder(Y):
    """Residual sum of squares on donors, which determine the arm, in extended precision."""
    Y = Y.astype(np.longdouble)
    means = np.stack([Y[d == DONOR].mean(axis=0) for d in range(8)])
    return ((Y - means[DONOR]) ** 2).sum(axis=0).astype(float)


def found_remainder(ss):
    """The same from statistics about the groups: |y - Zc|^2 less its projection on Z."""
    within = ss.within
    return within.Ynorm - (within.ZY**2 / np.diag(ss.ZZ)[:, None]).sum(axis=0)


def summed(Y=VALUES, obs=OBS, **options):
    return lmm_gpu.summarize((Y, obs), FORMULA, progress=False, **options)


def test_only_genes_that_need_it_are_accumulated_about_their_groups():
    ss = summed()
    assert (ss.within.centre != 0).any(axis=0).tolist() == SMALL.tolist()
    np.testing.assert_allclose(found_remainder(ss)[SMALL], remainder(VALUES)[SMALL], rtol=1e-6)
    assert summed(NOISE).within is None
    assert summed(MEANS[DONOR]).within is None  # exactly constant


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_array])
@pytest.mark.parametrize("cells", [131, 240])
def test_sparse_and_compiled_chunks_keep_the_same_digits(form, fused, cells):
    """Of genes beside others that are mostly zero; pieces of CSC are genes."""
    if fused:
        pytest.importorskip("numba", reason='needs: pip install ".[fast]"')
    counts = RNG.poisson(0.2, (240, 5)).astype(float)
    Y = np.hstack([counts, VALUES])
    with open_source((form(Y), OBS)) as source:
        pieces = list(source.slices(6 if source.by_genes else cells))
        ss = accumulate(source, build_design(FORMULA, OBS), None, is_counts=False, pieces=pieces, fused=fused)
    small = np.append(np.zeros(5, bool), SMALL)
    assert (ss.within.centre != 0).any(axis=0).tolist() == small.tolist()
    np.testing.assert_allclose(found_remainder(ss)[small], remainder(VALUES)[SMALL], rtol=1e-6)
    np.testing.assert_allclose(ss.within.ZY[:, :5], np.eye(8)[DONOR].T @ counts, rtol=1e-12)


def test_p_values_are_those_of_donor_means():
    """Balanced: the REML test is the t test of donors' means, however small the residual is."""
    table = lmm_gpu.fit((VALUES, OBS), FORMULA, progress=False).test("arm[T.b]")
    means = pd.DataFrame(VALUES).groupby(DONOR).mean().to_numpy()
    wanted = stats.ttest_ind(means[1::2], means[0::2]).pvalue
    np.testing.assert_allclose(table["p_value"].to_numpy()[SMALL], wanted[SMALL], rtol=1e-5)


RATIOS = np.repeat(10.0 ** -np.arange(3, 9), 4)  # standard deviation within donors over that of donors
NEAR = 50 * RNG.normal(size=(8, 24))[DONOR] + 50 * RATIOS * RNG.normal(size=(240, 24))
BATCH = RNG.integers(0, 3, 240)


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_array, pd.DataFrame])
@pytest.mark.parametrize("options", [{}, {"nBlocks": 5}, {"weights": np.full(240, 2.0)}])
def test_matrices_have_the_p_values_of_donor_means(form, options):
    X = np.stack([np.ones(240), DONOR % 2], axis=1)
    fit = lmm_gpu.lmmfit(form(NEAR.T), X, np.eye(8)[DONOR], is_counts=False, **options)
    means = pd.DataFrame(NEAR).groupby(DONOR).mean().to_numpy()
    wanted = stats.ttest_ind(means[1::2], means[0::2]).pvalue
    tested = lmm_gpu.lmmtest(fit, [1], ddf="satterthwaite")
    np.testing.assert_allclose(tested["X2_p"], wanted, rtol=1e-5)
    assert fit.converged.all()
    rows = np.asarray(options.get("weights", np.ones(240)))
    np.testing.assert_allclose(fit.theta.loc["var0"], rows[0] * remainder(NEAR) / 232, rtol=1e-5)


def test_matrices_of_two_random_effects_and_other_order():
    """The wider one-hot block has the centres; genes that do not need them keep their products."""
    order = RNG.permutation(240)
    Y = np.hstack([NEAR, NOISE])[order]
    Z = np.hstack([np.eye(3)[BATCH], np.eye(8)[DONOR]])[order]
    ss = lmm_gpu.sslmm(np.ones((240, 1)), Y.T, Z, d=[3, 8], is_counts=False)
    np.testing.assert_allclose(ss.within.Ynorm, ((Y - Z @ ss.within.centre) ** 2).sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(ss.within.ZY, Z.T @ (Y - Z @ ss.within.centre), rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(ss.within.Ynorm[24:], ss.Ynorm[24:])
    assert (ss.within.centre[:3] == 0).all()


def test_many_small_groups_are_sampled_in_pairs():
    """Sorted by donor, evenly spaced cells would all be of other donors."""
    donor = np.repeat(np.arange(500), 4)
    Y = RNG.normal(size=(500, 1))[donor] + 1e-7 * RNG.normal(size=(2000, 1))
    ss = lmm_gpu.sslmm(np.ones((2000, 1)), Y.T, scipy.sparse.csr_array(np.eye(500)[donor]), is_counts=False)
    assert ss.within is not None
    ss = lmm_gpu.summarize((Y, pd.DataFrame({"donor": donor.astype(str)})), "~ (1 | donor)", progress=False)
    assert ss.within is not None


@pytest.mark.parametrize("order", [np.arange(240), RNG.permutation(240)])
@pytest.mark.parametrize("cells", [80, 100])
@pytest.mark.parametrize("fused", [True, False])
def test_any_chunks(order, cells, fused):
    obs = OBS.iloc[order].reset_index(drop=True)
    if fused:
        pytest.importorskip("numba")
    design = build_design(FORMULA, obs)
    with open_source((VALUES[order], obs)) as source:
        ss = accumulate(
            source, design, None, pieces=list(source.slices(cells)), fused=fused and pytest.importorskip("numba")
        )
    np.testing.assert_allclose(found_remainder(ss)[SMALL], remainder(VALUES)[SMALL], rtol=1e-6)
    wanted = design.X.T @ (VALUES[order] - design.Z @ ss.within.centre)
    np.testing.assert_allclose(ss.within.XY, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("halves", [DONOR < 4, np.arange(240) % 2 == 0, DONOR % 3 == 0])
def test_sites_add(tmp_path, halves):
    """Whether sites share donors or not, and from files."""
    parts = [summed(VALUES[half], OBS[half]) for half in (halves, ~halves)]
    for place, part in enumerate(parts):
        part.save(tmp_path / f"{place}.h5")
    total = SummaryStats.load(tmp_path / "0.h5") + SummaryStats.load(tmp_path / "1.h5")
    np.testing.assert_allclose(found_remainder(total)[SMALL], remainder(VALUES)[SMALL], rtol=1e-5)
    design = build_design(FORMULA, OBS)
    order = [design.random_names.index(name) for name in total.random_names]
    left = VALUES - design.Z.toarray()[:, order] @ total.within.centre
    np.testing.assert_allclose(total.within.Ynorm, (left**2).sum(axis=0), rtol=1e-6)


def test_genes_are_selected_and_joined():
    ss = summed()
    joined = SummaryStats.concat([ss.select(slice(0, 5)), ss.with_genes([7, 6, 5]), ss.select(slice(8, 12))])
    order = [*range(5), 7, 6, 5, *range(8, 12)]
    np.testing.assert_array_equal(joined.within.Ynorm, ss.within.Ynorm[order])
    np.testing.assert_array_equal(joined.within.centre, ss.within.centre[:, order])
    plain = summed(NOISE)
    mixed = SummaryStats.concat(
        [ss, lmm_gpu.summarize((NOISE, OBS), FORMULA, features=[f"n{i}" for i in range(12)], progress=False)]
    )
    np.testing.assert_allclose(mixed.within.Ynorm[12:], plain.Ynorm, rtol=1e-12)


def test_weights():
    weights = RNG.uniform(0.2, 2.0, 240)
    ss = summed(weights=weights)
    left = VALUES - np.eye(8)[DONOR] @ ss.within.centre
    np.testing.assert_allclose(ss.within.Ynorm, weights @ left**2, rtol=1e-8)


def test_a_model_without_the_grouping_has_no_centres():
    obs = OBS.assign(batch=RNG.integers(0, 3, 240).astype(str))
    ss = lmm_gpu.summarize((VALUES, obs), "~ arm + (1 | donor) + (1 | batch)", progress=False)
    assert ss.within is not None and ss.without(0).within is None
    kept = ss.without(1).within
    np.testing.assert_array_equal(kept.ZY, ss.within.ZY[:8])
