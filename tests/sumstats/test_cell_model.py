"""From data to statistics in one way: selected cells and genes, weights, identities of checkpoints, and dask."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lmm_gpu
from lmm_gpu.design.contrasts import contrast_matrix
from lmm_gpu.sumstats.cell_model import ReadOptions, open_cells
from lmm_gpu.sumstats.checkpoint import Checkpoint
from lmm_gpu.sumstats.summary_checks import check_invariants
from lmm_gpu.sumstats.summary_stats import SummaryStats

N, M = 120, 7
RNG = np.random.default_rng(8)
DONOR = np.arange(N) % 8
OBS = pd.DataFrame(
    {
        "donor": [f"D{d}" for d in DONOR],
        "arm": np.where(DONOR < 4, "a", "b"),
        "depth": RNG.uniform(0.5, 2.0, N),
        "w": np.where(np.arange(N) % 9 == 0, 0.0, RNG.uniform(0.3, 3.0, N)),
    },
    index=[f"cell{i}" for i in range(N)],
)
GENES = [f"g{i}" for i in range(M)]
COUNTS = RNG.poisson(1.5, (N, M))
VALUES = RNG.normal(size=(N, M)) + RNG.normal(size=(8, M))[DONOR]
FORMULA = "~ arm + (1 | donor)"
REFERENCE = Path(__file__).parents[1] / "reference"
STATISTICS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm", "Ysum")


def summed(data, formula=FORMULA, **options):
    return lmm_gpu.summarize(data, formula, progress=False, **options)


# --- before cells are read ------------------------------------------------------------------------


def test_contrasts_are_checked_before_any_cell_is_read(monkeypatch):
    monkeypatch.setattr("lmm_gpu.io.source.Source.chunks", lambda *_: pytest.fail("cells were read"))
    with open_cells((VALUES, OBS), FORMULA) as model:
        with pytest.raises(ValueError, match="no column is called 'amr"):
            contrast_matrix("amr[T.b]", model.design.fixed_names)
        assert model.design.fixed_names == ("Intercept", "arm[T.b]")


def test_the_model_gives_the_statistics_of_summarize():
    with open_cells((COUNTS, OBS), FORMULA) as model:
        found = model.summarize(ReadOptions(transform="log1p"))
    wanted = summed((COUNTS, OBS), transform="log1p")
    for name in STATISTICS:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


# --- cells and genes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, list, lambda mask: pd.Series(mask, OBS.index)])
def test_cells_by_a_mask(kind):
    mask = OBS["depth"].to_numpy() > 1
    found, wanted = summed((VALUES, OBS), cells=kind(mask)), summed((VALUES[mask], OBS[mask]))
    assert found.n == mask.sum()
    np.testing.assert_allclose(found.XY, wanted.XY, rtol=1e-12)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (np.ones(N - 1, bool), r"cells= has shape \(119,\) and type bool; wanted a query .* each of 120 cells"),
        (np.arange(N), "cells= has shape .* and type int64"),
        (np.zeros(N, bool), "cells= is True for none of 120 cells"),
        (pd.Series(np.ones(N, bool)), "not labelled as obs is"),
    ],
)
def test_masks_that_cannot_be_used(cells, message):
    with pytest.raises(ValueError, match=message):
        summed((VALUES, OBS), cells=cells)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_genes_by_name_in_the_order_given(kind):
    found = summed((kind(VALUES), OBS), features=GENES, genes=["g5", "g0", "g3"])
    assert found.features == ("g5", "g0", "g3")
    np.testing.assert_allclose(found.Ysum, VALUES[:, [5, 0, 3]].sum(axis=0), rtol=1e-10)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["g1", "CD3"], r"genes= names 1 gene\(s\) that the data do not have \(CD3\)"),
        (["g1", "g1"], "genes= names g1 more than once"),
        ("g1", "wanted a list of gene names"),
        ([], "wanted a list of gene names"),
        ([1], "wanted a list of gene names"),
    ],
)
def test_genes_that_cannot_be_used(genes, message):
    with pytest.raises(ValueError, match=message):
        summed((VALUES, OBS), features=GENES, genes=genes)


def test_negative_values_get_a_line(caplog):
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        summed((VALUES, OBS))
    assert "the matrix has negative values: they are fitted as they are" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "lmm_gpu"):
        summed((np.abs(VALUES), OBS))
    assert "negative" not in caplog.text


# --- weights --------------------------------------------------------------------------------------


def weighted_by_hand(Y, weights):
    kept = weights > 0
    X = np.column_stack([np.ones(N), DONOR >= 4])[kept]
    Z, W, Y = np.eye(8)[DONOR[kept]], weights[kept][:, None], Y[kept]
    products = {"XX": X.T @ (W * X), "XY": X.T @ (W * Y), "ZX": Z.T @ (W * X), "ZY": Z.T @ (W * Y), "ZZ": Z.T @ (W * Z)}
    return products | {"Ynorm": (W * Y * Y).sum(axis=0), "Ysum": (W * Y).sum(axis=0)}


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize("weights", ["w", OBS["w"].to_numpy(), OBS["w"]])
def test_weighted_sums(kind, weights):
    found = summed((kind(VALUES), OBS), weights=weights)
    for name, values in weighted_by_hand(VALUES, OBS["w"].to_numpy()).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12, atol=1e-12, err_msg=name)
    used = OBS["w"][OBS["w"] > 0]
    assert found.n == len(used)
    assert found.total_weight == pytest.approx(used.sum()) and found.log_weights == pytest.approx(np.log(used).sum())
    np.testing.assert_allclose(found.mean(), np.average(VALUES, axis=0, weights=OBS["w"]))


def test_weighted_genes_far_from_zero_keep_their_digits():
    found = summed((VALUES + 1e7, OBS), weights="w")
    wanted = summed((VALUES, OBS), weights="w")
    for ss in (found, wanted):
        about = ss.centred or ss
        left = about.Ynorm - (about.XY * np.linalg.solve(ss.XX, about.XY)).sum(axis=0)
        np.testing.assert_allclose(left, _residuals(), rtol=1e-6)
    values = weighted_by_hand(VALUES + 1e7, OBS["w"].to_numpy())
    np.testing.assert_allclose(found.XY, values["XY"], rtol=1e-12)
    np.testing.assert_allclose(found.Ynorm, values["Ynorm"], rtol=1e-12)


def _residuals():
    root = np.sqrt(OBS["w"].to_numpy())[:, None]
    X = np.column_stack([np.ones(N), DONOR >= 4]) * root
    Y = VALUES * root
    return ((Y - X @ np.linalg.lstsq(X, Y, rcond=None)[0]) ** 2).sum(axis=0)


def test_weighted_sites_add_and_keep_their_weights(tmp_path):
    weights = OBS["w"].to_numpy()
    first = np.arange(N) < 60
    parts = [summed((VALUES[part], OBS[part]), weights=weights[part]) for part in (first, ~first)]
    for place, part in enumerate(parts):
        part.save(tmp_path / f"{place}.h5")
    total = SummaryStats.load(tmp_path / "0.h5") + SummaryStats.load(tmp_path / "1.h5")
    for name, values in weighted_by_hand(VALUES, weights).items():
        order = [total.random_names.index(f"donor[D{d}]") for d in range(8)]
        found = getattr(total, name)
        found = found[order] if name in ("ZX", "ZY") else found[np.ix_(order, order)] if name == "ZZ" else found
        np.testing.assert_allclose(found, values, rtol=1e-12, atol=1e-12)
    assert total.total_weight == pytest.approx(weights.sum())
    with pytest.raises(ValueError, match="one side has weights of its cells, the other has none"):
        parts[0] + summed((VALUES[~first], OBS[~first]))


def test_weights_of_one_are_no_weights():
    found, wanted = summed((COUNTS, OBS), weights=np.ones(N)), summed((COUNTS, OBS))
    for name in STATISTICS:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-13)
    assert found.log_weights == 0.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("depht", "obs has no column 'depht'"),
        ("arm", "weights='arm': wanted numbers"),
        (np.full(N, -1.0), "weights: 120 of 120 weights are negative"),
        (np.full(N, 1e-300), "divide the weights by their mean"),
        (np.full(N, np.nan), "weights: 120 of 120 weights are negative, infinite or missing"),
        (np.zeros(N), "all weights are 0"),
        (np.ones(3), r"weights has shape \(3,\), wanted one weight per cell: \(120,\)"),
        (pd.Series(np.ones(N)), "weights are not labelled as obs is"),
    ],
)
def test_weights_that_cannot_be_used(weights, message):
    with pytest.raises(ValueError, match=message):
        summed((VALUES, OBS), weights=weights)


def test_weighted_fits_are_those_of_lme4():
    """Variances, coefficients and standard errors of ``lmer(y ~ trt + x + (1 | donor) + (1 | batch), weights = w)``."""
    reference = np.load(REFERENCE / "weighted_cells.npz")
    obs = pd.read_csv(REFERENCE / "weighted_cells.metadata.csv", index_col=0)
    formula = json.loads(str(reference["case"]))["formula"]
    fit = lmm_gpu.fit(
        (reference["Y"].T, obs), formula, weights=reference["weights"], bounds="nonnegative", progress=False
    )
    np.testing.assert_allclose(fit.theta.to_numpy(), reference["lmer_theta"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fit.coef.to_numpy(), reference["lmer_coef"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fit.se.to_numpy(), reference["lmer_se"], rtol=1e-5)


def test_size_factors_of_cells_that_are_left_out():
    """Given for all selected cells, of which some have a missing value or no weight."""
    obs = OBS.assign(arm=OBS["arm"].where(np.arange(N) % 10 > 0))
    factors = OBS["depth"].to_numpy()
    used = (np.arange(N) % 10 > 0) & (OBS["w"] > 0).to_numpy()
    for given in (factors, OBS["depth"]):
        found = summed((COUNTS, obs), transform="normalize", size_factors=given, weights="w")
        values, w = np.log1p(COUNTS / factors[:, None])[used], OBS["w"].to_numpy()[used]
        assert found.n == used.sum()
        np.testing.assert_allclose(found.Ysum, w @ values, rtol=1e-12)


# --- identities -----------------------------------------------------------------------------------


def identity(data, **options):
    where = {name: options.pop(name) for name in ("layer", "weights") if name in options}
    with open_cells(data, FORMULA, **where) as model:
        return model.checkpoint(ReadOptions(checkpoint="sums.h5", **options)).about


def test_the_identity_of_a_checkpoint_covers_the_values():
    other = COUNTS.copy()
    other[3, 3] += 1
    for kind in (np.asarray, sparse.csr_array):
        assert identity((kind(COUNTS), OBS)) == identity((kind(COUNTS.copy()), OBS))
        assert identity((kind(COUNTS), OBS)) != identity((kind(other), OBS))


def test_the_identity_of_a_checkpoint_covers_size_factors_and_weights():
    found = [identity((COUNTS, OBS), transform="normalize", size_factors="depth")]
    found.append(identity((COUNTS, OBS.assign(depth=2 * OBS["depth"])), transform="normalize", size_factors="depth"))
    found += [
        identity((COUNTS, OBS)),
        identity((COUNTS, OBS), weights=np.ones(N)),
        identity((COUNTS, OBS), weights="depth"),
    ]
    assert len({json.dumps(one) for one in found}) == len(found)


def test_the_identity_of_a_checkpoint_covers_the_layer(tmp_path):
    anndata = pytest.importorskip("anndata")
    path = tmp_path / "cells.h5ad"
    layers = {"a": sparse.csr_matrix(COUNTS), "b": sparse.csr_matrix(COUNTS)}
    anndata.AnnData(sparse.csr_matrix(COUNTS), OBS, pd.DataFrame(index=GENES), layers=layers).write_h5ad(path)
    found = [json.dumps(identity(path, layer=layer)) for layer in (None, "a", "b")]
    assert len(set(found)) == 3


def test_a_checkpoint_stays_until_the_caller_removes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("lmm_gpu.sumstats.checkpoint._SHARE", np.inf)
    with open_cells((COUNTS, OBS), FORMULA) as model:
        options = ReadOptions(checkpoint=tmp_path / "sums.h5")
        saved = model.checkpoint(options)
        assert isinstance(saved, Checkpoint)
        model.summarize(options, checkpoint=saved)
    assert (tmp_path / "sums.h5").exists()
    saved.remove()
    assert not (tmp_path / "sums.h5").exists()


# --- parts and invariants -------------------------------------------------------------------------


def test_a_part_that_comes_twice_is_refused(tmp_path):
    obs = OBS.assign(donor=OBS["depth"].round(0).astype(str))
    sites = [summed((VALUES[d == DONOR], obs[d == DONOR]), "~ 1 + (1 | donor)") for d in range(3)]
    total = sites[0] + sites[1]
    total.save(tmp_path / "total.h5")
    loaded = SummaryStats.load(tmp_path / "total.h5")
    assert len(loaded.parts) == 2
    for part in (loaded, sites[0], sites[1], sites[1].with_genes(range(M)[::-1])):
        with pytest.raises(ValueError, match=r"are on both sides .* so that their cells would count twice"):
            loaded + part
    assert len((loaded + sites[2]).parts) == 3


DAMAGE = {
    "n is negative": {"n": -1},
    "NaN": {"XY": lambda A: np.where(np.arange(A.size).reshape(A.shape) == 1, np.nan, A)},
    "complex": {"XX": lambda A: A + 0j},
    "not symmetric": {"XX": lambda A: A + np.array([[0.0, 1.0], [0.0, 0.0]])},
    "indefinite": {"XX": lambda A: A * np.array([[1.0, 3.0], [3.0, 1.0]])},
    "negative squares": {"Ynorm": lambda A: -A},
    "too large a product": {"ZY": lambda A: A * 1e3},
    "too large a sum": {"Ysum": lambda A: A + 1e6},
    "negative squares of Z": {"ZZ": lambda A: -A},
}


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", DAMAGE)
def test_numbers_that_cannot_be_sums_are_refused(tmp_path, name):
    ss = summed((VALUES, OBS))
    check_invariants(ss)
    changed = {key: change(getattr(ss, key)) if callable(change) else change for key, change in DAMAGE[name].items()}
    broken = SummaryStats(**{one.name: getattr(ss, one.name) for one in fields(ss)} | changed)
    broken.save(tmp_path / "broken.h5")
    with pytest.raises(ValueError, match=r"cannot use .*broken\.h5: its content does not fit together"):
        SummaryStats.load(tmp_path / "broken.h5")
    with pytest.raises(ValueError):
        broken + summed((VALUES[:60], OBS[:60]))


# --- dask -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bounds": "nonnegative", "max_iter": 7, "epsilon": 1e-3, "method": "ML"}])
def test_a_dask_fit_is_the_local_one_in_every_field(options):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        found = lmm_gpu.fit((VALUES, OBS), FORMULA, scheduler=client, progress=False, **options)
    wanted = lmm_gpu.fit((VALUES, OBS), FORMULA, progress=False, **options)
    assert found.options == wanted.options
    for one in fields(wanted.estimates):
        ours, theirs = getattr(found.estimates, one.name), getattr(wanted.estimates, one.name)
        if isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9, err_msg=one.name)
        elif isinstance(theirs, np.ndarray):
            assert ours.tolist() == theirs.tolist(), one.name
    names = ("theta", "coef", "se", "t", "p", "df", "logLik", "niter", "status", "method", "epsilon")
    for name in names:
        ours, theirs = getattr(found, name), getattr(wanted, name)
        if hasattr(theirs, "to_numpy") and theirs.to_numpy().dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9, err_msg=name)
        else:
            assert np.array_equal(ours, theirs), name


def test_weights_on_workers():
    array = pytest.importorskip("dask.array")
    chunks = array.from_array(VALUES, chunks=(50, 3))
    found = summed((chunks, OBS), weights="w")
    for name, values in weighted_by_hand(VALUES, OBS["w"].to_numpy()).items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12, atol=1e-12, err_msg=name)


def test_workers_that_see_another_file_are_refused(tmp_path):
    pytest.importorskip("dask")
    from lmm_gpu.sumstats.dask_tasks import FileMark

    path = tmp_path / "cells.bin"
    path.write_bytes(b"a" * 1000)
    mark = FileMark.of(path)
    mark.check(path)
    changed = path.stat().st_mtime_ns
    path.write_bytes(b"a" * 999 + b"b")
    os.utime(path, ns=(changed, changed))
    with pytest.raises(ValueError, match=r"a worker sees another file as .*cells\.bin .*other header"):
        mark.check(path)
