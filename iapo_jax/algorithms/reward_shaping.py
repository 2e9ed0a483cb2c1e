"""Reward shaping by length: `(Group, *, hyper-parameters) -> reward [G]`, before the rule.

Except for DAPO (`overlong`), which adds a penalty, the papers multiply a reward of 0 or 1 by a
factor. Here the reward is arbitrary, so the amount by which a paper lowers the 1 of a correct
answer is scaled by `correct_bonus`, the difference between the rewards of a correct and an
incorrect answer (2 for +1 and -1, as in `accuracy_reward`).
Lengths count all tokens of a completion, the stop token included.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.preconditions import check_at_least, check_fields
from iapo_jax.algorithms.statistics import is_kept
from iapo_jax.types import Array, Group


def overlong(group: Group, *, max_length: int, overlong_cache: int = 0) -> Array:
    """r + min(0, (max_length - cache - L) / cache): 0, then falling to -1 at max_length.

    Applies to correct and incorrect completions. Eq. 13 of arXiv:2503.14476 (DAPO).

    Args:
      group: needs `mask` and `reward`.
      max_length: T of the configuration, in tokens.
      overlong_cache: in tokens; 0 means a fifth of max_length (the paper: 4,096 of 20,480).

    Returns:
      Rewards [G].

    Raises:
      ValueError: for a cache beyond max_length.

    >>> mask = jnp.arange(10) < jnp.array([[5], [9], [10]])
    >>> print(overlong(Group(mask, reward=jnp.ones(3)), max_length=10, overlong_cache=2))
    [1.  0.5 0. ]
    """
    if not 0 <= overlong_cache <= max_length:
        raise ValueError(f"overlong_cache is {overlong_cache}; expected from 0 to {max_length}")
    cache = overlong_cache or max(max_length // 5, 1)
    excess = group.mask.sum(-1) - (max_length - cache)
    return group.reward - jnp.clip(excess / cache, 0.0, 1.0)


def length_penalty(group: Group, *, penalty: float = 0.2, correct_bonus: float = 2.0) -> Array:
    """r - b penalty sigmoid(z(L)) for correct completions, r for incorrect ones.

    b is `correct_bonus`; z is over the correct completions of the group, with population std. With
    b = 1 and r in {0, 1} this is r (1 - penalty sigmoid(z(L))), Sec. 4 of arXiv:2502.04463 (Arora
    and Zanette).

    Args:
      group: needs `mask`, `reward` and `correct`.
      penalty: in [0, 1); the paper uses 0.05 to 0.4.

    Returns:
      Rewards [G].

    Raises:
      ValueError: for a penalty outside [0, 1), or a group without `correct`.

    >>> mask = jnp.arange(4) < jnp.array([[2], [4], [4]])
    >>> reward = jnp.array([1.0, 1.0, -1.0])
    >>> print(length_penalty(Group(mask, reward, correct=reward > 0), penalty=0.5).round(1))
    [ 0.7  0.3 -1. ]
    """
    if not 0 <= penalty < 1:
        raise ValueError(f"penalty is {penalty}; expected at least 0 and below 1")
    check_at_least("correct_bonus", correct_bonus, 0)
    check_fields(group, "length_penalty", "correct")
    length, correct = group.mask.sum(-1).astype(jnp.float32), group.correct & is_kept(group)
    count = jnp.maximum(correct.sum(), 1)
    centered = jnp.where(correct, length - jnp.where(correct, length, 0.0).sum() / count, 0.0)
    std = jnp.sqrt((centered**2).sum() / count)
    return group.reward - correct_bonus * penalty * correct * jax.nn.sigmoid(
        centered / (std + 1e-7)
    )


def length_cap(group: Group, *, cap: int, correct_bonus: float = 2.0) -> Array:
    """r - correct_bonus where correct and L > cap: a late answer is rewarded as an incorrect one.

    The hard limit of ThinkPrune (arXiv:2504.01296) and DLER (arXiv:2510.15110). The papers stop
    sampling at the cap, as sampling.max_completion_length = cap does. DLER also whitens advantages
    over the batch and samples dynamically; this function does not.

    Args:
      group: needs `mask`, `reward` and `correct`.
      cap: in tokens, at least 1.

    Returns:
      Rewards [G].

    Raises:
      ValueError: for a cap below 1, or a group without `correct`.

    >>> mask = jnp.arange(4) < jnp.array([[2], [4]])
    >>> group = Group(mask, reward=jnp.ones(2), correct=jnp.ones(2, bool))
    >>> print(length_cap(group, cap=3))
    [ 1. -1.]
    """
    check_at_least("cap", cap, 1)
    check_at_least("correct_bonus", correct_bonus, 0)
    check_fields(group, "length_cap", "correct")
    return group.reward - correct_bonus * (group.correct & (group.mask.sum(-1) > cap))


def l1_max(
    group: Group,
    *,
    target_length: int,
    slope: float = 1e-3,
    offset: float = 0.5,
    correct_bonus: float = 2.0,
) -> Array:
    """r - correct_bonus (1 - f) where correct, f = clip(slope (target_length - L) + offset, 0, 1).

    The reward of L1-Max, arXiv:2503.04697. The paper gives a slope of 3e-4 for its exact variant;
    its code uses 1e-3 for this one (the default here). Both are for budgets of thousands of tokens;
    choose about 1 / target_length. The paper draws a budget for each prompt and states it there;
    here all prompts share one budget, which `prompt.instruction` may state.

    Args:
      group: needs `mask`, `reward` and `correct`.
      target_length: in tokens, at least 1.
      slope: change of f per token, at least 0.
      offset: f at the target length.

    Returns:
      Rewards [G].

    Raises:
      ValueError: for a target below 1, a negative number, or a group without `correct`.

    >>> mask = jnp.arange(4) < jnp.array([[2], [4]])
    >>> group = Group(mask, reward=jnp.ones(2), correct=jnp.ones(2, bool))
    >>> print(l1_max(group, target_length=3, slope=0.25))
    [ 0.5 -0.5]
    """
    check_at_least("target_length", target_length, 1)
    check_at_least("slope", slope, 0)
    check_at_least("correct_bonus", correct_bonus, 0)
    check_fields(group, "l1_max", "correct")
    left = target_length - group.mask.sum(-1)
    factor = jnp.clip(slope * left + offset, 0.0, 1.0)
    return group.reward - correct_bonus * group.correct * (1 - factor)
