"""The numbers of a fit, one column per gene, and how what follows from them is formed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .arrays import Array, entered, indices, like, threads_for, to_numpy
from .model import MixedModel
from .plan import Shape, blocks, genes_per_block, threads_within
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
    memory: int | None  # bytes that blocks of features may take

    def _columns(self) -> dict[str, np.ndarray]:
        """Last columns of a table of tests: what a feature has whatever is tested."""
        mean = self.summary.mean()
        named = zip(self.summary.variance_names, self.estimates.theta, strict=True)
        return {
            "mean_expr": np.full(self.summary.m, np.nan) if mean is None else to_numpy(mean),
            "status": self.status.to_numpy(),
            **{f"{name}_variance": row for name, row in named},
        }

    def _by_block(
        self, form: Callable[[MixedModel, Array], T], *, of_genes: bool = True
    ) -> Iterator[tuple[np.ndarray, T]]:
        """`form` of the model and theta of the estimated features of each block, and their positions.

        Where it is not `of_genes`, what depends on them by theta alone, the model is that of the design.
        """

        def formed(bounds: tuple[int, int]) -> tuple[np.ndarray, T]:
            genes, theta = self._estimated(bounds)
            return genes, form(self._model_of(bounds, genes) if of_genes else self.model, theta)

        with self._computing():
            yield from in_threads(formed, self._blocks(), self._threads())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Context of what is computed with the model: on its device, without threads that would be in the way."""
        with entered(self.model.XXinv), quiet_blas(len(self.summary.random_names)):
            yield

    def _blocks(self) -> list[tuple[int, int]]:
        """Ranges of features, block by block."""
        memory = None if self.memory is None else self.memory // self._threads()
        return list(blocks(self.summary.m, genes_per_block(self._shape(), memory)))

    def _threads(self) -> int:
        """Threads that work on blocks."""
        return threads_for(self.model.XXinv) or threads_within(self._shape(), self.memory)

    def _shape(self) -> Shape:
        return Shape(len(self.summary.fixed_names), self.summary.d)

    def _estimated(self, bounds: tuple[int, int]) -> tuple[np.ndarray, Array]:
        """Positions and theta of the estimated features of a range."""
        lo, hi = bounds
        genes = lo + np.flatnonzero(np.isfinite(self.estimates.theta[:, lo:hi]).all(axis=0))
        return genes, like(self.estimates.theta[:, genes], self.model.XXinv)

    def _model_of(self, bounds: tuple[int, int], genes: np.ndarray) -> MixedModel:
        """Model of some features (positions) of a range."""
        part = self.summary.select(slice(*bounds)).on(lambda x: like(x, self.model.XXinv))
        model = self.model.with_genes(part)
        if genes.size < bounds[1] - bounds[0]:
            model = model.select(indices(genes - bounds[0], model.beta_ols))
        return model
