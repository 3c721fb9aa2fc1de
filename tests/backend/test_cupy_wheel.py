"""What the real CuPy makes of the engine, on a machine that may have no GPU: run where its wheel is installed.

pip install "cupy-cuda12x>=14.2,<15" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import array_api_compat
import dense
import numpy as np
import pytest

import lmm_gpu
from lmm_gpu.backend import arrays, cuda_kernels, fusion, linalg
from lmm_gpu.estimation import (
    block_elimination,
    chebyshev,
    cuda_scoring,
    fisher_scoring,
    likelihood,
    many_components,
    one_component,
)
from lmm_gpu.estimation.covariance_terms import pairs
from lmm_gpu.estimation.fisher_scoring import Evaluation, Rules, State, maximise
from lmm_gpu.estimation.mixed_model import MixedModel
from lmm_gpu.sumstats import cuda_sums
from lmm_gpu.sumstats.assembly import cross_products

WHEEL = 'pip install "cupy-cuda12x>=14.2,<15" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12'
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # a function that cannot be fused
pytest.importorskip("cupy", reason=f"needs CuPy, with or without a GPU: {WHEEL}")
import array_api_compat.cupy  # noqa: E402
import array_api_compat.numpy  # noqa: E402
import cupy_wheel as wheel  # noqa: E402

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="runs CuPy's kernels on the host: needs g++")
DESIGNS = ["one_nested", "two", "three_widest_inside"]
RULES = {"free": Rules(), "held": Rules(nonnegative=True), "relaxed": Rules(relaxed=True)}


class Of:
    """Array to be drawn: its shape, and what it holds."""

    def __init__(self, *shape: int, kind: str = "number"):
        self.shape, self.kind = shape, kind


VECTOR, FLAG, COUNT = Of(40), Of(40, kind="bool"), Of(40, kind="int")
ROWS, COLUMN, ROW, MATRIX, UNIT = Of(3, 40), Of(3, 1), Of(1, 40), Of(40, 3, 3), Of(1, 3, 3)
TALL, WIDE = Of(40, 3, 1), Of(40, 1, 3)


def vectors(k):
    return (VECTOR,) * k


def state_of(rows):
    scalars = dict.fromkeys(("length", "value", "slack", "yPy", "decrement"), VECTOR)
    counts = {"niter": COUNT, "refused": COUNT, "status": COUNT, "done": FLAG}
    return State(theta=vectors(rows), step=vectors(rows), **scalars, **counts)


def evaluation_of(rows, outside_table):
    information = (vectors(rows),) * rows
    return Evaluation(VECTOR, vectors(rows), information, VECTOR, VECTOR, FLAG, FLAG if outside_table else None)


def point_of(k):
    rows = {"g": vectors(k), "T": vectors(k), "B": (vectors(k),) * k, "E": vectors(k)}
    others = dict.fromkeys(("s_0", "unit", "rss", "between_ss", "between_error", "logdet"), VECTOR)
    return likelihood._Point(**rows, **others, ok=FLAG)


def cases():
    """Every function that the engine fuses: its options and its arguments."""
    for k in (1, 2, 3, 6):
        for name, rules in RULES.items():
            for outside in (False, True):
                arguments = (vectors(k + 1), evaluation_of(k + 1, outside), state_of(k + 1))
                yield f"step {k} {name} {outside}", fisher_scoring._step, rules, arguments
        yield f"trial {k} free", fisher_scoring._trial, False, (state_of(k + 1),)
        yield f"trial {k} held", fisher_scoring._trial, True, (state_of(k + 1),)
        yield f"compose {k}", likelihood._compose, None, (57.0, point_of(k))
        information = (VECTOR, 57.0, vectors(k), vectors(k), (vectors(k),) * k)
        yield f"information {k}", likelihood._information, None, information
        yield f"inverse {k}", linalg._inverse_rows, None, ((vectors(k),) * k,)
        between = (VECTOR, VECTOR, VECTOR, VECTOR, vectors(k), vectors(k))
        yield f"between {k}", many_components._between_ss, None, between
    yield "within", likelihood._within_ss, None, (VECTOR, VECTOR, VECTOR, 1e-14)
    yield "ratios", likelihood._ratios, None, (ROWS, ROW)
    yield "size", linalg._size_of_system, None, (VECTOR, VECTOR, VECTOR, 4.0)
    yield "below", linalg._below, None, (VECTOR, VECTOR)
    yield "positive", linalg._and_positive, None, (FLAG, VECTOR)
    yield "products", many_components._products, None, (ROWS, ROWS)
    yield "scale", many_components._positive_scale, None, (ROWS, COLUMN)
    yield "chebyshev", chebyshev._chebyshev, None, (Of(40, 1), Of(1, 5), 2.0, 0.5, 1.5)
    yield "covers", chebyshev._covers, None, (VECTOR, 2.0, 0.5, 9.0)
    yield "delta", block_elimination._inverse_or_one, None, (COLUMN, ROW)
    yield "grown", block_elimination._grown, None, (TALL, MATRIX, UNIT)
    yield "complement", block_elimination._complement, None, (UNIT, MATRIX, WIDE)
    yield "symmetric", block_elimination._symmetric, None, (MATRIX, MATRIX)
    yield "entries", block_elimination._entries, None, (MATRIX, MATRIX, MATRIX, TALL)
    yield "traces", block_elimination._trace_pair, None, (MATRIX, MATRIX, TALL, MATRIX, MATRIX)
    yield "roots", block_elimination._signed_roots, None, (Of(40, 3),)
    for sign in (1.0, -1.0):
        yield f"scaled {sign}", block_elimination._scaled, sign, (TALL, WIDE, MATRIX, UNIT)
        yield f"chosen {sign}", block_elimination._chosen, sign, (WIDE, MATRIX, MATRIX, MATRIX)
    yield "weights", one_component._weights, None, (COLUMN, ROW)
    yield "sums", one_component._sums, None, (COLUMN, ROW, ROWS)


CASES = {name: case for name, *case in cases()}


def drawn(arguments, seed=0):
    """Arrays of numbers of all kinds, in the structure of the arguments; numbers stay as they are."""
    rng = np.random.default_rng(seed)

    def one(spec):
        if isinstance(spec, float):
            return spec
        if spec.kind == "bool":
            return rng.random(spec.shape) < 0.5
        if spec.kind == "int":
            return rng.integers(0, 3, spec.shape)
        x = np.where(rng.random(spec.shape) < 0.5, rng.normal(size=spec.shape), np.exp(3 * rng.normal(size=spec.shape)))
        kinds = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-300, 1e300])
        return np.where(rng.random(spec.shape) < 0.02, rng.choice(kinds, spec.shape), x)

    specs, structure = fusion.flatten(arguments)
    return fusion.rebuild(structure, iter([one(spec) for spec in specs]))


def traced(name):
    body, options, arguments = CASES[name]
    values, structure = fusion.flatten(drawn(arguments))

    def function(*operands):
        result = body.__wrapped__(wheel.cupy, options, *fusion.rebuild(structure, iter(operands)))
        return tuple(fusion.flatten(result)[0])

    function.__name__ = body.__name__.strip("_")
    operands = [wheel.like(x) for x in values]
    return wheel.traced(function, *operands), operands


def fitted(name, method, rules, m=6):
    """Estimates, and what is asked of a model afterwards."""
    design = dense.DESIGNS[name]
    model = MixedModel.build(cross_products(design.X, design.Z, dense.draw_genes(design, m), d=design.d), method)
    found = maximise(model.likelihood, None, rules)
    asked = [found.theta, found.yPy, found.niter, found.status]
    asked += [model.coefficients(found.theta), model.covariance(found.theta)]
    return [*asked, model.likelihood.evaluate(found.theta).information]


@pytest.fixture
def kernels(monkeypatch):
    """The engine computes on NumPy, but what it fuses runs as the kernel that CuPy makes of it; these are listed."""
    xp = wheel.Namespace()
    monkeypatch.setattr(fusion, "namespace", lambda *_: xp)
    return xp.kernels


def test_nothing_imports_cupy():
    """Nor does a fit on NumPy, which runs whether there is a driver or not."""
    code = """
