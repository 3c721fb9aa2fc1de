"""FLASHMM's functions under R's names, with underscores for dots, and in R's shapes; no numerics here.

Features are the ROWS of Y and the COLUMNS of every result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from ._flashmm_inputs import (
    axis_labels,
    check_same_cells,
    coefficient_rows,
    contrasts_in_columns,
    read_statistics,
    relabelled,
)
from ._flashmm_sums import check_blocks, sslmm
from .backend.late_imports import pd, scipy
from .design.column_names import r_names
from .estimation.fit_options import FitOptions
from .inference.pvalues import t_pvalue
from .results.fitting import fit_summary
from .results.lmm_fit import LMMFit
from .sumstats.summary_stats import SummaryStats

__all__ = ["flashmm", "lmm", "lmmfit", "lmmtest", "sslmm"]


def lmm(
    XX: Any,
    XY: Any = None,
    ZX: Any = None,
    ZY: Any = None,
    ZZ: Any = None,
    Ynorm: Any = None,
    n: int | None = None,
    d: int | Sequence[int] | None = None,
    method: str = "REML",
    theta0: Any = None,
    max_iter: int = 50,
    epsilon: float = 1e-5,
    output_cov: bool = True,
    output_FIM: bool = False,
    output_RE: bool = False,
    output_SS: bool = False,
    verbose: bool = False,
    *,
    nBlocks: int | None = None,
    Y_names: Sequence[str] | None = None,
    X_names: Sequence[str] | None = None,
    bounds: str = "auto",
    device: Any = "auto",
    memory: int | str | None = None,
    progress: bool = False,
) -> LMMFit:
    """Fit linear mixed models from summary statistics.

    Parameters
    ----------
    XX : array (p, p), or SummaryStats
        X'X; or all summary statistics in one object, as in ``lmm(sslmm(X, Y, Z), d=d)``.
    XY, ZX, ZY, ZZ : array (p, m), (q, p), (q, m), (q, q)
        X'Y', Z'X, Z'Y' and Z'Z for Y of features x cells.
    Ynorm : array (m,)
        Sum of squares of each feature.
    n : int
        Number of cells.
    d : int or sequence of int, optional
        Columns of Z per random effect; one effect by default.
    method : {"REML", "ML"}
    theta0 : array (k+1,) or (k+1, m), optional
        Starting values of the variance components, residual last; by default zeros and the residual variance of least
        squares.
    max_iter : int
        Largest number of iterations.
    epsilon : float
        Converged when every partial derivative of the log-likelihood is at most this.
    output_cov, output_FIM, output_RE, output_SS : bool
        Make `cov`; `FIM_beta` and `FIM_theta`; `RE`; `summary_data` available in the fit. Others are None.
    verbose : bool
        Print the number of features that did not converge.
    nBlocks : int, optional
        Number of blocks of features; by default the block size follows `memory`. R's `lmm` has no such argument.
    Y_names, X_names : sequence of str, optional
    bounds : {"auto", "nonnegative", "none"}
        "auto": components may be negative as long as V is positive definite, and are constrained to be non-negative
        for a feature without such an optimum. "nonnegative": never negative. "none": no fallback.
    device : str, or list of str
        "auto" (the device of the arrays, else a CUDA device, else the host), "cpu", "cuda", "cuda:1", or several.
    memory : int or str, optional
        Budget for a block of features.
    progress : bool
        Show a progress bar.

    Returns
    -------
    LMMFit

    Raises
    ------
    ValueError
        For inconsistent arguments and a rank-deficient X. Failures of single features are reported in `status`.

    References
    ----------
    Xu, Pouyabahar, Voisin et al. (2026), FLASH-MM, Nature Communications 17, 2384.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> X, Z = np.ones((60, 1)), np.repeat(np.eye(6), 10, axis=0)
    >>> Y = (rng.normal(size=(3, 6)) @ Z.T) + rng.normal(size=(3, 60))
    >>> fit = lmm(sslmm(X, Y, Z))
    >>> list(fit.theta.index), fit.converged.all().item()
    (['var1', 'var0'], True)
    """
    others = {"XY": XY, "ZX": ZX, "ZY": ZY, "ZZ": ZZ, "Ynorm": Ynorm, "n": n}
    if not isinstance(XX, SummaryStats):
        summary = read_statistics({"XX": XX, **others}, d, Y_names, X_names)
    elif surplus := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"got SummaryStats and also {', '.join(surplus)}: name the options, as in lmm(summary, d=..)")
    else:
        summary = relabelled(XX, d, Y_names, X_names)
    block = None if nBlocks is None else math.ceil(summary.m / check_blocks(nBlocks))
    options = FitOptions(method, bounds, max_iter, epsilon, theta0, memory, block, device)
    with _bar(summary.m) if progress else nullcontext() as step:
        fit = fit_summary(summary, options, step)
    shown = {
        "cov": output_cov,
        "FIM_beta": output_FIM,
        "FIM_theta": output_FIM,
        "RE": output_RE,
        "summary_data": output_SS,
    }
    outputs = tuple(name for name, wanted in shown.items() if wanted)
    fit = replace(fit, summary=summary, ddf="residual", outputs=outputs)
    if verbose:
        print(f"{int((~fit.converged).sum())} of {summary.m} features did not converge")
    return fit


@contextmanager
def _bar(genes: int) -> Iterator[Callable[[int], object]]:
    from tqdm.auto import tqdm

    with tqdm(total=genes, unit="gene") as bar:
        yield bar.update


def lmmfit(
    Y: Any,
    X: Any,
    Z: Any,
    d: int | Sequence[int] | None = None,
    method: str = "REML",
    nBlocks: int | None = None,
    theta0: Any = None,
    max_iter: int = 50,
    epsilon: float = 1e-5,
    output_cov: bool = True,
    output_FIM: bool = False,
    output_RE: bool = False,
    output_SS: bool = False,
    verbose: bool = False,
    *,
    is_counts: bool | None = None,
    weights: Any = None,
    Y_names: Sequence[str] | None = None,
    X_names: Sequence[str] | None = None,
    bounds: str = "auto",
    device: Any = "auto",
    memory: int | str | None = None,
    progress: bool = False,
) -> LMMFit:
    """Fit linear mixed models from cells: `sslmm`, then `lmm`.

    Parameters
    ----------
    Y : array, SciPy sparse matrix or DataFrame (m, n)
        Features in rows, cells in columns.
    X, Z : array, SciPy sparse matrix or DataFrame (n, p), (n, q)
        Design of the fixed effects, and of the random effects, Z = [Z1, .., Zk].
    d : int or sequence of int, optional
        Columns of Z per random effect; one effect by default.
    method, nBlocks, theta0, max_iter, epsilon, output_cov, output_FIM, output_RE, output_SS, verbose
        As `lmm`.
    is_counts, weights, Y_names, X_names
        As `sslmm`.
    bounds, device, memory, progress
        As `lmm`.

    Returns
    -------
    LMMFit

    Raises
    ------
    ValueError
        As `sslmm` and `lmm`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> X, Z = np.ones((60, 1)), np.repeat(np.eye(6), 10, axis=0)
    >>> fit = lmmfit(rng.normal(size=(3, 60)), X, Z, d=6)
    >>> fit.coef.shape, fit.df
    ((1, 3), 59.0)
    """
    reading = {"is_counts": is_counts, "weights": weights, "Y_names": Y_names, "X_names": X_names}
    summary = sslmm(X, Y, Z, nBlocks, d=d, device=device, memory=memory, **reading)
    return lmm(
        summary,
        method=method,
        theta0=theta0,
        nBlocks=nBlocks,
        max_iter=max_iter,
        epsilon=epsilon,
        output_cov=output_cov,
        output_FIM=output_FIM,
        output_RE=output_RE,
        output_SS=output_SS,
        verbose=verbose,
        bounds=bounds,
        device=device,
        memory=memory,
        progress=progress,
    )


def flashmm(
    Y: Any,
    fixed: str,
    random: str | Sequence[str],
    metadata: pd.DataFrame,
    is_counts: bool | None = False,
    **options: Any,
) -> LMMFit:
    """Fit linear mixed models from cells and R formulas.

    Parameters
    ----------
    Y : array, SciPy sparse matrix or DataFrame (m, n)
        Features in rows, cells in columns.
    fixed : str
        One-sided formula of the fixed effects, such as ``"~ 0 + log(libsize) + cls + cls:trt"``.
    random : str or list of str
        One one-sided formula per random effect, such as ``"~ 0 + sam"``.
    metadata : DataFrame (n rows)
        One row per cell, in the order of the columns of Y.
    is_counts : bool or None
        True: raw counts, fitted as log2(1 + Y). None: auto-detected.
    **options
        The options of `lmmfit`, from `method` on.

    Returns
    -------
    LMMFit
        Fixed effects named as R's ``model.matrix`` names them.

    Raises
    ------
    ValueError
        For formulas that cannot be read or name unknown columns, for metadata that does not match Y, and as `lmmfit`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(1)
    >>> cells = pd.DataFrame({"trt": np.tile(["A", "B"], 30), "sam": np.repeat(list("abcdef"), 10)})
    >>> flashmm(rng.normal(size=(3, 60)), "~ 0 + trt", "~ 0 + sam", cells).coef.index.tolist()
    ['trtA', 'trtB']
    """
    from .design.design import fixed_design, random_columns  # formulaic takes a tenth of a second to load

    if not isinstance(metadata, pd.DataFrame):
        raise ValueError(f"metadata is of type {type(metadata).__name__}; expected a DataFrame with one row per cell")
    if isinstance(Y, pd.DataFrame):
        check_same_cells({"Y": axis_labels(Y.columns), "metadata": axis_labels(metadata.index)})
    formulas = [random] if isinstance(random, str) else list(random or ())
    if not formulas or not all(isinstance(formula, str) for formula in (fixed, *formulas)):
        raise ValueError(
            f"got fixed={fixed!r}, random={random!r}; expected one formula, such as '~ 0 + trt', and one or a list of "
            "formulas, such as '~ 0 + sample'"
        )
    X, x_names = fixed_design(fixed, metadata)
    parts = [random_columns(formula, metadata) for formula in formulas]
    Z = pd.DataFrame.sparse.from_spmatrix(  # type: ignore[attr-defined]
        scipy.sparse.hstack([part for part, _ in parts], format="csr"),
        columns=r_names([name for _, names in parts for name in names]),
    )
    widths = [part.shape[1] for part, _ in parts]
    options.setdefault("X_names", r_names(x_names))
    return lmmfit(Y, X, Z, widths, is_counts=is_counts, **options)


def lmmtest(
    fit: LMMFit,
    index: int | str | Sequence[int] | Sequence[str] | None = None,
    contrast: Any = None,
    alternative: str = "two.sided",
    *,
    ddf: str = "residual",
) -> pd.DataFrame:
    """Test fixed effects or contrasts of them.

    Parameters
    ----------
    fit : LMMFit
    index : int, str or sequence of them, optional
        Fixed effects, by position (from 0, as everywhere in Python) or name; by default all. Ignored if `contrast`
        is given.
    contrast : DataFrame or array (p, c), dict, str or list of str, optional
        Contrasts in columns, as `contrast_matrix` returns them; its arguments; or {name: weight}.
    alternative : {"two.sided", "less", "greater"}
    ddf : {"residual", "generalized", "satterthwaite", "kenward-roger", "lmertest", "between-within"}
        Degrees of freedom: n - p as in FLASHMM, or methods that are valid with few donors, as in `LMMFit.test`.
        "kenward-roger" adjusts the standard errors, too.

    Returns
    -------
    DataFrame (m, 3c)
        All coefficients ``<name>_coef``, then all ``<name>_t``, then all ``<name>_p``; features in rows.

    Raises
    ------
    ValueError
        For unknown names, and contrasts that do not have one weight per fixed effect.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> X = np.kron(np.ones((30, 1)), np.eye(2))
    >>> fit = lmmfit(rng.normal(size=(3, 60)), X, np.repeat(np.eye(6), 10, axis=0), X_names=["A", "B"])
    >>> lmmtest(fit, contrast={"B-A": "B - A"}).columns.tolist()
    ['B-A_coef', 'B-A_t', 'B-A_p']
    """
    names = list(fit.summary.fixed_names)
    rows, labels = coefficient_rows(index, names) if contrast is None else contrasts_in_columns(contrast, names)
    tested = fit.contrast_test(rows, ddf)
    p = t_pvalue(tested.t, tested.df, {"two.sided": "two-sided"}.get(alternative, alternative))
    columns = [f"{label}_{what}" for what in ("coef", "t", "p") for label in labels]
    values = np.concatenate([tested.estimate, tested.t, p], axis=0).T  # (m, 3c)
    return pd.DataFrame(values, index=list(fit.summary.features), columns=columns)
