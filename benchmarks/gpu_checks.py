"""Stages of `gpu.py` that check numbers: a device against the host, and against R."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lmm_gpu
from lmm_gpu.backend import linalg
from lmm_gpu.backend.arrays import to_numpy
from lmm_gpu.cli.selftest.cases import fit_deviation, statistics
from lmm_gpu.cli.selftest.checks import CHECKS
from lmm_gpu.cli.selftest.runner import check, subject_of
from lmm_gpu.cli.system_info import system_info
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary

from .gpu_rows import Rows, largest

#: Largest deviation of what is asked of a fit, relative to the largest number of its kind.
ASKED_LIMIT = 1e-6
#: Numbers of matrices about a limit of older libraries.
BATCHES = (65_535, 65_536, 100_000)


def probe(rows: Rows, quick: bool) -> None:
    """The smallest things that could fail, each on its own."""
    import cupy

    rows.add("system", lambda: {"info": system_info()})
    rows.add("flags of matrices that cannot be factorised", _flags)
    for size in (2, 10, 46) if quick else (2, 10, 33, 46, 100, 259):
        rows.add(f"what failed factorisations leave, {size} rows", lambda size=size: _left(cupy, size))
        rows.add(f"eigenvectors, {size} rows", lambda size=size: _eigenvectors(cupy, size))
    for count in BATCHES[:1] if quick else BATCHES:
        rows.add(f"{count:,} matrices at once", lambda count=count: _batch(cupy, count))
    rows.add("a caller's stream that does not wait for others", lambda: _late_input(cupy, quick))


def _flags() -> dict[str, Any]:
    import cupy

    good = np.array([[2.0, 1.0], [1.0, 2.0]])
    stack = np.stack([good, np.ones((2, 2)), np.full((2, 2), np.nan), good])
    flags = [to_numpy(linalg.cholesky(cupy.asarray(stack))[1]).tolist()]
    flags.append(to_numpy(linalg.solve(cupy.asarray(stack), cupy.asarray(stack))[1]).tolist())
    return {"ok": flags == [[True, False, False, True]] * 2, "cholesky, solve": flags}


def _left(cupy: Any, size: int) -> dict[str, Any]:
    stack = np.tile(np.eye(size), (4, 1, 1))
    stack[1, 0, 0] = stack[2, -1, -1] = -1.0
    stack[3, 0, -1] = stack[3, -1, 0] = np.nan
    L = cupy.linalg.cholesky(cupy.asarray(stack)).get()
    finite = {name: bool(np.isfinite(L[i]).all()) for i, name in ((1, "first pivot"), (2, "last pivot"), (3, "NaN"))}
    return {"ok": bool(np.allclose(L[0], np.eye(size))), "finite": finite}


def _eigenvectors(cupy: Any, size: int) -> dict[str, Any]:
    A = np.random.default_rng(0).normal(size=(4, size, size))
    A = A @ np.swapaxes(A, 1, 2)
    values, vectors = (x.get() for x in cupy.linalg.eigh(cupy.asarray(A)))
    residual = largest((vectors * values[:, None, :]) @ np.swapaxes(vectors, 1, 2), A, np.abs(A).max())
    return {"ok": residual < 1e-11 and bool((np.diff(values) >= 0).all()), "residual": residual}


def _batch(cupy: Any, count: int) -> dict[str, Any]:
    A = cupy.asarray(np.tile(np.array([[2.0, 1.0], [1.0, 2.0]]), (count, 1, 1)))
    work = {
        "cholesky": lambda: cupy.linalg.cholesky(A),
        "solve": lambda: cupy.linalg.solve(A, A),
        "product": lambda: A @ A,
        "eigenvectors": lambda: cupy.linalg.eigh(A)[1],
    }
    alike = {}
    for name, function in work.items():
        found = function()
        alike[name] = bool((found == found[:1]).all())
    return {"ok": all(alike.values()), "alike": alike}


def _late_input(cupy: Any, quick: bool) -> dict[str, Any]:
    # the statistics are complete only once a long queue of the caller's stream is done
    host = statistics(1, 400)
    wanted, moved = fit_summary(host, FitOptions(device="cpu")).estimates, host.on(cupy.asarray)
    cupy.cuda.runtime.deviceSynchronize()
    with cupy.cuda.Stream(non_blocking=True):
        A = cupy.ones((200, 200) if quick else (6000, 6000))
        for _ in range(20):
            A = A @ A * 1e-9
        late = moved.on(lambda x: x + 0.0 * A[0, 0] if x.dtype == np.float64 else x)
        deviation = fit_deviation(fit_summary(late, FitOptions()).estimates, wanted)
    return {"ok": deviation < 1e-8, "deviation": deviation}


def selftest(rows: Rows, quick: bool) -> None:
    """All checks of `lmm-gpu selftest`."""
    for name in CHECKS:
        rows.add(name, lambda name=name: _checked(name, quick))


def _checked(name: str, quick: bool) -> dict[str, Any]:
    found = check(name, subject_of("cuda", quick))
    return {"ok": found["status"] != "failed"} | {key: found[key] for key in ("status", "reason", "deviation")}


def reference(rows: Rows, quick: bool) -> None:
    """R's reference cases, fitted on the device and on the host."""
    cases = importlib.import_module("test_reference")
    for name in cases.NAMES[:4] if quick else cases.NAMES:
        rows.add(name, lambda name=name: _case(cases, name))


