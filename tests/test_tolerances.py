"""Every tolerance is a named constant with its reason: none is hidden in a comparison, and none depends on units."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "lmm_gpu"
#: Packages that decide by numbers; in the others small numbers are lengths on paper.
DECIDING = ("backend", "bulk", "design", "estimation", "inference", "io", "results", "sumstats")
#: Numbers up to this are tolerances.
SMALL = 0.01


def with_reason(node: ast.stmt, lines: list[str]) -> bool:
    """True for the assignment of a constant below a comment `#: reason`, which other comment lines may continue."""
    at = node.lineno - 2
    while at >= 0 and lines[at].startswith("#") and not lines[at].startswith("#:"):
        at -= 1
    return isinstance(node, ast.Assign | ast.AnnAssign) and at >= 0 and lines[at].startswith("#:")


def documented(tree: ast.Module, lines: list[str]) -> Iterator[ast.AST]:
    """Constants with reasons, and defaults of options named `epsilon`, which users choose."""
    for node in tree.body:
        if with_reason(node, lines):
            yield from ast.walk(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "epsilon":
            yield from ast.walk(node)


def hidden_tolerances(source: str) -> list[str]:
    """Lines with small numbers outside of constants, and comparisons with NumPy's default (absolute) tolerance."""
    tree, lines = ast.parse(source), source.splitlines()
    known = set(map(id, documented(tree, lines)))
    found = set()
    for node in ast.walk(tree):
        hidden = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("isclose", "allclose")
        hidden = hidden and {keyword.arg for keyword in node.keywords} < {"rtol", "atol"}
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            hidden = 0 < node.value <= SMALL and id(node) not in known
        if hidden:
            found.add(node.lineno)
    return [f"{line}: {lines[line - 1].strip()}" for line in sorted(found)]


def modules() -> list[Path]:
    return sorted(path for package in DECIDING for path in (PACKAGE / package).glob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tolerances_are_constants_with_reasons(path):
    assert not hidden_tolerances(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return x < 1e-8\n",
        "LIMIT = 1e-8\n",
        "# not a reason\nLIMIT = 1e-8\n",
        "same = np.isclose(a, b)\n",
        "same = np.allclose(a, b, rtol=0.1)\n",
        "def f(x):\n    #: a reason\n    small = 1e-8\n    return x < small\n",
    ],
)
def test_a_hidden_tolerance_is_found(source):
    assert hidden_tolerances(source)


@pytest.mark.parametrize(
    "source",
    [
        "#: A share.\nLIMIT = 1e-8\n",
        "#: A share,\n# of all.\nA, B = 1e-8, 3\n",
        "np.isclose(a, b, rtol=0.1, atol=0.0)\n",
    ],
)
def test_a_tolerance_with_its_reason_is_not(source):
    assert not hidden_tolerances(source)
