"""The command line: commands on files (`cli_fit`), what shows a run (`cli_show`); `demo`, `info` and `selftest`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

from .._version import __version__
from ..io.files import write_json
from . import console, fit_commands, show_commands
from .demo import demonstrate
from .guide import guide
from .options import Json
from .selftest.runner import selftest as check_device
from .system_info import system_info

try:
    import typer
except ImportError:  # the console script exists without the extra too
    sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')
#: What typer raises for unknown commands, options and values: click's, which newer versions bring along themselves.
UsageError: Any = typer.BadParameter.__base__
#: Exit code after Ctrl-C: typer's, and every shell's.
INTERRUPTED = 130
app = typer.Typer(
    help="One linear mixed model per gene, for all genes at once.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    fit_commands.fit,
    fit_commands.summarize,
    fit_commands.merge,
    fit_commands.test,
    show_commands.plot,
    show_commands.report,
):
    app.command()(command)


@app.command()
def demo(
    output: fit_commands.Folder = Path("lmm_gpu_demo"),
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
    json: Json = False,
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
    console.answer(found)
    if not found["passed"]:
        raise typer.Exit(1)


app.command()(guide)


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
            code = app(given or ["--help"], prog_name="lmm-gpu", standalone_mode=False)
            if code == INTERRUPTED:
                console.note("error", "interrupted; what was there before is as it was", "error: ", "red")
            sys.exit(code)
        except UsageError as mistake:
            where = mistake.ctx.command_path if mistake.ctx else "lmm-gpu"
            console.refuse(f"{mistake.format_message().rstrip('.')}; see {where} --help")
        except OSError as trouble:
            console.refuse(f"{trouble.strerror}: {trouble.filename}" if trouble.strerror else str(trouble))
        except (ValueError, MemoryError) as mistake:
            console.refuse(str(mistake))
