"""The scoring loop: alone on quadratic toys whose answers are known, and with the real likelihoods against scipy.

Scales: theta relative to its own standard error, scores to the square root of the information.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import dense
import numpy as np
import pytest
import scipy.optimize

from lmm_gpu.estimation.fisher_scoring import Evaluation, Rules, maximise
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.status import Status
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # a gene's trouble is a status, and silent

# --- toys -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadratic:
    """value = -(theta - optimum)' H (theta - optimum) / 2 for each gene, where it is allowed."""

    optimum: np.ndarray  #: (k+1, b)
    H: np.ndarray  #: (k+1, k+1, b)
    trust: np.ndarray  #: (b,), information reported over H: below 1 steps are too long, above 1 too short
    highest: np.ndarray  #: (b,), theta[0] above this is not valid
    noise: np.ndarray  #: (b,), added to the score, as rounding would be

    def attempt(self, theta):
        error = theta - self.optimum
        pull = sum(self.H[:, j] * error[j] for j in range(len(error)))  # bits do not depend on the batch
        value = -0.5 * sum(error * pull)
        return Evaluation(
            value=value,
            score_rows=tuple(self.noise - pull),
            information_rows=tuple(tuple(row) for row in self.trust * self.H),
            yPy=value,
            rounding=1e-13 * (1 + np.abs(value)),
            ok=theta[0] <= self.highest,
        )

    def select(self, index):
        return Quadratic(*(values[..., index] for values in vars(self).values()))


def toy(optimum, *, H=None, trust=1.0, highest=np.inf, noise=0.0):
    """A toy for the columns of `optimum` (k+1, b); other parts may be given per gene."""
    optimum = np.asarray(optimum, dtype=float)
    rows, b = optimum.shape
    H = np.repeat(np.eye(rows)[:, :, None], b, axis=2) if H is None else H
    return Quadratic(optimum, H, *(np.broadcast_to(np.asarray(x, dtype=float), (b,)) for x in (trust, highest, noise)))


def run(objective, start=None, **rules):
    return maximise(objective, np.ones_like(objective.optimum) if start is None else start, Rules(**rules))


def random_toy(k, b, seed, **parts):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(b, k + 1, k + 3)) * np.exp(rng.normal(size=(b, k + 1, 1)))
    H = np.moveaxis(roots @ np.swapaxes(roots, 1, 2), 0, -1)
    optimum = np.vstack([rng.normal(size=(k, b)), np.full((1, b), 100.0)])  # a residual variance is never at 0
    return toy(optimum, H=H, **parts)


def test_true_information_takes_one_step():
    objective = random_toy(3, 20, seed=0)
    outcome = run(objective)
    np.testing.assert_allclose(outcome.theta, objective.optimum, rtol=1e-9, atol=1e-9)
    assert set(outcome.niter) == {2}  # the start, and the optimum
    assert set(outcome.status) == {Status.CONVERGED}
    assert not outcome.step_halved.any()


def test_a_step_that_falls_is_halved():
    """Steps five times too long fall, so do those of 2.5; 1.25 leaves a quarter of the error each time."""
    outcome = run(toy([[3.0], [2.0]], trust=0.2), np.array([[0.0], [1.0]]), epsilon=1e-6)
    assert outcome.status[0] == Status.CONVERGED
    assert outcome.step_halved[0]
    np.testing.assert_allclose(outcome.theta[:, 0], [3.0, 2.0], atol=1e-5)
    expected = 1 + int(np.ceil(np.log(3.0 / 1e-6) / np.log(4.0)))
    assert outcome.niter[0] == expected


def test_a_step_that_is_not_valid_is_halved():
    """From 0 towards 3 with nothing above 2: 3 and then 1.5 are tried."""
    outcome = run(toy([[3.0], [1.0]], highest=2.0), np.array([[0.0], [1.0]]), max_iter=2)
    assert outcome.step_halved[0]
    assert outcome.status[0] == Status.MAX_ITER
    assert 1.5 <= outcome.theta[0, 0] <= 2.0


