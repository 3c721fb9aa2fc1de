"""Sums of products over cells: of the design with itself, and of the genes with the design and themselves.

y'Ry = y'y - (X'y)'beta is a small difference of large numbers for a gene whose mean is many times its spread. Where
columns of X make the constant, X k = 1, nothing that X is projected out of notices a shift: R(y - c) = Ry. The products
of y - c then keep their digits, beta = beta_c + k c, and the sums of y itself follow from them (`recentred`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import scipy.sparse

from ..backend.arrays import Array, flag_indices, is_sparse_on_device, like, namespace, to_numpy, zeros
from ..backend.sparse import on_device, stored_values, with_values

#: A design matrix with a smaller share of non-zeros is multiplied as sparse.
_SPARSE_DENSITY = 0.2


def sparse_if_worth_it(A: Any) -> Any:
    """Make one-hot columns sparse: the product then touches each cell once per random effect."""
    if scipy.sparse.issparse(A) or namespace(A).count_nonzero(A) > _SPARSE_DENSITY * A.size:
        return A
    return scipy.sparse.csr_array(A)


def design_products(X: Any, Z: Any) -> dict[str, Any]:
    """n, X'X, Z'X and Z'Z of the design of some cells."""
    X, Z = as_float64(X), as_float64(Z)
    return {"n": X.shape[0], "XX": dense_array(X.T @ X), "ZX": dense_array(Z.T @ X), "ZZ": dense_array(Z.T @ Z)}


def gene_products(X: Any, Z: Any, Y: Any, centre: Array | None = None) -> dict[str, Array]:
    """X'Y, Z'Y, y'y and the sum of y of some genes in some cells, about `centre` (m,); Y is (n, m)."""
    X, Z, Y = as_float64(X), as_float64(Z), as_float64(Y)
    if is_sparse_on_device(Y):
        return _products_on_device(X, Z, Y)
    if centre is not None and flag_indices(centre).size:
        Y = Y - centre[None, :]  # (n, m)
    squares = Y.multiply(Y) if scipy.sparse.issparse(Y) else Y * Y
    return {"XY": _crossed(X, Y), "ZY": _crossed(Z, Y), "Ynorm": column_sums(squares), "Ysum": column_sums(Y)}


def _crossed(A: Any, Y: Any) -> Array:
    # by rows of both, where both are sparse: SciPy would sort all of Y by columns first
    both = scipy.sparse.issparse(A) and scipy.sparse.issparse(Y) and Y.format == "csr"
    return dense_array(A.T.tocsr() @ Y if both else A.T @ Y)


def products_of_chunk(X: Any, Z: Any, Y: Any, centre: Array | None = None) -> dict[str, Array]:
    """`gene_products` of some cells, computed where Y (cells, m) lies; all else, and what is returned, on the host."""
    if not on_device(Y):
        return gene_products(sparse_if_worth_it(X), Z, Y, centre)
    values = stored_values(Y)
    put = lambda A: like(dense_array(A), values, dtype=namespace(values).float64)  # noqa: E731
    parts = gene_products(put(X), put(Z), Y, None if centre is None else put(centre))
    return {name: to_numpy(part) for name, part in parts.items()}


def _products_on_device(X: Array, Z: Array, Y: Any) -> dict[str, Array]:
    # in one product, sparse by dense: the other way round is not in cupyx
    xp, p = namespace(X), X.shape[1]
    sums = (Y.T @ xp.concat([X, Z, zeros((X.shape[0], 1), X) + 1.0], axis=1)).T  # (p + q + 1, m)
    norms = column_sums(with_values(Y, Y.data * Y.data))  # (m,)
    return {"XY": sums[:p, :], "ZY": sums[p:-1, :], "Ynorm": norms, "Ysum": sums[-1, :]}


def join_genes(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate products of consecutive genes."""
    if len(parts) == 1:
        return dict(parts[0])
    xp = namespace(parts[0]["XY"])
    present = [name for name in parts[0] if parts[0][name] is not None]
    return {name: xp.concat([part[name] for part in parts], axis=-1) for name in present}


def as_float64(A: Any) -> Any:
    """Convert a dense or sparse matrix to float64, without a copy where it is."""
    if scipy.sparse.issparse(A):
        return A.astype("float64", copy=False)
    if is_sparse_on_device(A):
        return with_values(A, like(A.data, A.data, dtype=namespace(A.data).float64))
    return like(A, A, dtype=namespace(A).float64)


def dense_array(A: Any) -> Array:
    """Convert a sparse matrix to an array; return an array as it is."""
    return A.toarray() if scipy.sparse.issparse(A) else A


def row_totals(A: Any) -> Any:
    """Sums over the columns of A (n, m), dense or sparse, wherever it is: (n,) in float64, on the host."""
    if on_device(A):
        return to_numpy(column_sums(as_float64(A).T))
    return to_numpy(A.sum(axis=1, dtype="float64")).reshape(-1)


def column_sums(A: Any) -> Array:
    """Sums over the rows of A (n, m), which is dense or sparse."""
    if is_sparse_on_device(A):
        return (A.T @ (zeros((A.shape[0], 1), A.data) + 1.0))[:, 0]
    if scipy.sparse.issparse(A):
        return to_numpy(A.sum(axis=0)).reshape(-1)
    return namespace(A).sum(A, axis=0)
