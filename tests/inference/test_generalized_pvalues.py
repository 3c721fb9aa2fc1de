"""Tests that weigh how uncertain a variance is: the exact t test where there is one, dense n x n algebra elsewhere."""

from __future__ import annotations

import dense
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import brentq

from lmm_gpu import lmm, sslmm
from lmm_gpu.inference import f_tests, t_tests
from lmm_gpu.inference.generalized_pvalues import LEVELS, chi2_points, matched_t, ratios_at
from lmm_gpu.inference.pvalues import t_pvalue
from lmm_gpu.inference.strata import binding_strata, weighed_strata

EVEN, UNEVEN = [10] * 8, [2, 16, 3, 9, 2, 13, 5, 6]
ARMS = np.tile([0.0, 1.0], 4)
TREATMENT = np.array([[0.0, 1.0]])


def of_donors(cells, arms=ARMS):
    """One random effect, the donors, and a treatment between them."""
    donors = dense.one_hot(np.repeat(np.arange(len(cells)), cells), len(cells))
    return dense.Design(np.column_stack([np.ones(sum(cells)), donors @ arms]), donors, (len(cells),))


def of_samples(cells):
    """Donors, and two samples of each; the treatment lies between donors."""
    design = of_donors(cells)
    donor = design.Z.argmax(axis=1)
    sample = dense.one_hot(2 * donor + np.arange(len(donor)) % 2, 2 * len(cells))
    return dense.Design(design.X, np.hstack([design.Z, sample]), (len(cells), 2 * len(cells)))


def fitted(design, Y, **options):
    """Fit of Y (n, m)."""
    return lmm(sslmm(design.X, Y.T, design.Z, d=design.d), epsilon=1e-9, **options)


