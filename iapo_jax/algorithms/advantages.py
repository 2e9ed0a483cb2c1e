"""Credit rules: how strongly each token of a group's completions is reinforced.

Every rule is `(Group, key, *, hyper-parameters) -> Credit` for ONE prompt; `jax.vmap` maps it over
the prompts of a step. All statistics are masked: padding changes nothing, and neither do the
completions that a filter has left out. Symbols are those of `types`. What surrounds a rule is in
`reward_shaping`, `filters` and `losses`; `methods` puts them together.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.preconditions import check_at_least, check_fields, check_one_of
from iapo_jax.algorithms.statistics import (
    REWARD_EPSILON,
    completion_keys,
    group_advantage,
    is_kept,
    least_squares,
    leave_one_out,
    magnitude,
    normalize,
    root_mean_square,
    shuffle,
)
from iapo_jax.types import Array, Credit, Group

INFORMATION = ("answer", "next_token", "shuffled", "random")


EXPLORATIONS = ("probability", "entropy")


PRICED_NORMALIZERS = ("rms", "none")


UNITS = ("share", "probability", "nats")


LEAST_START = 0.1


"""Nats: the least initial uncertainty that the unit "share" divides by."""


GTPO_NORMALIZERS = ("completions", "tokens", "sides")


def _credit(group: Group, base: Array, bonus: Array | None = None) -> Credit:
    """A_t = base of the completion [G] + bonus of the token [G, T]."""
    bonus = jnp.zeros(group.mask.shape) if bonus is None else jnp.where(group.mask, bonus, 0.0)
    advantage = jnp.where(group.mask, base[:, None] + bonus, 0.0)
    return Credit(advantage, group.mask.astype(jnp.float32), bonus)


def _is_zero(weight: float | Array) -> bool:
    """Whether a weight is the number 0, so that its term needs none of the group's fields."""
    return isinstance(weight, int | float) and weight == 0


# ------------------------------------------------------------------------- complete completions


def grpo(group: Group, key: Array | None = None, *, scale_rewards: str = "group") -> Credit:
    """A_t = z(r) = (r - mean) / (std + 1e-4), the same for all tokens of a completion.

    With `scale_rewards="none"` it is r - mean, as in Dr. GRPO (arXiv:2503.20783). Sec. 4.1 of
    arXiv:2402.03300.

    Args:
      group: needs `mask` [G, T] and `reward` [G].
      key: unused.

    Returns:
      Credit of [G, T] arrays, without a bonus for single tokens.

    Raises:
      ValueError: for an unknown `scale_rewards`.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.array([1.0, -1.0]))
    >>> print(grpo(group).advantage.round(2))
    [[ 0.71  0.71  0.71]
     [-0.71 -0.71 -0.71]]
    """
    del key
    base = group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    return _credit(group, base)


def rloo(group: Group, key: Array | None = None) -> Credit:
    """A_t = r_i - mean of the other completions' r, the same for all tokens of a completion.

    This is the advantage of Dr. GRPO times G / (G - 1), which makes it unbiased. arXiv:2402.14740.

    Args:
      group: needs `mask` [G, T] and `reward` [G].
      key: unused.

    >>> group = Group(mask=jnp.ones((2, 2), bool), reward=jnp.array([1.0, 0.0]))
    >>> print(rloo(group).advantage)
    [[ 1.  1.]
     [-1. -1.]]
    """
    del key
    return _credit(group, leave_one_out(group.reward, is_kept(group)))


# ----------------------------------------------------------------------------- tokens by IAPO


