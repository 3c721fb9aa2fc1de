"""Help texts list the values that the library accepts."""

from __future__ import annotations

import pytest

pytest.importorskip("typer", reason='the command line needs: pip install ".[cli]"')

from lmm_gpu.cli import options
from lmm_gpu.cli.plot_kinds import KINDS
from lmm_gpu.inference import pvalues, satterthwaite


def test_values_in_help_texts_are_those_of_the_library():
    assert tuple(satterthwaite.DF_METHODS) == options.DF_METHODS
    assert tuple(pvalues.ALTERNATIVES) == options.ALTERNATIVES


def test_every_kind_of_plot_is_a_function():
    pytest.importorskip("matplotlib", reason='plots need: pip install ".[plots]"')
    from lmm_gpu import pl

    assert all(callable(getattr(pl, kind.replace("-", "_"))) for kind in KINDS)
