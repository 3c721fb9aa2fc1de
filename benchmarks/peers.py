"""Comparison of lmm_gpu with alternative programs: same data, same model, same processors.

Every program runs in a separate process, on one processor (lmm_gpu also on two), in its fastest documented way, for as
many genes as it can fit in a fixed time. Nothing is extrapolated: times are of the genes that were fitted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import machine
from peer import cases
from peer.cases import Case
from peer.environments import PEERS, Peer
from peer.running import Answers, difference, run

SECONDS, QUICK_SECONDS = 8.0, 1.0
#: Reference of the comparison of estimates: the first one that is available.
REFERENCES = ("lme4", "lmm_gpu")
#: Data sets that take minutes and are measured on request only.
LONG = ("tb_cells",)


def wanted_cases(quick: bool, data: Path | None) -> dict[str, Callable[[Path], Case]]:
    """Data sets by name, as functions that create them."""
    if quick:
        return {
            "cells_1": lambda folder: cases.simulated(folder, "cells_1", 2_000, 20, 100),
            "cells_1_hard": lambda folder: cases.simulated(folder, "cells_1_hard", 2_000, 20, 100, hard=True),
            "tb_1": lambda folder: cases.tb_sums(folder, 1, 200),
        }
    made = {
        "cells_1": lambda folder: cases.simulated(folder, "cells_1", 20_000, 40, 2_000),
        "cells_2": lambda folder: cases.simulated(folder, "cells_2", 20_000, 40, 2_000, 2),
        "cells_1_hard": lambda folder: cases.simulated(folder, "cells_1_hard", 20_000, 40, 2_000, hard=True),
        "cells_2_hard": lambda folder: cases.simulated(folder, "cells_2_hard", 20_000, 40, 2_000, 2, hard=True),
        "tb_1": lambda folder: cases.tb_sums(folder, 1, 11_596),
        "tb_2": lambda folder: cases.tb_sums(folder, 2, 11_596),
        "tb_cells": lambda folder: cases.tb_cells(folder, 499_713, 8),
    }
    if data is None or not (data / "counts.npz").exists():
        print("onek1k: skipped, --data names no folder with counts.npz and obs.csv")
        return made
    return made | {
        "onek1k_1": lambda folder: cases.onek1k(folder, data),
        "onek1k_2": lambda folder: cases.onek1k(folder, data, 2),
    }


def compare(case: Case, peers: list[Peer], seconds: float, install: bool) -> dict:
    """Run all peers on one data set, the reference first."""
    order = sorted(peers, key=lambda peer: REFERENCES.index(peer.name) if peer.name in REFERENCES else 9)
    rows, answers = [], {}
    for peer, threads in _runs(order):
        row, answer = run(peer, case, seconds, threads=threads, install=install)
        if answer is not None and threads == 1:
            answers[peer.name] = answer
        rows.append(row | {"difference": _difference(row, answer, answers)})
        show(rows[-1])
    reference = next((name for name in REFERENCES if name in answers), None)
    names = [peer.name for peer in peers]
    rows.sort(key=lambda row: (names.index(row["peer"]), row["threads"]))
    measured = {"reference": reference, "seconds": seconds, "commit": machine.machine()["commit"]}
    return case.describe() | measured | {"peers": rows}


def _runs(peers: list[Peer]) -> Iterator[tuple[Peer, int]]:
    for peer in peers:
        yield peer, 1
        if peer.name == "lmm_gpu" and (os.cpu_count() or 1) > 1:
            yield peer, 2


def _difference(row: dict, answer: Answers | None, answers: dict[str, Answers]) -> dict | None:
    reference = next((name for name in REFERENCES if name in answers), None)
    if answer is None or reference is None or reference == row["peer"]:
        return None
    return difference(answer, answers[reference])


def show(row: dict) -> None:
    name = f"{row['peer']:12s} {row['threads']}"
    if "left_out" in row:
        print(f"  {name}  left out: {row['left_out']}", flush=True)
        return
    times = f"{row['ms_per_gene_fit']:10.3f} ms a gene {row['ms_per_gene_fit_and_tests']:10.3f} with tests"
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:7.0f} MB"
    print(f"  {name} {times}  {row['answered']} of {row['genes']} answered {memory}", flush=True)


def merged(path: Path, record: dict) -> dict:
    """Add the data sets of an earlier run that `record` lacks; every data set has its commit."""
    if not path.exists():
        return record
    before = {case["name"]: case for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}
    after = before | {case["name"]: case for case in record["cases"]}
    return record | {"cases": list(after.values())}


def main() -> None:
    parser = machine.parser("peers", __doc__)
    parser.add_argument("--data", type=Path, help="folder of OneK1K's cells: counts.npz (cells x genes) and obs.csv")
    parser.add_argument("--seconds", type=float, help=f"time for the genes of each peer, default {SECONDS}")
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not installed")
    parser.add_argument("--case", action="append", help=f"only this data set; {LONG[0]} runs on request only")
    parser.add_argument(
        "--peer",
        action="append",
        choices=[peer.name for peer in PEERS],
        help="only this peer; results are printed, not written",
    )
    options = parser.parse_args()
    makers = wanted_cases(options.quick, options.data)
    names = options.case or [name for name in makers if name not in LONG]
    if unknown := [name for name in names if name not in makers]:
        parser.error(f"unknown data set {unknown[0]!r}; there are {', '.join(makers)}")
    peers = [peer for peer in PEERS if not options.peer or peer.name in options.peer]
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    found = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            case = makers[name](Path(folder))
            print(f"{name}: {case.title}", flush=True)
            found.append(compare(case, peers, seconds, not options.no_install))
    record = {"cases": found}
    if options.peer:
        return
    path = options.output or machine.RESULTS / "peers.json"
    machine.write(record if options.quick else merged(path, record), options)


if __name__ == "__main__":
    main()
