"""Find the donors of a design that a hypothesis makes exchangeable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.arrays import to_numpy
from ..backend.sparse import is_sparse
from ..design.terms import Term
from ..inference.group_levels import Grouping, groupings, level_name
from ..inference.strata import IN_SPAN, strata, tested_between
from ..sumstats.gene_weights import WeightedStats
from ..sumstats.summary_stats import SummaryStats
from .exchange import Exchange

#: Values of donors closer than this, relative to the largest, are equal.
EQUAL = 1e-9
#: Names that a message lists.
_SHOWN = 3

Strata = str | Sequence[str] | Mapping[Any, Any] | None


@dataclass(frozen=True)
class Donors:
    """Levels of the random effect that a hypothesis compares, and the columns of X that are constant within them."""

    group: str
    names: tuple[str, ...]  #: (G,), of the levels that have cells
    rows: np.ndarray  #: (G,), their columns of Z
    X: np.ndarray  #: (G, p), values of the columns of X; of others the means
    constant: np.ndarray  #: (p,), bool: the column is constant within levels


def find_exchange(summary: SummaryStats, C: np.ndarray, label: str, by: Strata = None) -> Exchange:
    """Return the exchange of donors under which ``C beta = 0`` stays true; `summary` is on the host.

    Raises
    ------
    ValueError
        With the reason, if no exchange of whole donors tests the hypothesis.
    """
    donors = _donors(summary, C, label)
    tested, others = _columns(summary, donors, C, label)
    factors, covariates = _split(summary, donors, others)
    if by is None:
        given, named = donors.X[:, factors], _term_names(summary, factors)
    else:
        given, named = _given(summary, donors, by)
        covariates = [*covariates, *factors]
    blocks = _codes(
        np.column_stack([donors.X[:, tested] @ _null_space(C[:, tested]), given, *_coarser(summary, donors)])
    )
    covariates = [j for j in covariates if not _constant_in(donors.X[:, j], blocks)]
    x = donors.X[:, tested] @ np.linalg.pinv(C[:, tested])  # (G, r)
    if covariates:
        x = _residuals(x, np.column_stack([np.eye(blocks.max() + 1)[blocks], donors.X[:, covariates]]))
    codes = _codes(x)
    values = np.stack([x[codes == code][0] for code in range(codes.max() + 1)])
    scheme = _scheme(donors.group, named, _term_names(summary, covariates))
    exchange = Exchange(donors.group, donors.rows, C, values, codes, blocks, scheme)
    if exchange.log10_possible <= 0:
        raise ValueError(
            f"{label}: no two levels of {donors.group} differ in what the contrast compares and in nothing else "
            f"{_where(named)}: none are exchangeable. strata=[] also exchanges across other factors; an interaction "
            "cannot be tested by an exchange of donors"
        )
    return exchange


def _donors(summary: SummaryStats, C: np.ndarray, label: str) -> Donors:
    if isinstance(summary, WeightedStats):
        raise ValueError(
            "permutations need sums with the same weights for all genes; with weights per gene, permute the labels in "
            "obs of the samples, and fit them again"
        )
    found = strata(summary)
    between = {one.component if one else None for one in tested_between(found, C)}
    known = {one.name: one for one in groupings(summary)}
    position = next(iter(between)) if len(between) == 1 else None
    if position is None:
        raise _not_between(label, " and ".join(known) or "the random effects")
    name = summary.component_names[position]
    if name not in known:
        raise ValueError(f"{label} is tested between the levels of {name}, which is not a grouping of all cells")
    return _levels(summary, known[name], position)


def _not_between(label: str, group: str) -> ValueError:
    return ValueError(
        f"{label} is not a contrast between the levels of {group} (donors): it compares cells within them. An exchange "
        "of the labels of whole donors leaves such a difference as it is, and single cells are not exchangeable "
        "between donors. For the effect of a treatment of donors in one cell type, fit these cells "
        "alone (cells= selects them)"
    )


def _levels(summary: SummaryStats, group: Grouping, position: int) -> Donors:
    start = int(sum(summary.d[:position]))
    kept = np.flatnonzero(group.counts > 0)
    rows = start + kept
    names = tuple(level_name(summary.random_names[row], group.name) for row in rows)
    constant = np.diagonal(group.within) <= IN_SPAN * np.diagonal(to_numpy(summary.XX))
    return Donors(group.name, names, rows, group.sums[kept] / group.counts[kept][:, None], constant)


def _columns(summary: SummaryStats, donors: Donors, C: np.ndarray, label: str) -> tuple[np.ndarray, np.ndarray]:
    # columns of X of the tested factors, and the others that are constant within donors
    weighted = np.flatnonzero(np.any(C != 0, axis=0))
    if not donors.constant[weighted].all():
        raise _not_between(label, donors.group)
    family = set(weighted.tolist())
    terms = summary.terms or ()
    variables = {name for term in terms if family & set(term.columns) for name in term.variables}
    family |= {column for term in terms if variables & set(term.variables) for column in term.columns}
    tested = np.array(sorted(family))
    varying = [summary.fixed_names[j] for j in tested if not donors.constant[j]]
    if varying:
        raise ValueError(
            f"{label}: {', '.join(varying[:_SHOWN])}{', ...' if len(varying) > _SHOWN else ''} varies within the "
            f"levels of {donors.group}, and an exchange of whole levels does not move it: fit a formula without this "
            "interaction, or one group of cells alone (cells=)"
        )
    _check_slopes(summary, variables, label)
    others = donors.constant & (np.ptp(donors.X, axis=0) > 0)
    return tested, np.array([j for j in np.flatnonzero(others) if j not in family], dtype=int)


def _check_slopes(summary: SummaryStats, variables: set[str], label: str) -> None:
    for group, effects in summary.random_terms or ():
        slopes = [effect for effect in effects if any(effect.split("[")[0] == name for name in variables)]
        if slopes:
            raise ValueError(
                f"{label}: the variance of {group} differs by {slopes[0]}, so that its levels are not exchangeable; "
                f"fit (1 | {group})"
            )


def _split(summary: SummaryStats, donors: Donors, columns: np.ndarray) -> tuple[list[int], list[int]]:
    # factors and covariates; without terms, a column of two values is a factor
    of = {column: term for term in summary.terms or () for column in term.columns}
    factors = [j for j in columns if _is_factor(of.get(j), donors.X[:, j])]
    return factors, [j for j in columns if j not in factors]


def _is_factor(term: Term | None, values: np.ndarray) -> bool:
    if term is None or not (term.parts or term.name == "1"):
        return len(np.unique(values)) <= 2
    return all(part.is_factor for part in term.parts.values())


def _coarser(summary: SummaryStats, donors: Donors) -> list[np.ndarray]:
    # levels (G, 1) of the random effects in one level of which each donor is, unless they are the donors themselves
    found, lo = [], 0
    for name, width in zip(summary.component_names, summary.d, strict=True):
        ZZ = summary.ZZ[lo : lo + width][:, donors.rows]
        crossed = (ZZ.toarray() if is_sparse(ZZ) else ZZ) != 0  # (d_j, G)
        level = crossed.argmax(axis=0)
        if name != donors.group and (crossed.sum(axis=0) == 1).all() and len(np.unique(level)) < len(level):
            found.append(level[:, None])
        lo += width
    return found


def _given(summary: SummaryStats, donors: Donors, by: Strata) -> tuple[np.ndarray, list[str]]:
    # strata (G, s) by factors of the model, or by a table of the levels
    if isinstance(by, Mapping) or hasattr(by, "to_dict"):
        table = {str(level): value for level, value in dict(by).items()}  # type: ignore[arg-type]
        lacking = [name for name in donors.names if name not in table]
        if lacking:
            raise ValueError(f"strata= has no value for {', '.join(lacking[:_SHOWN])}: levels of {donors.group}")
        return np.unique([str(table[name]) for name in donors.names], return_inverse=True)[1][:, None], ["strata"]
    names = [by] if isinstance(by, str) else list(by or ())
    columns: list[int] = []
    for name in names:
        found = [j for term in summary.terms or () if term.variables == (name,) for j in term.columns]
        if not found or not donors.constant[found].all():
            raise ValueError(
                f"strata={name!r} is not a factor of the model that is constant within the levels of {donors.group}; "
                "give its name, or a dict with the stratum of every level"
            )
        columns += found
    return donors.X[:, columns], names


def _null_space(C: np.ndarray) -> np.ndarray:
    # columns (p, p - r) that span what C does not see
    _, size, rows = np.linalg.svd(C)
    null: np.ndarray = rows[np.count_nonzero(size > EQUAL * size[0]) :].T
    return null


def _codes(rows: np.ndarray) -> np.ndarray:
    # equal rows (G, s) have equal codes (G,)
    if rows.shape[1] == 0:
        return np.zeros(len(rows), dtype=int)
    size = np.abs(rows).max(axis=0)
    whole = np.rint(rows / np.where(size > 0, size * EQUAL, 1.0))
    codes: np.ndarray = np.unique(whole, axis=0, return_inverse=True)[1].reshape(-1)
    return codes


def _constant_in(values: np.ndarray, block: np.ndarray) -> bool:
    means = np.bincount(block, values) / np.bincount(block)
    return bool(np.abs(values - means[block]).max() <= EQUAL * np.abs(values).max())


def _residuals(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    residuals = x - W @ np.linalg.lstsq(W, x, rcond=None)[0]
    return np.where(np.abs(residuals) > EQUAL * np.abs(x).max(), residuals, 0.0)


def _term_names(summary: SummaryStats, columns: Sequence[int]) -> list[str]:
    of = {column: term.name for term in summary.terms or () for column in term.columns}
    return list(dict.fromkeys(of.get(j, summary.fixed_names[j]) for j in columns))


def _where(named: Sequence[str]) -> str:
    return f"(strata: {', '.join(named)})" if named else "(there are no strata)"


def _scheme(group: str, strata_of: Sequence[str], covariates: Sequence[str]) -> str:
    within = f" of equal {', '.join(strata_of)}" if strata_of else ""
    if covariates:
        verb = "is" if len(covariates) == 1 else "are"
        what = f"labels, after {', '.join(covariates)} {verb} regressed out (Smith's method),"
    else:
        what = "labels"
    return f"the {what} are exchanged between levels of {group}{within}"
