"""The metrics of a step, under TRL's names where TRL has one.

Training names metrics only here; `report.panels` repeats the names that it draws. `METRICS` states
what each metric means, and docs/metrics.md is generated from it:
`python -m iapo_jax.training.step_metrics > docs/metrics.md`.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax.algorithms.diagnostics import credit_diagnostics
from iapo_jax.rollout.dynamic_sampling import SamplingRounds
from iapo_jax.rollout.generation import RewardedRollout
from iapo_jax.runtime.console import compiles
from iapo_jax.sharding import fetch
from iapo_jax.training.optimizer import UpdateResult
from iapo_jax.training.progress import RunTotals
from iapo_jax.training.step import PolicyUpdate, StepRecord
from iapo_jax.types import Array, Credit, Group, Mean, Rollout


class Metric(NamedTuple):
    """The meaning of a metric. A part of its name in <> stands for any text."""

    name: str
    unit: str
    meaning: str


METRICS = {
    "Rewards and completions": [
        Metric("reward", "", "mean weighted sum of the reward functions"),
        Metric("reward_std", "", "mean over groups of the standard deviation of the reward"),
        Metric("frac_reward_zero_std", "share", "groups whose rewards are all equal"),
        Metric("rewards/<function>/mean", "", "mean of one reward function, unweighted"),
        Metric("accuracy", "share", "completions whose answer is correct"),
        Metric("completions/mean_length", "tokens", "mean length, including the stop token"),
        Metric("completions/min_length", "tokens", "shortest completion"),
        Metric("completions/max_length", "tokens", "longest completion"),
        Metric(
            "completions/mean_terminated_length", "tokens", "mean length of finished completions"
        ),
        Metric("completions/clipped_ratio", "share", "completions truncated at the length limit"),
        Metric("completions/mean_length_correct", "tokens", "mean length of correct completions"),
        Metric("completions/mean_length_wrong", "tokens", "mean length of incorrect completions"),
        Metric(
            "completions/sampled_tokens",
            "tokens",
            "completion tokens sampled in this step, in all rounds",
        ),
        Metric("sampled_tokens", "tokens", "completion tokens sampled in the run so far"),
        Metric("checker/timeouts", "answers", "answers on which the checker timed out"),
        Metric("checker/errors", "answers", "answers on which the checker failed"),
    ],
    "Dynamic sampling": [
        Metric("dynamic_sampling/rounds", "rounds", "rounds of sampling in this step"),
        Metric(
            "dynamic_sampling/first_mixed",
            "share",
            "groups of the first round with both correct and incorrect completions",
        ),
        Metric("dynamic_sampling/first_accuracy", "share", "accuracy of the first round"),
        Metric("dynamic_sampling/first_mean_length", "tokens", "mean length in the first round"),
        Metric("dynamic_sampling/tokens", "tokens", "completion tokens sampled in all rounds"),
        Metric(
            "dynamic_sampling/unfilled",
            "groups",
            "groups still all correct or all incorrect after the last round",
        ),
    ],
    "Policy and credit": [
        Metric("entropy", "nats", "mean entropy of the next-token distribution"),
        Metric(
            "sampling/log_prob_difference/mean",
            "nats",
            "mean absolute difference of the sampler's and the scorer's log-probabilities",
        ),
        Metric("sampling/log_prob_difference/max", "nats", "largest such difference"),
        Metric("advantage/mean", "", "mean advantage of the tokens with nonzero weight"),
        Metric("advantage/abs_mean", "", "mean absolute advantage of these tokens"),
        Metric(
            "credit/length_bonus_covariance",
            "tokens",
            "covariance of a completion's length and the sum of its bonus; by the paper's theorem, "
            "completions get shorter where it is negative",
        ),
        Metric("credit/bonus_share", "share", "share of the credit that is given token by token"),
        Metric("credit/stop_bonus", "", "mean bonus of the tokens that end thinking"),
        Metric(
            "credit/rival_bonus",
            "",
            "mean bonus of the thinking tokens that were drawn while the model was at least as "
            "certain of the answer as when it stopped, or its uncertainty was at most "
            "information.redundant_below",
        ),
        Metric("algorithm/<option>", "", "an option that adapts during the run"),
        Metric("algorithm/<option>_<i>", "", "the same, for an option with several values"),
    ],
    "Information about the answer": [
        Metric("iapo/thinking_length", "tokens", "mean number of thinking tokens"),
        Metric("iapo/uncertainty_start", "nats", "uncertainty about the answer after the prompt"),
        Metric(
            "iapo/uncertainty_end", "nats", "uncertainty about the answer at the end of thinking"
        ),
        Metric("iapo/information_per_token", "nats", "mean informativeness of a thinking token"),
        Metric(
            "iapo/redundant_tokens",
            "tokens",
            "thinking tokens per completion after the uncertainty falls below "
            "information.redundant_below for good",
        ),
    ],
    "Updates": [
        Metric("loss", "", "mean loss of the applied updates"),
        Metric("grad_norm", "", "mean global norm of the gradient before clipping"),
        Metric("kl", "nats", "KL to the initial model, if algorithm.beta is not 0"),
        Metric("clip_ratio/low_mean", "share", "tokens clipped below 1 - epsilon"),
        Metric("clip_ratio/high_mean", "share", "tokens clipped above 1 + epsilon_high"),
        Metric("clip_ratio/region_mean", "share", "tokens clipped on either side"),
        Metric("ratio/mean", "", "mean probability ratio of the new policy to the sampling policy"),
        Metric("learning_rate", "", "learning rate of the first update of the step"),
        Metric("num_tokens", "tokens", "fine-tuning: sum of the token weights in the batch"),
        Metric(
            "skipped/updates",
            "updates",
            "updates of this step that were skipped because a number was not finite",
        ),
        Metric("skipped/in_a_row", "steps", "consecutive skipped steps, up to this one"),
    ],
    "Time": [
        Metric("time/sample", "s", "sampling"),
        Metric("time/reward", "s", "decoding, checking answers, reward functions"),
        Metric("time/signals", "s", "log-probabilities, information, credit"),
        Metric("time/update", "s", "updates"),
        Metric("time/step", "s", "the complete step"),
        Metric(
            "perf/completion_tokens_per_second", "tokens/s", "sampled tokens divided by time/step"
        ),
        Metric("compiles", "programs", "programs compiled or read from the cache by this process"),
    ],
}


def pattern(metric: Metric) -> re.Pattern:
    """A pattern that matches all names of a metric."""
    return re.compile(re.sub(r"<[^>]*>", ".+", re.escape(metric.name)))


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "This page is generated from the table of metrics: "
        "`python -m iapo_jax.training.step_metrics > docs/metrics.md`.",
        "",
        "Each row of `metrics.jsonl` holds the metrics of one step, which is a rollout with all",
        "its updates; TensorBoard shows the same values. A value that is not finite is `null`. A",
        "part of a name in `<>` stands for any text. The results of the evaluations before and",
        "after a run are in `eval/summary.json`; [evaluation.md](evaluation.md) describes them.",
    ]
    for title, metrics in METRICS.items():
        lines += ["", f"## {title}", "", "| metric | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{m.name}` | {m.unit} | {m.meaning} |" for m in metrics]
    return "\n".join(lines) + "\n"


def step_metrics(
    record: StepRecord, totals: RunTotals, *, threshold: float, probed: bool
) -> dict[str, float]:
    """The row of metrics.jsonl for a step of reinforcement learning.

    Args:
      threshold: uncertainty in nats; below it the model is considered to know the answer.
      probed: whether the groups have uncertainties.
    """
    scored, seconds, tokens = record.scored, record.seconds, float(record.sampled_tokens())
    on_device = device_metrics(
        scored.rollout, scored.groups, record.credit, threshold=threshold, probed=probed
    )
    on_device |= _setting_metrics(record.settings)
    return {
        **_host_metrics(record.rewarded),
        **_round_metrics(record.rounds),
        **{name: float(value) for name, value in fetch(on_device).items()},
        **_update_metrics(record.updates, record.planned_updates),
        "learning_rate": record.learning_rate,
        "time/sample": record.rewarded.seconds.sample,
        "time/reward": record.rewarded.seconds.reward,
        "time/signals": seconds.signals,
        "time/update": seconds.update,
        "time/step": seconds.step,
        "completions/sampled_tokens": tokens,
        "perf/completion_tokens_per_second": tokens / seconds.step,
        "compiles": compiles(),  # after the metrics, to include their programs
        "skipped/in_a_row": float(totals.skipped_in_a_row),
        "sampled_tokens": float(totals.sampled_tokens),
    }


def fine_tuning_metrics(
    result: UpdateResult,
    *,
    entropy: Array,
    num_tokens: Array,
    learning_rate: float,
    skipped_in_a_row: int,
) -> dict[str, float]:
    """The row of metrics.jsonl for a step of supervised fine-tuning, without its time."""
    return {
        "loss": float(result.loss),
        "grad_norm": float(result.grad_norm),
        "entropy": float(entropy),
        "num_tokens": float(num_tokens),
        "learning_rate": learning_rate,
        "skipped/updates": float(result.skipped),
        "skipped/in_a_row": float(skipped_in_a_row),
    }


def time_metrics(seconds: float) -> dict[str, float]:
    """The time of a step of fine-tuning, and the number of programs compiled so far."""
    return {"time/step": seconds, "compiles": compiles()}


@partial(jax.jit, static_argnames=("threshold", "probed"))
def device_metrics(
    rollout: Rollout, groups: Group, credit: Credit, *, threshold: float, probed: bool
) -> dict[str, Array]:
    """Masked means over the rollout; float32 scalars.

    Args:
      threshold, probed: as for `step_metrics`.
    """

    def mean(x: Array, mask: Array) -> Array:
        return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)

    mask, gap = groups.mask, jnp.abs(groups.log_prob - rollout.log_prob)
    weighted = credit.weight > 0
    return {
        "entropy": mean(groups.entropy, mask),
        "sampling/log_prob_difference/mean": mean(gap, mask),
        "sampling/log_prob_difference/max": jnp.where(mask, gap, 0.0).max(),
        **(_uncertainty_metrics(groups) if probed else {}),
        **_credit_metrics(groups, credit, threshold=threshold, probed=probed),
        "advantage/mean": mean(credit.advantage, weighted),
        "advantage/abs_mean": mean(jnp.abs(credit.advantage), weighted),
    }


def _uncertainty_metrics(groups: Group) -> dict[str, Array]:
    last = groups.thinking.sum(-1)[..., None]
    end = jnp.take_along_axis(groups.uncertainty, last, axis=-1)[..., 0]
    return {
        "iapo/uncertainty_start": groups.uncertainty[..., 0].mean(),
        "iapo/uncertainty_end": end.mean(),
    }


def _credit_metrics(
    groups: Group, credit: Credit, *, threshold: float, probed: bool
) -> dict[str, Array]:
    diagnose = partial(credit_diagnostics, threshold=threshold, probed=probed)
    found = jax.vmap(diagnose)(groups, credit)
    named = {
        "credit/length_bonus_covariance": found.length_covariance,
        "credit/bonus_share": found.bonus_share,
        "credit/stop_bonus": found.stop_bonus,
        "credit/rival_bonus": found.rival_bonus,
        "iapo/information_per_token": found.information_per_token,
        "iapo/redundant_tokens": found.redundant_tokens,
    }
    means = {name: mean for name, mean in named.items() if mean is not None}
    return {name: Mean(*map(jnp.sum, mean)).value() for name, mean in means.items()}


def _setting_metrics(settings: dict[str, Array]) -> dict[str, Array]:
    named = {name: jnp.atleast_1d(value) for name, value in settings.items()}
    return {
        f"algorithm/{name}_{i}" if len(values) > 1 else f"algorithm/{name}": value
        for name, values in named.items()
        for i, value in enumerate(values)
    }


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x)) if np.size(x) else 0.0


def _host_metrics(rewarded: RewardedRollout) -> dict[str, float]:
    reward, length, correct = rewarded.reward, rewarded.rollout.length, rewarded.correct
    finished = rewarded.rollout.finished
    deviation = reward.std(1, ddof=1) if reward.shape[1] > 1 else np.zeros(len(reward))
    return {
        "reward": _mean(reward),
        "reward_std": _mean(deviation),
        "frac_reward_zero_std": _mean((reward == reward[:, :1]).all(1)),
        **{f"rewards/{name}/mean": _mean(part) for name, part in rewarded.rewards.items()},
        "accuracy": _mean(correct),
        "completions/mean_length": _mean(length),
        "completions/min_length": float(length.min()),
        "completions/max_length": float(length.max()),
        "completions/mean_terminated_length": _mean(length[finished]),
        "completions/clipped_ratio": _mean(~finished),
        "completions/mean_length_correct": _mean(length[correct]),
        "completions/mean_length_wrong": _mean(length[~correct]),
        "iapo/thinking_length": _mean(rewarded.thinking_length),
        **{f"checker/{name}": float(count) for name, count in rewarded.checker.items()},
    }


def _round_metrics(rounds: SamplingRounds | None) -> dict[str, float]:
    if rounds is None:
        return {}
    return {f"dynamic_sampling/{name}": float(value) for name, value in rounds._asdict().items()}


def _update_metrics(updates: Sequence[PolicyUpdate], planned: int) -> dict[str, float]:
    """Means over the applied updates, NaN if there are none, and the number of skipped updates."""
    named = [_named_update(update) for update in updates]
    applied = [row for row, update in zip(named, updates, strict=True) if not update.result.skipped]
    names = named[0] if named else ("loss", "grad_norm")
    means = {
        name: float(np.mean([row[name] for row in applied])) if applied else math.nan
        for name in names
    }
    return means | {"skipped/updates": float(planned - len(applied))}


def _named_update(update: PolicyUpdate) -> dict[str, np.ndarray]:
    found = update.statistics
    return {
        "loss": update.result.loss,
        "grad_norm": update.result.grad_norm,
        **({} if found.kl is None else {"kl": found.kl}),
        "clip_ratio/low_mean": found.clipped_low,
        "clip_ratio/high_mean": found.clipped_high,
        "clip_ratio/region_mean": found.clipped,
        "ratio/mean": found.ratio,
    }


def headline(row: dict[str, float]) -> str:
    """The text beside the progress bar; with the KL if the loss has it."""
    kl = f"kl {row['kl']:.4f} " if "kl" in row else ""
    return (
        f"reward {row['reward']:+.3f} accuracy {row['accuracy']:.2f} "
        f"length {row['completions/mean_length']:.1f} {kl}grad {row['grad_norm']:.2f}"
    )


def fine_tuning_headline(row: dict[str, float]) -> str:
    """The text beside the progress bar of fine-tuning."""
    return f"loss {row['loss']:.4f} entropy {row['entropy']:.3f}"


if __name__ == "__main__":
    print(metrics_page(), end="")
