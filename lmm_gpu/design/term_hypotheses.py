"""Hypotheses of an analysis of variance: rows over the coefficients for each term, of type I, II or III.

Type I tests a term after those before it, type II after all that do not contain it, both by the rows of the upper
triangular factor R of X'X = R'R with the columns in that order. Type III tests that the coefficients of the term are
zero in a model whose factors all have sum-to-zero coding: effects are averages over the levels of other factors,
however the formula codes them. A factor is contained in its interactions with factors, a covariate in its own
interactions.

References
----------
Goodnight (1978), Tests of hypotheses in fixed-effects linear models, SAS Technical Report R-101. Kuznetsova, Brockhoff
and Christensen (2017), lmerTest package: tests in linear mixed effects models, Journal of Statistical Software 82(13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .terms import INTERCEPT, Part, Product, Term

#: Accepted types of the table.
TYPES = {1: 1, 2: 2, 3: 3, "1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}
#: Coefficients below this are rounding errors of the change of coding.
_ZERO = 1e-10

#: A column in sum-to-zero coding: its covariates, and its factors with the number of their column.
Key = tuple[frozenset[str], frozenset[tuple[str, int]]]


def term_hypotheses(terms: Sequence[Term], XX: np.ndarray, kind: int | str) -> dict[str, np.ndarray]:
    """Return the rows (r, p) that each term but the intercept is tested by.

    Parameters
    ----------
    terms : sequence of Term
    XX : array (p, p)
        X'X.
    kind : {1, 2, 3} or {"I", "II", "III"}

    Raises
    ------
    ValueError
        For another type.

    Examples
    --------
    >>> import pandas as pd
    >>> from lmm_gpu.design.design import build_design
    >>> obs = pd.DataFrame({"arm": list("abab") * 3, "kind": list("xxyy") * 3, "donor": list("pppqqqrrrsss")})
    >>> design = build_design("~ arm * kind + (1 | donor)", obs)
    >>> rows = term_hypotheses(design.terms, design.X.T @ design.X, 3)
    >>> (abs(rows["arm"]) / abs(rows["arm"]).max()).tolist()  # the mean of the effects in both kinds
    [[0.0, 1.0, 0.0, 0.5]]
    """
    if isinstance(kind, bool) or kind not in TYPES:
        raise ValueError(f"type={kind!r} is not known; use 1, 2 or 3 (or 'I', 'II', 'III')")
    tested = [term for term in terms if term.name != INTERCEPT and term.columns]
    if TYPES[kind] == 3:
        return _marginal(terms, tested, len(XX))
    found = {}
    for place, term in enumerate(tested):
        before = tested[:place]
        if TYPES[kind] == 2:
            before = [other for other in tested if other is not term and not _contains(other, term)]
        found[term.name] = _adjusted(XX, _columns(terms, before), list(term.columns))
    return found


def has_empty_cells(terms: Sequence[Term]) -> bool:
    """Return whether columns of interactions were dropped because no cells have that combination of levels."""
    return any(column < 0 for term in terms for product in term.products for column in product.columns)


def _contains(larger: Term, term: Term) -> bool:
    covariates = [{name for name, part in one.parts.items() if not part.is_factor} for one in (larger, term)]
    return covariates[0] == covariates[1] and term.factors.keys() < larger.factors.keys()


def _columns(terms: Sequence[Term], chosen: Sequence[Term]) -> list[int]:
    intercept = [column for term in terms if term.name == INTERCEPT for column in term.columns]
    return intercept + [column for term in chosen for column in term.columns]


def _adjusted(XX: np.ndarray, before: list[int], columns: list[int]) -> np.ndarray:
    # rows of R of the columns, after those before them; the columns that follow count as zero in no row
    rest = [j for j in range(len(XX)) if j not in before and j not in columns]
    order = [*before, *columns, *rest]
    size = np.sqrt(np.diagonal(XX))[order]
    R = np.linalg.cholesky(XX[np.ix_(order, order)] / np.outer(size, size)).T * size
    rows = np.zeros((len(columns), len(XX)))
    rows[:, order] = R[len(before) : len(before) + len(columns)]
    return rows


def _marginal(terms: Sequence[Term], tested: Sequence[Term], p: int) -> dict[str, np.ndarray]:
    # by the coefficients in sum-to-zero coding; those that no term of the model has belong to the first to make them
    coefficients: dict[Key, np.ndarray] = {}
    made: dict[str, list[Key]] = {term.name: [] for term in terms}
    for term in sorted(terms, key=lambda term: len(term.parts)):
        for product in term.products:
            for place, column in enumerate(product.columns):
                for key, weight in _expanded(product, place).items():
                    if key not in coefficients:
                        coefficients[key] = np.zeros(p)
                        made[term.name].append(key)
                    if column >= 0:
                        coefficients[key][column] += weight
    exact = {_signature(term): term.name for term in terms}
    owner = {key: exact.get(_names(key), name) for name, keys in made.items() for key in keys}
    return {
        term.name: _independent(np.stack([coefficients[key] for key in coefficients if owner[key] == term.name]))
        for term in tested
        if term.products
    }


def _expanded(product: Product, place: int) -> Mapping[Key, float]:
    # one column of a product in sum-to-zero coding; columns of the first part vary fastest
    found: dict[Key, float] = {(frozenset(), frozenset()): 1.0}
    for part in product.parts:
        width = part.coding.shape[1] if part.is_factor else 1
        place, at = divmod(place, width)
        found = {
            (key[0] | more[0], key[1] | more[1]): weight * factor
            for key, weight in found.items()
            for more, factor in _expanded_part(part, at).items()
        }
    return found


def _expanded_part(part: Part, at: int) -> Mapping[Key, float]:
    if not part.is_factor:
        own: Mapping[Key, float] = {(frozenset([part.name]), frozenset()): 1.0}
        return own if part.origin == 0.0 else {**own, (frozenset(), frozenset()): -part.origin}
    levels = len(part.levels)
    sums = np.column_stack([np.ones(levels), np.vstack([np.eye(levels - 1), -np.ones(levels - 1)])])
    weights = np.linalg.solve(sums, part.coding[:, at])
    keys = [frozenset[tuple[str, int]](), *(frozenset([(part.name, j)]) for j in range(levels - 1))]
    return {(frozenset(), key): float(w) for key, w in zip(keys, weights, strict=True) if abs(w) > _ZERO}


def _signature(term: Term) -> tuple[frozenset[str], frozenset[str]]:
    covariates = frozenset(name for name, part in term.parts.items() if not part.is_factor)
    return covariates, frozenset(term.factors)


def _names(key: Key) -> tuple[frozenset[str], frozenset[str]]:
    return key[0], frozenset(name for name, _ in key[1])


def _independent(rows: np.ndarray) -> np.ndarray:
    # without rows of zeros, of columns that were dropped
    result: np.ndarray = rows[np.abs(rows).max(axis=1) > _ZERO]
    return result
