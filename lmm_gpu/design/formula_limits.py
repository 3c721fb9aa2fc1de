"""Limits of formulas: length, depth, and the number of terms that operators expand to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formulaic.parser.types import ASTNode, Token

#: Limits of a formula: characters, parentheses within each other, and terms that its operators expand to.
LONGEST_FORMULA, DEEPEST_PARENTHESES, MOST_TERMS = 10_000, 50, 1_000
#: Products of terms that ``**`` may form while it expands.
_MOST_PRODUCTS = 20_000


def check_length(formula: str) -> None:
    """Refuse a formula that is too long or nests too many parentheses."""
    if len(formula) > LONGEST_FORMULA:
        raise ValueError(
            f"the formula has {len(formula):,} characters, and at most {LONGEST_FORMULA:,} are read: compute columns "
            "of obs first, and name them in a shorter formula"
        )
    depth = deepest = 0
    for character in formula:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST_PARENTHESES:
        raise ValueError(
            f"the formula nests {deepest:,} parentheses, and at most {DEEPEST_PARENTHESES} are read: write it without "
            "the redundant ones"
        )


def check_size(tree: ASTNode | Token | None, text: str) -> None:
    """Refuse operators that expand to too many terms, before formulaic expands them."""
    from formulaic.parser.types import ASTNode

    sizes: dict[int, int] = {}
    stack: list[tuple[ASTNode | Token | None, bool]] = [(tree, False)]
    while stack:
        node, ready = stack.pop()
        if not isinstance(node, ASTNode):
            continue
        arguments = tuple(node.args)
        if not ready:
            stack.append((node, True))
            stack.extend((argument, False) for argument in arguments)
            continue
        counts = [sizes.get(id(argument), 1) for argument in arguments]
        sizes[id(node)], work = _expanded(str(node.operator.symbol), counts, arguments)
        if sizes[id(node)] > MOST_TERMS or work > _MOST_PRODUCTS:
            raise ValueError(
                f"the formula {shortened(text)!r} expands to more than {MOST_TERMS:,} terms: name the interactions "
                "that the model needs"
            )


def _expanded(symbol: str, counts: list[int], arguments: tuple[object, ...]) -> tuple[int, int]:
    """Return the number of terms that an operator makes of its arguments at most, and of products that it forms."""
    if symbol in ("**", "^") and len(counts) == 2:
        power = str(arguments[1])
        degree = int(power) if power.isdecimal() and len(power) < 4 else _MOST_PRODUCTS
        if counts[0] > 1 and degree * math.log(counts[0]) > math.log(_MOST_PRODUCTS):
            return MOST_TERMS, _MOST_PRODUCTS + 1
        return min(counts[0] ** degree, sum(math.comb(counts[0], i + 1) for i in range(degree))), counts[0] ** degree
    total = sum(counts) or 1
    product = math.prod(counts)
    if symbol == "*":
        return total + product, product
    return (product if symbol == ":" else total), product if symbol in (":", "/") else total


def shortened(text: str) -> str:
    """Text of a formula for a message."""
    text = text.strip()
    return text if len(text) <= 300 else f"{text[:300]} ..."
