"""Options that several commands have, each of them said once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..inference.satterthwaite import DF_METHODS

CELLS = "cells x genes as .h5ad, .zarr, .h5 of CellRanger, .npz, .mtx(.gz), .csv(.gz) or .tsv"
FORMULA = typer.Option("--formula", "-f", help="lme4 syntax: '~ condition + (1 | donor)'.")
CONTRAST = typer.Option("--contrast", "-c", help="What to test, 'a - b' or 'name = a - b'; repeatable.")
Df = Annotated[str, typer.Option(help=f"Degrees of freedom: {', '.join(DF_METHODS)}.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep a checkpoint beside the output, and go on from it after a kill.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One line of JSON on standard output; notes and errors as JSON on the other.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")]


def reading(
    obs: Annotated[Path | None, typer.Option(help="Table of the cells (.csv, .tsv), for data that have none.")] = None,
    features: Annotated[Path | None, typer.Option(help="Gene names, one per line, for data that have none.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the .h5ad in place of X.")] = None,
    transform: Annotated[
        str | None, typer.Option(help="log1p, log2p1 or normalize; without it, raw counts are fitted as log2(1 + y).")
    ] = None,
    is_counts: Annotated[
        bool | None,
        typer.Option("--counts/--no-counts", help="Whether the values are raw counts; without it, looked at."),
    ] = None,
    size_factors: Annotated[str | None, typer.Option(help="Column of obs for --transform normalize.")] = None,
    target: Annotated[float | None, typer.Option(help="Total count of a cell for --transform normalize.")] = None,
    cells: Annotated[
        str | None, typer.Option("--cells", help="Cells to take: \"n_counts > 500 and arm == 'stim'\".")
    ] = None,
    min_cells: Annotated[int | None, typer.Option(help="Keep genes that are not zero in so many cells.")] = None,
    min_mean: Annotated[float | None, typer.Option(help="Keep genes with this mean of the stored values.")] = None,
) -> dict[str, Any]:
    """How cells are read."""
    return {name: value for name, value in locals().items() if value is not None}


def computing(
    memory: Annotated[str | None, typer.Option(help="Memory budget, such as 2GB.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler whose workers read .h5ad and .zarr and fit: tcp://HOST:8786.")
    ] = None,
) -> dict[str, Any]:
    """Where it is computed, and with how much memory."""
    return locals()


def takes(*groups: Callable[..., dict[str, Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make commands that have the parameters of all `groups` in place of those named like the groups.

    The command is called with what each group returns.

    Examples
    --------
    >>> def size(width: int = 1, height: int = 2) -> dict:
    ...     return locals()
    >>> @takes(size)
    ... def draw(path: str, size: dict, colour: str = "red") -> None:
    ...     print(path, size, colour)
    >>> list(inspect.signature(draw).parameters)
    ['path', 'width', 'height', 'colour']
    >>> draw(path="x", width=3)
    x {'width': 3, 'height': 2} red
    """
    parts = {group.__name__: inspect.signature(group, eval_str=True).parameters for group in groups}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**given: Any) -> None:
            for group in groups:
                own = {name: given.pop(name) for name in parts[group.__name__] if name in given}
                given[group.__name__] = group(**own)
            command(**given)

        listed = [one for name, own in signature.parameters.items() for one in parts.get(name, {name: own}).values()]
        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in listed]
        run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
        return run

    return decorate
