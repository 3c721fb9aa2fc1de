"""Time to fit all genes from summary statistics, with ratios to flash-mm in the same run."""

from __future__ import annotations

import resource

import machine
import numpy as np
from machine import best
from tb_statistics import simulate
from threadpoolctl import threadpool_limits

import lmm_gpu
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.results.lmm_fit import LMMFit

GENES, QUICK_GENES, PEER_GENES = 11_596, 500, 12
MODELS = {1: "donor", 2: "donor + batch", 3: "donor + batch + site", "slope": "donor + slope by donor"}
GROWTH = (1_000, 3_000, 10_000, 30_000, 100_000)


def everything(summary: lmm_gpu.SummaryStats) -> LMMFit:
    """Fit all genes: coef, se, t, p, theta, logLik, dlogL and niter."""
    fit = fit_summary(summary, FitOptions())
    fit = LMMFit(fit.estimates, fit.summary, fit.model, ddf="residual")
    assert np.isfinite(fit.p.to_numpy()).all()
    return fit


def peer_seconds(summary: lmm_gpu.SummaryStats) -> float | None:
    """Seconds per gene of flash-mm, None if it is not installed; asserts that its theta equals ours."""
    try:
        from flash_mm import lmm
    except ImportError:
        return None
    some = slice(0, PEER_GENES)
    arguments = (summary.XX, summary.XY[:, some], summary.ZX, summary.ZY[:, some], summary.ZZ)
    keywords = {"Ynorm": summary.Ynorm[some], "n": summary.n, "d": list(summary.d)}
    theirs = lmm(*arguments, **keywords)
    ours = lmm_gpu.lmm(*arguments, **keywords)
    np.testing.assert_allclose(theirs["theta"].to_numpy(), ours.theta.to_numpy(), rtol=1e-6, atol=1e-9)
    run = lambda: lmm(*arguments, **keywords)  # noqa: E731
    with threadpool_limits(limits=1, user_api="blas"):  # spinning threads slow it down on a busy machine
        alone = best(run, repeats=2)
    return min(alone, best(run, repeats=2)) / PEER_GENES


def compare(effects: int | str, genes: int, *, peer: bool, hard: bool = False) -> dict:
    """Time one model, with the peer on request."""
    summary = simulate(genes, effects, hard=hard)
    fit = everything(summary)
    ours = best(lambda: everything(summary))
    row = {
        "model": MODELS[effects] + (", hard" if hard else ""),
        "genes": genes,
        "seconds": ours,
        "ms_per_gene": 1e3 * ours / genes,
        "status": {str(k): int(v) for k, v in fit.status.value_counts().items()},
        "iterations": float(fit.niter.mean()),
    }
    if hard:
        row |= boundary_seconds(summary, fit)
    per_gene = peer_seconds(summary) if peer else None
    if per_gene is not None:
        row |= {"peer_ms_per_gene": 1e3 * per_gene, "times_faster": per_gene * genes / ours}
    return row


def boundary_seconds(summary: lmm_gpu.SummaryStats, fit: LMMFit) -> dict:
    """Share of genes with a variance at or below zero, and their time per gene relative to the other genes."""
    at_or_below = (fit.theta.to_numpy()[:-1] <= 0).any(axis=0)
    few = min(np.count_nonzero(at_or_below), np.count_nonzero(~at_or_below))
    parts = [summary.with_genes(np.flatnonzero(mask)[:few].tolist()) for mask in (at_or_below, ~at_or_below)]
    boundary, interior = (best(lambda part=part: fit_summary(part, FitOptions())) for part in parts)
    return {"at_or_below_zero": float(at_or_below.mean()), "time_at_or_below_zero": boundary / interior}


def show(row: dict) -> None:
    peer = f"flash-mm {row['peer_ms_per_gene']:.1f} ms: {row['times_faster']:.0f} x" if "times_faster" in row else ""
    ours = f"{row['genes']:7,} genes {row['seconds']:8.2f} s {row['ms_per_gene']:8.3f} ms a gene"
    if "at_or_below_zero" in row:
        peer += f"  {row['at_or_below_zero']:.0%} of genes at or below zero take {row['time_at_or_below_zero']:.1f} x"
    print(f"{row['model']:24s} {ours}  {peer}", flush=True)


def main() -> None:
    parser = machine.parser("solver", __doc__)
    parser.add_argument("--genes", type=int, help=f"default {GENES}, with --quick {QUICK_GENES}")
    options = parser.parse_args()
    genes = options.genes or (QUICK_GENES if options.quick else GENES)
    few = min(genes, 1000)
    rows = [compare(1, genes, peer=True), compare(2, genes, peer=True)]
    for row in rows:
        show(row)
    hard = [compare(effects, genes, peer=True, hard=True) for effects in (1, 2)]
    for row in hard:
        show(row)
    for effects, count in ((3, few), ("slope", few // 10)):
        rows.append(compare(effects, count, peer=False))
        show(rows[-1])
    growth = [compare(1, count, peer=False) for count in GROWTH if count <= 10 * genes]
    for row in growth:
        show(row)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB")
    machine.write({"models": rows, "hard": hard, "growth": growth, "peak_gb": peak}, options)


if __name__ == "__main__":
    main()
