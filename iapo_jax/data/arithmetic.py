"""Generated problems of multi-step arithmetic: the dataset `arithmetic` of the catalogue.

A problem is three to five two-digit numbers joined by `+` and `-`, such that every partial result
has two digits as well. Pure functions; all randomness comes from the generator or the seed that is
passed in.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

LOW, HIGH = 10, 99  # the range of operands, partial results and answers
LENGTHS = (3, 4, 5)  # the possible counts of numbers in a problem
SPLITS = {"train": 4000, "select": 512, "test": 1024}  # rows of each


@dataclass(frozen=True)
class Problem:
    """`numbers[0] signs[0] numbers[1] signs[1] ...`, worked from the left."""

    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def partials(self) -> list[int]:
        """The running result, from the first number to the answer."""
        out = [self.numbers[0]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            out.append(out[-1] + number if sign == "+" else out[-1] - number)
        return out

    @property
    def question(self) -> str:
        pairs = zip(self.signs, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{sign}{number}" for sign, number in pairs)

    @property
    def answer(self) -> str:
        return str(self.partials[-1])

    @property
    def steps(self) -> list[str]:
        """`["12+34=46", "46-15=31", ...]`."""
        at = self.partials
        return [
            f"{at[i]}{sign}{self.numbers[i + 1]}={at[i + 1]}" for i, sign in enumerate(self.signs)
        ]

    @property
    def inverses(self) -> list[str]:
        """The steps read backwards: `["46-34=12", "31+15=46", ...]`."""
        at = self.partials
        undo = {"+": "-", "-": "+"}
        return [
            f"{at[i + 1]}{undo[sign]}{self.numbers[i + 1]}={at[i]}"
            for i, sign in enumerate(self.signs)
        ]


def draw_below(rng: np.random.Generator, n: int) -> int:
    """A uniform integer in 0..n-1 (several times faster than `rng.integers` for one draw)."""
    return int(rng.random() * n)


def draw_problem(rng: np.random.Generator) -> Problem:
    """A problem of 3, 4 or 5 numbers (equally likely) whose partial results stay in range."""
    at = LOW + draw_below(rng, HIGH - LOW + 1)
    numbers, signs = [at], []
    for _ in range(LENGTHS[draw_below(rng, len(LENGTHS))] - 1):
        operands = {"+": HIGH - at - LOW + 1, "-": at - 2 * LOW + 1}  # the number of possible ones
        possible = [sign for sign in "+-" if operands[sign] > 0]
        sign = possible[draw_below(rng, len(possible))]
        number = LOW + draw_below(rng, operands[sign])
        at = at + number if sign == "+" else at - number
        numbers.append(number)
        signs.append(sign)
    return Problem(tuple(numbers), tuple(signs))


def problem_rows(
    seed: int | Sequence[int], n: int, exclude: Collection[str] = frozenset()
) -> list[dict[str, str]]:
    """`n` rows `{"question", "answer"}` with distinct questions, none of them in `exclude`."""
    rng = np.random.default_rng(seed)
    rows: dict[str, str] = {}
    while len(rows) < n:
        problem = draw_problem(rng)
        if problem.question not in exclude:
            rows.setdefault(problem.question, problem.answer)
    return [{"question": question, "answer": answer} for question, answer in rows.items()]


def make_splits(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The splits train, select and test, which share no question."""
    return {name: [dict(row) for row in rows] for name, rows in _splits(seed).items()}


@functools.cache  # a run loads several splits
def _splits(seed: int) -> dict[str, list[dict[str, str]]]:
    seen: set[str] = set()
    splits = {}
    for i, (name, n) in enumerate(SPLITS.items()):
        splits[name] = problem_rows([seed, 1 + i], n, seen)
        seen.update(row["question"] for row in splits[name])
    return splits
