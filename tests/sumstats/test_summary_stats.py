"""Sums over cells: by whatever way the cells come in, and in however many parts.

Sums are compared relative to the norms of the two columns that are multiplied (Cauchy and Schwarz).
"""

from __future__ import annotations

from itertools import pairwise

import dense
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.projection import Projection
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.alignment import default_names
from lmm_gpu.sumstats.assembly import assemble, cross_products
from lmm_gpu.sumstats.products import GeneProducts, design_products, gene_products
from lmm_gpu.sumstats.summary_checks import check_components
from lmm_gpu.sumstats.summary_stats import SummaryStats

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


def project(ss):
    return Projection.build(ss).genes(ss).sums


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
    ("name", "value", "message"),
    [
        ("features", ("a", "b", "c", "d"), "only on the left: Gene1, Gene2, Gene3 and 1 more; only on the right: a, b"),
        ("features", ("Gene1", "Gene2", "Gene3", "Gene3"), "only on the left: Gene4; keep the genes that both sides"),
        ("fixed_names", ("p", "X2", "X3"), "only on the left: X1; only on the right: p"),
        ("fixed_names", ("X2", "X1", "X3"), "in another order, from X1 / X2 on"),
        ("component_names", ("donor", "var2"), "only on the left: var1; only on the right: donor"),
        ("formula", "~ x", "None on the left, '~ x' on the right"),
        ("transform", "log1p", "None on the left, 'log1p' on the right"),
        ("random_names", default_names("U", 15), r"\(d = \(9, 6\) and \(9, 6\)\), but some are auto-generated"),
        ("d", (6, 9), r"\(d = \(9, 6\) and \(6, 9\)\), but some are auto-generated; name the columns of Z"),
    ],
)
def test_other_genes_or_models_do_not_add(name, value, message):
    """Levels that are only numbered are the same ones only if there are as many."""
    a, b = split([30], counts())
    other = SummaryStats(**{**vars(b), name: value})
    name = "random_names" if name == "d" else name
    with pytest.raises(ValueError, match=f"cannot add summary statistics: {name} differ:? {message}"):
        a + other


def test_another_number_of_random_effects_does_not_add():
    a, b = split([30], counts())
    other = SummaryStats(**{**vars(b), "d": (15,), "component_names": ("var1",)})
    with pytest.raises(ValueError, match="component_names differ: only on the left: var2"):
        a + other


def test_levels_with_the_same_name_do_not_add_unless_they_are_in_the_same_place():
    a, b = split([30], counts(), random_names=("A", *"ABCDEFGHIJKLMN"))
    assert (a + b).n == DESIGN.n
    other = SummaryStats(**{**vars(b), "random_names": b.random_names[::-1]})
    with pytest.raises(
        ValueError, match=r"random_names differ, and some appear more than once \(A\): make them unique"
    ):
        a + other


@pytest.mark.parametrize("call", ["scale(age)", "poly(age, 2)", "bs(age, df=4)", "x + center (age)"])
def test_columns_that_depend_on_all_cells_do_not_add(call):
    """Ages scaled by those of one hospital are other numbers than ages scaled by those of another."""
    a, b = split([30], counts(), formula=f"~ {call} + (1 | donor)")
    with pytest.raises(ValueError, match="depends on the cells it sees, so that its columns are not the same"):
        a + b
    a, b = split([30], counts(), formula="~ C(scale) + log(bs) + (1 | poly)")
    assert (a + b).n == DESIGN.n


def test_numbers_do_not_add():
    with pytest.raises(TypeError):
        split([30], counts())[0] + 1


# --- labels of both sides -------------------------------------------------------------------------

DONORS = tuple(f"D{i}" for i in range(9))
BATCHES = ("D0", "D3", "B2", "B3", "B4", "B5")  # two batches are called as donors are
SIDES = st.lists(st.integers(0, 3), min_size=DESIGN.n, max_size=DESIGN.n)


def site(cells, Y, rng, mean=0.0):
    """Statistics of some cells, with the random levels that they have and the genes in an order of their own."""
    Z = DESIGN.Z[cells]
    seen = np.flatnonzero(Z.any(axis=0)) if len(cells) else np.array([0, 9])
    columns = np.concatenate([rng.permutation(seen[seen < 9]), rng.permutation(seen[seen >= 9])])
    genes = rng.permutation(Y.shape[1])
    levels = DONORS + BATCHES
    return cross_products(
        DESIGN.X[cells],
        Z[:, columns],
        Y[cells][:, genes] + mean,
        d=(int((seen < 9).sum()), int((seen >= 9).sum())),
        features=tuple(f"g{gene}" for gene in genes),
        random_names=tuple(levels[column] for column in columns),
        component_names=("donor", "batch"),
    )


