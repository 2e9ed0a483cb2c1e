"""Reward shaping by length: `(Group, *, hyper-parameters) -> reward [G]`, before the rule.

The papers pay 0 or 1 for the answer and multiply; here any reward may come in, so what the paper
takes from a right answer's 1 is taken from `worth`: what a right answer is paid more than a wrong
one (2 where it is +1 and -1, as `rewards.accuracy_reward` has it). Lengths are tokens of the whole
completion, the stop token included.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.statistics import at_least, kept
from iapo_jax.types import Array, Group


def overlong(group: Group, *, max_length: int, overlong_cache: int = 0) -> Array:
    """r + min(0, (max_length - cache - L) / cache): 0, then falling to -1 at max_length.

    `overlong_cache` in tokens; 0 is a fifth of max_length, as in the paper's 4,096 of 20,480.
    Right and wrong completions alike. Eq. 13 of arXiv:2503.14476 (DAPO).
    """
    if not 0 <= overlong_cache <= max_length:
        raise ValueError(f"overlong_cache is {overlong_cache}; expected from 0 to {max_length}")
    cache = overlong_cache or max(max_length // 5, 1)
    excess = group.mask.sum(-1) - (max_length - cache)
    return group.reward - jnp.clip(excess / cache, 0.0, 1.0)


def length_penalty(group: Group, *, penalty: float = 0.2, worth: float = 2.0) -> Array:
    """r - worth penalty sigmoid(z(L)) where correct: r (1 - penalty sigmoid(z(L))) for r in {0, 1}.

    z over the correct completions of the group, population std. `penalty` in [0, 1); the paper
    has 0.05 to 0.4. Sec. 4 of arXiv:2502.04463 (Arora and Zanette).
    """
    if not 0 <= penalty < 1:
        raise ValueError(f"penalty is {penalty}; expected from 0 to below 1")
    at_least("worth", worth, 0)
    length, right = group.mask.sum(-1).astype(jnp.float32), group.correct & kept(group)
    count = jnp.maximum(right.sum(), 1)
    centred = jnp.where(right, length - jnp.where(right, length, 0.0).sum() / count, 0.0)
    std = jnp.sqrt((centred**2).sum() / count)
    return group.reward - worth * penalty * right * jax.nn.sigmoid(centred / (std + 1e-7))


def length_cap(group: Group, *, cap: int, worth: float = 2.0) -> Array:
    """r - worth where correct and L > cap: an answer that comes late is paid as a wrong one.

    The hard limit of ThinkPrune (arXiv:2504.01296) and DLER (arXiv:2510.15110). They stop sampling
    there; with sampling.max_completion_length = cap this is the same. Of DLER this is the cap
    alone: it also whitens advantages over the batch and samples dynamically.
    """
    at_least("cap", cap, 1)
    at_least("worth", worth, 0)
    return group.reward - worth * (group.correct & (group.mask.sum(-1) > cap))


def l1_max(
    group: Group,
    *,
    target_length: int,
    slope: float = 1e-3,
    offset: float = 0.5,
    worth: float = 2.0,
) -> Array:
    """r - worth (1 - f) where correct, f = clip(slope (target_length - L) + offset, 0, 1).

    The reward of L1-Max, arXiv:2503.04697. Its text names a slope of 3e-4 (for the exact variant),
    its code has 1e-3 for this one (the default here), both for budgets of thousands of tokens:
    choose about 1 / target_length. The paper draws a budget for each prompt and tells the model;
    here it is one for all, and `prompt.instruction` may tell it.
    """
    at_least("target_length", target_length, 1)
    at_least("slope", slope, 0)
    at_least("worth", worth, 0)
    spare = target_length - group.mask.sum(-1)
    factor = jnp.clip(slope * spare + offset, 0.0, 1.0)
    return group.reward - worth * group.correct * (1 - factor)
