"""Every message that the troubleshooting page quotes is a message of the source code."""

from __future__ import annotations

import ast
import re

import pytest
from paths import ROOT

from lmm_gpu.cli.guide import page

#: First cell of a row, if it is a message in backquotes.
ROW = re.compile(r"^\| (`.*?)\s\|\s", re.MULTILINE)
#: What stands for a value of the user's data: '...', 'x' in quotes, and the letters n and m.
VALUE = re.compile(r"\\\.\\\.\\\.|'x'|\b[nm]\b")


def quoted() -> list[str]:
    """Messages in the tables of the page."""
    return [one for row in ROW.findall(page("troubleshooting")) for one in re.findall(r"`([^`]+)`", row)]


@pytest.fixture(scope="module")
def messages() -> str:
    """All string literals of the package, one a line, with {} for values."""
    found = []
    for path in (ROOT / "lmm_gpu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(one.value if isinstance(one, ast.Constant) else "{}" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_page_quotes_messages():
    assert len(quoted()) > 20


@pytest.mark.parametrize("fragment", quoted())
def test_quoted_message_is_in_the_source(fragment, messages):
    pattern = VALUE.sub(r".*?", re.escape(fragment).replace(r"\ ", " "))
    assert re.search(pattern, messages), f"no message of lmm_gpu contains {fragment!r}"
