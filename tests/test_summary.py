"""Sums over cells: by whatever way the cells come in, and in however many parts.

Sums are compared relative to the norms of the two columns that are multiplied (Cauchy and Schwarz).
"""

from __future__ import annotations

from itertools import pairwise

import dense
import numpy as np
import pytest
import scipy.sparse

from lmm_gpu.products import design_products, gene_products, join_genes
from lmm_gpu.summary import SummaryStats, assemble, check_components, cross_products, default_names, project

DESIGN = dense.DESIGNS["two"]
FORMATS = ["csr", "csc", "coo", "lil", "dia", "bsr", "dok"]
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")


def counts(m=4, seed=0):
    """Sparse genes (n, m) of small integers, which float32 and every integer type hold exactly."""
    rng = np.random.default_rng(seed)
    return rng.poisson(0.4, size=(DESIGN.n, m)).astype(float)


def expected(X, Z, Y):
    products = {"XX": X.T @ X, "XY": X.T @ Y, "ZX": Z.T @ X, "ZY": Z.T @ Y, "ZZ": Z.T @ Z}
    return products | {"Ynorm": (Y**2).sum(axis=0), "Ysum": Y.sum(axis=0), "n": len(X)}


def assert_close(found, wanted):
    """`found` (SummaryStats) against a dict of arrays, to a few roundings."""
    norms = {name: np.sqrt(np.diag(wanted[2 * name])) for name in "XZ"} | {"Y": np.sqrt(wanted["Ynorm"])}
    assert found.n == wanted["n"]
    for name in STATISTICS[:-1]:
        scale = norms[name[0]][:, None] * norms[name[1]] + 1e-300
        assert np.max(np.abs(getattr(found, name) - wanted[name]) / scale) < 1e-14, name
    np.testing.assert_allclose(found.Ynorm, wanted["Ynorm"], rtol=1e-14)
    np.testing.assert_allclose(found.Ysum, wanted["Ysum"], atol=1e-14 * np.abs(wanted["Ynorm"]).max() * found.n)


def is_float64(ss):
    return all(getattr(ss, name).dtype == np.float64 for name in (*STATISTICS, "Ysum"))


# --- what cells may be ----------------------------------------------------------------------------


@pytest.mark.parametrize("container", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("format", FORMATS)
def test_sparse_genes_and_random_effects(format, container):
    Y = counts()
    found = cross_products(DESIGN.X, container(DESIGN.Z).asformat(format), container(Y).asformat(format))
    assert_close(found, expected(DESIGN.X, DESIGN.Z, Y))
    assert is_float64(found)
    assert all(type(getattr(found, name)) is np.ndarray for name in STATISTICS)


@pytest.mark.parametrize("sparse", ["X", "Z", "Y", "XZ", "XZY"])
def test_any_of_them_sparse(sparse):
    arrays = {"X": DESIGN.X, "Z": DESIGN.Z, "Y": counts()}
    found = cross_products(*(scipy.sparse.csr_array(A) if name in sparse else A for name, A in arrays.items()))
    assert_close(found, expected(**arrays))


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "uint8", "uint16", "bool"])
@pytest.mark.parametrize("wrap", [np.asarray, scipy.sparse.csr_array])
def test_values_of_any_type_are_summed_in_float64(dtype, wrap):
    """250 squared does not fit a byte, and 2^24 + 1 does not fit float32."""
    Y = np.minimum(counts(), 1) * (1.0 if dtype == "bool" else 250.0)
    Z = wrap(DESIGN.Z.astype(dtype))
    found = cross_products(DESIGN.X, Z, wrap(Y.astype(dtype)))
    assert_close(found, expected(DESIGN.X, DESIGN.Z, Y))
    assert is_float64(found)


def test_float32_values_do_not_lose_their_sum():
    n, step = 5000, np.float32(0.1)
    found = cross_products(np.ones((n, 1), np.float32), np.ones((n, 1), np.float32), np.full((n, 1), step))
    np.testing.assert_allclose(found.XY.item(), n * float(step), rtol=1e-13)
    np.testing.assert_allclose(found.Ynorm.item(), n * float(step) ** 2, rtol=1e-13)


