"""Each check of `lmm-gpu selftest`, on the first CUDA device: `pytest -m gpu`."""

from __future__ import annotations

import pytest

from lmm_gpu.backend.devices import cuda_count
from lmm_gpu.cli.selftest.checks import CHECKS
from lmm_gpu.cli.selftest.runner import check, subject_of

COUNT, REASON = cuda_count()
HOW = "run `pytest -m gpu`, or `lmm-gpu selftest --device cuda`, where a CUDA device and CuPy are"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not COUNT, reason=f"{REASON}; {HOW}")]


@pytest.mark.parametrize("name", CHECKS)
def test_on_cuda(name):
    found = check(name, subject_of("cuda", quick=False))
    if found["status"] == "skipped":
        pytest.skip(found["reason"])
    assert found["status"] == "passed", found["reason"]
