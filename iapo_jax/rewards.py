"""Reward functions on the host, in TRL's form. No JAX.

`fn(prompts=[...], completions=[...], answer=[...], **columns) -> list[float | None]`, one entry for
each completion; prompts and completions are plain strings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from iapo_jax import plugins
from iapo_jax.answers import are_correct
from iapo_jax.errors import UserError


class RewardError(UserError):
    """A reward function cannot be found, or returned what cannot be used as a reward."""


def whole_texts(prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Give back to each completion the `<think>` with which its prompt ended, if it did."""
    return [
        "<think>" + completion if prompt.rstrip().endswith("<think>") else completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def accuracy_reward(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns
) -> list[float]:
    """+1 for a right answer, -1 for a wrong or missing one (arXiv:2602.19049); `are_correct`.

    After a prompt that ends in `<think>`, a box in thinking that was never closed is no answer.
    """
    right = are_correct(whole_texts(prompts, completions), answer)
    return [1.0 if one else -1.0 for one in right]


def format_reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float]:
    """+0.5 for `<think>...</think>`, white space, `<answer>...</answer>`, else -0.5.

    White space may follow, nothing else; each of the four tags stands exactly once. A prompt that
    ends in `<think>` has opened the thinking, and the completion must not open it again. New lines
    are fine inside: the regex of the authors' code (arXiv:2602.19049) lacks DOTALL, so that each
    multi-line chain of thought costs 0.5 there, a pressure to one-line answers.
    """
    return [0.5 if _well_formed(text) else -0.5 for text in whole_texts(prompts, completions)]


def _well_formed(text: str) -> bool:
    # Counting, not a regex: two lazy groups backtrack quadratically over repeated tags.
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    rest = text.partition("</think>")[2].strip()
    return (
        all(text.count(tag) == 1 for tag in tags)
        and text.startswith("<think>")
        and rest.startswith("<answer>")
        and rest.endswith("</answer>")
    )


REWARDS: dict[str, Callable] = {"accuracy": accuracy_reward, "format": format_reward}


def load_reward(spec: str) -> Callable:
    """Find a reward function: `accuracy`, `format`, `path/to/file.py:name`, `package.module.name`.

    It is called as in TRL: `fn(prompts=, completions=, answer=, **columns) -> list[float | None]`,
    one entry per completion. RewardError if the file, the module or the name is missing, or if
    what it names is not callable.
    """
    if spec in REWARDS:
        return REWARDS[spec]
    if not plugins.names_a_place(spec):
        raise RewardError(
            f"Reward {spec!r} is none of {', '.join(REWARDS)}; expected one of these, "
            "'path/to/file.py:name' or 'package.module.name'."
        )
    function = plugins.load(spec, f"Reward {spec!r}", RewardError)
    if not callable(function):
        raise RewardError(
            f"Reward {spec!r} is a {type(function).__name__}; expected a function "
            "fn(prompts, completions, answer, **columns) -> list of floats."
        )
    return function


def combine_rewards(
    functions: Sequence[tuple[str, Callable]],
    weights: Sequence[float],
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    **columns,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weighted sum of reward functions: total_i = sum_f w_f r_fi.

    Returns the total and each function's own unweighted rewards by name, all [N] float32. None
    ("does not apply to this row") counts as 0, as in TRL. RewardError, naming the function, the
    row and what came back, if a function raises, returns another number of entries than N, or
    returns something that is not a finite number.
    """
    names = [name for name, _ in functions]
    weights = [float(weight) for weight in weights]
    if (
        len(set(names)) != len(weights)
        or len(names) != len(weights)
        or not all(map(math.isfinite, weights))
    ):
        raise RewardError(
            f"Expected distinct names and one finite weight for each: got {names} and {weights}."
        )
    rewards = {}
    for name, function in functions:
        try:
            values = function(prompts=prompts, completions=completions, answer=answer, **columns)
        except Exception as error:
            rows = f"rows 0 to {len(completions) - 1}"
            raise RewardError(f"Reward {name!r} raised {error!r} for {rows}.") from error
        rewards[name] = _as_rewards(name, values, len(completions))
    total = np.zeros(len(completions), np.float32)
    for name, weight in zip(names, weights, strict=True):
        total += np.float32(weight) * rewards[name]
    return total, rewards


def _as_rewards(name: str, values, rows: int) -> np.ndarray:
    listed = hasattr(values, "__len__") and not isinstance(values, (str, dict))
    found = f"{len(values)} entries" if listed else f"a {type(values).__name__}"
    if not listed or len(values) != rows:
        raise RewardError(
            f"Reward {name!r} returned {values!r:.200}, {found}; "
            f"expected a list of {rows} numbers, one for each completion."
        )
    rewards = np.zeros(rows, np.float32)
    for row, value in enumerate(values):
        number = _finite(value)
        if number is None:
            raise RewardError(
                f"Reward {name!r} returned {value!r:.200} for row {row}; expected a finite "
                "number, or None for 0."
            )
        rewards[row] = number
    return rewards


def _finite(value) -> float | None:
    """The value as a number that float32 can hold (None is 0); None if it is no such number."""
    if value is None:
        return 0.0
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= float(np.finfo(np.float32).max) else None
