"""A folder of results with one commit point: a reader finds one whole run in it, or refuses it as incomplete.

All files are written into a staging folder inside it. Then the commit: run.json is removed, the other files are moved
into place, and run.json, with the SHA-256 of each of them, is moved last. A folder without run.json is incomplete;
files that do not match it are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ..io.files import is_running, write_json

logger = logging.getLogger("lmm_gpu")
RECORD = "run.json"
LOCK = ".lmm_gpu.lock"
_STAGING = ".lmm_gpu.staging"
#: The fit with its summary statistics.
FIT = "fit.h5"


def table_names(table_format: str) -> tuple[str, str]:
    """Names of the table of tests and of the table of genes.

    >>> table_names("parquet")
    ('results.parquet', 'genes.parquet')
    """
    return f"results.{table_format}", f"genes.{table_format}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Reserve a folder for this run; what it created and left empty is removed at the end.

    Raises
    ------
    ValueError
        If another run is writing to it, with its host and process id.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    try:
        _take(lock)
        try:
            for left in folder.glob(f"{_STAGING}*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


def _take(lock: Path) -> None:
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    while True:
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _remove_if_stale(lock)
            continue
        try:
            os.write(descriptor, owner)
        finally:
            os.close(descriptor)
        return


def _remove_if_stale(lock: Path) -> None:
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        host, pid = str(owner["host"]), int(owner["pid"])
    except FileNotFoundError:
        return  # released meanwhile
    except (KeyError, TypeError, ValueError):
        host, pid = "an unknown host", 0
    if host == socket.gethostname() and not is_running(pid):
        taken = lock.with_name(f"{lock.name}.{os.getpid()}")
        with suppress(FileNotFoundError):  # another run removes it
            os.rename(lock, taken)  # of several runs only one succeeds
            taken.unlink()
            logger.info("removed the lock of process %d, which ended without results", pid)
        return
    raise ValueError(
        f"{lock.parent} is in use by another run (process {pid or 'unknown'} on {host}): wait for it, use another -o, "
        f"or remove {lock} if that run is not alive"
    )


def commit(
    folder: Path,
    parts: Mapping[str, Callable[[Path], object]],
    record: Callable[[], Mapping[str, Any]],
    *,
    obsolete: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a whole run into a locked folder, or leave the one that is there.

    Parameters
    ----------
    folder : Path
    parts : mapping of str to callable
        Functions that write a file to the path they are given, by the name of the file.
    record : callable
        Returns the content of run.json; called when all parts are written.
    obsolete : sequence of str
        Files of an earlier run that are removed.

    Returns
    -------
    dict
        The content of run.json: `record`, with name and SHA-256 of every part under "files".
    """
    staging = folder / f"{_STAGING}.{socket.gethostname()}.{os.getpid()}"
    staging.mkdir()
    try:
        digests = {}
        for name, write in parts.items():
            write(staging / name)
            digests[name] = sha256(staging / name)
        content = dict(record()) | {"files": digests}
        write_json(content, staging / RECORD)
        for name in (*parts, RECORD):
            _synchronise(staging / name)
        with _interrupts_deferred():
            (folder / RECORD).unlink(missing_ok=True)
            for name in obsolete:
                (folder / name).unlink(missing_ok=True)
            for name in (*parts, RECORD):
                os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return content


def check_files(folder: Path, record: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse files that are not those of the run that run.json describes.

    Raises
    ------
    ValueError
        If one is missing or was changed.
    """
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} has no {name}: expected the folder that lmm-gpu fit -o wrote; run it again")
        if sha256(path) != record["files"].get(name):
            raise ValueError(f"{path} is not the file that {folder / RECORD} describes: run lmm-gpu fit again")


def files_of_run(folder: Path) -> list[Path]:
    """Files that a run consists of, which no other command may replace; none for something else than a run."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads((folder / RECORD).read_bytes())
        return [folder / str(name) for name in (RECORD, *record["files"])]
    return []


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synchronise(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    # Ctrl-C waits for the end of a commit: a few renames
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for one in caught:
            signal.raise_signal(one)
