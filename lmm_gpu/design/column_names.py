"""Names of the columns of a design in the form of other programs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence


def r_names(names: Sequence[str]) -> list[str]:
    """Rename the columns of one design the way R's ``model.matrix`` does.

    Parameters
    ----------
    names
        All column names of one design, as formulaic writes them.

    Returns
    -------
    list of str
        ``(Intercept)`` for ``Intercept``, ``cls2:trtB`` for ``cls[T.2]:trt[T.B]``; names without brackets stay.

    Notes
    -----
    ``cls[T.cells]`` is the level "cells" where the first level was dropped and the level "T.cells" where all are there.
    It counts as dropped where every column of the same term has the mark.

    Examples
    --------
    >>> r_names(["Intercept", "log(libsize)", "cls[T.2]", "cls[T.2]:trt[T.B]"])
    ['(Intercept)', 'log(libsize)', 'cls2', 'cls2:trtB']
    >>> r_names(["cls[B.cells]", "cls[T.cells]"])
    ['clsB.cells', 'clsT.cells']
    """
    level = re.compile(r"\[([^\[\]]*)\](?=:|$)")
    rows: dict[str, list[list[str]]] = defaultdict(list)
    for name in names:
        rows[level.sub("[]", name)].append(level.findall(name))
    dropped = {
        term: [all(text.startswith("T.") for text in column) for column in zip(*levels, strict=True)]
        for term, levels in rows.items()
    }

    def renamed(name: str) -> str:
        marked = iter(dropped[level.sub("[]", name)])
        return level.sub(lambda match: match[1].removeprefix("T.") if next(marked) else match[1], name)

    return ["(Intercept)" if name == "Intercept" else renamed(name) for name in names]
