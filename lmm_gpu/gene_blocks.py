"""Products of genes with the design, block by block, on the host or on devices: matrix in memory, genes in columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import scipy.sparse

from .arrays import is_sparse, to_numpy
from .devices import Device
from .products import centred_products, join_genes
from .scheduler import Range, run


def products_by_block(
    X: Any,
    Z: Any,
    values: Callable[[Range], Any],
    ranges: Iterable[Range],
    constant: Any,
    devices: Sequence[Device],
) -> dict[str, Any]:
    """`centred_products` of all blocks, joined, on the host.

    Parameters
    ----------
    X, Z : array (n, p), (n, q)
        The design; Z may be sparse.
    values : callable
        Genes of a range (n, b), dense or sparse, on the host or on one of the devices. SciPy's sparse ones are summed
        up on the host.
    ranges : iterable of (lo, hi)
    constant : array (p,) or None
        Coefficients with X k = 1.
    devices : sequence of Device
        Where dense genes are multiplied; read and copied ahead where the device can.
    """
    ranges = list(ranges)
    if all(device.threaded for device in devices):  # the host: its linear algebra library has threads of its own
        return join_genes([centred_products(X, Z, values(bounds), constant) for bounds in ranges])
    design = {device.name: _design(device, X, Z, constant) for device in devices}
    parts: dict[Range, dict[str, Any]] = {}

    def load(device: Device, bounds: Range) -> Any:
        genes = values(bounds)
        return genes if is_sparse(genes) else device.put(genes)

    def multiply(device: Device, bounds: Range, genes: Any) -> None:
        if scipy.sparse.issparse(genes):
            parts[bounds] = centred_products(X, Z, genes, constant)
            return
        products = centred_products(*design[device.name][:2], genes, design[device.name][2])
        parts[bounds] = {name: None if part is None else to_numpy(part) for name, part in products.items()}

    for _ in run(devices, 1, ranges, load, multiply):
        pass
    return join_genes([parts[bounds] for bounds in sorted(parts)])


def _design(device: Device, X: Any, Z: Any, constant: Any) -> tuple[Any, Any, Any]:
    with device.entered():
        dense = Z.toarray() if scipy.sparse.issparse(Z) else Z
        return device.put(X), device.put(dense), None if constant is None else device.put(constant)
