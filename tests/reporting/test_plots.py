"""Plots show the numbers of their tables: positions, colours, labels and bands, for 10 and for 30,000 genes."""

from __future__ import annotations

import functools
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from scipy import stats

import lmm_gpu
from lmm_gpu import pl
from lmm_gpu.reporting.canvas import BLUE, DENSE, GREY, VERMILLION
from lmm_gpu.reporting.group_means import group_means, paired_means, paired_options

SIZES = [10, 30_000]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def made_table(m, seed=1, **columns):
    """Table of tests of m genes, a tenth of them with an effect, two without a test."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=m) + np.where(np.arange(m) % 10 == 3, rng.choice([-8, 8], m), 0.0)
    log_fc = 0.2 * t
    log10_p = stats.norm.logsf(np.abs(t)) / np.log(10) + np.log10(2)
    log10_p[[0, m - 1]], log_fc[m - 1] = np.nan, np.nan
    p = 10.0 ** log10_p[1:-1]
    adjusted = np.full(m, np.nan)
    adjusted[1:-1] = stats.false_discovery_control(p)
    names = np.array([f"g{i}" for i in range(m)], dtype=object)
    frame = {"variable": names, "contrast": "b - a", "log_fc": log_fc, "adj_p_value": adjusted}
    return pd.DataFrame(frame | {"log10_p_value": log10_p, "mean_expr": rng.gamma(2, size=m)} | columns)


def points(ax):
    """Offsets, colour and artist of the filled points, by label."""
    return {
        c.get_label().split(" (")[0]: (np.asarray(c.get_offsets()), to_hex(c.get_facecolor()[0]), c)
        for c in scattered(ax)
        if len(c.get_offsets()) and len(c.get_facecolor())
    }


def scattered(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection)]


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- volcano and MA -------------------------------------------------------------------------------


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("plot", [pl.volcano, pl.ma])
def test_points_have_the_positions_and_colours_of_the_table(m, plot):
    table = made_table(m)
    ax = plot(table, labels=0, min_change=0.5)
    tested = table[table["log10_p_value"].notna() & table["log_fc"].notna()]
    called = (tested["adj_p_value"] <= 0.05) & (tested["log_fc"].abs() >= 0.5)
    wanted = {
        ("not significant", GREY): tested[~called],
        ("down", BLUE): tested[called & (tested["log_fc"] < 0)],
        ("up", VERMILLION): tested[called & (tested["log_fc"] > 0)],
    }
    found = points(ax)
    for (name, colour), rows in wanted.items():
        volcano = np.column_stack([rows["log_fc"], -rows["log10_p_value"]])
        expected = volcano if plot is pl.volcano else rows[["mean_expr", "log_fc"]].to_numpy()
        if len(rows):
            np.testing.assert_array_equal(found[name][0], expected)
            assert found[name][1] == colour.lower()
        assert f"{name} ({len(rows):,})" in legend(ax)
    assert sum(map(len, wanted.values())) == m - 2 and "2 without a test" in ax.get_title("left")
    assert all(c.get_rasterized() == (m > DENSE) for *_, c in found.values())


def test_threshold_line_separates_significant_genes():
    table = made_table(400)
    cut = pl.volcano(table, labels=0).lines[0].get_ydata()[0]
    tested = table.dropna()
    np.testing.assert_array_equal(-tested["log10_p_value"] >= cut, tested["adj_p_value"] <= 0.05)
    k = (tested["adj_p_value"] <= 0.05).sum()
    assert cut == pytest.approx(-np.log10(0.05 * k / len(tested)))


def test_no_threshold_line_without_significant_genes():
    ax = pl.volcano(made_table(20, adj_p_value=np.full(20, 0.9)))
    assert not ax.lines and not texts(ax)


def test_p_values_below_the_smallest_float_are_plotted():
    table = pd.DataFrame({"variable": ["a", "b"], "contrast": "x", "log_fc": [1.0, -2.0], "adj_p_value": [0.0, 0.5]})
    ax = pl.volcano(table.assign(log10_p_value=[-769.86, -0.3], p_value=[0.0, 0.5]))
    assert points(ax)["up"][0].tolist() == [[1.0, 769.86]] and texts(ax) == ["a"]


@pytest.mark.parametrize("plot", [pl.volcano, pl.ma])
def test_labels_are_the_significant_genes_of_smallest_p_value(plot):
    table = made_table(3000)
    significant = table[table["adj_p_value"] <= 0.05].sort_values("log10_p_value")
    assert set(texts(plot(table, labels=7))) == set(significant["variable"][:7])
    assert set(texts(plot(table, labels=["g1", "g5"]))) == {"g1", "g5"}
    assert texts(plot(table, labels="g5")) == ["g5"]
    assert texts(plot(table, labels=0)) == []
    assert not texts(plot(table, labels=["g0"]))  # not tested: no position
    with pytest.raises(ValueError, match=r"labels=nobody: the table has no such gene"):
        plot(table, labels=["g1", "nobody"])


def test_no_more_labels_than_significant_features():
    table = made_table(10)
    assert len(texts(pl.volcano(table))) == (table["adj_p_value"] <= 0.05).sum() > 0


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("plot", [pl.volcano, pl.ma])
def test_labels_do_not_overlap(m, plot):
    ax = plot(made_table(m))
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    hidden = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.padded(-2).overlaps(b.padded(-2))]
    assert boxes and not hidden


def test_ma_requires_mean_expression():
    with pytest.raises(ValueError, match="mean expression is not available"):
        pl.ma(made_table(10, mean_expr=np.nan))


@pytest.mark.parametrize("plot", [pl.volcano, pl.pvalue_hist, pl.qq])
def test_title_and_legend_stay_within_the_figure(plot):
    long = "cell_type[T.CD14+ Monocytes]:condition[T.stim] - cell_type[T.B cells]:condition[T.stim]"
    ax = plot(made_table(30_000, contrast=long))
    inside(ax)
    assert ax.get_title("left").replace("\n", " ") == f"{long} (2 without a test)"


def inside(ax):
    ax.figure.canvas.draw()
    figure, legend = ax.figure.bbox.padded(1), ax.get_legend().get_window_extent()
    title = ax._left_title.get_window_extent()
    assert legend.x0 >= figure.x0 and title.x1 <= figure.x1 and title.y1 <= figure.y1 and legend.x1 <= figure.x1
    assert ax.get_window_extent().y1 <= legend.y0 + 1 and legend.y1 <= title.y0 + 1
    assert ax.get_window_extent().width > 0.7 * figure.width  # nor do they shrink the axes


# --- p-values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", SIZES)
def test_histogram_counts_the_p_values(m):
    table = made_table(m)
    ax = pl.pvalue_hist(table)
    bars = ax.containers[0]
    edges = np.linspace(0, 1, len(bars) + 1)
    p = 10 ** table["log10_p_value"].dropna()
    np.testing.assert_array_equal([bar.get_height() for bar in bars], np.histogram(p, edges)[0])
    assert len(bars) == {10: 5, 30_000: 40}[m]


def test_histogram_band_covers_95_percent():
    m, bins = 5000, 20
    ax = pl.pvalue_hist(made_table(m), bins=bins)
    low, middle, high = sorted(line.get_ydata()[0] for line in ax.lines)
    null = stats.binom(m - 2, 1 / bins)
    assert middle == pytest.approx((m - 2) / bins)
    assert null.cdf(low - 1) < 0.025 <= null.cdf(low) and null.sf(high) <= 0.025 < null.sf(high - 1)


@pytest.mark.parametrize("m", SIZES)
def test_qq_plots_observed_against_expected(m):
    table = made_table(m)
    observed = np.sort(-table["log10_p_value"].dropna())[::-1]
    t = m - 2
    found = points(pl.qq(table))
    (shown, *_, artist) = found[next(name for name in found if "lambda" in name)]
    rank = np.rint((t + 1) * 10.0 ** -shown[:, 0]).astype(int)
    np.testing.assert_allclose(shown[:, 1], observed[rank - 1])
    np.testing.assert_array_equal(rank[: min(t, 100)], np.arange(1, min(t, 100) + 1))  # the smallest are all kept
    assert rank[-1] == t and len(rank) == t if m == 10 else len(rank) < 2000
    assert np.abs(np.diff(shown[100:, 0])).max(initial=0) < 0.01  # thinning leaves no gap
    assert not artist.get_rasterized()


@pytest.mark.parametrize("m", SIZES)
def test_qq_band_is_made_of_beta_quantiles(m):
    ax = pl.qq(made_table(m))
    band = ax.collections[0].get_paths()[0].vertices
    rank = np.rint((m - 1) * 10.0 ** -band[:, 0]).astype(int)  # m - 2 features have a test
    assert rank.min() == 1 and rank.max() == m - 2
    limits = [-np.log10(stats.beta.ppf(tail, rank, m - 1 - rank)) for tail in (0.025, 0.975)]
    off = np.minimum(*[np.abs(band[:, 1] - limit) for limit in limits])
    np.testing.assert_allclose(off, 0, atol=1e-8)
    for limit in limits:
        assert (np.abs(band[:, 1] - limit) < 1e-8).sum() >= min(m - 2, 100)


def test_lambda_is_the_ratio_of_median_chi_squared():
    p = (np.arange(999) + 0.5) / 999
    table = pd.DataFrame({"contrast": "x", "log10_p_value": np.log10(p)})
    assert "$\\lambda$ = 1.00" in legend(pl.qq(table))
    chi2 = 1.7 * stats.chi2(1).isf(p)
    inflated = table.assign(log10_p_value=stats.chi2(1).logsf(chi2) / np.log(10))
    assert "$\\lambda$ = 1.70" in legend(pl.qq(inflated))


@pytest.mark.parametrize("plot", [pl.volcano, pl.ma, pl.pvalue_hist, pl.qq])
def test_plots_refuse_tables_without_p_values(plot):
    with pytest.raises(ValueError, match="b - a: no gene has a p-value, there is nothing to plot"):
        plot(made_table(20).assign(log10_p_value=np.nan))
    assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", [pl.volcano, pl.ma])
def test_long_labels_are_shortened(plot):
    table = made_table(10)
    table["variable"] = [f"ENSG{i:011d}.12-ANTISENSE-OF-TSPAN6" for i in range(10)]
    assert texts(plot(table)) == ["ENSG000000000…NSE-OF-TSPAN6"]


def test_count_axes_have_integer_ticks():
    ticks = pl.pvalue_hist(made_table(10)).get_yticks()
    assert all(float(tick).is_integer() for tick in ticks)


# --- which contrast -------------------------------------------------------------------------------


@pytest.mark.parametrize("plot", [pl.volcano, pl.ma, pl.pvalue_hist, pl.qq])
def test_contrast_selects_one_of_several(plot):
    one, two = made_table(20), made_table(20, seed=2, contrast="c - a")
    both = pd.concat([one, two], ignore_index=True)
    same = [np.asarray(c.get_offsets()).tolist() for c in plot(two).collections]
    assert [np.asarray(c.get_offsets()).tolist() for c in plot(both, "c - a").collections] == same
    with pytest.raises(ValueError, match=r"2 contrasts; choose one with contrast=: b - a, c - a"):
        plot(both)
    with pytest.raises(ValueError, match=r"contrast='d'; choose one"):
        plot(both, "d")
    assert plot(pd.concat([one.assign(contrast="Intercept"), two])).get_title("left").startswith("c - a")


def test_inputs_that_are_no_table_are_refused(fit):
    with pytest.raises(ValueError, match=r"got list; expected a fit, or a table"):
        pl.qq([1.0])
    with pytest.raises(ValueError, match="the table has no column log10_p_value"):
        pl.qq(made_table(10).drop(columns="log10_p_value"))
    joint = fit.test(joint=True)
    with pytest.raises(ValueError, match=r"no column log_fc: F tests have no direction"):
        pl.volcano(joint)
    assert pl.qq(joint) and pl.pvalue_hist(joint)


def test_a_fit_is_tested_and_drawn_on_given_axes(fit):
    _, ax = plt.subplots()
    assert pl.volcano(fit, "arm[T.stim]", ax=ax, labels=0) is ax
    table = fit.test("arm[T.stim]").dropna(subset="log_fc")
    drawn = np.concatenate([offsets for offsets, *_ in points(ax).values()])
    np.testing.assert_array_equal(np.sort(drawn[:, 0]), np.sort(table["log_fc"]))


# --- of a fit -------------------------------------------------------------------------------------

N, J, M = 160, 8, 6
RNG = np.random.default_rng(4)
DONOR = RNG.choice(J, N, p=np.arange(1, J + 1) / 36)
BATCH = RNG.integers(0, 3, N)
DEPTH = RNG.normal(size=N)
Y = RNG.normal(size=(N, M)) + (RNG.normal(size=(J, M)) * np.linspace(0.1, 2, M))[DONOR] + 3
Y[:, 2] = 0
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "batch": [f"b{b}" for b in BATCH],
        "arm": np.where(DONOR < 4, "ctrl", "stim"),
        "depth": DEPTH,
    }
)
FORMULA = "~ arm + depth + (1 | donor) + (1 | batch)"


@pytest.fixture(scope="module")
def fit():
    with pytest.warns(UserWarning, match="no_variance|no variance|constant|zero"):
        return lmm_gpu.fit((Y, OBS), FORMULA, progress=False)


def test_variance_bars_are_sorted_shares(fit):
    ax = pl.variance(fit)
    names = [text.get_text() for text in ax.get_xticklabels()]
    shares = fit.variance_fractions()[names]
    assert len(names) == M - 1 and shares.iloc[-1].is_monotonic_increasing
    for component, bars in zip(shares.index, ax.containers, strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in bars], shares.loc[component])
        assert bars.get_label() == component
    ends = np.array([[bar.get_y(), bar.get_y() + bar.get_height()] for bars in ax.containers for bar in bars])
    np.testing.assert_allclose(ends.max(), 1 - min(0, shares.where(shares < 0, 0).sum().min()))


def many(fit, m, seed=0):
    """Return the fit with genes resampled to m."""
    from dataclasses import replace

    genes = np.random.default_rng(seed).choice([0, 1, 3, 4, 5], m)
    estimates = {name: value[..., genes] for name, value in vars(fit.estimates).items()}
    summary = replace(
        fit.summary,
        features=tuple(f"g{i}" for i in range(m)),
        **{name: getattr(fit.summary, name)[..., genes] for name in ("XY", "ZY", "Ynorm", "Ysum")},
    )
    return replace(fit, estimates=replace(fit.estimates, **estimates), summary=summary)


def test_violins_of_many_genes_mark_the_medians(fit):
    crowd = many(fit, 30_000)
    ax = pl.variance(crowd)
    medians = [c.get_offsets()[0][1] for c in scattered(ax)]
    np.testing.assert_allclose(medians, crowd.variance_fractions().median(axis=1))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["donor", "batch", "residual"]
    layers = pl.variance(crowd, kind="bars").collections  # one area per component, as so many bars have no room
    assert len(layers) == 3 and all(layer.get_rasterized() for layer in layers)


def test_equal_shares_are_drawn_without_density(fit):
    alone = many(fit, 1)
    assert len(pl.variance(alone, kind="violin").collections) == 2 * 3  # quartiles and median of three components


def test_unknown_kind_is_refused(fit):
    with pytest.raises(ValueError, match="kind='pie' is not known; use 'bars' or 'violin'"):
        pl.variance(fit, kind="pie")


@pytest.mark.parametrize("m", [None, 30_000])
def test_convergence_counts_every_gene(fit, m):
    shown = fit if m is None else many(fit, m)
    ax = pl.convergence(shown)
    assert sorted(legend(ax)) == sorted(f"{word} ({n:,})" for word, n in shown.status.value_counts().items())
    counted = {}
    for bar in ax.patches:
        if np.isfinite(bar.get_x()):
            at = round(bar.get_x() + bar.get_width() / 2)
            counted[at] = counted.get(at, 0) + bar.get_height()
    assert counted == shown.niter.dropna().astype(int).value_counts().to_dict()
    assert ax.get_yscale() == ("linear" if m is None else "log")


# --- one gene by donor ----------------------------------------------------------------------------


@functools.cache
def nonnegative_fit():
    """Fit with nonnegative variances: what plots of a gene with a negative one show."""
    kept = [0, 1, 3, 4, 5]
    names = [f"Gene{i + 1}" for i in kept]
    return lmm_gpu.fit((Y[:, kept], OBS), FORMULA, features=names, bounds="nonnegative", progress=False)


def dense_group_means(fit, feature, level=0.95):
    """n x n: fitted values are y - s_0 P y, and their error has the covariance s_0 I - s_0^2 P."""
    i = fit.summary.features.index(feature)
    X = np.column_stack([np.ones(N), DONOR >= 4, DEPTH])
    s_donor, s_batch, s_0 = nonnegative_fit().theta[feature]
    same = [np.equal.outer(groups, groups) for groups in (DONOR, BATCH)]
    Vinv = np.linalg.inv(s_donor * same[0] + s_batch * same[1] + s_0 * np.eye(N))
    P = Vinv - Vinv @ X @ np.linalg.solve(X.T @ Vinv @ X, X.T @ Vinv)
    W = np.eye(J)[DONOR].T / np.bincount(DONOR)[:, None]
    middle = W @ (Y[:, i] - s_0 * P @ Y[:, i])
    se = np.sqrt(np.diagonal(W @ (s_0 * np.eye(N) - s_0**2 * P) @ W.T))
    z = stats.norm.isf((1 - level) / 2)
    return W @ Y[:, i], middle, middle - z * se, middle + z * se


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("feature", ["Gene1", "Gene4", "Gene6"])
def test_fitted_means_and_intervals_equal_dense_computation(fit, feature, level):
    found = group_means(fit, feature, level=level).sort_index()
    for name, wanted in zip(
        ("mean", "fitted", "ci_low", "ci_high"), dense_group_means(fit, feature, level), strict=True
    ):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["cells"], np.bincount(DONOR))
    np.testing.assert_array_equal(found["by"], np.arange(J) >= 4)


def test_fitted_means_with_correlated_slopes_equal_dense_computation():
    """Standard errors of K beta + L u by Henderson's mixed model equations."""
    rng = np.random.default_rng(4)
    donor, x = np.repeat(np.arange(8), 20), rng.normal(size=160)
    y = rng.normal(size=(160, 3)) + rng.normal(size=(8, 3))[donor] + rng.normal(size=(8, 3))[donor] * x[:, None]
    obs = pd.DataFrame({"donor": [f"D{i}" for i in donor], "x": x})
    slopes = lmm_gpu.fit((y, obs), "~ x + (x | donor)", progress=False)
    found = group_means(slopes, "Gene2").sort_index()
    one = np.eye(8)[donor]
    X, Z = np.column_stack([np.ones(160), x]), np.hstack([one, one * x[:, None]])
    v0, v1, cov, s0 = slopes.theta["Gene2"]
    penalty = np.zeros((18, 18))
    penalty[2:, 2:] = np.kron(np.linalg.inv([[v0, cov], [cov, v1]]), np.eye(8)) * s0
    W = np.hstack([X, Z])
    inverse = np.linalg.inv(W.T @ W + penalty)
    rows = one.T @ W / 20
    np.testing.assert_allclose(found["fitted"], rows @ inverse @ W.T @ y[:, 1], rtol=1e-5)
    half = stats.norm.isf(0.025) * np.sqrt(s0 * np.einsum("gi,ij,gj->g", rows, inverse, rows))
    np.testing.assert_allclose(found["ci_high"] - found["fitted"], half, rtol=1e-5)
    pl.gene(slopes, "Gene2")


