"""The engine on every array library that is installed, against NumPy: 1e-10 on each quantity's scale.

PyTorch and JAX are not dependencies of anything: their tests run where they are found. JAX and PyTorch each refuse
what the other libraries let pass: values inside `jax.jit`, values or a missing device on PyTorch's device "meta".
"""

from __future__ import annotations

import importlib.util
from dataclasses import fields, is_dataclass, replace
from itertools import product

import cupy_like
import cupy_like_device
import dense
import numpy as np
import pytest

from lmm_gpu.backend.arrays import indices, namespace, to_numpy
from lmm_gpu.backend.fusion import flatten
from lmm_gpu.estimation import block_size, fisher_scoring
from lmm_gpu.estimation.fisher_scoring import Rules, State, advance, maximise
from lmm_gpu.estimation.fit_options import BOUNDS, FitOptions
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.estimation.status import Status
from lmm_gpu.inference.empirical_bayes import Prior
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

INSTALL = {
    "torch": "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu",
    "jax": "pip install jax",
}
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")
NAMES = ["one_nested", "two", "three_widest_inside"]
SEVERAL = ["two", "three_widest_inside"]

if all(importlib.util.find_spec(name) for name in ("jax", "jaxlib")):
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running


def asarray_of(name):
    """Function from NumPy arrays to float64 arrays of the library, or a skip that says how to get it."""
    if name == "cupy_like":
        return cupy_like.asarray
    library = pytest.importorskip(name, reason=f"{name} is not installed: {INSTALL[name]}")
    return library.asarray if name == "torch" else library.numpy.asarray


#: Library, design and method: all of them where CuPy is at stake. JAX compiles every operation for every shape anew.
CASES = [("cupy_like", *case) for case in product(NAMES, ("REML", "ML"))]
CASES += [("torch", "one_nested", "REML"), ("torch", "two", "ML"), ("torch", "three_widest_inside", "REML")]
CASES += [("jax", "one_nested", "REML")]
#: With bounds: every one of them where it takes little time.
FITS = [
    (case, bounds)
    for case, bounds in product(CASES, BOUNDS)
    if bounds == "auto" or (case[0] != "jax" and case[1] != NAMES[-1])
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, monkeypatch):
    """Library's function `asarray`, name of a design, and method."""
    library, name, method = request.param
    monkeypatch.setattr(block_size, "workers", lambda: 1)  # threads of many small operations wait for each other
    if library == "jax":
        monkeypatch.setattr(fisher_scoring, "WORTH_LEAVING", 1.0)  # genes leave together
    return asarray_of(library), name, method


def moved(thing, move):
    """`thing` with every array in it, at any depth of dataclasses and sequences, replaced by ``move(array)``."""
    if is_dataclass(thing):
        return replace(thing, **{one.name: moved(getattr(thing, one.name), move) for one in fields(thing) if one.init})
    if isinstance(thing, (list, tuple)):
        return type(thing)(moved(one, move) for one in thing)
    return move(thing) if hasattr(thing, "dtype") else thing


def summaries(name, asarray, m=4, *, constant=0):
    """Summary statistics of m genes and of constant ones in NumPy and in the library, and the design."""
    design = dense.DESIGNS[name]
    Y = np.hstack([dense.draw_genes(design, m), np.ones((design.n, constant))])
    ss = cross_products(design.X, design.Z, Y, d=design.d)
    return ss, moved(ss, asarray), design


def assert_close(found, wanted, scale=1.0):
    assert not isinstance(found, np.ndarray), "the result left the library"
    assert found.dtype == namespace(found).float64
    assert tuple(found.shape) == wanted.shape
    assert np.max(np.abs(to_numpy(found) - wanted) / scale) < 1e-10


# --- the same numbers -----------------------------------------------------------------------------


def test_cross_products(case):
    asarray, name, _ = case
    ss, _, design = summaries(name, asarray)
    Y = dense.draw_genes(design, 4)
    found = cross_products(asarray(design.X), asarray(design.Z), asarray(Y), d=design.d)
    for key in STATISTICS:
        wanted = getattr(ss, key)
        assert_close(getattr(found, key), wanted, np.abs(wanted).max())
        assert_close(getattr(found + replace(found, parts=("other cells",)), key), 2 * wanted, np.abs(wanted).max())


@pytest.mark.parametrize("library", ["cupy_like", "torch", "jax"])
def test_float32_is_accumulated_in_float64(library):
    asarray = asarray_of(library)
    design = dense.DESIGNS["one_nested"]
    Y = dense.draw_genes(design, 3).astype(np.float32)
    wanted = cross_products(design.X, design.Z, Y.astype(float), d=design.d)
    found = cross_products(asarray(design.X), asarray(design.Z), asarray(Y), d=design.d)
    for key in STATISTICS:
        assert_close(getattr(found, key), getattr(wanted, key), np.abs(getattr(wanted, key)).max())


