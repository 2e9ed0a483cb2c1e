"""One rollout: sample on the devices, decode and reward on the host.

This is the only round trip of a training step.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from iapo_jax import answers, data, pretrained, rewards
from iapo_jax.config import TrainConfig
from iapo_jax.data import Problems
from iapo_jax.errors import UserError
from iapo_jax.model import param_shapes
from iapo_jax.processes import on_first
from iapo_jax.run import Run
from iapo_jax.sampling import prompt_keys, sample
from iapo_jax.sharding import (
    AXES,
    by_prompt,
    fetch,
    param_shardings,
    put,
    replicated,
)
from iapo_jax.types import Params, Prompts, Rollout

_TRIED = 1024  # completions of a prompt, at most, before a run


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


class RewardFunctions(NamedTuple):
    """Loaded reward functions by name, and their weights."""

    functions: list[tuple[str, Callable]]
    weights: list[float]


def load_rewards(section: Any, own: Sequence[Callable] | None = None) -> RewardFunctions:
    """The functions of `config.RewardSection`, or one's `own`, with its weights."""
    if own is None:
        for spec in section.functions:
            if not isinstance(spec, str):
                raise UserError(f"reward.functions has the entry {spec!r}; expected a name")
        loaded = [rewards.load_reward(spec) for spec in section.functions]
        names = [spec.rpartition(":")[2] for spec in section.functions]
    else:
        loaded = list(own)
        names = [getattr(function, "__name__", type(function).__name__) for function in loaded]
    if not loaded:
        raise UserError("reward.functions is empty: expected at least one, as [accuracy]")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"reward.functions has two functions {twice[0]!r}; expected distinct names")
    weights = section.weights or [1.0] * len(loaded)
    if len(weights) != len(loaded):
        raise UserError(
            f"reward.weights has {len(weights)} entries, reward.functions {len(loaded)}"
        )
    if not np.isfinite(weights).all():
        raise UserError(f"reward.weights is {weights}; expected finite numbers")
    return RewardFunctions(list(zip(names, loaded, strict=True)), weights)


class Sampler(NamedTuple):
    """`sampling.sample` with everything bound but parameters, prompts and keys."""

    run: Run
    draw: Callable[..., Rollout]
    prepare: Callable[[Params], Params]
    keys: Callable[[int, int, np.ndarray], jax.Array]
    prompt_width: int


