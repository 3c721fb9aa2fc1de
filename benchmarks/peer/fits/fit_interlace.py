"""interlace: `fit`, started from the last gene's theta; it always computes its df, so there is no time without them."""

from __future__ import annotations

import numpy as np
from harness import Peer, main, row


class Interlace(Peer):
    distribution, df = "interlace-lme", "Satterthwaite"

    def __init__(self):
        import interlace
        import pandas

        self.package, self.pandas, self.start = interlace, pandas, None

    def prepare(self, case):
        self.table = self.pandas.DataFrame({"y": case.Y[0]} | case.table())
        self.formula, self.groups = " + ".join(["y ~ 1", *case.columns]), case.factors

    def fit(self, y):
        self.table["y"] = y
        fit = self.package.fit(self.formula, self.table, groups=self.groups, theta0=self.start)
        if fit.converged and (fit.theta > 1e-3).all():  # it cannot leave zero
            self.start = fit.theta
        return fit

    def estimates(self, fit):
        theta = [*(fit.variance_components[name] for name in self.groups), fit.scale]
        return row(fit.converged, theta, fit.fe_params, fit.fe_bse)

    def tests(self, fit, y):
        return np.asarray(fit.fe_df)


if __name__ == "__main__":
    main(Interlace)
