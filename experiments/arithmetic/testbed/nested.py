"""*easy*, *hard*, *shifted*, *large*: nested arithmetic, `(34-12)*3+(50-27)`, worked inside out.

Partial results bound the answer, so information about it arrives gradually. A product may be worked
in detail (`28*6=20*6+8*6=120+48=168`), which is longer and easier to get right, so a model that
drops those tokens loses accuracy.
"""

from typing import NamedTuple

import numpy as np

from iapo_jax.data.arithmetic import draw_below
from testbed.pieces import Problem, Step


class Level(NamedTuple):
    """How hard the problems are."""

    operations: tuple[int, ...]  # possible numbers of operations in a problem
    highest: int  # of every result; the lowest is 2
    largest: int  # of the numbers that are added and subtracted in a question
    products: tuple[int, int]  # least and largest number of products
    nested: float = 0.5  # chance of a right operand in parentheses
    detail: bool = False  # whether products are also worked in detail


EASY = Level((2, 3), 59, 29, (0, 1))
HARD = Level((2, 3), 499, 59, (1, 2), detail=True)
LONGER = HARD._replace(operations=(4,))
LARGE = EASY._replace(operations=(8, 9, 10), products=(0, 2), highest=99)

_LOWEST, _SMALLEST = 2, 11


class _Node(NamedTuple):
    value: int
    sign: str = ""  # "" at a leaf
    left: "_Node | None" = None
    right: "_Node | None" = None


def draw_problem(rng: np.random.Generator, level: Level) -> Problem:
    """A problem whose partial results and answer lie in 2..highest."""
    count = level.operations[draw_below(rng, len(level.operations))]
    low, high = level.products
    while True:
        tree = _draw(rng, level, count)
        if tree is not None and low <= _products(tree) <= high:
            return Problem(_write(tree), str(tree.value), tuple(_steps(tree, level)))


def _draw(rng: np.random.Generator, level: Level, operations: int) -> _Node | None:
    """A tree with this many operations; None if a result is out of range."""
    if not operations:
        return _leaf(rng, _SMALLEST, level.largest)
    sign = "+-*"[draw_below(rng, 3)]
    inside = int(operations > 1 and sign != "*" and rng.random() < level.nested)
    left = _draw(rng, level, operations - 1 - inside)
    if left is None:
        return None
    if inside:
        right = _draw(rng, level, inside)
    elif sign == "*":
        right = _leaf(rng, 2, min(9, level.highest // left.value))
    elif sign == "+":
        right = _leaf(rng, _SMALLEST, min(level.largest, level.highest - left.value))
    else:
        right = _leaf(rng, _SMALLEST, min(level.largest, left.value - _LOWEST))
    if right is None or (sign == "*" and left.value > 99):
        return None
    value = {
        "+": left.value + right.value,
        "-": left.value - right.value,
        "*": left.value * right.value,
    }[sign]
    return _Node(value, sign, left, right) if _LOWEST <= value <= level.highest else None


def _leaf(rng: np.random.Generator, low: int, high: int) -> _Node | None:
    return _Node(low + draw_below(rng, high - low + 1)) if low <= high else None


def _products(node: _Node) -> int:
    if not node.sign:
        return 0
    return (node.sign == "*") + _products(node.left) + _products(node.right)


def _write(node: _Node) -> str:
    if not node.sign:
        return str(node.value)
    left, right = _write(node.left), _write(node.right)
    if node.sign == "*" and node.left.sign in ("+", "-"):
        left = f"({left})"
    return f"{left}{node.sign}({right})" if node.right.sign else f"{left}{node.sign}{right}"


def _steps(tree: _Node, level: Level) -> list[Step]:
    steps = []
    while tree.sign:
        tree, done = _reduce(tree)
        a, b, sign, value = done.left.value, done.right.value, done.sign, done.value
        check = {"+": f"{b}+{a}={value}", "-": f"{value}+{b}={a}", "*": f"{b}*{a}={value}"}[sign]
        tens, ones = a // 10 * 10, a % 10
        long = ""
        if level.detail and sign == "*" and tens and ones:
            parts = f"{tens}*{b}+{ones}*{b}={tens * b}+{ones * b}"
            long = f"{a}*{b}={parts}={value}"
        left = _write(tree) if tree.sign else ""
        steps.append(Step(f"{a}{sign}{b}={value}", check, long, left))
    return steps


def _reduce(node: _Node) -> tuple[_Node, _Node]:
    """The tree with its leftmost innermost operation done, and that operation."""
    if node.left.sign:
        left, done = _reduce(node.left)
        return node._replace(left=left), done
    if node.right.sign:
        right, done = _reduce(node.right)
        return node._replace(right=right), done
    return _Node(node.value), node
