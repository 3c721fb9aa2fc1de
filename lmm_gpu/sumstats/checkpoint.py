"""Checkpoints of running sums: a run that was killed resumes from them, and ends with the same bytes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.late_imports import is_scipy_sparse
from ..io.archive import read_archive, write_archive

#: Largest share of the time that is spent on writing.
_SHARE = 0.05
#: With a number that grows when sums are accumulated in another order, as these end with other bytes.
_KIND = "lmm_gpu checkpoint 2"
_ADVICE = "remove it to start again"
State = tuple[dict[str, np.ndarray], dict[str, Any]]


class Checkpoint:
    """A file with the state of a run, written at intervals and refused by a run on other data or options.

    Parameters
    ----------
    path
        Path of the file, which need not exist yet.
    about
        Everything that the sums depend on, by the names that a refusal uses.
    """

    def __init__(self, path: str | Path, about: Mapping[str, str]):
        self.path, self.about = Path(path), dict(about)
        self._began, self._spent, self._last = time.perf_counter(), 0.0, 0.0
        self._kept: dict[str, np.ndarray] = {}
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a run that was killed while it wrote
            part.unlink(missing_ok=True)

    def read(self, stage: str) -> State | None:
        """Arrays and values of a stage, None if there are none.

        Raises
        ------
        ValueError
            If the file is broken, or belongs to another run, with the differences.
        """
        if not self.path.exists():
            return None
        arrays, _, values = read_archive(self.path, _KIND, _ADVICE)
        there = {name: values.get(f"about {name}") for name in self.about}
        differ = [name for name, text in self.about.items() if there[name] != text]
        other = [f"other {name} ({there[name]}, here {self.about[name]})" for name in differ]
        if other:
            reason = f"it belongs to a run with {', '.join(other)}"
            raise ValueError(f"cannot resume from {self.path}, {reason}: {_ADVICE}, or name another file")
        return (arrays, values) if values["stage"] == stage else None

    def keep(self, **arrays: np.ndarray) -> None:
        """Add arrays to every later write, such as the results of a finished stage."""
        self._kept |= arrays

    def write(
        self, stage: str, done: int, arrays: Mapping[str, np.ndarray | None], values: Mapping[str, Any] | None = None
    ) -> None:
        """Write the state after `done` pieces, unless writing would exceed its share of the time."""
        start = time.perf_counter()
        if self._spent + self._last > _SHARE * (start - self._began):
            return
        about: dict[str, Any] = {f"about {name}": text for name, text in self.about.items()}
        about |= {"stage": stage, "done": done, **(values or {})}
        write_archive(self.path, _KIND, {**self._kept, **arrays}, {}, about)
        self._last = time.perf_counter() - start
        self._spent += self._last

    def remove(self) -> None:
        """Remove the file, once the results are complete."""
        self.path.unlink(missing_ok=True)


def as_array(pieces: Sequence[slice]) -> np.ndarray:
    """Bounds of slices, (pieces, 2)."""
    return np.array([(piece.start, piece.stop) for piece in pieces], dtype=np.int64).reshape(-1, 2)


def as_slices(bounds: np.ndarray) -> list[slice]:
    """Slices from the bounds of `as_array`.

    >>> as_slices(as_array([slice(0, 3), slice(3, 5)]))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(lo, hi) for lo, hi in bounds.tolist()]


def file_identity(name: str) -> str:
    """Size and last change of a file, or of all files of a folder; "in memory" if there is no such path."""
    path = Path(name)
    if not path.exists():
        return "in memory"
    files = [path] if path.is_file() else [Path(folder, file) for folder, _, some in os.walk(path) for file in some]
    found = [file.stat() for file in files]
    return f"{sum(one.st_size for one in found)} bytes of {max((one.st_mtime_ns for one in found), default=0)} ns"


def digest(*parts: Any) -> str:
    """Short hash of arrays, sparse matrices and texts.

    >>> digest(np.zeros(2), "a") == digest(np.zeros(2), "a") != digest(np.zeros(2), "b")
    True
    """
    found = hashlib.sha256()
    for part in parts:
        if is_scipy_sparse(part):
            part = digest(*(getattr(part, name) for name in ("data", "indices", "indptr", "row", "col") if
                            hasattr(part, name)), part.shape)  # fmt: skip
        if isinstance(part, np.ndarray) and part.dtype != object:
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)  # no copy
        else:
            found.update(repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()[:16]


def data_digest(matrix: Any, name: str) -> str:
    """Identity of the values: of a file, its size and last change; of a matrix in memory, a hash of its values.

    Raises
    ------
    ValueError
        For a matrix that cannot be hashed, such as one on a device.
    """
    found = file_identity(name)
    if found != "in memory":
        return found
    if isinstance(matrix, np.ndarray) or is_scipy_sparse(matrix):
        return f"in memory, {digest(matrix)}"
    raise ValueError(
        f"checkpoint= needs values on the host or in a file, to recognise them after a kill; got "
        f"{type(matrix).__name__}: leave out checkpoint"
    )
