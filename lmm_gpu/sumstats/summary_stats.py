"""Summary statistics: all that a linear mixed model needs to know of the cells.

X'X, Z'X, Z'Z, X'Y, Z'Y, y'y and n are sums over cells: they add over chunks, files and sites, and they
concatenate over genes. Everything is accumulated in float64 whatever the input holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..backend.arrays import Array, indices, namespace, to_numpy
from ..io.archive import Content, consistent, read_archive, write_archive
from .alignment import aligned, at_genes, check_same_cells, check_unique, sliced
from .centring import Centred, add_centred, join_centred
from .products import join_genes

#: Sums about zero and about a centre are of the same cells if they agree to this.
_AGREE = 1e-6
#: What a file says that it holds, and under which names.
STATISTICS = "lmm_gpu summary statistics"
_ADVICE = "take a fresh copy of the file, or sum up the cells again and save that"
_ARRAYS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")
_LABELS = ("features", "fixed_names", "random_names", "component_names")
_ATTRIBUTES = ("n", "formula", "transform")
_CENTRED = "centred/"


@dataclass(frozen=True)
class SummaryStats:
    """Sums over cells of one model and many genes.

    Parameters
    ----------
    n : int
        Number of cells.
    XX, ZX, ZZ : array (p, p), (q, p), (q, q)
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
        What the design and the values came from.
    centred : Centred, optional
        XY, ZY, Ynorm and Ysum of y - centre, where a gene lies far from zero for its spread: its digits are in these.
    terms : tuple of (str, tuple of int), optional
        Terms of the fixed part of the formula and the columns of X of each; "1" is the intercept.
    random_terms : tuple of (str, tuple of str), optional
        Grouping and effects of each random term: the next components, one for each effect, have a covariance matrix.
        None: every component is a term of its own.

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
    terms: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    random_terms: tuple[tuple[str, tuple[str, ...]], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", int(self.n))  # NumPy's scalars promote, or are refused, on other libraries
        _check_shapes(self)

    @property
    def m(self) -> int:
        """Number of genes."""
        return self.XY.shape[1]

    def on(self, put: Callable[[Array], Array]) -> SummaryStats:
        """Return the same with every array replaced, as for another device.

        Parameters
        ----------
        put : callable
            Takes an array and returns its like.

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
        arrays = {name: put(x) for name, x in vars(self).items() if hasattr(x, "dtype")}
        centred = self.centred and replace(self.centred, **{name: put(x) for name, x in vars(self.centred).items()})
        return replace(self, **arrays, centred=centred)

    def keys(self) -> tuple[str, ...]:
        """Names of the statistics, as R's list has them.

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
        """Statistics of the cells of both; genes and model must be the same.

        Genes are aligned by name, to the order of the left. So are random levels, within their component: the left's,
        then those that only the right has. Components have to be known by then: `sslmm` needs its `d`.

        Raises
        ------
        ValueError
            For genes that only one side has, and for another model or transform, with what differs.
        """
        if not isinstance(other, SummaryStats):
            return NotImplemented
        a, b = aligned(self, other)
        total = {name: getattr(a, name) + getattr(b, name) for name in self.keys()}
        sums = None if a.Ysum is None or b.Ysum is None else a.Ysum + b.Ysum
        return replace(a, **total, Ysum=sums, centred=add_centred(a, b))

    def with_genes(self, places: Sequence[int]) -> SummaryStats:
        """Statistics of some of the genes.

        Parameters
        ----------
        places : sequence of int
            Positions, in the order in which they are wanted.

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
        centred = self.centred and replace(self.centred, **at_genes(vars(self.centred), list(places)))
        features = tuple(self.features[place] for place in places)
        return replace(self, features=features, **at_genes(vars(self), list(places)), centred=centred)

    @classmethod
    def concat(cls, parts: Sequence[SummaryStats]) -> SummaryStats:
        """Statistics of the genes of all `parts`, in order; their cells and design must be the same.

        Parameters
        ----------
        parts : sequence of SummaryStats

        Returns
        -------
        SummaryStats

        Raises
        ------
        ValueError
            For other cells or another model, with what differs, and for genes that appear more than once, by name.

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
            raise ValueError("SummaryStats.concat wants a list of SummaryStats of the same cells, at least one")
        features = tuple(name for part in parts for name in part.features)
        try:
            for part in parts[1:]:
                check_same_cells(parts[0], part)
            check_unique("features", features)
        except ValueError as error:
            raise ValueError(f"cannot concatenate summary statistics: {error}") from None
        wanted = [name for name in ("XY", "ZY", "Ynorm", "Ysum") if all(vars(part)[name] is not None for part in parts)]
        genes = join_genes([{name: vars(part)[name] for name in wanted} for part in parts])
        return replace(parts[0], **{"Ysum": None} | genes, features=features, centred=join_centred(parts))

    def save(self, path: str | Path) -> None:
        """Write to one HDF5 file; a file at `path` is replaced once all of it is written.

        Arrays lie under their names as fields, those about a centre in the group ``centred``, labels are texts, and
        ``n``, ``formula``, ``transform``, ``terms`` (as JSON) and ``fingerprint`` are attributes; `lmm_gpu.io.archive`
        describes the rest.

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
        """Read what `save` wrote: the same numbers to the bit, on the host.

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
            If the file is truncated, altered, or something else, or h5py is not installed.

        Examples
        --------
        >>> SummaryStats.load("nowhere.h5")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.h5'
        """
        content = read_archive(path, STATISTICS, _ADVICE)
        with consistent(path, _ADVICE):
            return cls.from_content(content)

    def content(self) -> Content:
        """Arrays, labels and attributes, as a file has them.

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
        arrays = {name: to_numpy(getattr(self, name)) for name in _ARRAYS}
        arrays["d"] = to_numpy(indices(self.d, arrays["XX"]))
        if self.Ysum is not None:
            arrays["Ysum"] = to_numpy(self.Ysum)
        if self.centred is not None:
            arrays |= {f"{_CENTRED}{name}": to_numpy(A) for name, A in vars(self.centred).items()}
        labels = {name: list(getattr(self, name)) for name in _LABELS}
        attributes = {name: getattr(self, name) for name in (*_ATTRIBUTES, "fingerprint")}
        terms = {name: getattr(self, name) and json.dumps(getattr(self, name)) for name in ("terms", "random_terms")}
        return arrays, labels, attributes | terms

    @classmethod
    def from_content(cls, content: Content) -> SummaryStats:
        """Make of `content`, which may hold more, what it was made of.

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
        arrays, labels, attributes = content
        centred = {name.removeprefix(_CENTRED): A for name, A in arrays.items() if name.startswith(_CENTRED)}
        fields: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        fields |= {name: tuple(labels[name]) for name in _LABELS}
        fields |= {name: attributes.get(name) for name in _ATTRIBUTES}
        fields |= {"d": tuple(arrays["d"].tolist()), "Ysum": arrays.get("Ysum")}
        terms = tuple((name, tuple(columns)) for name, columns in json.loads(attributes.get("terms") or "[]"))
        random = tuple((name, tuple(effects)) for name, effects in json.loads(attributes.get("random_terms") or "[]"))
        return cls(
            **fields, terms=terms or None, random_terms=random or None, centred=Centred(**centred) if centred else None
        )

    @property
    def fingerprint(self) -> str:
        """Short hash of formula, fixed columns, random effects and transform: the same where statistics may add.

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> ones = np.ones((4, 1))
        >>> a, b = (cross_products(ones, ones, ones, random_names=[donor]) for donor in "AB")
        >>> a.fingerprint == b.fingerprint != cross_products(ones, ones, ones, transform="log1p").fingerprint
        True
        """
        model = (self.formula, self.fixed_names, self.component_names, self.transform)
        return hashlib.sha256(json.dumps(model).encode()).hexdigest()[:12]

    def select(self, genes: slice) -> SummaryStats:
        """Statistics of a range of genes: views, no copies.

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
        centred = self.centred and replace(self.centred, **sliced(vars(self.centred), genes))
        return replace(self, **sliced(vars(self), genes), features=self.features[genes], centred=centred)

    def without(self, component: int) -> SummaryStats:
        """Statistics of the model without one of its random effects.

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
        xp, ends = namespace(self.ZZ), [sum(self.d[: i + 1]) for i in range(len(self.d))]
        lo, hi = ends[component] - self.d[component], ends[component]
        kept = [i for i in range(ends[-1]) if not lo <= i < hi]
        rows = indices(kept, self.ZZ)
        others = [i for i in range(len(self.d)) if i != component]
        centred = self.centred and replace(self.centred, ZY=xp.take(self.centred.ZY, rows, axis=0))
        return replace(
            self,
            ZX=xp.take(self.ZX, rows, axis=0),
            ZY=xp.take(self.ZY, rows, axis=0),
            ZZ=xp.take(xp.take(self.ZZ, rows, axis=0), rows, axis=1),
            d=tuple(self.d[i] for i in others),
            random_names=tuple(self.random_names[i] for i in kept),
            component_names=tuple(self.component_names[i] for i in others),
            formula=None,
            random_terms=self._terms_without(component),
            centred=centred,
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
        """Mean of each gene over the cells.

        Returns
        -------
        array (m,), or None
            In the unit of the values that were summed up; None if their sums were not recorded.

        Examples
        --------
        >>> import numpy as np
        >>> from lmm_gpu.sumstats import cross_products
        >>> X, Z, Y = np.ones((4, 1)), np.repeat(np.eye(2), 2, axis=0), np.arange(8.0).reshape(4, 2)
        >>> ss = cross_products(X, Z, Y)
        >>> ss.mean().tolist()
        [3.0, 4.0]
        """
        return None if self.Ysum is None else self.Ysum / self.n


def _check_shapes(ss: SummaryStats) -> None:
    p, q, m = len(ss.fixed_names), len(ss.random_names), len(ss.features)
    wanted = {"XX": (p, p), "XY": (p, m), "ZX": (q, p), "ZY": (q, m), "ZZ": (q, q), "Ynorm": (m,)}
    for name, shape in wanted.items():
        got = tuple(getattr(ss, name).shape)
        if got != shape:
            raise ValueError(
                f"{name} has shape {got}, wanted {shape} for {p} fixed, {q} random columns and {m} features"
            )
    check_components(ss.d, q)
    if not {column for _, columns in ss.terms or () for column in columns} <= set(range(p)):
        raise ValueError(f"terms are {ss.terms}; wanted columns of X by position, from 0 to {p - 1}")
    if sum(ss.term_sizes) != len(ss.d):
        raise ValueError(f"random_terms are {ss.random_terms}; expected one effect for each of d = {ss.d}")
    if len(ss.component_names) != len(ss.d):
        raise ValueError(f"component_names are {', '.join(ss.component_names)}; wanted one for each of d = {ss.d}")
    _check_centred(ss)


def _check_centred(ss: SummaryStats) -> None:
    """Refuse sums about a centre that are of other cells than those about zero, as after replacing only one of them."""
    if ss.centred is None:
        return
    xp, about = namespace(ss.XY), ss.centred
    wanted = about.XY + (ss.XX @ about.constant)[:, None] * about.centre[None, :]  # (p, m)
    unit = xp.sqrt(xp.linalg.diagonal(ss.XX))[:, None] * xp.sqrt(ss.Ynorm)[None, :]
    if bool(xp.any(xp.abs(wanted - ss.XY) > _AGREE * unit)):
        raise ValueError("centred is of other cells or genes than XY: replace both, or give centred=None")


def check_components(d: Sequence[int], q: int) -> None:
    """Refuse component widths that do not add up to the columns of Z."""
    if len(d) == 0 or any(width < 1 for width in d) or sum(d) != q:
        raise ValueError(
            f"sum(d) must equal the number of columns of Z: got d = {tuple(d)} with sum {sum(d)}, Z has {q} columns; "
            "d lists the columns of Z per random effect"
        )
