"""Terms of the fixed part of a formula: their columns of X, and the factors and covariates that these are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

INTERCEPT = "1"


@dataclass(frozen=True)
class Part:
    """A factor or a covariate as one term uses it.

    A factor is coded by one indicator per level, without that of the `reference` level if there is one, or by the
    rows of `values`, one per level. A covariate has no levels; its `values` are kept where its function depends on all
    cells, such as ``scale(age)``, and are those at the means of its variables.
    """

    name: str  #: as the formula writes it: ``condition``, ``C(arm, contr.sum)``, ``log(age)``
    variables: tuple[str, ...]  #: columns of obs that it uses
    levels: tuple[str, ...] = ()  #: of a factor, in the order of its coding
    reference: str | None = None  #: level that treatment coding leaves out
    values: tuple[tuple[float, ...], ...] = ()
    means: tuple[float | None, ...] = ()  #: of the variables of a covariate less its origin, None for text
    origin: float = 0.0  #: value that was subtracted from a covariate far from zero for its spread

    @property
    def is_factor(self) -> bool:
        """True for a factor, False for a covariate."""
        return bool(self.levels)

    @property
    def coding(self) -> np.ndarray:
        """Rows of a factor's levels (levels, columns)."""
        if self.values:
            return np.asarray(self.values, dtype=float)
        kept = [place for place, level in enumerate(self.levels) if level != self.reference]
        return np.eye(len(self.levels))[:, kept]


@dataclass(frozen=True)
class Product:
    """Columns of X that are all products of one column of each part; those of the first part vary fastest."""

    columns: tuple[int, ...]
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Term:
    """One term of the fixed part.

    Examples
    --------
    >>> arm = Part("arm", ("arm",), ("ctrl", "stim"), "ctrl")
    >>> term = Term("arm", (1,), (Product((1,), (arm,)),))
    >>> term.factors["arm"].levels, term.variables
    (('ctrl', 'stim'), ('arm',))
    """

    name: str  #: as formulaic writes it: ``condition:age``; ``1`` is the intercept
    columns: tuple[int, ...]  #: of X, by position
    products: tuple[Product, ...] = ()  #: empty if unknown: statistics of an older version
    missing: tuple[tuple[tuple[str, int], ...], ...] = ()  #: combinations of levels, by factor and place, without cells

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Parts of the term, by name."""
        return {part.name: part for product in self.products for part in product.parts}

    @property
    def factors(self) -> dict[str, Part]:
        """Factors of the term, by name."""
        return {name: part for name, part in self.parts.items() if part.is_factor}

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns of obs that the term uses."""
        return tuple(dict.fromkeys(name for part in self.parts.values() for name in part.variables))

    def keeping(self, positions: Sequence[int]) -> Term:
        """Return the term of a design that keeps only the columns at `positions`, in this order."""
        place = {column: new for new, column in enumerate(positions)}
        columns = tuple(place[column] for column in self.columns if column in place)
        products = tuple(
            replace(product, columns=tuple(place.get(column, -1) for column in product.columns))
            for product in self.products
        )
        return Term(self.name, columns, products, self.missing)


Terms = tuple[Term, ...]


def product_of(terms: Sequence[Term], column: int) -> Product | None:
    """Return the product that a column of X belongs to, None if it is unknown."""
    found = (product for term in terms for product in term.products if column in product.columns)
    return next(found, None)


def treatment_factor(terms: Sequence[Term] | None, column: int) -> tuple[Part, tuple[int, ...]] | None:
    """Return the factor that a column of X is a treatment-coded main effect of, and the columns of that factor.

    Examples
    --------
    >>> arm = Part("arm", ("arm",), ("ctrl", "low", "high"), "ctrl")
    >>> part, columns = treatment_factor([Term("arm", (1, 2), (Product((1, 2), (arm,)),))], 2)
    >>> part.reference, columns
    ('ctrl', (1, 2))
    """
    product = product_of(terms or (), column)
    if product is None or len(product.parts) != 1 or product.parts[0].reference is None:
        return None
    return product.parts[0], tuple(column for column in product.columns if column >= 0)


def terms_to_json(terms: Terms) -> str:
    """Terms as text, for a file."""
    return json.dumps([_term_as_dict(term) for term in terms])


