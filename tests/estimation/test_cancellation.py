"""Values nearly constant within donors: the right test, or a status that says why there is none."""

import dense
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import lmm_gpu
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

DONORS, CELLS = 8, 30
RATIOS = [10.0**-k for k in range(1, 10)] + [0.0]
pytestmark = pytest.mark.filterwarnings("ignore:.*ill-conditioned:UserWarning", "ignore:.*cancel:RuntimeWarning")


def cells(ratio, effects, genes=40):
    """Design with a treatment of donors, and genes with a standard deviation within donors of `ratio` of theirs."""
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(DONORS), CELLS)
    X = np.column_stack([np.ones(donor.size), donor % 2])
    Z = [dense.one_hot(donor, DONORS), dense.one_hot(np.arange(donor.size) % 6, 6)][:effects]
    Y = rng.normal(size=(DONORS, genes))[donor] + ratio * rng.normal(size=(donor.size, genes))
    return dense.Design(X, np.hstack(Z), tuple(part.shape[1] for part in Z)), Y


def fitted(ratio, effects, **options):
    design, Y = cells(ratio, effects)
    return fit_summary(cross_products(design.X, design.Z, Y, d=design.d), FitOptions(**options)), Y


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("effects", [1, 2])
@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_the_test_is_the_t_test_of_donor_means(ratio, effects, bounds, method):
    """In a balanced design exactly so (REML; ML differs by a known factor), however small the residual variance is."""
    fit, Y = fitted(ratio, effects, method=method, bounds=bounds)
    means = Y.reshape(DONORS, CELLS, -1).mean(axis=1)
    t = stats.ttest_ind(means[1::2], means[0::2]).statistic * (
        1 if method == "REML" else np.sqrt(DONORS / (DONORS - 2))
    )
    found, tested = fit.t.to_numpy()[1], fit.converged.to_numpy()
    assert set(fit.status[~tested]) <= {"ill_conditioned"}
    assert tested.all() if ratio >= 1e-5 else True
    np.testing.assert_allclose(found[tested], t[tested], rtol=2e-4)
    assert np.isnan(found[~tested]).all()
    assert np.isnan(fit.p.to_numpy()[:, ~tested]).all()
    np.testing.assert_allclose(fit.coef.to_numpy()[1], means[1::2].mean(axis=0) - means[0::2].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("effects", [1, 2])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_residual_variance_is_right_or_missing(ratio, effects):
    fit, Y = fitted(ratio, effects)
    design, _ = cells(ratio, effects)
    columns = np.column_stack([design.X, design.Z])
    within = Y - columns @ np.linalg.lstsq(columns, Y, rcond=None)[0]  # of far fewer digits lost than sums
    rss = np.square(within - columns @ np.linalg.lstsq(columns, within, rcond=None)[0]).sum(axis=0)
    s_0 = fit.estimates.theta[-1]
    given = np.isfinite(s_0)
    assert (s_0[given] > 0).all()
    expected = rss / (len(Y) - np.linalg.matrix_rank(columns))
    if effects == 1:
        np.testing.assert_allclose(s_0[given], expected[given], rtol=5e-3)


@pytest.mark.parametrize("effects", [1, 2])
def test_the_bound_of_the_rounding_error_is_neither_too_small_nor_useless(effects):
    """Against the residual sum of squares of values less their donor means, which has all its digits."""
    design, Y = cells(1e-5, effects, genes=200)
    likelihood = MixedModel.build(cross_products(design.X, design.Z, Y, d=design.d)).likelihood
    columns = np.column_stack([design.X, design.Z])
    basis = np.linalg.svd(columns, full_matrices=False)
    U = basis[0][:, basis[1] > 1e-10]
    residual = Y - U @ (U.T @ Y)
    residual -= U @ (U.T @ residual)
    error = np.abs(likelihood.rss - np.square(residual).sum(axis=0))
    assert (error < 4 * likelihood.rss_error).all()
    assert np.median(error) > 0.02 * np.median(likelihood.rss_error)


@pytest.mark.parametrize("ratio", RATIOS[:-1])
@pytest.mark.parametrize("formula", ["~ arm + (1 | donor)", "~ arm + (1 | donor) + (1 | batch)"])
def test_sums_about_group_means_keep_the_digits(ratio, formula):
    """Cells are summed about the means of donors where that matters: every gene gets its t test."""
    _, Y = cells(ratio, 1)
    donor = np.repeat(np.arange(DONORS), CELLS)
    obs = pd.DataFrame({"donor": donor, "batch": np.arange(donor.size) % 6, "arm": donor % 2}).astype(str)
    fit = lmm_gpu.fit((Y, obs), formula)
    means = Y.reshape(DONORS, CELLS, -1).mean(axis=1)
    t = stats.ttest_ind(means[1::2], means[0::2]).statistic
    assert fit.converged.all(), fit.status.value_counts().to_dict()
    np.testing.assert_allclose(fit.t.to_numpy()[1], t, rtol=2e-4)
    within = np.square(Y - means[donor]).sum(axis=0)
    if "batch" not in formula:
        np.testing.assert_allclose(
            fit.estimates.theta[-1], within / (donor.size - DONORS), rtol=1e-6 if ratio > 1e-8 else 1e-3
        )


@pytest.mark.parametrize("effects", [1, 2])
def test_a_saturated_design_has_no_residual_to_lose(effects):
    """As many random effects as residual degrees of freedom: nothing lies within, and nothing is lost."""
    rng = np.random.default_rng(4)
    n = 12
    Z = [np.eye(n), dense.one_hot(np.arange(n) % 3, 3)][:effects]
    design = dense.Design(np.ones((n, 1)), np.hstack(Z), tuple(part.shape[1] for part in Z))
    summary = cross_products(design.X, design.Z, rng.normal(size=(n, 5)), d=design.d)
    likelihood = MixedModel.build(summary).likelihood
    np.testing.assert_array_equal(likelihood.rss, 0.0)
    np.testing.assert_array_equal(likelihood.rss_error, 0.0)


def slopes(ratio, genes=20):
    """Intercepts and slopes of donors, of which `arm` and `x` explain a part; residuals of `ratio` of their size."""
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(DONORS), CELLS)
    x = np.tile(np.linspace(-1.0, 1.0, CELLS), DONORS)
    levels = rng.normal(size=(2, DONORS, genes))
    Y = levels[0][donor] + x[:, None] * levels[1][donor] + ratio * rng.normal(size=(donor.size, genes))
    return pd.DataFrame({"donor": donor.astype(str), "arm": (donor % 2).astype(str), "x": x}), Y


