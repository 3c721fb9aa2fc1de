"""Formulas as text: lme4's syntax is read here, and nothing is evaluated that was not checked here first.

formulaic turns the fixed part into columns, and runs whatever Python it finds in a formula, with the built-in
functions in reach. So the formula is parsed, every piece that would run is compared with a short list of what
is allowed, and only then does `lmm_gpu.design` let formulaic loose on the data.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from formulaic import Formula, SimpleFormula
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Token
from formulaic.utils.code import sanitize_variable_names

UFUNCS = ("abs", "exp", "expm1", "log", "log10", "log1p", "log2", "sqrt")
TRANSFORMS = ("C", "I", "bs", "cc", "center", "cr", "cs", "poly", "scale", "standardize")
CONTRASTS = (
    *(f"contr.{name}" for name in ("treatment", "sum", "helmert", "poly", "diff", "sas")),
    *("Treatment", "Sum", "Helmert", "Poly", "Diff"),
)
CALLABLE = {*UFUNCS, *(f"np.{name}" for name in UFUNCS), *TRANSFORMS, *CONTRASTS}
# formulaic knows the transforms and contrasts itself; these are the functions it has not got, or not all of
CONTEXT = {name: getattr(np, name) for name in UFUNCS}
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UAdd, ast.USub)
COMPARISON = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
PLAIN = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.List, ast.Tuple, ast.Dict, ast.keyword, ast.Load)


@dataclass(frozen=True)
class RandomTerm:
    """One ``(effects | groups)``: the text left of the bar, and the obs columns whose combinations are the groups.

    `independent` says that the bar was doubled: several effects, without correlations.
    """

    effects: str
    groups: tuple[str, ...]
    independent: bool

    @property
    def group(self) -> str:
        """Name of the grouping, such as ``donor`` or ``donor:cell_type``."""
        return ":".join(self.groups)

    def __str__(self) -> str:
        return f"({self.effects} {'||' if self.independent else '|'} {self.group})"


def right_hand_side(formula: str) -> str:
    """Text after the ``~`` of a one-sided formula.

    Raises
    ------
    ValueError
        If something stands left of the ``~``: the responses are the genes.
    """
    left, tilde, right = formula.partition("~")
    if not tilde:
        return formula
    if left.strip():
        raise ValueError(
            f"the formula {formula!r} has a left-hand side: the responses are the genes, so start it with '~', "
            f"as in '~{right}'"
        )
    return right


def split_formula(formula: str) -> tuple[str, tuple[RandomTerm, ...]]:
    """Split a mixed-model formula into the text of its fixed part and its random terms.

    ``(1 | a/b)`` becomes ``(1 | a)`` and ``(1 | a:b)``; terms come in the order in which they were written.

    Raises
    ------
    ValueError
        If the formula has a left-hand side, cannot be read, or combines a random term with anything but ``+``.

    Examples
    --------
    >>> fixed, random = split_formula("~ condition * cell_type + (1 | donor/sample)")
    >>> fixed
    'condition * cell_type'
    >>> [str(term) for term in random]
    ['(1 | donor)', '(1 | donor:sample)']
    """
    fixed: list[str] = []
    random: list[RandomTerm] = []
    text = right_hand_side(formula)
    for tokens, piece in _summands(text):
        if any(_is_operator(token, "|") for token in tokens):
            random.extend(_read_random(tokens, piece, text))
        else:
            fixed.append(piece)
    return "".join(fixed).strip() or "1", tuple(random)


def parse_fixed(text: str, columns: Collection[str]) -> tuple[SimpleFormula, list[str]]:
    """Parse the fixed part of a formula and check everything in it that formulaic would evaluate.

    Parameters
    ----------
    text
        Right-hand side without random terms.
    columns
        Names that may be used: the columns of obs.

    Returns
    -------
    parsed
        Safe to evaluate on a table of the used columns, with `CONTEXT` as context.
    used
        The columns it needs.

    Raises
    ------
    ValueError
        If the text cannot be read, names an unknown column, or holds anything but columns, constants, arithmetic,
        comparisons and calls of the functions in `CALLABLE`.
    """
    for token in _tokens(text):
        if _is_operator(token, "|"):
            raise ValueError(f"cannot use '|' in {text.strip()!r}: a random term stands in parentheses, as (1 | donor)")
        if token.token == ".":
            raise ValueError(f"cannot use '.' in {text.strip()!r}: name the columns of obs that the model needs")
    try:
        parsed = Formula(text)
    except Exception as error:  # syntax errors of formulaic and of Python, and whatever odd text makes them stumble on
        raise ValueError(f"cannot read the formula {text.strip()!r}: {first_line(error)}") from error
    used: set[str] = set()
    for factor in (factor for term in parsed for factor in term.factors):
        if factor.eval_method is factor.EvalMethod.PYTHON:
            used |= _columns_in_code(factor.expr, columns)
        elif factor.eval_method is factor.EvalMethod.LOOKUP:
            used.add(require_column(factor.expr, columns))
    return parsed, sorted(used)


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


def require_column(name: str, columns: Collection[str]) -> str:
    """`name` itself if obs has that column; otherwise a ValueError with the closest names."""
    if name in columns:
        return name
    known = [str(column) for column in columns]
    close = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known) or 'no columns at all'}"
    raise ValueError(f"obs has no column {name!r}: {hint}")


def first_line(error: BaseException) -> str:
    """First line of an error's message, for a message of our own."""
    return str(error).partition("\n")[0] or type(error).__name__


