"""HDF5 files opened for reading: neither damage nor links can stop the process or lead to other files.

Damaged metadata make the HDF5 library loop for ever or crash. So another process, kept for all files, opens each file
first and walks through it; only a file that it came through is opened here.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from select import select
from typing import Any

from ..backend.optional import require
from .broken_files import reading

#: Seconds that walking through the metadata of a file may take, and bytes of the file that add another second.
_LIMIT, _BYTES = 15.0, 10**8
#: Runs in the other process: reads attributes, and datasets of texts, which lie in heaps of their own.
_WALK = """
import os, sys, h5py
class Bomb(Exception): pass
letters = limit = 0
def texts(item):
    global letters
    if item.ndim != 1: return item[()]
    for start in range(0, item.size, 4096):
        letters += 16 * sum(len(text) for text in item[start : start + 4096 : 16] if isinstance(text, bytes))
        if letters > limit: raise Bomb
def look(name, item):
    for key in item.attrs:
        try: item.attrs[key]
        except Exception: pass
    if isinstance(item, h5py.Dataset):
        item.shape, item.id.get_create_plist().get_nfilters()
        if item.is_virtual or item.external: return
        if item.chunks: item.id.get_num_chunks() and item.id.get_chunk_info(0)
        if item.dtype.kind in "OV" and item.size * item.dtype.itemsize < limit: texts(item)
for path in sys.stdin:
    answer = "done"
    try:
        name = bytes.fromhex(path)
        letters, limit = 0, 10**8 + 64 * os.path.getsize(name)
        with h5py.File(name, "r") as file:
            look("/", file)
            file.visititems(look)
    except (Bomb, MemoryError): answer = "bomb"
    except Exception: pass
    print(answer, flush=True)
"""


def start_walker() -> None:
    """Start the other process, so that it is ready once a file is to be opened."""
    _walker.start()


def open_hdf5(path: Path, files: ExitStack) -> Any:
    """Open an HDF5 file for reading; `files` closes it.

    Raises
    ------
    ValueError
        If h5py is missing, the file is damaged, or its metadata make the HDF5 library hang or crash.
    """
    require("h5py", f"reading {path.suffix}")
    with reading(path):
        return open_checked(path, files)


def open_checked(path: Path, files: ExitStack) -> Any:
    """Open an HDF5 file after the other process came through it; errors are those of h5py, or ValueError."""
    h5py = require("h5py", "reading HDF5")
    if not path.is_file():
        raise ValueError("it is no file")
    _walker.check(path)
    return files.enter_context(h5py.File(path, "r"))


def check_hdf5_content(item: Any) -> None:
    """Refuse links to other files, virtual and external datasets, and filters that are not available.

    Missing chunks are refused as well, but not in matrices, of which some programs leave out chunks of zeros.

    Raises
    ------
    ValueError
        With the name of the dataset.
    """
    for dataset in _datasets(item):
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{dataset.name} keeps its values in other files: copy them into this one")
        if dataset.size and not dataset.id.get_storage_size():
            raise ValueError(f"{dataset.name} has no stored values: the file was not written to its end")
        if dataset.chunks and dataset.ndim == 1 and dataset.id.get_num_chunks() < -(-dataset.size // dataset.chunks[0]):
            raise ValueError(f"{dataset.name} lacks some of its values: the file was not written to its end")
        _check_filters(dataset)


def child(group: Any, key: str) -> Any:
    """Return ``group[key]`` unless it, or a group on the way, is a link to another file.

    Raises
    ------
    ValueError
        If it is.
    KeyError
        If there is no such item.
    """
    import h5py

    item = group
    for name in key.split("/"):
        link = item.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{item.name.rstrip('/')}/{name} is a link to another file: copy it into this one")
        if item[name].file.filename != group.file.filename:  # a link to such a link
            raise ValueError(f"{item.name.rstrip('/')}/{name} leads to another file: copy it into this one")
        item = item[name]
    return item


def _datasets(item: Any) -> Iterator[Any]:
    if not hasattr(item, "keys"):
        yield item
        return
    for name in item:
        yield from _datasets(child(item, name))


def _check_filters(dataset: Any) -> None:
    from h5py import h5z

    plist = dataset.id.get_create_plist()
    codes = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    if all(h5z.filter_avail(code[0]) for code in codes):
        return
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  registers its filters
    for code, _, _, name in codes:
        if not h5z.filter_avail(code):
            label = name.decode("utf-8", "replace") if name else "unnamed"
            raise ValueError(
                f"{dataset.name} is compressed with the filter {code} ({label}), which h5py does not have: "
                "pip install hdf5plugin"
            )


class _Walker:
    """The other process; started at the first file, and again after one that it did not come through."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def start(self) -> subprocess.Popen[str] | None:
        """Start the process unless it runs; None where no process can be started."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        with suppress(OSError, ValueError):  # no interpreter to start, or no more processes allowed
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _WALK],  # -P: imports nothing from the current folder
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self._owner = os.getpid()
            return self._process
        return None

    def check(self, path: Path) -> None:
        """Walk through a file there.

        Raises
        ------
        ValueError
            If that crashes, or takes longer than the limit.
        """
        with self._lock:
            process = self.start()
            if process is None:
                return
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(os.fsencode(path.resolve()).hex() + "\n")
                process.stdin.flush()
            answer = _answer(process, limit := _LIMIT + path.stat().st_size / _BYTES)
            if answer not in ("done\n", "bomb\n"):
                self.stop()
        if answer == "bomb\n":
            raise ValueError("its texts are much larger than the file")
        if answer is None:
            raise ValueError(f"its metadata are damaged: the HDF5 library did not read them in {limit:.0f} s")
        if answer != "done\n":
            raise ValueError("its metadata are damaged: the HDF5 library crashes on them")

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


def _answer(process: subprocess.Popen[str], limit: float) -> str | None:
    assert process.stdout is not None
    if os.name == "posix" and not select([process.stdout], [], [], limit)[0]:
        return None
    return process.stdout.readline()


_walker = _Walker()
atexit.register(_walker.stop)
