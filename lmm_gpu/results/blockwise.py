"""The numbers of a fit, one column per gene, and how what follows from them is computed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from ..backend.arrays import Array, entered, indices, like, threads_for, to_numpy
from ..backend.blocks import blocks
from ..backend.threads import in_threads, one_blas_thread
from ..estimation.block_size import Shape, genes_per_block, threads_within
from ..estimation.estimates import Estimates
from ..estimation.fit_options import FitOptions
from ..estimation.mixed_model import MixedModel
from ..estimation.projection import ProjectedGenes, Projection
from ..inference.pivots import genes_at
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class Fitted(Protocol):
    """Fields of `LMMFit` that its tests and tables need."""

    @property
    def estimates(self) -> Estimates:
        """Estimates of all genes."""

    @property
    def summary(self) -> SummaryStats:
        """Summary statistics that were fitted."""

    @property
    def model(self) -> MixedModel:
        """The model of the design, without genes."""

    @property
    def options(self) -> FitOptions:
        """Options of the fit."""

    @property
    def method(self) -> str:
        """Estimation method, "REML" or "ML"."""

    @property
    def status(self) -> pd.Series:
        """Word for each gene."""

    @property
    def converged(self) -> pd.Series:
        """Bool for each gene."""


@dataclass(frozen=True)
class GeneBlock:
    """Genes of one block that have an estimate."""

    fit: Fitted
    bounds: tuple[int, int]  #: range of genes of the block
    genes: np.ndarray  #: (b,), positions of those with an estimate
    theta: Array  #: (k+1, b)

    @property
    def design(self) -> MixedModel:
        """The model without genes, for what depends on them by theta alone, unless genes have designs of their own."""
        return self.model if isinstance(self.fit.summary, WeightedStats) else self.fit.model

    @cached_property
    def model(self) -> MixedModel:
        """The model of these genes."""
        design = self.fit.model
        part = self.fit.summary.select(slice(*self.bounds)).on(lambda x: like(x, design.XXinv))
        model = design.with_genes(part)
        if self.genes.size < self.bounds[1] - self.bounds[0]:
            model = model.select(indices(self.genes - self.bounds[0], model.beta_ols))
        return model

    def projected(self, projection: Projection, summary: SummaryStats) -> ProjectedGenes:
        """The genes with X projected out, by a `projection` on the host, from the statistics of all genes."""
        found = projection.genes(summary.select(slice(*self.bounds)).on(to_numpy))
        return genes_at(found, self.genes - self.bounds[0])


def by_block(
    fit: Fitted, form: Callable[[GeneBlock], T], theta: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, T]]:
    """Yield positions of genes and `form` of them, for every block that has genes with an estimate.

    `theta` (k+1, m) takes the place of the estimates of the fit.
    """
    theta = fit.estimates.theta if theta is None else theta
    found = (_block(fit, bounds, theta) for bounds in _blocks(fit))
    with computing(fit):
        yield from in_threads(
            lambda block: (block.genes, form(block)), [block for block in found if block.genes.size], _threads(fit)
        )


@contextmanager
def computing(fit: Fitted) -> Iterator[None]:
    """Context of what is computed with the model: on its device, without BLAS threads that compete with blocks."""
    with entered(fit.model.XXinv), one_blas_thread():
        yield


def shared_columns(fit: Fitted) -> dict[str, np.ndarray]:
    """Last columns of a table of tests: what is the same for a gene whatever is tested."""
    mean = fit.summary.mean()
    named = zip(fit.summary.variance_names, fit.estimates.theta, strict=True)
    return {
        "mean_expr": np.full(fit.summary.m, np.nan) if mean is None else to_numpy(mean),
        "status": fit.status.to_numpy(),
        **{f"{name}_variance": row for name, row in named},
    }


def _block(fit: Fitted, bounds: tuple[int, int], theta: np.ndarray) -> GeneBlock:
    lo, hi = bounds
    genes = lo + np.flatnonzero(np.isfinite(theta[:, lo:hi]).all(axis=0))
    return GeneBlock(fit, bounds, genes, like(theta[:, genes], fit.model.XXinv))


def _blocks(fit: Fitted) -> list[tuple[int, int]]:
    budget = fit.options.memory_for(len(fit.summary.d))
    memory = None if budget is None else budget // _threads(fit)
    return list(blocks(fit.summary.m, genes_per_block(_shape(fit), memory)))


def _threads(fit: Fitted) -> int:
    return threads_for(fit.model.XXinv) or threads_within(_shape(fit), fit.options.memory_for(len(fit.summary.d)))


def _shape(fit: Fitted) -> Shape:
    return fit.model.shape(fit.summary.d)
