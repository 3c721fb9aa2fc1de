"""Bytes, blocks and budgets: strings of memory, ranges without gaps, refusals with the numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_gpu.backend.blocks import blocks, even_blocks
from lmm_gpu.backend.memory import default_memory, parse_memory
from lmm_gpu.backend.threads import workers
from lmm_gpu.estimation.block_size import MOST_GENES, Shape, genes_per_block


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        (1, 1),
        (1000, 1000),
        (2.5e9, 2_500_000_000),
        (1e22, 10**22),
        (np.int64(512), 512),
        ("64", 64),
        ("64B", 64),
        ("2KB", 2_000),
        ("2GB", 2 * 10**9),
        ("2gb", 2 * 10**9),
        ("2 G", 2 * 10**9),
        (" 1.5 GiB ", 3 * 2**29),
        ("512MiB", 2**29),
        ("512mi", 2**29),
        ("0.25TB", 250 * 10**9),
        ("1e3 KB", 10**6),
        ("1TiB", 2**40),
    ],
)
def test_amounts_of_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "lots", "2 parsecs", "GB", "-1", -5, 0, "0GB", "1..5GB", "1e400", "inf", "nan", "2IB", True, "2,5GB", []],
)
def test_invalid_amounts_of_memory(text):
    with pytest.raises(ValueError, match=rf"memory={re.escape(repr(text))} is not an amount.*such as '2GB'"):
        parse_memory(text)


@given(st.integers(0, 200), st.integers(1, 60))
def test_blocks_follow_each_other(m, size):
    found = list(blocks(m, size))
    assert [gene for lo, hi in found for gene in range(lo, hi)] == list(range(m))
    assert all(hi - lo == size for lo, hi in found[:-1])
    assert all(0 < hi - lo <= size for lo, hi in found)


SHAPES = st.builds(Shape, st.integers(1, 30), st.lists(st.integers(1, 300), min_size=1, max_size=4).map(tuple))


@given(SHAPES, st.integers(1, 10**9))
def test_a_block_fits_its_budget(shape, memory):
    need = shape.bytes_per_gene()
    if need > memory:
        numbers = re.escape(f"needs {need:,} bytes, memory allows {memory:,}; raise memory to {need:,} or more")
        with pytest.raises(MemoryError, match=numbers):
            genes_per_block(shape, memory)
        assert genes_per_block(shape, need) == 1
    else:
        size = genes_per_block(shape, memory)
        assert size >= 1 and size * need <= memory
        assert (size + 1) * need > memory or size == MOST_GENES


@given(SHAPES)
def test_without_a_budget_every_model_has_a_block(shape):
    assert 1 <= genes_per_block(shape, None) <= MOST_GENES


@given(SHAPES)
def test_a_larger_model_needs_more(shape):
    wider = Shape(shape.p + 1, shape.d)
    deeper = Shape(shape.p, (*shape.d[:-1], shape.d[-1] + 1))
    assert shape.bytes_per_gene() < min(wider.bytes_per_gene(), deeper.bytes_per_gene())
    assert shape.bytes_per_gene() >= 8 * (sum(shape.d) + shape.p)  # its random and fixed effects at the least


def test_this_machine():
    assert workers() >= 1
    assert default_memory() > 0


@given(st.integers(0, 5000), st.integers(1, 700), st.integers(1, 9))
def test_even_blocks(m, size, threads):
    """They cover all genes once, none is above the size, and all but the last are equal."""
    ranges = list(even_blocks(m, size, threads))
    assert [gene for lo, hi in ranges for gene in range(lo, hi)] == list(range(m))
    lengths = [hi - lo for lo, hi in ranges]
    assert not lengths or max(lengths) <= size
    assert len(set(lengths[:-1])) <= 1


def test_even_blocks_leave_no_thread_idle():
    assert len(list(even_blocks(11_596, 2048, 4))) == 8  # six would do, and leave two threads waiting
    assert len(list(even_blocks(1000, 2048, 4))) == 1
