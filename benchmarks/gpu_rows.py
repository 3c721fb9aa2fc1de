"""Rows of what a stage of `gpu.py` finds, written as they come, and times on a device."""

from __future__ import annotations

import json
import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Rows:
    """Rows of a stage: an error is a row, too, and the next thing runs."""

    def __init__(self, stage: str):
        self.path, self.rows = Path(os.environ.get("GPU_PARTS", ".")) / f"{stage}.json", []

    def add(self, what: str, function: Callable[[], dict[str, Any]]) -> None:
        """Add what a function returns; its "ok" is False if what it found is wrong."""
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = {"what": what, "ok": True} | function()
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            row = {"what": what, "ok": False, "error": f"{type(error).__name__}: {error}"[:500], "where": where[-1500:]}
        row["seconds in all"] = round(time.perf_counter() - start, 3)
        self.rows.append(row)
        print(json.dumps(row, default=float)[:600], flush=True)
        self.path.write_text(json.dumps(self.rows, default=float), encoding="utf-8")


def synchronise() -> None:
    """Wait for all work on the device."""
    import cupy

    cupy.cuda.runtime.deviceSynchronize()


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Shortest time of several runs after a first one, until the device has finished."""
    function()
    times = []
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        function()
        synchronise()
        times.append(time.perf_counter() - start)
    return min(times)


def largest(found: Any, wanted: Any, scale: Any = 1.0) -> float:
    """Largest deviation in units of `scale`; infinite if NaN are in other places."""
    found, wanted = np.asarray(found, dtype=float), np.asarray(wanted, dtype=float)
    if not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return float("inf")
    known = (np.abs(found - wanted) / scale)[~np.isnan(wanted)]
    return float(known.max()) if known.size else 0.0
