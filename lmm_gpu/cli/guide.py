"""The guide: pages of Markdown beside this module, and the command that shows them."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
except ImportError:  # the console script exists without the extra too
    sys.exit('the command line needs typer and rich: pip install "lmm-gpu[cli]"')
FOLDER = Path(__file__).parents[1] / "guide"
#: In the order in which they are read.
TOPICS = ("start", "lme4", "flashmm", "scanpy", "df", "statuses", "memory", "sites", "gpu", "distributed")
#: Columns of a page on a wide terminal: longer lines are hard to read, and code has no more.
_WIDTH = 120


def guide(
    topic: Annotated[str | None, typer.Argument(help=f"One of {', '.join(TOPICS)}; without it, what they are.")] = None,
) -> None:
    """Show a page of the guide, as Markdown when it is piped into a file or a program.

    Example: lmm-gpu guide df
    """
    console = Console()
    if topic is None:
        console.print(_contents())
    elif console.is_terminal:
        console.print(Markdown(page(topic)), width=min(console.width, _WIDTH))
    else:
        print(page(topic), end="")


def page(topic: str) -> str:
    """Text of a page, in Markdown.

    Raises
    ------
    ValueError
        For an unknown topic, with the closest.

    Examples
    --------
    >>> page("df").splitlines()[0]
    '# Choosing degrees of freedom'
    """
    if topic not in TOPICS:
        close = difflib.get_close_matches(topic.lower(), TOPICS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the topics are {', '.join(TOPICS)}"
        raise ValueError(f"the guide has no page {topic!r}: {hint}")
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _contents() -> Table:
    """One line per topic: the title of its page."""
    table = Table("topic", "page", title="lmm-gpu guide TOPIC", title_justify="left")
    for topic in TOPICS:
        table.add_row(topic, page(topic).splitlines()[0].removeprefix("# "))
    return table
