"""mixedlm-rs: `with_endog`, which keeps the prepared design; normal p-values. One grouping factor only."""

from __future__ import annotations

import numpy as np
from harness import Peer, main, row


class MixedlmRs(Peer):
    distribution, df = "mixedlm-rs", "normal"

    def __init__(self):
        import mixedlm_rs

        self.package = mixedlm_rs

    def prepare(self, case):
        self.fixed = case.fixed
        ones = np.ones((case.cells, 1))
        self.model = self.package.MixedLM(case.Y[0], case.X, groups=case.groups[0], exog_re=ones)
        self.model.fit()

    def fit(self, y):
        return self.model.with_endog(y).fit()

    def estimates(self, fit):
        return row(fit.converged, [fit.cov_re[0, 0], fit.scale], fit.fe_params, fit.bse_fe)

    def tests(self, fit, y):
        return np.where(np.isfinite(fit.pvalues[: self.fixed]), np.inf, np.nan)


if __name__ == "__main__":
    main(MixedlmRs)