@pytest.mark.parametrize("kind", ["positive", "negative", "mixed"])
def test_evaluate(case, kind):
    asarray, name, method = case
    ss, moved_ss, design = summaries(name, asarray)
    theta = dense.draw_theta(design, ss.m, kind)
    wanted = MixedModel.build(ss, method).likelihood.evaluate(theta)
    found = MixedModel.build(moved_ss, method).likelihood.evaluate(asarray(theta))
    sd = np.sqrt(np.einsum("iim->im", wanted.information))
    assert_close(found.value, wanted.value, np.abs(wanted.value))
    assert_close(found.score, wanted.score, sd)
    assert_close(found.information, wanted.information, sd[:, None] * sd)
    assert to_numpy(found.ok).all() and wanted.ok.all()


def test_model(case):
    asarray, name, method = case
    ss, moved_ss, design = summaries(name, asarray)
    theta = dense.draw_theta(design, ss.m, "mixed")
    C = np.vstack([np.eye(design.X.shape[1]), np.ones(design.X.shape[1])])
    ours, model = MixedModel.build(ss, method), MixedModel.build(moved_ss, method)
    at, variance = asarray(theta), ours.contrast_variance(theta, C)
    assert_close(model.coefficients(at), ours.coefficients(theta), np.sqrt(variance[:-1]))
    assert_close(model.contrast_variance(at, asarray(C)), variance, variance)
    gradient, cov = ours.contrast_gradient(theta, C), ours.covariance(theta)
    assert_close(model.contrast_gradient(at, asarray(C)), gradient, np.abs(gradient).max())
    assert_close(model.covariance(at), cov, np.abs(cov).max())
    information = ours.information_beta(theta)
    assert_close(model.information_beta(at), information, np.abs(information).max())
    assert_close(model.random_effects(at), ours.random_effects(theta), np.sqrt(theta[-1]))
    assert to_numpy(model.positive_definite(at)).all()


@pytest.mark.parametrize("rules", [Rules(), Rules(nonnegative=True), Rules(relaxed=True)], ids=repr)
def test_maximise(case, rules):
    asarray, name, method = case
    ss, moved_ss, _ = summaries(name, asarray)
    ours, theirs = MixedModel.build(ss, method).likelihood, MixedModel.build(moved_ss, method).likelihood
    wanted, found = maximise(ours, ours.start(), rules), maximise(theirs, theirs.start(), rules)
    assert_close(found.theta, wanted.theta, wanted.theta[-1])
    np.testing.assert_array_equal(to_numpy(found.status), wanted.status)
    np.testing.assert_array_equal(to_numpy(found.niter), wanted.niter)


