"""Accuracy and length on held-out problems, with 95% intervals by a bootstrap over problems."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from iapo_jax import pretrained
from iapo_jax.data import Problems
from iapo_jax.rollouts import Sampler, check_answers, draw_rollout, real_tokens
from iapo_jax.types import Params

_EVAL_STEP = 2**31 - 1  # of the random keys: no training step draws from them
_RESAMPLES = 2000


class EvalResult(NamedTuple):
    """Every completion of an evaluation; arrays [problems, samples]."""

    correct: np.ndarray  # bool
    length: np.ndarray  # int32, tokens with the stop token
    finished: np.ndarray  # bool; False where the length limit cut the completion


class Estimate(NamedTuple):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


def evaluate(
    sampler: Sampler,
    params: Params,
    problems: Problems,
    *,
    prompts_per_batch: int,
    seed: int,
    advance: Callable[[int], Any] = lambda n: None,
) -> EvalResult:
    """Samples every problem; what one gets depends on (seed, its row), not on the batch."""
    rows = np.arange(len(problems.tokens))
    parts = []
    for start in range(0, len(rows), prompts_per_batch):
        indices = rows[start : start + prompts_per_batch]
        count = len(indices)
        # The last batch is filled up, so that every batch has the shape that was compiled.
        indices = np.resize(indices, prompts_per_batch)
        rollout = draw_rollout(sampler, params, problems, indices, seed, _EVAL_STEP)
        opened = sampler.run.pretrained
        texts = pretrained.decode_completions(
            opened.tokenizer, real_tokens(rollout), opened.stop_ids
        )
        repeated = np.repeat(indices, rollout.length.shape[1])
        correct = check_answers(problems, repeated, texts).reshape(rollout.length.shape)
        parts.append((correct[:count], rollout.length[:count], rollout.finished[:count]))
        advance(count)
    return EvalResult(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _figures(correct: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    # ratio: accuracy per 100 tokens; Pass@1 / Length@1 of arXiv:2602.19049, times 100
    return {"accuracy": correct, "length": length, "ratio": 100 * correct / length}


def summarise(before: EvalResult, after: EvalResult | None = None) -> dict[str, Estimate]:
    """accuracy, length (tokens) and ratio (accuracy per 100 tokens) of one result, or their
    differences after - before on the same problems.

    Intervals are percentiles over resamples of the problems; samples of a problem stay together.
    """
    results = [before] if after is None else [before, after]
    count = len(before.correct)
    draws = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    means = [(r.correct.mean(1), r.length.mean(1)) for r in results]
    point = [_figures(c.mean(), n.mean()) for c, n in means]
    spread = [_figures(c[draws].mean(1), n[draws].mean(1)) for c, n in means]
    estimates = {}
    for name in point[0]:
        value, samples = point[-1][name], spread[-1][name]
        if after is not None:
            value, samples = value - point[0][name], samples - spread[0][name]
        low, high = np.percentile(samples, [2.5, 97.5])
        estimates[name] = Estimate(float(value), float(low), float(high))
    return estimates


def table(before: EvalResult, after: EvalResult) -> str:
    """The before-and-after table as text, with the paired difference."""
    columns = [summarise(before), summarise(after), summarise(before, after)]
    labels = {
        "accuracy": ("accuracy", "{:.3f}"),
        "length": ("mean length (tokens)", "{:.1f}"),
        "ratio": ("accuracy per 100 tokens", "{:.2f}"),
    }
    lines = [f"{'':<24} {'before':<24} {'after':<24} {'difference':<24}"]
    for name, (label, form) in labels.items():
        cells = []
        for index, column in enumerate(columns):
            one = form.replace(":", ":+") if index == 2 else form
            value, low, high = (one.format(x) for x in column[name])
            cells.append(f"{f'{value} [{low}, {high}]':<24}")
        lines.append(f"{label:<24} {' '.join(cells)}")
    cut = [f"{100 * (1 - result.finished.mean()):.1f}%" for result in (before, after)]
    lines.append(f"{'cut at the limit':<24} {cut[0]:<24} {cut[1]:<24}")
    count = before.correct.shape
    lines.append(f"{count[0]} held-out problems, {count[1]} sample(s) each; [95% intervals]")
    return "\n".join(line.rstrip() for line in lines)
