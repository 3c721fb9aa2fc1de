"""Warnings where a test says less than it seems to: read off the summary statistics, never the cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..backend.arrays import to_numpy
from ..design.terms import Term, product_of, treatment_factor
from ..sumstats.summary_stats import SummaryStats
from .group_levels import Grouping, groupings
from .strata import IN_SPAN, strata

#: Fewer levels of a random effect than this in a tested group say next to nothing of how much they differ.
FEW = 3


def advise(summary: SummaryStats, C: np.ndarray, labels: Sequence[str]) -> Iterator[str]:
    """Yield what to know of tests of the contrasts `C` (c, p), one sentence for all contrasts of one kind."""
    groups = groupings(summary)
    empty = [f"{np.count_nonzero(group.counts == 0)} of {group.name}" for group in groups if (group.counts == 0).any()]
    if empty:
        yield f"levels of random effects have no cells ({', '.join(empty)}): leave their columns out of Z"
    few = list(dict.fromkeys(text for group in groups for c in C for text in _few_levels(summary, group, c)))
    if few:
        yield (
            f"{_shown(few)}: fewer than {FEW} hardly tell how much they differ, and p-values hang on the model; "
            "add samples, or read the result as a description of these"
        )
    bare = np.flatnonzero(varies_within(summary, C)).tolist()
    varied = [group.name for group in groups if np.count_nonzero(group.counts) > 1]
    if bare and varied:
        yield (
            f"what {_shown([repr(labels[i]) for i in bare])} compares varies within the levels of {varied[0]}, and no "
            "random effect lets its effect differ between them: where it does, p-values are too small. "
            + _remedy(summary, varied[0], C[bare])
        )


def advise_coding(summary: SummaryStats) -> Iterator[str]:
    """Yield what to know of tests of whole terms: the main effects of treatment-coded factors in an interaction."""
    terms = summary.terms or ()
    coded = [
        term.name
        for term in terms
        if any(term.parts.keys() < other.parts.keys() for other in terms)
        and any(part.reference is not None for part in term.factors.values())
    ]
    if coded:
        yield (
            f"{_shown(coded)}: treatment-coded and part of an interaction, so that what is tested is the effect at the "
            "other factor's reference level; for its average over the levels write "
            + " * ".join(f"C({name}, contr.sum)" for name in coded)
        )


def _few_levels(summary: SummaryStats, group: Grouping, c: np.ndarray) -> Iterator[str]:
    # groups of cells that the contrast compares, with cells of fewer than three levels
    between = c @ group.within @ c < IN_SPAN * (c @ to_numpy(summary.XX) @ c)
    if not between and group.counts.size < FEW:
        return
    names = summary.fixed_names
    everywhere = np.isclose(group.sums, group.counts[:, None]).all(axis=0)  # (p,): no group of cells, as the intercept
    for column in np.flatnonzero((c != 0) & group.indicators & ~everywhere):
        cells = {names[column]: group.sums[:, column]}  # (d,)
        if found := treatment_factor(summary.terms, int(column)):
            factor, others = found
            cells[f"the reference level of {factor.name}"] = group.counts - group.sums[:, others].sum(axis=1)
        for name, count in cells.items():
            levels = np.count_nonzero(count > 0.5)
            if levels < FEW:
                yield f"{name} has cells of {levels} {'level' if levels == 1 else 'levels'} of {group.name}"


def varies_within(summary: SummaryStats, C: np.ndarray) -> np.ndarray:
    """Which contrasts (c,) compare what varies within the levels of every random effect: they are in no span of one."""
    size = np.einsum("cp,pr,cr->c", C, to_numpy(summary.XX), C)
    inside = np.zeros(len(C), dtype=bool)
    for stratum in strata(summary):
        inside |= stratum.holds(C, size)
    return ~inside


def _remedy(summary: SummaryStats, group: str, C: np.ndarray) -> str:
    # the formula with random effects for what each of the contrasts C (c, p) compares
    if summary.formula is None:
        return f"Add columns to Z: one for each level of {group} and each group of cells that is compared"
    terms = dict.fromkeys(term for c in C for term in _slopes(summary.terms or (), group, c))
    return f"Write '{' + '.join([summary.formula, *terms])}'"


def _slopes(terms: Sequence[Term], group: str, c: np.ndarray) -> list[str]:
    # the random effects that let what one contrast (p,) compares differ between the levels of the group
    products = [product_of(terms, column) for column in np.flatnonzero(c).tolist()]
    parts = [part for product in products if product for part in product.parts]
    factors = dict.fromkeys(name for part in parts if part.is_factor for name in part.variables)
    covariates = dict.fromkeys(part.name for part in parts if not part.is_factor)
    return [f"(1 | {':'.join([group, *factors])})"] if factors else [f"(0 + {x} | {group})" for x in covariates]


def _shown(texts: Sequence[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
