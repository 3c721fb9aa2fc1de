"""Figures of `streaming.py` for the READMEs."""

from __future__ import annotations

import textwrap


def sentence(results: dict) -> str:
    """Return the sentence on the largest file: time, relative to loading it, and memory."""
    largest = results["growth"]
    return (
        f"{largest['cells']:,} cells x {results['genes']:,} genes in a gzip-compressed .h5ad take "
        f"{largest['summarize']['seconds']:.2g} s on {results['machine']['processors']} processors, "
        f"{largest['ratio']:.2f} times the time in which `anndata.read_h5ad` loads the file, and "
        f"{largest['peak']['peak_beyond_statistics'] / 1e6:.0f} MB beyond the obs table, the design and the sums"
    )


def tables(results: dict) -> str:
    """Return the times of files relative to loading them, and of cells in memory relative to other tools."""
    machine = results["machine"]
    where = f"Measured on {machine['processor']}, {machine['processors']} processors, {machine['date']}"
    skipped = "".join(f"\n\nSkipped: {name} ({reason})." for name, reason in results["tools"]["skipped"].items())
    parts = [f"{where}, commit {machine['commit']}.", _files(results), _tools(results["tools"]) + skipped]
    return "\n\n".join([*parts, textwrap.fill(_rest(results), 120)])


def _files(results: dict) -> str:
    lines = [
        _row("file", "cells", "non-zeros (millions)", "anndata, s", "lmm_gpu, s (CPU)", "ratio", "with checkpoint, s"),
        _row("---", *["---:"] * 6),
    ]
    for row in [*results["speed"], results["growth"], *results["real"]]:
        ours = row["summarize"]
        lines.append(
            _row(
                row["kind"], f"{row['cells']:,}", f"{row['non_zeros'] / 1e6:.1f}", f"{row['anndata']['seconds']:.2f}",
                f"{ours['seconds']:.2f} ({ours['cpu_seconds']:.2f})", f"{row['ratio']:.2f}",
                f"{row['with_checkpoint']['seconds']:.2f}",
            )
        )  # fmt: skip
    return "\n".join(lines)


def _tools(tools: dict) -> str:
    lines = [_row("in memory", "s", "CPU s", "CPU relative to lmm_gpu"), _row("---", *["---:"] * 3)]
    for name, row in tools["tools"].items():
        numbers = [f"{row[key]:.2f}" for key in ("seconds", "cpu_seconds", "times_our_cpu")]
        lines.append(_row("lmm_gpu" if name == "summarize" else name, *numbers))
    return "\n".join(lines)


def _rest(results: dict) -> str:
    serial = results["serial"]
    peaks = ", ".join(
        f"{row['peak_beyond_statistics'] / 1e6:.0f} MB (memory={row['memory']})" for row in results["peak"]
    )
    return (
        f"Serial: {serial['serial_share']:.0%} of the {serial['cpu_seconds']:.2f} CPU seconds of the first file, so "
        f"that {serial['projected_processors']} processors would take {serial['projected_seconds']:.2f} s. Peak memory "
        f"beyond libraries, obs, design and sums, first file: {peaks}."
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
