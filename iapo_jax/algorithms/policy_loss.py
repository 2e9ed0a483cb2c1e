"""The policy loss: clipped surrogate, KL to a reference, aggregation.

Every loss is a sum over tokens, divided by counts of the full batch. Each micro-batch or device
therefore computes its share of the loss, and the shares add up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.types import Array, Credit, Mean

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
LOG_RATIO_LIMIT = 20.0  # nats; e^20 is 5e8. Beyond it the ratio is constant, without a gradient


class LossOptions(NamedTuple):
    """Hyper-parameters of `policy_loss`; names and meanings are TRL's.

    >>> LossOptions(loss_type="dapo", epsilon_high=0.28).beta
    0.0
    """

    loss_type: str = "grpo"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.0


class LossScale(NamedTuple):
    """Denominators of the full batch.

    >>> LossScale(tokens=jnp.float32(12), completions=jnp.float32(3)).tokens.item()
    12.0
    """

    tokens: Array  # sum of all weights
    completions: Array  # number of completions with a nonzero weight


class LossStatistics(NamedTuple):
    """Statistics of the policy's ratio and KL: means over the tokens with nonzero weight.

    >>> LossStatistics(*[Mean(jnp.float32(1), jnp.float32(2))] * 5).ratio.value().item()
    0.5
    """

    ratio: Mean  # p(o_t) / p_old(o_t)
    clipped_low: Mean  # share of tokens below 1 - epsilon whose advantage is negative
    clipped_high: Mean  # share of tokens above 1 + epsilon_high whose advantage is positive
    clipped: Mean  # share of tokens with either
    kl: Mean | None = None  # nats, by `k3`; None without a reference


def loss_scale(weight: Array) -> LossScale:
    """Counts of the full batch: weights [..., T] -> scalars.

    Only a loop over micro-batches needs them: `policy_loss` counts its own batch by default.

    >>> scale = loss_scale(jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    >>> print(scale.tokens, scale.completions)
    3.0 2.0
    """
    return LossScale(weight.sum(), (weight.sum(-1) > 0).sum().astype(jnp.float32))


def k3(log_prob: Array, ref_log_prob: Array) -> Array:
    """exp(d) - d - 1 with d = ref - log_prob: an unbiased, non-negative estimate of the KL.

    Unbiased for tokens drawn from the policy that is scored. TRL since 1.10 multiplies it by the
    ratio unless `use_bias_correction_kl=False`; with one update per rollout the ratio is 1. d is
    limited to LOG_RATIO_LIMIT. Source: joschu.net/blog/kl-approx.html.

    Args:
      log_prob, ref_log_prob: [...] nats, of the same tokens.

    Returns:
      [...] nats.

    >>> print(k3(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 0.25]))).round(3))
    [0.    0.193]
    """
    d = jnp.minimum(ref_log_prob - log_prob, LOG_RATIO_LIMIT)
    return jnp.exp(d) - d - 1


def clipped_surrogate(
    ratio: Array, advantage: Array, *, epsilon: float, epsilon_high: float
) -> Array:
    """-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) of each token; arXiv:1707.06347.

    Args:
      ratio, advantage: [...].

    >>> ratio, advantage = jnp.array([2.0, 2.0, 0.5]), jnp.array([1.0, -1.0, -1.0])
    >>> print(clipped_surrogate(ratio, advantage, epsilon=0.2, epsilon_high=0.3))
    [-1.3  2.   0.8]
    """
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def aggregate(
    per_token: Array, weight: Array, scale: LossScale, *, loss_type: str, max_length: int
) -> Array:
    """These completions' share of the batch's loss, from the losses of their tokens.

    "grpo": mean over tokens, then over completions (arXiv:2402.03300). "bnpo" and "dapo": mean over
    the batch's tokens (arXiv:2503.14476; the two are equal here, since counts are those of the full
    batch). "dr_grpo": sum over tokens / (completions x max_length) (arXiv:2503.20783). 0 if every
    weight is 0.

    Args:
      per_token, weight: [..., T].
      scale: counts of the full batch.
      max_length: for "dr_grpo", in tokens.

    Raises:
      ValueError: for an unknown loss_type.

    >>> per_token = jnp.array([[6.0, 0.0], [1.0, 3.0]])
    >>> weight = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> for name in ("grpo", "dapo", "dr_grpo"):
    ...     loss = aggregate(per_token, weight, loss_scale(weight), loss_type=name, max_length=5)
    ...     print(name, loss.round(2))
    grpo 4.0
    dapo 3.33
    dr_grpo 1.0
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
    credit: Credit,
    *,
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float = 0.28,
    beta: float = 0.0,
    ref_log_prob: Array | None = None,
    max_length: int | None = None,
    scale: LossScale | None = None,
) -> Array:
    """aggregate(-min(ratio A, clip(ratio) A) + beta k3), ratio = exp(log_prob - old_log_prob).

    Since the log of the ratio is limited to LOG_RATIO_LIMIT, as in verl, the loss and its gradient
    are finite for every finite input, except for advantages beyond 1e27. Names and meanings are
    TRL's.

    Args:
      log_prob: [..., T] nats, of the policy that learns; the other arrays are constants.
      old_log_prob: [..., T] nats, of the policy that sampled.
      credit: advantage and weight [..., T]; the loss ignores the bonus.
      loss_type: as for `aggregate`.
      epsilon, epsilon_high: the ratio is clipped to [1 - epsilon, 1 + epsilon_high].
      beta: weight of the KL to the reference.
      ref_log_prob: [..., T] nats, of the reference; needed if beta is not 0.
      max_length: longest completion in tokens, for "dr_grpo"; T by default.
      scale: counts of the full batch (`loss_scale`) if these completions are only a part of it; by
        default they are the batch.

    Returns:
      A scalar.

    Raises:
      ValueError: for an unknown loss_type, or if beta is not 0 and `ref_log_prob` is None.

    >>> credit = Credit(advantage=jnp.array([[1.0, -1.0]]), weight=jnp.ones((1, 2)))
    >>> old = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> loss, gradient = jax.value_and_grad(policy_loss)(old, old, credit)
    >>> print(loss, gradient)
    0.0 [[-0.5  0.5]]
    """
    if beta and ref_log_prob is None:
        raise ValueError(
            f"beta is {beta}, but ref_log_prob is None; expected ref_log_prob for the KL term, or "
            "beta=0"
        )
    weight = credit.weight
    scale = loss_scale(weight) if scale is None else scale
    log_prob, ratio = _ratio(log_prob, old_log_prob, weight)
    per_token = clipped_surrogate(
        ratio, credit.advantage, epsilon=epsilon, epsilon_high=epsilon_high
    )
    if beta:
        per_token = per_token + beta * k3(log_prob, _constant(ref_log_prob, weight))
    limit = log_prob.shape[-1] if max_length is None else max_length
    return aggregate(per_token, weight, scale, loss_type=loss_type, max_length=limit)


