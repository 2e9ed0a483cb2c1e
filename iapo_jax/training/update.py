"""The jitted steps of learning: credit of groups, and the optimizer update on it. Pure."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from iapo_jax.algorithms.adaptation import Adaptation
from iapo_jax.algorithms.losses import LossOptions, loss_scale, loss_statistics, policy_loss
from iapo_jax.algorithms.methods import Algorithm
from iapo_jax.model.scoring import score_completions
from iapo_jax.sharding import micro_batches
from iapo_jax.training import optimizer as update
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.step_metrics import loss_metrics
from iapo_jax.types import Array, Credit, Group, Mean, Model, Params, Prompts


class TrainBatch(NamedTuple):
    """What the loss reads; leaves have a leading axis P."""

    prompts: Prompts
    tokens: Array  # [P, G, T]
    old_log_prob: Array  # [P, G, T]
    ref_log_prob: Array  # [P, G, T]
    credit: Credit


class UpdateSpec(NamedTuple):
    """The static side of an optimizer update."""

    mesh: Mesh
    model: Model
    optimizer: Any
    loss: LossOptions
    mini_batches: int  # a rollout is cut into so many updates
    micro_batches: int  # and each of them into so many passes
    max_length: int  # T of the configuration, for dr_grpo


@partial(jax.jit, static_argnames="spec", donate_argnames="state")
def policy_update(
    state: TrainState, batch: TrainBatch, index: Array, temperature: Array, *, spec: UpdateSpec
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer update on mini-batch `index` of a rollout; returns scalars as metrics.

    It is skipped, and `skipped` is 1, where loss or gradient are not finite.
    """
    batch = jax.tree.map(lambda x: x[index], micro_batches(batch, spec.mini_batches))
    scale = loss_scale(batch.credit.weight)

    def loss(params: Params, part: TrainBatch) -> tuple[Array, dict[str, Mean]]:
        scores = score_completions(spec.model, params, part.prompts, part.tokens, temperature)
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
        statistics = loss_statistics(
            *policies,
            part.credit,
            epsilon=spec.loss.epsilon,
            epsilon_high=spec.loss.epsilon_high,
            ref_log_prob=reference,
        )
        return value, loss_metrics(statistics)

    gradient, value, metrics = update.accumulate_gradients(
        loss, state.params, batch, spec.micro_batches
    )
    state, told = update.apply_gradient(spec.mesh, spec.optimizer, state, gradient, value)
    return state, told | {name: mean.value() for name, mean in metrics.items()}


@partial(jax.jit, static_argnames="algorithm")
def assign_credit(
    groups: Group, keys: Array, settings: dict[str, Array] | None = None, *, algorithm: Algorithm
) -> Credit:
    """The method, applied to every prompt's group."""
    return jax.vmap(partial(algorithm.credit, **(settings or {})))(groups, keys)


@partial(jax.jit, static_argnames="adapt")
def adapt_settings(
    adaptation: Any, groups: Group, *, adapt: Adaptation
) -> tuple[Any, dict[str, Array]]:
    """The adaptation after this step's groups, and the hyper-parameters that follow from it."""
    adaptation = adapt.update(adaptation, groups)
    return adaptation, adapt.settings(adaptation)
