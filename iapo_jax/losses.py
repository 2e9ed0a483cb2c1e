"""The policy loss and its pieces.

>>> from iapo_jax.losses import LOSS_TYPES
>>> LOSS_TYPES
('grpo', 'bnpo', 'dr_grpo', 'dapo')
"""

from iapo_jax.algorithms.policy_loss import (
    LOG_RATIO_LIMIT,
    LOSS_TYPES,
    LossOptions,
    LossScale,
    LossStatistics,
    aggregate,
    clipped_surrogate,
    k3,
    loss_scale,
    loss_statistics,
    policy_loss,
)

__all__ = [
    "LOG_RATIO_LIMIT",
    "LOSS_TYPES",
    "LossOptions",
    "LossScale",
    "LossStatistics",
    "aggregate",
    "clipped_surrogate",
    "k3",
    "loss_scale",
    "loss_statistics",
    "policy_loss",
]
