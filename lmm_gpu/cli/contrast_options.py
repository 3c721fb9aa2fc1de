"""Contrasts as the shell takes them: "a - b", or "name = a - b"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..design.contrasts import contrast_matrix
from .results_folder import RECORD
from .run_record import read_record

_ASSIGN = " = "


def contrasts_of(texts: Sequence[str] | None, names: Sequence[str]) -> pd.DataFrame | None:
    """Return the contrast matrix (p, c) over the fixed effects `names`; None for no texts.

    Raises
    ------
    ValueError
        For a text that cannot be parsed, an unknown fixed effect, or a name that is given twice.

    Examples
    --------
    >>> contrasts_of(["half = B - A"], ["A", "B"])
       half
    A  -1.0
    B   1.0
    """
    if not texts:
        return None
    pairs = [split_name(text, names) for text in texts]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError(f"got {len(pairs)} contrasts with {len(named)} names: give each its own name")
    try:
        return contrast_matrix(named, names)
    except ValueError as error:
        if any("=" in text and _ASSIGN not in text for text in texts):
            raise ValueError(f"{error}; a name is separated by ' = ', with spaces: 'name = a - b'") from None
        raise


def with_names_of_run(texts: Sequence[str] | None, fitted: Path, names: Sequence[str]) -> list[str] | None:
    """Replace each name of a contrast of the run by the contrast; `fitted` is the folder of the run, or its fit.h5."""
    path = (fitted if fitted.is_dir() else fitted.parent) / RECORD
    if not texts or not path.is_file():
        return None if texts is None else list(texts)
    try:
        contrasts = [text for text in read_record(path)["contrasts"] if isinstance(text, str)]
    except (ValueError, OSError):  # not a record of a run: the texts speak for themselves
        return list(texts)
    known = {split_name(text, names)[0]: text for text in contrasts}
    return [text if text in names else known.get(text.strip(), text) for text in texts]


def split_name(text: str, names: Sequence[str]) -> tuple[str, str]:
    """Split "name = expression"; without a name the expression is its own name.

    An " = " inside the name of a fixed effect, such as ``dose[T.level = 2]``, separates nothing.

    Examples
    --------
    >>> split_name("high = dose[T.level = 2]", ["dose[T.level = 2]"])
    ('high', 'dose[T.level = 2]')
    >>> split_name("dose[T.level = 2]", ["dose[T.level = 2]"])
    ('dose[T.level = 2]', 'dose[T.level = 2]')
    """
    masked = text
    for name in sorted(names, key=len, reverse=True):
        masked = masked.replace(name, "x" * len(name))
    at, depth = -1, 0
    for place, char in enumerate(masked):  # brackets hold a level, known or misspelt
        depth += (char == "[") - (char == "]")
        if depth == 0 and masked.startswith(_ASSIGN, place):
            at = place
            break
    if at < 0:
        return text, text
    return text[:at].strip(), text[at + len(_ASSIGN) :]
