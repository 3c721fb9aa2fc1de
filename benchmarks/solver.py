"""How fast are all genes fitted from summary statistics? Prints ratios to flash-mm, genes timed in the same run."""

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
    """coef, se, t, p, theta, logLik, dlogL and niter of all genes."""
    fit = fit_summary(summary, FitOptions())
    fit = LMMFit(fit.estimates, fit.summary, fit.model, ddf="residual")
    assert np.isfinite(fit.p.to_numpy()).all()
    return fit


def peer_seconds(summary: lmm_gpu.SummaryStats) -> float | None:
    """Seconds per gene of flash-mm, None if it is not installed; its theta must be ours."""
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
    with threadpool_limits(limits=1, user_api="blas"):  # threads that spin make it slower on a busy machine
        alone = best(run, repeats=2)
    return min(alone, best(run, repeats=2)) / PEER_GENES


def compare(effects: int | str, genes: int, *, peer: bool) -> dict:
    """Time one model; with the peer if it is asked for."""
    summary = simulate(genes, effects)
    fit = everything(summary)
    ours = best(lambda: everything(summary))
    row = {
        "model": MODELS[effects],
        "genes": genes,
        "seconds": ours,
        "ms_per_gene": 1e3 * ours / genes,
        "status": {str(k): int(v) for k, v in fit.status.value_counts().items()},
        "iterations": float(fit.niter.mean()),
    }
    per_gene = peer_seconds(summary) if peer else None
    if per_gene is not None:
        row |= {"peer_ms_per_gene": 1e3 * per_gene, "times_faster": per_gene * genes / ours}
    return row


def show(row: dict) -> None:
    peer = f"flash-mm {row['peer_ms_per_gene']:.1f} ms: {row['times_faster']:.0f} x" if "times_faster" in row else ""
    ours = f"{row['genes']:7,} genes {row['seconds']:8.2f} s {row['ms_per_gene']:8.3f} ms a gene"
    print(f"{row['model']:24s} {ours}  {peer}", flush=True)


def main() -> None:
    parser = machine.parser("solver", __doc__)
    parser.add_argument("--genes", type=int, help=f"by default {GENES}, or {QUICK_GENES}")
    options = parser.parse_args()
    genes = options.genes or (QUICK_GENES if options.quick else GENES)
    few = min(genes, 1000)
    rows = [compare(1, genes, peer=True), compare(2, genes, peer=True)]
    for row in rows:
        show(row)
    for effects, count in ((3, few), ("slope", few // 10)):
        rows.append(compare(effects, count, peer=False))
        show(rows[-1])
    growth = [compare(1, count, peer=False) for count in GROWTH if count <= 10 * genes]
    for row in growth:
        show(row)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB")
    machine.write({"models": rows, "growth": growth, "peak_gb": peak}, options)


if __name__ == "__main__":
    main()
