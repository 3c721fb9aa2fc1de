"""TODO docstring."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def need(module: str) -> Any:
    """Import a module of the extra `plots`, or say in one sentence how to get it.

    Raises
    ------
    ValueError
        If it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f'the picture needs {module.split(".")[0]}: pip install "lmm-gpu[plots]"') from error


def require(module: str, purpose: str, advice: str = 'pip install "lmm-gpu[io]"') -> Any:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{purpose} needs the package {module.partition('.')[0]}: {advice}") from error
