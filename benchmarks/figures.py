"""Figures of the READMEs, made of the JSON in results/: what stands between `<!-- name -->` and `<!-- /name -->`.

`python -m benchmarks --table` writes them; tests/test_benchmark_figures.py fails where they differ.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
READMES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "lmm_gpu" / "guide" / "df.md")
WIDTH = 120


def blocks() -> dict[str, tuple[str, Callable[[dict], str]]]:
    """Name of a block: the results it is made of, and how."""
    return {
        "peers": ("peers", peers_table),
        "peers-all": ("peers", peers_tables),
        "growth": ("growth", growth_sentence),
        "speed": ("solver", speed_sentence),
        "streaming": ("streaming", streaming_sentence),
        "calibration": ("calibration", calibration_table),
        "calibration-worst": ("calibration", calibration_sentences),
        "calibration-short": ("calibration", calibration_short),
    }


def found(text: str) -> Iterator[tuple[str, re.Match]]:
    """Name and place of every block in `text`."""
    for name in blocks():
        for match in re.finditer(rf"(<!-- {name} -->)(.*?)(<!-- /{name} -->)", text, re.DOTALL):
            yield name, match


def made(name: str) -> str:
    """What belongs into a block.

    Raises
    ------
    ValueError
        If its results are missing, or not what the script writes today; says what to run.
    """
    results, make = blocks()[name]
    path = RESULTS / f"{results}.json"
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: python -m benchmarks --only {results}") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}, it is old: python -m benchmarks --only {results}") from None


def differing(text: str) -> list[str]:
    """Blocks of `text` that are not what the results say; how lines are wrapped does not matter."""
    return [name for name, match in found(text) if match[2].split() != made(name).split()]


def written(text: str) -> str:
    """`text` with every block made anew."""
    for name, match in sorted(found(text), key=lambda one: one[1].start(), reverse=True):
        if match[2].split() == made(name).split():
            continue
        before = text[: match.start(2)].rsplit("\n", 1)[-1]
        inline = before != f"<!-- {name} -->"
        new = _wrapped(made(name), len(before)) if inline else f"\n{made(name)}\n"
        text = text[: match.start(2)] + new + text[match.end(2) :]
    return text


def _wrapped(sentence: str, column: int) -> str:
    """Lines of a sentence that begins at `column` of an item of a list."""
    indents = {"initial_indent": " " * column, "subsequent_indent": "  "}
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False, **indents)[column:]


def write() -> list[Path]:
    """Make the blocks of all READMEs anew; return those that changed."""
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


#: Columns of the README's table that are of other data sets: title, data set, which time, and what it is called below.
OTHERS = (
    ("two effects", "cells_2", "fit", "two effects: with 20 batches, fit"),
    ("real cells", "onek1k_1", "fit_and_tests", "real cells: {title}, fit and tests"),
    ("half a million", "tb_cells", "fit_and_tests", "half a million: {title}, fit and tests in one call"),
)


def peers_table(results: dict) -> str:
    """One line per program, and in which respects another is ahead of lmm_gpu."""
    cases = {case["name"]: case for case in results["cases"]}
    others = [one for one in OTHERS if one[1] in cases]
    rows = {name: _rows(case) for name, case in cases.items()}
    head = ["program", "fit", "with tests", "df", *(title for title, *_ in others)]
    lines = [[*head, "first gene", "memory", "answered", "se off by"]]
    lines.append(["---"] + ["---:"] * 2 + ["---"] + ["---:"] * (len(others) + 4))
    for key, row in rows["cells_1"].items():
        lines.append(
            [
                _label(row),
                _ms(row, cases["cells_1"]),
                _ms(row, cases["cells_1"], "fit_and_tests"),
                _df(row),
                *(_ms(rows[name][key], cases[name], what) for _, name, what, _ in others),
                _told(row, lambda row: f"{row['seconds_to_first_gene']:.1f}"),
                _told(row, _megabytes),
                _told(row, lambda row: f"{row['answered'] / row['genes']:.0%}"),
                _off(row),
            ]
        )
    legend = _legend(results, cases["cells_1"], [text.format(**cases[name]) for _, name, _, text in others])
    return "\n".join([*map(_line, lines), "", *_filled(legend), "", *_filled(_ahead(rows))])


def _legend(results: dict, one: dict, others: list[str]) -> str:
    return (
        f"Milliseconds a gene on one processor (lmm_gpu also on two), summing up the cells included; in brackets the "
        f"genes that were timed, where {one['seconds']:g} s were not enough for all. "
        f"{'; '.join([one['title'], *others])}. df: the median, of the treatment of "
        f"donors. First gene: seconds from the import to one gene's estimates. Memory: MB beyond the values. Answered: "
        f"of the genes that were tried. se off by: difference from {one['reference']}'s, of the median gene and the "
        f"largest, in parts of it, where that has variances above zero. {_machine(results)}"
    )


def _ahead(rows: dict[str, dict]) -> str:
    """What others do better, in words: nobody should have to search the table for it."""
    measures = [
        ("a fit", "cells_1", "ms_per_gene_fit"),
        ("a fit with tests", "cells_1", "ms_per_gene_fit_and_tests"),
        ("the first gene", "cells_1", "seconds_to_first_gene"),
        ("memory", "cells_1", "peak_bytes"),
        *((title, name, f"ms_per_gene_{what}") for title, name, what, _ in OTHERS if name in rows),
    ]
    parts = [(what, _better(rows[name], key)) for what, name, key in measures]
    ahead = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names) or "nothing here"
    ours = rows["cells_1"]["lmm_gpu", 1]
    summing = ours["ms_per_gene_summing_up"] / ours["ms_per_gene_fit"]
    return f"Ahead of lmm_gpu on one processor by 5 % and more, in {ahead}. Of its fit, {summing:.0%} is summing up."


def _better(rows: dict[tuple[str, int], dict], key: str) -> list[str]:
    """Who needs less than lmm_gpu, and how much."""
    ours = rows["lmm_gpu", 1][key]
    others = [row for row in rows.values() if row["peer"] != "lmm_gpu" and row.get(key)]
    if key.endswith("tests"):
        others = [row for row in others if row["df"] != "none"]
    return [f"{row['peer']} ({ours / row[key]:.1f} x)" for row in others if ours > 1.05 * row[key]]


def peers_tables(results: dict) -> str:
    """All that was measured: one table per data set."""
    parts = [*_filled(_machine(results)), ""]
    for case in results["cases"]:
        parts += [f"**{case['title']}** (`{case['name']}`, differences from {case['reference']}, {case['commit']})", ""]
        head = ["program", "processors", "genes", "fit", "with tests", "df", "first gene", "memory", "answered"]
        lines = [[*head, "theta", "coef", "se"], ["---"] + ["---:"] * 4 + ["---"] + ["---:"] * 6]
        lines += [_measured(row) for row in case["peers"] if "left_out" not in row]
        parts += [*map(_line, lines), ""]
        left_out = {}
        for row in case["peers"]:
            if "left_out" in row:
                left_out.setdefault(row["left_out"], []).append(row["peer"])
        sentences = [f"{', '.join(dict.fromkeys(names))}: {why}" for why, names in left_out.items()]
        errors = [
            f"{row['peer']}: {count} x {text}" for row in case["peers"] for text, count in row.get("errors", {}).items()
        ]
        if sentences:
            parts += [*_filled("Left out: " + "; ".join(sentences) + "."), ""]
        if errors:
            parts += [*_filled("Errors: " + "; ".join(errors) + "."), ""]
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


def _told(row: dict, text: Callable[[dict], str]) -> str:
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


def _off(row: dict) -> str:
    if "left_out" in row:
        return "-"
    gap = row["difference"]
    return f"{_gap(gap['se_median'])}, {_gap(gap['se'])}" if gap else "reference"


def _gap(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _number(value: float) -> str:
    """Two digits, and no more than are known."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _machine(results: dict) -> str:
    told = results["machine"]
    return f"Measured on {told['processor']}, {told['processors']} processors, {told['date']}, commit {told['commit']}."


