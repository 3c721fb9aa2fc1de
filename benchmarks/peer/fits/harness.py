"""Time a peer on one case, in the environment of the peer: NumPy and the standard library only.

`python fit_PEER.py CASE OUTPUT SECONDS GENES [fit]` (fit: without tests) writes `OUTPUT.json` and `OUTPUT.f64`: one row
per gene of converged, theta (residual last), coef, se and df (NaN where there is none).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np


class Case:
    """The data of a folder (see cases.py), in memory."""

    def __init__(self, folder: Path, genes: int):
        meta = dict(line.split(": ", 1) for line in (folder / "meta.dcf").read_text().splitlines())
        self.cells, self.fixed, self.components = (int(meta[name]) for name in ("cells", "fixed", "components"))
        self.genes, self.folder = min(genes, int(meta["genes"])), folder
        self.factors = [f"g{i + 1}" for i in range(self.components)]
        self.columns = [f"x{j}" for j in range(1, self.fixed)]
        if not (folder / "Y.f64").exists():
            self.sums = dict(np.load(folder / "statistics.npz"))
            return
        self.sums = None
        self.Y = np.fromfile(folder / "Y.f64", count=self.genes * self.cells).reshape(self.genes, self.cells)
        self.X = np.ascontiguousarray(np.fromfile(folder / "X.f64").reshape(self.fixed, self.cells).T)
        self.groups = np.fromfile(folder / "groups.i4", "<i4").reshape(self.components, self.cells)

    @property
    def formula(self) -> str:
        """Formula as lme4 reads it, without the response."""
        return " + ".join(["~ 1", *self.columns, *(f"(1 | {name})" for name in self.factors)])

    def table(self) -> dict[str, np.ndarray]:
        """Columns of the formula."""
        fixed = dict(zip(self.columns, self.X.T[1:], strict=True))
        return fixed | dict(zip(self.factors, self.groups, strict=True))


class Peer:
    """Base class of the adapters; the constructor imports the package and is timed."""

    distribution = ""
    df = "none"  #: degrees of freedom of its tests
    at_once = False  #: True if one call fits all genes

    def prepare(self, case: Case) -> None:
        """Prepare the design, once."""

    def fit(self, y):
        """Fit a gene (n,), or genes (b, n); for sums, genes of a slice."""
        raise NotImplementedError

    def estimates(self, fit):
        """Return converged, theta, coef, se of one fit: (1 + k + 1 + 2 p,), or one row per gene."""
        raise NotImplementedError

    def tests(self, fit, y):
        """Test every coefficient; return the degrees of freedom (p,), or one row per gene."""
        raise NotImplementedError

    def extra(self) -> dict:
        """Return further information for the record."""
        return {}


def row(converged, theta, coef, se) -> np.ndarray:
    """One row of `Peer.estimates`."""
    return np.concatenate([[float(bool(converged))], theta, coef, se])


def main(make) -> None:
    """Run the adapter `make` on the case named on the command line."""
    warnings.simplefilter("ignore")
    folder, output, seconds, genes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    case = Case(folder, genes)
    start = time.perf_counter()
    peer = make()
    if sys.argv[5:] == ["fit"]:
        peer.tests = lambda fit, y: np.nan
    result = {"seconds_import": time.perf_counter() - start}
    before = resident(reset=True)
    start = time.perf_counter()
    peer.prepare(case)
    result["seconds_prepare"] = time.perf_counter() - start
    result["seconds_first"] = first_gene(peer, case)
    result |= (at_once if peer.at_once else one_by_one)(peer, case, seconds, output)
    result["peak_bytes"] = resident() - before if before else None
    result |= {"version": metadata.version(peer.distribution), "df": peer.df} | peer.extra()
    Path(output + ".json").write_text(json.dumps(result))


def first_gene(peer: Peer, case: Case) -> float:
    """Seconds to the estimates of the first gene; its tests run untimed, so that their imports are not timed later."""
    part, start = genes_of(peer, case, 0, 1), time.perf_counter()
    seconds = 0.0
    with contextlib.suppress(Exception):  # reported when the gene is timed
        fit = peer.fit(part)
        peer.estimates(fit)
        seconds = time.perf_counter() - start
        peer.tests(fit, part)
    return seconds or time.perf_counter() - start


def genes_of(peer: Peer, case: Case, start: int, stop: int):
    """Argument of `Peer.fit` for these genes."""
    if case.sums is not None:
        return slice(start, stop)
    return case.Y[start:stop] if peer.at_once else case.Y[start]


def one_by_one(peer: Peer, case: Case, seconds: float, output: str) -> dict:
    """Fit gene after gene until the time is over."""
    width = 2 + case.components + 3 * case.fixed
    rows, spent, errors = [], [0.0, 0.0], {}
    while len(rows) < case.genes and sum(spent) < seconds:
        y, values = case.Y[len(rows)], np.full(width, np.nan)
        start = time.perf_counter()
        try:
            fit = peer.fit(y)
            values[: -case.fixed] = peer.estimates(fit)
            spent[0] += time.perf_counter() - start
            start = time.perf_counter()
            values[-case.fixed :] = peer.tests(fit, y)
            spent[1] += time.perf_counter() - start
        except Exception as error:  # no answer; its time counts
            spent[0] += time.perf_counter() - start
            text = f"{type(error).__name__}: {error}"[:200]
            errors[text] = errors.get(text, 0) + 1
        rows.append(values)
    return summary_of(np.array(rows), *spent, output) | {"errors": errors}


def at_once(peer: Peer, case: Case, seconds: float, output: str) -> dict:
    """Fit all genes in one call, or as many as the time allows by smaller calls; median of three if short."""
    genes, cost, times = min(4, case.genes), 0.0, []
    while genes < case.genes and cost < seconds:
        whole = sum(call(peer, case, genes)[0])
        cost, few = 8 * whole, genes
        genes = min(case.genes, 8 * few if cost < seconds else max(few, int(few * seconds / whole)))
    while len(times) < 3 and sum(map(sum, times)) <= seconds / 3:
        spent, rows = call(peer, case, genes)
        times.append(spent)
    return summary_of(rows, *sorted(times, key=sum)[len(times) // 2], output) | {"errors": {}}


def call(peer: Peer, case: Case, genes: int) -> tuple[tuple[float, float], np.ndarray]:
    """Seconds of fitting and testing so many genes, and a row for each."""
    part, start = genes_of(peer, case, 0, genes), time.perf_counter()
    fit = peer.fit(part)
    values = peer.estimates(fit)
    fitted = time.perf_counter()
    df = peer.tests(fit, part)
    return (fitted - start, time.perf_counter() - fitted), np.column_stack(
        [values, np.broadcast_to(df, (genes, case.fixed))]
    )


def summary_of(rows: np.ndarray, fitting: float, testing: float, output: str) -> dict:
    rows.astype("<f8").tofile(output + ".f64")
    return {"genes": len(rows), "seconds_fit": fitting, "seconds_tests": testing}


def resident(reset: bool = False) -> int | None:
    """Peak bytes of this process since the reset, or current bytes at the reset; None if not available."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(lines["VmRSS" if reset else "VmHWM"].split()[0])
    except OSError:
        return None
