"""Connect to a dask scheduler, and explain its failures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from .optional import require

logger = logging.getLogger("lmm_gpu")
ADVICE = 'pip install "lmm-gpu[dask]"'


def is_dask(matrix: Any) -> bool:
    """Return whether `matrix` is a dask array, without importing dask."""
    return hasattr(matrix, "__dask_graph__") and hasattr(matrix, "to_delayed")


@contextmanager
def connected(scheduler: Any) -> Iterator[Any]:
    """Yield the client of a dask scheduler, None without one; a client made from an address is closed at the end.

    Raises
    ------
    ValueError
        If distributed is not installed, or nothing answers at the address.
    """
    if scheduler is None:
        yield None
        return
    distributed = require("distributed", "scheduler=", ADVICE)
    if isinstance(scheduler, distributed.Client):
        yield scheduler
        return
    try:
        # resolved first: a client with an unusable address keeps the process from ending
        distributed.comm.resolve_address(getattr(scheduler, "scheduler_address", scheduler))
        client = distributed.Client(scheduler, set_as_default=False)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"cannot use scheduler={scheduler!r}: {reason}; wanted a dask Client or the address that `dask scheduler` "
            "prints, such as tcp://10.0.0.1:8786"
        ) from error
    with client:
        if not client.nthreads():
            logger.warning("%s has no workers yet: waiting for the first", client.scheduler.address)
        yield client


@contextmanager
def explained_failures() -> Iterator[None]:
    """Raise failures of the scheduler and its workers with a remedy; other errors pass unchanged."""
    try:
        yield
    except CancelledError as error:
        raise ConnectionError(
            "the dask scheduler stopped before the computation was complete: restart it and its workers and "
            "run this again"
        ) from error
    except Exception as error:
        if type(error).__name__ != "KilledWorker":  # of distributed, which may not be installed
            raise
        raise MemoryError(
            "workers were killed repeatedly by the same task, most likely for lack of memory; give them more, or "
            f"rechunk to fewer cells ({str(error).partition(chr(10))[0]})"
        ) from error


@contextmanager
def without_graph_warning() -> Iterator[None]:
    """Context without dask's advice to scatter large objects: scattered data are lost with the worker that has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        yield
