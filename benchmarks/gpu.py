"""Check and time everything on a CUDA device, stage by stage, in under six minutes: `python -m benchmarks gpu`.

Every stage is a process with a time limit; one that fails or is killed is recorded, and the next one runs. What is
found is in `gpu.json` after every stage. Without a device, an emulated one is used where
tests/support/real_cupy.py finds its emulation: a rehearsal, whose times mean nothing (`"emulated": true`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import machine

ROOT = Path(__file__).parent.parent
#: Seconds for all stages.
BUDGET = 350
#: Characters of a stage's output that are kept.
KEPT = 6000
_PYTEST = ("pytest", "-q", "-p", "real_cupy", "-p", "no:cacheprovider", "--tb=short", "-k", "not torch and not jax")


@dataclass(frozen=True)
class Stage:
    """A module with arguments, and the seconds that it may take."""

    name: str
    limit: int
    what: str
    arguments: tuple[str, ...] = ()

    def command(self, quick: bool) -> list[str]:
        if self.arguments:
            return [sys.executable, "-m", *self.arguments]
        return [sys.executable, "-m", "benchmarks.gpu_stages", self.name, *(["--quick"] if quick else [])]


#: Most important first: later ones are left out if the time is up.
STAGES = (
    Stage("probe", 40, "the smallest things that could fail: factorisations and what failures leave, batches, streams"),
    Stage("selftest", 120, "all checks of lmm-gpu selftest (compiles most kernels)"),
    Stage("reference", 40, "R's reference cases on the device and on the host"),
    Stage("asked", 40, "every method of a fit, of cells on the host and on the device"),
    Stage("fits", 70, "time of fits against the host, by number of genes and random effects, with and without kernels"),
    Stage("sums", 45, "time of sums over cells: from the host and on the device"),
    Stage("rates", 30, "calls from Python, copies, factorisations: the numbers of the model in guide/gpu.md"),
    Stage("memory", 30, "bytes of a gene, memory over many fits, a pool that is too small"),
    Stage(
        "engine",
        80,
        "tests that otherwise run on an imitation of CuPy",
        (*_PYTEST, "tests/estimation/test_cuda_scoring.py", "tests/sumstats/test_cuda_sums.py",
         "tests/backend/test_device_cells.py", "tests/backend/test_cuda_rules.py", "tests/backend/test_scheduler.py",
         "tests/backend/test_libraries.py"),
    ),
)  # fmt: skip
SANITIZER = Stage("sanitizer", 45, "compute-sanitizer memcheck of a short fit and of sums over cells")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in (*STAGES, SANITIZER)]
    parser.add_argument("--output", type=Path, default=Path("gpu_results"), help="folder for gpu.json and gpu.log")
    parser.add_argument("--quick", action="store_true", help="small sizes: a rehearsal")
    parser.add_argument("--only", action="append", choices=names, help="only this stage; repeatable")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all stages")
    options = parser.parse_args(arguments)
    chosen = [stage for stage in STAGES if not options.only or stage.name in options.only]
    if (tool := _sanitizer()) and (not options.only or SANITIZER.name in options.only):
        chosen.append(SANITIZER)
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "stages": [], "rows": {}, "failed": []}
    end = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory() as parts:
        for stage in chosen:
            _run(stage, tool, options, end, Path(parts), found)
            (options.output / "gpu.json").write_text(json.dumps(found, default=str, indent=1), encoding="utf-8")
    print(f"wrote {options.output / 'gpu.json'}; failed: {', '.join(found['failed']) or 'nothing'}")
    return 1 if found["failed"] else 0


def _run(
    stage: Stage, tool: str | None, options: argparse.Namespace, end: float, parts: Path, found: dict[str, Any]
) -> None:
    """Run a stage; add what it found."""
    limit, start = min(stage.limit * (4 if options.quick else 1), end - time.monotonic()), time.monotonic()
    if limit < 5:
        found["stages"].append({"stage": stage.name, "status": "no time left"})
        found["failed"].append(f"{stage.name}: no time left")
        return
    command = stage.command(options.quick)
    if stage is SANITIZER and tool:
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "20", *command]
    print(f"{stage.name}: {stage.what} (at most {limit:.0f} s)", flush=True)
    status, said = _process(command, limit, _environment(parts))
    row = {"stage": stage.name, "what": stage.what, "status": status, "seconds": round(time.monotonic() - start, 1)}
    found["stages"].append(row | {"end of output": said[-KEPT:]})
    with (options.output / "gpu.log").open("a", encoding="utf-8") as log:
        log.write(f"----- {stage.name}: {status}\n{said}\n")
    path = parts / f"{stage.name}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found["rows"][stage.name] = rows
    wrong = [f"{stage.name}: {one['what']}" for one in rows if not one["ok"]]
    found["failed"] += wrong or ([] if status == "exit 0" else [f"{stage.name}: {status}"])
    print(f"    {status} after {row['seconds']} s" + "".join(f"\n    FAILED {one}" for one in wrong), flush=True)


def _process(command: list[str], limit: float, environment: dict[str, str]) -> tuple[str, str]:
    # how it ended, and what it said
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = f"exit {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
            status = f"stopped after {limit:.0f} s"
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _environment(parts: Path) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "GPU_PARTS": str(parts)}


def _sanitizer() -> str | None:
    there = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (str(there[-1]) if there else None)