def in_order(ss):
    """The statistics in one order of genes and levels, and their labels."""
    genes = sorted(range(ss.m), key=lambda i: ss.features[i])
    owner = np.repeat(np.arange(len(ss.d)), ss.d)
    rows = sorted(range(sum(ss.d)), key=lambda j: (owner[j], ss.random_names[j]))
    labels = [ss.features[i] for i in genes], [(owner[j], ss.random_names[j]) for j in rows]
    arrays = {"XX": ss.XX, "XY": ss.XY[:, genes], "ZX": ss.ZX[rows], "ZY": ss.ZY[rows][:, genes]}
    arrays |= {"ZZ": ss.ZZ[np.ix_(rows, rows)], "Ynorm": ss.Ynorm[genes], "Ysum": ss.Ysum[genes]}
    return labels, arrays | {"yry": project(ss).yry[genes]}


def assert_same_statistics(found, wanted, scale):
    (labels, arrays), (wanted_labels, wanted_arrays) = in_order(found), in_order(wanted)
    assert labels == wanted_labels
    for name, values in wanted_arrays.items():
        relative = 1e-8 if name == "yry" else 1e-12
        tolerance = relative * (np.abs(values).max() if name in ("yry", "Ynorm") else DESIGN.n)
        tolerance *= scale if name in ("XY", "ZY", "Ysum") else 1.0
        np.testing.assert_allclose(arrays[name], values, rtol=0, atol=tolerance, err_msg=name)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(SIDES, st.integers(0, 1000), st.sampled_from([0.0, 1e6]), st.permutations(range(4)))
def test_any_split_over_sites_in_any_order(sides, seed, mean, order):
    """Same statistics as of all cells at once, whatever donors a site has, commutative and associative."""
    rng, Y = np.random.default_rng(seed), dense.draw_genes(DESIGN, 4, seed)
    parts = [site(np.flatnonzero(np.array(sides) == side), Y, rng, mean) for side in range(4)]
    a, b, c, d = (parts[i] for i in order)
    whole, scale = site(np.arange(DESIGN.n), Y, rng, mean), 100 * max(1.0, mean)
    for total in (((a + b) + c) + d, a + (b + (c + d)), (d + c) + (b + a)):
        assert total.n == DESIGN.n
        assert_same_statistics(total, whole, scale)


def test_levels_and_genes_keep_the_order_of_the_left():
    rng, Y = np.random.default_rng(3), dense.draw_genes(DESIGN, 4)
    few = np.flatnonzero(DESIGN.Z[:, :3].any(axis=1))
    a, b = site(few, Y, rng), site(np.arange(DESIGN.n), Y, rng)
    total = a + b
    assert total.features == a.features != b.features
    split_at, width = a.d[0], total.d[0]
    assert total.random_names[:split_at] == a.random_names[:split_at]
    assert set(total.random_names[:width]) == set(DONORS) and total.d == (9, 6)
    new = [name for name in b.random_names[:9] if name not in a.random_names[:split_at]]
    assert list(total.random_names[split_at:width]) == new


def test_a_donor_is_no_batch_of_the_same_name():
    """D0 is a donor on the left and a batch on the right: two levels."""
    one = np.ones((2, 1))
    labels = {"d": (1, 1), "component_names": ("donor", "batch")}
    a = cross_products(one, np.eye(2), one, random_names=("D0", "B"), **labels)
    b = cross_products(one, np.eye(2), one, random_names=("D1", "D0"), **labels)
    total = a + b
    assert (total.random_names, total.d) == (("D0", "D1", "B", "D0"), (2, 2))
    np.testing.assert_array_equal(total.ZZ, np.eye(4))
    np.testing.assert_array_equal(total.ZY, np.ones((4, 1)))


def test_fits_of_sites_are_the_pooled_fit():
    """Donors spread over hospitals: the pooled fit to 1e-10, theta at the scale of the residual."""
    rng, Y = np.random.default_rng(5), dense.draw_genes(DESIGN, 4)
    parts = [site(rows, Y, rng) for rows in np.array_split(np.argsort(DESIGN.Z[:, :9].argmax(axis=1)), 3)]
    options = FitOptions(epsilon=1e-9)
    pooled, found = (fit_summary(ss, options) for ss in (site(np.arange(DESIGN.n), Y, rng), sum(parts[1:], parts[0])))
    genes = list(pooled.summary.features)
    residual = pooled.theta.loc["var0"]
    np.testing.assert_allclose(found.theta[genes] / residual, pooled.theta / residual, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.coef[genes] / pooled.se, pooled.coef / pooled.se, rtol=0, atol=1e-10)


def test_fingerprint():
    """Of what has to be the same to add, and nothing else."""
    a, b = split([30], counts(), formula="~ x")
    assert a.fingerprint == b.fingerprint
    assert len(a.fingerprint) == 12 and set(a.fingerprint) <= set("0123456789abcdef")
    changes = {"formula": "~ y", "transform": "log1p", "fixed_names": ("a", "b", "c"), "component_names": ("a", "b")}
    others = [SummaryStats(**{**vars(a), name: value}).fingerprint for name, value in changes.items()]
    assert len({a.fingerprint, *others}) == 5
    same = {"random_names": default_names("U", 15), "features": ("a", "b", "c", "d"), "d": (6, 9)}
    for name, value in same.items():
        assert SummaryStats(**{**vars(a), name: value}).fingerprint == a.fingerprint