def make_sampler(
    run: Run, problems: Problems, *, num_generations: int, max_length: int, sampling: Any
) -> Sampler:
    """A sampler for these problems, as a `config.SamplingSection` or `EvalSection` asks."""
    opened = run.pretrained
    draw = partial(
        sample,
        run.model,
        num_generations=num_generations,
        max_length=max_length,
        stop_ids=put(np.asarray(opened.stop_ids, np.int32), replicated(run.mesh)),
        allowed=put(opened.allowed, replicated(run.mesh)),
        temperature=put(np.float32(sampling.temperature), replicated(run.mesh)),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    longest = max(map(len, problems.tokens))
    keys = jax.jit(prompt_keys, out_shardings=by_prompt(run.mesh))
    width = -(-longest // 16) * 16
    return Sampler(run, draw, _unroll(run, sampling.gather_weights), keys, width)


def _unroll(run: Run, gather: bool) -> Callable[[Params], Params]:
    """`model.unroll`, jitted, onto the tensor axis alone or onto all axes."""
    shapes = jax.eval_shape(run.model.unroll, param_shapes(run.pretrained.config))
    axes = ("tensor",) if gather else AXES
    return jax.jit(run.model.unroll, out_shardings=param_shardings(run.mesh, shapes, axes=axes))


def prompts_of(sampler: Sampler, problems: Problems, indices: Sequence[int]) -> Prompts:
    """Prompts of these rows on the mesh, padded to the data set's longest."""
    rows = [problems.tokens[i] for i in indices]
    prompts = Prompts(*data.pad_rows(rows, sampler.prompt_width))
    return put(prompts, by_prompt(sampler.run.mesh))


def draw_rollout(
    sampler: Sampler,
    params: Params,
    problems: Problems,
    indices: Sequence[int],
    seed: int,
    step: int,
    round: int = 0,
) -> Rollout:
    """Completions of these rows, on the host; a function of parameters, rows and numbers."""
    prompts = prompts_of(sampler, problems, indices)
    rows = len(problems.tokens)
    keys = sampler.keys(seed, step, distinct_rows(indices, rows, first=round * len(indices) * rows))
    return fetch(sampler.draw(sampler.prepare(params), prompts, keys))


def distinct_rows(indices: Sequence[int], rows: int, first: int = 0) -> np.ndarray:
    """Numbers [P] to draw keys from: a row's own, and others where it stands again in the batch.

    Otherwise a row that comes twice in a step would get the same completions twice. They begin at
    `first`, and wrap around at 2^31.
    """
    seen: dict[int, int] = {}
    numbers = []
    for index in map(int, indices):
        numbers.append((first + index + rows * seen.get(index, 0)) % 2**31)
        seen[index] = seen.get(index, 0) + 1
    return np.asarray(numbers, np.int32)


def real_tokens(rollout: Rollout) -> list[np.ndarray]:
    """The tokens of all P * G completions without padding."""
    tokens = rollout.tokens.reshape(-1, rollout.tokens.shape[-1])
    return [row[:n] for row, n in zip(tokens, rollout.length.ravel(), strict=True)]


def thinking_lengths(
    tokenizer: Any, tokens: list[np.ndarray], stops: Sequence[int], ends: Sequence[str]
) -> np.ndarray:
    """Tokens of each completion before the first text of `ends`, or the first stop token."""
    open_rows = [row[: np.argmax(np.append(np.isin(row, stops), True))] for row in tokens]
    lengths = [[len(row) for row in open_rows]]
    lengths += [pretrained.thinking_lengths(tokenizer, open_rows, end) for end in ends]
    return np.min(lengths, axis=0)


def check_answers(problems: Problems, rows: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Whether each completion text of these rows is right; bool [len(rows)]."""
    whole = rewards.whole_texts([problems.texts[i] for i in rows], texts)
    golds = [problems.answers[i] for i in rows]
    kinds = [problems.columns[i].get("kind") for i in rows]
    return np.asarray(answers.are_correct(whole, golds, kinds), bool)


def answered(problems: Problems, scored: Scored) -> tuple[list[str], list[list[str]]]:
    """The gold answers of P prompts, and the texts of the G completions of each."""
    size = scored.rollout.length.shape[1]
    rows = np.repeat(scored.indices, size)
    whole = rewards.whole_texts([problems.texts[i] for i in rows], scored.texts)
    groups = [whole[i : i + size] for i in range(0, len(whole), size)]
    return [problems.answers[i] for i in scored.indices], groups


def collect(
    sampler: Sampler,
    params: Params,
    problems: Problems,
    indices: np.ndarray,
    paid: RewardFunctions,
    config: TrainConfig,
    step: int,
    round: int = 0,
) -> Scored:
    """Samples completions of these rows, decodes them, and pays for them."""
    started = time.perf_counter()
    rollout = draw_rollout(sampler, params, problems, indices, config.seed, step, round)
    sampled = time.perf_counter()
    shape = rollout.length.shape
    tokenizer, stops = sampler.run.pretrained.tokenizer, sampler.run.pretrained.stop_ids
    tokens = real_tokens(rollout)
    texts = pretrained.decode_completions(tokenizer, tokens, stops)
    rows = np.repeat(indices, shape[1])
    counted = answers.checker_counts()

    def judge() -> tuple:
        reward, parts = rewards.combine_rewards(
            paid.functions,
            paid.weights,
            [problems.texts[i] for i in rows],
            texts,
            [problems.answers[i] for i in rows],
            **_columns(problems, rows),
        )
        return reward, parts, check_answers(problems, rows, texts)

    # On one process: functions may draw or keep count, and a time-out may strike one and not
    # another.
    zeros = np.zeros(len(texts), np.float32)
    nothing = zeros, {name: zeros for name, _ in paid.functions}, zeros.astype(bool)
    reward, parts, correct = on_first(judge, nothing)
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


def try_rewards(paid: RewardFunctions, problems: Problems, num_generations: int, told: str) -> None:
    """Calls the reward functions once, before weights are loaded, on G completions of each of two
    problems: the gold answer, well-formed, and an empty text by turns.

    Args:
      told: the data set, for the sentence.

    Raises:
      RewardError: naming the function, the rows, and what came back or was raised, and where.
    """
    indices = range(min(2, len(problems.tokens)))
    rows = np.repeat(indices, min(num_generations, _TRIED))
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
        rewards.try_rewards(
            paid.functions,
            paid.weights,
            prompts,
            texts,
            [problems.answers[i] for i in rows],
            **_columns(problems, rows),
        )
    except rewards.RewardError as error:
        numbers = " and ".join(str(problems.rows[i] + 1) for i in indices)
        raise rewards.RewardError(
            f"{str(error).rstrip('.')} (tried before the run, on the problems {numbers} of {told})."
        ) from error


def _columns(problems: Problems, rows: np.ndarray) -> dict[str, list]:
    names = sorted({name for i in rows for name in problems.columns[i]})
    reserved = ("prompts", "completions", "answer", "functions", "weights")
    return {
        name: [problems.columns[i].get(name) for i in rows]
        for name in names
        if name not in reserved
    }
