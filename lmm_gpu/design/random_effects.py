"""Random terms of a formula as blocks of Z: the level of each cell, and the values of the effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend.late_imports import scipy
from .distinct_rows import combined_codes
from .fixed_effects import fixed_columns
from .formula import TermText
from .obs_columns import ObsColumns

#: Random effects that a term may have per group.
MOST_EFFECTS = 100
#: Slopes of a covariate whose mean is this many times its standard deviation are refused.
_FAR = 1e4
#: Groups that are looked at to find out if the covariance matrix of a term is identifiable.
_GROUPS = 2_000
#: Eigenvalues below this share of the largest are zero.
_ZERO = 1e-9


@dataclass(frozen=True, eq=False)
class RandomTerm:
    """Random effects of one grouping that share one covariance matrix: one or several columns per group."""

    group: str  #: ``donor``, ``donor:cell_type``
    effects: tuple[str, ...]  #: ``Intercept``, ``age``, ``condition[T.stim]``; k of them
    codes: np.ndarray  #: (n,), the group of each cell
    levels: tuple[str, ...]  #: (G,)
    values: np.ndarray | None = None  #: (n, k), None for a random intercept alone
    independent: bool = False  #: one of the effects of a double bar

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of its variances: ``donor`` of an intercept, ``age|donor`` of a slope, ``donor.age`` if correlated."""
        alone = self.independent or len(self.effects) == 1
        return tuple(
            self.group if effect == "Intercept" else f"{effect}|{self.group}" if alone else f"{self.group}.{effect}"
            for effect in self.effects
        )

    @property
    def random_names(self) -> tuple[str, ...]:
        """Names of its columns of Z, effect by effect."""
        return tuple(f"{name}[{level}]" for name in self.component_names for level in self.levels)


def random_terms(texts: Sequence[TermText], columns: ObsColumns) -> tuple[RandomTerm, ...]:
    """Evaluate the random terms of a formula.

    ``(x | g)`` is one term with correlated effects; ``(x || g)`` gives one term for each effect.

    Raises
    ------
    ValueError
        As `lmm_gpu.design.build_design` for the random part.
    """
    terms = tuple(term for text in texts for term in _terms(text, columns))
    _refuse_duplicates(terms)
    return terms


def indicator_matrix(terms: Sequence[RandomTerm]) -> scipy.sparse.csr_array:
    """Z (n, q) from the codes: every row has one value for each effect; terms and effects in order."""
    blocks = [(term, effect) for term in terms for effect in range(len(term.effects))]
    n, k = len(terms[0].codes), len(blocks)
    widths = [len(term.levels) for term, _ in blocks]
    offsets = np.cumsum([0, *widths[:-1]])  # (k,)
    places = np.stack([term.codes for term, _ in blocks], axis=1) + offsets  # (n, k)
    ones = np.ones(n)
    values = np.stack([ones if term.values is None else term.values[:, i] for term, i in blocks], axis=1)  # (n, k)
    kind = scipy.sparse.get_index_dtype(maxval=max(n * k, sum(widths)))
    index = places.ravel().astype(kind), np.arange(0, n * k + 1, k, dtype=kind)
    return scipy.sparse.csr_array((values.ravel(), *index), shape=(n, sum(widths)))


def _terms(text: TermText, columns: ObsColumns) -> Iterator[RandomTerm]:
    values, effects = _effects(text, columns)  # (n, k)
    codes, levels = _groups(text, columns)  # (n,)
    _check_levels(text, len(levels), len(effects), len(codes), levels[0])
    if text.independent or len(effects) == 1:
        for i, effect in enumerate(effects):
            column = None if effect == "Intercept" else values[:, [i]]
            yield RandomTerm(text.group, (effect,), codes, levels, column, text.independent)
        return
    _check_identifiable(text, codes, values)
    yield RandomTerm(text.group, effects, codes, levels, values)


