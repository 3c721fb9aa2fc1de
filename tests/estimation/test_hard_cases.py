"""Designs and genes at which FLASHMM's own code stops or returns nonsense: an answer or an honest reason for each."""

import warnings

import dense
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

import lmm_gpu


def optimum(design, y, method):
    """Largest log-likelihood with components at or above zero, by L-BFGS-B on the dense likelihood."""
    k = len(design.d)
    found = [
        scipy.optimize.minimize(
            lambda theta: -dense.loglik(design, y, theta, method),
            np.append(np.full(k, size), y.var()),
            jac=lambda theta: -dense.score(design, y, theta, method),
            bounds=[(0, None)] * k + [(1e-3, None)],
            options={"ftol": 1e-15, "gtol": 1e-8},
        ).fun
        for size in (1e-3, 0.5)
    ]
    return -min(found)


def check(design, Y, method="REML", bounds="nonnegative"):
    """Every gene ends at an optimum, with a finite standard error for every coefficient."""
    fit = lmm_gpu.lmmfit(Y.T, design.X, design.Z, design.d, method=method, bounds=bounds)
    assert fit.converged.all(), fit.status.to_dict()
    assert np.isfinite(fit.estimates.se).all()
    assert np.isfinite(fit.p.to_numpy()).all()
    for y, logLik in zip(Y.T, fit.logLik, strict=True):
        best = optimum(design, y, method)
        assert logLik >= best - 1e-8 * abs(best)
    return fit


def design_of(X, *Z):
    return dense.Design(np.column_stack([np.ones(len(Z[0])), *X]), np.hstack(Z), tuple(block.shape[1] for block in Z))


def draw(design, m=6, seed=1):
    rng = np.random.default_rng(seed)
    return design.Z @ rng.normal(scale=0.7, size=(design.Z.shape[1], m)) + rng.normal(size=(design.Z.shape[0], m))


def test_constant_and_zero_genes(method):
    cell = np.arange(60)
    design = design_of([cell / 60], dense.one_hot(cell % 6, 6))
    Y = np.column_stack([draw(design, 2), np.full(design.n, 3.0), np.zeros(design.n)])
    with pytest.warns(UserWarning, match="2 of 4 features do not vary"):
        fit = lmm_gpu.lmmfit(Y.T, design.X, design.Z, method=method, is_counts=False)
    assert fit.status.tolist()[2:] == ["no_variance", "no_variance"]
    assert fit.converged.tolist() == [True, True, False, False]
    for name in ("coef", "se", "t", "p", "theta", "logLik", "niter", "dlogL"):
        values = np.atleast_2d(np.asarray(fit[name]))
        assert np.isnan(values[:, 2:]).all(), name
        assert np.isfinite(values[:, :2]).all(), name


