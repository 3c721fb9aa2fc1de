"""Errors of the library in the words of the shell: parameters become options.

The library speaks Python: "layer='counts' is not ..."; whoever typed a command knows ``--layer counts``. This module is
the only place that translates. It needs nothing of the errors but that they write parameters as ``name=value``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: A quoted text, which is the caller's own and stays; or a parameter name before "=", with its value if that is quoted,
#: a number or a constant.
_TOKEN = re.compile(
    r"""(?P<text>(?<!\w)(?:'[^'\n]*'|"[^"\n]*"))
      |(?<![\w.\-])(?P<name>[a-z]\w*)=(?P<value>'[^'\n]*'|"[^"\n]*"|[\w.+\-]*\w)?""",
    re.VERBOSE,
)
#: Parameters of the library that the shell calls otherwise.
_ALIASES = {"checkpoint": "--resume"}


def in_options(message: str, options: Mapping[str, tuple[str, ...]]) -> str:
    """Rewrite ``name=value`` in an error message as ``--name value``.

    Parameters
    ----------
    message : str
        The error as the library says it.
    options : mapping of str to tuple of str
        Flags of the command by parameter name; the flags of a switch are those for true and for false.

    Examples
    --------
    >>> in_options("df='kr' is not known", {"df": ("--df",)})
    "--df 'kr' is not known"
    >>> in_options("is_counts=True, but 'a=1' is negative", {"is_counts": ("--counts", "--no-counts")})
    "--counts, but 'a=1' is negative"
    """

    def replaced(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name in _ALIASES:
            return _ALIASES[name]
        if name is None or name not in options:
            return match[0]
        flags = options[name]
        if value in ("True", "False"):
            return flags[-1] if value == "False" else flags[0]
        spaced = value or message[match.end() : match.end() + 1] in tuple("[({")
        return f"{flags[0]} {value or ''}" if spaced else flags[0]

    return _TOKEN.sub(replaced, message)
