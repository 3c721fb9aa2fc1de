"""Sums of observations that have a weight per gene, as voom gives them: products of the design become each gene's own.

With Var(residual) = s_0 / w, X'WX, Z'WX, Z'WZ, X'Wy, Z'Wy and y'Wy of a gene are sums over observations with its
weights. An observation of weight zero is left out for its gene. Of Z'WZ only the pairs of columns that share an
observation are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..backend.arrays import Array, indices, namespace, to_numpy
from ..backend.blocks import blocks
from ..backend.late_imports import is_scipy_sparse, scipy
from ..io.archive import Content, consistent, read_archive
from .assembly import cross_products
from .products import stored_products
from .summary_content import fields_of
from .summary_stats import ADVICE, STATISTICS, WEIGHTS, SummaryStats

if TYPE_CHECKING:
    from ..design.design import Design

logger = logging.getLogger(__name__)

#: Bytes of the products of the genes that are accumulated together.
_BLOCK_BYTES = 2**27
#: Relative rounding error of sums with the same weights.
_ROUNDED = 1e-12


@dataclass(frozen=True)
class GeneProductsOfDesign:
    """Products of the design with the weights of m genes."""

    XX: Array  #: (p, p, m)
    ZX: Array  #: (q, p, m)
    ZZ: Array  #: (pairs, m), of the pairs of columns of Z in `rows` and `columns`
    rows: tuple[int, ...]  #: column of Z of each pair; every pair once, and not turned round
    columns: tuple[int, ...]
    mean: Array  #: (m,), mean weight of the observations
    log_weights: Array  #: (m,), sum of the logarithms of their weights
    n: Array  #: (m,), number of observations with a positive weight

    def map(self, function: Callable[[Array], Array]) -> GeneProductsOfDesign:
        """Return the products with every array replaced."""
        return replace(self, **{name: function(getattr(self, name)) for name in _ARRAYS})


_ARRAYS = ("XX", "ZX", "ZZ", "mean", "log_weights", "n")
_PAIRS = ("rows", "columns")


@dataclass(frozen=True)
class WeightedStats(SummaryStats):
    """Sums of one model and many genes whose observations have a weight for each gene.

    XX, ZX and ZZ are those of the design without weights, for what depends on the design alone; XY, ZY and Ynorm have
    the weights of each gene, and so have the products in `weights`. Ysum is without weights.
    """

    weights: GeneProductsOfDesign | None = None

    @property
    def own(self) -> GeneProductsOfDesign:
        """Products of the design with each gene's weights."""
        if self.weights is None:
            raise ValueError("these statistics have no weights of genes")
        return self.weights

    def on(self, put: Callable[[Array], Array]) -> WeightedStats:
        """Return the statistics with every array replaced, such as by its copy on another device."""
        return replace(super().on(put), weights=self.own.map(put))

    def select(self, genes: slice) -> WeightedStats:
        """Select a range of genes: views, no copies."""
        return replace(cast(WeightedStats, super().select(genes)), weights=self.own.map(lambda A: A[..., genes]))

    def with_genes(self, places: Sequence[int]) -> WeightedStats:
        """Select genes by position."""
        index = list(places)

        def taken(A: Array) -> Array:
            return namespace(A).take(A, indices(index, A), axis=A.ndim - 1)

        return replace(cast(WeightedStats, super().with_genes(places)), weights=self.own.map(taken))

    def __add__(self, other: SummaryStats) -> SummaryStats:
        """Refused: weights such as voom's depend on all samples."""
        raise ValueError(
            "statistics with weights per gene cannot be added: weights of one trend come from all samples; fit all "
            "samples together"
        )

    def shared(self) -> SummaryStats | None:
        """Return the statistics of one design for all genes, if their weights differ by factors at the most.

        The weights are over the mean weight of a gene, and so is the residual variance.
        """
        own, mean = self.own.map(to_numpy), to_numpy(self.own.mean)
        products = [A / mean for A in (own.XX, own.ZX, own.ZZ)]
        same = [np.ptp(A, axis=-1).max() <= _ROUNDED * np.abs(A).max() for A in products if A.size]
        if not self.m or not all(same):
            return None
        XX, ZX, pairs = (A[..., 0] for A in products)
        half = scipy.sparse.csr_array((pairs, (own.rows, own.columns)), shape=(len(ZX), len(ZX)))
        ZZ = stored_products(half + half.T - scipy.sparse.diags_array(half.diagonal()))
        fields = {one.name: getattr(self, one.name) for one in dataclass_fields(SummaryStats)}
        scaled = {name: to_numpy(getattr(self, name)) / mean for name in ("XY", "ZY", "Ynorm")}
        return SummaryStats(**fields | scaled | {"XX": XX, "ZX": ZX, "ZZ": ZZ, "centred": None, "within": None})

    def content(self) -> Content:
        """Arrays, labels and attributes to be written to a file."""
        arrays, labels, attributes = super().content()
        own = {f"{WEIGHTS}{name}": to_numpy(getattr(self.own, name)) for name in _ARRAYS}
        own |= {f"{WEIGHTS}{name}": np.asarray(getattr(self.own, name)) for name in _PAIRS}
        return arrays | own, labels, attributes

    @classmethod
    def from_content(cls, content: Content) -> WeightedStats:
        """Restore statistics from the content of a file, which may hold more."""
        arrays, _, _ = content
        own: dict[str, Any] = {name: arrays[f"{WEIGHTS}{name}"] for name in _ARRAYS}
        own |= {name: tuple(int(i) for i in arrays[f"{WEIGHTS}{name}"]) for name in _PAIRS}
        return cls(**fields_of(content), weights=GeneProductsOfDesign(**own))

    def without(self, component: int) -> SummaryStats:
        """Drop a random effect from the model."""
        ends = np.cumsum([0, *self.d])
        lo, hi = int(ends[component]), int(ends[component + 1])
        kept = [i for i in range(int(ends[-1])) if not lo <= i < hi]
        place = {old: new for new, old in enumerate(kept)}
        pairs = [
            i for i, pair in enumerate(zip(self.own.rows, self.own.columns, strict=True)) if set(pair) <= set(kept)
        ]
        own = replace(
            self.own,
            ZX=np.asarray(self.own.ZX)[kept],
            ZZ=np.asarray(self.own.ZZ)[pairs],
            rows=tuple(place[self.own.rows[i]] for i in pairs),
            columns=tuple(place[self.own.columns[i]] for i in pairs),
        )
        return replace(cast(WeightedStats, super().without(component)), weights=own)


