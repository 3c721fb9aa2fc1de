"""Shared fixtures."""

from __future__ import annotations

import os

import dense
import pytest
from threadpoolctl import threadpool_limits

os.environ["MPLBACKEND"] = "Agg"  # plots without a display


@pytest.fixture(params=dense.DESIGNS)
def design(request):
    """Each of the small designs."""
    return dense.DESIGNS[request.param]


@pytest.fixture(params=["REML", "ML"])
def method(request):
    return request.param


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """Limit BLAS to one thread: for small matrices on a busy machine, more threads are slower."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