def test_means_of_a_fit_with_weights_per_gene_are_refused():
    rng = np.random.default_rng(5)
    obs = pd.DataFrame({"donor": np.repeat(list("uvwxyz"), 3), "time": ["a", "b", "c"] * 6})
    weighted = lmm_gpu.fit(
        (rng.normal(size=(18, 4)), obs), "~ time + (1 | donor)", weights=rng.uniform(1, 2, (18, 4)), progress=False
    )
    with pytest.raises(ValueError, match=r"weights per gene, such as voom's: plot a fit .* without weights"):
        pl.gene(weighted, "Gene1")


def test_gene_plot_shows_group_means(fit):
    means = group_means(fit, "Gene6")
    assert means["by"].is_monotonic_increasing
    assert means["fitted"][:4].is_monotonic_increasing and means["fitted"][4:].is_monotonic_increasing
    ax = pl.gene(fit, "Gene6")
    inside(ax)
    assert [text.get_text() for text in ax.get_xticklabels()] == means.index.tolist()
    found = points(ax)
    fitted = np.concatenate([found[name][0] for name in ("arm = ctrl", "arm = stim")])
    np.testing.assert_allclose(fitted, np.column_stack([np.arange(J), means["fitted"]]))
    assert found["arm = stim"][1] == VERMILLION.lower() and found["arm = ctrl"][1] == BLUE.lower()
    bars = np.concatenate([c.get_segments() for c in ax.collections if hasattr(c, "get_segments")])
    np.testing.assert_allclose(np.sort(bars[:, :, 1], axis=1), means[["ci_low", "ci_high"]])
    means_drawn = next(c for c in ax.collections if c.get_label().startswith("mean of"))
    np.testing.assert_allclose(np.asarray(means_drawn.get_offsets())[:, 1], means["mean"])
    assert np.array_equal(np.argsort(means_drawn.get_sizes(), kind="stable"), np.argsort(means["cells"], kind="stable"))


