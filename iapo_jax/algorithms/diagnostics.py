"""What a rule's credit will do to length, read off one group: functions of (Group, Credit).

Written for one prompt and vmapped; every figure is a `Mean`, so prompts and devices add up.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.filters import select
from iapo_jax.algorithms.statistics import is_kept
from iapo_jax.types import Array, Credit, Group, Mean

THRESHOLD = 0.1  # nats; below it the answer counts as known


def length_covariance(group: Group, credit: Credit) -> Mean:
    """Cov(L, sum_t bonus_t) over the completions of a group, sample covariance, in tokens.

    The quantity of Theorem 4.1 of arXiv:2602.19049: where it is negative the bonus favors short
    completions, where it is positive, long ones. Exactly 0 for a bonus that is z-scored over each
    completion: its sum is 0. `stop_margin` sees what this cannot.
    """
    there = is_kept(group)
    count = there.sum()
    total = jnp.where(group.mask, credit.bonus, 0.0).sum(-1)
    length = group.mask.sum(-1).astype(jnp.float32)
    centered = lambda x: jnp.where(  # noqa: E731
        there, x - jnp.where(there, x, 0.0).sum() / jnp.maximum(count, 1), 0.0
    )
    covariance = (centered(length) * centered(total)).sum() / jnp.maximum(count - 1, 1)
    return Mean(jnp.where(count > 1, covariance, 0.0), (count > 1).astype(jnp.float32))


def stop_margin(group: Group, credit: Credit, *, threshold: float = THRESHOLD) -> tuple[Mean, Mean]:
    """Mean bonus of the tokens that end thinking, and of those that they competed with.

    Both over the stops that have rivals: thinking tokens of any completion of the group that were
    drawn while the model knew as much, u_{t-1} <= max(u at the stop, threshold), in nats. Where
    stopping gets less than going on with the same knowledge, the bonus speaks for going on.
    """
    ends = group.mask & ~group.thinking
    stop = ends & (jnp.cumsum(ends, axis=-1) == 1)
    thinking, u_tm1 = group.thinking & group.mask, group.uncertainty[:, :-1]
    at_stop = jnp.where(stop, u_tm1, 0.0).sum(-1)
    level = jnp.maximum(at_stop, threshold)  # [G], one for each stop

    def rivals(level: Array) -> tuple[Array, Array]:
        known = thinking & (u_tm1 <= level)
        return jnp.where(known, credit.bonus, 0.0).sum(), known.sum()

    total, count = jax.vmap(rivals)(level)
    met = stop.any(-1) & (count > 0)
    mean = lambda x: Mean(jnp.where(met, x, 0.0).sum(), met.sum().astype(jnp.float32))  # noqa: E731
    own = jnp.where(stop, credit.bonus, 0.0).sum(-1)
    return mean(own), mean(total / jnp.maximum(count, 1))


def bonus_share(group: Group, credit: Credit) -> Mean:
    """sum |bonus_t| / sum (|bonus_t| + |A_t - bonus_t|), weighted: credit given token by token."""
    bonus = jnp.abs(jnp.where(group.mask, credit.bonus, 0.0)) * credit.weight
    base = jnp.abs(jnp.where(group.mask, credit.advantage - credit.bonus, 0.0)) * credit.weight
    return Mean(bonus.sum(), (bonus + base).sum())


def redundant_tokens(group: Group, *, threshold: float = THRESHOLD) -> Mean:
    """Thinking tokens drawn after uncertainty fell below `threshold` for good, a completion.

    Token t is one where u_{t-1}, ..., u_end are all below: the answer was known and stayed known.
    """
    thinking, u = group.thinking & group.mask, group.uncertainty
    reached = jnp.pad(thinking, ((0, 0), (1, 0)), constant_values=True)  # u_0 .. u_end
    above = reached & (u >= threshold)
    later = jnp.cumsum(above[:, ::-1], axis=-1)[:, ::-1] > 0  # at t: some u_k, k >= t, is above
    redundant = thinking & ~later[:, :-1]
    return Mean(redundant.sum().astype(jnp.float32), is_kept(group).sum().astype(jnp.float32))


def token_information(group: Group) -> Mean:
    """Nats that a thinking token tells about the answer."""
    thinking = group.thinking & group.mask
    told = jnp.where(thinking, group.informativeness, 0.0).sum()
    return Mean(told, thinking.sum().astype(jnp.float32))


def credit_metrics(group: Group, credit: Credit, *, threshold: float, asked: bool) -> dict:
    """All of them by the names under which they are logged, for one group.

    Those of credit are over completions with any weight, those of information over all.

    Args:
      asked: whether the group knows uncertainties; without, only what needs none.
    """
    figures = {}
    everybody, group = group, select(group, (credit.weight > 0).any(-1))
    if credit.bonus is not None:
        figures["credit/length_bonus_covariance"] = length_covariance(group, credit)
        figures["credit/bonus_share"] = bonus_share(group, credit)
        if asked:
            stop, rivals = stop_margin(group, credit, threshold=threshold)
            figures |= {"credit/stop_bonus": stop, "credit/rival_bonus": rivals}
    if asked:
        figures["iapo/information_per_token"] = token_information(everybody)
        figures["iapo/redundant_tokens"] = redundant_tokens(everybody, threshold=threshold)
    return figures
