"""A rollout with its texts, rewards and verdicts: sampled on the devices, scored on the host.

This is the only round trip of a training step. Texts and verdicts are computed once; the built-in
rewards, the metrics and the credit rule share the verdicts.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.answers import checker, extraction
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import problems as data
from iapo_jax.data.problems import Problems
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.model_directory import Pretrained
from iapo_jax.pretrained.tokenization import real_tokens, thinking_lengths
from iapo_jax.rollout import rewards
from iapo_jax.rollout.rewards import RewardFunctions
from iapo_jax.rollout.sampler import Sampler, draw_rollout
from iapo_jax.runtime.processes import on_process_zero
from iapo_jax.types import Params, Rollout


class RolloutSeconds(NamedTuple):
    """Wall time, in seconds."""

    sample: float
    reward: float  # decoding, answers and reward functions


class RewardedRollout(NamedTuple):
    """A rollout with its texts, rewards and verdicts, on the host; arrays [P, G]."""

    rollout: Rollout  # padded to the length bucket of the longest completion
    indices: np.ndarray  # [P] indices of the problems
    texts: list[str]  # P * G completions, grouped by prompt
    complete_texts: list[str]  # the same, each with the <think> that its prompt ends in
    reward: np.ndarray  # float32
    rewards: dict[str, np.ndarray]  # of each reward function, unweighted
    correct: np.ndarray  # bool
    thinking_length: np.ndarray  # int32
    seconds: RolloutSeconds
    checker: dict[str, int]  # `checker_counts` of this rollout: time-outs and errors

    def sampled_tokens(self) -> int:
        """The number of tokens of all completions."""
        return int(self.rollout.length.sum())


def check_answers(problems: Problems, rows: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Whether each complete text answers its problem correctly; bool [len(rows)]."""
    answers = [problems.answers[i] for i in rows]
    kinds = [problems.columns[i].get("kind") for i in rows]
    return np.asarray(checker.are_correct(texts, answers, kinds), bool)


def completions_by_prompt(
    problems: Problems, rewarded: RewardedRollout
) -> tuple[list[str], list[list[str]]]:
    """The P reference answers, and for each prompt the complete texts of its G completions."""
    size, texts = rewarded.correct.shape[1], rewarded.complete_texts
    groups = [texts[i : i + size] for i in range(0, len(texts), size)]
    return [problems.answers[i] for i in rewarded.indices], groups


def generate_and_score(
    params: Params,
    indices: np.ndarray,
    *,
    step: int,
    round: int = 0,
    sampler: Sampler,
    pretrained: Pretrained,
    problems: Problems,
    reward_functions: RewardFunctions,
    config: TrainConfig,
) -> RewardedRollout:
    """Samples G completions of each of these problems, decodes them, and scores them once.

    Raises:
      RewardError: if a reward function fails, or returns something that is not a reward.
    """
    started = time.perf_counter()
    rollout = draw_rollout(sampler, params, problems, indices, config.seed, step, round)
    sampled = time.perf_counter()
    shape = rollout.length.shape
    rows = np.repeat(indices, shape[1])
    tokens, stops = real_tokens(rollout), pretrained.stop_ids
    texts = tokenization.decode_completions(pretrained.tokenizer, tokens, stops)
    complete = extraction.whole_texts([problems.texts[i] for i in rows], texts)
    before = checker.checker_counts()

    def score() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        correct = check_answers(problems, rows, complete)
        known = rewards.with_verdicts(reward_functions, complete, correct)
        return *rewards.rewards_of_rows(known, problems, rows, texts), correct

    # On one process, since a function may be random or stateful, and time-outs may differ.
    zeros = np.zeros(len(texts), np.float32)
    shapes = zeros, {name: zeros for name, _ in reward_functions.functions}, zeros.astype(bool)
    reward, parts, correct = on_process_zero(score, shapes)
    thinking = thinking_lengths(
        pretrained.tokenizer, tokens, stops, config.information.end_of_thinking
    )
    counts = checker.checker_counts()
    return RewardedRollout(
        rollout=_cut_padding(rollout, config),
        indices=np.asarray(indices),
        texts=texts,
        complete_texts=complete,
        reward=reward.reshape(shape),
        rewards={name: part.reshape(shape) for name, part in parts.items()},
        correct=correct.reshape(shape),
        thinking_length=np.asarray(thinking, np.int32).reshape(shape),
        seconds=RolloutSeconds(sampled - started, time.perf_counter() - sampled),
        checker={name: count - before[name] for name, count in counts.items()},
    )


def _cut_padding(rollout: Rollout, config: TrainConfig) -> Rollout:
    sampling = config.sampling
    longest = int(rollout.length.max())
    size = data.bucket(longest, sampling.length_bucket, sampling.max_completion_length)
    return rollout._replace(
        tokens=rollout.tokens[..., :size], log_prob=rollout.log_prob[..., :size]
    )


def completion_rows(problems: Problems, rewarded: RewardedRollout) -> list[dict]:
    """The rows of completions/step_N.jsonl, one object per completion."""
    count = rewarded.reward.shape[1]
    rows = []
    for index, text in enumerate(rewarded.texts):
        prompt, sample = divmod(index, count)
        row = int(rewarded.indices[prompt])
        rows.append(
            {
                "row": row,
                "prompt": problems.texts[row],
                "completion": text,
                "answer": problems.answers[row],
                "reward": float(rewarded.reward[prompt, sample]),
                "correct": bool(rewarded.correct[prompt, sample]),
                "length": int(rewarded.rollout.length[prompt, sample]),
                "thinking_length": int(rewarded.thinking_length[prompt, sample]),
            }
        )
    return rows
