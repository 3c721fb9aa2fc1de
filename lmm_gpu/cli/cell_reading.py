"""Options of the shell for reading cells, as the library takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..backend.devices import resolve
from ..backend.memory import parse_memory
from ..io.readers import read_features
from ..sumstats.cell_model import CellModel, ReadOptions, open_cells
from ..sumstats.gene_filter import GeneFilter

#: Options that say what is opened; the others say how values are used.
_OPENING = ("obs", "layer", "use_raw", "features", "feature_types", "cells", "weights")


@contextmanager
def opened_cells(
    data: Path, formula: str, reading: Mapping[str, Any], computing: Mapping[str, Any]
) -> Iterator[CellModel]:
    """Open cells and build their design; no value is read.

    Parameters
    ----------
    data, formula
        As `lmm_gpu.summarize`.
    reading : mapping
        Its options on reading.
    computing : mapping
        Its device, memory and scheduler.

    Raises
    ------
    ValueError, OSError
        For data and options that cannot be used.
    """
    device = resolve(computing.get("device", "auto"))[0]
    opening = {name: reading[name] for name in _OPENING if name in reading}
    memory = parse_memory(computing.get("memory"))
    scheduler = computing.get("scheduler")
    with open_cells(data, formula, **opening, scheduler=scheduler, memory=memory, device=device) as model:
        yield model


def read_options(reading: Mapping[str, Any], checkpoint: Path | None) -> ReadOptions:
    """Return the options on how values are used.

    Raises
    ------
    ValueError, OSError
        For values that cannot be used, and a list of genes that cannot be read.

    Examples
    --------
    >>> read_options({"min_cells": 3, "transform": "log1p", "layer": "counts"}, None).genes.min_cells
    3
    """
    chosen = {name: value for name, value in reading.items() if name not in _OPENING}
    named = chosen.pop("genes", None)
    names = None if named is None else tuple(read_features(named))
    genes = GeneFilter(chosen.pop("min_cells", 0), chosen.pop("min_mean", None), names)
    return ReadOptions(**chosen, genes=genes, checkpoint=checkpoint)
