"""Columns of evaluated terms, whether formulaic made them or `plain_formula`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Columns (n, c) of some terms of a formula, evaluated together."""

    values: Any  #: (n, c), an array or a model matrix of formulaic, which may be sparse
    names: tuple[str, ...]
    places: Mapping[Any, Sequence[int]]  #: positions of the columns of each term
    spec: Any  #: what the description of the terms needs: formulaic's specification, or the levels of each term


@dataclass(frozen=True)
class Centres:
    """Means of columns of obs less their origins, None for text, and the origins that are not zero."""

    means: Mapping[str, float | None]
    origins: Mapping[str, float]
