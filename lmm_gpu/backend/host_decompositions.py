"""Decompose the few matrices of a design on the host: a device would take as long, by a hundred launches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from .arrays import Array, is_array, like, namespace, on_host, to_numpy
from .fusion import flatten, rebuild

#: Rows of the largest matrix that is decomposed on the host.
LARGEST = 512
P = ParamSpec("P")
R = TypeVar("R")


def decomposed_on_host(function: Callable[P, R]) -> Callable[P, R]:
    """Compute a function of matrices on the host wherever they are, and copy its arrays back.

    Parameters
    ----------
    function : callable
        ``function(matrix, *more)``: of arrays of one device, and numbers, tuples of them or None, which stay as they
        are. It returns an array, or a tuple or dataclass of arrays and such. Matrices of more than `LARGEST` rows are
        decomposed where they are.

    Examples
    --------
    >>> import numpy as np
    >>> float(decomposed_on_host(np.trace)(np.eye(3)))
    3.0
    """

    @functools.wraps(function)
    def call(*matrices: P.args, **named: P.kwargs) -> R:
        reference = matrices[0]
        if on_host(reference) or reference.shape[-1] > LARGEST:  # type: ignore[attr-defined]
            return function(*matrices, **named)
        copies = [to_numpy(x) if is_array(x) else x for x in matrices]
        found, structure = flatten(function(*copies, **named))  # type: ignore[arg-type]
        return cast(R, rebuild(structure, iter([_moved(x, reference) for x in found])))

    return call


def _moved(x: Any, reference: Array) -> Any:
    # an array of the host, of whatever dtype, to the device of `reference`
    if not isinstance(x, np.ndarray | np.generic):
        return x
    return like(x, reference, dtype=getattr(namespace(reference), x.dtype.name))
