"""Report of devices and libraries, on any machine."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from types import SimpleNamespace

import cupy_like_device as cuda
import cupy_like_runtime
import numpy as np
import pytest

from lmm_gpu.backend import cuda_devices
from lmm_gpu.cli.system_info import system_info


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: cupy_like_runtime.module)


def missing():
    raise ModuleNotFoundError("No module named 'cupy'")


def test_without_cupy(monkeypatch):
    monkeypatch.setattr(cuda_devices, "_cupy", missing)
    found = system_info()
    assert found["versions"]["numpy"] == np.__version__
    assert found["device"] == "cpu" and found["why_not"].startswith("not cuda: CuPy is not installed")
    assert found["cuda"]["devices"] == [] and found["cuda"]["cupy"] is None
    assert found["processors"] >= 1 and found["free_memory"] > 0
    assert {"library", "version", "threads"} == set(found["blas"][0])
    assert json.loads(json.dumps(found)) == found


def test_with_cuda(cupy):
    with cuda.byte_limit(3_000_000, device=cuda.DEVICES[1]):
        found = system_info()
    first, second = found["cuda"]["devices"]
    assert (first["name"], first["compute_capability"], first["number"]) == ("imitation 0", "9.0", 0)
    assert second["total_bytes"] == 3_000_000 >= second["free_bytes"]
    assert (found["cuda"]["driver"], found["cuda"]["runtime"]) == ("13.0", "12.9")
    assert found["versions"]["cupy"] == "14.2.0" and found["cuda"]["reason"] == ""
    assert found["device"] == "cuda:0" and found["why_not"].startswith("not cpu")


def broken(**runtime):
    return SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=SimpleNamespace(**runtime)))


def fails(*_):
    raise RuntimeError("cudaErrorInsufficientDriver")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (SimpleNamespace(__version__="13.6.0"), "CuPy 13.6.0 is too old"),
        (broken(getDeviceCount=fails, driverGetVersion=lambda: 0), "no CUDA device: no NVIDIA driver is installed"),
        (broken(getDeviceCount=lambda: 0), "no CUDA device"),
    ],
)
def test_a_cupy_that_cannot_be_used(monkeypatch, module, reason):
    """The version is still reported, and the reason is the first error."""
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: module)
    found = system_info()
    assert found["versions"]["cupy"] == module.__version__
    assert found["cuda"]["reason"].startswith(reason) and reason in found["why_not"]
    assert found["cuda"]["driver"] is None and found["device"] == "cpu"


def test_a_device_that_is_counted_and_cannot_be_used(monkeypatch):
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: broken(getDeviceCount=lambda: 1, driverGetVersion=fails))
    found = system_info()
    assert found["cuda"]["reason"].startswith("CuPy finds a device but cannot compute on it (AttributeError: ")
    assert found["device"] == "cpu" and found["why_not"].startswith("not cuda: CuPy finds a device")


def test_libraries_are_reported_without_importing_them():
    code = "import sys; from lmm_gpu.cli.system_info import system_info as f; f();"
    code += " print({'torch', 'jax'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_versions_of_what_is_installed(monkeypatch, name):
    monkeypatch.setattr(cuda_devices, "_cupy", missing)
    try:
        wanted = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        wanted = None
    assert system_info()["versions"][name] == wanted
