"""A control of `iapo_priced` that shuffles informativeness; its runs' configs name this file."""

import jax
import jax.numpy as jnp

from iapo_jax import ALGORITHMS, Credit
from iapo_jax.algorithms import iapo_priced
from iapo_jax.algorithms.statistics import completion_keys, shuffle
from iapo_jax.types import Array, Group


def shuffled(
    group: Group,
    key: Array,
    *,
    information_weight: float = 3.0,
    price: float = 0.002,
    unit: str = "share",
    only_correct: bool = False,
) -> Credit:
    """`iapo_priced` with the informativeness of a completion's thinking tokens in random order.

    u'_t = u_0 - sum_{k <= t} s_pi(k): the same start, end, prices and sum of information, but at
    positions that are unrelated to the tokens there.
    """
    thinking = group.thinking & group.mask
    moved = jax.vmap(shuffle)(completion_keys(key, group), group.informativeness, thinking)
    start = group.uncertainty[:, :1]
    uncertainty = jnp.concatenate([start, start - jnp.cumsum(moved, axis=-1)], axis=-1)
    return iapo_priced(
        group._replace(uncertainty=uncertainty),
        key,
        information_weight=information_weight,
        price=price,
        unit=unit,
        only_correct=only_correct,
    )


iapo_priced_shuffled = ALGORITHMS["iapo_priced"]._replace(advantage=shuffled, source="a control")
