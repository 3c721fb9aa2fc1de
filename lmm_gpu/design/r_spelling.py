"""R's spellings in formulas: some are replaced, the others are refused with what to write instead."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"""('[^']*'|"[^"]*"|`[^`]*`)""")
_R_FACTOR = re.compile(r"(?<![\w.])(?:as\.)?factor\s*\(")
_R_TRUTH = re.compile(r"(?<![\w.])(TRUE|FALSE)(?![\w.])")
_R_CALL = re.compile(r"(?<![\w.])(as\.\w+|[A-Za-z]\w*)\s*\(")
_R_ADVICE = {
    "as.character": "write C(x) for the levels of x",
    "as.integer": "numeric columns are numbers already; convert any other column of obs before",
    "as.numeric": "numeric columns are numbers already; convert any other column of obs before",
    "c": "write a list, as in C(x, levels=['a', 'b'])",
    "cut": "compute it as a column of obs first",
    "droplevels": "unused levels are dropped anyway: write the column alone",
    "ifelse": "compute it as a column of obs first",
    "interaction": "join the columns with ':'",
    "ns": "write cr(x, df=3) for a natural cubic spline, or bs(x, df=4) for a B-spline",
    "offset": "offsets are not available: subtract them from the values",
    "ordered": "write C(x, contr.poly) for polynomial contrasts",
    "rcs": "write cr(x, df=3) for a natural cubic spline",
    "relevel": "write C(x, contr.treatment(base='level')) for another reference level",
    "s": "write cr(x, df=3) or bs(x, df=4) for a spline",
}


def without_r_spelling(text: str) -> str:
    """Text with ``factor(x)`` as ``C(x)`` and ``TRUE`` as ``True``.

    Raises
    ------
    ValueError
        For R's other functions, with advice.

    Examples
    --------
    >>> without_r_spelling("as.factor(batch) + `factor(x)`")
    'C(batch) + `factor(x)`'
    """
    pieces = _QUOTED.split(text)  # quoted pieces stand at the odd places
    for place in range(0, len(pieces), 2):
        piece = _R_FACTOR.sub("C(", pieces[place])
        for call in _R_CALL.finditer(piece):
            if call[1] in _R_ADVICE or call[1].startswith("as."):
                advice = _R_ADVICE.get(call[1], "compute it as a column of obs first")
                raise ValueError(f"cannot use R's function {call[1]}() in a formula: {advice}")
        pieces[place] = _R_TRUTH.sub(lambda match: match[1].title(), piece)
    return "".join(pieces)
