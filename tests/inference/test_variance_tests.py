"""Tests of variance components against dense likelihoods, direct simulation, and classical one-way analyses."""

from __future__ import annotations

import warnings

import dense
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

from lmm_gpu import fit, lmm, sslmm
from lmm_gpu.inference.variance_tests import exact_null, exact_test, likelihood_ratio_test, wald_test
from lmm_gpu.sumstats.assembly import cross_products

DRAWS = 20_000


def fitted(design, Y, **options):
    """Fit of Y (n, m)."""
    return lmm(sslmm(design.X, Y.T, design.Z, d=design.d), **options)


def without(design, component):
    """The design without one of its random effects."""
    parts = [part for i, part in enumerate(design.parts) if i != component]
    return dense.Design(design.X, np.hstack(parts), tuple(part.shape[1] for part in parts))


def largest_loglik(design, y, start, method):
    """Maximum of the dense likelihood over valid thetas, by a simplex."""

    def loss(theta):
        valid = theta[-1] > 0 and design.smallest_eigenvalue(theta, "ML") > 0
        return -dense.loglik(design, y, theta, method) if valid else np.inf

    options = {"xatol": 1e-9, "fatol": 1e-11, "maxiter": 2000}
    return -scipy.optimize.minimize(loss, start, method="Nelder-Mead", options=options).fun


# --- likelihood ratios ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one_nested", "one_crossed"])
def test_the_ratio_of_one_component_is_the_dense_one(name, method):
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, 5)
    result = fitted(design, Y, method=method)
    table = result.variance_test(method="lrt", alternative="two-sided")
    for gene, y in enumerate(Y.T):
        theta = result.theta.to_numpy()[:, gene]
        residual = y @ design.error_contrasts() @ design.error_contrasts().T @ y
        N = design.n - (design.X.shape[1] if method == "REML" else 0)
        null = dense.loglik(design, y, np.array([0.0, residual / N]), method)
        wanted = 2 * (dense.loglik(design, y, theta, method) - null)
        assert table["statistic"][gene] == pytest.approx(wanted, rel=1e-7)
        assert table["p_value"][gene] == pytest.approx(scipy.stats.chi2.sf(wanted, 1), rel=1e-6)


@pytest.mark.parametrize(("name", "component"), [("two", "var2"), ("two_within", 0), ("three_widest_inside", 1)])
def test_the_ratio_of_one_of_several_is_the_dense_one(name, component, method):
    design, genes = dense.DESIGNS[name], 2
    Y = dense.draw_genes(design, genes, seed=3)
    result = fitted(design, Y, method=method)
    table = result.variance_test(component, method="lrt", alternative="two-sided")
    at = int(component[-1]) - 1 if isinstance(component, str) else component
    for gene, y in enumerate(Y.T):
        theta = result.theta.to_numpy()[:, gene]
        null = largest_loglik(without(design, at), y, np.delete(theta, at), method)
        wanted = 2 * (dense.loglik(design, y, theta, method) - null)
        assert table["statistic"][gene] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_without_is_the_summary_of_the_other_columns():
    design = dense.DESIGNS["three_widest_inside"]
    Y = dense.draw_genes(design, 3)
    labels = {"component_names": ("a", "b", "c")}
    for component, names in enumerate((("b", "c"), ("a", "c"), ("a", "b"))):
        found = cross_products(design.X, design.Z, Y, d=design.d, **labels).without(component)
        rest = without(design, component)
        wanted = cross_products(rest.X, rest.Z, Y, d=rest.d)
        for key in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm"):
            np.testing.assert_allclose(found[key], wanted[key], atol=1e-12)
        assert found.d == rest.d and found.component_names == names


def test_without_keeps_the_sums_about_a_centre():
    """Genes far from zero: the digits are in these."""
    design = dense.DESIGNS["two"]
    Y = dense.draw_genes(design, 3)
    near, far = (cross_products(design.X, design.Z, Y + mean, d=design.d) for mean in (0.0, 1e7))
    assert far.centred is not None
    found, wanted = (fit(summary.without(1), progress=False).theta for summary in (far, near))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


# --- null distributions ---------------------------------------------------------------------------


def test_half_and_half():
    variance, ratio = np.array([0.3, 0.0, -0.2, 0.1]), np.array([4.0, 0.0, 9.0, -1e-12])
    one = likelihood_ratio_test(ratio, variance, "greater")
    np.testing.assert_allclose(10**one.log10_p, [0.5 * scipy.stats.chi2.sf(4, 1), 1, 1, 0.5], rtol=1e-12)
    np.testing.assert_array_equal(one.statistic, [4, 0, 0, 0])
    two = likelihood_ratio_test(ratio, variance, "two-sided")
    np.testing.assert_allclose(10**two.log10_p, scipy.stats.chi2.sf([4, 0, 9, 0], 1), rtol=1e-12)


