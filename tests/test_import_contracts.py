"""Imports between packages and modules point down, as the contracts in pyproject.toml say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import ROOT

pytest.importorskip("importlinter", reason="it reads imports: pip install '.[test]'")


def test_contracts_are_kept():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    ran = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
