"""The command line: `lmm-gpu fit` on a file, `demo` with no data at hand; `info` and `selftest` on what it runs on."""

from __future__ import annotations

import json
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
from .degrees_of_freedom import DF_METHODS
from .io import write_json
from .run import Run, demonstrate, fit_to_folder
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
out = Console()
err = Console(stderr=True)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it does not exist.")]


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Cells x genes: .h5ad, .npz, .mtx(.gz), .csv(.gz) or .tsv.")],
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
    contrast: Annotated[
        list[str] | None, typer.Option("--contrast", "-c", help="What to test, 'a - b' or 'name = a - b'; repeatable.")
    ] = None,
    df: Annotated[str, typer.Option(help=f"Degrees of freedom: {', '.join(DF_METHODS)}.")] = "satterthwaite",
    method: Annotated[str, typer.Option(help="REML or ML.")] = "REML",
    bounds: Annotated[str, typer.Option(help="auto, nonnegative or none.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="Memory budget, such as 2GB.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or cuda:0,cuda:1.")] = "auto",
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


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for reports of errors.")] = False,
) -> None:
    """Show versions, memory and CUDA devices, and which device a fit would take.

    Example: lmm-gpu info
    """
    found = system_info()
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _show_info(found)


@app.command()
def selftest(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu or auto.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the results, as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer genes; the rates then say little.")] = False,
) -> None:
    """Check that a device gives the host's numbers, and time it. Exit code 1 if a check fails.

    Example: lmm-gpu selftest --device cuda -o selftest.json
    """
    found = check_device(device, quick=quick, report=_show_check)
    _show_rates(found["rates"])
    if output is not None:
        write_json(found, output)
        _say(f"wrote {output}")
    counts = ", ".join(f"{count} {status}" for status, count in found["counts"].items())
    _say(f"{found['device']}: {counts}, in {found['seconds']:.0f} s")
    if not found["passed"]:
        raise typer.Exit(1)


def _show_check(one: dict[str, Any]) -> None:
    number = "" if one["deviation"] is None else f"{one['deviation']:.1e}"
    _say(f"{one['status']:8s} {one['name']:32s} {number:>8s} {one['seconds']:7.1f} s  {one['reason']}".rstrip())


def _show_rates(rows: list[dict[str, Any]]) -> None:
    table = Table("", "ms", "GB/s", "GFLOP/s", "of its own rate", title="rates", title_justify="left")
    for row in rows:
        rates = ["" if row[name] is None else f"{row[name]:.3g}" for name in ("gb_per_s", "gflop_per_s")]
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        table.add_row(f"{row['what']}: {row['size']}", f"{1e3 * row['seconds']:.2f}", *rates, share)
    out.print(table)


def _show_info(found: dict[str, Any]) -> None:
    table, cuda = Table("", "", show_header=False, title="lmm-gpu info", title_justify="left"), found["cuda"]
    for name, version in found["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("platform", found["platform"])
    table.add_row("processors", str(found["processors"]))
    table.add_row("free memory", _gigabytes(found["free_memory"]))
    for one in found["blas"]:
        table.add_row("BLAS", f"{one['library']} {one['version']}, {one['threads']} threads")
    table.add_row("CUDA", f"driver {cuda['driver'] or 'none'}, runtime {cuda['runtime'] or 'none'}")
    for one in cuda["devices"]:
        memory = f"{_gigabytes(one['free_bytes'])} of {_gigabytes(one['total_bytes'])} free"
        table.add_row(f"cuda:{one['number']}", f"{one['name']}, compute {one['compute_capability']}, {memory}")
    out.print(table)
    _say(f"a fit takes {found['device']} ({found['why_not']})")


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


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
