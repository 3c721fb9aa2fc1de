"""Parts of the report: its pictures, and its table of genes as the page carries it."""

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
from .fit_plots import convergence, gene, options_for, variance

#: Rows of the table that a page holds, over all contrasts, and contrasts with pictures: a few megabytes.
MOST_ROWS, MOST_DRAWN = 150_000, 8
#: Genes of a contrast that are drawn group by group.
GENES_DRAWN = 4
#: Of more groups than this, half as many: their pictures fill the page's width.
_WIDE = 24
#: What a table of tests may have, beside p-values.
_COLUMNS = ("log_fc", "se", "statistic", "df1", "df")


@dataclass(frozen=True)
class Picture:
    """An image with its caption, or the reason why there is none."""

    title: str
    caption: str
    address: str | None  #: data:
    width: int = 0  #: in pixels of CSS


@dataclass(frozen=True)
class ContrastPart:
    """What the page shows of one contrast."""

    name: str
    tested: int
    up: int
    down: int
    directed: bool  #: F tests are not
    pictures: list[Picture]
    genes: list[Picture]
    apart: bool  #: whether these show what the contrast compares, not means over it


def shown_contrasts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each contrast, without the intercept if there is anything else.

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
    """Counts of every contrast, and pictures of the first ones; `weights` (p,) of those that are known."""
    parts: list[ContrastPart] = []
    bar = tqdm(by_contrast.items(), desc="drawing", unit="contrast", leave=False, disable=None if progress else True)
    for name, rows in bar:
        drawn, directed = len(parts) < MOST_DRAWN, "log_fc" in rows
        significant = rows["adj_p_value"] <= fdr
        up = significant & (rows["log_fc"] > 0) if directed else significant
        tested, called = int(rows["log10_p_value"].notna().sum()), int(significant.sum())
        pictures = list(_test_pictures(rows, fdr)) if drawn else []
        how = options_for(fit, weights[name]) if name in weights else {}
        genes = list(_gene_pictures(fit, rows, how)) if drawn else []
        counts = (tested, int(up.sum()), called - int(up.sum()))
        apart = name not in weights or bool(how) or not varies_within(fit.summary, weights[name][None])[0]
        parts.append(ContrastPart(name, *counts, directed, pictures, genes, apart))
    return parts


def _test_pictures(rows: pd.DataFrame, fdr: float) -> Iterator[Picture]:
    if "log_fc" in rows:
        yield _picture(
            "Volcano",
            f"Effect against p. FDR is at most {fdr:g} above the dashed line, if any.",
            volcano,
            rows,
            fdr=fdr,
        )
        if "mean_expr" in rows:
            yield _picture("MA", "Effect against mean expression.", ma, rows, fdr=fdr)
    yield _picture(
        "p-values",
        "Flat where nothing has an effect, with a peak at zero where something has. A slope, or a peak at one, says "
        "that the tests do not fit the data.",
        pvalue_hist,
        rows,
    )
    yield _picture(
        "QQ",
        "Observed against expected p. Points above the band from the left on: p-values are too small, or most genes "
        "have an effect. λ is 1 for tests that keep their level.",
        qq,
        rows,
    )


def fit_pictures(fit: LMMFit) -> Iterator[Picture]:
    """Pictures of the variance components, and of how their estimation ended."""
    yield _picture("Variance", "Share of each component in the variance that the fixed effects leave.", variance, fit)
    yield _picture("Convergence", "Iterations until the estimate of a gene was found, by status.", convergence, fit)


def _gene_pictures(fit: LMMFit, rows: pd.DataFrame, options: Mapping[str, str]) -> Iterator[Picture]:
    tested = rows[np.isfinite(rows["log10_p_value"])].sort_values("log10_p_value", kind="stable")
    wide = max(fit.summary.d) > _WIDE
    for name in tested["variable"].head(GENES_DRAWN // 2 if wide else GENES_DRAWN):
        picture = _picture(str(name), "", gene, fit, name, **options)
        if picture.address is not None:  # no random effect has groups
            yield picture


def _picture(title: str, caption: str, draw: Callable[..., Any], *of: Any, **options: Any) -> Picture:
    try:
        address, inches = as_address(draw(*of, **options))
        return Picture(title, caption, address, round(96 * inches))
    except ValueError as reason:  # nothing to draw: no p-values, no means
        return Picture(title, f"Not drawn: {reason}.", None)


@dataclass(frozen=True)
class Numbers:
    """The table of genes, as the script of the page reads it."""

    packed: str  #: JSON, gzip, base64
    kept: int | None  #: so many genes of each contrast, those of smallest p, where all would be too many

    @classmethod
    def of(cls, fit: LMMFit, by_contrast: Mapping[str, pd.DataFrame]) -> Numbers:
        """Take the numbers of all contrasts, with the digits that are shown."""
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
    """Columns of one contrast, smallest p first; p-values and FDR as logarithms, which do not underflow."""
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
    """Numbers with so many digits and commas between them; nothing for what is no number.

    >>> _digits(np.array([1 / 3, np.nan, -2e-9]))
    '0.3333,,-2e-09'
    """
    text = ",".join([f"%.{digits}g"] * values.size) % tuple(values.tolist())
    return text.replace("nan", "").replace("-inf", "").replace("inf", "")