def statistics_of(content: Content) -> SummaryStats:
    """Statistics from the content of a file, with weights per gene if it has them."""
    weighted = any(name.startswith(WEIGHTS) for name in content[0])
    return WeightedStats.from_content(content) if weighted else SummaryStats.from_content(content)


def load_statistics(path: str | Path) -> SummaryStats:
    """Read the file of `SummaryStats.save`, with weights per gene if it has them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be used; see `SummaryStats.load`.
    """
    content = read_archive(path, STATISTICS, ADVICE)
    if not any(name.startswith(WEIGHTS) for name in content[0]):
        return SummaryStats.load(path)
    with consistent(path, ADVICE):
        return WeightedStats.from_content(content)


def weighted_products(X: np.ndarray, Z: Any, Y: np.ndarray, W: np.ndarray, **labels: Any) -> WeightedStats:
    """Accumulate the sums of observations with a weight for each gene.

    Parameters
    ----------
    X, Z : array or SciPy sparse matrix (n, p), (n, q)
        Designs of the fixed and the random effects.
    Y, W : array (n, m)
        Values and weights; an observation of weight zero is left out for its gene.
    **labels
        The remaining fields of `SummaryStats`.

    Raises
    ------
    ValueError
        If weights have another shape than the values, are negative or not finite.

    Examples
    --------
    >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
    >>> ss = weighted_products(X, Z, Y, np.full((4, 2), 2.0))
    >>> ss.XY.tolist(), ss.own.ZZ[:, 0].tolist()
    ([[24.0, 32.0]], [4.0, 4.0])
    """
    Y, W = check_weights(Y, W)
    Z = scipy.sparse.csc_array(Z)
    plain = cross_products(X, Z, Y, **labels)
    pattern, values = column_pairs(Z)
    genes = [_of_genes(X, Z, Y[:, lo:hi], W[:, lo:hi], values) for lo, hi in blocks(Y.shape[1], _genes_at_once(X, Z))]
    joined = {name: np.concatenate([part[name] for part in genes], axis=-1) for name in genes[0]}
    sums = {name: joined.pop(name) for name in ("XY", "ZY", "Ynorm")}
    rows, columns = (tuple(int(i) for i in side) for side in pattern)
    own = GeneProductsOfDesign(**joined, rows=rows, columns=columns)
    if plain.Ysum is not None:  # the mean of the values that are used, times n
        sums["Ysum"] = np.where(W > 0, Y, 0.0).sum(axis=0) * (len(Y) / np.maximum(own.n, 1.0))
    return WeightedStats(**vars(plain) | sums | {"centred": None}, weights=own)