import sys
import numpy as np
from lmm_gpu.estimation.fit_options import FitOptions
from lmm_gpu.results.fitting import fit_summary
from lmm_gpu.sumstats.assembly import cross_products
rng = np.random.default_rng(0)
Z = np.repeat(np.eye(6), 10, axis=0)
Y = Z @ rng.normal(size=(6, 3)) + rng.normal(size=(60, 3))
summary = cross_products(np.ones((60, 1)), Z, Y, d=(6,))
fit = fit_summary(summary, FitOptions(device="cpu"))
assert np.isfinite(fit.estimates.theta).all()
assert "cupy" not in sys.modules
looked = fit_summary(summary, FitOptions())  # CuPy finds no device: fits on the CPU
np.testing.assert_allclose(looked.estimates.theta, fit.estimates.theta, rtol=1e-8)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cupy_arrays_are_recognised():
    """The namespace of CuPy's arrays, in which functions are fused, and their device."""
    x = wheel.empty((3,))
    xp = arrays.namespace(x, 1.0, None)
    assert (xp.__name__, xp.fuse, fusion._plain(xp)) == ("array_api_compat.cupy", wheel.cupy.fuse, wheel.cupy)
    assert not arrays.raises_for_bad_matrices(x) and not arrays.on_host(x) and arrays.threads_for(x) == 1
    assert wheel.cupy.cuda.Device(x.device) == x.device


