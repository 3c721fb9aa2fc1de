"""lme-python: `prepare_lmer` once, then `fit(y)`; `with_satterthwaite`, which wants the table with the gene in it."""

from __future__ import annotations

import numpy as np
from harness import Peer, main, row


class LmePython(Peer):
    distribution, df = "lme-python", "Satterthwaite"

    def __init__(self):
        import lme_python
        import polars

        self.package, self.polars = lme_python, polars

    def prepare(self, case):
        texts = {name: case.table()[name].astype(str) for name in case.factors}
        self.table = self.polars.DataFrame({"y": case.Y[0]} | case.table() | texts)
        self.prepared = self.package.prepare_lmer("y " + case.formula, self.table)

    def fit(self, y):
        return self.prepared.fit(y=y.tolist())

    def estimates(self, fit):
        variances = [variance for _, _, _, variance, _ in fit.var_corr]
        return row(fit.converged, variances, fit.coefficients, fit.std_errors or fit.beta_se)

    def tests(self, fit, y):
        fit.with_satterthwaite(self.table.with_columns(self.polars.Series("y", y)))
        return np.array(fit.satterthwaite_dfs)


if __name__ == "__main__":
    main(LmePython)
