"""What the command line says: to people, or as JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .run import Run

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text
except ImportError:  # the console script exists without the extra too
    sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')
#: How tables look.
_STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False}
#: Columns of numbers, by the width of the terminal from which there is room for them beside the names.
_COLUMNS = {0: ("log_fc", "p"), 60: ("log_fc", "df", "p", "FDR"), 100: ("log_fc", "se", "t", "df", "p", "FDR")}
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
    size = f"{run.fit.summary.m:,} genes, {run.fit.summary.n:,} cells"
    statuses = Table("status", Column("genes", justify="right"), title=size, min_width=len(size), **_STYLE)
    for word, count in run.fit.status.value_counts().items():
        statuses.add_row(str(word), f"{count:,}")
    shown = _COLUMNS[max(width for width in _COLUMNS if width <= out.width)]
    names = (Column(name, overflow="fold", min_width=8) for name in ("gene", "contrast"))
    columns = (Column(name, justify="right", no_wrap=True) for name in shown)
    strongest = Table(*names, *columns, title="the ten strongest", **_STYLE)
    for row in run.strongest(10).itertuples():
        labels = [Text(str(row.variable)), Text(str(row.contrast))]  # brackets in them are no markup
        numbers = {"log_fc": f"{row.log_fc:.3g}", "se": f"{row.se:.2g}", "t": f"{row.statistic:.2f}"}
        numbers |= {"df": f"{row.df:.1f}", "p": power(row.log10_p_value)}
        numbers |= {"FDR": "<1e-308" if row.adj_p_value == 0 else f"{row.adj_p_value:.2g}"}
        strongest.add_row(*labels, *(numbers[name] for name in shown))
    if not _mode["json"]:
        out.print(statuses)
        out.print(strongest)
    for path, what in run.written.items():
        say(f"wrote {path}  ({what})")
    say(f"read and fitted in {run.seconds:.1f} s")


def power(log10: float) -> str:
    """Write a p-value that may be far below the smallest float."""
    return f"1e{log10:.0f}" if log10 < -300 else f"{10**log10:.2g}"


def show_check(one: Mapping[str, Any]) -> None:
    """Print one check of a device."""
    number = "" if one["deviation"] is None else f"{one['deviation']:.1e}"
    say(f"{one['status']:8s} {one['name']:32s} {number:>8s} {one['seconds']:7.1f} s  {one['reason']}".rstrip())


def show_rates(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what a device was timed with."""
    if _mode["json"]:
        return
    table = Table("", "ms", "GB/s", "GFLOP/s", "of its own rate", title="rates", title_justify="left")
    for row in rows:
        rates = ["" if row[name] is None else f"{row[name]:.3g}" for name in ("gb_per_s", "gflop_per_s")]
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        table.add_row(f"{row['what']}: {row['size']}", f"{1e3 * row['seconds']:.2f}", *rates, share)
    out.print(table)


def show_info(found: Mapping[str, Any]) -> None:
    """Print versions, memory and devices."""
    if _mode["json"]:
        return
    table, cuda = Table("", "", show_header=False, title="lmm-gpu info", title_justify="left"), found["cuda"]
    for name, version in found["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("platform", found["platform"])
    table.add_row("processors", str(found["processors"]))
    table.add_row("free memory", _gigabytes(found["free_memory"]))
    for one in found["blas"]:
        table.add_row("BLAS", f"{one['library']} {one['version']}, {one['threads']} threads")
    table.add_row("CUDA", f"driver {cuda['driver'] or 'none'}, runtime {cuda['runtime'] or 'none'}")
    for one in cuda["devices"]:
        memory = f"{_gigabytes(one['free_bytes'])} of {_gigabytes(one['total_bytes'])} free"
        table.add_row(f"cuda:{one['number']}", f"{one['name']}, compute {one['compute_capability']}, {memory}")
    out.print(table)
    say(f"a fit takes {found['device']} ({found['why_not']})")


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"
