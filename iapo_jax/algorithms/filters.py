"""Filters choose the completions of a group that enter the statistics; token masks choose tokens.

A filter is `(Group, *, hyper-parameters) -> [G] bool`, a token mask `(Group, key, *, ...) -> [G, T]
bool`. A completion that a filter leaves out loses its mask, so no rule reads it.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.preconditions import check_at_least, check_fields
from iapo_jax.algorithms.statistics import completion_keys
from iapo_jax.types import Array, Group

METRICS = ("shortest", "efficiency")


def select(group: Group, keep: Array) -> Group:
    """The group without the completions that `keep` leaves out.

    Args:
      keep: [G] bool.

    >>> group = Group(mask=jnp.ones((2, 2), bool), reward=jnp.zeros(2))
    >>> print(select(group, jnp.array([True, False])).mask)
    [[ True  True]
     [False False]]
    """
    keep = keep[:, None]
    thinking = None if group.thinking is None else group.thinking & keep
    return group._replace(mask=group.mask & keep, thinking=thinking)


def keep_best(
    group: Group,
    *,
    keep: int = 0,
    metric: str = "shortest",
    quartiles: Array | None = None,
) -> Array:
    """The `keep` completions that are shortest, or have the highest reward per token; [G] bool.

    GFPO, arXiv:2508.09726; correct and incorrect completions compete alike. The others get
    advantage 0 but stay in the loss's means and in the KL (Eq. 2 of the paper; TRL drops them). The
    paper uses the population std, this library the sample std. Completions that tie with the last
    one kept are kept too, so the result does not depend on the order. Negative rewards per token
    favor long completions, as in the paper.

    Args:
      group: needs `mask` and `reward`.
      keep: number of completions; 0 means half of the group (the paper keeps 8 of 16).
      metric: "shortest" or "efficiency" (reward per token).
      quartiles: [3], of the mean rewards of the questions so far (`keep_for_difficulty`): an easy
        question keeps a quarter of the group, a medium one 3/8, a hard or very hard one half (4, 6
        and 8 of 16). Use them with keep=0.

    Raises:
      ValueError: for an unknown metric, a `keep` out of range, or both `keep` and `quartiles`.

    >>> mask = jnp.arange(4) < jnp.array([[4], [2], [3], [1]])
    >>> print(keep_best(Group(mask, reward=jnp.zeros(4)), keep=2))
    [False  True False  True]
    """
    size = group.reward.shape[0]
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    least = min(size, 2)  # a single completion has no other to be compared with
    if keep and not least <= keep <= size:
        raise ValueError(f"keep is {keep}; expected 0, or {least} to {size} (the group size)")
    if keep and quartiles is not None:
        raise ValueError(
            f"keep is {keep}, but algorithm.adapt already sets it; expected only one of the two"
        )
    length = group.mask.sum(-1)
    score = -1.0 * length if metric == "shortest" else group.reward / jnp.maximum(length, 1)
    score = jnp.where(length > 0, score, -jnp.inf)
    better = (score[None, :] > score[:, None]).sum(-1)  # completions that beat this one
    count = jnp.asarray(keep or max(size // 2, least))
    if quartiles is not None:
        easier = (group.reward.mean() >= quartiles).sum()  # 0 very hard to 3 easy
        shares = jnp.asarray([max(size * eighths // 8, least) for eighths in (4, 4, 3, 2)])
        count = shares[easier]
    return better < count


def stochastic_tokens(
    group: Group,
    key: Array | None = None,
    *,
    first: int = 150,
    until: int = 341,
    probability: float = 0.5,
) -> Array:
    """Keeps the first tokens, later ones with `probability`, and none from `until` on; [G, T] bool.

    S-GRPO of arXiv:2504.20834 (Lee and Tong; another method of that name is arXiv:2505.07686). It
    saves memory in training; its purpose is not to shorten. The defaults are those of IAPO's
    comparison. In completions of `until` or more tokens, the IAPO authors' code keeps only the
    first tokens.

    Args:
      group: needs `mask` and `tokens`.
      key: a PRNG key.
      first, until: numbers of tokens. With `until=0` there is no end; if `probability` is also 1,
        the method is GRPO.

    Returns:
      [G, T] bool.

    Raises:
      ValueError: for a probability outside [0, 1], a negative number of tokens, or a group without
        tokens.

    >>> group = Group(mask=jnp.ones((1, 5), bool), reward=jnp.zeros(1),
    ...               tokens=jnp.array([[7, 8, 9, 1, 2]]))
    >>> print(stochastic_tokens(group, jax.random.key(0), first=2, until=4, probability=1.0))
    [[ True  True  True  True False]]
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; expected from 0 to 1")
    check_at_least("first", first, 0)
    check_at_least("until", until, 0)
    check_fields(group, "stochastic_tokens", "tokens")
    size = group.mask.shape[-1]
    place = jnp.arange(size)
    keys = completion_keys(key, group)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys) < probability
    if until:
        drawn = drawn & (place < until)
    return group.mask & (drawn | (place < first))
