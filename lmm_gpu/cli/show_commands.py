"""Commands that show a run: `plot` draws one plot of it, `report` writes a page about all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from .options import given
from .output import Output
from .plot_kinds import KINDS


def plot(
    context: typer.Context,
    folder: opt.Run,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Plot: .png, .svg or .pdf.")],
    contrast: Annotated[
        str | None, typer.Option("--contrast", "-c", help="Contrast to show, if the run has several.")
    ] = None,
    gene: Annotated[str | None, typer.Option(help="For `gene`: name of the gene.")] = None,
    by: Annotated[
        str | None,
        typer.Option(help="For `gene`: factor of the x axis (paired plot), or fixed effect for the colours."),
    ] = None,
    facet: Annotated[str | None, typer.Option(help="For `gene` with --by: factor with one panel per level.")] = None,
    component: Annotated[str | None, typer.Option(help="For `gene`: random effect with the groups.")] = None,
    labels: Annotated[int | None, typer.Option(help="For `volcano` and `ma`: number of genes to label.")] = None,
    fdr: Annotated[
        float | None, typer.Option(help="For `volcano` and `ma`: largest adjusted p-value called significant.")
    ] = None,
    min_change: Annotated[
        float | None, typer.Option(help="For `volcano` and `ma`: smallest effect called significant.")
    ] = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Draw one plot of a run.

    Example: lmm-gpu plot results volcano -c "condition[T.stim]" -o volcano.svg

    One gene, donor by donor: lmm-gpu plot results gene --gene ISG15 -o ISG15.png
    """
    from .run_plots import draw_to_file

    options = given(
        contrast=contrast,
        gene=gene,
        by=by,
        facet=facet,
        component=component,
        labels=labels,
        fdr=fdr,
        min_change=min_change,
    )
    record = draw_to_file(folder, kind, output, force=force, **options)
    shell: Output = context.obj
    shell.say(f"wrote {output}")
    shell.answer(record)


def report(
    context: typer.Context,
    folder: opt.Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page: .html, self-contained.")],
    contrast: Annotated[
        list[str] | None, typer.Option("--contrast", "-c", help="Show only these contrasts of the run; repeatable.")
    ] = None,
    fdr: Annotated[float, typer.Option(help="Largest adjusted p-value called significant.")] = 0.05,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Write a page about a run: model, design, plots and a table of genes, in one file for any browser.

    Example: lmm-gpu report results -o report.html
    """
    from .run_plots import report_to_file

    record = report_to_file(folder, output, contrast, fdr=fdr, force=force)
    shell: Output = context.obj
    shell.say(f"wrote {output}  ({record['bytes'] / 1e6:.1f} MB, {len(record['contrasts'])} contrasts)")
    shell.answer(record)
