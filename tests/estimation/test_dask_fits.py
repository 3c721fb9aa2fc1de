"""Blocks of genes as dask tasks give what one process gives."""

import dense
import numpy as np
import pytest

from lmm_gpu.estimation import dask_fits
from lmm_gpu.estimation.covariance_terms import terms_of
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.estimation.fitting import fit_genes
from lmm_gpu.sumstats.assembly import cross_products

distributed = pytest.importorskip("distributed")


@pytest.mark.parametrize("theta0", [None, (0.3, 0.2, 1.0)])
def test_tasks_of_blocks_give_the_estimates_of_one_process(theta0):
    design = dense.DESIGNS["one_crossed" if theta0 is None else "two"]
    summary = cross_products(design.X, design.Z, dense.draw_genes(design, 7), d=design.d)
    options, done = FitOptions(theta0=theta0), []
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=3, dashboard_address=None) as client:
        found, model = dask_fits.fit_genes_on_workers(summary, options, client, done.append)
    wanted, _ = fit_genes(summary, options)
    for name in ("theta", "se_theta", "logLik", "coef", "se", "status"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, err_msg=name)
    assert sum(done) == summary.m
    assert len(done) == 3  # one block for each thread
    assert model.likelihood.n_components == len(design.d)


def test_effects_of_a_term_have_the_same_levels():
    with pytest.raises(ValueError, match="the same number for all"):
        terms_of((4, 5), (2,))
