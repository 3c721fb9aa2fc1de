"""The list of slow tests names tests that exist."""

from __future__ import annotations

import ast

import pytest
from paths import ROOT

LISTED = [
    line
    for line in (ROOT / "tests" / "slow_tests.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_test_exists(name):
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not function or function in functions


def test_slow_tests_are_marked(request):
    marked = {item.nodeid.partition("[")[0] for item in request.session.items if item.get_closest_marker("slow")}
    collected = {item.nodeid.partition("[")[0] for item in request.session.items}
    assert {name for name in LISTED if name in collected} <= marked