@pytest.mark.parametrize("length", [4, 80])
@pytest.mark.parametrize("plot", [pl.variance, lambda fit: pl.gene(fit, fit.summary.features[5])])
def test_long_tick_labels_do_not_shrink_the_axes(fit, plot, length):
    from dataclasses import replace

    names = {
        "features": tuple(f"{'x' * length}{i}" for i in range(M)),
        "random_names": tuple(f"donor[{'y' * length}{i}]" for i in range(len(fit.summary.random_names))),
    }
    ax = plot(replace(fit, summary=replace(fit.summary, **names)))
    ax.figure.canvas.draw()
    assert ax.get_window_extent().height > 2.0 * ax.figure.dpi  # inches
    assert max(len(text.get_text()) for text in ax.get_xticklabels()) <= 40


def test_cells_are_drawn_at_their_group(fit):
    ax = pl.gene(fit, "Gene6", cells=pd.Series(Y[:, 5], OBS["donor"]))
    drawn = np.asarray(ax.collections[0].get_offsets())
    order = group_means(fit, "Gene6").index
    np.testing.assert_array_equal(np.rint(drawn[:, 0]), [order.get_loc(name) for name in OBS["donor"]])
    np.testing.assert_array_equal(drawn[:, 1], Y[:, 5])
    with pytest.raises(ValueError, match="cells is indexed by D99: no group of donor"):
        pl.gene(fit, "Gene6", cells=pd.Series([1.0], ["D99"]))


