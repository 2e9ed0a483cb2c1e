"""What a step says about itself: metrics under TRL's names, completions, the console."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from iapo_jax.algorithms import diagnostics
from iapo_jax.algorithms.losses import LossStatistics
from iapo_jax.data.problems import Problems
from iapo_jax.information import probes
from iapo_jax.model.decoder import param_shapes
from iapo_jax.rollout.collect import Scored
from iapo_jax.sharding import is_described
from iapo_jax.types import Array, Credit, Group, Mean, Rollout


@partial(jax.jit, static_argnames=("threshold", "asked"))
def device_metrics(
    rollout: Rollout, groups: Group, credit: Credit, *, threshold: float, asked: bool
) -> dict[str, Array]:
    """Masked means over the rollout, float32 scalars; nats where they are information.

    Args:
      threshold: nats; below it the answer counts as known.
      asked: whether the groups hold uncertainties.
    """

    def mean(x: Array, mask: Array) -> Array:
        return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)

    mask, thinking = groups.mask, groups.thinking
    figures = jax.vmap(partial(diagnostics.credit_metrics, threshold=threshold, asked=asked))
    told = {name: Mean(*map(jnp.sum, m)).value() for name, m in figures(groups, credit).items()}
    end = jnp.take_along_axis(groups.uncertainty, thinking.sum(-1)[..., None], axis=-1)[..., 0]
    gap = jnp.abs(groups.log_prob - rollout.log_prob)
    return {
        "entropy": mean(groups.entropy, mask),
        "sampling/log_prob_difference/mean": mean(gap, mask),
        "sampling/log_prob_difference/max": jnp.where(mask, gap, 0.0).max(),
        **({"iapo/uncertainty_start": groups.uncertainty[..., 0].mean()} if asked else {}),
        **({"iapo/uncertainty_end": end.mean()} if asked else {}),
        **told,
        "advantage/mean": mean(credit.advantage, credit.weight > 0),
        "advantage/abs_mean": mean(jnp.abs(credit.advantage), credit.weight > 0),
    }


def loss_metrics(found: LossStatistics) -> dict[str, Mean]:
    """What the loss of an update measured, by name; the KL where there is a reference."""
    named = {
        "kl": found.kl,
        "clip_ratio/low_mean": found.clipped_low,
        "clip_ratio/high_mean": found.clipped_high,
        "clip_ratio/region_mean": found.clipped,
        "ratio/mean": found.ratio,
    }
    return {name: mean for name, mean in named.items() if mean is not None}


def setting_metrics(settings: dict[str, Array]) -> dict[str, Array]:
    """Hyper-parameters that follow the run, by name, and by place where they are several."""
    named = {name: jnp.atleast_1d(value) for name, value in settings.items()}
    return {
        f"algorithm/{name}" + (f"_{i}" if len(values) > 1 else ""): value
        for name, values in named.items()
        for i, value in enumerate(values)
    }


def host_metrics(scored: Scored) -> dict[str, float]:
    """Rewards and lengths of a rollout."""
    reward, length, correct = scored.reward, scored.rollout.length, scored.correct
    finished = scored.rollout.finished
    mean = lambda x: float(np.mean(x)) if np.size(x) else 0.0  # noqa: E731
    equal = (reward == reward[:, :1]).all(1)
    spread = reward.std(1, ddof=1) if reward.shape[1] > 1 else np.zeros(len(reward))
    return {
        "reward": mean(reward),
        "reward_std": mean(spread),
        "frac_reward_zero_std": mean(equal),
        **{f"rewards/{name}/mean": mean(part) for name, part in scored.rewards.items()},
        "accuracy": mean(correct),
        "completions/mean_length": mean(length),
        "completions/min_length": float(length.min()),
        "completions/max_length": float(length.max()),
        "completions/mean_terminated_length": mean(length[finished]),
        "completions/clipped_ratio": mean(~finished),
        "completions/mean_length_correct": mean(length[correct]),
        "completions/mean_length_wrong": mean(length[~correct]),
        "iapo/thinking_length": mean(scored.thinking_length),
        **{f"checker/{name}": float(count) for name, count in scored.checker.items()},
    }


def update_metrics(updates: Sequence[dict[str, Any]], tried: int) -> dict[str, float]:
    """Means over the updates of a step that were not skipped, and how many were.

    Args:
      updates: metrics of each, on the host; none where the rollout itself was skipped.
      tried: how many there are in a step.
    """
    done = [one for one in updates if not one["skipped"]]
    names = [name for name in (done or updates or [{"loss": 0, "grad_norm": 0}])[0]]
    mean = lambda name: float(np.mean([one[name] for one in done])) if done else float("nan")  # noqa: E731
    told = {name: mean(name) for name in names if name != "skipped"}
    return told | {"skipped/updates": float(tried - len(done))}


def completion_rows(problems: Problems, scored: Scored) -> list[dict]:
    """One object for each completion, for completions/step_N.jsonl."""
    count = scored.reward.shape[1]
    rows = []
    for index, text in enumerate(scored.texts):
        prompt, sample = divmod(index, count)
        row = int(scored.indices[prompt])
        rows.append(
            {
                "row": row,
                "prompt": problems.texts[row],
                "completion": text,
                "answer": problems.answers[row],
                "reward": float(scored.reward[prompt, sample]),
                "correct": bool(scored.correct[prompt, sample]),
                "length": int(scored.rollout.length[prompt, sample]),
                "thinking_length": int(scored.thinking_length[prompt, sample]),
            }
        )
    return rows


def headline(row: dict[str, float]) -> str:
    """The figures beside the progress bar; the KL only where it is in the loss."""
    kl = f"kl {row['kl']:.4f} " if "kl" in row else ""
    return (
        f"reward {row['reward']:+.3f} accuracy {row['accuracy']:.2f} "
        f"length {row['completions/mean_length']:.1f} {kl}grad {row['grad_norm']:.2f}"
    )


def describe_run(setup: Any) -> str:
    """What is about to run, with every derived number."""
    config, opened, spec = setup.config, setup.loaded.pretrained, setup.spec
    batch, c = config.batch, opened.config
    weights = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(param_shapes(c)))
    stops = {i: opened.tokenizer.convert_ids_to_tokens(i) for i in opened.stop_ids}
    padded = int((~opened.allowed).sum())
    lines = [
        f"model       {opened.directory or config.model.config}: {opened.hf_config['model_type']}, "
        f"{weights:,} parameters, {c.dtype} layers",
        f"stops at    {stops}; {padded} of {c.vocab_size} ids have no token and are never drawn",
        f"data        {config.data.dataset}: {len(setup.problems.tokens)} prompts"
        + (f", {setup.problems.left_out} too long" if setup.problems.left_out else ""),
        *(f"            {note}" for note in setup.notes),
        *([f"selection   {describe_selection(setup)}"] if setup.selection.task else []),
        f"step        {batch.prompts_per_step} prompts x {batch.num_generations} completions of up "
        f"to {config.sampling.max_completion_length} tokens; "
        f"{batch.mini_batches * batch.num_iterations} update(s) of {spec.micro_batches} "
        f"micro-batch(es) of {batch.prompts_per_step // batch.mini_batches // spec.micro_batches} "
        "prompts",
        f"algorithm   {describe_algorithm(setup)}",
        *([f"asks        {probes.describe(setup.probe_maker)}"] if setup.probe_maker else []),
        f"devices     {_describe_devices(setup.loaded.mesh)}",
        f"output      {config.output_dir}",
    ]
    return "\n".join(lines)


def _describe_devices(mesh: Mesh) -> str:
    if is_described(mesh):
        return f"{dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}, not here"
    return f"{dict(mesh.shape)} of {jax.device_count()} {jax.devices()[0].platform}"


def describe_selection(setup: Any) -> str:
    """How the checkpoint that is kept is chosen, in one line."""
    section, count = setup.config.selection, len(setup.selection.task.problems.rows)
    guard = f", accuracy at most {section.tolerance} below the start's"
    return (
        f"{count} of the training problems are held out; the checkpoint with the best "
        f"{section.criterion}{guard * (section.criterion == 'ratio')} is kept"
    )


def describe_algorithm(setup: Any) -> str:
    """Name, source, pieces with what is bound to them, and loss, in one line."""
    algorithm, section = setup.algorithm, setup.config.algorithm
    told = [f"{section.name} ({algorithm.source})" if algorithm.source else section.name]
    for field, piece in algorithm.pieces().items():
        bound = getattr(piece, "keywords", {})
        name = getattr(getattr(piece, "func", piece), "__name__", type(piece).__name__)
        told.append(f"{field} {name}" + (f" {bound}" if bound else ""))
    if algorithm.adapt is not None:
        told.append(f"adapt {section.adapt or 'its own'}")
    if algorithm.dynamic_sampling:
        told.append(f"dynamic sampling, up to {section.max_rounds} rounds")
    told.append(f"loss {algorithm.loss._asdict()}")
    return "; ".join(told)
