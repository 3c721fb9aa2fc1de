"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import dense
import pytest
from threadpoolctl import threadpool_limits

os.environ["MPLBACKEND"] = "Agg"  # plots without a display
SLOW = Path(__file__).with_name("slow_tests.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that are listed in slow_tests.txt."""
    lines = set(SLOW.read_text(encoding="utf-8").splitlines())
    for item in items:
        name = item.nodeid.partition("[")[0]
        if not lines.isdisjoint({name, name.partition("::")[0]}):
            item.add_marker(pytest.mark.slow)


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
