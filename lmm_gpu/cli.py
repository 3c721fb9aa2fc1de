"""The command line: `lmm-gpu fit` on a file, `lmm-gpu demo` with no data at hand."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError:  # the console script exists without the extra too
    sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')

from . import __version__
from .inference import DF_METHODS
from .run import Run, demonstrate, fit_to_folder

#: What typer raises for unknown commands, options and values: click's, which newer versions bring along themselves.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    help="One linear mixed model per gene, for all genes at once.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it does not exist.")]


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Cells x genes: .h5ad, .zarr, .h5, .npz, .mtx(.gz), .csv(.gz) or .tsv.")],
    formula: Annotated[str, typer.Option("--formula", "-f", help="lme4 syntax: '~ condition + (1 | donor)'.")],
    output: Output,
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
    cells: Annotated[str | None, typer.Option(help="Cells to take: \"n_counts > 500 and arm == 'stim'\".")] = None,
    min_cells: Annotated[int, typer.Option(help="Keep genes that are not zero in so many cells.")] = 0,
    min_mean: Annotated[float | None, typer.Option(help="Keep genes with this mean of the stored values.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep a checkpoint in the folder, and go on from it after a kill.")
    ] = False,
    contrast: Annotated[
        list[str] | None, typer.Option("--contrast", "-c", help="What to test, 'a - b' or 'name = a - b'; repeatable.")
    ] = None,
    df: Annotated[str, typer.Option(help=f"Degrees of freedom: {', '.join(DF_METHODS)}.")] = "satterthwaite",
    method: Annotated[str, typer.Option(help="REML or ML.")] = "REML",
    bounds: Annotated[str, typer.Option(help="auto, nonnegative or none.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="Memory budget, such as 2GB.")] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
) -> None:
    """Fit one mixed model per gene and write a table of tests and a summary.

    Example: lmm-gpu fit cells.h5ad -f "~ condition + (1 | donor)" -c "condition[T.stim]" -o results
    """
    reading = {
        "obs": obs,
        "features": features,
        "layer": layer,
        "transform": transform,
        "is_counts": is_counts,
        "size_factors": size_factors,
        "target": target,
        "cells": cells,
        "min_cells": min_cells,
        "min_mean": min_mean,
        "checkpoint": output / "checkpoint.h5" if resume else None,
        "memory": memory,
        "device": device,
    }
    run = fit_to_folder(data, formula, output, contrast, df=df, method=method, bounds=bounds, **reading)
    _show(run)


@app.command()
def demo(
    output: Output = Path("lmm_gpu_demo"),
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 2024,
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 20_000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 2_000,
) -> None:
    """Simulate cells of 24 donors with known changes, write them as .h5ad, and fit them as `fit` would.

    Example: lmm-gpu demo -o lmm_gpu_demo
    """
    run, truth = demonstrate(output, seed=seed, cells=cells, genes=genes, say=_say)
    _show(run)
    _say(truth.describe())
    _say(f"{run.seconds + truth.seconds:.1f} s in all, of which {truth.seconds:.1f} s to simulate and write the cells")


def _show(run: Run) -> None:
    """Print statuses, the strongest genes, and what was written."""
    statuses = Table(
        "status",
        "genes",
        title_justify="left",
        min_width=40,
        title=f"{run.fit.summary.m:,} genes, {run.fit.summary.n:,} cells",
    )
    for word, count in run.fit.status.value_counts().items():
        statuses.add_row(str(word), f"{count:,}")
    strongest = Table("gene", "contrast", "log_fc", "se", "t", "df", "p", "FDR", title="the ten strongest")
    for row in run.strongest(10).itertuples():
        numbers = [f"{row.log_fc:.3g}", f"{row.se:.2g}", f"{row.statistic:.2f}", f"{row.df:.1f}"]
        strongest.add_row(
            str(row.variable), str(row.contrast), *numbers, _power(row.log10_p_value), f"{row.adj_p_value:.2g}"
        )
    out.print(statuses)
    out.print(strongest)
    for path, what in run.written.items():
        _say(f"wrote {path}  ({what})")
    _say(f"read and fitted in {run.seconds:.1f} s")


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _power(log10: float) -> str:
    # a p-value that may be far below the smallest float
    return f"1e{log10:.0f}" if log10 < -300 else f"{10**log10:.2g}"


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"lmm-gpu {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the caller's mistakes end with exit code 2 and one sentence."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("lmm_gpu").setLevel(logging.INFO)
    given = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            sys.exit(app(given or ["--help"], standalone_mode=False))
        except UsageError as mistake:
            _refuse(f"{mistake.format_message().rstrip('.')}; see lmm-gpu --help")
        except OSError as trouble:
            _refuse(f"{trouble.strerror}: {trouble.filename}" if trouble.strerror else str(trouble))
        except (ValueError, MemoryError) as mistake:
            _refuse(str(mistake))


def _refuse(sentence: str) -> NoReturn:
    err.print("error: " + " ".join(sentence.split()), style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"warning: {message}", highlight=False, markup=False, soft_wrap=True)
