"""Checks of the values of chunks: the transform is chosen once, and later chunks have to meet its conditions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from .transform import (
    FRACTION,
    NEGATIVE,
    UNUSABLE,
    Transform,
    any_value,
    check_still_counts,
    check_values,
    has_fractions,
    least_value,
    not_counts,
    recognise,
    warn_not_counts,
)

logger = logging.getLogger("lmm_gpu")


@dataclass(frozen=True)
class Chunk:
    """Position of a chunk of cells and genes in a matrix, for messages."""

    rows: slice
    genes: slice
    name: str
    place: str


class ValueCheck:
    """The transform of the values, by default chosen from the first chunk that is not all zero, and its conditions."""

    def __init__(self, transform: Transform | None, is_counts: bool | None):
        self.given = None if transform is None else transform.name
        self.sure = transform is None and is_counts is True
        self.detecting = transform is None and is_counts is None
        if transform is None and is_counts is not None:
            transform = recognise(None, is_counts)
        self.decided, self.transform = transform is not None, transform or Transform()
        self.warned = False

    def decide(self, Y: Any) -> None:
        """Choose the transform, if that has not happened yet."""
        if not self.decided and any_value(Y):
            self.transform, self.decided = recognise(Y, None), True

    def check(self, Y: Any, chunk: Chunk) -> None:
        """Refuse, or warn of, values that are not counts where they have to be; note negative values that are kept."""
        if self.detecting and self.transform.name:
            check_still_counts(Y, chunk.name, chunk.place)
        elif self.transform.name is not None and not self.warned and has_fractions(Y):
            self._fractions(chunk)
        if self.transform.name is None and not self.warned and least_value(Y) < 0:
            self._negative(chunk)

    def report(self, flags: int, Y: Any, chunk: Chunk) -> None:
        """Raise the error, or give the warning, that flags of the compiled pass stand for."""
        if flags & UNUSABLE:
            check_values(Y, chunk.name, chunk.rows.start, chunk.genes.start)
            self.transform.apply(Y, chunk.rows)  # refuses negative values
        if flags & FRACTION:
            self.check(Y, chunk)
        if flags & NEGATIVE and not self.warned:
            self._negative(chunk)

    def _negative(self, chunk: Chunk) -> None:
        self.warned = True
        logger.info("%s has negative values: they are fitted as they are", chunk.name)

    def _fractions(self, chunk: Chunk) -> None:
        if self.sure:
            raise ValueError(not_counts(chunk.name, chunk.place))
        if self.given in ("log1p", "log2p1", "normalize"):
            self.warned = True
            warn_not_counts(self.given, chunk.name, chunk.place)
