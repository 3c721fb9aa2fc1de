"""Linear mixed models with the methods of pertpy's models of differential expression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .api import fit as fit_cells
from .design.design import Design, build_design, used_cells
from .design.reference_grid import ReferenceGrid, factor_key
from .design.terms import Part
from .results.lmm_fit import LMMFit

if TYPE_CHECKING:
    from anndata import AnnData

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class LinearMixedModel:
    """Linear mixed models of all genes, with the methods of pertpy's ``Statsmodels``, ``EdgeR`` and ``PyDESeq2``.

    Parameters
    ----------
    adata : AnnData
        Cells, or pseudobulk samples, x genes.
    design : str
        lme4 syntax: pertpy's formula with random effects, ``"~ condition + (1 | donor)"``.
    mask : str, optional
        Column of `var` with a boolean mask of the genes to fit.
    layer : str, optional
        Layer to fit instead of X.

    Attributes
    ----------
    design : DataFrame (n, p)
        The fixed effects of the cells that are used.
    variables : set of str
        Columns of obs in the fixed part.
    results : LMMFit or None
        The fit, after `fit`.

    Raises
    ------
    ValueError
        For a formula, mask or layer that cannot be used.

    Examples
    --------
    >>> import anndata, lmm_gpu
    >>> donor = np.repeat(np.arange(6), 10)
    >>> obs = pd.DataFrame({"donor": donor.astype(str), "arm": np.where(donor < 3, "ctrl", "stim")})
    >>> adata = anndata.AnnData(np.random.default_rng(1).normal(size=(60, 4)), obs.set_index(obs.index.astype(str)))
    >>> model = lmm_gpu.tl.LinearMixedModel(adata, "~ arm + (1 | donor)")
    >>> model.fit(progress=False)
    >>> table = model.test_contrasts(model.contrast("arm", baseline="ctrl", group_to_compare="stim"))
    >>> len(table), {"variable", "p_value", "log_fc", "adj_p_value", "contrast"} <= set(table.columns)
    (4, True)
    """

    def __init__(self, adata: AnnData, design: str, *, mask: str | None = None, layer: str | None = None) -> None:
        if not isinstance(design, str):
            raise ValueError(
                f"got a design of type {type(design).__name__}; a mixed model needs a formula with random effects, "
                "such as '~ condition + (1 | donor)'"
            )
        if layer is not None and layer not in adata.layers:
            raise ValueError(f"layer={layer!r} is not a layer of adata; it has {', '.join(adata.layers) or 'none'}")
        if mask is not None:
            if mask not in adata.var or adata.var[mask].dtype != bool:
                raise ValueError(f"mask={mask!r} is not a boolean column of adata.var")
            adata = adata[:, adata.var[mask]]
        self.adata, self.formula, self.layer = adata, design, layer
        self.results: LMMFit | None = None
        used = used_cells(design, adata.obs)
        self._model: Design = build_design(design, adata.obs[used])
        columns = list(self._model.kept_columns)
        names = [self._model.fixed_names[j] for j in columns]
        self.design = pd.DataFrame(self._model.X[:, columns], adata.obs_names[used], names)

    @property
    def variables(self) -> set[str]:
        """Columns of obs that the fixed part uses."""
        return {name for term in self._model.terms for name in term.variables}

    def fit(self, **options: Any) -> None:
        """Fit the models.

        Parameters
        ----------
        **options
            Of `lmm_gpu.fit`, such as ``transform="normalize"``.

        Raises
        ------
        ValueError
            As `lmm_gpu.fit`.

        Examples
        --------
        See the class.
        """
        self.results = fit_cells(self.adata, self.formula, layer=self.layer, **options)

    def cond(self, **values: Any) -> pd.Series:
        """Row of the design of one condition; conditions are subtracted to make contrasts.

        Parameters
        ----------
        **values
            Level or value by column of obs. Other factors are at their reference level, covariates at zero.

        Returns
        -------
        Series (p,)

        Raises
        ------
        ValueError
            For unknown columns or levels, and for a factor without a reference level that is not given.

        Examples
        --------
        >>> import anndata, lmm_gpu
        >>> obs = pd.DataFrame({"donor": list("uuvvww"), "arm": list("ababab"), "age": [1.0, 2, 3, 4, 5, 7]})
        >>> adata = anndata.AnnData(np.ones((6, 2)), obs.set_index(obs.index.astype(str)))
        >>> model = lmm_gpu.tl.LinearMixedModel(adata, "~ arm + age + (1 | donor)")
        >>> (model.cond(arm="b") - model.cond(arm="a")).tolist()
        [0.0, 1.0, 0.0]
        """
        grid = ReferenceGrid.of(self._model.terms, len(self._model.fixed_names))
        at = {grid.known(name): value for name, value in values.items()}
        free = [part for name, part in grid.factors.items() if name not in at]
        lacking = [factor_key(part) for part in free if part.reference is None and part.values]
        if lacking:
            raise ValueError(f"{lacking[0]} has no reference level: give its level in cond({lacking[0]}=...)")
        at |= {factor_key(part): part.reference for part in free if part.reference is not None}
        bare = [part for part in free if part.reference is None]  # one column per level: none of them
        row = grid.row(dict.fromkeys(grid.covariates, 0.0) | at) if not bare else self._without(grid, at, bare)
        return pd.Series(row[list(self._model.kept_columns)], self.design.columns)

    def _without(self, grid: ReferenceGrid, at: Mapping[str, Any], bare: list[Part]) -> np.ndarray:
        # a row in which the columns of factors coded by one column per level are zero
        held = {factor_key(part): part.levels[0] for part in bare}
        row = grid.row(dict.fromkeys(grid.covariates, 0.0) | dict(at) | held)
        for term in self._model.terms:
            if {factor_key(part) for part in term.factors.values()} & held.keys():
                row[[column for column in term.columns if column >= 0]] = 0.0
        return row

    def contrast(self, column: str, baseline: Any, group_to_compare: Any) -> pd.Series:
        """Contrast of two groups, others at their reference level.

        Parameters
        ----------
        column : str
            Column of obs.
        baseline, group_to_compare
            Its levels: the contrast is group_to_compare - baseline.

        Returns
        -------
        Series (p,)

        Raises
        ------
        ValueError
            As `cond`.

        Examples
        --------
        See the class.
        """
        difference: pd.Series = self.cond(**{column: group_to_compare}) - self.cond(**{column: baseline})
        return difference

    def test_contrasts(self, contrasts: Any, **options: Any) -> pd.DataFrame:
        """Test contrasts, each sorted by p-value.

        Parameters
        ----------
        contrasts : array (p,), or mapping of name to array (p,)
        **options
            Of `LMMFit.test`, such as ``df="kenward-roger"``.

        Returns
        -------
        DataFrame
            The table of `LMMFit.test`, which has pertpy's columns variable, log_fc, p_value, adj_p_value and contrast
            (None for an array without a name).

        Raises
        ------
        ValueError
            Before `fit`, and as `LMMFit.test`.

        Examples
        --------
        See the class.
        """
        if self.results is None:
            raise ValueError("call fit() before test_contrasts()")
        named = contrasts if isinstance(contrasts, Mapping) else {None: contrasts}
        tables = []
        for name, contrast in named.items():
            row = np.asarray(contrast, dtype=float)
            if row.shape != (self.design.shape[1],):
                raise ValueError(f"a contrast has shape {row.shape}; expected one weight per column of the design")
            weights = pd.DataFrame({str(name): row}, self.design.columns)
            tables.append(self.results.test(weights, **options).assign(contrast=name).sort_values("p_value"))
        return pd.concat(tables)

    @classmethod
    def compare_groups(
        cls,
        adata: AnnData,
        column: str,
        baseline: str,
        groups_to_compare: str | Iterable[str],
        *,
        paired_by: str | None = None,
        random: str | None = None,
        mask: str | None = None,
        layer: str | None = None,
        fit_kwargs: Mapping[str, Any] = _NOTHING,
        test_kwargs: Mapping[str, Any] = _NOTHING,
    ) -> pd.DataFrame:
        """Compare groups of cells with a baseline.

        Parameters
        ----------
        adata : AnnData
        column : str
            Column of obs with the groups.
        baseline : str
        groups_to_compare : str or iterable of str
        paired_by : str, optional
            Column of obs with the donors: a random intercept, in place of pertpy's fixed effect.
        random : str, optional
            Random effects instead, such as ``"(1 | donor) + (1 | donor:condition)"``.
        mask, layer
            As the class.
        fit_kwargs, test_kwargs : mapping
            Options of `fit` and of `test_contrasts`.

        Returns
        -------
        DataFrame
            As `test_contrasts`; contrast is the group.

        Raises
        ------
        ValueError
            Without donors, and as the class.

        Examples
        --------
        >>> import anndata, lmm_gpu
        >>> obs = pd.DataFrame({"donor": np.repeat(list("uvwx"), 6), "arm": list("abcabc") * 4})
        >>> adata = anndata.AnnData(np.random.default_rng(1).normal(size=(24, 2)), obs.set_index(obs.index.astype(str)))
        >>> compare = lmm_gpu.tl.LinearMixedModel.compare_groups
        >>> table = compare(adata, "arm", "a", ["b", "c"], paired_by="donor", fit_kwargs={"progress": False})
        >>> table["contrast"].tolist()
        ['b', 'b', 'c', 'c']
        """
        if random is None and paired_by is None:
            raise ValueError("a mixed model needs donors: paired_by='donor', or random='(1 | donor)'")
        model = cls(adata, f"~ {_quoted(column)} + {random or f'(1 | {_quoted(paired_by)})'}", mask=mask, layer=layer)
        model.fit(**fit_kwargs)
        groups = [groups_to_compare] if isinstance(groups_to_compare, str) else list(groups_to_compare)
        return model.test_contrasts({group: model.contrast(column, baseline, group) for group in groups}, **test_kwargs)


def _quoted(name: str | None) -> str:
    return str(name) if str(name).isidentifier() else f"`{name}`"
