"""Version of the package and of its dependencies."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on.

    >>> versions()["lmm_gpu"] == __version__
    True
    """
    installed = {name: metadata.version(name) for name in ("numpy", "scipy", "pandas")}
    return {"lmm_gpu": __version__, "python": platform.python_version(), **installed}
