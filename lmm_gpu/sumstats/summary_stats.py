"""Summary statistics: all that a linear mixed model needs from the cells.

X'X, Z'X, Z'Z, X'Y, Z'Y, y'y and n are sums over cells: they add over chunks, files and sites, and they
concatenate over genes. Everything is accumulated in float64, whatever the input type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.archive import Content, consistent, read_archive, write_archive
from .joining import added, concatenated, without_component
from .summary_checks import check_invariants
from .summary_content import fields_of, fingerprint, to_content
from .summary_fields import SummaryFields, with_products

#: What a file with statistics names as its content.
STATISTICS = "lmm_gpu summary statistics"
#: Group of a file that holds products with weights per gene.
WEIGHTS = "weights/"
ADVICE = "take a fresh copy of the file, or summarize the cells again and save that"


@dataclass(frozen=True)
class SummaryStats(SummaryFields):
    """Sums over cells of one model and many genes.

    Parameters
    ----------
    n : int
        Number of cells.
    XX, ZX, ZZ : array (p, p), (q, p), (q, q)
        Cross-products of the design; ZZ is a SciPy sparse matrix where q is large.
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
        return added(self, other)

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
        return with_products(self, self.gene_products.take(places), centred, within=within, features=features)

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
        return concatenated(list(parts))

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
        return with_products(
            self, self.gene_products.select(genes), centred, within=within, features=self.features[genes]
        )

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
        return without_component(self, component)
