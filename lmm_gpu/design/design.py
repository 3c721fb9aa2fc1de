"""Formulas and a table of cells become the matrices of the model: X, Z, and the names of their columns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import formulaic
import numpy as np
import pandas as pd
from formulaic.errors import DataMismatchWarning
from scipy import sparse

from .formula import (
    CONTEXT,
    RandomTerm,
    first_line,
    parse_fixed,
    r_names,
    require_column,
    right_hand_side,
    split_formula,
)

__all__ = ["Design", "build_design", "fixed_design", "r_names", "random_columns"]


@dataclass(frozen=True, eq=False)
class Design:
    """What a formula and a table of cells say about the model ``y = X beta + Z u + e``.

    Attributes
    ----------
    formula
        The formula as it was written.
    X
        Fixed effects, (n, p) float64.
    Z
        Random effects, (n, q) float64 in CSR format: one block of columns per component, one column per group.
    d
        Number of columns in each block; they add up to q.
    fixed_names
        One name per column of `X`, as formulaic writes them: ``condition[T.stim]``.
    random_names
        One name per column of `Z`: ``donor[D1]``, ``donor:cell_type[D1:B]``, ``age|donor[D1]``.
    component_names
        One name per block: ``donor``, ``donor:cell_type``, ``age|donor``.
    terms
        Terms of the fixed part and the columns of `X` of each; ``1`` is the intercept.
    random_terms
        Grouping and effects of each random term, in the order of the blocks; effects of one term are correlated.
    """

    formula: str
    X: np.ndarray = field(repr=False)
    Z: sparse.csr_array = field(repr=False)
    d: tuple[int, ...]
    fixed_names: tuple[str, ...]
    random_names: tuple[str, ...] = field(repr=False)
    component_names: tuple[str, ...]
    terms: tuple[tuple[str, tuple[int, ...]], ...]
    random_terms: tuple[tuple[str, tuple[str, ...]], ...] | None = None

    @property
    def n(self) -> int:
        """Number of cells."""
        return self.X.shape[0]

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return self.X.shape[1]

    @property
    def q(self) -> int:
        """Number of random effects."""
        return self.Z.shape[1]


def build_design(formula: str, obs: pd.DataFrame) -> Design:
    """Build the design of a linear mixed model from an lme4 formula.

    The fixed part follows formulaic. The random part may hold ``(1 | g)``, ``(1 | a:b)``, ``(1 | a/b)`` which is
    ``(1 | a) + (1 | a:b)``, ``(0 + x | g)`` for a slope alone, and ``(x || g)`` for an intercept and a slope without
    correlation. The effects of ``(x | g)`` are correlated.

    Parameters
    ----------
    formula
        One-sided: the responses are the genes.
    obs
        One row per cell, n rows.

    Returns
    -------
    Design
        With `X` of shape (n, p) and `Z` of shape (n, q).

    Raises
    ------
    ValueError
        If the formula cannot be read or holds code that is not allowed, has no random term or the same one twice; if
        a column that it uses is unknown, has missing or infinite values or categories without cells; or if a grouping
        has a single group, or as many groups as cells.

    References
    ----------
    Bates D, Mächler M, Bolker B, Walker S (2015). Fitting linear mixed-effects models using lme4. Journal of
    Statistical Software 67(1), table 2.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"condition": ["ctrl", "stim"] * 3, "donor": ["D1", "D1", "D2", "D2", "D3", "D3"]})
    >>> design = build_design("~ condition + (1 | donor)", obs)
    >>> design.fixed_names, design.component_names, design.d
    (('Intercept', 'condition[T.stim]'), ('donor',), (3,))
    >>> design.random_names
    ('donor[D1]', 'donor[D2]', 'donor[D3]')
    """
    fixed, terms = split_formula(formula)
    if not terms:
        raise ValueError(
            f"the formula {formula!r} has no random term: add at least one, such as (1 | donor), for what the cells "
            "of a group share"
        )
    X, fixed_names, columns_of = _fixed_columns(fixed, obs)  # (n, p)
    blocks = [block for term in terms for block in _blocks(term, obs)]
    _refuse_duplicates(blocks)
    return Design(
        formula=formula,
        X=X,
        Z=_one_hot(blocks),
        d=tuple(len(block.levels) for block in blocks),
        fixed_names=fixed_names,
        random_names=tuple(f"{block.name}[{level}]" for block in blocks for level in block.levels),
        component_names=tuple(block.name for block in blocks),
        terms=columns_of,
        random_terms=tuple((term[0].group, tuple(block.effect for block in term)) for term in _correlated(blocks)),
    )


def fixed_design(formula: str, obs: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Model matrix of a one-sided formula without random terms, as R's ``model.matrix`` makes it.

    Parameters
    ----------
    formula
        Such as ``~ 0 + log(libsize) + cls + cls:trt``.
    obs
        One row per cell, n rows.

    Returns
    -------
    X
        (n, p) float64.
    names
        One per column, as formulaic writes them; `r_names` has them as R does.

    Raises
    ------
    ValueError
        As `build_design` does for the fixed part.

    Examples
    --------
    >>> import pandas as pd
    >>> X, names = fixed_design("~ 0 + cls", pd.DataFrame({"cls": ["B", "T", "B"]}))
    >>> X.tolist(), names
    ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], ('cls[B]', 'cls[T]'))
    """
    X, names, _ = _fixed_columns(right_hand_side(formula), obs)
    return X, names


