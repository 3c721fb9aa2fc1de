"""Queries on obs that select cells, such as ``n_counts > 500 and condition == 'stim'``.

The text is parsed by Python's own parser, and only comparisons of columns with constants, ``in``, ``and``, ``or``,
``not`` and parentheses are accepted; nothing is evaluated as code. ``&`` and ``|`` mean ``and`` and ``or``, and names
that are not plain Python names stand in backquotes.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
import warnings
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: Limits of a query: characters, and parentheses within each other.
LONGEST_QUERY, DEEPEST_PARENTHESES = 10_000, 50
_EXAMPLE = "n_counts > 500 and condition == 'stim'"
_PIECES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]*)`|([&|])|\s+""")
_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


def matching_cells(query: str, obs: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Find the cells that meet a query.

    Parameters
    ----------
    query
        Comparisons of columns of `obs` with constants, combined by and, or, not and parentheses.
    obs
        One row per cell, n rows.

    Returns
    -------
    mask : array (n,) of bool
    unknown : int
        Number of cells for which the query is unknown because of missing values: they do not match.

    Raises
    ------
    ValueError
        If the query cannot be read, names a column that does not exist, or compares numbers with text.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"n_counts": [400, 900, 800], "condition": ["stim", "stim", "ctrl"]})
    >>> matching_cells("n_counts > 500 and condition == 'stim'", obs)[0].tolist()
    [False, True, False]
    """
    if not isinstance(query, str):
        raise ValueError(f'got cells={query!r}; expected text such as "{_EXAMPLE}"')
    found = _Query(query, obs).matches()
    return found.fillna(False).to_numpy(dtype=bool), int(found.isna().sum())


class _Query:
    """One parsed query; conditions are nullable booleans, so that `not` of unknown stays unknown."""

    def __init__(self, query: str, obs: pd.DataFrame):
        self.query, self.obs = query, obs
        self.quoted: dict[str, str] = {}  #: columns in backquotes, by the Python names that replace them

    def matches(self) -> pd.Series:
        """Evaluate the query (n,)."""
        if len(self.query) > LONGEST_QUERY or self._depth() > DEEPEST_PARENTHESES:
            self.refuse(
                f"expected at most {LONGEST_QUERY:,} characters and {DEEPEST_PARENTHESES} parentheses within each "
                "other; pass a boolean mask in its place"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(self._python(), mode="eval").body
            return self.condition(tree)
        except SyntaxError as error:
            self.refuse(f"{error.msg}; expected text such as {_EXAMPLE}, with names in backquotes")
        except (RecursionError, MemoryError):
            self.refuse("it is nested too deeply; pass a boolean mask in its place")

    def _depth(self) -> int:
        depth = deepest = 0
        for character in self.query:
            depth += (character in "([{") - (character in ")]}")
            deepest = max(deepest, depth)
        return deepest

    def _python(self) -> str:
        """Query as Python, with names in backquotes replaced and white space as blanks."""

        def replaced(match: re.Match[str]) -> str:
            if match[1]:
                return match[1]
            if match[2] is not None:
                name = f"_quoted_{len(self.quoted)}_"
                self.quoted[name] = match[2]
                return f" {name} "
            return {"&": " and ", "|": " or "}.get(match[3] or "", " ")

        if "\0" in self.query:
            self.refuse("it contains a null character")
        return _PIECES.sub(replaced, self.query).strip()

    def condition(self, node: ast.expr) -> pd.Series:
        if isinstance(node, ast.BoolOp):
            combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return reduce(combine, map(self.condition, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return reduce(operator.and_, [self.comparison(*pair) for pair in pairs])
        if isinstance(node, (ast.Name, ast.Attribute)):
            column = self.column(node)
            if not _is_bool(column):
                self.refuse(f"expected an operator such as == after the column {column.name!r}")
            return self.known(column, column == True)  # noqa: E712
        self.refuse(f"cannot use {self._text(node)}; expected the name of a column and a comparison")

    def comparison(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> pd.Series:
        if isinstance(sign, (ast.In, ast.NotIn)):
            found = self.member(self.column(left), right)
            return ~found if isinstance(sign, ast.NotIn) else found
        if isinstance(right, (ast.Name, ast.Attribute)) and not isinstance(left, (ast.Name, ast.Attribute)):
            mirrored = _MIRRORED.get(type(sign))
            left, right, sign = right, left, mirrored() if mirrored else sign
        if type(sign) not in _OPERATORS:
            self.refuse("expected one of the operators ==, !=, <, <=, >, >=, in")
        column = self.column(left)
        return self.known(column, self.compare(type(sign), column, self.constant(right)))

    def member(self, column: pd.Series, values: ast.expr) -> pd.Series:
        if not isinstance(values, (ast.List, ast.Tuple, ast.Set)) or not values.elts:
            self.refuse(f"expected a list of values such as ['a', 'b'] in place of {self._text(values)}")
        found = [self.compare(ast.Eq, column, self.constant(value)) for value in values.elts]
        return self.known(column, np.logical_or.reduce(found))

    def column(self, node: ast.expr) -> pd.Series:
        if not isinstance(node, (ast.Name, ast.Attribute)):
            self.refuse(f"cannot use {self._text(node)}; expected the name of a column of obs")
        name = self._name(node)
        if name not in self.obs:
            columns = [str(column) for column in self.obs.columns]
            near = difflib.get_close_matches(name, columns, n=3) or columns[:10]
            raise ValueError(f"cells={self._shown()}: obs has no column {name!r}; it has {', '.join(near)}")
        column = self.obs[name]
        if column.ndim != 1:
            self.refuse(f"obs has {column.shape[1]} columns named {name!r}: rename or drop all but one")
        return column.reset_index(drop=True)

    def _name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{self._name(node.value)}.{node.attr}"
        if not isinstance(node, ast.Name):
            self.refuse(f"cannot use {self._text(node)}; expected the name of a column of obs")
        return self.quoted.get(node.id, node.id)

    def constant(self, node: ast.expr) -> float | str | bool:
        sign = 1.0
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, node = -sign if isinstance(node.op, ast.USub) else sign, node.operand
            if not (isinstance(node, ast.UnaryOp) or (isinstance(node, ast.Constant) and type(node.value) is not str)):
                break
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, (str, bool)) and sign == 1.0:
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return sign * float(value)
            except OverflowError:
                self.refuse("a number in it is too large")
        self.refuse(f"expected a number, text in quotes, True or False in place of {self._text(node)}")

    def compare(self, sign: type[ast.cmpop], column: pd.Series, value: float | str | bool) -> np.ndarray:
        """Compare a column with a constant of its kind: numbers, text or truth values."""
        column, kind = _plain(column)
        given = {bool: "True or False", float: "numbers", str: "text"}[type(value)]
        if given != kind:
            raise ValueError(
                f"cells={self._shown()}: column {column.name!r} contains {kind}, and is compared with {value!r}"
            )
        if sign not in (ast.Eq, ast.NotEq) and kind != "numbers":
            raise ValueError(
                f"cells={self._shown()}: column {column.name!r} contains {kind}, which only == and != compare"
            )
        return np.asarray(_OPERATORS[sign](column, value).fillna(False), dtype=bool)  # (n,)

    def known(self, column: pd.Series, found: Any) -> pd.Series:
        import pandas as pd

        return pd.Series(np.asarray(found, dtype=bool)).astype("boolean").mask(column.isna().to_numpy())

    def _text(self, node: ast.expr) -> str:
        text = ast.unparse(node)
        for name, column in self.quoted.items():
            text = text.replace(name, f"`{column}`")
        return repr(text if len(text) <= 100 else f"{text[:100]} ...")

    def _shown(self) -> str:
        return repr(self.query if len(self.query) <= 200 else f"{self.query[:200]} ...")

    def refuse(self, reason: str) -> NoReturn:
        """Raise a ValueError with the query and the reason."""
        raise ValueError(f"cannot read cells={self._shown()}: {reason}")


def _plain(column: pd.Series) -> tuple[pd.Series, str]:
    """Values of a column without categories, and their kind."""
    import pandas as pd

    kind = "True or False" if _is_bool(column) else "numbers" if pd.api.types.is_numeric_dtype(column) else "text"
    if isinstance(column.dtype, pd.CategoricalDtype):
        numeric = pd.api.types.is_numeric_dtype(column.cat.categories)
        kind = "numbers" if numeric and not _is_bool(column) else kind
        holes = numeric and column.isna().any()
        column = column.astype(float if holes else column.cat.categories.dtype)
    return (column.astype(str) if kind == "text" else column), kind


def _is_bool(column: pd.Series) -> bool:
    import pandas as pd

    dtype = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    if dtype == np.dtype(object):
        return set(column.dropna().unique()) <= {True, False}
    return bool(pd.api.types.is_bool_dtype(dtype))
