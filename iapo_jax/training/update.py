"""The jitted, pure parts of a step: the credit of all groups, and the updates from it."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iapo_jax.algorithms.adaptation import Adaptation
from iapo_jax.algorithms.methods import Algorithm
from iapo_jax.algorithms.policy_loss import (
    LossOptions,
    LossStatistics,
    loss_scale,
    loss_statistics,
    policy_loss,
)
from iapo_jax.model.scoring import score_completions
from iapo_jax.sharding import micro_batches
from iapo_jax.training.optimizer import (
    Optimizer,
    TrainState,
    UpdateResult,
    accumulate_gradients,
    apply_gradient,
)
from iapo_jax.types import (
    Array,
    Credit,
    Group,
    Mean,
    Model,
    Params,
    Prompts,
    Rollout,
    Signals,
    valid_mask,
)


class TrainBatch(NamedTuple):
    """What the loss reads; leaves have a leading axis P."""

    prompts: Prompts
    tokens: Array  # [P, G, T]
    old_log_prob: Array  # [P, G, T]
    ref_log_prob: Array  # [P, G, T]
    credit: Credit


class UpdateSpec(NamedTuple):
    """The static hyper-parameters of an optimizer update."""

    optimizer: Optimizer
    loss: LossOptions
    mini_batches: int  # updates in one pass over a rollout
    micro_batches: int  # forward and backward passes in an update
    max_length: int  # max_completion_length, which normalizes dr_grpo


@partial(jax.jit, static_argnames=("mesh", "model", "spec"), donate_argnames="state")
def policy_update(
    state: TrainState,
    batch: TrainBatch,
    index: Array,
    temperature: Array,
    *,
    mesh: Mesh,
    model: Model,
    spec: UpdateSpec,
) -> tuple[TrainState, UpdateResult, LossStatistics]:
    """One optimizer update on mini-batch `index` of a rollout.

    Returns:
      The next state (unchanged if the update is skipped), the report of the update, and the
      statistics of the loss, with the value of each `Mean`.
    """
    batch = jax.tree.map(lambda x: x[index], micro_batches(batch, spec.mini_batches))
    scale = loss_scale(batch.credit.weight)

    def loss(params: Params, part: TrainBatch) -> tuple[Array, LossStatistics]:
        scores = score_completions(model, params, part.prompts, part.tokens, temperature)
        policies = scores.log_prob, part.old_log_prob
        reference = part.ref_log_prob if spec.loss.beta else None
        value = policy_loss(
            *policies,
            part.credit,
            **spec.loss._asdict(),
            ref_log_prob=reference,
            max_length=spec.max_length,
            scale=scale,
        )
        return value, loss_statistics(
            *policies,
            part.credit,
            epsilon=spec.loss.epsilon,
            epsilon_high=spec.loss.epsilon_high,
            ref_log_prob=reference,
        )

    gradient, value, statistics = accumulate_gradients(
        loss, state.params, batch, spec.micro_batches
    )
    state, found = apply_gradient(mesh, spec.optimizer, state, gradient, value)
    values = jax.tree.map(Mean.value, statistics, is_leaf=lambda x: isinstance(x, Mean))
    return state, found, values


@partial(jax.jit, static_argnames="algorithm")
def assign_credit(
    groups: Group,
    keys: Array,
    settings: Mapping[str, Array] | None = None,
    *,
    algorithm: Algorithm,
) -> Credit:
    """Applies the credit rule to the group of every prompt."""
    return jax.vmap(partial(algorithm.credit, **(settings or {})))(groups, keys)


@partial(jax.jit, static_argnames="adapt")
def adapt_settings(
    adaptation: Any, groups: Group, *, adapt: Adaptation
) -> tuple[Any, dict[str, Array]]:
    """The state of the adaptation after a step, and the hyper-parameters that it sets."""
    adaptation = adapt.update(adaptation, groups)
    return adaptation, adapt.settings(adaptation)


@jax.jit
def count_non_finite(
    rollout: Rollout, signals: Signals, credit: Credit, adaptation: Any
) -> dict[str, Array]:
    """The number of NaN and infinite values of a rollout, by kind; int32 scalars.

    Padding does not count.
    """
    size = rollout.tokens.shape[-1]
    mask = valid_mask(rollout.length, size)
    prefixes = valid_mask(rollout.length + 1, size + 1)

    def count(x: Array, real: Array | bool = True) -> Array:
        return (real & ~jnp.isfinite(x)).sum()

    return {
        "sampled_log_prob": count(rollout.log_prob, mask),
        "log_prob": count(signals.log_prob, mask),
        "ref_log_prob": count(signals.ref_log_prob, mask),
        "entropy": count(signals.entropy, mask),
        "uncertainty": count(signals.uncertainty, prefixes),
        "advantage": count(credit.advantage, mask),
        "weight": count(credit.weight, mask),
        "adaptation": sum(map(count, jax.tree.leaves(adaptation)), jnp.int32(0)),
    }
