"""Credit rules and the pieces around them: pure functions of one group."""

from iapo_jax.algorithms.adaptation import (
    ADAPTATIONS,
    Adaptation,
    keep_for_difficulty,
    price_for_accuracy,
    price_for_length,
)
from iapo_jax.algorithms.advantages import grpo, gtpo, rloo
from iapo_jax.algorithms.diagnostics import (
    bonus_share,
    length_covariance,
    redundant_tokens,
    stop_margin,
    token_information,
)
from iapo_jax.algorithms.filters import keep_best, select, stochastic_tokens
from iapo_jax.algorithms.information_advantages import iapo, iapo_reference
from iapo_jax.algorithms.methods import ALGORITHMS, Algorithm, make_algorithm
from iapo_jax.algorithms.reward_shaping import (
    l1_max,
    length_cap,
    length_penalty,
    overlong,
)
from iapo_jax.algorithms.statistics import (
    completion_keys,
    group_advantage,
    leave_one_out,
    normalize,
)
from iapo_jax.algorithms.token_price import iapo_priced

__all__ = [
    "ADAPTATIONS",
    "ALGORITHMS",
    "Adaptation",
    "Algorithm",
    "bonus_share",
    "completion_keys",
    "group_advantage",
    "grpo",
    "gtpo",
    "iapo",
    "iapo_priced",
    "iapo_reference",
    "keep_best",
    "keep_for_difficulty",
    "l1_max",
    "leave_one_out",
    "length_cap",
    "length_covariance",
    "length_penalty",
    "make_algorithm",
    "normalize",
    "overlong",
    "price_for_accuracy",
    "price_for_length",
    "redundant_tokens",
    "rloo",
    "select",
    "stochastic_tokens",
    "stop_margin",
    "token_information",
]
