"""Plots and the report of a folder of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import pl
from ..reporting.canvas import check_plot_path
from ..reporting.report_page import report
from ..reporting.report_parts import shown_contrasts
from .output_files import check_output
from .plot_kinds import KINDS
from .results_folder import files_of_run
from .run_record import command_of, load_run


def draw_to_file(folder: Path, kind: str, path: Path, *, force: bool = False, **options: Any) -> dict[str, Any]:
    """Draw one plot of a run into a file, and return a description of it.

    Parameters
    ----------
    folder : Path
        That `lmm-gpu fit` wrote.
    kind : str
        One of `KINDS`.
    path : Path
        .png, .svg or .pdf.
    force : bool
        Replace a file that lmm-gpu did not write.
    **options
        As the function of `lmm_gpu.pl` takes them.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no plot called {kind!r}; there are {', '.join(KINDS)}")
    surplus = [f"--{name.replace('_', '-')}" for name in options if name not in KINDS[kind]]
    if surplus:
        raise ValueError(f"{', '.join(surplus)} is not for {kind}, which takes {_listed(kind)}: leave it out")
    if kind == "gene" and "gene" not in options:
        raise ValueError("name the gene: lmm-gpu plot RUN gene --gene NAME")
    check_plot_path(path)
    check_output(path, [folder, *files_of_run(folder)], force=force)
    fit, table, _ = load_run(folder)
    draw = getattr(pl, kind.replace("-", "_"))
    of_tests = "contrast" in KINDS[kind]
    ax = draw(table if of_tests else fit, *([options.pop("gene")] if kind == "gene" else []), **options)
    pl.save(ax, path)
    return {"plot": kind, "written": [str(path)]}


def report_to_file(
    folder: Path, path: Path, contrasts: Sequence[str] | None, *, fdr: float, force: bool = False
) -> dict[str, Any]:
    """Write the report of a run, and return a description of it.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"cannot write a report to {path}: expected a name that ends in .html")
    check_output(path, [folder, *files_of_run(folder)], force=force)
    fit, table, record = load_run(folder)
    known = list(dict.fromkeys(table["contrast"]))
    unknown = [name for name in contrasts or () if name not in known]
    if unknown:
        raise ValueError(f"the run has no contrast {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    if contrasts:
        table = table[table["contrast"].isin(contrasts)]
    report(fit, table, path, df=record["df"], fdr=fdr, record=record, command=command_of(record))
    return {"contrasts": list(shown_contrasts(table)), "bytes": path.stat().st_size, "written": [str(path)]}


def _listed(kind: str) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in KINDS[kind]) or "no options"