def check_weights(Y: Any, W: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights as float64, refused if weights cannot be used."""
    Y, W = (A.toarray() if is_scipy_sparse(A) else np.asarray(A) for A in (Y, W))
    Y, W = Y.astype(np.float64, copy=False), W.astype(np.float64, copy=False)
    if W.shape != Y.shape:
        raise ValueError(f"weights have shape {W.shape}; expected one per value, {Y.shape}")
    bad = int(np.count_nonzero(~(np.isfinite(W) & (W >= 0))))
    if bad:
        raise ValueError(
            f"{bad} of {W.size} weights are negative or not finite; weights are positive numbers, or zero to leave an "
            "observation out for its gene"
        )
    used = np.count_nonzero(W > 0, axis=0)
    if used.min(initial=len(W)) < len(W):
        logger.info(
            "weights of zero: %d observations of %d genes are left out", W.size - used.sum(), (used < len(W)).sum()
        )
    if used.any():
        check_magnitude(W.sum(axis=0)[used > 0] / used[used > 0], 1e6)
    return Y, W


def check_magnitude(means: Any, largest: float) -> None:
    """Refuse weights whose means lie outside 1 / `largest` to `largest`: the estimation would lose digits.

    Only ratios of weights change tests, so that any weights can be scaled to a mean of 1.
    """
    lowest, highest = float(np.min(means)), float(np.max(means))
    if lowest < 1 / largest or highest > largest:
        raise ValueError(
            f"mean weights lie between {lowest:g} and {highest:g}; expected {1 / largest:g} to "
            f"{largest:g}: divide the weights by their mean, which changes no test"
        )


def column_pairs(Z: Any) -> tuple[tuple[np.ndarray, np.ndarray], Any]:
    """Pairs of columns of Z that share an observation, and z_i z_j of each (n, pairs) as a sparse matrix."""
    Z = scipy.sparse.csr_array(Z)
    rows, left, right, products = [], [], [], []
    most = int(np.diff(Z.indptr).max(initial=0))
    starts, counts = Z.indptr[:-1], np.diff(Z.indptr)
    for a in range(most):
        for b in range(a, most):
            some = np.flatnonzero(counts > b)
            i, j = Z.indices[starts[some] + a], Z.indices[starts[some] + b]
            rows.append(some)
            left.append(np.minimum(i, j))
            right.append(np.maximum(i, j))
            products.append(Z.data[starts[some] + a] * Z.data[starts[some] + b])
    codes = np.concatenate(left).astype(np.int64) * Z.shape[1] + np.concatenate(right)
    unique, places = np.unique(codes, return_inverse=True)
    shape = (Z.shape[0], len(unique))
    values = scipy.sparse.csr_array((np.concatenate(products), (np.concatenate(rows), places)), shape=shape)
    return (unique // Z.shape[1], unique % Z.shape[1]), values


def _of_genes(X: np.ndarray, Z: Any, Y: np.ndarray, W: np.ndarray, pairs: Any) -> dict[str, np.ndarray]:
    # products of some genes (..., b)
    p, b = X.shape[1], Y.shape[1]
    WY = np.where(W > 0, W * Y, 0.0)
    used = np.count_nonzero(W > 0, axis=0)
    upper = np.triu_indices(p)
    XX = np.empty((p, p, b))
    XX[upper] = (X[:, upper[0]] * X[:, upper[1]]).T @ W
    XX[upper[1], upper[0]] = XX[upper]
    ZX = np.stack([Z.T @ (X[:, [j]] * W) for j in range(p)], axis=1) if p else np.empty((Z.shape[1], 0, b))
    return {
        "XX": XX,
        "ZX": ZX,
        "ZZ": pairs.T @ W,
        "XY": X.T @ WY,
        "ZY": Z.T @ WY,
        "Ynorm": np.einsum("nb,nb->b", WY, Y),
        "mean": W.sum(axis=0) / np.maximum(used, 1),
        "log_weights": np.log(np.where(W > 0, W, 1.0)).sum(axis=0),
        "n": used.astype(float),
    }


def _genes_at_once(X: np.ndarray, Z: Any) -> int:
    p, (n, q) = X.shape[1], Z.shape
    return int(max(1, _BLOCK_BYTES // (8 * (4 * n + p * p + 2 * q * p))))


def weighted_statistics(
    design: Design, Y: Any, W: Any, features: Sequence[str], transform: str | None = None
) -> WeightedStats:
    """Accumulate the sums of observations with a weight for each gene, of the design of a formula.

    Parameters
    ----------
    design : Design
        Of n observations.
    Y, W : array or SciPy sparse matrix (n, m)
        Values and weights.
    features : sequence of str
        Names of the genes.
    transform : str, optional
        Label of what the values are.

    Returns
    -------
    WeightedStats
    """
    Y, W = check_weights(Y, W)
    return weighted_products(
        design.X,
        design.Z,
        Y,
        W,
        d=design.d,
        features=tuple(features),
        fixed_names=tuple(design.fixed_names),
        random_names=tuple(design.random_names),
        component_names=tuple(design.component_names),
        formula=design.formula,
        transform=transform,
        terms=design.terms,
        random_terms=design.random_terms,
    )