def test_a_gene_that_approaches_the_edge_by_ever_shorter_steps_is_given_up():
    """Its value rises up to the edge of validity: a limit on refused steps ends it, not the number of iterations."""
    outcome = run(toy([[3.0], [1.0]], highest=2.0), np.array([[0.0], [1.0]]), max_iter=500, most_refused=24)
    assert outcome.status[0] == Status.FAILED
    assert outcome.refused[0] == 24
    assert 1.99 < outcome.theta[0, 0] <= 2.0


def test_an_interrupted_maximisation_continues_with_its_counts():
    """As in one go: the iterations, and the result."""
    objective, start = toy([[9.0], [1.0]], trust=2.0), np.array([[0.0], [1.0]])
    whole = run(objective, start)
    part = run(objective, start, max_iter=5)
    rest = maximise(objective, None, Rules(), interrupted=replace(part, niter=part.niter + 1))
    np.testing.assert_allclose(rest.theta, whole.theta, rtol=1e-12)
    np.testing.assert_array_equal(rest.niter, whole.niter)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ["one_nested", "two", "slope"])
def test_the_optimum_does_not_depend_on_the_scale_of_y(name, scale):
    """Nor do the statuses: where no interior optimum exists, too."""
    design = dense.DESIGNS[name]
    rng = np.random.default_rng(31)
    seen = np.zeros((design.n, 10))
    for y in seen.T:
        y[rng.choice(design.n, 3, replace=False)] = rng.integers(1, 4, 3)
    Y = np.hstack([weak_genes(design, 20, seed=31), seen])
    plain, scaled = fit_of(design, Y), fit_of(design, scale * Y)
    np.testing.assert_array_equal(plain.converged, scaled.converged)
    np.testing.assert_array_equal(plain.status == "boundary", scaled.status == "boundary")
    unit = np.where(np.isfinite(plain.estimates.se_theta), plain.estimates.se_theta, plain.estimates.theta[-1])
    found = scaled.estimates.theta / scale**2
    np.testing.assert_array_less(np.abs(found - plain.estimates.theta) / unit, 2e-4)


def test_short_steps_are_not_halved():
    outcome = run(toy([[3.0], [2.0]], trust=2.0), epsilon=1e-6)
    assert outcome.status[0] == Status.CONVERGED
    assert not outcome.step_halved[0]
    assert outcome.niter[0] == 1 + int(np.ceil(np.log2(2.0 / 1e-6)))


def test_max_iter_counts_evaluations_and_a_last_step_follows():
    """Each step halves the error: FLASHMM's three evaluations leave an eighth of it."""
    outcome = run(toy([[9.0], [1.0]], trust=2.0), max_iter=3)
    assert (outcome.status[0], outcome.niter[0]) == (Status.MAX_ITER, 3)
    np.testing.assert_allclose(outcome.theta[0, 0], 9.0 - 8.0 / 8.0)


def test_nothing_valid_fails():
    outcome = run(toy([[3.0], [1.0]], highest=-1.0))
    assert outcome.status[0] == Status.FAILED
    np.testing.assert_array_equal(outcome.theta[:, 0], [1.0, 1.0])


def test_a_score_that_rounding_keeps_from_zero():
    """Curvature 1e12 turns rounding of theta into scores far above epsilon."""
    H = 1e12 * np.eye(2)[:, :, None]
    outcome = run(toy([[3.0], [2.0]], H=H, noise=1e-2))
    assert outcome.status[0] == Status.CONVERGED_AT_ROUNDING
    np.testing.assert_allclose(outcome.theta[:, 0], [3.0, 2.0], rtol=1e-12)


def test_a_small_score_far_from_the_optimum_is_not_convergence():
    """On a scale of 1e-9 every score is below epsilon: the decrement decides."""
    H = 1e-9 * np.eye(2)[:, :, None]
    outcome = run(toy([[1e6], [2.0]], H=H, trust=1.25), epsilon=1e-2)
    assert outcome.status[0] in (Status.CONVERGED, Status.CONVERGED_AT_ROUNDING)
    standard_error = 1e-9**-0.5
    assert abs(outcome.theta[0, 0] - 1e6) < 1e-4 * standard_error


