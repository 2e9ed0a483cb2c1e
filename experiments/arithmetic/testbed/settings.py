"""The settings: problems, worked reasoning, lengths, and the size of the initial model."""

from collections import Counter
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
    sft_micro_rows: int = 16  # at once, few enough for the caches of a CPU
    habits: Habits = Habits()
    work: Callable[[np.random.Generator, Problem], Problem] | None = None  # drops some steps
    longer: Callable[[np.random.Generator], Problem] | None = None  # of the shifted test
    longer_share: float = 0.0  # of supervised rows
    tried: bool = False  # its first test problems, now `trial`, were seen while rules were designed


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
        tried=True,
    ),
    "growing": Setting(
        parity.draw_problem,
        max_length=64,
        layers=2,
        sft_steps=1200,
        habits=_TERSE,
        work=parity.draw_worked,
        tried=True,
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
"""The default of the commands; *large* needs a GPU."""
SPLITS = {"train": 4000, "select": 512, "test": 512}
_QUOTA_DRAWS = 100_000  # after these, lengths that are too rare are replaced by any others
_MOST_DRAWS = 400_000
_TAIL = 8  # tokens from the end of thinking to the stop token, with some slack


def draw_reasoning(
    rng: np.random.Generator, setting: Setting, problem: Problem, verbosity: float | None = None
) -> list[Piece]:
    """Worked reasoning of a problem that fits into the setting's completions."""
    v = draw_verbosity(rng) if verbosity is None else verbosity
    shown = problem if setting.work is None else setting.work(rng, problem)
    pieces = weave(rng, shown, setting.habits, v)
    return fit(rng, pieces, setting.max_length - _TAIL)


def splits_of(setting: Setting) -> dict[str, int]:
    """The number of problems in each split, in the order in which they are drawn.

    `longer` is the shifted test. If a setting was tried, `trial` and `trial_longer` are its first
    test problems, by which nothing is judged any longer.
    """
    last = ["test", "longer"] if setting.longer else ["test"]
    first = ["trial", "trial_longer"][: len(last)] if setting.tried else []
    return {name: SPLITS.get(name, SPLITS["test"]) for name in ("train", "select", *first, *last)}


def problems_of(
    setting: Setting, split: str, seed: int = 0, practiced: Collection[str] = frozenset()
) -> dict[str, Problem]:
    """The problems of a split by their question; no question is in two splits.

    Args:
      practiced: questions of the supervised rows, which the last test splits of a tried setting
        exclude, because they are drawn after the rows. Few short questions remain then, so the
        lengths of the questions follow the selection split, as far as possible.

    Raises:
      ValueError: for an unknown split.
    """
    sizes = splits_of(setting)
    if split not in sizes:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(sizes)}")
    seen: set[str] = set()
    quota: Counter[int] = Counter()
    for number, (name, size) in enumerate(sizes.items(), 1):
        last = setting.tried and name in ("test", "longer")
        problems = _draw(
            np.random.default_rng([seed, number]),
            _draw_of(setting, name),
            size,
            seen | set(practiced) if last else seen,
            quota if last and name == "test" else None,
        )
        if name == split:
            return problems
        if name == "select":
            quota = Counter(map(len, problems))
        seen.update(problems)
    raise AssertionError("every split is in sizes")


def _draw(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator], Problem],
    size: int,
    exclude: Collection[str],
    quota: Counter[int] | None,
) -> dict[str, Problem]:
    """`size` problems that are not in `exclude`, with a quota for each length of a question."""
    found: dict[str, Problem] = {}
    drawn = 0
    while len(found) < size:
        problem = draw(rng)
        drawn += 1
        question = problem.question
        if question in exclude or question in found:
            continue
        if quota is not None and drawn < _QUOTA_DRAWS:
            if not quota[len(question)]:
                continue
            quota = quota - Counter([len(question)])
        found[question] = problem
    return found


def problems_by_question(
    setting: Setting, split: str, questions: Collection[str], seed: int = 0
) -> dict[str, Problem]:
    """The problems, with their steps, of a split whose questions are known from its data file.

    Raises:
      ValueError: for a question that is not drawn for this split.
    """
    number = list(splits_of(setting)).index(split) + 1
    rng = np.random.default_rng([seed, number])
    draw = _draw_of(setting, split)
    wanted, found = set(questions), {}
    for _ in range(_MOST_DRAWS):
        if len(found) == len(wanted):
            return found
        problem = draw(rng)
        if problem.question in wanted:
            found.setdefault(problem.question, problem)
    missing = sorted(wanted - set(found))
    raise ValueError(f"{missing[0]!r} is not a problem of the split {split!r}")


def _draw_of(setting: Setting, split: str) -> Callable[[np.random.Generator], Problem]:
    return setting.longer if split.endswith("longer") else setting.draw


def supervised_rows(
    setting: Setting, count: int, exclude: Collection[str], seed: int = 0
) -> Iterator[dict]:
    """Rows for `iapo_jax.sft`, with questions that are not in `exclude`."""
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
