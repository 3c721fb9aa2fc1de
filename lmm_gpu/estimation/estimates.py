"""Estimates of all genes as plain arrays on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .status import OPTIMUM, Status


@dataclass(frozen=True)
class Estimates:
    """Numbers of m genes, on the host; NaN for a gene without an estimate."""

    theta: np.ndarray  #: (k+1, m)
    se_theta: np.ndarray  #: (k+1, m)
    dlogL: np.ndarray  #: (k+1, m)
    logLik: np.ndarray  #: (m,)
    niter: np.ndarray  #: (m,)
    status: np.ndarray  #: (m,), Status
    coef: np.ndarray  #: (p, m)
    se: np.ndarray  #: (p, m)
    ill_conditioned: np.ndarray | None = None  #: (m,), fewer than six digits are left of y'Ry

    @property
    def converged(self) -> np.ndarray:
        """Genes (m,) whose estimate is an optimum."""
        return np.isin(self.status, [int(status) for status in OPTIMUM])

    @classmethod
    def empty(cls, m: int, p: int, rows: int) -> Estimates:
        """Return estimates that are all NaN, with the status of genes without variance."""
        shapes = dict.fromkeys(("theta", "se_theta", "dlogL"), (rows, m)) | dict.fromkeys(("coef", "se"), (p, m))
        nan = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        return cls(
            **nan,
            logLik=np.full(m, np.nan),
            niter=np.full(m, np.nan),
            status=np.full(m, int(Status.NO_VARIANCE)),
            ill_conditioned=np.zeros(m, dtype=bool),
        )

    def put(self, genes: np.ndarray, part: Estimates) -> None:
        """Write the numbers of `genes` (positions)."""
        for name, value in vars(part).items():
            if value is not None:
                getattr(self, name)[..., genes] = value
