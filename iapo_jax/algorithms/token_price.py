"""A price for every thinking token: the credit rule `iapo_priced`.

Rules have the signature described in `advantages`.
"""

import jax.numpy as jnp

from iapo_jax.algorithms.advantages import token_credit
from iapo_jax.algorithms.preconditions import check_at_least, check_fields, check_one_of
from iapo_jax.algorithms.statistics import (
    group_advantage,
    is_kept,
    least_squares,
    root_mean_square,
)
from iapo_jax.types import Array, Credit, Group

NORMALIZERS = ("rms", "none")
UNITS = ("share", "probability", "nats")
LEAST_START = 0.1  # nats: the least initial uncertainty that the unit "share" divides by


def iapo_priced(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 3.0,
    price: float = 0.002,
    unit: str = "share",
    only_correct: bool = False,
    normalizer: str = "rms",
    scale_rewards: str = "group",
) -> Credit:
    """A_t = z(r) + alpha (R_t - b(v_{t-1})) / rms: the information still to come, minus its cost.

    alpha is `information_weight`; with 0 the rule is GRPO. v_t is the remaining uncertainty after t
    tokens, relative to the initial one with the unit "share": v_t = u_t / max(u_0, 0.1 nats), where
    u_0 is the group's mean. On thinking tokens r_t = v_{t-1} - v_t - price and R_t = sum_{k >= t}
    r_k: the information that the rest of the reasoning adds, minus `price` for each of its tokens.
    So n tokens that carry all the information pay off if n * price < 1. The token that ends
    thinking has R = 0: it competes with continuing. The baseline b is the least-squares line of R
    on v_{t-1} over the group's thinking tokens. rms is the root mean square of R - b over these
    tokens and those that end thinking. An `adaptation` can adapt the price. Ours; see
    docs/methods.md.

    Args:
      group: needs `reward`, `uncertainty` [G, T+1] and `thinking` [G, T].
      key: unused.
      price: cost per thinking token, in `unit`.
      unit: "share"; or "probability", v = 1 - exp(-u), the probability of an incorrect answer where
        u = -log p(y*) of the reference answer (the method's own estimator); or "nats", v = u.
      only_correct: incorrect completions get z(r) alone. If u is an entropy, this keeps the rule
        from rewarding confidence in an incorrect answer. Needs `correct`.
      normalizer: "rms", or "none" to leave the division out.
      scale_rewards: as for `grpo`.

    Returns:
      Credit of [G, T] arrays.

    Raises:
      ValueError: for an unknown name, a negative price, or a group without a field that is needed.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.array([1.0, -1.0]),
    ...               uncertainty=jnp.array([[2.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]),
    ...               thinking=jnp.array([[True, True, False]] * 2))
    >>> print(iapo_priced(group, information_weight=1.0, price=0.1).bonus[0].round(1))
    [ 1.5  0.  -1.5]
    """
    del key
    check_at_least("price", price, 0)
    check_one_of("unit", unit, UNITS)
    check_one_of("normalizer", normalizer, NORMALIZERS)
    check_fields(group, "iapo_priced", "uncertainty", "thinking")
    base = group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    gate = jnp.ones((group.mask.shape[0], 1), bool)
    if only_correct:
        check_fields(group, "iapo_priced (only_correct)", "correct")
        gate = group.correct[:, None]
    stop = group.mask & ~group.thinking
    stop = stop & (jnp.cumsum(stop, axis=-1) == 1)  # the token that ends thinking
    thinking = group.thinking & group.mask & gate

    remaining = _remaining(group, unit)
    information = remaining[:, :-1] - remaining[:, 1:]
    gain = jnp.where(group.thinking & group.mask, information - price, 0.0)
    to_come = jnp.cumsum(gain[:, ::-1], axis=-1)[:, ::-1]  # 0 on the stop token
    baseline = least_squares(remaining[:, :-1], to_come, thinking)
    surprise = jnp.where(thinking | (stop & gate), to_come - baseline, 0.0)
    count = jnp.maximum((thinking | (stop & gate)).sum(), 1)
    if normalizer == "rms":
        surprise /= root_mean_square(surprise, count) + 1e-6
    return token_credit(group, base, information_weight * surprise)


def _remaining(group: Group, unit: str) -> Array:
    """v_t of `iapo_priced`: [G, T+1]."""
    u = group.uncertainty
    if unit == "probability":
        return -jnp.expm1(-u)
    if unit == "share":
        kept = is_kept(group)
        start = jnp.where(kept, u[:, 0], 0.0).sum() / jnp.maximum(kept.sum(), 1)
        return u / jnp.maximum(start, LEAST_START)
    return u
