"""A saved fit: everything that the fit in memory says comes from the file, and no other file is taken for one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import dense
import h5py
import numpy as np
import pandas as pd
import pytest

import lmm_gpu
from lmm_gpu.estimation.estimates import Estimates
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.io.archive import kind_of, write_archive
from lmm_gpu.results.fit_file import FIT
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.results.lmm_fit import LMMFit
from lmm_gpu.sumstats.assembly import cross_products

ADVICE = "take a fresh copy of the file, or fit again and save that"


def fitted(design, method="REML"):
    """Some genes of a design, one of which never varies."""
    Y = dense.draw_genes(design, 5)
    Y[:, 3] = 0.0
    ss = cross_products(design.X, design.Z, Y, d=design.d, features=("a", "b", "Häm/β", "zero", "e"))
    with pytest.warns(UserWarning, match="1 of 5 features do not vary"):
        return fit_summary(ss, FitOptions(method))


@pytest.fixture
def fit(design, method):
    return fitted(design, method)


@pytest.fixture
def saved(tmp_path):
    fitted(dense.DESIGNS["two"]).save(tmp_path / "fit.h5")
    return tmp_path / "fit.h5"


# --- there and back -------------------------------------------------------------------------------


def assert_same(found, wanted):
    if isinstance(wanted, pd.DataFrame | pd.Series):
        assert type(found) is type(wanted)
        assert found.equals(wanted)
    elif isinstance(wanted, np.ndarray):
        np.testing.assert_array_equal(found, wanted)
    else:
        assert found == wanted


def test_there_and_back(tmp_path, fit):
    """Every part of the fit, those that are formed when asked for as well."""
    fit.save(tmp_path / "fit.h5")
    again = LMMFit.load(tmp_path / "fit.h5")
    for key in set(fit.keys()) - {"summary_data"}:
        assert_same(again[key], fit[key])
    assert again.summary_data.fingerprint == fit.summary_data.fingerprint
    assert repr(again) == repr(fit)


@pytest.mark.parametrize("df", ["satterthwaite", "between-within", "residual"])
def test_contrasts_come_from_the_file(tmp_path, method, df):
    fit = fitted(dense.DESIGNS["two"], method)
    fit.save(tmp_path / "fit.h5")
    weights = np.random.default_rng(2).normal(size=len(fit.summary.fixed_names))
    pd.testing.assert_frame_equal(LMMFit.load(tmp_path / "fit.h5").test(weights, df=df), fit.test(weights, df=df))


def test_random_effects_from_the_file_are_the_dense_ones(tmp_path):
    """By n x n matrices of the cells, which the file does not have."""
    design = dense.DESIGNS["two"]
    Y = dense.draw_genes(design, 3)
    fit_summary(cross_products(design.X, design.Z, Y, d=design.d)).save(tmp_path / "fit.h5")
    again = LMMFit.load(tmp_path / "fit.h5")
    for gene in range(3):
        theta = again.theta.to_numpy()[:, gene]
        G = np.repeat(theta[:-1], design.d)  # (q,)
        V = (design.Z * G) @ design.Z.T + theta[-1] * np.eye(design.n)  # (n, n)
        residuals = Y[:, gene] - design.X @ again.coef.to_numpy()[:, gene]
        wanted = G * (design.Z.T @ np.linalg.solve(V, residuals))
        np.testing.assert_allclose(again.RE.to_numpy()[:, gene], wanted, rtol=1e-8, atol=1e-10)


def test_how_it_was_fitted_is_kept(tmp_path):
    design = dense.DESIGNS["two"]
    Y = dense.draw_genes(design, 2)
    options = {"method": "ML", "max_iter": 60, "epsilon": 1e-7, "bounds": "nonnegative"}
    fit = lmm_gpu.lmmfit(Y.T, design.X, design.Z, design.d, output_cov=False, output_RE=True, **options)
    fit.save(tmp_path / "fit.h5")
    again = LMMFit.load(str(tmp_path / "fit.h5"))
    assert {name: getattr(again, name) for name in options} == options
    assert (again.ddf, again.outputs, again.cov) == ("residual", ("RE",), None)
    pd.testing.assert_frame_equal(lmm_gpu.lmmtest(again), lmm_gpu.lmmtest(fit))


def test_no_genes(tmp_path):
    design = dense.DESIGNS["two"]
    fit_summary(cross_products(design.X, design.Z, np.zeros((design.n, 0)), d=design.d)).save(tmp_path / "fit.h5")
    assert LMMFit.load(tmp_path / "fit.h5").coef.shape == (design.X.shape[1], 0)


def test_every_field_has_its_place():
    """A new field would be lost in the file: it needs a place there, and a case above."""
    kept = {"estimates", "summary", "options", "ddf", "outputs"}
    made = {"model", "seconds"}  # from the statistics, and by whoever fits
    assert {field.name for field in dataclasses.fields(LMMFit)} - made == kept
    with_places = {"theta", "se_theta", "dlogL", "logLik", "niter", "status", "coef", "se"}
    assert {field.name for field in dataclasses.fields(Estimates)} == with_places


# --- the file -------------------------------------------------------------------------------------


def test_public_tools_read_it(saved):
    fit = fitted(dense.DESIGNS["two"])
    with h5py.File(saved) as file:
        np.testing.assert_array_equal(file["estimates/theta"], fit.theta)
        np.testing.assert_array_equal(file["ZY"], fit.summary.ZY)
        assert list(file["features"].asstr()) == list(fit.coef.columns)
        about = {name: file.attrs[name] for name in ("format", "method", "epsilon", "bounds", "max_iter", "ddf")}
    assert about == {"format": FIT, "method": "REML", "epsilon": 1e-5, "bounds": "auto", "max_iter": 50} | {
        "ddf": "satterthwaite"
    }


def test_kinds_of_files(saved, tmp_path):
    assert kind_of(saved) == FIT
    fitted(dense.DESIGNS["two"]).summary.save(tmp_path / "s.h5")
    assert kind_of(tmp_path / "s.h5") == "lmm_gpu summary statistics"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "something else"
    (tmp_path / "cut.h5").write_bytes(saved.read_bytes()[:300])
    (tmp_path / "text.h5").write_text("gene,p\n")
    for name in ("other.h5", "cut.h5", "text.h5", "nowhere.h5", ""):
        assert kind_of(tmp_path / name) is None


def test_truncated(saved):
    content = saved.read_bytes()
    for share in (0.0, 0.3, 0.9, 0.999):
        saved.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=rf"cannot use .*fit\.h5: .*; {ADVICE}"):
            LMMFit.load(saved)


CHANGES = {
    "an estimate": lambda file: file["estimates/theta"].__setitem__((0, 0), 7.0),
    "a status": lambda file: file["estimates/status"].__setitem__(0, 0),
    "a statistic": lambda file: file["XX"].__setitem__((0, 0), 7.0),
    "the method": lambda file: file.attrs.__setitem__("method", "ML"),
    "one less": lambda file: file.__delitem__("estimates/se"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_altered(saved, change):
    with h5py.File(saved, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(ValueError, match=f"its checksum is not that of its content: it was altered; {ADVICE}"):
        LMMFit.load(saved)


def test_other_files(saved, tmp_path):
    fitted(dense.DESIGNS["two"]).summary.save(tmp_path / "s.h5")
    with pytest.raises(ValueError, match=f"it is no file of lmm_gpu fit; {ADVICE}"):
        LMMFit.load(tmp_path / "s.h5")
    with pytest.raises(ValueError, match="it is no file of lmm_gpu summary statistics"):
        lmm_gpu.SummaryStats.load(saved)
    with pytest.raises(FileNotFoundError):
        LMMFit.load(tmp_path / "nowhere.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": np.zeros((2, 5))}, r"theta has shape \(2, 5\), wanted \(3, 5\)"),
        ({"status": np.full(5, 99)}, r"status holds \[99\]: not a status of this version"),
    ],
)
def test_right_checksum_but_nonsense(tmp_path, change, message):
    """What another program wrote has to fit together as well."""
    fit = fitted(dense.DESIGNS["two"])
    arrays, labels, attributes = fit.summary.content()
    arrays |= {f"estimates/{name}": values for name, values in (vars(fit.estimates) | change).items()}
    attributes |= {"method": "REML", "epsilon": 1e-5, "ddf": "residual", "bounds": "auto", "max_iter": 50}
    write_archive(tmp_path / "fit.h5", FIT, arrays, labels | {"outputs": []}, attributes)
    with pytest.raises(ValueError, match=f"its content does not fit together \\({message}\\); {ADVICE}"):
        LMMFit.load(tmp_path / "fit.h5")


def test_a_killed_writer_leaves_the_old_file(saved):
    before = saved.read_bytes()
    script = (
        "import os, signal, sys\n"
        "from lmm_gpu import LMMFit\n"
        "from lmm_gpu.io import archive\n"
        "fit = LMMFit.load(sys.argv[1])\n"
        "archive.checksum = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "fit.save(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -9
    assert saved.read_bytes() == before
