"""Options that several commands share. Nothing here imports an array library: `--help` must start quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

#: Accepted values, for the help texts; a test compares them with the library's own lists.
DF_METHODS = ("generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within", "residual")
ALTERNATIVES = ("two-sided", "less", "greater")
TABLE_FORMATS = ("csv.gz", "parquet")

CELLS = "cells x genes as .h5ad, .zarr, CellRanger .h5, .npz, .mtx(.gz), .csv(.gz) or .tsv"
TABLE = "Table: .csv, .csv.gz, .tsv or .parquet."

# --- reading cells --------------------------------------------------------------------------------

Obs = Annotated[Path | None, typer.Option(help="Table of the cells (.csv, .tsv), for data without one.")]
Features = Annotated[Path | None, typer.Option(help="Gene names, one per line, for data without them.")]
Layer = Annotated[str | None, typer.Option(help="Layer of the .h5ad or .zarr to fit instead of X.")]
UseRaw = Annotated[
    bool | None,
    typer.Option("--use-raw", help="Fit raw of the .h5ad or .zarr instead of X; --layer raw does the same."),
]
FeatureTypes = Annotated[
    list[str] | None,
    typer.Option(help="Type of features to fit, such as 'Antibody Capture'; repeatable. By default Gene Expression."),
]
Transform = Annotated[
    str | None, typer.Option(help="log1p, log2p1 or normalize. By default raw counts are fitted as log2(1 + y).")
]
IsCounts = Annotated[
    bool | None,
    typer.Option("--counts/--no-counts", help="The values are (not) raw counts. By default this is auto-detected."),
]
SizeFactors = Annotated[str | None, typer.Option(help="Column of obs, for --transform normalize.")]
Target = Annotated[float | None, typer.Option(help="Total count per cell, for --transform normalize.")]
Cells = Annotated[str | None, typer.Option("--cells", help="Cells to use: \"n_counts > 500 and arm == 'stim'\".")]
Weights = Annotated[str | None, typer.Option(help="Column of obs with the weight of each cell.")]
Genes = Annotated[Path | None, typer.Option(help="File with the names of the genes to fit, one per line.")]
MinCells = Annotated[int | None, typer.Option(help="Keep genes that are non-zero in at least this many cells.")]
MinMean = Annotated[float | None, typer.Option(help="Keep genes whose mean stored value is at least this.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep a checkpoint beside the output and continue from it after a kill.")
]

# --- computing ------------------------------------------------------------------------------------

Memory = Annotated[str | None, typer.Option(help="Memory budget, such as 2GB.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Threads = Annotated[int | None, typer.Option(help="Threads that read and accumulate; by default one per processor.")]
Scheduler = Annotated[
    str | None, typer.Option(help="Dask scheduler whose workers read .h5ad and .zarr and fit: tcp://HOST:8786.")
]

# --- models and tests -----------------------------------------------------------------------------

Formula = Annotated[str, typer.Option("--formula", "-f", help="lme4 syntax: '~ condition + (1 | donor)'.")]
OptionalFormula = Annotated[
    str | None, typer.Option("--formula", "-f", help="lme4 syntax: '~ condition + (1 | donor)'.")
]
Contrasts = Annotated[
    list[str] | None,
    typer.Option("--contrast", "-c", help="Contrast to test, 'a - b' or 'name = a - b'; repeatable."),
]
Df = Annotated[str, typer.Option(help=f"Degrees of freedom: {', '.join(DF_METHODS)}.")]
Fitted = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote, or the fit.h5 in it.")]

# --- output ---------------------------------------------------------------------------------------

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; created if it does not exist.")]
Table = Annotated[Path, typer.Option("--output", "-o", help=TABLE)]
Sums = Annotated[Path, typer.Option("--output", "-o", help="File for the statistics (HDF5), such as site.h5.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files that lmm-gpu did not write.")]
Json = Annotated[
    bool, typer.Option("--json", help="One line of JSON on standard output; log lines as JSON on standard error.")
]


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given: those that are not None.

    >>> given(layer="counts", target=None)
    {'layer': 'counts'}
    """
    return {name: value for name, value in values.items() if value is not None}