def test_cupy_has_what_the_engine_calls():
    """All that stands behind `xp` and `namespace(x)` in the package."""
    xp = array_api_compat.cupy
    called = set()
    for path in Path(lmm_gpu.__file__).parent.rglob("*.py"):
        called |= set(re.findall(r"(?:\bxp|\bnamespace\([^()]*\))\.((?:linalg\.)?\w+)", path.read_text()))
    assert {"where", "linalg.eigh", "float64", "tensordot"} <= called
    missing = {name for name in called if not hasattr(xp.linalg if "." in name else xp, name.split(".")[-1])}
    assert missing <= {"Device"}  # of array-api-strict


@needs_compiler
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", DESIGNS)
def test_kernels_compute_what_numpy_computes(name, rules, method, request):
    expected = fitted(name, method, rules)
    kernels = request.getfixturevalue("kernels")
    for found, wanted in zip(fitted(name, method, rules), expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert {kernel.name for kernel, _ in kernels} >= {"ratios", "compose", "step"}


@needs_compiler
def test_tables_are_what_numpy_computes(request):
    design = dense.DESIGNS["two"]
    stats = cross_products(design.X, design.Z, dense.draw_genes(design, 4000), d=design.d)
    theta = dense.draw_theta(design, 4000, "positive")
    expected = MixedModel.build(stats).likelihood.attempt(theta)
    kernels = request.getfixturevalue("kernels")
    likelihood = MixedModel.build(stats).likelihood
    assert likelihood.trace_table is not None
    found = likelihood.attempt(theta)
    np.testing.assert_array_equal(found.outside_table, expected.outside_table)
    for name in ("value", "score", "information"):
        inside = ~found.outside_table
        np.testing.assert_allclose(getattr(found, name)[..., inside], getattr(expected, name)[..., inside], rtol=1e-8)
    assert {kernel.name for kernel, _ in kernels} >= {"chebyshev", "covers", "positive_scale"}


VIEWS = {
    "entry": lambda xp, x: x[1, 2, :],
    "first": lambda xp, x: x[:, None, :2, 0],
    "none": lambda xp, x: x[:, :0, :],
    "nothing": lambda xp, x: x[:, :, :0][:, 1:, :],
    "transposed": lambda xp, x: xp.matrix_transpose(x),
    "T": lambda xp, x: x[0, :, :].T,
    "diagonal": lambda xp, x: xp.linalg.diagonal(x[:, :, :4]),
    "permuted": lambda xp, x: xp.permute_dims(x, (2, 0, 1)),
    "moved": lambda xp, x: xp.moveaxis(x, 0, -1),
    "rows": lambda xp, x: xp.reshape(x, (3, -1)),
    "of nothing": lambda xp, x: xp.reshape(x[:0, :, :], (0, 20)),
    "broadcast": lambda xp, x: xp.broadcast_to(x[0, 0, :], (4, 5)),
    "broadcast once": lambda xp, x: xp.broadcast_to(x[0, :, :], (1, 4, 5)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_are_numpys(view):
    """Shapes and strides; what is broadcast is not taken for C order, so that CuPy's solve copies it before writing."""
    expected = view(array_api_compat.numpy, np.zeros((3, 4, 5)))
    found = view(array_api_compat.cupy, wheel.empty((3, 4, 5)))
    assert found.shape == expected.shape
    assert found.flags.c_contiguous == expected.flags.c_contiguous
    if expected.size:
        assert found.strides == expected.strides


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, lo, hi: (x * (lo + hi),),
        lambda x, lo, hi: (wheel.cupy.where(x > lo, 1.0, hi),),
        lambda x, lo, hi: ((x > lo) * 0.5,),
    ],
    ids=["sum", "where", "product"],
)
def test_a_number_that_meets_no_array_of_numbers_is_a_float16(wrong):
    """Why `cupy_like` refuses it in what is fused."""
    wrong.__name__ = "wrong"
    assert "float16" in wheel.traced(wrong, wheel.empty((3,)), 1.0, 3.0).operation


def test_every_fused_function_is_tried():
    modules = [importlib.import_module(module.name) for module in pkgutil.walk_packages(lmm_gpu.__path__, "lmm_gpu.")]
    fused = {
        value
        for module in modules
        for value in vars(module).values()
        if getattr(value, "__code__", None) is fusion.fused(lambda *_: ()).__code__
    }
    assert fused == {body for body, *_ in CASES.values()}


@pytest.mark.parametrize("name", CASES)
def test_a_fused_function_compiles(name):
    """In double precision: of numbers that meet no array CuPy makes a float16."""
    kernel, operands = traced(name)
    assert "float" not in kernel.operation
    assert len(wheel.compiled(wheel.source(kernel, *operands))) > 1000


#: Scoring kernels: the file, number of parameters, and options beside those that all have.
WRITTEN = [("one_component.cu", 1, ()), ("two_components.cu", 2, ())]
WRITTEN += [
    ("grouped_effects.cu", len(pairs(k)), (f"-DEFFECTS={k}", "-DFIXED=5", *cuda_scoring._pair_options(pairs(k))))
    for k in (1, 2, 3)
]


@pytest.mark.parametrize("capability", ["75", "80", "90"])
@pytest.mark.parametrize(("name", "components", "more"), WRITTEN)
def test_a_written_kernel_compiles_without_a_warning(name, components, more, capability):
    """For Turing, Ampere and Hopper, and keeps its numbers in registers, unless there are six parameters."""
    options = (*cuda_kernels._OPTIONS, *cuda_scoring._options(components), *more)
    log = wheel.compiler_log(cuda_scoring._source(name), options, capability)
    assert "warning" not in log
    assert " 0 bytes spill stores, 0 bytes spill loads" in log or components == 6


def test_every_written_kernel_is_tried():
    folder = Path(cuda_scoring.__file__).parent / "kernels"
    assert {path.name for path in folder.glob("*.cu")} == {name for name, *_ in WRITTEN}


@pytest.mark.parametrize("name", CASES)
def test_arguments_of_a_kernel_fit(name):
    """Up to six components: older CUDA has 4 KB for them, and more of them cost a warning there."""
    kernel, operands = traced(name)
    ndim = max(x.ndim for x in operands if not isinstance(x, float))
    assert wheel.parameter_bytes(kernel, ndim) <= wheel.PARAMETERS


@needs_compiler
@pytest.mark.parametrize("name", [name for name in CASES if "6 held" not in name])  # these take g++ half a minute
def test_a_kernel_computes_what_numpy_computes(name):
    """Of numbers of all kinds, NaN and the infinities too."""
    body, options, arguments = CASES[name]
    kernel, _ = traced(name)
    values = drawn(arguments)
    with np.errstate(all="ignore"):
        expected, _ = fusion.flatten(body(options, *values))
    found = wheel.on_the_host(kernel, *fusion.flatten(values)[0])
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(one, wanted, rtol=1e-12)


@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.parametrize(("kind", "value"), [("csr", "float32"), ("csc", "uint16"), ("dense", "bool")])
def test_the_sums_over_cells_compile_without_spilling(kind, value, capability):
    values = np.zeros(1, dtype=value)
    options = (*cuda_kernels._OPTIONS, *cuda_sums.options_of(kind, values, np.zeros(1, np.int32)))
    log = wheel.compiler_log(cuda_sums._source(), options, capability)
    assert all(name in log for name in ("largest", "group_sums", "fold"))
    assert log.count(" 0 bytes spill stores") == 3
