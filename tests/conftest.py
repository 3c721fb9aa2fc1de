"""Shared fixtures."""

from __future__ import annotations

import os

import dense
import pytest
from threadpoolctl import threadpool_limits

os.environ["MPLBACKEND"] = "Agg"  # pictures without a screen


@pytest.fixture(params=dense.DESIGNS)
def design(request):
    """Every small design in turn."""
    return dense.DESIGNS[request.param]


@pytest.fixture(params=["REML", "ML"])
def method(request):
    return request.param


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """Small dense references: on a busy machine the threads of a linear algebra library mostly wait for each other."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
