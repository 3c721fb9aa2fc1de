"""Commands that show a run: `plot` draws one picture of it, `report` writes a page on all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .options import Json, Run
from .run_plots import KINDS, draw_to_file, report_to_file

Fdr = Annotated[float, typer.Option(help="Significant is an adjusted p-value of at most this.")]


def plot(
    folder: Run,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture: .png, .svg or .pdf.")],
    contrast: Annotated[str | None, typer.Option("--contrast", "-c", help="Which one, if there are several.")] = None,
    gene: Annotated[str | None, typer.Option(help="For `gene`: which one.")] = None,
    by: Annotated[str | None, typer.Option(help="For `gene`: fixed effect that colours its groups.")] = None,
    component: Annotated[str | None, typer.Option(help="For `gene`: random effect with the groups.")] = None,
    labels: Annotated[int | None, typer.Option(help="For `volcano` and `ma`: names of so many genes.")] = None,
    fdr: Annotated[float | None, typer.Option(help="For `volcano` and `ma`: what is significant.")] = None,
    min_change: Annotated[
        float | None, typer.Option(help="For `volcano` and `ma`: smallest effect that counts.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw one picture of a run.

    Example: lmm-gpu plot results volcano -c "condition[T.stim]" -o volcano.svg

    One gene, donor by donor: lmm-gpu plot results gene --gene ISG15 -o ISG15.png
    """
    given: dict[str, Any] = {"contrast": contrast, "gene": gene, "by": by, "component": component}
    given |= {"labels": labels, "fdr": fdr, "min_change": min_change}
    record = draw_to_file(folder, kind, output, **{name: value for name, value in given.items() if value is not None})
    console.say(f"wrote {output}")
    console.answer(record)


def report(
    folder: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page: .html, complete in one file.")],
    contrast: Annotated[
        list[str] | None, typer.Option("--contrast", "-c", help="Show these contrasts of the run only; repeatable.")
    ] = None,
    fdr: Fdr = 0.05,
    json: Json = False,
) -> None:
    """Write a page on a run: model, design, pictures and a table of genes, in one file for any browser.

    Example: lmm-gpu report results -o report.html
    """
    record = report_to_file(folder, output, contrast, fdr=fdr)
    console.say(f"wrote {output}  ({record['bytes'] / 1e6:.1f} MB, {len(record['contrasts'])} contrasts)")
    console.answer(record)
