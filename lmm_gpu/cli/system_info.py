"""What is there to compute with: versions, processors, memory, CUDA devices, and which of them a fit would take."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from threadpoolctl import threadpool_info

from .._version import __version__
from ..backend.devices import describe_cuda, resolve
from ..backend.memory import free_memory
from ..backend.threads import workers

#: What a fit computes with, and how each is called where it is installed.
LIBRARIES = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "array-api-compat": ("array-api-compat",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy"),
    "torch": ("torch",),
    "jax": ("jax",),
}


def system_info() -> dict[str, Any]:
    """Describe what a fit would run on; never fails, and imports no library of arrays but CuPy.

    Returns
    -------
    dict
        versions {library: version or None}; platform; processors; free_memory (bytes or None); blas, a list of
        {library, version, threads}; cuda, as `devices.describe_cuda`; device, the one that a fit takes, and why_not,
        what keeps it from the other kind.

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
    except Exception as error:  # a device that is counted and cannot be entered
        return "none", f"{type(error).__name__}: {error}; device='cpu' can be asked for"
    if device == "cpu":
        return device, f"not cuda: {cuda['reason']}"
    return device, "not cpu: a usable CUDA device is preferred; device='cpu' can be asked for"


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
