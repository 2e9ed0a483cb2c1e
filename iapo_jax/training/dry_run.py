"""Compiles the programs of a step from shapes alone, to report the memory that each needs."""

from functools import partial

import jax
import numpy as np

from iapo_jax.information.probes import abstract_probe
from iapo_jax.information.signals import compute_signals
from iapo_jax.pretrained.loaded_model import abstract_params
from iapo_jax.rollout import sampler
from iapo_jax.runtime.console import report_memory
from iapo_jax.sharding import by_prompt
from iapo_jax.training import optimizer
from iapo_jax.training.setup import Setup
from iapo_jax.training.update import TrainBatch, policy_update
from iapo_jax.types import Array, Credit, Params, Prompts, Rollout


def compile_only(setup: Setup) -> None:
    """Compiles the programs of a step and prints the memory that each needs.

    Parameters and batches are shapes only, so this works on machines too small for the model.

    Raises:
      UserError: if the compiler finds that a program does not fit; only TPU compilers check this.
    """
    adapt = setup.algorithm.adapt
    state = optimizer.abstract_state(
        setup.loaded.mesh,
        setup.spec.optimizer,
        abstract_params(setup.loaded),
        () if adapt is None else jax.eval_shape(adapt.init),
    )
    rollout = _abstract_rollout(setup)
    report_memory(
        {
            "sample": _lower_sample(setup, state.params, rollout.prompts),
            "signals": _lower_signals(setup, state.params, rollout),
            "update": _lower_update(setup, state, rollout),
        }
    )


def _abstract_rollout(setup: Setup) -> Rollout:
    config, indices = setup.config, setup.order(0)
    struct = partial(jax.ShapeDtypeStruct, sharding=by_prompt(setup.loaded.mesh))
    shape = (*indices.shape, config.batch.num_generations)
    full = (*shape, config.sampling.max_completion_length)
    return Rollout(
        prompts=sampler.prompts_of(setup.sampler, setup.problems, indices),
        tokens=struct(full, np.int32),
        length=struct(shape, np.int32),
        log_prob=struct(full, np.float32),
        finished=struct(shape, bool),
    )


def _lower_sample(setup: Setup, params: Params, prompts: Prompts) -> jax.stages.Lowered:
    unroll = setup.sampler.prepare.lower(params)
    sampler_params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        unroll.out_info,
        unroll.compile().output_shardings,
    )
    keys: Array = jax.eval_shape(setup.sampler.keys, setup.config.seed, 0, setup.order(0))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=by_prompt(setup.loaded.mesh))
    draw = setup.sampler.draw
    return draw.func.lower(*draw.args, sampler_params, prompts, keys, **draw.keywords)


def _lower_signals(setup: Setup, params: Params, rollout: Rollout) -> jax.stages.Lowered:
    probe = None
    if setup.probe_maker is not None:
        probe = abstract_probe(setup.probe_maker, rollout.tokens.shape)
    return compute_signals.lower(
        setup.loaded.model,
        params,
        rollout,
        probe,
        ref_params=params if setup.algorithm.loss.beta else None,
        temperature=setup.temperature,
        micro=setup.spec.micro_batches * setup.spec.mini_batches,
        estimator=setup.config.information.estimator,
    )


def _lower_update(
    setup: Setup, state: optimizer.TrainState, rollout: Rollout
) -> jax.stages.Lowered:
    floats = rollout.log_prob
    batch = TrainBatch(
        prompts=rollout.prompts,
        tokens=rollout.tokens,
        old_log_prob=floats,
        ref_log_prob=floats,
        credit=Credit(advantage=floats, weight=floats),
    )
    return policy_update.lower(
        state,
        batch,
        np.int32(0),
        setup.temperature,
        mesh=setup.loaded.mesh,
        model=setup.loaded.model,
        spec=setup.spec,
    )
