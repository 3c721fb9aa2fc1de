"""Checks of output paths before the work: an output is never an input, and only our own files are replaced."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..io.files import writable_target

#: One of the first two columns of every table of ours, and columns of which each has at least one.
_FIRST, _OTHERS = "variable", {"log10_p_value", "niter", "blup", "residual_fraction", "permutation_p_value"}
#: Written into every plot, report and JSON file.
_NAME = b"lmm_gpu"
_HEAD = 2**16  #: bytes at both ends of a file in which the mark is searched
#: Attribute of HDF5 files that have a format of someone else.
MARK = "written-by"
_HDF5 = b"\x89HDF\r\n\x1a\n"


def check_output(path: Path, inputs: Iterable[Path | None] = (), *, force: bool = False) -> None:
    """Refuse a file that must not or cannot be written.

    Parameters
    ----------
    path : Path
        The file to write.
    inputs : iterable of Path or None
        Files and folders that the command reads.
    force : bool
        Replace a file that lmm-gpu did not write. Inputs are never replaced.

    Raises
    ------
    ValueError
        If the file is an input or lies in one, was not written by lmm-gpu, or cannot be written.
    """
    _check_folder_of(path.parent, f"cannot write {path}")
    for source in inputs:
        if source is not None and _same_or_inside(path, source):
            raise ValueError(f"cannot write {path}: it is an input ({source}), which would be lost; use another -o")
    target = writable_target(path)
    if target.exists() and not force and not written_by_us(target):
        raise ValueError(f"{path} exists and was not written by lmm-gpu: use another -o, or --force to replace it")


def check_results_folder(
    folder: Path, names: Iterable[str], inputs: Iterable[Path | None] = (), *, force: bool = False
) -> None:
    """Refuse a folder into which the files `names` must not or cannot be written, as `check_output` does.

    Raises
    ------
    ValueError
        As `check_output`, and if the folder is an input or lies in one.
    """
    _check_folder_of(folder, f"cannot write results to {folder}")
    sources = [source for source in inputs if source is not None]
    for source in sources:
        if source.is_dir() and _same_or_inside(folder, source):
            raise ValueError(f"cannot write results to {folder}: it is in an input ({source}); use another -o")
    for name in names:
        check_output(folder / name, sources, force=force)


def _check_folder_of(folder: Path, what: str) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise ValueError(f"{what}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: no permission to write into {existing}")


def _same_or_inside(path: Path, source: Path) -> bool:
    if path.exists() and source.exists() and path.samefile(source):
        return True
    target, origin = path.resolve(), source.resolve()
    return target == origin or (origin.is_dir() and origin in target.parents and origin.suffix == ".zarr")


def written_by_us(path: Path) -> bool:
    """Recognise a file of lmm_gpu by its content; an empty file has nothing to lose.

    Returns
    -------
    bool
        True for our statistics, fits and checkpoints (by their format attribute), our tables (by their columns), and
        our JSON files, plots and reports (by the name of the program in them). False for anything else, and for
        anything that cannot be read.
    """
    if path.stat().st_size == 0:
        return True
    with suppress(Exception):  # a file that cannot be read is not recognised
        names = "".join(path.suffixes[-2:]).lower()
        if path.suffix.lower() == ".parquet":
            return _our_columns(_parquet_columns(path))
        if names.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
            return _our_columns(_text_columns(path, "\t" if ".tsv" in names else ","))
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(max(0, path.stat().st_size - _HEAD))
            tail = file.read()
        if head.startswith(_HDF5):
            return _our_hdf5(path)
        if path.suffix.lower() == ".json":
            return str(json.loads(path.read_bytes()).get("format", "")).startswith("lmm_gpu")
        return _NAME in head or _NAME in tail
    return False


def _our_columns(names: list[str]) -> bool:
    return _FIRST in names[:2] and not _OTHERS.isdisjoint(names)


def _text_columns(path: Path, separator: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return file.readline(_HEAD).rstrip("\r\n").split(separator)


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet

    return list(pyarrow.parquet.read_schema(path).names)


def _our_hdf5(path: Path) -> bool:
    import h5py

    with h5py.File(path, "r") as file:
        kind: Any = file.attrs.get("format", file.attrs.get(MARK, ""))
    return str(kind).startswith("lmm_gpu")