def test_wald():
    variance, se = np.array([0.3, 0.0, -0.2, 0.1, np.nan]), np.array([0.1, 0.2, 0.1, np.nan, 0.1])
    one, two = (wald_test(variance, se, alternative) for alternative in ("greater", "two-sided"))
    np.testing.assert_allclose(one.statistic, [3, 0, -2, np.nan, np.nan], rtol=1e-12)
    np.testing.assert_allclose(10**one.log10_p, [scipy.stats.norm.sf(3), 1, 1, np.nan, np.nan], rtol=1e-12)
    np.testing.assert_allclose(10**two.log10_p, 2 * scipy.stats.norm.sf([3, 0, 2, np.nan, np.nan]), rtol=1e-12)


def test_tiny_p_values_keep_their_logarithm():
    tested = likelihood_ratio_test(np.array([4000.0]), np.array([1.0]), "greater")
    # the tail of the normal distribution: phi(z) / z (1 - 1/z^2 + 3/z^4 ...)
    z2 = 4000.0
    log_p = -0.5 * z2 - 0.5 * np.log(2 * np.pi * z2) + np.log1p(-1 / z2 + 3 / z2**2)
    np.testing.assert_allclose(tested.log10_p, log_p / np.log(10), rtol=1e-12)


@pytest.fixture(scope="module")
def few_groups():
    """Six unequal donors, a treatment between them, one number within."""
    donor = np.repeat(np.arange(6), [2, 3, 12, 5, 8, 4])
    X = np.column_stack([np.ones(34), donor % 2, np.random.default_rng(0).normal(size=34)])
    return dense.Design(X, dense.one_hot(donor, 6), (6,))


def simulated_ratio(design, m, seed):
    """Restricted likelihood ratios of m genes without random effects, on a fine grid of ratios, n x n."""
    Q, N = design.error_contrasts(), design.n - design.X.shape[1]
    y = Q.T @ np.random.default_rng(seed).normal(size=(design.n, m))
    best, whole = np.zeros(m), np.sum(y * y, axis=0)
    for g in np.geomspace(1e-4, 1e3, 600):
        K = Q.T @ design.V([g, 1.0]) @ Q
        ratio = N * np.log(whole / np.sum(y * np.linalg.solve(K, y), axis=0)) - np.linalg.slogdet(K)[1]
        best = np.maximum(best, ratio)
    return best


def test_the_exact_null_is_what_direct_simulation_gives(few_groups):
    result = fitted(few_groups, dense.draw_genes(few_groups, 2))
    null = exact_null(result.model.likelihood, DRAWS, seed=1)
    direct = simulated_ratio(few_groups, 4000, seed=2)
    assert (np.diff(null) >= 0).all() and null.shape == (DRAWS,)
    assert abs(np.mean(null == 0) - np.mean(direct == 0)) < 0.025
    assert np.mean(null == 0) > 0.55  # not half
    positive = scipy.stats.ks_2samp(null[null > 0], direct[direct > 0])
    assert positive.pvalue > 0.01
    for q in (0.9, 0.95, 0.99):
        above = np.mean(direct > np.quantile(null, q))
        assert abs(above - (1 - q)) < 4 * np.sqrt(q * (1 - q) / direct.size)


def test_the_exact_null_is_seeded(few_groups):
    likelihood = fitted(few_groups, dense.draw_genes(few_groups, 2)).model.likelihood
    one, again, other = (exact_null(likelihood, 3000, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_p_values_count_the_draws():
    null = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 4.0, 8.0, 9.0])
    tested = exact_test(np.array([0.0, 3.0, 4.0, 10.0, 5.0, np.nan]), np.array([0.0, 1, 1, 1, -1, 1]), null)
    np.testing.assert_allclose(10**tested.log10_p * 10, [10, 5, 5, 1, 10, np.nan], rtol=1e-12)


def test_p_values_are_uniform_under_the_null(few_groups):
    Y = np.random.default_rng(11).normal(size=(few_groups.n, 1500)) + 3
    table = fitted(few_groups, Y).variance_test(draws=DRAWS)
    assert np.mean(table["p_value"] == 1) > 0.5
    below = table["p_value"][table["p_value"] < 1]
    assert scipy.stats.kstest(below / below.max(), "uniform").pvalue > 0.01
    for level in (0.05, 0.01):
        assert abs(np.mean(table["p_value"] <= level) - level) < 3 * np.sqrt(level / 1500)


