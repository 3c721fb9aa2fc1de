"""flash-mm: `lmmfit` on cells, `lmm` on sums, all genes in one call; its only df are n - p."""

from __future__ import annotations

import numpy as np
from harness import Peer, main


class FlashMm(Peer):
    distribution, df, at_once = "flash-mm", "n - p", True

    def __init__(self):
        import flash_mm

        self.package = flash_mm

    def prepare(self, case):
        self.case = case
        if case.sums is None:
            self.Z = np.hstack([(codes[:, None] == np.arange(codes.max() + 1)) for codes in case.groups]).astype(float)
            self.d = [int(codes.max()) + 1 for codes in case.groups]

    def fit(self, y):
        s = self.case.sums
        if s is None:
            return self.package.lmmfit(y, self.case.X, self.Z, d=self.d)
        sums = (s["XX"], s["XY"][:, y], s["ZX"], s["ZY"][:, y], s["ZZ"])
        return self.package.lmm(*sums, Ynorm=s["Ynorm"][y], n=int(s["n"]), d=s["d"].tolist())

    def estimates(self, fit):
        converged = (np.abs(fit["dlogL"].to_numpy()) <= 1e-5).all(axis=0)  # its epsilon
        theta, coef, se = (fit[name].to_numpy().T for name in ("theta", "coef", "se"))
        return np.column_stack([converged, theta, coef, se])

    def tests(self, fit, y):
        self.package.lmmtest(fit)
        return np.full((len(fit["niter"]), self.case.fixed), float(fit["df"]))


if __name__ == "__main__":
    main(FlashMm)
