"""Warnings about tests that the data do not support well: found in the summary statistics, never in the cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.late_imports import scipy
from ..design.terms import Term, product_of, treatment_factor
from ..sumstats.summary_stats import SummaryStats
from .group_levels import Grouping, groupings
from .missing_margins import missing_margins
from .pooled_variances import ObservedVariance, observed_variances
from .rare_counts import LEVEL, too_rare
from .strata import between_within_df, strata, tested_between

#: With fewer levels of a random effect than this in a tested group, its variance there can hardly be estimated.
FEW = 3
#: A contrast varies within the levels of a random effect if more than this share of its squared weights does.
_WITHIN = 0.1
#: Variances are unequal if the average ratio makes this many times too many false positives at 5 %, or if this share of
#: the genes deviates. Permuted real data reach 1.4 and 1 %.
_TOO_MANY, _DEVIATING = 1.5, 0.05
#: With so few df and so many genes hardly anything is significant after a correction for multiple tests.
_FEW_DF, MANY_GENES = 4, 20
#: Share of genes with rare counts from which it is said.
_RARE_SHARE = 0.05


def diagnose(
    summary: SummaryStats, C: np.ndarray, labels: Sequence[str], theta: np.ndarray | None = None
) -> Iterator[str]:
    """Yield warnings about tests of the contrasts `C` (c, p), one sentence for all contrasts of one kind.

    With the variances `theta` (k+1, m) of the fit, variances that differ between levels are looked for as well.
    """
    groups = groupings(summary)
    empty = [f"{np.count_nonzero(group.counts == 0)} of {group.name}" for group in groups if (group.counts == 0).any()]
    if empty:
        yield f"levels of random effects have no cells ({', '.join(empty)}): leave their columns out of Z"
    few = list(dict.fromkeys(text for group in groups for c in C for text in _few_levels(summary, group, c)))
    if few:
        yield (
            f"{_listed(few)}: fewer than {FEW} are too few to estimate how much they differ, and p-values depend on "
            "the model; add samples, or read the result as a description of these"
        )
    yield from _missing_random_effects(summary, C, labels, groups)
    yield from _missing_margins(summary, C, labels, groups)
    yield from _few_df(summary, C, labels)
    yield from _unequal_variances(summary, C, labels, theta)
    yield from _rare_counts(summary, C, labels, groups)


def _missing_margins(
    summary: SummaryStats, C: np.ndarray, labels: Sequence[str], groups: Sequence[Grouping]
) -> Iterator[str]:
    found = list(missing_margins(summary, C, groups))
    if found:
        added = dict.fromkeys(f"(1 | {':'.join(map(_quoted, margin.split(':')))})" for _, margin in found)
        listed = _listed([repr(labels[i]) for i in sorted({i for i, _ in found})])
        remedy = (
            f"Write '{' + '.join([summary.formula, *added])}'" if summary.formula else f"Add {' + '.join(added)} to Z"
        )
        yield (
            f"{listed}: an average over levels of other factors, for which the interaction among the random effects "
            f"alone is not enough: p-values are too small where such averages vary. {remedy}"
        )


def diagnose_untestable(summary: SummaryStats, C: np.ndarray, labels: Sequence[str], rank: int) -> Iterator[str]:
    """Yield a warning for each random effect between whose levels contrasts of `C` have no df; `rank` is of Z after X.

    p-values of these contrasts are NaN.
    """
    untestable = np.isnan(between_within_df(summary, C, rank))
    names = dict.fromkeys(
        "the residual" if one is None else summary.component_names[one.component]
        for one, lost in zip(tested_between(strata(summary), C), untestable, strict=True)
        if lost
    )
    for name in names:
        listed = _listed([repr(labels[i]) for i in np.flatnonzero(untestable).tolist()])
        yield (
            f"{listed}: no degrees of freedom are left to compare levels of {name}, so that p-values are NaN; a test "
            "needs more levels than fixed effects that differ between them, such as two donors in a group"
        )


def _missing_random_effects(
    summary: SummaryStats, C: np.ndarray, labels: Sequence[str], groups: Sequence[Grouping]
) -> Iterator[str]:
    varied = [group for group in groups if np.count_nonzero(group.counts) > 1]
    if not varied:
        return
    group, inside = varied[0], varies_within(summary, C)
    bare = [i for i in np.flatnonzero(inside).tolist() if not _single_cells(summary, group, C[i])]
    if bare:
        yield (
            f"{_listed([repr(labels[i]) for i in bare])}: the compared cells lie within the levels of {group.name}, "
            "and no random effect lets the difference vary between the levels: where it does, p-values are too small. "
            + _remedy(summary, group, C[bare])
        )


def _few_df(summary: SummaryStats, C: np.ndarray, labels: Sequence[str]) -> Iterator[str]:
    if summary.m < MANY_GENES:
        return
    found: dict[tuple[str, float], list[str]] = {}
    for label, stratum in zip(labels, tested_between(strata(summary), C), strict=True):
        if stratum is not None and 0 < stratum.df <= _FEW_DF:
            found.setdefault((summary.component_names[stratum.component], stratum.df), []).append(repr(label))
    for (name, df), of_kind in found.items():
        errors = -float(scipy.special.stdtrit(df, LEVEL / 2))
        yield (
            f"{_listed(of_kind)}: {df:.0f} degrees of freedom between levels of {name}, so that a p-value of {LEVEL:g} "
            f"needs an effect of {errors:.1f} standard errors, and few genes will pass a correction for many tests; "
            "dream's moderated tests of pseudobulk samples find more"
        )


def _unequal_variances(
    summary: SummaryStats, C: np.ndarray, labels: Sequence[str], theta: np.ndarray | None
) -> Iterator[str]:
    found: dict[tuple[int, bool], list[tuple[str, ObservedVariance]]] = {}
    for label, one in zip(labels, observed_variances(summary, theta, C), strict=True):
        if one is not None and (one.too_many >= _TOO_MANY or one.deviating >= _DEVIATING):
            found.setdefault((one.component, one.partial), []).append((label, one))
    for (component, partial), of_kind in found.items():
        _, worst = max(of_kind, key=lambda pair: (pair[1].too_many, pair[1].deviating))
        remedy = "fit the compared cells by themselves" if partial else "compare groups of similar size"
        shown = _listed([repr(label) for label, _ in of_kind])
        yield (
            f"{shown}: the variances that the model has in common for all levels of "
            f"{summary.component_names[component]} are too small for the compared cells (the estimate varies "
            f"{worst.ratio:.1f} times as much on average, and clearly more in {worst.deviating:.0%} of the genes), so "
            f"that p-values are too small; {remedy}"
        )


def _rare_counts(
    summary: SummaryStats, C: np.ndarray, labels: Sequence[str], groups: Sequence[Grouping]
) -> Iterator[str]:
    if not groups:
        return
    inside, columns = varies_within(summary, C), groups[0].indicators & ~_everywhere(groups[0])
    rare = {labels[i]: too_rare(summary, C[i], columns) for i in np.flatnonzero(inside).tolist()}
    counted = {label: int(genes.sum()) for label, genes in rare.items() if genes is not None}
    warned = [label for label, count in counted.items() if count >= _RARE_SHARE * summary.m]
    if warned:
        yield (
            f"{_listed([repr(label) for label in warned])}: few cells are compared with many, and "
            f"{max(counted.values()):,} of {summary.m:,} genes have counts in hardly any of the few: their p-values "
            f"below {LEVEL:g} are several times too frequent; leave them out, or compare similar numbers of cells"
        )


def _few_levels(summary: SummaryStats, group: Grouping, c: np.ndarray) -> Iterator[str]:
    # groups of cells that the contrast compares, with cells of fewer than three levels
    if varies_within(summary, c[None], group.within)[0] and group.counts.size < FEW:
        return
    for name, count in _compared(summary, group, c).items():
        levels = np.count_nonzero(count > 0.5)
        if levels < FEW:
            yield f"{name} has cells of {levels} {'level' if levels == 1 else 'levels'} of {group.name}"


def _compared(summary: SummaryStats, group: Grouping, c: np.ndarray) -> dict[str, np.ndarray]:
    # cells of each level (d,), of the groups of cells that indicator columns of the contrast name
    names, found = summary.fixed_names, {}
    for column in np.flatnonzero((c != 0) & group.indicators & ~_everywhere(group)):
        found[names[column]] = group.sums[:, column]
        if treatment := treatment_factor(summary.terms, int(column)):
            factor, others = treatment
            found[f"the reference level of {factor.name}"] = group.counts - group.sums[:, others].sum(axis=1)
    return found


def _everywhere(group: Grouping) -> np.ndarray:
    # columns (p,) that are 1 in every cell: the intercept is no group of cells
    found: np.ndarray = (group.sums == group.counts[:, None]).all(axis=0)
    return found


def _single_cells(summary: SummaryStats, group: Grouping, c: np.ndarray) -> bool:
    # whether each level has at most one cell in every compared group: its deviation is then part of the residual
    compared = _compared(summary, group, c)
    return bool(compared) and all(count.max(initial=0.0) < 1.5 for count in compared.values())


def varies_within(summary: SummaryStats, C: np.ndarray, within: np.ndarray | None = None) -> np.ndarray:
    """Contrasts (c,) whose estimate compares cells within the levels of every random effect (bool).

    At least a tenth of the squared weights l of ordinary least squares, c'beta = l'y, lies within the levels: they
    depend on the hypothesis, not on the coding of X. `within` (p, p) is the within-level Gram matrix of a single
    random effect to look at.
    """
    XX = to_numpy(summary.XX)
    U = np.linalg.solve(XX, C.T).T  # (c, p), l = X u
    size = np.einsum("cp,pr,cr->c", U, XX, U)
    grams = [one.within_gram for one in strata(summary)] if within is None else [within]
    inside = [np.einsum("cp,pr,cr->c", U, gram, U) > _WITHIN * size for gram in grams]
    result: np.ndarray = np.all(inside, axis=0)
    return result


def _remedy(summary: SummaryStats, group: Grouping, C: np.ndarray) -> str:
    # the formula with random effects for what each of the contrasts C (c, p) compares
    if summary.formula is None:
        return f"Add columns to Z: one for each level of {group.name} and each group of cells that is compared"
    terms, present = summary.terms or (), "".join(summary.formula.split())

    def absent(rows: np.ndarray) -> list[str]:
        found = dict.fromkeys(term for c in rows for term in _slopes(summary, terms, group, c))
        return [term for term in found if "".join(term.split()) not in present]

    added = absent(C) or absent(_with_interactions(terms, C))
    return f"Write '{' + '.join([summary.formula, *added])}'"


def _with_interactions(terms: Sequence[Term], C: np.ndarray) -> np.ndarray:
    # contrasts (1, p) of every column that shares a factor with one of the columns compared by C (c, p)
    products = [product_of(terms, column) for column in range(C.shape[1])]
    names = [{name for part in one.parts for name in part.variables} if one else set() for one in products]
    compared = set().union(*(names[column] for column in np.flatnonzero(C.any(axis=0))))
    return np.array([[bool(compared & one) for one in names]], dtype=float)


def _slopes(summary: SummaryStats, terms: Sequence[Term], group: Grouping, c: np.ndarray) -> list[str]:
    # the random effects that let what one contrast (p,) compares differ between the levels of the group
    products = [product_of(terms, column) for column in np.flatnonzero(c).tolist()]
    parts = [part for product in products if product for part in product.parts]
    factors = list(dict.fromkeys(name for part in parts if part.is_factor for name in part.variables))
    covariates = dict.fromkeys(part.name for part in parts if not part.is_factor)
    if not factors:
        return [f"(0 + {x} | {group.name})" for x in covariates]
    inside = [name for name in factors if _factor_varies_within(summary, terms, group, name)] or factors
    # an interaction needs its margins: without them, averages over the other factor have too many df
    margins = [[name] for name in inside] if len(inside) > 1 else []
    return [f"(1 | {':'.join([group.name, *map(_quoted, names)])})" for names in [*margins, inside]]


def _factor_varies_within(summary: SummaryStats, terms: Sequence[Term], group: Grouping, name: str) -> bool:
    # whether a level of the group has cells of several levels of the factor; False if X does not show it
    XX = to_numpy(summary.XX)
    for product in (product for term in terms for product in term.products):
        own = [place for place, part in enumerate(product.parts) if name in part.variables]
        others = [part for place, part in enumerate(product.parts) if place not in own]
        complete = all(part.is_factor and part.reference is None and not part.values for part in others)
        if len(own) != 1 or not complete or min(product.columns) < 0:
            continue
        shape = [part.coding.shape[1] if part.is_factor else 1 for part in product.parts]
        columns = np.moveaxis(np.reshape(product.columns, shape, order="F"), own[0], 0).reshape(shape[own[0]], -1)
        for summed in columns:  # over the levels of the other factors: a column of the factor alone
            if group.within[np.ix_(summed, summed)].sum() > _WITHIN * XX[np.ix_(summed, summed)].sum():
                return True
    return False


def _quoted(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