def random_columns(formula: str, obs: pd.DataFrame) -> tuple[sparse.csr_array, tuple[str, ...]]:
    """Columns of Z for one component, from a one-sided formula such as ``~ 0 + sam``; never dense.

    Parameters
    ----------
    formula
        Without bars: this is how R's ``model.matrix`` is asked for Z.
    obs
        One row per cell, n rows.

    Returns
    -------
    Z
        (n, q) float64 in CSR format.
    names
        One per column, as formulaic writes them; `r_names` has them as R does.

    Raises
    ------
    ValueError
        As `build_design` does for the fixed part.

    Examples
    --------
    >>> import pandas as pd
    >>> Z, names = random_columns("~ 0 + sam", pd.DataFrame({"sam": ["A1", "B1", "A1"]}))
    >>> Z.toarray().tolist(), names
    ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], ('sam[A1]', 'sam[B1]'))
    """
    model = _model_matrix(right_hand_side(formula), obs, output="sparse")
    return sparse.csr_array(model, dtype=np.float64), model.model_spec.column_names


def _fixed_columns(
    text: str, obs: pd.DataFrame
) -> tuple[np.ndarray, tuple[str, ...], tuple[tuple[str, tuple[int, ...]], ...]]:
    """X (n, p), names of its columns, and the columns of each term."""
    model = _model_matrix(text, obs, output="numpy")
    names = model.model_spec.column_names
    if not names:
        raise ValueError(f"the fixed part {text.strip()!r} has no columns: leave the intercept in by writing '~ 1'")
    terms = tuple((str(term), tuple(columns)) for term, columns in model.model_spec.term_indices.items() if columns)
    return np.asarray(model, dtype=np.float64), names, terms  # (n, p)


def _model_matrix(text: str, obs: pd.DataFrame, output: str) -> formulaic.ModelMatrix:
    """Evaluate a checked formula on checked columns; `output` is formulaic's, "numpy" or "sparse"."""
    if not len(obs):
        raise ValueError("obs has no rows: it needs one for each cell")
    parsed, used = parse_fixed(text, obs.columns)
    table = pd.DataFrame({name: _checked_column(name, obs) for name in used}, index=range(len(obs)))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", DataMismatchWarning)  # levels= that leave cells out
            model = parsed.get_model_matrix(table, context=CONTEXT, output=output, na_action="ignore")
            totals = np.ravel(model.sum(axis=0))  # (p,)
    except Exception as error:  # the code was checked, so it is the values that it cannot work with
        raise ValueError(f"cannot evaluate the formula {text.strip()!r} on obs: {first_line(error)}") from error
    for position in np.flatnonzero(~np.isfinite(totals)):
        bad = ~np.isfinite(np.ravel(sparse.csc_array(model[:, [position]]).toarray()))  # (n,)
        advice = "look for zeros and negative numbers in logarithms and roots, and for constants that are scaled"
        _refuse_rows(f"design column {model.model_spec.column_names[position]!r}", bad, "NaN or infinite", advice, obs)
    return model


def _checked_column(name: str, obs: pd.DataFrame) -> pd.Series:
    """One column of obs, refused if it has holes, with numbers as NumPy knows them and all else as categories."""
    column = obs[require_column(name, obs.columns)]
    if column.ndim != 1:
        raise ValueError(f"obs has {column.shape[1]} columns named {name!r}: rename or drop all but one")
    column = column.reset_index(drop=True)  # cells may share a label, and formulaic aligns by label
    missing = column.isna().to_numpy(bool)
    _refuse_rows(f"obs column {name!r}", missing, "missing", "fill them in, or drop these cells", obs)
    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = column.astype(getattr(column.dtype, "numpy_dtype", column.dtype))  # pandas' nullable types have one
        infinite = np.isinf(numbers.to_numpy())
        _refuse_rows(f"obs column {name!r}", infinite, "infinite", "correct them, or drop these cells", obs)
        return numbers
    column = column.astype("category")
    unused = column.cat.categories.difference(column.unique().tolist(), sort=False)
    if len(unused):
        raise ValueError(
            f"obs column {name!r} has categories without cells ({', '.join(map(str, unused))}): drop them with "
            f"obs[{name!r}] = obs[{name!r}].cat.remove_unused_categories()"
        )
    # as plain text: of categories in pandas' own string type formulaic would make columns of objects
    return column.cat.rename_categories(column.cat.categories.astype(object).tolist())


