"""Cross products over cells: of the design with itself, and of the genes with the design and themselves.

y'Ry = y'y - (X'y)'beta is a small difference of large numbers for a gene whose mean is many times its standard
deviation. Where columns of X make the constant, X k = 1, projecting X out removes any shift: R(y - c) = Ry. The
products of y - c then keep their digits, beta = beta_c + k c, and the products of y itself follow (`recentred`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ..backend.arrays import (
    Array,
    flag_indices,
    indices,
    is_sparse_on_device,
    like,
    namespace,
    on_host,
    to_numpy,
    zeros,
)
from ..backend.late_imports import is_scipy_sparse, scipy
from ..backend.sparse import is_sparse, on_device, stored_values, with_values
from .host_products import dense_products

#: A design matrix with a smaller share of non-zeros is stored as sparse.
_SPARSE_DENSITY = 0.2
#: A matrix with at most this many columns is multiplied as dense in any case.
_NARROW = 64
#: Z'Z of more random effects than this stays sparse: they are eliminated level by level.
LARGEST_DENSE = 4_000


@dataclass(frozen=True)
class DesignProducts:
    """Cross products of the design of n cells."""

    n: int
    XX: Array  #: (p, p)
    ZX: Array  #: (q, p)
    ZZ: Array  #: (q, q); a SciPy sparse matrix where q is large
    total_weight: float | None = None  #: sum of the weights of the cells; None for n


@dataclass(frozen=True)
class GeneProducts:
    """Cross products of m genes with the design and themselves, about `centre` where there is one."""

    XY: Array  #: (p, m)
    ZY: Array  #: (q, m)
    Ynorm: Array  #: (m,)
    Ysum: Array | None  #: (m,)
    centre: Array | None = None  #: (m,), subtracted from the genes beforehand

    def select(self, genes: slice) -> Self:
        """Products of a range of genes: views, no copies."""
        return self.map(lambda A: A[..., genes])

    def take(self, places: Sequence[int]) -> Self:
        """Products of the genes at `places`, in this order."""
        return self.map(lambda A: namespace(A).take(A, indices(list(places), A), axis=A.ndim - 1))

    def map(self, function: Callable[[Array], Array]) -> Self:
        """Apply a function to every array that has genes on its last axis."""
        names = ("XY", "ZY", "Ynorm", "Ysum", "centre")
        arrays = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if A is None else function(A) for name, A in arrays.items()})

    def about_zero(self, design: DesignProducts, constant: Array) -> GeneProducts:
        """Products of the genes themselves, from those about `centre`."""
        return self if self.centre is None else recentred(self, design, constant, -self.centre)

    @staticmethod
    def join(parts: Sequence[GeneProducts]) -> GeneProducts:
        """Concatenate products of consecutive genes; sums that one part lacks are left out."""
        if len(parts) == 1:
            return parts[0]
        if any(part.centre is not None for part in parts):
            parts = [part if part.centre is not None else replace(part, centre=zeros_like(part)) for part in parts]
        return GeneProducts(
            XY=_concatenated([part.XY for part in parts]),
            ZY=_concatenated([part.ZY for part in parts]),
            Ynorm=_concatenated([part.Ynorm for part in parts]),
            Ysum=_concatenated([part.Ysum for part in parts]),
            centre=_concatenated([part.centre for part in parts]),
        )


def zeros_like(genes: GeneProducts) -> Array:
    """Zero for each gene (m,)."""
    return zeros((genes.Ynorm.shape[0],), genes.Ynorm)


def _concatenated(arrays: Sequence[Array | None]) -> Array | None:
    if any(A is None for A in arrays):
        return None
    return namespace(arrays[0]).concat(list(arrays), axis=-1)


def recentred(genes: GeneProducts, design: DesignProducts, constant: Array, shift: Array) -> GeneProducts:
    """Products of y - `shift` (m,) from those of y: no cells are needed, as X'1 = X'X k and Z'1 = Z'X k."""
    assert genes.Ysum is not None
    n = design.n if design.total_weight is None else design.total_weight
    return GeneProducts(
        XY=genes.XY - (design.XX @ constant)[:, None] * shift[None, :],
        ZY=genes.ZY - (design.ZX @ constant)[:, None] * shift[None, :],
        Ynorm=genes.Ynorm - shift * (2.0 * genes.Ysum - n * shift),
        Ysum=genes.Ysum - n * shift,
    )


def sparse_if_worth_it(A: Any) -> Any:
    """Convert a wide matrix of mostly zeros, as one-hot columns are, to CSR."""
    if is_scipy_sparse(A) or A.shape[1] <= _NARROW or namespace(A).count_nonzero(A) > _SPARSE_DENSITY * A.size:
        return A
    return scipy.sparse.csr_array(A)


def design_products(X: Any, Z: Any, weights: Array | None = None, XX: Array | None = None) -> DesignProducts:
    """n, X'X, Z'X and Z'Z of the design of some cells, with `weights` (n,) X'WX, Z'WX and Z'WZ; `XX` where known."""
    X, Z, total = as_float64(X), as_float64(Z), None
    if weights is not None:
        root = namespace(weights).sqrt(weights)
        X, Z, total = _row_scaled(X, root), _row_scaled(Z, root), float(namespace(weights).sum(weights))
    XX = dense_array(X.T @ X) if XX is None else XX
    return DesignProducts(X.shape[0], XX, dense_array(Z.T @ X), stored_products(_gram(Z)), total)


def _gram(Z: Any) -> Any:
    """Z'Z, without a product of matrices where every cell has one entry in a sparse Z."""
    if is_scipy_sparse(Z) and Z.nnz == Z.shape[0] and Z.format == "csr" and bool((Z.indptr[1:] > Z.indptr[:-1]).all()):
        return scipy.sparse.diags_array(column_sums(with_values(Z, Z.data * Z.data)), format="csr")
    return Z.T @ Z


