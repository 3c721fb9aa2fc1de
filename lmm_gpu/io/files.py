"""Files written as a whole: a table, JSON or anything else replaces its target only once it is complete."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..backend.optional import require

if TYPE_CHECKING:
    import pandas as pd

#: Endings of files with cells.
STORES, MARKET, TABLES = (".h5ad", ".zarr"), (".mtx", ".mtx.gz"), (".csv", ".csv.gz", ".tsv", ".tsv.gz")
#: Seconds after which a part that another machine left behind counts as stale.
_STALE = 86_400.0


def suffix_of(path: str | Path, known: Iterable[str]) -> str:
    """Return the ending of a path among the known ones.

    Raises
    ------
    ValueError
        If the path ends in none of them.
    """
    for suffix in known:
        if str(path).lower().endswith(suffix):
            return suffix
    raise ValueError(f"the ending of {path} is not known: use one of {', '.join(known)}")


def separator_of(path: str | Path) -> str:
    """Return the separator between the columns of a text table, by its ending."""
    return "\t" if suffix_of(path, TABLES).startswith(".tsv") else ","


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table as .csv, .csv.gz, .tsv or .parquet; the target is replaced once the table is complete.

    Parameters
    ----------
    frame
        Its index becomes the first column unless it is a plain 0, 1, 2, ...
    path
        Missing folders are created.

    Raises
    ------
    ValueError
        If the ending is unknown, pyarrow is missing for .parquet, or `path` is no regular file.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_table(pd.DataFrame({"variable": ["ISG15"], "log_fc": [2.5]}), f"{folder}/results/table.csv")
    ...     print(Path(folder, "results", "table.csv").read_text())
    variable,log_fc
    ISG15,2.5
    <BLANKLINE>
    """
    import pandas as pd

    suffix = check_table_path(path)
    with replacing(path) as part:
        if suffix == ".parquet":
            frame.to_parquet(part, engine="pyarrow")
        else:
            index = not isinstance(frame.index, pd.RangeIndex)
            compression: Literal["gzip"] | None = "gzip" if suffix.endswith(".gz") else None
            frame.to_csv(part, sep=separator_of(path), index=index, compression=compression)


def check_table_path(path: str | Path) -> str:
    """Return the ending of a table to write.

    Raises
    ------
    ValueError
        If the ending is unknown or a package for it is missing.
    """
    known = (*TABLES, ".parquet")
    if not str(path).lower().endswith(known):
        raise ValueError(f"cannot write a table to {path}: the name must end in {', '.join(known)}")
    suffix = suffix_of(path, known)
    if suffix == ".parquet":
        require("pyarrow", "writing .parquet", "pip install pyarrow, or write .csv.gz instead")
    return suffix


def write_json(obj: object, path: str | Path) -> None:
    """Write an object as JSON; the target is replaced once the text is complete.

    Parameters
    ----------
    obj
        Dictionaries, lists, texts, numbers, None.
    path
        Missing folders are created.

    Raises
    ------
    TypeError
        If JSON cannot represent `obj`.
    ValueError
        If `path` is no regular file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json({"cells": 3}, f"{folder}/run.json")
    ...     json.loads(Path(folder, "run.json").read_text())
    {'cells': 3}
    """
    with replacing(path) as part:
        part.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` if the block succeeds and is removed otherwise.

    A symbolic link is followed: the file that it points to is replaced, the link stays. The name of the part has the
    host, the process and a random number in it, so that runs on machines with a shared disk do not meet; parts of
    processes that no longer run are removed.

    Raises
    ------
    ValueError
        If `path` exists and is no regular file.
    """
    target = writable_target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(target)
    part = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    except OSError as error:
        if error.filename is not None and str(error.filename) == str(part):
            error.filename = str(path)  # the name that the caller knows
        raise
    finally:
        part.unlink(missing_ok=True)


def writable_target(path: str | Path) -> Path:
    """Return the file that writing to `path` replaces: `path`, or the file that a symbolic link points to.

    Raises
    ------
    ValueError
        If it exists and is a folder, device, pipe or socket, or the link is part of a cycle.
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path, strict=False)) if path.is_symlink() else path
        mode = target.stat().st_mode if target.exists() else stat.S_IFREG
    except (OSError, ValueError) as error:  # a cycle of links, a NUL in the name
        raise ValueError(f"cannot write {path}: {error}") from error
    if target.is_symlink():
        raise ValueError(f"cannot write {path}: its symbolic links form a cycle")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise ValueError(f"cannot write {path}: it is {kind}; give the name of a regular or new file")
    return target


def remove_stale_parts(target: Path) -> None:
    """Remove parts of `target` whose processes ended without removing them."""
    start = f".{target.name}."
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if entry.name.startswith(start) and _is_stale(entry, entry.name.removeprefix(start)):
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_stale(entry: os.DirEntry[str], rest: str) -> bool:
    words = rest.split(".")  # host, process, random number, "part"; earlier versions: process, "part"
    if words[-1] != "part" or len(words) not in (2, 4) or not words[-2 if len(words) == 2 else 1].isdigit():
        return False
    if len(words) == 2:
        return not is_running(int(words[0]))
    if words[0] == _host():
        return not is_running(int(words[1]))
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE


def is_running(process: int) -> bool:
    """Tell if a process of this machine runs, as far as the system lets us know."""
    if os.name == "nt":  # signal 0 would interrupt the process there
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _host() -> str:
    return socket.gethostname().partition(".")[0].replace("/", "_")
