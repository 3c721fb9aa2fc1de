"""Means of one gene by group of cells, computed from the summary statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import special

from ..backend.arrays import like, to_numpy
from ..design.reference_grid import factor_key
from ..design.terms import treatment_factor
from ..estimation.covariance_terms import CrossedCovariance, terms_of
from ..estimation.mixed_model import Contrasts
from ..inference.group_levels import Grouping, groupings, level_name
from ..results.fitted_values import gene_position
from ..results.lmm_fit import LMMFit
from ..results.nonnegative import negative_variances, nonnegative_estimates
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats

#: A factor and its level in the name of a column of X, such as cell_type[T.B cells]:condition[T.stim].
_LEVEL = re.compile(r"(?:^|:)([^:\[\]]+)\[(?:T\.)?(.*?)\](?=:|$)")
REFERENCE = "reference"
#: Random effects of which no dense matrix is made for a plot.
_MANY_EFFECTS = 2000


def group_means(
    fit: LMMFit, gene: str, component: str | None = None, by: str | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Means of the cells and fitted means of one gene, one row per group, sorted by `by` and fitted mean.

    A fitted mean is X beta + Z u averaged over the cells of the group, so that means of few cells are shrunk towards
    the fixed effects. Its interval is conditional on the variances and includes the uncertainty of the fixed effects.
    A gene with a negative variance is refitted with ``bounds="nonnegative"``: BLUPs do not exist otherwise.

    Returns
    -------
    DataFrame
        cells, mean, fitted, ci_low, ci_high, by (0 or 1). ``attrs``: component, by, nonnegative (True if refitted), and
        labels (of by = 0 and by = 1).
    """
    summary, i = _without_gene_weights(fit), gene_position(fit, gene)
    group, rows = _group(fit, component)
    filled = np.flatnonzero(group.counts > 0)
    counts, rows = group.counts[filled, None], rows[filled]  # (groups, 1), (groups,)
    K, L = group.sums[filled] / counts, to_numpy(summary.ZZ)[rows] / counts  # (groups, p), (groups, q)
    fitted, se = _fitted(fit, i, K, L)
    reach = special.ndtri(0.5 + 0.5 * level) * se
    column = _column(fit, group, by)
    found = pd.DataFrame(
        {
            "cells": counts[:, 0],
            "mean": to_numpy(summary.ZY)[rows, i] / counts[:, 0],
            "fitted": fitted,
            "ci_low": fitted - reach,
            "ci_high": fitted + reach,
            "by": 0.0 if column is None else np.rint(K[:, column]),
        },
        index=[level_name(summary.random_names[row], group.name) for row in rows],
    )
    negative = bool(negative_variances(fit, np.array([i]))[0])
    name = "" if column is None else summary.fixed_names[column]
    found.attrs = {"component": group.name, "by": name, "nonnegative": negative}
    found.attrs["labels"] = () if column is None else two_groups(fit, column)
    return found.sort_values(["by", "fitted"], kind="stable")


def _without_gene_weights(fit: LMMFit) -> SummaryStats:
    if isinstance(fit.summary, WeightedStats):
        raise ValueError(
            "means by group need sums with the same weights for all genes, and this fit has weights per gene, such as "
            "voom's: plot a fit of the same samples without weights"
        )
    return fit.summary


def two_groups(fit: LMMFit, column: int) -> tuple[str, str]:
    """Names of the cells in which a column of X is 0, and of those in which it is 1."""
    name = fit.summary.fixed_names[column]
    treated = treatment_factor(fit.summary.terms, column)
    if treated is None:
        return f"not {name}", name
    factor, columns = treated
    levels = [level for level in factor.levels if level != factor.reference]
    shown = factor_key(factor)
    others = f"{shown} = {factor.reference}" if len(levels) == 1 else f"other {shown}"
    return others, f"{shown} = {levels[columns.index(column)]}"


