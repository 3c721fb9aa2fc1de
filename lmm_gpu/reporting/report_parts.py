"""Parts of the report: its plots, and the data of its table of genes."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..backend.arrays import to_numpy
from ..inference.diagnostics import varies_within
from ..inference.pvalues import log10_benjamini_hochberg
from ..results.lmm_fit import LMMFit
from .canvas import as_address
from .contrast_plots import ma, pvalue_hist, qq, volcano
from .fit_plots import convergence, variance, variance_partition
from .gene_plots import gene
from .group_means import between_options, is_factor, paired_options

#: Maximum number of table rows over all contrasts, and of contrasts with plots: keeps a page to a few megabytes.
MOST_ROWS, MOST_DRAWN = 150_000, 8
#: Number of genes per contrast with a plot of their own.
GENES_DRAWN = 4
#: With more groups than this, half as many: the plots fill the width of the page.
_WIDE = 24
#: Optional columns of a table of tests.
_COLUMNS = ("log_fc", "se", "statistic", "df1", "df")


@dataclass(frozen=True)
class Figure:
    """A plot with its caption, or the reason why it is missing."""

    title: str
    caption: str
    address: str | None  #: data: URL
    width: int = 0  #: CSS pixels


@dataclass(frozen=True)
class ContrastPart:
    """Results of one contrast."""

    name: str
    tested: int
    up: int
    down: int
    directed: bool  #: False for F tests
    plots: list[Figure]
    genes: list[Figure]
    apart: bool  #: True if the gene plots separate the groups that the contrast compares
    paired: bool  #: True if they join the donors between conditions


def shown_contrasts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each contrast; the intercept is left out unless it is the only one.

    >>> table = pd.DataFrame({"contrast": ["Intercept", "b - a"], "log10_p_value": [-9.0, -1.0]})
    >>> list(shown_contrasts(table))
    ['b - a']
    """
    parts = {str(name): rows for name, rows in table.groupby("contrast", sort=False, observed=True)}
    return {name: rows for name, rows in parts.items() if name != "Intercept"} or parts


def contrast_parts(
    fit: LMMFit,
    by_contrast: Mapping[str, pd.DataFrame],
    weights: Mapping[str, np.ndarray],
    fdr: float,
    progress: bool,
) -> list[ContrastPart]:
    """Results of every contrast, with plots for the first ones; `weights` has the known weights (p,) by name."""
    parts: list[ContrastPart] = []
    bar = tqdm(by_contrast.items(), desc="drawing", unit="contrast", leave=False, disable=None if progress else True)
    for name, rows in bar:
        drawn, directed = len(parts) < MOST_DRAWN, "log_fc" in rows
        significant = rows["adj_p_value"] <= fdr
        up = significant & (rows["log_fc"] > 0) if directed else significant
        tested, called = int(rows["log10_p_value"].notna().sum()), int(significant.sum())
        plots = list(_test_plots(rows, fdr)) if drawn else []
        how = _gene_options(fit, weights[name]) if name in weights else {}
        genes = list(_gene_plots(fit, rows, how)) if drawn else []
        counts = (tested, int(up.sum()), called - int(up.sum()))
        apart = name not in weights or bool(how) or not varies_within(fit.summary, weights[name][None])[0]
        parts.append(ContrastPart(name, *counts, directed, plots, genes, apart, _is_paired(fit, how)))
    return parts


def _test_plots(rows: pd.DataFrame, fdr: float) -> Iterator[Figure]:
    if "log_fc" in rows:
        yield _figure(
            "Volcano",
            f"Effect against p-value. Genes above the dashed line have an FDR of at most {fdr:g}.",
            volcano,
            rows,
            fdr=fdr,
        )
        if "mean_expr" in rows:
            yield _figure("MA", "Effect against mean expression.", ma, rows, fdr=fdr)
    yield _figure(
        "p-values",
        "Uniform if no gene has an effect, with a peak at zero if some have. A slope or a peak at one indicates that "
        "the model does not fit the data.",
        pvalue_hist,
        rows,
    )
    yield _figure(
        "QQ",
        "Observed against expected p-values. Points above the band everywhere: the p-values are too small, or most "
        "genes have an effect. λ is 1 for calibrated tests.",
        qq,
        rows,
    )


