"""Damaged and hostile files: one sentence with the name of the file in place of whatever a library raises."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Name of a matrix that is no file.
IN_MEMORY = "the matrix"
#: Share of the machine's memory that a text may take once it is decompressed: its numbers take several times more.
_TEXT_SHARE = 1 / 8


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Turn whatever is raised while values are read into one sentence with the name of the file or matrix.

    Raises
    ------
    ValueError
        In place of any exception: libraries raise nearly every kind for damaged files.
    """
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        advice = "" if name == IN_MEMORY else "; is the file complete, and what its ending says?"
        raise Unreadable(f"cannot read {name}: {reason(error)}{advice}") from error


class Unreadable(ValueError):
    """A file that cannot be read, with a sentence that names it."""


def reason(error: Exception) -> str:
    """Return the first line of an exception's text without control characters, or the name of its type."""
    if isinstance(error, MemoryError):
        return f"it needs more memory than there is ({_first_line(error) or 'out of memory'})"
    if isinstance(error, KeyError) and error.args:
        return f"it has no {_printable(str(error.args[0]).partition(chr(10))[0])}"
    return _first_line(error) or type(error).__name__


def memory_of_machine() -> int:
    """Return the physical memory in bytes; 16 GiB where the platform does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**34


def check_size(size: int, what: str) -> None:
    """Refuse an array of `size` bytes that the machine's memory cannot hold.

    Raises
    ------
    ValueError
        With both sizes.
    """
    if size > memory_of_machine():
        raise ValueError(
            f"{what} needs {size / 1e9:,.1f} GB of memory, this machine has {memory_of_machine() / 1e9:,.1f} GB: "
            "convert it to .h5ad, which is read in chunks"
        )


def limited(file: io.BufferedIOBase) -> io.BufferedReader:
    """Return `file` for reading; more bytes than the machine can hold as a table raise ValueError."""
    return io.BufferedReader(_Limited(file, int(_TEXT_SHARE * memory_of_machine())), 2**18)


class _Limited(io.RawIOBase):
    """A file of text that refuses to give more than `limit` bytes, or zero bytes, at which parsers cut a field."""

    def __init__(self, file: io.BufferedIOBase, limit: int):
        self._file, self._left, self._limit = file, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._file.read(len(buffer))
        if b"\0" in content:
            raise ValueError("it has zero bytes, so that it is no text in UTF-8: save it as UTF-8")
        buffer[: len(content)] = content
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(
                f"it has more than {self._limit:,} bytes of text: convert it to .h5ad, which is read in chunks"
            )
        return len(content)


def _first_line(error: Exception) -> str:
    return _printable(str(error).partition("\n")[0].rstrip(". "))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:500]
