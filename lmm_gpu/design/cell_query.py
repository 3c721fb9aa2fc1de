"""Which cells to take, said in words: `n_counts > 500 and condition == 'stim'`. Read by hand: nothing is evaluated.

query      = all ("or" all)*                     or: |
all        = one ("and" one)*                    and: &
one        = "not" one | "(" query ")" | column | column operator value | column ["not"] "in" [value, ...]
operator   = == | != | < | <= | > | >=
column     = a name, or anything between backquotes
value      = a number, a text in quotes, True or False
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pandas as pd

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<text>'(?:[^'\\]|\\['\\])*'|"(?:[^"\\]|\\["\\])*")
    | `(?P<quoted>[^`]+)`
    | (?P<word>[^\W\d]\w*(?:\.\w+)*)
    | (?P<sign><=|>=|==|!=|[<>()\[\],&|])
    )""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = {"and": "and", "or": "or", "not": "not", "in": "in", "&": "and", "|": "or"}


def matching_cells(query: str, obs: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Find the cells that meet a query.

    Parameters
    ----------
    query
        Comparisons of columns of `obs` with values, joined by and, or, not and parentheses.
    obs
        One row per cell, n rows.

    Returns
    -------
    mask : array (n,) of bool
    unknown : int
        Cells of which it is not known, because of missing values: they do not match.

    Raises
    ------
    ValueError
        If the query cannot be read, names a column that does not exist, or compares numbers with texts.

    Examples
    --------
    >>> obs = pd.DataFrame({"n_counts": [400, 900, 800], "condition": ["stim", "stim", "ctrl"]})
    >>> matching_cells("n_counts > 500 and condition == 'stim'", obs)[0].tolist()
    [False, True, False]
    """
    parser = _Parser(query, obs)
    found = parser.any_of()
    if parser.kind != "end":
        parser.refuse("wanted and, or, or the end")
    return found.fillna(False).to_numpy(dtype=bool), int(found.isna().sum())


class _Parser:
    """Recursive descent; conditions are nullable booleans, so that `not` of unknown stays unknown."""

    def __init__(self, query: str, obs: pd.DataFrame):
        if not isinstance(query, str):
            raise ValueError(f"got cells={query!r}; wanted text such as \"n_counts > 500 and condition == 'stim'\"")
        self.query, self.obs, self.at, self.end = query, obs, 0, 0
        self.advance()

    def advance(self) -> Any:
        """Go to the next token, and give the value of the one before."""
        last = getattr(self, "value", None)
        self.at = self.end
        if not self.query[self.at :].strip():
            self.kind, self.value = "end", "the end"
            return last
        match = _TOKEN.match(self.query, self.at)
        if match is None:
            self.kind, self.value = "unknown", self.query[self.at :].strip()
            self.refuse("wanted a column, a value, or an operator such as == (texts in quotes, names in backquotes)")
        self.kind, self.value, self.end = str(match.lastgroup), match[str(match.lastgroup)], match.end()
        if self.value in _WORDS and self.kind in ("word", "sign"):
            self.kind, self.value = "sign", _WORDS[self.value]
        return last

    def refuse(self, wanted: str) -> NoReturn:
        """Say where the query goes wrong."""
        raise ValueError(f"cannot read cells={self.query!r} at {self.value!r}: {wanted}")

    def took(self, sign: str) -> bool:
        """Go past a sign if it is the next one."""
        if self.kind == "sign" and self.value == sign:
            self.advance()
            return True
        return False

    def expect(self, sign: str) -> None:
        if not self.took(sign):
            self.refuse(f"wanted {sign}")

    def any_of(self) -> pd.Series:
        found = self.all_of()
        while self.took("or"):
            found = found | self.all_of()
        return found

    def all_of(self) -> pd.Series:
        found = self.one()
        while self.took("and"):
            found = found & self.one()
        return found

    def one(self) -> pd.Series:
        if self.took("not"):
            return ~self.one()
        if self.took("("):
            found = self.any_of()
            self.expect(")")
            return found
        if self.kind not in ("word", "quoted"):
            self.refuse("wanted the name of a column of obs")
        return self.comparison(self.advance())

    def comparison(self, name: str) -> pd.Series:
        column = self.column(name)
        if self.kind == "sign" and self.value in _OPERATORS:
            sign = self.advance()
            return self.known(column, _compare(sign, column, self.literal(), self.query))
        negated = self.took("not")
        if self.took("in"):
            found = self.known(column, np.zeros(len(column), dtype=bool))
            for value in self.literals():
                found = found | _compare("==", column, value, self.query)
            return ~found if negated else found
        if negated or not _is_bool(column):
            self.refuse(f"wanted an operator such as == after the column {name!r}")
        return self.known(column, column == True)  # noqa: E712

    def column(self, name: str) -> pd.Series:
        if name not in self.obs:
            near = difflib.get_close_matches(name, map(str, self.obs.columns), n=3) or map(str, self.obs.columns[:10])
            raise ValueError(f"cells={self.query!r}: obs has no column {name!r}; it has {', '.join(near)}")
        return self.obs[name].reset_index(drop=True)

    def known(self, column: pd.Series, found: Any) -> pd.Series:
        return pd.Series(np.asarray(found, dtype=bool)).astype("boolean").mask(column.isna().to_numpy())

    def literal(self) -> Any:
        if self.kind == "number":
            return float(self.advance())
        if self.kind == "text":
            return re.sub(r"\\(.)", r"\1", self.advance()[1:-1])
        if self.kind == "word" and self.value in ("True", "False"):
            return self.advance() == "True"
        self.refuse("wanted a number, a text in quotes, True or False")

    def literals(self) -> list[Any]:
        self.expect("[")
        values = [self.literal()]
        while self.took(","):
            values.append(self.literal())
        self.expect("]")
        return values


def _compare(sign: str, column: pd.Series, value: Any, query: str) -> np.ndarray:
    """Compare where both are of one kind: numbers, texts or truths."""
    kind = "True or False" if _is_bool(column) else "numbers" if pd.api.types.is_numeric_dtype(column) else "texts"
    if isinstance(column.dtype, pd.CategoricalDtype):
        numeric = pd.api.types.is_numeric_dtype(column.cat.categories)
        kind = "numbers" if numeric and not _is_bool(column) else kind
        column = column.astype(column.cat.categories.dtype if not column.isna().any() or not numeric else float)
    given = {bool: "True or False", float: "numbers", str: "texts"}[type(value)]
    if given != kind:
        raise ValueError(f"cells={query!r}: column {column.name!r} holds {kind}, and is compared with {value!r}")
    if sign not in ("==", "!=") and kind != "numbers":
        raise ValueError(f"cells={query!r}: column {column.name!r} holds {kind}, which {sign} does not compare")
    if kind == "texts":
        column = column.astype(str)
    return np.asarray(_OPERATORS[sign](column, value).fillna(False), dtype=bool)  # (n,)


def _is_bool(column: pd.Series) -> bool:
    dtype = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    if dtype == np.dtype(object):
        return set(column.dropna().unique()) <= {True, False}
    return bool(pd.api.types.is_bool_dtype(dtype))
