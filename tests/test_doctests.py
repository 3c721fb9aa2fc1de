"""Every example in a docstring runs as it is printed."""

import doctest
import importlib
import pkgutil

import pytest

import lmm_gpu

MODULES = [module.name for module in pkgutil.iter_modules(lmm_gpu.__path__, "lmm_gpu.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name == "lmm_gpu.cli":
        pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_public_functions_have_examples():
    functions = [getattr(lmm_gpu, name) for name in lmm_gpu.__all__ if not isinstance(getattr(lmm_gpu, name), type)]
    assert [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")] == []
