"""Terminal output: text for people, or JSON for programs."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from .run import Run
#: Style of all tables.
_STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False}
#: Columns of numbers, by the smallest terminal width that has room for them beside the names.
_COLUMNS = {0: ("log_fc", "p"), 60: ("log_fc", "df", "p", "FDR"), 100: ("log_fc", "se", "t", "df", "p", "FDR")}
#: Tables are laid out for at least this many columns.
_LEAST_WIDTH = 44


class Output:
    """Standard output for results and standard error for notes, in one of two forms.

    Parameters
    ----------
    json : bool
        Write one line of JSON per result and per note instead of text.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.out, self.err = _Stream(), _Stream(stderr=True)

    def say(self, text: str) -> None:
        """Print a line for people."""
        if not self.json:
            self.out.write_line(clean(text))

    def render(self, table: RenderableType) -> None:
        """Print a table for people."""
        if not self.json:
            self.out.print(table)

    def answer(self, record: Mapping[str, Any]) -> None:
        """Print the result of a command for programs: one line of standard output."""
        if self.json:
            self.out.write_line(json.dumps(record))

    def note(self, level: str, text: str, prefix: str = "", style: str | None = None) -> None:
        """Print a line on standard error, above any progress bar; `level` is for programs, `prefix` for people."""
        with _bars_hidden():
            if self.json:
                self.err.write_line(json.dumps({"level": level, "message": text}))
            else:
                self.err.write_line(prefix + clean(text), style=style)

    def error(self, sentence: str) -> None:
        """Print an error as one line."""
        self.note("error", " ".join(sentence.split()), "error: ", "red")

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Print log lines and warnings of the library as notes inside this context, whatever filters are set.

        A warning is never an exception here, whatever PYTHONWARNINGS says: finished work would be lost.
        """
        logger, handler = logging.getLogger("lmm_gpu"), _NoteHandler(self)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for category in (UserWarning, RuntimeWarning):
                    warnings.simplefilter("default", category)
                warnings.showwarning = lambda message, *_, **__: self.note("warning", str(message), "warning: ")
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate

    def flush(self) -> None:
        """Deliver all that was printed; a reader that went away, as in `| head`, is no error."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                _discard(stream)


class _Stream(Console):
    """A console that has room for a table and goes quiet when its reader goes away."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr)
        self.width = max(self.width, _LEAST_WIDTH)

    def write_line(self, text: str, style: str | None = None) -> None:
        self.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(self.file)


class _NoteHandler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        self.output.note(record.levelname.lower(), record.getMessage())


def open_standard_streams() -> None:
    """Open closed standard streams on the null device, and let no character stop a line from being printed.

    A file that is opened later would otherwise get the number of the closed stream, and messages would go into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard(stream: Any) -> None:
    with suppress(OSError, ValueError):  # a stream without a descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def _bars_hidden() -> Iterator[None]:
    # a bar that is being drawn is cleared for the line and drawn again below it
    bars = sys.modules.get("tqdm.std")
    with nullcontext() if bars is None else bars.tqdm.external_write_mode(file=sys.stderr):
        yield


def clean(text: str) -> str:
    r"""Escape control characters, which a terminal would obey; line breaks stay.

    >>> print(clean("gene\x1b[31m"))
    gene\x1b[31m
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


# --- results --------------------------------------------------------------------------------------


def show_run(output: Output, run: Run) -> None:
    """Print the statuses, the strongest genes and the files of a run."""
    size = f"{run.fit.summary.m:,} genes, {run.fit.summary.n:,} cells"
    statuses = Table("status", Column("genes", justify="right"), title=size, min_width=len(size), **_STYLE)
    for word, count in run.fit.status.value_counts().items():
        statuses.add_row(str(word), f"{count:,}")
    output.render(statuses)
    output.render(_strongest(run, output.out.width))
    for path, content in run.written.items():
        output.say(f"wrote {path}  ({content})")
    output.say(f"read and fitted in {run.seconds:.1f} s")


def _strongest(run: Run, width: int) -> Table:
    shown = _COLUMNS[max((least for least in _COLUMNS if least <= width), default=0)]
    names = (Column(name, overflow="fold", min_width=8) for name in ("gene", "contrast"))
    numbers = (Column(name, justify="right", no_wrap=True) for name in shown)
    table = Table(*names, *numbers, title="the ten strongest", **_STYLE)
    for row in run.strongest(10).to_dict("records"):
        labels = [Text(clean(str(row[name]))) for name in ("variable", "contrast")]  # brackets are not markup
        cells = {"log_fc": f"{row['log_fc']:.3g}", "se": f"{row['se']:.2g}", "t": f"{row['statistic']:.2f}"}
        cells |= {"df": f"{row['df']:.1f}", "p": p_value_text(float(row["log10_p_value"]))}
        cells |= {"FDR": "<1e-308" if row["adj_p_value"] == 0 else f"{row['adj_p_value']:.2g}"}
        table.add_row(*labels, *(cells[name] for name in shown))
    return table


def p_value_text(log10: float) -> str:
    """Format a p-value that may be far below the smallest float.

    >>> p_value_text(-769.9), p_value_text(-2.0)
    ('1e-770', '0.01')
    """
    return f"1e{log10:.0f}" if log10 < -300 else f"{10**log10:.2g}"


def show_check(output: Output, one: Mapping[str, Any]) -> None:
    """Print one check of a device."""
    number = "" if one["deviation"] is None else f"{one['deviation']:.1e}"
    output.say(f"{one['status']:8s} {one['name']:32s} {number:>8s} {one['seconds']:7.1f} s  {one['reason']}".rstrip())


def show_rates(output: Output, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the timings of a device."""
    table = Table("", "ms", "GB/s", "GFLOP/s", "of its own rate", title="rates", title_justify="left")
    for row in rows:
        rates = ["" if row[name] is None else f"{row[name]:.3g}" for name in ("gb_per_s", "gflop_per_s")]
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        table.add_row(f"{row['what']}: {row['size']}", f"{1e3 * row['seconds']:.2f}", *rates, share)
    output.render(table)


def show_info(output: Output, found: Mapping[str, Any]) -> None:
    """Print versions, memory and devices."""
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
    output.render(table)
    output.say(f"a fit runs on {found['device']} ({found['why_not']})")


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"
