"""Commands that make a table of a saved fit: `test`, `anova`, `variance-test`, `ranef`, `partition`, `permute`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as opt
from .output import Output

Component = Annotated[str | None, typer.Option(help="Name of one random effect; by default all of them.")]


def test(
    context: typer.Context,
    fitted: opt.Fitted,
    output: opt.Table,
    contrast: opt.Contrasts = None,
    df: opt.Df = "generalized",
    alternative: Annotated[str, typer.Option(help=f"{', '.join(opt.ALTERNATIVES)}.")] = "two-sided",
    level: Annotated[float, typer.Option(help="Coverage of the confidence intervals.")] = 0.95,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Test contrasts of a fit without its cells; by default every coefficient.

    Example: lmm-gpu test results -c "stim vs ctrl = condition[T.stim]" --df residual -o stim.csv
    """
    from .file_tasks import write_tests

    record = write_tests(fitted, contrast, output, df=df, alternative=alternative, level=level, force=force)
    _show(context.obj, record, f"{record['tests']:,} tests: gene x contrast")


def anova(
    context: typer.Context,
    fitted: opt.Fitted,
    output: opt.Table,
    df: opt.Df = "generalized",
    type: Annotated[str, typer.Option(help="Type of the tests: 1, 2 or 3 (I, II, III), as lmerTest's.")] = "3",
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Test every term of the formula with one F test per gene.

    Example: lmm-gpu anova results -o terms.csv
    """
    from .file_tasks import write_table_of_fit

    table = write_table_of_fit(fitted, output, lambda fit: fit.anova(df, type), force=force)
    record = {
        "tests": len(table),
        "terms": list(dict.fromkeys(table["contrast"])),
        "df": df,
        "type": type,
        "written": [str(output)],
    }
    _show(context.obj, record, f"{len(table):,} F tests: gene x term")


def variance_test(
    context: typer.Context,
    fitted: opt.Fitted,
    output: opt.Table,
    component: Component = None,
    method: Annotated[
        str | None, typer.Option(help="rlrt (exact; one random effect, REML), lrt or wald; by default rlrt or lrt.")
    ] = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Test per gene whether the variance of a random effect is zero.

    Example: lmm-gpu variance-test results --component donor -o donors.csv
    """
    from .file_tasks import write_table_of_fit

    table = write_table_of_fit(fitted, output, lambda fit: fit.variance_test(component, method), force=force)
    components = list(dict.fromkeys(table["component"]))
    record = {"tests": len(table), "components": components, "written": [str(output)]}
    _show(context.obj, record, f"{len(table):,} tests: gene x random effect")


def ranef(
    context: typer.Context,
    fitted: opt.Fitted,
    output: opt.Table,
    component: Component = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Predict the random effects (BLUPs) of every gene, with conditional standard deviations.

    Example: lmm-gpu ranef results --component donor -o donors.parquet
    """
    from .file_tasks import write_table_of_fit

    table = write_table_of_fit(fitted, output, lambda fit: fit.ranef(component), force=force)
    record = {"rows": len(table), "components": list(dict.fromkeys(table["component"])), "written": [str(output)]}
    _show(context.obj, record, f"{len(table):,} predictions: gene x level")


def partition(
    context: typer.Context,
    fitted: opt.Fitted,
    output: opt.Table,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Partition the variance of every gene into fractions of the terms and the residual.

    Example: lmm-gpu partition results -o fractions.csv
    """
    from .file_tasks import partition_table, write_table_of_fit

    table = write_table_of_fit(fitted, output, partition_table, force=force)
    names = [str(name) for name in table.columns]
    record = {"genes": len(table), "fractions": names, "written": [str(output)]}
    _show(context.obj, record, f"{len(table):,} genes x {', '.join(names)}")


def permute(
    context: typer.Context,
    fitted: opt.Fitted,
    output: opt.Table,
    contrast: Annotated[str, typer.Option("--contrast", "-c", help="Contrast between donors, 'a - b'.")],
    n: Annotated[int, typer.Option("-n", "--relabellings", help="Number of relabellings.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the relabellings.")] = 0,
    df: opt.Df = "generalized",
    strata: Annotated[
        str | None,
        typer.Option(
            help="Factors within whose levels donors are exchanged, 'sex,batch', or 'none'; by default all others "
            "that are constant within donors."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="QQ plot of the relabelled data: .png, .svg or .pdf.")] = None,
    force: opt.Force = False,
    json: opt.Json = False,
) -> None:
    """Relabel the donors, fit and test again without cells: calibration of the test, and permutation p-values.

    Example: lmm-gpu permute results -c "condition[T.stim]" -o permutation.csv --plot permutation.png
    """
    from .permute_task import write_permutation

    record, text = write_permutation(fitted, contrast, output, plot, n=n, seed=seed, df=df, strata=strata, force=force)
    _show(context.obj, record, f"{record['relabellings']:,} relabellings")
    context.obj.say(text)


def _show(shell: Output, record: dict[str, Any], content: str) -> None:
    shell.say(f"wrote {record['written'][0]}  ({content})")
    shell.answer(record)
