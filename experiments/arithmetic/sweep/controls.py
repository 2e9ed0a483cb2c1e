"""The control of `iapo_priced` that knows nothing: named by its file in the configs of its runs."""

import jax
import jax.numpy as jnp

from iapo_jax import ALGORITHMS, Credit
from iapo_jax.algorithms import advantages
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
    """`iapo_priced` with what a completion's thinking tokens tell, in random order.

    u'_t = u_0 - sum_{k <= t} s_pi(k): the same start, end and prices, and as much told in all, but
    at places that have nothing to do with the tokens there.
    """
    thinking = group.thinking & group.mask
    told = jax.vmap(shuffle)(completion_keys(key, group), group.informativeness, thinking)
    start = group.uncertainty[:, :1]
    uncertainty = jnp.concatenate([start, start - jnp.cumsum(told, axis=-1)], axis=-1)
    return advantages.iapo_priced(
        group._replace(uncertainty=uncertainty),
        key,
        information_weight=information_weight,
        price=price,
        unit=unit,
        only_correct=only_correct,
    )


iapo_priced_shuffled = ALGORITHMS["iapo_priced"]._replace(advantage=shuffled, source="a control")