# --- sums -----------------------------------------------------------------------------------------


def split(cuts, Y, **labels):
    """Summary statistics of consecutive parts of the cells."""
    bounds = [0, *cuts, DESIGN.n]
    return [
        cross_products(DESIGN.X[lo:hi], DESIGN.Z[lo:hi], Y[lo:hi], d=DESIGN.d, **labels) for lo, hi in pairwise(bounds)
    ]


@pytest.mark.parametrize("cuts", [[30], [1], [7, 7], [0], [10, 20, 30, 40, 50]])
def test_parts_of_the_cells_add_up(cuts):
    Y = counts()
    parts = split(cuts, Y)
    total = sum(parts[1:], start=parts[0])
    assert_close(total, expected(DESIGN.X, DESIGN.Z, Y))
    backwards = sum(parts[-2::-1], start=parts[-1])
    assert_close(backwards, expected(DESIGN.X, DESIGN.Z, Y))
    assert total.d == DESIGN.d
    np.testing.assert_allclose(total.mean(), Y.mean(axis=0), rtol=1e-14)


def test_addition_leaves_its_operands_alone():
    a, b = split([30], counts())
    before = a.XX.copy()
    _ = a + b
    np.testing.assert_array_equal(a.XX, before)


def test_a_part_without_sums_has_no_mean():
    a, b = split([30], counts())
    without = SummaryStats(**{**vars(b), "Ysum": None})
    assert (a + without).mean() is None
    assert (without + a).mean() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", ("a", "b", "c", "d")),
        ("fixed_names", ("p", "q", "r")),
        ("random_names", default_names("U", 15)),
        ("d", (6, 9)),
        ("formula", "~ x"),
        ("transform", "log1p"),
    ],
)
def test_other_genes_or_models_do_not_add(name, value):
    a, b = split([30], counts())
    other = SummaryStats(**{**vars(b), name: value})
    with pytest.raises(ValueError, match=f"cannot add summary statistics: {name} differ"):
        a + other


def test_genes_join():
    Y = counts(m=5)
    parts = [gene_products(DESIGN.X, DESIGN.Z, Y[:, lo:hi]) for lo, hi in ((0, 2), (2, 3), (3, 5))]
    joined = assemble(design_products(DESIGN.X, DESIGN.Z), join_genes(parts))
    assert_close(joined, expected(DESIGN.X, DESIGN.Z, Y))
    assert joined.m == 5
    alone = join_genes([gene_products(DESIGN.X, DESIGN.Z, Y)])
    np.testing.assert_array_equal(alone["XY"], gene_products(DESIGN.X, DESIGN.Z, Y)["XY"])


# --- access and labels ----------------------------------------------------------------------------


def test_statistics_by_name():
    ss = cross_products(DESIGN.X, DESIGN.Z, counts())
    assert ss.keys() == ("n", "XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")
    assert all(ss[name] is getattr(ss, name) for name in ss.keys()[1:])
    assert ss["n"] == DESIGN.n
    with pytest.raises(KeyError, match="'Ysum' is not a summary statistic; known: n, XX"):
        ss["Ysum"]


def test_default_labels():
    ss = cross_products(DESIGN.X, DESIGN.Z, counts(m=2))
    assert (ss.features, ss.fixed_names) == (("Gene1", "Gene2"), ("X1", "X2", "X3"))
    assert (ss.d, ss.component_names, ss.random_names[-1]) == ((15,), ("var1",), "Z15")
    assert cross_products(DESIGN.X, DESIGN.Z, counts(), d=DESIGN.d).component_names == ("var1", "var2")


