"""Growth of the time per gene with cells, genes, donors and variance components.

Small multiples of measured times; a line ends where a program exceeds the time limit. Donors have very different
numbers of cells, and 40 % of the genes have no random effects, as in the `hard` cases of peers.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import machine
from peer import cases
from peer.environments import PEERS
from peer.growth_picture import draw
from peer.running import run

SECONDS, QUICK_SECONDS = 3.0, 0.5
NAMES = ("lmm_gpu", "flash-mm", "lme-python", "statsmodels", "lme4")
CELLS, DONORS, GENES = 20_000, 40, 100
AXES: dict[str, tuple[int, ...]] = {
    "cells": (2_000, 10_000, 50_000, 200_000),
    "genes": (1, 10, 100, 1_000, 10_000),
    "donors": (10, 40, 160, 640),
    "components": (1, 2, 3),
}
QUICK: dict[str, tuple[int, ...]] = {"cells": (500, 2_000), "genes": (1, 10)}
#: Number of cells of the genes panel: ten thousand genes fit into memory.
GENES_CELLS = 5_000


def points(quick: bool, only: list[str] | None) -> Iterator[tuple[str, int, dict]]:
    """Points: axis, value, and arguments of `cases.simulated`."""
    for axis, values in (QUICK if quick else AXES).items():
        for value in values if not only or axis in only else ():
            shape = {"cells": CELLS, "donors": DONORS, "genes": GENES, "components": 1}
            if axis == "genes":
                shape["cells"] = GENES_CELLS
            yield axis, value, shape | {axis: value}


def measure(axis: str, value: int, shape: dict, seconds: float, install: bool, over: set[str]) -> Iterator[dict]:
    """Time every peer on one point; `over` has the peers that exceeded the limit on a smaller one."""
    with tempfile.TemporaryDirectory() as folder:
        case = cases.simulated(Path(folder), "growth", hard=True, **shape)
        for peer in (peer for peer in PEERS if peer.name in NAMES and peer.name not in over):
            record, _ = run(peer, case, seconds, tests=False, install=install)
            row = {"axis": axis, "value": value, "peer": peer.name}
            if "left_out" in record:
                yield row | {"left_out": record["left_out"]}
                over.add(peer.name)
            elif axis == "genes" and record["genes"] < value:
                yield row | {"left_out": f"{record['genes']} genes in {seconds:g} s"}
                over.add(peer.name)
            else:
                yield row | {"genes": record["genes"], "ms_per_gene": _per_gene(axis, value, record)}


def _per_gene(axis: str, genes: int, record: dict) -> float:
    """Milliseconds per gene; on the genes axis including the start-up time."""
    if axis != "genes":
        return record["ms_per_gene_fit"]
    if genes == 1:
        return 1e3 * record["seconds_to_first_gene"]
    return record["ms_per_gene_fit"] + 1e3 * record["seconds_once"] / genes


def main() -> None:
    parser = machine.parser("growth", __doc__)
    parser.add_argument("--axis", action="append", choices=list(AXES), help="only this; the others stay as they were")
    parser.add_argument("--seconds", type=float, help=f"for the genes of each peer, by default {SECONDS}")
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not installed")
    parser.add_argument("--plot", action="store_true", help="only redraw the plot")
    options = parser.parse_args()
    path = options.output or machine.RESULTS / ("growth_quick.json" if options.quick else "growth.json")
    if not options.plot:
        rows = list(_all(options))
        if options.axis and path.exists():
            rows = [row for row in _read(path) if row["axis"] not in options.axis] + rows
        shape = {"cells": CELLS, "donors": DONORS, "genes": GENES, "kind": " of uneven sizes"}
        machine.write({"shape": shape, "points": rows}, options)
    print(f"wrote {draw(_read(path), path.with_suffix('.png'))}")


def _all(options: argparse.Namespace) -> Iterator[dict]:
    over: dict[str, set[str]] = {}
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    for axis, value, shape in points(options.quick, options.axis):
        for row in measure(axis, value, shape, seconds, not options.no_install, over.setdefault(axis, set())):
            print(row.get("left_out") or f"{row['ms_per_gene']:10.3f} ms a gene", axis, value, row["peer"], flush=True)
            yield row


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["points"]


if __name__ == "__main__":
    main()