# --- the others -----------------------------------------------------------------------------------


def growth_sentence(results: dict) -> str:
    """The picture, and what it was measured on."""
    shape = results["shape"]
    text = (
        f"{shape['genes']} genes of {shape['cells']:,} cells of {shape['donors']} donors but for what grows; a line "
        f"ends where the next point would take more time than all are given. {_machine(results)}"
    )
    return "\n".join(
        ["![Milliseconds per gene as cells, donors, components, genes grow](results/growth.png)", "", *_filled(text)]
    )


def speed_sentence(results: dict) -> str:
    """How long the solver takes, for the list of features."""
    one, two = results["models"][:2]
    text = (
        f"{one['genes']:,} genes of 259 donors, 63 fixed effects and half a million cells, once summed up, take "
        f"{_number(one['seconds'])} s on {results['machine']['processors']} processors, {_number(two['seconds'])} s "
        f"with a second random effect of 46 batches"
    )
    if "times_faster" not in one:
        return text
    return text + (
        f": {one['times_faster']:.0f} and {two['times_faster']:.0f} times faster a gene than flash-mm, FLASHMM's "
        f"Python port, in the same run"
    )


def streaming_sentence(results: dict) -> str:
    """The largest file: time beside reading it, and memory."""
    largest = max(results["speed"], key=lambda row: row["cells"])
    peak = max(row["peak_beyond_statistics"] for row in results["peak"] if row["cells"] == largest["cells"])
    return (
        f"{largest['cells']:,} cells x {results['genes']:,} genes in a gzip-compressed .h5ad are summed up in "
        f"{largest['summarize_seconds']:.0f} s, {largest['ratio']:.2f} times as long as it takes to only read them, in "
        f'{peak / 1e6:.0f} MB beyond the table of cells, the design and the sums (`memory="{largest["memory"]}"`)'
    )


