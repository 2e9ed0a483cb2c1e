"""Masked statistics of one group that credit rules share: baselines, normalizers, random draws."""

import chex
import jax
import jax.numpy as jnp

from iapo_jax.algorithms.preconditions import check_fields
from iapo_jax.types import Array, Group

NORMALIZERS = ("completion", "group", "norm", "none")
REWARD_EPSILON = 1e-4  # TRL's; keeps nearly equal rewards from getting large advantages
TOKEN_EPSILON = 1e-4  # above the noise of a probe, which would otherwise be scaled up to 1


def is_kept(group: Group) -> Array:
    """Completions that take part: those with a token in the mask; [G] bool."""
    return group.mask.any(-1)


def group_advantage(
    reward: Array, where: Array | None = None, *, scale_rewards: str = "group"
) -> Array:
    """z(r) = (r - mean) / (std + 1e-4), sample std; [G] -> [G].

    Rewards that are all equal give exactly 0: they are measured from the lowest, so that nothing is
    rounded. Sec. 4.1 of arXiv:2402.03300.

    Args:
      reward: [G] float32.
      where: [G] bool, the completions that enter the statistics (all by default); others get 0.
      scale_rewards: "none" leaves the division out (Dr. GRPO, arXiv:2503.20783).

    Raises:
      ValueError: for an unknown `scale_rewards`.

    >>> print(group_advantage(jnp.array([2.0, 0.0, 1.0])).round(2))
    [ 1. -1.  0.]
    """
    chex.assert_rank(reward, 1)
    where = jnp.ones_like(reward, bool) if where is None else where
    count = where.sum()
    centered = _centered(reward, where)
    if scale_rewards == "group":
        std = root_mean_square(centered, jnp.maximum(count - 1, 1))
        centered = centered / (std + REWARD_EPSILON)
    elif scale_rewards != "none":
        raise ValueError(f"scale_rewards is {scale_rewards!r}; expected group or none")
    return centered


def leave_one_out(reward: Array, where: Array | None = None) -> Array:
    """r_i - mean of the others' r = (r_i - mean) n / (n - 1); [G] -> [G].

    0 for a completion without others. arXiv:2402.14740 (RLOO). Arguments as for `group_advantage`.

    >>> print(leave_one_out(jnp.array([3.0, 1.0, 2.0])))
    [ 1.5 -1.5  0. ]
    """
    chex.assert_rank(reward, 1)
    where = jnp.ones_like(reward, bool) if where is None else where
    count = where.sum()
    return _centered(reward, where) * count / jnp.maximum(count - 1, 1)


def _centered(reward: Array, where: Array) -> Array:
    # Measured from the lowest: equal rewards are 0, and a large common one rounds nothing away.
    lowest = jnp.where(where, reward, jnp.inf).min()
    above = jnp.where(where, reward - lowest, 0.0)
    return jnp.where(where, above - above.sum() / jnp.maximum(where.sum(), 1), 0.0)


def magnitude(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """The power of two at or below the largest |x| (2^-126 if all are smaller); axes kept.

    Squares of x / magnitude neither overflow nor vanish, and dividing by it rounds nothing.
    """
    largest = jnp.abs(jax.lax.stop_gradient(x)).max(axis, keepdims=True)
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32) & 0x7F800000  # the exponent's
    return jax.lax.bitcast_convert_type(jnp.maximum(bits, 0x00800000), jnp.float32)


def root_mean_square(
    x: Array, count: Array | int, axis: int | tuple[int, ...] | None = None
) -> Array:
    """sqrt(sum x^2 / count) of values of any size that float32 has; axes kept."""
    unit = magnitude(x, axis)
    return unit * jnp.sqrt(((x / unit) ** 2).sum(axis, keepdims=True) / count)


