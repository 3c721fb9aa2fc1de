"""A model in words, and its design as tables of cells: read off the summary statistics, never the cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend.arrays import to_numpy
from ..inference.group_levels import Grouping, groupings, level_name
from ..results.lmm_fit import LMMFit
from ..sumstats.summary_stats import SummaryStats
from ..sumstats.transform import scale_of

#: A table of levels shows so many of its rows and columns at most.
MOST_LEVELS, MOST_COLUMNS = 400, 12
_BOUNDS = {
    "auto": "Components may be negative as long as the covariance matrix of the cells stays positive definite; a gene "
    "without such an optimum is fitted again with components held at zero or above (status boundary).",
    "nonnegative": "Components are held at zero or above; a gene with one at zero has the status boundary.",
    "none": "Components may be negative as long as the covariance matrix of the cells stays positive definite.",
}
_DF = {
    "generalized": "for effects between groups, such as treatments of donors, standard errors and degrees of freedom "
    "weigh how uncertain the variance between the groups is (generalized p-values; with groups of one size the t test "
    "of their means); for other effects Satterthwaite's approximation by the expected information",
    "satterthwaite": "Satterthwaite's approximation by the expected information, and at most the between-within "
    "degrees of freedom, which also apply where a component is held at zero",
    "kenward-roger": "Kenward and Roger's, with standard errors adjusted for few groups",
    "lmertest": "Satterthwaite's approximation by the observed information, as lmerTest has it",
    "between-within": "between-within: groups less what the fixed effects take of them, for effects between groups",
    "residual": "n - p, cells less fixed effects, as FLASHMM has it; for effects between few groups p-values are too "
    "small",
}


def in_words(fit: LMMFit, df: str | None = None) -> dict[str, str]:
    """Sentences on a model, by what they are about.

    Parameters
    ----------
    fit : LMMFit
    df : str, optional
        Method of the degrees of freedom of the tests.

    Examples
    --------
    >>> import numpy as np, pandas as pd, lmm_gpu
    >>> obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> Y = np.random.default_rng(1).normal(size=(60, 3))
    >>> in_words(lmm_gpu.fit((Y, obs), "~ arm + (1 | donor)"))["Random effects"]
    'donor: a shift of its own for each of 6 levels (10 cells each).'
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
            "t = effect / standard error, contrast by contrast, or F for several at once. Degrees of freedom are "
            f"{_DF[df]}. p-values are adjusted by Benjamini and Hochberg (FDR) over the genes of each contrast."
        )
    return said


def _values(summary: SummaryStats) -> str:
    target = (summary.transform or "").partition(" to ")[2]
    scaled = f", with total counts over {float(target):,.6g} as size factors" if target else ""
    said = scale_of(summary.transform) + scaled if summary.transform else "the values as they are in the data"
    return f"What is fitted is {said}. An effect is a difference on this scale."


def _fixed(summary: SummaryStats) -> str:
    names = summary.fixed_names
    if summary.terms is None:
        return f"{len(names)} columns of X: {_listed(names)}."
    parts = [
        "an intercept" if term == "1" else f"{term} ({_listed([names[i] for i in columns])})"
        for term, columns in summary.terms
    ]
    return f"The same for all cells that agree in them: {'; '.join(parts)}."


def _random(summary: SummaryStats) -> Iterator[str]:
    grouped = {group.name: group for group in groupings(summary)}
    for name, width in zip(summary.component_names, summary.d, strict=True):
        if name in grouped:
            counts = grouped[name].counts
            few, many = int(counts.min()), int(counts.max())
            cells = f"{few:,} cells each" if few == many else f"{few:,} to {many:,} cells each"
            yield f"{name}: a shift of its own for each of {width:,} levels ({cells})."
        else:
            yield f"{name}: {width:,} random coefficients."


def _estimation(fit: LMMFit) -> str:
    how = {
        "REML": "restricted maximum likelihood (REML), which allows for the fixed effects that are estimated as well",
        "ML": "maximum likelihood (ML), which does not allow for the fixed effects and is too small for few groups",
    }[fit.method]
    return (
        f"Variance components by {how}, each gene on its own: Fisher scoring until no partial derivative of the "
        f"log-likelihood exceeds {fit.epsilon:g}, at most {fit.max_iter} iterations. {_BOUNDS[fit.bounds]}"
    )


#: What the words of `LMMFit.status` mean.
STATUSES = {
    "converged": "every partial derivative of the log-likelihood is small enough",
    "converged_at_rounding": "no step changes the log-likelihood beyond rounding",
    "boundary": "converged with a variance component held at zero",
    "max_iter": "stopped by the number of iterations: raise max_iter",
    "no_variance": "all zero, or constant once the fixed effects are taken out: no numbers",
    "failed": "no valid estimate",
}


@dataclass(frozen=True)
class FixedEffect:
    """One column of the design."""

    name: str
    kind: str  #: "intercept", "group of cells" or "number"
    cells: int | None  #: of the group
    mean: float | None  #: of the number
    levels: str  #: in how many levels of the first grouping the group has cells


@dataclass(frozen=True)
class LevelTable:
    """Cells of each level of a random effect, in all and in each group of cells that the fixed effects know."""

    name: str
    levels: list[str]
    columns: list[str]
    cells: np.ndarray  #: (levels, 1 + columns)
    left_out: str

    @property
    def most(self) -> float:
        """Cells of the largest level."""
        return max(float(self.cells.max()), 1.0)


def fixed_effects(summary: SummaryStats) -> list[FixedEffect]:
    """Describe the columns of X by what the sums say of them.

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
            kind = "intercept" if np.isclose(XX[i, i], summary.n) else "group of cells"
            found.append(FixedEffect(name, kind, round(total), None, levels))
    return found


def level_tables(summary: SummaryStats) -> list[LevelTable]:
    """Cells by level and group, one table for each random effect that is a grouping."""
    tables, at = [], dict(zip(summary.component_names, np.cumsum([0, *summary.d[:-1]]), strict=True))
    for group in groupings(summary):
        names, cells = _groups_of_cells(summary.fixed_names, group)
        first = int(at[group.name])
        levels = [level_name(name, group.name) for name in summary.random_names[first : first + group.counts.size]]
        left = [f"{len(levels) - MOST_LEVELS:,} levels"] if len(levels) > MOST_LEVELS else []
        left += [f"{len(names) - MOST_COLUMNS:,} groups of cells"] if len(names) > MOST_COLUMNS else []
        shown = np.column_stack([group.counts, *cells[:MOST_COLUMNS]])[:MOST_LEVELS]
        tables.append(LevelTable(group.name, levels[:MOST_LEVELS], names[:MOST_COLUMNS], shown, " and ".join(left)))
    return tables


def _groups_of_cells(names: Sequence[str], group: Grouping) -> tuple[list[str], list[np.ndarray]]:
    """Columns of X that are groups of cells, before them the reference level of treatment-coded factors."""
    found: dict[str, np.ndarray] = {}
    for i in np.flatnonzero(group.indicators).tolist():
        name, cells = names[i], group.sums[:, i]
        if np.allclose(cells, group.counts):
            continue  # the intercept
        if "[T." in name and ":" not in name:
            factor = name.split("[T.")[0]
            others = [j for j, other in enumerate(names) if ":" not in other and other.split("[T.")[0] == factor]
            found.setdefault(f"{factor}: reference", group.counts - group.sums[:, others].sum(axis=1))
        found[name] = cells
    return list(found), list(found.values())


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
