"""Run all benchmarks: `python -m benchmarks`; `--quick` checks that they work; `--table` updates the READMEs.

`python -m benchmarks gpu` checks and times a CUDA device instead (`gpu.py`).
Each script runs in a separate process, so that memory and threads are measured independently.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from . import figures

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
#: Scripts that take a folder of real data.
WITH_DATA = ("peers", "calibration_data", "streaming", "large_models")


@dataclass(frozen=True)
class Script:
    """A benchmark script and its options."""

    name: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.py"

    def command(self, quick: bool, data: Path | None) -> list[str]:
        options = self.quick if quick else self.full
        about_data = ("--data", str(data.resolve())) if data and self.name in WITH_DATA else ()
        return [sys.executable, "-u", str(self.path), *options, *about_data]


SCRIPTS = (
    Script("solver"),
    Script("backends"),
    Script("streaming", ("--repeats", "3")),
    Script("calibration"),
    Script("calibration_designs", ("--genes", "1000")),
    Script("calibration_counts"),
    Script("calibration_data"),
    Script("peers", ("--seconds", "2")),
    Script("cell_pass"),
    Script("growth", ("--seconds", "0.5")),
    Script("scaling"),
    Script("large_models"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [script.name for script in SCRIPTS]
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, two minutes in total; written to files of their own"
    )
    parser.add_argument("--only", action="append", choices=names, help="only this script; repeatable")
    parser.add_argument("--data", type=Path, help="folder of OneK1K's cells, for peers and calibration_data")
    parser.add_argument("--table", action="store_true", help="only update the figures of the READMEs from results/")
    options = parser.parse_args()
    if options.table:
        return write_figures()
    failed = run_all([script for script in SCRIPTS if not options.only or script.name in options.only], options)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def write_figures() -> int:
    try:
        changed = figures.write()
    except ValueError as error:
        print(error)
        return 1
    print("\n".join(f"wrote {path}" for path in changed) or "nothing to change")
    return 0


def run_all(scripts: list[Script], options: argparse.Namespace) -> list[str]:
    """Run one script after the other; return the names of those that failed."""
    failed = []
    with tqdm(scripts, unit="script", bar_format="{n_fmt}/{total_fmt} {elapsed} {desc}") as bar:
        for script in bar:
            if not script.path.exists():
                bar.write(f"{script.name}: skipped, there is no {script.path.relative_to(ROOT)}")
                continue
            start = time.perf_counter()
            failure = run(script.command(options.quick, options.data), script.name, bar)
            seconds = time.perf_counter() - start
            if failure is None:
                bar.write(f"{script.name}: done in {seconds:.0f} s")
            else:
                failed.append(script.name)
                bar.write(f"{script.name}: FAILED after {seconds:.0f} s\n{failure}")
    return failed


def run(command: list[str], name: str, bar: tqdm) -> str | None:
    """Run a script, show its last line next to the progress bar; return the end of its output if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            said.write(line)
            bar.set_description_str(f"{name}: {line.strip()[:90]}")
        if process.wait() == 0:
            return None
        said.seek(0)
        return "".join(f"    {line}" for line in said.readlines()[-12:]).rstrip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        from . import gpu

        sys.exit(gpu.main(sys.argv[2:]))
    sys.exit(main())
