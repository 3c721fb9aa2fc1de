"""Shared fixtures."""

from __future__ import annotations

import dense
import pytest


@pytest.fixture(params=dense.DESIGNS)
def design(request):
    """Every small design in turn."""
    return dense.DESIGNS[request.param]


@pytest.fixture(params=["REML", "ML"])
def method(request):
    return request.param
