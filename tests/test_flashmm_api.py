"""FLASHMM's API: its arguments, every kind of input, R's designs from formulas, and error messages."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pandas as pd
import pytest
from paths import REFERENCE
from scipy import sparse

from lmm_gpu import SummaryStats, contrast_matrix, flashmm, lmm, lmmfit, lmmtest, sslmm

RNG = np.random.default_rng(21)
N, M = 60, 4
GENES, CELLS = [f"g{gene}" for gene in range(M)], [f"cell{cell}" for cell in range(N)]
DONOR, BATCH = np.repeat(np.arange(6), 10), np.tile(np.arange(3), 20)
X = np.column_stack([np.ones(N), np.tile([0.0, 1.0], 30)])
Z = np.eye(6)[DONOR]
Z2 = np.hstack([Z, np.eye(3)[BATCH]])
Y = (Z @ RNG.normal(size=(6, M))).T + RNG.normal(size=(M, N))  # genes x cells
COUNTS = RNG.poisson(3.0, size=(M, N))
X_FRAME = pd.DataFrame(X, CELLS, ["A", "B"])
Y_FRAME = pd.DataFrame(Y, GENES, CELLS)
Z_FRAME = pd.DataFrame(Z, CELLS, [f"sam{donor}" for donor in range(6)])


def same(one, other, rtol=1e-10):
    """Two fits have the same numbers."""
    for name in ("theta", "coef", "se", "logLik", "p"):
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def plain():
    return lmmfit(Y, X, Z, X_names=["A", "B"], Y_names=GENES)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "positional", "by_name"),
    [
        (
            lmmfit,
            "Y X Z d method nBlocks theta0 max_iter epsilon output_cov output_FIM output_RE output_SS verbose",
            "is_counts weights Y_names X_names bounds device memory progress",
        ),
        (
            lmm,
            "XX XY ZX ZY ZZ Ynorm n d method theta0 max_iter epsilon output_cov output_FIM output_RE output_SS verbose",
            "nBlocks Y_names X_names bounds device memory progress",
        ),
        (sslmm, "X Y Z nBlocks", "d is_counts weights Y_names X_names device memory"),
        (lmmtest, "fit index contrast alternative", "ddf"),
        (contrast_matrix, "contrast names", ""),
    ],
)
def test_arguments_have_rs_names_and_order(function, positional, by_name):
    parameters = inspect.signature(function).parameters.values()
    kinds = {kind: [p.name for p in parameters if p.kind is kind] for kind in inspect._ParameterKind}
    assert kinds[inspect.Parameter.POSITIONAL_OR_KEYWORD] == positional.split()
    assert kinds[inspect.Parameter.KEYWORD_ONLY] == by_name.split()


def test_defaults_are_rs():
    defaults = {name: p.default for name, p in inspect.signature(lmmfit).parameters.items()}
    assert (defaults["method"], defaults["max_iter"], defaults["epsilon"], defaults["d"]) == ("REML", 50, 1e-5, None)
    assert [defaults[f"output_{what}"] for what in ("cov", "FIM", "RE", "SS")] == [True, False, False, False]
    assert inspect.signature(lmmtest).parameters["alternative"].default == "two.sided"


@pytest.mark.parametrize("d", [[6, 3], (6, 3), np.array([6, 3]), pd.Series([6, 3]), [6.0, 3.0]])
def test_d_may_be_any_sequence(d):
    fit = lmmfit(Y, X, Z2, d=d)
    assert fit.theta.index.tolist() == ["var1", "var2", "var0"]
    same(fit, lmm(sslmm(X, Y, Z2, d=[6, 3])))


@pytest.mark.parametrize("d", [None, 6, [6], np.int64(6)])
def test_one_effect_by_default(d, plain):
    same(lmmfit(Y, X, Z, d), plain)


def test_cells_and_summary_level_data_give_identical_results():
    fit = lmmfit(Y, X, Z2, d=[6, 3])
    summary = sslmm(X, Y, Z2)
    assert summary.d == (9,)
    again = lmm(summary, d=[6, 3])
    same(again, fit, rtol=0)
    assert {"var1_variance", "var2_variance", "residual_variance"} < set(again.test("X1").columns)
    same(lmm(*(summary[name] for name in ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "n")), [6, 3]), fit, rtol=0)
    same(lmm(**summary, d=[6, 3]), fit, rtol=0)


@pytest.mark.parametrize("blocks", [None, 2, 4])
def test_values_far_from_zero_come_to_the_same(blocks):
    """By either way, in any number of blocks, of genes some of which are far from zero."""
    far = Y + np.array([[1e6], [0.0], [-1e4], [1e6]])
    fit, summary = lmmfit(far, X, Z2, d=[6, 3], nBlocks=blocks), sslmm(X, far, Z2, blocks)
    same(lmm(summary, d=[6, 3], nBlocks=blocks), fit, rtol=0)
    plain = lmmfit(Y, X, Z2, d=[6, 3])
    np.testing.assert_allclose(fit.t.iloc[1:], plain.t.iloc[1:], rtol=1e-6)
    np.testing.assert_allclose(fit.theta / plain.theta.iloc[-1], plain.theta / plain.theta.iloc[-1], atol=1e-6)
    np.testing.assert_allclose(summary["XY"], X.T @ far.T, rtol=1e-12)
    np.testing.assert_allclose(summary["Ynorm"], (far * far).sum(axis=1), rtol=1e-12)


def test_summary_statistics_answer_by_name():
    summary = sslmm(X_FRAME, Y_FRAME, Z_FRAME)
    assert isinstance(summary, SummaryStats) and summary["n"] == N
    wanted = {
        "XX": X.T @ X,
        "XY": X.T @ Y.T,
        "ZX": Z.T @ X,
        "ZY": Z.T @ Y.T,
        "ZZ": Z.T @ Z,
        "Ynorm": (Y * Y).sum(axis=1),
    }
    for name, matrix in wanted.items():
        np.testing.assert_allclose(summary[name], matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "option", [{"nBlocks": 1}, {"nBlocks": 3}, {"nBlocks": 50}, {"memory": 5000}, {"memory": "1MB"}]
)
def test_results_do_not_depend_on_blocks_or_memory(option, plain):
    same(lmmfit(Y, X, Z, **option), plain, rtol=1e-10)
    summary = sslmm(X, Y, Z, **option)
    for name in ("XY", "ZY", "Ynorm"):
        np.testing.assert_allclose(summary[name], plain.summary[name], rtol=1e-12, atol=1e-12)


def test_method():
    reml, ml = lmmfit(Y, X, Z, method="REML"), lmmfit(Y, X, Z, None, "ML")
    assert (reml.method, ml.method) == ("REML", "ML")
    assert (ml.theta.loc["var0"] < reml.theta.loc["var0"]).all()  # ML divides by n, REML by n - p


def test_theta0_is_where_it_starts():
    usual = lmmfit(Y, X, Z2, d=[6, 3])
    at_optimum = lmmfit(Y, X, Z2, d=[6, 3], theta0=usual.theta.to_numpy(), epsilon=1e-3)
    assert (at_optimum.niter < usual.niter).all()
    same(at_optimum, usual, rtol=1e-6)
    same(lmmfit(Y, X, Z2, d=[6, 3], theta0=[0.5, 0.1, 1.5]), usual, rtol=1e-4)


def test_max_iter_and_epsilon():
    with pytest.warns(UserWarning, match="did not converge"):
        stopped = lmmfit(Y, X, Z2, max_iter=1, epsilon=1e-12)
    assert (stopped.niter <= 1).all() and not stopped.converged.all()
    loose, tight = (lmmfit(Y, X, Z2, epsilon=epsilon) for epsilon in (10.0, 1e-8))
    assert loose.epsilon == 10.0 and loose.converged.all() and (loose.niter < tight.niter).all()
    assert (np.abs(tight.dlogL).to_numpy() <= 1e-7).all() and (np.abs(loose.dlogL).to_numpy() > 1e-7).any()


def test_bounds():
    donor_means = Y @ Z / Z.sum(axis=0)
    alike = Y - 0.9 * donor_means @ Z.T  # donors more alike than chance has it
    auto = lmmfit(alike, X, Z)
    assert (auto.theta.loc["var1"] < 0).all() and auto.converged.all()
    held = lmmfit(alike, X, Z, bounds="nonnegative")
    assert (held.theta.loc["var1"] == 0).all() and (held.status == "boundary").all()


def test_verbose_prints_one_line(capsys):
    lmmfit(Y, X, Z, verbose=True)
    assert capsys.readouterr().out == f"0 of {M} features did not converge\n"
    lmmfit(Y, X, Z)
    assert capsys.readouterr().out == ""


def test_progress_is_silent_unless_asked_for(capsys):
    lmmfit(Y, X, Z)
    assert capsys.readouterr().err == ""
    lmmfit(Y, X, Z, progress=True)
    assert f"{M}/{M}" in capsys.readouterr().err


@pytest.mark.parametrize("is_counts", [None, True])
def test_counts_are_fitted_as_log2(is_counts):
    same(lmmfit(COUNTS, X, Z, is_counts=is_counts), lmmfit(np.log2(1 + COUNTS), X, Z), rtol=1e-10)


def test_counts_may_be_fitted_as_they_are():
    slightly_moved = lmmfit(COUNTS + 0.5 * X.sum(axis=1), X, Z)  # no counts; moves coef by 0.5 and nothing else
    as_they_are = lmmfit(COUNTS, X, Z, is_counts=False)
    np.testing.assert_allclose(slightly_moved.theta, as_they_are.theta, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(slightly_moved.coef, as_they_are.coef + 0.5, rtol=1e-9)


# --- weights --------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(5).uniform(0.2, 3.0, size=(len(Y), N))


def rooted(w):
    """The unweighted model of which a weighted one is the image: rows are multiplied by sqrt(w)."""
    root = np.sqrt(w)
    return lambda y: lmmfit((y * root)[None], X * root[:, None], Z * root[:, None], is_counts=False)


@pytest.mark.parametrize("blocks", [None, 2])
def test_weights_of_cells_multiply_rows_by_their_roots(blocks):
    w = WEIGHTS[0]
    fit, model = lmmfit(Y, X, Z, weights=w, nBlocks=blocks), rooted(w)
    for gene, y in enumerate(Y):
        same = model(y)
        for name in ("coef", "se", "theta", "se_theta"):
            np.testing.assert_allclose(fit[name].iloc[:, gene], same[name].iloc[:, 0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(fit.logLik.iloc[gene], same.logLik.iloc[0] + np.log(w).sum() / 2, rtol=1e-8)


def test_weights_of_features_and_cells_are_those_of_each_feature():
    fit = lmmfit(Y, X, Z, weights=WEIGHTS)
    for gene, (y, w) in enumerate(zip(Y, WEIGHTS, strict=True)):
        same = rooted(w)(y)
        for name in ("coef", "se", "theta"):
            np.testing.assert_allclose(fit[name].iloc[:, gene], same[name].iloc[:, 0], rtol=1e-5, err_msg=name)


def test_equal_weights_change_nothing(plain):
    fit = lmmfit(Y, X, Z, weights=np.full(N, 4.0))
    np.testing.assert_allclose(fit.t, plain.t, rtol=1e-6)
    np.testing.assert_allclose(fit.theta.loc["var0"], 4.0 * plain.theta.loc["var0"], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(N - 1), rf"weights have shape \({N - 1},\); expected one per cell"),
        (np.ones((N, len(Y))), "or one per feature and cell"),
        (np.zeros(N), f"{N} of {N} weights are not positive numbers"),
        (np.full(N, np.nan), "weights are not positive numbers"),
    ],
)
def test_weights_that_cannot_be_used(weights, message):
    with pytest.raises(ValueError, match=message):
        lmmfit(Y, X, Z, weights=weights)


# --- kinds of input -------------------------------------------------------------------------------

FORMATS = ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"]


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("form", FORMATS)
def test_sparse_formats(form, container, plain):
    Ys, Xs, Zs = (container(matrix).asformat(form) for matrix in (Y, X, Z))
    same(lmmfit(Ys, X, Z), plain, rtol=1e-9)
    same(lmmfit(Y, Xs, Zs), plain, rtol=1e-9)


@pytest.mark.parametrize("form", FORMATS)
def test_sparse_counts(form):
    same(lmmfit(sparse.csr_array(COUNTS).asformat(form), X, Z), lmmfit(np.log2(1.0 + COUNTS), X, Z), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "float32", "float64"])
def test_types_of_numbers(dtype):
    Yi = (10 * COUNTS).astype(dtype)  # squares and sums do not fit 8 bits
    wanted = lmmfit(10.0 * COUNTS, X, Z, is_counts=False)
    same(lmmfit(Yi, X.astype(dtype), Z.astype(dtype), is_counts=False), wanted)
    same(lmmfit(sparse.csr_array(Yi), X, Z, is_counts=False), wanted, rtol=1e-10)


def test_lists(plain):
    same(lmmfit(Y.tolist(), X.tolist(), Z.tolist()), plain)


def test_one_gene_as_a_vector(plain):
    for vector in (Y[1], Y[1].tolist(), pd.Series(Y[1]), sparse.csr_array(Y[[1]])):
        fit = lmmfit(vector, X, Z, d=6)
        assert fit.coef.shape == (2, 1)
        np.testing.assert_allclose(fit.coef.to_numpy()[:, 0], plain.coef.iloc[:, 1], rtol=1e-10)


def test_one_column_as_a_vector():
    intercept = lmmfit(Y, np.ones(N), Z)
    assert intercept.coef.index.tolist() == ["X1"]
    same(intercept, lmmfit(Y, X[:, :1], Z))


def test_frames(plain):
    fit = lmmfit(Y_FRAME, X_FRAME, Z_FRAME, output_RE=True)
    same(fit, plain)
    assert fit.coef.columns.tolist() == GENES and fit.coef.index.tolist() == ["A", "B"]
    assert fit.RE.index.tolist() == Z_FRAME.columns.tolist()


def test_frames_of_several_types(plain):
    dummies = pd.get_dummies(pd.Series(DONOR))
    same(lmmfit(Y_FRAME, X_FRAME.astype({"A": "float32", "B": bool}), dummies), plain, rtol=1e-10)
    same(lmmfit(Y_FRAME, X_FRAME.astype("Int64"), Z), plain, rtol=1e-10)
    same(lmmfit(Y_FRAME.astype("Float64"), X, Z), plain, rtol=1e-10)


def test_sparse_frames(plain):
    fit = lmmfit(Y_FRAME.astype(pd.SparseDtype(float, 0.0)), X_FRAME, Z_FRAME.astype(pd.SparseDtype(float, 0.0)))
    same(fit, plain, rtol=1e-9)
    assert fit.coef.columns.tolist() == GENES
    same(lmmfit(Y_FRAME.astype(pd.SparseDtype(float, np.nan)), X_FRAME, Z_FRAME), plain, rtol=1e-9)


def test_matrices_of_numpys_older_kind(plain):
    with pytest.warns(PendingDeprecationWarning):
        same(lmmfit(np.asmatrix(Y), np.asmatrix(X), np.asmatrix(Z)), plain)


def test_arrays_of_another_library(plain):
    strict = pytest.importorskip("array_api_strict", reason='needs: pip install ".[test]"')
    same(lmmfit(*(strict.asarray(matrix) for matrix in (Y, X, Z))), plain)


def test_datasets_on_disk(plain, tmp_path):
    h5py = pytest.importorskip("h5py", reason='reading HDF5 needs: pip install ".[io]"')
    with h5py.File(tmp_path / "y.h5", "w") as file:
        same(lmmfit(file.create_dataset("Y", data=Y), X, Z), plain)


def test_default_labels():
    fit = lmmfit(Y, X, Z, output_RE=True)
    assert fit.coef.columns.tolist() == ["Gene1", "Gene2", "Gene3", "Gene4"]
    assert fit.coef.index.tolist() == ["X1", "X2"] and fit.RE.index.tolist() == [f"Z{i}" for i in range(1, 7)]
    unnamed = lmmfit(pd.DataFrame(Y), pd.DataFrame(X), pd.DataFrame(Z), output_RE=True)  # pandas numbered them
    for name in ("coef", "RE"):
        pd.testing.assert_frame_equal(unnamed[name], fit[name])


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index, pd.Series])
def test_labels_may_be_any_sequence(kind):
    fit = lmmfit(Y_FRAME, X_FRAME, Z, Y_names=kind(["a", "b", "c", "d"]), X_names=kind(["u", "v"]))
    assert fit.coef.columns.tolist() == ["a", "b", "c", "d"] and fit.coef.index.tolist() == ["u", "v"]
    again = lmm(sslmm(X, Y, Z), Y_names=kind(["a", "b", "c", "d"]), X_names=kind(["u", "v"]))
    pd.testing.assert_frame_equal(again.coef, fit.coef)


def test_labels_of_summary_level_data():
    summary = sslmm(X_FRAME, Y_FRAME, Z_FRAME)
    XY = pd.DataFrame(summary.XY, summary.fixed_names, summary.features)
    fit = lmm(summary.XX, XY, summary.ZX, summary.ZY, summary.ZZ, summary.Ynorm, N)
    assert fit.coef.index.tolist() == ["A", "B"] and fit.coef.columns.tolist() == GENES


# --- flashmm --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    stored = np.load(REFERENCE / "counts_k1_reml.npz")
    metadata = pd.read_csv(REFERENCE / "counts_k1_reml.metadata.csv", index_col=0, dtype={"cls": str})
    return stored, metadata


FIXED = "~ 0 + log(libsize) + cls + cls:trt"


def test_formulas_make_rs_matrices(reference):
    stored, metadata = reference
    fit = flashmm(stored["Y"], FIXED, "~ 0 + sam", metadata, output_SS=True, output_RE=True)
    assert fit.coef.index.tolist() == stored["X.names1"].tolist()
    assert fit.RE.index.tolist() == stored["Z.names1"].tolist()
    np.testing.assert_allclose(fit.summary_data.XX, stored["ss_XX"], rtol=1e-12)
    np.testing.assert_allclose(fit.summary_data.ZX, stored["ss_ZX"], rtol=1e-12, atol=1e-9)
    same(fit, lmmfit(stored["Y"], stored["X"], stored["Z"]), rtol=1e-8)
    np.testing.assert_allclose(fit.coef, stored["fit_coef"], rtol=0, atol=1e-8 * stored["fit_se"].max())


def test_one_formula_per_component(reference):
    stored, metadata = reference
    fit = flashmm(stored["Y"][:6], FIXED, ["~ 0 + sam", "~ 0 + location", "~0+plate"], metadata)
    assert fit.summary.d == (25, 12, 5) and fit.theta.index.tolist() == ["var1", "var2", "var3", "var0"]
    wanted = np.load(REFERENCE / "counts_k3_reml.npz")["fit_theta"][:, :6]
    np.testing.assert_allclose(fit.theta, wanted, atol=1e-7 * wanted[-1].max())


def test_raw_counts_and_options(reference):
    stored, metadata = reference
    counts = pd.DataFrame(stored["counts"][:6], columns=metadata.index)
    arguments = (FIXED, "~ 0 + sam", metadata)
    from_counts = flashmm(counts, *arguments, is_counts=True, method="ML", X_names=list("abcdefghi"))
    assert from_counts.method == "ML" and from_counts.coef.index.tolist() == list("abcdefghi")
    same(from_counts, flashmm(np.log2(1 + counts), *arguments, method="ML"), rtol=1e-9)
    assert flashmm(counts, *arguments).coef.iloc[0, 0] != from_counts.coef.iloc[0, 0]  # as they are, by default


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": "~ 0 + clss"}, "obs has no column 'clss': did you mean cls"),
        ({"random": "~ 0 + sma"}, "obs has no column 'sma': did you mean sam"),
        ({"random": []}, r"got .* random=\[\]; expected one formula"),
        ({"random": None}, "random=None; expected one formula"),
        ({"fixed": ["~ cls"]}, r"got fixed=\['~ cls'\].*expected one formula"),
        ({"metadata": {"cls": ["1"]}}, "metadata is of type dict; expected a DataFrame"),
        ({"fixed": "y ~ cls"}, "has a left-hand side"),
        ({"fixed": "~ cls + (1 | sam)"}, "a random term"),
        ({"fixed": "~ cls + trt + cls:trt + sam"}, "X is rank deficient .*sam"),
        ({"metadata": "short"}, "the cells do not match: X has 1000 rows"),
        (
            {"metadata": "others"},
            r"1500 of 1500 cells have other names in Y / in metadata .*give those of the same cells",
        ),
        ({"metadata": "shuffled"}, r"other names in Y / in metadata \(Cell1 / .*sort metadata like Y, with \.loc"),
    ],
)
def test_flashmm_refuses(reference, change, message):
    stored, metadata = reference
    Y = pd.DataFrame(stored["Y"][:2], columns=metadata.index)
    tables = {"short": metadata[:1000], "shuffled": metadata[::-1], "others": metadata.add_suffix("x", axis=0)}
    arguments = {"fixed": FIXED, "random": "~ 0 + sam", "metadata": metadata} | change
    if isinstance(arguments["metadata"], str):
        arguments["metadata"] = tables[arguments["metadata"]]
    with pytest.raises(ValueError, match=message):
        flashmm(Y, **arguments)


# --- lmmtest --------------------------------------------------------------------------------------


def test_column_order_is_rs(plain):
    table = lmmtest(plain)
    assert table.columns.tolist() == ["A_coef", "B_coef", "A_t", "B_t", "A_p", "B_p"]
    assert table.index.tolist() == GENES
    for name in ("coef", "t", "p"):
        np.testing.assert_allclose(table[[f"A_{name}", f"B_{name}"]].T, plain[name], rtol=1e-12)


def test_lmmtest_needs_no_covariances(plain):
    pd.testing.assert_frame_equal(lmmtest(lmm(plain.summary, output_cov=False)), lmmtest(plain))


@pytest.mark.parametrize(
    ("index", "names"),
    [(0, ["A"]), (1, ["B"]), (-1, ["B"]), ("B", ["B"]), ([1, 0], ["B", "A"]), (["B"], ["B"]), (np.array([1]), ["B"])],
)
def test_index_by_position_or_name(plain, index, names):
    columns = [f"{name}_{what}" for what in ("coef", "t", "p") for name in names]
    pd.testing.assert_frame_equal(lmmtest(plain, index), lmmtest(plain)[columns])


@pytest.mark.parametrize(
    ("contrast", "label"),
    [
        (contrast_matrix({"d": "B - A"}, ["A", "B"]), "d"),
        (contrast_matrix({"d": "B - A"}, ["B", "A"]), "d"),  # rows in another order
        ({"d": "B - A"}, "d"),
        ({"d": [-1, 1]}, "d"),
        ("B - A", "B - A"),
        (["B - A"], "B - A"),
        ({"A": -1, "B": 1}, "-A + B"),
        (pd.DataFrame({"d": [-1, 1]}), "d"),  # R's cbind(d = c(-1, 1))
        (np.array([-1, 1]), "contrast1"),
        (np.array([[-1], [1]]), "contrast1"),
        ([[-1], [1]], "contrast1"),
    ],
)
def test_contrasts_may_be_written_in_many_ways(plain, contrast, label):
    table = lmmtest(plain, contrast=contrast)
    assert table.columns.tolist() == [f"{label}_coef", f"{label}_t", f"{label}_p"]
    difference = plain.coef.loc["B"] - plain.coef.loc["A"]
    variance = np.einsum("p,pqm,q->m", [-1, 1], plain.cov, [-1, 1])
    np.testing.assert_allclose(table.iloc[:, 0], difference, rtol=1e-12)
    np.testing.assert_allclose(table.iloc[:, 1], difference / np.sqrt(variance), rtol=1e-10)


def test_several_contrasts(plain):
    table = lmmtest(plain, contrast=np.array([[1.0, 0.5], [0.0, 0.5]]))
    assert table.columns.tolist() == [f"contrast{i}_{what}" for what in ("coef", "t", "p") for i in (1, 2)]
    np.testing.assert_allclose(table["contrast2_coef"], plain.coef.mean(), rtol=1e-12)


def test_alternatives(plain):
    two, less, greater = (lmmtest(plain, 1, alternative=name)["B_p"] for name in ("two.sided", "less", "greater"))
    np.testing.assert_allclose(less + greater, 1, rtol=1e-12)
    np.testing.assert_allclose(2 * np.minimum(less, greater), two, rtol=1e-12)
    np.testing.assert_array_equal(less < 0.5, plain.t.loc["B"] < 0)


def test_other_degrees_of_freedom(plain):
    for df in ("satterthwaite", "generalized"):
        np.testing.assert_allclose(lmmtest(plain, "B", ddf=df)["B_p"], plain.test("B", df=df)["p_value"], rtol=1e-12)
    assert (lmmtest(plain, "A", ddf="between-within")["A_p"] > lmmtest(plain, "A")["A_p"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 2}, "index=2: expected fixed effects by position or name, 0 to 1 or A, B"),
        ({"index": "C"}, "index='C': expected fixed effects by position or name"),
        ({"index": 1.5}, "index=1.5: expected fixed effects by position or name"),
        ({"index": [True, False]}, "expected fixed effects by position or name"),
        ({"index": []}, "expected fixed effects by position or name"),
        ({"contrast": "A - Bee"}, "no column is called 'Bee'"),
        ({"contrast": {"d": "AA - B"}}, r"no column is called 'AA'; the closest are \['A'\]"),
        ({"contrast": np.ones((3, 1))}, r"contrast has shape \(3, 1\); expected contrasts in columns and 2 rows.*A, B"),
        ({"contrast": np.ones((1, 2))}, r"contrast has shape \(1, 2\); expected contrasts in columns and 2 rows"),
        ({"contrast": [1, np.nan]}, "NaN or infinite weights for \\['B'\\]"),
        ({"contrast": [0, 0]}, "all its weights are zero"),
        ({"contrast": pd.DataFrame({"d": [1, -1]}, ["A", "C"])}, r"rows lack \['B'\] and include the unknown \['C'\]"),
        ({"alternative": "both"}, "alternative='both' is not known"),
        (
            {"ddf": "n - p"},
            "df='n - p' is not known; use one of generalized, satterthwaite, kenward-roger",
        ),
    ],
)
def test_lmmtest_refuses(plain, arguments, message):
    with pytest.raises(ValueError, match=message):
        lmmtest(plain, **arguments)


# --- what bad input gets --------------------------------------------------------------------------


def holed(matrix, where, value=np.nan):
    damaged = matrix.copy()
    damaged[where] = value
    return damaged


def twice(frame, axis):
    return frame.set_axis([*frame.axes[axis][:-1], frame.axes[axis][0]], axis=axis)


BAD_INPUT = {
    "Y transposed": ({"Y": Y.T}, "X has 60 rows, Z has 60 rows, Y has 4 columns; .*cells in its rows: pass Y.T"),
    "Y short": ({"Y": Y[:, :50]}, "X has 60 rows, Z has 60 rows, Y has 50 columns; all three must be"),
    "X transposed": ({"X": X.T}, "X has 2 rows, Z has 60 rows, Y has 60 columns"),
    "Z short": ({"Z": Z[:59]}, "X has 60 rows, Z has 59 rows"),
    "X without columns": ({"X": X[:, :0]}, r"nothing to fit: X has shape \(60, 0\)"),
    "Z without columns": ({"Z": Z[:, :0]}, "Z has 0 columns"),
    "no genes": ({"Y": Y[:0]}, r"nothing to fit: .*Y has shape \(0, 60\)"),
    "no cells": ({"Y": Y[:, :0], "X": X[:0], "Z": Z[:0]}, "nothing to fit"),
    "one cell": ({"Y": Y[:, :1], "X": X[:1], "Z": Z[:1]}, "2 fixed-effect columns but only 1 cells"),
    "sum of d": (
        {"d": [3, 2]},
        r"sum\(d\) must equal the number of columns of Z: got d = \(3, 2\) with sum 5, Z has 6",
    ),
    "negative d": ({"d": [7, -1]}, r"sum\(d\) must equal"),
    "d in parts": ({"d": [2.5, 3.5]}, r"d=\[2.5, 3.5\]: expected whole numbers"),
    "d as text": ({"d": "six"}, "d='six': expected whole numbers"),
    "d in brackets": ({"d": [[3, 3]]}, "expected whole numbers"),
    "method": ({"method": "reml"}, "method='reml' is not known; use 'REML' or 'ML'"),
    "bounds": ({"bounds": "nonneg"}, "bounds='nonneg' is not known; use one of auto, nonnegative, none"),
    "device": ({"device": "gpu0"}, "device='gpu0' cannot be used.*use 'auto' or 'cpu'"),
    "memory": ({"memory": "lots"}, "memory='lots' is not an amount of memory"),
    "no blocks": ({"nBlocks": 0}, "nBlocks=0: expected a whole number, at least one"),
    "half a block": ({"nBlocks": 2.5}, "nBlocks=2.5: expected a whole number"),
    "blocks as text": ({"nBlocks": "2"}, "nBlocks='2': expected a whole number"),
    "max_iter": ({"max_iter": 0}, "max_iter=0: at least one iteration"),
    "epsilon": ({"epsilon": -1}, "epsilon=-1: the tolerance must be positive"),
    "theta0 too long": ({"theta0": [1, 1, 1]}, r"theta0 has shape \(3,\), wanted \(2,\) or \(2, 4\)"),
    "theta0 transposed": ({"theta0": np.ones((4, 2))}, r"theta0 has shape \(4, 2\), wanted \(2,\) or \(2, 4\)"),
    "theta0 without residual": ({"theta0": [1, 0]}, "positive residual variance in its last place"),
    "is_counts": ({"is_counts": "yes"}, "is_counts='yes': (wanted|expected) True, False, or None"),
    "negative counts": ({"is_counts": True}, "is_counts=True, but the matrix has values that are not whole"),
    "NaN in Y": (
        {"Y": holed(Y, ([1, 2], [7, 9]))},
        r"Y holds 2 value.*NaN.*first at position \(1, 7\); remove or impute",
    ),
    "infinity in X": ({"X": holed(X, (5, 1), np.inf)}, r"X holds 1 value.*infinite.*first at position \(5, 1\)"),
    "NaN in Z": ({"Z": holed(Z, (0, 0))}, r"Z holds 1 value.*first at position \(0, 0\)"),
    "NaN in sparse Y": ({"Y": sparse.csr_array(holed(Y, (1, 7)))}, r"Y holds 1 value.*position \(1, 7\)"),
    "masked": ({"Y": np.ma.masked_array(Y, Y[1, 7] == Y)}, r"Y holds 1 value.*position \(1, 7\)"),
    "missing": ({"Y": Y_FRAME.astype("Float64").mask(Y[1, 7] == Y_FRAME)}, r"Y holds 1 value.*position \(1, 7\)"),
    "too large": ({"Y": 1e170 * Y}, "Y holds 240 value"),
    "genes twice": ({"Y": twice(Y_FRAME, 0)}, "Y_names: duplicate names g0; make them unique"),
    "columns twice": ({"X": twice(X_FRAME, 1)}, "X_names: duplicate names A; make them unique"),
    "names twice": ({"Y_names": list("abca")}, "Y_names: duplicate names a"),
    "too few names": ({"X_names": ["a"]}, "X_names has 1 names, expected 2"),
    "text for names": ({"Y_names": "abcd"}, "Y_names is the text 'abcd'; expected a sequence of 4 names"),
    "cells in another order": (
        {"Y": Y_FRAME, "X": X_FRAME[::-1]},
        "60 of 60 cells have other names in Y / in X .*sort X like Y",
    ),
    "cells of Z in another order": (
        {"X": X_FRAME, "Z": Z_FRAME[::-1]},
        "60 of 60 cells have other names in X / in Z .*sort Z like X",
    ),
    "text in Y": ({"Y": Y.astype(str)}, "Y holds values of type .*; expected a matrix of numbers"),
    "text in X": ({"X": X_FRAME.assign(donor="a")}, r"X has columns that are not numbers \(donor\)"),
    "objects": ({"Y": Y.astype(object)}, "Y holds values of type object"),
    "complex": ({"Y": Y + 1j}, "Y holds values of type complex128"),
    "nothing": ({"Y": None}, "Y holds values of type object"),
    "a path": ({"Y": "cells.h5ad"}, "Y holds values of type"),
    "a stack": ({"Y": Y[None]}, "Y has 3 dimensions; expected a matrix"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(name):
    change, message = BAD_INPUT[name]
    with pytest.raises(ValueError, match=message) as caught:
        lmmfit(**({"Y": Y, "X": X, "Z": Z} | change))
    assert "\n" not in str(caught.value)


def test_rank_deficient_x_names_the_columns():
    X_twice = np.column_stack([X, X[:, 0] - 2 * X[:, 1], RNG.normal(size=N)])
    with pytest.raises(ValueError, match="X is rank deficient") as caught:
        lmmfit(Y, X_twice, Z, X_names=["intercept", "treated", "untreated", "age"])
    named = set(re.findall("intercept|treated|untreated|age", str(caught.value)))
    assert named == {"intercept", "treated", "untreated"}


def test_a_budget_too_small_for_one_gene():
    with pytest.raises(MemoryError, match=r"one gene needs [\d,]+ bytes, memory allows [\d,]+; raise memory to"):
        lmmfit(Y, X, Z, memory=100)


SUMMARY = sslmm(X, Y, Z)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ZZ": None, "n": None}, "or one SummaryStats; missing: ZZ, n"),
        ({"XY": SUMMARY.XY.T}, r"XY has shape \(4, 2\), wanted \(2, 2\)"),
        ({"ZX": SUMMARY.ZX.T}, r"ZX has shape \(2, 6\), wanted \(6, 2\)"),
        ({"ZY": SUMMARY.ZY[:, :2]}, r"ZY has shape \(6, 2\), wanted \(6, 4\)"),
        ({"Ynorm": SUMMARY.Ynorm[:2]}, r"Ynorm has shape \(2,\), wanted \(4,\)"),
        ({"Ynorm": holed(SUMMARY.Ynorm, 2)}, r"Ynorm holds 1 value"),
        ({"XX": holed(SUMMARY.XX, (0, 1))}, r"XX holds 1 value.*position \(0, 1\)"),
        ({"XX": np.ones((2, 2))}, "X is rank deficient .* X1, X2"),
        ({"n": 60.5}, "n=60.5: expected the number of cells, a whole number"),
        ({"n": "sixty"}, "n='sixty': expected the number of cells"),
        ({"n": [60, 61]}, "expected the number of cells"),
        ({"n": 2}, "2 fixed-effect columns but only 2 cells"),
        ({"d": [4]}, r"sum\(d\) must equal"),
    ],
)
def test_bad_summary_level_data(change, message):
    with pytest.raises(ValueError, match=message):
        lmm(**(dict(SUMMARY) | change))


def test_d_of_lmm_is_not_its_second_argument():
    with pytest.raises(
        ValueError, match=r"got SummaryStats and also XY: name the options, as in lmm\(summary, d=\.\.\)"
    ):
        lmm(SUMMARY, [6])


def test_a_gene_without_variance_is_a_warning_not_an_error():
    with pytest.warns(UserWarning, match="1 of 4 features do not vary once X is taken out") as caught:
        fit = lmmfit(holed(Y, 2, 0.0), X, Z)
    assert len(caught) == 1
    assert fit.status.tolist() == ["converged", "converged", "no_variance", "converged"]
    assert fit.p.iloc[:, 2].isna().all() and fit.p.drop(columns="Gene3").notna().all(axis=None)


@pytest.mark.parametrize("origin", [20240100.0, 1.7e9])
@pytest.mark.parametrize("cell_means", [False, True])
def test_a_column_far_from_zero_is_used_from_an_origin(origin, cell_means, caplog):
    """The coefficient is the same; the others are those at the origin, which the log has."""
    rng = np.random.default_rng(5)
    Z, day, arm = np.repeat(np.eye(6), 10, axis=0), rng.integers(1, 29, 60).astype(float), np.arange(60) % 2
    first = np.stack([1 - arm, arm] if cell_means else [np.ones(60)], axis=1)
    X, near = (np.column_stack([first, at + day]) for at in (origin, origin - np.rint(origin + day.mean())))
    kept, Y = X.copy(), rng.normal(size=(3, 60))
    found, wanted = (lmmfit(Y, A, Z) for A in (X, near))
    assert f"is used less {np.rint(origin + day.mean()):.15g}" in caplog.text
    np.testing.assert_array_equal(X, kept)
    for name in ("coef", "se", "theta", "logLik"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, err_msg=name)


def test_a_column_far_from_zero_without_an_intercept_is_kept():
    day = 20240100.0 + np.arange(60.0)
    ss = sslmm(day[:, None], np.random.default_rng(5).normal(size=(3, 60)), np.repeat(np.eye(6), 10, axis=0))
    np.testing.assert_allclose(ss.XX, (day**2).sum(), rtol=1e-12)
