"""Levels that vary more than the model's common variances say are found; clean designs are silent."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lmm_gpu import fit
from lmm_gpu.inference.pooled_variances import observed_variances

GENES, CELLS = 150, 12


def cells(sizes, sd, seed, types=1, type_sd=None):
    """Values (n, GENES) and obs of donors of two arms; SD of donors by arm, of donor:type by type."""
    rng = np.random.default_rng(seed)
    arm = np.repeat([0, 1], sizes)
    donor, kind, _ = (part.ravel() for part in np.indices((len(arm), types, CELLS)))
    Y = (
        rng.normal(size=(len(donor), GENES))
        + (np.asarray(sd)[arm][:, None] * rng.normal(size=(len(arm), GENES)))[donor]
    )
    if type_sd is not None:
        Y += (np.asarray(type_sd)[:, None] * rng.normal(size=(len(arm), types, GENES)))[donor, kind]
    names = {
        "donor": [f"d{i}" for i in donor],
        "arm": np.array(["u", "v"])[arm[donor]],
        "type": [f"t{i}" for i in kind],
    }
    return Y, pd.DataFrame(names)


def said(data, formula, contrast):
    """Warnings about variances that a test gives."""
    result = fit(data, formula, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result.test(contrast)
    return [str(one.message) for one in caught if "variances that the model has in common" in str(one.message)]


ARMS = "~ arm + (1 | donor)"
TYPES = "~ 0 + type + type:arm + (1 | donor) + (1 | donor:type)"


def ratio(result, C):
    return observed_variances(result.summary, result.estimates.theta, np.atleast_2d(C))[0].ratio


def test_ratio_is_that_of_two_sample_variances():
    """Welch's variance of the difference over the pooled one, where all donors have the same number of cells."""
    Y, obs = cells((7, 3), (1.0, 1.5), 1)
    result = fit((Y, obs), ARMS, progress=False)
    assert (result.theta.loc["var1"] > 0).all()
    means = pd.DataFrame(Y).groupby([obs["arm"], obs["donor"]]).mean()
    first, second = (means.loc[arm].to_numpy().var(axis=0, ddof=1) for arm in "uv")
    welch = first / 7 + second / 3
    pooled = (6 * first + 2 * second) / 8 * (1 / 7 + 1 / 3)
    assert ratio(result, [0.0, 1.0]) == pytest.approx(np.mean(welch / pooled), rel=1e-6)


def test_ratio_does_not_depend_on_the_coding():
    data = cells((6, 3), (0.5, 1.5), 2, 3, (0.2, 0.2, 0.6))
    treatment = fit(data, "~ type * arm + (1 | donor) + (1 | donor:type)", progress=False)
    means = fit(data, TYPES, progress=False)
    effects = np.zeros((2, 6))
    effects[0, [treatment.coef.index.get_loc(name) for name in ("arm[T.v]", "type[T.t1]:arm[T.v]")]] = 1.0
    effects[1, means.coef.index.get_loc("type[t1]:arm[T.v]")] = 1.0
    assert ratio(treatment, effects[0]) == pytest.approx(ratio(means, effects[1]), rel=1e-6)


@pytest.mark.parametrize("sizes", [(8, 2), (8, 4)])
def test_a_small_group_that_varies_more(sizes):
    (sentence,) = said(cells(sizes, (0.4, 1.2), 3), ARMS, "arm[T.v]")
    assert sentence.startswith("'arm[T.v]': the variances that the model has in common for all levels of donor")
    assert sentence.endswith("compare groups of similar size")


@pytest.mark.parametrize(
    ("sizes", "sd"), [((8, 2), (0.5, 0.5)), ((8, 4), (0.0, 0.0)), ((3, 3), (0.5, 0.5)), ((5, 5), (0.4, 1.2))]
)
@pytest.mark.parametrize("seed", [4, 5])
def test_alike_or_equally_many_donors_are_silent(sizes, sd, seed):
    assert said(cells(sizes, sd, seed), ARMS, "arm[T.v]") == []


def test_a_cell_type_that_varies_more():
    data = cells((6, 6), (0.2, 0.2), 6, 3, (0.9, 0.3, 0.3))
    (sentence,) = said(data, TYPES, ["type[t0]:arm[T.v]", "type[t1]:arm[T.v]"])
    assert sentence.startswith("'type[t0]:arm[T.v]': ") and sentence.endswith("fit the compared cells by themselves")
    Y, obs = data
    alone = (obs["type"] == "t0").to_numpy()
    assert said((Y[alone], obs[alone]), ARMS, "arm[T.v]") == []  # the remedy works


def test_genes_that_vary_more_in_different_types():
    """On average over genes nothing is wrong: each varies more in one of the types."""
    Y, obs = cells((10, 10), (0.2, 0.2), 7, 3)
    rng = np.random.default_rng(8)
    deviation = rng.normal(size=(20, 3, GENES)) * (np.arange(3)[:, None] == np.arange(GENES) % 3)
    kind, donor = (pd.factorize(obs[name])[0] for name in ("type", "donor"))
    (sentence,) = said((Y + deviation[donor, kind], obs), TYPES, "type[t1]:arm[T.v]")
    assert float(re.search(r"clearly more in (\d+)% of the genes", sentence)[1]) == pytest.approx(33, abs=12)
    assert "varies 1.0 times as much on average" in sentence
    assert said((Y, obs), TYPES, "type[t1]:arm[T.v]") == []


def test_silent_within_levels_with_slopes_weights_and_for_few_genes():
    Y, obs = cells((8, 2), (0.4, 1.2), 3)
    assert said((Y[:, :10], obs), ARMS, "arm[T.v]") == []
    assert said((Y, obs.assign(x=np.arange(len(Y)) % 5)), "~ arm + x + (x || donor)", "arm[T.v]") == []
    weights = np.random.default_rng(9).uniform(1.0, 9.0, size=Y.shape)
    for some in (weights, weights[:, 0]):
        weighted = fit((Y, obs), ARMS, weights=some, progress=False)
        C = np.array([[0.0, 1.0]])
        assert observed_variances(weighted.summary, weighted.estimates.theta, C) == [None]
    half = obs.assign(half=np.tile(["s", "t"], len(Y) // 2))
    assert said((Y, half), "~ half + (1 | donor) + (1 | donor:half)", "half[T.t]") == []


def test_factor_of_false_positives_follows_from_the_ratio():
    result = fit(cells((8, 2), (0.4, 1.2), 3), ARMS, progress=False)
    one = observed_variances(result.summary, result.estimates.theta, np.array([[0.0, 1.0]]))[0]
    assert one.too_many == pytest.approx(2 * stats.t.sf(stats.t.isf(0.025, 8) / one.ratio**0.5, 8) / 0.05, rel=1e-9)
