"""Run one peer on one case in a separate process, and compare its answers with those of another."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer.cases import Case
from peer.environments import MissingPeer, Peer

#: Extra seconds of a process beyond the time for its genes.
PATIENCE = 40
#: Environment variables that limit the threads of all libraries.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass
class Answers:
    """Answers of a peer, one row per attempted gene; NaN where it has none."""

    converged: np.ndarray  # (g,)
    theta: np.ndarray  # (g, k + 1)
    coef: np.ndarray  # (g, p)
    se: np.ndarray  # (g, p)
    df: np.ndarray  # (g, p)

    @classmethod
    def read(cls, path: Path, case: Case) -> Answers:
        k, p = len(case.levels), case.fixed
        rows = np.fromfile(path, "<f8").reshape(-1, 2 + k + 3 * p)
        return cls(rows[:, 0], *np.split(rows[:, 1:], [k + 1, k + 1 + p, k + 1 + 2 * p], axis=1))

    @property
    def answered(self) -> np.ndarray:
        """Mask of the genes with finite estimates and standard errors of a converged fit."""
        return (self.converged == 1) & np.isfinite(np.hstack([self.theta, self.coef, self.se])).all(axis=1)  # (g,)


def run(
    peer: Peer, case: Case, seconds: float, *, threads: int = 1, tests: bool = True, install: bool = True
) -> tuple[dict[str, Any], Answers | None]:
    """Run `peer` on `threads` processors; return its record and answers, or the reason for leaving it out and None."""
    about: dict[str, Any] = {"peer": peer.name, "threads": threads}
    if case.statistics and not peer.sums:
        return about | {"left_out": "needs the cells"}, None
    if len(case.levels) > peer.components:
        return about | {"left_out": "one grouping factor only"}, None
    try:
        command = peer.command(install)
    except MissingPeer as missing:
        return about | {"left_out": str(missing)}, None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        failure = _process(
            [*command, str(case.folder), str(output), str(seconds), str(case.genes), *([] if tests else ["fit"])],
            threads,
            seconds + PATIENCE,
        )
        if failure:
            return about | {"left_out": failure}, None
        result = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        answers = Answers.read(output.with_suffix(".f64"), case)
    return about | _described(result, answers), answers


def _process(command: list[str], threads: int, limit: float) -> str | None:
    """Run the process; return the reason if it has no answer, else None."""
    variables = dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pin = None
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))[:threads]
        pin = lambda: os.sched_setaffinity(0, processors)  # noqa: E731
    try:
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, timeout=limit, preexec_fn=pin
        )
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    lines = [line for line in done.stderr.strip().splitlines() if line != "Execution halted"]
    return (lines or [f"exit code {done.returncode}"])[-1].strip()[:200] if done.returncode else None


def _described(result: dict, answers: Answers) -> dict:
    genes = result["genes"]
    fit, tests = result["seconds_fit"], result["seconds_tests"]
    more = {name: result[name] for name in ("version", "df", "peak_bytes", "errors")}
    if "seconds_summing_up" in result:
        more["ms_per_gene_summing_up"] = 1e3 * result["seconds_summing_up"] / genes
    return {
        "genes": genes,
        "ms_per_gene_fit": 1e3 * fit / genes,
        "ms_per_gene_fit_and_tests": 1e3 * (fit + tests) / genes,
        "seconds_to_first_gene": sum(result[f"seconds_{part}"] for part in ("import", "prepare", "first")),
        "seconds_once": result["seconds_import"] + result["seconds_prepare"],
        "answered": int(answers.answered.sum()),
        "df_of_second": _median(answers.df[answers.answered, 1]),
        **more,
    }


def difference(found: Answers, wanted: Answers) -> dict[str, Any]:
    """Largest and median differences over genes answered by both, with an interior optimum in `wanted`.

    theta relative to the total variance of the gene, coef and se relative to the standard error.
    """
    genes = min(len(found.converged), len(wanted.converged))
    some = lambda one, name: getattr(one, name)[:genes]  # noqa: E731
    both = some(found, "answered") & some(wanted, "answered")
    theta, se = some(wanted, "theta"), some(wanted, "se")
    total = theta.sum(axis=1, keepdims=True)
    interior = both & (theta[:, :-1] > 1e-6 * total).all(axis=1)
    parts = {
        "theta": np.abs(some(found, "theta") - theta) / total,
        "coef": np.abs(some(found, "coef") - some(wanted, "coef")) / se,
        "se": np.abs(some(found, "se") - se) / se,
    }
    record: dict[str, Any] = {"genes": int(interior.sum()), "genes_with_boundary": int(both.sum())}
    for name, part in parts.items():
        record[name] = _largest(part[interior])
        record[f"{name}_median"] = _median(part[interior].max(axis=1))
        record[f"{name}_with_boundary"] = _largest(part[both])
    return record


def _largest(values: np.ndarray) -> float | None:
    return float(values.max()) if values.size else None


def _median(values: np.ndarray) -> float | None:
    """Median of the finite values: infinite df are those of the normal distribution."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None
