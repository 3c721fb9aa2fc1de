"""Description of the machine, and output of results, shared by all scripts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmm_gpu.cli.system_info import system_info

RESULTS = Path(__file__).parent / "results"
#: Number of runs; the best one counts.
REPEATS = 3


def parser(name: str, purpose: str | None) -> argparse.ArgumentParser:
    """Argument parser with the options of every script: --quick and --output."""
    options = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--quick", action="store_true", help="small sizes, to check that the script works; written to a file of its own"
    )
    options.add_argument("--output", type=Path, help=f"default: {name}.json, or {name}_quick.json, in {RESULTS}")
    options.set_defaults(script=name)
    return options


def machine() -> dict[str, Any]:
    """Describe the machine: processors, memory, versions, commit and date."""
    info = system_info()
    return {
        "processor": _processor(),
        "processors": info["processors"],
        "memory_gb": _memory_gb(),
        "platform": info["platform"],
        "versions": {name: version for name, version in info["versions"].items() if version},
        "blas": info["blas"],
        "device": info["device"],
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def write(record: dict[str, Any], options: argparse.Namespace) -> Path:
    """Write `record` and the description of the machine to the file in `options`, atomically."""
    name = f"{options.script}_quick.json" if options.quick else f"{options.script}.json"
    path = options.output or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"machine": machine(), **record}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
    print(f"wrote {path}")
    return path


def best(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Shortest time of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on every platform
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _commit() -> str | None:
    """Commit of the code, with a + if relevant files have uncommitted changes."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=10", "HEAD"), git("status", "--porcelain", "lmm_gpu", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return None
    results = ("benchmarks/results/", "benchmarks/README.md")
    return commit + "+" * any(not line[3:].startswith(results) for line in changed.splitlines())
