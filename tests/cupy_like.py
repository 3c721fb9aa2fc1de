"""CuPy without a GPU: arrays that behave as those of CuPy 14 do where it differs from NumPy, computed by NumPy.

The differences, each shown in `test_cupy_like.py`: linear algebra that never raises and leaves garbage, a solve that
does not broadcast, indices that wrap around, creation on the current device whatever `device` says, no conversion
to NumPy but `.get()`, a host that waits where a value is read, and memory that can run out. Every operation is counted
with the calls into CUDA that CuPy 14 makes for it (`cupy_like_device.counting`): one for an elementwise operation, a
reduction or a copy, one *per part* for concat and stack, none for a view.

`xp` is the namespace, and what `array_api_compat.array_namespace` finds. It has what the engine uses, not more.
"""

from __future__ import annotations

import functools
import operator
from types import ModuleType

import cupy_like_linalg as linear
import numpy as np
from cupy_like_device import Buffer, Device, current_device, record, synchronise

xp = ModuleType("cupy_like.xp")
xp.linalg = ModuleType("cupy_like.xp.linalg")
xp.finfo, xp.inf, xp.nan, xp.pi, xp.newaxis = np.finfo, np.inf, np.nan, np.pi, None
for _name in "bool float64 float32 int64 int32 uint8".split():
    setattr(xp, _name, np.dtype(_name))


