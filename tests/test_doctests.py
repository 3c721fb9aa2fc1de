"""Every example in a docstring runs as it is printed."""

import doctest
import importlib
import inspect
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
    spaces = (lmm_gpu, lmm_gpu.pl, lmm_gpu.tl)
    functions = [f for space in spaces for name in space.__all__ if inspect.isfunction(f := getattr(space, name))]
    assert [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")] == []