def test_genes_join():
    Y = counts(m=5)
    parts = [gene_products(DESIGN.X, DESIGN.Z, Y[:, lo:hi]) for lo, hi in ((0, 2), (2, 3), (3, 5))]
    joined = assemble(design_products(DESIGN.X, DESIGN.Z), GeneProducts.join(parts))
    assert_close(joined, expected(DESIGN.X, DESIGN.Z, Y))
    assert joined.m == 5
    alone = GeneProducts.join([gene_products(DESIGN.X, DESIGN.Z, Y)])
    np.testing.assert_array_equal(alone.XY, gene_products(DESIGN.X, DESIGN.Z, Y).XY)


# --- genes of the same cells ----------------------------------------------------------------------


def of_genes(Y, names, **labels):
    return cross_products(DESIGN.X, DESIGN.Z, Y, d=DESIGN.d, features=tuple(names), **labels)


@pytest.mark.parametrize("mean", [[0.0] * 5, [0, 0, 0, 1e6, 0], [1e6, 0, 1e3, 0, -1e6]])
@pytest.mark.parametrize("cuts", [[], [2], [1, 4], [1, 2, 3, 4]])
def test_genes_concatenate(cuts, mean):
    """Also those with a centre to those without."""
    Y = dense.draw_genes(DESIGN, 5) + mean
    whole = of_genes(Y, "abcde")
    parts = [of_genes(Y[:, lo:hi], "abcde"[lo:hi]) for lo, hi in pairwise([0, *cuts, 5])]
    found = SummaryStats.concat(parts)
    assert (found.features, found.n, found.m) == (tuple("abcde"), DESIGN.n, 5)
    assert (found.centred is None) == (not any(mean))
    for name in (*STATISTICS, "Ysum"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-6)
    Q = DESIGN.error_contrasts()
    np.testing.assert_allclose(project(found).yry, ((Q.T @ (Y - mean)) ** 2).sum(axis=0), rtol=1e-8)


def test_cells_and_genes_commute():
    """The sum of joined genes is the join of summed genes, to rounding of the design too."""
    Y, cells = dense.draw_genes(DESIGN, 4), (slice(0, 20), slice(20, 60))
    parts = [
        [
            cross_products(DESIGN.X[c], DESIGN.Z[c], Y[c, g : g + 2], features=("g" + str(g), "h" + str(g)))
            for c in cells
        ]
        for g in (0, 2)
    ]
    (a, b), (c, d) = parts
    first, then = SummaryStats.concat([a + b, d + c]), SummaryStats.concat([a, c]) + SummaryStats.concat([b, d])
    assert first.features == then.features == ("g0", "h0", "g2", "h2")
    for name in STATISTICS:
        np.testing.assert_allclose(getattr(first, name), getattr(then, name), rtol=1e-12, atol=1e-12)


def test_a_part_without_sums_leaves_the_join_without():
    a, b = of_genes(dense.draw_genes(DESIGN, 2), "ab"), of_genes(dense.draw_genes(DESIGN, 2) + 1e6, "cd")
    joined = SummaryStats.concat([SummaryStats(**vars(a) | {"Ysum": None}), b])
    assert joined.mean() is None and joined.centred is None
    np.testing.assert_array_equal(joined.XY[:, 2:], b.XY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": ("a", "x", "b", "y")}, "features appear more than once: a, b; rename them"),
        ({"n": 61}, "n differ: 60 on the left, 61 on the right"),
        (
            {"XX": 1.000001 * (DESIGN.X.T @ DESIGN.X)},
            "XX differ: wanted other genes of the same cells; other cells",
        ),
        ({"ZX": np.zeros((15, 3))}, "ZX differ"),
        ({"ZZ": np.eye(15)}, "ZZ differ"),
        ({"d": (10, 5)}, r"d differ: \(9, 6\) on the left, \(10, 5\) on the right"),
        ({"random_names": default_names("U", 15)}, "random_names differ: only on the left: Z1, Z2, Z3 and 12 more"),
        ({"fixed_names": ("X1", "X2", "x")}, "fixed_names differ: only on the left: X3; only on the right: x"),
        ({"component_names": ("donor", "var2")}, "component_names differ"),
        ({"formula": "~ x"}, "formula differ"),
        ({"transform": "log1p"}, "transform differ"),
    ],
)
def test_other_cells_do_not_concatenate(change, message):
    a, b = of_genes(counts(), "abcd"), of_genes(counts(), "efgh")
    with pytest.raises(ValueError, match=f"cannot concatenate summary statistics: {message}"):
        SummaryStats.concat([a, SummaryStats(**vars(b) | change)])


@pytest.mark.parametrize("parts", [[], [1, 2]])
def test_nothing_to_concatenate(parts):
    with pytest.raises(ValueError, match="takes a list of SummaryStats of the same cells, at least one"):
        SummaryStats.concat(parts)


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
