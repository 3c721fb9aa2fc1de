"""Fits without the columns of combinations that have no cells equal fits of the columns that are left."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import lmm_gpu
from lmm_gpu.cli.app import main
from lmm_gpu.design.design import build_design

N = 240
RNG = np.random.default_rng(5)
DONOR = np.repeat(np.arange(8), 30)
OBS = pd.DataFrame(
    {"donor": [f"D{i}" for i in DONOR], "cond": np.where(DONOR % 2 == 0, "a", "b"), "kind": RNG.choice(list("xyz"), N)}
)


@pytest.mark.parametrize("absent", [("b", "z"), ("a", "x")])
@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_a_fit_without_empty_cells(absent, mean, caplog):
    obs = OBS[(OBS["cond"] != absent[0]) | (OBS["kind"] != absent[1])].reset_index(drop=True)
    Y = mean + RNG.normal(size=(len(obs), 3)) + RNG.normal(size=(8, 3))[obs["donor"].str[1:].astype(int)]
    fit = lmm_gpu.fit((Y, obs), "~ cond * kind + (1 | donor)", progress=False)
    assert "1 column of X is dropped, as combinations of levels have no cells: cond[T.b]:kind[T.z]" in caplog.text
    design = build_design("~ cond * kind + (1 | donor)", obs)
    wanted = lmm_gpu.lmmfit(Y.T, design.X[:, :-1], design.Z)
    np.testing.assert_allclose(fit.coef, wanted.coef, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fit.theta, wanted.theta, rtol=1e-5, atol=1e-8)
    assert list(fit.coef.index) == list(design.fixed_names[:-1])
    assert [term.name for term in fit.summary.terms] == ["1", "cond", "kind", "cond:kind"]
    assert fit.anova().contrast.nunique() == 3


@pytest.mark.parametrize("shape", [(slice(None), 0), (slice(None), slice(None))])
def test_weights_without_empty_cells(shape):
    """As without weights, of rows scaled by the square root of the weight."""
    keep = ((OBS["cond"] != "b") | (OBS["kind"] != "z")).to_numpy()
    obs, weights = OBS[keep].reset_index(drop=True), RNG.uniform(0.5, 2, (keep.sum(), 3))[shape]
    Y = RNG.normal(size=(len(obs), 3)) + RNG.normal(size=(8, 3))[obs["donor"].str[1:].astype(int)]
    fit = lmm_gpu.fit((Y, obs), "~ cond * kind + (1 | donor)", weights=weights, progress=False)
    design = build_design("~ cond * kind + (1 | donor)", obs)
    root = np.sqrt(weights if weights.ndim == 2 else weights[:, None] * np.ones(3))
    for gene in range(3):
        scale = root[:, [gene]]
        wanted = lmm_gpu.lmmfit((scale * Y[:, [gene]]).T, scale * design.X[:, :-1], scale * design.Z.toarray())
        np.testing.assert_allclose(fit.coef.iloc[:, gene], wanted.coef.iloc[:, 0], rtol=1e-5, atol=1e-7)


def test_sites_of_which_each_lacks_other_cells():
    """Columns are dropped when all sites are added, not before."""
    Y = RNG.normal(size=(N, 3)) + RNG.normal(size=(8, 3))[DONOR]
    sites = [(DONOR < 4) & ((OBS["cond"] == "a") | (OBS["kind"] != "z")), DONOR >= 4]
    formula = "~ cond * kind + (1 | donor)"
    parts = [lmm_gpu.summarize((Y[rows], OBS[rows]), formula, progress=False) for rows in map(np.asarray, sites)]
    rows = np.asarray(sites[0] | sites[1])
    wanted = lmm_gpu.fit((Y[rows], OBS[rows]), formula, progress=False)
    found = lmm_gpu.fit(parts[0] + parts[1], progress=False)
    pd.testing.assert_frame_equal(found.coef, wanted.coef, rtol=1e-6, atol=1e-8)


def test_other_dependence_is_refused():
    with pytest.raises(ValueError, match=r"rank deficient.*batch\[T.b\] is a linear combination of cond\[T.b\]"):
        lmm_gpu.fit((np.ones((N, 1)), OBS.assign(batch=OBS["cond"])), "~ cond + batch + (1 | donor)", progress=False)


def test_contrasts_of_the_shell_are_of_the_columns_that_are_kept(tmp_path, capsys):
    keep = ((OBS["cond"] != "b") | (OBS["kind"] != "z")).to_numpy()
    Y = RNG.normal(size=(keep.sum(), 3))
    pd.DataFrame(Y, columns=list("uvw")).to_csv(tmp_path / "a.csv")
    OBS[keep].reset_index(drop=True).to_csv(tmp_path / "obs.csv")
    call = ["fit", str(tmp_path / "a.csv"), "--obs", str(tmp_path / "obs.csv"), "-f", "~ cond * kind + (1 | donor)"]
    for contrast, code in (("cond[T.b]", 0), ("cond[T.b]:kind[T.z]", 2)):
        with pytest.raises(SystemExit) as caught:
            main([*call, "-c", contrast, "-o", str(tmp_path / str(code))])
        assert (caught.value.code or 0) == code
    assert "no column is called 'cond[T.b]:kind[T.z]'" in capsys.readouterr().err
    sums = str(tmp_path / "sums.h5")
    for arguments in (
        ["summarize", *call[1:], "-o", sums],
        ["fit", sums, "-c", "cond[T.b]", "-o", str(tmp_path / "o")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code
