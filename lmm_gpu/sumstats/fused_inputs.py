"""Inputs of the compiled pass over cells: a design, transforms and values, in types that it is compiled for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .grouped_design import GroupedDesign
from .transform import Transform

#: Counts below this are transformed by a look-up.
_TABULATED = 1024
#: Types of values that the compiled pass is compiled for; others are converted without loss, or to float64.
_READABLE = ["int32", "int64", "float32", "float64"]
_NONE = np.zeros(0)


class FusedInputs:
    """A design as the compiled pass reads it."""

    def __init__(self, design: GroupedDesign, weights: np.ndarray | None):
        from . import fused_kernels  # numba takes half a second to load

        self.kernels: Any = fused_kernels
        groupings = design.groupings
        codes = np.empty((len(groupings), design.n), np.uint16 if design.groups <= 2**16 else np.uint32)
        for row, one in zip(codes, groupings, strict=True):
            row[:] = one.codes
            row += codes.dtype.type(one.rows.start)
        slopes = np.zeros((0, len(groupings)))
        if any(grouping.weights is not None for grouping in groupings):
            ones = np.ones(design.n)
            slopes = np.column_stack([ones if one.weights is None else one.weights for one in groupings])
        #: Weights (n,) or empty, codes (groupings, n), slopes (n, groupings) or empty, covariates (n, c).
        self.design = (_NONE if weights is None else weights, codes, slopes, design.covariates)
        self.unrolled = (self.design[0], tuple(codes), slopes, design.covariates)
        self.by_genes = (tuple(codes), design.covariates, weights, slopes if len(slopes) else None)
        self._lookups: dict[str | None, np.ndarray] = {}

    def values(self, transform: Transform) -> tuple[int, float, np.ndarray, np.ndarray]:
        """The transform as mode, scale, size factors (n,) or empty, and values of small counts."""
        kernels = self.kernels
        if transform.name == "normalize":
            assert transform.size_factors is not None
            return kernels.NORMALIZED, 1.0, np.ascontiguousarray(transform.size_factors, float), _NONE
        if transform.name not in self._lookups:
            self._lookups[transform.name] = transform.apply(np.arange(float(_TABULATED)))
        mode = kernels.AS_IS if transform.name is None else kernels.LOG
        scale = 1 / math.log(2.0) if transform.name == "log2p1" else 1.0
        return mode, scale, _NONE, self._lookups[transform.name]


def readable(data: np.ndarray) -> np.ndarray:
    """Values in a type that the compiled pass is compiled for, without loss."""
    if data.dtype.isnative and data.dtype.name in _READABLE:
        return data
    return data.astype(np.float32 if data.dtype.itemsize <= 2 else np.float64)
