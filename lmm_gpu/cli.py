"""The command line: `fit` on a file, `summarize`, `merge` and `test` for its steps; `demo`, `info` and `selftest`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ImportError:  # the console script exists without the extra too
    sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')

from . import __version__, console
from .degrees_of_freedom import DF_METHODS
from .guide import guide
from .io import write_json
from .pvalues import ALTERNATIVES
from .run import demonstrate, fit_to_folder, merge_files, summarize_to_file, write_tests
from .selftest import selftest as check_device
from .system_info import system_info

#: What typer raises for unknown commands, options and values: click's, which newer versions bring along themselves.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    help="One linear mixed model per gene, for all genes at once.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CELLS = "cells x genes as .h5ad, .zarr, .h5 of CellRanger, .npz, .mtx(.gz), .csv(.gz) or .tsv"
Cells = Annotated[Path, typer.Argument(help=f"{CELLS[0].upper()}{CELLS[1:]}.")]
CellsOrSums = Annotated[Path, typer.Argument(help=f"What `summarize` or `merge` wrote, or {CELLS}.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it does not exist.")]
Sums = Annotated[Path, typer.Option("--output", "-o", help="File for the statistics (HDF5), such as site.h5.")]
FORMULA = typer.Option("--formula", "-f", help="lme4 syntax: '~ condition + (1 | donor)'.")
Obs = Annotated[Path | None, typer.Option(help="Table of the cells (.csv, .tsv), for data that have none.")]
Features = Annotated[Path | None, typer.Option(help="Gene names, one per line, for data that have none.")]
Layer = Annotated[str | None, typer.Option(help="Layer of the .h5ad in place of X.")]
Transform = Annotated[
    str | None, typer.Option(help="log1p, log2p1 or normalize; without it, raw counts are fitted as log2(1 + y).")
]
IsCounts = Annotated[
    bool | None, typer.Option("--counts/--no-counts", help="Whether the values are raw counts; without it, looked at.")
]
SizeFactors = Annotated[str | None, typer.Option(help="Column of obs for --transform normalize.")]
Target = Annotated[float | None, typer.Option(help="Total count of a cell for --transform normalize.")]
Query = Annotated[str | None, typer.Option("--cells", help="Cells to take: \"n_counts > 500 and arm == 'stim'\".")]
MinCells = Annotated[int | None, typer.Option(help="Keep genes that are not zero in so many cells.")]
MinMean = Annotated[float | None, typer.Option(help="Keep genes with this mean of the stored values.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep a checkpoint beside the output, and go on from it after a kill.")
]
CONTRAST = typer.Option("--contrast", "-c", help="What to test, 'a - b' or 'name = a - b'; repeatable.")
Df = Annotated[str, typer.Option(help=f"Degrees of freedom: {', '.join(DF_METHODS)}.")]
Memory = Annotated[str | None, typer.Option(help="Memory budget, such as 2GB.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, or several: cuda:0,cuda:1.")]
Scheduler = Annotated[
    str | None, typer.Option(help="Dask scheduler whose workers read .h5ad and .zarr and fit: tcp://HOST:8786.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One line of JSON on standard output; notes and errors as JSON on the other.")
]


@app.command()
def fit(
    data: CellsOrSums,
    output: Folder,
    formula: Annotated[str | None, FORMULA] = None,
    obs: Obs = None,
    features: Features = None,
    layer: Layer = None,
    transform: Transform = None,
    is_counts: IsCounts = None,
    size_factors: SizeFactors = None,
    target: Target = None,
    cells: Query = None,
    min_cells: MinCells = None,
    min_mean: MinMean = None,
    resume: Resume = False,
    contrast: Annotated[list[str] | None, CONTRAST] = None,
    df: Df = "generalized",
    method: Annotated[str, typer.Option(help="REML or ML.")] = "REML",
    bounds: Annotated[str, typer.Option(help="auto, nonnegative or none.")] = "auto",
    memory: Memory = None,
    device: Device = "auto",
    scheduler: Scheduler = None,
    json: Json = False,
) -> None:
    """Fit one mixed model per gene; write a table of tests, a summary, and the fit for `lmm-gpu test`.

    Example: lmm-gpu fit cells.h5ad -f "~ condition + (1 | donor)" -c "condition[T.stim]" -o results
    """
    reading = _given(obs=obs, features=features, layer=layer, transform=transform, is_counts=is_counts)
    reading |= _given(size_factors=size_factors, target=target, cells=cells, min_cells=min_cells, min_mean=min_mean)
    reading |= _given(checkpoint=output / "checkpoint.h5" if resume else None)
    options = {"method": method, "bounds": bounds, "memory": memory, "device": device, "scheduler": scheduler}
    run = fit_to_folder(data, formula, output, contrast, df=df, reading=reading, **options)
    console.show(run)
    console.answer(run.record)


@app.command()
def summarize(
    data: Cells,
    formula: Annotated[str, FORMULA],
    output: Sums,
    obs: Obs = None,
    features: Features = None,
    layer: Layer = None,
    transform: Transform = None,
    is_counts: IsCounts = None,
    size_factors: SizeFactors = None,
    target: Target = None,
    cells: Query = None,
    min_cells: MinCells = None,
    min_mean: MinMean = None,
    resume: Resume = False,
    memory: Memory = None,
    device: Device = "auto",
    scheduler: Scheduler = None,
    json: Json = False,
) -> None:
    """Sum up cells for `lmm-gpu merge` and `lmm-gpu fit`, which need to know no more of them.

    Example: lmm-gpu summarize cells.h5ad -f "~ condition + (1 | donor)" -o site1.h5
    """
    reading = _given(obs=obs, features=features, layer=layer, transform=transform, is_counts=is_counts)
    reading |= _given(size_factors=size_factors, target=target, cells=cells, min_cells=min_cells, min_mean=min_mean)
    reading |= _given(checkpoint=output.with_name(f"{output.stem}.checkpoint.h5") if resume else None)
    where = {"memory": memory, "device": device, "scheduler": scheduler}
    _told(summarize_to_file(data, formula, output, **reading, **where))


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="What `summarize` or `merge` wrote: other cells, one model.")],
    output: Sums,
    json: Json = False,
) -> None:
    """Add the statistics of other cells: genes and random levels are aligned by name.

    Example: lmm-gpu merge site1.h5 site2.h5 -o all.h5
    """
    _told(merge_files(files, output))


@app.command()
def test(
    fitted: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `fit` wrote, or the fit.h5 in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table: .parquet, .csv, .csv.gz or .tsv.")],
    contrast: Annotated[list[str] | None, CONTRAST] = None,
    df: Df = "generalized",
    alternative: Annotated[str, typer.Option(help=f"{', '.join(ALTERNATIVES)}.")] = "two-sided",
    level: Annotated[float, typer.Option(help="Coverage of the confidence intervals.")] = 0.95,
    json: Json = False,
) -> None:
    """Test contrasts of a fit, without its cells; by default every coefficient.

    Example: lmm-gpu test results -c "stim vs ctrl = condition[T.stim]" --df residual -o stim.csv
    """
    record = write_tests(fitted, contrast, output, df=df, alternative=alternative, level=level)
    console.say(f"wrote {record['written'][0]}  ({record['tests']:,} tests: gene x contrast)")
    console.answer(record)


@app.command()
def demo(
    output: Folder = Path("lmm_gpu_demo"),
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 2024,
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 20_000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 2_000,
    json: Json = False,
) -> None:
    """Simulate cells of 24 donors with known changes, write them as .h5ad, and fit them as `fit` would.

    Example: lmm-gpu demo -o lmm_gpu_demo
    """
    run, truth = demonstrate(output, seed=seed, cells=cells, genes=genes, say=console.say)
    console.show(run)
    console.say(truth.describe())
    seconds = f"{run.seconds + truth.seconds:.1f} s in all, of which {truth.seconds:.1f} s to simulate"
    console.say(f"{seconds} and write the cells")
    console.answer(run.record | {"truth": vars(truth)})


@app.command()
def info(
    json: Json = False,
) -> None:
    """Show versions, memory and CUDA devices, and which device a fit would take.

    Example: lmm-gpu info
    """
    found = system_info()
    console.show_info(found)
    console.answer(found)


@app.command()
def selftest(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu or auto.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the results, as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer genes; the rates then say little.")] = False,
) -> None:
    """Check that a device gives the host's numbers, and time it. Exit code 1 if a check fails.

    Example: lmm-gpu selftest --device cuda -o selftest.json
    """
    found = check_device(device, quick=quick, report=console.show_check)
    console.show_rates(found["rates"])
    if output is not None:
        write_json(found, output)
        console.say(f"wrote {output}")
    counts = ", ".join(f"{count} {status}" for status, count in found["counts"].items())
    console.say(f"{found['device']}: {counts}, in {found['seconds']:.0f} s")
    if not found["passed"]:
        raise typer.Exit(1)


app.command()(guide)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _told(record: dict[str, Any]) -> None:
    """Say what statistics were written."""
    effects = ", ".join(f"{name} ({width:,})" for name, width in record["random_effects"].items())
    what = f"{record['cells']:,} cells, {record['genes']:,} genes, {len(record['fixed_effects'])} fixed effects"
    console.say(f"wrote {record['written'][0]}  ({what}, random effects: {effects})")
    console.answer(record)


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"lmm-gpu {__version__}", highlight=False)
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
    given = sys.argv[1:] if arguments is None else arguments
    console.speak_json("--json" in given)  # before it is parsed: mistakes in the arguments are told as JSON, too
    logging.basicConfig(handlers=[console.Notes()])
    logging.getLogger("lmm_gpu").setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.showwarning = console.warn
        try:
            sys.exit(app(given or ["--help"], standalone_mode=False))
        except UsageError as mistake:
            console.refuse(f"{mistake.format_message().rstrip('.')}; see lmm-gpu --help")
        except OSError as trouble:
            console.refuse(f"{trouble.strerror}: {trouble.filename}" if trouble.strerror else str(trouble))
        except (ValueError, MemoryError) as mistake:
            console.refuse(str(mistake))
