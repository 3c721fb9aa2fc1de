"""What the real CuPy makes of the engine, on a machine that may have no GPU: run where its wheel is installed.

    pip install "cupy-cuda12x>=14.2,<15" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import dense
import numpy as np
import pytest

from lmm_gpu import arrays, scoring
from lmm_gpu.fitting import FitOptions, fit_summary
from lmm_gpu.model import MixedModel
from lmm_gpu.scoring import Rules, maximise
from lmm_gpu.summary import cross_products

WHEEL = 'pip install "cupy-cuda12x>=14.2,<15" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12'
pytest.importorskip("cupy", reason=f"needs CuPy, with or without a GPU: {WHEEL}")
import cupy_wheel as wheel  # noqa: E402

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="runs CuPy's kernels on the host: needs g++")
DESIGNS = ["one_nested", "two", "three_widest_inside"]
RULES = {"free": Rules(), "held": Rules(nonnegative=True), "relaxed": Rules(relaxed=True)}


def fitted(name, method, rules, m=6):
    """Estimates, and what is asked of a model afterwards."""
    design = dense.DESIGNS[name]
    model = MixedModel.build(
        cross_products(design.X, design.Z, dense.draw_genes(design, m), d=design.d), method
    )
    found = maximise(model.likelihood, None, rules)
    asked = [found.theta, found.quad, found.niter, found.status, found.halved]
    asked += [model.coefficients(found.theta), model.covariance(found.theta)]
    return [*asked, model.likelihood.evaluate(found.theta).information]


@pytest.fixture
def kernels(monkeypatch):
    """The engine computes on NumPy, but what it fuses runs as the kernel that CuPy makes of it; these are listed."""
    xp = wheel.Namespace()
    monkeypatch.setattr(arrays, "namespace", lambda *_: xp)
    return xp.kernels


def test_nothing_imports_cupy():
    code = "import lmm_gpu, sys; from lmm_gpu import fitting, model; raise SystemExit('cupy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fit_on_numpy_where_cupy_is_installed():
    design = dense.DESIGNS["one_nested"]
    fit = fit_summary(cross_products(design.X, design.Z, dense.draw_genes(design, 4), d=design.d), FitOptions())
    assert np.isfinite(fit.estimates.theta).all()


@needs_compiler
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", DESIGNS)
def test_kernels_compute_what_numpy_computes(name, rules, method, request):
    expected = fitted(name, method, rules)
    kernels = request.getfixturevalue("kernels")
    for found, wanted in zip(fitted(name, method, rules), expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert {kernel.name for kernel, _ in kernels} >= {"ratios", "compose", "step"}