def normalize(x: Array, mask: Array, normalizer: str = "completion") -> Array:
    """Values of tokens on a common scale: [G, T] -> [G, T]; 0 outside the mask.

    "completion": (x - mean) / (std + 1e-4) over the masked tokens of each completion, population
    std (arXiv:2602.19049). "group": the same over all masked tokens of the group. "norm":
    x / (|x|_2 + 1e-4) of each completion, without centering. "none": x. Constant values give 0 if
    they are centered.

    Raises:
      ValueError: for an unknown normalizer.

    >>> x, mask = jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]])
    >>> print(normalize(x, mask).round(2))
    [[-1.  1.  0.]]
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer is {normalizer!r}; expected one of {', '.join(NORMALIZERS)}")
    x = jnp.where(mask, x, 0.0)
    if normalizer == "none":
        return x
    axes = (-2, -1) if normalizer == "group" else -1
    if normalizer == "norm":
        return x / (root_mean_square(x, 1, axes) + TOKEN_EPSILON)
    count = jnp.maximum(mask.sum(axes, keepdims=True), 1)
    lowest = jnp.where(mask, x, jnp.inf).min(axes, keepdims=True)
    highest = jnp.where(mask, x, -jnp.inf).max(axes, keepdims=True)
    varies = mask & (highest > lowest)
    centered = jnp.where(varies, x - x.sum(axes, keepdims=True) / count, 0.0)
    return centered / (root_mean_square(centered, count, axes) + TOKEN_EPSILON)


def least_squares(x: Array, y: Array, mask: Array) -> Array:
    """The least-squares line of y on x over the masked entries, at every x; clipped to +-1e30."""
    count = jnp.maximum(mask.sum(), 1)
    mean_x, mean_y = (jnp.where(mask, v, 0.0).sum() / count for v in (x, y))
    dx, dy = (jnp.where(mask, v - m, 0.0) for v, m in ((x, mean_x), (y, mean_y)))
    unit_x, unit_y = jnp.maximum(magnitude(dx), 1.0), jnp.maximum(magnitude(dy), 1.0)
    dx, dy = dx / unit_x, dy / unit_y
    slope = (dx * dy).sum() / ((dx**2).sum() + 1e-6 / unit_x**2) * (unit_y / unit_x)
    return jnp.clip(mean_y + slope * (x - mean_x), -1e30, 1e30)


def completion_keys(key: Array, group: Group) -> Array:
    """A PRNG key for each completion, from `key` and its tokens; [G].

    Draws for a completion depend neither on its place in the group nor on padding. Identical
    completions share their draws.

    Raises:
      ValueError: for a group without tokens.

    >>> group = Group(mask=jnp.ones((3, 2), bool), reward=jnp.zeros(3),
    ...               tokens=jnp.array([[1, 2], [2, 1], [1, 2]]))
    >>> keys = completion_keys(jax.random.key(0), group)
    >>> print(keys[0] == keys)
    [ True False  True]
    """
    check_fields(group, "completion_keys", "tokens")
    place = jnp.arange(1, group.mask.shape[-1] + 1, dtype=jnp.uint32)
    scramble = place * jnp.uint32(0x9E3779B1) | jnp.uint32(1)  # odd: no token is lost mod 2^32
    tokens = jnp.where(group.mask, group.tokens.astype(jnp.uint32) + 1, 0)
    return jax.vmap(lambda digest: jax.random.fold_in(key, digest))((tokens * scramble).sum(-1))


def shuffle(key: Array, x: Array, mask: Array) -> Array:
    """The masked values of a completion [T] in random order, at the masked places; 0 elsewhere."""
    draw = jnp.where(mask, jax.random.uniform(key, x.shape), jnp.inf)
    places = jnp.argsort(jnp.where(mask, jnp.arange(x.shape[0]), x.shape[0]), stable=True)
    values = jnp.where(mask, x, 0.0)[jnp.argsort(draw, stable=True)]
    return jnp.where(mask, jnp.zeros_like(x).at[places].set(values), 0.0)
