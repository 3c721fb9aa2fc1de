"""The real CuPy without a driver: trace what the engine fuses, compile it with NVRTC, run its loop body on the host.

`cupy.fuse` needs dtypes and shapes, not values: arrays over memory that is never read are enough for tracing. This uses
private parts of CuPy 14.2.
"""

from __future__ import annotations

import ctypes
import functools
import io
import math
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import cupy
import numpy as np
from cupy._core import _carray, _fusion_thread_local, _kernel, _scalar, core, fusion
from cupy.cuda import compiler, memory

#: Bytes that the arguments of a kernel may take; CUDA from 12.1 on allows 32,764 from Volta on.
PARAMETERS = 4096
#: Address of the arrays; it is never read.
_NOWHERE = 512


def empty(shape: tuple[int, ...], dtype="float64") -> cupy.ndarray:
    """A cupy.ndarray of this shape and dtype without memory behind it."""
    size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
    nowhere = memory.UnownedMemory(_NOWHERE, size, None, device_id=0)
    return cupy.ndarray(shape, dtype, memptr=memory.MemoryPointer(nowhere, 0))


def like(x):
    """Placeholder of a NumPy array or a number for tracing."""
    return empty(x.shape, x.dtype) if isinstance(x, np.ndarray) else x


def traced(function, *arrays) -> cupy.ElementwiseKernel:
    """Kernel that `cupy.fuse(function)` creates for `arrays`; raises for operations that cannot be fused."""
    history, thread = fusion._FusionHistory(), _fusion_thread_local.thread_local
    thread.history, thread.is_old_fusing = history, True
    try:
        kernel, options = history.get_fusion(function, arrays, function.__name__)
    finally:
        thread.history, thread.is_old_fusing = None, False
    assert not options  # no reduction
    return kernel


def source(kernel: cupy.ElementwiseKernel, *arrays) -> str:
    """CUDA source of `kernel` for `arrays`, among which there may be numbers."""
    types = tuple(x.dtype if isinstance(x, cupy.ndarray) else None for x in arrays)
    in_types, out_types, type_map = kernel._decide_params_type(types, ())
    ndim = max(x.ndim for x in arrays if isinstance(x, cupy.ndarray))
    infos = [
        _kernel._ArgInfo(1, cupy.ndarray, x.dtype, ndim, ndim == x.ndim == 1, True)
        if isinstance(x, cupy.ndarray)
        else _kernel._ArgInfo(3, _scalar.CScalar, np.dtype(dtype), 0, True, True)
        for x, dtype in zip(arrays, in_types, strict=True)
    ]
    infos += [_kernel._ArgInfo(1, cupy.ndarray, np.dtype(dtype), ndim, True, True) for dtype in out_types]
    infos.append(_kernel._ArgInfo(2, _carray.Indexer, None, ndim, True, True))
    return _kernel._get_elementwise_kernel_code(
        tuple(infos), type_map, kernel.params, kernel.operation, kernel.name, kernel.preamble, **kernel.kwargs
    )


def compiled(code: str, capability: str = "80") -> bytes:
    """Machine code of CUDA source, as CuPy compiles it; CompileException says what is wrong."""
    headers = "".join(f"#include <{name}>\n" for name in core._cupy_header_list)
    return _compiled(headers + code, core.assemble_cupy_compiler_options(()), capability)


def compiler_log(code: str, options: tuple[str, ...], capability: str) -> str:
    """Messages of the compiler for CUDA source that uses no headers of CuPy, with the resources that it takes."""
    log = io.StringIO()
    _compiled(code, (*options, "--ptxas-options=-v"), capability, log_stream=log)
    return log.getvalue()


def _compiled(code: str, options: tuple[str, ...], capability: str, **more: Any) -> bytes:
    original = compiler._get_arch_for_options_for_nvrtc
    compiler._get_arch_for_options_for_nvrtc = lambda arch=None: (f"-arch=sm_{capability}", "cubin")
    try:
        return compiler._compile_using_nvrtc_no_warning(code, options, cache_in_memory=True, **more)[0]
    finally:
        compiler._get_arch_for_options_for_nvrtc = original


def parameter_bytes(kernel: cupy.ElementwiseKernel, ndim: int = 1) -> int:
    """Bytes that the arguments of a launch take: pointer, size, shape and strides of every array, and the indexer."""
    return kernel.nargs * (16 + 16 * ndim) + 8 + 16 * ndim


# --- the same loop on the host ----------------------------------------------------------------------

_HOST = """
#include <algorithm>
#include <cmath>
using namespace std;
#define __device__ static
{preamble}
extern "C" void run(long size, void **arrays) {{
  for (long i = 0; i < size; i++) {{
    {parameters}
    {operation};
  }}
}}
"""


def _host_loop(kernel: cupy.ElementwiseKernel):
    # the loop that CuPy puts around its kernel's body
    preamble = kernel.preamble.replace('#include "cupy/float16.cuh"', "")
    parameters = [p for p in kernel.params if p.name != "_ind"]
    declared = "\n    ".join(f"{p.ctype} &{p.name} = (({p.ctype} *)arrays[{i}])[i];" for i, p in enumerate(parameters))
    return _built(_HOST.format(preamble=preamble, parameters=declared, operation=kernel.operation))


@functools.cache
def _built(code: str):
    # by g++, without contraction to fused multiply-adds: the same rounding as NumPy's
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder) / "loop.cpp", Path(folder) / "loop.so"
        file.write_text(code)
        options = ["-O1", "-ffp-contract=off", "-fPIC", "-shared"]
        subprocess.run(["g++", *options, str(file), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library)).run


def on_the_host(kernel: cupy.ElementwiseKernel, *arrays) -> tuple[np.ndarray, ...]:
    """Run `kernel` on NumPy arrays and numbers."""
    shape = np.broadcast_shapes(*[np.shape(x) for x in arrays])
    inputs = [
        np.ascontiguousarray(np.broadcast_to(np.asarray(x, dtype=p.dtype), shape))
        for x, p in zip(arrays, kernel.in_params, strict=True)
    ]
    outputs = [np.empty(shape, p.dtype) for p in kernel.out_params]
    addresses = [x.ctypes.data for x in (*inputs, *outputs)]
    _host_loop(kernel)(ctypes.c_long(math.prod(shape)), (ctypes.c_void_p * len(addresses))(*addresses))
    return tuple(outputs)


class Namespace(ModuleType):
    """NumPy namespace in which fused functions run as the kernels that CuPy creates, on the host.

    `kernels` lists them with the arrays they were created for.
    """

    def __init__(self):
        super().__init__("cupy")  # the engine passes CuPy's functions to fused functions
        self.kernels: list[tuple[cupy.ElementwiseKernel, list]] = []

    def __getattr__(self, name: str):
        return getattr(array_api_compat.numpy, name)

    def fuse(self, function):
        made: dict[tuple, cupy.ElementwiseKernel] = {}

        def call(*arrays):
            operands = [like(x) for x in arrays]
            key = tuple((x.dtype, x.ndim) if isinstance(x, cupy.ndarray) else type(x) for x in operands)
            if key not in made:
                made[key] = traced(function, *operands)
                self.kernels.append((made[key], operands))
            return on_the_host(made[key], *arrays)

        return call
