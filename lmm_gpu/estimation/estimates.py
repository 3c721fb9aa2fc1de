"""Estimates of all genes as plain arrays on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .status import OPTIMUM, Status


@dataclass(frozen=True)
class Estimates:
    """Numbers of m genes, on the host; NaN for a gene without an estimate.

    A gene of status ILL_CONDITIONED keeps its coefficients, which do not depend on the residual variance.
    """

    theta: np.ndarray  #: (k+1, m)
    se_theta: np.ndarray  #: (k+1, m)
    dlogL: np.ndarray  #: (k+1, m)
    logLik: np.ndarray  #: (m,)
    niter: np.ndarray  #: (m,)
    status: np.ndarray  #: (m,), Status
    coef: np.ndarray  #: (p, m)
    se: np.ndarray  #: (p, m)

    @property
    def converged(self) -> np.ndarray:
        """Genes (m,) whose estimate is an optimum."""
        return np.isin(self.status, [int(status) for status in OPTIMUM])

    @classmethod
    def empty(cls, m: int, p: int, rows: int) -> Estimates:
        """Return estimates that are all NaN, with the status of genes without variance."""

        def missing(*shape: int) -> np.ndarray:
            return np.full(shape, np.nan)

        return cls(
            theta=missing(rows, m),
            se_theta=missing(rows, m),
            dlogL=missing(rows, m),
            logLik=missing(m),
            niter=missing(m),
            status=np.full(m, int(Status.NO_VARIANCE)),
            coef=missing(p, m),
            se=missing(p, m),
        )

    def put(self, genes: np.ndarray, part: Estimates) -> None:
        """Write the numbers of `genes` (positions)."""
        self.theta[:, genes] = part.theta
        self.se_theta[:, genes] = part.se_theta
        self.dlogL[:, genes] = part.dlogL
        self.logLik[genes] = part.logLik
        self.niter[genes] = part.niter
        self.status[genes] = part.status
        self.coef[:, genes] = part.coef
        self.se[:, genes] = part.se

    def without_invalid(self) -> Estimates:
        """Return the same with NaN for genes that failed or are ill-conditioned; the latter keep coefficients."""
        failed = self.status == Status.FAILED
        invalid = failed | (self.status == Status.ILL_CONDITIONED)

        def valid(values: np.ndarray, without: np.ndarray = invalid) -> np.ndarray:
            return np.where(without, np.nan, values)

        return Estimates(
            theta=valid(self.theta),
            se_theta=valid(self.se_theta),
            dlogL=valid(self.dlogL),
            logLik=valid(self.logLik),
            niter=self.niter,
            status=self.status,
            coef=valid(self.coef, failed),
            se=valid(self.se),
        )
