"""Every example in a docstring runs as it is printed."""

import doctest
import importlib
import pkgutil

import pytest

import lmm_gpu

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lmm_gpu.__path__, "lmm_gpu.")
    if not module.ispkg and module.name != "lmm_gpu.__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name.startswith("lmm_gpu.cli."):
        pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
    assert doctest.testmod(importlib.import_module(name)).failed == 0