def _refuse_rows(column: str, bad: np.ndarray, what: str, advice: str, obs: pd.DataFrame) -> None:
    if bad.any():
        first = ", ".join(map(str, obs.index[bad][:3]))
        raise ValueError(f"{column} is {what} in {bad.sum()} of {len(obs)} rows (first: {first}): {advice}")


@dataclass(frozen=True, eq=False)
class _Block:
    """Columns of Z that share one variance: row i has ``values[i]`` in column ``codes[i]`` and nothing elsewhere."""

    effect: str
    groups: tuple[str, ...]
    codes: np.ndarray  # (n,)
    values: np.ndarray  # (n,)
    levels: list[str]
    term: RandomTerm

    @property
    def group(self) -> str:
        return ":".join(self.groups)

    @property
    def name(self) -> str:
        if self.effect == "Intercept":
            return self.group
        return f"{self.effect}|{self.group}" if self.term.independent or self.alone else f"{self.group}.{self.effect}"

    alone: bool = True  #: the only effect of its term


def _blocks(term: RandomTerm, obs: pd.DataFrame) -> Iterator[_Block]:
    values, effects = _effects(term, obs)  # (n, effects)
    codes, levels = _groups(term, obs)  # (n,)
    for column, effect in enumerate(effects):
        yield _Block(effect, term.groups, codes, values[:, column], levels, term, alone=len(effects) == 1)


def _correlated(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Blocks term by term: those of one term are correlated, unless its bar was doubled."""
    found: list[list[_Block]] = []
    for block in blocks:
        if found and found[-1][0].term is block.term and not block.term.independent:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def _effects(term: RandomTerm, obs: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Evaluate what stands left of the bar: a column of ones, numeric columns, or both."""
    model = _model_matrix(term.effects, obs, output="numpy")
    effects = model.model_spec.column_names
    if not effects:
        raise ValueError(f"{term} has no random effect: write (1 | {term.group}) or (0 + x | {term.group})")
    return np.asarray(model, dtype=np.float64), effects


def _groups(term: RandomTerm, obs: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Find the group of each cell as an integer, and the groups' names: only combinations that have cells."""
    factors = [pd.factorize(_checked_column(name, obs), sort=True) for name in term.groups]
    shape = [len(labels) for _, labels in factors]
    cells = np.ravel_multi_index([codes for codes, _ in factors], shape)  # (n,)
    groups, codes = np.unique(cells, return_inverse=True)  # (groups,), (n,)
    parts = [
        labels[index].astype(str) for (_, labels), index in zip(factors, np.unravel_index(groups, shape), strict=True)
    ]
    if len(groups) < 2:
        raise ValueError(
            f"{term} has a single group, {term.group} = {':'.join(part[0] for part in parts)}: a variance between "
            "groups needs two groups or more; drop the term or group by another column"
        )
    if len(groups) == len(obs):
        raise ValueError(
            f"{term} has as many groups as there are cells ({len(obs)}), so that it cannot be told from the residual: "
            "drop the term or group by another column"
        )
    return codes, [":".join(labels) for labels in zip(*parts, strict=True)]


def _refuse_duplicates(blocks: Sequence[_Block]) -> None:
    seen = set()
    for block in blocks:
        key = (block.effect, frozenset(block.groups))
        if key in seen:
            raise ValueError(f"the random term {block.name} appears twice: keep one of them")
        seen.add(key)


def _one_hot(blocks: Sequence[_Block]) -> sparse.csr_array:
    """Z straight from the codes: every row holds one value for each block."""
    n, k = len(blocks[0].codes), len(blocks)
    widths = [len(block.levels) for block in blocks]
    offsets = np.cumsum([0, *widths[:-1]])  # (k,)
    columns = np.stack([block.codes for block in blocks], axis=1) + offsets  # (n, k)
    values = np.stack([block.values for block in blocks], axis=1)  # (n, k)
    kind = sparse.get_index_dtype(maxval=max(n * k, sum(widths)))
    places = columns.ravel().astype(kind), np.arange(0, n * k + 1, k, dtype=kind)
    return sparse.csr_array((values.ravel(), *places), shape=(n, sum(widths)))
