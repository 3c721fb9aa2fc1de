"""The command line `lmm-gpu`: its commands, and the exit code and message of everything that goes wrong."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from .._version import __version__
from . import bulk_commands, fit_commands, show_commands, table_commands
from . import options as opt
from .error_messages import in_options
from .guide import guide
from .output import Output, open_standard_streams, show_check, show_info, show_rates

#: Errors of typer for unknown commands, options and values.
UsageError: Any = typer.BadParameter.__base__
#: Exit codes: wrong input, an error of the program, Ctrl-C.
REFUSED, CRASHED, INTERRUPTED = 2, 1, 130
app = typer.Typer(
    help="One linear mixed model per gene, for all genes at once.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(fit_commands.fit)
app.command()(fit_commands.summarize)
app.command()(fit_commands.merge)
app.command()(table_commands.test)
app.command()(table_commands.anova)
app.command()(table_commands.variance_test)
app.command()(table_commands.ranef)
app.command()(table_commands.partition)
app.command()(table_commands.permute)
app.command()(bulk_commands.pseudobulk)
app.command()(bulk_commands.dream)
app.command()(show_commands.plot)
app.command()(show_commands.report)


@app.command()
def demo(
    context: typer.Context,
    output: opt.Folder = Path("lmm_gpu_demo"),
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 2024,
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 20_000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 2_000,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Simulate cells of 24 donors with known effects, write them as .h5ad, and fit them as `fit` does.

    Example: lmm-gpu demo -o lmm_gpu_demo
    """
    from .demo import demonstrate
    from .output import show_run

    shell: Output = context.obj
    run, truth = demonstrate(output, seed=seed, cells=cells, genes=genes, force=force, say=shell.say)
    show_run(shell, run)
    shell.say(truth.describe())
    seconds = f"{run.seconds + truth.seconds:.1f} s in total, of which {truth.seconds:.1f} s to simulate"
    shell.say(f"{seconds} and write the cells")
    shell.answer(run.record | {"truth": vars(truth)})


@app.command()
def info(context: typer.Context, json: opt.Json = False) -> None:
    """Show versions, memory and CUDA devices, and the device that a fit uses by default.

    Example: lmm-gpu info
    """
    from .system_info import system_info

    found = system_info()
    show_info(context.obj, found)
    context.obj.answer(found)


@app.command()
def selftest(
    context: typer.Context,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu or auto.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the results, as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer genes; the timings are then not meaningful.")] = False,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Compare the results of a device with those of the host, and time it. Exit code 1 if a check fails.

    Example: lmm-gpu selftest --device cuda -o selftest.json
    """
    from ..io.files import write_json
    from .output_files import check_output
    from .selftest.runner import selftest as check_device

    shell: Output = context.obj
    if output is not None:
        check_output(output, force=force)
    found = check_device(device, quick=quick, report=lambda one: show_check(shell, one))
    show_rates(shell, found["rates"])
    if output is not None:
        write_json(found, output)
        shell.say(f"wrote {output}")
    counts = ", ".join(f"{count} {status}" for status, count in found["counts"].items())
    shell.say(f"{found['device']}: {counts}, in {found['seconds']:.0f} s")
    shell.answer(found)
    if not found["passed"]:
        raise typer.Exit(1)


app.command()(guide)


def _version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.obj.say(f"lmm-gpu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    The exit code is 0; 1 for a failed self-test or an error of the program; 2, with one sentence, for wrong input; 130
    after Ctrl-C.
    """
    open_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    output = Output(json="--json" in words)  # before parsing: errors in the arguments are JSON, too
    with output.attached():
        code = _run(words, output)
    output.flush()
    sys.exit(code)


def _run(words: list[str], output: Output) -> int:
    try:
        code = int(app(words or ["--help"], prog_name="lmm-gpu", standalone_mode=False, obj=output) or 0)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code
    except KeyboardInterrupt:
        output.error("interrupted; every output file is either unchanged or complete")
        return INTERRUPTED
    except UsageError as mistake:
        command = mistake.ctx.command_path if mistake.ctx else "lmm-gpu"
        output.error(f"{mistake.format_message().rstrip('.')}; see {command} --help")
    except OSError as trouble:
        message = trouble.strerror or str(trouble) or type(trouble).__name__
        output.error(message if trouble.filename is None else f"{message}: {trouble.filename}")
    except (ValueError, MemoryError) as mistake:
        output.error(in_options(str(mistake) or "not enough memory", _flags(words)))
    except Exception as error:
        if os.environ.get("LMM_GPU_TRACEBACK"):
            traceback.print_exc()
        output.error(
            f"internal error, please report it ({type(error).__name__}: {error}); LMM_GPU_TRACEBACK=1 shows where"
        )
        return CRASHED
    return REFUSED


def _flags(words: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the flags of the command in `words` by parameter name: of a switch, those for true and for false."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((commands[word] for word in words if word in commands), None)
    if command is None:
        return {}
    options = (one for one in command.params if any(flag.startswith("--") for flag in one.opts))
    return {one.name: (one.opts[0], *one.secondary_opts) for one in options}
