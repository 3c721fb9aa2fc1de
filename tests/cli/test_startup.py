"""Start-up: commands import what they need when they run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Packages that take long to import, and parts of this one that need them.
HEAVY = {
    "numpy",
    "scipy",
    "pandas",
    "formulaic",
    "h5py",
    "anndata",
    "matplotlib",
    "jinja2",
    "dask",
    "distributed",
    "tqdm",
}


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after `code`."""
    shown = f"{code}\nimport sys; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, env=environment, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_library_imports_no_dependency_but_the_lazy_loader():
    assert imported_by("import lmm_gpu; dir(lmm_gpu)") & (HEAVY | {"typer", "rich"}) == set()


def test_using_a_name_imports_its_module():
    assert {"numpy", "pandas"} <= imported_by("import lmm_gpu; lmm_gpu.fit")


def test_a_fit_of_matrices_loads_no_library_but_numpy():
    code = """import sys, numpy as np, lmm_gpu
lmm_gpu.lmmfit(np.arange(24.0).reshape(2, 12) % 5, np.ones((12, 1)), np.repeat(np.eye(3), 4, axis=0))
assert not {"numpy.f2py", "numpy.testing", "array_api_compat.numpy"} & set(sys.modules)"""
    assert imported_by(code) & (HEAVY | {"psutil", "asyncio"}) == {"numpy"}


def test_a_fit_of_a_plain_formula_loads_pandas_and_no_other_library():
    code = """import sys, numpy as np, pandas as pd
obs = pd.DataFrame({"arm": np.repeat(["a", "b"], 30), "age": np.arange(60.0), "donor": np.repeat(list("uvwxyz"), 10)})
Y, libraries = np.random.default_rng(1).normal(size=(60, 1)), {name.partition(".")[0] for name in sys.modules}
import lmm_gpu
lmm_gpu.fit((Y, obs), "~ arm + age + (1 | donor)").coef
more = {name.partition(".")[0] for name in sys.modules} - libraries - set(sys.stdlib_module_names)
assert more <= {"lmm_gpu", "lazy_loader", "array_api_compat", "psutil"}, more
parts = {"inference.t_tests", "results.permutations", "estimation.dask_fits", "io.stores", "design.coding"}
parts |= {"estimation.grouped_effects", "estimation.many_components", "estimation.cuda_scoring", "io.zarr_files"}
assert not {f"lmm_gpu.{name}" for name in parts} & set(sys.modules)
assert not {"array_api_compat.numpy", "concurrent.futures.process"} & set(sys.modules)"""
    assert "pandas" in imported_by(code)


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["--version"], ["guide", "df"], ["fit"], ["nonsense"]]
)
def test_commands_without_work_import_no_array_library(words):
    pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')
    code = "from lmm_gpu.__main__ import main\nimport sys\n"
    code += f"sys.argv[1:] = {words!r}\ntry:\n    main()\nexcept SystemExit:\n    pass"
    assert imported_by(code) & HEAVY == set()


def test_dir_shows_the_public_names_only():
    import lmm_gpu

    assert set(dir(lmm_gpu)) == set(lmm_gpu.__all__)
