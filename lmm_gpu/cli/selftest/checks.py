"""Checks of a device: the numbers of the host, with defective genes, and in every mode of use.

Each takes a `Subject` and returns its largest deviation from the host's numbers on each quantity's own scale, which
`limit` bounds. It raises AssertionError if something other than a number is wrong, and `Skip` if it does not apply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from ...backend.arrays import Array, like, namespace, to_numpy
from ...backend.devices import Cuda, Device
from ...backend.fusion import flatten, fuses, without_fusion
from ...backend.linalg import cholesky, inverse_small, solve
from ...estimation import fisher_scoring
from ...estimation.block_size import MOST_GENES_ON_DEVICE
from ...estimation.estimates import Estimates
from ...estimation.fisher_scoring import Evaluation, Rules, State, advance
from ...estimation.fitting import estimate_block
from ...estimation.mixed_model import MixedModel
from ...estimation.status import Status
from ...results.fitting import fit_summary
from ...sumstats.assembly import cross_products
from ...sumstats.summary_stats import SummaryStats
from .cases import LEVELS, allowed, cells, converged, fit_deviation, inference_deviation, largest, repeated, statistics

#: Largest deviation of a device from the host that is always allowed.
LIMIT = 1e-8
#: Number of genes from which functions of the variance ratios are tabulated.
TABULATED = 4000
#: Fractions of the memory of a fit to which it is limited, until memory runs out.
SHARES = (0.7, 0.5, 0.3, 0.2, 0.1)


class Skip(Exception):
    """A check does not apply to this device, for the given reason."""


@dataclass(frozen=True)
class Subject:
    """The device to check and the thoroughness of the checks."""

    device: Device
    other: Device | None = None  #: a second device
    quick: bool = False

    @property
    def genes(self) -> int:
        """Genes of a small fit."""
        return 40 if self.quick else 400


# --- the same numbers -----------------------------------------------------------------------------


def parity(subject: Subject, effects: int) -> float:
    """Check fits by REML and ML, with and without bounds, and their tests."""
    summary, worst = statistics(effects, subject.genes), 0.0
    some = [("REML", "auto"), ("ML", "nonnegative")]
    for method, bounds in some if subject.quick else product(("REML", "ML"), ("auto", "nonnegative")):
        options = converged(method=method, bounds=bounds, device="cpu")
        wanted = fit_summary(summary, options)
        found = fit_summary(summary, replace(options, device=subject.device, block=subject.genes // 2 + 1))
        worst = max(worst, fit_deviation(found.estimates, wanted.estimates), inference_deviation(found, wanted))
    return worst


def tables(subject: Subject) -> float:
    """Check a fit of enough genes that functions of the variance ratios are tabulated."""
    summary = statistics(2, TABULATED)
    wanted = fit_summary(summary, converged(device="cpu"))
    found = fit_summary(summary, converged(device=subject.device))
    assert getattr(found.model.likelihood, "trace_table", None) is not None, "nothing was tabulated"
    return fit_deviation(found.estimates, wanted.estimates)


def products(subject: Subject) -> float:
    """Check the products of cells, of genes in double and in single precision."""
    X, Z, Y = cells(2, subject.genes)
    worst, put = 0.0, subject.device.put
    for kept in (Y, Y.astype(np.float32)):
        wanted = cross_products(X, Z, kept.astype(float), d=LEVELS[:2])
        with subject.device.entered():
            found = cross_products(put(X), put(Z), put(kept), d=LEVELS[:2])
        for name in ("XX", "ZX", "ZZ", "XY", "ZY", "Ynorm", "Ysum"):
            theirs = getattr(wanted, name)
            worst = max(worst, largest(getattr(found, name), theirs, np.abs(theirs).max()))
    return worst


def fusion(subject: Subject) -> float:
    """Check that fused kernels agree with the same steps computed one by one."""
    worst = 0.0
    for effects, rules in product((1, 2, 3), RULES):
        likelihood, state = _begun(subject, effects)
        if not fuses(state.length):
            raise Skip("this library does not fuse operations into kernels")
        with subject.device.entered():
            fused = advance(advance(state, likelihood, rules), likelihood, rules)
            with without_fusion():
                plain = advance(advance(state, likelihood, rules), likelihood, rules)
        for ours, theirs in zip(flatten(fused)[0], flatten(plain)[0], strict=True):
            wanted = to_numpy(theirs).astype(float)
            worst = max(worst, largest(to_numpy(ours).astype(float), wanted, 1.0 + np.abs(wanted)))
    return worst


# --- defective genes ------------------------------------------------------------------------------


def bad_genes(subject: Subject) -> float:
    """Check that constant and NaN genes get a status and do not affect the others."""
    worst, m = 0.0, subject.genes
    for effects in (1, 2, 3):
        X, Z, Y = cells(effects, m)
        spoilt = np.insert(Y, [1, 5], np.array([[np.nan, 1.0]]), axis=1)  # (n, m + 2)
        bad = [1, 6]  # their positions
        fit = fit_summary(
            cross_products(X, Z, spoilt, d=LEVELS[:effects]), converged(device=subject.device, block=m + 2)
        )
        ended = [Status(int(fit.estimates.status[gene])) for gene in bad]
        assert ended[0] not in (Status.CONVERGED, Status.BOUNDARY), f"a gene of NaN is {ended[0].word}"
        assert ended[1] == Status.NO_VARIANCE, f"a constant gene is {ended[1].word}"
        good = Estimates(**{name: np.delete(value, bad, axis=-1) for name, value in vars(fit.estimates).items()})
        wanted = fit_summary(statistics(effects, m), converged(device="cpu"))
        worst = max(worst, fit_deviation(good, wanted.estimates))
    return worst


def indefinite(subject: Subject) -> float:
    """Check that V that is not positive definite is flagged, gene by gene."""
    worst, m = 0.0, subject.genes
    good = np.arange(m) % 2 == 0
    for effects in (1, 2, 3):
        theta = np.ones((effects + 1, m))  # (k+1, m)
        theta[0, ~good] = -50.0
        summary = statistics(effects, m)
        with subject.device.entered():
            found = _evaluate(summary, theta, subject.device.put)
        assert np.array_equal(to_numpy(found.ok), good), "indefinite matrices are not flagged"
        wanted = _evaluate(summary, theta, Device().put)
        for name in ("value", "score", "information"):
            ours, theirs = (to_numpy(getattr(one, name))[..., good] for one in (found, wanted))
            worst = max(worst, largest(ours, theirs, 1.0 + np.abs(theirs)))
    return worst


def bad_matrices(subject: Subject) -> float:
    """Check that factorisations flag the matrices of a stack that they cannot factorise."""
    good, indefinite = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])
    nothing, singular = np.full((2, 2), np.nan), np.ones((2, 2))
    cases: list[tuple[Any, Any, np.ndarray]] = [
        (cholesky, np.linalg.cholesky, bad) for bad in (indefinite, -good, nothing)
    ]
    cases += [(_solved, np.linalg.inv, bad) for bad in (singular, nothing)]
    cases += [(_inverse_small, np.linalg.inv, bad) for bad in (indefinite, singular, nothing)]
    worst = 0.0
    for (factorise, on_host, bad), size in product(cases, (2, 10)):
        stack = np.tile(np.eye(size), (3, 1, 1))  # (3, size, size)
        stack[:, :2, :2] = np.stack([good, bad, good])
        with subject.device.entered():
            found, ok = factorise(subject.device.put(stack))
        assert to_numpy(ok).tolist() == [True, False, True], f"{factorise.__name__} flags the wrong matrices"
        worst = max(worst, largest(to_numpy(found)[::2], on_host(stack[::2])))
    return worst


# --- modes of use ---------------------------------------------------------------------------------


def waiting(subject: Subject) -> float:
    """Check that the host never waits for the device within a step of all genes."""
    device = subject.device
    if not isinstance(device, Cuda):
        raise Skip("only CuPy reports that the host waits for a device")
    for effects, rules in product((1, 2, 3), RULES):
        likelihood, state = _begun(subject, effects)
        with device.entered():
            state = advance(state, likelihood, rules)  # compiles kernels
            device.synchronise()
            with device.no_waiting():
                advance(state, likelihood, rules)
    _assert_refused(device, state.length)
    return 0.0


def large_batch(subject: Subject) -> float:
    """Check batches and fits of more genes than batched solvers accept."""
    drawn, worst = 70, 0.0
    times = MOST_GENES_ON_DEVICE // drawn + 2
    for effects in (1,) if subject.quick else (1, 2):
        few = statistics(effects, drawn)
        many, ones = repeated(few, times), np.ones((effects + 1, drawn * times))
        with subject.device.entered():
            found = _evaluate(many, ones, subject.device.put)
        wanted = _evaluate(few, ones[:, :drawn], Device().put)
        for name in ("value", "score", "information", "yPy"):
            theirs = np.tile(getattr(wanted, name), times)
            worst = max(worst, largest(getattr(found, name), theirs, 1.0 + np.abs(theirs)))
        fitted = fit_summary(many, converged(device=subject.device)).estimates
        fitted_few = vars(fit_summary(few, converged(device="cpu")).estimates)
        worst = max(worst, fit_deviation(fitted, Estimates(**{k: np.tile(v, times) for k, v in fitted_few.items()})))
    return worst


def two_streams(subject: Subject) -> float:
    """Check two concurrent threads, each on its own stream of the device."""
    summaries = [statistics(2, subject.genes, seed) for seed in (0, 1)]
    together = threading.Barrier(2, timeout=600)

    def fitted(summary: SummaryStats) -> Estimates:
        with subject.device.entered(), subject.device.own_stream():
            together.wait()
            model = MixedModel.build(summary.on(subject.device.put))
            coefficients = model.prepare(like(np.eye(3), model.XXinv), gradient=False)
            return estimate_block(model, None, coefficients, converged())

    worst, wanted = 0.0, [fit_summary(one, converged(device="cpu")).estimates for one in summaries]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(1 if subject.quick else 5):
            found = list(pool.map(fitted, summaries))
            worst = max(worst, *(fit_deviation(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)))
    return worst


def two_devices(subject: Subject) -> float:
    """Check a fit on two devices."""
    if subject.other is None:
        raise Skip("there is no second CUDA device")
    summary = statistics(2, subject.genes)
    wanted = fit_summary(summary, converged(device="cpu")).estimates
    options = converged(device=[subject.device, subject.other], block=max(1, subject.genes // 4))
    return fit_deviation(fit_summary(summary, options).estimates, wanted)


def out_of_memory(subject: Subject) -> float:
    """Check a fit in a memory pool that is too small for it: smaller blocks, the same numbers."""
    if not isinstance(subject.device, Cuda):
        raise Skip("only CuPy's memory pool can be limited")
    m = 4_000 if subject.quick else 40_000
    summary, device = statistics(1, m), _Watched(subject.device.number)
    wanted = fit_summary(summary, converged(device="cpu")).estimates
    device.release()
    before, _ = device.pool_bytes()
    fit_summary(summary, converged(device=device, block=m))
    _, after = device.pool_bytes()
    if after <= before:
        raise Skip("another allocator than CuPy's memory pool is in use")
    for share in SHARES:
        device.release()
        device.released, used = 0, device.pool_bytes()[0]
        with device.limited(used + int(share * (after - before))):
            found = fit_summary(summary, converged(device=device, block=m)).estimates
        deviation = fit_deviation(found, wanted)
        if device.released:
            return deviation
    raise AssertionError(
        f"memory did not run out in {SHARES[-1]:.0%} of the memory of the fit: the limit has no effect"
    )


#: Rules of the steps that are checked one by one.
RULES = (Rules(), Rules(nonnegative=True), Rules(relaxed=True))
#: All checks, in order.
CHECKS: dict[str, Callable[[Subject], float]] = {
    "products of cells": products,
    "fit, one effect": lambda subject: parity(subject, 1),
    "fit, two effects": lambda subject: parity(subject, 2),
    "fit, three effects": lambda subject: parity(subject, 3),
    "fit with tables": tables,
    "fused kernels": fusion,
    "no hidden synchronisation": waiting,
    "bad genes": bad_genes,
    "indefinite genes": indefinite,
    "bad matrices": bad_matrices,
    "more than 65,535 genes at once": large_batch,
    "two streams": two_streams,
    "two devices": two_devices,
    "out of memory": out_of_memory,
}


def limit(name: str, subject: Subject) -> float:
    """Largest deviation that a check allows: `LIMIT`, or what rounding explains in its fits if that is more."""
    most = LIMIT
    for effects, seed in _FITS.get(name, ()):
        of_estimates, of_tests = allowed(effects, subject.genes, seed)
        most = max(most, of_estimates, of_tests if name.startswith("fit, ") else 0.0)
    return most


#: Random effects and seeds of the fits that a check compares.
_FITS: dict[str, tuple[tuple[int, int], ...]] = {
    "fit, one effect": ((1, 0),),
    "fit, two effects": ((2, 0),),
    "fit, three effects": ((3, 0),),
    "fit with tables": ((2, 0),),
    "bad genes": ((1, 0), (2, 0), (3, 0)),
    "more than 65,535 genes at once": ((1, 0), (2, 0)),
    "two streams": ((2, 0), (2, 1)),
    "two devices": ((2, 0),),
    "out of memory": ((1, 0),),
}


class _Watched(Cuda):
    """A CUDA device that counts failed allocations."""

    released = 0

    def release(self) -> None:
        """Give cached blocks back to the driver."""
        self.released += 1
        super().release()


def _begun(subject: Subject, effects: int) -> tuple[Any, State]:
    # likelihood and first state, on the device
    with subject.device.entered():
        model = MixedModel.build(statistics(effects, subject.genes).on(subject.device.put))
        theta = subject.device.put(np.ones((effects + 1, subject.genes)))
        return model.likelihood, fisher_scoring._begin(theta)


def _evaluate(summary: SummaryStats, theta: np.ndarray, put: Callable[[Any], Array]) -> Evaluation:
    # the likelihood without tables, where `put` puts it
    likelihood: Any = MixedModel.build(summary.on(put)).likelihood
    plain = likelihood.untabulated() if hasattr(likelihood, "untabulated") else likelihood
    found: Evaluation = plain.evaluate(put(theta))
    return found


def _solved(A: Array) -> tuple[Array, Array]:
    return solve(A, like(np.tile(np.eye(A.shape[1]), (3, 1, 1)), A))


def _inverse_small(A: Array) -> tuple[Array, Array]:
    xp = namespace(A)
    inverse, ok = inverse_small(xp.permute_dims(A, (1, 2, 0)))
    return xp.permute_dims(inverse, (2, 0, 1)), ok


def _assert_refused(device: Cuda, x: Array) -> None:
    # otherwise the check could not fail
    try:
        with device.no_waiting():
            to_numpy(x)
    except Exception:
        return
    raise AssertionError("CuPy did not report that the host waited: this check cannot fail")
