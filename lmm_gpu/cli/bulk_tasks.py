"""Tasks on samples: cells to pseudobulk samples, and samples to a table of tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..backend.optional import require
from ..bulk import dream, pseudobulk
from ..io.files import check_table_path, separator_of, write_table
from ..io.text_tables import read_obs
from .contrast_options import split_name
from .h5ad_output import write_h5ad
from .output_files import check_output


def pseudobulk_to_file(
    data: Path, by: Sequence[str], path: Path, *, min_cells: int, force: bool = False, **reading: Any
) -> dict[str, Any]:
    """Sum the counts of the cells of each group and write them as .h5ad; return a description.

    Parameters
    ----------
    data, by, min_cells, **reading
        As `lmm_gpu.pseudobulk`.
    path : Path
    force : bool
        Replace a file that lmm-gpu did not write.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    if path.suffix.lower() != ".h5ad":
        raise ValueError(f"cannot write samples to {path}: expected a name that ends in .h5ad")
    check_output(path, [data, reading.get("obs"), reading.get("features")], force=force)
    samples = pseudobulk(data, [name.strip() for name in by], min_cells=min_cells, **reading)
    write_h5ad(samples, path, "pseudobulk")
    return {"samples": int(samples.n_obs), "genes": int(samples.n_vars), "by": list(by), "written": [str(path)]}


def dream_to_file(
    data: Path,
    formula: str,
    path: Path,
    contrasts: Sequence[str] | None,
    *,
    obs: Path | None = None,
    force: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Test samples and write a table; return a description.

    Parameters
    ----------
    data : Path
        Counts of samples as .h5ad; or as .csv or .tsv, samples x genes or genes x samples, with `obs`.
    obs : Path, optional
        Table of the samples.
    formula, **options
        As `lmm_gpu.dream`.
    path : Path
    contrasts : sequence of str, optional
        "a - b" or "name = a - b".
    force : bool
        Replace a file that lmm-gpu did not write.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    check_table_path(path)
    check_output(path, [data, obs], force=force)
    samples = _read_samples(data, obs)
    named = dict(split_name(text, ()) for text in contrasts) if contrasts else None
    table = dream(samples, formula, contrast=named, **options)
    write_table(table, path)
    return {"tests": len(table), "contrasts": list(dict.fromkeys(table["contrast"])), "written": [str(path)]}


def _read_samples(data: Path, obs: Path | None) -> Any:
    expected = "expected samples as .h5ad, or as .csv or .tsv with --obs"
    if not data.is_file():
        raise ValueError(f"there is no {data}: {expected}")
    if obs is None:
        anndata = require("anndata", "reading .h5ad")
        try:
            return anndata.read_h5ad(data)
        except Exception as error:  # of a broken file anndata and h5py raise many types
            raise ValueError(f"cannot read {data} as .h5ad ({error}): {expected}") from error
    separator = separator_of(data)
    samples = read_obs(obs)
    try:
        counts = pd.read_csv(data, sep=separator, index_col=0)
    except ValueError as error:
        raise ValueError(f"cannot read {data} as a table ({error})") from error
    counts.index, counts.columns = counts.index.astype(str), counts.columns.astype(str)
    samples.index = samples.index.astype(str)
    if not set(samples.index) <= set(counts.index):
        counts = counts.T
    missing = [name for name in samples.index if name not in counts.index]
    if missing:
        raise ValueError(
            f"{data} has no counts of {len(missing)} of {len(samples)} samples of {obs} (first: {missing[0]}): the "
            "first column of --obs has the names of the samples, as the rows or columns of the counts"
        )
    return counts.loc[samples.index], samples
