"""The default test: exact t and F tests where there are such tests, dense n x n algebra elsewhere, and rates."""

from __future__ import annotations

import itertools

import dense
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.optimize import brentq

import lmm_gpu
from lmm_gpu import lmm, lmmtest, sslmm
from lmm_gpu.inference import averaged_tests
from lmm_gpu.inference.averaged_tests import AveragedTests, two_sources
from lmm_gpu.inference.estimate_weights import EstimateWeights
from lmm_gpu.inference.mixtures import chi2_points, matched, matched_t
from lmm_gpu.inference.pvalues import f_pvalue, t_pvalue
from lmm_gpu.inference.satterthwaite import DF_METHODS
from lmm_gpu.inference.strata import strata

pytestmark = pytest.mark.filterwarnings("ignore:.*(no degrees of freedom|too few to estimate):UserWarning")

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


def of_types(cells, types=3):
    """Types of cells in each donor, donor and donor:type effects, and an effect of the treatment in each type."""
    groups = np.repeat(np.arange(types * len(cells)), np.tile(cells, types))
    donor, kind = groups % len(cells), dense.one_hot(groups // len(cells), types)
    X = np.hstack([kind, kind * (donor % 2)[:, None]])
    Z = np.hstack([dense.one_hot(donor, len(cells)), dense.one_hot(groups, types * len(cells))])
    return dense.Design(X, Z, (len(cells), types * len(cells)))


def of_batches(batches=3, per=2, types=3, cells=(2, 3, 1)):
    """Batches of donors with types of cells: batch, donor and donor:type effects, and an effect in each type."""
    design = of_types([cells[i % len(cells)] + 1 for i in range(batches * per)], types)
    donor = design.Z[:, : batches * per].argmax(axis=1)
    batch = dense.one_hot(donor // per, batches)
    return dense.Design(design.X, np.hstack([batch, design.Z]), (batches, *design.d))


def partly_paired(both, others, cells=6, effects=2):
    """Donors with cells in both arms, and donors with cells in one."""
    donor = np.r_[np.arange(both), np.arange(both), both + np.arange(others)].repeat(cells)
    arm = np.r_[np.zeros(both), np.ones(both), np.arange(others) % 2].repeat(cells)
    sample = np.arange(2 * both + others).repeat(cells)
    parts = [dense.one_hot(donor, both + others), dense.one_hot(sample, 2 * both + others)][:effects]
    return dense.Design(
        np.column_stack([np.ones(len(donor)), arm]), np.hstack(parts), tuple(part.shape[1] for part in parts)
    )


def fitted(design, Y, **options):
    """Fit of Y (n, m)."""
    return lmm(sslmm(design.X, Y.T, design.Z, d=design.d), epsilon=1e-9, **options)


def genes(design, variances, m=12, seed=1):
    """Y (n, m) with random effects of the given variances, the same or one each."""
    rng = np.random.default_rng(seed)
    u = (
        rng.normal(size=(design.Z.shape[1], m))
        * np.sqrt(np.repeat(np.broadcast_to(variances, len(design.d)), design.d))[:, None]
    )
    return design.Z @ u + rng.normal(size=(design.n, m))


def prepared(design, C, joint=False):
    """`AveragedTests` of contrasts, and the projection."""
    result = fitted(design, genes(design, 0.1, m=2))
    return AveragedTests.build(result.summary, C, joint=joint)


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
@pytest.mark.parametrize("variance", [0.0, 0.3, 1e6])
@pytest.mark.parametrize("make", [of_donors, of_samples])
def test_the_t_test_of_means_where_donors_are_alike(make, variance, bounds, method):
    design = make(EVEN)
    Y = genes(design, variance)
    result = fitted(design, Y, bounds=bounds, method=method)
    tested = result.contrast_test(TREATMENT, "generalized")
    means = Y.reshape(8, 10, -1).mean(axis=1)
    exact = scipy.stats.ttest_ind(means[ARMS == 1], means[ARMS == 0])
    rtol = 1e-4 if make is of_donors else 5e-3
    np.testing.assert_allclose(tested.t[0], exact.statistic, rtol=rtol)
    np.testing.assert_allclose(tested.df[0], 6.0, rtol=2 * rtol)
    np.testing.assert_allclose(t_pvalue(tested.t, tested.df)[0], exact.pvalue, rtol=10 * rtol)
    if variance == 0.0:  # Satterthwaite's test of components held at zero is far from it
        assert (result.theta.iloc[0] <= 0).any()


@pytest.mark.parametrize("variance", [0.0, 0.3])
def test_the_f_test_of_means_where_donors_are_alike(variance):
    group = np.arange(9) % 3
    donors = dense.one_hot(np.repeat(np.arange(9), 7), 9)
    design = dense.Design(dense.one_hot(group, 3)[donors.argmax(axis=1)], donors, (9,))
    Y = genes(design, variance)
    tested = fitted(design, Y).f_test(np.array([[-1.0, 1, 0], [-1, 0, 1]]), "generalized")
    means = Y.reshape(9, 7, -1).mean(axis=1)
    exact = scipy.stats.f_oneway(*(means[group == one] for one in range(3)))
    np.testing.assert_allclose(tested.statistic, exact.statistic, rtol=2e-3)
    np.testing.assert_allclose(tested.df, 6.0, rtol=2e-3)


def test_the_paired_t_test_where_donors_are_alike():
    design = partly_paired(7, 0)
    Y = genes(design, (1.0, 0.3))
    means = Y.reshape(2, 7, 6, -1).mean(axis=2)
    exact = scipy.stats.ttest_rel(means[1], means[0])
    tested = fitted(design, Y).contrast_test(TREATMENT, "generalized")
    np.testing.assert_allclose(tested.t[0], exact.statistic, rtol=5e-3)
    np.testing.assert_allclose(tested.df[0], 6.0, rtol=1e-2)


# --- dense ----------------------------------------------------------------------------------------

DENSE = {
    "donors": (of_donors(UNEVEN), TREATMENT),
    "samples": (of_samples(UNEVEN), TREATMENT),
    "types": (of_types([2, 5, 3, 4, 2, 6]), np.eye(6)[3:4]),
    "crossed": (dense.DESIGNS["two"], np.array([[0.0, 1, 0], [0.3, 0, 1]])),
    "slope": (dense.DESIGNS["slope"], np.eye(3)[1:]),
    "paired": (partly_paired(4, 4), TREATMENT),
    "three": (dense.DESIGNS["three_widest_inside"], np.eye(3)[1:]),
    "batches": (of_batches(), np.eye(6)[3:4]),
}


def ordered(design, tests):
    """Matrices Z_j (n, d_j), the coarsest effect first."""
    return [design.parts[j] for j in tests.pivots.order]


def P0(design, Z, g, fixed=()):
    """P at s_0 = 1, with the effects at positions `fixed` taken as fixed."""
    X = np.hstack([design.X, *[Z[i] for i in fixed]])
    V = np.eye(design.n) + sum(g[i] * Z[i] @ Z[i].T for i in range(len(Z)) if i not in fixed)
    W = np.linalg.inv(V)
    return W - W @ X @ np.linalg.pinv(X.T @ W @ X) @ X.T @ W


def some_nodes(pivots):
    """Nodes of the grid, the finest effect first, and the ratios there, the coarsest first."""
    for at in (
        [0] * len(pivots.axes),
        [0, 3, 9][-len(pivots.axes) :],
        [len(pivots.axes[-1].g) // 2, 4, 2][-len(pivots.axes) :],
    ):
        yield tuple(at), [axis.g[i] for axis, i in zip(pivots.axes, reversed(at), strict=True)]


@pytest.mark.parametrize("name", DENSE)
def test_sums_of_squares_are_the_dense_ones(name):
    design, C = DENSE[name]
    tests, Y = prepared(design, C), genes(design, 0.5, m=3)
    Z, pivots = ordered(design, tests), tests.pivots
    found = pivots.of_genes(tests.projection.genes(sslmm(design.X, Y.T, design.Z, d=design.d)))
    square = lambda g, *fixed: np.einsum("nb,nm,mb->b", Y, P0(design, Z, g, fixed), Y)  # noqa: E731
    np.testing.assert_allclose(found.R0, square(0 * design.parts[0][0], *range(len(Z))), rtol=1e-8)
    for at, g in some_nodes(pivots):
        for j in range(len(Z)):
            wanted = square(g, *range(j)) - square(g, *range(j + 1))
            np.testing.assert_allclose(found.R[j][at[: len(Z) - j]], wanted, rtol=1e-6, atol=1e-8)
            moved = [g[i] + (1e-6 * (g[j] + 1 / pivots.axes[j].n) if i == j else 0.0) for i in range(len(g))]
            fall = (wanted - square(moved, *range(j)) + square(moved, *range(j + 1))) / 1e-6
            np.testing.assert_allclose(found.fall[j][at[: len(Z) - j]], fall, rtol=1e-3, atol=1e-4)


def test_sums_of_squares_have_their_distribution():
    design, variances = of_batches(4, 3), (0.5, 0.4, 0.7)
    tests, Y = prepared(design, np.eye(6)[3:4]), genes(design, variances, m=2000)
    pivots = tests.pivots
    Z, squares = ordered(design, tests), []
    forms = [np.einsum("nb,nm,mb->b", Y, P0(design, Z, variances, tuple(range(j))), Y) for j in range(4)]
    squares = [*(before - after for before, after in itertools.pairwise(forms)), forms[-1]]
    for values, r in zip(squares, pivots.r, strict=True):
        assert scipy.stats.kstest(values, scipy.stats.chi2(r).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(squares) - np.eye(4)).max() < 0.08


@pytest.mark.parametrize("name", DENSE)
def test_weights_of_estimates_are_the_dense_ones(name):
    design, C = DENSE[name]
    tests = prepared(design, C)
    Z, pivots = ordered(design, tests), tests.pivots
    weights = EstimateWeights.build(pivots, tests.projection, C, design.d)
    projection = [np.zeros((design.n, design.n))]
    for j in range(len(Z)):
        both = np.hstack(Z[: j + 1])
        projection.append(both @ np.linalg.pinv(both))
    Y = genes(design, 0.5, m=2)
    projected = tests.projection.genes(sslmm(design.X, Y.T, design.Z, d=design.d))
    h = pivots.of_genes(projected).h
    for at, g in some_nodes(pivots):
        V = np.eye(design.n) + sum(one * part @ part.T for one, part in zip(g, Z, strict=True))
        A = np.linalg.solve(V, design.X)
        covariance = np.linalg.inv(design.X.T @ A)
        l = A @ covariance @ C.T  # (n, c)
        options = {"atol": 1e-9 * np.abs(l.T @ l).max(), "rtol": 1e-7}
        np.testing.assert_allclose(weights.ll[at], l.T @ l, **options)
        for j in range(len(Z)):
            inside = (projection[j + 1] - projection[j]) @ l
            np.testing.assert_allclose(weights.q[j][at], l.T @ inside, **options)
            for i in range(j, len(Z)):
                for o in range(i + 1):
                    other = (projection[o + 1] - projection[o]) @ l
                    np.testing.assert_allclose(weights.z[i, o, j][at], other.T @ Z[i] @ Z[i].T @ inside, **options)
        np.testing.assert_allclose(weights.variance(pivots)[at], C @ covariance @ C.T, rtol=1e-8)
        np.testing.assert_allclose(C @ projected.beta_ols - weights.t[at] @ h, l.T @ Y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", DENSE)
def test_the_posterior_is_the_dense_one(name):
    """Determinants and Jeffreys prior, up to the constant of the determinants."""
    design, C = DENSE[name]
    tests = prepared(design, C)
    Z, pivots = ordered(design, tests), tests.pivots
    N = design.n - design.X.shape[1]
    first = np.linalg.slogdet(design.X.T @ design.X)[1]
    for at, g in some_nodes(pivots):
        V = np.eye(design.n) + sum(one * part @ part.T for one, part in zip(g, Z, strict=True))
        wanted = np.linalg.slogdet(V)[1] + np.linalg.slogdet(design.X.T @ np.linalg.solve(V, design.X))[1] - first
        np.testing.assert_allclose(pivots.log_determinant[at], wanted, rtol=1e-8, atol=1e-8)
        P = P0(design, Z, g)
        traces = np.array([np.trace(part.T @ P @ part) for part in Z])
        squares = np.array([[np.sum((a.T @ P @ b) ** 2) for b in Z] for a in Z])
        information = 0.5 * (squares - np.outer(traces, traces) / N)
        np.testing.assert_allclose(pivots.log_jeffreys[at], 0.5 * np.linalg.slogdet(information)[1], rtol=1e-6)


def generalized_p(design, Z, y, c, points):
    """Generalized p-value of nested effects Z, by root finding with n x n matrices, and quantiles of chi-squared."""
    n, k = design.n, len(Z)
    rank = lambda *parts: np.linalg.matrix_rank(np.hstack([design.X, *parts]))  # noqa: E731
    r = np.diff([rank(*Z[:j]) for j in range(k + 1)])
    middle = (np.arange(points) + 0.5) / points
    quantiles = [scipy.stats.chi2.ppf(middle, one) for one in r]
    R0 = y @ P0(design, Z, [0.0] * k, tuple(range(k))) @ y
    spans = [np.zeros((n, n)), *(part @ np.linalg.pinv(part) for part in Z)]

    def R(j, g):
        return y @ (P0(design, Z, g, tuple(range(j))) - P0(design, Z, g, tuple(range(j + 1)))) @ y

    def solved(j, g, wanted):
        at = lambda x: R(j, [*g[:j], x, *g[j + 1 :]]) - wanted  # noqa: E731
        return (brentq(at, 0.0, 1e6, rtol=1e-6), 1.0) if at(0.0) > 0 else (0.0, 1.0 + at(0.0) / wanted)

    tails, shares, logs = [], [], []
    s_0 = R0 / (n - rank(*Z))
    for W in itertools.product(*quantiles):
        g, kappa = [0.0] * k, [1.0] * k
        for j in reversed(range(k)):
            g[j], kappa[j] = solved(j, g, s_0 * W[j])
        V = np.eye(n) + sum(one * part @ part.T for one, part in zip(g, Z, strict=True))
        A = np.linalg.solve(V, design.X)
        l = A @ np.linalg.solve(design.X.T @ A, c)
        inside = [(spans[j + 1] - spans[j]) @ l for j in range(k)]
        scaled = l + sum((np.sqrt(kappa[j]) - 1.0) * inside[j] for j in range(k))
        v = scaled @ V @ scaled
        tails.append(2 * scipy.stats.norm.sf(abs(l @ y) / np.sqrt(s_0 * v)))
        shares.append([kappa[j] * inside[j] @ V @ inside[j] / v for j in range(k)])
        logs.append(np.log(W))
    ols = design.X @ np.linalg.solve(design.X.T @ design.X, c)
    size = np.array([np.sum(((spans[j + 1] - spans[j]) @ ols) ** 2) for j in range(k)])
    tau = max(0.0, 1 - 3 / (size @ r / size.sum()))
    eta = np.mean([(1 - c) * c / (c + 0.01) for c in np.array(shares)], axis=0)
    weight = np.exp(tau * np.array(logs) @ eta)
    return weight @ tails / weight.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["donors", "types"])
@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_p_values_are_generalized_ones(name, variance):
    design, C = DENSE[name]
    Y = genes(design, variance, m=2, seed=4)
    result = fitted(design, Y)
    tested = result.contrast_test(C, "generalized")
    p = t_pvalue(tested.t, tested.df)[0]
    for gene in range(2):
        wanted = generalized_p(design, list(design.parts), Y[:, gene], C[0], 60 if name == "donors" else 9)
        np.testing.assert_allclose(p[gene], wanted, rtol=0.06, atol=3e-3)


@pytest.mark.parametrize("effects", [1, 2])
def test_reweighting_is_the_dense_computation(effects):
    """Posterior of the ratios on a fine grid of n x n matrices."""
    design = partly_paired(3, 5, cells=3, effects=effects)
    Y = genes(design, 0.4, m=3, seed=2)
    tested = fitted(design, Y).contrast_test(TREATMENT, "generalized")
    p, N = t_pvalue(tested.t, tested.df)[0], design.n - 2
    Z = [*design.parts, design.Z[:, :0]][:2]
    x = np.arange(0.0, 13.0, 0.25)
    n = [np.mean(np.diag(part.T @ part)) for part in Z[:effects]]
    grid = [
        (np.expm1(a) / n[0], np.expm1(b) / n[-1] if effects == 2 else 0.0)
        for a in x
        for b in x[: len(x) ** (effects - 1)]
    ]
    total, below = np.zeros(3), np.zeros(3)
    for g in grid:
        V = np.eye(design.n) + g[0] * Z[0] @ Z[0].T + g[1] * Z[1] @ Z[1].T
        A = np.linalg.solve(V, design.X)
        information = design.X.T @ A
        cov = np.linalg.inv(information)
        P = np.linalg.inv(V) - A @ cov @ A.T
        quad = np.einsum("nb,nm,mb->b", Y, P, Y)
        T = np.array([np.trace(z.T @ P @ z) for z in Z[:effects]])
        B = np.array([[np.sum((a.T @ P @ b) ** 2) for b in Z[:effects]] for a in Z[:effects]])
        J = np.sqrt(np.linalg.det(0.5 * (B - np.outer(T, T) / N)))
        ends = np.prod([0.5 if one == 0 else 1.0 for one in g[:effects]])
        measure = np.prod([1 / size + one for size, one in zip(n, g, strict=False)]) * ends
        log = -0.5 * (np.linalg.slogdet(V)[1] + np.linalg.slogdet(information)[1]) - 0.5 * N * np.log(quad)
        w = np.exp(log + 0.5 * N * np.log(N)) * J * measure * (cov[1, 1] * J) ** -0.5
        below += w * scipy.stats.t.cdf((cov @ A.T @ Y)[1] / np.sqrt(cov[1, 1] * quad / N), N)
        total += w
    wanted = 2 * np.minimum(below / total, 1 - below / total)
    np.testing.assert_allclose(p, wanted, rtol=0.06, atol=2e-3)


def test_the_choice_depends_on_the_sources_of_information():
    choice = lambda design, C: two_sources(  # noqa: E731
        min(strata(sslmm(design.X, np.ones((1, design.n)), design.Z, d=design.d)), key=lambda one: one.rank), C
    ).tolist()
    assert choice(of_donors(UNEVEN), TREATMENT) == [False]  # between donors
    assert choice(of_types([2, 5, 3, 4, 2, 6]), np.eye(6)[3:]) == [False] * 3  # not estimable within donors
    assert choice(partly_paired(5, 0), TREATMENT) == [False]  # within donors, without loss
    assert choice(partly_paired(1, 6), TREATMENT) == [True]


# --- laws -----------------------------------------------------------------------------------------


def codings(rng, types=3):
    """Changes of coding (p, p) of X = [types, types * treatment]: treatment, sum, Helmert, and any other one."""
    K = np.eye(types)
    contrasts = {
        "treatment": np.column_stack([np.ones(types), K[:, 1:]]),
        "reference": np.column_stack([np.ones(types), K[:, :-1]]),
        "sum": np.column_stack([np.ones(types), K[:, :-1] - K[:, -1:]]),
        "helmert": np.column_stack([np.ones(types), np.tril(-np.ones((types, types - 1)), 0) + 2 * K[:, 1:] * [1, 2]]),
        "any": rng.normal(size=(types, types)),
    }
    for name, A in contrasts.items():
        yield name, np.kron(np.array([[1.0, 0.5], [0, 1]]), A) if name == "sum" else np.kron(np.eye(2), A)


@pytest.mark.parametrize("effects", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_p_values_do_not_depend_on_the_coding(seed, effects):
    """Of random designs: any number of cells in each donor and type, types that some donors lack, any df."""
    rng = np.random.default_rng(seed)
    full = of_types(rng.integers(2, 9, 6))
    kept = np.flatnonzero(rng.random(full.n) < 0.9)
    design = dense.Design(full.X[kept], full.Z[kept][:, : 6 if effects == 1 else 24], full.d[:effects])
    Y = genes(design, 0.3, m=5, seed=seed)
    one, several = np.array([[0.0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, -1, 0]]), np.eye(6)[3:]
    interaction = np.array([[0.0, 0, 0, 1, -1, 0], [0, 0, 0, 0, 1, -1]])
    wanted: dict = {}
    for coding, A in codings(rng):
        result = lmm(sslmm(design.X @ A, Y.T, design.Z, d=design.d), epsilon=1e-11, max_iter=200)
        for method in DF_METHODS:
            t = result.contrast_test(one @ A, method)
            F = [result.f_test(rows @ A, method) for rows in (several, interaction)]
            found = np.vstack([t_pvalue(t.t, t.df), *(f_pvalue(f.statistic, f.df1, f.df) for f in F)])
            known = wanted.setdefault(method, found)
            np.testing.assert_allclose(found, known, rtol=1e-10, err_msg=f"{method}, {coding}", atol=1e-300)


def of_paired_types(rng):
    """Donors with a sample in one or both arms, types that some samples lack: donor, sample and donor:type effects."""
    donor, arm, kind, _ = (part.ravel() for part in np.indices((5, 2, 3, 4)))
    kept = (rng.random(donor.size) < 0.8) & ((arm == donor % 2) | (donor < 3)) | (donor == 0)
    donor, arm, kind = donor[kept], arm[kept], dense.one_hot(kind[kept], 3)
    levels = [donor, 2 * donor + arm, 3 * donor + kind.argmax(axis=1)]
    parts = [dense.one_hot(np.unique(one, return_inverse=True)[1], len(np.unique(one))) for one in levels]
    return dense.Design(
        np.hstack([kind, kind * arm[:, None]]), np.hstack(parts), tuple(part.shape[1] for part in parts)
    )


def of_replicates(rng):
    """Donors in one arm, one of them with a second sample, with three types: donor and sample effects."""
    sample = np.repeat(np.arange(8), rng.integers(6, 12, 8))
    donor = np.where(sample == 7, 0, sample)
    kind = dense.one_hot(rng.integers(0, 3, len(sample)), 3)
    Z = np.hstack([dense.one_hot(donor, 7), dense.one_hot(sample, 8)])
    return dense.Design(np.hstack([kind, kind * (donor % 2)[:, None]]), Z, (7, 8))


@pytest.mark.parametrize("make", [of_paired_types, of_replicates])
def test_p_values_of_incomplete_designs_do_not_depend_on_the_coding(make):
    rng = np.random.default_rng(3)
    design = make(rng)
    Y = genes(design, 0.3, m=3, seed=1)
    one, several = np.array([[0.0, 0, 0, 1, 0, 0], [0, 0, 0, 1, -1, 0]]), np.eye(6)[3:5]
    wanted: dict = {}
    for coding, A in [("cell means", np.eye(6)), *codings(rng)][:: 2 if len(design.d) == 2 else 3]:
        result = lmm(sslmm(design.X @ A, Y.T, design.Z, d=design.d), epsilon=1e-11, max_iter=200)
        for method in DF_METHODS:
            t, F = result.contrast_test(one @ A, method), result.f_test(several @ A, method)
            found = np.vstack([np.broadcast_to(t_pvalue(t.t, t.df), t.t.shape), f_pvalue(F.statistic, F.df1, F.df)])
            known = wanted.setdefault(method, found)
            np.testing.assert_allclose(found, known, rtol=1e-9, err_msg=f"{method}, {coding}", atol=1e-300)


def test_a_reference_level_of_three_changes_nothing():
    """Balanced donors, an effect in one type: as a treatment-coded main effect, and as a sum of effects."""
    design = of_types([5] * 6)
    Y = genes(design, (0.3, 0.05), m=20)
    A = np.kron(np.eye(2), [[1.0, 0, 0], [1, 1, 0], [1, 0, 1]])
    treatment = lmm(sslmm(design.X @ A, Y.T, design.Z, d=design.d), epsilon=1e-10)
    cell_means = fitted(design, Y)
    for method in DF_METHODS:
        one, other = treatment.contrast_test(np.eye(6)[3:4], method), cell_means.contrast_test(np.eye(6)[3:4], method)
        np.testing.assert_allclose(t_pvalue(one.t, one.df), t_pvalue(other.t, other.df), rtol=1e-7)


def test_units_do_not_matter():
    design = of_samples(UNEVEN)
    Y = genes(design, 0.1)
    one, other = (fitted(design, scale * Y).contrast_test(TREATMENT, "generalized") for scale in (1.0, 1e-3))
    np.testing.assert_allclose(other.se, 1e-3 * one.se, rtol=1e-6)
    np.testing.assert_allclose(other.df, one.df, rtol=1e-6)


def test_genes_do_not_matter_to_each_other():
    design = partly_paired(3, 5)
    Y = genes(design, 0.2, m=300)
    some, all_of_them = (fitted(design, values).contrast_test(TREATMENT, "generalized") for values in (Y[:, :7], Y))
    np.testing.assert_allclose(all_of_them.t[:, :7], some.t, rtol=1e-12)
    np.testing.assert_allclose(all_of_them.df[:, :7], some.df, rtol=1e-12)


def test_contrasts_do_not_matter_to_each_other():
    design = of_types([2, 5, 3, 4, 2, 6])
    result = fitted(design, genes(design, 0.1))
    C = np.array([[0.0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, -1, 0], [1, -1, 0, 0, 0, 0]])
    together = result.contrast_test(C, "generalized")
    for i, c in enumerate(C):
        alone = result.contrast_test(c[None], "generalized")
        np.testing.assert_allclose(together.t[i], alone.t[0], rtol=1e-10)
        np.testing.assert_allclose(together.df[i], alone.df[0], rtol=1e-10)


def test_contrasts_in_parts_are_the_same(monkeypatch):
    design = of_types([2, 5, 3, 4, 2, 6])
    result = fitted(design, genes(design, 0.1))
    whole = result.contrast_test(np.eye(6), "generalized")
    monkeypatch.setattr(averaged_tests, "_MOST_WEIGHTS", 1.0)
    parts = result.contrast_test(np.eye(6), "generalized")
    np.testing.assert_allclose(parts.t, whole.t, rtol=1e-12)
    np.testing.assert_allclose(parts.df, whole.df, rtol=1e-12)


def test_too_large_a_grid_is_kenward_and_rogers_test(monkeypatch):
    design = of_samples(UNEVEN)
    result = fitted(design, genes(design, 0.1))
    monkeypatch.setattr(averaged_tests, "MOST_NODES", (10, 10))
    default, wanted = (result.contrast_test(TREATMENT, df) for df in ("generalized", "kenward-roger"))
    np.testing.assert_array_equal(default.df[wanted.df > 0], wanted.df[wanted.df > 0])


@pytest.mark.parametrize("design", [of_donors(UNEVEN), of_samples(UNEVEN), partly_paired(3, 5)])
def test_an_f_test_of_one_row_is_the_t_test(design):
    result = fitted(design, genes(design, 0.1))
    t, F = result.contrast_test(TREATMENT, "generalized"), result.f_test(3 * TREATMENT, "generalized")
    np.testing.assert_allclose(F.statistic, t.t[0] ** 2, rtol=1e-8)
    np.testing.assert_allclose(F.df, t.df[0], rtol=1e-8)


REASONS = {"(x | g)": "correlated", "(1 | g)": "too many levels", "(x || g)": ""}


@pytest.mark.parametrize("random", REASONS)
def test_one_log_line_says_why_nothing_is_averaged(caplog, monkeypatch, random):
    rng, g, reason = np.random.default_rng(1), np.repeat(np.arange(8), 6), REASONS[random]
    obs = pd.DataFrame({"g": g.astype(str), "x": rng.normal(size=48), "a": np.tile(list("uvw"), 16)})
    result = lmm_gpu.fit((rng.normal(size=(48, 3)), obs), f"~ x + a + {random}", progress=False)
    if reason == "too many levels":
        monkeypatch.setattr(averaged_tests, "LARGEST", (0, 0))
    joint = lambda: result.test(["x", "a[T.v]"], joint=True)  # noqa: E731
    for tested in (result.test, result.anova, joint, lambda: lmmtest(result, ddf="generalized")):
        caplog.clear()
        tested()
        said = [record.getMessage() for record in caplog.records if "df='generalized'" in record.getMessage()]
        assert len(said) == bool(reason)
        assert all(reason in one and "Kenward and Roger's test" in one for one in said)
    caplog.clear()
    result.test(df="satterthwaite")
    assert not caplog.records


def test_a_moderated_f_test_that_is_not_averaged_is_refused(monkeypatch):
    design = of_samples(UNEVEN)
    result = fitted(design, genes(design, 0.1))
    monkeypatch.setattr(averaged_tests, "LARGEST", (0, 0))
    with pytest.raises(ValueError, match="no moderated form; test its contrasts one by one"):
        result.test(np.eye(2), moderate=True)


def test_after_ml_a_test_without_average_is_satterthwaites(monkeypatch):
    design = dense.DESIGNS["three_widest_inside"]
    monkeypatch.setattr(averaged_tests, "LARGEST", (0, 0))
    by_ml = fitted(design, dense.draw_genes(design, 4, seed=4), method="ML")
    default, wanted = (by_ml.contrast_test(np.eye(3)[1:], df) for df in ("generalized", "satterthwaite"))
    np.testing.assert_array_equal(default.df, wanted.df)


def test_an_effect_that_says_nothing_new_changes_little():
    """A third effect, of pairs of cells, where the t test of donors is exact."""
    design = of_samples(EVEN)
    half = dense.one_hot(np.arange(design.n) // 2, design.n // 2)
    three = dense.Design(design.X, np.hstack([design.Z, half]), (*design.d, half.shape[1]))
    Y = genes(design, 0.4)
    means = Y.reshape(8, 10, -1).mean(axis=1)
    exact = scipy.stats.ttest_ind(means[ARMS == 1], means[ARMS == 0])
    tested = fitted(three, Y).contrast_test(TREATMENT, "generalized")
    np.testing.assert_allclose(t_pvalue(tested.t, tested.df)[0], exact.pvalue, rtol=0.03)


# --- where one stratum has no df ------------------------------------------------------------------


def test_one_donor_in_both_arms():
    """One of 20 donors has both arms, with (1 | donor) + (1 | donor:arm): no df between samples, 18 between donors."""
    design = partly_paired(1, 19)
    result = fitted(design, genes(design, (0.1, 0.05), m=40))
    for method in ("generalized", "satterthwaite", "between-within"):
        tested = result.contrast_test(TREATMENT, method)
        assert np.isfinite(tested.t).all() and np.isfinite(tested.df).all(), method
    assert (result.contrast_test(TREATMENT, "between-within").df == 19).all()


def test_one_replicate_does_not_take_the_df_of_donors():
    donor = np.r_[np.arange(12), 0].repeat(6)
    sample = np.arange(13).repeat(6)
    X = np.column_stack([np.ones(len(donor)), donor % 2])
    design = dense.Design(X, np.hstack([dense.one_hot(donor, 12), dense.one_hot(sample, 13)]), (12, 13))
    result = fitted(design, genes(design, (0.1, 0.02), m=20))
    assert (result.contrast_test(TREATMENT, "between-within").df == 10).all()
    assert 8.5 < np.mean(result.contrast_test(TREATMENT, "generalized").df) < 10.5


@pytest.mark.parametrize("contrast", [None, "X2"])
def test_one_donor_per_arm_is_nan_with_a_reason(contrast):
    design = of_donors([30, 30], np.array([0.0, 1.0]))
    result = fitted(design, genes(design, 0.5, m=3))
    with pytest.warns(UserWarning, match="no degrees of freedom are left to compare levels of var1"):
        table = result.test(contrast)
    assert table.loc[table["contrast"] == "X2", "p_value"].isna().all()


def test_a_block_without_estimates_does_not_stop_the_others():
    design = of_donors(UNEVEN)
    Y = np.zeros((design.n, 2049))
    Y[:, :2048] = np.tile(genes(design, 0.1, m=64), 32)
    with pytest.warns(UserWarning, match="do not vary"):
        result = fitted(design, Y)
    for df in DF_METHODS:
        p = result.test("X2", df=df)["p_value"].to_numpy()
        assert np.isfinite(p[:2048]).all() and np.isnan(p[2048])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["generalized", "satterthwaite", "residual"])
def test_no_valid_estimate_has_no_test(name):
    """Of values that are the same in all cells of a donor: no residual variance, and no optimum."""
    design = of_donors(UNEVEN)
    Y = design.Z @ np.random.default_rng(0).normal(size=(8, 10))
    result = fitted(design, np.hstack([Y, genes(design, 0.1)]))
    failed = (result.status == "failed").to_numpy()
    assert not failed[10:].any()
    tested, joint = result.contrast_test(TREATMENT, name), result.f_test(TREATMENT, name)
    assert np.isnan(tested.t[0][failed]).all() and np.isfinite(tested.t[0][10:]).all()
    assert np.isnan(joint.statistic[failed]).all()
    assert result.test("X2", df=name)["adj_p_value"].isna().to_numpy()[failed].all()


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "C", "variances"),
    [
        (of_types([15] * 6), np.eye(6)[3:4], (0.3, 0.01)),
        (of_types([3, 8, 40, 5, 12, 90]), np.eye(6)[3:4], (0.3, 0.01)),
        (partly_paired(4, 8, 50), TREATMENT, (0.1, 0.05)),
        (of_donors([5, 12, 29, 69, 167, 400], ARMS[:6]), TREATMENT, (0.05,)),
    ],
)
def test_rates_hold(design, C, variances):
    """Twice as many as by chance at 5 %, six times as many at 0.1 %, is what plugging in one variance gives."""
    result = fitted(design, genes(design, variances, m=6000, seed=3))
    tested = result.contrast_test(C, "generalized")
    p = t_pvalue(tested.t, tested.df)[0]
    assert 0.75 < np.mean(p < 0.05) / 0.05 < 1.2  # three Monte Carlo errors are 0.17
    assert np.mean(p < 0.001) / 0.001 < 2.7  # 1.5, and three Monte Carlo errors


@pytest.mark.slow
def test_rates_of_joint_tests_hold():
    design = of_types([15] * 6)
    result = fitted(design, genes(design, (0.3, 0.01), m=4000, seed=3))
    F = result.f_test(np.eye(6)[3:], "generalized")
    p = f_pvalue(F.statistic, F.df1, F.df)
    assert 0.6 < np.mean(p < 0.05) / 0.05 < 1.2
    assert np.mean(p < 0.001) / 0.001 < 3.0


def test_the_reported_t_has_the_points_of_the_average():
    """5 % and 0.1 %, as the guide says: the t distribution that is reported has both, where its df are not limited."""
    rng = np.random.default_rng(3)
    variance = np.exp(rng.normal(size=(400, 3)))
    weight = np.full_like(variance, 1 / 400)
    statistic, df = matched(1 / variance, weight, 1, 1e5)
    for level in (0.05, 0.001):
        points = scipy.stats.t.isf(level / 2, df) / np.sqrt(statistic)
        tail = np.mean(2 * scipy.stats.norm.sf(points / np.sqrt(variance)), axis=0)
        np.testing.assert_allclose(tail, level, rtol=2e-3)


@pytest.mark.parametrize("change", [-1e-3, 1e-3])
def test_neighbouring_designs_have_neighbouring_tests(change):
    """No switch at a share of information within donors, which was 70 %, nor at a number of df, which was 100."""
    donor = np.tile(np.arange(6), 2)
    arm, n = np.repeat([0.0, 1.0], 6), np.tile([20.0, 60, 100], 4)
    share = np.where(donor % 2, 0.27, 0.73)
    results = []
    for shift in (0.0, change):
        cells = n * np.where(arm == 1, share + shift, 1 - share - shift)
        X, Z = np.column_stack([np.ones(12), arm]), np.tile(np.eye(6), (2, 1))
        Y = np.random.default_rng(1).normal(size=(12, 50)) * 0.3
        scaled = np.sqrt(cells)[:, None]
        result = lmm(sslmm(scaled * X, (scaled * Y).T, scaled * Z), epsilon=1e-10)
        t = result.contrast_test(TREATMENT, "generalized")
        results.append(np.log10(t_pvalue(t.t, t.df)[0]))
    assert np.abs(results[0] - results[1]).max() < 0.05


# --- parts ----------------------------------------------------------------------------------------

DRAWS = (48, 1e-10, 1e-6)


@pytest.mark.parametrize("r", [1.0, 2.0, 5.0, 37.0, 1000.0])
def test_variances_over_chi2_are_t(r):
    q, weight = chi2_points(r, *DRAWS)
    statistic, df = matched(q[:, None] / np.array([[r, 9 * r]]), weight[:, None], 1, r)
    np.testing.assert_allclose(1 / np.sqrt(statistic), [1.0, 3.0], rtol=2e-4 if r == 1 else 1e-6)
    np.testing.assert_allclose(df, r, rtol=1e-4)


@pytest.mark.parametrize("rank", [2, 5])
def test_covariances_over_chi2_are_f(rank):
    q, weight = chi2_points(7.0, *DRAWS)
    statistic, df = matched(3.0 * rank * q[:, None] / 7.0, weight[:, None], rank, 100.0)
    np.testing.assert_allclose([statistic[0], df[0]], [3.0, 7.0], rtol=1e-4)


def test_a_known_variance_is_normal():
    statistic, df = matched(np.full((3, 1), 0.25), np.full((3, 1), 1 / 3), 1, 1e5)
    points = scipy.stats.t.isf(0.0005, df) / np.sqrt(statistic)
    np.testing.assert_allclose(points, 2 * scipy.stats.norm.isf(0.0005), rtol=1e-4)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_mixture_about_one_centre_is_t(sign):
    q, weight = chi2_points(5.0, *DRAWS)
    centre, sd = np.full((len(q), 1), 2.0 * sign), np.sqrt(5.0 / q)[:, None]
    location, scale, df = matched_t(centre, sd, weight[:, None], 100.0)
    np.testing.assert_allclose([location[0], scale[0], df[0]], [2.0 * sign, 1.0, 5.0], rtol=1e-4)
