"""Description of a model in words and of its design in tables, from the summary statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .._version import __version__
from ..backend.arrays import to_numpy
from ..design.terms import treatment_factor
from ..inference.group_levels import Grouping, groupings, level_name
from ..results.lmm_fit import LMMFit
from ..sumstats.summary_stats import SummaryStats
from ..sumstats.transform import scale_of

#: Maximum number of rows and columns of a table of levels.
MOST_LEVELS, MOST_COLUMNS = 400, 12
_BOUNDS = {
    "auto": "Variance components may be negative as long as the covariance matrix of the cells is positive definite; "
    "genes without such an optimum are refitted with nonnegative components (status boundary).",
    "nonnegative": "Variance components are nonnegative; genes with a component at zero have the status boundary.",
    "none": "Variance components may be negative as long as the covariance matrix of the cells is positive definite.",
}
_DF = {
    "generalized": "Standard errors and degrees of freedom average over the uncertainty of the variance components "
    "(generalized p-values; with groups of equal size the t test of the group means); with correlated random effects, "
    "weights that differ between genes or very many levels they are those of Kenward and Roger (after ML: "
    "Satterthwaite's).",
    "satterthwaite": "Degrees of freedom are Satterthwaite's, from the expected information, limited to the "
    "between-within degrees of freedom, which are also used if a component is held at zero or a covariance matrix is "
    "singular.",
    "kenward-roger": "Degrees of freedom and standard errors are those of Kenward and Roger.",
    "lmertest": "Degrees of freedom are Satterthwaite's, from the observed information, as in lmerTest.",
    "between-within": "Degrees of freedom are between-within: for effects between groups, the number of groups minus "
    "the number of fixed effects between them.",
    "residual": "Degrees of freedom are n - p, as in FLASHMM; for effects between few groups the p-values are too "
    "small.",
}


def in_words(fit: LMMFit, df: str | None = None) -> dict[str, str]:
    """Describe a model in sentences, by topic.

    Parameters
    ----------
    fit : LMMFit
    df : str, optional
        Degrees-of-freedom method of the tests.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> in_words(lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)"))["Random effects"]
    'donor: random intercept with 6 levels (10 cells each).'
    """
    summary = fit.summary
    said = {
        "Values": _values(summary),
        "Fixed effects": _fixed(summary),
        "Random effects": " ".join(_random(summary)),
        "Estimation": _estimation(fit),
    }
    if df in _DF:
        said["Tests"] = (
            "t = effect / standard error for single contrasts, F for joint tests. "
            f"{_DF[df]} P-values are adjusted over the genes of each contrast by the method of Benjamini and Hochberg "
            "(FDR)."
        )
    return said


def _values(summary: SummaryStats) -> str:
    target = (summary.transform or "").partition(" to ")[2]
    scaled = f", with total counts over {float(target):,.6g} as size factors" if target else ""
    said = scale_of(summary.transform) + scaled if summary.transform else "as stored in the data"
    return f"The fitted values are {said}. Effects are differences on this scale."


def _fixed(summary: SummaryStats) -> str:
    names = summary.fixed_names
    if summary.terms is None:
        return f"{len(names)} columns of X: {_listed(names)}."
    parts = [
        "an intercept" if term.name == "1" else f"{term.name} ({_listed([names[i] for i in term.columns])})"
        for term in summary.terms
    ]
    return f"{'; '.join(parts)}."


def _random(summary: SummaryStats) -> Iterator[str]:
    grouped = {group.name: group for group in groupings(summary)}
    for name, width in zip(summary.component_names, summary.d, strict=True):
        if name in grouped:
            counts = grouped[name].counts
            few, many = int(counts.min()), int(counts.max())
            cells = f"{few:,} cells each" if few == many else f"{few:,} to {many:,} cells each"
            yield f"{name}: random intercept with {width:,} levels ({cells})."
        else:
            yield f"{name}: {width:,} random coefficients."


def _estimation(fit: LMMFit) -> str:
    how = {
        "REML": "restricted maximum likelihood (REML)",
        "ML": "maximum likelihood (ML), which underestimates variances with few groups",
    }[fit.method]
    return (
        f"Variance components are estimated by {how}, separately for each gene: Fisher scoring until every partial "
        f"derivative of the log-likelihood is at most {fit.epsilon:g} in absolute value. {_BOUNDS[fit.bounds]}"
    )


def methods_paragraph(fit: LMMFit, df: str | None, fdr: float) -> str:
    """Describe the analysis in a paragraph for the methods section of a paper.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> fit = lmm_gpu.fit((np.random.default_rng(1).normal(size=(60, 3)), obs), "~ arm + (1 | donor)")
    >>> methods_paragraph(fit, "residual", 0.05).split(". ")[0][:58]
    'Differential expression was tested with one linear mixed m'
    """
    summary = fit.summary
    values = f"{scale_of(summary.transform)} values" if summary.transform else "the expression values"
    formula = f" with the formula {summary.formula}" if summary.formula else ""
    effects = ", ".join(f"{name} ({d:,} levels)" for name, d in zip(summary.component_names, summary.d, strict=True))
    tests = f" {_DF[df]}" if df in _DF else ""
    return (
        f"Differential expression was tested with one linear mixed model per gene{formula}, fitted to {values} of "
        f"{summary.n:,} cells and {summary.m:,} genes with lmm_gpu {__version__}, an implementation of FLASH-MM (Xu et "
        f"al. 2026, doi:10.1038/s41467-026-69063-2). The random effects were {effects}. Variance components were "
        f"estimated by {fit.method}.{tests} P-values were adjusted over the genes by the method of Benjamini and "
        f"Hochberg (1995); genes with an adjusted p-value of at most {fdr:g} were considered significant."
    )


#: Meaning of the words of `LMMFit.status`.
STATUSES = {
    "converged": "the gradient of the log-likelihood is within the tolerance",
    "converged_at_rounding": "no step changes the log-likelihood by more than rounding error",
    "boundary": "converged with a variance component at zero",
    "max_iter": "not converged within the maximum number of iterations: raise max_iter",
    "no_variance": "constant, or constant given the fixed effects: no estimate",
    "ill_conditioned": "residual variance below the rounding error of the sums: no standard errors or p-values",
    "failed": "no valid estimate",
}


@dataclass(frozen=True)
class FixedEffect:
    """One column of the design."""

    name: str
    kind: str  #: "intercept", "group of cells" or "number"
    cells: int | None  #: number of cells of a group
    mean: float | None  #: mean of a number
    levels: str  #: levels of the first grouping that have cells of the group, "3 of 6"


@dataclass(frozen=True)
class LevelTable:
    """Number of cells of each level of a random effect, in total and by group of cells in the fixed effects."""

    name: str
    levels: list[str]
    columns: list[str]
    cells: np.ndarray  #: (levels, 1 + columns)
    left_out: str

    @property
    def most(self) -> float:
        """Number of cells of the largest level."""
        return max(float(self.cells.max()), 1.0)


def fixed_effects(summary: SummaryStats) -> list[FixedEffect]:
    """Describe the columns of X.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> sums = lmm_gpu.summarize((np.ones((60, 1)), obs), "~ arm + (1 | donor)")
    >>> [(one.kind, one.cells, one.levels) for one in fixed_effects(sums)]
    [('intercept', 60, '6 of 6'), ('group of cells', 30, '3 of 6')]
    """
    groups, XX = groupings(summary), to_numpy(summary.XX)
    if not groups:
        return [FixedEffect(name, "", None, None, "") for name in summary.fixed_names]
    group, found = groups[0], []
    indicators = group.indicators
    filled = np.count_nonzero(group.counts)
    for i, name in enumerate(summary.fixed_names):
        total = group.sums[:, i].sum()
        levels = f"{np.count_nonzero(group.sums[:, i] > 0.5):,} of {filled:,}" if indicators[i] else ""
        if not indicators[i]:
            found.append(FixedEffect(name, "number", None, total / summary.n, levels))
        else:
            kind = "intercept" if XX[i, i] == summary.n else "group of cells"
            found.append(FixedEffect(name, kind, round(total), None, levels))
    return found


def level_tables(summary: SummaryStats) -> list[LevelTable]:
    """Number of cells by level and group, one table per random effect that is a grouping."""
    tables, at = [], dict(zip(summary.component_names, np.cumsum([0, *summary.d[:-1]]), strict=True))
    for group in groupings(summary):
        names, cells = _groups_of_cells(summary, group)
        first = int(at[group.name])
        levels = [level_name(name, group.name) for name in summary.random_names[first : first + group.counts.size]]
        left = [f"{len(levels) - MOST_LEVELS:,} levels"] if len(levels) > MOST_LEVELS else []
        left += [f"{len(names) - MOST_COLUMNS:,} groups of cells"] if len(names) > MOST_COLUMNS else []
        shown = np.column_stack([group.counts, *cells[:MOST_COLUMNS]])[:MOST_LEVELS]
        tables.append(LevelTable(group.name, levels[:MOST_LEVELS], names[:MOST_COLUMNS], shown, " and ".join(left)))
    return tables


def _groups_of_cells(summary: SummaryStats, group: Grouping) -> tuple[list[str], list[np.ndarray]]:
    """Columns of X that are groups of cells, each treatment-coded factor preceded by its reference level."""
    found: dict[str, np.ndarray] = {}
    names = summary.fixed_names
    for i in np.flatnonzero(group.indicators).tolist():
        name, cells = names[i], group.sums[:, i]
        if np.array_equal(cells, group.counts):
            continue  # the intercept
        if treated := treatment_factor(summary.terms, i):
            factor, others = treated
            found.setdefault(f"{factor.name}: {factor.reference}", group.counts - group.sums[:, others].sum(axis=1))
        found[name] = cells
    return list(found), list(found.values())


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