def terms_from_json(text: str) -> Terms:
    """Read what `terms_to_json` wrote, or the pairs (name, columns) of older files.

    Examples
    --------
    >>> terms_from_json('[["1", [0]], ["arm", [1, 2]]]')[1].columns
    (1, 2)
    >>> terms = (Term("arm", (0,), (Product((0,), (Part("arm", ("arm",), ("a", "b"), "a"),)),)),)
    >>> terms_from_json(terms_to_json(terms)) == terms
    True
    """
    return tuple(
        _term_from_dict(item) if isinstance(item, dict) else Term(str(item[0]), tuple(item[1]))
        for item in json.loads(text)
    )


def check_same_terms(left: Sequence[Term], right: Sequence[Term]) -> None:
    """Refuse terms whose columns have the same names but another meaning: other levels or another coding.

    Raises
    ------
    ValueError
        With the factor and its levels on both sides.
    """
    for a, b in zip(_all_parts(left), _all_parts(right), strict=False):
        if a.name == b.name and a.origin != b.origin:
            raise ValueError(
                f"the covariate {a.name} lies far from zero for its spread and is recorded from other origins, "
                f"{a.origin:.15g} and {b.origin:.15g}: write I({a.name} - {a.origin or b.origin:.15g}) in the formula "
                "of every site"
            )
        if a.name == b.name and a.is_factor and (a.levels, a.reference, a.values) != (b.levels, b.reference, b.values):
            only = {"left": set(a.levels) - set(b.levels), "right": set(b.levels) - set(a.levels)}
            where = "; ".join(f"only on the {side}: {', '.join(sorted(more))}" for side, more in only.items() if more)
            raise ValueError(
                f"the factor {a.name} has other levels or another order of levels on both sides "
                f"({where or f'{list(a.levels)} and {list(b.levels)}'}): {advice_for_levels(a, b)}"
            )


def advice_for_levels(*parts: Part) -> str:
    """Say how a formula names all the levels of a factor, for sites of which each has only some."""
    union = sorted({level for part in parts for level in part.levels})
    shown = ", ".join(repr(level) for level in union[:6]) + (", ..." if len(union) > 6 or len(parts) == 1 else "")
    name = parts[0].variables[0]
    return f"name all levels in the formula of every site, C({name}, levels=[{shown}])"


def merged_terms(left: Terms, n_left: int, right: Terms, n_right: int) -> Terms:
    """Terms of the cells of both sides: as on the left, with means of covariates over all cells."""
    means = {part.name: part.means for part in _all_parts(right)}

    def merge(part: Part) -> Part:
        pairs = zip(part.means, means.get(part.name, part.means), strict=True)
        return replace(part, means=tuple(_mean(a, n_left, b, n_right) for a, b in pairs))

    return tuple(
        replace(
            term,
            products=tuple(replace(item, parts=tuple(map(merge, item.parts))) for item in term.products),
        )
        for term in left
    )


def _mean(a: float | None, n_a: int, b: float | None, n_b: int) -> float | None:
    return None if a is None or b is None else (n_a * a + n_b * b) / (n_a + n_b)


def _all_parts(terms: Sequence[Term]) -> Iterator[Part]:
    return (part for term in terms for product in term.products for part in product.parts)


def _term_as_dict(term: Term) -> dict[str, object]:
    products = [
        {"columns": product.columns, "parts": [_stored(part) for part in product.parts]} for product in term.products
    ]
    return {"name": term.name, "columns": term.columns, "products": products, "missing": term.missing}


def _stored(part: Part) -> dict[str, object]:
    # without what has its default
    return {name: value for name, value in vars(part).items() if name == "name" or value not in ((), None, 0.0)}


def _term_from_dict(item: dict[str, Any]) -> Term:
    products = (
        Product(tuple(product["columns"]), tuple(_part_from_dict(part) for part in product["parts"]))
        for product in item["products"]
    )
    missing = tuple(tuple((str(name), int(place)) for name, place in one) for one in item.get("missing", ()))
    return Term(str(item["name"]), tuple(item["columns"]), tuple(products), missing)


def _part_from_dict(item: dict[str, Any]) -> Part:
    values = tuple(tuple(row) for row in item.get("values", ()))
    listed = {name: tuple(item.get(name, ())) for name in ("variables", "levels", "means")}
    origin = float(item.get("origin", 0.0))
    return Part(str(item["name"]), reference=item.get("reference"), values=values, origin=origin, **listed)
