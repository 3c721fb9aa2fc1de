"""Commands from cells to tests: `fit`, and `summarize`, `merge`, `test` for its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..inference.pvalues import ALTERNATIVES
from . import console
from .options import CELLS, CONTRAST, FORMULA, Df, Json, Resume, computing, reading, takes
from .run import fit_to_folder, merge_files, summarize_to_file, write_tests
from .run_record import RECORD, TABLE_FORMATS, check_data, read_record

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it does not exist.")]
Sums = Annotated[Path, typer.Option("--output", "-o", help="File for the statistics (HDF5), such as site.h5.")]


def _repeated(context: typer.Context, path: Path | None) -> Path | None:
    """Take what is not given on the command line from the run.json at `path`; its folder is written anew."""
    if path is None:
        return None
    path = path / RECORD if path.is_dir() else path
    record = read_record(path)
    known = {parameter.name for parameter in context.command.params} - {"data", "output", "config", "json", "resume"}
    unknown = sorted(set(record["options"]) - known)
    if unknown:
        raise ValueError(f"{path} has options that lmm-gpu fit does not know ({', '.join(unknown)}): remove them")
    context.default_map = {"data": record["data"], "output": str(path.parent), **record["options"]}
    return path


@takes(reading, computing)
def fit(
    data: Annotated[Path, typer.Argument(help=f"What `summarize` or `merge` wrote, or {CELLS}.")],
    output: Folder,
    formula: Annotated[str | None, FORMULA] = None,
    *,
    reading: dict[str, Any],
    resume: Resume = False,
    contrast: Annotated[list[str] | None, CONTRAST] = None,
    df: Df = "generalized",
    method: Annotated[str, typer.Option(help="REML or ML.")] = "REML",
    bounds: Annotated[str, typer.Option(help="auto, nonnegative or none.")] = "auto",
    computing: dict[str, Any],
    table: Annotated[str, typer.Option(help=f"Ending of the tables: {' or '.join(TABLE_FORMATS)}.")] = "csv.gz",
    config: Annotated[
        Path | None,
        typer.Option(
            help="Repeat a run from its folder or run.json; what else is given takes the place of what it says.",
            callback=_repeated,
            is_eager=True,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Fit one mixed model per gene; write a table of tests, a summary, and the fit for `lmm-gpu test`.

    Example: lmm-gpu fit cells.h5ad -f "~ condition + (1 | donor)" -c "condition[T.stim]" -o results

    Again: lmm-gpu fit --config results/run.json --df kenward-roger -o other
    """
    if config is not None:
        check_data(read_record(config), config, data)
    checkpoint = {"checkpoint": output / "checkpoint.h5"} if resume else {}
    options = {"method": method, "bounds": bounds, **computing}
    run = fit_to_folder(
        data, formula, output, contrast, df=df, table_format=table, reading=reading | checkpoint, **options
    )
    console.show(run)
    console.answer(run.record)


@takes(reading, computing)
def summarize(
    data: Annotated[Path, typer.Argument(help=f"{CELLS[0].upper()}{CELLS[1:]}.")],
    formula: Annotated[str, FORMULA],
    output: Sums,
    *,
    reading: dict[str, Any],
    resume: Resume = False,
    computing: dict[str, Any],
    json: Json = False,
) -> None:
    """Sum up cells for `lmm-gpu merge` and `lmm-gpu fit`, which need to know no more of them.

    Example: lmm-gpu summarize cells.h5ad -f "~ condition + (1 | donor)" -o site1.h5
    """
    checkpoint = {"checkpoint": output.with_name(f"{output.stem}.checkpoint.h5")} if resume else {}
    _told(summarize_to_file(data, formula, output, **reading, **checkpoint, **computing))


def merge(
    files: Annotated[list[Path], typer.Argument(help="What `summarize` or `merge` wrote: other cells, one model.")],
    output: Sums,
    json: Json = False,
) -> None:
    """Add the statistics of other cells: genes and random levels are aligned by name.

    Example: lmm-gpu merge site1.h5 site2.h5 -o all.h5
    """
    _told(merge_files(files, output))


def test(
    fitted: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote, or the fit.h5 in it.")],
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


def _told(record: dict[str, Any]) -> None:
    """Say what statistics were written."""
    effects = ", ".join(f"{name} ({width:,})" for name, width in record["random_effects"].items())
    what = f"{record['cells']:,} cells, {record['genes']:,} genes, {len(record['fixed_effects'])} fixed effects"
    console.say(f"wrote {record['written'][0]}  ({what}, random effects: {effects})")
    console.answer(record)
