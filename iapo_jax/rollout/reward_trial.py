"""Calls the reward functions once before a run starts, so that their errors surface at once."""

import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np

from iapo_jax.data.problems import Problems
from iapo_jax.rollout.rewards import RewardError, RewardFunctions, columns_of, combine_rewards

_MOST_COMPLETIONS = 1024  # of one prompt


def try_rewards(
    functions: Sequence[tuple[str, Callable]],
    weights: Sequence[float],
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    *,
    patience: float = 30.0,
    **columns,
) -> None:
    """Calls every function once, as `combine_rewards` does.

    Prints a note to stderr about a function that takes longer than `patience` seconds: it may hang,
    or query a slow judge.

    Raises:
      RewardError: as `combine_rewards`, and if all functions return None for every completion.
    """
    rewarded: list[bool] = []

    def watched(name: str, function: Callable) -> Callable:
        def call(**given):
            slow = (
                f"note: reward {name!r} has been running for {patience:g} s on {len(completions)} "
                "completions"
            )
            timer = threading.Timer(patience, print, [slow], {"file": sys.stderr, "flush": True})
            timer.daemon = True
            timer.start()
            try:
                values = function(**given)
            finally:
                timer.cancel()
            if hasattr(values, "__len__"):
                rewarded.extend(value is not None for value in values)
            return values

        call.__wrapped__ = function  # errors name its signature and its file
        return call

    watching = [(name, watched(name, function)) for name, function in functions]
    combine_rewards(watching, weights, prompts, completions, answer, **columns)
    if not any(rewarded):
        names = ", ".join(name for name, _ in functions)
        raise RewardError(
            f"reward functions {names} returned None for all {len(completions)} completions; "
            "expected at least one number"
        )


def try_on_problems(
    reward_functions: RewardFunctions, problems: Problems, num_generations: int, source: str
) -> None:
    """Calls the reward functions once, on G completions of each of two problems.

    The completions alternate between a well-formed correct answer and an empty text.

    Args:
      source: the name of the dataset, for errors.

    Raises:
      RewardError: naming the function, the rows, and the value or the exception with its line.
    """
    indices = range(min(2, len(problems.tokens)))
    rows = np.repeat(indices, min(num_generations, _MOST_COMPLETIONS))
    good = "<think>\nIt is {0}.\n</think>\n<answer>{0}</answer>"
    prompts = [problems.texts[i] for i in rows]
    texts = [
        good.replace("{0}", problems.answers[i]) if n % 2 == 0 else "" for n, i in enumerate(rows)
    ]
    texts = [
        text.removeprefix("<think>") if prompt.rstrip().endswith("<think>") else text
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    try:
        try_rewards(
            reward_functions.functions,
            reward_functions.weights,
            prompts,
            texts,
            [problems.answers[i] for i in rows],
            **columns_of(problems, rows),
        )
    except RewardError as error:
        numbers = " and ".join(str(problems.rows[i] + 1) for i in indices)
        raise RewardError(
            f"{error}; called before the run, on problems {numbers} of {source}"
        ) from error
