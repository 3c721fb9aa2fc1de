"""The linear algebra library gets its threads back, also after fits that overlap on several threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from lmm_gpu.backend import threads
from lmm_gpu.backend.threads import ahead, in_threads, limited, workers

#: Two contexts of which the second is entered after the first and left after it. threadpoolctl lets one thread change
#: the setting as long as that thread lives, so each case runs in a separate process.
OVERLAP = """
import numpy, sys, threading
from threadpoolctl import threadpool_info
from lmm_gpu.backend.threads import one_blas_thread

numbers = lambda: {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
second_in, first_left, before = threading.Event(), threading.Event(), numbers()

def first():
    with one_blas_thread():
        print(*numbers())
        second.start()
        second_in.wait(10)

def hold():
    with one_blas_thread():
        second_in.set()
        first_left.wait(10)

second, other = threading.Thread(target=hold), threading.Thread(target=first)
if sys.argv[1] == "here":
    first()
else:
    other.start()
    other.join()
first_left.set()
second.join()
print(before == numbers(), *before)
"""


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("the linear algebra library has no threads")
        yield


@pytest.mark.parametrize("first", ["here", "on a thread"])
def test_contexts_that_overlap_restore_the_number_before_the_first(first):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OVERLAP, first]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if done.stdout.split()[-1] != "2":
        pytest.skip("the linear algebra library has no threads")
    assert done.stdout.split() == ["1", "True", "2"]


def test_an_error_in_a_task_restores_them(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 / x, [1, 0], 2))
    assert blas_threads() == {2}


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "damaged\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, files, processors):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = threads._quota(tmp_path)
    assert found == processors
    monkeypatch.setattr(threads, "_quota", lambda: found)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    assert workers() == min(3, processors or 3)


def test_a_limit_holds_for_items_that_are_made_ahead_and_ends_with_its_context():
    before = workers()
    with limited(7):
        assert list(ahead(workers() for _ in range(3))) == [7, 7, 7]
        with limited(None):
            assert workers() == 7
    assert workers() == before