@pytest.mark.filterwarnings("ignore:.*(do not vary|did not converge):UserWarning")
@pytest.mark.parametrize(("case", "bounds"), FITS, indirect=["case"])
def test_whole_fit(case, bounds):
    """Blocks of genes, one of them constant, to estimates and tests of contrasts, which come to the host."""
    asarray, name, method = case
    ss, moved_ss, design = summaries(name, asarray, constant=1)
    options = FitOptions(method=method, bounds=bounds, block=4 if name == "one_nested" else 3)
    wanted, found = fit_summary(ss, options), fit_summary(moved_ss, options)
    np.testing.assert_array_equal(found.status, wanted.status)
    fitted, a, b = np.arange(5) < 4, found.estimates, wanted.estimates
    for key, scale in {"theta": b.theta[-1], "se_theta": b.theta[-1], "coef": b.se, "se": b.se}.items():
        error = np.abs(getattr(a, key) - getattr(b, key)) / scale
        assert error[:, fitted].max() < 1e-10, key
    reml = ["kenward-roger"] if method == "REML" else []
    for ddf in ("satterthwaite", "lmertest", *reml, "between-within", "residual"):
        C = np.eye(design.X.shape[1])
        for prior in (None, Prior(4.0, 1.0)):
            ours, theirs = wanted.contrast_test(C, ddf, prior), found.contrast_test(C, ddf, prior)
            np.testing.assert_allclose(theirs.t, ours.t, rtol=1e-8)
            np.testing.assert_allclose(theirs.df, ours.df, rtol=1e-8)
        ours, theirs = wanted.f_test(C[:2], ddf), found.f_test(C[:2], ddf)
        np.testing.assert_allclose(theirs.statistic, ours.statistic, rtol=1e-7)
        np.testing.assert_allclose(theirs.df, ours.df, rtol=1e-7)
    for test in ("lrt", "wald", *(["rlrt"] if method == "REML" and len(design.d) == 1 else [])):
        ours, theirs = (fit.variance_test(0, method=test, draws=300) for fit in (wanted, found))
        np.testing.assert_allclose(theirs["p_value"], ours["p_value"], rtol=1e-5)
    np.testing.assert_allclose(found.ranef()["sd"], wanted.ranef()["sd"], rtol=1e-7)
    limits = [fit.variance_intervals()[["ci_low", "ci_high"]] for fit in (found, wanted)]
    np.testing.assert_allclose(*limits, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("library", ["cupy_like", "torch"])
def test_tabulated(library):
    """With enough genes the traces come from a table of the ratios: likewise on every library."""
    asarray = asarray_of(library)
    ss, moved_ss, _ = summaries("two", asarray, m=6000)
    ours, theirs = MixedModel.build(ss).likelihood, MixedModel.build(moved_ss).likelihood
    assert ours.trace_table is not None and theirs.trace_table is not None
    genes = np.arange(0, 6000, 1500)
    g = np.abs(dense.draw_theta(dense.DESIGNS["two"], 4, "positive")[:2])
    wanted, found = ours.select(genes).traces(g), theirs.select(indices(genes, theirs.yry)).traces(asarray(g))
    for key in ("T", "B", "E", "between_ss", "logdet"):
        assert_close(getattr(found, key), getattr(wanted, key), np.abs(getattr(wanted, key)).max())


# --- bad genes stand alone ------------------------------------------------------------------------


def test_indefinite_genes_do_not_affect_the_others(case):
    asarray, name, method = case
    ss, moved_ss, design = summaries(name, asarray)
    theta = dense.draw_theta(design, ss.m, "positive")
    ours = MixedModel.build(ss, method).likelihood.evaluate(theta)
    theta[0, 1::2] *= -50
    found = MixedModel.build(moved_ss, method).likelihood.evaluate(asarray(theta))
    good = np.arange(4) % 2 == 0
    np.testing.assert_array_equal(to_numpy(found.ok), good)
    np.testing.assert_allclose(to_numpy(found.value)[good], ours.value[good], rtol=1e-10)


def test_a_gene_of_nan_does_not_affect_the_others(case):
    asarray, name, method = case
    ss, _, _ = summaries(name, asarray, m=4)
    good = np.arange(4) != 2
    ours = MixedModel.build(ss, method).likelihood
    wanted = maximise(ours, ours.start(), Rules())
    for statistic in ("XY", "ZY"):
        getattr(ss, statistic)[:, 2] = np.nan
    theirs = MixedModel.build(moved(ss, asarray), method).likelihood
    found = maximise(theirs, theirs.start(), Rules())
    assert to_numpy(found.status)[2] == Status.FAILED
    np.testing.assert_allclose(to_numpy(found.theta)[:, good], wanted.theta[:, good], rtol=1e-8)


# --- one Fisher iteration that reads no value on the host -----------------------------------------


def begun(name, method, m=4):
    """Likelihood in NumPy, and a state whose next trial point is positive in all components."""
    likelihood = MixedModel.build(summaries(name, np.asarray, m)[0], method).likelihood
    return likelihood, fisher_scoring._begin(dense.draw_theta(dense.DESIGNS[name], m, "positive"))


ITERATION = [
    pytest.mark.parametrize("nonnegative", [False, True]),
    pytest.mark.parametrize("name", NAMES),
]


def iteration(test):
    for mark in ITERATION:
        test = mark(test)
    return test


@iteration
def test_an_iteration_under_jit(name, nonnegative):
    asarray, rules = asarray_of("jax"), Rules(nonnegative=nonnegative)
    likelihood, state = begun(name, "REML")
    wanted, likelihood = advance(state, likelihood, rules), moved(likelihood, asarray)
    found = jax.jit(lambda before: vars(advance(State(**before), likelihood, rules)))(vars(moved(state, asarray)))
    for key, value in vars(wanted).items():
        np.testing.assert_allclose(np.asarray(found[key]), value, rtol=1e-9, atol=1e-12, err_msg=key)


@iteration
def test_an_iteration_on_meta(name, nonnegative):
    """Shapes of 100,000 genes without their numbers: nothing can be read, and nothing else mixes with them."""
    asarray, m, rules = asarray_of("torch"), 100_000, Rules(nonnegative=nonnegative)
    likelihood, state = begun(name, "REML")
    likelihood, state = (moved(thing, lambda x: asarray(x).to("meta")) for thing in (likelihood, state))
    many = lambda x: x.new_empty((*x.shape[:-1], m))  # noqa: E731
    genes = {key: many(x) for key, x in vars(likelihood).items() if key in ("c", "h", "yry", "rss", "rss_error")}
    state = moved(state, many)
    found = advance(state, replace(likelihood, **genes), rules)
    for after, before in zip(flatten(found)[0], flatten(state)[0], strict=True):
        assert (after.shape, after.dtype, str(after.device)) == (before.shape, before.dtype, "meta")


@iteration
def test_an_iteration_without_synchronisation(name, nonnegative, method):
    rules = Rules(nonnegative=nonnegative)
    likelihood, state = (moved(thing, cupy_like.asarray) for thing in begun(name, method))
    with cupy_like_device.no_synchronisation():
        advance(state, likelihood, rules)