def test_given_labels_are_kept():
    labels = {
        "d": (9, 6),
        "features": ("a", "b"),
        "fixed_names": ("one", "trt", "x"),
        "random_names": default_names("u", 15),
        "component_names": ("donor", "batch"),
        "formula": "~ trt",
        "transform": "log2p1",
    }
    ss = cross_products(DESIGN.X, DESIGN.Z, counts(m=2), **labels)
    assert {name: getattr(ss, name) for name in labels} == labels


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("XX", (2, 2), r"XX has shape \(2, 2\), wanted \(3, 3\) for 3 fixed, 15 random columns and 4 features"),
        ("XY", (3, 5), r"XY has shape \(3, 5\), wanted \(3, 4\)"),
        ("ZX", (3, 15), r"ZX has shape \(3, 15\), wanted \(15, 3\)"),
        ("ZY", (4, 15), r"ZY has shape \(4, 15\), wanted \(15, 4\)"),
        ("ZZ", (15, 14), r"ZZ has shape \(15, 14\), wanted \(15, 15\)"),
        ("Ynorm", (4, 1), r"Ynorm has shape \(4, 1\), wanted \(4,\)"),
    ],
)
def test_shapes_that_do_not_match(name, shape, message):
    ss = cross_products(DESIGN.X, DESIGN.Z, counts())
    with pytest.raises(ValueError, match=message):
        SummaryStats(**{**vars(ss), name: np.zeros(shape)})


@pytest.mark.parametrize("d", [(), (15, 1), (9, 5), (15, 0), (16, -1)])
def test_components_must_add_up_to_the_columns_of_Z(d):
    with pytest.raises(ValueError, match=r"sum\(d\) must equal the number of columns of Z: got d = .*Z has 15 columns"):
        check_components(d, 15)
    with pytest.raises(ValueError, match=r"sum\(d\) must equal"):
        cross_products(DESIGN.X, DESIGN.Z, counts(), d=d)


def test_a_rank_deficient_X_is_refused_by_name():
    X = np.column_stack([DESIGN.X, DESIGN.X[:, 1] - 2 * DESIGN.X[:, 0]])
    names = ("(Intercept)", "trt", "age", "again")
    ss = cross_products(X, DESIGN.Z, counts(), fixed_names=names)
    with pytest.raises(ValueError, match=r"X is rank deficient .*: \(Intercept\), trt, again; drop one of them"):
        project(ss)


def test_an_empty_column_of_X_is_refused_by_name():
    ss = cross_products(
        np.column_stack([DESIGN.X, np.zeros(60)]), DESIGN.Z, counts(), fixed_names=("a", "b", "c", "none")
    )
    with pytest.raises(ValueError, match="linearly dependent: none; drop"):
        project(ss)


@pytest.mark.parametrize("n", [2, 3])
def test_no_more_cells_than_fixed_effects(n):
    ss = cross_products(DESIGN.X[:n], DESIGN.Z[:n], counts()[:n])
    with pytest.raises(ValueError, match=f"3 fixed-effect columns but only {n} cells: no residual is left"):
        project(ss)


# --- projection -----------------------------------------------------------------------------------


def test_projection(design):
    """X is taken out of Z and Y as the dense residual maker does it."""
    Y = dense.draw_genes(design, 3)
    Q = design.error_contrasts()
    RZ, RY = Q.T @ design.Z, Q.T @ Y
    found = project(cross_products(design.X, design.Z, Y, d=design.d))
    ols = np.linalg.lstsq(design.X, Y, rcond=None)[0]
    np.testing.assert_allclose(found.S, RZ.T @ RZ, atol=1e-12 * design.n)
    np.testing.assert_allclose(found.zry, RZ.T @ RY, atol=1e-12 * design.n * np.abs(Y).max())
    np.testing.assert_allclose(found.yry, (RY**2).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.beta_ols, ols, atol=1e-12)
    np.testing.assert_allclose(found.xxz, np.linalg.lstsq(design.X, design.Z, rcond=None)[0], atol=1e-12)
    np.testing.assert_allclose(found.XXinv @ design.X.T @ design.X, np.eye(design.X.shape[1]), atol=1e-12)
    assert found.n == design.n
