"""Every example in a docstring runs as it is printed."""

import doctest
import importlib
import pkgutil

import pytest

import lmm_gpu

MODULES = [module.name for module in pkgutil.iter_modules(lmm_gpu.__path__, "lmm_gpu.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name in ("lmm_gpu.cli", "lmm_gpu.console", "lmm_gpu.guide"):
        pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
    assert doctest.testmod(importlib.import_module(name)).failed == 0
