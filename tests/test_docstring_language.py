"""Summaries of docstrings are imperatives or noun phrases, not questions, and follow the house's English."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from paths import ROOT

FILES = sorted(path for folder in ("lmm_gpu", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
#: First words of summaries that are neither imperatives nor noun phrases.
QUESTION = re.compile(r"(What|Which|Whether|Where|Who|When|Why|How|If|Does|Is|Are)\b", re.IGNORECASE)
#: Words that this project used in a sense of its own.
ODD = re.compile(r"\b(by (their|its) looks|summed up|share their fate|TODO docstring)\b", re.IGNORECASE)


def docstrings(path: Path):
    """Docstrings of a module, its classes and its functions, with the lines where they are."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_summaries_are_no_questions(path):
    found = [f"{path.name}:{line}: {text.splitlines()[0]}" for line, text in docstrings(path) if QUESTION.match(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_standard(path):
    found = [f"{path.name}:{line}: {match[0]}" for line, text in docstrings(path) if (match := ODD.search(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("text", "is_question"), [("What it is.", True), ("Whatever.", False), ("Return it.", False)])
def test_questions_are_recognised(text, is_question):
    assert bool(QUESTION.match(text)) is is_question
