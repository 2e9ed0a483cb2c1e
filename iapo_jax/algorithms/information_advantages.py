"""Credit rules that use information: IAPO by the formula of its paper, and by its authors' code.

Rules have the signature described in `advantages`.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.advantages import token_credit
from iapo_jax.algorithms.preconditions import check_fields, check_one_of
from iapo_jax.algorithms.statistics import (
    completion_keys,
    group_advantage,
    is_kept,
    normalize,
    root_mean_square,
    shuffle,
)
from iapo_jax.types import Array, Credit, Group

INFORMATION = ("answer", "next_token", "shuffled", "random")
EXPLORATIONS = ("probability", "entropy")


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
    1e-4, 1e-2, 1}. s_t is the informativeness in nats. z standardizes r over the group and, by
    default, s and c over the tokens of the completion.

    Args:
      group: needs `reward`; the information term needs `thinking` and `uncertainty` ("next_token":
        `entropy` instead; "shuffled" and "random": also `tokens`); the exploration term needs
        `correct` and `log_prob` (or `entropy`). A term with weight 0 needs no field.
      key: a PRNG key, for "shuffled" and "random" only.
      exploration: what c_t is. With "probability" it is +p(o_t) in a correct completion and
        -p(o_t) in an incorrect one, where p is the sampling policy's (the paper). With "entropy" it
        is -H_t and +H_t, where H_t is the entropy of the next-token distribution (the authors'
        code).
      normalizer: of s and c, as for `normalize`.
      only_correct: incorrect completions get no information term.
      information: what s_t is on thinking tokens. "answer" is the informativeness. "next_token" is
        H_t - H_{t+1}, the decrease of next-token entropy, and 0 where no token follows (the
        ablation NE). Two controls carry no information: "shuffled" is the completion's own s_t in
        random order, "random" is normal with the mean and variance of s_t.
      scale_rewards: as for `grpo`.

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
    return token_credit(group, base, bonus)


def _exploration(group: Group, exploration: str) -> Array:
    """c_t of `iapo`: [G, T]."""
    field = "log_prob" if exploration == "probability" else "entropy"
    check_fields(group, "iapo", "correct", field)
    confidence = jnp.exp(group.log_prob) if exploration == "probability" else -group.entropy
    return jnp.where(group.correct[:, None], confidence, -confidence)


def _information(group: Group, key: Array | None, information: str) -> Array:
    """s_t of `iapo`, or its replacement: [G, T] nats."""
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


def _is_zero(weight: float | Array) -> bool:
    """Whether a weight is the number 0, so that its term needs none of the group's fields."""
    return isinstance(weight, int | float) and weight == 0


def iapo_reference(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 1e-2,
    exploration_weight: float = 1e-2,
) -> Credit:
    """A_t = z(r) + alpha n(a_t) - beta sign(r) n(H_t): IAPO as the authors' code computes it.

    alpha and beta are the weights, as in `iapo`, and a_t = (u_{t-1} + u_{t-2}) / 2 - u_t, where u
    is taken as 0 before the first and after the last column of the PADDED width. In between, a_t is
    s_t + s_{t-1} / 2. n(x) = x - mean / (std + 1e-8), over the padded width, divided by its 2-norm;
    the code lacks the parentheses around x - mean. The rule reproduces these mistakes on purpose,
    so that the authors' runs can be repeated and the difference measured; padding changes the
    result. The authors also probe after the end of a completion, on padding; here `uncertainty`
    keeps its last value there. They pad to the longest completion of the batch, as
    `sampling.length_bucket=1` does. Source: github.com/YinhanHe123/IAPO, g2rpo_trainer.py.

    Args:
      group: needs `reward`, `uncertainty` [G, T+1] and `entropy` [G, T].
      key: unused.

    Returns:
      Credit of [G, T] arrays.

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
    return token_credit(group, base, bonus)


def _authors_scale(x: Array) -> Array:
    std = jnp.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).sum(-1) / max(x.shape[-1] - 1, 1))
    x = x - x.mean(-1, keepdims=True) / (std[:, None] + 1e-8)
    return x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-8)
