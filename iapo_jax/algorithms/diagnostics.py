"""How the credit of a rule acts on length: functions of the (Group, Credit) of one prompt.

`jax.vmap` maps them over the prompts of a step. Every result is a `Mean`, so results of several
prompts and devices can be added.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.filters import select
from iapo_jax.algorithms.statistics import is_kept
from iapo_jax.types import Array, Credit, Group, Mean

THRESHOLD = 0.1  # nats; below it the model is considered certain of the answer


def length_covariance(group: Group, credit: Credit) -> Mean:
    """Cov(L, sum_t bonus_t) over the completions of a group, sample covariance, in tokens.

    The quantity of Theorem 4.1 of arXiv:2602.19049: where it is negative the bonus favors short
    completions, where it is positive, long ones. Exactly 0 for a bonus that is z-scored over each
    completion, whose sum is 0; `stop_margin` measures what this cannot.

    Args:
      group: needs `mask`.
      credit: with a bonus [G, T].

    >>> mask = jnp.arange(3) < jnp.array([[1], [3]])
    >>> credit = Credit(advantage=None, weight=None, bonus=jnp.ones((2, 3)))
    >>> print(length_covariance(Group(mask, reward=jnp.zeros(2)), credit).value())
    2.0
    """
    kept = is_kept(group)
    count = kept.sum()
    total = jnp.where(group.mask, credit.bonus, 0.0).sum(-1)
    length = group.mask.sum(-1).astype(jnp.float32)

    def centered(x: Array) -> Array:
        mean = jnp.where(kept, x, 0.0).sum() / jnp.maximum(count, 1)
        return jnp.where(kept, x - mean, 0.0)

    covariance = (centered(length) * centered(total)).sum() / jnp.maximum(count - 1, 1)
    return Mean(jnp.where(count > 1, covariance, 0.0), (count > 1).astype(jnp.float32))


def stop_margin(group: Group, credit: Credit, *, threshold: float = THRESHOLD) -> tuple[Mean, Mean]:
    """Mean bonus of end-of-thinking tokens and of the thinking tokens that they compete with.

    A competing token (rival) is any thinking token in the group that was sampled at an uncertainty
    u_{t-1} <= max(u at the stop, threshold), in nats. Stops without a competing token are ignored
    in both means. If a stop gets less than its rivals, the bonus rewards continuing.

    Args:
      group: needs `thinking` and `uncertainty`.
      credit: with a bonus [G, T].
      threshold: nats.

    Returns:
      The mean over the stops, and the mean over their rivals.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.ones(2),
    ...               uncertainty=jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]),
    ...               thinking=jnp.array([[True, True, False]] * 2))
    >>> credit = Credit(advantage=None, weight=None, bonus=jnp.array([[0.0, -1.0, 2.0], [0.0] * 3]))
    >>> stop, rivals = stop_margin(group, credit)
    >>> print(stop.value(), rivals.value())
    1.0 -1.0
    """
    ends = group.mask & ~group.thinking
    stop = ends & (jnp.cumsum(ends, axis=-1) == 1)
    thinking, u_tm1 = group.thinking & group.mask, group.uncertainty[:, :-1]
    at_stop = jnp.where(stop, u_tm1, 0.0).sum(-1)
    level = jnp.maximum(at_stop, threshold)  # [G]

    def rivals(level: Array) -> tuple[Array, Array]:
        known = thinking & (u_tm1 <= level)
        return jnp.where(known, credit.bonus, 0.0).sum(), known.sum()

    total, count = jax.vmap(rivals)(level)
    met = stop.any(-1) & (count > 0)

    def mean(x: Array) -> Mean:
        return Mean(jnp.where(met, x, 0.0).sum(), met.sum().astype(jnp.float32))

    own = jnp.where(stop, credit.bonus, 0.0).sum(-1)
    return mean(own), mean(total / jnp.maximum(count, 1))


def bonus_share(group: Group, credit: Credit) -> Mean:
    """sum |bonus_t| / sum (|bonus_t| + |A_t - bonus_t|), weighted: the bonus's share of the credit.

    >>> group = Group(mask=jnp.ones((1, 2), bool), reward=jnp.ones(1))
    >>> credit = Credit(advantage=jnp.ones((1, 2)), weight=jnp.ones((1, 2)),
    ...                 bonus=jnp.array([[0.5, 0.0]]))
    >>> print(bonus_share(group, credit).value())
    0.25
    """
    bonus = jnp.abs(jnp.where(group.mask, credit.bonus, 0.0)) * credit.weight
    base = jnp.abs(jnp.where(group.mask, credit.advantage - credit.bonus, 0.0)) * credit.weight
    return Mean(bonus.sum(), (bonus + base).sum())


def redundant_tokens(group: Group, *, threshold: float = THRESHOLD) -> Mean:
    """Thinking tokens per completion that were drawn after u fell below `threshold` for good.

    Token t is redundant if u_{t-1}, ..., u_end are all below it: the model knew the answer.

    Args:
      group: needs `thinking` and `uncertainty`.
      threshold: nats.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.ones(2),
    ...               uncertainty=jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]),
    ...               thinking=jnp.array([[True, True, False]] * 2))
    >>> print(redundant_tokens(group).value())
    0.5
    """
    thinking, u = group.thinking & group.mask, group.uncertainty
    reached = jnp.pad(thinking, ((0, 0), (1, 0)), constant_values=True)  # u_0 .. u_end
    above = reached & (u >= threshold)
    later = jnp.cumsum(above[:, ::-1], axis=-1)[:, ::-1] > 0  # at t: some u_k, k >= t, is above
    redundant = thinking & ~later[:, :-1]
    return Mean(redundant.sum().astype(jnp.float32), is_kept(group).sum().astype(jnp.float32))


def token_information(group: Group) -> Mean:
    """Mean s_t of the thinking tokens, in nats.

    >>> group = Group(mask=jnp.ones((2, 3), bool), reward=jnp.ones(2),
    ...               uncertainty=jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]),
    ...               thinking=jnp.array([[True, True, False]] * 2))
    >>> print(token_information(group).value())
    0.5
    """
    thinking = group.thinking & group.mask
    total = jnp.where(thinking, group.informativeness, 0.0).sum()
    return Mean(total, thinking.sum().astype(jnp.float32))


class CreditDiagnostics(NamedTuple):
    """All diagnostics of one group; None for those that the group or the rule does not provide."""

    length_covariance: Mean | None = None
    bonus_share: Mean | None = None
    stop_bonus: Mean | None = None
    rival_bonus: Mean | None = None
    information_per_token: Mean | None = None
    redundant_tokens: Mean | None = None


def credit_diagnostics(
    group: Group, credit: Credit, *, threshold: float, probed: bool
) -> CreditDiagnostics:
    """All diagnostics of one group.

    Credit diagnostics cover completions with nonzero weight; information diagnostics cover all
    completions.

    Args:
      probed: whether the group has uncertainties; if not, diagnostics that need them are None.
    """
    everybody, group = group, select(group, (credit.weight > 0).any(-1))
    found = CreditDiagnostics()
    if credit.bonus is not None:
        found = found._replace(
            length_covariance=length_covariance(group, credit),
            bonus_share=bonus_share(group, credit),
        )
        if probed:
            stop, rivals = stop_margin(group, credit, threshold=threshold)
            found = found._replace(stop_bonus=stop, rival_bonus=rivals)
    if probed:
        found = found._replace(
            information_per_token=token_information(everybody),
            redundant_tokens=redundant_tokens(everybody, threshold=threshold),
        )
    return found
