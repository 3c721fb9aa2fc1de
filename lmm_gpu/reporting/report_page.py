"""HTML report of a fit and its tests: a single self-contained file for any browser, and for print."""

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
from ..inference.diagnostics import diagnose
from ..io.files import replacing
from ..results.lmm_fit import LMMFit
from .model_text import STATUSES, fixed_effects, in_words, level_tables, methods_paragraph
from .report_parts import MOST_DRAWN, Numbers, contrast_parts, fit_plots, shown_contrasts

CITE = (
    "Xu, Pouyabahar, Voisin et al. (2026). FLASH-MM. Nature Communications 17, 2384.",
    "https://doi.org/10.1038/s41467-026-69063-2",
)


def report(
    fit: LMMFit,
    table: pd.DataFrame | str | Path | None = None,
    path: str | Path | None = None,
    *,
    df: str | None = None,
    fdr: float = 0.05,
    record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool = True,
) -> None:
    """Write an HTML report: model, design, statuses, plots, and a table of genes to sort and search.

    Parameters
    ----------
    fit : LMMFit
    table : DataFrame, optional
        Table made by `fit.test`; by default every coefficient is tested, and the path may take its place:
        ``report(fit, "report.html")``. The intercept is left out unless it is the only contrast.
    path : str or Path
        File to write, such as "report.html". An existing file is replaced only after the new one is complete.
    df : str, optional
        Degrees-of-freedom method of the table, for the description of the model; if `table` is None, the method to
        use.
    fdr : float
        Genes with an adjusted p-value of at most `fdr` are significant.
    record : mapping, optional
        Content of the run.json that `lmm-gpu fit` writes: adds run times and memory to the report.
    command : str
        Command line of the run, shown in the report.
    progress : bool
        Show a progress bar on a terminal.

    Raises
    ------
    ValueError
        If there is no path, the table was not made from this fit, or if matplotlib or jinja2 is missing.

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
    if isinstance(table, (str, Path)) and path is None:
        table, path = None, table
    if not isinstance(fit, LMMFit) or not isinstance(path, (str, Path)) or isinstance(table, (str, Path)):
        raise ValueError(
            'report() takes a fit, a table of its tests and a path, in this order: report(fit, "report.html") or '
            'report(fit, fit.test(...), "report.html")'
        )
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
        raise ValueError(
            f"the table has no column {', '.join(lacking)}: pass fit.test(...), or None to test every coefficient"
        )
    strangers = sorted(set(table["variable"]) - set(fit.summary.features))
    if strangers:
        raise ValueError(
            f"the table has genes that the fit lacks ({', '.join(map(str, strangers[:3]))}): pass a table that was "
            "made from this fit"
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
    """Variables of the template."""
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
        "methods": methods_paragraph(fit, df, fdr),
        "effects": fixed_effects(fit.summary),
        "tables": level_tables(fit.summary),
        "warnings": list(_warnings(fit, weights)),
        "statuses": [(word, count, STATUSES.get(word, "")) for word, count in _counts(fit.status)],
        "fit_plots": list(fit_plots(fit)),
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
    """Weights (p,) of the contrasts whose expression is known, from their name or from the record of the run."""
    given = (text.split(" = ", 1) for text in record.get("contrasts", ()) if " = " in text)
    expressions, found = {name.strip(): expression for name, expression in given}, {}
    for name in by_contrast:
        with suppress(ValueError):  # a name chosen by the user
            found[name] = parse_contrast(expressions.get(name, name), fit.summary.fixed_names)
    return found


def _counts(status: pd.Series[str]) -> list[tuple[str, int]]:
    """Status words with their number of genes, the most frequent first."""
    return [(str(word), int(count)) for word, count in status.value_counts().items()]


def _warnings(fit: LMMFit, weights: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Warnings of `fit.test` for the reported contrasts, and the number of genes without an estimate."""
    if weights:
        yield from diagnose(fit.summary, np.stack(list(weights.values())), list(weights), fit.estimates.theta)
    lost = int((~fit.converged).sum())
    if lost:
        yield f"{lost:,} of {fit.summary.m:,} genes have no converged estimate, see Estimation."


def _facts(fit: LMMFit, record: Mapping[str, Any]) -> dict[str, str]:
    """Run times and peak memory."""
    found = {"finished": record["finished"][:16].replace("T", " ") + " UTC"} if record else {}
    found |= {part: f"{seconds:.1f} s" for part, seconds in record.get("timings", {}).items()}
    if not record and fit.seconds is not None:
        found["reading and fitting"] = f"{fit.seconds:.1f} s"
    if record.get("peak_memory"):
        found["peak memory"] = f"{record['peak_memory'] / 1e9:.2f} GB"
    return found