def _fitted(fit: LMMFit, i: int, K: np.ndarray, L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values K beta + L u of gene `i` and their standard errors, both (groups,)."""
    model = fit.model.with_genes(fit.summary.select(slice(i, i + 1)))
    theta = like(nonnegative_estimates(fit, np.array([i]))[0], model.beta_ols)  # (k+1, 1)
    fitted = K @ to_numpy(model.coefficients(theta)) + L @ to_numpy(model.random_effects(theta))  # (groups, 1)
    if model.xxz.shape[1] != L.shape[1]:  # an elimination by levels has no loadings of all random effects
        return fitted[:, 0], _dense_se(fit.summary, to_numpy(theta), K, L)
    fixed, random = like(K, model.beta_ols), like(L.T, model.beta_ols)
    contrasts = Contrasts(fixed, a=(fixed @ model.xxz).T - random, ols=((fixed @ model.XXinv) * fixed).sum(axis=1))
    with np.errstate(invalid="ignore"):
        se = np.sqrt(to_numpy(model.contrast_variance(theta, contrasts)))  # (groups, 1), of X beta + Z u
    return fitted[:, 0], se[:, 0]


def _dense_se(summary: SummaryStats, theta: np.ndarray, K: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Standard errors (groups,) of K beta + L u from the random effects of one gene together; NaN if they are many."""
    q = L.shape[1]
    if q > _MANY_EFFECTS:
        return np.full(len(K), np.nan)
    XX, ZX, ZZ = (to_numpy(A) for A in (summary.XX, summary.ZX, summary.ZZ))
    xxz = np.linalg.solve(XX, ZX.T)  # (p, q)
    covariance = CrossedCovariance.of(terms_of(summary.d, summary.term_sizes), theta[:-1] / theta[-1])
    D = covariance.times(np.eye(q)[None])[0]
    a = xxz.T @ K.T - L.T  # (q, groups)
    form = (a * (D @ np.linalg.solve(np.eye(q) + (ZZ - ZX @ xxz) @ D, a))).sum(axis=0)
    with np.errstate(invalid="ignore"):
        se: np.ndarray = np.sqrt(theta[-1] * ((K * np.linalg.solve(XX, K.T).T).sum(axis=1) + form))
    return se


def paired_means(
    fit: LMMFit,
    gene: str,
    by: str,
    facet: str | None = None,
    component: str | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Means of the cells of one gene by donor, level of the factor `by` and level of the factor `facet`.

    The sums contain them if a random effect has one level per combination, such as (1 | donor:condition:cell_type),
    or if the factors do not vary within the levels of a random effect. The interval of a mean is that of its cells,
    mean +- z sqrt(s_0 / cells).

    Returns
    -------
    DataFrame
        unit (what is left of the name of the level: the donor), by, facet, cells, mean, ci_low, ci_high.
        ``attrs``: component, unit (its name), order (levels of each factor in the order of the model).

    Raises
    ------
    ValueError
        If the sums do not contain these means, with the term to add to the formula.
    """
    summary, i = _without_gene_weights(fit), gene_position(fit, gene)
    factors = [name for name in (by, facet) if name is not None]
    group, levels = _grouping_by(fit, factors, component)
    rows = component_rows(fit, group.name)
    filled = np.flatnonzero(group.counts > 0)
    cells, levels = group.counts[filled], levels.iloc[filled]
    mean = to_numpy(summary.ZY)[rows[filled], i] / cells
    with np.errstate(invalid="ignore"):
        reach = special.ndtri(0.5 + 0.5 * level) * np.sqrt(fit.estimates.theta[-1, i] / cells)
    units = [name for name in levels.columns if name not in factors]
    found = pd.DataFrame(
        {
            "unit": levels[units].agg(":".join, axis=1).to_numpy(),
            "by": levels[by].to_numpy(),
            "facet": levels[facet].to_numpy() if facet else "",
            "cells": cells,
            "mean": mean,
            "ci_low": mean - reach,
            "ci_high": mean + reach,
        }
    )
    found.attrs = {"component": group.name, "unit": ":".join(units)}
    coded = {name: part.levels for term in summary.terms or () for name, part in term.factors.items()}
    found.attrs["order"] = {name: [REFERENCE, *coded.get(name, ())] for name in factors}
    return found


def paired_options(fit: LMMFit, weights: np.ndarray) -> dict[str, str]:
    """Return options of `gene` for a paired plot of a contrast (p,); empty if its units are not paired.

    A factor that the contrast involves and that varies within units is `by`. A second factor of the contrast, or a
    fixed factor in the name of the random effect, is `facet`.
    """
    names = [fit.summary.fixed_names[i] for i in np.flatnonzero(weights)]
    involved = list(dict.fromkeys(factor for name in names for factor, _ in _LEVEL.findall(name)))
    for by in reversed(involved):
        others = [name for name in involved if name != by]
        try:
            group, levels = _grouping_by(fit, [by, *others[:1]], None)
        except ValueError:
            continue
        coded = {factor for name in fit.summary.fixed_names for factor, _ in _LEVEL.findall(name)}
        others = others or [name for name in _own(group) if name in coded and name != by]
        units = levels.drop(columns=by).agg(":".join, axis=1)
        if units.duplicated().any():
            return {"by": by} | ({"facet": others[0]} if others else {})
    return {}


def is_factor(fit: LMMFit, name: str) -> bool:
    """Return True if `name` is a factor of the design, rather than a column of X."""
    if name in fit.summary.fixed_names:
        return False
    in_columns = {factor for column in fit.summary.fixed_names for factor, _ in _LEVEL.findall(column)}
    return name in in_columns or any(name in group.name.split(":") for group in groupings(fit.summary))


def _grouping_by(fit: LMMFit, factors: list[str], component: str | None) -> tuple[Grouping, pd.DataFrame]:
    """Return the grouping with the fewest levels that determines `factors`, and the factor levels of its groups."""
    found = []
    for group in groupings(fit.summary):
        levels = _levels_of(fit, group)
        units = set(levels.columns) - set(factors)
        if set(factors) <= set(levels.columns) and units and component in (None, group.name):
            found.append((group, levels[[name for name in levels if name in factors or name in _own(group)]]))
    if not found:
        unit = next((group.name for group in groupings(fit.summary)), "donor").split(":")[0]
        raise ValueError(
            f"the sums do not contain means by {' and '.join(factors)}: no random effect has one level per "
            f"combination; add (1 | {':'.join([unit, *(name for name in factors if name != unit)])}) to the formula "
            "(where each combination is a single sample, as in bulk data, plot the values themselves)"
        )
    return min(found, key=lambda one: one[0].counts.size)


def _own(group: Grouping) -> list[str]:
    return group.name.split(":")


def _levels_of(fit: LMMFit, group: Grouping) -> pd.DataFrame:
    """Levels of all factors that are constant within the groups (groups x factors), as text."""
    names = [level_name(fit.summary.random_names[row], group.name) for row in component_rows(fit, group.name)]
    parts = [name.split(":") for name in names]
    own = _own(group)
    if all(len(one) == len(own) for one in parts):
        table = pd.DataFrame(parts, columns=own, dtype=str)
    else:  # a level contains a colon
        table = pd.DataFrame({group.name: names}, dtype=str)
    for factor, levels in _coded_levels(fit, group):
        if factor not in table:
            table[factor] = levels
    return table


def _coded_levels(fit: LMMFit, group: Grouping) -> Iterator[tuple[str, list[str]]]:
    """Levels of the factors that are coded in X and constant within the groups.

    A reference level of statistics that do not record it, as those of an older version, is called "reference".
    """
    counts = np.maximum(group.counts, 1)[:, None]
    share = group.sums / counts  # (groups, p)
    pure = (group.indicators & ((share == 0) | (share == 1)).all(axis=0)).tolist()
    parsed = [_LEVEL.findall(name) for name in fit.summary.fixed_names]
    references = {name: part.reference for term in fit.summary.terms or () for name, part in term.factors.items()}
    for factor in dict.fromkeys(factor for column in parsed for factor, _ in column):
        columns = [i for i, column in enumerate(parsed) if any(name == factor for name, _ in column)]
        if all(pure[i] for i in columns):
            levels = [references.get(factor) or REFERENCE] * group.counts.size
            for i in columns:
                for row in np.flatnonzero(share[:, i] > 0.5):
                    levels[row] = dict(parsed[i])[factor]
            yield factor, levels


def component_rows(fit: LMMFit, name: str) -> np.ndarray:
    """Return the rows of Z'Y that belong to a random effect."""
    at = fit.summary.component_names.index(name)
    first = sum(fit.summary.d[:at])
    return np.arange(first, first + fit.summary.d[at])


def _group(fit: LMMFit, component: str | None) -> tuple[Grouping, np.ndarray]:
    """Return the grouping and its rows of Z'Y."""
    known = {group.name: group for group in groupings(fit.summary)}
    if not known or (component is not None and component not in known):
        raise ValueError(f"component={component!r}: expected a random effect that is a grouping: {_listed(known)}")
    group = known[component] if component is not None else next(iter(known.values()))
    return group, component_rows(fit, group.name)


def _listed(names: object) -> str:
    return ", ".join(names) if isinstance(names, dict | list) and names else "none"


def _between(group: Grouping) -> np.ndarray:
    """Mask (p,) of the fixed effects that are 0 in some whole groups and 1 in the others."""
    counts = group.counts[group.counts > 0, None]
    share = group.sums[group.counts > 0] / counts  # (groups, p)
    constant = ((share == 0) | (share == 1)).all(axis=0)
    return np.asarray(group.indicators & constant & (np.ptp(share, axis=0) > 0.5))


def between_options(fit: LMMFit, weights: np.ndarray) -> dict[str, str]:
    """Return options of `gene` for a contrast (p,) between groups; empty if it varies within all groups."""
    for group in groupings(fit.summary):
        compared = np.flatnonzero(_between(group) & (weights != 0))
        if compared.size:
            return {"component": group.name, "by": fit.summary.fixed_names[compared[0]]}
    return {}


def _column(fit: LMMFit, group: Grouping, by: str | None) -> int | None:
    """Return the position of the fixed effect that colours the groups."""
    between, names = _between(group), fit.summary.fixed_names
    if by is None:
        return int(np.flatnonzero(between)[0]) if between.any() else None
    if by not in names or not between[names.index(by)]:
        known = [names[i] for i in np.flatnonzero(between)]
        raise ValueError(
            f"by={by!r}: expected a fixed effect that is 0 or 1 within every group of {group.name} ({_listed(known)}), "
            "or a factor of the formula"
        )
    return names.index(by)
