"""Linear dependence between columns of X: columns without cells to drop, and the cause of any other dependence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .terms import INTERCEPT, Product, Term, Terms

#: A column is dependent if less than this share of its sum of squares is left once earlier columns are taken out.
DEPENDENT = 1e-10
#: Coefficients below this share of a column's length play no part in a dependence.
_NO_PART = 1e-5
#: Triangular systems of so few columns are solved as any other: to import SciPy's solver takes longer.
_SMALL = 32
#: Columns named in a message.
_SHOWN = 4


@dataclass(frozen=True)
class Dependence:
    """One column of X that is a combination of earlier ones."""

    column: int
    others: tuple[int, ...]  #: earlier columns that take part; none for a column of zeros
    weights: np.ndarray  #: (p,), their coefficients


def dependences(XX: np.ndarray) -> list[Dependence]:
    """Columns of X that are combinations of earlier ones, as R finds them: the first of several is kept.

    Parameters
    ----------
    XX : array (p, p)
        X'X.

    Examples
    --------
    >>> X = np.array([[1.0, 0, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0]])
    >>> found = dependences(X.T @ X)
    >>> found[0].column, found[0].others, found[0].weights.round(12).tolist()
    (2, (0, 1), [1.0, -1.0, 0.0])
    """
    p = len(XX)
    lengths = np.sqrt(np.diagonal(XX))
    scale = np.divide(1.0, lengths, out=np.zeros(p), where=lengths > 0)
    S = XX * scale[:, None] * scale[None, :]
    L = np.zeros((p, p))
    kept: list[int] = []
    found: list[Dependence] = []
    for j in range(p):
        row = np.zeros(len(kept))
        if kept:
            row = _forward(L[: len(kept), : len(kept)], S[kept, j])
        left = S[j, j] - row @ row
        if scale[j] and left > DEPENDENT:
            L[len(kept), : len(kept)], L[len(kept), len(kept)] = row, np.sqrt(left)
            kept.append(j)
            continue
        weights = np.zeros(p)
        if scale[j] and kept:
            weights[kept] = np.linalg.solve(S[np.ix_(kept, kept)], S[kept, j])
        weights = np.where(np.abs(weights) > _NO_PART, weights, 0.0)
        found.append(Dependence(j, tuple(np.flatnonzero(weights).tolist()), weights * scale * lengths[j]))
    return found


def columns_to_keep(XX: np.ndarray, names: Sequence[str], terms: Terms) -> tuple[list[int], list[Dependence]]:
    """Positions of the columns to keep, and the interaction columns to drop because combinations of levels lack cells.

    A column is dropped if it belongs to an interaction of factors and depends only on columns of that interaction and
    of its margins: then the dependence comes from combinations of levels without cells.

    Raises
    ------
    ValueError
        For any other dependence, with the columns that take part.
    """
    found = dependences(XX)
    for one in found:
        if not _from_empty_cells(one, terms):
            raise ValueError(_cause(one, names, terms))
    dropped = {one.column for one in found}
    return [j for j in range(len(names)) if j not in dropped], found


def _forward(L: np.ndarray, b: np.ndarray) -> np.ndarray:
    # L x = b for a lower triangular matrix
    if len(b) <= _SMALL:
        return np.linalg.solve(L, b)
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(L, b, lower=True, check_finite=False))


def _from_empty_cells(one: Dependence, terms: Terms) -> bool:
    term, product = _term_of(terms, one.column)
    if term is None or product is None or sum(part.is_factor for part in product.parts) < 2:
        return False
    variables = set(term.variables)
    return all(
        other is not None and set(other.variables) <= variables
        for other, _ in (_term_of(terms, column) for column in one.others)
    )


def _term_of(terms: Terms, column: int) -> tuple[Term | None, Product | None]:
    for term in terms:
        for product in term.products:
            if column in product.columns:
                return term, product
    return None, None


def _cause(one: Dependence, names: Sequence[str], terms: Terms) -> str:
    name = names[one.column]
    intercept = {column for term in terms if term.name == INTERCEPT for column in term.columns}
    if not one.others:
        return f"X is rank deficient: the column {name} is zero in every cell; drop its term from the formula"
    if set(one.others) <= intercept:
        return (
            f"X is rank deficient: the column {name} is constant up to rounding; drop its term from the formula, or "
            "subtract its mean, as with center(x), if it varies"
        )
    others = [names[column] for column in one.others if column not in intercept]
    shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
    return (
        f"X is rank deficient: in these cells the column {name} is a linear combination of {shown}, so that their "
        "effects are not identifiable apart; drop one of the terms, or make one of them a random effect"
    )
