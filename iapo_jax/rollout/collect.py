"""One rollout: sample on the devices, decode and reward on the host.

This is the only round trip of a training step.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.answers import checker as answers
from iapo_jax.answers import extraction
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import problems as data
from iapo_jax.data.problems import Problems
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.directory import Pretrained
from iapo_jax.pretrained.tokenization import real_tokens, thinking_lengths
from iapo_jax.rollout import rewards as rewards_module
from iapo_jax.rollout.rewards import RewardFunctions, _columns
from iapo_jax.rollout.sampler import Sampler, draw_rollout
from iapo_jax.runtime.processes import on_process_zero
from iapo_jax.types import Params, Rollout


class Scored(NamedTuple):
    """A rollout with what the host says about it; arrays [P, G], on the host."""

    rollout: Rollout  # on the host, its padding cut to the length bucket
    texts: list[str]  # P * G completions, those of a prompt beside each other
    indices: np.ndarray  # [P] rows of the data set
    reward: np.ndarray  # float32
    rewards: dict[str, np.ndarray]  # each function's own, unweighted
    correct: np.ndarray  # bool
    thinking_length: np.ndarray  # int32
    seconds: dict[str, float]  # wall time of sampling and of the rewards
    checker: dict[str, float]  # answers that were too late for the checker, or made it fail


def check_answers(problems: Problems, rows: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Whether each completion text of these rows is right; bool [len(rows)]."""
    whole = extraction.whole_texts([problems.texts[i] for i in rows], texts)
    golds = [problems.answers[i] for i in rows]
    kinds = [problems.columns[i].get("kind") for i in rows]
    return np.asarray(answers.are_correct(whole, golds, kinds), bool)


def answered(problems: Problems, scored: Scored) -> tuple[list[str], list[list[str]]]:
    """The gold answers of P prompts, and the texts of the G completions of each."""
    size = scored.rollout.length.shape[1]
    rows = np.repeat(scored.indices, size)
    whole = extraction.whole_texts([problems.texts[i] for i in rows], scored.texts)
    groups = [whole[i : i + size] for i in range(0, len(whole), size)]
    return [problems.answers[i] for i in scored.indices], groups


def generate_and_score(
    sampler: Sampler,
    pretrained: Pretrained,
    params: Params,
    problems: Problems,
    indices: np.ndarray,
    reward_functions: RewardFunctions,
    config: TrainConfig,
    step: int,
    round: int = 0,
) -> Scored:
    """Samples completions of these rows, decodes them, and pays for them."""
    started = time.perf_counter()
    rollout = draw_rollout(sampler, params, problems, indices, config.seed, step, round)
    sampled = time.perf_counter()
    shape = rollout.length.shape
    tokenizer, stops = pretrained.tokenizer, pretrained.stop_ids
    tokens = real_tokens(rollout)
    texts = tokenization.decode_completions(tokenizer, tokens, stops)
    rows = np.repeat(indices, shape[1])
    counted = answers.checker_counts()

    def judge() -> tuple:
        reward, parts = rewards_module.combine_rewards(
            reward_functions.functions,
            reward_functions.weights,
            [problems.texts[i] for i in rows],
            texts,
            [problems.answers[i] for i in rows],
            **_columns(problems, rows),
        )
        return reward, parts, check_answers(problems, rows, texts)

    # On one process: functions may draw or keep count, and a time-out may strike one and not
    # another.
    zeros = np.zeros(len(texts), np.float32)
    nothing = zeros, {name: zeros for name, _ in reward_functions.functions}, zeros.astype(bool)
    reward, parts, correct = on_process_zero(judge, nothing)
    checker = {name: n - counted[name] for name, n in answers.checker_counts().items()}
    thinking = thinking_lengths(tokenizer, tokens, stops, config.information.end_of_thinking)
    size = data.bucket(
        int(rollout.length.max()),
        config.sampling.length_bucket,
        config.sampling.max_completion_length,
    )
    cut = rollout._replace(tokens=rollout.tokens[..., :size], log_prob=rollout.log_prob[..., :size])
    return Scored(
        cut,
        texts,
        np.asarray(indices),
        reward.reshape(shape),
        {name: part.reshape(shape) for name, part in parts.items()},
        correct.reshape(shape),
        np.asarray(thinking, np.int32).reshape(shape),
        {"time/sample": sampled - started, "time/reward": time.perf_counter() - sampled},
        checker,
    )
