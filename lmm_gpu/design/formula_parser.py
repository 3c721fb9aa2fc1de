"""Read formulas with formulaic's tokens and parser: the pieces of a mixed model, and its fixed part, checked.

formulaic turns the fixed part into columns and runs the Python code that it finds in a formula, so `safe_code` compares
every piece with a short list of what is allowed before formulaic sees any data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeVar

from formulaic import Formula, SimpleFormula
from formulaic.parser import DefaultFormulaParser
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Token

from .formula_limits import check_size, shortened
from .safe_code import columns_in_code, first_line, functions_in_code, require_column

if TYPE_CHECKING:
    from formulaic.parser.types import Factor

Parsed = TypeVar("Parsed")
#: A random term: its effects, its groupings, and True for a double bar.
RandomPiece = tuple[str, list[tuple[str, ...]], bool]


def summands(text: str) -> Iterator[str | RandomPiece]:
    """Yield the pieces of the right-hand side of a mixed-model formula: random terms, and the text of all others."""
    for tokens, piece in _summands(text):
        if any(_is_operator(token, "|") for token in tokens):
            yield _read_random(tokens, piece, text)
        else:
            yield piece


def parse(text: str, columns: Collection[str]) -> tuple[SimpleFormula, dict[str, tuple[str, ...]]]:
    """Parse the fixed part of a formula; see `formula.parse_fixed`."""
    _refuse_bare_spaces(text, columns)
    for token in _tokens(text):
        if _is_operator(token, "|"):
            raise ValueError(f"cannot use '|' in {text.strip()!r}: write a random term in parentheses, as (1 | donor)")
        if token.token == ".":
            raise ValueError(f"cannot use '.' in {text.strip()!r}: name the columns of obs that the model needs")
    check_size(_read(lambda: DefaultFormulaParser().get_ast(text), text), text)
    parsed = _read(lambda: Formula(text), text)
    if not isinstance(parsed, SimpleFormula):
        raise ValueError(f"cannot read the formula {text.strip()!r}: it has several parts; write one")
    used: dict[str, tuple[str, ...]] = {}
    for factor in (factor for term in parsed for factor in term.factors):
        if factor.expr not in used:
            used[factor.expr] = _columns_of(factor, columns)
    _refuse_hidden_functions(used)
    return parsed, used


def _grouping_column(token: Token) -> str:
    """Name of the column of a grouping, also of ``C(column)``; empty for anything else."""
    wrapped = re.fullmatch(r"C\(\s*([^\W\d]\w*|`[^`]+`)\s*\)", token.token)
    if token.kind is Token.Kind.PYTHON and wrapped:
        return wrapped[1].strip("`")
    return token.token if token.kind is Token.Kind.NAME else ""


def _columns_of(factor: Factor, columns: Collection[str]) -> tuple[str, ...]:
    if factor.eval_method is factor.EvalMethod.LOOKUP:
        return (require_column(factor.expr, columns),)
    if factor.eval_method is not factor.EvalMethod.PYTHON:
        return ()  # a literal number
    found = columns_in_code(factor.expr, columns)
    if not found:
        raise ValueError(
            f"the term {factor.expr!r} uses no column of obs: write the name of a column (in backquotes if it is not "
            "a plain name), or drop the term"
        )
    return tuple(sorted(found))


def _refuse_bare_spaces(text: str, columns: Collection[str]) -> None:
    outside = re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"", "", text)
    bare = [name for name in map(str, columns) if re.fullmatch(r"[\w.]+( [\w.]+)+", name) and name in outside]
    if bare:
        name = max(bare, key=len)
        raise ValueError(f"cannot read the formula {shortened(text)!r}: write the column in backquotes: `{name}`")


def _refuse_hidden_functions(used: dict[str, tuple[str, ...]]) -> None:
    # formulaic looks up columns before functions: it would call the column
    names = {name for columns in used.values() for name in columns}
    for code in used:
        for name in names & functions_in_code(code) if "(" in code and code not in names else ():
            raise ValueError(
                f"cannot evaluate {code!r}: the formula also uses a column named {name!r}, which hides the function of "
                "that name; rename the column"
            )


def _read(parse: Callable[[], Parsed], text: str) -> Parsed:
    try:
        return parse()
    except Exception as error:  # syntax errors of formulaic and of Python, and whatever odd text makes them stumble on
        raise ValueError(f"cannot read the formula {shortened(text)!r}: {first_line(error)}") from error


def _tokens(text: str) -> list[Token]:
    tokens = _read(lambda: list(tokenize(text)), text)
    if any(_is_operator(token, "~") for token in tokens):
        # formulaic evaluates what stands left of a ~ while it parses, before anything could be checked
        raise ValueError(f"cannot read the formula {shortened(text)!r}: it may have one '~', at its start")
    if any(token.kind is Token.Kind.NAME and token.token == "1" for token in tokens):
        # formulaic tells terms apart by their text: the column would become the intercept
        raise ValueError("a formula cannot use a column named '1', which means the intercept: rename the column")
    return tokens


def _is_operator(token: Token, mark: str) -> bool:
    return token.kind is Token.Kind.OPERATOR and mark in token.token


def _summands(text: str) -> Iterator[tuple[list[Token], str]]:
    """Tokens and text of each piece between the + and - that stand outside parentheses; a piece keeps its sign."""
    tokens = _tokens(text)
    starts, depth = [0], 0
    for position, token in enumerate(tokens):
        if token.kind is Token.Kind.CONTEXT:
            depth += 1 if token.token in "([" else -1
        elif depth == 0 and position > 0 and token.kind is Token.Kind.OPERATOR and set(token.token) <= set("+-"):
            starts.append(position)
    # the text is cut where tokens start: where one ends is unknown, a closing backquote belongs to no token
    cuts = [_start(tokens[start]) for start in starts[1:]]
    for start, stop, begin, end in zip(starts, [*starts[1:], None], [0, *cuts], [*cuts, None], strict=True):
        yield tokens[start:stop], text[begin:end]


def _start(token: Token) -> int:
    return token.source_start or 0


def _read_random(tokens: list[Token], piece: str, text: str) -> RandomPiece:
    body = tokens[1:] if tokens[0].token == "+" else tokens
    bars = [position for position, token in enumerate(body) if _is_operator(token, "|")]
    bar = body[bars[0]]
    if len(bars) > 1 or bar.token not in ("|", "||") or body[0].token != "(" or body[-1].token != ")":
        raise ValueError(
            f"cannot read the random term {piece.strip()!r}: write each as (1 | group), (x | group), (0 + x | group) "
            "or (x || group) and join them with '+'"
        )
    effects = text[_start(body[0]) + 1 : _start(bar)].strip()
    return effects, _groupings(body[bars[0] + 1 : -1], piece), bar.token == "||"


def _groupings(tokens: list[Token], piece: str) -> list[tuple[str, ...]]:
    """Columns of each grouping right of the bar: ``a/b:c`` gives (a) and (a, b, c)."""
    names, operators = tokens[::2], tokens[1::2]
    columns = tuple(_grouping_column(name) for name in names)
    if (
        len(names) != len(operators) + 1
        or not all(columns)
        or any(operator.token not in (":", "/") for operator in operators)
    ):
        raise ValueError(
            f"cannot read the groups of {piece.strip(' +')!r}: write columns of obs joined with ':' or '/', as in "
            "(1 | donor) or (1 | donor:cell_type); compute anything else as a column of obs first"
        )
    ends = [position for position, operator in enumerate(operators, start=1) if operator.token == "/"]
    return [columns[:end] for end in [*ends, len(columns)]]