def test_a_true_variance_is_found(few_groups):
    rng = np.random.default_rng(12)
    Y = rng.normal(size=(few_groups.n, 200)) + 2 * few_groups.Z @ rng.normal(size=(6, 200))
    result = fitted(few_groups, Y)
    for method in ("rlrt", "lrt"):
        assert np.mean(result.variance_test(method=method, draws=DRAWS)["p_value"] < 0.05) > 0.9
    wald = result.variance_test(method="wald")
    assert (wald["statistic"] < np.sqrt(4 / 2)).all()  # of six donors, two spent on X: it cannot see them


# --- intervals ------------------------------------------------------------------------------------


def test_intervals_of_balanced_groups_are_those_of_tukey_and_williams():
    groups, cells, m = 8, 5, 12
    rng = np.random.default_rng(2)
    Y = np.repeat(0.5 * rng.normal(size=(groups, m)), cells, axis=0) + rng.normal(size=(groups * cells, m))
    design = dense.Design(np.ones((groups * cells, 1)), np.kron(np.eye(groups), np.ones((cells, 1))), (groups,))
    table = fitted(design, Y, epsilon=1e-9).variance_intervals(level=0.9)
    means = Y.reshape(groups, cells, m).mean(axis=1)
    between = cells * means.var(axis=0, ddof=1)
    within = Y.reshape(groups, cells, m).var(axis=1, ddof=1).mean(axis=0)
    component = table[table["component"] == "var1"]
    for end, q in (("ci_low", 0.95), ("ci_high", 0.05)):
        limit = ((groups - 1) * between / scipy.stats.chi2.ppf(q, groups - 1) - within) / cells
        np.testing.assert_allclose(component[end], limit, rtol=1e-6, atol=1e-9)
    assert (component["ci_low"] < 0).any() and (component["variance"] < 0).any()


@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside", "slope"])
def test_intervals_are_those_of_dense_traces(name, method):
    """A mean square with expectation tr(W A) / tr(W A W A) for A = dV / ds_i, on tr(W A)^2 / tr(W A W A) df."""
    design = dense.DESIGNS[name]
    result = fitted(design, dense.draw_genes(design, 3), method=method)
    table = result.variance_intervals()
    low, high = (table[end].to_numpy().reshape(len(design.d) + 1, 3) for end in ("ci_low", "ci_high"))
    for gene, theta in enumerate(result.theta.to_numpy().T):
        for i, dV in enumerate(design.kernels()):
            M = design.weights(theta, method) @ dV
            square, df = np.trace(M) / np.trace(M @ M), np.trace(M) ** 2 / np.trace(M @ M)
            for found, q in ((low, 0.975), (high, 0.025)):
                wanted = df * square / scipy.stats.chi2.ppf(q, df) - (square - theta[i])
                np.testing.assert_allclose(found[i, gene], wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("between", [0.0, 0.05, 0.5])
def test_intervals_cover(between):
    m, sizes = 1500, [20, 60, 5, 35, 80, 50, 15, 40, 25, 10]
    donor, rng = np.repeat(np.arange(10), sizes), np.random.default_rng(4)
    Y = rng.normal(size=(donor.size, m)) + np.sqrt(between) * rng.normal(size=(10, m))[donor]
    design = dense.Design(np.column_stack([np.ones(donor.size), donor % 2]), dense.one_hot(donor, 10), (10,))
    table = fitted(design, Y).variance_intervals(level=0.9)
    for name, truth in (("var1", between), ("residual", 1.0)):
        rows = table[table["component"] == name]
        above, below = (rows["ci_low"] > truth).mean(), (rows["ci_high"] < truth).mean()
        assert 0.03 < above < 0.075, name
        assert (0.03 if truth else 0.0) <= below < 0.075, name  # at zero in unequal groups: cautious


def test_levels_that_are_no_coverage(few_groups):
    with pytest.raises(ValueError, match=r"level=95: the coverage of the interval must lie between 0 and 1"):
        fitted(few_groups, dense.draw_genes(few_groups, 1)).variance_intervals(level=95)


# --- shares ---------------------------------------------------------------------------------------


def test_fractions_of_groups_are_those_of_their_variances():
    design = dense.DESIGNS["three_widest_inside"]
    result = fitted(design, dense.draw_genes(design, 4))
    shares = result.variance_fractions()
    assert shares.index.tolist() == ["var1", "var2", "var3", "residual"]
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(shares, result.theta / result.theta.sum(), rtol=1e-10)


def test_a_slope_counts_in_the_average_cell():
    design = dense.DESIGNS["slope"]
    result = fitted(design, dense.draw_genes(design, 4))
    for gene, theta in enumerate(result.theta.to_numpy().T):
        variance = [np.mean(np.diag(s * dV)) for s, dV in zip(theta, design.kernels(), strict=True)]
        np.testing.assert_allclose(result.variance_fractions().iloc[:, gene], variance / np.sum(variance), rtol=1e-10)


# --- random effects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["one_nested", "one_crossed", "two", "two_widest_last", "three_widest_inside", "slope"]
)
def test_conditional_sd_are_dense(name, method):
    """Var(u | y, beta) = G - G Z'V^-1 Z G."""
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, 4)
    result = fitted(design, Y, method=method)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*variance component below zero")
        table, q = result.ranef(), design.Z.shape[1]
    nonnegative = fitted(design, Y, method=method, bounds="nonnegative").theta.to_numpy()
    negative = (result.theta.to_numpy() < 0).any(axis=0)
    assert table["variable"].tolist() == list(np.repeat(["Gene1", "Gene2", "Gene3", "Gene4"], q))
    for gene, theta in enumerate(np.where(negative, nonnegative, result.theta.to_numpy()).T):
        G = np.diag(np.repeat(theta[:-1], design.d))
        variance = np.diag(G - G @ design.Z.T @ np.linalg.solve(design.V(theta), design.Z @ G))
        rows = table.iloc[gene * q : (gene + 1) * q]
        np.testing.assert_allclose(rows["sd"], np.sqrt(variance), rtol=1e-7)
        np.testing.assert_allclose(rows["blup"], dense.blups(design, Y[:, gene], theta), rtol=1e-6, atol=1e-9)


