"""Summary statistics: all that a linear mixed model needs to know of the cells.

X'X, Z'X, Z'Z, X'Y, Z'Y, y'y and n are sums over cells: they add over chunks, files and sites, and they
concatenate over genes. Everything is accumulated in float64 whatever the input holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import scipy.sparse

from .arrays import Array, like, namespace, to_numpy
from .linalg import inverse_spd

#: y'Ry below this share of y'y is rounding: the gene does not vary once X is taken out.
NO_VARIANCE = 1e-13


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
    terms : tuple of (str, tuple of int), optional
        Terms of the fixed part of the formula and the columns of X of each; "1" is the intercept.

    Examples
    --------
    >>> import numpy as np
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
    terms: tuple[tuple[str, tuple[int, ...]], ...] | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)

    @property
    def m(self) -> int:
        """Number of genes."""
        return self.XY.shape[1]

    def keys(self) -> tuple[str, ...]:
        """Names of the statistics, as R's list has them."""
        return ("n", "XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(f"{name!r} is not a summary statistic; known: {', '.join(self.keys())}")
        return getattr(self, name)

    def __add__(self, other: SummaryStats) -> SummaryStats:
        """Statistics of the cells of both; genes, model and transform must be the same."""
        if not isinstance(other, SummaryStats):
            return NotImplemented
        for name in ("d", "features", "fixed_names", "random_names", "formula", "transform"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"cannot add summary statistics: {name} differ; both sides need the same genes and model"
                )
        total = {name: getattr(self, name) + getattr(other, name) for name in self.keys()}
        sums = None if self.Ysum is None or other.Ysum is None else self.Ysum + other.Ysum
        return replace(self, **total, Ysum=sums)

    def without(self, component: int) -> SummaryStats:
        """Statistics of the model without the random effect at position `component`; others must remain."""
        xp, ends = namespace(self.ZZ), [sum(self.d[: i + 1]) for i in range(len(self.d))]
        lo, hi = ends[component] - self.d[component], ends[component]
        kept = [i for i in range(ends[-1]) if not lo <= i < hi]
        rows = like(kept, self.ZZ, dtype=xp.int64)
        others = [i for i in range(len(self.d)) if i != component]
        return replace(
            self,
            ZX=xp.take(self.ZX, rows, axis=0),
            ZY=xp.take(self.ZY, rows, axis=0),
            ZZ=xp.take(xp.take(self.ZZ, rows, axis=0), rows, axis=1),
            d=tuple(self.d[i] for i in others),
            random_names=tuple(self.random_names[i] for i in kept),
            component_names=tuple(self.component_names[i] for i in others),
            formula=None,
        )

    @property
    def variance_names(self) -> tuple[str, ...]:
        """Labels of the rows of theta: the random effects, and the residual."""
        residual = "residual" if "residual" not in self.component_names else "residual_error"
        return (*self.component_names, residual)

    def mean(self) -> Array | None:
        """Mean of each gene over the cells (m,), None if the sums were not recorded."""
        return None if self.Ysum is None else self.Ysum / self.n


def cross_products(X: Any, Z: Any, Y: Any, **labels: Any) -> SummaryStats:
    """Summary statistics of cells: X (n, p), Z (n, q) and Y (n, m), each dense or SciPy sparse.

    `labels` are the remaining fields of `SummaryStats`; by default one random effect and numbered names.
    """
    return assemble(design_products(X, Z), gene_products(X, Z, Y), **labels)


def design_products(X: Any, Z: Any) -> dict[str, Any]:
    """n, X'X, Z'X and Z'Z of the design of some cells."""
    X, Z = _as_float64(X), _as_float64(Z)
    return {"n": X.shape[0], "XX": _dense(X.T @ X), "ZX": _dense(Z.T @ X), "ZZ": _dense(Z.T @ Z)}


def gene_products(X: Any, Z: Any, Y: Any) -> dict[str, Array]:
    """X'Y, Z'Y, y'y and the sum of y of some genes in some cells; Y is (n, m)."""
    X, Z, Y = _as_float64(X), _as_float64(Z), _as_float64(Y)
    squares = Y.multiply(Y) if scipy.sparse.issparse(Y) else Y * Y
    return {"XY": _dense(X.T @ Y), "ZY": _dense(Z.T @ Y), "Ynorm": _column_sums(squares), "Ysum": _column_sums(Y)}


def join_genes(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Concatenate `gene_products` of consecutive genes."""
    if len(parts) == 1:
        return dict(parts[0])
    xp = namespace(parts[0]["XY"])
    return {name: xp.concat([part[name] for part in parts], axis=-1) for name in parts[0]}


def assemble(design: Mapping[str, Any], genes: Mapping[str, Array], **labels: Any) -> SummaryStats:
    """Summary statistics from products, with numbered names where `labels` has none."""
    (p, m), q = genes["XY"].shape, design["ZZ"].shape[0]
    defaults = {
        "d": (q,),
        "features": default_names("Gene", m),
        "fixed_names": default_names("X", p),
        "random_names": default_names("Z", q),
    }
    labels = {**defaults, **{name: value for name, value in labels.items() if value is not None}}
    labels.setdefault("component_names", default_names("var", len(labels["d"])))
    return SummaryStats(**design, **genes, **labels)


def default_names(prefix: str, count: int) -> tuple[str, ...]:
    """`prefix`1 .. `prefix`count."""
    return tuple(f"{prefix}{i + 1}" for i in range(count))


@dataclass(frozen=True)
class Projected:
    """What is left of the random effects and the genes once X is projected out; R = I - X XXinv X'."""

    n: int
    XXinv: Array  #: (p, p)
    xxz: Array  #: (p, q), XXinv X'Z
    S: Array  #: (q, q), Z'RZ
    ZZ: Array  #: (q, q)
    beta_ols: Array  #: (p, m)
    zry: Array  #: (q, m), Z'Ry
    yry: Array  #: (m,), y'Ry


def project(summary: SummaryStats) -> Projected:
    """Project the fixed effects out of the random effects and the genes.

    Raises
    ------
    ValueError
        If X is rank deficient (with the columns involved) or there are not more cells than columns.
    """
    ss = summary
    p = ss.XX.shape[0]
    if ss.n <= p:
        raise ValueError(
            f"the model has {p} fixed-effect columns but only {ss.n} cells: no residual is left; drop terms"
        )
    XXinv, dependent = inverse_spd(ss.XX)
    if XXinv is None:
        names = ", ".join(ss.fixed_names[i] for i in dependent)
        raise ValueError(
            f"X is rank deficient (not full column rank, XX is not positive definite): these columns are zero or "
            f"linearly dependent: {names}; drop one of them, or the term that they repeat"
        )
    xxz = XXinv @ ss.ZX.T  # (p, q)
    beta_ols = XXinv @ ss.XY  # (p, m)
    return Projected(
        n=ss.n,
        XXinv=XXinv,
        xxz=xxz,
        S=ss.ZZ - ss.ZX @ xxz,
        ZZ=ss.ZZ,
        beta_ols=beta_ols,
        zry=ss.ZY - ss.ZX @ beta_ols,
        yry=ss.Ynorm - namespace(ss.XY).sum(ss.XY * beta_ols, axis=0),
    )


def varies(summary: SummaryStats, projected: Projected) -> Array:
    """Whether each gene has variance left after X (m,); all-zero and constant genes have none."""
    return projected.yry > NO_VARIANCE * summary.Ynorm


def _as_float64(A: Any) -> Any:
    if scipy.sparse.issparse(A):
        return A.astype("float64")
    return like(A, A, dtype=namespace(A).float64)


def _dense(A: Any) -> Array:
    return A.toarray() if scipy.sparse.issparse(A) else A


def _column_sums(A: Any) -> Array:
    if scipy.sparse.issparse(A):
        return to_numpy(A.sum(axis=0)).reshape(-1)
    return namespace(A).sum(A, axis=0)


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


def check_components(d: Sequence[int], q: int) -> None:
    """Refuse component widths that do not add up to the columns of Z."""
    if len(d) == 0 or any(width < 1 for width in d) or sum(d) != q:
        raise ValueError(
            f"sum(d) must equal the number of columns of Z: got d = {tuple(d)} with sum {sum(d)}, Z has {q} columns; "
            "d lists the columns of Z per random effect"
        )
