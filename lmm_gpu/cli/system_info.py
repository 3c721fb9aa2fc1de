"""Versions, processors, memory and CUDA devices of this machine, and the device that a fit uses by default."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from threadpoolctl import threadpool_info

from .._version import __version__
from ..backend.cuda_kernels import VARIABLE, turned_on
from ..backend.devices import describe_cuda, resolve
from ..backend.memory import free_memory
from ..backend.threads import workers

#: Libraries that a fit may use, and the distributions that provide them.
LIBRARIES = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "array-api-compat": ("array-api-compat",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy"),
    "torch": ("torch",),
    "jax": ("jax",),
}


def system_info() -> dict[str, Any]:
    """Describe the machine; never fail, and import no array library but CuPy.

    Returns
    -------
    dict
        versions {library: version or None}; platform; processors; free_memory (bytes or None); blas, a list of
        {library, version, threads}; cuda, as `devices.describe_cuda`; device, the default of a fit, and why_not, the
        reason why it is not a device of the other kind.

    Examples
    --------
    >>> system_info()["device"] in ("cpu", "cuda:0")
    True
    """
    cuda = describe_cuda()
    versions: dict[str, str | None] = {"lmm_gpu": __version__, "python": platform.python_version()}
    versions |= {name: _version(*distributions) for name, distributions in LIBRARIES.items()}
    versions["cupy"] = cuda["cupy"] or versions["cupy"]
    device, why_not = _taken(cuda)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processors": workers(),
        "free_memory": free_memory(),
        "blas": _blas(),
        "cuda": cuda,
        "device": device,
        "why_not": why_not,
    }


def _taken(cuda: dict[str, Any]) -> tuple[str, str]:
    try:
        device = resolve("auto")[0].name
    except Exception as error:  # a device that exists but cannot be used
        return "none", f"{type(error).__name__}: {error}; use device='cpu' to override"
    if device == "cpu":
        return device, f"not cuda: {cuda['reason']}"
    kernels = "with kernels" if turned_on() else f"without kernels, as {VARIABLE}=0"
    return device, f"not cpu: a usable CUDA device is preferred; use device='cpu' to override; {kernels}"


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _blas() -> list[dict[str, Any]]:
    found = [one for one in threadpool_info() if one.get("user_api") == "blas"]
    return [
        {"library": one.get("internal_api"), "version": one.get("version"), "threads": one.get("num_threads")}
        for one in found
    ]
