"""The self-test of a device: its numbers compared with those of the host, and its speed."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from ...backend.devices import Cuda, Device, cuda_count, resolve
from ..system_info import system_info
from .checks import CHECKS, LIMIT, Skip, Subject, limit
from .rates import rates


def selftest(
    device: Any = "auto",
    *,
    quick: bool = False,
    checks: Iterable[str] | None = None,
    timing: bool = True,
    report: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Check and time a device.

    Parameters
    ----------
    device : str
        "cuda", "cuda:1", "cpu", or "auto".
    quick : bool
        Fewer genes.
    checks : iterable of str, optional
        Names from `checks.CHECKS`; by default all of them.
    timing : bool
        Measure rates, too.
    report : callable, optional
        Called with every finished check.

    Returns
    -------
    dict
        format, device, quick, limit, finished, seconds, passed (no check failed), counts, checks, rates and system. A
        check has name, status ("passed", "failed", "skipped"), reason, deviation (None if there is no number), its
        limit, seconds.

    Raises
    ------
    ValueError
        If the device cannot be used, or is several.

    Examples
    --------
    >>> found = selftest("cpu", quick=True, checks=["products of cells", "two devices"], timing=False)
    >>> [one["status"] for one in found["checks"]], found["passed"]
    (['passed', 'skipped'], True)
    """
    subject, started, done = subject_of(device, quick), time.perf_counter(), []
    for name in CHECKS if checks is None else checks:
        done.append(check(name, subject))
        if report is not None:
            report(done[-1])
    counts = {status: sum(one["status"] == status for one in done) for status in ("passed", "failed", "skipped")}
    return {
        "format": "lmm_gpu selftest",
        "device": subject.device.name,
        "quick": quick,
        "limit": LIMIT,
        "passed": counts["failed"] == 0,
        "counts": counts,
        "checks": done,
        "rates": list(rates(subject.device, quick=quick)) if timing else [],
        "seconds": time.perf_counter() - started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": system_info(),
    }


def check(name: str, subject: Subject) -> dict[str, Any]:
    """Run one check; an exception is a failure."""
    started, reason = time.perf_counter(), ""
    deviation: float | None = None
    most = LIMIT
    try:
        with warnings.catch_warnings():  # about defective genes, and deprecations
            warnings.simplefilter("ignore")
            deviation = CHECKS[name](subject)
            most = limit(name, subject)
        status = "passed" if deviation <= most else "failed"
        if status == "failed":
            reason = f"deviates by {deviation:.1e} from the host's numbers; {most:.0e} is allowed"
    except Skip as skip:
        status, reason = "skipped", str(skip)
    except AssertionError as error:
        status, reason = "failed", str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        status = "failed"
        reason = f"{type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}, line {where.lineno})"
    seconds = time.perf_counter() - started
    number = deviation if deviation is not None and math.isfinite(deviation) else None
    return {"name": name, "status": status, "reason": reason, "deviation": number, "limit": most, "seconds": seconds}


def subject_of(device: Any, quick: bool) -> Subject:
    """Return the device to check, and a second one if there is one."""
    chosen = resolve(device)
    if len(chosen) > 1:
        raise ValueError(f"device={device!r}: expected one device, as devices are checked one at a time")
    return Subject(chosen[0], _beside(chosen[0]), quick)


def _beside(device: Device) -> Device | None:
    # a second CUDA device, if there is one
    if not isinstance(device, Cuda):
        return None
    others = [number for number in range(cuda_count()[0]) if number != device.number]
    return Cuda(others[0]) if others else None