def stored_products(ZZ: Any) -> Any:
    """Z'Z as statistics store it: as an array, unless it is sparse and has more than `LARGEST_DENSE` columns."""
    return ZZ if is_scipy_sparse(ZZ) and ZZ.shape[0] > LARGEST_DENSE else dense_array(ZZ)


def _row_scaled(A: Any, factors: Array) -> Any:
    """A with its rows multiplied by factors (n,)."""
    if is_scipy_sparse(A):
        return scipy.sparse.csr_array(A.multiply(factors[:, None]))
    if is_sparse_on_device(A):
        return A.multiply(factors[:, None]).tocsr()
    return A * factors[:, None]


def gene_products(X: Any, Z: Any, Y: Any, centre: Array | None = None, weights: Array | None = None) -> GeneProducts:
    """X'Y, Z'Y, y'y and the sum of y of some genes in some cells.

    Parameters
    ----------
    X, Z, Y : array or sparse matrix (n, p), (n, q), (n, m)
    centre : array (m,), optional
        Subtracted from the genes; ignored for sparse genes.
    weights : array (n,), optional
        One weight per cell: X'WY, Z'WY, y'Wy and the weighted sum of y.
    """
    X, Z = as_float64(X), as_float64(Z)
    if weights is not None:  # W = S S: S X, S Z and S Y have the products wanted, the sum of w y is left
        root = namespace(weights).sqrt(weights)
        Y = as_float64(Y) if centre is None or is_sparse(Y) else as_float64(Y) - centre[None, :]
        found = gene_products(_row_scaled(X, root), _row_scaled(Z, root), _row_scaled(Y, root))
        return replace(found, Ysum=column_sums(_row_scaled(Y, weights)), centre=centre)
    if is_sparse_on_device(Y):
        return _products_on_device(X, Z, as_float64(Y))
    if is_scipy_sparse(Y):
        return _products_of_sparse(X, Z, as_float64(Y))
    centre = centre if centre is not None and flag_indices(centre).size else None
    if on_host(Y):
        products = GeneProducts(*dense_products(X, Z, Y, centre))
    else:
        Y = as_float64(Y) if centre is None else as_float64(Y) - centre[None, :]  # (n, m)
        xp = namespace(Y)
        products = GeneProducts(X.T @ Y, Z.T @ Y, xp.sum(Y * Y, axis=0), xp.sum(Y, axis=0))
    return replace(products, centre=centre)


def _products_of_sparse(X: Any, Z: Any, Y: Any) -> GeneProducts:
    return GeneProducts(_crossed(X, Y), _crossed(Z, Y), column_sums(Y.multiply(Y)), column_sums(Y))


def _crossed(A: Any, Y: Any) -> Array:
    # by rows of both, where both are sparse: SciPy would sort all of Y by columns first
    both = is_scipy_sparse(A) and Y.format == "csr"
    return dense_array(A.T.tocsr() @ Y if both else A.T @ Y)


def products_of_chunk(
    X: Any, Z: Any, Y: Any, centre: Array | None = None, weights: Array | None = None
) -> GeneProducts:
    """`gene_products` of some cells, computed where Y (cells, m) is; the design and the result are on the host."""
    if not on_device(Y):
        return gene_products(X, Z, Y, centre, weights)
    values = stored_values(Y)

    def put(A: Any) -> Array:
        return None if A is None else like(dense_array(A), values, dtype=namespace(values).float64)

    return gene_products(put(X), put(Z), Y, put(centre), put(weights)).map(to_numpy)


def _products_on_device(X: Array, Z: Array, Y: Any) -> GeneProducts:
    # in one product, sparse by dense: cupyx does not have dense by sparse
    xp, p = namespace(X), X.shape[1]
    sums = (Y.T @ xp.concat([X, Z, zeros((X.shape[0], 1), X) + 1.0], axis=1)).T  # (p + q + 1, m)
    return GeneProducts(sums[:p, :], sums[p:-1, :], column_sums(with_values(Y, Y.data * Y.data)), sums[-1, :])


def as_float64(A: Any) -> Any:
    """Convert a dense or sparse matrix to float64, without a copy where it is."""
    if is_scipy_sparse(A):
        return A.astype("float64", copy=False)
    if is_sparse_on_device(A):
        return with_values(A, like(A.data, A.data, dtype=namespace(A.data).float64))
    return like(A, A, dtype=namespace(A).float64)


def dense_array(A: Any) -> Array:
    """Convert a sparse matrix to an array; return an array as it is."""
    return A.toarray() if is_scipy_sparse(A) else A


def row_totals(A: Any) -> Array:
    """Sums over the columns of A (n, m), dense or sparse, on any device: (n,) in float64, on the host."""
    if on_device(A):
        return to_numpy(column_sums(as_float64(A).T))
    return to_numpy(A.sum(axis=1, dtype="float64")).reshape(-1)


def column_sums(A: Any) -> Array:
    """Sums over the rows of A (n, m), which is dense or sparse."""
    if is_sparse_on_device(A):
        return (A.T @ (zeros((A.shape[0], 1), A.data) + 1.0))[:, 0]
    if is_scipy_sparse(A):
        return to_numpy(A.sum(axis=0)).reshape(-1)
    return namespace(A).sum(A, axis=0)
