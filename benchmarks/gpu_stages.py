"""The stages of `gpu.py`: `python -m benchmarks.gpu_stages NAME [--quick]`."""

from __future__ import annotations

import argparse
import sys

import real_cupy  # first: it emulates a device where there is none

from . import gpu_checks, gpu_timings
from .gpu_rows import Rows

STAGES = {
    "probe": gpu_checks.probe,
    "selftest": gpu_checks.selftest,
    "reference": gpu_checks.reference,
    "asked": gpu_checks.asked,
    "sanitizer": gpu_checks.short,
    "fits": gpu_timings.fits,
    "sums": gpu_timings.sums,
    "rates": gpu_timings.rates,
    "memory": gpu_timings.memory,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if real_cupy.REASON:
        print(real_cupy.REASON)
        return 2
    rows = Rows(options.stage)
    rows.add("device", lambda: {"emulated": "emulate" in sys.modules})
    STAGES[options.stage](rows, options.quick or "emulate" in sys.modules)
    return 0 if all(row["ok"] for row in rows.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
