"""Credit rules that use completion-level rewards (GRPO, RLOO) or token entropy (GTPO).

Every rule is `(Group, key, *, hyper-parameters) -> Credit` for ONE prompt; `jax.vmap` maps it over
the prompts of a step. All statistics are masked: padding changes nothing, and neither do the
completions that a filter has left out. Symbols are those of `types`. The rules that use information
are in `information_advantages` and `token_price`. The other pieces of a method are in
`reward_shaping`, `filters` and `policy_loss`; `methods` combines them.
"""

import jax.numpy as jnp

from iapo_jax.algorithms.preconditions import check_fields, check_one_of
from iapo_jax.algorithms.statistics import (
    REWARD_EPSILON,
    group_advantage,
    is_kept,
    leave_one_out,
    magnitude,
    root_mean_square,
)
from iapo_jax.types import Array, Credit, Group

GTPO_NORMALIZERS = ("completions", "tokens", "sides")


def token_credit(group: Group, base: Array, bonus: Array | None = None) -> Credit:
    """A_t = base of the completion [G] + bonus of the token [G, T]."""
    bonus = jnp.zeros(group.mask.shape) if bonus is None else jnp.where(group.mask, bonus, 0.0)
    advantage = jnp.where(group.mask, base[:, None] + bonus, 0.0)
    return Credit(advantage, group.mask.astype(jnp.float32), bonus)


def grpo(group: Group, key: Array | None = None, *, scale_rewards: str = "group") -> Credit:
    """A_t = z(r) = (r - mean) / (std + 1e-4), the same for all tokens of a completion.

    With `scale_rewards="none"` it is r - mean, as in Dr. GRPO (arXiv:2503.20783). Sec. 4.1 of
    arXiv:2402.03300.

    Args:
      group: needs `mask` [G, T] and `reward` [G].
      key: unused.

    Returns:
      Credit of [G, T] arrays; its bonus is 0.

    Raises:
      ValueError: for an unknown `scale_rewards`.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.array([1.0, -1.0]))
    >>> print(grpo(group).advantage.round(2))
    [[ 0.71  0.71  0.71]
     [-0.71 -0.71 -0.71]]
    """
    del key
    base = group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    return token_credit(group, base)


def rloo(group: Group, key: Array | None = None) -> Credit:
    """A_t = r_i - mean of the other completions' r, the same for all tokens of a completion.

    This is the advantage of Dr. GRPO times G / (G - 1), which makes it unbiased. arXiv:2402.14740.

    Args:
      group: needs `mask` [G, T] and `reward` [G].
      key: unused.

    Returns:
      Credit of [G, T] arrays; its bonus is 0.

    >>> group = Group(mask=jnp.ones((2, 2), bool), reward=jnp.array([1.0, 0.0]))
    >>> print(rloo(group).advantage)
    [[ 1.  1.]
     [-1. -1.]]
    """
    del key
    return token_credit(group, leave_one_out(group.reward, is_kept(group)))


def gtpo(
    group: Group,
    key: Array | None = None,
    *,
    entropy_weight: float = 0.1,
    normalizer: str = "completions",
) -> Credit:
    """A_t = (r_t - mean) / (std + 1e-4), where the reward r_t of a token follows its entropy.

    r_t = r + alpha n_t H_t / sum_k H_kt in correct completions, and
    r_t = r - alpha n_t (1/H_t) / sum_k (1/H_kt) in incorrect ones. alpha is `entropy_weight`, H_t
    the next-token entropy in nats; the sums run over the n_t completions of the same side (correct
    or incorrect) that have a token t. Eq. 3 and 5 of arXiv:2508.04349.

    Args:
      group: needs `reward`, `correct` and `entropy`.
      key: unused.
      normalizer: what mean and std are computed over; published versions differ. "tokens": all
        tokens of the group. "sides": correct and incorrect completions separately (one reading of
        version 6 of the paper); each side then has mean 0, so correct answers get no net advantage.
        "completions": each completion once, by the mean of its tokens; then alpha = 0 is exactly
        GRPO, and a comparison shows the entropy term alone. (The IAPO authors add the entropy term
        to z(r), and multiply it by the completion's own length instead of n_t.)

    Returns:
      Credit of [G, T] arrays.

    Raises:
      ValueError: for an unknown normalizer, or for a group without a field that is needed.

    >>> group = Group(mask=jnp.ones((2, 2), bool), reward=jnp.array([1.0, 0.0]),
    ...               correct=jnp.array([True, False]), entropy=jnp.array([[2.0, 1.0], [1.0, 1.0]]))
    >>> print(gtpo(group, normalizer="tokens").advantage.round(2))
    [[ 1.  1.]
     [-1. -1.]]
    """
    del key
    check_one_of("normalizer", normalizer, GTPO_NORMALIZERS)
    check_fields(group, "gtpo", "correct", "entropy")
    correct, mask = group.correct[:, None], group.mask
    side = jnp.where(correct == correct[:, 0], 1.0, 0.0)  # [G, G]: the same side
    entropy = jnp.maximum(group.entropy, 0.0)  # rounding may leave an entropy just below 0
    weight = jnp.where(mask, jnp.where(correct, entropy, 1 / (entropy + 1e-8)), 0.0)
    count = jnp.matmul(side, mask.astype(jnp.float32), precision="highest")
    share = weight * count / (jnp.matmul(side, weight, precision="highest") + 1e-8)
    shaped = entropy_weight * jnp.where(mask, jnp.where(correct, share, -share), 0.0)
    base = group_advantage(group.reward, is_kept(group))
    if normalizer == "completions":
        advantage = _by_completions(group, shaped)
    else:
        # Only differences matter; added to a large common reward, a share would be rounded away.
        centered = group_advantage(group.reward, is_kept(group), scale_rewards="none")
        total = jnp.where(mask, centered[:, None] + shaped, 0.0)
        first = mask & correct if normalizer == "sides" else mask
        advantage = _by_tokens(total, first) + _by_tokens(total, mask & ~first)
    return token_credit(group, base, advantage - base[:, None])


def _by_completions(group: Group, shaped: Array) -> Array:
    length = jnp.maximum(group.mask.sum(-1), 1)
    count = is_kept(group).sum()
    level = shaped.sum(-1) / length  # [G]
    centered = group_advantage(group.reward, is_kept(group), scale_rewards="none")
    deviation = jnp.where(group.mask, shaped - level.sum() / jnp.maximum(count, 1), 0.0)
    total = centered[:, None] + deviation
    unit = magnitude(total).squeeze()
    once, more = centered / unit, deviation / unit
    square = once**2 + (2 * once * more.sum(-1) + (more**2).sum(-1)) / length
    std = unit * jnp.sqrt(jnp.maximum(square.sum(), 0.0) / jnp.maximum(count - 1, 1))
    return total / (std + REWARD_EPSILON)


def _by_tokens(x: Array, mask: Array) -> Array:
    count = jnp.maximum(mask.sum(), 1)
    centered = jnp.where(mask, x - jnp.where(mask, x, 0.0).sum() / count, 0.0)
    return centered / (root_mean_square(centered, count) + REWARD_EPSILON)
