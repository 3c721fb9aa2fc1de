"""From the names of coefficients to the rows of a contrast: the words a user writes, parsed and never evaluated."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

_BOUNDARY = r"(?=[\s+\-*/)]|\Z)"
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?" + _BOUNDARY)
_QUOTED = re.compile(r"""(?P<quote>[`"'])(?P<name>.*?)(?P=quote)""" + _BOUNDARY)
_LOOKS_LIKE_A_NAME = re.compile(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^\s+\-*/()])+")
_LONGEST_EXPRESSION = 100_000
_DEEPEST_PARENTHESES = 50


def parse_contrast(expression: str, names: Sequence[str]) -> np.ndarray:
    """Read one linear expression over column names as the weights of a contrast.

    The expression may use ``+ - * /``, parentheses, numbers and the names as they are: names that hold ``:``, ``.``,
    spaces, brackets or even operators need no quotes, because the longest name that fits is taken. Where that is not
    what is meant, quotes or backquotes decide: with columns ``A``, ``B`` and ``A-B``, write ``"A" - B``. A bare number
    is a number; a column that is called ``2`` needs the quotes too.

    Parameters
    ----------
    expression : str
        For example ``"(cls1:trtB + cls2:trtB)/2 - cls3:trtB"``.
    names : sequence of str, length p
        Names of the coefficients: the columns of X.

    Returns
    -------
    ndarray, shape (p,)
        The weight of each coefficient.

    Raises
    ------
    ValueError
        If the expression is empty, malformed, too long, too deeply nested, not linear, has a constant term, comes to
        nothing (``A - A``), or names something that is not in `names`; or if `names` are not distinct.

    Examples
    --------
    >>> parse_contrast("log(libsize) - (cls1:trtB + cls2:trtB)/2", ["log(libsize)", "cls1:trtB", "cls2:trtB"])
    array([ 1. , -0.5, -0.5])
    """
    names = _distinct(names, "column names")
    return _checked(_LinearExpression(expression, names).weights(), names, f"contrast {_shown(expression)}")


def contrast_matrix(contrast: str | Sequence[str] | Mapping[str, str], names: Sequence[str]) -> pd.DataFrame:
    """Make a matrix with one column for each expression, as R's ``contrast.matrix``.

    Parameters
    ----------
    contrast : dict, list of str, or str
        Expressions as `parse_contrast` reads them. The keys of a dict name the columns; otherwise each expression
        names its own.
    names : sequence of str, length p
        Names of the coefficients: the columns of X.

    Returns
    -------
    DataFrame, shape (p, c)
        Indexed by `names`.

    Raises
    ------
    ValueError
        If an expression cannot be read (see `parse_contrast`), or if two columns or two `names` are called the same.

    References
    ----------
    ``contrast.matrix`` of the R package FLASHMM, https://cran.r-project.org/package=FLASHMM

    Examples
    --------
    >>> contrast_matrix({"AvsB": "A - B", "AvsBC": "A - (B+C)/2"}, ["A", "B", "C"])
       AvsB  AvsBC
    A   1.0    1.0
    B  -1.0   -0.5
    C   0.0   -0.5
    """
    rows, labels = _labelled_rows(_by_label(contrast), _distinct(names, "column names"))
    return pd.DataFrame(rows.T, index=list(names), columns=labels)


def contrast_rows(contrast: Any, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Turn every way of writing contrasts into rows of weights and their labels.

    Parameters
    ----------
    contrast : str, list of str, dict, array, DataFrame, Series, or None
        A str is one expression and a list of str several. A dict of numbers is one contrast, ``{name: weight}``; any
        other dict is several, ``{label: expression, weights or dict of weights}``. An array of one axis is p weights,
        of two axes one contrast per row. A DataFrame, as from `contrast_matrix`, has one contrast per column and is
        put in order by its index; a Series is one such column. None is one contrast per coefficient.
    names : sequence of str, length p
        Names of the coefficients: the columns of X.

    Returns
    -------
    rows : ndarray, shape (L, p)
        One contrast per row.
    labels : list of str, length L
        What each is called.

    Raises
    ------
    ValueError
        If an expression cannot be read (see `parse_contrast`); if weights are not finite numbers, are all zero, are
        too few or too many, or belong to a name that is not in `names`; or if labels or `names` are not distinct.

    Examples
    --------
    >>> rows, labels = contrast_rows({"a": 1, "b": -0.5}, ["a", "b", "c"])
    >>> rows
    array([[ 1. , -0.5,  0. ]])
    >>> labels
    ['a - 0.5*b']
    """
    names = _distinct(names, "column names")
    if contrast is None:
        return np.eye(len(names)), names
    if not hasattr(contrast, "__iter__"):
        raise ValueError(
            f"got the contrast {contrast!r}, wanted an expression such as 'A - B', weights, or a dict of them"
        )
    if isinstance(contrast, pd.Series):
        contrast = contrast.to_frame("contrast1" if contrast.name is None else contrast.name)
    if isinstance(contrast, pd.DataFrame):
        contrast = _columns_in_order(contrast, names)
    if _is_one_number_each(contrast):
        weights = _weights(contrast, names, "contrast")
        return weights[np.newaxis], [_sentence(weights, names)]
    return _labelled_rows(_by_label(contrast), names)


def _is_one_number_each(contrast: Any) -> bool:
    values = contrast.values() if isinstance(contrast, Mapping) else contrast
    return all(np.ndim(value) == 0 and not isinstance(value, (str, Mapping)) for value in values)


def _by_label(contrast: Any) -> Mapping[str, Any]:
    """Label what has no label: an expression by itself, a row of a matrix by its number."""
    if isinstance(contrast, Mapping):
        return contrast
    several = [contrast] if isinstance(contrast, str) else list(contrast)
    if any(isinstance(expression, str) for expression in several):
        return dict(zip(_distinct(several, "contrasts"), several, strict=True))
    return {f"contrast{row}": weights for row, weights in enumerate(several, start=1)}


def _columns_in_order(contrast: pd.DataFrame, names: list[str]) -> dict[str, np.ndarray]:
    index, labels = _distinct(contrast.index, "rows of the contrast"), _distinct(contrast.columns, "contrasts")
    if set(index) != set(names):
        raise ValueError(
            f"got a contrast DataFrame whose rows lack {sorted(set(names) - set(index))} and hold the unknown "
            f"{sorted(set(index) - set(names))}, wanted one row for each column of X: make it with contrast_matrix"
        )
    in_order = contrast.to_numpy()[[index.index(name) for name in names]]  # (p, L)
    return dict(zip(labels, in_order.T, strict=True))


def _labelled_rows(contrasts: Mapping[str, Any], names: list[str]) -> tuple[np.ndarray, list[str]]:
    if not contrasts:
        raise ValueError("got no contrast, wanted at least one: an expression such as 'A - B', or the name of a column")
    rows = [_weights(contrast, names, f"contrast {label!r}") for label, contrast in contrasts.items()]
    return np.stack(rows), _distinct(contrasts, "contrasts")


def _weights(contrast: Any, names: list[str], what: str) -> np.ndarray:
    """Weights from an expression, from ``{name: weight}``, or from p numbers."""
    if isinstance(contrast, str):
        return parse_contrast(contrast, names)
    if isinstance(contrast, Mapping):
        for unknown in (name for name in contrast if name not in names):
            raise ValueError(f"{what}: {_no_such_column(str(unknown), names)}")
        contrast = [contrast.get(name, 0.0) for name in names]
    try:
        weights = np.asarray(contrast, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: got {_shown(contrast)}, wanted {len(names)} numbers, one per column") from error
    return _checked(weights, names, what)


def _checked(weights: np.ndarray, names: list[str], what: str) -> np.ndarray:
    if weights.shape != (len(names),):
        raise ValueError(f"{what}: got weights of shape {weights.shape}, wanted {(len(names),)}: one per column of X")
    if not np.isfinite(weights).all():
        bad = [name for name, weight in zip(names, weights, strict=True) if not np.isfinite(weight)]
        raise ValueError(f"{what}: got NaN or infinite weights for {bad}, wanted finite numbers")
    if not weights.any():
        raise ValueError(f"{what}: all its weights are zero, so there is nothing to test; wanted at least one non-zero")
    return weights


def _sentence(weights: np.ndarray, names: list[str]) -> str:
    """Write weights as the expression that a person would: ``a - 0.5*b``."""
    terms = [
        f"{'-' if weight < 0 else '+'} " + (name if abs(weight) == 1 else f"{abs(weight):g}*{name}")
        for weight, name in zip(weights, names, strict=True)
        if weight
    ]
    signed = " ".join(terms)
    return ("-" if signed[0] == "-" else "") + signed[2:]


def _distinct(labels: Any, what: str) -> list[str]:
    as_text = [str(label) for label in labels]
    repeated = [label for label, times in Counter(as_text).items() if times > 1]
    if repeated:
        raise ValueError(f"got {what} that repeat {repeated}, wanted each of them once: rename or drop the copies")
    return as_text


def _no_such_column(name: str, names: list[str]) -> str:
    closest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    known = f"the closest are {closest}" if closest else f"the columns are {_shown(names)}"
    column = name.split("[", 1)[0]
    if column in names and column != name:
        known = f"{column} is a number there: write C({column}) in the formula for its levels"
    return f"no column is called {name!r}; {known}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ... ({len(value)} long)"


class _LinearExpression:
    """A recursive-descent reader of one expression; each of its parts is an array, p weights and then a constant."""

    def __init__(self, expression: str, names: list[str]):
        if not isinstance(expression, str):
            raise ValueError(f"got the contrast {_shown(expression)}, wanted a str such as 'A - B'")
        self.expression, self.names = expression, names
        self.position = {name: position for position, name in enumerate(names)}
        self.at, self.depth = 0, 0
        words = [re.escape(name) for name in names if name and not _NUMBER.fullmatch(name)]
        # The first alternative that matches wins, so the longest names come first; (?!) never matches.
        self.longest_name = re.compile(f"(?:{'|'.join(sorted(words, key=len, reverse=True)) or '(?!)'}){_BOUNDARY}")

    def weights(self) -> np.ndarray:
        if not self.expression.strip():
            raise self.error("it is empty; wanted column names, as in 'A - B'")
        if len(self.expression) > _LONGEST_EXPRESSION:
            raise self.error(f"too long; wanted at most {_LONGEST_EXPRESSION} characters: give the weights as an array")
        with np.errstate(all="ignore"):  # what overflows is not finite, and refused below
            value = self.sum()  # (p + 1,)
        if self.peek():
            raise self.error(f"wanted an operator or the end before {self.rest()}")
        if not np.isfinite(value).all():
            raise self.error("a number in it is too large")
        if value[-1]:
            raise self.error(f"it is not linear: remove the constant term {value[-1]:g}, only columns can be added")
        return value[:-1]

    def sum(self) -> np.ndarray:
        value = self.product()
        while operator := self.take("+-"):
            term = self.product()
            value = value + term if operator == "+" else value - term
        return value

    def product(self) -> np.ndarray:
        value = self.signed()
        while operator := self.take("*/"):
            factor = self.signed()
            value = self.times(value, factor) if operator == "*" else self.over(value, factor)
        return value

    def signed(self) -> np.ndarray:
        sign = 1.0
        while operator := self.take("+-"):
            sign = -sign if operator == "-" else sign
        return sign * self.operand()

    def operand(self) -> np.ndarray:
        """Read a name, a number, a name in quotes, or a sum in parentheses: the first of them that fits."""
        self.peek()
        if name := self.match(self.longest_name):
            return self.column(name[0])
        if number := self.match(_NUMBER):
            return np.append(np.zeros(len(self.names)), float(number[0]))  # (p + 1,)
        if quoted := self.match(_QUOTED):
            return self.column(quoted["name"])
        if self.take("("):
            return self.parenthesis()
        if unknown := self.match(_LOOKS_LIKE_A_NAME):
            raise self.error(_no_such_column(unknown[0], self.names))
        raise self.error(f"wanted a column name, a number or '(' before {self.rest()}")

    def parenthesis(self) -> np.ndarray:
        self.depth += 1
        if self.depth > _DEEPEST_PARENTHESES:
            raise self.error(f"too deeply nested; wanted at most {_DEEPEST_PARENTHESES} parentheses within each other")
        value = self.sum()
        if not self.take(")"):
            raise self.error(f"unbalanced parentheses: wanted ')' before {self.rest()}")
        self.depth -= 1
        return value

    def column(self, name: str) -> np.ndarray:
        if name not in self.position:
            raise self.error(_no_such_column(name, self.names))
        return np.eye(1, len(self.names) + 1, self.position[name])[0]  # (p + 1,)

    def times(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if left[:-1].any() and right[:-1].any():
            raise self.error("it is not linear: a column cannot be multiplied by another column")
        return left * right[-1] if left[:-1].any() else left[-1] * right

    def over(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if right[:-1].any():
            raise self.error("it is not linear: nothing can be divided by a column")
        if not right[-1]:
            raise self.error("division by zero")
        return left / right[-1]

    def peek(self) -> str:
        """Move past white space; the next character, or nothing at the end."""
        while self.expression[self.at : self.at + 1].isspace():
            self.at += 1
        return self.expression[self.at : self.at + 1]

    def take(self, characters: str) -> str:
        """Move past the next character if it is one of these; that character, or nothing."""
        found = self.peek()
        if not found or found not in characters:
            return ""
        self.at += 1
        return found

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.expression, self.at)
        self.at = found.end() if found else self.at
        return found

    def rest(self) -> str:
        return _shown(self.expression[self.at :]) if self.at < len(self.expression) else "the end"

    def error(self, message: str) -> ValueError:
        return ValueError(f"contrast {_shown(self.expression)}: {message}")
