"""Genes with counts in hardly any of the few cells that are compared with many."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lmm_gpu import fit
from lmm_gpu.inference.rare_counts import LEVEL, _factor, too_rare

DONORS, CELLS, GENES = 6, 100, 60


def counted(few, mean=0.05):
    """Log counts of cells of which each donor has `few` in the second arm, and obs."""
    donor, at = (part.ravel() for part in np.indices((DONORS, CELLS)))
    obs = pd.DataFrame({"donor": [f"d{i}" for i in donor], "arm": np.where(at < few, "v", "u")})
    return np.log1p(np.random.default_rng(1).poisson(mean, size=(len(donor), GENES))), obs


def said(data, formula="~ arm + (1 | donor)", contrast="arm[T.v]"):
    result = fit(data, formula, is_counts=False, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result.test(contrast)
    return [str(one.message) for one in caught if "few cells are compared with many" in str(one.message)]


@pytest.mark.parametrize(("few", "contrast"), [(5, "arm[T.v]"), (95, "arm[T.v]"), (5, "0.5 * arm[T.v]")])
def test_few_cells_against_many(few, contrast):
    (sentence,) = said(counted(few), contrast=contrast)
    assert f"60 of {GENES} genes have counts in hardly any of the few" in sentence


def test_means_of_cells_as_columns():
    assert len(said(counted(5), "~ 0 + arm + (1 | donor)", "arm[v] - arm[u]")) == 1


@pytest.mark.parametrize(("few", "mean"), [(50, 0.05), (5, 3.0)])
def test_similar_numbers_of_cells_and_frequent_counts_are_silent(few, mean):
    assert said(counted(few, mean)) == []


def test_values_below_zero_and_comparisons_of_donors_are_silent():
    Y, obs = counted(5)
    assert said((Y - Y.mean(axis=0), obs)) == []
    between = obs.assign(arm=np.where(obs["donor"] == "d0", "v", "u"))
    assert said((Y, between)) == []


def test_weights_and_values_far_from_zero_are_silent():
    Y, obs = counted(5)
    weights = np.random.default_rng(2).uniform(1.0, 2.0, size=Y.shape)
    result = fit((Y, obs), "~ arm + (1 | donor)", weights=weights, is_counts=False, progress=False)
    assert too_rare(result.summary, np.array([0.0, 1.0]), np.array([False, True])) is None
    assert said((Y + 4.0, obs)) == []  # logarithms of samples, a handful against many


def test_skewness_and_tails_are_those_of_shares():
    """Exact skewness of the difference of two binomial shares, and scipy's Pearson III distribution for its tails."""
    n1, n2, share = 30, 570, 0.02
    one = float(stats.bernoulli(share).stats("s")) * (share * (1 - share)) ** 1.5  # third central moment
    exact = one * (n1**-2 - n2**-2) / (share * (1 - share) * (1 / n1 + 1 / n2)) ** 1.5
    law = stats.pearson3(exact)
    z = stats.norm.isf(LEVEL / 2)
    expected = (law.sf(z) + law.cdf(-z)) / LEVEL
    assert _factor(np.array([exact]))[0] == pytest.approx(expected, rel=1e-6)
    assert _factor(np.array([0.0]))[0] == pytest.approx(1.0, rel=1e-3)
    # the gene's mean and mean square alone say as much, and n1 and n2 follow from the design
    arm = (np.arange(600) < n1).astype(float)
    Y = np.repeat((np.arange(600) % 50 == 0)[:, None], 20, axis=1).astype(float)
    result = fit((Y, pd.DataFrame({"arm": arm, "g": np.tile(["p", "q"], 300)})), "~ arm + (1 | g)", is_counts=False)
    assert too_rare(result.summary, np.array([0.0, 1.0]), np.array([False, True])).all() == (expected > 2)