def loss_statistics(
    log_prob: Array,
    old_log_prob: Array,
    credit: Credit,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.28,
    ref_log_prob: Array | None = None,
) -> LossStatistics:
    """Ratio, shares of clipped tokens, and KL: `Mean`s over the tokens with nonzero weight.

    Args:
      log_prob, old_log_prob, credit, epsilon, epsilon_high, ref_log_prob: as for `policy_loss`.

    >>> credit = Credit(advantage=jnp.array([[1.0, -1.0]]), weight=jnp.ones((1, 2)))
    >>> log_prob, old = jnp.log(jnp.array([[0.8, 0.5]])), jnp.log(jnp.array([[0.4, 0.5]]))
    >>> found = loss_statistics(log_prob, old, credit)
    >>> print(found.ratio.value(), found.clipped_high.value(), found.clipped_low.value())
    1.5 0.5 0.0
    """
    advantage, weight = credit.advantage, credit.weight
    log_prob, ratio = _ratio(log_prob, old_log_prob, weight)
    low = (ratio < 1 - epsilon) & (advantage < 0)
    high = (ratio > 1 + epsilon_high) & (advantage > 0)
    real = weight > 0
    count = real.sum().astype(jnp.float32)

    def mean(x: Array) -> Mean:
        return Mean(jnp.where(real, x, 0.0).sum(), count)

    return LossStatistics(
        ratio=mean(ratio),
        clipped_low=mean(low),
        clipped_high=mean(high),
        clipped=mean(low | high),
        kl=None if ref_log_prob is None else mean(k3(log_prob, _constant(ref_log_prob, weight))),
    )


def _ratio(log_prob: Array, old_log_prob: Array, weight: Array) -> tuple[Array, Array]:
    """log_prob, 0 where the weight is 0, and the limited ratio exp(log_prob - old_log_prob)."""
    log_prob = jnp.where(weight > 0, log_prob, 0.0)
    difference = log_prob - _constant(old_log_prob, weight)
    return log_prob, jnp.exp(jnp.minimum(difference, LOG_RATIO_LIMIT))


def _constant(log_prob: Array, weight: Array) -> Array:
    return jnp.where(weight > 0, jax.lax.stop_gradient(log_prob), 0.0)
