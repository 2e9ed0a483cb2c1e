"""The settings: what a problem is, how it is worked, how long, and the size of the start model."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from testbed import chain, nested, parity
from testbed.pieces import (
    EARLY_SHARE,
    Habits,
    Piece,
    Problem,
    draw_verbosity,
    fit,
    supervised_row,
    weave,
)


class Setting(NamedTuple):
    """A task at one level of difficulty."""

    draw: Callable[[np.random.Generator], Problem]
    max_length: int  # T: tokens of a completion
    max_prompt: int = 32  # tokens
    layers: int = 3
    width: int = 96
    heads: tuple[int, int] = (4, 2)  # of queries, of keys
    dtype: str = "float32"
    sft_steps: int = 1600
    sft_rows: int = 64  # of one update
    sft_epochs: int = 1
    sft_learning_rate: float = 2e-3
    sft_micro_rows: int = 16  # at once: what stays in the caches of a CPU
    habits: Habits = Habits()
    work: Callable[[np.random.Generator, Problem], Problem] | None = None  # steps that are shown
    longer: Callable[[np.random.Generator], Problem] | None = None  # of the shifted test
    longer_share: float = 0.0  # of supervised rows


_MILD = Habits(
    restate=0.7,
    filler=(0.55, 0.2),
    recheck=0.5,
    left=0.25,
    wait=0.35,
    second=0.6,
    conclude=0.6,
)
_TERSE = Habits(restate=0.2, filler=(0.2, 0.0), recheck=0.15, wait=0.2, second=0.0, conclude=0.9)

SETTINGS: dict[str, Setting] = {
    "chain": Setting(chain.draw_problem, max_length=72, layers=2, sft_steps=1200, habits=_MILD),
    "easy": Setting(partial(nested.draw_problem, level=nested.EASY), max_length=96, sft_steps=2800),
    "hard": Setting(
        partial(nested.draw_problem, level=nested.HARD),
        max_length=104,
        longer=partial(nested.draw_problem, level=nested.LONGER),
        longer_share=0.1,
    ),
    "growing": Setting(
        parity.draw_problem,
        max_length=64,
        layers=2,
        sft_steps=1200,
        habits=_TERSE,
        work=parity.draw_worked,
    ),
    "large": Setting(
        partial(nested.draw_problem, level=nested.LARGE),
        max_length=384,
        max_prompt=64,
        layers=5,
        width=512,
        heads=(8, 2),
        dtype="bfloat16",
        sft_steps=1200,
        sft_rows=128,
        sft_epochs=2,
        sft_learning_rate=1e-3,
        sft_micro_rows=128,
    ),
}
SMALL = ("chain", "easy", "hard", "growing")
"""What the commands take where none is named; *large* wants a GPU."""
SPLITS = {"train": 4000, "select": 512, "test": 512}
_TAIL = 8  # tokens from the end of thinking to the stop token, and some room


def draw_reasoning(
    rng: np.random.Generator, setting: Setting, problem: Problem, verbosity: float | None = None
) -> list[Piece]:
    """Worked reasoning of a problem that fits into the setting's completions."""
    v = draw_verbosity(rng) if verbosity is None else verbosity
    shown = problem if setting.work is None else setting.work(rng, problem)
    pieces = weave(rng, shown, setting.habits, v)
    return fit(rng, pieces, setting.max_length - _TAIL)


def problems_of(setting: Setting, split: str, seed: int = 0) -> dict[str, Problem]:
    """The problems of a split by their question; `longer` is the shifted test.

    No question is in two splits.

    Raises:
      ValueError: for an unknown split.
    """
    sizes = SPLITS | ({"longer": SPLITS["test"]} if setting.longer else {})
    if split not in sizes:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(sizes)}")
    seen: set[str] = set()
    for number, (name, size) in enumerate(sizes.items()):
        draw = setting.longer if name == "longer" else setting.draw
        rng = np.random.default_rng([seed, 1 + number])
        found: dict[str, Problem] = {}
        while len(found) < size:
            problem = draw(rng)
            if problem.question not in seen:
                found.setdefault(problem.question, problem)
        if name == split:
            return found
        seen.update(found)
    raise AssertionError("every split is in sizes")


def supervised_rows(
    setting: Setting, count: int, exclude: Collection[str], seed: int = 0
) -> Iterator[dict]:
    """Rows for `iapo_jax.sft`, of questions that are not in `exclude`."""
    rng = np.random.default_rng([seed, 0])
    for _ in range(count):
        drawn = None
        while drawn is None:
            longer = setting.longer is not None and rng.random() < setting.longer_share
            problem = (setting.longer if longer else setting.draw)(rng)
            if problem.question in exclude:
                continue
            try:
                drawn = draw_reasoning(rng, setting, problem)
            except ValueError:  # its needed steps alone are too long
                continue
        yield supervised_row(rng, problem.question, problem.answer, drawn, EARLY_SHARE)