def iapo(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 1e-2,
    exploration_weight: float = 1e-2,
    exploration: str = "probability",
    normalizer: str = "completion",
    only_correct: bool = False,
    information: str = "answer",
    scale_rewards: str = "group",
) -> Credit:
    """A_t = z(r) + alpha z(s_t) + beta z(c_t), as arXiv:2602.19049 states it.

    alpha is `information_weight`, beta is `exploration_weight`; the paper searches both in {1e-6,
    1e-4, 1e-2, 1}. s_t is the informativeness in nats. z is over the group for r, and over the
    completion's tokens for s and c, or as `statistics.normalize` defines it for `normalizer`.

    Args:
      group: needs `reward`; for the information `uncertainty` and `thinking`; for the exploration
        `correct` and `log_prob` (or `entropy`). A weight of 0 needs nothing for its term.
      key: a PRNG key, for "shuffled" and "random" only.
      exploration: what c_t is. With "probability" it is +p(o_t) in a correct completion and
        -p(o_t) in an incorrect one, where p is the sampling policy's (the paper). With "entropy" it
        is -H_t and +H_t, where H_t is that of the next-token distribution (the authors' code).
      only_correct: incorrect completions get no information term.
      information: what s_t is on thinking tokens. "answer" is the informativeness. "next_token" is
        H_t - H_{t+1}, the decrease of next-token entropy, and 0 where no token follows (the
        ablation NE). Two controls carry no information: "shuffled" is the completion's own s_t in
        random order, "random" is normal with the mean and variance of s_t.

    Returns:
      Credit of [G, T] arrays.

    Raises:
      ValueError: for an unknown name, or for a group without a field that is needed.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.array([1.0, -1.0]),
    ...               uncertainty=jnp.array([[2.0, 2.0, 0.5, 0.0], [2.0, 1.0, 0.0, 0.0]]),
    ...               thinking=jnp.array([[True, True, False]] * 2))
    >>> print(iapo(group, information_weight=1.0, exploration_weight=0.0).bonus.round(2))
    [[-0.71  1.41 -0.71]
     [ 0.71  0.71 -1.41]]
    """
    check_one_of("exploration", exploration, EXPLORATIONS)
    check_one_of("information", information, INFORMATION)
    base = group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    bonus = jnp.zeros(group.mask.shape)
    if not _is_zero(information_weight):
        mask = group.mask
        if only_correct:
            check_fields(group, "iapo (only_correct)", "correct")
            mask = mask & group.correct[:, None]
        s = normalize(_information(group, key, information), mask, normalizer)
        bonus = bonus + information_weight * s
    if not _is_zero(exploration_weight):
        c = normalize(_exploration(group, exploration), group.mask, normalizer)
        bonus = bonus + exploration_weight * c
    return _credit(group, base, bonus)


def _exploration(group: Group, exploration: str) -> Array:
    """c_t of `iapo`: [G, T]."""
    field = "log_prob" if exploration == "probability" else "entropy"
    check_fields(group, "iapo", "correct", field)
    confidence = jnp.exp(group.log_prob) if exploration == "probability" else -group.entropy
    return jnp.where(group.correct[:, None], confidence, -confidence)


def _information(group: Group, key: Array | None, information: str) -> Array:
    """s_t of `iapo`, or what replaces it: [G, T] nats."""
    field = "entropy" if information == "next_token" else "uncertainty"
    check_fields(group, "iapo", "thinking", field)
    thinking = group.thinking & group.mask
    if information == "next_token":
        following = jnp.pad(group.entropy[:, 1:], ((0, 0), (0, 1)))
        is_followed = jnp.pad(group.mask[:, 1:], ((0, 0), (0, 1)))
        return jnp.where(thinking & is_followed, group.entropy - following, 0.0)
    s = group.informativeness
    if information == "shuffled":
        return jax.vmap(shuffle)(completion_keys(key, group), s, thinking)
    if information == "random":
        count = jnp.maximum(thinking.sum(-1, keepdims=True), 1)
        mean = jnp.where(thinking, s, 0.0).sum(-1, keepdims=True) / count
        std = root_mean_square(jnp.where(thinking, s - mean, 0.0), count, -1)
        keys = completion_keys(key, group)
        noise = jax.vmap(lambda key: jax.random.normal(key, s.shape[-1:]))(keys)
        return jnp.where(thinking, mean + std * noise, 0.0)
    return s


def iapo_reference(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 1e-2,
    exploration_weight: float = 1e-2,
) -> Credit:
    """A_t = z(r) + alpha n(a_t) - beta sign(r) n(H_t): IAPO as the authors' code computes it.

    alpha and beta are the weights, as in `iapo`, and a_t = (u_{t-1} + u_{t-2}) / 2 - u_t, where u
    before the first and after the last column of the PADDED width counts as 0: inside, a_t is
    s_t + s_{t-1} / 2. n(x) = x - mean / (std + 1e-8), over the padded width, divided by its 2-norm;
    the code lacks the parentheses around x - mean. The rule repeats these mistakes on purpose, so
    that the authors' runs can be repeated and the difference can be measured: padding changes the
    result. Their probes also read what follows the answer, and padding; `uncertainty` continues
    there with its last value. They pad to the longest completion of the batch, as
    `sampling.length_bucket=1` does. Source: github.com/YinhanHe123/IAPO, g2rpo_trainer.py.

    Args:
      group: needs `reward`, `uncertainty` [G, T+1] and `entropy` [G, T].
      key: unused.

    Raises:
      ValueError: for a group without a field that is needed.

    >>> group = Group(mask=jnp.ones((1, 2), bool), reward=jnp.array([1.0]),
    ...               uncertainty=jnp.array([[2.0, 1.0, 0.0]]), entropy=jnp.zeros((1, 2)))
    >>> print(iapo_reference(group, information_weight=1.0).bonus.round(1))
    [[-0.7  0.7]]
    """
    del key
    check_fields(group, "iapo_reference", "uncertainty", "entropy")
    u_tm1 = group.uncertainty[:, :-1]
    u_tm2, u_t = jnp.pad(u_tm1, ((0, 0), (1, 1)))[:, :-2], jnp.pad(u_tm1, ((0, 0), (0, 1)))[:, 1:]
    surprise = (u_tm1 + u_tm2) / 2 - u_t
    base = group_advantage(group.reward, is_kept(group))
    sign = jnp.sign(group.reward)[:, None]
    bonus = information_weight * _authors_scale(surprise)
    bonus = bonus - exploration_weight * sign * _authors_scale(group.entropy)
    return _credit(group, base, bonus)