def test_confounded_components():
    """A singular information: the loop still finds an optimum and does not fail."""
    H = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])[:, :, None]
    outcome = run(toy([[2.0], [3.0], [4.0]], H=H))
    assert outcome.status[0] == Status.CONVERGED
    np.testing.assert_allclose(outcome.theta[0] + outcome.theta[1], 5.0)
    np.testing.assert_allclose(outcome.theta[2], 4.0)


def constrained_optimum(optimum, H):
    """Best theta with all but the last at or above zero: every set of zeros is tried."""
    best, value = None, -np.inf
    k = optimum.size - 1
    for free in product([False, True], repeat=k):
        free = np.array([*free, True])
        theta = np.zeros(k + 1)
        theta[free] = np.linalg.solve(H[np.ix_(free, free)], H[free] @ optimum)
        at = -0.5 * (theta - optimum) @ H @ (theta - optimum)
        if theta[:k].min() >= 0 and at > value:
            best, value = theta, at
    return best


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("at_zero", [False, True])
def test_nonnegative_finds_the_constrained_optimum(k, at_zero):
    objective = random_toy(k, 200, seed=k)
    start = np.ones_like(objective.optimum)
    start[:-1] = 0.0 if at_zero else 1.0
    outcome = run(objective, start, nonnegative=True)
    expected = [constrained_optimum(objective.optimum[:, i], objective.H[:, :, i]) for i in range(200)]
    assert np.min(expected, axis=0)[-1] > 1
    np.testing.assert_allclose(outcome.theta.T, expected, rtol=1e-9, atol=1e-8)
    assert np.count_nonzero((outcome.theta[:-1] == 0).any(axis=0)) > 20, "the toys do not test the bound"
    assert set(outcome.status) <= {Status.CONVERGED, Status.CONVERGED_AT_ROUNDING}


@pytest.mark.parametrize("nonnegative", [False, True])
def test_genes_do_not_see_their_neighbours(nonnegative):
    """A gene that fails, one that is slow and one that needs halving change no bit of the rest."""
    calm = random_toy(2, 9, seed=8)
    spoilt = replace(
        calm,
        trust=np.where(np.arange(9) == 2, 50.0, np.where(np.arange(9) == 4, 0.1, 1.0)),
        highest=np.where(np.arange(9) == 6, -9.0, np.inf),
    )
    a, b = run(calm, nonnegative=nonnegative), run(spoilt, nonnegative=nonnegative)
    assert b.status[6] == Status.FAILED
    rest = [0, 1, 3, 5, 7, 8]
    for name, values in vars(a).items():
        np.testing.assert_array_equal(values[..., rest], getattr(b, name)[..., rest], err_msg=name)


def test_order_of_genes_is_kept():
    objective = random_toy(2, 12, seed=9, trust=np.linspace(1.0, 3.0, 12)[::-1], highest=np.inf)
    order = np.random.default_rng(0).permutation(12)
    a, b = run(objective), run(objective.select(order))
    assert len(set(a.niter)) > 3, "genes leave the batch at the same time"
    for name, values in vars(a).items():
        np.testing.assert_array_equal(values[..., order], getattr(b, name), err_msg=name)


def test_words():
    assert [status.word for status in (Status.CONVERGED_AT_ROUNDING, Status.NO_VARIANCE)] == [
        "converged_at_rounding",
        "no_variance",
    ]


# --- the real likelihoods -------------------------------------------------------------------------

GOOD = ["converged", "converged_at_rounding"]
ORDINARY = [name for name in dense.DESIGNS if name != "wide"]  # random effects there can explain everything


def summary_of(design, Y):
    return cross_products(design.X, design.Z, Y, d=design.d)


def fit_of(design, Y, **options):
    return fit_summary(summary_of(design, Y), FitOptions(**options))


def standard_errors(design, theta, method):
    return np.sqrt(np.diag(np.linalg.pinv(dense.information(design, theta, method))))


def minus_loglik(design, y, method):
    """For scipy: infinite where there is no likelihood."""

    def function(theta):
        valid = theta[-1] > 0 and design.smallest_eigenvalue(theta, "ML") > 0
        return -dense.loglik(design, y, theta, method) if valid else np.inf

    return function


