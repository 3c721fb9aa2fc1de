"""Contrasts of coefficients as rows of weights, from expressions, dicts, arrays or tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .linear_expression import linear_weights, no_such_column, shown

if TYPE_CHECKING:
    import pandas as pd


def parse_contrast(expression: str, names: Sequence[str]) -> np.ndarray:
    """Read one linear expression over column names as the weights of a contrast.

    The expression may use ``+ - * /``, parentheses, numbers and the names as they are: names that contain ``:``,
    ``.``, spaces, brackets or even operators need no quotes, because the longest name that matches is used. Quotes or
    backquotes override this: with columns ``A``, ``B`` and ``A-B``, write ``"A" - B``. A bare number is a number; a
    column named ``2`` needs quotes.

    Parameters
    ----------
    expression : str
        For example ``"(cls1:trtB + cls2:trtB)/2 - cls3:trtB"``.
    names : sequence of str, length p
        Names of the coefficients: the columns of X.

    Returns
    -------
    ndarray, shape (p,)
        The weight of each coefficient.

    Raises
    ------
    ValueError
        If the expression is empty, malformed, too long, too deeply nested, not linear, has a constant term, is zero
        (``A - A``), or names a column that is not in `names`; or if `names` are not distinct.

    Examples
    --------
    >>> parse_contrast("log(libsize) - (cls1:trtB + cls2:trtB)/2", ["log(libsize)", "cls1:trtB", "cls2:trtB"])
    array([ 1. , -0.5, -0.5])
    """
    names = _distinct(names, "column names")
    return _checked(linear_weights(expression, names), names, f"contrast {shown(expression)}")


def contrast_matrix(contrast: str | Sequence[str] | Mapping[str, str], names: Sequence[str]) -> pd.DataFrame:
    """Make a matrix with one column per expression, as R's ``contrast.matrix``.

    Parameters
    ----------
    contrast : dict, list of str, or str
        Expressions as `parse_contrast` reads them. The keys of a dict name the columns; otherwise the expressions do.
    names : sequence of str, length p
        Names of the coefficients: the columns of X.

    Returns
    -------
    DataFrame, shape (p, c)
        Indexed by `names`.

    Raises
    ------
    ValueError
        If an expression cannot be read (see `parse_contrast`), or if two columns or two `names` are the same.

    References
    ----------
    ``contrast.matrix`` of the R package FLASHMM, https://cran.r-project.org/package=FLASHMM

    Examples
    --------
    >>> contrast_matrix({"AvsB": "A - B", "AvsBC": "A - (B+C)/2"}, ["A", "B", "C"])
       AvsB  AvsBC
    A   1.0    1.0
    B  -1.0   -0.5
    C   0.0   -0.5
    """
    import pandas as pd

    rows, labels = _labelled_rows(_by_label(contrast), _distinct(names, "column names"))
    return pd.DataFrame(rows.T, index=list(names), columns=labels)


def contrast_rows(contrast: Any, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Rows of weights and labels of contrasts in any form.

    Parameters
    ----------
    contrast : str, list of str, dict, array, DataFrame, Series, or None
        A str is one expression and a list of str several. A dict of numbers is one contrast, ``{name: weight}``; any
        other dict is several, ``{label: expression, weights or dict of weights}``. An array of one axis is p weights,
        of two axes one contrast per row. A DataFrame, as from `contrast_matrix`, has one contrast per column and is
        reordered by its index; a Series is one such column. None is one contrast per coefficient.
    names : sequence of str, length p
        Names of the coefficients: the columns of X.

    Returns
    -------
    rows : ndarray, shape (L, p)
        One contrast per row.
    labels : list of str, length L
        Names of the contrasts.

    Raises
    ------
    ValueError
        If an expression cannot be read (see `parse_contrast`); if weights are not finite numbers, are all zero, have
        the wrong number, or are for a name that is not in `names`; or if labels or `names` are not distinct.

    Examples
    --------
    >>> rows, labels = contrast_rows({"a": 1, "b": -0.5}, ["a", "b", "c"])
    >>> rows
    array([[ 1. , -0.5,  0. ]])
    >>> labels
    ['a - 0.5*b']
    """
    names = _distinct(names, "column names")
    if contrast is None:
        return np.eye(len(names)), names
    if not hasattr(contrast, "__iter__"):
        raise ValueError(
            f"got the contrast {contrast!r}, expected an expression such as 'A - B', weights, or a dict of them"
        )
    import pandas as pd

    if isinstance(contrast, pd.Series):
        contrast = contrast.to_frame("contrast1" if contrast.name is None else contrast.name)
    if isinstance(contrast, pd.DataFrame):
        contrast = _columns_in_order(contrast, names)
    if _is_one_number_each(contrast):
        weights = _weights(contrast, names, "contrast")
        return weights[np.newaxis], [_sentence(weights, names)]
    return _labelled_rows(_by_label(contrast), names)