# --- calibration ----------------------------------------------------------------------------------

#: Columns of the table: a rule of calibration.py, and what it is called.
RULES = {
    "generalized": "default",
    "satterthwaite": "Satterthwaite",
    "kenward-roger, >= 0": "Kenward-Roger",
    "lmertest, >= 0": "lmerTest",
    "pseudobulk t": "pseudobulk t",
    "residual (n - p)": "n - p",
}


def calibration_table(results: dict) -> str:
    """False positives over nominal at 5 % and 0.1 % where a treatment differs between donors."""
    lines = [["donors, cells of each, donor variance", *RULES.values()], ["---"] * (1 + len(RULES))]
    for row in results["rows"]:
        if row["contrast"] == "between":
            told = (row["false"][name] for name in RULES)
            label = f"{row['donors']}, {row['cells'].removesuffix(' each')}, {row['ratio']:g}"
            lines.append([label, *(f"{rates[0]:.2f} / {rates[2]:.2f}" for rates in told)])
    genes = results["rows"][0]["genes"]
    return "\n".join([*map(_line, lines), "", *_filled(f"{genes:,} genes a row. {_machine(results)}")])


#: Kinds of contrasts of calibration.py, in words.
KINDS = {"between": "between donors", "in part": "in one type of cells", "within": "within donors"}


def calibration_sentences(results: dict) -> str:
    """The worst of the default and of others, of every kind of contrast."""
    titles = {"generalized": "default", "satterthwaite": "Satterthwaite", "residual (n - p)": "n - p"}
    lines = [["effect", "rule", "most, 5 %", "most, 0.1 %", "least, 5 %, donors differ", "least, 5 %, they do not"]]
    lines.append(["---"] * 2 + ["---:"] * 4)
    for contrast, kind in KINDS.items():
        for name, title in titles.items():
            worst = results["worst"][name][contrast].values()
            lines.append([kind, title, *(f"{rate:.2f}" for rate in worst)])
    return "\n".join(map(_line, lines))


def calibration_short(results: dict) -> str:
    """The worst of the default and of n - p, for the README."""
    kinds = (results["worst"][name].values() for name in ("generalized", "residual (n - p)"))
    ours, theirs = (
        [max(kind[f"most at {level}"] for kind in one) for level in ("5 %", "0.1 %")] for one in map(list, kinds)
    )
    rows = [row for row in results["rows"] if row["contrast"] != "counts"]
    return (
        f"Over {len(rows)} simulated designs without effect, at most {ours[0]:.2f} times as many genes as should pass "
        f"the 5 % level and {ours[1]:.2f} times the 0.1 % level; with df = n - p, {theirs[0]:.2f} and {theirs[1]:.0f} "
        "times"
    )
