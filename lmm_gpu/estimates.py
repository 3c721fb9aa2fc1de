"""The numbers of a fit, one column per gene, and how what follows from them is formed block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .arrays import Array, indices, like, to_numpy
from .model import MixedModel
from .plan import Shape, blocks, genes_per_block
from .scoring import Status
from .summary import SummaryStats
from .threads import in_threads, quiet_blas

T = TypeVar("T")


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


class Fitted:
    """What every part of `LMMFit` works on."""

    estimates: Estimates
    summary: SummaryStats
    model: MixedModel
    method: str
    status: Any  # a Series, one word per feature

    def _columns(self) -> dict[str, np.ndarray]:
        """Last columns of a table of tests: what a feature has whatever is tested."""
        mean = self.summary.mean()
        named = zip(self.summary.variance_names, self.estimates.theta, strict=True)
        return {
            "mean_expr": np.full(self.summary.m, np.nan) if mean is None else to_numpy(mean),
            "status": self.status.to_numpy(),
            **{f"{name}_variance": row for name, row in named},
        }

    def _by_block(self, form: Callable[[MixedModel, Array], T]) -> Sequence[tuple[np.ndarray, T]]:
        """`form` of the model and theta of each block of estimated features, and their positions."""
        parts = self._blocks()
        with quiet_blas(len(self.summary.random_names)):
            return list(zip(parts, in_threads(lambda genes: form(*self._of(genes)), parts), strict=True))

    def _blocks(self) -> list[np.ndarray]:
        """Positions of the estimated features, block by block."""
        fitted = np.flatnonzero(np.isfinite(self.estimates.theta).all(axis=0))
        size = genes_per_block(Shape(len(self.summary.fixed_names), self.summary.d), None)
        return [fitted[lo:hi] for lo, hi in blocks(fitted.size, size)]

    def _of(self, genes: np.ndarray) -> tuple[MixedModel, Array]:
        """Model and theta of some features."""
        reference = self.model.beta_ols
        return self.model.select(indices(genes, reference)), like(self.estimates.theta[:, genes], reference)
