"""Time and memory of fits with correlated slopes, weights per gene, and groupings of thousands of levels.

With `--beside 3`, every case also runs while three other processes compute. With `--data FOLDER`, insteval/data.csv.gz
there (lme4's InstEval) is one of the cases.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import machine
import numpy as np
import pandas as pd
from tb_statistics import design, draw

import lmm_gpu
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary

BUSY = "import numpy as np\na = np.random.rand(1000, 1000)\nwhile True: a @ a"
Fit = Callable[[], lmm_gpu.LMMFit]


def slopes(quick: bool, correlated: bool) -> Fit:
    """500,000 cells x 259 donors, 63 fixed effects, intercept and slope of each donor, from sums."""
    summary = draw(*design("slope"), genes=100 if quick else 11_596)
    if correlated:
        terms, names = (("donor", ("Intercept", "x")),), ("donor", "donor.x")
        summary = replace(summary, random_terms=terms, component_names=names)
    return lambda: fit_summary(summary, FitOptions())


def words(quick: bool) -> Fit:
    """Readings of words in poems by subjects: three crossed effects, one response."""
    rng, n = np.random.default_rng(0), 20_000 if quick else 276_000
    of_poem = [rng.choice(2315, rng.integers(100, 200), replace=False) for _ in range(87)]
    poem = rng.integers(0, 87, n // 100)
    readings = [(rng.integers(326), p, word) for p in poem for word in of_poem[p]][:n]
    codes = np.array(readings).T
    sizes = zip((326, 87, 2315), (0.4, 0.1, 0.3), strict=True)
    y = sum((rng.normal(size=q) * sd)[code] for code, (q, sd) in zip(codes, sizes, strict=True))
    obs = pd.DataFrame({name: code.astype(str) for name, code in zip(("subject", "poem", "word"), codes, strict=True)})
    obs["x"] = rng.normal(size=len(obs))
    Y = (y + 0.1 * obs["x"] + rng.normal(size=len(obs))).to_numpy()[:, None]
    return lambda: lmm_gpu.fit((Y, obs), "~ x + (1 | subject) + (1 | word) + (1 | poem)", progress=False)


def groups(quick: bool) -> Fit:
    """One million observations of 100,000 groups, 100 genes, 5 fixed effects."""
    n, G, m = (50_000, 5_000, 10) if quick else (1_000_000, 100_000, 100)
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(G), rng.integers(0, G, n - G)])
    obs = pd.DataFrame(rng.normal(size=(n, 4)), columns=list("abcd"))
    obs["g"] = pd.Categorical.from_codes(codes, [f"g{i}" for i in range(G)])
    Y = rng.normal(size=(n, m))
    for gene in range(m):
        Y[:, gene] += 0.5 * rng.normal(size=G)[codes]
    return lambda: lmm_gpu.fit((Y, obs), "~ a + b + c + d + (1 | g)", progress=False)


def weights(quick: bool) -> Fit:
    """Genes x 150 samples of 30 donors with a weight per gene and sample."""
    rng, m = np.random.default_rng(0), 500 if quick else 20_000
    obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(30)], 5), "arm": np.tile(["a", "b", "c"], 50)})
    obs["age"] = rng.normal(size=150)
    Y = rng.normal(size=(150, m)) + np.repeat(rng.normal(size=(30, m)) * rng.uniform(0, 1, m), 5, axis=0)
    W = rng.uniform(0.3, 3.0, size=(150, m))
    return lambda: lmm_gpu.fit((Y, obs), "~ arm + age + (1 | donor)", weights=W, progress=False)


def ratings(data: Path) -> Fit:
    """lme4's InstEval: 2,972 students x 1,128 lecturers x 14 departments, one response."""
    obs = pd.read_csv(data / "insteval" / "data.csv.gz").astype({"service": str})
    Y = obs[["y"]].to_numpy(float)
    formula = "~ service + (1 | s) + (1 | d) + (1 | dept)"
    return lambda: lmm_gpu.fit((Y, obs), formula, is_counts=False, progress=False)


def cases(options: argparse.Namespace) -> dict[str, Callable[[], Fit]]:
    found: dict[str, Callable[[], Fit]] = {
        "correlated slopes": lambda: slopes(options.quick, True),
        "uncorrelated slopes": lambda: slopes(options.quick, False),
        "words": lambda: words(options.quick),
        "100,000 groups": lambda: groups(options.quick),
        "weights per gene": lambda: weights(options.quick),
    }
    if options.data is not None:
        found["InstEval"] = lambda: ratings(options.data)
    return found


def measure(prepared: Fit) -> dict:
    """Seconds on the clock and of the processors, and MB at the peak, what was prepared included."""
    wall, cpu = time.perf_counter(), time.process_time()
    fit = prepared()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "status": {str(word): int(count) for word, count in fit.status.value_counts().items()},
    }


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes compute meanwhile, on one thread each."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    others = [subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def main() -> None:
    parser = machine.parser("large_models", __doc__)
    parser.add_argument("--data", type=Path, help="folder of real data")
    parser.add_argument("--beside", type=int, default=0, help="run again beside so many busy processes")
    parser.add_argument("--case", help="only this one, printed as JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(cases(options)[options.case]())))
        return
    rows = []
    for name in cases(options):
        for processes in (0, options.beside) if options.beside else (0,):
            with busy(processes):
                command = [sys.executable, *sys.argv, "--case", name]
                said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            rows.append({"case": name, "beside": processes, **json.loads(said.splitlines()[-1])})
            shown = (
                "{case:20s} beside {beside}: {seconds:6.2f} s, {cpu_seconds:6.2f} s CPU, {peak_mb:5.0f} MB, {status}"
            )
            print(shown.format(**rows[-1]), flush=True)
    machine.write({"models": rows}, options)


if __name__ == "__main__":
    main()
