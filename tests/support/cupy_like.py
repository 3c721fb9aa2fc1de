"""CuPy without a GPU: arrays with the behaviour of CuPy 14 where it differs from NumPy, computed by NumPy.

The differences, each shown in `test_cupy_like.py`: linear algebra that never raises and leaves garbage, a solve that
does not broadcast, indices that wrap around, creation on the current device whatever `device` says, no conversion
to NumPy but `.get()`, a host that waits where a value is read, and memory that can run out. Every operation is counted
with the calls into CUDA that CuPy 14 makes for it (`cupy_like_device.counting`): one for an elementwise operation, a
reduction or a copy, one *per part* for concat and stack, none for a view.

`xp` is the namespace that `array_api_compat.array_namespace` finds. It has only what the engine uses.
"""

from __future__ import annotations

import functools

import cupy_like_linalg as linear
import numpy as np
from cupy_like_array import Array, Number, host, new, on_current_device, transferred, view, wrap, xp
from cupy_like_device import Buffer, Device, current_device, fusing, one_kernel, synchronise

# --- elementwise: one kernel ----------------------------------------------------------------------

ELEMENTWISE = """
abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert bitwise_or bitwise_xor ceil copysign cos cosh
divide equal exp expm1 floor floor_divide greater greater_equal hypot isfinite isinf isnan less less_equal log log10
log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply negative nextafter
not_equal positive pow real reciprocal remainder round sin sinh signbit sqrt square subtract tan tanh trunc where
"""


def _elementwise(name: str):
    function = getattr(np, name)

    @functools.wraps(function)
    def wrapped(*operands):
        flags_only = not any(isinstance(x, Array) and x.dtype != bool for x in operands)
        if fusing() and flags_only and not all(isinstance(x, Array) for x in operands):
            raise TypeError("cupy.fuse computes numbers that meet no array of numbers in half precision")
        return new(name, lambda: function(*map(host, operands)), *operands)

    return wrapped


for _name in ELEMENTWISE.split():
    setattr(xp, _name, _elementwise(_name))

OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip
for _symbol, _name in OPERATORS.items():
    _function = getattr(xp, _name)
    for _class in (Array, Number):
        setattr(_class, f"__{_symbol}__", lambda a, b, f=_function: f(a, b))
        setattr(_class, f"__r{_symbol}__", lambda a, b, f=_function: f(b, a))
for _symbol, _name in {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}.items():
    _function = getattr(xp, _name)
    setattr(Array, f"__{_symbol}__", lambda a, f=_function: f(a))


# --- reductions: one kernel -----------------------------------------------------------------------


REDUCTIONS = ("sum", "prod", "mean", "min", "max", "all", "any", "count_nonzero", "argmax", "argmin", "std", "var")


def _reduction(name: str):
    function = getattr(np, name)

    def wrapped(x: Array, /, *, axis=None, keepdims: bool = False, **options):
        return new(name, lambda: np.asarray(function(x.values, axis=axis, keepdims=keepdims, **options), order="C"), x)

    return wrapped


for _name in REDUCTIONS:
    setattr(xp, _name, _reduction(_name))


# --- creation: on the current device, whatever `device` says ----------------------------------------


def _creation(name: str, launches: int = 1):
    def wrapped(*shape, dtype=None, device=None, **options):
        return new(name, lambda: getattr(np, name)(*map(host, shape), dtype=dtype, **options), launches=launches)

    return wrapped


def _creation_like(name: str):
    def wrapped(x: Array, /, *value, dtype=None, device=None):
        options = {"dtype": dtype or x.dtype}
        return new(f"{name}_like", lambda: getattr(np, name)(x.shape, *value, **options), device=current_device())

    return wrapped


for _name in ("zeros", "ones", "full", "arange", "linspace"):
    setattr(xp, _name, _creation(_name))
xp.empty = _creation("empty", launches=0)
xp.eye = _creation("eye", launches=2)  # zeros, and the diagonal
for _name in ("zeros", "ones", "full", "empty"):
    setattr(xp, f"{_name}_like", _creation_like(_name))


def asarray(obj, /, *, dtype=None, device=None, copy=None) -> Array:
    """Move to `device`; the only creation function that respects it. No copy if the array is there already."""
    device = current_device() if device is None else device
    if not isinstance(device, Device):
        raise ValueError(f"Unsupported device {device!r}")
    if not isinstance(obj, Array):
        return new("host to device", lambda: np.array(obj, dtype=dtype), device=device)
    if obj.device != device:
        obj = transferred(obj, device)
    dtype = obj.dtype if dtype is None else dtype
    return astype(obj, dtype, copy=bool(copy))


def astype(x: Array, dtype, /, *, copy: bool = True, device=None) -> Array:
    if not copy and x.dtype == dtype:
        return x
    return new("astype", lambda: x.values.astype(dtype), x)


xp.asarray, xp.astype, xp.isdtype = asarray, astype, lambda dtype, kind: np.isdtype(dtype, kind)


# --- shapes: views where memory allows them -------------------------------------------------------


def reshape(x: Array, /, shape, *, copy: bool | None = None) -> Array:
    values = x.values.reshape(shape)
    if np.shares_memory(values, x.values) or x.size == 0:
        return view(x, values)
    return new("copy", lambda: values, x)


def concat(arrays, /, *, axis: int | None = 0) -> Array:
    """One copy per part, up to eight; one kernel with a table of pointers beyond."""
    arrays = list(arrays)
    launches = len(arrays) if len(arrays) <= 8 else 2
    return new(
        "concat", lambda: np.asarray(np.concatenate([x.values for x in arrays], axis=axis), order="C"),
        *arrays, launches=launches,
    )  # fmt: skip