class Array:
    """An array on a device. `values` are for this module; the engine sees what cupy.ndarray has."""

    __array_ufunc__ = None  # a NumPy operand leaves the operation to us, and we refuse it
    __hash__ = None

    def __init__(self, values: np.ndarray, buffer: Buffer):
        self.values, self.buffer = values, buffer

    def __array_namespace__(self, api_version: str | None = None) -> ModuleType:
        return xp  # cupy.ndarray has no such method: array_api_compat knows CuPy by name, and this class by it

    def to_device(self, device, stream=None):
        # likewise what array_api_compat.to_device does for CuPy
        return self.get() if device == "cpu" else _transferred(self, device)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` instead")

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: self.values.dtype)
    nbytes = property(lambda self: self.values.nbytes)
    device = property(lambda self: self.buffer.device)
    T = property(lambda self: _view(self, self.values.T))
    mT = property(lambda self: _view(self, np.swapaxes(self.values, -1, -2)))

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
        if not _has_arrays(key):
            key = key if isinstance(key, tuple) else (key,)
            return _view(self, self.values[key if Ellipsis in key else (*key, ...)])  # 0-d stays an array
        return _new("getitem", lambda: self.values[self._host_key(key)], self)

    def __setitem__(self, key, value) -> None:
        key = self._host_key(key) if _has_arrays(key) else key
        self.values[key] = _host(value)
        record("setitem", 1, 2 * _touched(self.values[key]))

    def _host_key(self, key):
        # masks have to be counted by the host; integers out of range wrap around
        keys, axis, plain = key if isinstance(key, tuple) else (key,), 0, []
        for one in keys:
            if isinstance(one, Array) and one.dtype == bool:
                synchronise("boolean mask")
                plain.append(one.values)
                axis += one.ndim
                continue
            plain.append(_wrapped(_host(one), self.shape[axis]) if isinstance(one, Array) else one)
            axis += one is not None
        return tuple(plain)


# --- from here to NumPy and back ------------------------------------------------------------------


def _host(x):
    if isinstance(x, (np.ndarray, np.generic)):
        raise TypeError(f"Unsupported type {type(x)}: NumPy values do not mix with arrays on a device")
    return x.values if isinstance(x, Array) else x


def _touched(values: np.ndarray) -> int:
    # bytes behind an operand: what is broadcast is read once
    return values.itemsize * int(np.prod([n for n, step in zip(values.shape, values.strides, strict=True) if step]))


def _on_one_device(arrays: list[Array]) -> Device:
    for x in arrays[1:]:
        if x.device != arrays[0].device:
            raise ValueError(f"arrays on different devices: {arrays[0].device} and {x.device}")
    return arrays[0].device


def _new(name: str, compute, *operands, launches: int = 1, device: Device | None = None) -> Array:
    """Array of what `compute()` returns: allocated, counted, and checked to be on the devices it should be."""
    arrays = [x for x in operands if isinstance(x, Array)]
    for x in operands:
        _host(x)  # refuses NumPy's
    if device is None:
        device = _on_one_device(arrays) if arrays else current_device()
    with np.errstate(all="ignore"):  # a device has no floating point warnings
        values = np.asarray(compute())
    if not values.flags.owndata:
        values = values.copy(order="K")
    record(name, launches, values.nbytes + sum(_touched(x.values) for x in arrays))
    return Array(values, Buffer(values.nbytes, device))


def _view(x: Array, values: np.ndarray) -> Array:
    return Array(values, x.buffer)


def _transferred(x: Array, device: Device) -> Array:
    return _new("device to device", lambda: x.values.copy(), x, device=device)


def _wrapped(index: np.ndarray, length: int) -> np.ndarray:
    return index % max(length, 1)


def _has_arrays(key) -> bool:
    keys = key if isinstance(key, tuple) else (key,)
    for one in keys:
        if isinstance(one, (np.ndarray, list)):
            raise TypeError("indices have to be on the device")
    return any(isinstance(one, Array) for one in keys)


# --- elementwise: one kernel ----------------------------------------------------------------------

ELEMENTWISE = """abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert bitwise_or bitwise_xor ceil
copysign cos cosh divide equal exp expm1 floor floor_divide greater greater_equal hypot isfinite isinf isnan less
less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply
negative nextafter not_equal positive pow real reciprocal remainder round sin sinh signbit sqrt square subtract tan
tanh trunc where""".split()


def _elementwise(name: str):
    function = getattr(np, name)

    @functools.wraps(function)
    def wrapped(*operands):
        return _new(name, lambda: function(*map(_host, operands)), *operands)

    return wrapped


for _name in ELEMENTWISE:
    setattr(xp, _name, _elementwise(_name))

OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip
for _symbol, _name in OPERATORS.items():
    _function = getattr(xp, _name)
    setattr(Array, f"__{_symbol}__", lambda a, b, f=_function: f(a, b))
    setattr(Array, f"__r{_symbol}__", lambda a, b, f=_function: f(b, a))
for _symbol, _name in {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}.items():
    setattr(Array, f"__{_symbol}__", lambda a, f=getattr(xp, _name): f(a))


# --- reductions: one kernel -----------------------------------------------------------------------


def _reduction(name: str):
    function = getattr(np, name)

    def wrapped(x: Array, /, *, axis=None, keepdims: bool = False, **options):
        return _new(name, lambda: np.asarray(function(x.values, axis=axis, keepdims=keepdims, **options), order="C"), x)

    return wrapped


for _name in "sum prod mean min max all any count_nonzero argmax argmin std var".split():
    setattr(xp, _name, _reduction(_name))


# --- creation: on the current device, whatever `device` says ----------------------------------------


def _creation(name: str, launches: int = 1):
    def wrapped(*shape, dtype=None, device=None, **options):
        return _new(name, lambda: getattr(np, name)(*map(_host, shape), dtype=dtype, **options), launches=launches)

    return wrapped


def _creation_like(name: str):
    def wrapped(x: Array, /, *value, dtype=None, device=None):
        options = {"dtype": dtype or x.dtype}
        return _new(f"{name}_like", lambda: getattr(np, name)(x.shape, *value, **options), device=current_device())

    return wrapped


for _name in "zeros ones full arange linspace".split():
    setattr(xp, _name, _creation(_name))
xp.empty = _creation("empty", launches=0)
xp.eye = _creation("eye", launches=2)  # zeros, and the diagonal
for _name in "zeros ones full empty".split():
    setattr(xp, f"{_name}_like", _creation_like(_name))


def asarray(obj, /, *, dtype=None, device=None, copy=None) -> Array:
    """To `device`, the one creation function that minds it; the same array if nothing has to be done."""
    device = current_device() if device is None else device
    if not isinstance(device, Device):
        raise ValueError(f"Unsupported device {device!r}")
    if not isinstance(obj, Array):
        return _new("host to device", lambda: np.array(obj, dtype=dtype), device=device)
    if obj.device != device:
        obj = _transferred(obj, device)
    dtype = obj.dtype if dtype is None else dtype
    return astype(obj, dtype, copy=bool(copy))


def astype(x: Array, dtype, /, *, copy: bool = True, device=None) -> Array:
    if not copy and x.dtype == dtype:
        return x
    return _new("astype", lambda: x.values.astype(dtype), x)


xp.asarray, xp.astype, xp.isdtype = asarray, astype, lambda dtype, kind: np.isdtype(dtype, kind)


# --- shapes: views where memory allows them -------------------------------------------------------


def reshape(x: Array, /, shape, *, copy: bool | None = None) -> Array:
    values = x.values.reshape(shape)
    if np.shares_memory(values, x.values) or x.size == 0:
        return _view(x, values)
    return _new("copy", lambda: values, x)


def concat(arrays, /, *, axis: int | None = 0) -> Array:
    """One copy per part, up to eight; one kernel with a table of pointers beyond."""
    arrays = list(arrays)
    launches = len(arrays) if len(arrays) <= 8 else 2
    return _new(
        "concat", lambda: np.asarray(np.concatenate([x.values for x in arrays], axis=axis), order="C"),
        *arrays, launches=launches,
    )  # fmt: skip


def stack(arrays, /, *, axis: int = 0) -> Array:
    return concat([_view(x, np.expand_dims(x.values, axis)) for x in arrays], axis=axis)


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    length = x.size if axis is None else x.shape[axis]
    return _new("take", lambda: np.take(x.values, _wrapped(_host(indices), length), axis=axis), x, indices)


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    values = -x.values if descending else x.values
    return _new("argsort", lambda: np.argsort(values, axis=axis, kind="stable"), x, launches=3)


def meshgrid(*arrays: Array, indexing: str = "xy") -> tuple[Array, ...]:
    grids = np.meshgrid(*[x.values for x in arrays], indexing=indexing)
    return tuple(_new("meshgrid", lambda grid=grid: grid.copy(), x) for grid, x in zip(grids, arrays, strict=True))


def broadcast_to(x: Array, /, shape) -> Array:
    return _view(x, np.broadcast_to(x.values, shape))


def broadcast_arrays(*arrays: Array) -> list[Array]:
    return [broadcast_to(x, np.broadcast_shapes(*[x.shape for x in arrays])) for x in arrays]


for _function in (reshape, concat, stack, take, argsort, meshgrid, broadcast_to, broadcast_arrays):
    setattr(xp, _function.__name__, _function)
xp.permute_dims = lambda x, axes: _view(x, np.transpose(x.values, axes))
xp.moveaxis = lambda x, source, destination, /: _view(x, np.moveaxis(x.values, source, destination))
xp.expand_dims = lambda x, /, *, axis=0: _view(x, np.expand_dims(x.values, axis))
xp.squeeze = lambda x, /, axis: _view(x, np.squeeze(x.values, axis))
xp.flip = lambda x, /, *, axis=None: _view(x, np.flip(x.values, axis))
xp.matrix_transpose = lambda x, /: x.mT
xp.unstack = lambda x, /, *, axis=0: tuple(_view(x, part) for part in np.moveaxis(x.values, axis, 0))


def _waiting(name: str, function, launches: int):
    # the shape of the result, or a masked write inside, has to come to the host
    def wrapped(x: Array, *bounds, **options):
        synchronise(name)
        return _new(name, lambda: function(x.values, *map(_host, bounds), **options), x, launches=launches)

    return wrapped


xp.nonzero = lambda x, /: (_waiting("nonzero", np.flatnonzero, 3)(x),)
xp.unique_values = _waiting("unique_values", np.unique, 5)
xp.repeat = _waiting("repeat", np.repeat, 3)
xp.clip = _waiting("clip", np.clip, 20)
xp.sign = _waiting("sign", np.sign, 5)


# --- linear algebra -------------------------------------------------------------------------------


def matmul(a: Array, b: Array, /) -> Array:
    result, launches, copied = linear.matmul(_host(a), _host(b))
    scratch = Buffer(copied, _on_one_device([a, b]))
    product = _new("matmul", lambda: result, a, b, launches=launches)
    del scratch
    return product


def tensordot(a: Array, b: Array, /, *, axes=2) -> Array:
    """One GEMM of what `axes` leaves, with a copy of each operand that is not a matrix in memory."""
    if isinstance(axes, int):
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    first, second = ([axis % x.ndim for axis in some] for x, some in zip((a, b), axes, strict=True))
    free_a, free_b = ([i for i in range(x.ndim) if i not in some] for x, some in ((a, first), (b, second)))
    size = int(np.prod([a.shape[i] for i in first]))
    left = reshape(xp.permute_dims(a, (*free_a, *first)), (int(np.prod([a.shape[i] for i in free_a])), size))
    right = reshape(xp.permute_dims(b, (*second, *free_b)), (size, int(np.prod([b.shape[i] for i in free_b]))))
    return reshape(matmul(left, right), (*[a.shape[i] for i in free_a], *[b.shape[i] for i in free_b]))


xp.matmul, xp.tensordot = matmul, tensordot
xp.linalg.matmul, xp.linalg.tensordot, xp.linalg.matrix_transpose = matmul, tensordot, xp.matrix_transpose
Array.__matmul__ = lambda a, b: matmul(a, b)
Array.__rmatmul__ = lambda a, b: matmul(b, a)
xp.linalg.diagonal = lambda x, /, *, offset=0: _view(x, np.diagonal(x.values, offset, -2, -1))
xp.linalg.trace = lambda x, /, *, offset=0: xp.sum(xp.linalg.diagonal(x, offset=offset), axis=-1)


def _factorisation(name: str, copies: int):
    # `copies` of the operands are device memory too while it runs
    function = getattr(linear, name)

    def wrapped(*operands: Array, **options):
        scratch = Buffer(copies * sum(x.nbytes for x in operands), _on_one_device(list(operands)))
        result, launches = function(*map(_host, operands), **options)
        if isinstance(result, tuple):
            first = _new(name, lambda: result[0], *operands, launches=launches)
            result = first, _new(name, lambda: result[1], *operands, launches=0)
        else:
            result = _new(name, lambda: result, *operands, launches=launches)
        del scratch
        return result

    return wrapped


for _name in "cholesky solve inv eigh slogdet".split():
    setattr(xp.linalg, _name, _factorisation(_name, copies=1 if _name != "cholesky" else 2))
xp.linalg.eigvalsh = lambda x, /: xp.linalg.eigh(x)[0]


def _matrix_by_matrix(name: str):
    def wrapped(x: Array, /, **options):
        if x.ndim > 2:
            raise AssertionError(f"{name} of a stack loops per matrix on CuPy: {x.shape}")
        parts = getattr(np.linalg, name)(x.values, **options)
        return tuple(_new(name, lambda part=part: part, x, launches=3) for part in parts)

    return wrapped


xp.linalg.svd, xp.linalg.qr = _matrix_by_matrix("svd"), _matrix_by_matrix("qr")