def genes(design, spread, m=12, seed=1):
    """Y (n, m) with donors of variance `spread`, many of them estimated below zero where that is zero."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(design.Z.shape[1], m)) * np.sqrt(spread)
    return design.Z @ u + rng.normal(size=(design.n, m))


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("make", [of_donors, of_samples])
def test_the_t_test_of_means_where_donors_are_alike(make, spread, bounds, method):
    design = make(EVEN)
    Y = genes(design, spread)
    result = fitted(design, Y, bounds=bounds, method=method)
    tested = result.contrast_test(TREATMENT, "generalized")
    means = Y.reshape(8, 10, -1).mean(axis=1)
    exact = scipy.stats.ttest_ind(means[ARMS == 1], means[ARMS == 0])
    np.testing.assert_allclose(tested.t[0], exact.statistic, rtol=1e-4)
    np.testing.assert_allclose(tested.df[0], 6.0, rtol=1e-6)
    np.testing.assert_allclose(t_pvalue(tested.t, tested.df)[0], exact.pvalue, rtol=1e-3)
    if spread == 0.0:  # Satterthwaite's test of components held at zero is far from it
        assert (result.theta.iloc[0] <= 0).any()


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_f_test_of_means_where_donors_are_alike(spread):
    group = np.arange(9) % 3
    donors = dense.one_hot(np.repeat(np.arange(9), 7), 9)
    design = dense.Design(dense.one_hot(group, 3)[donors.argmax(axis=1)], donors, (9,))
    Y = genes(design, spread)
    tested = fitted(design, Y).f_test(np.array([[-1.0, 1, 0], [-1, 0, 1]]), "generalized")
    means = Y.reshape(9, 7, -1).mean(axis=1)
    exact = scipy.stats.f_oneway(*(means[group == one] for one in range(3)))
    np.testing.assert_allclose(tested.statistic, exact.statistic, rtol=1e-6)
    np.testing.assert_allclose(tested.df, 6.0, rtol=1e-6)


# --- dense ----------------------------------------------------------------------------------------


def by_dense_algebra(design, y, theta, c, component, coarser, r, whole=True):
    """5 % and 0.1 % points of the mixture, summed over steps of the ratio from n x n matrices.

    Of what is not `whole` between the levels only the part between them shares a variance less than zero.
    """
    k, s_0 = len(design.d), theta[-1]
    ratios = np.maximum(theta[:-1] / s_0, 0.0)
    ends = np.cumsum(design.d)
    blocks = [design.Z[:, hi - width : hi] for hi, width in zip(ends, design.d, strict=True)]

    def left(X, g):
        V = np.eye(design.n) + sum(g[i] * blocks[i] @ blocks[i].T for i in range(k) if i not in coarser)
        V_inverse = np.linalg.inv(V)
        P = V_inverse - V_inverse @ X @ np.linalg.pinv(X.T @ V_inverse @ X) @ X.T @ V_inverse
        return y @ P @ y / s_0

    fixed = np.hstack([design.X, *[blocks[i] for i in coarser]])
    at = lambda g: np.where(np.arange(k) == component, g, ratios)  # noqa: E731
    floor = left(np.hstack([fixed, blocks[component]]), at(0.0))
    Q = lambda g: left(fixed, at(g)) - floor  # noqa: E731
    weights = np.linalg.solve(design.V(theta), design.X @ dense.beta_covariance(design, theta) @ c)  # of y in c'beta
    size = [weights @ Z @ Z.T @ weights for Z in blocks]

    nested = [i for i in range(k) if i != component and i not in coarser]
    inside = s_0 * (weights @ weights + sum(ratios[i] * size[i] for i in nested))
    outside = s_0 * sum(ratios[i] * size[i] for i in coarser)
    if not whole:
        Z = blocks[component]
        projected = s_0 * weights @ Z @ np.linalg.pinv(Z.T @ Z) @ Z.T @ weights
        inside, outside = projected, outside + inside - projected
    g = np.geomspace(1e-5, 1e8, 700)
    path = np.array([Q(0.0), *[Q(one) for one in g]])  # falls
    share = np.geomspace(1e-6, 1.0, 700)
    q = np.concatenate([path[0] / share, path])  # falls, with the variance at the middle of each step
    between = np.sqrt(np.concatenate([[0.5e-10], g[:-1] * g[1:]])) * s_0 * size[component]
    middle = [np.sqrt(share[:-1] * share[1:]) * inside, [inside], inside + between]
    sd = np.sqrt(np.concatenate(middle) + outside)
    mass = np.diff(scipy.stats.chi2.sf(q, r))
    tail = lambda x: mass @ (2 * scipy.stats.norm.sf(x / sd))  # noqa: E731
    return [brentq(lambda x, level=level: tail(x) - level, 1e-6, 1e6) for level in LEVELS]


def between_samples(cells):
    """As `of_samples`, one sample of each donor treated: samples are compared, which are nested in donors."""
    design = of_samples(cells)
    treated = design.Z[:, len(cells) :].argmax(axis=1) % 2
    return dense.Design(np.column_stack([np.ones(design.n), treated]), design.Z, design.d)


CASES = {"donors": (of_donors, 0, (), 6), "samples": (of_samples, 0, (), 6), "between": (between_samples, 1, (0,), 7)}


@pytest.mark.parametrize("spread", [0.0, 0.2])
@pytest.mark.parametrize("case", CASES)
def test_uneven_donors_are_the_dense_computation(case, spread):
    make, component, coarser, r = CASES[case]
    design = make(UNEVEN)
    Y = genes(design, spread, m=4)
    result = fitted(design, Y)
    tested = result.contrast_test(TREATMENT, "generalized")
    stratum = binding_strata(result.summary, TREATMENT)[0]
    assert (stratum.component, stratum.coarser, stratum.df) == (component, coarser, r)
    for gene, theta in enumerate(result.theta.to_numpy().T):
        points = by_dense_algebra(design, Y[:, gene], theta, TREATMENT[0], component, coarser, r)
        found = tested.se[0, gene] * scipy.stats.t.isf(np.array(LEVELS) / 2, tested.df[0, gene])
        if tested.df[0, gene] < r - 1e-9:
            np.testing.assert_allclose(found, points, rtol=2e-3)
        else:  # at most the between-within df: one point is met, and the other one lies within
            np.testing.assert_allclose(np.max(points / found), 1.0, rtol=2e-3)


def of_cell_types(make):
    """Two types of cells in each donor, the treatment's effect in each: both compare donors, and only in part."""
    design = make(UNEVEN)
    kind = (np.arange(design.n) // 2 % 2)[:, None] == [0, 1]
    return dense.Design(np.column_stack([kind, design.X[:, 1:] * kind]), design.Z, design.d)


EFFECT = np.array([[0.0, 0, 0, 1]])


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("make", [of_donors, of_samples])
def test_an_effect_in_one_cell_type_is_the_dense_computation(make, spread):
    design = of_cell_types(make)
    Y = genes(design, spread, m=4)
    result = fitted(design, Y)
    tested, joint = result.contrast_test(EFFECT, "generalized"), result.f_test(EFFECT, "generalized")
    assert binding_strata(result.summary, EFFECT) == [None]
    stratum = weighed_strata(result.summary, EFFECT)[0]
    coarser = (0,) * stratum.component
    assert (stratum.whole, stratum.coarser) == (False, coarser)
    for gene, theta in enumerate(result.theta.to_numpy().T):
        points = by_dense_algebra(
            design, Y[:, gene], theta, EFFECT[0], stratum.component, coarser, stratum.df, whole=False
        )
        found = tested.se[0, gene] * scipy.stats.t.isf(np.array(LEVELS) / 2, tested.df[0, gene])
        np.testing.assert_allclose(np.max(points / found), 1.0, rtol=2e-3)
    np.testing.assert_allclose(joint.statistic, tested.t[0] ** 2, rtol=1e-8)
    np.testing.assert_allclose(joint.df, tested.df[0], rtol=1e-8)


def test_an_effect_in_one_cell_type_holds_its_level():
    """Of 6 donors that differ much: Satterthwaite's test finds more than twice as many at 0.1 % as it may."""
    rng = np.random.default_rng(7)
    cells = [9, 45, 70, 6, 10, 120, 7, 9, 100, 60, 8, 12]  # of each donor and type
    part = np.repeat(np.arange(12), cells)
    donors, kind = dense.one_hot(part // 2, 6), dense.one_hot(part % 2, 2)
    design = dense.Design(np.hstack([kind, kind * (part // 2 % 2)[:, None]]), donors, (6,))
    result = fitted(design, genes(design, 0.5, m=20_000, seed=rng))
    false = {}
    for method in ("generalized", "satterthwaite"):
        tested = result.contrast_test(EFFECT, method)
        false[method] = [np.mean(t_pvalue(tested.t, tested.df) < level) / level for level in (0.05, 0.001)]
    assert 0.7 < false["generalized"][0] < 1.15 and false["generalized"][1] < 1.5
    assert false["satterthwaite"][1] > 2.0


def test_a_component_below_zero_counts_as_zero_within_groups():
    """Of many groups: the weights are those of the estimate, and what varies with them is not less than of cells."""
    design = of_donors(13 * UNEVEN, np.tile(ARMS, 13))
    x = np.random.default_rng(2).normal(size=design.n)
    design = dense.Design(np.column_stack([design.X, x]), design.Z, design.d)
    result = fitted(design, genes(design, 0.0, m=12))
    c = np.array([0.0, 0, 1])
    tested, plain = (result.contrast_test(c[None], name) for name in ("generalized", "satterthwaite"))
    negative = (result.theta.iloc[0] < 0).to_numpy()
    assert 2 < negative.sum() < 12
    for gene, theta in enumerate(result.theta.to_numpy().T):
        weights = np.linalg.solve(design.V(theta), design.X @ dense.beta_covariance(design, theta) @ c)
        V = design.V([max(theta[0], 0.0), theta[1]])
        np.testing.assert_allclose(tested.se[0, gene], np.sqrt(weights @ V @ weights), rtol=1e-8)
    np.testing.assert_array_equal(tested.df, plain.df)
    assert (tested.se[0, negative] > plain.se[0, negative]).all()
    np.testing.assert_array_equal(tested.se[0, ~negative], plain.se[0, ~negative])


# --- laws -----------------------------------------------------------------------------------------


def test_units_do_not_matter():
    design = of_samples(UNEVEN)
    Y = genes(design, 0.1)
    one, other = (fitted(design, scale * Y).contrast_test(TREATMENT, "generalized") for scale in (1.0, 1e-3))
    np.testing.assert_allclose(other.se, 1e-3 * one.se, rtol=1e-6)
    np.testing.assert_allclose(other.df, one.df, rtol=1e-6)


def test_contrasts_of_several_strata_do_not_mix():
    design = between_samples(UNEVEN)
    design = dense.Design(np.column_stack([design.X, of_donors(UNEVEN).X[:, 1]]), design.Z, design.d)
    result = fitted(design, genes(design, 0.1))
    C = np.array([[0.0, 1, 0], [0, 0, 1], [0, 2, 0], [1, 0, 0.5]])
    together = result.contrast_test(C, "generalized")
    for i, c in enumerate(C):
        alone = result.contrast_test(c[None], "generalized")
        np.testing.assert_allclose(together.se[i], alone.se[0], rtol=1e-12)
        np.testing.assert_allclose(together.df[i], alone.df[0], rtol=1e-12)


@pytest.mark.parametrize("design", [of_donors(UNEVEN), of_samples(UNEVEN)])
def test_an_f_test_of_one_row_is_the_t_test(design):
    result = fitted(design, genes(design, 0.1))
    t, F = result.contrast_test(TREATMENT, "generalized"), result.f_test(3 * TREATMENT, "generalized")
    np.testing.assert_allclose(F.statistic, t.t[0] ** 2, rtol=1e-8)
    np.testing.assert_allclose(F.df, t.df[0], rtol=1e-8)


def test_where_the_data_do_not_tell_it_is_satterthwaite(monkeypatch):
    design = of_donors(UNEVEN)
    result = fitted(design, genes(design, 0.3))
    nothing = lambda model, theta, gradient, *_: (np.full(gradient.shape[1:], np.nan),) * 2  # noqa: E731
    for module in (t_tests, f_tests):
        monkeypatch.setattr(module, "generalized_t", nothing)
    t, F = result.contrast_test(TREATMENT, "generalized"), result.f_test(TREATMENT, "generalized")
    plain = result.contrast_test(TREATMENT, "satterthwaite")
    np.testing.assert_array_equal(t.df, plain.df)
    np.testing.assert_allclose(F.statistic, t.t[0] ** 2, rtol=1e-8)
    np.testing.assert_allclose(F.df, plain.df[0], rtol=1e-8)


def test_df_are_at_most_between_within():
    design = of_donors(UNEVEN)
    tested = fitted(design, genes(design, 0.3, m=200)).contrast_test(TREATMENT, "generalized")
    assert (tested.df <= 6).all() and (tested.df > 0).all() and np.isfinite(tested.se).all()
    assert (tested.df < 5.9).any()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["generalized", "satterthwaite", "residual"])
def test_no_valid_estimate_has_no_test(name):
    """Values that are the same in all cells of a donor: the residual variance is lost in rounding errors."""
    design = of_donors(UNEVEN)
    Y = design.Z @ np.random.default_rng(0).normal(size=(8, 10))
    result = fitted(design, np.hstack([Y, genes(design, 0.1)]))
    failed = (result.status == "ill_conditioned").to_numpy()
    assert failed[:10].all() and not failed[10:].any()
    tested, joint = result.contrast_test(TREATMENT, name), result.f_test(TREATMENT, name)
    np.testing.assert_array_equal(np.isnan(tested.t[0]), failed)
    np.testing.assert_array_equal(np.isnan(joint.statistic) & failed, failed)
    assert result.test("X2", df=name)["adj_p_value"].isna().to_numpy()[failed].all()


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [1.0, 2.0, 5.0, 37.0, 1000.0])
def test_variances_over_chi2_are_t(r):
    q, weight = chi2_points(r)
    se, df = matched_t(np.array([[r, 9 * r]]) / q[:, None], weight, r)
    np.testing.assert_allclose(se, [1.0, 3.0], rtol=2e-4 if r == 1 else 1e-6)
    np.testing.assert_allclose(df, r, rtol=1e-4)


def test_a_known_variance_is_normal():
    q, weight = chi2_points(5.0)
    se, df = matched_t(np.full((len(q), 1), 4.0), weight, 1e5)
    np.testing.assert_allclose(se * scipy.stats.t.isf(0.0005, df), 2 * scipy.stats.norm.isf(0.0005), rtol=1e-4)


def test_ratios_are_the_inverse():
    """Of a sum of squares with known curvature; above its nodes, and below a ratio of zero."""
    lam, squares = np.array([3.0, 40.0, 400.0]), np.array([[4.0, 9.0], [2.0, 1.0], [7.0, 0.1]])
    Q = lambda g: np.sum(squares / (1 + np.multiply.outer(lam, g))[:, None], axis=0)  # noqa: E731
    n = 100.0
    x = np.linspace(0, np.log1p(1e4 * n / 3), 40)
    g = np.expm1(x) / n
    values = np.stack([Q(one) for one in g])  # (T, 2)
    slope = np.stack([-np.sum(squares * (lam / (1 + lam * one) ** 2)[:, None], axis=0) for one in g])
    q = np.array([1e-6, 1e-3, 0.5, 5.0, 20.0])
    found, share = ratios_at(q, x, np.log(values), slope / values * (g + 1 / n)[:, None], n)
    for i, one in enumerate(q):
        for gene in range(2):
            if one < Q(0.0)[gene]:
                wanted = brentq(lambda g, gene=gene, one=one: Q(g)[gene] - one, 0, 1e12, xtol=1e-15, rtol=1e-13)
                np.testing.assert_allclose([found[i, gene], share[i, gene]], [wanted, 1.0], rtol=2e-3)
            else:
                np.testing.assert_allclose([found[i, gene], share[i, gene]], [0.0, Q(0.0)[gene] / one], atol=1e-12)
