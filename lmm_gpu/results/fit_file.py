"""A fit in one HDF5 file: what was estimated beside the summary statistics that it was estimated from.

The file is one of `lmm_gpu.io.archive` whose ``format`` is "lmm_gpu fit". It holds

- all that a file of summary statistics holds, under the same names;
- in the group ``estimates``: theta, se_theta, dlogL (k+1, m; residual last), coef, se (p, m), logLik, niter and status
  (m,), where NaN is a number that there is none of, and a status is the whole number that `lmm_gpu.Status` names;
- the attributes method, epsilon, ddf, bounds and max_iter, and the labels ``outputs``: how it was fitted and what the
  fit shows.

Everything else follows from these: contrasts, degrees of freedom, covariances, random effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..estimation.estimates import Estimates
from ..estimation.status import Status
from ..io.archive import consistent, read_archive, write_archive
from ..sumstats.gene_weights import statistics_of
from ..sumstats.summary_stats import SummaryStats

FIT = "lmm_gpu fit"
_ADVICE = "take a fresh copy of the file, or fit again and save that"
_ESTIMATES = "estimates/"
_SETTINGS = {"method": str, "epsilon": float, "ddf": str, "bounds": str, "max_iter": int}


def write_fit(path: str | Path, summary: SummaryStats, estimates: Estimates, settings: Mapping[str, Any]) -> None:
    """Write estimates, the statistics they are of, and the settings by which they were found.

    Raises
    ------
    ValueError
        If h5py is not installed.
    """
    arrays, labels, attributes = summary.content()
    arrays |= {f"{_ESTIMATES}{name}": getattr(estimates, name) for name in _shapes(summary)}
    labels |= {"outputs": list(settings["outputs"])}
    write_archive(path, FIT, arrays, labels, attributes | {name: of(settings[name]) for name, of in _SETTINGS.items()})


def read_fit(path: str | Path) -> tuple[SummaryStats, Estimates, dict[str, Any]]:
    """Read what `write_fit` wrote: statistics, estimates and settings.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered, or something else, or h5py is not installed.
    """
    arrays, labels, attributes = read_archive(path, FIT, _ADVICE)
    with consistent(path, _ADVICE):
        summary = statistics_of((arrays, labels, attributes))
        found = {name: arrays[f"{_ESTIMATES}{name}"] for name in _shapes(summary)}
        _check(found, summary)
        estimates = Estimates(**found)
        settings = {name: of(attributes[name]) for name, of in _SETTINGS.items()}
        return summary, estimates, settings | {"outputs": tuple(labels["outputs"])}


def _shapes(summary: SummaryStats) -> dict[str, tuple[int, ...]]:
    m, rows, p = summary.m, summary.n_variances + 1, len(summary.fixed_names)
    by_component = dict.fromkeys(("theta", "se_theta", "dlogL"), (rows, m))
    return by_component | dict.fromkeys(("coef", "se"), (p, m)) | dict.fromkeys(("logLik", "niter", "status"), (m,))


def _check(estimates: Mapping[str, np.ndarray], summary: SummaryStats) -> None:
    for name, shape in _shapes(summary).items():
        if estimates[name].shape != shape:
            raise ValueError(f"{name} has shape {estimates[name].shape}, wanted {shape}")
    unknown = set(estimates["status"].tolist()) - {int(status) for status in Status}
    if unknown:
        raise ValueError(f"status holds {sorted(unknown)}: not a status of this version")
