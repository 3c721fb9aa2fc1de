"""F tests against dense n x n algebra, exact tests of balanced designs, and t tests."""

from __future__ import annotations

import dense
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lmm_gpu import fit, lmm, sslmm
from lmm_gpu.inference.f_tests import combine_df
from lmm_gpu.inference.strata import between_within_directions, orthonormal_rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no random effect lets|too few to estimate|treatment-coded|no degrees of freedom):UserWarning"
)

DESIGNS = ["one_nested", "two", "two_widest_last", "three_widest_inside", "slope"]
METHODS = ["generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual"]


def fitted(design, Y, **options):
    """Fit of Y (n, m)."""
    return lmm(sslmm(design.X, Y.T, design.Z, d=design.d), epsilon=1e-8, **options)


@pytest.fixture(params=DESIGNS)
def some(request):
    """Design, genes (n, m), contrasts (2, p) on different scales, and a REML fit."""
    design = dense.DESIGNS[request.param]
    C = np.random.default_rng(1).normal(size=(2, design.X.shape[1])) * np.array([[1.0], [20.0]])
    Y = dense.draw_genes(design, 4, seed=4)
    result = fitted(design, Y)
    assert result.converged.all()
    return design, Y, C, result


# --- dense, gene by gene, from the formulas of the papers -----------------------------------------


def covariance_of(design, C):
    return lambda theta: C @ dense.beta_covariance(design, theta) @ C.T


def slopes(function, theta):
    return dense.gradient(function, theta, 1e-4 * np.abs(theta).max() * np.ones_like(theta))


def contest_md(design, y, theta, C, information):
    """F and denominator df as of lmerTest's contestMD, by the principal directions of C beta in the metric (X'X)^-1."""
    L = np.linalg.cholesky(np.linalg.inv(C @ np.linalg.solve(design.X.T @ design.X, C.T)))
    C = L.T @ C
    covariance = covariance_of(design, C)
    values, vectors = np.linalg.eigh(covariance(theta))
    rows = vectors.T @ C
    F = np.mean((rows @ dense.beta(design, y, theta)) ** 2 / values)
    gradient = slopes(covariance, theta)
    nu = []
    for value, v in zip(values, vectors.T, strict=True):
        g = np.array([v @ G @ v for G in gradient])
        nu.append(2 * value**2 / (g @ np.linalg.solve(information, g)))
    nu = np.array(nu)
    E = np.sum(nu / (nu - 2))
    return F, 2.0 if (nu <= 2).any() else 2 * E / (E - len(nu))


def kenward_roger(design, y, theta, C):
    """Scaled F and denominator df, Kenward and Roger (1997), section 3, with its exact special cases."""
    q, W = len(C), np.linalg.inv(dense.information(design, theta, "REML"))
    Phi, V_inverse, X = dense.beta_covariance(design, theta), np.linalg.inv(design.V(theta)), design.X
    P = [-X.T @ V_inverse @ dV @ V_inverse @ X for dV in design.kernels()]
    Theta = C.T @ np.linalg.solve(C @ Phi @ C.T, C)
    M = [Theta @ Phi @ Pi @ Phi for Pi in P]
    A1 = sum(W[i, j] * np.trace(M[i]) * np.trace(M[j]) for i in range(len(P)) for j in range(len(P)))
    A2 = sum(W[i, j] * np.trace(M[i] @ M[j]) for i in range(len(P)) for j in range(len(P)))
    B = (A1 + 6 * A2) / (2 * q)
    g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
    c1, c2, c3 = (c / (3 * q + 2 * (1 - g)) for c in (g, q - g, q + 2 - g))
    E = 1 / (1 - A2 / q)
    V = (2 / q) * (1 + c1 * B) / ((1 - c2 * B) ** 2 * (1 - c3 * B))
    rho = V / (2 * E**2)
    m = 4 + (q + 2) / (q * rho - 1)
    beta = C @ dense.beta(design, y, theta)
    adjusted = C @ dense.kenward_roger_covariance(design, theta) @ C.T
    return m / (E * (m - 2)) * (beta @ np.linalg.solve(adjusted, beta)) / q, m