def test_component_and_by_are_checked(fit):
    found = group_means(fit, "Gene6", component="batch")
    assert sorted(found.index) == ["b0", "b1", "b2"] and found.attrs["by"] == ""
    np.testing.assert_allclose(found.sort_index()["mean"], [Y[b == BATCH, 5].mean() for b in range(3)])
    assert legend(pl.gene(fit, "Gene6", component="batch"))[0] == "fitted mean, 95 % interval"
    for wrong, message in [
        ({"component": "cell"}, r"component='cell': expected a random effect that is a grouping: donor, batch"),
        ({"by": "depth"}, r"by='depth': expected a fixed effect that is 0 or 1 .* of donor \(arm\[T.stim\]"),
        ({"by": "age"}, "by='age'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pl.gene(fit, "Gene6", **wrong)
    with pytest.raises(ValueError, match="'Gene9' is not a gene of the fit; it has Gene1, Gene2"):
        pl.gene(fit, "Gene9")
    with pytest.raises(ValueError, match="'Genne1' is not a gene of the fit; did you mean Gene1"):
        pl.gene(fit, "Genne1")


def test_gene_without_estimate_shows_its_means(fit):
    found = group_means(fit, "Gene3")
    assert (found["mean"] == 0).all() and found["fitted"].isna().all()
    assert pl.gene(fit, "Gene3")


# --- files and what is not installed --------------------------------------------------------------


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_saved_files_are_reproducible(tmp_path, suffix, start):
    table = made_table(3000)
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        pl.save(pl.volcano(table, labels=0), path, dpi=50)
    one, two = (path.read_bytes() for path in paths)
    assert one.startswith(start) and one == two
    if suffix == "svg":
        assert b"not significant (" in one and one.count(b"<image") >= 1  # text stays text, dense points are a bitmap
        assert len(one) < 100_000


def test_failed_save_keeps_the_old_file(tmp_path):
    ax = pl.qq(made_table(10))
    with pytest.raises(ValueError, match=r"the file name must end in \.png, \.svg, \.pdf"):
        pl.save(ax, tmp_path / "qq.gif")
    (tmp_path / "qq.png").write_bytes(b"old")
    ax.set_title("$\\broken$")
    with pytest.raises(ValueError, match="broken"):
        pl.save(ax, tmp_path / "qq.png")
    assert [path.name for path in tmp_path.iterdir()] == ["qq.png"] and (tmp_path / "qq.png").read_bytes() == b"old"


@pytest.mark.parametrize("module", ["matplotlib", "adjustText"])
def test_missing_packages_are_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot" if module == "matplotlib" else module, None)
    with pytest.raises(ValueError, match=rf'^plotting needs the package {module}: pip install "lmm-gpu\[plots\]"$'):
        pl.volcano(made_table(10))


def test_matplotlib_is_imported_lazily():
    code = "import lmm_gpu, sys; sys.exit('matplotlib' in sys.modules or 'adjustText' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- variance partition and paired means ----------------------------------------------------------


def test_variance_partition_violins_mark_the_medians(fit):
    ax = pl.variance_partition(fit)
    shares = fit.variance_partition().dropna()
    names = [text.get_text() for text in ax.get_xticklabels()]
    medians = [c.get_offsets()[0][1] for c in scattered(ax)]
    np.testing.assert_allclose(medians, shares[names].median())
    assert names[-1] == "residual" and set(names) == set(shares.columns)
    assert shares[names[:-1]].median().is_monotonic_decreasing


def test_variance_bars_are_the_fractions_of_the_given_genes(fit):
    ax = pl.variance_bars(fit, ["Gene5", "Gene1"])
    wanted = fit.variance_partition().loc[["Gene5", "Gene1"]]
    for bars in ax.containers:
        np.testing.assert_allclose([bar.get_height() for bar in bars], wanted[bars.get_label()])
    with pytest.raises(ValueError, match="genes=Gene9: expected names of genes"):
        pl.variance_bars(fit, ["Gene9"])
    with pytest.raises(ValueError, match="genes=Gene3: no estimate"):
        pl.variance_bars(fit, ["Gene3"])


PAIRED_OBS = OBS.assign(condition=np.where(RNG.random(N) < 0.5, "ctrl", "stim"), cell_type=RNG.choice(["B", "T"], N))


@pytest.fixture(scope="module")
def paired():
    formula = "~ condition * cell_type + (1 | donor) + (1 | donor:condition:cell_type)"
    return lmm_gpu.fit((Y[:, 3:], PAIRED_OBS), formula, features=["a", "b", "c"], progress=False)


def test_paired_means_equal_those_of_pandas(paired):
    found = paired_means(paired, "c", "condition", "cell_type").set_index(["unit", "by", "facet"]).sort_index()
    keys = [PAIRED_OBS["donor"], PAIRED_OBS["condition"], PAIRED_OBS["cell_type"]]
    groups = pd.Series(Y[:, 5]).groupby([key.to_numpy() for key in keys])
    wanted = groups.mean()
    np.testing.assert_allclose(found["mean"], wanted.loc[found.index])
    np.testing.assert_array_equal(found["cells"], groups.size().loc[found.index])
    half = stats.norm.isf(0.025) * np.sqrt(paired.theta.loc["var0", "c"] / found["cells"])
    np.testing.assert_allclose(found["ci_high"] - found["mean"], half)
    assert len(found) == len(wanted)


def test_paired_plot_joins_donors_within_facets(paired):
    ax = pl.gene(paired, "c", by="condition", facet="cell_type")
    means = paired_means(paired, "c", "condition", "cell_type")
    lines = [line for line in ax.lines if len(set(line.get_xdata())) > 1]
    drawn = sorted(sorted(line.get_ydata()) for line in lines)
    wanted = [sorted(one["mean"]) for _, one in means.groupby(["unit", "facet"]) if len(one) > 1]
    np.testing.assert_allclose(drawn, sorted(wanted))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["ctrl", "stim"] * 2
    assert set(texts(ax)) == {"B", "T"} and ax.get_xlabel() == "condition"


def test_factors_between_donors_need_no_separate_random_effect(fit):
    means = paired_means(fit, "Gene6", "arm")
    assert means.attrs["component"] == "donor" and set(means["by"]) == {"ctrl", "stim"}
    np.testing.assert_allclose(means.set_index("unit")["mean"]["D5"], Y[DONOR == 5, 5].mean())


def test_means_that_the_sums_do_not_contain_are_refused(fit, paired):
    with pytest.raises(ValueError, match=r"do not contain means by state: .* add \(1 \| donor:state\) to the formula"):
        paired_means(fit, "Gene6", "state")
    with pytest.raises(ValueError, match="facet= needs by="):
        pl.gene(paired, "c", facet="cell_type")
    with pytest.raises(ValueError, match="did you mean c"):
        pl.gene(paired, "C")


def test_contrast_chooses_the_paired_plot(fit, paired):
    names = list(paired.summary.fixed_names)
    one = paired_options(paired, np.array([name == "condition[T.stim]" for name in names], dtype=float))
    assert one == {"by": "condition", "facet": "cell_type"}
    both = paired_options(paired, np.array([":" in name for name in names], dtype=float))
    assert set(both) == {"by", "facet"} and set(both.values()) == {"condition", "cell_type"}
    assert paired_options(fit, np.array([0.0, 1.0, 0.0])) == {}  # donors are not paired by arm


def test_tick_labels_do_not_overlap(paired):
    ax = pl.gene(paired, "c", by="condition", facet="cell_type")
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_voom_plot_shows_the_trend():
    import anndata

    obs = pd.DataFrame({"arm": list("ab") * 6}, index=[f"s{i}" for i in range(12)])
    counts = RNG.poisson(200.0, size=(12, 40)).astype(float)
    made = lmm_gpu.voom(anndata.AnnData(counts, obs=obs), "~ arm")
    ax = pl.voom(made)
    np.testing.assert_allclose(
        scattered(ax)[0].get_offsets(), np.column_stack([made.uns["voom"]["x"], made.uns["voom"]["y"]])
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), made.uns["voom"]["line_y"])
    with pytest.raises(ValueError, match=r"no uns\['voom'\]: pass what lmm_gpu.voom"):
        pl.voom(anndata.AnnData(counts))
