"""Permutations of donors from sums, against fits of relabelled cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

import lmm_gpu
from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.results.exchangeable import find_exchange

G, M = 8, 6
RNG = np.random.default_rng(5)
DONOR = np.repeat(np.arange(G), RNG.integers(6, 15, G))
N = len(DONOR)
ARM = np.array(list("ababbaba"))
SEX = np.array(list("ffffmmmm"))
SITE = np.array(list("ssssttuu"))
THREE = np.array(list("abcabcab"))
AGE = RNG.normal(50, 10, G)
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "arm": ARM[DONOR],
        "sex": SEX[DONOR],
        "three": THREE[DONOR],
        "age": AGE[DONOR],
        "kind": RNG.choice(list("xyz"), N),
        "batch": RNG.choice(list("pqr"), N),
        "site": SITE[DONOR],
    }
)
Y = (
    RNG.normal(size=(N, M))
    + 0.7 * RNG.normal(size=(G, M))[DONOR]
    + RNG.normal(size=(3, M))[OBS["batch"].factorize()[0]]
)
Y[:, 1] += 1e5  # accumulated about its mean
Y[:, 2] = RNG.normal(size=G)[DONOR] + 1e-4 * RNG.normal(size=N)  # nearly constant within donors
LEVELS = [f"D{d}" for d in range(G)]


def fitted(formula, **options):
    return lmm_gpu.fit((Y, OBS), formula, progress=False, **options)


def exchange_of(fit, contrast, strata=None):
    C = np.array([lmm_gpu.contrast_matrix(contrast, fit.summary.fixed_names).to_numpy()[:, 0]])
    return find_exchange(fit.summary.on(to_numpy), C, contrast, strata)


def labellings(labels, blocks):
    """Every different labelling of the donors within blocks, the observed one first."""
    found = {tuple(labels)}
    places = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    for orders in itertools.product(*(set(itertools.permutations(labels[at])) for at in places)):
        one = labels.copy()
        for at, order in zip(places, orders, strict=True):
            one[at] = order
        found.add(tuple(one))
    found.remove(tuple(labels))
    return [labels, *(np.array(one) for one in sorted(found))]


def refitted(formula, column, relabelled, contrast, df, **options):
    """log10 p-values (labellings, m) of fits of the cells."""
    rows = []
    for labels in relabelled:
        fit = lmm_gpu.fit((Y, OBS.assign(**{column: labels[DONOR]})), formula, progress=False, **options)
        table = fit.test(contrast, df=df)
        rows.append(table["log10_p_value"].to_numpy())
    return np.array(rows)


def check(found, wanted):
    np.testing.assert_allclose(found.observed, wanted[0], rtol=1e-6)
    order = [np.lexsort(np.round(rows, 5).T) for rows in (found.relabelled, wanted[1:])]
    np.testing.assert_allclose(found.relabelled[order[0]], wanted[1:][order[1]], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("formula", "df", "options"),
    [
        ("~ arm + site + kind + (1 | donor)", "generalized", {}),
        ("~ site + arm + (1 | donor) + (1 | batch)", "kenward-roger", {}),
        ("~ arm + (1 | site) + (1 | donor)", "satterthwaite", {"method": "ML", "bounds": "nonnegative"}),
    ],
)
def test_relabelled_sums_give_the_fits_of_relabelled_cells(formula, df, options):
    fit = fitted(formula, **options)
    found = fit.permutation("arm[T.b]", n=100, df=df)
    every = labellings(ARM, SITE)
    assert found.n == len(every) - 1 == math.comb(4, 2) * 2 * 2 - 1
    assert round(10**found.log10_possible) == len(every)
    wanted = refitted(formula, "arm", every, "arm[T.b]", df, **options)
    check(found, wanted)
    as_small = (wanted <= wanted[0] + 1e-6).mean(axis=0)  # the observed labelling is one of them
    np.testing.assert_allclose(found.table["permutation_p_value"], as_small)


def test_all_arms_are_exchanged_by_an_f_test():
    formula, rows, halves = "~ three + (1 | donor)", np.eye(3)[1:], {d: i > 3 for i, d in enumerate(LEVELS)}
    fit = fitted(formula)
    found = fit.permutation(rows, n=9, df="satterthwaite", strata=halves)
    exchange = find_exchange(fit.summary.on(to_numpy), rows, "three", halves)
    donors = [[int(np.flatnonzero(exchange.codes == code)[0]) for code in codes] for codes in exchange.draw(9, 0)]
    drawn = [THREE[order] for order in donors]
    assert all(sorted(one[:4]) == sorted(THREE[:4]) and (one != THREE).any() for one in drawn)
    check(found, refitted(formula, "three", [THREE, *drawn], rows, "satterthwaite"))


@pytest.mark.parametrize(
    "formula", ["~ three + (1 | donor)", "~ 0 + three + (1 | donor)", "~ C(three, contr.sum) + (1 | donor)"]
)
def test_donors_of_a_third_arm_stay_where_they_are(formula):
    contrast = {
        "~ three + (1 | donor)": "three[T.b] - three[T.c]",
        "~ 0 + three + (1 | donor)": "three[b] - three[c]",
        "~ C(three, contr.sum) + (1 | donor)": "'C(three, contr.sum)[S.a]' + 2 * 'C(three, contr.sum)[S.b]'",
    }[formula]
    found = fitted(formula).permutation(contrast, df="satterthwaite")
    every = labellings(THREE, THREE == "a")
    assert found.n == len(every) - 1 == math.comb(5, 2) - 1
    check(found, refitted("~ three + (1 | donor)", "three", every, "three[T.b] - three[T.c]", "satterthwaite"))


def test_covariates_are_taken_out_of_the_labels():
    fit = fitted("~ arm + age + (1 | donor)")
    exchange = exchange_of(fit, "arm[T.b]")
    x, W = (ARM == "b").astype(float), np.column_stack([np.ones(G), AGE])
    explained = W @ np.linalg.lstsq(W, x, rcond=None)[0]
    codes = exchange.draw(3, 1)[0]
    order = [int(np.flatnonzero(exchange.codes == code)[0]) for code in codes]
    star = explained + (x - explained)[order]
    cells = lmm_gpu.fit((Y, OBS.assign(star=star[DONOR])), "~ star + age + (1 | donor)", progress=False)
    sums = exchange.relabelled(fit.summary, codes)
    again = lmm_gpu.fit(sums, progress=False)
    tests = [one.test(name, df="satterthwaite") for one, name in ((cells, "star"), (again, "arm[T.b]"))]
    np.testing.assert_allclose(tests[0]["log10_p_value"], tests[1]["log10_p_value"], rtol=1e-5)
    assert "after age is regressed out" in exchange.scheme


def test_blocks_follow_factors_coarser_groups_and_tables():
    def count(formula, contrast, strata=None):
        return round(10 ** exchange_of(fitted(formula), contrast, strata).log10_possible)

    assert count("~ arm + (1 | donor)", "arm[T.b]") == math.comb(8, 4)
    assert count("~ arm + sex + (1 | donor)", "arm[T.b]") == math.comb(4, 2) ** 2
    assert count("~ arm + sex + (1 | donor)", "arm[T.b]", []) == math.comb(8, 4)
    assert count("~ arm + (1 | donor) + (1 | site)", "arm[T.b]") == math.comb(4, 2) * 2 * 2
    assert count("~ arm + (1 | donor) + (1 | batch)", "arm[T.b]") == math.comb(8, 4)  # crossed with the donors
    assert count("~ arm + (1 | donor)", "arm[T.b]", {d: d in LEVELS[:4] for d in LEVELS}) == math.comb(4, 2) ** 2
    assert count("~ arm + sex + (1 | donor)", "arm[T.b]", "sex") == math.comb(4, 2) ** 2
    assert count("~ arm * sex + (1 | donor)", "arm[T.b]") == math.comb(4, 2)  # an effect in the first sex alone
    assert count("~ age + (1 | donor)", "age") == math.factorial(8)
    assert count("~ arm + kind + (1 | donor:kind) + (1 | donor)", "arm[T.b]") == math.comb(8, 4)


def test_draws_are_different_and_reproducible():
    exchange = exchange_of(fitted("~ age + (1 | donor)"), "age")
    draws = exchange.draw(300, 1)
    assert len({one.tobytes() for one in draws} | {exchange.codes.tobytes()}) == 301
    assert all((a == b).all() for a, b in zip(draws, exchange.draw(300, 1), strict=True))
    assert any((a != b).any() for a, b in zip(draws, exchange.draw(300, 2), strict=True))


def test_calibration_reports_shares_of_the_relabelled_tests():
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(6), 40)
    obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 3, "a", "b")})
    values = rng.normal(size=(240, 300)) + 0.5 * rng.normal(size=(6, 300))[donor]
    fit = lmm_gpu.fit((values, obs), "~ arm + (1 | donor)", progress=False)
    good, bad = (fit.permutation("arm[T.b]", df=df) for df in ("generalized", "residual"))
    share = (good.relabelled <= np.log10(0.05)).mean()
    np.testing.assert_allclose(good.calibration["share"][0], share)
    assert 0.7 < good.calibration["ratio"][0] < 1.3
    assert bad.calibration["ratio"][2] > 10 and bad.inflation > 1.2  # cells are no donors


@pytest.mark.parametrize(
    ("formula", "contrast", "options", "message"),
    [
        ("~ kind + (1 | donor)", "kind[T.y]", {}, "not a contrast between the levels of donor"),
        ("~ arm * kind + (1 | donor)", "arm[T.b]", {}, "arm.T.b.:kind.* varies within the levels of donor"),
        ("~ arm * sex + (1 | donor)", "arm[T.b]:sex[T.m]", {}, "An? interaction|none are exchangeable"),
        ("~ arm + (0 + arm || donor)", "arm[T.b]", {}, "exchang|grouping"),
        ("~ arm + (1 | donor) + (0 + arm || donor)", "arm[T.b]", {}, "exchang|grouping"),
        ("~ arm + (1 | donor)", ["Intercept", "arm[T.b]"], {}, "one hypothesis"),
        ("~ arm + (1 | donor)", "Intercept", {}, "none are exchangeable"),
        ("~ arm + (1 | donor)", None, {}, "needs a contrast"),
        ("~ arm + (1 | donor)", "arm[T.b]", {"n": 0}, "at least one"),
        ("~ arm + (1 | donor)", "arm[T.b]", {"strata": "kind"}, "strata='kind'"),
        ("~ arm + (1 | donor)", "arm[T.b]", {"strata": {"D1": 1}}, "no value for D0, D2"),
        ("~ arm + (1 | donor)", "arm[T.b]", {"df": "none"}, "none"),
    ],
)
def test_what_no_exchange_of_donors_tests_is_refused(formula, contrast, options, message):
    with pytest.raises(ValueError, match=message):
        fitted(formula).permutation(contrast, **options)
