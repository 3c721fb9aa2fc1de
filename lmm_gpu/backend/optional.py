"""Imports of optional packages."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, purpose: str, advice: str = 'pip install "lmm-gpu[io]"') -> Any:
    """Import a module of an optional package.

    Raises
    ------
    ValueError
        If the package is not installed, with the `purpose` that needs it and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{purpose} needs the package {module.partition('.')[0]}: {advice}") from error
