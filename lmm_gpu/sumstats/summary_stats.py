"""Summary statistics: all that a linear mixed model needs from the cells.

X'X, Z'X, Z'Z, X'Y, Z'Y, y'y and n are sums over cells: they add over chunks, files and sites, and they
concatenate over genes. Everything is accumulated in float64, whatever the input type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..backend.arrays import Array, indices, namespace
from ..backend.sparse import is_sparse
from ..design.terms import Terms, merged_terms
from ..io.archive import Content, consistent, read_archive, write_archive
from .alignment import aligned, check_same_cells, check_unique
from .centring import Centred, add_centred, join_centred
from .products import DesignProducts, GeneProducts
from .summary_checks import check_centred, check_invariants, check_shapes
from .summary_content import fields_of, fingerprint, joined_parts, to_content
from .within import Within, add_within, join_within, without_levels

#: What a file with statistics names as its content.
STATISTICS = "lmm_gpu summary statistics"
#: Group of a file that holds products with weights per gene.
WEIGHTS = "weights/"
ADVICE = "take a fresh copy of the file, or summarize the cells again and save that"


@dataclass(frozen=True)
class SummaryStats:
    """Sums over cells of one model and many genes.

    Parameters
    ----------
    n : int
        Number of cells.
    XX, ZX, ZZ : array (p, p), (q, p), (q, q)
        ZZ is a SciPy sparse matrix where q is large.
        Cross-products of the design.
    XY, ZY, Ynorm : array (p, m), (q, m), (m,)
        Cross-products with the genes, and y'y.
    d : tuple of int
        Columns of Z per random effect (variance component), in order.
    features, fixed_names, random_names, component_names : tuple of str
        Labels of genes, columns of X, columns of Z, and random effects.
    Ysum : array (m,), optional
        Sums of y, for mean expression.
    formula, transform : str, optional
        Origin of the design and of the values.
    centred : Centred, optional
        XY, ZY, Ynorm and Ysum of y - centre, where the mean of a gene is far from zero for its standard deviation:
        these keep the digits that products about zero lose.
    within : Within, optional
        XY, ZY and Ynorm of y - Z c, where c are near the means of the groups: these keep the digits of the residual of
        genes that are nearly constant within groups.
    terms : tuple of Term, optional
        Terms of the fixed part of the formula, with their columns of X, factors and levels; "1" is the intercept.
    random_terms : tuple of (str, tuple of str), optional
        Grouping and effects of each random term: the next components, one for each effect, have a covariance matrix.
        None: every component is a term of its own.
    parts : tuple of str
        Identities of the statistics that were added to these; empty for statistics that were not.
    total_weight, log_weights : float
        Sum of the weights of the cells (None without weights: n), and sum of their logarithms.

    Examples
    --------
    >>> import numpy as np
    >>> from lmm_gpu.sumstats import cross_products
    >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
    >>> ss = cross_products(X, Z, Y)
    >>> ss.n, ss.XX.tolist(), ss["ZY"].tolist()
    (4, [[4.0]], [[2.0, 4.0], [10.0, 12.0]])
    >>> halves = cross_products(X[:2], Z[:2], Y[:2]) + cross_products(X[2:], Z[2:], Y[2:])
    >>> bool((halves.Ynorm == ss.Ynorm).all())
    True
    """

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
    random_terms: tuple[tuple[str, tuple[str, ...]], ...] | None = None
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

    def on(self, put: Callable[[Array], Array]) -> SummaryStats:
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
        return self._replaced(self.gene_products.map(put), centred, within=within, **design)

    def _replaced(self, genes: GeneProducts, centred: Centred | None, **labels: Any) -> SummaryStats:
        # the same design with other products of genes
        return replace(self, XY=genes.XY, ZY=genes.ZY, Ynorm=genes.Ynorm, Ysum=genes.Ysum, centred=centred, **labels)

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

    def __add__(self, other: SummaryStats) -> SummaryStats:
        """Add the statistics of other cells; genes and model must be the same.

        Genes are aligned by name, in the order of the left. So are random levels, within their component: the left's,
        then those that only the right has. Pass `d` to `sslmm` so that the components are known.

        Raises
        ------
        ValueError
            If genes, model or transform differ, with the difference; if a part is on both sides, so that its cells
            would count twice; or if numbers cannot be sums over cells.
        """
        if not isinstance(other, SummaryStats):
            return NotImplemented
        a, b = aligned(self, other)
        parts = joined_parts(self, other)
        for side in (self, other):
            check_invariants(side)
        total = {name: getattr(a, name) + getattr(b, name) for name in self.keys()}
        sums = None if a.Ysum is None or b.Ysum is None else a.Ysum + b.Ysum
        weights = None if a.total_weight is None or b.total_weight is None else a.total_weight + b.total_weight
        logs = a.log_weights + b.log_weights
        terms = a.terms and merged_terms(a.terms, a.n, b.terms or a.terms, b.n)
        labels: dict[str, Any] = {"terms": terms, "parts": parts, "total_weight": weights, "log_weights": logs}
        return replace(a, **total, Ysum=sums, centred=add_centred(a, b), within=add_within(a, b), **labels)

    def with_genes(self, places: Sequence[int]) -> SummaryStats:
        """Select genes by position.

        Parameters
        ----------
        places : sequence of int
            Positions of the genes, in the order of the result.

        Returns
        -------
        SummaryStats

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> cross_products(X, Z, Y).with_genes([1]).features
        ('Gene2',)
        """
        features = tuple(self.features[place] for place in places)
        centred = self.centred and self.centred.take(places)
        within = self.within and self.within.take(places)
        return self._replaced(self.gene_products.take(places), centred, within=within, features=features)

    @classmethod
    def concat(cls, parts: Sequence[SummaryStats]) -> SummaryStats:
        """Join the genes of all `parts`, in order; their cells and design must be the same.

        Parameters
        ----------
        parts : sequence of SummaryStats

        Returns
        -------
        SummaryStats

        Raises
        ------
        ValueError
            If cells or model differ, with the difference, or genes appear more than once, with their names.

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> parts = [cross_products(X, Z, Y[:, [gene]], features=(f"g{gene}",)) for gene in (0, 1)]
        >>> SummaryStats.concat(parts).ZY.tolist()
        [[2.0, 4.0], [10.0, 12.0]]
        """
        parts = list(parts)
        if not parts or not all(isinstance(part, SummaryStats) for part in parts):
            raise ValueError("SummaryStats.concat takes a list of SummaryStats of the same cells, at least one")
        features = tuple(name for part in parts for name in part.features)
        try:
            for part in parts[1:]:
                check_same_cells(parts[0], part)
            check_unique("features", features)
        except ValueError as error:
            raise ValueError(f"cannot concatenate summary statistics: {error}") from None
        genes = GeneProducts.join([part.gene_products for part in parts])
        return parts[0]._replaced(genes, join_centred(parts), within=join_within(parts), features=features)

    def save(self, path: str | Path) -> None:
        """Write to one HDF5 file; a file at `path` is replaced once the new one is complete.

        Arrays are stored under the names of their fields, those about a centre in the group ``centred``, labels as
        texts, and ``n``, ``formula``, ``transform``, ``terms`` and ``parts`` (as JSON) and ``fingerprint`` as
        attributes; `lmm_gpu.io.archive` describes the rest.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        ValueError
            If h5py is not installed.

        Examples
        --------
        >>> import tempfile, numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cross_products(X, Z, Y).save(f"{folder}/site1.h5")
        ...     SummaryStats.load(f"{folder}/site1.h5").ZY.tolist()
        [[2.0, 4.0], [10.0, 12.0]]
        """
        write_archive(path, STATISTICS, *self.content())

    @classmethod
    def load(cls, path: str | Path) -> SummaryStats:
        """Read a file of `save`: the same numbers to the bit, on the host.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        SummaryStats

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is truncated, altered, or something else, if its numbers cannot be sums over cells, or if h5py
            is not installed.

        Examples
        --------
        >>> SummaryStats.load("nowhere.h5")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.h5'
        """
        content = read_archive(path, STATISTICS, ADVICE)
        with consistent(path, ADVICE):
            summary = cls.from_content(content)
            check_invariants(summary)
        return summary

    def content(self) -> Content:
        """Arrays, labels and attributes to be written to a file.

        Returns
        -------
        arrays, labels, attributes : dict, dict, dict

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> arrays, labels, attributes = ss.content()
        >>> arrays["ZZ"].shape, labels["features"], attributes["n"]
        ((2, 2), ['Gene1', 'Gene2'], 4)
        """
        return to_content(self)

    @classmethod
    def from_content(cls, content: Content) -> SummaryStats:
        """Restore statistics from the content of a file, which may hold more.

        Parameters
        ----------
        content : tuple of dict
            Arrays, labels and attributes.

        Returns
        -------
        SummaryStats

        Raises
        ------
        KeyError, ValueError
            If something is missing, or shapes do not match.

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> SummaryStats.from_content(ss.content()).ZY.tolist() == ss.ZY.tolist()
        True
        """
        if any(name.startswith(WEIGHTS) for name in content[0]):
            raise ValueError("these statistics have weights per gene: pass the path to lmm_gpu.fit")
        return cls(**fields_of(content))

    @property
    def fingerprint(self) -> str:
        """Short hash of formula, fixed columns, random effects and transform: equal for statistics that may be added.

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> ones = np.ones((4, 1))
        >>> a, b = (cross_products(ones, ones, ones, random_names=[donor]) for donor in "AB")
        >>> a.fingerprint == b.fingerprint != cross_products(ones, ones, ones, transform="log1p").fingerprint
        True
        """
        return fingerprint(self)

    def select(self, genes: slice) -> SummaryStats:
        """Select a range of genes: views, no copies.

        Parameters
        ----------
        genes : slice

        Returns
        -------
        SummaryStats

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> ss.select(slice(1, 2)).features
        ('Gene2',)
        """
        centred = self.centred and self.centred.select(genes)
        within = self.within and self.within.select(genes)
        return self._replaced(self.gene_products.select(genes), centred, within=within, features=self.features[genes])

    def without(self, component: int) -> SummaryStats:
        """Drop a random effect from the model.

        Parameters
        ----------
        component : int
            Position of the random effect; others must remain.

        Returns
        -------
        SummaryStats

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> Z = np.hstack([np.repeat(np.eye(2), 2, axis=0), np.tile(np.eye(2), (2, 1))])
        >>> cross_products(np.ones((4, 1)), Z, np.ones((4, 3)), d=(2, 2)).without(0).d
        (2,)
        """
        xp, ends = namespace(self.ZX), [sum(self.d[: i + 1]) for i in range(len(self.d))]
        lo, hi = ends[component] - self.d[component], ends[component]
        kept = [i for i in range(ends[-1]) if not lo <= i < hi]
        rows = indices(kept, self.ZX)
        others = [i for i in range(len(self.d)) if i != component]
        centred = self.centred and replace(self.centred, ZY=xp.take(self.centred.ZY, rows, axis=0))
        dropped = indices(list(range(lo, hi)), self.ZX)
        return replace(
            self,
            ZX=xp.take(self.ZX, rows, axis=0),
            ZY=xp.take(self.ZY, rows, axis=0),
            ZZ=self.ZZ[kept][:, kept] if is_sparse(self.ZZ) else xp.take(xp.take(self.ZZ, rows, axis=0), rows, axis=1),
            d=tuple(self.d[i] for i in others),
            random_names=tuple(self.random_names[i] for i in kept),
            component_names=tuple(self.component_names[i] for i in others),
            formula=None,
            random_terms=self._terms_without(component),
            centred=centred,
            within=without_levels(self.within, rows, dropped),
        )

    def _terms_without(self, component: int) -> tuple[tuple[str, tuple[str, ...]], ...] | None:
        # random terms without one of their effects
        if self.random_terms is None:
            return None
        owners = [(group, effect) for group, effects in self.random_terms for effect in effects]
        sizes = [i for i, (_, effects) in enumerate(self.random_terms) for _ in effects]
        kept = [i for i in range(len(owners)) if i != component]
        terms = [
            (group, tuple(owners[i][1] for i in kept if sizes[i] == term))
            for term, (group, _) in enumerate(self.random_terms)
        ]
        return tuple(term for term in terms if term[1])

    @property
    def term_sizes(self) -> tuple[int, ...]:
        """Number of correlated effects, which are components, of each random term."""
        return tuple(1 for _ in self.d) if self.random_terms is None else tuple(len(e) for _, e in self.random_terms)

    @property
    def n_variances(self) -> int:
        """Number of variances and covariances of the random effects; theta has one row more."""
        return sum(k * (k + 1) // 2 for k in self.term_sizes)

    @property
    def variance_names(self) -> tuple[str, ...]:
        """Labels of the rows of theta: variances, then covariances, of each random term, and the residual."""
        residual = "residual" if "residual" not in self.component_names else "residual_error"
        names: list[str] = []
        at = 0
        for term, size in enumerate(self.term_sizes):
            names += self.component_names[at : at + size]
            if self.random_terms is not None:
                group, effects = self.random_terms[term]
                names += [f"{group}.cov({effects[a]},{effects[b]})" for b in range(size) for a in range(b)]
            at += size
        return (*names, residual)

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
