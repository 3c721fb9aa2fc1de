"""An import inside the package only points down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lmm_gpu

LAYERS = [
    {"stored", "matrix_market", "cell_query", "versions", "arrays"},
    {"formula", "readers", "threads"},
    {"linalg", "alignment", "design", "io", "simulation", "plan", "transform"},
    {"products", "grouping", "archive", "scoring", "contrasts", "pvalues", "root", "ratio_table", "devices", "canvas"},
    {"summary", "accumulator", "checkpoint", "likelihood", "spectra", "scheduler"},
    {"projection", "strata", "inputs", "gene_filter", "gene_blocks", "fit_file"},
    {"single_component", "multi_component"},
    {"model"},
    {"degrees_of_freedom", "generalized"},
    {"moderation", "advice"},
    {"inference", "f_tests", "variance_tests", "random_effects"},
    {"table", "estimates"},
    {"fit_tests", "fit_variances"},
    {"results"},
    {"fitting", "stream", "plots_tests", "plots_fit", "run_folder", "model_words"},
    {"worker", "report_parts"},
    {"distributed"},
    {"python_interface", "r_interface", "pl", "report_page"},
    {"tl"},
    {"__init__"},
    {"device_cases"},
    {"device_checks", "device_rates"},
    {"run", "system_info"},
    {"selftest", "console", "guide", "demo", "run_pictures"},
    {"cli_options"},
    {"cli_fit", "cli_show"},
    {"cli"},
    {"__main__"},
]
LAYER = {module: level for level, modules in enumerate(LAYERS) for module in modules}
FILES = {path.stem: path for path in Path(lmm_gpu.__file__).parent.glob("*.py")}


def imported_modules(source: str) -> set[str]:
    """Modules of the package that a module of it imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lmm_gpu"}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lmm_gpu"):
            module = (node.module or "").removeprefix("lmm_gpu").lstrip(".")
            found |= {module} if module else {name.name for name in node.names}
    names = {name.removeprefix("lmm_gpu").lstrip(".").split(".")[0] for name in found}
    return {name if name in FILES else "__init__" for name in names}  # the package itself, or a name out of it


def test_each_module_has_one_layer():
    assert set(LAYER) == set(FILES)
    assert sum(len(modules) for modules in LAYERS) == len(LAYER)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module):
    imported = imported_modules(FILES[module].read_text(encoding="utf-8"))
    up = {other for other in imported if LAYER[other] >= LAYER.get(module, -1)}
    assert not up, f"{module} (layer {LAYER.get(module)}) imports {[(other, LAYER[other]) for other in sorted(up)]}"


def test_imports_are_seen():
    """Each way to write one."""
    source = "\n".join(
        [
            "import numpy, lmm_gpu.plan",
            "from .arrays import namespace",
            "from lmm_gpu.linalg import eps",
            "from . import summary, __version__",
            "def late():",
            "    from .scoring import Status",
            "    import lmm_gpu",
        ]
    )
    assert imported_modules(source) == {"plan", "arrays", "linalg", "summary", "scoring", "__init__"}