def test_kenward_roger_is_the_dense_computation(some):
    design, Y, C, result = some
    tested = result.f_test(C, "kenward-roger")
    wanted = [kenward_roger(design, y, theta, C) for y, theta in zip(Y.T, result.theta.to_numpy().T, strict=True)]
    np.testing.assert_allclose(tested.statistic, [F for F, _ in wanted], rtol=1e-6)
    np.testing.assert_allclose(tested.df, [m for _, m in wanted], rtol=1e-5)
    assert tested.df1 == 2


def test_lmertest_is_the_dense_contestMD(some):
    design, Y, C, result = some
    tested = result.f_test(C, "lmertest")
    for gene, theta in enumerate(result.theta.to_numpy().T):
        y = Y[:, gene]
        F, df = contest_md(design, y, theta, C, dense.observed_information(design, y, theta, "REML"))
        np.testing.assert_allclose(tested.statistic[gene], F, rtol=1e-7)
        np.testing.assert_allclose(tested.df[gene], df, rtol=2e-4)


def test_satterthwaite_is_the_dense_contestMD_at_most_between_within(some):
    design, Y, C, result = some
    tested = result.f_test(C, "satterthwaite")
    cap = combine_df(between_within_directions(result.summary, C, result.model.likelihood.rank))
    for gene, theta in enumerate(result.theta.to_numpy().T):
        F, df = contest_md(design, Y[:, gene], theta, C, dense.information(design, theta, "REML"))
        np.testing.assert_allclose(tested.statistic[gene], F, rtol=1e-7)
        np.testing.assert_allclose(tested.df[gene], min(df, cap), rtol=2e-5)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_row_is_the_t_test(some, method):
    _, _, C, result = some
    t, F = result.contrast_test(C[:1], method), result.f_test(C[:1], method)
    np.testing.assert_allclose(F.statistic, t.t[0] ** 2, rtol=1e-9)
    np.testing.assert_allclose(F.df, np.broadcast_to(t.df, t.t.shape)[0], rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mix", [[[2.0, 1], [0, -30]], [[1.0, 0], [0, 1], [1, 1]], [[1.0, 0], [0, 1], [0, 1e-9]]])
def test_only_the_space_of_the_rows_matters(some, method, mix):
    _, _, C, result = some
    wanted, found = result.f_test(C, method), result.f_test(np.array(mix) @ C, method)
    assert found.df1 == 2
    np.testing.assert_allclose(found.statistic, wanted.statistic, rtol=1e-8)
    np.testing.assert_allclose(found.df, wanted.df, rtol=1e-7)


def test_orthonormal_rows():
    rng = np.random.default_rng(0)
    C, A = rng.normal(size=(3, 5)) * np.array([[1.0], [1e4], [1e-4]]), rng.normal(size=(5, 5))
    metric = A @ A.T
    Q = orthonormal_rows(C, metric)
    np.testing.assert_allclose(Q @ metric @ Q.T, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(C @ metric @ Q.T @ Q, C, rtol=1e-9)


@pytest.mark.parametrize("least", [0.5, 1.999, 2.0, 2.001, 3.999, 4.0])
def test_combined_df_are_continuous(least):
    """lmerTest's are 2 wherever one direction has no more, whatever the others have, but not where all are equal."""
    at = lambda *nu: combine_df(np.array(nu))  # noqa: E731
    np.testing.assert_allclose(at(least, least + 1e-7), least, rtol=1e-6)
    np.testing.assert_allclose(at(least - 1e-9, 10.0), at(least + 1e-9, 10.0), rtol=1e-6)
    assert least < at(least, 10.0) < 10.0


def test_combined_df_are_those_of_lmertest():
    np.testing.assert_allclose([combine_df(np.array([5.0])), combine_df(np.array([7.0] * 3))], [5.0, 7.0])
    E = 5 / 3 + 10 / 8
    np.testing.assert_allclose(combine_df(np.array([5.0, 10.0])), 2 * E / (E - 2))
    np.testing.assert_allclose(combine_df(np.array([1.9, 1.9])), 1.9)
    assert np.isnan(combine_df(np.array([np.nan, 3.0])))


# --- exact tests ----------------------------------------------------------------------------------

DONORS, CELLS, GENES = 9, 4, 30
OBS = pd.DataFrame(
    {
        "donor": np.repeat([f"D{i}" for i in range(DONORS)], CELLS),
        "dose": np.repeat(list("abc") * 3, CELLS),
        "half": np.tile(list("st"), DONORS * CELLS // 2),
    }
)


def balanced_genes(between):
    rng = np.random.default_rng(5)
    return np.repeat(between * rng.normal(size=(DONORS, GENES)), CELLS, axis=0) + rng.normal(size=(len(OBS), GENES))


@pytest.mark.parametrize("method", ["satterthwaite", "kenward-roger", "lmertest", "between-within"])
@pytest.mark.parametrize("between", [0.0, 1.0])
def test_a_balanced_factor_between_donors_is_the_anova_of_donor_means(method, between):
    Y = balanced_genes(between)
    result = fit((Y, OBS), "~ dose + half + (1 | donor)", epsilon=1e-9, progress=False)
    table = result.test(["dose[T.b]", "dose[T.c]"], df=method, joint=True)
    means = Y.reshape(DONORS, CELLS, GENES).mean(axis=1)
    exact = scipy.stats.f_oneway(*(means[OBS["dose"][::CELLS] == dose] for dose in "abc"))
    assert (result.status == "converged").sum() >= 20
    inside = (table["status"] == "converged").to_numpy()
    np.testing.assert_allclose(table["statistic"][inside], exact.statistic[inside], rtol=1e-5)
    np.testing.assert_allclose(table["df"][inside], DONORS - 3, rtol=1e-4)
    np.testing.assert_allclose(table["p_value"][inside], exact.pvalue[inside], rtol=1e-3)


def test_directions_of_both_kinds():
    summary = fit((balanced_genes(1.0), OBS), "~ dose + half + (1 | donor)", progress=False).summary
    unit, within = np.eye(4), len(OBS) - 4 - (DONORS - 3)
    directions = lambda rows: between_within_directions(summary, rows, DONORS - 3).tolist()  # noqa: E731
    assert directions(unit[1:3]) == [DONORS - 3] * 2
    assert directions(unit[1:]) == [DONORS - 3] * 2 + [within]
    assert directions(unit[3:]) == [within]
    mixed = np.array([[0.0, 1, 0, 1], [0, 1, 0, -1]])  # neither row is between donors, half their sum is
    assert directions(mixed) == [DONORS - 3, within]


def test_directions_of_nested_effects_count_once():
    obs = OBS.assign(rep=np.tile(list("uuvv"), DONORS))
    result = fit((balanced_genes(1.0), obs), "~ dose + rep + half + (1 | donor/rep)", progress=False)
    found = between_within_directions(result.summary, np.eye(5)[1:], result.model.likelihood.rank)
    assert found.tolist() == [DONORS - 3] * 2 + [DONORS - 1, len(OBS) - 5 - (2 * DONORS - 4)]


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return fit((balanced_genes(1.0), OBS), "~ dose * half + (1 | donor)", progress=False)


def test_a_matrix_of_several_rows_is_one_test(result):
    table = result.test(np.eye(6)[[1, 2]])
    assert list(table.columns) == [
        *("variable", "contrast", "statistic", "df1", "df", "p_value", "adj_p_value", "log10_p_value"),
        *("mean_expr", "status", "donor_variance", "residual_variance"),
    ]
    assert len(table) == GENES and table["contrast"].nunique() == 1 and (table["df1"] == 2).all()
    p = scipy.stats.f.sf(table["statistic"], 2, table["df"])
    np.testing.assert_allclose(table["p_value"], p, rtol=1e-10)
    np.testing.assert_allclose(10 ** table["log10_p_value"], p, rtol=1e-10)
    np.testing.assert_allclose(table["adj_p_value"], scipy.stats.false_discovery_control(p), rtol=1e-10)


def test_joint_is_the_matrix(result):
    names = ["dose[T.b]", "dose[T.c]"]
    pd.testing.assert_frame_equal(
        result.test(names, joint=True).drop(columns="contrast"),
        result.test(np.eye(6)[[1, 2]]).drop(columns="contrast"),
    )
    with pytest.raises(ValueError, match="a joint F test has no direction"):
        result.test(names, joint=True, alternative="less")


def test_anova_tests_every_term(result):
    table = result.anova(df="kenward-roger")
    assert table["contrast"].unique().tolist() == ["dose", "half", "dose:half"]
    assert table.groupby("contrast")["df1"].first().to_dict() == {"dose": 2, "half": 1, "dose:half": 2}
    unit = np.eye(6)
    columns = {
        name: [i for i, column in enumerate(result.summary.fixed_names) if match(column)]
        for name, match in {
            "dose": lambda c: c.startswith("dose") and ":" not in c,
            "half": lambda c: c == "half[T.t]",
            "dose:half": lambda c: ":" in c,
        }.items()
    }
    averaged = {name: unit[positions] for name, positions in columns.items()}
    averaged["dose"] = averaged["dose"] + 0.5 * averaged["dose:half"]  # means over the levels of the other factor
    averaged["half"] = averaged["half"] + averaged["dose:half"].sum(axis=0) / 3
    for name, rows in averaged.items():
        tested = result.f_test(rows, "kenward-roger")
        np.testing.assert_allclose(table.loc[table["contrast"] == name, "statistic"], tested.statistic, rtol=1e-9)


def test_anova_of_sums_is_that_of_averages():
    """With sum-to-zero coding a main effect is the average over the other factor: in a balanced design, that of
    the model without the interaction, up to the residual variance."""
    formula = "~ C(dose, contr.sum) * C(half, contr.sum) + (1 | donor)"
    sums = fit((balanced_genes(1.0), OBS), formula, progress=False)
    main = np.eye(6)[[i for i, n in enumerate(sums.summary.fixed_names) if "dose" in n and ":" not in n]]
    table = sums.anova(df="satterthwaite")
    first = table[table["contrast"] == "C(dose, contr.sum)"]
    np.testing.assert_allclose(first["statistic"], sums.f_test(main, "residual").statistic, rtol=1e-9)
    means = balanced_genes(1.0).reshape(DONORS, CELLS, GENES).mean(axis=1)
    exact = scipy.stats.f_oneway(*(means[OBS["dose"][::CELLS] == dose] for dose in "abc"))
    np.testing.assert_allclose(first["statistic"], exact.statistic, rtol=1e-5)


def test_anova_needs_terms(result):
    with pytest.raises(ValueError, match="the terms of the model are unknown: it was given as matrices"):
        lmm(sslmm(np.ones((36, 1)), balanced_genes(1.0).T, np.kron(np.eye(9), np.ones((4, 1))))).anova()
    alone = fit((balanced_genes(1.0), OBS), "~ 1 + (1 | donor)", progress=False)
    with pytest.raises(ValueError, match="there is no term to test"):
        alone.anova()


@pytest.mark.parametrize("method", METHODS)
def test_a_gene_without_variance_is_nan(method):
    Y = balanced_genes(1.0)
    Y[:, 3] = 0
    with pytest.warns(UserWarning, match="do not vary"):
        result = fit((Y, OBS), "~ dose + (1 | donor)", progress=False)
    table = result.anova(df=method)
    numbers = table[["statistic", "df", "p_value", "adj_p_value", "log10_p_value"]]
    assert numbers.loc[3].isna().all() and numbers.drop(3).notna().all(axis=None)


def test_nothing_to_test_against_is_nan():
    result = fit((balanced_genes(1.0), OBS), "~ 0 + donor + half + (1 | donor)", progress=False)
    rows = np.array([[-1.0, 1, *[0] * 8], [-1, 0, 1, *[0] * 7]])
    for method in METHODS[:-1]:
        if method != "kenward-roger":  # pbkrtest's result differs
            assert result.test(rows, df=method)["p_value"].isna().all()
