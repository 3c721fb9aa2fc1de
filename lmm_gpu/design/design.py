"""Design of a mixed model: X, Z and the names of their columns, from a formula and a table of cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..backend.late_imports import scipy
from .terms import Terms

if TYPE_CHECKING:
    import pandas as pd

    from .fixed_effects import FixedColumns
    from .random_effects import RandomTerm


@dataclass(frozen=True, eq=False)
class Design:
    """Design of the model ``y = X beta + Z u + e``.

    Attributes
    ----------
    formula
        The formula as it was written.
    fixed
        Columns of X, those made of factors as a table of distinct rows.
    random
        Random terms with the group of each cell.
    """

    formula: str
    fixed: FixedColumns = field(repr=False)
    random: tuple[RandomTerm, ...] = field(repr=False)

    @cached_property
    def X(self) -> np.ndarray:
        """Fixed effects (n, p) float64."""
        return self.fixed.X

    @cached_property
    def Z(self) -> scipy.sparse.csr_array:
        """Random effects (n, q) float64 in CSR format: one block per component, one column per group."""
        from .random_effects import indicator_matrix

        return indicator_matrix(self.random)

    @property
    def terms(self) -> Terms:
        """Terms of the fixed part, with their columns of X, factors and levels; ``1`` is the intercept."""
        return self.fixed.terms

    @property
    def fixed_names(self) -> tuple[str, ...]:
        """One name per column of X, as formulaic writes them: ``condition[T.stim]``."""
        return self.fixed.names

    @property
    def kept_columns(self) -> tuple[int, ...]:
        """Positions of the columns of X that a fit of these cells keeps: interactions without cells are dropped.

        Raises
        ------
        ValueError
            If columns are linearly dependent for another reason.
        """
        from .rank import columns_to_keep

        return tuple(columns_to_keep(self.fixed.XX, self.fixed_names, self.terms)[0])

    @property
    def random_terms(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Grouping and effects of each random term, in the order of the blocks; effects of one term are correlated."""
        return tuple((term.group, term.effects) for term in self.random)

    @property
    def d(self) -> tuple[int, ...]:
        """Number of columns of Z in each block, (k,); they add up to q."""
        return tuple(len(term.levels) for term in self.random for _ in term.effects)

    @property
    def random_names(self) -> tuple[str, ...]:
        """One name per column of Z: ``donor[D1]``, ``donor:cell_type[D1:B]``, ``age|donor[D1]``."""
        return tuple(name for term in self.random for name in term.random_names)

    @property
    def component_names(self) -> tuple[str, ...]:
        """One name per block of Z: ``donor``, ``donor:cell_type``, ``age|donor``; ``donor.age`` if correlated."""
        return tuple(name for term in self.random for name in term.component_names)

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.fixed.codes)

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return len(self.fixed.names)

    @property
    def q(self) -> int:
        """Number of random effects."""
        return sum(self.d)


def build_design(formula: str, obs: pd.DataFrame) -> Design:
    """Build the design of a linear mixed model from an lme4 formula.

    The fixed part follows formulaic. The random part may contain ``(1 | g)``, ``(1 | a:b)``, ``(1 | a/b)`` which is
    ``(1 | a) + (1 | a:b)``, ``(0 + x | g)`` for a slope alone, ``(x | g)`` for an intercept and a slope with their
    correlation, and ``(x || g)`` for the same without it; x may be a factor or several columns.

    Unused categories are dropped, and ordered ones are coded by treatment contrasts; a log line says so.

    Parameters
    ----------
    formula
        One-sided: the responses are the genes.
    obs
        One row per cell, n rows, without missing values in the columns that the formula uses (`used_cells` finds
        the complete rows).

    Returns
    -------
    Design
        With `X` of shape (n, p) and `Z` of shape (n, q).

    Raises
    ------
    ValueError
        If the formula cannot be read or contains code that is not allowed, has no random term or the same one twice; if
        a column that it uses is unknown, has missing or infinite values, or dates; if a factor has one level, a term
        makes no column, or a random term has a single group, as many groups as cells, or more effects than its groups
        determine.

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
    from .fixed_effects import fixed_columns
    from .formula import split_formula
    from .obs_columns import ObsColumns
    from .random_effects import random_terms

    text, terms = split_formula(formula)
    if not terms:
        raise ValueError(
            f"the formula {formula!r} has no random term: add at least one, such as (1 | donor), for the variation "
            "between groups of cells; for samples without such groups (bulk, pseudobulk), dream fits fixed effects "
            "alone"
        )
    columns = ObsColumns(obs)
    return Design(formula, fixed_columns(text, columns), random_terms(terms, columns))


def used_cells(formula: str, obs: pd.DataFrame) -> np.ndarray:
    """Return True (n,) for the cells without missing values in the columns that a formula uses.

    One log line for each column says how many cells are left out.

    Parameters
    ----------
    formula
        Of a mixed model.
    obs
        One row per cell, n rows.

    Raises
    ------
    ValueError
        If the formula cannot be read or names an unknown column, or no cell is complete.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"age": [31.0, None, 45.0], "donor": ["D1", "D1", "D2"]})
    >>> used_cells("~ age + (1 | donor)", obs).tolist()
    [True, False, True]
    """
    from .formula import all_columns
    from .obs_columns import complete_rows

    return complete_rows(all_columns(formula, list(obs.columns)), obs)


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
    from .fixed_effects import fixed_columns
    from .formula import right_hand_side
    from .obs_columns import ObsColumns

    fixed = fixed_columns(right_hand_side(formula), ObsColumns(obs))
    return fixed.X, fixed.names


def random_columns(formula: str, obs: pd.DataFrame) -> tuple[scipy.sparse.csr_array, tuple[str, ...]]:
    """Columns of Z for one component, from a one-sided formula such as ``~ 0 + sam``; never dense.

    Parameters
    ----------
    formula
        Without bars: R's ``model.matrix`` takes this form for Z.
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
    from .fixed_effects import sparse_columns
    from .formula import right_hand_side
    from .obs_columns import ObsColumns

    return sparse_columns(right_hand_side(formula), ObsColumns(obs))
