"""lmm_gpu: `summarize` and `fit`, all genes at once; every coefficient tested with Satterthwaite's df.

Variances are nonnegative, as in all peers except flash-mm.
"""

from __future__ import annotations

import time

import numpy as np
from harness import Peer, main


class LmmGpu(Peer):
    distribution, df, at_once = "lmm-gpu", "Satterthwaite", True

    def __init__(self):
        import pandas

        import lmm_gpu

        self.package, self.pandas = lmm_gpu, pandas

    def prepare(self, case):
        self.case = case
        if case.sums is None:
            self.obs = self.pandas.DataFrame(case.table()).astype(dict.fromkeys(case.factors, "category"))

    def fit(self, y):
        start = time.perf_counter()
        summary = self.sum_up(y) if self.case.sums is None else self.given(y)
        self.summing = time.perf_counter() - start
        return self.package.fit(summary, bounds="nonnegative", device="cpu", progress=False)

    def sum_up(self, y):
        cells = (y.T, self.obs)
        return self.package.summarize(cells, self.case.formula, is_counts=False, device="cpu", progress=False)

    def given(self, genes):
        s = self.case.sums
        matrices = (s["XX"], s["XY"][:, genes], s["ZX"], s["ZY"][:, genes], s["ZZ"], s["Ynorm"][genes])
        counts = {"Gene": len(matrices[-1]), "X": len(s["XX"]), "Z": len(s["ZZ"]), "var": len(s["d"])}
        names = (tuple(f"{prefix}{i + 1}" for i in range(count)) for prefix, count in counts.items())
        return self.package.SummaryStats(int(s["n"]), *matrices, tuple(map(int, s["d"])), *names)

    def estimates(self, fit):
        converged = fit.status.isin(["converged", "converged_at_rounding", "boundary"]).to_numpy(float)
        return np.column_stack([converged, fit.theta.T, fit.coef.T, fit.se.T])

    def tests(self, fit, y):
        table = fit.test(df="satterthwaite")  # as the other programs
        return table["df"].to_numpy().reshape(self.case.fixed, -1).T

    def extra(self):
        return {"seconds_summing_up": self.summing}


if __name__ == "__main__":
    main(LmmGpu)
