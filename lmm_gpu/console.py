"""What the command line says: to people, or as JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:  # the console script exists without the extra too
    sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')

from .run import Run

out = Console()
err = Console(stderr=True)
#: Whether a program reads along: set by `speak_json`.
_mode = {"json": False}


def speak_json(wanted: bool) -> None:
    """Say everything as JSON from here on, or nothing."""
    _mode["json"] = wanted


def say(text: str) -> None:
    """Print a line for people."""
    if not _mode["json"]:
        out.print(text, highlight=False, markup=False, soft_wrap=True)


def answer(record: Mapping[str, Any]) -> None:
    """Print the result of a command for programs: one line of standard output."""
    if _mode["json"]:
        print(json.dumps(record))


def note(level: str, text: str, prefix: str = "", style: str | None = None) -> None:
    """Print a line on standard error."""
    if _mode["json"]:
        print(json.dumps({"level": level, "message": text}), file=sys.stderr)
    else:
        err.print(prefix + text, style=style, highlight=False, markup=False, soft_wrap=True)


def refuse(sentence: str) -> NoReturn:
    """End with exit code 2 and one sentence."""
    note("error", " ".join(sentence.split()), "error: ", "red")
    sys.exit(2)


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as one line: for `warnings.showwarning`."""
    note("warning", str(message), "warning: ")


class Notes(logging.Handler):
    """Log lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one of them."""
        note(record.levelname.lower(), record.getMessage())


def show(run: Run) -> None:
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
            str(row.variable), str(row.contrast), *numbers, power(row.log10_p_value), f"{row.adj_p_value:.2g}"
        )
    if not _mode["json"]:
        out.print(statuses)
        out.print(strongest)
    for path, what in run.written.items():
        say(f"wrote {path}  ({what})")
    say(f"read and fitted in {run.seconds:.1f} s")


def power(log10: float) -> str:
    """Write a p-value that may be far below the smallest float."""
    return f"1e{log10:.0f}" if log10 < -300 else f"{10**log10:.2g}"
