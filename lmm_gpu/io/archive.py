"""Arrays, labels and attributes in one HDF5 file with a checksum, so that any change of its content is noticed.

Any HDF5 tool reads it (h5py, h5dump, R's rhdf5, which shows matrices transposed):

- every array is a dataset of little-endian numbers in C order, uncompressed; a name with a slash lies in a group;
- every list of labels is a dataset of UTF-8 strings of variable length;
- attributes of the file: ``format`` (its kind), ``format_version`` (1), ``checksum``, and numbers or texts.
  Values that are None when written are absent.

The checksum is the SHA-256, in hexadecimal digits, of these bytes one after the other: the attributes except the
checksum as JSON (keys sorted, ASCII, Python's separators); then for each dataset, in the order of their names, the JSON
list ``[name, type, shape]`` with NumPy's name of the type (``"<f8"``) or ``"text"``, and the values: the bytes of an
array, or labels as a JSON list.

Nothing in it is code: reading a file never runs anything that it contains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.optional import require
from .broken_files import reason
from .files import replacing
from .hdf5_files import open_checked

VERSION = 1
#: The first bytes of every HDF5 file.
_HDF5 = b"\x89HDF\r\n\x1a\n"
#: Labels that are read at a time.
_LABELS = 256
Content = tuple[dict[str, np.ndarray], dict[str, list[str]], dict[str, Any]]


def write_archive(
    path: str | Path,
    kind: str,
    arrays: Mapping[str, np.ndarray | None],
    labels: Mapping[str, Sequence[str]],
    attributes: Mapping[str, int | float | str | None],
) -> None:
    """Write a file; the one at `path` is replaced once all of it is written. Values that are None are left out.

    Raises
    ------
    ValueError
        If h5py is not installed, a label has a NUL, which texts in HDF5 cannot hold, or `path` is no regular file.
    """
    h5py = require("h5py", "writing summary statistics")
    numbers = {name: _little_endian(A) for name, A in arrays.items() if A is not None}
    texts = {name: [str(label) for label in names] for name, names in labels.items()}
    about: dict[str, Any] = {"format": kind, "format_version": VERSION}
    about |= {name: _plain(value) for name, value in attributes.items() if value is not None}
    # this version of the format has checksums of its own metadata, too
    with replacing(path) as part, h5py.File(part, "w", libver=("v110", "v110")) as file:
        for name, A in numbers.items():
            file.create_dataset(name, data=A)
        for name, names in texts.items():
            file.create_dataset(name, data=names, shape=(len(names),), dtype=h5py.string_dtype("utf-8"))
        file.attrs.update(about | {"checksum": checksum(numbers, texts, about)})


def read_archive(path: str | Path, kind: str, advice: str) -> Content:
    """Read arrays, labels and attributes of a file that `write_archive` wrote for the same `kind`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If h5py is not installed, or the file is truncated, altered, of a newer version or something else: with
        `advice`.
    """
    require("h5py", "reading summary statistics")
    size = Path(path).stat().st_size
    try:
        with ExitStack() as files:
            file = open_checked(Path(path), files)
            about = {name: _plain(value) for name, value in file.attrs.items()}
            if about.get("format") != kind:
                raise ValueError(f"it is no file of {kind}")
            if about.get("format_version") != VERSION:
                found = about.get("format_version")
                raise ValueError(f"it has version {found} of the format, this lmm_gpu knows {VERSION}: update lmm_gpu")
            arrays, labels = _datasets(file, size)
        if about.pop("checksum", None) != checksum(arrays, labels, about):
            raise ValueError("its checksum is not that of its content: it was altered")
    except Exception as error:  # h5py raises nearly every kind for damaged files
        raise ValueError(f"cannot use {path}: {reason(error)}; {advice}") from error
    return arrays, labels, about


def kind_of(path: str | Path) -> str | None:
    """Return the kind of a file that lmm_gpu wrote; None for other files and those that HDF5 cannot read."""
    if not Path(path).is_file():
        return None
    with open(path, "rb") as start:
        signature = start.read(len(_HDF5) + 1)
    if not signature.startswith(_HDF5) or signature[-1] < 2:  # files of lmm_gpu have version 2 or later of HDF5's own
        return None
    require("h5py", "reading .h5")
    try:
        with ExitStack() as files:
            kind = open_checked(Path(path), files).attrs.get("format")
    except Exception:  # the reader of the file reports the damage
        return None
    return kind if isinstance(kind, str) and kind.startswith("lmm_gpu ") else None


@contextmanager
def consistent(path: str | Path, advice: str) -> Iterator[None]:
    """Turn errors about content that contradicts itself, despite a valid checksum, into one sentence with `advice`."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"cannot use {path}: its content does not fit together ({reason(error)}); {advice}") from error


def checksum(
    arrays: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]], attributes: Mapping[str, Any]
) -> str:
    """SHA-256 of the content of a file, as the module describes it.

    >>> checksum({"x": np.zeros(2)}, {"features": ["A"]}, {"n": 1})[:12]
    '9c01395798aa'
    """
    digest = hashlib.sha256(json.dumps(dict(attributes), sort_keys=True).encode())
    for name in sorted([*arrays, *labels]):
        if name in labels:
            digest.update(json.dumps([name, "text", [len(labels[name])]]).encode())
            digest.update(json.dumps(list(labels[name])).encode())
        else:
            A = _little_endian(arrays[name])
            digest.update(json.dumps([name, A.dtype.str, list(A.shape)]).encode())
            digest.update(A.data)
    return digest.hexdigest()


def _datasets(file: Any, size: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, list[str]] = {}

    def read(name: str, item: Any) -> None:
        if not hasattr(item, "dtype"):
            return  # a group
        if item.is_virtual or item.external:
            raise ValueError(f"{name} keeps its values in other files")
        if item.size * item.dtype.itemsize > size:
            raise ValueError(f"{name} is larger than the file")
        if item.dtype.kind == "O":
            labels[name] = _labels(item, size)
        else:
            arrays[name] = _little_endian(item[()])

    file.visititems(read)
    return arrays, labels


def _labels(dataset: Any, size: int) -> list[str]:
    """Read texts, which may all be the same long one: no more than `size` letters."""
    if dataset.ndim != 1:
        raise ValueError(f"{dataset.name} has {dataset.ndim} axes, expected 1")
    found: list[str] = []
    letters = 0
    for start in range(0, len(dataset), _LABELS):
        part = dataset.asstr()[start : start + _LABELS].tolist()
        letters += sum(map(len, part))
        if letters > size:
            raise ValueError(f"{dataset.name} is larger than the file")
        found += part
    return found


def _little_endian(A: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(A, dtype=A.dtype.newbyteorder("<"))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
