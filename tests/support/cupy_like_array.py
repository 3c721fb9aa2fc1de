"""Array of `cupy_like`: values in the memory of a simulated device, copied to the host only on request."""

from __future__ import annotations

import operator
from types import ModuleType

import numpy as np
from cupy_like_device import Buffer, Device, current_device, record, synchronise

xp = ModuleType("cupy_like.xp")
xp.linalg = ModuleType("cupy_like.xp.linalg")
xp.finfo, xp.inf, xp.nan, xp.pi, xp.newaxis = np.finfo, np.inf, np.nan, np.pi, None
for _name in ("bool", "float64", "float32", "int64", "int32", "uint8"):
    setattr(xp, _name, np.dtype(_name))


class Array:
    """An array on a device. `values` are for this module; the engine sees what cupy.ndarray has."""

    __array_ufunc__ = None  # NumPy operands defer to this class, which refuses them
    __hash__ = None

    def __init__(self, values: np.ndarray, buffer: Buffer):
        self.values, self.buffer = values, buffer

    def __array_namespace__(self, api_version: str | None = None) -> ModuleType:
        return xp  # cupy.ndarray has no such method: array_api_compat knows CuPy by name, and this class by it

    def to_device(self, device, stream=None):
        # likewise what array_api_compat.to_device does for CuPy
        return self.get() if device == "cpu" else transferred(self, device)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` instead")

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: self.values.dtype)
    nbytes = property(lambda self: self.values.nbytes)
    device = property(lambda self: self.buffer.device)
    T = property(lambda self: view(self, self.values.T))
    mT = property(lambda self: view(self, np.swapaxes(self.values, -1, -2)))

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"<cupy_like.Array {self.shape} {self.dtype} on {self.device}>"  # CuPy's reads the values

    def __iter__(self):
        raise AssertionError("iteration over a device array: one launch and one synchronisation per element")

    # --- to the host: every one of these waits for the device

    def get(self) -> np.ndarray:
        synchronise("get")
        return self.values.copy()

    def item(self):
        synchronise("item")
        return self.values.item()

    def tolist(self):
        synchronise("tolist")
        return self.values.tolist()

    def __bool__(self) -> bool:
        synchronise("bool")
        return bool(self.values)

    def __float__(self) -> float:
        synchronise("float")
        return float(self.values)

    def __int__(self) -> int:
        synchronise("int")
        return int(self.values)

    def __index__(self) -> int:
        synchronise("index")
        return operator.index(self.values[()])

    # --- indexing

    def __getitem__(self, key):
        if not has_arrays(key):
            key = key if isinstance(key, tuple) else (key,)
            return view(self, self.values[key if Ellipsis in key else (*key, ...)])  # 0-d stays an array
        return new("getitem", lambda: self.values[self._host_key(key)], self)

    def __setitem__(self, key, value) -> None:
        key = self._host_key(key) if has_arrays(key) else key
        self.values[key] = host(value)
        record("setitem", 1, 2 * touched(self.values[key]))

    def _host_key(self, key):
        # masks have to be counted by the host; integers out of range wrap around
        keys, axis, plain = key if isinstance(key, tuple) else (key,), 0, []
        for one in keys:
            if isinstance(one, Array) and one.dtype == bool:
                synchronise("boolean mask")
                plain.append(one.values)
                axis += one.ndim
                continue
            plain.append(wrap(host(one), self.shape[axis]) if isinstance(one, Array) else one)
            axis += one is not None
        return tuple(plain)


class Number:
    """A number passed to a fused function; it takes the dtype of the array that it is combined with."""

    __hash__ = None

    def __init__(self, value):
        self.value = value


# --- from here to NumPy and back ------------------------------------------------------------------


def host(x):
    if isinstance(x, (np.ndarray, np.generic)):
        raise TypeError(f"Unsupported type {type(x)}: NumPy values do not mix with arrays on a device")
    if isinstance(x, Number):
        return x.value
    return x.values if isinstance(x, Array) else x


def touched(values: np.ndarray) -> int:
    # bytes behind an operand: what is broadcast is read once
    return values.itemsize * int(np.prod([n for n, step in zip(values.shape, values.strides, strict=True) if step]))


def on_current_device(arrays: list[Array]) -> Device:
    # results are allocated on the current device: CuPy computes with arrays of another one by peer access, if it can
    for x in arrays:
        if x.device != current_device():
            raise ValueError(f"array on {x.device} while {current_device()} is current: enter the array's device first")
    return current_device()


def new(name: str, compute, *operands, launches: int = 1, device: Device | None = None, flop: float = 0.0) -> Array:
    """Wrap the result of `compute()`: allocated, counted, and checked for its device."""
    arrays = [x for x in operands if isinstance(x, Array)]
    for x in operands:
        host(x)  # refuses NumPy's
    if device is None:
        device = on_current_device(arrays)
    with np.errstate(all="ignore"):  # a device has no floating point warnings
        values = np.asarray(compute())
    if not values.flags.owndata:
        values = values.copy(order="K")
    record(name, launches, values.nbytes + sum(touched(x.values) for x in arrays), flop)
    return Array(values, Buffer(values.nbytes, device))


def view(x: Array, values: np.ndarray) -> Array:
    record("view", 0, 0)
    return Array(values, x.buffer)


def transferred(x: Array, device: Device) -> Array:
    return new("device to device", lambda: x.values.copy(), x, device=device)


def wrap(index: np.ndarray, length: int) -> np.ndarray:
    return index % max(length, 1)


def has_arrays(key) -> bool:
    keys = key if isinstance(key, tuple) else (key,)
    for one in keys:
        if isinstance(one, (np.ndarray, list)):
            raise TypeError("indices have to be on the device")
    return any(isinstance(one, Array) for one in keys)
