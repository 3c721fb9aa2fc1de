"""The numbers of a fit, one column per gene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scoring import Status


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

    @classmethod
    def empty(cls, m: int, p: int, rows: int) -> Estimates:
        """Nothing estimated yet: NaN, and the status of genes that are never fitted."""
        shapes = dict.fromkeys(("theta", "se_theta", "dlogL"), (rows, m)) | dict.fromkeys(("coef", "se"), (p, m))
        nan = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        return cls(
            **nan, logLik=np.full(m, np.nan), niter=np.full(m, np.nan), status=np.full(m, int(Status.NO_VARIANCE))
        )

    def put(self, genes: np.ndarray, part: Estimates) -> None:
        """Write the numbers of `genes` (positions)."""
        for name, value in vars(part).items():
            getattr(self, name)[..., genes] = value
