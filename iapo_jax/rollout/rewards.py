"""Reward functions on the host, in TRL's form. No JAX.

`fn(prompts=[...], completions=[...], answer=[...], **columns) -> list[float | None]`, one entry for
each completion; prompts and completions are plain strings. At start-up `reward_trial` calls each
function once on a few rows. `docs/answers.md` states when an answer is correct.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.answers.checker import are_correct
from iapo_jax.answers.extraction import whole_texts
from iapo_jax.config.train import RewardSection
from iapo_jax.data.problems import Problems
from iapo_jax.errors import UserError
from iapo_jax.runtime import plugins


class RewardError(UserError):
    """A reward function was not found, raised, or returned something that is not a reward."""


def accuracy_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    kind: Sequence[str | None] | None = None,
    **columns,
) -> list[float]:
    """+1 for a correct answer, -1 for an incorrect or missing one (arXiv:2602.19049).

    After a prompt that ends in `<think>`, a box inside unfinished thinking is not an answer. A
    training step checks every answer once and takes this reward from the verdicts.
    """
    return _accuracy(are_correct(whole_texts(prompts, completions), answer, kind))


def _accuracy(correct: Sequence[bool]) -> list[float]:
    return [1.0 if verdict else -1.0 for verdict in correct]


def format_reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float]:
    """+0.5 for `<think>...</think>`, white space, `<answer>...</answer>`, else -0.5.

    Only white space may follow, and each of the four tags must occur exactly once. A prompt that
    ends in `<think>` has opened the thinking, so the completion must not open it again. Line breaks
    are allowed: the regex of the authors' code (arXiv:2602.19049) lacks DOTALL and penalizes every
    multi-line chain of thought by 0.5, which favors one-line answers.
    """
    return _format(whole_texts(prompts, completions))


def _format(complete_texts: Sequence[str]) -> list[float]:
    return [0.5 if _well_formed(text) else -0.5 for text in complete_texts]


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
    """Finds a reward function: `accuracy`, `format`, `path/to/file.py:name`, `package.module.name`.

    Raises:
      RewardError: if the file, the module or the name is missing, or names something that is not
        callable.
    """
    if spec in REWARDS:
        return REWARDS[spec]
    if not plugins.names_a_place(spec):
        raise RewardError(
            f"reward {spec!r} is unknown; expected one of {', '.join(REWARDS)}, "
            "'path/to/file.py:name' or 'package.module.name'"
        )
    function = plugins.load(spec, f"reward {spec!r}", RewardError)
    if not callable(function):
        raise RewardError(
            f"reward {spec!r} has type {type(function).__name__}; expected a function "
            "fn(prompts, completions, answer, **columns) -> list of floats"
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

    None ("does not apply to this row") counts as 0, as in TRL.

    Returns:
      The total, and the unweighted rewards of each function by name; all float32 [N].

    Raises:
      RewardError: naming the function and the value, if a function raises, returns more or fewer
        than N entries, or returns something that is not a finite number.
    """
    names = [name for name, _ in functions]
    weights = [float(weight) for weight in weights]
    if (
        len(set(names)) != len(weights)
        or len(names) != len(weights)
        or not all(map(math.isfinite, weights))
    ):
        raise RewardError(
            f"the reward functions are {names} with weights {weights}; expected distinct names and "
            "a finite weight for each"
        )
    given = {"prompts": prompts, "completions": completions, "answer": answer, **columns}
    rewards = {}
    for name, function in functions:
        try:
            values = function(**given)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, asyncio's CancelledError, ...
            raise RewardError(_raised(name, function, error, given)) from error
        rewards[name] = _as_rewards(name, values, completions)
    total = np.zeros(len(completions), np.float32)
    for name, weight in zip(names, weights, strict=True):
        total += np.float32(weight) * rewards[name]
    return total, rewards


def _raised(name: str, function: Callable, error: BaseException, given: dict) -> str:
    if isinstance(error, TypeError):
        try:
            inspect.signature(function).bind(**given)
        except ValueError:  # the function has no readable signature
            pass
        except TypeError as mismatch:
            return (
                f"reward {name!r} cannot be called with {', '.join(given)}: {mismatch}; expected "
                "fn(prompts, completions, answer, **columns)"
            )
    file = plugins.file_of(function)
    place = plugins.place_of(error, file) if file else ""
    count = len(given["completions"])
    rows = "1 completion" if count == 1 else f"{count} completions"
    return f"reward {name!r} raised {plugins.one_line(error)} for {rows}{place}"


