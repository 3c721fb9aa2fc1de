"""Commands from cells to a fit: `fit`, and its steps `summarize` and `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as opt
from .options import given
from .output import Output, show_run


def _repeated(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options that are not on the command line from the run.json at `path`; the output is its folder."""
    if path is None:
        return None
    from .results_folder import RECORD
    from .run_record import read_record

    path = path / RECORD if path.is_dir() else path
    record = read_record(path)
    known = {one.name for one in context.command.params} - {"data", "output", "config", "json", "resume", "force"}
    unknown = sorted(set(record["options"]) - known)
    if unknown:
        raise ValueError(f"{path} has options that lmm-gpu fit does not know ({', '.join(unknown)}): remove them")
    context.default_map = {"data": record["data"], "output": str(path.parent), **record["options"]}
    return path


_Config = Annotated[
    Path | None,
    typer.Option(
        help="Repeat a run from its folder or run.json; options on the command line take precedence.",
        callback=_repeated,
        is_eager=True,
    ),
]


def fit(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help=f"File that `summarize` or `merge` wrote, or {opt.CELLS}.")],
    output: opt.Folder,
    formula: opt.OptionalFormula = None,
    obs: opt.Obs = None,
    features: opt.Features = None,
    layer: opt.Layer = None,
    use_raw: opt.UseRaw = None,
    feature_types: opt.FeatureTypes = None,
    transform: opt.Transform = None,
    is_counts: opt.IsCounts = None,
    size_factors: opt.SizeFactors = None,
    target: opt.Target = None,
    cells: opt.Cells = None,
    weights: opt.Weights = None,
    genes: opt.Genes = None,
    min_cells: opt.MinCells = None,
    min_mean: opt.MinMean = None,
    resume: opt.Resume = False,
    contrast: opt.Contrasts = None,
    df: opt.Df = "generalized",
    method: Annotated[str, typer.Option(help="REML or ML.")] = "REML",
    bounds: Annotated[str, typer.Option(help="Variance components: auto, nonnegative or none.")] = "auto",
    memory: opt.Memory = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    scheduler: opt.Scheduler = None,
    table: Annotated[str, typer.Option(help=f"Format of the tables: {' or '.join(opt.TABLE_FORMATS)}.")] = "csv.gz",
    config: _Config = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Fit one mixed model per gene; write a table of tests, a table of genes, and the fit for `lmm-gpu test`.

    Example: lmm-gpu fit cells.h5ad -f "~ condition + (1 | donor)" -c "condition[T.stim]" -o results

    Again: lmm-gpu fit --config results/run.json --df kenward-roger -o other
    """
    from .run import fit_to_folder
    from .run_record import check_data, read_record

    if config is not None:
        check_data(read_record(config), config, data)
    reading = {
        **given(obs=obs, features=features, layer=layer, use_raw=use_raw, feature_types=feature_types),
        **given(transform=transform, is_counts=is_counts, size_factors=size_factors, target=target),
        **given(cells=cells, weights=weights, genes=genes, min_cells=min_cells, min_mean=min_mean, threads=threads),
    }
    model: dict[str, Any] = {"method": method, "bounds": bounds}
    computing: dict[str, Any] = {"memory": memory, "device": device, "scheduler": scheduler}
    writing: dict[str, Any] = {"table_format": table, "resume": resume, "force": force}
    run = fit_to_folder(data, formula, output, contrast, df=df, reading=reading, **writing, **model, **computing)
    shell: Output = context.obj
    show_run(shell, run)
    shell.answer(run.record)


def summarize(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help=f"{opt.CELLS[0].upper()}{opt.CELLS[1:]}.")],
    formula: opt.Formula,
    output: opt.Sums,
    obs: opt.Obs = None,
    features: opt.Features = None,
    layer: opt.Layer = None,
    use_raw: opt.UseRaw = None,
    feature_types: opt.FeatureTypes = None,
    transform: opt.Transform = None,
    is_counts: opt.IsCounts = None,
    size_factors: opt.SizeFactors = None,
    target: opt.Target = None,
    cells: opt.Cells = None,
    weights: opt.Weights = None,
    genes: opt.Genes = None,
    min_cells: opt.MinCells = None,
    min_mean: opt.MinMean = None,
    resume: opt.Resume = False,
    memory: opt.Memory = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    scheduler: opt.Scheduler = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Accumulate the summary statistics of cells for `lmm-gpu merge` and `lmm-gpu fit`, which need no cells.

    Example: lmm-gpu summarize cells.h5ad -f "~ condition + (1 | donor)" -o site1.h5
    """
    from .file_tasks import summarize_to_file

    reading = given(
        obs=obs,
        features=features,
        layer=layer,
        use_raw=use_raw,
        feature_types=feature_types,
        transform=transform,
        is_counts=is_counts,
        size_factors=size_factors,
        target=target,
        cells=cells,
        weights=weights,
        genes=genes,
        min_cells=min_cells,
        min_mean=min_mean,
        threads=threads,
    )
    computing = {"memory": memory, "device": device, "scheduler": scheduler}
    record = summarize_to_file(data, formula, output, reading, computing, resume=resume, force=force)
    _show_sums(context.obj, record)


def merge(
    context: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(help="Files that `summarize` or `merge` wrote, of other cells and the same model.")
    ],
    output: opt.Sums,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Add the summary statistics of other cells; genes and random levels are aligned by name.

    Example: lmm-gpu merge site1.h5 site2.h5 -o all.h5
    """
    from .file_tasks import merge_files

    _show_sums(context.obj, merge_files(files, output, force=force))


def _show_sums(shell: Output, record: dict[str, Any]) -> None:
    effects = ", ".join(f"{name} ({width:,})" for name, width in record["random_effects"].items())
    size = f"{record['cells']:,} cells, {record['genes']:,} genes, {len(record['fixed_effects'])} fixed effects"
    shell.say(f"wrote {record['written'][0]}  ({size}, random effects: {effects})")
    shell.answer(record)
