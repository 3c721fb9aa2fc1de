"""The numbers of a gene do not depend on which other genes are fitted and tested with it."""

import warnings
from dataclasses import fields

import dense
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_gpu.estimation.estimates import Estimates
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products

DONOR = np.repeat(np.arange(8), 10)
X = np.column_stack([np.ones(80), DONOR % 2, np.linspace(-1, 1, 80)])
Z = [dense.one_hot(DONOR, 8), dense.one_hot(np.arange(80) % 5, 5)]
ODD = {
    "silent": np.zeros(80),
    "constant": np.full(80, 3.0),
    "constant within donors": DONOR.astype(float) ** 2,
    "one cell": np.eye(80)[7],
    "one cell per donor": (np.arange(80) % 10 == 3).astype(float),
    "a fixed effect": 2.0 * X[:, 2],
    "tiny": 1e-150 * np.random.default_rng(1).normal(size=80),
    "huge": 1e140 * np.random.default_rng(2).normal(size=80),
    "overflowing": 1e250 * np.random.default_rng(3).normal(size=80),
    "far from zero": 1e9 + np.random.default_rng(4).normal(size=80),
}


def plain_genes(m=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, m)) + sum(part @ rng.normal(size=(part.shape[1], m)) for part in Z)


def results(Y, effects):
    """Estimates and default tests of all genes, as arrays with genes last."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        fit = fit_summary(cross_products(X, np.hstack(Z[:effects]), Y, d=tuple(p.shape[1] for p in Z[:effects])))
        tested = fit.contrast_test(np.eye(3)[1:], "generalized")
        joint = fit.f_test(np.eye(3)[1:], "satterthwaite")
    found = {field.name: getattr(fit.estimates, field.name) for field in fields(Estimates)}
    return found | {"t": tested.t, "df": tested.df, "F": joint.statistic}


def assert_unchanged(names, effects):
    """The plain genes have the same results alone and between odd ones."""
    plain = plain_genes()
    alone = results(plain, effects)
    odd = np.column_stack([ODD[name] for name in names])
    half = len(names) // 2
    together = results(np.column_stack([odd[:, :half], plain, odd[:, half:]]), effects)
    for name, values in alone.items():
        ours = together[name][..., half : half + plain.shape[1]]
        np.testing.assert_allclose(ours, values, rtol=1e-7, atol=1e-7 * np.abs(values).max(), err_msg=name)


@pytest.mark.parametrize("effects", [1, 2])
@settings(max_examples=15, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=6))
def test_any_genes_leave_the_others_unchanged(names, effects):
    assert_unchanged(names, effects)


@pytest.mark.parametrize("effects", [1, 2])
@pytest.mark.parametrize("name", ODD)
def test_genes_of_one_odd_kind_have_a_status_and_no_exception(name, effects):
    """A block without any estimate passes through estimation and every test."""
    found = results(np.column_stack([ODD[name]] * 3), effects)
    without = ~np.isfinite(found["theta"]).all(axis=0)
    assert np.isnan(found["t"][:, without]).all()
    assert np.isnan(found["F"][without]).all()
    s_0 = found["theta"][-1]
    assert (s_0[~without] > 0).all()
