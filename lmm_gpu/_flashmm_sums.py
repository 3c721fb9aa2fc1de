"""`sslmm`: from features x cells to summary statistics, block by block."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from ._flashmm_inputs import (
    check_same_cells,
    check_shapes,
    choose_labels,
    component_widths,
    dense,
    on_host,
    read_matrix,
    read_weights,
    rows_of,
)
from .backend.arrays import entered, indices, is_array, is_sparse_on_device, namespace, to_numpy
from .backend.blocks import blocks
from .backend.devices import Device, resolve
from .backend.late_imports import is_scipy_sparse, scipy
from .backend.linalg import DEPENDENT
from .backend.memory import parse_memory
from .backend.scheduler import Range, run
from .backend.sparse import is_sparse, on_device, stored_values
from .sumstats.assembly import assemble
from .sumstats.centring import centre_of, centred_products, constant_of
from .sumstats.gene_weights import weighted_products
from .sumstats.group_tables import GroupTables, is_worth_fusing
from .sumstats.grouped_design import GroupedDesign, Grouping, indicator_matrix, one_hot
from .sumstats.matrix_groups import grouped_design, read_groupings
from .sumstats.products import GeneProducts, as_float64, design_products, sparse_if_worth_it
from .sumstats.summary_stats import SummaryStats
from .sumstats.transform import Transform, check_values, recognise, squares_fit
from .sumstats.within import Within
from .sumstats.within_sums import clearly_varying, nearly_constant, sampled_cells, widest, within_matrices

logger = logging.getLogger("lmm_gpu")
#: Bytes of a block when no budget is given, and bytes per value: float64, three copies.
_BLOCK_BYTES, _VALUE_BYTES = 2**28, 24
#: With fewer values of Y (features times cells), dense products take less time than to import SciPy's sparse matrices.
_MANY_VALUES = 2**20
#: A sparse Z of more numbers than this is not made dense, to be multiplied on a device.
_LARGEST_DESIGN = 2**27
#: Number of cells, about, that show of most features that they vary within groups.
_FEW_CELLS = 32
#: A column whose standard deviation is below this share of its mean is constant up to rounding.
_ROUNDED = 1e-14


def sslmm(
    X: Any,
    Y: Any,
    Z: Any,
    nBlocks: int | None = None,
    *,
    d: int | Sequence[int] | None = None,
    is_counts: bool | None = None,
    weights: Any = None,
    Y_names: Sequence[str] | None = None,
    X_names: Sequence[str] | None = None,
    device: Any = "auto",
    memory: int | str | None = None,
) -> SummaryStats:
    """Compute summary statistics from cells, for `lmm`.

    Parameters
    ----------
    X : array or DataFrame (n, p)
        Design matrix of the fixed effects, one row per cell.
    Y : array, sparse matrix of SciPy or CuPy, or DataFrame (m, n)
        Responses, features in rows and cells in columns.
    Z : array, SciPy sparse matrix or DataFrame (n, q)
        Design matrix of the random effects, Z = [Z1, .., Zk].
    nBlocks : int, optional
        Number of blocks of features. The result does not depend on it.
    d : int or sequence of int, optional
        Columns of Z per random effect; one effect by default.
    is_counts : bool, optional
        Fit log2(1 + Y). By default Y is taken as raw counts if all its values are non-negative integers.
    weights : array (n,) or (m, n), optional
        Positive weights, one per cell or one per feature and cell: Var(residual) = s_0 / weight.
    Y_names, X_names : sequence of str, optional
        Labels of features and fixed effects; by default those of DataFrames, else Gene1.. and X1...
    device : str, or list of str
        "auto" (the device of the arrays, else a CUDA device, else the host), "cpu", "cuda", "cuda:1", or several.
    memory : int or str, optional
        Budget for temporaries, in bytes or as "2GB".

    Returns
    -------
    SummaryStats
        Also answers ``ss["XX"]``, ``ss["XY"]``, ``ss["ZX"]``, ``ss["ZY"]``, ``ss["ZZ"]``, ``ss["Ynorm"]``, ``ss["n"]``.

    Raises
    ------
    ValueError
        For shapes that do not match, NaN or infinite values, weights that are not positive, and duplicate names.

    Notes
    -----
    A dense Y on the host with 2**20 values or more is added up by groups of cells if all cells have the same number of
    values in Z, as cells of one or several crossed factors have, and at most one for every two columns beyond the
    first: this takes as many additions per value of Y as a cell has values in Z, however many columns Z has. With 128
    features and more, columns of X with few distinct values are added up by groups, too. All else is a matrix product,
    of a sparse Z where it has less than one value in 64 columns. Sums are in float64 for every type of Y. Values of 64
    features and more are added up by the compiled pass (needs numba) once it is loaded; 10**9 values load it.

    Examples
    --------
    >>> import numpy as np
    >>> ss = sslmm(np.ones((4, 1)), np.arange(8.0).reshape(2, 4) / 10, np.repeat(np.eye(2), 2, axis=0))
    >>> ss["n"], ss["ZZ"].tolist()
    (4, [[2.0, 0.0], [0.0, 2.0]])
    """
    devices = resolve(device, *[stored_values(A) for A in (X, Y, Z) if is_array(A) or is_sparse_on_device(A)])
    cells = _read_cells(X, Y, Z, d, is_counts, anywhere=device == "auto")
    (m, n), Y, Z, transform = cells.Y.shape, cells.Y, cells.Z, cells.transform
    y_names, x_names, z_names = cells.names
    labels: dict[str, Any] = {
        "d": cells.d,
        "features": choose_labels(Y_names, y_names, m, "Gene", "Y_names"),
        "fixed_names": choose_labels(X_names, x_names, cells.X.shape[1], "X", "X_names"),
        "random_names": choose_labels(None, z_names, Z.shape[1], "Z", "columns of Z"),
        "transform": transform.name,
    }

    def values(bounds: Range) -> Any:
        return transform.apply(rows_of(Y, *bounds).T)

    constant, W = constant_of(cells.X), read_weights(weights, m, n)
    X = from_origins(cells.X, cells.XX, constant, labels["fixed_names"])
    if X is not cells.X:
        constant = constant_of(X)
    if W is not None and W.ndim == 2:
        check_values(Y, "Y")
        return weighted_products(X, Z, on_host(values((0, m)), "Y"), W.T, **labels)
    size = block_size(m, n, nBlocks, parse_memory(memory))
    if is_scipy_sparse(Z) and n * Z.shape[1] > _LARGEST_DESIGN and not on_device(Y):
        devices = resolve("cpu")  # the others multiply dense designs
    with np.errstate(invalid="ignore", over="ignore"):
        if cells.groupings and cells.many and isinstance(Y, np.ndarray) and all(device.threaded for device in devices):
            products = products_by_group(grouped_design(X, cells.groupings, m), Y.T, transform, constant, W)
        else:
            products = products_by_block((X, Z, constant, W), values, blocks(m, size), devices)
    if not squares_fit(products.Ynorm):
        check_values(Y, "Y")
    groupings = cells.groupings or _one_hot_blocks(Z, cells.d)
    labels["within"] = within_groups((X, Z, W), groupings, Y, transform, products, size)
    if W is not None:
        labels["log_weights"] = float(np.log(W).sum())
    design = design_products(X, Z, W, cells.XX if X is cells.X and W is None else None)
    return assemble(design, products, constant, **labels)


@dataclass(frozen=True)
class _Cells:
    """Matrices of the same cells, read and checked."""

    X: np.ndarray  #: (n, p)
    XX: np.ndarray  #: (p, p), X'X
    Y: Any  #: (m, n); those in floating point are checked by their squares
    Z: Any  #: (n, q)
    groupings: list[Grouping] | None  #: of all columns of Z
    d: tuple[int, ...]
    transform: Transform
    names: tuple[list[str] | None, list[str] | None, list[str] | None]  #: of rows of Y, and columns of X and Z

    @property
    def many(self) -> bool:
        """True for as many values as sparse products are worth loading for."""
        return bool(self.Y.shape[0] * self.Y.shape[1] >= _MANY_VALUES)


def _read_cells(
    X: Any, Y: Any, Z: Any, d: int | Sequence[int] | None, is_counts: bool | None, *, anywhere: bool
) -> _Cells:
    X, x_cells, x_names = read_matrix(X, "X")
    Z, z_cells, z_names = read_matrix(Z, "Z")
    Y, y_names, y_cells = read_matrix(Y, "Y", one_row=True, anywhere=anywhere)
    check_shapes(X, Y, Z)
    check_same_cells({"Y": y_cells, "X": x_cells, "Z": z_cells})
    widths, groupings, X = component_widths(d, Z.shape[1]), read_groupings(Z), as_float64(dense(X))
    with np.errstate(invalid="ignore", over="ignore"):
        XX = X.T @ X
    indicators = groupings is not None and all(one.weights is None for one in groupings)  # zeros and ones
    late = isinstance(Y, np.ndarray) and Y.dtype.kind == "f" and is_counts is not True
    sound = {"X": squares_fit(XX.diagonal()), "Z": indicators, "Y": late}
    for name, matrix in (("X", X), ("Z", Z), ("Y", Y)):
        if not sound[name]:
            with entered(matrix):
                check_values(matrix, name)
    with entered(Y):
        transform = recognise(Y, is_counts)
    cells = _Cells(X, XX, Y, Z, groupings, widths, transform, (y_names, x_names, z_names))
    if groupings is not None and indicators and cells.many:
        return replace(cells, Z=indicator_matrix(groupings, slice(0, len(X))))
    return replace(cells, Z=sparse_if_worth_it(Z))


def check_blocks(nBlocks: int) -> int:
    """Return the number of blocks, refused if it is not a positive integer."""
    if not isinstance(nBlocks, Integral) or nBlocks < 1:
        raise ValueError(f"nBlocks={nBlocks!r}: expected a whole number, at least one block")
    return int(nBlocks)


def from_origins(X: np.ndarray, XX: np.ndarray, constant: np.ndarray | None, names: Sequence[str]) -> np.ndarray:
    """Subtract origins near the means from columns of X (n, p) whose products would lose their spread, such as dates.

    Only where other columns make a constant: the fit and the coefficients of these columns are then the same. The
    origins are in the log, as the coefficients that make the constant become those at the origin. `XX` is X'X, and
    `constant` are coefficients k with X k = 1, where they are known.

    Examples
    --------
    >>> X = np.array([[1.0, 20240101.0], [1.0, 20240103.0]])
    >>> from_origins(X, X.T @ X, constant_of(X), ["one", "day"]).tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """
    sums = np.ones(len(X)) @ X if constant is None else XX @ constant  # (p,), as X'1 = X'X k
    mean, spread = sums / len(X), np.full(X.shape[1], np.inf)
    variance = XX.diagonal() / len(X) - np.square(mean)  # to rounding of mean^2, far below the bound
    for j in np.flatnonzero(variance < 4 * DEPENDENT * np.square(mean)).tolist():
        same = constant is not None and np.flatnonzero(constant).tolist() == [j]  # in all cells
        mean[j], spread[j] = (X[0, j], 0.0) if same else (X[:, j].mean(), X[:, j].std())
    far = (spread < math.sqrt(2 * DEPENDENT) * np.abs(mean)) & (spread > _ROUNDED * np.abs(mean))
    if not far.any() or constant_of(X[:, ~far]) is None:
        return X
    X = X.copy()
    for j in np.flatnonzero(far).tolist():
        origin = float(np.rint(mean[j]))
        X[:, j] -= origin
        logger.warning(
            "column %s of X lies far from zero for its spread (mean %.6g, SD %.3g) and is used less %.15g: its "
            "coefficient stays the same, the intercept is that at this value",
            *(names[j], mean[j], spread[j], origin),
        )
    return X


def block_size(m: int, n: int, nBlocks: int | None, memory: int | None) -> int:
    """Features per block: R's split into `nBlocks`, or as many as the budget holds in float64, three times.

    >>> block_size(100, 1000, 3, None), block_size(100, 1000, None, 240_000)
    (34, 10)
    """
    if nBlocks is not None:
        return math.ceil(m / check_blocks(nBlocks))
    budget = _BLOCK_BYTES if memory is None else memory
    return max(1, min(m, budget // (_VALUE_BYTES * max(n, 1))))


def products_by_block(
    design: tuple[Any, ...],
    values: Callable[[Range], Any],
    ranges: Iterable[Range],
    devices: Sequence[Device],
) -> GeneProducts:
    """`centred_products` of all blocks, joined, on the host.

    Parameters
    ----------
    design : X (n, p), Z (n, q), constant (p,) or None, weights (n,) or None
        The design, whose Z may be sparse; coefficients with X k = 1; and weights of the cells.
    values : callable
        Returns the features of a range (n, b), dense or sparse, on the host or on one of the devices. SciPy's sparse
        ones are accumulated on the host.
    ranges : iterable of (lo, hi)
    devices : sequence of Device
        Devices that multiply dense features; blocks are read and copied ahead if the device supports it.
    """
    ranges = list(ranges)
    if all(device.threaded for device in devices):  # the host: its linear algebra library has threads of its own
        return GeneProducts.join([_products(design, values(bounds)) for bounds in ranges])
    designs = {device.name: _put(device, design) for device in devices}
    parts: dict[Range, GeneProducts] = {}

    def load(device: Device, bounds: Range) -> Any:
        genes = values(bounds)
        return genes if is_sparse(genes) else device.put(genes)

    def multiply(device: Device, bounds: Range, genes: Any) -> None:
        on_host = is_scipy_sparse(genes)
        parts[bounds] = _products(design if on_host else designs[device.name], genes).map(to_numpy)

    for _ in run(devices, 1, ranges, load, multiply):
        pass
    return GeneProducts.join([parts[bounds] for bounds in sorted(parts)])


def products_by_group(
    design: GroupedDesign, Y: np.ndarray, transform: Transform, constant: Any, weights: np.ndarray | None
) -> GeneProducts:
    """`centred_products` of dense features (n, m) on the host, added up by groups of cells.

    Values are converted, transformed, added and squared some at a time, in the processor's cache.
    """
    centre = centre_of(Y, constant, transform.apply)
    tables = GroupTables(design, Y.shape[1], weights, fused=is_worth_fusing(*Y.shape))
    tables.add_dense(slice(0, len(Y)), slice(0, Y.shape[1]), Y, centre, transform)
    return replace(tables.products(), centre=centre)


def within_groups(
    design: tuple[Any, ...],
    groupings: Sequence[Grouping],
    Y: Any,
    transform: Transform,
    products: GeneProducts,
    size: int,
) -> Within | None:
    """Products of the genes that are nearly constant within a random effect, about a cell of each of its levels.

    Parameters
    ----------
    design : X (n, p), Z (n, q), weights (n,) or None
    groupings : sequence of Grouping
        Random effects of which a cell has one value.
    Y : array or SciPy sparse matrix (m, n)
    transform : Transform
    products : GeneProducts
        Of all genes, which the other genes keep.
    size : int
        Genes to multiply at a time.

    Returns
    -------
    Within or None
        None if there is no such gene, or no random effect with one level per cell.
    """
    grouping = widest(groupings)
    if grouping is None or is_sparse_on_device(Y):
        return None
    genes = np.arange(Y.shape[0])
    if is_scipy_sparse(Y):
        Y = Y.tocsr()
        genes = genes[2 * np.diff(Y.indptr) > Y.shape[1]]  # genes of many zeros are far from constant

    def values(A: Any) -> np.ndarray:
        return np.ascontiguousarray(to_numpy(transform.apply(dense(A).T)), np.float64)

    with entered(Y):
        codes, cells = grouping.codes, sampled_cells(grouping.codes)
        some = cells[sampled_cells(codes[cells], _FEW_CELLS)]
        some = some[np.argsort(codes[some], kind="stable")]
        genes = genes[~clearly_varying(codes[some], values(_sample(Y, genes, some)))]
        if not genes.size:
            return None
        genes = genes[nearly_constant(codes[cells], values(_sample(Y, genes, cells)))]
        return within_matrices(design, grouping, lambda at: values(_taken(Y, at, axis=0)), genes, products, size)


def _one_hot_blocks(Z: Any, d: Sequence[int]) -> list[Grouping]:
    """Groupings of those random effects of which no cell has several values."""
    ends, Z = np.cumsum(d).tolist(), scipy.sparse.csc_array(Z) if is_scipy_sparse(Z) else np.asarray(Z)
    found = [one_hot(Z[:, hi - width : hi], slice(hi - width, hi)) for hi, width in zip(ends, d, strict=True)]
    return [block for block in found if isinstance(block, Grouping)]


def _sample(Y: Any, genes: np.ndarray, cells: np.ndarray) -> Any:
    if is_scipy_sparse(Y):
        return Y[genes, :][:, cells]
    sample = _taken(Y, cells, axis=1)
    return sample if len(genes) == Y.shape[0] else _taken(sample, genes, axis=0)


def _taken(A: Any, places: np.ndarray, axis: int) -> Any:
    # rows or columns of a dense or sparse matrix, on any device
    if is_scipy_sparse(A) or isinstance(A, np.ndarray):  # NumPy's take would copy one that is not in C order
        return A[places, :] if axis == 0 else A[:, places]
    return namespace(A).take(A, indices(places, A), axis=axis)


def _products(design: tuple[Any, ...], genes: Any) -> GeneProducts:
    X, Z, constant, weights = design
    return centred_products(X, Z, genes, constant, weights)


def _put(device: Device, design: tuple[Any, ...]) -> tuple[Any, ...]:
    with device.entered():
        host = (part.toarray() if is_scipy_sparse(part) else part for part in design)
        return tuple(None if part is None else device.put(part) for part in host)