def _as_rewards(name: str, values, completions: Sequence[str]) -> np.ndarray:
    rows = len(completions)
    if inspect.iscoroutine(values):
        values.close()  # else Python warns that it was never awaited
    listed = hasattr(values, "__len__") and not isinstance(
        values, str | bytes | dict | set | frozenset
    )
    found = f"of type {type(values).__name__}"
    if listed:
        found = "1 entry" if len(values) == 1 else f"{len(values)} entries"
    if not listed or len(values) != rows:
        raise RewardError(
            f"reward {name!r} returned {plugins.one_line(values)}, {found}; "
            f"expected a list of {rows} numbers, one for each completion"
        )
    rewards = np.zeros(rows, np.float32)
    for row, value in enumerate(values):
        number = _finite(value)
        if number is None:
            raise RewardError(
                f"reward {name!r} returned {plugins.one_line(value)} for completion {row}, "
                f"{plugins.one_line(completions[row], 60)}; expected a finite number, or None for 0"
            )
        rewards[row] = number
    return rewards


def _finite(value) -> float | None:
    """The value as a finite float32 number, 0 for None; None if it is not such a number."""
    if value is None:
        return 0.0
    try:
        number = math.nan if isinstance(value, str | bytes) or np.ndim(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= float(np.finfo(np.float32).max) else None


class RewardFunctions(NamedTuple):
    """Loaded reward functions by name, and their weights."""

    functions: list[tuple[str, Callable]]
    weights: list[float]


def load_rewards(section: RewardSection, own: Sequence[Callable] | None = None) -> RewardFunctions:
    """The configured functions, or the caller's `own`, with the configured weights.

    Raises:
      UserError: naming the field of `reward`, what was found and what is expected.
    """
    if own is None:
        for spec in section.functions:
            if not isinstance(spec, str):
                raise UserError(f"reward.functions has the entry {spec!r}; expected a name")
        loaded = [load_reward(spec) for spec in section.functions]
        names = [spec.rpartition(":")[2] for spec in section.functions]
    else:
        loaded = list(own)
        names = [getattr(function, "__name__", type(function).__name__) for function in loaded]
    if not loaded:
        raise UserError("reward.functions is empty; expected at least one, such as [accuracy]")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"reward.functions has two functions named {twice[0]!r}; expected distinct names"
        )
    weights = section.weights or [1.0] * len(loaded)
    if len(weights) != len(loaded):
        raise UserError(
            f"reward.weights is {weights}; expected as many numbers as there are reward functions "
            f"({len(loaded)})"
        )
    if not np.isfinite(weights).all():
        raise UserError(f"reward.weights is {weights}; expected finite numbers")
    return RewardFunctions(functions=list(zip(names, loaded, strict=True)), weights=weights)


def with_verdicts(
    reward_functions: RewardFunctions, complete_texts: Sequence[str], correct: Sequence[bool]
) -> RewardFunctions:
    """The same functions, but the built-in ones reuse the verdicts and the complete texts."""

    def with_known(function: Callable) -> Callable:
        if function is accuracy_reward:
            return lambda **given: _accuracy(correct)
        if function is format_reward:
            return lambda **given: _format(complete_texts)
        return function

    functions = [(name, with_known(function)) for name, function in reward_functions.functions]
    return reward_functions._replace(functions=functions)


def rewards_of_rows(
    reward_functions: RewardFunctions,
    problems: Problems,
    rows: np.ndarray,
    texts: Sequence[str],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`combine_rewards` of one completion text for each of these rows.

    Raises:
      RewardError: as `combine_rewards`.
    """
    return combine_rewards(
        reward_functions.functions,
        reward_functions.weights,
        [problems.texts[i] for i in rows],
        texts,
        [problems.answers[i] for i in rows],
        **columns_of(problems, rows),
    )


def columns_of(problems: Problems, rows: np.ndarray) -> dict[str, list]:
    """The further columns of these rows, which reward functions receive by name."""
    names = sorted({name for i in rows for name in problems.columns[i]})
    reserved = ("prompts", "completions", "answer", "functions", "weights")
    return {
        name: [problems.columns[i].get(name) for i in rows]
        for name in names
        if name not in reserved
    }
