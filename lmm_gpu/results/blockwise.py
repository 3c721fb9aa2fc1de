"""The numbers of a fit, one column per gene, and how what follows from them is formed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from ..backend.arrays import Array, entered, indices, like, threads_for, to_numpy
from ..backend.blocks import blocks
from ..backend.threads import in_threads, quiet_blas
from ..estimation.block_size import Shape, genes_per_block, threads_within
from ..estimation.estimates import Estimates
from ..estimation.fit_options import FitOptions
from ..estimation.mixed_model import MixedModel
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats

T = TypeVar("T")


class Fitted:
    """What every part of `LMMFit` works on."""

    estimates: Estimates
    summary: SummaryStats
    model: MixedModel
    method: str
    status: Any  # a Series, one word per feature
    options: FitOptions

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
        own = isinstance(self.summary, WeightedStats)  # genes have designs of their own

        def formed(bounds: tuple[int, int]) -> tuple[np.ndarray, T]:
            genes, theta = self._estimated(bounds)
            return genes, form(self._model_of(bounds, genes) if of_genes or own else self.model, theta)

        with self._computing():
            yield from in_threads(formed, self._blocks(), self._threads())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Context of what is computed with the model: on its device, without threads that would be in the way."""
        with entered(self.model.XXinv), quiet_blas(len(self.summary.random_names)):
            yield

    def _blocks(self) -> list[tuple[int, int]]:
        """Ranges of features, block by block."""
        budget = self.options.memory_for(len(self.summary.d))
        memory = None if budget is None else budget // self._threads()
        return list(blocks(self.summary.m, genes_per_block(self._shape(), memory)))

    def _threads(self) -> int:
        """Threads that work on blocks."""
        return threads_for(self.model.XXinv) or threads_within(
            self._shape(), self.options.memory_for(len(self.summary.d))
        )

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
