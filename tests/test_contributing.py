"""Files and functions named in CONTRIBUTING.md exist."""

from __future__ import annotations

import importlib
import re

from paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_named_files_exist():
    named = set(re.findall(r"`([a-z_./]+(?:\.py|\.json|\.R|/))`", TEXT))
    places = (ROOT, ROOT / "lmm_gpu", ROOT / "lmm_gpu" / "estimation", ROOT / "tests" / "backend")
    missing = sorted(name for name in named if not any((place / name).exists() for place in places))
    assert len(named) > 40 and not missing


def test_functions_of_the_trace_exist():
    trace = TEXT.partition("traced to a p-value")[2].partition("##")[0]
    named = re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", trace)
    assert len(named) >= 5
    for name in named:
        package, module, *attributes = name.split(".")
        found = importlib.import_module(f"lmm_gpu.{package}.{module}")
        for attribute in attributes:
            found = getattr(found, attribute)
        assert callable(found)


def test_every_package_is_in_the_tower():
    tower = TEXT.partition("## Packages")[2].partition("The data flow")[0]
    packages = [path.parent.name for path in (ROOT / "lmm_gpu").glob("*/__init__.py")]
    assert packages and all(re.search(rf"^    {name}\b", tower, re.MULTILINE) for name in packages)