def donor_lines(obs, Y):
    """Intercepts of donors (DONORS, m), and residual sums of squares (m,) about their lines, to all digits."""
    intercepts, rss = [], np.zeros(Y.shape[1])
    for donor in range(DONORS):
        rows = (obs["donor"] == str(donor)).to_numpy()
        line = np.column_stack([np.ones(CELLS), obs["x"][rows]])
        coef = np.linalg.lstsq(line, Y[rows], rcond=None)[0]
        left = Y[rows] - line @ coef
        rss += np.square(left - line @ np.linalg.lstsq(line, left, rcond=None)[0]).sum(axis=0)
        intercepts.append(coef[0])
    return np.array(intercepts), rss


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("bounds", ["auto", "nonnegative"])
def test_the_test_of_random_slopes_is_the_t_test_of_the_intercepts_of_donors(ratio, bounds):
    obs, Y = slopes(ratio)
    fit = lmm_gpu.fit((Y, obs), "~ arm * x + (x | donor)", bounds=bounds, progress=False)
    intercepts, rss = donor_lines(obs, Y)
    tested, s_0 = fit.converged.to_numpy(), fit.estimates.theta[-1]
    assert set(fit.status[~tested]) <= {"ill_conditioned"}
    assert tested.all() if ratio >= 1e-5 else True
    t = stats.ttest_ind(intercepts[1::2], intercepts[0::2]).statistic
    np.testing.assert_allclose(fit.t.loc["arm[T.1]"][tested], t[tested], rtol=1e-6)
    assert (s_0[tested] > 0).all()
    np.testing.assert_allclose(s_0[tested], rss[tested] / (len(Y) - 2 * DONORS), rtol=5e-3)
    assert np.isnan(fit.p.to_numpy()[:, ~tested]).all()
    coef = intercepts[1::2].mean(axis=0) - intercepts[0::2].mean(axis=0)
    np.testing.assert_allclose(fit.coef.loc["arm[T.1]"], coef, atol=1e-6)


