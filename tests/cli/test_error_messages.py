"""Errors of the library reach the shell in the words of the shell."""

from __future__ import annotations

import pytest

from lmm_gpu.cli.error_messages import in_options

FLAGS = {
    "layer": ("--layer",),
    "df": ("--df",),
    "size_factors": ("--size-factors",),
    "is_counts": ("--counts", "--no-counts"),
    "contrast": ("--contrast", "-c"),
    "cells": ("--cells",),
    "min_mean": ("--min-mean",),
}


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("df='kr' is not known", "--df 'kr' is not known"),
        ("use layer='counts', or layer=None", "use --layer 'counts', or --layer None"),
        ("choose one with contrast=, of a, b", "choose one with --contrast, of a, b"),
        ("contrast=['a', 'b']: wanted", "--contrast ['a', 'b']: wanted"),
        ("min_mean=-1.0: wanted 0 or more", "--min-mean -1.0: wanted 0 or more"),
        ("pass is_counts=False.", "pass --no-counts."),
        ("is_counts=True refuses them", "--counts refuses them"),
        ("checkpoint='x.h5' is for files", "--resume is for files"),
        ("leave out cells=, size_factors=", "leave out --cells, --size-factors"),
    ],
)
def test_parameters_become_options(python, shell):
    assert in_options(python, FLAGS) == shell


@pytest.mark.parametrize(
    "text",
    [
        "cannot parse 'bs(x, df=3)'",
        'got "cells=1" as the name of a column',
        "other=3 is not an option",
        "obs has no column 'a' (layer)",
        "the file's df is missing",
        "see --df=3",
    ],
)
def test_text_of_the_caller_stays(text):
    assert in_options(text, FLAGS) == text
