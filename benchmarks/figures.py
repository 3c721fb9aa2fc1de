"""Generate the figures between `<!-- name -->` and `<!-- /name -->` in the READMEs from the JSON files in results/.

`python -m benchmarks --table` writes them; tests/test_benchmark_figures.py fails where they differ.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from . import calibration_tables, streaming_figures
from .markdown import WIDTH, filled, line, measured_on

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
GUIDE = ROOT / "lmm_gpu" / "guide"
READMES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", GUIDE / "df.md", GUIDE / "calibration.md")


def blocks() -> dict[str, tuple[str, Callable[[dict], str]]]:
    """Return the blocks by name: the results file of each, and the function that formats it."""
    return {
        "peers": ("peers", peers_table),
        "peers-all": ("peers", peers_tables),
        "growth": ("growth", growth_sentence),
        "speed": ("solver", speed_sentence),
        "streaming": ("streaming", streaming_figures.sentence),
        "streaming-all": ("streaming", streaming_figures.tables),
        "calibration": ("calibration", calibration_tables.of_donors),
        "calibration-worst": ("calibration", calibration_tables.extremes),
        "calibration-short": ("calibration", calibration_tables.short),
        "calibration-summary": ("calibration_designs", calibration_tables.summary),
        "calibration-designs": ("calibration_designs", calibration_tables.designs),
        "calibration-counts": ("calibration_counts", calibration_tables.counts),
        "calibration-data": ("calibration_data", calibration_tables.data),
    }


def found(text: str) -> Iterator[tuple[str, re.Match]]:
    """Iterate over the blocks in `text`: name and match."""
    for name in blocks():
        for match in re.finditer(rf"(<!-- {name} -->)(.*?)(<!-- /{name} -->)", text, re.DOTALL):
            yield name, match


def made(name: str) -> str:
    """Return the text of a block.

    Raises
    ------
    ValueError
        If its results are missing or were written by an older version of the script; the message says what to run.
    """
    results, make = blocks()[name]
    path = RESULTS / f"{results}.json"
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: python -m benchmarks --only {results}") from None
    except KeyError as error:
        raise ValueError(
            f"{path} has no {error}, written by an older version: python -m benchmarks --only {results}"
        ) from None


def differing(text: str) -> list[str]:
    """Return the names of the blocks of `text` that differ from the results, ignoring line breaks."""
    return [name for name, match in found(text) if match[2].split() != made(name).split()]


def written(text: str) -> str:
    """Return `text` with every block updated."""
    for name, match in sorted(found(text), key=lambda one: one[1].start(), reverse=True):
        if match[2].split() == made(name).split():
            continue
        before = text[: match.start(2)].rsplit("\n", 1)[-1]
        inline = before != f"<!-- {name} -->"
        new = _wrapped(made(name), len(before)) if inline else f"\n{made(name)}\n"
        text = text[: match.start(2)] + new + text[match.end(2) :]
    return text


def _wrapped(sentence: str, column: int) -> str:
    """Wrap a sentence that starts at `column` of a list item."""
    indents = {"initial_indent": " " * column, "subsequent_indent": "  "}
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False, **indents)[column:]


def write() -> list[Path]:
    """Update the blocks of all READMEs; return the paths that changed."""
    changed = []
    for path in READMES:
        before = path.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            part = path.with_suffix(".part")
            part.write_text(after, encoding="utf-8")
            os.replace(part, path)
            changed.append(path)
    return changed


# --- peers ----------------------------------------------------------------------------------------


#: Programs of the README's table.
SHOWN = ("lmm_gpu", "flash-mm", "FLASHMM", "lmerTest", "dream", "statsmodels", "mixedlm", "mixedlm-rs")
#: Other measurements in which a program may be faster: data set, key, description.
OTHERS = (
    ("cells_1", "seconds_to_first_gene", "the first gene, import included"),
    ("cells_2", "ms_per_gene_fit", "two random effects"),
    ("onek1k_1", "ms_per_gene_fit_and_tests", "{title}"),
    ("tb_cells", "ms_per_gene_fit_and_tests", "{title}"),
)


def peers_table(results: dict) -> str:
    """Return the comparison of the README, one row per program, and where others are faster."""
    cases = {case["name"]: case for case in results["cases"]}
    case = cases["cells_1"]
    rows = {name: row for (name, threads), row in _rows(case).items() if threads == 1}
    head = [
        "program",
        "time per gene, fit and tests (ms)",
        "degrees of freedom",
        "peak memory (MB)",
        f"largest difference of SE from {case['reference']}",
    ]
    lines = [head, ["---", "---:", "---", "---:", "---:"]]
    for name in SHOWN:
        row = rows[name]
        cells = [_ms(row, case, "fit_and_tests"), _df(row), _present(row, _megabytes), _largest_difference(row)]
        lines.append([_label(row), *cells])
    text = (
        f"{case['title']} as random intercept; one processor, accumulation of the sums included, memory beyond the "
        f"values. In brackets: number of genes timed, if {case['seconds']:g} s were not enough for all of them. The "
        f"degrees of freedom are those of the treatment of donors (median). Differences are relative, over genes with "
        f"an interior optimum. {_faster(cases)} {measured_on(results)}"
    )
    return "\n".join([*map(line, lines), "", *filled(text)])


def _faster(cases: dict[str, dict]) -> str:
    """Sentence on the measurements in which another program is faster or takes less memory than lmm_gpu."""
    measures = [
        ("cells_1", "ms_per_gene_fit_and_tests", "these data"),
        *(one for one in OTHERS if one[0] in cases),
        ("cells_1", "peak_bytes", "memory"),
    ]
    parts = []
    for name, key, text in measures:
        better = _better(_rows(cases[name]), key)
        if better:
            parts.append(f"{text.format(**cases[name])}: {', '.join(better)}")
    return f"Where others are better than lmm_gpu: {'; '.join(parts) or 'none of these measurements'}."


def _better(rows: dict[tuple[str, int], dict], key: str) -> list[str]:
    """Programs that need at least 5 % less than lmm_gpu, and by which factor."""
    ours = rows["lmm_gpu", 1][key]
    others = [row for row in rows.values() if row["peer"] != "lmm_gpu" and row.get(key)]
    if key.endswith("tests"):
        others = [row for row in others if row["df"] != "none"]
    return [f"{row['peer']} ({ours / row[key]:.1f} x)" for row in others if ours > 1.05 * row[key]]


def peers_tables(results: dict) -> str:
    """Return all measurements, one table per data set."""
    parts = [*filled(measured_on(results)), ""]
    for case in results["cases"]:
        parts += [f"**{case['title']}** (`{case['name']}`, differences from {case['reference']}, {case['commit']})", ""]
        head = ["program", "processors", "genes", "fit", "with tests", "df", "first gene", "memory", "answered"]
        lines = [[*head, "theta", "coef", "se"], ["---"] + ["---:"] * 4 + ["---"] + ["---:"] * 6]
        lines += [_measured(row) for row in case["peers"] if "left_out" not in row]
        parts += [*map(line, lines), ""]
        left_out = {}
        for row in case["peers"]:
            if "left_out" in row:
                left_out.setdefault(row["left_out"], []).append(row["peer"])
        sentences = [f"{', '.join(dict.fromkeys(names))}: {why}" for why, names in left_out.items()]
        errors = [
            f"{row['peer']}: {count} x {text}" for row in case["peers"] for text, count in row.get("errors", {}).items()
        ]
        if sentences:
            parts += [*filled("Left out: " + "; ".join(sentences) + "."), ""]
        if errors:
            parts += [*filled("Errors: " + "; ".join(errors) + "."), ""]
    return "\n".join(parts).rstrip()


def _measured(row: dict) -> list[str]:
    gap = row["difference"] or {}
    return [
        f"{row['peer']} {row['version']}",
        str(row["threads"]),
        f"{row['genes']:,}",
        _number(row["ms_per_gene_fit"]),
        _number(row["ms_per_gene_fit_and_tests"]),
        _df(row),
        f"{row['seconds_to_first_gene']:.1f}",
        _megabytes(row),
        f"{row['answered'] / row['genes']:.1%}",
        *(_gap(gap.get(name)) for name in ("theta", "coef", "se")),
    ]


def _rows(case: dict) -> dict[tuple[str, int], dict]:
    return {(row["peer"], row["threads"]): row for row in case["peers"]}


def _label(row: dict) -> str:
    version = f" {row['version']}" if "version" in row else ""
    return f"{row['peer']}{version}" + (", two processors" if row["threads"] == 2 else "")


def _present(row: dict, text: Callable[[dict], str]) -> str:
    return "-" if "left_out" in row else text(row)


def _ms(row: dict, case: dict, what: str = "fit") -> str:
    if "left_out" in row:
        return "-"
    if what == "fit_and_tests" and row["df"] == "none":
        return "no tests"
    few = f" ({row['genes']:,})" if row["genes"] < case["genes"] else ""
    return _number(row[f"ms_per_gene_{what}"]) + few


def _df(row: dict) -> str:
    if "left_out" in row or row["df"] in ("none", "normal"):
        return "-" if "left_out" in row else row["df"]
    median = row["df_of_second"]
    return row["df"] if median is None else f"{row['df']}, {median:,.0f}"


def _megabytes(row: dict) -> str:
    return "?" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"


def _largest_difference(row: dict) -> str:
    if "left_out" in row:
        return "-"
    return _gap(row["difference"]["se"]) if row["difference"] else "reference"


def _gap(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _number(value: float) -> str:
    """Format with two significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


# --- the others -----------------------------------------------------------------------------------


def growth_sentence(results: dict) -> str:
    """Return the growth plot with its caption."""
    shape = results["shape"]
    donors = f"{shape['donors']} donors{shape.get('kind', '')}"
    text = (
        f"{shape['genes']} genes of {shape['cells']:,} cells of {donors}, except for the quantity on the x axis; a "
        f"line ends where the next point would exceed the time limit. {measured_on(results)}"
    )
    return "\n".join(
        ["![Milliseconds per gene as cells, donors, components, genes grow](results/growth.png)", "", *filled(text)]
    )


def speed_sentence(results: dict) -> str:
    """Return the sentence on the speed of the solver."""
    one, two = results["models"][:2]
    text = (
        f"fitting {one['genes']:,} genes of half a million cells, 259 donors and 63 fixed effects takes "
        f"{_number(one['seconds'])} s on {results['machine']['processors']} processors once the sums exist, and "
        f"{_number(two['seconds'])} s with 46 batches as a second random effect"
    )
    if "times_faster" not in one:
        return text
    return text + (
        f", {one['times_faster']:.0f} and {two['times_faster']:.0f} times faster per gene than flash-mm (FLASHMM's "
        "Python port) in the same run"
    )
