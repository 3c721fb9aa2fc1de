"""The guide: pages of Markdown in the folder `guide` of the package, and the command that shows them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .output import Output

FOLDER = Path(__file__).parents[1] / "guide"
#: In reading order; "api" is generated from the docstrings.
TOPICS = (
    *("start", "worked", "bulk", "models", "dream", "lme4", "flashmm", "scanpy", "df", "permutation", "calibration"),
    *("statuses", "troubleshooting", "memory", "sites", "gpu", "distributed", "math", "api", "news"),
)
#: Widest layout of a page: longer lines are hard to read.
_WIDTH = 120


def guide(
    context: typer.Context,
    topic: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(TOPICS)}; without it, the list of pages.")
    ] = None,
) -> None:
    """Show a page of the guide; piped into a file or a program, as Markdown.

    Example: lmm-gpu guide df
    """
    shell: Output = context.obj
    if topic is None:
        shell.out.print(_contents())
        return
    text, console = page(topic), shell.out
    if console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(text), width=min(console.width, _WIDTH))
    else:
        Console.out(console, text, end="", highlight=False)


def page(topic: str) -> str:
    """Return the text of a page, in Markdown.

    Raises
    ------
    ValueError
        For an unknown topic, with the closest ones.

    Examples
    --------
    >>> page("df").splitlines()[0]
    '# Choosing degrees of freedom'
    """
    if topic not in TOPICS:
        close = difflib.get_close_matches(topic.lower(), TOPICS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the topics are {', '.join(TOPICS)}"
        raise ValueError(f"the guide has no page {topic!r}: {hint}")
    if topic == "api":
        from .api_reference import api_reference

        return api_reference()
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _contents() -> Table:
    """Return one line per topic: the title of its page."""
    table = Table("topic", "page", title="lmm-gpu guide TOPIC", title_justify="left")
    for topic in TOPICS:
        table.add_row(topic, page(topic).splitlines()[0].removeprefix("# "))
    return table
