"""One optimizer update of a sharded state, from a loss that is summed over micro-batches.

Shared by reinforcement learning and supervised fine-tuning. The only module that imports optax.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from iapo_jax.config.sections import OptimizerSection
from iapo_jax.errors import UserError
from iapo_jax.sharding import micro_batches, param_shardings, replicated
from iapo_jax.types import Array, Params

Optimizer = optax.GradientTransformation


class TrainState(NamedTuple):
    """Everything that training changes; random numbers are functions of (seed, step)."""

    updates: Array  # int32; the number of applied optimizer updates
    params: Params
    opt_state: optax.OptState
    adaptation: Any = ()  # state of `algorithms.adaptation`; () without adaptive hyper-parameters


class UpdateResult(NamedTuple):
    """What one optimizer update reports besides the next state; scalars."""

    loss: Array
    grad_norm: Array  # global norm of the gradient before clipping
    skipped: Array  # bool; True where loss, gradient or new parameters are not finite


def make_schedule(section: OptimizerSection, updates: int) -> optax.Schedule:
    """Learning rate by update: linear warm-up, then the decay of `lr_scheduler_type`.

    Raises:
      UserError: for an unknown `lr_scheduler_type`.
    """
    rest = max(updates - section.warmup_steps, 1)
    peak = section.learning_rate
    decays = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }
    if section.lr_scheduler_type not in decays:
        raise UserError(
            f"optimizer.lr_scheduler_type is {section.lr_scheduler_type!r}; "
            f"expected one of {', '.join(decays)}"
        )
    decay = decays[section.lr_scheduler_type]()
    if not section.warmup_steps:
        return decay
    rise = optax.linear_schedule(0.0, peak, section.warmup_steps)
    return optax.join_schedules([rise, decay], [section.warmup_steps])


def make_optimizer(section: OptimizerSection, updates: int) -> Optimizer:
    """AdamW on gradients clipped by global norm; norm scales and biases get no weight decay.

    Equal schedules give the same object, so that a second run reuses its compiled programs: a
    constant learning rate does not depend on the number of updates.
    """
    return _make_optimizer(section, 0 if section.lr_scheduler_type == "constant" else updates)


@lru_cache(maxsize=32)
def _make_optimizer(section: OptimizerSection, updates: int) -> Optimizer:
    adamw = optax.adamw(
        make_schedule(section, updates),
        b1=section.adam_beta1,
        b2=section.adam_beta2,
        eps=section.adam_epsilon,
        weight_decay=section.weight_decay,
        mask=_matrices,
    )
    if not section.max_grad_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(section.max_grad_norm), adamw)


def _matrices(params: Params) -> Any:
    names = ("kernel", "embedding", "head")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)


def state_shardings(
    mesh: Mesh, optimizer: Optimizer, params: Params, adaptation: Any = ()
) -> TrainState:
    """The shardings of a state.

    Moments are sharded like their parameters; counters and adaptation are replicated.
    """
    places = param_shardings(mesh, params)
    opt_places = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, params),
        places,
        transform_non_params=lambda _: replicated(mesh),
    )
    adaptation_places = jax.tree.map(lambda _: replicated(mesh), adaptation)
    return TrainState(replicated(mesh), places, opt_places, adaptation_places)


def new_state(optimizer: Optimizer, params: Params, adaptation: Any = ()) -> TrainState:
    """The state before the first update. It copies `params`, so that it can be donated."""
    copy = partial(jax.tree.map, jnp.copy)
    return TrainState(jnp.int32(0), copy(params), optimizer.init(params), copy(adaptation))


def abstract_state(
    mesh: Mesh, optimizer: Optimizer, params: Params, adaptation: Any = ()
) -> TrainState:
    """Shapes and shardings of `init_state`, from those of the parameters, without computation."""
    shapes = jax.eval_shape(partial(new_state, optimizer), params, adaptation)
    places = state_shardings(mesh, optimizer, params, adaptation)

    def placed(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, places)


def init_state(
    mesh: Mesh, optimizer: Optimizer, params: Params, adaptation: Any = ()
) -> TrainState:
    """`new_state`, placed on the mesh."""
    places = state_shardings(mesh, optimizer, params, adaptation)
    return jax.jit(partial(new_state, optimizer), out_shardings=places)(params, adaptation)


def accumulate_gradients(
    loss: Callable[[Params, Any], tuple[Array, Any]],
    params: Params,
    batch: Any,
    count: int,
) -> tuple[Params, Array, Any]:
    """Gradient, loss and statistics summed over `count` micro-batches of `batch`.

    Args:
      loss: (params, micro-batch) -> the micro-batch's share of the loss, and a tree of `Mean`s.
        Its denominators are those of the full batch, so the sum does not depend on `count`.
    """
    pull = jax.value_and_grad(loss, has_aux=True)
    if count == 1:
        (value, statistics), gradient = pull(params, batch)
        return gradient, value, statistics

    def add(total, part):
        (value, statistics), gradient = pull(params, part)
        return jax.tree.map(jnp.add, total, (gradient, value, statistics)), None

    parts = micro_batches(batch, count)
    (value, statistics), gradient = jax.eval_shape(
        pull, params, jax.tree.map(lambda x: x[0], parts)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, value, statistics))
    return jax.lax.scan(add, zeros, parts)[0]


def count_micro_batches(
    micro_batch_size: int, size: int, devices: int, *, field: str, unit: str, updates: int = 1
) -> int:
    """The number of micro-batches of an update.

    Args:
      micro_batch_size: as configured; 0 = everything in one micro-batch.
      size: prompts or rows of an update.
      devices: the number of devices that share a batch.
      field: the field of `batch` that holds the size of a step.
      unit: what `size` counts.
      updates: mini-batches of a step.

    Raises:
      UserError: if the size of a micro-batch does not divide the update, or is not a multiple of
        the number of devices.
    """
    micro = micro_batch_size or size
    if size % micro == 0 and micro % devices == 0:
        return size // micro
    if not micro_batch_size:
        count = f"{devices}, the number of devices that a batch is split over"
        if updates > 1:
            count = f"{devices * updates} ({devices} devices times batch.mini_batches={updates})"
        raise UserError(f"batch.{field} is {size * updates}; expected a multiple of {count}")
    raise UserError(
        f"batch.micro_batch_size is {micro}; expected a divisor of {size}, the number of {unit} in "
        f"an update, that is a multiple of {devices}, the number of devices that a batch is split "
        "over"
    )


def apply_gradient(
    mesh: Mesh,
    optimizer: Optimizer,
    state: TrainState,
    gradient: Params,
    loss: Array,
) -> tuple[TrainState, UpdateResult]:
    """The next state, sharded as by `init_state`, and the report of the update.

    If the loss, or the norm of the gradient or of the new parameters, is not finite, the update is
    skipped: the state is unchanged, including the moments and the counters of the optimizer.
    """
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    size = optax.tree.norm(params)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss) & jnp.isfinite(size)
    new = state._replace(updates=state.updates + 1, params=params, opt_state=opt_state)
    new = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)
    # Without this constraint XLA moves some leaves, and the next step compiles its programs again.
    places = state_shardings(mesh, optimizer, params, state.adaptation)
    found = UpdateResult(loss=loss, grad_norm=norm, skipped=~finite)
    return jax.lax.with_sharding_constraint(new, places), found
