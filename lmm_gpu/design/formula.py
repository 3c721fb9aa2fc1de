"""Read the text of a formula: lme4's syntax, its fixed part and its random terms.

Nothing is evaluated here. Sums of columns are read by `plain_formula`, all other formulas by `formula_parser`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .formula_limits import check_length
from .plain_formula import PlainFormula, plain_formula, plain_summands
from .r_spelling import without_r_spelling
from .safe_code import require_column
from .terms import INTERCEPT

if TYPE_CHECKING:
    from formulaic import SimpleFormula


@dataclass(frozen=True)
class TermText:
    """One random term ``(effects | groups)``: the text left of the bar, and the obs columns that define the groups.

    `independent` marks a double bar: effects without correlations.
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
    """Text after the ``~`` of a one-sided formula, with R's spellings of factors and truth values replaced.

    Raises
    ------
    ValueError
        If the formula is not text, is too long or too deeply nested, calls a function of R, or has a left-hand side.

    Examples
    --------
    >>> right_hand_side("~ as.factor(batch) + poly(x, 2, raw=TRUE)")
    ' C(batch) + poly(x, 2, raw=True)'
    """
    if not isinstance(formula, str):
        raise ValueError(f"got formula={formula!r}; expected text such as '~ condition + (1 | donor)'")
    check_length(formula)
    left, tilde, right = formula.partition("~")
    if tilde and left.strip():
        raise ValueError(
            f"the formula {formula!r} has a left-hand side: the responses are the genes, so start it with '~', "
            f"as in {'~' + right!r}"
        )
    return without_r_spelling(right if tilde else formula)


def split_formula(formula: str) -> tuple[str, tuple[TermText, ...]]:
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
    text = right_hand_side(formula)
    plain = plain_summands(text)
    if plain is not None:
        return " + ".join(plain[0]) or "1", tuple(TermText(*term) for term in plain[1])
    from .formula_parser import summands  # formulaic takes a while to import

    fixed: list[str] = []
    random: list[TermText] = []
    for piece in summands(text):
        if isinstance(piece, str):
            fixed.append(piece)
        else:
            effects, groupings, independent = piece
            random.extend(TermText(effects, groups, independent) for groups in groupings)
    return "".join(fixed).strip() or "1", tuple(random)


def parse_fixed(text: str, columns: Collection[str]) -> tuple[SimpleFormula | PlainFormula, dict[str, tuple[str, ...]]]:
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
        Safe to evaluate on a table of the used columns, with the context of `safe_code`.
    used
        The columns that each factor of the formula uses, by the text of the factor.

    Raises
    ------
    ValueError
        If the text cannot be read, expands to too many terms, names an unknown column, has a term without any column,
        or contains anything but columns, constants, arithmetic, comparisons and calls of the functions in
        `safe_code.CALLABLE`.
    """
    plain = plain_formula(text)
    if plain is not None:
        names = [str(term) for term in plain]
        return plain, {name: () if name == INTERCEPT else (require_column(name, columns),) for name in names}
    from .formula_parser import parse  # formulaic takes a while to import

    return parse(text, columns)


def all_columns(formula: str, columns: Collection[str]) -> list[str]:
    """Columns of obs that a mixed-model formula uses, in its fixed part and its random terms.

    Examples
    --------
    >>> all_columns("~ log(age) + (1 + dose | donor:sample)", ["age", "dose", "donor", "sample", "other"])
    ['age', 'donor', 'dose', 'sample']
    """
    fixed, random = split_formula(formula)
    found = {require_column(name, columns) for term in random for name in term.groups}
    for text in (fixed, *(term.effects for term in random)):
        found.update(name for names in parse_fixed(text, columns)[1].values() for name in names)
    return sorted(found)