@pytest.mark.parametrize("effects", [1, 2])
@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
def test_elimination_by_levels_finds_the_same_remainder(ratio, effects):
    """Residual sums of squares of the two engines, and of values less their projection, within the bounds of each."""
    design, Y = cells(ratio, effects, genes=100)
    summary = cross_products(design.X, design.Z, Y, d=design.d)
    columns = np.column_stack([design.X, design.Z])
    residual = Y - columns @ np.linalg.lstsq(columns, Y, rcond=None)[0]
    rss = np.square(residual - columns @ np.linalg.lstsq(columns, residual, rcond=None)[0]).sum(axis=0)
    for model in (MixedModel.build(summary), MixedModel.by_blocks(summary).with_genes(summary)):
        error = np.abs(model.likelihood.rss - rss)
        assert (error < 4 * model.likelihood.rss_error).all()
        assert np.median(error) > 0.005 * np.median(model.likelihood.rss_error)


@pytest.mark.parametrize("ratio", [1e-2, 1e-5, 1e-8, 0.0])
def test_genes_with_weights_keep_their_digits_or_their_status(ratio):
    """Equal weights of 2: the t test of donor means, and twice the residual variance."""
    _, Y = cells(ratio, 1)
    donor = np.repeat(np.arange(DONORS), CELLS)
    obs = pd.DataFrame({"donor": donor, "arm": donor % 2}).astype(str)
    fit = lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)", weights=np.full(Y.shape, 2.0), progress=False)
    means = Y.reshape(DONORS, CELLS, -1).mean(axis=1)
    tested, s_0 = fit.converged.to_numpy(), fit.estimates.theta[-1]
    assert tested.all() if ratio >= 1e-3 else set(fit.status[~tested]) <= {"ill_conditioned"}
    t = stats.ttest_ind(means[1::2], means[0::2]).statistic
    np.testing.assert_allclose(fit.t.to_numpy()[1][tested], t[tested], rtol=1e-6)
    rss = np.square(Y - means[donor]).sum(axis=0)
    np.testing.assert_allclose(s_0[tested], 2.0 * rss[tested] / (len(Y) - DONORS), rtol=5e-3)
    assert np.isnan(fit.p.to_numpy()[:, ~tested]).all()


def test_pieces_of_genes_with_weights_give_what_all_at_once_give(monkeypatch):
    obs, Y = slopes(0.5, genes=4)
    weights = np.random.default_rng(5).uniform(0.5, 2.0, Y.shape)
    whole = lmm_gpu.fit((Y, obs), "~ arm * x + (x | donor)", weights=weights, progress=False)
    monkeypatch.setattr("lmm_gpu.estimation.grouped_forms.PIECE_BYTES", 1)
    parts = lmm_gpu.fit((Y, obs), "~ arm * x + (x | donor)", weights=weights, progress=False)
    np.testing.assert_allclose(parts.estimates.theta, whole.estimates.theta, rtol=1e-9)
    np.testing.assert_allclose(parts.estimates.se, whole.estimates.se, rtol=1e-9)