def _effects(text: TermText, columns: ObsColumns) -> tuple[np.ndarray, tuple[str, ...]]:
    """Evaluate the effects left of the bar: values (n, k) and names."""
    if text.effects.replace(" ", "") in ("0", "-1", "1-1", "0+0"):
        raise ValueError(f"{text} has no random effect: write (1 | {text.group}) or (0 + x | {text.group})")
    fixed = fixed_columns(text.effects, columns, origins=False)
    if len(fixed.names) > MOST_EFFECTS:
        raise ValueError(
            f"{text} has {len(fixed.names)} random effects per group, and at most {MOST_EFFECTS} are fitted: for a "
            f"shift of each level write a grouping, such as (1 | {text.group}:factor)"
        )
    X = fixed.X
    mean, spread = X.mean(axis=0), X.std(axis=0)
    for i in np.flatnonzero((spread > 0) & (np.abs(mean) > _FAR * spread)):
        name = fixed.names[i]
        raise ValueError(
            f"{text}: {name} lies far from zero for its spread (mean {mean[i]:.6g}, SD {spread[i]:.3g}), so that its "
            f"slopes and the intercepts of the groups are not identifiable apart: write center({name}) in its place"
        )
    return X, fixed.names


def _groups(text: TermText, columns: ObsColumns) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the group of each cell (n,) and the names of the groups: only combinations that have cells."""
    factors = [columns.groups(name) for name in text.groups]
    codes, first = combined_codes([(codes, len(names)) for codes, names in factors], len(columns))
    levels = (":".join(names[part[cell]] for part, names in factors) for cell in first)
    return codes, tuple(levels)


def _check_levels(text: TermText, groups: int, effects: int, n: int, first: str) -> None:
    if groups < 2:
        raise ValueError(
            f"{text} has a single group, {text.group} = {first}: a variance between groups needs two groups or more; "
            "drop the term or group by another column"
        )
    if groups == n:
        raise ValueError(
            f"{text} has as many groups as there are cells ({n}), so that it is confounded with the residual: drop the "
            "term or group by another column"
        )
    if groups * effects >= n and not text.independent:
        raise ValueError(
            f"{text} has {effects} effects in each of {groups} groups, which is more than {n} cells determine: drop "
            "effects, or group by another column"
        )


def _check_identifiable(text: TermText, codes: np.ndarray, values: np.ndarray) -> None:
    """Refuse a term whose groups do not determine its covariance matrix, such as effects of what no group varies in.

    The covariance of a group is Z_g Sigma Z_g'. Sigma is identifiable if no other symmetric matrix gives the same in
    all groups: if the sum over groups of the Kronecker squares of Z_g'Z_g is regular on the symmetric matrices.
    """
    k = values.shape[1]
    scale = np.linalg.norm(values, axis=0) / np.sqrt(len(values))
    if not scale.all():
        raise ValueError(f"{text} has an effect that is zero in every cell: drop it")
    counts = np.bincount(codes)
    largest = np.argsort(counts)[::-1][:_GROUPS]
    pairs = [(a, b) for a in range(k) for b in range(a, k)]
    basis = np.zeros((len(pairs), k, k))
    for row, (a, b) in enumerate(pairs):
        basis[row, a, b] = basis[row, b, a] = 1.0
    gram = np.zeros((len(pairs), len(pairs)))
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(counts)
    for group in largest:
        Z = values[order[ends[group] - counts[group] : ends[group]]] / scale
        ZZ = Z.T @ Z / counts[group]
        moved = ZZ @ basis @ ZZ  # (pairs, k, k)
        gram += np.einsum("pij,qij->pq", basis, moved)
    eigenvalues = np.linalg.eigvalsh(gram)
    if eigenvalues[0] <= _ZERO * eigenvalues[-1]:
        raise ValueError(
            f"{text} has {k} effects per group, and the cells of a group do not determine their covariances, as for "
            f"an effect that is constant within groups: drop effects, or write ({text.effects} || {text.group}) for "
            "effects without correlations"
        )


def _refuse_duplicates(terms: Sequence[RandomTerm]) -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    for term in terms:
        for effect, name in zip(term.effects, term.component_names, strict=True):
            key = (effect, frozenset(term.group.split(":")))
            if key in seen:
                raise ValueError(f"the random term {name} appears twice: keep one of them")
            seen.add(key)
