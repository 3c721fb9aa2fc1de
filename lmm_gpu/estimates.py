"""The numbers of a fit, one column per gene, and how what follows from them is formed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .arrays import Array, indices, like, threads_for, to_numpy
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

    def _by_block(self, form: Callable[[MixedModel, Array], T]) -> Iterator[tuple[np.ndarray, T]]:
        """`form` of the model and theta of the estimated features of each block, and their positions."""

        def formed(bounds: tuple[int, int]) -> tuple[np.ndarray, T]:
            genes, model, theta = self._of(bounds)
            return genes, form(model, theta)

        with quiet_blas(len(self.summary.random_names)):
            yield from in_threads(formed, self._blocks(), threads_for(self.summary.XX))

    def _blocks(self) -> list[tuple[int, int]]:
        """Ranges of features, block by block."""
        size = genes_per_block(Shape(len(self.summary.fixed_names), self.summary.d), None)
        return list(blocks(self.summary.m, size))

    def _of(self, bounds: tuple[int, int]) -> tuple[np.ndarray, MixedModel, Array]:
        """Positions, model and theta of the estimated features of a range."""
        theta = self.estimates.theta[:, slice(*bounds)]
        fitted = np.flatnonzero(np.isfinite(theta).all(axis=0))
        model = self.model.with_genes(self.summary.select(slice(*bounds)))
        if fitted.size < theta.shape[1]:
            model = model.select(indices(fitted, model.beta_ols))
        return bounds[0] + fitted, model, like(theta[:, fitted], model.beta_ols)
