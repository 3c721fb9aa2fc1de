"""Each check of `lmm-gpu selftest`, on the first CUDA device: `pytest -m gpu`."""

from __future__ import annotations

import sys

import pytest

from lmm_gpu.backend.devices import cuda_count
from lmm_gpu.cli.selftest import checks
from lmm_gpu.cli.selftest.checks import CHECKS
from lmm_gpu.cli.selftest.runner import check, subject_of
from lmm_gpu.estimation import fitting

COUNT, REASON = cuda_count()
HOW = "run `pytest -m gpu`, or `lmm-gpu selftest --device cuda`, where a CUDA device and CuPy are"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not COUNT, reason=f"{REASON}; {HOW}")]


EMULATED = "emulate" in sys.modules  # by `pytest -p real_cupy`


@pytest.fixture(autouse=True)
def few_genes(monkeypatch):
    """Sizes that an emulated device computes in seconds; what only happens in large batches is not emulated."""
    if EMULATED:
        monkeypatch.setattr(checks, "TABULATED", 700)
        for module in (checks, fitting):
            monkeypatch.setattr(module, "MOST_GENES_ON_DEVICE", 1_000)


@pytest.mark.parametrize("name", CHECKS)
def test_on_cuda(name):
    found = check(name, subject_of("cuda", quick=EMULATED))
    if found["status"] == "skipped":
        pytest.skip(found["reason"])
    assert found["status"] == "passed", found["reason"]
