"""Which device a computation takes, and why not another one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import array_api_strict
import cupy_like
import cupy_like_device as cuda
import cupy_like_runtime
import numpy as np
import pytest

from lmm_gpu.backend import cuda_devices
from lmm_gpu.backend.devices import Cuda, Device, Given, cuda_count, resolve


@pytest.fixture
def cupy(monkeypatch):
    """CuPy with two devices."""
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: cupy_like_runtime.module)
    monkeypatch.setattr(cuda_devices, "_COPIERS", {})
    monkeypatch.setattr(cuda_devices, "_PROBES", {})
    monkeypatch.setattr(cuda_devices, "_cupyx", lambda: cupy_like_runtime.cupyx)
    cupy_like_runtime.log.clear()
    return cupy_like_runtime


def without_cupy(monkeypatch, error=None):
    def missing():
        raise error or ModuleNotFoundError("No module named 'cupy'")

    monkeypatch.setattr(cuda_devices, "_cupy", missing)


def names(device, *arrays):
    return [one.name for one in resolve(device, *arrays)]


def test_importing_the_package_touches_no_gpu_library():
    code = "import sys, lmm_gpu; print({'cupy', 'torch', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_without_cupy(monkeypatch):
    without_cupy(monkeypatch)
    assert names("auto") == names("auto", np.ones(2)) == names("cpu") == ["cpu"]
    with pytest.raises(ValueError, match=r"device='cuda' cannot be used \(CuPy is not installed: pip install"):
        resolve("cuda")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (SimpleNamespace(__version__="13.6.0"), r"CuPy 13\.6\.0 is too old: 14\.2 or newer"),
        (SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace()), "no CUDA device: "),
    ],
)
def test_a_cupy_that_cannot_be_used(monkeypatch, module, reason):
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: module)
    assert names("auto") == ["cpu"]
    with pytest.raises(ValueError, match=reason):
        resolve("cuda:0")


@pytest.mark.parametrize("error", [RuntimeError, ImportError, partial(ModuleNotFoundError, name="cuda")])
def test_a_cupy_that_cannot_be_imported(monkeypatch, error):
    """CuPy, or something that it needs: it is installed all the same."""
    without_cupy(monkeypatch, error("libcudart.so.12 not found"))
    count, reason = cuda_count()
    assert (count, reason) == (0, "CuPy cannot be imported: libcudart.so.12 not found")


def test_a_device_that_cannot_compute(cupy, monkeypatch):
    """Without cuBLAS, CuPy imports and counts devices, but every product fails: that is found before a fit."""

    def broken(*_):
        raise RuntimeError("libcublas.so.12 not found\nand more")

    monkeypatch.setattr(cupy.module.linalg, "cholesky", broken)
    assert names("auto") == ["cpu"]
    with pytest.raises(ValueError, match=r"cannot compute on it \(RuntimeError: libcublas.so.12 not found\): pip inst"):
        resolve("cuda")


def test_a_device_is_tried_once_per_process(cupy, monkeypatch):
    count = []
    cholesky = cupy.module.linalg.cholesky
    monkeypatch.setattr(cupy.module.linalg, "cholesky", lambda x: count.append(1) or cholesky(x))
    for _ in range(3):
        resolve("cuda")
    assert len(count) == 1


def test_no_driver_is_named_as_such(monkeypatch):
    def fails():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")

    runtime = SimpleNamespace(getDeviceCount=fails, driverGetVersion=lambda: 0)
    module = SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(cuda_devices, "_cupy", lambda: module)
    assert cuda_count() == (0, "no CUDA device: no NVIDIA driver is installed")


def test_with_cuda_devices(cupy):
    assert names("auto") == names("cuda") == names("cuda:0") == ["cuda:0"]
    assert names(["cuda:0", "cuda:1"]) == names(("cuda", "cuda:1")) == ["cuda:0", "cuda:1"]
    assert names("cuda:0,cuda:1") == names("cuda, cuda:1") == ["cuda:0", "cuda:1"]
    assert names("cpu") == ["cpu"]
    with pytest.raises(ValueError, match=r"device='cuda:2' cannot be used \(there are 2: cuda:0 to cuda:1\)"):
        resolve("cuda:2")


@pytest.mark.parametrize(
    "bad", ["gpu", "cuda:x", "cuda:-1", "", None, 3, [], ["cpu", "cpu"], ["cuda", "cuda:0"], "cuda:0,", ","]
)
def test_invalid_devices(cupy, bad):
    with pytest.raises(ValueError, match="device"):
        resolve(bad)


def test_the_input_decides(cupy):
    """Arrays of another library stay where they are, unless a device is named."""
    theirs = array_api_strict.asarray([1.0], device=array_api_strict.Device("device1"))
    (device,) = resolve("auto", np.ones(2), theirs)
    assert isinstance(device, Given) and "device1" in device.name
    moved = device.put(np.ones((2, 3)))
    assert moved.device == theirs.device and moved.dtype == array_api_strict.float64
    assert names("cpu", theirs) == ["cpu"] and type(Device().put(theirs)) is np.ndarray
    assert resolve(device, np.ones(2)) == [device]


def test_arrays_of_the_second_device_stay_there():
    x = cupy_like.asarray([[1.0, 2.0]], device=cuda.DEVICES[1])
    (device,) = resolve("auto", x)
    with device.entered():
        assert device.put(np.ones(3)).device == cuda.DEVICES[1] == cuda.current_device()


def test_a_cuda_device(cupy):
    device = Cuda(1)
    assert device.put(np.ones(3)).device == cuda.DEVICES[1]
    with device.entered(), device.copying():
        device.put(np.ones(3))
    device.wait(device.mark())
    device.release()
    assert cupy.log == ["wait 1", "pool freed on 1", "pinned pool freed on 1"]
    with cuda.byte_limit(10_000, device=cuda.DEVICES[1]):
        assert 0 < device.free_bytes() < 10_000


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError("host"), True),
        (cuda.OutOfMemoryError("device"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), True),
        (RuntimeError("cudaErrorIllegalAddress"), False),
        (ValueError("wrong"), False),
    ],
)
def test_errors_that_mean_memory(cupy, error, is_memory):
    assert Cuda(0).out_of_memory(error) is is_memory


def test_cupy_is_what_is_imported(monkeypatch):
    asked = []
    monkeypatch.setattr(importlib, "import_module", lambda name: asked.append(name))
    cuda_devices._cupy()
    cuda_devices._cupyx()
    assert asked == ["cupy", "cupyx"]


def test_a_limited_pool(cupy):
    """The limit is that of this device and ends with its context, whatever happens there."""
    device = Cuda(1)
    used, total = device.pool_bytes()
    kept = device.put(np.ones(1000))
    assert device.pool_bytes()[0] - used == 8192 and device.pool_bytes()[1] >= max(total, used + 8192)
    with pytest.raises(cuda.OutOfMemoryError), device.limited(device.pool_bytes()[0] + 512):
        Cuda(0).put(np.ones(1000))  # has a separate pool
        device.put(np.ones(1000))
    device.put(kept.get())


def test_waiting_is_refused(cupy):
    device = Cuda(0)
    x = device.put(np.ones(3))
    with device.no_waiting(), pytest.raises(cuda.SynchronisationError):
        x.get()
    x.get()


def test_waiting_for_all_of_a_device(cupy):
    Cuda(1).synchronise()
    assert cupy.log == ["synchronised 1"]


def test_a_separate_stream(cupy):
    device = Cuda(1)
    with device.own_stream() as one, device.own_stream() as other:
        assert one is not other and one.device == other.device == cuda.DEVICES[1]