def fit_plots(fit: LMMFit) -> Iterator[Figure]:
    """Plots of the variance components and of the convergence."""
    yield _figure(
        "Variance", "Share of each component in the variance that the fixed effects leave unexplained.", variance, fit
    )
    caption = "Fraction of the variance by fixed term, random effect and residual; marks are median and quartiles."
    yield _figure("Variance partition", caption, variance_partition, fit)
    yield _figure("Convergence", "Number of iterations per gene, by status.", convergence, fit)


def _gene_plots(fit: LMMFit, rows: pd.DataFrame, options: Mapping[str, str]) -> Iterator[Figure]:
    tested = rows[np.isfinite(rows["log10_p_value"])].sort_values("log10_p_value", kind="stable")
    wide = max(fit.summary.d) > _WIDE
    for name in tested["variable"].head(GENES_DRAWN // 2 if wide else GENES_DRAWN):
        figure = _figure(str(name), "", gene, fit, name, **options)
        if figure.address is not None:  # no random effect is a grouping
            yield figure


def _gene_options(fit: LMMFit, weights: np.ndarray) -> dict[str, str]:
    """Options of `gene` that show what a contrast (p,) compares: paired donors if there are any."""
    return paired_options(fit, weights) or between_options(fit, weights)


def _is_paired(fit: LMMFit, options: Mapping[str, str]) -> bool:
    return "by" in options and is_factor(fit, options["by"])


def _figure(title: str, caption: str, draw: Callable[..., Any], *of: Any, **options: Any) -> Figure:
    try:
        address, inches = as_address(draw(*of, **options))
        return Figure(title, caption, address, round(96 * inches))
    except ValueError as reason:  # nothing to draw: no p-values, no means
        return Figure(title, f"Not available: {reason}.", None)


@dataclass(frozen=True)
class Numbers:
    """Data of the table of genes, for the script of the page."""

    packed: str  #: JSON, gzip, base64
    kept: int | None  #: number of genes kept per contrast (smallest p-values), None if all are

    @classmethod
    def of(cls, fit: LMMFit, by_contrast: Mapping[str, pd.DataFrame]) -> Numbers:
        """Collect the numbers of all contrasts, rounded to the digits shown."""
        most = max(MOST_ROWS // len(by_contrast), 50)
        place = {name: i for i, name in enumerate(fit.summary.features)}
        words, mean = sorted(set(fit.status)), fit.summary.mean()
        data = {
            "genes": list(fit.summary.features),
            "status": [words.index(word) for word in fit.status],
            "words": words,
            "mean": None if mean is None else _digits(to_numpy(mean)),
            "contrasts": [_numbers_of(name, rows, place, most) for name, rows in by_contrast.items()],
        }
        packed = gzip.compress(json.dumps(data, separators=(",", ":"), allow_nan=False).encode(), mtime=0)
        return cls(base64.b64encode(packed).decode(), most if fit.summary.m > most else None)


def _numbers_of(name: str, rows: pd.DataFrame, place: Mapping[str, int], most: int) -> dict[str, Any]:
    """Columns of one contrast, smallest p-value first; p-values and FDR as logarithms, which do not underflow."""
    log10_p, adjusted = rows["log10_p_value"].to_numpy(float), rows["adj_p_value"].to_numpy(float)
    with np.errstate(divide="ignore"):
        log10_q = np.where(adjusted == 0, log10_benjamini_hochberg(log10_p), np.log10(adjusted))
    order = np.argsort(log10_p, kind="stable")[:most]  # NaN last
    columns = {title: rows[title].to_numpy(float) for title in _COLUMNS if title in rows}
    listed = {title: _digits(values[order]) for title, values in columns.items()}
    listed |= {"log10_p": _digits(log10_p[order], 5), "log10_q": _digits(log10_q[order], 5)}
    genes = [place[gene] for gene in rows["variable"].to_numpy()[order]]
    return {"name": name, "gene": genes, "columns": listed}


def _digits(values: np.ndarray, digits: int = 4) -> str:
    """Join numbers by commas, rounded to significant digits; empty for NaN and infinity.

    >>> _digits(np.array([1 / 3, np.nan, -2e-9]))
    '0.3333,,-2e-09'
    """
    text = ",".join([f"%.{digits}g"] * values.size) % tuple(values.tolist())
    return text.replace("nan", "").replace("-inf", "").replace("inf", "")
