"""Fields of summary statistics, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from ..backend.arrays import Array
from ..backend.sparse import is_sparse
from ..design.terms import Terms
from .centring import Centred
from .products import DesignProducts, GeneProducts
from .random_terms import RandomTerms, names_of_variances, sizes_of_terms
from .summary_checks import check_centred, check_shapes
from .within import Within

S = TypeVar("S", bound="SummaryFields")


@dataclass(frozen=True)
class SummaryFields:
    """Fields of `SummaryStats`, where they are described."""

    n: int
    XX: Array
    XY: Array
    ZX: Array
    ZY: Array
    ZZ: Array
    Ynorm: Array
    d: tuple[int, ...]
    features: tuple[str, ...]
    fixed_names: tuple[str, ...]
    random_names: tuple[str, ...]
    component_names: tuple[str, ...]
    Ysum: Array | None = None
    formula: str | None = field(default=None)
    transform: str | None = field(default=None)
    centred: Centred | None = field(default=None, repr=False)
    within: Within | None = field(default=None, repr=False)
    terms: Terms | None = None
    random_terms: RandomTerms | None = None
    parts: tuple[str, ...] = field(default=(), repr=False)
    total_weight: float | None = None
    log_weights: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", int(self.n))  # NumPy's scalars promote, or are refused, on other libraries
        check_shapes(self)
        check_centred(self)

    @property
    def m(self) -> int:
        """Number of genes."""
        return int(self.XY.shape[1])

    @property
    def design_products(self) -> DesignProducts:
        """Products of the design with itself."""
        return DesignProducts(self.n, self.XX, self.ZX, self.ZZ, self.total_weight)

    @property
    def gene_products(self) -> GeneProducts:
        """Products of the genes, about zero."""
        return GeneProducts(self.XY, self.ZY, self.Ynorm, self.Ysum)

    def on(self, put: Callable[[Array], Array]) -> Self:
        """Return the statistics with every array replaced, such as by its copy on another device.

        Parameters
        ----------
        put : callable
            Takes an array and returns the one to replace it.

        Returns
        -------
        SummaryStats

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> ss.on(lambda array: array.astype("float32")).XX.dtype
        dtype('float32')
        """
        centred = self.centred and replace(self.centred.map(put), constant=put(self.centred.constant))
        within = self.within and self.within.map(put)
        design = {"XX": put(self.XX), "ZX": put(self.ZX), "ZZ": self.ZZ if is_sparse(self.ZZ) else put(self.ZZ)}
        return with_products(self, self.gene_products.map(put), centred, within=within, **design)

    def keys(self) -> tuple[str, ...]:
        """Names of the statistics, as in R's list.

        Returns
        -------
        tuple of str

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> ss.keys()
        ('n', 'XX', 'XY', 'ZX', 'ZY', 'ZZ', 'Ynorm')
        """
        return ("n", "XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(f"{name!r} is not a summary statistic; known: {', '.join(self.keys())}")
        return getattr(self, name)

    @property
    def term_sizes(self) -> tuple[int, ...]:
        """Number of correlated effects, which are components, of each random term."""
        return sizes_of_terms(len(self.d), self.random_terms)

    @property
    def n_variances(self) -> int:
        """Number of variances and covariances of the random effects; theta has one row more."""
        return sum(k * (k + 1) // 2 for k in self.term_sizes)

    @property
    def variance_names(self) -> tuple[str, ...]:
        """Labels of the rows of theta: variances, then covariances, of each random term, and the residual."""
        return names_of_variances(self.component_names, self.random_terms)

    def mean(self) -> Array | None:
        """Mean of each gene over the cells, weighted if they have weights.

        Returns
        -------
        array (m,), or None
            In the unit of the values after their transform; None if their sums were not recorded.

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> ss.mean().tolist()
        [3.0, 4.0]
        """
        return None if self.Ysum is None else self.Ysum / (self.n if self.total_weight is None else self.total_weight)


def with_products(ss: S, genes: GeneProducts, centred: Centred | None, **labels: Any) -> S:
    """Statistics of the same design with other products of genes."""
    return replace(ss, XY=genes.XY, ZY=genes.ZY, Ynorm=genes.Ynorm, Ysum=genes.Ysum, centred=centred, **labels)
