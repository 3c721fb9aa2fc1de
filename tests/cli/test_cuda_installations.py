"""Installations that cannot compute on a GPU: one sentence that says why and what to do, wherever it is asked."""

from __future__ import annotations

import json
import tomllib
from types import SimpleNamespace

import cupy_like_runtime
import numpy as np
import pandas as pd
import pytest
from paths import ROOT

import lmm_gpu
from lmm_gpu.backend import cuda_devices
from lmm_gpu.cli import app

TWELVE, THIRTEEN = "pip install 'cupy-cuda12x[ctk]'", "pip install 'cupy-cuda13x[ctk]' 'cuda-toolkit<13.3'"


def insufficient():
    raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")


def without_library(*_):
    raise RuntimeError("libcublas.so.13 not found\nmore lines")


def module(driver: int, count=insufficient, runtime: int = 13020):
    versions = {"driverGetVersion": lambda: driver, "runtimeGetVersion": lambda: runtime}
    return SimpleNamespace(
        __version__="14.2.0", cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count, **versions))
    )


def no_toolkit():
    found = SimpleNamespace(**vars(cupy_like_runtime.module))
    found.linalg = SimpleNamespace(cholesky=without_library)
    return found


#: Installed wheels, the module, and the words of the reason.
CASES = {
    "both wheels": (
        ("cupy-cuda12x", "cupy-cuda13x"),
        cupy_like_runtime.module,
        "several packages provide CuPy (cupy-cuda12x, cupy-cuda13x) and overwrite each other's files: pip uninstall "
        f"cupy-cuda12x cupy-cuda13x, then {TWELVE}, or {THIRTEEN} for drivers of CUDA 13",
    ),
    "no toolkit": (
        ("cupy-cuda13x",),
        no_toolkit(),
        f"CuPy finds a device but cannot compute on it (RuntimeError: libcublas.so.13 not found): {THIRTEEN}",
    ),
    "no driver": (("cupy-cuda12x",), module(0), "no CUDA device: no NVIDIA driver is installed"),
    "old driver": (
        ("cupy-cuda13x",),
        module(12020),
        "no CUDA device: the NVIDIA driver is for CUDA 12.2, and CuPy needs CUDA 13.2: update the driver; or pip "
        f"uninstall cupy-cuda13x && {TWELVE}",
    ),
    "very old driver": (
        ("cupy-cuda12x",),
        module(11040, runtime=12090),
        "no CUDA device: the NVIDIA driver is for CUDA 11.4, and CuPy needs CUDA 12.9: update the driver",
    ),
}


@pytest.fixture(params=CASES)
def reason(request, monkeypatch):
    wheels, found, reason = CASES[request.param]
    monkeypatch.setattr(cuda_devices, "_wheels", lambda: wheels)
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: found)
    monkeypatch.setattr(cuda_devices, "_PROBES", {})
    return reason


def test_info(reason, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["info", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["why_not"]) == ("cpu", f"not cuda: {reason}")


def test_selftest(reason, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["selftest", "--device", "cuda"])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert said.endswith(f"cannot be used ({reason}); use 'auto' or 'cpu'") and said.count("error") == 1


def test_a_fit(reason):
    obs = pd.DataFrame({"arm": list("ab") * 30, "donor": np.repeat(list("uvwxyz"), 10)})
    Y = np.random.default_rng(1).normal(size=(60, 2))
    with pytest.raises(ValueError) as refused:
        lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)", device="cuda")
    assert str(refused.value) == f"device='cuda' cannot be used ({reason}); use 'auto' or 'cpu'"
    assert np.isfinite(np.asarray(lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)").coef)).all()  # "auto" goes on


def test_the_extras_take_toolkits_that_cupy_was_tested_with():
    """CuPy 14.2 lists CUDA 12.x and up to 13.2; its own extra would take any 13."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert extras["cuda12"] == ["cupy-cuda12x[ctk]>=14.2,<15"]
    assert extras["cuda13"] == ["cupy-cuda13x[ctk]>=14.2,<15", "cuda-toolkit<13.3"]
    assert project["tool"]["uv"]["conflicts"] == [[{"extra": "cuda12"}, {"extra": "cuda13"}]]
