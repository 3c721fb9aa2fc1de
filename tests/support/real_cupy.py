"""`pytest -p real_cupy`: tests that import the imitation of CuPy get the real CuPy in its place.

It runs on a CUDA device where there is one. Otherwise it runs on an emulated device, if the folder of the emulation is
known: `CUPY_ON_HOST`, by default ``../shared/cupy_on_host`` beside the checkout. Where there is neither, every test is
skipped with the reason. A test of what only the imitation has (launches and bytes counted, allocations that fail on
demand, the log of streams) is skipped where it asks for it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(os.environ.get("CUPY_ON_HOST") or ROOT.parent / "shared" / "cupy_on_host")


def begin() -> str:
    """Import CuPy, emulated where there is no device; return the reason why that is not possible, else ""."""
    if find_spec("cupy") is None:
        return "CuPy is not installed: pip install cupy-cuda12x==14.2.0"
    if glob.glob("/dev/nvidia[0-9]*"):
        return ""
    if not (EMULATION / "emulate.py").is_file():
        return f"no CUDA device, and no emulation of one in {EMULATION} (CUPY_ON_HOST)"
    os.environ.setdefault("EMU_DEVICES", "2")
    if "PYTEST_XDIST_WORKER" in os.environ and "EMU_BUILD" not in os.environ:  # two must not compile to one file
        os.environ["EMU_BUILD"] = f"/tmp/cupy_on_host_build-{os.environ['PYTEST_XDIST_WORKER']}"
    sys.path.insert(0, str(EMULATION))
    import emulate  # noqa: F401

    return ""


REASON = begin()


class _Stand(ModuleType):
    """Stands in for a module of the imitation: asked for what the real CuPy does not have, it skips the test."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _skip(f"{self.__name__}.{name}")


class _Log:
    """The log of streams, which only the imitation writes."""

    def clear(self) -> None:
        pass

    def __iter__(self) -> Any:
        _skip("the log of streams")

    def count(self, word: str) -> Any:
        _skip("the log of streams")


class _Memories:
    def __getitem__(self, number: int) -> Any:
        _skip("memory that is counted")


def _skip(what: str) -> Any:
    pytest.skip(f"only the imitation of CuPy has {what}", allow_module_level=True)


def _put_in_place() -> None:
    """Replace the modules of the imitation."""
    import array_api_compat.cupy as xp
    import cupy
    import cupyx
    import cupyx.scipy.sparse as csp

    class Device(cupy.cuda.Device):
        """A device; a test that enters it is skipped if it is not there."""

        def __enter__(self) -> Any:
            if self.id >= cupy.cuda.runtime.getDeviceCount():
                pytest.skip("there is no second CUDA device")
            return super().__enter__()

    def asarray(x: Any, dtype: Any = None, device: Any = None, copy: Any = None) -> Any:
        with contextlib.nullcontext() if device is None else device:
            return cupy.asarray(x, dtype=dtype)

    def of(matrix: Any) -> Any:
        data = matrix.data if matrix.data.dtype.kind == "f" or matrix.data.dtype == bool else matrix.data.astype(float)
        kind = csp.csr_matrix if matrix.format == "csr" else csp.csc_matrix
        return kind(tuple(map(cupy.asarray, (data, matrix.indices, matrix.indptr))), shape=matrix.shape)

    stands = {
        "cupy_like": {"asarray": asarray, "xp": xp, "Array": cupy.ndarray, "fuse": cupy.fuse},
        "cupy_like_array": {"xp": xp, "Array": cupy.ndarray},
        "cupy_like_device": {
            "Device": Device,
            "DEVICES": [Device(0), Device(1)],
            "using_device": lambda one: one,
            "current_device": cupy.cuda.Device,
            "SynchronisationError": cupyx.DeviceSynchronized,
            "OutOfMemoryError": cupy.cuda.memory.OutOfMemoryError,
            "no_synchronisation": lambda: cupyx.allow_synchronize(False),
            "MEMORIES": _Memories(),
        },
        "cupy_like_linalg": {},
        "cupy_like_runtime": {"module": cupy, "cupyx": cupyx, "log": _Log()},
        "cupyx_like": {"csr_matrix": csp.csr_matrix, "csc_matrix": csp.csc_matrix, "of": of},
    }
    for name, content in stands.items():
        module = _Stand(name)
        vars(module).update(content)
        sys.modules[name] = module


def _without_cusparse() -> None:
    """Let cupyx make matrices without cuSPARSE, which is not emulated; skip the test at any other call of it."""
    import cupyx.cusparse
    from cupy_backends.cuda.libs import cusparse

    for name, function in vars(cusparse).items():
        if callable(function) and name[0].islower():
            setattr(cusparse, name, lambda *args, **options: pytest.skip("cuSPARSE is not emulated"))
    cupyx.cusparse.MatDescriptor.create = classmethod(lambda kind: kind(0))


def _prefer_the_host() -> None:
    """Let `device="auto"` mean the host for arrays on the host: tests compute there what they expect."""
    from lmm_gpu.backend import devices

    automatic = devices._automatic
    devices._automatic = lambda arrays: devices.Device() if all(map(devices.on_host, arrays)) else automatic(arrays)


if not REASON:
    _put_in_place()
    if "emulate" in sys.modules:
        _without_cusparse()
    _prefer_the_host()


def pytest_configure(config: pytest.Config) -> None:
    """Leave out files that the emulation does not close, and CuPy's notice that `allow_synchronize` will go."""
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
    config.addinivalue_line("filterwarnings", "ignore:cupyx.allow_synchronize:UserWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the imitation itself, and everything where CuPy cannot run."""
    for item in items:
        if REASON or item.get_closest_marker("imitation"):
            item.add_marker(pytest.mark.skip(reason=REASON or "the imitation of CuPy is stricter here"))