@pytest.mark.parametrize("name", ["one_crossed", "two", "three_widest_inside", "slope"])
def test_optimum_of_the_dense_likelihood(name, method):
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, 2, seed=21)
    fit = fit_of(design, Y, method=method)
    assert fit.converged.all()
    for y, theta, logLik in zip(Y.T, fit.estimates.theta.T, fit.logLik, strict=True):
        function, se = minus_loglik(design, y, method), standard_errors(design, theta, method)
        start = np.append(np.full(len(design.d), 0.3), 1.0)
        options = {"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-10, "adaptive": True}
        found = scipy.optimize.minimize(function, start, method="Nelder-Mead", options=options)
        assert found.success
        np.testing.assert_array_less(np.abs(theta - found.x) / se, 1e-4)
        np.testing.assert_allclose(logLik, -found.fun, rtol=1e-9)
        assert logLik >= -found.fun - 1e-11 * abs(found.fun)


@pytest.mark.parametrize("name", ORDINARY)
def test_score_is_zero_at_the_end(name, method):
    """The dense score: what the loop calls converged is stationary, and logLik is the likelihood there."""
    design = dense.DESIGNS[name]
    Y = dense.draw_genes(design, 6, seed=22)
    fit = fit_of(design, Y, method=method)
    interior = np.flatnonzero(fit.status.isin(GOOD))
    assert interior.size >= 4
    for gene in interior:
        theta = fit.estimates.theta[:, gene]
        relative = dense.score(design, Y[:, gene], theta, method) * standard_errors(design, theta, method)
        np.testing.assert_array_less(np.abs(relative), 1e-4)
        np.testing.assert_allclose(fit.logLik.iloc[gene], dense.loglik(design, Y[:, gene], theta, method), rtol=1e-10)


def weak_genes(design, m, seed):
    """Genes whose random effects are weak or absent: the constraint matters for some component of most of them."""
    rng = np.random.default_rng(seed)
    scale = np.repeat(rng.choice([0.0, 0.5], size=(len(design.d), m)), design.d, axis=0)
    return design.Z @ (scale * rng.normal(size=(sum(design.d), m))) + rng.normal(size=(design.n, m))


def bounded_optimum(design, y, method):
    """Largest log-likelihood with components at or above zero that L-BFGS-B finds from two starts."""
    k = len(design.d)
    function = lambda theta: -dense.loglik(design, y, theta, method)  # noqa: E731
    slope = lambda theta: -dense.score(design, y, theta, method)  # noqa: E731
    bounds = [(0, None)] * k + [(1e-3, None)]
    starts = [np.append(np.full(k, size), y.var()) for size in (1e-3, 0.5)]
    tight = {"ftol": 1e-15, "gtol": 1e-8}
    return max(-scipy.optimize.minimize(function, s, jac=slope, bounds=bounds, options=tight).fun for s in starts)


@pytest.mark.parametrize("name", ["one_nested", "two", "three_widest_inside", "slope"])
def test_nonnegative_meets_the_kkt_conditions(name, method):
    design, m = dense.DESIGNS[name], 12
    Y = weak_genes(design, m, seed=23)
    fit = fit_of(design, Y, method=method, bounds="nonnegative", max_iter=500)
    theta = fit.estimates.theta
    assert fit.converged.all()
    assert (theta[:-1] >= 0).all()
    held = theta == 0
    np.testing.assert_array_equal(fit.status == "boundary", held.any(axis=0))
    assert np.count_nonzero(held.any(axis=0)) >= 2
    for gene in range(m):
        slope = dense.score(design, Y[:, gene], theta[:, gene], method)
        slope *= 1 / np.sqrt(np.diag(dense.information(design, theta[:, gene], method)))
        free = ~held[:, gene]
        np.testing.assert_array_less(np.abs(slope[free]), 1e-4)
        np.testing.assert_array_less(slope[~free], 1e-4)


@pytest.mark.parametrize("name", ["one_nested", "three_widest_inside"])
def test_nonnegative_is_not_beaten_by_scipy(name, method):
    design = dense.DESIGNS[name]
    Y = weak_genes(design, 6, seed=24)
    fit = fit_of(design, Y, method=method, bounds="nonnegative")
    best = [bounded_optimum(design, y, method) for y in Y.T]
    assert np.all(fit.logLik >= best - 1e-8 * (1 + np.abs(best)))


# --- genes without an interior optimum ------------------------------------------------------------


def sparse_design(donors, cells=20):
    """Few donors with equally many cells, and an intercept."""
    n = donors * cells
    return dense.Design(np.ones((n, 1)), np.kron(np.eye(donors), np.ones((cells, 1))), (donors,))


def once_in_every_donor(design):
    """One cell in each donor: the means agree exactly and the likelihood grows until V is singular."""
    donors = design.Z[:, : design.d[0]]
    y = np.zeros(design.n)
    y[np.argmax(donors, axis=0) + np.arange(design.d[0])] = 1.0
    return y


def twice(design):
    """A second random effect of two levels across the donors."""
    B = dense.one_hot(np.arange(design.n) % 2, 2)
    return replace(design, Z=np.hstack([design.Z, B]), d=(*design.d, 2))


@pytest.mark.parametrize("donors", [2, 3])
@pytest.mark.parametrize("widen", [lambda design: design, twice], ids=["one", "two"])
def test_no_interior_optimum_ends_at_the_boundary(donors, widen, method):
    design = widen(sparse_design(donors))
    rng = np.random.default_rng(25)
    Y = np.column_stack(
        [once_in_every_donor(design), design.Z @ rng.normal(size=sum(design.d)) + rng.normal(size=design.n)]
    )
    fit = fit_of(design, Y, method=method)
    assert fit.status.iloc[0] == "boundary"
    theta = fit.estimates.theta[:, 0]
    assert theta[0] == 0
    assert (theta[1:] >= 0).all()
    best = bounded_optimum(design, Y[:, 0], method)
    assert fit.logLik.iloc[0] >= best - 1e-9 * abs(best)


@pytest.mark.parametrize("name", ["one_nested", "one_crossed", "two"])
@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_gene_seen_in_a_few_cells_has_an_answer(seen, name, method):
    """Whatever the likelihood does, there is an optimum inside a positive definite V or one at the bound.

    Plain Fisher scoring is slow for such genes: the expected information is far from the observed one.
    """
    design, rng = dense.DESIGNS[name], np.random.default_rng(seen)
    Y = np.zeros((design.n, 8))
    for y in Y.T:
        y[rng.choice(design.n, seen, replace=False)] = rng.integers(1, 4, seen)
    fit = fit_of(design, Y, method=method)
    assert fit.converged.all(), fit.status.to_dict()
    theta = fit.estimates.theta
    assert np.isfinite(fit.estimates.se).all()
    assert all(design.smallest_eigenvalue(t, "ML") > 0 for t in theta.T)
    boundary = (fit.status == "boundary").to_numpy()
    assert (theta[:-1, boundary] >= 0).all()


@pytest.mark.filterwarnings("ignore:.*did not converge:UserWarning")
@pytest.mark.parametrize("name", ["one_nested", "two"])
@pytest.mark.parametrize("max_iter", [3, 50])
def test_no_answer_lies_where_V_is_indefinite(name, method, max_iter):
    """However early a gene is stopped: what is reported of it is the estimate of some model."""
    design = dense.DESIGNS[name]
    Y = np.zeros((design.n, 30))
    rng = np.random.default_rng(29)
    for y in Y.T:
        y[rng.choice(design.n, 3, replace=False)] = rng.integers(1, 4, 3)
    fit = fit_of(design, Y, method=method, max_iter=max_iter)
    given = np.flatnonzero((fit.status != "failed") & (fit.status != "no_variance"))
    indefinite = [gene for gene in given if design.smallest_eigenvalue(fit.estimates.theta[:, gene], "ML") <= 0]
    assert not indefinite, fit.status.iloc[indefinite].to_dict()


@pytest.mark.filterwarnings("ignore:.*did not converge:UserWarning")
def test_without_bounds_there_is_no_fallback():
    design = sparse_design(3)
    y = once_in_every_donor(design)
    fit = fit_of(design, y[:, None], bounds="none")
    assert fit.status.iloc[0] in ("max_iter", "failed")
    assert fit.estimates.theta[0, 0] < 0
    assert not fit.converged.any()


@pytest.mark.parametrize("design", [dense.DESIGNS["two"], sparse_design(3), twice(sparse_design(3))])
@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_a_gene_without_an_optimum_does_not_affect_the_others(design, method, bounds):
    """It leaves the batch at another time: shapes of products change, and with them last bits, no more."""
    Y = dense.draw_genes(design, 10, seed=26)
    spoilt = Y.copy()
    spoilt[:, 4] = once_in_every_donor(design)
    a, b = fit_of(design, Y, method=method, bounds=bounds), fit_of(design, spoilt, method=method, bounds=bounds)
    rest = np.arange(10) != 4
    assert np.abs(a.estimates.theta - b.estimates.theta)[:, 4].max() > 1e-3
    np.testing.assert_array_equal(a.niter[rest], b.niter[rest])
    np.testing.assert_array_equal(a.status[rest], b.status[rest])
    scale = {"theta": a.estimates.theta[-1], "coef": a.estimates.se, "se": a.estimates.se}
    for name, unit in scale.items():
        error = np.abs(getattr(a.estimates, name) - getattr(b.estimates, name)) / unit
        assert error[:, rest].max() < 1e-13, name


def test_a_constant_gene_has_a_status_and_no_numbers(design):
    Y = dense.draw_genes(design, 3)
    Y[:, 1] = 0.0
    with pytest.warns(UserWarning, match="1 of 3 features do not vary once X is taken out"):
        fit = fit_of(design, Y)
    assert fit.status.tolist()[1] == "no_variance"
    for name, values in vars(fit.estimates).items():
        if name != "status":
            np.testing.assert_array_equal(np.isnan(values[..., 1]), True, err_msg=name)
            assert np.isfinite(values[..., [0, 2]]).all(), name


@pytest.mark.parametrize("effects", [1, 2])
def test_random_effects_in_the_span_of_X_leave_least_squares(effects):
    """Every donor its own fixed effect: nothing is left of the donors, nor of groups of them, and theta has no say."""
    donors = dense.DESIGNS["one_nested"].Z
    groups = donors @ np.kron(np.eye(3), np.ones((3, 1)))
    Z, d = (donors, (9,)) if effects == 1 else (np.hstack([donors, groups]), (9, 3))
    rng = np.random.default_rng(27)
    y = donors @ rng.normal(size=9) + rng.normal(size=60)
    fit = fit_summary(cross_products(donors, Z, y[:, None], d=d))
    assert fit.converged.all()
    means = (donors.T @ y) / donors.sum(axis=0)
    np.testing.assert_allclose(fit.estimates.coef[:, 0], means, rtol=1e-12)


# --- options --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    design = dense.DESIGNS["two"]
    return design, dense.draw_genes(design, 5, seed=28)


def test_max_iter(small):
    design, Y = small
    with pytest.warns(UserWarning, match=r"5 of 5 features did not converge \(5 max_iter\)"):
        fit = fit_of(design, Y, max_iter=2)
    assert set(fit.status) == {"max_iter"}
    assert set(fit.niter) == {2.0}
    more = fit_of(design, Y, max_iter=200, epsilon=1e-10)
    for y, early, late in zip(Y.T, fit.estimates.theta.T, more.estimates.theta.T, strict=True):
        assert dense.loglik(design, y, late, "REML") > dense.loglik(design, y, early, "REML")


def test_epsilon_bounds_the_score_before_the_last_step(small):
    design, Y = small
    loose, tight = fit_of(design, Y, epsilon=1e-2), fit_of(design, Y, epsilon=1e-9)
    assert (loose.niter <= tight.niter).all()
    converged = (tight.status == "converged").to_numpy()
    assert converged.any()
    np.testing.assert_array_less(np.abs(tight.estimates.dlogL[:, converged]), 1e-8)


def test_order_of_genes_is_irrelevant(small, method):
    design, Y = small
    order = np.array([3, 0, 4, 2, 1])
    a, b = fit_of(design, Y, method=method), fit_of(design, Y[:, order], method=method)
    np.testing.assert_allclose(b.estimates.theta, a.estimates.theta[:, order], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(b.estimates.status, a.estimates.status[order])
    np.testing.assert_array_equal(b.estimates.niter, a.estimates.niter[order])


@pytest.mark.parametrize("theta0", [[0.0, 0.1], [0.0, 10.0], [1.0, 0.01], [1e-6, 20.0]])
def test_nonnegative_from_any_start(theta0, method):
    """Far from the optimum in s_0, a component at zero must not stop the others."""
    design = dense.DESIGNS["one_nested"]
    Y = weak_genes(design, 30, seed=30)
    plain = fit_of(design, Y, method=method, bounds="nonnegative")
    moved = fit_of(design, Y, method=method, bounds="nonnegative", theta0=theta0)
    assert plain.converged.all()
    assert moved.converged.all(), moved.status.value_counts().to_dict()
    se = plain.estimates.se_theta
    np.testing.assert_array_less(np.abs(moved.estimates.theta - plain.estimates.theta) / se, 1e-4)


@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_theta0_does_not_change_the_answer(small, bounds):
    design, Y = small
    plain = fit_of(design, Y, bounds=bounds, epsilon=1e-9)
    per_model = fit_of(design, Y, bounds=bounds, epsilon=1e-9, theta0=[0.4, 0.2, 1.0])
    per_gene = fit_of(design, Y, bounds=bounds, epsilon=1e-9, theta0=np.tile([[0.4], [0.2], [1.0]], 5))
    np.testing.assert_array_equal(per_model.estimates.theta, per_gene.estimates.theta)
    se = plain.estimates.se_theta
    np.testing.assert_array_less(np.abs(per_model.estimates.theta - plain.estimates.theta) / se, 1e-6)
    assert not np.array_equal(per_model.niter, plain.niter) or np.any(per_model.dlogL != plain.dlogL)


def test_theta0_at_the_answer_stops_at_once(small):
    design, Y = small
    theta0 = fit_of(design, Y, epsilon=1e-9).estimates.theta
    assert (fit_of(design, Y, theta0=theta0).niter <= 2).all()


def test_theta0_follows_its_gene_through_blocks(small):
    design, Y = small
    theta0 = np.abs(fit_of(design, Y).estimates.theta) + np.linspace(0.1, 1, 5)
    a, b = (fit_of(design, Y, theta0=theta0, block=block) for block in (2, None))
    np.testing.assert_array_equal(a.niter, b.niter)
    assert len(set(a.niter)) > 1


@pytest.mark.parametrize("theta0", [[1.0, 1.0], [[1.0], [1.0], [1.0]], np.ones((5, 3)), 1.0])
def test_theta0_of_another_shape(small, theta0):
    with pytest.raises(ValueError, match=r"theta0 has shape .* wanted \(3,\) or \(3, 5\)"):
        fit_of(*small, theta0=theta0)


@pytest.mark.parametrize("theta0", [[0, 0, 0], [0, 0, -1], [np.nan, 0, 1], [np.inf, 0, 1]])
def test_theta0_without_a_residual_variance(small, theta0):
    with pytest.raises(ValueError, match="theta0 must be finite, with a positive residual variance"):
        fit_of(*small, theta0=theta0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "reml"}, "method='reml' is not known; use 'REML' or 'ML'"),
        ({"bounds": "positive"}, "bounds='positive' is not known; use one of auto, nonnegative, none"),
        ({"max_iter": 0}, "max_iter=0: at least one iteration"),
        ({"epsilon": 0.0}, "epsilon=0.0: the tolerance must be positive"),
        ({"epsilon": np.nan}, "epsilon=nan: the tolerance must be positive"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**options)


def test_progress_counts_every_fitted_gene(small):
    design, Y = small
    seen = []
    fit_summary(summary_of(design, Y), FitOptions(block=2), seen.append)
    assert sorted(seen) == [1, 2, 2]  # blocks end in any order


def test_engine_alone_gives_the_fit(small):
    """`maximise` on the model's likelihood is the first half of `fit_summary`."""
    design, Y = small
    model = MixedModel.build(summary_of(design, Y))
    outcome = maximise(model.likelihood, None, Rules())
    fit = fit_of(design, Y, bounds="none")
    np.testing.assert_array_equal(outcome.theta[:-1], fit.estimates.theta[:-1])
    np.testing.assert_array_equal(outcome.niter, fit.niter)
