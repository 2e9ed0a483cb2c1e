"""The policy loss: clipped surrogate, KL to the reference, aggregation.

Everything is a sum over tokens with denominators of the WHOLE batch, so that a micro-batch or a
device computes its share and the shares add up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.types import Array, Mean

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")


LOG_RATIO_LIMIT = 20.0  # nats; e^20 is 5e8. Beyond it a token is taken at the limit, without slope


class LossOptions(NamedTuple):
    """How the loss is made; names and meanings are TRL's."""

    loss_type: str = "grpo"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0


class LossScale(NamedTuple):
    """Denominators of the whole batch."""

    tokens: Array  # sum of all weights
    completions: Array  # number of completions with any weight


def loss_scale(weight: Array) -> LossScale:
    """Counts over the whole batch: weight [..., T] -> scalars."""
    return LossScale(weight.sum(), (weight.sum(-1) > 0).sum().astype(jnp.float32))


def k3(log_prob: Array, ref_log_prob: Array) -> Array:
    """exp(d) - d - 1 with d = ref - log_prob: an unbiased, non-negative estimate of the KL.

    Unbiased for tokens drawn from the policy that is scored. TRL since 1.10 multiplies it by the
    ratio unless `use_bias_correction_kl=False`; with one update per rollout the ratio is 1. d
    counts up to LOG_RATIO_LIMIT.
    """
    d = jnp.minimum(ref_log_prob - log_prob, LOG_RATIO_LIMIT)
    return jnp.exp(d) - d - 1


def clipped_surrogate(
    ratio: Array, advantage: Array, *, epsilon: float, epsilon_high: float
) -> Array:
    """-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A), per token."""
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def aggregate(
    per_token: Array, weight: Array, scale: LossScale, *, loss_type: str, max_length: int
) -> Array:
    """This part's share of the batch's loss, from per-token losses [..., T].

    grpo: mean over tokens, then over completions. bnpo and dapo: mean over the batch's tokens (the
    same here, where counts are global). dr_grpo: sum over tokens / (completions x max_length).
    All 0 where every weight is 0.
    """
    total = (per_token * weight).sum(-1)
    if loss_type == "grpo":
        total = total / jnp.maximum(weight.sum(-1), 1e-9)
        return total.sum() / jnp.maximum(scale.completions, 1)
    if loss_type in ("bnpo", "dapo"):
        return total.sum() / jnp.maximum(scale.tokens, 1e-9)
    if loss_type == "dr_grpo":
        return total.sum() / (jnp.maximum(scale.completions, 1) * max_length)
    raise ValueError(f"loss_type is {loss_type!r}; expected one of {', '.join(LOSS_TYPES)}")


def policy_loss(
    log_prob: Array,
    old_log_prob: Array,
    ref_log_prob: Array,
    advantage: Array,
    weight: Array,
    scale: LossScale,
    *,
    options: LossOptions,
    max_length: int,
) -> tuple[Array, dict[str, Mean]]:
    """The share of these completions in the batch's loss, and metrics as sums and counts.

    Finite, with its gradient, for every finite input but advantages beyond 1e27: the log of the
    ratio counts up to LOG_RATIO_LIMIT, as in verl.

    Args:
      log_prob: [..., T] of the policy that learns; the others are constants.
      old_log_prob: of the policy that sampled; ref_log_prob: of the reference (k3 KL, `beta`).
      advantage, weight: of `Credit`.
      max_length: T of the configuration, for dr_grpo.
    """
    old_log_prob, ref_log_prob = map(jax.lax.stop_gradient, (old_log_prob, ref_log_prob))
    real = weight > 0
    log_prob = jnp.where(real, log_prob, 0.0)
    old_log_prob = jnp.where(real, old_log_prob, 0.0)
    ref_log_prob = jnp.where(real, ref_log_prob, 0.0)
    ratio = jnp.exp(jnp.minimum(log_prob - old_log_prob, LOG_RATIO_LIMIT))
    per_token = clipped_surrogate(
        ratio, advantage, epsilon=options.epsilon, epsilon_high=options.epsilon_high
    )
    if options.beta:
        kl = k3(log_prob, ref_log_prob)
        per_token = per_token + options.beta * kl
    loss = aggregate(per_token, weight, scale, loss_type=options.loss_type, max_length=max_length)
    low = (ratio < 1 - options.epsilon) & (advantage < 0)
    high = (ratio > 1 + options.epsilon_high) & (advantage > 0)
    count = real.sum().astype(jnp.float32)
    mean = lambda x: Mean(jnp.where(real, x, 0.0).sum(), count)  # noqa: E731
    metrics = {
        **({"kl": mean(kl)} if options.beta else {}),
        "clip_ratio/low_mean": mean(low),
        "clip_ratio/high_mean": mean(high),
        "clip_ratio/region_mean": mean(low | high),
        "ratio/mean": mean(ratio),
    }
    return loss, metrics
