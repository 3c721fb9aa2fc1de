"""Options of a fit, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.memory import parse_memory

METHODS = ("REML", "ML")
BOUNDS = ("auto", "nonnegative", "none")


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit, with the names of `lmm` and `fit`."""

    method: str = "REML"
    bounds: str = "auto"
    max_iter: int = 50
    epsilon: float = 1e-5
    theta0: Any = None
    memory: int | str | None = None
    block: int | None = None
    device: Any = "auto"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not known; use 'REML' or 'ML'")
        if self.bounds not in BOUNDS:
            raise ValueError(f"bounds={self.bounds!r} is not known; use one of {', '.join(BOUNDS)}")
        if not isinstance(self.max_iter, (int, np.integer)) or self.max_iter < 1:
            raise ValueError(f"max_iter={self.max_iter!r}: at least one iteration is needed, as a whole number")
        if not isinstance(self.epsilon, (int, float)) or not self.epsilon > 0:
            raise ValueError(f"epsilon={self.epsilon!r}: the tolerance must be positive")
        for name, number in (("max_iter", int), ("epsilon", float)):  # NumPy's scalars promote, or are refused
            object.__setattr__(self, name, number(getattr(self, name)))

    def memory_for(self, n_components: int) -> int | None:
        """Bytes that the blocks of a fit may take; with several components half goes to what all genes share."""
        memory = parse_memory(self.memory)
        return memory // 2 if memory is not None and n_components > 1 else memory
