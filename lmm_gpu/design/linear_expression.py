"""Linear expressions over column names, such as ``(a + b)/2 - c``: parsed, never evaluated as code."""

from __future__ import annotations

import difflib
import re

import numpy as np

_BOUNDARY = r"(?=[\s+\-*/)]|\Z)"
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?" + _BOUNDARY)
_QUOTED = re.compile(r"""(?P<quote>[`"'])(?P<name>.*?)(?P=quote)""" + _BOUNDARY)
_LOOKS_LIKE_A_NAME = re.compile(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^\s+\-*/()])+")
_LONGEST_EXPRESSION = 100_000
_DEEPEST_PARENTHESES = 50


def linear_weights(expression: str, names: list[str]) -> np.ndarray:
    """Weights (p,) of a linear expression over column names.

    Raises
    ------
    ValueError
        If the expression cannot be read, is not linear, or has a constant term.

    Examples
    --------
    >>> linear_weights("2*(a - b)", ["a", "b"])
    array([ 2., -2.])
    """
    return _LinearExpression(expression, names).weights()


class _LinearExpression:
    """Recursive-descent parser of one expression; the value of each part is an array of p weights and a constant."""

    def __init__(self, expression: str, names: list[str]):
        if not isinstance(expression, str):
            raise ValueError(f"got the contrast {shown(expression)}, expected text such as 'A - B'")
        for name in (name for name in names if "'" in name):  # formulaic's quotes: C(arm, contr.treatment('a'))
            expression = expression.replace(name.replace("'", '"'), name)
        self.expression, self.names = expression, names
        self.position = {name: position for position, name in enumerate(names)}
        self.at, self.depth = 0, 0
        words = [re.escape(name) for name in names if name and not _NUMBER.fullmatch(name)]
        # The first alternative that matches wins, so the longest names come first; (?!) never matches.
        self.longest_name = re.compile(f"(?:{'|'.join(sorted(words, key=len, reverse=True)) or '(?!)'}){_BOUNDARY}")

    def weights(self) -> np.ndarray:
        if not self.expression.strip():
            raise self.error("it is empty; expected column names, as in 'A - B'")
        if len(self.expression) > _LONGEST_EXPRESSION:
            raise self.error(
                f"too long; expected at most {_LONGEST_EXPRESSION:,} characters: give the weights as an array"
            )
        with np.errstate(all="ignore"):  # what overflows is not finite, and refused below
            value = self.sum()  # (p + 1,)
        if self.peek():
            raise self.error(f"expected an operator or the end before {self.rest()}")
        if not np.isfinite(value).all():
            raise self.error("a number in it is too large")
        if value[-1]:
            raise self.error(f"it is not linear: remove the constant term {value[-1]:g}, only columns can be added")
        weights: np.ndarray = value[:-1]
        return weights

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
        """Read a name, a number, a name in quotes, or a sum in parentheses: the first of them that matches."""
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
            raise self.error(no_such_column(unknown[0], self.names))
        raise self.error(f"expected a column name, a number or '(' before {self.rest()}")

    def parenthesis(self) -> np.ndarray:
        self.depth += 1
        if self.depth > _DEEPEST_PARENTHESES:
            raise self.error(
                f"too deeply nested; expected at most {_DEEPEST_PARENTHESES} parentheses within each other"
            )
        value = self.sum()
        if not self.take(")"):
            raise self.error(f"unbalanced parentheses: expected ')' before {self.rest()}")
        self.depth -= 1
        return value

    def column(self, name: str) -> np.ndarray:
        if name not in self.position:
            raise self.error(no_such_column(name, self.names))
        value = np.zeros(len(self.names) + 1)
        value[self.position[name]] = 1.0
        return value

    def times(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if left[:-1].any() and right[:-1].any():
            raise self.error("it is not linear: a column cannot be multiplied by another column")
        product: np.ndarray = left * right[-1] if left[:-1].any() else left[-1] * right
        return product

    def over(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if right[:-1].any():
            raise self.error("it is not linear: division by a column")
        if not right[-1]:
            raise self.error("division by zero")
        quotient: np.ndarray = left / right[-1]
        return quotient

    def peek(self) -> str:
        """Skip white space; return the next character, or an empty text at the end."""
        while self.expression[self.at : self.at + 1].isspace():
            self.at += 1
        return self.expression[self.at : self.at + 1]

    def take(self, characters: str) -> str:
        """Consume and return the next character if it is one of these; else return an empty text."""
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
        return shown(self.expression[self.at :]) if self.at < len(self.expression) else "the end"

    def error(self, message: str) -> ValueError:
        return ValueError(f"contrast {shown(self.expression)}: {message}")


def no_such_column(name: str, names: list[str]) -> str:
    """Sentence on an unknown column, with the closest names."""
    closest = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.5)
    known = f"the closest are {closest}" if closest else f"the columns are {shown(names)}"
    column = name.split("[", 1)[0]
    if column in names and column != name:
        known = f"{column} is a number in this model: write C({column}) in the formula for its levels"
    return f"no column is called {shown(name)}; {known}"


def shown(value: object) -> str:
    """Value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
