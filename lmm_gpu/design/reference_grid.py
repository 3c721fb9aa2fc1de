"""Reference grid of a model: rows of X at combinations of the levels of its factors and values of its covariates."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from .terms import Part, Term, Terms

#: Combinations of levels of one term that are looked at for cells, at most.
_MOST_CELLS = 100_000
#: Shares of cells and entries of indicators, between 0 and 1, are exact up to this rounding error of a solve.
_EMPTY, _EXACT = 1e-12, 1e-9
#: A row of X times a null vector is zero if it is below this share of the sum of the sizes of its terms.
_CANCELLED = 1e-6


@dataclass(frozen=True)
class ReferenceGrid:
    """Rows of X at combinations of levels and values of covariates."""

    terms: Terms
    p: int
    factors: dict[str, Part]  #: by the variable, or by the expression of a computed factor
    covariates: dict[str, list[Part]]  #: by the variable
    proportional: np.ndarray | None = field(default=None, repr=False)  #: X'X, None for equal weights

    @classmethod
    def of(cls, terms: Terms | None, p: int, weights: str = "equal", XX: np.ndarray | None = None) -> ReferenceGrid:
        """Grid of a model.

        Raises
        ------
        ValueError
            If the terms are unknown, or for unknown `weights`.
        """
        if not terms or not all(term.products for term in terms):
            raise ValueError(
                "the factors of the model are unknown: it was given as matrices, or its statistics were saved by an "
                "older version; name the contrast by columns, as in fit.test('condition[T.stim]')"
            )
        if weights not in ("equal", "proportional") or (weights == "proportional" and XX is None):
            raise ValueError(f"weights={weights!r} is not known; use 'equal' or 'proportional'")
        parts = [part for term in terms for part in term.parts.values()]
        factors: dict[str, Part] = {}
        covariates: dict[str, list[Part]] = {}
        for part in parts:
            if part.is_factor:
                factors.setdefault(factor_key(part), part)
            else:
                for name in part.variables:
                    covariates.setdefault(name, []).append(part)
        return cls(terms, p, factors, covariates, XX if weights == "proportional" else None)

    def known(self, name: str) -> str:
        """Return `name` if it is a factor or covariate of the model; otherwise raise a ValueError."""
        every = sorted({*self.factors, *self.covariates})
        if name in every:
            return name
        raise ValueError(f"the model has no factor or covariate {name!r}; it has {_known(str(name), every) or 'none'}")

    def levels(self, name: str) -> tuple[str, ...]:
        """Levels of a factor."""
        if name not in self.factors:
            raise ValueError(f"{name} is a covariate of the model and has no levels: hold it at= a value")
        return self.factors[name].levels

    def row(self, at: Mapping[str, Any]) -> np.ndarray:
        """Mean row of X (p,) with variables held `at` levels, lists of levels or values, others averaged."""
        held = {name: self._weights(name, value) for name, value in at.items() if name in self.factors}
        free = [name for name in self.factors if name not in held]
        total = np.zeros(self.p)
        for share, cells in self._averaged(free):
            total += share * self._product_row(held | cells, at)
        return total

    def _weights(self, name: str, value: Any) -> np.ndarray:
        levels = self.factors[name].levels
        chosen = [str(item) for item in value] if isinstance(value, (list, tuple, set)) else [_level(value, levels)]
        unknown = [level for level in chosen if level not in levels]
        if unknown or not chosen:
            shown = _known(unknown[0] if unknown else "", levels)
            raise ValueError(f"{name} has no level {unknown[0] if unknown else chosen!r}; it has {shown}")
        return np.array([chosen.count(level) / len(chosen) for level in levels])

    def _averaged(self, free: Sequence[str]) -> Iterator[tuple[float, dict[str, np.ndarray]]]:
        """Yield shares and weights of levels of the factors that are averaged over."""
        if self.proportional is None or not free:
            yield 1.0, {name: np.full(len(self.levels(name)), 1 / len(self.levels(name))) for name in free}
            return
        if len(free) > 2:
            raise ValueError(
                f"weights='proportional' needs the cells of combinations of {', '.join(free)}, which X'X does not "
                "determine for more than two factors: use weights='equal', or hold some at= levels"
            )
        indicators = [self._indicators(name) for name in free]  # (p, levels)
        last = indicators[1] if len(free) == 2 else self._constant()[:, None]
        counts = indicators[0].T @ self.proportional @ last
        shares = np.maximum(counts, 0.0) / np.maximum(counts, 0.0).sum()
        for i, j in zip(*np.nonzero(shares > _EMPTY), strict=True):
            places = (i, j)[: len(free)]
            yield (
                float(shares[i, j]),
                {name: np.eye(len(self.levels(name)))[at] for name, at in zip(free, places, strict=True)},
            )

    def _indicators(self, name: str) -> np.ndarray:
        """Coefficients (p, levels) with which X makes the indicators of the levels of a factor."""
        return self._solved([name], np.eye(len(self.levels(name))))

    def _constant(self) -> np.ndarray:
        name = next(iter(self.factors))
        return self._solved([name], np.ones((len(self.levels(name)), 1)))[:, 0]

    def _solved(self, names: Sequence[str], wanted: np.ndarray) -> np.ndarray:
        # rows of X at the levels of one factor, others and covariates out of play
        columns = [
            column
            for term in self.terms
            if all(part.is_factor and factor_key(part) in names for part in term.parts.values())
            for column in term.columns
        ]
        name = names[0]
        rows = np.stack(
            [self._product_row({name: one}, {}, only=columns) for one in np.eye(len(self.levels(name)))]
        )  # (levels, p)
        found = np.linalg.lstsq(rows[:, columns], wanted, rcond=None)[0]
        if not np.allclose(rows[:, columns] @ found, wanted, rtol=0.0, atol=_EXACT):
            raise ValueError(
                f"weights='proportional' needs the main effect of {name} in the model: add it, or use weights='equal'"
            )
        full = np.zeros((self.p, wanted.shape[1]))
        full[columns] = found
        return full

    def _product_row(
        self, levels: Mapping[str, np.ndarray], at: Mapping[str, Any], only: Sequence[int] | None = None
    ) -> np.ndarray:
        """Row of X (p,) at weights of the levels of each factor."""
        row = np.zeros(self.p)
        for term in self.terms:
            if only is not None and not set(term.columns) <= set(only):
                continue
            _check_cells(term, levels)
            for item in term.products:
                values = np.ones(1)
                for part in item.parts:
                    more = levels[factor_key(part)] @ part.coding if part.is_factor else covariate_values(part, at)
                    values = np.outer(more, values).ravel()  # the first part varies fastest
                for column, value in zip(item.columns, values, strict=True):
                    if column >= 0:
                        row[column] = value
        return row


def factor_key(part: Part) -> str:
    """Name of a factor for the user: the column of obs, or the expression of a computed factor.

    Examples
    --------
    >>> factor_key(Part("C(arm, contr.sum)", ("arm",), ("a", "b"))), factor_key(Part("C(x > 0)", ("x",), ("a", "b")))
    ('arm', 'C(x > 0)')
    """
    name = part.variables[0]
    inside = part.name.removeprefix("C(").removesuffix(")").partition(",")[0].strip().strip("`")
    return name if len(part.variables) == 1 and name in (part.name, inside) else part.name


def covariate_values(part: Part, at: Mapping[str, Any]) -> np.ndarray:
    """Columns of a covariate at given values of its variables, others at their means.

    Raises
    ------
    ValueError
        If the values are not numbers, or the columns depend on all cells and cannot be computed at other values.
    """
    held = {name: _number(name, at[name]) - part.origin for name in part.variables if name in at}
    row = dict(zip(part.variables, part.means, strict=True)) | held
    missing = [name for name, value in row.items() if value is None]
    if missing:
        raise ValueError(f"{part.name} uses the text of {missing[0]}: marginal means need it as a factor")
    if part.values and held:
        raise ValueError(
            f"{part.name} depends on all cells, so that its columns at {next(iter(held))}={at[next(iter(held))]} are "
            "unknown: compute the transformed column in obs first"
        )
    if part.values:
        return np.asarray(part.values[0])
    if part.name in row:
        return np.array([row[part.name]], dtype=float)
    from .coding import checked_covariate

    return checked_covariate(part.name, {name: [value] for name, value in row.items()})


def _check_cells(term: Term, levels: Mapping[str, np.ndarray]) -> None:
    for combination in term.missing:
        weights = [levels[name][place] for name, place in combination if name in levels]
        if len(weights) == len(combination) and all(weight > 0 for weight in weights):
            shown = ", ".join(f"{name} number {place + 1}" for name, place in combination)
            raise ValueError(
                f"a marginal mean is not estimable: no cells have the combination of levels of {term.name} ({shown}); "
                "hold its factors at= levels with cells, or compare them by= these"
            )


def _level(value: Any, levels: Sequence[str]) -> str:
    text = str(value)
    return text if text in levels or not isinstance(value, float) or not value.is_integer() else str(int(value))


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: expected a number, as {name} is a covariate of the model") from None


def terms_with_missing_cells(terms: Terms, p: int, null: Sequence[np.ndarray]) -> Terms:
    """Terms that record which combinations of levels have no cells, from vectors (p,) with X null = 0.

    A combination has no cells if its row of X times such a vector is not zero.
    """
    grid = ReferenceGrid.of(terms, p)
    first = {name: np.eye(len(part.levels))[0] for name, part in grid.factors.items()}
    found = []
    for term in terms:
        names = [factor_key(part) for part in term.factors.values()]
        sizes = [len(grid.levels(name)) for name in names]
        if len(names) < 2 or np.prod(sizes) > _MOST_CELLS:
            found.append(term)
            continue
        missing = []
        for places in product(*map(range, sizes)):
            one = {name: np.eye(size)[place] for name, size, place in zip(names, sizes, places, strict=True)}
            row = grid._product_row(first | one, {})
            if any(abs(row @ vector) > _CANCELLED * (abs(row) @ abs(vector)) for vector in null):
                missing.append(tuple(zip(names, places, strict=True)))
        found.append(Term(term.name, term.columns, term.products, tuple(missing)))
    return tuple(found)


def _known(name: str, names: Sequence[str]) -> str:
    """List of names for a message, those that resemble `name` first."""
    close = difflib.get_close_matches(name, names)
    ordered = list(dict.fromkeys([*close, *names]))
    return ", ".join(ordered[:10]) + (", ..." if len(ordered) > 10 else "")