def stack(arrays, /, *, axis: int = 0) -> Array:
    return concat([view(x, np.expand_dims(x.values, axis)) for x in arrays], axis=axis)


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    length = x.size if axis is None else x.shape[axis]
    return new("take", lambda: np.take(x.values, wrap(host(indices), length), axis=axis), x, indices)


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    values = -x.values if descending else x.values
    return new("argsort", lambda: np.argsort(values, axis=axis, kind="stable"), x, launches=3)


def meshgrid(*arrays: Array, indexing: str = "xy") -> tuple[Array, ...]:
    grids = np.meshgrid(*[x.values for x in arrays], indexing=indexing)
    return tuple(new("meshgrid", lambda grid=grid: grid.copy(), x) for grid, x in zip(grids, arrays, strict=True))


def broadcast_to(x: Array, /, shape) -> Array:
    return view(x, np.broadcast_to(x.values, shape))


def broadcast_arrays(*arrays: Array) -> list[Array]:
    return [broadcast_to(x, np.broadcast_shapes(*[x.shape for x in arrays])) for x in arrays]


for _function in (reshape, concat, stack, take, argsort, meshgrid, broadcast_to, broadcast_arrays):
    setattr(xp, _function.__name__, _function)
xp.permute_dims = lambda x, axes: view(x, np.transpose(x.values, axes))
xp.moveaxis = lambda x, source, destination, /: view(x, np.moveaxis(x.values, source, destination))
xp.expand_dims = lambda x, /, *, axis=0: view(x, np.expand_dims(x.values, axis))
xp.squeeze = lambda x, /, axis: view(x, np.squeeze(x.values, axis))
xp.flip = lambda x, /, *, axis=None: view(x, np.flip(x.values, axis))
xp.matrix_transpose = lambda x, /: x.mT
xp.unstack = lambda x, /, *, axis=0: tuple(view(x, part) for part in np.moveaxis(x.values, axis, 0))


def _waiting(name: str, function, launches: int):
    # the shape of the result, or a masked write inside, has to come to the host
    def wrapped(x: Array, *bounds, **options):
        synchronise(name)
        return new(name, lambda: function(x.values, *map(host, bounds), **options), x, launches=launches)

    return wrapped


xp.nonzero = lambda x, /: (_waiting("nonzero", np.flatnonzero, 3)(x),)
xp.unique_values = _waiting("unique_values", np.unique, 5)
xp.repeat = _waiting("repeat", np.repeat, 3)
xp.clip = _waiting("clip", np.clip, 20)
xp.sign = _waiting("sign", np.sign, 5)


# --- linear algebra -------------------------------------------------------------------------------


def matmul(a: Array, b: Array, /) -> Array:
    result, launches, copied = linear.matmul(host(a), host(b))
    scratch = Buffer(copied, on_current_device([a, b]))
    flop = 2.0 * result.size * a.shape[-1]
    product = new("matmul", lambda: result, a, b, launches=launches, flop=flop)
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
xp.linalg.diagonal = lambda x, /, *, offset=0: view(x, np.diagonal(x.values, offset, -2, -1))
xp.linalg.trace = lambda x, /, *, offset=0: xp.sum(xp.linalg.diagonal(x, offset=offset), axis=-1)


def _factorisation(name: str, copies: int):
    # `copies` of the operands are device memory too while it runs
    function = getattr(linear, name)

    def wrapped(*operands: Array, **options):
        scratch = Buffer(copies * sum(x.nbytes for x in operands), on_current_device(list(operands)))
        result, launches = function(*map(host, operands), **options)
        flop = linear.flop(name, *[x.shape for x in operands])
        if isinstance(result, tuple):
            first = new(name, lambda: result[0], *operands, launches=launches, flop=flop)
            result = first, new(name, lambda: result[1], *operands, launches=0)
        else:
            result = new(name, lambda: result, *operands, launches=launches, flop=flop)
        del scratch
        return result

    return wrapped


for _name in ("cholesky", "solve", "inv", "eigh", "slogdet"):
    setattr(xp.linalg, _name, _factorisation(_name, copies=1 if _name != "cholesky" else 2))
xp.linalg.eigvalsh = lambda x, /: xp.linalg.eigh(x)[0]


def _matrix_by_matrix(name: str):
    def wrapped(x: Array, /, **options):
        if x.ndim > 2:
            raise AssertionError(f"{name} of a stack loops per matrix on CuPy: {x.shape}")
        parts = getattr(np.linalg, name)(x.values, **options)
        return tuple(new(name, lambda part=part: part, x, launches=3) for part in parts)

    return wrapped


xp.linalg.svd, xp.linalg.qr = _matrix_by_matrix("svd"), _matrix_by_matrix("qr")


# --- fusion ---------------------------------------------------------------------------------------


def fuse(function):
    """Fuse a function of arrays and numbers into one kernel: elementwise operations and reductions only."""
    allowed = {*ELEMENTWISE.split(), "astype", *REDUCTIONS}

    @functools.wraps(function)
    def fused(*operands):
        with one_kernel(allowed):
            results = function(*[x if isinstance(x, Array) else Number(x) for x in operands])
        several = results if isinstance(results, tuple) else (results,)
        made = [new("fuse", lambda one=one: one.values, *operands, launches=i == 0) for i, one in enumerate(several)]
        return tuple(made) if isinstance(results, tuple) else made[0]

    return fused


xp.fuse = fuse