@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_duplicated_donor_columns(method, bounds):
    """The same effect twice: only the sum of the two variances is identifiable, and it is that of the effect alone."""
    Z = dense.one_hot(np.arange(60) % 6, 6)
    once, twice = design_of([], Z), design_of([], Z, Z)
    Y = draw(once)
    alone = lmm_gpu.lmmfit(Y.T, once.X, Z, method=method, bounds=bounds)
    both = lmm_gpu.lmmfit(Y.T, twice.X, twice.Z, twice.d, method=method, bounds=bounds)
    assert both.converged.all()
    np.testing.assert_allclose(both.theta.iloc[:2].sum(), alone.theta.iloc[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(both.coef, alone.coef, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(both.logLik, alone.logLik, rtol=1e-10)


def test_a_donor_with_one_cell(method):
    donor = np.repeat(np.arange(6), [1, 1, 20, 20, 9, 9])
    design = design_of([(donor % 2).astype(float)], dense.one_hot(donor, 6))
    check(design, draw(design), method)


def test_more_random_effects_than_cells_leave_room_for():
    """30 donors of two cells each and as many batches: q = 60 of n = 60."""
    cell = np.arange(60)
    design = design_of([cell / 60], dense.one_hot(cell // 2, 30), dense.one_hot((7 * cell) % 30, 30))
    assert design.Z.shape[1] == 60
    check(design, draw(design))


def test_more_random_effects_than_cells():
    rng, n = np.random.default_rng(3), 24
    blocks = [dense.one_hot(rng.permutation(np.arange(n) % 16), 16) for _ in range(2)]
    design = design_of([], *blocks)
    assert design.Z.shape[1] > n
    check(design, draw(design))


def test_an_effect_that_the_fixed_effects_explain():
    """Two donors, one per arm: nothing is left of the donors, and no test of the arms."""
    arm = np.repeat([0.0, 1.0], 30)
    design = design_of([arm], dense.one_hot(arm.astype(int), 2), dense.one_hot(np.arange(60) % 5, 5))
    Y = draw(design)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = lmm_gpu.lmmfit(Y.T, design.X, design.Z, design.d)
    assert fit.converged.all()
    assert (fit.theta.loc["var1"] == 0).all()
    assert fit.se_theta.loc["var1"].isna().all()
    without = lmm_gpu.lmmfit(Y.T, design.X, design.Z[:, 2:])
    np.testing.assert_allclose(fit.logLik, without.logLik, rtol=1e-10)
    np.testing.assert_allclose(fit.theta.loc["var2"], without.theta.loc["var1"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seen", [1, 2, 5, 20])
@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_genes_seen_in_a_few_cells(seen, bounds):
    """Sparse counts of seven animals, a few cells each not zero."""
    rng, n = np.random.default_rng(seen), 280
    animal, batch = np.repeat(np.arange(7), 40), np.arange(n) % 4
    design = design_of([(animal % 2).astype(float)], dense.one_hot(animal, 7), dense.one_hot(batch, 4))
    Y = np.zeros((n, 20))
    for y in Y.T:
        y[rng.choice(n, seen, replace=False)] = np.log2(1 + rng.integers(1, 6, seen))
    fit = lmm_gpu.lmmfit(Y.T, design.X, design.Z, design.d, bounds=bounds)
    assert fit.converged.all(), fit.status.value_counts().to_dict()
    assert np.isfinite(fit.p.to_numpy()).all()
    for theta in fit.estimates.theta.T:
        assert design.smallest_eigenvalue(theta, "ML") > 0


def check_by_qr(design, Y, fit, rtol=1e-6):
    """Coefficients, errors and log-likelihood against generalised least squares by QR at the same theta."""
    for y, theta, logLik, coef, se in zip(
        Y.T, fit.estimates.theta.T, fit.logLik, fit.coef.to_numpy().T, fit.se.to_numpy().T, strict=True
    ):
        L = np.linalg.cholesky(design.V(theta))
        Q, R = np.linalg.qr(np.linalg.solve(L, design.X))
        y = np.linalg.solve(L, y)
        errors = np.linalg.norm(np.linalg.inv(R), axis=1)
        np.testing.assert_allclose(se, errors, rtol=rtol)
        np.testing.assert_allclose((coef - np.linalg.solve(R, Q.T @ y)) / errors, 0, atol=rtol)
        residual = y - Q @ (Q.T @ y)
        logdet = 2 * (np.log(np.diag(L)).sum() + np.log(np.abs(np.diag(R))).sum())
        REML = -0.5 * (logdet + residual @ residual + (len(y) - len(coef)) * np.log(2 * np.pi))
        REML += 0.5 * np.linalg.slogdet(design.X.T @ design.X)[1]
        np.testing.assert_allclose(logLik, REML, rtol=rtol)


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_sixty_columns_and_an_uncentred_library_size(mean):
    """No column is constant: it is made by those of the groups."""
    rng, n, p = np.random.default_rng(5), 2000, 60
    library = np.log(rng.lognormal(9.0, 0.3, n))
    group, donor = rng.integers(0, p - 1, n), rng.integers(0, 12, n)
    X, Z = np.column_stack([library, dense.one_hot(group, p - 1)]), dense.one_hot(donor, 12)
    design = dense.Design(X, Z, (12,))
    plain = draw(design, 4) + 0.3 * library[:, None]
    Y = plain + mean * np.array([1.0, 1.0, -1.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = lmm_gpu.lmmfit(Y.T, X, Z, is_counts=False)
    check_by_qr(design, Y, fit)
    wanted = lmm_gpu.lmmfit(plain.T, X, Z)
    np.testing.assert_allclose(fit.theta, wanted.theta, rtol=1e-6)
    np.testing.assert_allclose(fit.t.iloc[0], wanted.t.iloc[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("units", [1e-6, 1e6])
def test_columns_in_any_units(units):
    design = dense.DESIGNS["two"]
    Y, scale = draw(design, 4), np.array([units, *np.ones(design.X.shape[1] - 2), 1 / units])
    plain = lmm_gpu.lmmfit(Y.T, design.X, design.Z, design.d)
    scaled = lmm_gpu.lmmfit(Y.T, design.X * scale, design.Z, design.d)
    np.testing.assert_allclose(scaled.coef * scale[:, None], plain.coef, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scaled.t, plain.t, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scaled.theta, plain.theta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mean", [1e3, 1e6, -1e6])
@pytest.mark.parametrize("units", [1e-6, 1.0, 1e6])
def test_values_far_from_zero(mean, units, method):
    """A mean of 10^6 times the spread costs nothing that matters, whatever the unit of the intercept."""
    cell = np.arange(120)
    design = design_of([cell / 120], dense.one_hot(cell % 6, 6), dense.one_hot(cell % 4, 4))
    Y, X = draw(design, 4), design.X * np.array([units, 1.0])
    wanted = lmm_gpu.lmmfit(Y.T, X, design.Z, design.d, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = lmm_gpu.lmmfit(Y.T + mean, X, design.Z, design.d, method=method)
    assert fit.status.tolist() == wanted.status.tolist()
    residual = wanted.theta.iloc[-1]
    np.testing.assert_allclose(fit.theta / residual, wanted.theta / residual, atol=1e-6)
    np.testing.assert_allclose(fit.se, wanted.se, rtol=1e-6)
    np.testing.assert_allclose(fit.logLik, wanted.logLik, rtol=1e-6)
    moved = wanted.coef + np.array([[mean / units], [0.0]])
    np.testing.assert_allclose((fit.coef - moved) / wanted.se, 0, atol=1e-6)
    np.testing.assert_allclose(fit.summary.mean(), Y.mean(axis=0) + mean, rtol=1e-12)
    if method == "REML":
        check_by_qr(dense.Design(X, design.Z, design.d), Y + mean, fit)


def test_sums_that_are_ill_conditioned():
    """Sums about zero lose the digits of values far from it, as sums of huge fixed effects do: no p-values."""
    cell = np.arange(120)
    design = design_of([cell / 120], dense.one_hot(cell % 6, 6))
    Y = draw(design, 4)
    raw = dict(lmm_gpu.sslmm(design.X, Y.T + 1e6, design.Z))
    with pytest.warns(UserWarning, match=r"4 of 4 features \(Gene1, Gene2, Gene3, \.\.\.\) are ill-conditioned"):
        fit = lmm_gpu.lmm(**raw)
    assert set(fit.status) == {"ill_conditioned"}
    assert fit.p.isna().all().all()
    with pytest.warns(UserWarning, match=r"1 of 4 features \(Gene2\) are ill-conditioned: .* along a fixed effect"):
        fit = lmm_gpu.lmmfit((Y + np.outer(3e6 * design.X[:, 1], [0, 1, 0, 0])).T, design.X, design.Z)
    assert fit.status.tolist() == ["converged", "ill_conditioned", "converged", "converged"]
    assert fit.p.isna().any().tolist() == [False, True, False, False]


@pytest.mark.parametrize("value", [0.1, 3.0, 1e6, 1e6 + 0.1, -1e-6])
def test_constant_genes_far_from_zero(value):
    """Constant, or as good as: the noise is that of the values' own last digit."""
    cell = np.arange(120)
    design = design_of([cell / 120], dense.one_hot(cell % 6, 6))
    Y = np.column_stack([draw(design, 1)[:, 0], np.full(120, value), value * (1 + np.finfo(float).eps * (cell % 2))])
    with pytest.warns(UserWarning, match="2 of 3 features do not vary"):
        fit = lmm_gpu.lmmfit(Y.T, design.X, design.Z, is_counts=False)
    assert fit.status.tolist() == ["converged", "no_variance", "no_variance"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that overflow
def test_a_gene_whose_squares_vanish_ends_with_a_status():
    """Steps of such a gene are no numbers: it fails, the others are as without it."""
    rng, donor = np.random.default_rng(1), np.repeat(np.arange(8), 12)
    obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 4, "a", "b"), "x": rng.normal(size=96)})
    Y = np.column_stack([rng.normal(size=96) + donor, 1e-150 * rng.normal(size=96)])
    with pytest.warns(UserWarning, match=r"1 of 2 features did not converge \(1 failed\)"):
        fit = lmm_gpu.fit((Y, obs), "~ arm + (x | donor)", progress=False)
    alone = lmm_gpu.fit((Y[:, :1], obs), "~ arm + (x | donor)", progress=False)
    assert fit.status.tolist()[1] == "failed" and fit.coef.iloc[:, 1].isna().all()
    np.testing.assert_allclose(fit.theta.iloc[:, 0], alone.theta.iloc[:, 0], rtol=1e-10)


@pytest.mark.parametrize("formula", ["~ arm + (1 | donor) + (1 | sample)", "~ 0 + arm + (1 | donor) + (1 | sample)"])
@pytest.mark.parametrize("bounds", ["auto", "none"])
def test_genes_do_not_converge_at_the_edge_of_positive_definite_v(formula, bounds):
    # one of 20 donors is in both arms: for many genes the likelihood rises up to the edge, where digits are lost
    rng = np.random.default_rng(3)
    samples = [("D00", "a"), *((f"D{d:02d}", "ab"[d % 2]) for d in range(1, 20)), ("D00", "b")]
    obs = pd.DataFrame(np.repeat(samples, 60, axis=0), columns=["donor", "arm"]).sort_values(["donor", "arm"])
    obs["sample"] = obs["donor"] + obs["arm"]
    donor, sample = obs["donor"].factorize()[0], obs["sample"].factorize()[0]
    values = rng.normal(size=(len(obs), 2000)) + rng.normal(size=(20, 2000))[donor] * np.sqrt(0.1)
    fit = lmm_gpu.fit((values, obs), formula, bounds=bounds)
    theta, slopes = fit.theta.to_numpy(), fit.dlogL.to_numpy()
    good = fit.converged.to_numpy()
    assert good.any() and (bounds == "none" or good.all())
    assert (60 * theta[1] + theta[2] > 0)[good].all()
    assert (np.abs(slopes * theta)[:2][(theta[:2] < 0) & good] < 0.01).all()
    X = np.stack([obs["arm"] == "a", obs["arm"] == "b"] if "0" in formula else [obs["arm"] != "", obs["arm"] == "b"], 1)
    for gene in np.flatnonzero(good)[np.argsort((60 * theta[1] / theta[2])[good])[:5]]:
        V = theta[0, gene] * (donor[:, None] == donor) + theta[1, gene] * (sample[:, None] == sample)
        V += theta[2, gene] * np.eye(len(obs))
        se = np.sqrt(np.diag(np.linalg.inv(X.T.astype(float) @ np.linalg.solve(V, X.astype(float)))))
        np.testing.assert_allclose(fit.se.to_numpy()[:, gene], se, rtol=1e-6)