def _case(cases: Any, name: str) -> dict[str, Any]:
    case = cases.case_named(name)
    host, device = (case.refit(device=where).estimates for where in ("cpu", "cuda"))
    at = np.isfinite(host.theta).all(axis=0)
    found = {
        "theta": largest(device.theta[:, at], host.theta[:, at], host.theta[-1, at]),
        "coef": largest(device.coef[:, at], host.coef[:, at], host.se[:, at]),
        "theta from R": largest(device.theta[:, at], case["fit_theta"][:, at], host.theta[-1, at]),
    }
    other = np.flatnonzero(host.status != device.status).tolist()
    return {"ok": max(found["theta"], found["coef"]) < 1e-6 and not other, "other status": other[:10]} | found


def asked(rows: Rows, quick: bool) -> None:
    """Every method of a fit: cells on the host and on the device, against a fit on the host."""
    import cupy

    obs, Y = _study()
    formulas = ("~ arm + depth + (1 | donor)", "~ arm + depth + (1 | donor) + (1 | batch)")
    for formula in formulas[:1] if quick else (*formulas, "~ arm + depth + (depth | donor)"):
        host = lmm_gpu.fit((Y, obs), formula, device="cpu")
        fits = {"host": lmm_gpu.fit((Y, obs), formula, device="cuda")}
        fits["device"] = lmm_gpu.fit((cupy.asarray(Y), obs), formula)
        for where, fit in fits.items():
            for name, ask in ASKED.items():
                rows.add(f"{formula}, cells on the {where}: {name}", lambda a=ask, f=fit, h=host: _same(a, f, h))


def _study() -> tuple[pd.DataFrame, np.ndarray]:
    rng, n = np.random.default_rng(3), 240
    donor = np.repeat(np.arange(12), 20)
    obs = pd.DataFrame({"donor": donor.astype(str), "batch": (np.arange(n) % 5).astype(str)})
    obs["arm"], obs["depth"] = np.where(donor < 6, "a", "b"), rng.normal(size=n)
    Y = rng.normal(size=(n, 6)) + rng.normal(size=(12, 6))[donor] + 0.5 * rng.normal(size=(5, 6))[np.arange(n) % 5]
    return obs, Y


def _same(ask: Callable[[Any], Any], fit: Any, host: Any) -> dict[str, Any]:
    wanted, found = _numbers(ask(host)), _numbers(ask(fit))
    scale = max(1.0, float(np.nanmax(np.abs(wanted)))) if wanted.size else 1.0
    deviation = largest(found, wanted, scale)
    return {"ok": deviation < ASKED_LIMIT, "deviation": deviation}


def _numbers(x: Any) -> np.ndarray:
    if isinstance(x, pd.DataFrame):
        return x.select_dtypes("number").to_numpy(dtype=float).ravel()
    if hasattr(x, "statistic"):
        return np.concatenate([_numbers(x.statistic), _numbers(x.df)])
    if hasattr(x, "se"):
        return np.concatenate([_numbers(x.estimate), _numbers(x.se), _numbers(x.df)])
    return np.asarray(x, dtype=float).ravel()


def _saved(fit: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        fit.save(Path(folder) / "fit.h5")
        return lmm_gpu.LMMFit.load(Path(folder) / "fit.h5").test()


ASKED: dict[str, Callable[[Any], Any]] = {
    **{name: lambda fit, name=name: fit[name] for name in ("coef", "se", "theta", "se_theta", "logLik", "cov", "RE")},
    "ranef": lambda fit: fit.ranef(),
    "variance_intervals": lambda fit: fit.variance_intervals(),
    "variance_test, lrt": lambda fit: fit.variance_test(0, method="lrt"),
    "variance_test, wald": lambda fit: fit.variance_test(0, method="wald"),
    "variance_partition": lambda fit: fit.variance_partition(),
    "test": lambda fit: fit.test(),
    "anova": lambda fit: fit.anova(),
    "moderated test": lambda fit: fit.test(moderate=True),
    **{
        f"contrasts, {df}": lambda fit, df=df: fit.contrast_test(np.eye(fit.coef.shape[0]), df)
        for df in ("generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual")
    },
    "F test": lambda fit: fit.f_test(np.eye(fit.coef.shape[0])[1:], "satterthwaite"),
    "saved and loaded": _saved,
}


def short(rows: Rows, quick: bool) -> None:
    """Short work of every kernel, for compute-sanitizer."""
    import cupy

    for effects in (1, 2):
        rows.add(f"fit, {effects} effects", lambda effects=effects: _short_fit(effects))
    obs, Y = _study()
    rows.add("sums", lambda: {"genes": lmm_gpu.summarize((cupy.asarray(Y), obs), "~ arm + depth + (1 | donor)").m})


def _short_fit(effects: int) -> dict[str, Any]:
    summary = statistics(effects, 40)
    found, wanted = (fit_summary(summary, FitOptions(device=one, block=21)).estimates for one in ("cuda", "cpu"))
    deviation = fit_deviation(found, wanted)
    return {"ok": deviation < 1e-8, "deviation": deviation}