def _is_one_number_each(contrast: Any) -> bool:
    values = contrast.values() if isinstance(contrast, Mapping) else contrast
    return all(np.ndim(value) == 0 and not isinstance(value, (str, Mapping)) for value in values)


def _by_label(contrast: Any) -> Mapping[str, Any]:
    """Label unlabelled contrasts: an expression by itself, a row of a matrix by its number."""
    if isinstance(contrast, Mapping):
        return contrast
    several = [contrast] if isinstance(contrast, str) else list(contrast)
    if any(isinstance(expression, str) for expression in several):
        return dict(zip(_distinct(several, "contrasts"), several, strict=True))
    return {f"contrast{row}": weights for row, weights in enumerate(several, start=1)}


def _columns_in_order(contrast: pd.DataFrame, names: list[str]) -> dict[str, np.ndarray]:
    index, labels = _distinct(contrast.index, "rows of the contrast"), _distinct(contrast.columns, "contrasts")
    if set(index) != set(names):
        raise ValueError(
            f"got a contrast DataFrame whose rows lack {sorted(set(names) - set(index))} and include the unknown "
            f"{sorted(set(index) - set(names))}, expected one row for each column of X: make it with contrast_matrix"
        )
    in_order = contrast.to_numpy()[[index.index(name) for name in names]]  # (p, L)
    return dict(zip(labels, in_order.T, strict=True))


def _labelled_rows(contrasts: Mapping[str, Any], names: list[str]) -> tuple[np.ndarray, list[str]]:
    if not contrasts:
        raise ValueError(
            "got no contrast, expected at least one: an expression such as 'A - B', or the name of a column"
        )
    rows = [_weights(contrast, names, f"contrast {label!r}") for label, contrast in contrasts.items()]
    return np.stack(rows), _distinct(contrasts, "contrasts")


def _weights(contrast: Any, names: list[str], what: str) -> np.ndarray:
    """Weights from an expression, from ``{name: weight}``, or from p numbers."""
    if isinstance(contrast, str):
        return parse_contrast(contrast, names)
    if isinstance(contrast, Mapping):
        for unknown in (name for name in contrast if name not in names):
            raise ValueError(f"{what}: {no_such_column(str(unknown), names)}")
        contrast = [contrast.get(name, 0.0) for name in names]
    try:
        weights = np.asarray(contrast, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: got {shown(contrast)}, expected {len(names)} numbers, one per column") from error
    return _checked(weights, names, what)


def _checked(weights: np.ndarray, names: list[str], what: str) -> np.ndarray:
    if weights.shape != (len(names),):
        raise ValueError(f"{what}: got weights of shape {weights.shape}, expected {(len(names),)}: one per column of X")
    if not np.isfinite(weights).all():
        bad = [name for name, weight in zip(names, weights, strict=True) if not np.isfinite(weight)]
        raise ValueError(f"{what}: got NaN or infinite weights for {bad}, expected finite numbers")
    if not weights.any():
        raise ValueError(f"{what}: all its weights are zero; expected at least one that is not")
    return weights


def _sentence(weights: np.ndarray, names: list[str]) -> str:
    """Weights as an expression: ``a - 0.5*b``."""
    terms = [
        f"{'-' if weight < 0 else '+'} " + (name if abs(weight) == 1 else f"{abs(weight):g}*{name}")
        for weight, name in zip(weights, names, strict=True)
        if weight
    ]
    signed = " ".join(terms)
    return ("-" if signed[0] == "-" else "") + signed[2:]


def _distinct(labels: Any, what: str) -> list[str]:
    as_text = [str(label) for label in labels]
    repeated = [label for label, times in Counter(as_text).items() if times > 1]
    if repeated:
        raise ValueError(f"got {what} that repeat {repeated}, expected each of them once: rename or drop the copies")
    return as_text
