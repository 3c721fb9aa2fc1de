"""A fit and its tests as one HTML page: complete in itself, without a network, for any browser and for print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._version import __version__, versions
from ..backend.optional import require
from ..design.contrasts import parse_contrast
from ..inference.diagnostics import advise
from ..io.files import replacing
from ..results.lmm_fit import LMMFit
from .model_text import STATUSES, fixed_effects, in_words, level_tables
from .report_parts import MOST_DRAWN, Numbers, contrast_parts, fit_pictures, shown_contrasts

CITE = (
    "Xu, Pouyabahar, Voisin et al. (2026). FLASH-MM. Nature Communications 17, 2384.",
    "https://doi.org/10.1038/s41467-026-69063-2",
)


def report(
    fit: LMMFit,
    table: pd.DataFrame | None,
    path: str | Path,
    *,
    df: str | None = None,
    fdr: float = 0.05,
    record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool = True,
) -> None:
    """Write a page on a fit and its tests: model, design, statuses, pictures, and a table to sort and search.

    Parameters
    ----------
    fit : LMMFit
    table : DataFrame, optional
        Of `fit.test`; by default every coefficient is tested. The intercept is left out if there is anything else.
    path : str or Path
        The page, such as "report.html". A file there is replaced once all of it is written.
    df : str, optional
        Method of degrees of freedom that the table was made with, to be said in words; of a table that is made here,
        the method to use.
    fdr : float
        Significant is an adjusted p-value of at most this.
    record : mapping, optional
        What `lmm-gpu fit` left in run.json: the page then has times and memory, too.
    command : str
        The command that made the run, to be shown on the page.
    progress : bool
        Show a progress bar on a terminal.

    Raises
    ------
    ValueError
        If the table is not one of tests of this fit, or matplotlib or jinja2 is missing.

    Examples
    --------
    >>> import tempfile, lmm_gpu
    >>> obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 30), "donor": np.repeat(list("uvwxyz"), 10)})
    >>> fit = lmm_gpu.fit((np.random.default_rng(1).normal(size=(60, 3)), obs), "~ arm + (1 | donor)")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lmm_gpu.report(fit, fit.test("arm[T.b]"), f"{folder}/report.html", df="generalized")
    ...     Path(folder, "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    True
    """
    jinja2 = require("jinja2", "the report", 'pip install "lmm-gpu[report]"')
    if table is None:
        df = df or "generalized"
        table = fit.test(df=df)
    _check_table(fit, table)
    loader = jinja2.PackageLoader("lmm_gpu.reporting", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        **_content(fit, table, df, fdr, record or {}, command, progress)
    )
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def _check_table(fit: LMMFit, table: Any) -> None:
    wanted = ("variable", "contrast", "statistic", "df", "log10_p_value", "adj_p_value")
    lacking = [name for name in wanted if not isinstance(table, pd.DataFrame) or name not in table]
    if lacking:
        raise ValueError(f"the table has no {', '.join(lacking)}: pass fit.test(...), or None for every coefficient")
    strangers = sorted(set(table["variable"]) - set(fit.summary.features))
    if strangers:
        raise ValueError(
            f"the table has features that the fit lacks ({', '.join(map(str, strangers[:3]))}): pass "
            "a table of this fit"
        )
    if not len(table):
        raise ValueError("the table has no rows: there is nothing to report")


def _content(
    fit: LMMFit,
    table: pd.DataFrame,
    df: str | None,
    fdr: float,
    record: Mapping[str, Any],
    command: str,
    progress: bool,
) -> dict[str, Any]:
    """All that the template shows."""
    by_contrast = shown_contrasts(table)
    weights = _weights(fit, by_contrast, record)
    known = record.get("versions", versions())
    return {
        "levels": list(zip(fit.summary.component_names, fit.summary.d, strict=True)),
        "title": Path(record["data"]).name if "data" in record else "One mixed model per gene",
        "summary": fit.summary,
        "method": fit.method,
        "fdr": fdr,
        "words": in_words(fit, df),
        "effects": fixed_effects(fit.summary),
        "tables": level_tables(fit.summary),
        "warnings": list(_warnings(fit, weights)),
        "statuses": [(word, int(count), STATUSES[word]) for word, count in fit.status.value_counts().items()],
        "fit_pictures": list(fit_pictures(fit)),
        "contrasts": contrast_parts(fit, by_contrast, weights, fdr, progress),
        "intercept_left_out": "Intercept" in set(table["contrast"]) and "Intercept" not in by_contrast,
        "numbers": Numbers.of(fit, by_contrast),
        "cite": CITE,
        "versions": known,
        "drawn": MOST_DRAWN,
        "facts": _facts(fit, record) | known,
        "command": command,
        "version": __version__,
    }


def _weights(fit: LMMFit, by_contrast: Mapping[str, pd.DataFrame], record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights (p,) of the contrasts that are known: by their name, or by what the run called so."""
    given = (text.split(" = ", 1) for text in record.get("contrasts", ()) if " = " in text)
    expressions, found = {name.strip(): expression for name, expression in given}, {}
    for name in by_contrast:
        with suppress(ValueError):  # a label of the caller's
            found[name] = parse_contrast(expressions.get(name, name), fit.summary.fixed_names)
    return found


def _warnings(fit: LMMFit, weights: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What `fit.test` warns of for the contrasts that are shown, and genes without an estimate."""
    if weights:
        yield from advise(fit.summary, np.stack(list(weights.values())), list(weights))
    lost = int((~fit.converged).sum())
    if lost:
        yield f"{lost:,} of {fit.summary.m:,} genes have no converged estimate: see Estimation."


def _facts(fit: LMMFit, record: Mapping[str, Any]) -> dict[str, str]:
    """Times and memory."""
    found = {"finished": record["finished"][:16].replace("T", " ") + " UTC"} if record else {}
    found |= {part: f"{seconds:.1f} s" for part, seconds in record.get("timings", {}).items()}
    if not record and fit.seconds is not None:
        found["reading and fitting"] = f"{fit.seconds:.1f} s"
    if record.get("peak_memory"):
        found["peak memory"] = f"{record['peak_memory'] / 1e9:.2f} GB"
    return found
