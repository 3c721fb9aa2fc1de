"""Labels of two sides: where each name stands, and which names do not tell what is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_gpu.sumstats.alignment import check_same, check_unique, difference, gene_order, join_levels

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=8)


@given(NAMES.flatmap(lambda names: st.tuples(st.just(names), st.permutations(names))))
def test_genes_in_another_order(both):
    left, right = map(tuple, both)
    order = gene_order(left, right)
    assert (order is None) == (left == right)
    assert tuple(right[i] for i in order or range(len(right))) == left


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (("a", "b"), ("a", "c"), "only on the left: b; only on the right: c"),
        (("a", "a", "b"), ("b", "a"), "3 on the left, 2 on the right"),
        (("b", "a"), ("a", "a", "b"), "2 on the left, 3 on the right"),
        (("a", "a", "b"), ("b", "a", "a"), "in another order, from a / b on"),
        (tuple("abcdef"), ("f",), "only on the left: a, b, c and 2 more"),
    ],
)
def test_genes_that_do_not_align(left, right, message):
    with pytest.raises(
        ValueError, match=f"^features differ: {message}; keep the genes that both sides have, once each$"
    ):
        gene_order(left, right)


def test_the_same_genes_need_no_unique_names():
    assert gene_order(("a", "a"), ("a", "a")) is None


@given(NAMES, NAMES, NAMES, NAMES)
def test_joined_levels(donors, batches, other_donors, other_batches):
    """Each level of each side once, the left's first, wherever it came from; components do not mix."""
    left, right = donors + batches, other_donors + other_batches
    found = join_levels(left, (len(donors), len(batches)), right, (len(other_donors), len(other_batches)))
    for ours, theirs, lo, width in (
        (donors, other_donors, 0, found.d[0]),
        (batches, other_batches, found.d[0], found.d[1]),
    ):
        names = list(found.names[lo : lo + width])
        assert names == ours + [name for name in theirs if name not in ours]
    for rows, names in ((found.left, left), (found.right, right)):
        assert sorted(row for row in rows if row >= 0) == list(range(len(names)))
        assert all(row < 0 or names[row] == name for row, name in zip(rows, found.names, strict=True))
    assert all(row >= 0 for row in map(max, found.left, found.right))


def test_a_level_twice_in_a_component():
    with pytest.raises(ValueError, match=r"some appear more than once \(A\): make them unique"):
        join_levels(("A", "A", "B"), (3,), ("B",), (1,))
    assert join_levels(("A", "A"), (1, 1), ("A", "B"), (1, 1)).names == ("A", "A", "B")


def test_check_unique():
    check_unique("features", ["a", "b"])
    with pytest.raises(ValueError, match="features appear more than once: a, c; rename them, or keep one of each"):
        check_unique("features", list("abcacc"))


def test_check_same():
    check_same("formula", "~ x", "~ x")
    with pytest.raises(ValueError, match=r"^formula differ: '~ x' on the left, None on the right$"):
        check_same("formula", "~ x", None)
    with pytest.raises(ValueError, match=r"^fixed_names differ: only on the right: c$"):
        check_same("fixed_names", ("a",), ("a", "c"))


def test_difference_names_a_few():
    assert difference("abcdefg", "") == "only on the left: a, b, c and 4 more"