def _authors_scale(x: Array) -> Array:
    std = jnp.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).sum(-1) / max(x.shape[-1] - 1, 1))
    x = x - x.mean(-1, keepdims=True) / (std[:, None] + 1e-8)
    return x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-8)


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

    alpha is `information_weight`; 0 is GRPO. v_t is the remaining uncertainty after t tokens,
    relative to the initial one with the unit "share": v_t = u_t / max(u_0, 0.1 nats), u_0 the
    group's mean. On thinking tokens r_t = v_{t-1} - v_t - price and R_t = sum_{k >= t} r_k: the
    information that the rest of the reasoning adds, minus `price` for each of its tokens. So n
    tokens that carry all the information pay off if n * price < 1. The token that ends thinking has
    R = 0: it competes with continuing. The baseline b is the least-squares line of R on v_{t-1}
    over the group's thinking tokens. rms is the root mean square of R - b over the same tokens and
    the ends. An `adaptation` lets the price follow the run. Ours; see docs/methods.md.

    Args:
      group: needs `reward`, `uncertainty` [G, T+1] and `thinking` [G, T].
      key: unused.
      price: cost per thinking token, in `unit`.
      unit: "share"; or "probability", v = 1 - exp(-u), the probability of an incorrect answer where
        u = -log p(y*) of the reference answer (the method's own estimator); or "nats", v = u.
      only_correct: incorrect completions get z(r) alone. Where u is an entropy this keeps the rule
        from rewarding confidence in an incorrect answer. Needs `correct`.
      normalizer: "rms", or "none" to leave the division out.

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
    check_one_of("normalizer", normalizer, PRICED_NORMALIZERS)
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
    to_come = jnp.cumsum(gain[:, ::-1], axis=-1)[:, ::-1]  # 0 on the stop token by itself
    baseline = least_squares(remaining[:, :-1], to_come, thinking)
    surprise = jnp.where(thinking | (stop & gate), to_come - baseline, 0.0)
    count = jnp.maximum((thinking | (stop & gate)).sum(), 1)
    if normalizer == "rms":
        surprise /= root_mean_square(surprise, count) + 1e-6
    return _credit(group, base, information_weight * surprise)


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


# -------------------------------------------------------------------------- tokens by entropy


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
      normalizer: over what mean and std are taken, on which sources disagree. "tokens": all tokens
        of the group. "sides": those of the correct and of the incorrect completions separately
        (readers of the paper's version 6); each side then has mean 0, and a correct answer earns
        nothing. "completions" counts each completion once, by the mean of its tokens: then alpha =
        0 is GRPO exactly, and a comparison shows the entropy term alone. (The IAPO authors add the
        entropy term to z(r), and multiply it by the completion's own length instead of n_t.)

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
    entropy = jnp.maximum(group.entropy, 0.0)  # a sum that cancels may end just below 0
    weight = jnp.where(mask, jnp.where(correct, entropy, 1 / (entropy + 1e-8)), 0.0)
    count = jnp.matmul(side, mask.astype(jnp.float32), precision="highest")
    share = weight * count / (jnp.matmul(side, weight, precision="highest") + 1e-8)
    shaped = entropy_weight * jnp.where(mask, jnp.where(correct, share, -share), 0.0)
    base = group_advantage(group.reward, is_kept(group))
    if normalizer == "completions":
        advantage = _by_completions(group, shaped)
    else:
        # Only differences count; beside a large common reward a share would be rounded away.
        centered = group_advantage(group.reward, is_kept(group), scale_rewards="none")
        total = jnp.where(mask, centered[:, None] + shaped, 0.0)
        first = mask & correct if normalizer == "sides" else mask
        advantage = _by_tokens(total, first) + _by_tokens(total, mask & ~first)
    return _credit(group, base, advantage - base[:, None])


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
