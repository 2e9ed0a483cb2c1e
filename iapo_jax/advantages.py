"""Credit rules: how much each token of a group's completions is to be reinforced.

Every rule is `(Group, key, *, hyper-parameters) -> Credit` for ONE prompt; `jax.vmap` does the
rest. All statistics are masked: padding changes nothing. Symbols are those of `types`.
"""

import chex
import jax.numpy as jnp

from iapo_jax.types import Array, Credit, Group

_REWARD_EPSILON = 1e-4  # TRL's; keeps a group of nearly equal rewards from exploding
_TOKEN_EPSILON = 1e-6


def group_advantage(reward: Array, *, scale_rewards: str = "group") -> Array:
    """z(r) = (r - mean) / (std + 1e-4), sample std; [G] -> [G].

    `scale_rewards="none"` leaves the division out (Dr. GRPO). Rewards that are all equal give
    exactly 0: they are compared for equality, not their rounded std with 0.
    """
    chex.assert_rank(reward, 1)
    centred = reward - reward.mean()
    if scale_rewards == "group":
        count = max(reward.shape[0] - 1, 1)
        std = jnp.sqrt((centred**2).sum() / count)
        centred = centred / (std + _REWARD_EPSILON)
    elif scale_rewards != "none":
        raise ValueError(f"scale_rewards is {scale_rewards!r}; expected group or none")
    return jnp.where((reward == reward[0]).all(), 0.0, centred)


def standardise(x: Array, mask: Array) -> Array:
    """(x - mean) / std over the masked tokens of each completion: [G, T] -> [G, T].

    0 outside the mask, and for a completion whose values do not vary.
    """
    count = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = jnp.where(mask, x, 0.0).sum(-1, keepdims=True) / count
    centred = jnp.where(mask, x - mean, 0.0)
    std = jnp.sqrt((centred**2).sum(-1, keepdims=True) / count)
    return centred / (std + _TOKEN_EPSILON)


def _per_token(advantage: Array, group: Group) -> Credit:
    weight = group.mask.astype(jnp.float32)
    return Credit(jnp.where(group.mask, advantage, 0.0), weight)


def grpo(group: Group, key: Array | None = None, *, scale_rewards: str = "group") -> Credit:
    """A_t = z(r), the same for all tokens of a completion. Sec. 4.1 of arXiv:2402.03300."""
    del key
    advantage = group_advantage(group.reward, scale_rewards=scale_rewards)
    return _per_token(advantage[:, None], group)


def iapo(
    group: Group,
    key: Array | None = None,
    *,
    alpha: float = 1e-2,
    beta: float = 1e-2,
    scale_rewards: str = "group",
) -> Credit:
    """A_t = z(r) + alpha z(s_t) + beta z(c_t), as arXiv:2602.19049 states it.

    s_t is the informativeness in nats; c_t = +p(o_t) in a correct completion, -p(o_t) in a wrong
    one, with p the sampling policy's probability. z over the group for r, over the completion's
    tokens for s and c. The paper searches alpha and beta in {1e-6, 1e-4, 1e-2, 1}; `beta` is not
    the weight of the KL.
    """
    del key
    base = group_advantage(group.reward, scale_rewards=scale_rewards)[:, None]
    information = standardise(group.informativeness, group.mask)
    sign = jnp.where(group.correct, 1.0, -1.0)[:, None]
    exploration = standardise(sign * jnp.exp(group.log_prob), group.mask)
    return _per_token(base + alpha * information + beta * exploration, group)


def iapo_priced(
    group: Group,
    key: Array | None = None,
    *,
    alpha: float = 0.3,
    price: float = 0.02,
    only_correct: bool = True,
    scale_rewards: str = "group",
) -> Credit:
    """A_t = z(r) + alpha (R_t - b(u_{t-1})) / rms: information to come, less its price in tokens.

    On thinking tokens r_t = s_t - price and R_t = sum_{k >= t} r_k: what the completion still
    learns about the answer, less `price` nats for each token it takes. The token that ends
    thinking has R = 0: it competes with going on. The baseline b is the least-squares line of R
    on u_{t-1} over the group's thinking tokens, a free critic; rms is that of R - b over the same
    tokens. With `only_correct`, wrong completions get z(r) alone: being confident early is no
    merit by itself. alpha = 0 is GRPO. Ours; see README.
    """
    del key
    base = group_advantage(group.reward, scale_rewards=scale_rewards)[:, None]
    gate = group.correct[:, None] if only_correct else jnp.ones_like(group.correct)[:, None]
    stop = group.mask & ~group.thinking
    stop = stop & (jnp.cumsum(stop, axis=-1) == 1)  # the token that ends thinking
    thinking = group.thinking & gate

    u_tm1 = group.uncertainty[:, :-1]
    gain = jnp.where(group.thinking, group.informativeness - price, 0.0)
    to_go = jnp.cumsum(gain[:, ::-1], axis=-1)[:, ::-1]  # 0 on the stop token by itself
    critic = _least_squares(u_tm1, to_go, thinking)
    surprise = jnp.where(thinking | (stop & gate), to_go - critic, 0.0)
    count = jnp.maximum((thinking | (stop & gate)).sum(), 1)
    rms = jnp.sqrt((surprise**2).sum() / count)
    return _per_token(base + alpha * surprise / (rms + _TOKEN_EPSILON), group)


def _least_squares(x: Array, y: Array, mask: Array) -> Array:
    """The line of y on x over the masked entries, evaluated at every x."""
    count = jnp.maximum(mask.sum(), 1)
    mean_x, mean_y = (jnp.where(mask, v, 0.0).sum() / count for v in (x, y))
    dx, dy = (jnp.where(mask, v - m, 0.0) for v, m in ((x, mean_x), (y, mean_y)))
    slope = (dx * dy).sum() / ((dx**2).sum() + _TOKEN_EPSILON)
    return mean_y + slope * (x - mean_x)
