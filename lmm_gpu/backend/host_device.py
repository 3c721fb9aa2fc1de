"""The interface of a device, which is that of the host; and devices of arrays that the caller passes in."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat

from .arrays import Array, entered, like, namespace, on_host, to_numpy
from .memory import default_memory


class Device:
    """The host; other devices differ in what they override."""

    name = "cpu"
    reads_ahead = False  #: copies run beside computations
    threaded = True  #: several blocks are computed at once, on threads

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    def put(self, x: Any) -> Array:
        """`x` as an array on this device, in its own dtype."""
        return to_numpy(x)

    def entered(self) -> AbstractContextManager[Any]:
        """Context in which this device is the current one of the thread."""
        return nullcontext()

    def begin(self) -> Any:
        """Return a mark of the work that the caller's thread has asked for so far."""
        return None

    def copying(self, after: Any = None) -> AbstractContextManager[Any]:
        """Context in which `put` copies beside computations, once the work of the mark `after` is done."""
        return nullcontext()

    def reader(self) -> ThreadPoolExecutor:
        """Thread that copies blocks ahead, on devices that do."""
        raise NotImplementedError(f"{self.name} does not read ahead")

    def mark(self) -> Any:
        """Return a mark of the copies so far, to `wait` for."""
        return None

    def wait(self, mark: Any) -> None:
        """Let computations of the thread on this device begin once a mark is reached; the host does not wait."""

    def free_bytes(self) -> int:
        """Bytes that blocks may take."""
        return default_memory()

    def release(self) -> None:
        """Give unused memory back, after it ran out."""
        gc.collect()

    def out_of_memory(self, error: BaseException) -> bool:
        """Return whether an error means that memory ran out."""
        return isinstance(error, MemoryError)

    def synchronise(self) -> None:
        """Wait until all work on this device is done."""

    def own_stream(self) -> AbstractContextManager[Any]:
        """Context in which the thread's work runs beside that of other threads."""
        return nullcontext()


class Given(Device):
    """The device of an array of another library: PyTorch, JAX, array-api-strict, CuPy."""

    threaded = False  # threads of many small operations wait for each other

    def __init__(self, reference: Array):
        self.reference = namespace(reference).reshape(reference, (-1,))[:0]
        library = namespace(reference).__name__.rsplit(".", 1)[-1]
        self.name = f"{library}:{array_api_compat.device(reference)}"

    def put(self, x: Any) -> Array:
        """`x` on the device of the caller's arrays."""
        xp = namespace(self.reference)
        return like(x, self.reference, dtype=xp.float64 if on_host(x) else x.dtype)

    def entered(self) -> AbstractContextManager[Any]:
        """Context in which this device is the current one of the thread."""
        return entered(self.reference)

    def out_of_memory(self, error: BaseException) -> bool:
        """Return whether an error means that memory ran out."""
        return isinstance(error, MemoryError) or "out of memory" in str(error)
