"""mixedlm: `lmer` once, then `refit`, which keeps the design; every coefficient with `satterthwaite_df`."""

from __future__ import annotations

import numpy as np
from harness import Peer, main, row


class Mixedlm(Peer):
    distribution, df = "mixedlm", "Satterthwaite"

    def __init__(self):
        import mixedlm
        import pandas
        from mixedlm.inference.ddf import satterthwaite_df
        from scipy import stats

        self.package, self.pandas, self.satterthwaite_df, self.t = mixedlm, pandas, satterthwaite_df, stats.t

    def prepare(self, case):
        table = self.pandas.DataFrame({"y": case.Y[0]} | case.table())
        self.model = self.package.lmer("y " + case.formula, table.astype(dict.fromkeys(case.factors, "category")))

    def fit(self, y):
        return self.model.refit(y)

    def estimates(self, fit):
        self.se = np.sqrt(np.diag(fit.vcov()))
        return row(fit.converged, np.append((fit.theta * fit.sigma) ** 2, fit.sigma**2), fit.beta, self.se)

    def tests(self, fit, y):
        df = self.satterthwaite_df(fit).df
        self.t.sf(np.abs(fit.beta / self.se), df)
        return df


if __name__ == "__main__":
    main(Mixedlm)
