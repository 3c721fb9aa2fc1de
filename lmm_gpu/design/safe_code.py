"""The whitelist of what a formula may evaluate: columns, constants, arithmetic, comparisons and named functions."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection

#: NumPy's functions of one argument that a formula may call, by these names or as ``np.log``.
UFUNCS = ("abs", "exp", "expm1", "log", "log10", "log1p", "log2", "sqrt")
#: Functions that see one row at a time.
ROWWISE = ("C", "I")
#: Functions whose columns depend on all the rows that they see.
OF_ALL_ROWS = ("bs", "cc", "center", "cr", "cs", "poly", "scale", "standardize")
TRANSFORMS = (*ROWWISE, *OF_ALL_ROWS)
CONTRASTS = (
    *(f"contr.{name}" for name in ("treatment", "sum", "helmert", "poly", "diff", "sas")),
    *("Treatment", "Sum", "Helmert", "Poly", "Diff"),
)
CALLABLE = frozenset({*UFUNCS, *(f"np.{name}" for name in UFUNCS), *TRANSFORMS, *CONTRASTS})
#: Degree of a polynomial, or degrees of freedom of a spline, at most.
MOST_DEGREES = 100
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UAdd, ast.USub)
COMPARISON = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
PLAIN = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.List, ast.Tuple, ast.Dict, ast.keyword, ast.Load)


def columns_in_code(code: str, columns: Collection[str]) -> set[str]:
    """Return the columns that a piece of Python in a formula uses.

    Raises
    ------
    ValueError
        If the code contains anything that is not allowed.

    Examples
    --------
    >>> columns_in_code("log(age + 1)", ["age"])
    {'age'}
    >>> columns_in_code("open('file')", ["age"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: cannot use "open('file')" in the formula's "open('file')": a formula may contain columns of obs, ...
    """
    from formulaic.utils.code import sanitize_variable_names

    aliases: dict[str, str] = {}
    # formulaic's own replacement of `quoted names` by Python names: what is checked is what it will run
    clean = sanitize_variable_names(code, dict.fromkeys(columns), aliases)
    try:
        return _Checker(code, columns, aliases).columns_of(ast.parse(clean, mode="eval").body)
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ValueError(f"cannot read {code[:100]!r} in a formula: {first_line(error)}") from error


def functions_in_code(code: str) -> set[str]:
    """Return the names of the functions and contrasts that a piece of Python calls, ``np`` for ``np.log``.

    Examples
    --------
    >>> functions_in_code("np.log(scale(age))") == {"np", "scale"}, functions_in_code("`scale(age)`")
    (True, set())
    """
    from formulaic.utils.code import sanitize_variable_names

    tree = ast.parse(sanitize_variable_names(code, {}, {}), mode="eval")
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {ast.unparse(function).partition(".")[0] for function in calls}


def require_column(name: str, columns: Collection[str]) -> str:
    """Return `name` if obs has that column; otherwise raise a ValueError with the closest names."""
    if name in columns:
        return name
    known = [str(column) for column in columns]
    close = [one if one.isidentifier() else f"`{one}`" for one in difflib.get_close_matches(name[:200], known)]
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {shown or 'no columns at all'}"
    raise ValueError(f"obs has no column {name[:200]!r}: {hint}")


def first_line(error: BaseException) -> str:
    """First line of an error's message, for a message of our own."""
    if isinstance(error, (RecursionError, MemoryError)):
        return "it is nested too deeply: write a simpler expression"
    return str(error).partition("\n")[0] or type(error).__name__


class _Checker:
    """Walk of one expression; columns come before functions and contrasts of the same name."""

    def __init__(self, code: str, columns: Collection[str], aliases: dict[str, str]):
        self.code, self.columns, self.aliases = code, columns, aliases

    def columns_of(self, node: ast.AST, outer: str = "") -> set[str]:
        piece = ast.unparse(node) or outer  # an operator has no text
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLABLE:
            children.remove(node.func)
            self._check_degrees(node)
        elif isinstance(node, ast.Name) and self.aliases.get(piece, piece) in self.columns:
            return {self.aliases.get(piece, piece)}
        elif isinstance(node, (ast.Name, ast.Attribute)) and piece in CONTRASTS:
            return set()
        elif isinstance(node, ast.Name):
            return {require_column(self.aliases.get(piece, piece), self.columns)}
        elif isinstance(node, ast.Constant) and set(str(node.value)) & set("'\"`\\"):
            # formulaic pastes the text of a call between quotes and parses that again
            raise ValueError(f"cannot use {piece} in {self.code!r}: text may not contain quotes or backslashes")
        elif not isinstance(node, (*PLAIN, *ARITHMETIC, *COMPARISON)):
            raise ValueError(self._not_allowed(piece))
        used = {name for child in children for name in self.columns_of(child, piece)}
        if isinstance(node, ast.BinOp) and not used:  # 9**9**9 would never end
            raise ValueError(f"cannot use {piece!r} in {self.code!r}: write the number that it stands for")
        return used

    def _check_degrees(self, call: ast.Call) -> None:
        # degrees and degrees of freedom of splines and polynomials
        if ast.unparse(call.func) not in OF_ALL_ROWS:
            return
        numbers = [*call.args[1:], *(keyword.value for keyword in call.keywords if keyword.arg in ("df", "degree"))]
        for node in numbers:
            if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and node.value > MOST_DEGREES:
                raise ValueError(
                    f"cannot use {ast.unparse(call)!r}: it asks for {node.value} columns, and a function may make at "
                    f"most {MOST_DEGREES}"
                )

    def _not_allowed(self, piece: str) -> str:
        if piece in self.columns:
            advice = f"quote the column's name with backquotes, `{piece}`"
        elif "^" in piece:
            advice = "write powers with '**'"
        else:
            functions = ", ".join(sorted((*UFUNCS, *TRANSFORMS)))
            advice = (
                "a formula may contain columns of obs, constants, arithmetic, comparisons and the functions "
                f"{functions}"
            )
        return f"cannot use {piece!r} in the formula's {self.code!r}: {advice}"
