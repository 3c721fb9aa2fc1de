"""Lines of Markdown tables and captions, shared by `figures.py` and `calibration_tables.py`."""

from __future__ import annotations

import textwrap
from typing import Any

WIDTH = 120


def line(cells: list[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def filled(text: str) -> list[str]:
    """Text as lines."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def measured_on(results: dict[str, Any]) -> str:
    """Sentence on machine, date and commit of results."""
    about = results["machine"]
    where = f"{about['processor']}, {about['processors']} processors"
    return f"Measured on {where}, {about['date']}, commit {about['commit']}."
