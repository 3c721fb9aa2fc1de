"""What a fit shows: labels, keys, shapes, and numbers that belong together."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lmm_gpu import LMMFit, fit, lmm, sslmm
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary

RNG = np.random.default_rng(11)
N, M = 72, 7
OBS = pd.DataFrame(
    {
        "donor": np.repeat(list("abcdef"), 12),
        "arm": np.repeat(["ctrl", "stim"], 36),
        "cls": np.tile(list("BT"), 36),
        "plate": np.tile(np.repeat(["p", "q", "r"], 4), 6),
    }
)
GENES = [f"ENSG{i}" for i in range(M)]
DONORS = pd.get_dummies(OBS["donor"]).to_numpy(float)
Y = pd.DataFrame(3 + DONORS @ RNG.normal(size=(6, M)) + RNG.normal(size=(N, M)), columns=GENES)
Y[GENES[3]] = 0.0  # a gene without variance
FORMULA = "~ arm + cls + (1 | donor) + (1 | plate)"
FIXED, RANDOM = ["Intercept", "arm[T.stim]", "cls[T.T]"], ["donor", "plate"]
COMPONENTS = ["var1", "var2", "var0"]

pytestmark = pytest.mark.filterwarnings("ignore:.* (do not vary once X is taken out|no random effect lets):UserWarning")


@pytest.fixture(scope="module")
def result() -> LMMFit:
    return fit((Y, OBS), FORMULA, progress=False)


@pytest.fixture(scope="module")
def r_fit() -> LMMFit:
    """The same fit from the R-style API, with every output."""
    Z = pd.get_dummies(OBS[["donor", "plate"]]).to_numpy(float)
    X = np.column_stack([np.ones(N), OBS["arm"] == "stim", OBS["cls"] == "T"])
    return lmm(sslmm(X, Y.T, Z), d=[6, 3], output_FIM=True, output_RE=True, output_SS=True)


# --- labels and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coef", "se", "t", "p", "df"])
def test_tables_by_coefficient(result, name):
    table = getattr(result, name)
    assert table.index.tolist() == FIXED and table.columns.tolist() == GENES
    assert table.drop(columns=GENES[3]).notna().all(axis=None)


@pytest.mark.parametrize("name", ["theta", "se_theta", "dlogL"])
def test_tables_by_component(result, name):
    table = getattr(result, name)
    assert table.index.tolist() == COMPONENTS and table.columns.tolist() == GENES


@pytest.mark.parametrize("name", ["logLik", "niter", "status", "converged"])
def test_series_by_gene(result, name):
    assert getattr(result, name).index.tolist() == GENES


def test_arrays_and_blups(result):
    assert result.cov.shape == result.FIM_beta.shape == (3, 3, M)
    assert result.FIM_theta.shape == (3, 3, M)
    blups = result.RE
    assert blups.columns.tolist() == GENES
    assert blups.index.tolist() == [*(f"donor[{level}]" for level in "abcdef"), *(f"plate[{level}]" for level in "pqr")]


def test_a_gene_without_variance_is_nan_everywhere(result):
    gene = GENES[3]
    assert result.status[gene] == "no_variance" and not result.converged[gene]
    tables = (result.coef, result.se, result.t, result.p, result.df, result.theta, result.se_theta, result.dlogL)
    assert all(table[gene].isna().all() for table in (*tables, result.RE))
    assert np.isnan(result.logLik[gene]) and np.isnan(result.niter[gene])
    assert all(np.isnan(array[..., 3]).all() for array in (result.cov, result.FIM_beta, result.FIM_theta))
    row = result.test("arm[T.stim]").set_index("variable").loc[gene]
    numbers = ["log_fc", "se", "statistic", "df", "p_value", "adj_p_value", "log10_p_value", "ci_low", "ci_high"]
    assert row[numbers].isna().all() and row["mean_expr"] == 0 and row["status"] == "no_variance"


# --- a mapping ------------------------------------------------------------------------------------


def test_every_attribute_is_a_key(r_fit):
    names = {
        *("method", "epsilon", "dlogL", "logLik", "niter", "coef", "se", "t", "p", "df", "cov", "theta", "se_theta"),
        *("FIM_beta", "FIM_theta", "RE", "summary_data", "status", "converged"),
    }
    assert set(r_fit.keys()) == set(r_fit) == set(dict(r_fit)) == names
    for name in names:
        assert name in r_fit
        value, attribute = r_fit[name], getattr(r_fit, name)
        np.testing.assert_array_equal(np.asarray(value), np.asarray(attribute))
    assert r_fit["method"] == "REML" and r_fit["epsilon"] == 1e-5


def test_unknown_keys_raise_an_error_with_the_known_ones(r_fit):
    assert "estimates" not in r_fit
    with pytest.raises(KeyError, match="'beta' is not part of a fit; known: method, epsilon"):
        r_fit["beta"]


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("output_cov", ["cov"]),
        ("output_FIM", ["FIM_beta", "FIM_theta"]),
        ("output_RE", ["RE"]),
        ("output_SS", ["summary_data"]),
    ],
)
def test_none_unless_asked_for(r_fit, option, names):
    options = dict.fromkeys(("output_cov", "output_FIM", "output_RE", "output_SS"), False)
    without, only = lmm(r_fit.summary, **options), lmm(r_fit.summary, **{**options, option: True})
    for name in ("cov", "FIM_beta", "FIM_theta", "RE", "summary_data"):
        assert without[name] is None
        assert (only[name] is not None) == (name in names)


def test_the_outputs_of_r_by_default(r_fit):
    default = lmm(r_fit.summary)
    assert default.cov is not None
    assert default.FIM_beta is None and default.FIM_theta is None and default.RE is None
    assert default.summary_data is None
    assert r_fit.summary_data is r_fit.summary


# --- numbers that belong together -----------------------------------------------------------------


def test_t_p_and_df_of_r(r_fit):
    assert r_fit.df == N - 3
    np.testing.assert_array_equal(r_fit.t, r_fit.coef / r_fit.se)
    np.testing.assert_allclose(r_fit.p, 2 * scipy.stats.t.sf(np.abs(r_fit.t), N - 3), rtol=1e-12)


def test_t_p_and_df_of_python(result):
    table = result.test(df="satterthwaite")
    assert table["contrast"].unique().tolist() == FIXED
    for name, column in {"coef": "log_fc", "se": "se", "t": "statistic", "df": "df", "p": "p_value"}.items():
        np.testing.assert_allclose(getattr(result, name).to_numpy().ravel(), table[column], rtol=1e-12)
    known = table["df"].notna()
    assert (table["df"][known] < N - 3).all()
    np.testing.assert_allclose(
        table["p_value"], 2 * scipy.stats.t.sf(np.abs(table["statistic"]), table["df"]), rtol=1e-12
    )


def test_both_apis_give_the_same_estimates(result, r_fit):
    for name in ("coef", "se", "theta", "se_theta", "logLik"):
        np.testing.assert_allclose(result[name], r_fit[name], rtol=1e-9)


def test_standard_errors_are_the_roots_of_the_covariance(r_fit):
    np.testing.assert_allclose(np.einsum("iim->im", r_fit.cov), r_fit.se.to_numpy() ** 2, rtol=1e-10)
    identity = np.einsum("ijm,jkm->ikm", r_fit.cov, r_fit.FIM_beta)
    np.testing.assert_allclose(np.delete(identity, 3, axis=2), np.eye(3)[:, :, None] * np.ones(M - 1), atol=1e-9)


def test_standard_errors_of_components_come_from_their_information(r_fit):
    for gene in np.flatnonzero(r_fit.converged):
        spread = np.linalg.inv(r_fit.FIM_theta[:, :, gene])
        np.testing.assert_allclose(r_fit.se_theta.iloc[:, gene], np.sqrt(np.diag(spread)), rtol=1e-9)


def test_a_sum_of_coefficients(result):
    table = result.test({"sum": "Intercept + arm[T.stim]/2"}, df="satterthwaite").set_index("variable")
    weights = np.array([1, 0.5, 0])
    np.testing.assert_allclose(table["log_fc"], weights @ result.coef.to_numpy(), rtol=1e-12)
    np.testing.assert_allclose(table["se"] ** 2, np.einsum("p,pqm,q->m", weights, result.cov, weights), rtol=1e-10)


# --- test() ---------------------------------------------------------------------------------------


def test_columns_of_the_table(result):
    assert list(result.test("arm[T.stim]").columns) == [
        *("variable", "contrast", "log_fc", "se", "statistic", "df", "p_value", "adj_p_value", "log10_p_value"),
        *("ci_low", "ci_high", "mean_expr", "status", "donor_variance", "plate_variance", "residual_variance"),
    ]


def test_rows_of_the_table(result):
    table = result.test(["arm[T.stim]", "cls[T.T] - arm[T.stim]"])
    assert table["variable"].tolist() == GENES * 2
    assert table["contrast"].tolist() == ["arm[T.stim]"] * M + ["cls[T.T] - arm[T.stim]"] * M
    np.testing.assert_array_equal(table["status"], result.status.tolist() * 2)
    for name, row in zip(["donor", "plate", "residual"], result.theta.to_numpy(), strict=True):
        np.testing.assert_array_equal(table[f"{name}_variance"], np.tile(row, 2))


@pytest.mark.parametrize(
    "contrast",
    [
        "arm[T.stim] - cls[T.T]",
        {"arm[T.stim]": 1, "cls[T.T]": -1},
        np.array([0.0, 1, -1]),
        np.array([[0.0, 1, -1]]),
        {"difference": "arm[T.stim] - cls[T.T]"},
        pd.DataFrame({"d": [1.0, -1, 0]}, index=["arm[T.stim]", "cls[T.T]", "Intercept"]),
        pd.Series([1.0, -1, 0], index=["arm[T.stim]", "cls[T.T]", "Intercept"]),
    ],
)
def test_contrasts_may_be_written_in_many_ways(result, contrast):
    coef = result.coef
    np.testing.assert_allclose(
        result.test(contrast)["log_fc"], coef.loc["arm[T.stim]"] - coef.loc["cls[T.T]"], rtol=1e-12
    )


def test_mean_expression_is_the_mean_of_the_fitted_values():
    counts = RNG.poisson(4, size=(N, 3))
    depth = counts.sum(axis=1)
    for transform, values in {
        None: np.log2(1 + counts),  # recognised as counts
        "log1p": np.log(1 + counts),
        "normalize": np.log(1 + counts / (depth / depth.mean())[:, None]),
    }.items():
        table = fit((counts, OBS), "~ arm + (1 | donor)", transform=transform, progress=False).test("arm[T.stim]")
        np.testing.assert_allclose(table["mean_expr"], values.mean(axis=0), rtol=1e-12)


def test_mean_expression_is_unknown_from_matrices(r_fit):
    assert lmm(**r_fit.summary, d=[6, 3]).test("X1")["mean_expr"].isna().all()


def test_one_sided_tests(result):
    two, less, greater = (
        result.test("arm[T.stim]", alternative=name).set_index("variable").drop(GENES[3])
        for name in ("two-sided", "less", "greater")
    )
    np.testing.assert_allclose(less["p_value"] + greater["p_value"], 1, rtol=1e-12)
    np.testing.assert_allclose(2 * np.minimum(less["p_value"], greater["p_value"]), two["p_value"], rtol=1e-12)
    assert np.isinf(less["ci_low"]).all() and np.isinf(greater["ci_high"]).all()


def test_a_higher_level_is_a_wider_interval(result):
    narrow, wide = (result.test("arm[T.stim]", level=level).drop(3) for level in (0.8, 0.99))
    assert (wide["ci_low"] < narrow["ci_low"]).all() and (wide["ci_high"] > narrow["ci_high"]).all()


def test_residual_df_are_those_of_the_r_api(result, r_fit):
    table = result.test("arm[T.stim]", df="residual")
    np.testing.assert_allclose(table["p_value"], r_fit.p.loc["X2"], rtol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contrast": "arm[T.Stim]"}, r"no column is called 'arm\[T.Stim\]'; the closest are \['arm\[T.stim\]'\]"),
        ({"contrast": "arm[T.stim] - arm[T.stim]"}, "all its weights are zero"),
        ({"contrast": np.ones(2)}, r"got weights of shape \(2,\), expected \(3,\)"),
        ({"contrast": np.eye(3), "alternative": "less"}, "a joint F test has no direction; use 'two-sided'"),
        (
            {"df": "kr"},
            "df='kr' is not known; use one of generalized, satterthwaite, kenward-roger, lmertest, between",
        ),
        ({"alternative": "two.sided"}, "alternative='two.sided' is not known; use one of two-sided, less, greater"),
        ({"level": 95}, "level=95: the coverage of the interval must lie between 0 and 1"),
    ],
)
def test_arguments_that_test_refuses(result, arguments, message):
    with pytest.raises(ValueError, match=message):
        result.test(**arguments)


def test_kenward_roger_leaves_the_standard_errors_of_a_balanced_design(result):
    plain, adjusted = (result.test("arm[T.stim]", df=df).drop(3) for df in ("residual", "kenward-roger"))
    np.testing.assert_array_equal(adjusted["log_fc"], plain["log_fc"])
    np.testing.assert_allclose(adjusted["se"], plain["se"], rtol=1e-8)
    assert (adjusted["df"] < 10).all() and (adjusted["p_value"] > plain["p_value"]).all()


# --- printing and blocks --------------------------------------------------------------------------


def test_repr_is_three_lines(result, r_fit):
    counts = result.status.value_counts()
    lines = repr(result).splitlines()
    assert lines[0] == f"LMMFit (REML): {FORMULA}"
    assert lines[1].split() == f"{N} cells, {M} genes, 3 fixed effects, random effects: donor (6), plate (3)".split()
    assert lines[2].strip().startswith("status: ") and len(lines) == 3
    assert all(f"{count} {word}" in lines[2] for word, count in counts.items())
    assert repr(r_fit).startswith("LMMFit (REML): X, Z\n")


def test_html_says_the_same_and_escapes(result):
    said = replace(result, seconds=2.34, summary=replace(result.summary, formula="~ I(depth<3) + (1 | donor)"))
    counts = result.status.value_counts()
    shown = said._repr_html_()
    for text in ("~ I(depth&lt;3) + (1 | donor)", f"{N} cells, {M} genes", "donor (6), plate (3)", "in 2.3 s"):
        assert text in shown
    assert all(f"{count} {word}" in shown for word, count in counts.items())
    assert ElementTree.fromstring(shown).tag == "table"
    assert repr(said).endswith("; read and fitted in 2.3 s")


def test_a_fit_knows_how_long_it_took(result, r_fit):
    assert result.seconds > 0 and r_fit.seconds is None
    assert "read and fitted" not in r_fit._repr_html_() + repr(r_fit)


def test_the_number_of_genes_in_a_block_does_not_matter(result):
    single = fit_summary(result.summary, FitOptions(block=1))
    for name in ("theta", "coef", "se", "logLik"):
        np.testing.assert_allclose(single[name], result[name], rtol=1e-9)