def _tokens(text: str) -> list[Token]:
    try:
        tokens = list(tokenize(text))
    except Exception as error:
        raise ValueError(f"cannot read the formula {text.strip()!r}: {first_line(error)}") from error
    if any(_is_operator(token, "~") for token in tokens):
        # formulaic evaluates what stands left of a ~ while it parses, before anything could be checked
        raise ValueError(f"cannot read the formula {text.strip()!r}: it may have one '~', at its start")
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
    cuts = [tokens[start].source_start for start in starts[1:]]
    for start, stop, begin, end in zip(starts, [*starts[1:], None], [0, *cuts], [*cuts, None], strict=True):
        yield tokens[start:stop], text[begin:end]


def _read_random(tokens: list[Token], piece: str, text: str) -> Iterator[RandomTerm]:
    body = tokens[1:] if tokens[0].token == "+" else tokens
    bars = [position for position, token in enumerate(body) if _is_operator(token, "|")]
    bar = body[bars[0]]
    if len(bars) > 1 or bar.token not in ("|", "||") or body[0].token != "(" or body[-1].token != ")":
        raise ValueError(
            f"cannot read the random term {piece.strip()!r}: write each as (1 | group), (0 + x | group) or "
            "(x || group) and join them with '+'"
        )
    effects = text[body[0].source_start + 1 : bar.source_start].strip()
    for groups in _groupings(body[bars[0] + 1 : -1], piece):
        yield RandomTerm(effects, groups, independent=bar.token == "||")


def _groupings(tokens: list[Token], piece: str) -> list[tuple[str, ...]]:
    """Columns of each grouping right of the bar: ``a/b:c`` gives (a) and (a, b, c)."""
    names, operators = tokens[::2], tokens[1::2]
    if (
        len(names) != len(operators) + 1
        or any(name.kind is not Token.Kind.NAME for name in names)
        or any(operator.token not in (":", "/") for operator in operators)
    ):
        raise ValueError(
            f"cannot read the groups of {piece.strip(' +')!r}: they are columns of obs joined with ':' or '/', "
            "as in (1 | donor) or (1 | donor:cell_type); compute anything else as a column first"
        )
    columns = tuple(name.token for name in names)
    ends = [position for position, operator in enumerate(operators, start=1) if operator.token == "/"]
    return [columns[:end] for end in [*ends, len(columns)]]


def _columns_in_code(code: str, columns: Collection[str]) -> set[str]:
    """Columns that a piece of Python in a formula uses; a ValueError if it holds anything that is not allowed."""
    aliases: dict[str, str] = {}
    # formulaic's own replacement of `quoted names` by Python names: what is checked is what it will run
    clean = sanitize_variable_names(code, dict.fromkeys(columns), aliases)

    def used_by(node: ast.AST, outer: str = "") -> set[str]:
        piece = ast.unparse(node) or outer  # an operator has no text of its own
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLABLE:
            children.remove(node.func)
        elif isinstance(node, (ast.Name, ast.Attribute)) and piece in CONTRASTS:
            return set()
        elif isinstance(node, ast.Name):
            return {require_column(aliases.get(piece, piece), columns)}
        elif isinstance(node, ast.Constant) and set(str(node.value)) & set("'\"`\\"):
            # formulaic pastes the text of a call between quotes and parses that again
            raise ValueError(f"cannot use {piece} in {code!r}: a text may not hold quotes or backslashes")
        elif not isinstance(node, (*PLAIN, *ARITHMETIC, *COMPARISON)):
            raise ValueError(_not_allowed(piece, code, columns))
        used = set().union(*(used_by(child, piece) for child in children))
        if isinstance(node, ast.BinOp) and not used:  # 9**9**9 would take for ever
            raise ValueError(f"cannot use {piece!r} in {code!r}: write the number that it stands for")
        return used

    return used_by(ast.parse(clean, mode="eval").body)


def _not_allowed(piece: str, code: str, columns: Collection[str]) -> str:
    if piece in columns:
        advice = f"quote the column's name with backquotes, `{piece}`"
    elif "^" in piece:
        advice = "write powers with '**'"
    else:
        functions = ", ".join(sorted((*UFUNCS, *TRANSFORMS)))
        advice = f"a formula may hold columns of obs, constants, arithmetic, comparisons and the functions {functions}"
    return f"cannot use {piece!r} in the formula's {code!r}: {advice}"
