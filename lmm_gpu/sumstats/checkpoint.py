"""Sums on disk while they grow: a run that was killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.archive import read_archive, write_archive

#: At most this share of the time goes into writing.
_SHARE = 0.05
#: With a number that grows when sums are added up in another order, for these end with other bytes.
_KIND = "lmm_gpu checkpoint 1"
_ADVICE = "remove it to begin anew"
State = tuple[dict[str, np.ndarray], dict[str, Any]]


class Checkpoint:
    """A file that holds how far a run has come, written every so often and refused by a run on anything else.

    Parameters
    ----------
    path
        Of the file; there need not be one yet.
    about
        What the sums depend on, by the names that a refusal uses.
    """

    def __init__(self, path: str | Path, about: Mapping[str, str]):
        self.path, self.about = Path(path), dict(about)
        self._began, self._spent, self._last = time.perf_counter(), 0.0, 0.0
        self._kept: dict[str, np.ndarray] = {}
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a run that was killed while it wrote
            part.unlink(missing_ok=True)

    def read(self, stage: str) -> State | None:
        """Arrays and values of a stage, None where there are none.

        Raises
        ------
        ValueError
            If the file is broken, or of another run: with what differs.
        """
        if not self.path.exists():
            return None
        arrays, _, values = read_archive(self.path, _KIND, _ADVICE)
        there = {name: values.get(f"about {name}") for name in self.about}
        differ = [name for name, text in self.about.items() if there[name] != text]
        other = [f"other {name} ({there[name]}, here {self.about[name]})" for name in differ]
        if other:
            reason = f"it is of {', '.join(other)}"
            raise ValueError(f"cannot go on from {self.path}, {reason}: {_ADVICE}, or name another file")
        return (arrays, values) if values["stage"] == stage else None

    def keep(self, **arrays: np.ndarray) -> None:
        """Add arrays to all that is written from now on, such as what a stage has left to the next."""
        self._kept |= arrays

    def write(
        self, stage: str, done: int, arrays: Mapping[str, np.ndarray | None], values: Mapping[str, Any] | None = None
    ) -> None:
        """Write the state after `done` pieces, unless that would take too large a share of the time."""
        start = time.perf_counter()
        if self._spent + self._last > _SHARE * (start - self._began):
            return
        about: dict[str, Any] = {f"about {name}": text for name, text in self.about.items()}
        about |= {"stage": stage, "done": done, **(values or {})}
        write_archive(self.path, _KIND, {**self._kept, **arrays}, {}, about)
        self._last = time.perf_counter() - start
        self._spent += self._last

    def remove(self) -> None:
        """Remove the file, once all is done."""
        self.path.unlink(missing_ok=True)


def as_array(pieces: Sequence[slice]) -> np.ndarray:
    """Slices as numbers (pieces, 2)."""
    return np.array([(piece.start, piece.stop) for piece in pieces], dtype=np.int64).reshape(-1, 2)


def as_slices(bounds: np.ndarray) -> list[slice]:
    """Give the slices of `as_array`.

    >>> as_slices(as_array([slice(0, 3), slice(3, 5)]))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(lo, hi) for lo, hi in bounds.tolist()]


def file_identity(name: str) -> str:
    """Size and time of the last change of a file, or of all files of a folder; of what is in memory, only that."""
    path = Path(name)
    if not path.exists():
        return "in memory"
    files = [path] if path.is_file() else [Path(folder, file) for folder, _, some in os.walk(path) for file in some]
    found = [file.stat() for file in files]
    return f"{sum(one.st_size for one in found)} bytes of {max((one.st_mtime_ns for one in found), default=0)} ns"


def digest(*parts: Any) -> str:
    """Short hash of arrays and texts.

    >>> digest(np.zeros(2), "a") == digest(np.zeros(2), "a") != digest(np.zeros(2), "b")
    True
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)  # no copy
        else:
            found.update(repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()[:16]