def test_random_effects_of_one_component():
    design = dense.DESIGNS["two"]
    result = fitted(design, dense.draw_genes(design, 2))
    whole, part = result.ranef(), result.ranef("var2")
    wanted = whole[whole["component"] == "var2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, wanted)
    assert len(part) == 2 * 6 and part["effect"].tolist() == [f"Z{i}" for i in range(10, 16)] * 2


# --- Python and R interfaces ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(3)
    obs = pd.DataFrame({"donor": np.repeat(list("abcdef"), 12), "plate": np.tile(list("pqrs"), 18)})
    Y = rng.normal(size=(72, 5)) + rng.normal(size=(6, 5)).repeat(12, axis=0)
    Y[:, 2] = 0
    with pytest.warns(UserWarning, match="do not vary"):
        return fit((Y, obs), "~ 1 + (1 | donor) + (1 | plate)", progress=False)


@pytest.mark.parametrize("method", ["lrt", "wald"])
def test_a_gene_without_variance_does_not_affect_the_others(result, method):
    table = result.variance_test("donor", method=method)
    assert list(table.columns) == [
        *("variable", "component", "variance", "statistic", "p_value", "adj_p_value", "log10_p_value", "mean_expr"),
        "status",
    ]
    numbers = table[["variance", "statistic", "p_value", "adj_p_value", "log10_p_value"]]
    assert numbers.iloc[2].isna().all() and numbers.drop(2).notna().all(axis=None)
    adjusted = scipy.stats.false_discovery_control(table["p_value"].drop(2))
    np.testing.assert_allclose(table["adj_p_value"].drop(2), adjusted, rtol=1e-10)
    assert result.variance_fractions().iloc[:, 2].isna().all()
    assert result.ranef().query("variable == 'Gene3'")[["blup", "sd"]].isna().all(axis=None)
    assert result.variance_intervals().query("variable == 'Gene3'")[["ci_low", "ci_high"]].isna().all(axis=None)


def test_the_default_method(result):
    pd.testing.assert_frame_equal(result.variance_test("donor"), result.variance_test(0, method="lrt"))
    with pytest.warns(UserWarning, match="do not vary"):
        one = fit(result.summary.without(1), progress=False)
    pd.testing.assert_frame_equal(one.variance_test(draws=500), one.variance_test("donor", "rlrt", draws=500))


def test_every_component_is_tested_by_default(result):
    wanted = pd.concat([result.variance_test(name, "wald") for name in ("donor", "plate")], ignore_index=True)
    pd.testing.assert_frame_equal(result.variance_test(method="wald"), wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"component": "Donor"}, "component='Donor': wanted one of donor, plate, or its position from 0"),
        ({"component": 2}, "component=2: wanted one of donor, plate"),
        ({"component": 0, "method": "score"}, "method='score' is not known; use one of rlrt, lrt, wald"),
        ({"component": 0, "alternative": "less"}, "alternative='less' is not known; use one of greater, two-sided"),
        ({"component": 0, "method": "rlrt"}, "exact for one random effect and REML; this fit has 2 and is by REML"),
    ],
)
def test_arguments_that_variance_test_refuses(result, arguments, message):
    with pytest.raises(ValueError, match=message):
        result.variance_test(**arguments)


def test_rlrt_has_one_side(few_groups):
    with pytest.raises(ValueError, match="for negative ones too use method='lrt'"):
        fitted(few_groups, dense.draw_genes(few_groups, 1)).variance_test(method="rlrt", alternative="two-sided")
