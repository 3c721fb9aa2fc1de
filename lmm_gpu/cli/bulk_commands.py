"""Commands for samples instead of cells: `pseudobulk` sums counts, `dream` tests them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from .options import given
from .output import Output

Samples = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Counts of samples: .h5ad, as `pseudobulk` writes; or .csv or .tsv with --obs."
    ),
]
ByEach = Annotated[
    str | None, typer.Option(help="Column of obs, such as cell_type: each of its values is fitted alone.")
]


def pseudobulk(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help=f"Raw counts: {opt.CELLS}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the samples: .h5ad.")],
    by: Annotated[
        str, typer.Option(help="Columns of obs, separated by commas, whose combinations are the samples.")
    ] = "donor,condition,cell_type",
    obs: opt.Obs = None,
    features: opt.Features = None,
    layer: opt.Layer = None,
    min_cells: Annotated[int, typer.Option(help="Leave out samples of fewer cells.")] = 10,
    memory: opt.Memory = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Sum the counts of the cells of each donor, condition and cell type.

    Example: lmm-gpu pseudobulk cells.h5ad --by donor,condition,cell_type -o samples.h5ad
    """
    from .bulk_tasks import pseudobulk_to_file

    reading = given(obs=obs, features=features, layer=layer, memory=memory)
    record = pseudobulk_to_file(data, by.split(","), output, min_cells=min_cells, force=force, **reading)
    shell: Output = context.obj
    shell.say(f"wrote {output}  ({record['samples']:,} samples, {record['genes']:,} genes)")
    shell.answer(record)


def dream(
    context: typer.Context,
    data: Samples,
    formula: opt.Formula,
    output: opt.Table,
    obs: Annotated[
        Path | None, typer.Option(help="Table of the samples (.csv, .tsv), for counts as .csv or .tsv.")
    ] = None,
    by: ByEach = None,
    contrast: opt.Contrasts = None,
    layer: opt.Layer = None,
    min_count: Annotated[int, typer.Option(help="Keep genes with at least this many counts in enough samples.")] = 5,
    min_share: Annotated[float, typer.Option(help="Share of the samples that is enough.")] = 0.5,
    df: Annotated[str, typer.Option(help="Degrees of freedom: lmertest or kenward-roger.")] = "lmertest",
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Test samples as dream does: voom weights, weighted mixed models and empirical Bayes.

    Example: lmm-gpu dream samples.h5ad -f "~ condition + (1 | donor)" --by cell_type -o table.csv

    Bulk samples: lmm-gpu dream counts.csv --obs samples.csv -f "~ day + (1 | subject)" -c "day[T.day7]" -o table.csv
    """
    from .bulk_tasks import dream_to_file

    options = {"by": by, "layer": layer, "min_count": min_count, "min_share": min_share, "df": df}
    record = dream_to_file(data, formula, output, contrast, obs=obs, force=force, **options)
    shell: Output = context.obj
    shell.say(f"wrote {output}  ({record['tests']:,} tests: gene x contrast)")
    shell.answer(record)
